//! The sealer: a tenant's audit records into its chain, in one order.
//!
//! Invariant: only the tenant object seals, one batch at a time, so no two links claim one place; a batch that is repeated
//! changes nothing.

use worker::Env;

use super::d1::{Abort, Database};
use crate::domain::audit::{Head, Record, seal as link};
use crate::domain::tenant::Tenant;
use crate::wire::json::{Invalid, Row, written};
use crate::wire::sql::shard;

/// How many records one batch seals: as many as the statement gives.
const BATCH: usize = 100;

/// Seals what is not sealed yet; whether there is more.
///
/// # Errors
/// When the shard does not answer.
pub(crate) async fn seal(env: &Env, tenant: &Tenant) -> Result<bool, Abort> {
    let database = Database::shard(env, &tenant.shard)?;
    let id = tenant.tenant.to_string();
    let reads = vec![shard::UNSEALED.with(vec![id.as_str().into()]), shard::CHAIN_HEAD.with(vec![id.as_str().into()])];
    let mut results = database.run(reads).await?;
    let (head, records) = (results.pop().unwrap_or_default(), results.pop().unwrap_or_default());
    if records.is_empty() {
        return Ok(false);
    }
    let head = head.first().map(last).transpose()?.unwrap_or_default();
    let records = records.iter().map(record).collect::<Result<Vec<_>, _>>()?;
    let links = written(&link(tenant.tenant, &head, &records));
    database.run(vec![shard::ADD_SEALS.with(vec![id.into(), links.into()])]).await?;
    Ok(records.len() == BATCH)
}

fn last(row: &Row) -> Result<Head, Invalid> {
    Ok(Head { sequence: row.integer("sequence")?, hash: row.text("hash")?.to_owned() })
}

fn record(row: &Row) -> Result<Record, Invalid> {
    let text = |column| row.text(column).map(str::to_owned);
    Ok(Record {
        id: text("id")?,
        at_ms: row.integer("at_ms")?,
        actor: text("actor")?,
        action: text("action")?,
        subject: text("subject")?,
        detail: text("detail")?,
        request_id: text("request_id")?,
    })
}
