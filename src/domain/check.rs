//! Checks: questions to the gate from code that is not behind it. The same answers as the inline gate gives.
//!
//! Invariant: of several checks all are paid or none; a refusal spends nothing, and a peek neither spends nor stores.

use serde::Deserialize;

use super::api_key::Mode;
use super::catalog::{Catalog, Recording};
use super::decision::{self, Code, Fail};
use super::gate::limit_code;
use super::id::{KeyId, RequestId, TenantId};
use super::limit::{self, Admission, Call, OpId, Rule, Slot, Tag, Ticket, Verdict};
use super::name::{FeatureName, MeterName};
use super::outbox;
use super::resident::{Asked, Counted, Resident, Shown, Way};
use super::tally::{Label, MINUTE_MS};
use super::time::UnixMillis;

/// What a check counts under in reports, where a request has its route.
const ROUTE: &str = "/v1/check";

/// One check: a feature, a meter, or both.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Check {
    /// The feature that must be on.
    #[serde(default)]
    pub feature: Option<FeatureName>,
    /// The meter whose limits are to pay.
    #[serde(default)]
    pub meter: Option<MeterName>,
    /// How many units; 1 where nothing is said.
    #[serde(default = "one")]
    pub cost: u64,
}

/// The cost of a check that says none.
#[must_use]
pub const fn one() -> u64 {
    1
}

/// What was found about one check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Why it is refused; none where it is not.
    pub code: Option<Code>,
    /// Whether it passes all the same: its feature only observes, or fails open. It spends nothing then.
    pub observes: bool,
    /// After how long asking again may help, where a limit refused.
    pub retry_after_ms: Option<u64>,
    /// The limits that bound it.
    pub shown: Vec<Shown>,
    /// Whether live leases paid for it.
    pub paid: bool,
    slots: Vec<Slot>,
    fail: Fail,
}

impl Finding {
    /// Whether it passes.
    #[must_use]
    pub const fn is_allowed(&self) -> bool {
        self.code.is_none() || self.observes
    }

    fn refuse(&mut self, code: Code, retry_after_ms: Option<u64>) {
        if !self.observes {
            self.code = Some(code);
            self.retry_after_ms = retry_after_ms;
        }
    }
}

/// What came of checks that were made without asking anyone.
#[derive(Debug)]
pub struct Assessed {
    /// One for each check.
    pub findings: Vec<Finding>,
    /// What only the limiter can decide; then [`conclude`] has the last word.
    pub pending: Option<Pending>,
}

/// What a limit has left, as its owner said; none where it said nothing.
pub type Said<'a> = dyn Fn(&Rule) -> Option<u64> + 'a;

/// A TAKE that is to be sent.
#[derive(Debug)]
pub struct Pending {
    /// To whose limiter.
    pub tenant: TenantId,
    /// What to send.
    pub call: Call,
    /// What its answer is handed in with.
    pub ticket: Ticket,
    /// What takes the use back if it was recorded and then refused.
    pub reversals: Vec<outbox::Event>,
}

/// What is found about `checks` before any limit is asked, with what each of them would take.
fn find(
    resident: &mut Resident,
    catalog: &Catalog,
    mode: Mode,
    checks: &[Check],
    now: UnixMillis,
) -> (Vec<Way>, Vec<Finding>) {
    let mut ways: Vec<Way> = checks
        .iter()
        .map(|check| {
            let Check { feature, meter, cost } = check;
            let asked = Asked { mode, route: 0, feature: feature.as_ref(), meter: meter.as_ref(), cost: *cost };
            resident.assess(catalog, &asked, now)
        })
        .collect();
    let findings = checks
        .iter()
        .zip(&mut ways)
        .map(|(check, way)| {
            let unknown = check.meter.as_ref().filter(|meter| !catalog.meters.contains_key(*meter));
            let code = way.refusal.as_ref().map(|refusal| refusal.code).or(unknown.map(|_| Code::NotFound));
            let observes = unknown.is_none()
                && way.refusal.as_ref().is_some_and(|refusal| refusal.mode == decision::Mode::Observe);
            if observes {
                way.charges.clear();
                way.meter = None;
            }
            let slots = way.charges.iter().map(|charge| charge.slot).collect();
            let feature = check.feature.as_ref().and_then(|feature| catalog.features.get(feature));
            let fail = feature.map_or(Fail::Closed, |feature| feature.fail);
            Finding { code, observes, retry_after_ms: None, shown: way.shown.clone(), paid: false, slots, fail }
        })
        .collect();
    (ways, findings)
}

