//! Changes of one tenant: its standing, its subscription, its exceptions, its API keys.
//!
//! Invariant: a change of a tenant moves the serials of its own document and of everyone's below it, in the same batch; so no
//! descendant goes on with what an ancestor no longer is. The text of an API key is in one answer, and nothing else.

use serde::Deserialize;

use super::{Asked, Record};
use crate::domain::api_key::{KeyRing, Mode};
use crate::domain::catalog::Catalog;
use crate::domain::decision::Code;
use crate::domain::feature::Override;
use crate::domain::id::{KeyId, TenantId};
use crate::domain::name::{FeatureName, LimitName, PlanName, Scope};
use crate::domain::tally::MINUTE_MS;
use crate::domain::tenant::{LimitOverride, Relation, Status, Subscription};
use crate::domain::time::UnixMillis;
use crate::wire::json::{Object, written};
use crate::wire::problem::{Failure, Fault};
use crate::wire::rows::ChainRow;
use crate::wire::sql::{Sql, Statement, shard};

/// The most API keys of one tenant that work at a time: its document is read on every cold request.
const KEYS: u64 = 100;
/// For how long a key that was taken back is listed, and refused as such; then it is one that nobody knows.
const REVOKED_MS: u64 = 90 * 24 * 3600 * 1000;

/// What a change of a tenant is decided from.
#[derive(Debug)]
pub struct Facts {
    /// Its row.
    pub own: ChainRow,
    /// What is sold.
    pub catalog: Catalog,
}

/// A change of a tenant.
#[derive(Debug)]
pub struct Edit {
    /// What was done.
    pub record: Record,
    /// What carries it out, behind the guard of the tenant's home.
    pub statements: Vec<Statement>,
    /// From where documents are to be published anew.
    pub root: TenantId,
    /// The status of the answer.
    pub status: u16,
    /// The answer, which is stored for the same request sent again.
    pub answer: Object,
    /// The text of a new API key: added to the answer, and never stored.
    pub api_key: Option<String>,
}

/// What decides about a change.
pub type Decide = fn(&Asked<'_>, &Facts) -> Result<Edit, Failure>;

impl Edit {
    fn of(facts: &Facts, action: &'static str, subject: &str, statements: Vec<Statement>, answer: Object) -> Self {
        let detail = answer.clone().end();
        Self {
            record: Record { action, subject: subject.to_owned(), detail },
            statements,
            root: facts.own.tenant_id,
            status: 200,
            answer,
            api_key: None,
        }
    }

    /// A change of one named thing of a tenant; `definition` is JSON.
    fn named(facts: &Facts, action: &'static str, name: &str, sql: Sql, definition: Option<String>) -> Self {
        let mut params = vec![facts.own.tenant_id.to_string().into(), name.into()];
        params.extend(definition.clone().map(Into::into));
        let definition = definition.unwrap_or_else(|| "null".to_owned());
        let answer = Object::new().text("name", name).json("definition", &definition);
        let edit = Self::of(facts, action, name, vec![sql.with(params)], answer);
        Self { record: Record { detail: definition, ..edit.record }, ..edit }
    }
}

/// Changes a tenant's standing.
///
/// # Errors
/// What is wrong with the request.
pub fn put_status(asked: &Asked<'_>, facts: &Facts) -> Result<Edit, Failure> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Standing {
        status: Status,
    }
    let Standing { status } = asked.read()?;
    let id = facts.own.tenant_id.to_string();
    let statements = vec![shard::SET_STATUS.with(vec![id.as_str().into(), status.name().into()])];
    let answer = Object::new().text("id", &id).text("status", status.name());
    Ok(Edit::of(facts, "tenant.status", &id, statements, answer))
}

/// Changes a tenant's hold on a plan, from now on.
///
/// # Errors
/// What is wrong with the request.
pub fn put_subscription(asked: &Asked<'_>, facts: &Facts) -> Result<Edit, Failure> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Wanted {
        plan: PlanName,
        #[serde(default)]
        version: Option<u32>,
    }
    let Wanted { plan, version } = asked.read()?;
    check_plan(&facts.catalog, &plan, version)?;
    // The anchor stays: changing the plan does not begin a new usage period, or quotas could be had twice.
    let held = facts.own.subscription().map_err(|_| Failure::new(Code::Internal))?;
    let anchor = held.map_or_else(|| whole_minute(asked.now), |held| held.anchor);
    let id = facts.own.tenant_id.to_string();
    let subscription = written(&Subscription { plan: plan.clone(), version, anchor });
    let statements = vec![
        shard::GUARD_VERSION.with(vec![id.as_str().into(), facts.own.version.into()]),
        shard::SET_SUBSCRIPTION.with(vec![id.as_str().into(), subscription.as_str().into()]),
    ];
    let answer = Object::new()
        .text("plan", plan.as_str())
        .maybe(version, |object, version| object.number("version", version.into()))
        .number("anchor", anchor.0);
    Ok(Edit::of(facts, "tenant.subscription", &id, statements, answer))
}

