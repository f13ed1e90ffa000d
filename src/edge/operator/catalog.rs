//! What is sold: features, meters, origins with their routes, kill switches, plan versions.
//!
//! Invariant: a catalog is checked as a whole before any part of it is stored, and stored only if nobody changed it since it
//! was read; so what is published is always consistent.

use axum::http::StatusCode;
use axum::response::Response;
use serde::{Deserialize, Serialize};
use worker::console_error;

use super::{Audited, Change, Home, Page, Record, operator, tree};
use crate::domain::catalog::{Catalog, Head, Inconsistent, Meter, Origin};
use crate::domain::decision::Code;
use crate::domain::document::DocumentKey;
use crate::domain::feature::{Definition, KillSwitch};
use crate::domain::name::{FeatureName, MeterName, OriginName, PlanName};
use crate::domain::plan::{Plan, PlanContent};
use crate::domain::time::UnixMillis;
use crate::edge::api::{Api, Call, Failure};
use crate::edge::carry;
use crate::edge::d1::{Abort, Database, Param};
use crate::edge::documents;
use crate::wire::json;
use crate::wire::problem::Fault;
use crate::wire::sql::{Sql, control};

/// How often a change is tried again when another came between reading and writing.
const TRIES: usize = 5;

/// The whole catalog, as it is stored.
pub(crate) async fn show(call: Call) -> Result<Response, Failure> {
    #[derive(Serialize)]
    struct Shown {
        serial: u64,
        #[serde(flatten)]
        catalog: Catalog,
    }
    operator(&call).await?;
    let api = &call.api;
    let (serial, catalog) = carry::read_catalog(&Database::control(&api.env)?).await?;
    Ok(api.json(StatusCode::OK, &Shown { serial, catalog }))
}

/// Defines a feature.
pub(crate) async fn put_feature(mut call: Call) -> Result<Response, Failure> {
    let change = Change::begin(&mut call).await?;
    let (api, name) = (&call.api, call.param("name"));
    let name = named::<FeatureName>(&name)?;
    let definition: Definition = json::read(&change.body, super::CHANGE)?;
    let part = Part::new("feature.put", name.as_str(), control::PUT_FEATURE, Some(tree(&definition)));
    alter(api, &change, part, &|catalog| {
        catalog.features.insert(name.clone(), definition.clone());
        Ok(None)
    })
    .await
}

/// Defines a meter.
pub(crate) async fn put_meter(mut call: Call) -> Result<Response, Failure> {
    let change = Change::begin(&mut call).await?;
    let (api, name) = (&call.api, call.param("name"));
    let name = named::<MeterName>(&name)?;
    let meter: Meter = json::read(&change.body, super::CHANGE)?;
    let part = Part::new("meter.put", name.as_str(), control::PUT_METER, Some(tree(&meter)));
    alter(api, &change, part, &|catalog| {
        catalog.meters.insert(name.clone(), meter.clone());
        Ok(None)
    })
    .await
}

/// Defines an origin and its routes.
pub(crate) async fn put_origin(mut call: Call) -> Result<Response, Failure> {
    let change = Change::begin(&mut call).await?;
    let (api, name) = (&call.api, call.param("name"));
    let name = named::<OriginName>(&name)?;
    let origin: Origin = json::read(&change.body, super::CHANGE)?;
    let part = Part::new("origin.put", name.as_str(), control::PUT_ORIGIN, Some(tree(&origin)));
    alter(api, &change, part, &|catalog| {
        catalog.origins.insert(name.clone(), origin.clone());
        Ok(None)
    })
    .await
}

/// Throws a kill switch: the feature is off for everyone, above every override.
pub(crate) async fn put_kill_switch(mut call: Call) -> Result<Response, Failure> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Asked {
        reason: String,
        #[serde(default)]
        until: Option<UnixMillis>,
    }
    let change = Change::begin(&mut call).await?;
    let (api, name) = (&call.api, call.param("name"));
    let name = named::<FeatureName>(&name)?;
    let Asked { reason, until } = json::read(&change.body, super::CHANGE)?;
    let switch = KillSwitch { reason, until, author: change.operator.name.clone() };
    let part = Part::new("kill_switch.put", name.as_str(), control::PUT_KILL_SWITCH, Some(tree(&switch)));
    alter(api, &change, part, &|catalog| {
        catalog.kill_switches.insert(name.clone(), switch.clone());
        Ok(None)
    })
    .await
}

