//! To whom it is sold: tenants, their subscriptions, exceptions and API keys.
//!
//! Invariant: a change of one tenant moves the serials of its own document and of everyone's below it, in the same batch, and
//! names them in the outbox; so no descendant goes on with what an ancestor no longer is.

use axum::http::StatusCode;
use axum::response::Response;
use serde::{Deserialize, Serialize};
use worker::console_error;

use super::{Audited, Change, Home, Page, Record, operator, tree};
use crate::domain::api_key::Mode;
use crate::domain::decision::Code;
use crate::domain::feature::Override;
use crate::domain::id::{Jurisdiction, KeyId, TenantId};
use crate::domain::name::{FeatureName, LimitName, PlanName, Scope, ShardName, Slug};
use crate::domain::tally::MINUTE_MS;
use crate::domain::tenant::{LimitOverride, Relation, Status, Subscription};
use crate::domain::time::UnixMillis;
use crate::edge::api::{Api, Call, Failure, read_usage};
use crate::edge::carry;
use crate::edge::d1::{Abort, Batch, Database, Param};
use crate::edge::isolate;
use crate::edge::object::ask_tenant;
use crate::wire::json;
use crate::wire::object::AskTenant;
use crate::wire::problem::Fault;
use crate::wire::rows::ChainRow;
use crate::wire::sql::{control, shard};

/// The most API keys of one tenant that work at a time: its document is read on every cold request.
const KEYS: u64 = 100;
/// The most levels of a tree: an organisation, and three below it.
const LEVELS: usize = 4;

/// Where a tenant is.
#[derive(Deserialize)]
struct Placed {
    tenant_id: TenantId,
    slug: String,
    parent_id: Option<TenantId>,
    shard: ShardName,
    state: String,
}

async fn placed(api: &Api, id: &str) -> Result<Placed, Failure> {
    let id: TenantId = id.parse().map_err(|_| Failure::new(Code::NotFound))?;
    let row: Option<Placed> = Database::control(&api.env)?.row(control::DIRECTORY, &[(&id.to_string()).into()]).await?;
    row.filter(|row| row.state == "placed").ok_or_else(|| Failure::new(Code::NotFound))
}

/// A tenant to be.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NewTenant {
    slug: Slug,
    name: String,
    #[serde(default)]
    plan: Option<PlanName>,
    #[serde(default)]
    version: Option<u32>,
    #[serde(default)]
    parent: Option<TenantId>,
    #[serde(default)]
    jurisdiction: Option<Jurisdiction>,
    /// An instant at which a usage period begins; now where absent.
    #[serde(default)]
    anchor: Option<UnixMillis>,
}

/// Makes a tenant with its first API key. Two databases: a place is reserved in the directory, then the rows are written to
/// the shard, then the place is confirmed. The same request again takes up where a crash left it.
pub(crate) async fn create(mut call: Call) -> Result<Response, Failure> {
    let change = Change::begin(&mut call).await?;
    let api = &call.api;
    if let Some(response) = change.replay(api, Home::Control).await? {
        return Ok(response);
    }
    let asked: NewTenant = json::read(&change.body, super::CHANGE)?;
    let place = reserve(api, &asked).await?;
    let key = write(api, &change, &asked, &place).await?;
    let answer = (
        StatusCode::CREATED,
        serde_json::json!({
            "id": place.tenant_id,
            "slug": place.slug,
            "name": asked.name,
            "parent": place.parent_id,
            "status": "active",
            "placement": { "jurisdiction": place.tenant_id.jurisdiction(), "shard": place.shard },
            "subscription": asked.plan.as_ref().map(|plan| serde_json::json!({ "plan": plan, "version": asked.version })),
        }),
    );
    let database = Database::control(&api.env)?;
    let mut batch = database.batch();
    batch.add(control::PLACE_TENANT, &[(&place.tenant_id.to_string()).into()])?;
    let subject = place.tenant_id.to_string();
    let record =
        Record { action: "tenant.create", subject: &subject, detail: serde_json::json!({ "slug": place.slug }) };
    change.seal(api, Home::Control, &mut batch, record, &answer)?;
    match batch.run().await {
        Ok(_) => {}
        Err(Abort::Constraint(message)) if message.contains("idempotency") => {
            return Err(Failure::new(Code::IdempotencyInProgress));
        }
        Err(abort) => return Err(abort.into()),
    }
    // The parent's document does not name its children, but what they carve; a new child carves nothing.
    if let Err(message) = carry::tree(&api.env, &api.config, &place.shard, place.tenant_id).await {
        console_error!("{}: {message}", place.tenant_id);
    }
    Ok(api.json(answer.0, &with_key(answer.1, key)))
}