/// Whether a plan, and a version of it, is there to be held.
///
/// # Errors
/// Which of them is not.
pub fn check_plan(catalog: &Catalog, plan: &PlanName, version: Option<u32>) -> Result<(), Failure> {
    let Some(head) = catalog.plans.get(plan) else {
        return Err(Failure::at("#/plan", format!("there is no plan {plan}")));
    };
    if version.is_some_and(|version| version == 0 || version > head.version) {
        return Err(Failure::at("#/version", format!("plan {plan} has versions 1 to {}", head.version)));
    }
    Ok(())
}

/// Usage periods begin with a minute: leased use is counted by the minute, and no minute may belong to two periods.
#[must_use]
pub const fn whole_minute(at: UnixMillis) -> UnixMillis {
    UnixMillis(at.0 - at.0 % MINUTE_MS)
}

/// Gives a tenant its own value for a feature, with an end or without.
///
/// # Errors
/// What is wrong with the value.
pub fn put_override(asked: &Asked<'_>, facts: &Facts) -> Result<Edit, Failure> {
    let feature: FeatureName = asked.known("name")?;
    let set: Override = asked.read()?;
    let definition = facts.catalog.features.get(&feature);
    let definition =
        definition.ok_or_else(|| Failure::new(Code::NotFound).because(format!("there is no feature {feature}")))?;
    if !definition.kind.accepts(&set.value) {
        let detail = definition.kind.misfit(&set.value);
        return Err(Fault { detail, pointer: "#/value".into(), code: Code::WrongType }.into());
    }
    let sql = shard::PUT_FEATURE_OVERRIDE;
    Ok(Edit::named(facts, "override.put", feature.as_str(), sql, Some(written(&set))))
}

/// Takes a tenant's own value for a feature back.
///
/// # Errors
/// 404 for what is no feature's name.
pub fn delete_override(asked: &Asked<'_>, facts: &Facts) -> Result<Edit, Failure> {
    let feature: FeatureName = asked.known("name")?;
    Ok(Edit::named(facts, "override.delete", feature.as_str(), shard::DELETE_FEATURE_OVERRIDE, None))
}

/// Gives a tenant its own value for a limit of its plan.
///
/// # Errors
/// What is wrong with the value.
pub fn put_limit(asked: &Asked<'_>, facts: &Facts) -> Result<Edit, Failure> {
    let limit: LimitName = asked.known("name")?;
    let set: LimitOverride = asked.read()?;
    set.amount.check().map_err(|detail| Failure::at("#/amount", detail))?;
    Ok(Edit::named(facts, "limit.put", limit.as_str(), shard::PUT_LIMIT_OVERRIDE, Some(written(&set))))
}

/// Takes a tenant's own value for a limit back.
///
/// # Errors
/// 404 for what is no limit's name.
pub fn delete_limit(asked: &Asked<'_>, facts: &Facts) -> Result<Edit, Failure> {
    let limit: LimitName = asked.known("name")?;
    Ok(Edit::named(facts, "limit.delete", limit.as_str(), shard::DELETE_LIMIT_OVERRIDE, None))
}

/// Says how a tenant stands to a limit of its ancestors: share, cap or carve.
///
/// # Errors
/// What is wrong with the relation.
pub fn put_relation(asked: &Asked<'_>, facts: &Facts) -> Result<Edit, Failure> {
    let relation: Relation = asked.read()?;
    if let Relation::Cap(amount) | Relation::Carve(amount) = relation {
        amount.check().map_err(|detail| Failure::at("#", detail))?;
    }
    relate(asked, facts, Some(relation))
}

/// A tenant shares a limit of its ancestors again.
///
/// # Errors
/// 404 for what is no limit's name.
pub fn delete_relation(asked: &Asked<'_>, facts: &Facts) -> Result<Edit, Failure> {
    relate(asked, facts, None)
}

