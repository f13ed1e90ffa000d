//! Tollgate's own API: what a tenant's keys may ask, the pages of codes, and the way to the operator's part.
//!
//! Invariant: a body is read within its bound, and strictly, before anything is done for it; every answer that refuses is a
//! problem.

use std::future::ready;
use std::pin::Pin;
use std::sync::Arc;

use axum::Router;
use axum::body::{Body, Bytes, HttpBody as _};
use axum::extract::{FromRequestParts as _, RawPathParams};
use axum::handler::Handler;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde::{Deserialize, Serialize};
use tower_service::Service as _;
use wasm_bindgen::prelude::*;
use worker::send::SendFuture;
use worker::{Context, Env, HttpRequest};

use super::carry;
use super::config::Config;
use super::d1::Database;
use super::documents::{self, Read};
use super::door::instant;
use super::gate::{self, clock};
use super::isolate;
use super::object::ask_tenant;
use super::operator;
use super::promise::promise;
use crate::domain::api_key::Mode;
use crate::domain::catalog::Catalog;
use crate::domain::check::{self, Check, Finding, Pending};
use crate::domain::decision::{Code, Tier};
use crate::domain::document::DocumentKey;
use crate::domain::feature::Entitlement;
use crate::domain::gate::{Caller, Refused, Request};
use crate::domain::id::{KeyId, RequestId, TenantId};
use crate::domain::limit::OpId;
use crate::domain::name::{FeatureName, MeterName};
use crate::domain::plan::Plan;
use crate::domain::resident::Resident;
use crate::domain::tally::Behind;
use crate::domain::time::UnixMillis;
use crate::portal;
use crate::wire::json;
use crate::wire::object::{AskTenant, Books};
use crate::wire::problem::{self, Fault, Problem, Snapshot};
use crate::wire::sql::shard;

/// The largest body of a question.
const QUESTION: usize = 64 * 1024;
/// The most checks in one question.
const CHECKS: usize = 32;

/// What every handler has.
#[derive(Clone)]
pub(crate) struct Api {
    pub(crate) env: Env,
    pub(crate) config: Arc<Config>,
    pub(crate) now: UnixMillis,
    pub(crate) id: RequestId,
    context: Arc<Context>,
}

/// Why a call of the API failed: a problem to be.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) code: Code,
    pub(crate) detail: Option<String>,
    pub(crate) faults: Vec<Fault>,
    pub(crate) retry_after_s: Option<u64>,
}

impl Failure {
    /// A failure that its code says all about.
    pub(crate) const fn new(code: Code) -> Self {
        Self { code, detail: None, faults: Vec::new(), retry_after_s: None }
    }

    /// With what is particular about it.
    pub(crate) fn because(self, detail: impl Into<String>) -> Self {
        Self { detail: Some(detail.into()), ..self }
    }
}

impl From<Fault> for Failure {
    fn from(fault: Fault) -> Self {
        Self { faults: vec![fault.clone()], detail: Some(fault.detail), ..Self::new(fault.code) }
    }
}

impl From<super::d1::Abort> for Failure {
    fn from(abort: super::d1::Abort) -> Self {
        worker::console_error!("{abort}");
        match abort {
            super::d1::Abort::Guard(reason) if reason == "exists" || reason == "absent" => Self::new(Code::NotFound),
            super::d1::Abort::Guard(reason) if reason == "bound" => {
                Self::new(Code::Conflict).because("this tenant has as many of these as it may have")
            }
            super::d1::Abort::Guard(_) => Self::new(Code::Conflict).because("it was changed meanwhile; read it again"),
            super::d1::Abort::Constraint(_) => Self::new(Code::Conflict).because("it is there already"),
            super::d1::Abort::Unavailable(_) => Self { retry_after_s: Some(1), ..Self::new(Code::Unavailable) },
        }
    }
}

impl Api {
    /// Does what is to be done behind the reply, once it is out.
    fn after(&self, behind: Option<Behind>) {
        let Some(behind) = behind else { return };
        let (env, config) = (self.env.clone(), Arc::clone(&self.config));
        self.context.wait_until(async move { gate::renewed(&env, &config, behind, clock()).await });
    }

