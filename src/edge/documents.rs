//! Reading documents: from KV, or from their owner where KV does not show them yet.
//!
//! Invariant: what is not verified is never kept, and never takes the place of what was.

use worker::{Env, console_error};

use super::config::Config;
use super::isolate;
use super::kv::Documents;
use super::object::{Unreachable, answered, ask_catalog, ask_tenant};
use crate::domain::decision::Code;
use crate::domain::document::{Document, DocumentKey, Untrusted};
use crate::domain::route::InvalidRoutes;
use crate::domain::time::UnixMillis;
use crate::wire::object::{AskTenant, DocumentAnswer, ToCatalog};

/// What became of reading a document.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Read {
    /// It is in the memory of this isolate now.
    Here,
    /// Nobody has it: neither KV nor its owner.
    Absent,
    /// It could not be read, or not be trusted: what to tell a caller who needs it.
    Failed(Code),
}

/// Reads `key` and takes it into the memory of this isolate.
pub(crate) async fn read(env: &Env, config: &Config, key: &DocumentKey, now: UnixMillis) -> Read {
    let owner_first = match key {
        DocumentKey::Tenant(tenant) => {
            isolate::with(|isolate| isolate.gate.resident(*tenant).is_some_and(|resident| resident.is_outdated()))
                .unwrap_or(false)
        }
        DocumentKey::Catalog => isolate::with(|isolate| isolate.gate.is_catalog_outdated()).unwrap_or(false),
        DocumentKey::Plan(..) => false,
    };
    let mut worst = Read::Absent;
    if !owner_first {
        match from_kv(env, key).await {
            Ok(Some(text)) => match take(config, key, &text, false, now) {
                Ok(()) => return Read::Here,
                Err(untrusted) => worst = failed(key, untrusted),
            },
            Ok(None) => {}
            Err(error) => {
                console_error!("KV {key}: {error}");
                worst = Read::Failed(Code::SnapshotUnavailable);
            }
        }
    }
    match read_owned(env, config, key, now).await {
        Read::Absent => worst,
        read => read,
    }
}

/// The same past KV, which does not show it.
pub(crate) async fn read_owned(env: &Env, config: &Config, key: &DocumentKey, now: UnixMillis) -> Read {
    match from_owner(env, config, key).await {
        Ok(Some(text)) => match take(config, key, &text, true, now) {
            Ok(()) => Read::Here,
            Err(untrusted) => failed(key, untrusted),
        },
        Ok(None) => Read::Absent,
        Err(message) => {
            console_error!("owner of {key}: {message}");
            Read::Failed(Code::SnapshotUnavailable)
        }
    }
}

/// Reads `key` from its owner, whatever KV shows: for the isolate that has just changed it, which would otherwise go on with
/// what it read before.
pub(crate) async fn read_own_change(env: &Env, config: &Config, key: &DocumentKey, now: UnixMillis) {
    match from_owner(env, config, key).await {
        Ok(Some(text)) => {
            if let Err(untrusted) = take(config, key, &text, true, now) {
                console_error!("{key}, from its owner: not trusted: {untrusted}");
            }
        }
        Ok(None) => {}
        Err(message) => console_error!("owner of {key}: {message}"),
    }
}

async fn from_kv(env: &Env, key: &DocumentKey) -> Result<Option<String>, String> {
    Documents::open(env)?.get(&key.to_string()).await
}

async fn from_owner(env: &Env, config: &Config, key: &DocumentKey) -> Result<Option<String>, Unreachable> {
    let answer = match key {
        DocumentKey::Tenant(tenant) => ask_tenant(env, config, *tenant, AskTenant::Document).await?,
        DocumentKey::Catalog | DocumentKey::Plan(..) => ask_catalog(env, ToCatalog::Document(key.clone())).await?,
    };
    Ok(answered::<DocumentAnswer>(&answer)?.signed)
}

/// Verifies a document in its signed form and takes it into the memory of this isolate.
///
/// # Errors
/// Why it is not trusted.
pub(crate) fn take(
    config: &Config,
    key: &DocumentKey,
    text: &str,
    from_owner: bool,
    now: UnixMillis,
) -> Result<(), Untrusted> {
    let ring = &config.documents;
    match key {
        DocumentKey::Catalog => {
            let document = ring.verify(text, key, now)?;
            let taken = isolate::with(|isolate| {
                isolate.gate.take_catalog(document, now)?;
                if from_owner {
                    isolate.gate.note_newest_catalog(now);
                }
                Ok::<_, InvalidRoutes>(())
            });
            if let Some(Err(error)) = taken {
                console_error!("catalog: {error}");
                return Err(Untrusted::Shape);
            }
        }
        DocumentKey::Plan(..) => {
            let document = ring.verify(text, key, now)?;
            isolate::with(|isolate| isolate.gate.take_plan(document));
        }
        DocumentKey::Tenant(tenant) => {
            let document: Document<crate::domain::tenant::Tenant> = ring.verify(text, key, now)?;
            if document.body.tenant != *tenant {
                return Err(Untrusted::OtherDocument);
            }
            isolate::with(|isolate| isolate.gate.take_tenant(document, text.len(), from_owner, now));
        }
    }
    Ok(())
}

fn failed(key: &DocumentKey, untrusted: Untrusted) -> Read {
    console_error!("{key} is not trusted: {untrusted}");
    Read::Failed(match untrusted {
        Untrusted::Expired => Code::SnapshotExpired,
        Untrusted::Header | Untrusted::Signature | Untrusted::OtherDocument | Untrusted::Shape => {
            Code::SnapshotUntrusted
        }
    })
}
