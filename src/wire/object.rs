//! What crosses between the Worker and its Durable Objects: one message, one answer, both JSON.
//!
//! Invariant: a message names the object it is for; an object refuses one that names another.

use serde::{Deserialize, Serialize};

use crate::domain::document::DocumentKey;
use crate::domain::id::TenantId;
use crate::domain::limit;
use crate::domain::time::UnixMillis;

/// To a tenant's object.
#[derive(Debug, Serialize, Deserialize)]
pub struct ToTenant {
    /// Whose object is meant.
    pub tenant: TenantId,
    /// What is wanted of it.
    pub ask: AskTenant,
}

/// What is wanted of a tenant's object.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AskTenant {
    /// Limits: LEASE, TAKE, RECORD, RESERVE and so on.
    Limit(Box<limit::Call>),
    /// The tenant's document, signed.
    Document,
    /// Keep and publish this content, unless something newer is here.
    Publish(Publication),
    /// Audit records wait to be sealed.
    Seal,
    /// What is out and what is lost: for reports and proofs.
    Books,
    /// What each limit has left, by its name ([`limit_name`]): for a peek. One that nobody has asked about is not among them.
    Left,
}

/// How a limit is named in answers: `ten_.../requests/live`, and for a quota `@` and when its window began.
#[must_use]
pub fn limit_name(key: &limit::LimitKey) -> String {
    let window = key.window.map_or(String::new(), |window| format!("@{}", window.0));
    format!("{}/{}/{}{window}", key.tenant, key.limit, key.mode.name())
}

/// Content for a document.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Publication {
    /// Which document.
    pub key: DocumentKey,
    /// Its serial, as D1 assigned it.
    pub serial: u64,
    /// Its content, as JSON.
    pub body: String,
}

/// What a tenant's object answers to [`AskTenant::Limit`].
#[derive(Debug, Serialize, Deserialize)]
pub struct LimitAnswer {
    /// The limiter's own.
    pub reply: limit::Reply,
    /// The newest signed document of the tenant, when the sender's was older: nobody has to read KV again to learn of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub document: Option<String>,
}

/// What an object answers to a question for a document: none where it owns none by that name.
#[derive(Debug, Serialize, Deserialize)]
pub struct DocumentAnswer {
    /// The document in its signed form.
    pub signed: Option<String>,
}

/// To the catalog object.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ToCatalog {
    /// A document, signed.
    Document(DocumentKey),
    /// Keep and publish these contents, each unless something newer is here. Put to KV in this order.
    Publish(Vec<Publication>),
}

/// What a tenant's object holds that is not yet in the ledger, and what never will be.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Books {
    /// Events on their way.
    pub outbox: u64,
    /// Events set aside.
    pub quarantine: u64,
    /// Units of leases that are out now, by limit.
    pub leased: Vec<(String, u64)>,
    /// Units of expired leases that nobody ever reported, by limit: shown, never billed.
    pub gap: Vec<(String, u64)>,
    /// The newest of what was refused or only observed, as a JSON list.
    pub traffic: String,
    /// When this was so, by the object's clock.
    pub at: UnixMillis,
}