    /// A problem as a response.
    pub(crate) fn problem(&self, failure: &Failure) -> Response {
        let problem = Problem {
            detail: failure.detail.as_deref(),
            errors: &failure.faults,
            retry_after: failure.retry_after_s,
            request_id: Some(self.id),
            ..Problem::new(&self.config.voice.base_url, failure.code)
        };
        let status = StatusCode::from_u16(problem.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = (status, problem.to_json()).into_response();
        let headers = response.headers_mut();
        headers.insert("content-type", HeaderValue::from_static(problem::CONTENT_TYPE));
        headers.insert("cache-control", HeaderValue::from_static("no-store"));
        if let Some(seconds) = failure.retry_after_s {
            headers.insert("retry-after", HeaderValue::from(seconds));
        }
        self.named(response)
    }

    /// An answer in JSON.
    pub(crate) fn json(&self, status: StatusCode, body: &impl Serialize) -> Response {
        let Ok(text) = serde_json::to_string(body) else { return self.problem(&Failure::new(Code::Internal)) };
        let mut response = (status, text).into_response();
        response.headers_mut().insert("content-type", HeaderValue::from_static("application/json"));
        response.headers_mut().insert("cache-control", HeaderValue::from_static("no-store"));
        self.named(response)
    }

    fn named(&self, mut response: Response) -> Response {
        let name = HeaderName::from_static("tollgate");
        if !response.headers().contains_key(&name)
            && let Ok(value) = HeaderValue::from_str(&format!("id={}", self.id))
        {
            response.headers_mut().insert(name, value);
        }
        response
    }
}

/// What is asked, of any handler.
pub(crate) struct Call {
    pub(crate) api: Api,
    /// Method and path.
    pub(crate) what: String,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Body,
    params: RawPathParams,
    query: String,
}

impl Call {
    /// A part of the path, by its name in the route.
    pub(crate) fn param(&self, name: &str) -> String {
        self.params.iter().find(|(held, _)| *held == name).map(|(_, value)| value.to_owned()).unwrap_or_default()
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
}

/// What a handler will answer.
type Replying = Pin<Box<dyn Future<Output = Result<Response, Failure>>>>;

/// A handler. All have this one type, so that what axum makes of a handler's type is compiled once.
#[derive(Clone, Copy)]
pub(crate) struct Served(pub(crate) fn(Call) -> Replying);

impl Handler<(), Api> for Served {
    type Future = Pin<Box<dyn Future<Output = Response> + Send>>;

