//! The way into the ledger: batches from the outbox of a tenant object to its shard.
//!
//! Invariant: a row leaves the outbox by the place that the ledger confirmed, never by its age or its number; what the
//! rules of `domain::outbox` say is all that is done.

use serde::{Deserialize, Serialize};
use worker::{Env, console_error};

use super::d1::{Abort, Database};
use super::storage::{Tables, integer, millis};
use crate::domain::outbox::{Event, Next, Queued, Said, settle};
use crate::domain::tenant::Tenant;
use crate::domain::time::UnixMillis;
use crate::wire::json;
use crate::wire::sql::shard;

/// How long events gather before they are sent.
pub(crate) const GATHER_MS: u64 = 500;
/// How many events one batch carries. At about 300 bytes each a batch is 300 KB, well below D1's 2 MB for a parameter.
const BATCH: usize = 1_000;

#[derive(Deserialize)]
struct Row {
    seq: u64,
    body: String,
    refusals: u32,
}

#[derive(Deserialize)]
struct Held {
    source: String,
    id: String,
    fingerprint: String,
}

/// Sends what is in the outbox; when there is more, or more to try, at once again.
///
/// # Errors
/// Why it must be tried again later.
pub(crate) async fn flush(
    tables: &Tables,
    env: &Env,
    tenant: &Tenant,
    now: UnixMillis,
) -> Result<Option<UnixMillis>, String> {
    let database = Database::shard(env, &tenant.shard).map_err(|abort| abort.to_string())?;
    let rows: Vec<Row> = tables
        .rows("SELECT seq, body, refusals FROM outbox ORDER BY seq LIMIT ?1", vec![integer(BATCH as u64)])
        .map_err(|error| error.to_string())?;
    let full = rows.len() == BATCH;
    let mut queued = Vec::new();
    for row in rows {
        match json::parse::<Event>(&row.body) {
            Ok(event) => queued.push(Queued { seq: row.seq, refusals: row.refusals, event }),
            Err(error) => set_aside(tables, row.seq, &error.to_string(), now).map_err(|error| error.to_string())?,
        }
    }
    let mut parts = vec![queued];
    let mut refused = false;
    while let Some(batch) = parts.pop() {
        if batch.is_empty() {
            continue;
        }
        let said = offer(&database, tenant, &batch, now).await;
        let next: Next = settle(&batch, &said);
        apply(tables, &next, now).map_err(|error| error.to_string())?;
        refused |= !next.refused.is_empty();
        if let Some(reason) = next.wait {
            return Err(reason);
        }
        for places in next.retry {
            parts.push(batch.iter().filter(|queued| places.contains(&queued.seq)).cloned().collect());
        }
    }
    Ok((full || refused).then_some(now))
}

async fn offer(database: &Database, tenant: &Tenant, batch: &[Queued], now: UnixMillis) -> Said {
    match offered(database, tenant, batch, now).await {
        Ok(held) => Said::Holds(held),
        Err(Abort::Constraint(message) | Abort::Guard(message)) => Said::Refused(message),
        Err(Abort::Unavailable(message)) => Said::Silent(message),
    }
}

async fn offered(
    database: &Database,
    tenant: &Tenant,
    batch: &[Queued],
    now: UnixMillis,
) -> Result<Vec<(String, String, String)>, Abort> {
    #[derive(Serialize)]
    struct Offered<'a> {
        #[serde(flatten)]
        event: &'a Event,
        fingerprint: String,
    }
    let events: Vec<Offered<'_>> =
        batch.iter().map(|Queued { event, .. }| Offered { event, fingerprint: event.fingerprint() }).collect();
    let json = serde_json::to_string(&events).map_err(|error| Abort::Constraint(error.to_string()))?;
    let id = tenant.tenant.to_string();
    let mut statements = database.batch();
    statements.add(shard::ADD_ENTRIES, &[(&id).into(), (&json).into(), now.0.into()])?;
    statements.add(shard::CONFIRM_ENTRIES, &[(&id).into(), (&json).into()])?;
    let results = statements.run().await?;
    let held: Vec<Held> = match results.last() {
        Some(outcome) => outcome.rows()?,
        None => Vec::new(),
    };
    Ok(held.into_iter().map(|held| (held.source, held.id, held.fingerprint)).collect())
}

fn apply(tables: &Tables, next: &Next, now: UnixMillis) -> worker::Result<()> {
    let done = serde_json::to_string(&next.done)?;
    tables.run("DELETE FROM outbox WHERE seq IN (SELECT value FROM json_each(?1))", vec![done.into()])?;
    for seq in &next.refused {
        tables.run("UPDATE outbox SET refusals = refusals + 1 WHERE seq = ?1", vec![integer(*seq)])?;
    }
    for (seq, reason) in &next.quarantine {
        set_aside(tables, *seq, reason, now)?;
    }
    Ok(())
}

fn set_aside(tables: &Tables, seq: u64, reason: &str, now: UnixMillis) -> worker::Result<()> {
    console_error!("event {seq} is set aside: {reason}");
    tables.run(
        "INSERT INTO quarantine (seq, source, event_id, body, reason, at_ms)
         SELECT seq, source, event_id, body, ?2, ?3 FROM outbox WHERE seq = ?1",
        vec![integer(seq), reason.into(), millis(now)],
    )?;
    tables.run("DELETE FROM outbox WHERE seq = ?1", vec![integer(seq)])
}
