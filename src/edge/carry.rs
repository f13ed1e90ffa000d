//! Carrying what was committed to where it must arrive: documents to their owners.
//!
//! Invariant: every carrying is idempotent, because an owner keeps only what is newer; so what a crash interrupted is simply
//! carried again, by the sweep.

use serde::Deserialize;
use wasm_bindgen::JsCast as _;
use worker::{Env, console_error};

use super::config::Config;
use super::d1::{Abort, Database, Outcome};
use super::object::{ask_catalog, ask_tenant};
use crate::domain::catalog::Catalog;
use crate::domain::document::DocumentKey;
use crate::domain::id::TenantId;
use crate::domain::name::{PlanName, ShardName};
use crate::domain::plan::Plan;
use crate::domain::time::UnixMillis;
use crate::wire::json;
use crate::wire::object::{AskTenant, Publication, ToCatalog};
use crate::wire::rows::{self, ChainRow, Part};
use crate::wire::sql::{control, shard};

#[derive(Deserialize)]
struct Seq {
    seq: u64,
}

/// The catalog as it is stored now, and its serial.
///
/// # Errors
/// When the database does not answer, or holds what this version does not understand.
pub(crate) async fn read_catalog(database: &Database) -> Result<(u64, Catalog), Abort> {
    #[derive(Deserialize)]
    struct Serial {
        serial: u64,
    }
    let mut batch = database.batch();
    batch.add(control::CATALOG_SERIAL, &[])?;
    batch.add(control::CATALOG_PARTS, &[])?;
    let results = batch.run().await?;
    let serials: Vec<Serial> = results.first().map(Outcome::rows).transpose()?.unwrap_or_default();
    let parts: Vec<Part> = results.get(1).map(Outcome::rows).transpose()?.unwrap_or_default();
    let catalog = rows::catalog(&parts).map_err(|error| Abort::Unavailable(format!("catalog: {error}")))?;
    Ok((serials.first().map_or(0, |row| row.serial), catalog))
}

/// Carries a plan version, if there is one, and the catalog that names it.
///
/// # Errors
/// When they did not arrive; the note of it stays in the outbox.
pub(crate) async fn catalog(
    env: &Env,
    plan: Option<(Plan, u64)>,
    catalog: &Catalog,
    serial: u64,
) -> Result<(), String> {
    let mut publications = Vec::new();
    if let Some((plan, serial)) = plan {
        publications.push(publication(DocumentKey::Plan(plan.plan.clone(), plan.version), serial, &plan)?);
    }
    publications.push(publication(DocumentKey::Catalog, serial, catalog)?);
    let _: bool = ask_catalog(env, ToCatalog::Publish(publications)).await.map_err(|error| error.to_string())?;
    Ok(())
}

fn publication(key: DocumentKey, serial: u64, body: &impl serde::Serialize) -> Result<Publication, String> {
    Ok(Publication { key, serial, body: serde_json::to_value(body).map_err(|error| error.to_string())? })
}

/// The chain of a tenant: itself, its parent, and so on.
///
/// # Errors
/// When the shard does not answer.
pub(crate) async fn chain(database: &Database, tenant: TenantId) -> Result<Vec<ChainRow>, Abort> {
    database.rows(shard::TENANT_CHAIN, &[(&tenant.to_string()).into()]).await
}

/// Carries the documents of a tenant and of everyone below it to their objects.
///
/// # Errors
/// When one did not arrive; the notes about those that did not stay in the outbox.
pub(crate) async fn tree(env: &Env, config: &Config, name: &ShardName, root: TenantId) -> Result<(), String> {
    #[derive(Deserialize)]
    struct Member {
        tenant_id: TenantId,
    }
    let text = |abort: Abort| abort.to_string();
    let database = Database::shard(env, name).map_err(text)?;
    let members: Vec<Member> = database.rows(shard::TREE, &[(&root.to_string()).into()]).await.map_err(text)?;
    for Member { tenant_id } in members {
        one(env, config, &database, name, tenant_id).await?;
    }
    Ok(())
}