/// Takes a kill switch back.
pub(crate) async fn delete_kill_switch(mut call: Call) -> Result<Response, Failure> {
    let change = Change::begin(&mut call).await?;
    let (api, name) = (&call.api, call.param("name"));
    let name = named::<FeatureName>(&name)?;
    let part = Part::new("kill_switch.delete", name.as_str(), control::DELETE_KILL_SWITCH, None);
    alter(api, &change, part, &|catalog| {
        catalog.kill_switches.remove(&name).map(|_| None).ok_or_else(|| Failure::new(Code::NotFound))
    })
    .await
}

/// Publishes the next version of a plan. It never changes again; subscriptions to "latest" follow it.
pub(crate) async fn publish_plan(mut call: Call) -> Result<Response, Failure> {
    let change = Change::begin(&mut call).await?;
    let (api, name) = (&call.api, call.param("name"));
    let name = named::<PlanName>(&name)?;
    let content: PlanContent = json::read(&change.body, super::CHANGE)?;
    let part = Part::new("plan.publish", name.as_str(), control::PUT_PLAN, None);
    alter(api, &change, part, &|catalog| {
        sound(&content, catalog)?;
        let head = catalog.plans.get(&name).copied();
        let version = head.map_or(1, |head| head.version + 1);
        catalog.plans.insert(name.clone(), Head { version, previous: head.map(|head| head.version) });
        Ok(Some(Plan { plan: name.clone(), version, content: content.clone() }))
    })
    .await
}

/// Whether a plan grants and bounds only what the catalog defines.
fn sound(content: &PlanContent, catalog: &Catalog) -> Result<(), Failure> {
    let fault = |pointer: String, detail: String| Failure::from(Fault { detail, pointer, code: Code::InvalidValue });
    for (name, value) in &content.features {
        let Some(definition) = catalog.features.get(name) else {
            return Err(fault(format!("#/features/{name}"), format!("there is no feature {name}")));
        };
        if !definition.kind.accepts(value) {
            let detail = format!("a {} feature cannot be {}", definition.kind.name(), value.as_json());
            return Err(fault(format!("#/features/{name}"), detail));
        }
    }
    for (name, limit) in &content.limits {
        if !catalog.meters.contains_key(&limit.meter) {
            return Err(fault(format!("#/limits/{name}/meter"), format!("there is no meter {}", limit.meter)));
        }
        limit.amount.check().map_err(|detail| fault(format!("#/limits/{name}"), detail.to_owned()))?;
    }
    Ok(())
}

/// One part of the catalog, and how it is stored.
struct Part<'a> {
    action: &'static str,
    name: &'a str,
    sql: Sql,
    definition: Option<serde_json::Value>,
}

impl<'a> Part<'a> {
    const fn new(action: &'static str, name: &'a str, sql: Sql, definition: Option<serde_json::Value>) -> Self {
        Self { action, name, sql, definition }
    }
}