/// A place in the directory: a new one, or the one that an interrupted request reserved under the same slug.
async fn reserve(api: &Api, asked: &NewTenant) -> Result<Placed, Failure> {
    let fault = |pointer: &str, detail: String| {
        Failure::from(Fault { detail, pointer: pointer.to_owned(), code: Code::InvalidValue })
    };
    let control = Database::control(&api.env)?;
    if let Some(plan) = &asked.plan {
        let (_, catalog) = carry::read_catalog(&control).await?;
        let Some(head) = catalog.plans.get(plan) else {
            return Err(fault("#/plan", format!("there is no plan {plan}")));
        };
        if asked.version.is_some_and(|version| version == 0 || version > head.version) {
            return Err(fault("#/version", format!("plan {plan} has versions 1 to {}", head.version)));
        }
    }
    let slug = asked.slug.as_str();
    let held: Option<Placed> = control.row(control::DIRECTORY_BY_SLUG, &[slug.into()]).await?;
    match held {
        Some(held) if held.state == "placed" => {
            return Err(Failure::new(Code::Conflict).because(format!("the slug {slug} is taken")));
        }
        Some(held) => return Ok(held),
        None => {}
    }
    let (jurisdiction, shard) = if let Some(parent) = asked.parent {
        let row: Option<Placed> = control.row(control::DIRECTORY, &[(&parent.to_string()).into()]).await?;
        let row = row.filter(|row| row.state == "placed");
        let row = row.ok_or_else(|| fault("#/parent", format!("there is no tenant {parent}")))?;
        if asked.jurisdiction.is_some_and(|asked| asked != parent.jurisdiction()) {
            return Err(fault("#/jurisdiction", "a tenant lives where its parent does".to_owned()));
        }
        let chain = carry::chain(&Database::shard(&api.env, &row.shard)?, parent).await?;
        if chain.len() >= LEVELS {
            return Err(fault("#/parent", format!("a tree has at most {LEVELS} levels")));
        }
        (parent.jurisdiction(), row.shard)
    } else {
        let jurisdiction = asked.jurisdiction.unwrap_or(Jurisdiction::Global);
        let prefix = format!("{jurisdiction}-");
        let shard = carry::shards(&api.env).into_iter().filter(|shard| shard.as_str().starts_with(&prefix)).max();
        let shard = shard.ok_or_else(|| fault("#/jurisdiction", format!("no shard is bound in {jurisdiction}")))?;
        (jurisdiction, shard)
    };
    #[expect(clippy::cast_possible_truncation, reason = "any 32 of its bits will do")]
    let random = (isolate::random() as u32).to_be_bytes();
    let tenant_id = TenantId::new(jurisdiction, api.now, random);
    let (id, parent) = (tenant_id.to_string(), asked.parent.map(|parent| parent.to_string()));
    let mut batch = control.batch();
    batch.add(
        control::RESERVE_TENANT,
        &[(&id).into(), slug.into(), parent.as_ref().into(), shard.as_str().into(), api.now.0.into()],
    )?;
    batch.run().await?;
    Ok(Placed { tenant_id, slug: slug.to_owned(), parent_id: asked.parent, shard, state: "reserved".to_owned() })
}

