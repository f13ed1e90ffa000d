//! What a tenant's keys may ask: checks, features, usage. And what anyone may: health, and the pages of codes.
//!
//! Invariant: who calls is known before anything else is done; a stranger learns nothing about bodies, and none of theirs is
//! read.

use serde::Deserialize;

use super::api::{Answer, Call};
use super::d1::Database;
use super::documents::{self, Read};
use super::gate::{self, clock};
use super::isolate::{self, Isolate};
use super::object::{answered, ask_tenant};
use crate::domain::api_key::Mode;
use crate::domain::breaker::Breaker;
use crate::domain::catalog::Catalog;
use crate::domain::check::{self, Check, Finding, Pending};
use crate::domain::decision::{Code, Tier};
use crate::domain::document::DocumentKey;
use crate::domain::feature::{Entitlement, Source};
use crate::domain::gate::{Caller, Compiled, Refused, Request};
use crate::domain::id::{KeyId, TenantId};
use crate::domain::limit::Rule;
use crate::domain::name::{FeatureName, MeterName, ShardName};
use crate::domain::resident::Resident;
use crate::domain::time::UnixMillis;
use crate::portal;
use crate::wire::json::{self, List, Object, written};
use crate::wire::object::{AskTenant, Books, limit_name};
use crate::wire::problem::{Failure, Occurrence, Problem, Snapshot};
use crate::wire::sql::shard;

/// The largest body of a question.
const QUESTION: usize = 64 * 1024;
/// The most checks in one question.
const CHECKS: usize = 32;

/// Says that it is up, and what it holds. 200 whenever it runs; it asks nobody.
pub(crate) fn health(call: &Call) -> Result<Answer, Failure> {
    let health = isolate::with(|isolate| {
        let gate = &isolate.gate;
        let (tenants, bytes) = gate.occupancy();
        Object::new()
            .text("status", "ok")
            .text("version", env!("CARGO_PKG_VERSION"))
            .json(
                "catalog",
                &gate.catalog(call.now).map_or("null".to_owned(), |held| Compiled::serial(held).to_string()),
            )
            .number("tenants", tenants as u64)
            .number("bytes", bytes as u64)
            // All of wasm's memory: what is above, and everything else.
            .number("memory_bytes", core::arch::wasm32::memory_size::<0>() as u64 * 65_536)
            .number("hits", gate.hits)
            .number("misses", gate.misses)
            .end()
    });
    Ok(Answer::json(200, health.ok_or_else(|| Failure::new(Code::Unavailable))?))
}

/// What a code means and what to do: a page for people.
pub(crate) fn problem_page(call: &Call) -> Result<Answer, Failure> {
    let code: Code = call.param("code").parse().map_err(|_| Failure::new(Code::NotFound))?;
    Ok(Answer::page(portal::problem_page(code)))
}

/// What a handler does with a caller that is known.
struct Known<'g> {
    resident: &'g mut Resident,
    catalog: &'g Catalog,
    key: KeyId,
    mode: Mode,
    now: UnixMillis,
}

/// What comes of finding out who calls, as far as memory goes.
enum Found {
    Answered(Answer),
    Missing(Vec<DocumentKey>),
}