/// Reads the catalog, changes it, checks it whole, stores the part, and publishes; from the beginning where another change
/// came between.
async fn alter(
    api: &Api,
    change: &Change,
    part: Part<'_>,
    edit: &dyn Fn(&mut Catalog) -> Result<Option<Plan>, Failure>,
) -> Result<Response, Failure> {
    if let Some(response) = change.replay(api, Home::Control).await? {
        return Ok(response);
    }
    let database = Database::control(&api.env)?;
    for _ in 0..TRIES {
        let (serial, mut catalog) = carry::read_catalog(&database).await?;
        let plan = edit(&mut catalog)?;
        catalog.check().map_err(inconsistent)?;
        let answer = (
            if plan.is_some() { StatusCode::CREATED } else { StatusCode::OK },
            match &plan {
                Some(plan) => serde_json::json!({ "plan": plan.plan, "version": plan.version, "serial": serial + 1 }),
                None => serde_json::json!({ "name": part.name, "definition": part.definition, "serial": serial + 1 }),
            },
        );
        let mut batch = database.batch();
        batch.add(control::GUARD_CATALOG, &[serial.into()])?;
        match (&plan, &part.definition) {
            (Some(plan), _) => {
                let definition = tree(&plan.content).to_string();
                let version = u64::from(plan.version);
                batch.add(control::PUT_PLAN, &[part.name.into(), version.into()])?;
                batch.add(
                    control::ADD_PLAN_VERSION,
                    &[part.name.into(), version.into(), (&definition).into(), api.now.0.into()],
                )?;
            }
            (None, Some(definition)) => {
                let definition = definition.to_string();
                batch.add(part.sql, &[part.name.into(), (&definition).into()])?;
            }
            (None, None) => {
                batch.add(part.sql, &[part.name.into()])?;
            }
        }
        batch.add(control::ADVANCE_CATALOG, &[])?;
        batch.add(control::ADD_OUTBOX, &[Param::Text("catalog"), api.now.0.into()])?;
        let record = Record {
            action: part.action,
            subject: part.name,
            detail: plan.as_ref().map_or_else(|| part.definition.clone().unwrap_or_default(), tree),
        };
        change.seal(api, Home::Control, &mut batch, record, &answer)?;
        match batch.run().await {
            Ok(_) => {}
            Err(Abort::Guard(reason)) if reason == "version" => continue,
            Err(Abort::Constraint(message)) if message.contains("idempotency") => {
                return match change.replay(api, Home::Control).await? {
                    Some(response) => Ok(response),
                    None => Err(Failure::new(Code::IdempotencyInProgress)),
                };
            }
            Err(abort) => return Err(abort.into()),
        }
        // It is stored: from here on nothing fails the request. What does not arrive now, the sweep carries.
        let plan = plan.map(|plan| {
            let version = u64::from(plan.version);
            (plan, version)
        });
        match carry::catalog(&api.env, plan, &catalog, serial + 1).await {
            Ok(()) => {
                documents::read_own_change(&api.env, &api.config, &DocumentKey::Catalog, api.now).await;
                if let Err(abort) = clear(&database, serial + 1).await {
                    console_error!("outbox: {abort}");
                }
            }
            Err(message) => console_error!("catalog {}: {message}", serial + 1),
        }
        return Ok(api.json(answer.0, &answer.1));
    }
    Err(Failure::new(Code::Conflict).because("the catalog is being changed by others; try again"))
}

/// Takes the note off the outbox, if this was the last change: what others noted meanwhile stays.
async fn clear(database: &Database, serial: u64) -> Result<(), Abort> {
    #[derive(Deserialize)]
    struct Seq {
        seq: u64,
    }
    let head: Option<Seq> = database.row(control::OUTBOX_HEAD, &[]).await?;
    let mut batch = database.batch();
    batch.add(control::GUARD_CATALOG, &[serial.into()])?;
    batch.add(control::CLEAR_OUTBOX, &[head.map_or(0, |head| head.seq).into()])?;
    match batch.run().await {
        Ok(_) | Err(Abort::Guard(_)) => Ok(()),
        Err(abort) => Err(abort),
    }
}

fn inconsistent(wrong: Inconsistent) -> Failure {
    // The part of the pointer behind the part's own name is a place in the body.
    let pointer = wrong.pointer.splitn(4, '/').nth(3).map_or_else(|| "#".to_owned(), |rest| format!("#/{rest}"));
    Fault { detail: wrong.detail, pointer, code: Code::InvalidValue }.into()
}

fn named<N: std::str::FromStr<Err: std::fmt::Display>>(text: &str) -> Result<N, Failure> {
    text.parse().map_err(|error: N::Err| Failure::new(Code::InvalidValue).because(format!("the name {error}")))
}

/// The operator's audit records, newest first.
pub(crate) async fn audit(call: Call) -> Result<Response, Failure> {
    operator(&call).await?;
    let api = &call.api;
    let (cursor, limit) = call.page()?;
    // Ids begin with the time in base 32, whose last digit is below this.
    let before = cursor.unwrap_or("req_~");
    let database = Database::control(&api.env)?;
    let mut data: Vec<Audited> = database.rows(control::AUDIT, &[before.into(), (limit + 1).into()]).await?;
    let has_more = data.len() as u64 > limit;
    data.truncate(usize::try_from(limit).unwrap_or(usize::MAX));
    let next_cursor = data.last().filter(|_| has_more).map(|record| record.id.clone());
    Ok(api.json(StatusCode::OK, &Page { data, has_more, next_cursor }))
}