/// Looks what `checks` would come to, and spends nothing. What a limit has left is what its owner said, and otherwise what this
/// isolate heard last.
pub fn peek(
    resident: &mut Resident,
    catalog: &Catalog,
    mode: Mode,
    checks: &[Check],
    said: &Said<'_>,
    now: UnixMillis,
) -> Vec<Finding> {
    let (ways, mut findings) = find(resident, catalog, mode, checks, now);
    if findings.iter().all(Finding::is_allowed) {
        for charge in summed(&ways) {
            if let Some(code) = lacks(&resident.limits, &charge, said) {
                refuse(&mut findings, charge.slot, limit_code(code), None);
            }
        }
    }
    findings
}

/// What the limit at a slot has left.
#[must_use]
pub fn left(limits: &limit::Isolate, slot: Slot, said: &Said<'_>) -> u64 {
    limits.rule(slot).and_then(said).unwrap_or_else(|| limits.remaining(slot))
}

fn lacks(limits: &limit::Isolate, charge: &limit::Charge, said: &Said<'_>) -> Option<limit::Code> {
    let policy = limits.rule(charge.slot)?.policy;
    if charge.cost > policy.capacity() {
        return Some(limit::Code::CostTooLarge);
    }
    let exhausted = policy.ends().map_or(limit::Code::RateLimited, |_| limit::Code::QuotaExhausted);
    (left(limits, charge.slot, said) < charge.cost).then_some(exhausted)
}

/// Makes `checks` for the caller with this key. `id` is random.
pub fn assess(
    resident: &mut Resident,
    catalog: &Catalog,
    caller: (KeyId, Mode),
    checks: &[Check],
    id: OpId,
    now: UnixMillis,
) -> Assessed {
    let (key, mode) = caller;
    let (mut ways, mut findings) = find(resident, catalog, mode, checks, now);
    let charges = summed(&ways);
    let decided = Assessed { findings: Vec::new(), pending: None };
    if !findings.iter().all(Finding::is_allowed) || charges.is_empty() {
        return Assessed { findings, ..decided };
    }
    let is_exact = |way: &Way| way.meter.as_ref().is_some_and(|metering| metering.recording == Recording::Exact);
    let admission = if ways.iter().any(is_exact) { Admission::Ask } else { resident.limits.admit(&charges, now) };
    match admission {
        Admission::Admit => {
            for (way, finding) in ways.iter_mut().zip(&mut findings) {
                let Some(metering) = &way.meter else { continue };
                let cost = metering.cost;
                let paid = way.payer.map(|slot| (slot, resident.limits.payer(slot)));
                let label = way.label(Counted::Used, key, mode, &ROUTE, now);
                resident.limits.count(paid, label, cost, None, now);
                finding.paid = true;
            }
            Assessed { findings, ..decided }
        }
        Admission::Deny { slot, code, retry_after_ms } => {
            refuse(&mut findings, slot, limit_code(code), Some(retry_after_ms));
            Assessed { findings, ..decided }
        }
        Admission::Ask if resident.breaker.holds(now) => {
            undecided(&mut findings);
            Assessed { findings, ..decided }
        }
        Admission::Ask => {
            resident.breaker.asks(now);
            let events = ways.iter().enumerate().filter_map(|(at, way)| event(resident, way, id, at, caller, now));
            let events: Vec<_> = events.collect();
            let reversals = events.iter().map(outbox::Event::reversed).collect();
            let tenant = resident.tenant().tenant;
            let (call, ticket) = resident.limits.take(id, Some(tag(tenant, key, checks)), &charges, events, None, now);
            Assessed { findings, pending: Some(Pending { tenant, call, ticket, reversals }) }
        }
    }
}

