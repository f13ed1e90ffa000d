//! The operator's part of the API: what is sold, to whom, with which exceptions.
//!
//! Invariant: a change, its audit record, the stored answer for its idempotency key and the note that it must be published
//! are one batch, or nothing. What is published is carried at once, and by the sweep if a crash left it.
//!
//! Every mutation: 1. a good operator key with a role that may write (401, 403); 2. `Idempotency-Key` (400); 3. a stored
//! answer for it is given again (422 where the request is another); 4. a sound body (400, 413, 422); 5. the change (404, 409);
//! 6. its answer.

mod catalog;
mod tenants;

use axum::Router;
use axum::body::Bytes;
use axum::http::StatusCode;
use axum::response::Response;
use axum::routing::{delete, get, post, put};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::api::{Api, Call, Failure, Served, read_body};
use super::d1::{Abort, Batch, Database, Param};
use crate::domain::api_key::KeyHash;
use crate::domain::decision::Code;
use crate::domain::id::TenantId;
use crate::wire::json;
use crate::wire::sql::{control, shard};

/// The largest body of a change: an origin with a thousand routes.
const CHANGE: usize = 512 * 1024;

/// What the operator can do. Each takes the call and gives the answer; `Box::pin` keeps a handler's future its own.
pub(crate) fn routes() -> Router<Api> {
    Router::new()
        .route("/catalog", get(Served(|call| Box::pin(catalog::show(call)))))
        .route("/features/{name}", put(Served(|call| Box::pin(catalog::put_feature(call)))))
        .route("/meters/{name}", put(Served(|call| Box::pin(catalog::put_meter(call)))))
        .route("/origins/{name}", put(Served(|call| Box::pin(catalog::put_origin(call)))))
        .route(
            "/kill-switches/{name}",
            put(Served(|call| Box::pin(catalog::put_kill_switch(call))))
                .delete(Served(|call| Box::pin(catalog::delete_kill_switch(call)))),
        )
        .route("/plans/{name}/versions", post(Served(|call| Box::pin(catalog::publish_plan(call)))))
        .route("/audit", get(Served(|call| Box::pin(catalog::audit(call)))))
        .route(
            "/tenants",
            post(Served(|call| Box::pin(tenants::create(call)))).get(Served(|call| Box::pin(tenants::list(call)))),
        )
        .route("/tenants/{id}", get(Served(|call| Box::pin(tenants::show(call)))))
        .route("/tenants/{id}/status", put(Served(|call| Box::pin(tenants::put_status(call)))))
        .route("/tenants/{id}/subscription", put(Served(|call| Box::pin(tenants::put_subscription(call)))))
        .route(
            "/tenants/{id}/overrides/{name}",
            put(Served(|call| Box::pin(tenants::put_override(call))))
                .delete(Served(|call| Box::pin(tenants::delete_override(call)))),
        )
        .route(
            "/tenants/{id}/limits/{name}",
            put(Served(|call| Box::pin(tenants::put_limit(call))))
                .delete(Served(|call| Box::pin(tenants::delete_limit(call)))),
        )
        .route(
            "/tenants/{id}/relations/{name}",
            put(Served(|call| Box::pin(tenants::put_relation(call))))
                .delete(Served(|call| Box::pin(tenants::delete_relation(call)))),
        )
        .route(
            "/tenants/{id}/keys",
            post(Served(|call| Box::pin(tenants::create_key(call)))).get(Served(|call| Box::pin(tenants::keys(call)))),
        )
        .route("/tenants/{id}/keys/{key}", delete(Served(|call| Box::pin(tenants::revoke_key(call)))))
        .route("/tenants/{id}/usage", get(Served(|call| Box::pin(tenants::usage(call)))))
        .route("/tenants/{id}/audit", get(Served(|call| Box::pin(tenants::audit(call)))))
}

/// Who operates.
#[derive(Debug)]
pub(crate) struct Operator {
    /// As audit records name it.
    pub(crate) name: String,
    writes: bool,
}

/// The operator behind a request.
///
/// # Errors
/// 401 for no good key.
pub(crate) async fn operator(Call { api, headers, .. }: &Call) -> Result<Operator, Failure> {
    #[derive(Deserialize)]
    struct Key {
        name: String,
        role: String,
    }
    let text = headers
        .get("authorization")
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.strip_prefix("Bearer ").or_else(|| value.strip_prefix("bearer ")))
        .map(str::trim)
        .ok_or_else(|| Failure::new(Code::KeyMissing).because("send the operator key as Authorization: Bearer"))?;
    let hash = KeyHash::of(text);
    // Comparing hashes tells nothing about the key, however long it takes.
    if hash == api.config.operator_key {
        return Ok(Operator { name: "operator".to_owned(), writes: true });
    }
    let database = Database::control(&api.env)?;
    let key: Option<Key> = database.row(control::OPERATOR_KEY, &[(&hash.to_string()).into()]).await?;
    let key = key.ok_or_else(|| Failure::new(Code::KeyInvalid))?;
    Ok(Operator { writes: key.role == "owner", name: format!("operator:{}", key.name) })
}

/// A mutation that is under way.
pub(crate) struct Change {
    pub(crate) operator: Operator,
    pub(crate) body: Bytes,
    key: String,
    fingerprint: String,
}

/// Where the answer to a mutation is stored.
#[derive(Clone, Copy)]
pub(crate) enum Home<'a> {
    /// With the operator's own.
    Control,
    /// With a tenant's, in its shard.
    Tenant(TenantId, &'a Database),
}