/// The rows of a new tenant, unless they are there; and an API key, whose text is given back and nowhere kept.
async fn write(api: &Api, change: &Change, asked: &NewTenant, place: &Placed) -> Result<String, Failure> {
    let database = Database::shard(&api.env, &place.shard)?;
    let id = place.tenant_id.to_string();
    let there = !carry::chain(&database, place.tenant_id).await?.is_empty();
    let mut batch = database.batch();
    if !there {
        let subscription = asked.plan.as_ref().map(|plan| {
            let anchor = whole_minute(asked.anchor.unwrap_or(api.now));
            tree(&Subscription { plan: plan.clone(), version: asked.version, anchor }).to_string()
        });
        let parent = place.parent_id.map(|parent| parent.to_string());
        batch.add(shard::ADD_HOME, &[(&id).into()])?;
        batch.add(
            shard::ADD_TENANT,
            &[
                (&id).into(),
                parent.as_ref().into(),
                place.slug.as_str().into(),
                (&asked.name).into(),
                subscription.as_ref().into(),
                api.now.0.into(),
            ],
        )?;
    }
    let minted = Minted::new(api, place.tenant_id, Mode::Live);
    minted.add(api, &mut batch, "first", &[], None)?;
    batch.add(shard::ADVANCE_TREE, &[(&id).into()])?;
    batch.add(shard::ADD_OUTBOX_TREE, &[(&id).into(), api.now.0.into()])?;
    let (record, detail) =
        (api.id.to_string(), serde_json::json!({ "slug": place.slug, "key": minted.id }).to_string());
    batch.add(
        shard::ADD_AUDIT,
        &[
            (&id).into(),
            (&record).into(),
            api.now.0.into(),
            (&change.operator.name).into(),
            Param::Text("tenant.create"),
            (&id).into(),
            (&detail).into(),
            (&record).into(),
        ],
    )?;
    batch.run().await?;
    Ok(minted.text)
}

/// Usage periods begin with a minute: leased use is counted by the minute, and no minute may belong to two periods.
const fn whole_minute(at: UnixMillis) -> UnixMillis {
    UnixMillis(at.0 - at.0 % MINUTE_MS)
}

/// An answer with the text of an API key beside what is stored of it.
fn with_key(mut answer: serde_json::Value, text: String) -> serde_json::Value {
    if let Some(answer) = answer.as_object_mut() {
        answer.insert("api_key".to_owned(), text.into());
    }
    answer
}

/// An API key that was just made.
struct Minted {
    tenant: TenantId,
    id: KeyId,
    mode: Mode,
    hash: String,
    text: String,
}

impl Minted {
    fn new(api: &Api, tenant: TenantId, mode: Mode) -> Self {
        #[expect(clippy::cast_possible_truncation, reason = "an id takes as many bits as it has")]
        let id = KeyId::new(isolate::random() as u64);
        let key = api.config.api_keys.mint(mode, tenant, id, isolate::random().to_be_bytes());
        Self { tenant, id, mode, hash: key.hash().to_string(), text: key.reveal() }
    }

    fn add(
        &self,
        api: &Api,
        batch: &mut Batch<'_>,
        name: &str,
        scopes: &[Scope],
        until: Option<UnixMillis>,
    ) -> Result<(), Abort> {
        let (tenant, id, scopes) = (self.tenant.to_string(), self.id.to_string(), tree(&scopes).to_string());
        batch.add(shard::GUARD_KEYS_BOUND, &[(&tenant).into(), KEYS.into()])?;
        batch.add(
            shard::ADD_KEY,
            &[
                (&tenant).into(),
                (&id).into(),
                (&self.hash).into(),
                Param::Text(self.mode.name()),
                name.into(),
                (&scopes).into(),
                until.map(|until| until.0).into(),
                api.now.0.into(),
            ],
        )?;
        Ok(())
    }
}

/// Tenants, in the order of their ids.
pub(crate) async fn list(call: Call) -> Result<Response, Failure> {
    #[derive(Serialize)]
    struct Listed {
        id: TenantId,
        slug: String,
        parent: Option<TenantId>,
        shard: ShardName,
    }
    operator(&call).await?;
    let api = &call.api;
    let (cursor, limit) = call.page()?;
    let after = cursor.unwrap_or_default();
    let database = Database::control(&api.env)?;
    let rows: Vec<Placed> = database.rows(control::DIRECTORY_PAGE, &[after.into(), (limit + 1).into()]).await?;
    let has_more = rows.len() as u64 > limit;
    let data: Vec<Listed> = rows
        .into_iter()
        .take(usize::try_from(limit).unwrap_or(usize::MAX))
        .map(|row| Listed { id: row.tenant_id, slug: row.slug, parent: row.parent_id, shard: row.shard })
        .collect();
    let next_cursor = data.last().filter(|_| has_more).map(|listed| listed.id.to_string());
    Ok(api.json(StatusCode::OK, &Page { data, has_more, next_cursor }))
}