/// Finds out who calls, reading what is needed, and lets `then` answer.
async fn known(call: &Call, then: &mut dyn FnMut(Known<'_>) -> Result<Answer, Failure>) -> Result<Answer, Failure> {
    let header = |name| call.header(name).unwrap_or_default();
    let (api_key, authorization) = (header("x-api-key"), header("authorization"));
    for _ in 0..6 {
        let now = clock();
        let request = Request {
            text: "",
            method: "",
            url: "",
            api_key: &api_key,
            authorization: &authorization,
            waits: true,
            preflight: false,
            now,
        };
        let found: Option<Result<Found, Failure>> =
            isolate::with(|isolate| match isolate.gate.caller(&request, &isolate.config.api_keys) {
                Caller::Known { resident, catalog, key, mode } => {
                    let tenant = resident.tenant().tenant;
                    let answer = then(Known { resident, catalog, key, mode, now })?;
                    Ok(Found::Answered(answer.behind(isolate.gate.behind(tenant, now))))
                }
                Caller::Refused(refused) => Ok(Found::Answered(refusal(call, &refused))),
                Caller::Missing(keys) => Ok(Found::Missing(keys)),
            });
        match found.ok_or_else(|| Failure::new(Code::Unavailable))?? {
            Found::Answered(answer) => return Ok(answer),
            Found::Missing(keys) => read(call, keys, now).await?,
        }
    }
    Err(Failure::new(Code::SnapshotUnavailable))
}

/// Reads what is missing to know a caller.
async fn read(call: &Call, missing: Vec<DocumentKey>, now: UnixMillis) -> Result<(), Failure> {
    for key in missing {
        match (documents::read(&call.env, &call.config, &key, now).await, &key) {
            (Read::Here, _) => {}
            (Read::Absent, DocumentKey::Tenant(tenant)) => {
                isolate::with(|isolate| isolate.gate.note_absent(*tenant, now));
            }
            (Read::Absent | Read::Failed(_), DocumentKey::Plan(plan, version)) => {
                if let Some(previous) = isolate::with(|isolate| isolate.gate.previous(plan, *version)).flatten() {
                    documents::read(&call.env, &call.config, &previous, now).await;
                }
                if isolate::with(|isolate| isolate.gate.stand_in(plan, *version)) != Some(true) {
                    return Err(Failure::new(Code::SnapshotUnavailable));
                }
            }
            (Read::Absent, DocumentKey::Catalog) => {
                isolate::with(|isolate| isolate.gate.take_empty_catalog(now));
            }
            (Read::Failed(code), _) => return Err(Failure::new(code)),
        }
    }
    Ok(())
}

fn refusal(call: &Call, refused: &Refused<'_>) -> Answer {
    let plan = refused.resident.and_then(Resident::plan);
    let problem = Problem {
        tenant: refused.resident.map(|resident| resident.tenant().tenant),
        current_plan: plan.map(|plan| plan.content.title.as_str()),
        occurrence: Occurrence {
            snapshot: refused.resident.map(|resident| Snapshot::of(resident, call.now)),
            tier: Some(refused.tier),
            request_id: Some(call.id),
        },
        ..Problem::new(&call.config.voice.base_url, refused.code)
    };
    Answer::problem(problem.status, problem.to_json()).behind(refused.behind)
}

/// What every answer about a caller ends with.
fn signed(object: Object, call: &Call, resident: &Resident, tier: Tier, now: UnixMillis) -> Object {
    object
        .shown("tenant", &resident.tenant().tenant)
        .object("snapshot", |object| Snapshot::of(resident, now).write(object))
        .text("tier", tier.name())
        .shown("request_id", &call.id)
}

/// A feature, as the API shows it.
fn shown(object: Object, feature: &FeatureName, entitlement: &Entitlement<'_>) -> Object {
    let source = match entitlement.source {
        Source::Override { tenant, .. } => Some(tenant),
        _ => None,
    };
    object
        .text("feature", feature.as_str())
        .flag("enabled", entitlement.enabled)
        .json("value", &written(&entitlement.value.as_json()))
        .text("source", entitlement.source.name())
        .maybe(source, |object, tenant| object.shown("source_tenant", &tenant))
        .maybe(entitlement.until, |object, until| object.number("until", until.0))
}

/// Every feature of the caller, with its source.
pub(crate) async fn features(call: Call) -> Result<Answer, Failure> {
    known(&call, &mut |Known { resident, catalog, now, .. }| {
        let features = catalog
            .features
            .keys()
            .map(|name| shown(Object::new(), name, &resident.entitlement(catalog, name.as_str(), now)).end());
        let plan = resident.plan().map(|plan| plan.content.title.as_str());
        let object = Object::new()
            .json("features", &features.collect::<List>().end())
            .maybe(plan, |object, title| object.text("plan", title));
        Ok(Answer::json(200, signed(object, &call, resident, Tier::Isolate, now).end()))
    })
    .await
}

/// One feature of the caller.
pub(crate) async fn feature(call: Call) -> Result<Answer, Failure> {
    known(&call, &mut |Known { resident, catalog, now, .. }| {
        let key = call.param("key");
        let name = key.parse::<FeatureName>().ok().filter(|name| catalog.features.contains_key(name));
        let name = name.ok_or_else(|| Failure::new(Code::NotFound).because(format!("there is no feature {key}")))?;
        let object = shown(Object::new(), &name, &resident.entitlement(catalog, name.as_str(), now));
        Ok(Answer::json(200, signed(object, &call, resident, Tier::Isolate, now).end()))
    })
    .await
}

/// A question: one check, or several that are all paid or none.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Question {
    #[serde(default)]
    checks: Option<Vec<Check>>,
    #[serde(default)]
    feature: Option<FeatureName>,
    #[serde(default)]
    meter: Option<MeterName>,
    #[serde(default, deserialize_with = "present")]
    cost: Option<u64>,
    /// Spend nothing, only say what would be.
    #[serde(default)]
    peek: bool,
}

/// A member that is there: `null` is none of its values.
fn present<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    u64::deserialize(deserializer).map(Some)
}

