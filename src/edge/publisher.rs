//! The publisher: the newest content of the documents an object owns, put to KV in order.
//!
//! Invariant: KV has no compare-and-set, so the owner alone puts, one at a time, from its alarm, and what it stores only
//! ever has a greater serial than what it stored before.

use worker::{Env, Error, Result};

use super::config::Config;
use super::kv::Documents;
use super::storage::{Tables, integer, millis, unreadable};
use crate::domain::document::{DocumentKey, LIFE_MS};
use crate::domain::job::Job;
use crate::domain::time::UnixMillis;
use crate::wire::json::{Invalid, Row};
use crate::wire::object::Publication;

/// A document that an object owns, as it keeps it.
struct Kept {
    name: String,
    serial: u64,
    body: String,
    signed: String,
    signed_ms: u64,
}

impl TryFrom<&Row> for Kept {
    type Error = Invalid;

    fn try_from(row: &Row) -> std::result::Result<Self, Invalid> {
        let text = |column| row.text(column).map(str::to_owned);
        Ok(Self {
            name: text("name")?,
            serial: row.integer("serial")?,
            body: text("body")?,
            signed: text("signed")?,
            signed_ms: row.integer("signed_ms")?,
        })
    }
}

/// Stores and signs `publication` if it is newer than what is here; it is put to KV by the next alarm.
///
/// # Errors
/// When the storage refuses.
pub(crate) fn publish(tables: &Tables, config: &Config, publication: &Publication, now: UnixMillis) -> Result<bool> {
    let name = publication.key.to_string();
    if kept(tables, &name)?.is_some_and(|kept| kept.serial >= publication.serial) {
        return Ok(false);
    }
    store(tables, config, publication, now)?;
    Ok(true)
}

fn store(tables: &Tables, config: &Config, publication: &Publication, now: UnixMillis) -> Result<()> {
    let signed = config.documents.sign(&publication.key, publication.serial, now, &publication.body);
    tables.run(
        "INSERT INTO document (name, serial, body, signed, signed_ms, pending) VALUES (?1, ?2, ?3, ?4, ?5, 1)
         ON CONFLICT (name) DO UPDATE SET
           serial = excluded.serial, body = excluded.body, signed = excluded.signed, signed_ms = excluded.signed_ms, pending = 1",
        vec![
            publication.key.to_string().into(),
            integer(publication.serial),
            publication.body.as_str().into(),
            signed.into(),
            millis(now),
        ],
    )?;
    tables.schedule(Job::Put, now)?;
    tables.schedule(Job::Sign, now.plus(LIFE_MS / 2))
}

/// The signed form of a document this object owns.
///
/// # Errors
/// When the storage refuses.
pub(crate) fn signed(tables: &Tables, key: &DocumentKey) -> Result<Option<String>> {
    Ok(kept(tables, &key.to_string())?.map(|kept| kept.signed))
}

fn kept(tables: &Tables, name: &str) -> Result<Option<Kept>> {
    let rows =
        tables.rows("SELECT name, serial, body, signed, signed_ms FROM document WHERE name = ?1", vec![name.into()])?;
    Ok(all(&rows)?.into_iter().next())
}

fn all(rows: &[Row]) -> Result<Vec<Kept>> {
    rows.iter().map(Kept::try_from).collect::<std::result::Result<_, _>>().map_err(|invalid| unreadable(&invalid))
}

/// Puts what waits to KV. Plans go before the catalog that names them: names sort so, reversed.
///
/// # Errors
/// When KV or the storage refuses; what was not put still waits.
pub(crate) async fn put(tables: &Tables, env: &Env) -> std::result::Result<(), String> {
    let documents = Documents::open(env)?;
    for Kept { name, signed, .. } in waiting(tables).map_err(|error| error.to_string())? {
        documents.put(&name, &signed).await?;
        // A newer content may have come while KV was answering: it still waits.
        tables
            .run("UPDATE document SET pending = 0 WHERE name = ?1 AND signed = ?2", vec![name.into(), signed.into()])
            .map_err(|error| error.to_string())?;
    }
    Ok(())
}

fn waiting(tables: &Tables) -> Result<Vec<Kept>> {
    let rows = tables
        .rows("SELECT name, serial, body, signed, signed_ms FROM document WHERE pending ORDER BY name DESC", vec![])?;
    all(&rows)
}

/// Signs anew what has lived half of its life at `now`; the content stays. When the next one has.
///
/// # Errors
/// When the storage refuses.
pub(crate) fn sign(tables: &Tables, config: &Config, now: UnixMillis) -> Result<Option<UnixMillis>> {
    let rows = tables.rows("SELECT name, serial, body, signed, signed_ms FROM document", vec![])?;
    let mut next: Option<UnixMillis> = None;
    for row in all(&rows)? {
        let mut signed = UnixMillis(row.signed_ms);
        if now.since(signed) >= LIFE_MS / 2 {
            let key = row.name.parse::<DocumentKey>().map_err(|error| Error::RustError(error.to_string()))?;
            let publication = Publication { key, serial: row.serial, body: row.body };
            store(tables, config, &publication, now)?;
            signed = now;
        }
        let half = signed.plus(LIFE_MS / 2);
        next = Some(next.map_or(half, |next| next.min(half)));
    }
    Ok(next)
}