/// One tenant, whole.
pub(crate) async fn show(call: Call) -> Result<Response, Failure> {
    operator(&call).await?;
    let (api, id) = (&call.api, call.param("id"));
    let place = placed(api, &id).await?;
    let chain = carry::chain(&Database::shard(&api.env, &place.shard)?, place.tenant_id).await?;
    let row = chain.first().ok_or_else(|| Failure::new(Code::NotFound))?;
    let parse = |text: &str| json::parse::<serde_json::Value>(text).unwrap_or_default();
    Ok(api.json(
        StatusCode::OK,
        &serde_json::json!({
            "id": row.tenant_id,
            "slug": row.slug,
            "name": row.name,
            "parent": row.parent_id,
            "status": row.status,
            "placement": { "jurisdiction": row.tenant_id.jurisdiction(), "shard": place.shard },
            "subscription": row.subscription.as_deref().map(parse),
            "overrides": parse(&row.overrides),
            "limits": parse(&row.limits),
            "relations": parse(&row.relations),
            "serial": row.serial,
            "version": row.version,
        }),
    ))
}

/// A change of one tenant: what it writes, and from where documents are to be published anew.
struct Edit<'a> {
    action: &'static str,
    subject: &'a str,
    detail: serde_json::Value,
    answer: serde_json::Value,
    status: StatusCode,
    root: TenantId,
}

/// Writes a change of a tenant with all that belongs to it, and publishes.
async fn alter(
    api: &Api,
    change: &Change,
    place: &Placed,
    database: &Database,
    edit: Edit<'_>,
    write: &dyn Fn(&mut Batch<'_>) -> Result<(), Abort>,
) -> Result<(), Failure> {
    let (id, root) = (place.tenant_id.to_string(), edit.root.to_string());
    let home = Home::Tenant(place.tenant_id, database);
    let mut batch = database.batch();
    batch.add(shard::GUARD_HOME, &[(&id).into()])?;
    write(&mut batch)?;
    batch.add(shard::ADVANCE_TREE, &[(&root).into()])?;
    batch.add(shard::ADD_OUTBOX_TREE, &[(&root).into(), api.now.0.into()])?;
    let record = Record { action: edit.action, subject: edit.subject, detail: edit.detail };
    change.seal(api, home, &mut batch, record, &(edit.status, edit.answer))?;
    match batch.run().await {
        Ok(_) => {}
        Err(Abort::Constraint(message)) if message.contains("idempotency") => {
            return Err(Failure::new(Code::IdempotencyInProgress));
        }
        Err(abort) => return Err(abort.into()),
    }
    // It is stored: from here on nothing fails the request. What does not arrive now, the sweep carries.
    if let Err(message) = carry::tree(&api.env, &api.config, &place.shard, edit.root).await {
        console_error!("{root}: {message}");
    }
    let sealed: Result<bool, _> = ask_tenant(&api.env, &api.config, place.tenant_id, AskTenant::Seal).await;
    if let Err(error) = sealed {
        console_error!("{id}: {error}");
    }
    Ok(())
}

/// Steps 1 to 3 of a mutation of a tenant; a stored answer comes back as an error would, being the end of it.
async fn begin(call: &mut Call) -> Result<Result<(Change, Placed, Database), Response>, Failure> {
    let change = Change::begin(call).await?;
    let api = &call.api;
    let place = placed(api, &call.param("id")).await?;
    let database = Database::shard(&api.env, &place.shard)?;
    Ok(match change.replay(api, Home::Tenant(place.tenant_id, &database)).await? {
        Some(response) => Err(response),
        None => Ok((change, place, database)),
    })
}

/// Changes a tenant's standing.
pub(crate) async fn put_status(mut call: Call) -> Result<Response, Failure> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Asked {
        status: Status,
    }
    let (change, place, database) = match begin(&mut call).await? {
        Ok(begun) => begun,
        Err(response) => return Ok(response),
    };
    let (api, id) = (&call.api, call.param("id"));
    let Asked { status } = json::read(&change.body, super::CHANGE)?;
    let answer = serde_json::json!({ "id": place.tenant_id, "status": status });
    let edit = Edit {
        action: "tenant.status",
        subject: &id,
        detail: answer.clone(),
        answer: answer.clone(),
        status: StatusCode::OK,
        root: place.tenant_id,
    };
    alter(api, &change, &place, &database, edit, &|batch| {
        batch.add(shard::SET_STATUS, &[(&id).into(), Param::Text(status.name())]).map(|_| ())
    })
    .await?;
    Ok(api.json(StatusCode::OK, &answer))
}