/// The checks of a question, and whether it is a peek.
fn question(bytes: &[u8]) -> Result<(Vec<Check>, bool), Failure> {
    let Question { checks, feature, meter, cost, peek } = json::read(bytes, QUESTION)?;
    let single = feature.is_some() || meter.is_some() || cost.is_some();
    let is_list = checks.is_some();
    let checks = match checks {
        Some(_) if single => return Err(Failure::at("#", "one check or `checks`, not both")),
        Some(checks) => checks,
        None => vec![Check { feature, meter, cost: cost.unwrap_or(1) }],
    };
    if checks.is_empty() || checks.len() > CHECKS {
        return Err(Failure::at("#/checks", format!("1 to {CHECKS} checks")));
    }
    if let Some(at) = checks.iter().position(|check| check.feature.is_none() && check.meter.is_none()) {
        let place = if is_list { format!("#/checks/{at}") } else { "#".to_owned() };
        return Err(Failure::at(place, "a check names a feature, a meter, or both"));
    }
    Ok((checks, peek))
}

/// 1. 401 unless the key is good. 2. 400, 413 or 422 unless the body is sound. 3. 200, whatever is decided: `allowed` says it.
pub(crate) async fn check(call: Call) -> Result<Answer, Failure> {
    let mut stranger = true;
    let refusal = known(&call, &mut |_| {
        stranger = false;
        Ok(Answer::json(200, String::new()))
    })
    .await?;
    if stranger {
        return Ok(refusal);
    }
    let (checks, peeks) = question(&call.body(QUESTION).await?)?;
    if peeks {
        return peek(&call, &checks).await;
    }
    let (mut tries, mut most) = (0, 0);
    loop {
        let id = isolate::with(Isolate::op_id).ok_or_else(|| Failure::new(Code::Unavailable))?;
        let mut pending = None;
        let answer = known(&call, &mut |Known { resident, catalog, key, mode, now }| {
            if most == 0 {
                most = gate::tries(&resident.limits);
            }
            let assessed = check::assess(resident, catalog, (key, mode), &checks, id, now);
            let answer = answer(&call, (resident, catalog, mode), &checks, &assessed.findings, &|_| None, None, now);
            if assessed.pending.is_none() {
                check::tell(resident, (key, mode), &checks, &assessed.findings, call.id, now);
            }
            pending = assessed.pending.map(|pending| (pending, assessed.findings));
            Ok(answer)
        })
        .await?;
        let Some((Pending { tenant, call: asked, ticket, reversals }, mut findings)) = pending else {
            return Ok(answer);
        };
        // Only the limiter can tell: its answer is awaited, and the findings are brought up to it.
        let said = gate::insist(&call.env, &call.config, tenant, asked).await;
        let now = clock();
        let reply = said.and_then(Result::ok).map(|said| gate::learn(&call.config, tenant, said, now));
        let mut ticket = Some((ticket, reversals));
        tries += 1;
        let mut was_said = true;
        let answer = known(&call, &mut |Known { resident, catalog, key, mode, now }| {
            if let Some(ticket) = ticket.take() {
                was_said = check::conclude(resident, ticket, reply.as_ref(), &mut findings, now);
                if was_said || tries >= most {
                    check::tell(resident, (key, mode), &checks, &findings, call.id, now);
                }
            }
            let tier = if was_said { Tier::Limiter } else { Tier::Isolate };
            Ok(self::answer(&call, (resident, catalog, mode), &checks, &findings, &|_| None, Some(tier), now))
        })
        .await?;
        if was_said || tries >= most {
            if reply.is_none() {
                gate::spare(tenant, Breaker::unanswered);
            }
            return Ok(answer);
        }
    }
}

/// What checks would come to. Nothing is spent: each owner of their limits is asked what is left, and where one cannot be
/// reached, that is what this isolate heard last.
async fn peek(call: &Call, checks: &[Check]) -> Result<Answer, Failure> {
    type Left = Vec<(String, u64)>;
    let mut owners: Vec<(TenantId, Option<Left>)> = Vec::new();
    loop {
        let mut unasked = None;
        let answer = known(call, &mut |Known { resident, catalog, mode, now, .. }| {
            let owner = |tenant| owners.iter().find(|(owner, _)| *owner == tenant);
            let said = |rule: &Rule| {
                let (_, left) = owner(rule.key.tenant)?;
                let name = limit_name(&rule.key);
                let left = left.as_ref()?.iter().find(|(limit, _)| *limit == name);
                // Nobody has used of what its owner does not know.
                Some(left.map_or(rule.policy.capacity(), |(_, left)| *left))
            };
            let findings = check::peek(resident, catalog, mode, checks, &said, now);
            let mut limits = findings.iter().flat_map(|finding| &finding.shown);
            unasked = limits.find(|limit| owner(limit.tenant).is_none()).map(|limit| limit.tenant);
            let is_said = !owners.is_empty() && owners.iter().all(|(_, left)| left.is_some());
            let tier = if is_said { Tier::Limiter } else { Tier::Isolate };
            Ok(answer(call, (resident, catalog, mode), checks, &findings, &said, Some(tier), now))
        })
        .await?;
        let Some(owner) = unasked else { return Ok(answer) };
        let left = ask_tenant(&call.env, &call.config, owner, AskTenant::Left).await;
        owners.push((owner, left.and_then(|left| answered(&left)).ok()));
    }
}

