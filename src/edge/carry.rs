//! Carrying what was committed to where it must arrive: documents to their owners.
//!
//! Invariant: every carrying is idempotent, because an owner keeps only what is newer; so what a crash interrupted is simply
//! carried again, by the sweep.

use wasm_bindgen::prelude::*;
use worker::{Env, console_error};

use super::config::Config;
use super::d1::{Abort, Database};
use super::door::instant;
use super::isolate;
use super::object::{ask_catalog, ask_tenant};
use super::promise::promise;
use crate::domain::catalog::Catalog;
use crate::domain::document::DocumentKey;
use crate::domain::id::TenantId;
use crate::domain::name::ShardName;
use crate::domain::plan::Plan;
use crate::domain::time::UnixMillis;
use crate::wire::json::{Invalid, Row, written};
use crate::wire::object::{AskTenant, Publication, ToCatalog};
use crate::wire::rows::{self, ChainRow};
use crate::wire::sql::{control, shard};

/// The catalog as it is stored now, and its serial.
///
/// # Errors
/// When the database does not answer, or holds what this version does not understand.
pub(crate) async fn read_catalog(database: &Database) -> Result<(u64, Catalog), Abort> {
    let mut results =
        database.run(vec![control::CATALOG_PARTS.with(Vec::new()), control::CATALOG_SERIAL.with(Vec::new())]).await?;
    let serial = results.pop().unwrap_or_default().first().map_or(Ok(0), |row| row.integer("serial"))?;
    Ok((serial, rows::catalog(&results.pop().unwrap_or_default())?))
}

/// Carries a plan version, if there is one, and the catalog that names it.
///
/// # Errors
/// When they did not arrive; the note of it stays in the outbox.
pub(crate) async fn catalog(env: &Env, plan: Option<&Plan>, catalog: &Catalog, serial: u64) -> Result<(), String> {
    let mut publications: Vec<Publication> = plan.map(plan_publication).into_iter().collect();
    publications.push(Publication { key: DocumentKey::Catalog, serial, body: written(catalog) });
    ask_catalog(env, ToCatalog::Publish(publications)).await.map(drop).map_err(|error| error.to_string())
}

/// A plan version's serial is its number: its content never changes.
fn plan_publication(plan: &Plan) -> Publication {
    let key = DocumentKey::Plan(plan.plan.clone(), plan.version);
    Publication { key, serial: plan.version.into(), body: written(plan) }
}

/// The chain of a tenant: itself, its parent, and so on.
///
/// # Errors
/// When the shard does not answer.
pub(crate) async fn chain(database: &Database, tenant: TenantId) -> Result<Vec<ChainRow>, Abort> {
    let rows = database.rows(shard::TENANT_CHAIN.with(vec![tenant.to_string().into()])).await?;
    Ok(rows.iter().map(ChainRow::try_from).collect::<Result<_, _>>()?)
}

/// Carries the documents of a tenant and of everyone below it to their objects.
///
/// # Errors
/// When one did not arrive; the notes about those that did not stay in the outbox.
pub(crate) async fn tree(env: &Env, config: &Config, name: &ShardName, root: TenantId) -> Result<(), String> {
    let text = |abort: Abort| abort.to_string();
    let database = Database::shard(env, name).map_err(text)?;
    let members = database.rows(shard::TREE.with(vec![root.to_string().into()])).await.map_err(text)?;
    for member in named(&members)? {
        one(env, config, &database, name, member).await?;
    }
    Ok(())
}

fn named(rows: &[Row]) -> Result<Vec<TenantId>, String> {
    let tenants = rows.iter().map(|row| row.parsed("tenant_id")).collect::<Result<_, Invalid>>();
    tenants.map_err(|invalid| invalid.to_string())
}

