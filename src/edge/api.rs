//! Tollgate's own API: calls, answers, and how one leads to the other.
//!
//! Invariant: a body is read within its bound, and strictly, before anything is done for it; every answer that refuses is a
//! problem, and every answer names its request.

use std::pin::Pin;
use std::sync::Arc;

use js_sys::Uint8Array;
use wasm_bindgen::prelude::*;
use worker::Env;
use worker::worker_sys::web_sys;

use super::config::Config;
use super::door::instant;
use super::gate::clock;
use super::isolate;
use super::promise::promise;
use super::routes::{self, Serve};
use crate::domain::decision::Code;
use crate::domain::id::RequestId;
use crate::domain::path::{CanonicalPath, Url};
use crate::domain::route::Method;
use crate::domain::tally::Behind;
use crate::domain::time::UnixMillis;
use crate::wire::answer::LAST;
use crate::wire::problem::{self, Failure};
use crate::wire::verdict::{Headers, Verdict};

#[wasm_bindgen]
extern "C" {
    type Stream;
    #[wasm_bindgen(method, js_name = getReader)]
    fn reader(this: &Stream) -> Reader;

    type Reader;
    #[wasm_bindgen(method, catch)]
    async fn read(this: &Reader) -> Result<JsValue, JsValue>;
    #[wasm_bindgen(method)]
    fn cancel(this: &Reader) -> js_sys::Promise;

    type Chunk;
    #[wasm_bindgen(method, getter)]
    fn done(this: &Chunk) -> bool;
    #[wasm_bindgen(method, getter)]
    fn value(this: &Chunk) -> Uint8Array;
}

/// A call of the API.
pub(crate) struct Call {
    pub(crate) env: Env,
    pub(crate) config: Arc<Config>,
    pub(crate) now: UnixMillis,
    pub(crate) id: RequestId,
    request: web_sys::Request,
    method: Method,
    path: CanonicalPath<'static>,
    query: String,
    /// Which route it is.
    pub(crate) route: &'static str,
}

/// What is answered.
pub(crate) struct Answer {
    status: u16,
    kind: &'static str,
    body: String,
    headers: Vec<(&'static str, String)>,
    behind: Option<Behind>,
}

impl Answer {
    /// JSON.
    pub(crate) fn json(status: u16, body: String) -> Self {
        let headers = vec![("cache-control", "no-store".to_owned())];
        Self { status, kind: "application/json", body, headers, behind: None }
    }

    /// A page, for an hour.
    pub(crate) fn page(body: String) -> Self {
        let policy = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'";
        let headers =
            vec![("cache-control", "public, max-age=3600".to_owned()), ("content-security-policy", policy.to_owned())];
        Self { status: 200, kind: "text/html; charset=utf-8", body, headers, behind: None }
    }

    /// A problem, in its JSON form.
    pub(crate) fn problem(status: u16, body: String) -> Self {
        Self { kind: problem::CONTENT_TYPE, ..Self::json(status, body) }
    }

    /// With what is to be done behind it.
    pub(crate) fn behind(self, behind: Option<Behind>) -> Self {
        Self { behind: behind.or(self.behind), ..self }
    }

    fn failed(failure: &Failure, base: &str, id: RequestId) -> Self {
        let problem = failure.problem(base, id);
        let mut answer = Self::problem(problem.status, problem.to_json());
        let after = failure.retry_after_s.map(|seconds| seconds.to_string());
        let after = after.or_else(|| (answer.status == 503).then(|| problem::RETRY_AFTER_S.to_owned()));
        answer.headers.extend(after.map(|seconds| ("retry-after", seconds)));
        answer.headers.extend(failure.allow.clone().map(|methods| ("allow", methods)));
        answer
    }

    fn into_verdict(self, id: RequestId) -> String {
        let mut verdict = Verdict::default();
        if let Some(behind) = self.behind {
            verdict.renew(&behind.to_string());
        }
        let mut headers = Headers::of_status(self.status);
        headers.header("content-type", self.kind);
        for (name, value) in &self.headers {
            headers.header(name, value);
        }
        verdict.begin_answer();
        verdict.go_on(&[&self.body, "\nid=", id.text().as_str(), "\n"]).with_head(headers.head(LAST).into()).into_text()
    }
}

/// What a handler will answer.
pub(crate) type Serving = Pin<Box<dyn Future<Output = Result<Answer, Failure>>>>;

impl Call {
    /// A part of the path, by its name in the route.
    pub(crate) fn param(&self, name: &str) -> &str {
        self.path.part(self.route, name).unwrap_or_default()
    }

    pub(crate) fn header(&self, name: &str) -> Option<String> {
        self.request.headers().get(name).ok().flatten()
    }