#[derive(Deserialize)]
struct Stored {
    fingerprint: String,
    status: u16,
    body: String,
}

impl Change {
    /// Steps 1 and 2, and the body as bytes.
    ///
    /// # Errors
    /// Why the mutation cannot begin.
    pub(crate) async fn begin(call: &mut Call) -> Result<Self, Failure> {
        let operator = operator(call).await?;
        if !operator.writes {
            return Err(Failure::new(Code::ScopeMissing).because("this operator key may read only"));
        }
        let key = call
            .headers
            .get("idempotency-key")
            .ok_or_else(|| Failure::new(Code::IdempotencyKeyMissing))?
            .to_str()
            .map_err(|_| Failure::new(Code::IdempotencyKeyInvalid))?;
        // A structured-field string is quoted; many clients send the bare value.
        let key = key.strip_prefix('"').and_then(|key| key.strip_suffix('"')).unwrap_or(key);
        if key.is_empty() || key.len() > 255 || !key.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(Failure::new(Code::IdempotencyKeyInvalid));
        }
        let body = read_body(&call.headers, std::mem::take(&mut call.body), CHANGE).await?;
        let mut hash = Sha256::new();
        hash.update(call.what.as_bytes());
        hash.update([0]);
        hash.update(&body);
        let fingerprint = URL_SAFE_NO_PAD.encode(hash.finalize());
        Ok(Self { operator, key: key.to_owned(), fingerprint, body })
    }

    /// Step 3: the answer that was given before, if any.
    ///
    /// # Errors
    /// 422 when the key was used for something else.
    pub(crate) async fn replay(&self, api: &Api, home: Home<'_>) -> Result<Option<Response>, Failure> {
        let stored: Option<Stored> = match home {
            Home::Control => {
                let params = [(&self.operator.name).into(), (&self.key).into()];
                Database::control(&api.env)?.row(control::IDEMPOTENT, &params).await?
            }
            Home::Tenant(tenant, database) => {
                let tenant = tenant.to_string();
                let params = [(&tenant).into(), (&self.operator.name).into(), (&self.key).into()];
                database.row(shard::IDEMPOTENT, &params).await?
            }
        };
        let Some(stored) = stored else { return Ok(None) };
        if stored.fingerprint != self.fingerprint {
            return Err(Failure::new(Code::IdempotencyKeyReused));
        }
        let status = StatusCode::from_u16(stored.status).unwrap_or(StatusCode::OK);
        let body: serde_json::Value = json::parse(&stored.body).map_err(|_| Failure::new(Code::Internal))?;
        Ok(Some(api.json(status, &body)))
    }

    /// Adds the answer and the audit record to the batch of the change. Nothing secret may be in `answer`: it is stored.
    ///
    /// # Errors
    /// When a parameter cannot be bound.
    pub(crate) fn seal(
        &self,
        api: &Api,
        home: Home<'_>,
        batch: &mut Batch<'_>,
        record: Record<'_>,
        answer: &(StatusCode, serde_json::Value),
    ) -> Result<(), Abort> {
        let Record { action, subject, detail } = record;
        let (id, detail, body) = (api.id.to_string(), detail.to_string(), answer.1.to_string());
        let now: Param<'_> = api.now.0.into();
        let audit: [Param<'_>; 7] = [
            (&id).into(),
            api.now.0.into(),
            (&self.operator.name).into(),
            action.into(),
            subject.into(),
            (&detail).into(),
            (&id).into(),
        ];
        let status = u64::from(answer.0.as_u16());
        let replay: [Param<'_>; 6] = [
            (&self.operator.name).into(),
            (&self.key).into(),
            (&self.fingerprint).into(),
            status.into(),
            (&body).into(),
            now,
        ];
        match home {
            Home::Control => {
                batch.add(control::ADD_IDEMPOTENT, &replay)?;
                batch.add(control::ADD_AUDIT, &audit)?;
            }
            Home::Tenant(tenant, _) => {
                let tenant = tenant.to_string();
                let first = || std::iter::once(Param::from(&tenant));
                batch.add(shard::ADD_IDEMPOTENT, &first().chain(replay).collect::<Vec<_>>())?;
                batch.add(shard::ADD_AUDIT, &first().chain(audit).collect::<Vec<_>>())?;
            }
        }
        Ok(())
    }
}

/// What an audit record says beside who and when.
pub(crate) struct Record<'a> {
    pub(crate) action: &'a str,
    pub(crate) subject: &'a str,
    pub(crate) detail: serde_json::Value,
}

/// A value as JSON; nothing that this crate serialises can fail to be.
pub(crate) fn tree(value: &impl Serialize) -> serde_json::Value {
    serde_json::to_value(value).unwrap_or_default()
}

/// An audit record, as it is shown.
#[derive(Serialize, Deserialize)]
pub(crate) struct Audited {
    id: String,
    at_ms: u64,
    actor: String,
    action: String,
    subject: String,
    #[serde(deserialize_with = "embedded")]
    detail: serde_json::Value,
    request_id: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    sequence: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    hash: Option<String>,
}

/// JSON that a column holds as text.
pub(crate) fn embedded<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<serde_json::Value, D::Error> {
    let text = String::deserialize(deserializer)?;
    json::parse(&text).map_err(serde::de::Error::custom)
}

/// A page of a list.
#[derive(Serialize)]
pub(crate) struct Page<T> {
    pub(crate) data: Vec<T>,
    pub(crate) has_more: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) next_cursor: Option<String>,
}
