//! Changes of what is sold: features, meters, origins with their routes, kill switches, plan versions.
//!
//! Invariant: a catalog is checked as a whole before any part of it is stored.

use serde::Deserialize;

use super::{Asked, Record};
use crate::domain::catalog::{Catalog, Head, Inconsistent, Meter, Origin};
use crate::domain::decision::Code;
use crate::domain::feature::{Definition, KillSwitch};
use crate::domain::name::{FeatureName, MeterName, OriginName, PlanName};
use crate::domain::plan::{Plan, PlanContent};
use crate::domain::time::UnixMillis;
use crate::wire::json::{Object, written};
use crate::wire::problem::Failure;
use crate::wire::sql::{Sql, Statement, control};

/// A change of the catalog.
#[derive(Debug)]
pub struct Edit {
    /// What was done.
    pub record: Record,
    /// What carries it out.
    pub statements: Vec<Statement>,
    /// The plan version that was published, if one was.
    pub plan: Option<Plan>,
    /// The answer but for the catalog's serial, which is added to it.
    pub answer: Object,
}

/// What decides about a change: it edits the catalog in place.
pub type Decide = fn(&Asked<'_>, &mut Catalog) -> Result<Edit, Failure>;

/// Makes a change of `catalog`, and checks what comes of it.
///
/// # Errors
/// Why it cannot be.
pub fn make(decide: Decide, asked: &Asked<'_>, catalog: &mut Catalog) -> Result<Edit, Failure> {
    let edit = decide(asked, catalog)?;
    catalog.check().map_err(|Inconsistent { pointer, detail }| {
        // The part of the pointer behind the part's own name is a place in the body.
        let place = pointer.splitn(4, '/').nth(3).map_or_else(|| "#".to_owned(), |rest| format!("#/{rest}"));
        Failure::at(place, detail)
    })?;
    Ok(edit)
}

impl Edit {
    fn put(action: &'static str, name: &str, sql: Sql, definition: String) -> Self {
        Self {
            statements: vec![sql.with(vec![name.into(), definition.as_str().into()])],
            plan: None,
            answer: Object::new().text("name", name).json("definition", &definition),
            record: Record { action, subject: name.to_owned(), detail: definition },
        }
    }
}

/// Defines a feature.
///
/// # Errors
/// What is wrong with the definition.
pub fn put_feature(asked: &Asked<'_>, catalog: &mut Catalog) -> Result<Edit, Failure> {
    let name: FeatureName = asked.named("name")?;
    let definition: Definition = asked.read()?;
    let edit = Edit::put("feature.put", name.as_str(), control::PUT_FEATURE, written(&definition));
    catalog.features.insert(name, definition);
    Ok(edit)
}

/// Defines a meter.
///
/// # Errors
/// What is wrong with the definition.
pub fn put_meter(asked: &Asked<'_>, catalog: &mut Catalog) -> Result<Edit, Failure> {
    let name: MeterName = asked.named("name")?;
    let meter: Meter = asked.read()?;
    let edit = Edit::put("meter.put", name.as_str(), control::PUT_METER, written(&meter));
    catalog.meters.insert(name, meter);
    Ok(edit)
}

/// Defines an origin and its routes.
///
/// # Errors
/// What is wrong with the definition.
pub fn put_origin(asked: &Asked<'_>, catalog: &mut Catalog) -> Result<Edit, Failure> {
    let name: OriginName = asked.named("name")?;
    let origin: Origin = asked.read()?;
    let edit = Edit::put("origin.put", name.as_str(), control::PUT_ORIGIN, written(&origin));
    catalog.origins.insert(name, origin);
    Ok(edit)
}

/// Throws a kill switch: the feature is off for everyone, above every override.
///
/// # Errors
/// What is wrong with the request.
pub fn put_kill_switch(asked: &Asked<'_>, catalog: &mut Catalog) -> Result<Edit, Failure> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Thrown {
        reason: String,
        #[serde(default)]
        until: Option<UnixMillis>,
    }
    let name: FeatureName = asked.named("name")?;
    let Thrown { reason, until } = asked.read()?;
    let switch = KillSwitch { reason, until, author: asked.actor.to_owned() };
    let edit = Edit::put("kill_switch.put", name.as_str(), control::PUT_KILL_SWITCH, written(&switch));
    catalog.kill_switches.insert(name, switch);
    Ok(edit)
}

/// Takes a kill switch back.
///
/// # Errors
/// 404 where none is thrown.
pub fn delete_kill_switch(asked: &Asked<'_>, catalog: &mut Catalog) -> Result<Edit, Failure> {
    let name: FeatureName = asked.known("name")?;
    catalog.kill_switches.remove(&name).ok_or_else(|| Failure::new(Code::NotFound))?;
    Ok(Edit {
        statements: vec![control::DELETE_KILL_SWITCH.with(vec![name.as_str().into()])],
        plan: None,
        answer: Object::new().text("name", name.as_str()).json("definition", "null"),
        record: Record { action: "kill_switch.delete", subject: name.as_str().to_owned(), detail: "null".to_owned() },
    })
}

/// Publishes the next version of a plan. It never changes again; subscriptions to "latest" follow it.
///
/// # Errors
/// What is wrong with its content.
pub fn publish_plan(asked: &Asked<'_>, catalog: &mut Catalog) -> Result<Edit, Failure> {
    let name: PlanName = asked.named("name")?;
    let content: PlanContent = asked.read()?;
    sound(&content, catalog)?;
    let head = catalog.plans.get(&name).copied();
    let version = head.map_or(1, |head| head.version + 1);
    catalog.plans.insert(name.clone(), Head { version, previous: head.map(|head| head.version) });
    let (text, number) = (name.as_str(), u64::from(version));
    let plan = Plan { plan: name.clone(), version, content };
    Ok(Edit {
        statements: vec![
            control::PUT_PLAN.with(vec![text.into(), number.into()]),
            control::ADD_PLAN_VERSION.with(vec![
                text.into(),
                number.into(),
                written(&plan.content).into(),
                asked.now.0.into(),
            ]),
        ],
        answer: Object::new().text("plan", text).number("version", number),
        record: Record { action: "plan.publish", subject: text.to_owned(), detail: written(&plan) },
        plan: Some(plan),
    })
}

/// Whether a plan grants and bounds only what the catalog defines.
fn sound(content: &PlanContent, catalog: &Catalog) -> Result<(), Failure> {
    for (name, value) in &content.features {
        let Some(definition) = catalog.features.get(name) else {
            return Err(Failure::at(format!("#/features/{name}"), format!("there is no feature {name}")));
        };
        if !definition.kind.accepts(value) {
            return Err(Failure::at(format!("#/features/{name}"), definition.kind.misfit(value)));
        }
    }
    for (name, limit) in &content.limits {
        if !catalog.meters.contains_key(&limit.meter) {
            return Err(Failure::at(format!("#/limits/{name}/meter"), format!("there is no meter {}", limit.meter)));
        }
        limit.amount.check().map_err(|detail| Failure::at(format!("#/limits/{name}"), detail))?;
    }
    Ok(())
}