/// Carries one tenant's document, and takes the notes of it off the outbox that were there before it was read.
async fn one(
    env: &Env,
    config: &Config,
    database: &Database,
    name: &ShardName,
    tenant: TenantId,
) -> Result<(), String> {
    let text = |abort: Abort| abort.to_string();
    let id = tenant.to_string();
    let reads =
        vec![shard::OUTBOX_HEAD.with(vec![id.as_str().into()]), shard::TENANT_CHAIN.with(vec![id.as_str().into()])];
    let mut results = database.run(reads).await.map_err(text)?;
    let (chain, head) = (results.pop().unwrap_or_default(), results.pop().unwrap_or_default());
    let invalid = |invalid: Invalid| invalid.to_string();
    let chain: Vec<ChainRow> = chain.iter().map(ChainRow::try_from).collect::<Result<_, _>>().map_err(invalid)?;
    let Some((serial, document)) = rows::tenant(&chain, name).map_err(invalid)? else {
        return Ok(());
    };
    let publication = Publication { key: DocumentKey::Tenant(tenant), serial, body: written(&document) };
    ask_tenant(env, config, tenant, AskTenant::Publish(publication)).await.map_err(|error| error.to_string())?;
    let seq = head.first().map_or(Ok(0), |row| row.integer("seq")).map_err(invalid)?;
    database.run(vec![shard::CLEAR_OUTBOX.with(vec![id.into(), seq.into()])]).await.map(drop).map_err(text)
}

/// Carries what a crash left. Called every minute; what fails is left for the next.
#[wasm_bindgen]
pub fn sweep(env: Env, now: f64) -> js_sys::Promise {
    promise(async move {
        let config = isolate::ready(&env)?;
        if let Err(message) = sweep_catalog(&env, instant(now)).await {
            console_error!("sweep of the catalog: {message}");
        }
        for name in shards(&env) {
            if let Err(message) = sweep_shard(&env, &config, &name).await {
                console_error!("sweep of {name}: {message}");
            }
        }
        Ok(None)
    })
}

async fn sweep_catalog(env: &Env, now: UnixMillis) -> Result<(), String> {
    let text = |abort: Abort| abort.to_string();
    let invalid = |invalid: Invalid| invalid.to_string();
    let database = Database::control(env).map_err(text)?;
    let head = database.row(control::OUTBOX_HEAD.with(Vec::new())).await.map_err(text)?;
    let head = head.map_or(Ok(0), |row| row.integer("seq")).map_err(invalid)?;
    // A day is the promise of how long an answer is kept for the same idempotency key.
    let mut batch = vec![control::EXPIRE_IDEMPOTENT.with(vec![now.minus(24 * 3600 * 1000).0.into()])];
    if head > 0 {
        let mut publications = Vec::new();
        for row in database.rows(control::PLAN_VERSIONS.with(Vec::new())).await.map_err(text)? {
            publications.push(plan_publication(&plan(&row).map_err(invalid)?));
        }
        let (serial, catalog) = read_catalog(&database).await.map_err(text)?;
        publications.push(Publication { key: DocumentKey::Catalog, serial, body: written(&catalog) });
        ask_catalog(env, ToCatalog::Publish(publications)).await.map_err(|error| error.to_string())?;
        batch.push(control::CLEAR_OUTBOX.with(vec![head.into()]));
    }
    database.run(batch).await.map(drop).map_err(text)
}

fn plan(row: &Row) -> Result<Plan, Invalid> {
    let version = u32::try_from(row.integer("version")?).map_err(|_| Invalid("version"))?;
    let content = row.json("definition")?;
    Ok(Plan { plan: row.parsed("plan")?, version, content })
}

async fn sweep_shard(env: &Env, config: &Config, name: &ShardName) -> Result<(), String> {
    let database = Database::shard(env, name).map_err(|abort| abort.to_string())?;
    let notes = database.rows(shard::OUTBOX.with(Vec::new())).await.map_err(|abort| abort.to_string())?;
    let mut tenants = named(&notes)?;
    tenants.sort_unstable();
    tenants.dedup();
    for tenant in tenants {
        // One that cannot be carried holds up nobody else.
        if let Err(message) = one(env, config, &database, name, tenant).await {
            console_error!("sweep of {tenant}: {message}");
        }
    }
    Ok(())
}

/// The shards that are bound: `SHARD_EU_1` is `eu-1`.
pub(crate) fn shards(env: &Env) -> Vec<ShardName> {
    js_sys::Object::keys(env.unchecked_ref::<js_sys::Object>())
        .iter()
        .filter_map(|key| key.as_string())
        .filter_map(|key| key.strip_prefix("SHARD_")?.to_ascii_lowercase().replace('_', "-").parse().ok())
        .collect()
}