/// Changes a tenant's hold on a plan, from now on.
pub(crate) async fn put_subscription(mut call: Call) -> Result<Response, Failure> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Asked {
        plan: PlanName,
        #[serde(default)]
        version: Option<u32>,
    }
    let (change, place, database) = match begin(&mut call).await? {
        Ok(begun) => begun,
        Err(response) => return Ok(response),
    };
    let (api, id) = (&call.api, call.param("id"));
    let Asked { plan, version } = json::read(&change.body, super::CHANGE)?;
    let (_, catalog) = carry::read_catalog(&Database::control(&api.env)?).await?;
    if !catalog.plans.contains_key(&plan) {
        let fault =
            Fault { detail: format!("there is no plan {plan}"), pointer: "#/plan".into(), code: Code::InvalidValue };
        return Err(fault.into());
    }
    // The anchor stays: changing the plan does not begin a new usage period, or quotas could be had twice.
    let row = own_row(&database, place.tenant_id).await?;
    let anchor = row.subscription().ok().flatten().map_or_else(|| whole_minute(api.now), |held| held.anchor);
    let subscription = tree(&Subscription { plan, version, anchor });
    let edit = Edit {
        action: "tenant.subscription",
        subject: &id,
        detail: subscription.clone(),
        answer: subscription.clone(),
        status: StatusCode::OK,
        root: place.tenant_id,
    };
    alter(api, &change, &place, &database, edit, &|batch| {
        batch.add(shard::GUARD_VERSION, &[(&id).into(), row.version.into()])?;
        batch.add(shard::SET_SUBSCRIPTION, &[(&id).into(), (&subscription.to_string()).into()]).map(|_| ())
    })
    .await?;
    Ok(api.json(StatusCode::OK, &subscription))
}

async fn own_row(database: &Database, tenant: TenantId) -> Result<ChainRow, Failure> {
    carry::chain(database, tenant).await?.into_iter().next().ok_or_else(|| Failure::new(Code::NotFound))
}

/// Gives a tenant its own value for a feature, with an end or without.
pub(crate) async fn put_override(mut call: Call) -> Result<Response, Failure> {
    let (change, place, database) = match begin(&mut call).await? {
        Ok(begun) => begun,
        Err(response) => return Ok(response),
    };
    let (api, name) = (&call.api, call.param("name"));
    let set: Override = json::read(&change.body, super::CHANGE)?;
    let feature: FeatureName = name.parse().map_err(|_| Failure::new(Code::NotFound))?;
    let (_, catalog) = carry::read_catalog(&Database::control(&api.env)?).await?;
    let definition = catalog
        .features
        .get(&feature)
        .ok_or_else(|| Failure::new(Code::NotFound).because(format!("there is no feature {feature}")))?;
    if !definition.kind.accepts(&set.value) {
        let detail = format!("a {} feature cannot be {}", definition.kind.name(), set.value.as_json());
        return Err(Fault { detail, pointer: "#/value".into(), code: Code::WrongType }.into());
    }
    let value = tree(&set);
    edit(api, change, place, database, "override.put", &name, value, &|batch, id, value| {
        batch.add(shard::PUT_FEATURE_OVERRIDE, &[id.into(), (&name).into(), value.into()]).map(|_| ())
    })
    .await
}

/// Takes a tenant's own value for a feature back.
pub(crate) async fn delete_override(mut call: Call) -> Result<Response, Failure> {
    let (change, place, database) = match begin(&mut call).await? {
        Ok(begun) => begun,
        Err(response) => return Ok(response),
    };
    let (api, name) = (&call.api, call.param("name"));
    edit(api, change, place, database, "override.delete", &name, serde_json::Value::Null, &|batch, id, _| {
        batch.add(shard::DELETE_FEATURE_OVERRIDE, &[id.into(), (&name).into()]).map(|_| ())
    })
    .await
}

/// Gives a tenant its own value for a limit of its plan.
pub(crate) async fn put_limit(mut call: Call) -> Result<Response, Failure> {
    let (change, place, database) = match begin(&mut call).await? {
        Ok(begun) => begun,
        Err(response) => return Ok(response),
    };
    let (api, name) = (&call.api, call.param("name"));
    let set: LimitOverride = json::read(&change.body, super::CHANGE)?;
    let _: LimitName = name.parse().map_err(|_| Failure::new(Code::NotFound))?;
    set.amount.check().map_err(|detail| {
        Failure::from(Fault { detail: detail.to_owned(), pointer: "#/amount".into(), code: Code::InvalidValue })
    })?;
    let value = tree(&set);
    edit(api, change, place, database, "limit.put", &name, value, &|batch, id, value| {
        batch.add(shard::PUT_LIMIT_OVERRIDE, &[id.into(), (&name).into(), value.into()]).map(|_| ())
    })
    .await
}

