//! Calls to Durable Objects: which object, one message, one answer.
//!
//! Invariant: a tenant's object is found from the tenant's id alone, and the jurisdiction is applied in this one place.

use serde::de::DeserializeOwned;
use wasm_bindgen::prelude::*;
use worker::Env;

use super::config::{self, Config, Jurisdictions};
use crate::domain::id::{Jurisdiction, TenantId};
use crate::domain::limit::Call;
use crate::wire::json::{self, written};
use crate::wire::object::{AskTenant, LimitAnswer, ToCatalog, ToTenant};

#[wasm_bindgen]
extern "C" {
    type Namespace;
    #[wasm_bindgen(method, catch, js_name = getByName)]
    fn get_by_name(this: &Namespace, name: &str) -> Result<Stub, JsValue>;
    #[wasm_bindgen(method, catch)]
    fn jurisdiction(this: &Namespace, name: &str) -> Result<Namespace, JsValue>;

    type Stub;
    #[wasm_bindgen(method, catch)]
    async fn call(this: &Stub, message: &str) -> Result<JsValue, JsValue>;
}

/// Why an object gave no answer.
#[derive(Debug)]
pub(crate) struct Unreachable {
    /// For the log.
    pub(crate) message: String,
    /// The object has more to do than it can: asking again would add to it.
    pub(crate) overloaded: bool,
}

impl Unreachable {
    fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), overloaded: false }
    }

    /// What the platform threw.
    pub(crate) fn thrown(error: &JsValue) -> Self {
        let overloaded = js_sys::Reflect::get(error, &"overloaded".into()).is_ok_and(|flag| flag.is_truthy());
        let message = js_sys::Reflect::get(error, &"message".into()).ok().and_then(|text| text.as_string());
        let message = message.or_else(|| error.as_string()).unwrap_or_else(|| "thrown without a message".to_owned());
        Self { message, overloaded }
    }
}

impl std::fmt::Display for Unreachable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "object unreachable: {}", self.message)
    }
}

/// A message to the object of a tenant: written once, however often it is sent.
pub(crate) struct Message {
    tenant: TenantId,
    text: String,
}

impl Message {
    /// This question.
    pub(crate) fn new(tenant: TenantId, ask: AskTenant) -> Self {
        Self { tenant, text: written(&ToTenant { tenant, ask }) }
    }

    /// To the limiter of `tenant`.
    pub(crate) fn to_limiter(tenant: TenantId, call: Box<Call>) -> Self {
        Self::new(tenant, AskTenant::Limit(call))
    }

    /// Sends it; what the object answers is the answer's own JSON.
    ///
    /// # Errors
    /// When it cannot be reached, or threw. A stub is made anew for each call: one that threw may be broken.
    pub(crate) async fn send(&self, env: &Env, config: &Config) -> Result<String, Unreachable> {
        let Self { tenant, text } = self;
        let namespace = namespace(env, "TENANT")?;
        let place = tenant.jurisdiction();
        let stub = match (config.jurisdictions, place) {
            (Jurisdictions::Platform, Jurisdiction::Eu | Jurisdiction::Fedramp) => {
                namespace.jurisdiction(place.name()).and_then(|within| within.get_by_name(&tenant.to_string()))
            }
            (Jurisdictions::Platform, Jurisdiction::Global) => namespace.get_by_name(&tenant.to_string()),
            (Jurisdictions::Names, _) => namespace.get_by_name(&format!("{place}/{tenant}")),
        };
        exchange(stub, text).await
    }
}

/// Asks the object of `tenant`.
///
/// # Errors
/// As [`Message::send`].
pub(crate) async fn ask_tenant(
    env: &Env,
    config: &Config,
    tenant: TenantId,
    ask: AskTenant,
) -> Result<String, Unreachable> {
    Message::new(tenant, ask).send(env, config).await
}

/// Asks a limiter.
///
/// # Errors
/// As [`Message::send`].
pub(crate) async fn ask_limiter(env: &Env, config: &Config, message: &Message) -> Result<LimitAnswer, Unreachable> {
    answered(&message.send(env, config).await?)
}

/// Asks the catalog object.
///
/// # Errors
/// When it cannot be reached, or threw.
pub(crate) async fn ask_catalog(env: &Env, ask: ToCatalog) -> Result<String, Unreachable> {
    exchange(namespace(env, "CATALOG")?.get_by_name("catalog"), &written(&ask)).await
}

/// What an object answered.
///
/// # Errors
/// When it is no `A`: object and asker are of versions that do not go together.
pub(crate) fn answered<A: DeserializeOwned>(answer: &str) -> Result<A, Unreachable> {
    json::parse(answer).map_err(|error| Unreachable::new(error.to_string()))
}

async fn exchange(stub: Result<Stub, JsValue>, message: &str) -> Result<String, Unreachable> {
    let stub = stub.map_err(|error| Unreachable::thrown(&error))?;
    let answer = stub.call(message).await.map_err(|error| Unreachable::thrown(&error))?;
    answer.as_string().ok_or_else(|| Unreachable::new("the object's answer is not text"))
}

fn namespace(env: &Env, binding: &str) -> Result<Namespace, Unreachable> {
    config::binding(env, binding).map_err(Unreachable::new)
}