    fn call(self, request: axum::extract::Request, api: Api) -> Self::Future {
        Box::pin(SendFuture::new(async move {
            let (mut parts, body) = request.into_parts();
            let Ok(params) = RawPathParams::from_request_parts(&mut parts, &()).await else {
                return api.problem(&Failure::new(Code::NotFound));
            };
            let what = format!("{} {}", parts.method, parts.uri.path());
            let query = parts.uri.query().unwrap_or_default().to_owned();
            let call = Call { api: api.clone(), what, headers: parts.headers, body, params, query };
            self.0(call).await.unwrap_or_else(|failure| api.problem(&failure))
        }))
    }
}

/// Reads a body of at most `most` bytes; more is refused by its announced length, or else as soon as it has come.
pub(crate) async fn read_body(headers: &HeaderMap, body: Body, most: usize) -> Result<Bytes, Failure> {
    let too_large = || Failure::new(Code::BodyTooLarge).because(format!("at most {most} bytes"));
    let announced = headers.get("content-length").and_then(|value| value.to_str().ok()?.parse::<usize>().ok());
    if announced.is_some_and(|length| length > most) {
        return Err(too_large());
    }
    let mut body = std::pin::pin!(body);
    let mut bytes = Vec::new();
    while let Some(frame) = std::future::poll_fn(|context| body.as_mut().poll_frame(context)).await {
        let frame = frame.map_err(|_| Failure::new(Code::MalformedJson).because("the body broke off"))?;
        if let Ok(data) = frame.into_data() {
            if bytes.len() + data.len() > most {
                return Err(too_large());
            }
            bytes.extend_from_slice(&data);
        }
    }
    Ok(bytes.into())
}

/// Serves what the gate does not.
#[worker::event(fetch)]
async fn fetch(request: HttpRequest, env: Env, context: Context) -> worker::Result<Response> {
    let now = clock();
    let config = isolate::ready(&env)?;
    let id = isolate::with(|isolate| isolate.request_id(now)).unwrap_or_else(|| RequestId::new(now, isolate::random()));
    let api = Api { env, config, now, id, context: Arc::new(context) };
    let routes = Router::new()
        .route("/healthz", get(Served(|call| Box::pin(ready(Ok(health(&call)))))))
        .route("/problems/{code}", get(Served(|call| Box::pin(ready(page(&call))))))
        .route("/v1/check", post(Served(|call| Box::pin(answer(call)))))
        .route("/v1/features", get(Served(|call| Box::pin(features(call)))))
        .route("/v1/features/{key}", get(Served(|call| Box::pin(feature(call)))))
        .route("/v1/usage", get(Served(|call| Box::pin(usage(call)))))
        .nest("/v1/admin", operator::routes())
        .method_not_allowed_fallback(Served(|_| Box::pin(async { Err(Failure::new(Code::MethodNotAllowed)) })))
        .fallback(Served(|_| Box::pin(async { Err(Failure::new(Code::NotFound)) })));
    Ok(routes.with_state(api).call(request).await?)
}

/// Every minute: carries what a crash left.
#[wasm_bindgen]
pub fn sweep(env: Env, now: f64) -> js_sys::Promise {
    promise(async move {
        let config = isolate::ready(&env)?;
        carry::sweep(&env, &config, instant(now)).await;
        Ok(JsValue::UNDEFINED)
    })
}

/// 1. Says that it is up, and what it holds. 200 whenever it runs; it asks nobody.
fn health(Call { api, .. }: &Call) -> Response {
    #[derive(Serialize)]
    struct Health {
        status: &'static str,
        version: &'static str,
        catalog: Option<u64>,
        tenants: usize,
        bytes: usize,
        hits: u64,
        misses: u64,
    }
    let health = isolate::with(|isolate| {
        let (tenants, bytes) = isolate.gate.occupancy();
        Health {
            status: "ok",
            version: env!("CARGO_PKG_VERSION"),
            catalog: isolate.gate.catalog(api.now).map(crate::domain::gate::Compiled::serial),
            tenants,
            bytes,
            hits: isolate.gate.hits,
            misses: isolate.gate.misses,
        }
    });
    api.json(StatusCode::OK, &health)
}

/// What a code means and what to do: a page for people.
fn page(call: &Call) -> Result<Response, Failure> {
    let code: Code = call.param("code").parse().map_err(|_| Failure::new(Code::NotFound))?;
    let mut response = portal::problem_page(code).into_response();
    let headers = response.headers_mut();
    headers.insert("content-type", HeaderValue::from_static("text/html; charset=utf-8"));
    headers.insert("cache-control", HeaderValue::from_static("public, max-age=3600"));
    headers.insert(
        "content-security-policy",
        HeaderValue::from_static("default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"),
    );
    Ok(response)
}

/// What a handler does with a caller that is known.
struct Known<'g> {
    resident: &'g mut Resident,
    catalog: &'g Catalog,
    key: KeyId,
    mode: Mode,
    now: UnixMillis,
}

/// Finds out who calls, reading what is needed, and lets `then` answer.
async fn known<T>(api: &Api, headers: &HeaderMap, mut then: impl FnMut(Known<'_>) -> T) -> Result<T, Response> {
    let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned();
    let (api_key, authorization) = (header("x-api-key"), header("authorization"));
    for _ in 0..6 {
        let now = clock();
        let request = Request {
            method: "",
            url: "",
            api_key: &api_key,
            authorization: &authorization,
            waits: true,
            preflight: false,
            now,
        };
        let step = isolate::with(|isolate| match isolate.gate.caller(&request, &isolate.config.api_keys) {
            Caller::Known { resident, catalog, key, mode } => {
                let tenant = resident.tenant().tenant;
                let value = then(Known { resident, catalog, key, mode, now });
                api.after(isolate.gate.behind(tenant, now));
                Ok(value)
            }
            Caller::Refused(refused) => {
                api.after(refused.behind);
                Err(Err(refusal(api, &refused)))
            }
            Caller::Missing(keys) => Err(Ok(keys)),
        });
        let missing = match step {
            Some(Ok(value)) => return Ok(value),
            Some(Err(Err(response))) => return Err(response),
            Some(Err(Ok(keys))) => keys,
            None => return Err(api.problem(&Failure::new(Code::Unavailable))),
        };
        for key in missing {
            match (documents::read(&api.env, &api.config, &key, now).await, &key) {
                (Read::Here, _) => {}
                (Read::Absent, DocumentKey::Tenant(tenant)) => {
                    isolate::with(|isolate| isolate.gate.note_absent(*tenant, now));
                }
                (Read::Absent | Read::Failed(_), DocumentKey::Plan(plan, version)) => {
                    if let Some(previous) = isolate::with(|isolate| isolate.gate.previous(plan, *version)).flatten() {
                        documents::read(&api.env, &api.config, &previous, now).await;
                    }
                    if isolate::with(|isolate| isolate.gate.stand_in(plan, *version)) != Some(true) {
                        return Err(api.problem(&Failure::new(Code::SnapshotUnavailable)));
                    }
                }
                (Read::Absent, DocumentKey::Catalog) => {
                    isolate::with(|isolate| isolate.gate.take_empty_catalog(now));
                }
                (Read::Failed(code), _) => return Err(api.problem(&Failure::new(code))),
            }
        }
    }
    Err(api.problem(&Failure::new(Code::SnapshotUnavailable)))
}

fn refusal(api: &Api, refused: &Refused<'_>) -> Response {
    let plan = refused.resident.and_then(Resident::plan);
    let problem = Problem {
        tenant: refused.resident.map(|resident| resident.tenant().tenant),
        current_plan: plan.map(|plan| plan.content.title.as_str()),
        snapshot: refused.resident.map(|resident| snapshot(resident, api.now)),
        tier: Some(refused.tier),
        request_id: Some(api.id),
        ..Problem::new(&api.config.voice.base_url, refused.code)
    };
    let status = StatusCode::from_u16(problem.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = (status, problem.to_json()).into_response();
    response.headers_mut().insert("content-type", HeaderValue::from_static(problem::CONTENT_TYPE));
    response.headers_mut().insert("cache-control", HeaderValue::from_static("no-store"));
    api.named(response)
}

fn snapshot(resident: &Resident, now: UnixMillis) -> Snapshot {
    Snapshot { serial: resident.serial(), age_ms: resident.age_ms(now) }
}

/// A feature, as the API shows it.
#[derive(Serialize)]
struct Shown {
    feature: FeatureName,
    enabled: bool,
    value: serde_json::Value,
    source: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    source_tenant: Option<TenantId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    until: Option<UnixMillis>,
}

fn show(feature: &FeatureName, entitlement: &Entitlement<'_>) -> Shown {
    let source_tenant = match entitlement.source {
        crate::domain::feature::Source::Override { tenant, .. } => Some(tenant),
        _ => None,
    };
    Shown {
        feature: feature.clone(),
        enabled: entitlement.enabled,
        value: entitlement.value.as_json().clone(),
        source: entitlement.source.name(),
        source_tenant,
        until: entitlement.until,
    }
}

#[derive(Serialize)]
#[expect(clippy::struct_field_names, reason = "the field is named for the JSON")]
struct Features {
    features: Vec<Shown>,
    tenant: TenantId,
    #[serde(skip_serializing_if = "Option::is_none")]
    plan: Option<String>,
    snapshot: Snapshot,
    tier: &'static str,
    request_id: RequestId,
}

/// Every feature of the caller, with its source.
async fn features(Call { api, headers, .. }: Call) -> Result<Response, Failure> {
    let answer = known(&api, &headers, |known| Features {
        features: known
            .catalog
            .features
            .keys()
            .map(|name| show(name, &known.resident.entitlement(known.catalog, name.as_str(), known.now)))
            .collect(),
        tenant: known.resident.tenant().tenant,
        plan: known.resident.plan().map(|plan: &Plan| plan.content.title.clone()),
        snapshot: snapshot(known.resident, known.now),
        tier: Tier::Isolate.name(),
        request_id: api.id,
    })
    .await;
    Ok(answer.map_or_else(|refusal| refusal, |features| api.json(StatusCode::OK, &features)))
}

/// One feature of the caller.
async fn feature(call: Call) -> Result<Response, Failure> {
    #[derive(Serialize)]
    struct One {
        #[serde(flatten)]
        feature: Shown,
        tenant: TenantId,
        snapshot: Snapshot,
        tier: &'static str,
        request_id: RequestId,
    }
    let (api, key) = (&call.api, call.param("key"));
    let answer = known(api, &call.headers, |known| {
        let name = key.parse::<FeatureName>().ok().filter(|name| known.catalog.features.contains_key(name))?;
        Some(One {
            feature: show(&name, &known.resident.entitlement(known.catalog, name.as_str(), known.now)),
            tenant: known.resident.tenant().tenant,
            snapshot: snapshot(known.resident, known.now),
            tier: Tier::Isolate.name(),
            request_id: api.id,
        })
    })
    .await;
    match answer {
        Ok(Some(one)) => Ok(api.json(StatusCode::OK, &one)),
        Ok(None) => Err(Failure::new(Code::NotFound).because(format!("there is no feature {key}"))),
        Err(refusal) => Ok(refusal),
    }
}

/// A question: one check, or several that are all paid or none.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Question {
    checks: Vec<Check>,
    /// Spend nothing, only say what would be.
    #[serde(default)]
    peek: bool,
}

#[derive(Serialize)]
struct Answer {
    allowed: bool,
    checks: Vec<Checked>,
    tenant: TenantId,
    mode: &'static str,
    snapshot: Snapshot,
    tier: &'static str,
    request_id: RequestId,
}

#[derive(Serialize)]
struct Checked {
    allowed: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    code: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    feature: Option<Shown>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    limits: Vec<Bound>,
    #[serde(skip_serializing_if = "Option::is_none")]
    retry_after_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    upgrade_url: Option<String>,
}

#[derive(Serialize)]
struct Bound {
    name: String,
    tenant: TenantId,
    level: usize,
    quota: u64,
    remaining: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    resets_at: Option<UnixMillis>,
}

/// 1. 401 unless the key is good. 2. 400, 413 or 422 unless the body is sound. 3. 200, whatever is decided: `allowed` says it.
async fn answer(Call { api, headers, body, .. }: Call) -> Result<Response, Failure> {
    // Strangers learn nothing about bodies, and none of theirs is read.
    if let Err(refusal) = known(&api, &headers, |_| ()).await {
        return Ok(refusal);
    }
    let question = question(&read_body(&headers, body, QUESTION).await?)?;
    let assessed = known(&api, &headers, |known| {
        let Known { resident, catalog, key, mode, now } = known;
        let id = OpId(isolate::random());
        let assessed = check::assess(resident, catalog, (key, mode), &question.checks, question.peek, id, now);
        let shown = question.checks.iter().map(|check| {
            check.feature.as_ref().map(|name| show(name, &resident.entitlement(catalog, name.as_str(), now)))
        });
        let answer = Answer::new(&api, resident, mode, &assessed.findings, shown.collect(), now);
        (assessed, answer)
    });
    let (assessed, mut answer) = match assessed.await {
        Ok(assessed) => assessed,
        Err(refusal) => return Ok(refusal),
    };
    if let Some(pending) = assessed.pending {
        ask(&api, pending, assessed.findings, &mut answer).await;
    }
    Ok(api.json(StatusCode::OK, &answer))
}

/// The body is one check, or `checks`.
fn question(bytes: &[u8]) -> Result<Question, Failure> {
    let tree = json::read_tree(bytes, QUESTION)?;
    let question = if tree.get("checks").is_some() {
        json::read::<Question>(bytes, QUESTION)?
    } else {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Single {
            #[serde(default)]
            feature: Option<FeatureName>,
            #[serde(default)]
            meter: Option<MeterName>,
            #[serde(default = "check::one")]
            cost: u64,
            #[serde(default)]
            peek: bool,
        }
        let Single { feature, meter, cost, peek } = json::read(bytes, QUESTION)?;
        Question { checks: vec![Check { feature, meter, cost }], peek }
    };
    let fault = |pointer: &str, detail: String| Fault { detail, pointer: pointer.to_owned(), code: Code::InvalidValue };
    if question.checks.is_empty() || question.checks.len() > CHECKS {
        return Err(fault("#/checks", format!("1 to {CHECKS} checks")).into());
    }
    for (at, check) in question.checks.iter().enumerate() {
        if check.feature.is_none() && check.meter.is_none() {
            return Err(fault(&format!("#/checks/{at}"), "a check names a feature, a meter, or both".to_owned()).into());
        }
    }
    Ok(question)
}

impl Answer {
    fn new(
        api: &Api,
        resident: &Resident,
        mode: Mode,
        findings: &[Finding],
        features: Vec<Option<Shown>>,
        now: UnixMillis,
    ) -> Self {
        let upgrade = resident.plan().and_then(|plan| plan.content.upgrade_url.as_ref());
        let checks = findings.iter().zip(features).map(|(finding, feature)| Checked {
            allowed: finding.code.is_none(),
            code: finding.code.map(Code::name),
            feature,
            limits: finding
                .shown
                .iter()
                .map(|shown| Bound {
                    name: shown.name.to_string(),
                    tenant: shown.tenant,
                    level: shown.level,
                    quota: shown.quota,
                    remaining: resident.limits.remaining(shown.slot),
                    resets_at: shown.ends,
                })
                .collect(),
            retry_after_ms: finding.retry_after_ms,
            upgrade_url: finding.code.and(upgrade.cloned()),
        });
        Self {
            allowed: findings.iter().all(|finding| finding.code.is_none()),
            checks: checks.collect(),
            tenant: resident.tenant().tenant,
            mode: mode.name(),
            snapshot: snapshot(resident, now),
            tier: if findings.iter().any(|finding| finding.paid) { Tier::Lease } else { Tier::Isolate }.name(),
            request_id: api.id,
        }
    }
}

/// Asks the limiter what only it can decide, and brings the answer up to that.
async fn ask(api: &Api, pending: Pending, mut findings: Vec<Finding>, answer: &mut Answer) {
    let Pending { tenant, call, ticket } = pending;
    let said = gate::insist(&api.env, &api.config, tenant, call).await;
    let now = clock();
    let reply = said.and_then(Result::ok).map(|said| gate::learn(&api.config, tenant, said, now));
    isolate::with(|isolate| {
        if let Some(resident) = isolate.gate.resident(tenant) {
            check::conclude(resident, ticket, reply.as_ref(), &mut findings, now);
        }
    });
    answer.tier = Tier::Limiter.name();
    answer.allowed = findings.iter().all(|finding| finding.code.is_none());
    for (checked, finding) in answer.checks.iter_mut().zip(&findings) {
        checked.allowed = finding.code.is_none();
        checked.code = finding.code.map(Code::name);
        checked.retry_after_ms = finding.retry_after_ms;
    }
}

/// What the caller has used: from the ledger, and what is still on its way there.
async fn usage(Call { api, headers, .. }: Call) -> Result<Response, Failure> {
    let known = known(&api, &headers, |known| {
        (known.resident.tenant().tenant, known.resident.tenant().shard.clone(), known.resident.period(known.now))
    });
    match known.await {
        Ok((tenant, shard, period)) => Ok(api.json(StatusCode::OK, &read_usage(&api, tenant, &shard, period).await?)),
        Err(refusal) => Ok(refusal),
    }
}

/// One meter's total of a usage period.
#[derive(Serialize, Deserialize)]
pub(crate) struct Total {
    meter: String,
    mode: String,
    period_start: u64,
    quantity: u64,
    entries: u64,
}

#[derive(Serialize)]
pub(crate) struct Usage {
    tenant: TenantId,
    period_start: UnixMillis,
    totals: Vec<Total>,
    /// Events that are durable and not in the ledger yet.
    pending: u64,
    /// Units that leases hold now, by limit.
    leased: Vec<(String, u64)>,
    /// Units of expired leases that nobody reported: shown, never billed.
    gap: Vec<(String, u64)>,
    request_id: RequestId,
}

/// What a tenant has used since `period`.
pub(crate) async fn read_usage(
    api: &Api,
    tenant: TenantId,
    shard: &crate::domain::name::ShardName,
    period: UnixMillis,
) -> Result<Usage, Failure> {
    let database = Database::shard(&api.env, shard)?;
    let totals = database.rows(shard::TOTALS, &[(&tenant.to_string()).into(), period.0.into()]).await?;
    let books: Books = ask_tenant(&api.env, &api.config, tenant, AskTenant::Books)
        .await
        .map_err(|error| Failure::new(Code::Unavailable).because(error.to_string()))?;
    Ok(Usage {
        tenant,
        period_start: period,
        totals,
        pending: books.outbox,
        leased: books.leased,
        gap: books.gap,
        request_id: api.id,
    })
}