/// Takes a tenant's own value for a limit back.
pub(crate) async fn delete_limit(mut call: Call) -> Result<Response, Failure> {
    let (change, place, database) = match begin(&mut call).await? {
        Ok(begun) => begun,
        Err(response) => return Ok(response),
    };
    let (api, name) = (&call.api, call.param("name"));
    edit(api, change, place, database, "limit.delete", &name, serde_json::Value::Null, &|batch, id, _| {
        batch.add(shard::DELETE_LIMIT_OVERRIDE, &[id.into(), (&name).into()]).map(|_| ())
    })
    .await
}

/// A change of one named thing of a tenant.
#[expect(clippy::too_many_arguments, reason = "each is one word of the sentence that a call reads as")]
async fn edit(
    api: &Api,
    change: Change,
    place: Placed,
    database: Database,
    action: &'static str,
    name: &str,
    value: serde_json::Value,
    write: &dyn Fn(&mut Batch<'_>, &str, &str) -> Result<(), Abort>,
) -> Result<Response, Failure> {
    let answer = serde_json::json!({ "name": name, "definition": value });
    let text = value.to_string();
    let id = place.tenant_id.to_string();
    let edit = Edit {
        action,
        subject: name,
        detail: value,
        answer: answer.clone(),
        status: StatusCode::OK,
        root: place.tenant_id,
    };
    alter(api, &change, &place, &database, edit, &|batch| write(batch, &id, &text)).await?;
    Ok(api.json(StatusCode::OK, &answer))
}

/// Says how a tenant stands to a limit of its ancestors: share, cap or carve.
pub(crate) async fn put_relation(mut call: Call) -> Result<Response, Failure> {
    let (change, place, database) = match begin(&mut call).await? {
        Ok(begun) => begun,
        Err(response) => return Ok(response),
    };
    let (api, name) = (&call.api, call.param("name"));
    let relation: Relation = json::read(&change.body, super::CHANGE)?;
    if let Relation::Cap(amount) | Relation::Carve(amount) = relation {
        amount.check().map_err(|detail| {
            Failure::from(Fault { detail: detail.to_owned(), pointer: "#".into(), code: Code::InvalidValue })
        })?;
    }
    relate(api, &change, &place, &database, &name, Some(relation)).await
}

/// A tenant shares a limit of its ancestors again.
pub(crate) async fn delete_relation(mut call: Call) -> Result<Response, Failure> {
    let (change, place, database) = match begin(&mut call).await? {
        Ok(begun) => begun,
        Err(response) => return Ok(response),
    };
    let (api, name) = (&call.api, call.param("name"));
    relate(api, &change, &place, &database, &name, None).await
}

async fn relate(
    api: &Api,
    change: &Change,
    place: &Placed,
    database: &Database,
    name: &str,
    relation: Option<Relation>,
) -> Result<Response, Failure> {
    let limit: LimitName = name.parse().map_err(|_| Failure::new(Code::NotFound))?;
    let Some(parent) = place.parent_id else {
        return Err(Failure::new(Code::Conflict).because("this tenant has no parent whose limits it could stand to"));
    };
    let row = own_row(database, place.tenant_id).await?;
    let mut relations = row.relations().map_err(|_| Failure::new(Code::Internal))?;
    match relation {
        Some(relation) => relations.insert(limit, relation),
        None => relations.remove(&limit),
    };
    let answer = serde_json::json!({ "name": name, "relation": relation });
    // What a child carves is the less for its parent, and so for all of its siblings that share.
    let edit = Edit {
        action: "relation.put",
        subject: name,
        detail: answer.clone(),
        answer: answer.clone(),
        status: StatusCode::OK,
        root: parent,
    };
    let id = place.tenant_id.to_string();
    alter(api, change, place, database, edit, &|batch| {
        batch.add(shard::GUARD_VERSION, &[(&id).into(), row.version.into()])?;
        batch.add(shard::SET_RELATIONS, &[(&id).into(), (&tree(&relations).to_string()).into()]).map(|_| ())
    })
    .await?;
    Ok(api.json(StatusCode::OK, &answer))
}

/// Makes an API key. Its text is in this answer and nowhere else, also not when the same request is sent again.
pub(crate) async fn create_key(mut call: Call) -> Result<Response, Failure> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Asked {
        name: String,
        #[serde(default)]
        mode: Mode,
        #[serde(default)]
        scopes: Vec<Scope>,
        #[serde(default)]
        until: Option<UnixMillis>,
    }
    let (change, place, database) = match begin(&mut call).await? {
        Ok(begun) => begun,
        Err(response) => return Ok(response),
    };
    let api = &call.api;
    let asked: Asked = json::read(&change.body, super::CHANGE)?;
    let minted = Minted::new(api, place.tenant_id, asked.mode);
    let answer = serde_json::json!({
        "id": minted.id, "name": asked.name, "mode": asked.mode, "scopes": asked.scopes, "until": asked.until,
    });
    let edit = Edit {
        action: "key.create",
        subject: &minted.id.to_string(),
        detail: answer.clone(),
        answer: answer.clone(),
        status: StatusCode::CREATED,
        root: place.tenant_id,
    };
    alter(api, &change, &place, &database, edit, &|batch| {
        minted.add(api, batch, &asked.name, &asked.scopes, asked.until)
    })
    .await?;
    Ok(api.json(StatusCode::CREATED, &with_key(answer, minted.text)))
}