/// Brings the findings up to what the limiter said; whether it said anything.
pub fn conclude(
    resident: &mut Resident,
    (ticket, reversals): (Ticket, Vec<outbox::Event>),
    reply: Option<&limit::Reply>,
    findings: &mut [Finding],
    now: UnixMillis,
) -> bool {
    let id = ticket.id();
    match resident.limits.verdict(ticket, reply, now) {
        Verdict::Admit => true,
        Verdict::Deny(denial) => {
            let limits = &resident.limits;
            let slots = findings.iter().flat_map(|finding| &finding.slots);
            let refuser = slots.copied().find(|slot| limits.key(*slot) == Some(&denial.key));
            let code = limit_code(denial.code);
            match refuser {
                Some(slot) => refuse(findings, slot, code, Some(denial.retry_after_ms)),
                None => findings.iter_mut().for_each(|finding| finding.refuse(code, Some(denial.retry_after_ms))),
            }
            true
        }
        Verdict::Unknown => {
            resident.limits.forsake(id, reversals, now);
            undecided(findings);
            false
        }
    }
}

fn refuse(findings: &mut [Finding], slot: Slot, code: Code, retry_after_ms: Option<u64>) {
    for finding in findings.iter_mut().filter(|finding| finding.slots.contains(&slot)) {
        finding.refuse(code, retry_after_ms);
    }
}

/// The limiter could not be asked, or did not answer.
fn undecided(findings: &mut [Finding]) {
    for finding in findings {
        finding.refuse(Code::LimiterUnavailable, None);
        finding.observes |= finding.fail == Fail::Open;
    }
}

/// Counts what was refused of `checks`, or let pass although it would have been: shown, not billed.
pub fn tell(
    resident: &mut Resident,
    (key, mode): (KeyId, Mode),
    checks: &[Check],
    findings: &[Finding],
    request: RequestId,
    now: UnixMillis,
) {
    for (Check { feature, meter, .. }, finding) in checks.iter().zip(findings) {
        let Some(code) = finding.code else { continue };
        let became = if finding.observes { "observed" } else { "refused" };
        let what =
            feature.as_ref().map(FeatureName::as_str).or(meter.as_ref().map(MeterName::as_str)).unwrap_or_default();
        let route = format!("{became} {code} {ROUTE} {what}");
        let label = Label { minute: now.0 / MINUTE_MS, meter: None, mode, key, route };
        resident.limits.count(None, &label.to_string().into(), 1, Some(request), now);
    }
}

/// What a large cost keeps its place under while it is refused: who asks for what.
fn tag(tenant: TenantId, key: KeyId, checks: &[Check]) -> Tag {
    let mut what = format!("{tenant} {key}");
    for Check { feature, meter, cost } in checks {
        let (feature, meter) = (feature.as_ref().map(FeatureName::as_str), meter.as_ref().map(MeterName::as_str));
        for word in [feature, meter, Some(&cost.to_string())] {
            what.push(' ');
            what.push_str(word.unwrap_or("-"));
        }
    }
    Tag::of(&what)
}

/// What all ways together take from each limit.
fn summed(ways: &[Way]) -> Vec<limit::Charge> {
    let mut charges: Vec<limit::Charge> = Vec::new();
    for charge in ways.iter().flat_map(|way| &way.charges) {
        match charges.iter_mut().find(|held| held.slot == charge.slot) {
            Some(held) => held.cost = held.cost.saturating_add(charge.cost),
            None => charges.push(*charge),
        }
    }
    charges
}

fn event(
    resident: &Resident,
    way: &Way,
    id: OpId,
    at: usize,
    (key, mode): (KeyId, Mode),
    now: UnixMillis,
) -> Option<outbox::Event> {
    let metering = way.meter.as_ref()?;
    Some(outbox::Event {
        source: "gate".to_owned(),
        id: format!("{id}-{at}"),
        meter: metering.meter.clone(),
        mode,
        quantity: metering.cost,
        reverses: None,
        at: now,
        period: resident.period(now),
        detail: serde_json::json!({ "key": key, "route": ROUTE }),
    })
}
