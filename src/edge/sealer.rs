//! The sealer: a tenant's audit records into its chain, in one order.
//!
//! Invariant: only the tenant object seals, one batch at a time, so no two links claim one place; a batch that is repeated
//! changes nothing.

use worker::Env;

use super::d1::{Abort, Database};
use crate::domain::audit::{Head, Record, seal as link};
use crate::domain::tenant::Tenant;
use crate::wire::sql::shard;

/// How many records one batch seals: as many as the statement gives.
const BATCH: usize = 100;

/// Seals what is not sealed yet; whether there is more.
///
/// # Errors
/// When the shard does not answer.
pub(crate) async fn seal(env: &Env, tenant: &Tenant) -> Result<bool, String> {
    sealed(env, tenant).await.map_err(|abort| abort.to_string())
}

async fn sealed(env: &Env, tenant: &Tenant) -> Result<bool, Abort> {
    let database = Database::shard(env, &tenant.shard)?;
    let id = tenant.tenant.to_string();
    let records: Vec<Record> = database.rows(shard::UNSEALED, &[(&id).into()]).await?;
    if records.is_empty() {
        return Ok(false);
    }
    let head: Option<Head> = database.row(shard::CHAIN_HEAD, &[(&id).into()]).await?;
    let links = link(tenant.tenant, &head.unwrap_or_default(), &records);
    let json = serde_json::to_string(&links).map_err(|error| Abort::Constraint(error.to_string()))?;
    let mut batch = database.batch();
    batch.add(shard::ADD_SEALS, &[(&id).into(), (&json).into()])?;
    batch.run().await?;
    Ok(records.len() == BATCH)
}