/// A tenant's API keys, without their secrets.
pub(crate) async fn keys(call: Call) -> Result<Response, Failure> {
    #[derive(Serialize, Deserialize)]
    struct Row {
        #[serde(rename(serialize = "id"))]
        key_id: KeyId,
        mode: Mode,
        name: String,
        #[serde(deserialize_with = "super::embedded")]
        scopes: serde_json::Value,
        until_ms: Option<u64>,
        revoked_ms: Option<u64>,
        created_ms: u64,
    }
    operator(&call).await?;
    let (api, id) = (&call.api, call.param("id"));
    let place = placed(api, &id).await?;
    let database = Database::shard(&api.env, &place.shard)?;
    let data: Vec<Row> = database.rows(shard::KEYS, &[(&id).into()]).await?;
    Ok(api.json(StatusCode::OK, &Page { data, has_more: false, next_cursor: None }))
}

/// Takes an API key back.
pub(crate) async fn revoke_key(mut call: Call) -> Result<Response, Failure> {
    let (change, place, database) = match begin(&mut call).await? {
        Ok(begun) => begun,
        Err(response) => return Ok(response),
    };
    let (api, key) = (&call.api, call.param("key"));
    let _: KeyId = key.parse().map_err(|_| Failure::new(Code::NotFound))?;
    let now = api.now.0;
    edit(api, change, place, database, "key.revoke", &key, serde_json::Value::Null, &|batch, id, _| {
        batch.add(shard::GUARD_KEY, &[id.into(), (&key).into()])?;
        batch.add(shard::REVOKE_KEY, &[id.into(), (&key).into(), now.into()]).map(|_| ())
    })
    .await
}

/// What a tenant has used, and what of it is still on its way to the ledger.
pub(crate) async fn usage(call: Call) -> Result<Response, Failure> {
    operator(&call).await?;
    let (api, id) = (&call.api, call.param("id"));
    let place = placed(api, &id).await?;
    let usage = read_usage(api, place.tenant_id, &place.shard, UnixMillis(0)).await?;
    Ok(api.json(StatusCode::OK, &usage))
}

/// A tenant's audit records, newest first, with their places in the chain.
pub(crate) async fn audit(call: Call) -> Result<Response, Failure> {
    operator(&call).await?;
    let (api, id) = (&call.api, call.param("id"));
    let (cursor, limit) = call.page()?;
    let place = placed(api, &id).await?;
    let database = Database::shard(&api.env, &place.shard)?;
    let before = cursor.unwrap_or("req_~");
    let params = [(&id).into(), before.into(), (limit + 1).into()];
    let mut data: Vec<Audited> = database.rows(shard::AUDIT, &params).await?;
    let has_more = data.len() as u64 > limit;
    data.truncate(usize::try_from(limit).unwrap_or(usize::MAX));
    let next_cursor = data.last().filter(|_| has_more).map(|record| record.id.clone());
    Ok(api.json(StatusCode::OK, &Page { data, has_more, next_cursor }))
}