    /// Its path.
    pub(crate) fn path(&self) -> &CanonicalPath<'_> {
        &self.path
    }

    /// Method and path.
    pub(crate) fn what(&self) -> String {
        format!("{} {}", self.method, self.path)
    }

    /// Where a page begins and how long it is: at most 200, 50 where nothing is said.
    ///
    /// # Errors
    /// 422 for a length that is no number.
    pub(crate) fn page(&self) -> Result<(Option<&str>, u64), Failure> {
        let query = |name: &str| self.query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='));
        let limit = query("limit").map_or(Ok(50), str::parse::<u64>);
        let limit = limit.map_err(|_| Failure::new(Code::InvalidValue).because("limit is a number of 1 to 200"))?;
        Ok((query("cursor"), limit.clamp(1, 200)))
    }

    /// Its body, of at most `most` bytes; more is refused by its announced length, or else as soon as it has come.
    ///
    /// # Errors
    /// 413 for a larger one, 400 for one that breaks off.
    pub(crate) async fn body(&self, most: usize) -> Result<Vec<u8>, Failure> {
        let too_large = || Failure::new(Code::BodyTooLarge).because(format!("at most {most} bytes"));
        let announced = self.header("content-length").and_then(|value| value.parse::<usize>().ok());
        if announced.is_some_and(|length| length > most) {
            return Err(too_large());
        }
        let Some(stream) = self.request.body() else { return Ok(Vec::new()) };
        let reader = stream.unchecked_into::<Stream>().reader();
        let mut bytes = Vec::new();
        loop {
            let broken = |_| Failure::new(Code::MalformedJson).because("the body broke off");
            let chunk: Chunk = reader.read().await.map_err(broken)?.unchecked_into();
            if chunk.done() {
                return Ok(bytes);
            }
            let value = chunk.value();
            if bytes.len() + value.length() as usize > most {
                let _ = reader.cancel();
                return Err(too_large());
            }
            bytes.extend_from_slice(&value.to_vec());
        }
    }
}

/// Serves what the gate does not. The answer is a verdict.
#[wasm_bindgen]
pub fn api(request: web_sys::Request, env: Env, now: f64) -> js_sys::Promise {
    let now = clock().max(instant(now));
    promise(async move {
        let config = isolate::ready(&env)?;
        let id = isolate::request_id(now)?;
        let answer = match serve(request, env, &config, id, now) {
            Ok(serving) => serving.await,
            Err(failure) => Err(failure),
        };
        let answer = answer.unwrap_or_else(|failure| Answer::failed(&failure, &config.voice.base_url, id));
        Ok(Some(answer.into_verdict(id)))
    })
}

/// The answer to a request that was broken off here: by a panic, or because the deployment is not configured.
#[wasm_bindgen]
#[must_use]
pub fn broken_off(now: f64) -> String {
    failed(Code::Internal, instant(now))
}

/// The answer to a request that failed for `code`, whether or not the memory of this isolate is there.
pub(crate) fn failed(code: Code, now: UnixMillis) -> String {
    let (base, id) = isolate::with(|isolate| (isolate.config.voice.base_url.clone(), isolate.request_id(now)))
        .unwrap_or_else(|| (String::new(), RequestId::new(now, isolate::random().unwrap_or_default())));
    Answer::failed(&Failure::new(code), &base, id).into_verdict(id)
}

/// Whether there is anything of the API at this URL.
pub(crate) fn knows(url: &str) -> bool {
    let path = Url::split(url).and_then(|url| CanonicalPath::parse(url.path).ok());
    path.is_some_and(|path| !matches!(routes::find("", &path), Err(Failure { code: Code::NotFound, .. })))
}

/// Finds the route of a request and lets it serve.
fn serve(
    request: web_sys::Request,
    env: Env,
    config: &Arc<Config>,
    id: RequestId,
    now: UnixMillis,
) -> Result<Serving, Failure> {
    let url = request.url();
    let url = Url::split(&url).ok_or_else(|| Failure::new(Code::NotFound))?;
    let path = CanonicalPath::parse(url.path).map_err(|_| Failure::new(Code::NotFound))?.into_owned();
    let (method, route, serve) = routes::find(&request.method(), &path)?;
    let query = url.query.unwrap_or_default().to_owned();
    let call = Call { env, config: Arc::clone(config), now, id, request, method, path, query, route };
    Ok(match serve {
        Serve::Say(say) => Box::pin(std::future::ready(say(&call))),
        Serve::Ask(ask) => ask(call),
        Serve::Catalog(decide) => Box::pin(super::operator::alter_catalog(call, decide)),
        Serve::Tenant(decide) => Box::pin(super::operator::alter_tenant(call, decide)),
    })
}