fn answer(
    call: &Call,
    (resident, catalog, mode): (&Resident, &Catalog, Mode),
    checks: &[Check],
    findings: &[Finding],
    said: &check::Said<'_>,
    tier: Option<Tier>,
    now: UnixMillis,
) -> Answer {
    let upgrade = resident.plan().and_then(|plan| plan.content.upgrade_url.as_deref());
    let checked = checks.iter().zip(findings).map(|(check, finding)| {
        let limits = finding.shown.iter().map(|shown| {
            Object::new()
                .text("name", shown.name.as_str())
                .shown("tenant", &shown.tenant)
                .number("level", shown.level as u64)
                .number("quota", shown.quota)
                .number("remaining", check::left(&resident.limits, shown.slot, said))
                .maybe(shown.ends, |object, ends| object.number("resets_at", ends.0))
                .end()
        });
        let limits = Some(limits.collect::<List>()).filter(|_| !finding.shown.is_empty());
        Object::new()
            .flag("allowed", finding.is_allowed())
            .maybe(finding.code, |object, code| {
                object.text(if finding.observes { "observed" } else { "code" }, code.name())
            })
            .maybe(check.feature.as_ref(), |object, name| {
                let entitlement = resident.entitlement(catalog, name.as_str(), now);
                object.object("feature", |object| shown(object, name, &entitlement))
            })
            .maybe(limits, |object, limits| object.json("limits", &limits.end()))
            .maybe(finding.retry_after_ms, |object, ms| object.number("retry_after_ms", ms))
            .maybe(finding.code.and(upgrade), |object, url| object.text("upgrade_url", url))
            .end()
    });
    let paid = if findings.iter().any(|finding| finding.paid) { Tier::Lease } else { Tier::Isolate };
    let object = Object::new()
        .flag("allowed", findings.iter().all(Finding::is_allowed))
        .json("checks", &checked.collect::<List>().end())
        .text("mode", mode.name());
    Answer::json(200, signed(object, call, resident, tier.unwrap_or(paid), now).end())
}

/// What the caller has used: from the ledger, and what is still on its way there.
pub(crate) async fn usage(call: Call) -> Result<Answer, Failure> {
    let mut caller = None;
    let refusal = known(&call, &mut |Known { resident, now, .. }| {
        let tenant = resident.tenant();
        caller = Some((tenant.tenant, tenant.shard.clone(), resident.period(now)));
        Ok(Answer::json(200, String::new()))
    })
    .await?;
    match caller {
        Some((tenant, shard, period)) => used(&call, tenant, &shard, period).await,
        None => Ok(refusal),
    }
}

/// What a tenant has used since `period`.
pub(crate) async fn used(
    call: &Call,
    tenant: TenantId,
    shard: &ShardName,
    period: UnixMillis,
) -> Result<Answer, Failure> {
    let database = Database::shard(&call.env, shard)?;
    let totals = database.rows(shard::TOTALS.with(vec![tenant.to_string().into(), period.0.into()])).await?;
    let books = ask_tenant(&call.env, &call.config, tenant, AskTenant::Books).await;
    let books: Books = books
        .and_then(|books| answered(&books))
        .map_err(|error| Failure::new(Code::Unavailable).because(error.to_string()))?;
    let by_limit = |units: &[(String, u64)]| {
        let items = units.iter().map(|(limit, units)| Object::new().text("limit", limit).number("units", *units).end());
        items.collect::<List>().end()
    };
    let body = Object::new()
        .shown("tenant", &tenant)
        .number("period_start", period.0)
        .json("totals", &totals.iter().map(json::Row::to_json).collect::<List>().end())
        // Events that are durable and not in the ledger yet.
        .number("pending", books.outbox)
        // Events that the ledger will not take, or holds otherwise: for a person to look at.
        .number("quarantine", books.quarantine)
        // Units that leases hold now, and those of expired leases that nobody reported: shown, never billed.
        .json("leased", &by_limit(&books.leased))
        .json("gap", &by_limit(&books.gap))
        // What was refused, or let pass although it would have been, of the last week the newest fifty.
        .json("not_served", &books.traffic)
        .shown("request_id", &call.id);
    Ok(Answer::json(200, body.end()))
}