async fn one(
    env: &Env,
    config: &Config,
    database: &Database,
    name: &ShardName,
    tenant: TenantId,
) -> Result<(), String> {
    let text = |abort: Abort| abort.to_string();
    let id = tenant.to_string();
    // Read before the rows: what is noted later stays for the next time.
    let head: Option<Seq> = database.row(shard::OUTBOX_HEAD, &[(&id).into()]).await.map_err(text)?;
    let chain = chain(database, tenant).await.map_err(text)?;
    let Some((serial, document)) = rows::tenant(&chain, name).map_err(|error| error.to_string())? else {
        return Ok(());
    };
    let publication = publication(DocumentKey::Tenant(tenant), serial, &document)?;
    let _: bool =
        ask_tenant(env, config, tenant, AskTenant::Publish(publication)).await.map_err(|error| error.to_string())?;
    let mut batch = database.batch();
    batch.add(shard::CLEAR_OUTBOX, &[(&id).into(), head.map_or(0, |head| head.seq).into()]).map_err(text)?;
    batch.run().await.map_err(text)?;
    Ok(())
}

/// Carries what a crash left. Called every minute; what fails is left for the next.
pub(crate) async fn sweep(env: &Env, config: &Config, now: UnixMillis) {
    if let Err(message) = sweep_catalog(env, now).await {
        console_error!("sweep of the catalog: {message}");
    }
    for name in shards(env) {
        if let Err(message) = sweep_shard(env, config, &name).await {
            console_error!("sweep of {name}: {message}");
        }
    }
}

async fn sweep_catalog(env: &Env, now: UnixMillis) -> Result<(), String> {
    #[derive(Deserialize)]
    struct Published {
        plan: PlanName,
        version: u32,
        definition: String,
    }
    let text = |abort: Abort| abort.to_string();
    let database = Database::control(env).map_err(text)?;
    let head: Option<Seq> = database.row(control::OUTBOX_HEAD, &[]).await.map_err(text)?;
    let head = head.map_or(0, |head| head.seq);
    let mut batch = database.batch();
    // A day is the promise of how long an answer is kept for the same idempotency key.
    batch.add(control::EXPIRE_IDEMPOTENT, &[now.minus(24 * 3600 * 1000).0.into()]).map_err(text)?;
    if head > 0 {
        let versions: Vec<Published> = database.rows(control::PLAN_VERSIONS, &[]).await.map_err(text)?;
        let (serial, body) = read_catalog(&database).await.map_err(text)?;
        let mut publications = Vec::new();
        for Published { plan, version, definition } in versions {
            let content = json::parse(&definition).map_err(|error| error.to_string())?;
            let plan = Plan { plan, version, content };
            publications.push(publication(DocumentKey::Plan(plan.plan.clone(), version), version.into(), &plan)?);
        }
        publications.push(publication(DocumentKey::Catalog, serial, &body)?);
        let _: bool = ask_catalog(env, ToCatalog::Publish(publications)).await.map_err(|error| error.to_string())?;
        batch.add(control::CLEAR_OUTBOX, &[head.into()]).map_err(text)?;
    }
    batch.run().await.map_err(text)?;
    Ok(())
}

async fn sweep_shard(env: &Env, config: &Config, name: &ShardName) -> Result<(), String> {
    #[derive(Deserialize)]
    struct Note {
        tenant_id: TenantId,
    }
    let database = Database::shard(env, name).map_err(|abort| abort.to_string())?;
    let notes: Vec<Note> = database.rows(shard::OUTBOX, &[]).await.map_err(|abort| abort.to_string())?;
    let mut tenants: Vec<TenantId> = notes.iter().map(|note| note.tenant_id).collect();
    tenants.sort_unstable();
    tenants.dedup();
    for tenant in tenants {
        one(env, config, &database, name, tenant).await?;
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
