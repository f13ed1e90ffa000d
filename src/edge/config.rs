//! What the deployment says: secrets and switches, parsed once per isolate.
//!
//! Invariant: no secret leaves this value except as a keyed state, and none of it is read per request.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use wasm_bindgen::JsCast;
use worker::{Env, Error};

use crate::domain::api_key::{KeyHash, KeyRing};
use crate::wire::answer::Voice;
use crate::wire::caller::Signer;
use crate::wire::jws::DocumentRing;

/// The parsed configuration.
pub(crate) struct Config {
    /// Signs and verifies documents.
    pub(crate) documents: DocumentRing,
    /// Makes and verifies API keys.
    pub(crate) api_keys: KeyRing,
    /// What every answer has in common.
    pub(crate) voice: Voice,
    /// Signs what an origin is told.
    pub(crate) signer: Signer,
    /// The hash of the first operator key.
    pub(crate) operator_key: KeyHash,
    /// Whether jurisdictions are the platform's own, or (on one machine) only a part of each object's name.
    pub(crate) jurisdictions: Jurisdictions,
}

/// How a tenant object is kept in its jurisdiction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Jurisdictions {
    /// By the platform.
    Platform,
    /// By name alone: workerd on one machine has no jurisdictions.
    Names,
}

impl Config {
    /// Reads the bindings `DOCUMENT_KEYS`, `API_KEY_KEYS`, `ORIGIN_KEY`, `OPERATOR_KEY`, `ENVIRONMENT` and
    /// `PUBLIC_URL`.
    ///
    /// # Errors
    /// Names the binding that is missing or malformed; never its value.
    pub(crate) fn read(env: &Env) -> worker::Result<Self> {
        let document_keys = secrets(env, "DOCUMENT_KEYS")?;
        let documents = document_keys
            .iter()
            .map(|(id, secret)| Ok((id.as_deref().ok_or_else(|| unusable("DOCUMENT_KEYS"))?, secret.as_slice())))
            .collect::<worker::Result<Vec<_>>>()?;
        let api_keys = secrets(env, "API_KEY_KEYS")?;
        let origin = secrets(env, "ORIGIN_KEY")?;
        let origin = origin.first().map(|(_, secret)| secret.as_slice()).ok_or_else(|| unusable("ORIGIN_KEY"))?;
        Ok(Self {
            documents: DocumentRing::new(documents).map_err(|_| unusable("DOCUMENT_KEYS"))?,
            api_keys: KeyRing::new(api_keys.iter().map(|(_, secret)| secret.as_slice()))
                .map_err(|_| unusable("API_KEY_KEYS"))?,
            voice: Voice { base_url: env.var("PUBLIC_URL")?.to_string() },
            signer: Signer::new(origin).map_err(|_| unusable("ORIGIN_KEY"))?,
            jurisdictions: match env.var("ENVIRONMENT")?.to_string().as_str() {
                "production" => Jurisdictions::Platform,
                "local" => Jurisdictions::Names,
                _ => return Err(unusable("ENVIRONMENT")),
            },
            operator_key: KeyHash::of(&env.secret("OPERATOR_KEY").map_err(|_| unusable("OPERATOR_KEY"))?.to_string()),
        })
    }
}

/// A binding's secrets, newest first: `id:base64url,id:base64url`, the id optional.
fn secrets(env: &Env, binding: &str) -> worker::Result<Vec<(Option<String>, Vec<u8>)>> {
    env.secret(binding)
        .map_err(|_| unusable(binding))?
        .to_string()
        .split(',')
        .map(|entry| {
            let (id, text) = entry.trim().split_once(':').map_or((None, entry.trim()), |(id, text)| (Some(id), text));
            let secret = URL_SAFE_NO_PAD.decode(text).map_err(|_| unusable(binding))?;
            Ok((id.map(str::to_owned), secret))
        })
        .collect()
}

fn unusable(binding: &str) -> Error {
    Error::RustError(format!("binding {binding} is missing or malformed (README, \"Deploy\")"))
}

/// What the deployment binds under `name`, as the type that it is known to have.
///
/// # Errors
/// When nothing is bound there; says so.
pub(crate) fn binding<T: JsCast>(env: &Env, name: &str) -> Result<T, String> {
    let found = js_sys::Reflect::get(env, &name.into()).ok().filter(|value| !value.is_undefined());
    found.map(JsCast::unchecked_into).ok_or_else(|| format!("no binding {name}"))
}
