//! The way into the ledger: batches from the outbox of a tenant object to its shard.
//!
//! Invariant: a row leaves the outbox by the place that the ledger confirmed, never by its age or its number; what the
//! rules of `domain::outbox` say is all that is done.

use worker::{Env, console_error};

use super::d1::{Abort, Database};
use super::storage::{Tables, integer, millis};
use crate::domain::outbox::{Event, Next, Queued, Said, settle};
use crate::domain::tenant::Tenant;
use crate::domain::time::UnixMillis;
use crate::wire::json::{self, Invalid, List, Row, written};
use crate::wire::rows::entry;
use crate::wire::sql::shard;

/// How long events wait, so that one batch carries what a moment brings.
pub(crate) const BATCH_MS: u64 = 500;
/// How long counts of leased meters gather. A busy isolate reports every 4 s, and a batch costs several times what a report
/// does: so one of them carries two or three reports of every isolate, and an entry stands for all of them.
pub(crate) const GATHER_MS: u64 = 10_000;
/// How many events one batch carries. At about 300 bytes each a batch is 300 KB, well below D1's 2 MB for a parameter.
const BATCH: usize = 1_000;

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
    let rows = tables
        .rows("SELECT seq, body, refusals FROM outbox ORDER BY seq LIMIT ?1", vec![integer(BATCH as u64)])
        .map_err(|error| error.to_string())?;
    let full = rows.len() == BATCH;
    let mut queued = Vec::new();
    for row in &rows {
        let column = |invalid: Invalid| invalid.to_string();
        let (seq, refusals) = (row.integer("seq").map_err(column)?, row.integer("refusals").map_err(column)?);
        match json::parse::<Event>(row.text("body").map_err(column)?) {
            Ok(event) => queued.push(Queued { seq, refusals: u32::try_from(refusals).unwrap_or(u32::MAX), event }),
            Err(error) => set_aside(tables, seq, &error.to_string(), now).map_err(|error| error.to_string())?,
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
    let events: List = batch.iter().map(|queued| entry(&queued.event)).collect();
    let (id, events) = (tenant.tenant.to_string(), events.end());
    let statements = vec![
        shard::ADD_ENTRIES.with(vec![id.as_str().into(), events.as_str().into(), now.0.into()]),
        shard::CONFIRM_ENTRIES.with(vec![id.into(), events.into()]),
    ];
    let held = database.run(statements).await?.pop().unwrap_or_default();
    let text = |row: &Row, column| row.text(column).map(str::to_owned);
    let held = held.iter().map(|row| Ok((text(row, "source")?, text(row, "id")?, text(row, "fingerprint")?)));
    Ok(held.collect::<Result<_, Invalid>>()?)
}

fn apply(tables: &Tables, next: &Next, now: UnixMillis) -> worker::Result<()> {
    let done = written(&next.done);
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