fn relate(asked: &Asked<'_>, facts: &Facts, relation: Option<Relation>) -> Result<Edit, Failure> {
    let limit: LimitName = asked.known("name")?;
    let Some(parent) = facts.own.parent_id else {
        return Err(Failure::new(Code::Conflict).because("this tenant has no parent whose limits it could stand to"));
    };
    let mut relations = facts.own.relations().map_err(|_| Failure::new(Code::Internal))?;
    let answer = Object::new().text("name", limit.as_str()).json("relation", &written(&relation));
    let name = limit.clone();
    match relation {
        Some(relation) => relations.insert(limit, relation),
        None => relations.remove(&limit),
    };
    let id = facts.own.tenant_id.to_string();
    let statements = vec![
        shard::GUARD_VERSION.with(vec![id.as_str().into(), facts.own.version.into()]),
        shard::SET_RELATIONS.with(vec![id.as_str().into(), written(&relations).into()]),
    ];
    // What a child carves is the less for its parent, and so for all of its siblings that share.
    Ok(Edit { root: parent, ..Edit::of(facts, "relation.put", name.as_str(), statements, answer) })
}

/// Makes an API key. Its text is in this answer and nowhere else, also not when the same request is sent again.
///
/// # Errors
/// What is wrong with the request.
pub fn create_key(asked: &Asked<'_>, facts: &Facts) -> Result<Edit, Failure> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Wanted {
        name: String,
        #[serde(default)]
        mode: Mode,
        #[serde(default)]
        scopes: Vec<Scope>,
        #[serde(default)]
        until: Option<UnixMillis>,
    }
    let wanted: Wanted = asked.read()?;
    if !wanted.scopes.is_empty() {
        return Err(Failure::at("#/scopes", "no route asks for a scope yet; a key may do what its tenant may"));
    }
    let minted = Minted::new(asked.keys, facts.own.tenant_id, wanted.mode, asked.random);
    let scopes = written(&wanted.scopes);
    let statements = minted.statements(&wanted.name, &scopes, wanted.until, asked.now);
    let id = minted.id.to_string();
    let answer = Object::new()
        .text("id", &id)
        .text("name", &wanted.name)
        .text("mode", wanted.mode.name())
        .json("scopes", &scopes)
        .json("until", &written(&wanted.until));
    let edit = Edit::of(facts, "key.create", &id, statements, answer);
    Ok(Edit { status: 201, api_key: Some(minted.text), ..edit })
}

/// Takes an API key back.
///
/// # Errors
/// 404 for what is no key's id.
pub fn revoke_key(asked: &Asked<'_>, facts: &Facts) -> Result<Edit, Failure> {
    let key: KeyId = asked.known("key")?;
    let (id, key) = (facts.own.tenant_id.to_string(), key.to_string());
    let statements = vec![
        shard::GUARD_KEY.with(vec![id.as_str().into(), key.as_str().into()]),
        shard::REVOKE_KEY.with(vec![id.as_str().into(), key.as_str().into(), asked.now.0.into()]),
        shard::FORGET_KEYS.with(vec![id.into(), asked.now.minus(REVOKED_MS).0.into()]),
    ];
    let answer = Object::new().text("name", &key).json("definition", "null");
    Ok(Edit::of(facts, "key.revoke", &key, statements, answer))
}

/// An API key that was just made.
pub struct Minted {
    /// Its public part.
    pub id: KeyId,
    /// Its text: to be shown once.
    pub text: String,
    tenant: TenantId,
    mode: Mode,
    hash: String,
}

impl Minted {
    /// A key of `tenant`.
    #[must_use]
    pub fn new(ring: &KeyRing, tenant: TenantId, mode: Mode, random: (u128, u128)) -> Self {
        #[expect(clippy::cast_possible_truncation, reason = "an id takes as many bits as it has")]
        let id = KeyId::new(random.0 as u64);
        let key = ring.mint(mode, tenant, id, random.1.to_be_bytes());
        Self { id, text: key.reveal(), tenant, mode, hash: key.hash().to_string() }
    }

    /// What stores it: of its text only the hash. `scopes` is JSON.
    #[must_use]
    pub fn statements(&self, name: &str, scopes: &str, until: Option<UnixMillis>, now: UnixMillis) -> Vec<Statement> {
        let tenant = self.tenant.to_string();
        vec![
            shard::GUARD_KEYS_BOUND.with(vec![tenant.as_str().into(), KEYS.into()]),
            shard::ADD_KEY.with(vec![
                tenant.into(),
                self.id.to_string().into(),
                self.hash.as_str().into(),
                self.mode.name().into(),
                name.into(),
                scopes.into(),
                until.map(|until| until.0).into(),
                now.0.into(),
            ]),
        ]
    }
}
