//! What one isolate holds for one tenant, and the warm path: a request that a live lease pays for is decided here.
//!
//! Invariant: of a lease at most its tokens are spent, none after its deadline, and none that was given back. The deadline
//! runs from the first send of the ask, which precedes the lease's start at the limiter.

use std::sync::Arc;

use super::message::{
    Ask, Call, Code, Cost, Denial, Grant, Incarnation, LeaseId, Line, Op, OpId, Outcome, Reply, Report, Reserve, Tag,
    Take, Usage,
};
use super::policy::{LimitKey, Recording, Rev, Rule};
use super::renewal::Renewal;
use super::{GRACE_MS, MEMO_MS, RETRY_MS, TTL_MS, WAIT_MS};
use crate::domain::id::RequestId;
use crate::domain::outbox::Event;
use crate::domain::time::UnixMillis;

/// How long before its end a lease is renewed, or what is left of it given back.
const LAST_MS: u64 = 1_000;
/// How long a count waits at most to be reported, if no renewal takes it along.
const REPORT_MS: u64 = TTL_MS;
/// Counts that wait to be reported, at most; what is beyond is never billed, and shows as a gap.
const LINES: usize = 1_024;

/// One limit, as this isolate numbers it: resolved once for each version of the tenant's document.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot(usize);

/// A cost of one limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Charge {
    /// The limit.
    pub slot: Slot,
    /// How much.
    pub cost: u64,
}

/// What an isolate can say without asking.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// Spent.
    Admit,
    /// Refused not long ago, and nothing has changed that is known here.
    Deny {
        /// By which limit.
        slot: Slot,
        /// Why.
        code: Code,
        /// When to ask again.
        retry_after_ms: u64,
    },
    /// Only the limiter can tell: send [`Isolate::take`].
    Ask,
}

/// A TAKE under way. It is good for one verdict; a clone is the same one, for a model that forks.
#[derive(Clone, Debug, Hash)]
#[must_use]
pub struct Ticket {
    id: OpId,
    sent: UnixMillis,
    costs: Vec<(Slot, u64)>,
}

impl Ticket {
    /// The op that it is good for.
    #[must_use]
    pub const fn id(&self) -> OpId {
        self.id
    }
}

/// What came of a TAKE.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Spent, at the limiter.
    Admit,
    /// Refused.
    Deny(Denial),
    /// No answer in time, or none that may still be acted on: the fail mode decides.
    Unknown,
}

/// What this isolate may spend of one tenant's limits, and has to tell its limiter.
#[derive(Clone, Debug, Hash)]
pub struct Isolate {
    me: Incarnation,
    rev: Rev,
    last_seq: u64,
    accounts: Vec<Account>,
    due: bool,
    counts: Vec<Count>,
    /// When the oldest of `counts` was counted.
    counted_at: UnixMillis,
    reporting: Option<Reporting>,
    last_usage: u64,
    undoing: Vec<Undoing>,
    /// Whether the limiter has ever answered.
    heard: bool,
}

/// An op that nobody acted on, to be undone.
#[derive(Clone, Debug, Hash)]
struct Undoing {
    id: OpId,
    reversals: Vec<Event>,
    since: UnixMillis,
    last_try: UnixMillis,
}

/// Counts that were sent, and not acknowledged yet.
#[derive(Clone, Debug, Hash)]
struct Reporting {
    number: u64,
    counts: Vec<Count>,
    last_try: UnixMillis,
}

#[derive(Clone, Debug, Hash)]
struct Account {
    rule: Rule,
    /// Leases that may be spent, the oldest first; rarely more than two.
    live: Vec<Held>,
    /// Leases that have ended here and not yet at the limiter.
    ended: Vec<Held>,
    renewal: Renewal,
    remaining: u64,
    /// When to renew even though enough is left, and what is no longer enough.
    renew_at: UnixMillis,
    low_water: u64,
    /// Which lease paid last.
    payer: LeaseId,
}

#[derive(Clone, Copy, Debug, Hash)]
struct Held {
    lease: LeaseId,
    tokens: u64,
    left: u64,
    returned: u64,
    deadline: UnixMillis,
    /// When the limiter was last told.
    told: UnixMillis,
}

#[derive(Clone, Debug, Hash)]
struct Count {
    paid: Option<(Slot, LeaseId)>,
    label: Arc<str>,
    units: u64,
    last: Option<RequestId>,
}

impl Isolate {
    /// An isolate that holds nothing. `me` is random.
    #[must_use]
    pub const fn new(me: Incarnation) -> Self {
        Self {
            me,
            rev: Rev { catalog: 0, plan: 0, tenant: 0 },
            last_seq: 0,
            accounts: Vec::new(),
            due: false,
            counts: Vec::new(),
            counted_at: UnixMillis(0),
            reporting: None,
            last_usage: 0,
            undoing: Vec::new(),
            heard: false,
        }
    }

    /// Notes which document of its tenant the isolate has read, so that its limiter can tell it of a newer one.
    pub fn has_read(&mut self, serial: u64) {
        self.rev.tenant = self.rev.tenant.max(serial);
    }

    /// The slot of a limit, with what the newest documents say of it.
    pub fn resolve(&mut self, rule: &Rule) -> Slot {
        self.rev = if rule.above == 0 { self.rev.with(rule.rev) } else { self.rev };
        if let Some(at) = self.accounts.iter().position(|account| account.rule.key == rule.key) {
            if let Some(account) = self.accounts.get_mut(at)
                && !account.rule.rev.is_newer_than(rule.rev)
            {
                account.rule = rule.clone();
            }
            return Slot(at);
        }
        self.accounts.push(Account {
            rule: rule.clone(),
            live: Vec::new(),
            ended: Vec::new(),
            renewal: Renewal::default(),
            remaining: rule.policy.capacity(),
            renew_at: UnixMillis(u64::MAX),
            low_water: 0,
            payer: LeaseId(0),
        });
        Slot(self.accounts.len() - 1)
    }

    /// Decides, without I/O: spends all of `charges`, or none.
    #[inline]
    pub fn admit(&mut self, charges: &[Charge], now: UnixMillis) -> Admission {
        for (place, charge) in charges.iter().enumerate() {
            let covered = self.accounts.get(charge.slot.0).is_some_and(|account| account.covers(charge.cost, now));
            let twice = charges.iter().take(place).any(|other| other.slot == charge.slot);
            if !covered || twice {
                return self.uncovered(charges, now);
            }
        }
        for charge in charges {
            if let Some(account) = self.accounts.get_mut(charge.slot.0) {
                self.due |= account.spend(charge.cost, now);
            }
        }
        Admission::Admit
    }

    #[cold]
    fn uncovered(&mut self, charges: &[Charge], now: UnixMillis) -> Admission {
        let mut refused = None;
        for charge in charges {
            let Some(account) = self.accounts.get_mut(charge.slot.0) else {
                continue;
            };
            if charge.cost > account.rule.policy.capacity() {
                return Admission::Deny { slot: charge.slot, code: Code::CostTooLarge, retry_after_ms: 0 };
            }
            // No limit refuses what costs nothing.
            if charge.cost == 0 || account.covers(charge.cost, now) {
                continue;
            }
            if let Some(retry_after_ms) = account.renewal.refuses(charge.cost, now) {
                account.renewal.note(charge.cost);
                // Behind most refusals there is nothing to send: a flood of them must cost no more than it has to.
                self.due |= now >= account.renewal.asks_from();
                let code = account.exhausted();
                refused = refused.or(Some(Admission::Deny { slot: charge.slot, code, retry_after_ms }));
            }
        }
        // What one limit refuses, the others need not provide for: it would be lent to no purpose, and lost to others.
        if refused.is_none() {
            for charge in charges {
                if let Some(account) = self.accounts.get_mut(charge.slot.0) {
                    account.renewal.note(charge.cost);
                }
            }
        }
        refused.unwrap_or(Admission::Ask)
    }

    /// Which lease of `slot` paid for the admission just made: a RECORD or a count names it.
    #[must_use]
    pub fn payer(&self, slot: Slot) -> LeaseId {
        self.accounts.get(slot.0).map_or(LeaseId(0), |account| account.payer)
    }

    /// The limit behind a slot.
    #[must_use]
    pub fn rule(&self, slot: Slot) -> Option<&Rule> {
        self.accounts.get(slot.0).map(|account| &account.rule)
    }

    /// What the limiter last said it had left: for the `RateLimit` header.
    #[must_use]
    pub fn remaining(&self, slot: Slot) -> u64 {
        self.accounts.get(slot.0).map_or(0, |account| account.remaining)
    }

    /// Whether [`Self::renew`] may have something to send behind this reply.
    #[must_use]
    pub const fn is_due(&self) -> bool {
        self.due
    }

    /// When to call [`Self::renew`] though no request comes: a quiet isolate gives back what it will not spend, and tells what
    /// it has counted.
    #[must_use]
    pub fn wakes_at(&self) -> Option<UnixMillis> {
        let leases = self.accounts.iter().filter_map(Account::wakes_at);
        let undoing = self.undoing.iter().map(|undoing| undoing.last_try.plus(RETRY_MS));
        leases.chain(self.reports_at()).chain(undoing).min()
    }

    /// When to report what was counted, or to report it again.
    fn reports_at(&self) -> Option<UnixMillis> {
        match &self.reporting {
            Some(reporting) => Some(reporting.last_try.plus(RETRY_MS)),
            None if self.counts.len() > LINES / 2 => Some(self.counted_at),
            None => (!self.counts.is_empty()).then(|| self.counted_at.plus(REPORT_MS)),
        }
    }

    /// What to send behind a reply, if anything: renewals that are due, and what became of earlier leases.
    pub fn renew(&mut self, now: UnixMillis) -> Option<Call> {
        self.due = false;
        let mut call = self.new_call();
        let mut is_due = self.reports_at().is_some_and(|at| at <= now);
        for at in 0..self.accounts.len() {
            let asked = self.ask_if_due(at, now);
            is_due |=
                asked.is_some() || self.accounts.get(at).and_then(Account::gives_back_at).is_some_and(|at| at <= now);
            self.add(&mut call, at, asked, now);
        }
        if !is_due {
            return None;
        }
        self.add_usage(&mut call, now);
        Some(call)
    }

    /// A TAKE or RESERVE of `charges`, with whatever is due beside it. Send it again under the same id when no answer comes; the
    /// COMMIT or VOID of a RESERVE is [`Self::end`].
    pub fn take(
        &mut self,
        id: OpId,
        tag: Option<Tag>,
        charges: &[Charge],
        events: Vec<Event>,
        reserve: Option<Reserve>,
        now: UnixMillis,
    ) -> (Call, Ticket) {
        let (mut call, costs) = self.call_about(charges, now);
        call.op = Some(Op::Take(Take { id, tag, costs, events, reserve }));
        (call, Ticket { id, sent: now, costs: charges.iter().map(|charge| (charge.slot, charge.cost)).collect() })
    }

    /// A COMMIT or VOID of a reservation.
    #[must_use]
    pub fn end(&self, id: OpId, commit: bool) -> Call {
        let op = if commit { Op::Commit { id } } else { Op::Void { id, reversals: Vec::new() } };
        Call { op: Some(op), ..self.new_call() }
    }

    /// Nobody acted on this op, so it is to be undone if the limiter did it: [`Self::undo`] says when and how. `reversals` are
    /// recorded if its own events were.
    pub fn forsake(&mut self, id: OpId, reversals: Vec<Event>, now: UnixMillis) {
        self.undoing.push(Undoing { id, reversals, since: now, last_try: UnixMillis(0) });
        self.due = true;
    }

    /// The next VOID to send, if one is due. The limiter remembers an op for [`MEMO_MS`]; then there is nothing to undo.
    pub fn undo(&mut self, now: UnixMillis) -> Option<Call> {
        self.undoing.retain(|undoing| now.since(undoing.since) < MEMO_MS);
        let undoing = self.undoing.iter_mut().find(|undoing| undoing.last_try.plus(RETRY_MS) <= now)?;
        undoing.last_try = now;
        let op = Op::Void { id: undoing.id, reversals: undoing.reversals.clone() };
        Some(Call { op: Some(op), ..self.new_call() })
    }

    /// Whether the limiter has ever answered: an object that was asleep takes a while to wake.
    #[must_use]
    pub const fn has_heard(&self) -> bool {
        self.heard
    }

    /// A RECORD of an event that the lease `payer` of `charge` paid for.
    #[must_use]
    pub fn record(&self, id: OpId, charge: Charge, lease: LeaseId, event: Event) -> Call {
        let mut call = self.new_call();
        if let Some(account) = self.accounts.get(charge.slot.0) {
            call.rules.push(account.rule.clone());
        }
        Call { op: Some(Op::Record { id, rule: 0, lease, cost: charge.cost, event }), ..call }
    }

    /// Counts `units` of a leased meter under `label`, to be reported with the next renewal. `paid` names the limit and the
    /// lease to bill; without it the count is only shown, with the `last` request that it counts.
    pub fn count(
        &mut self,
        paid: Option<(Slot, LeaseId)>,
        label: &Arc<str>,
        units: u64,
        last: Option<RequestId>,
        now: UnixMillis,
    ) {
        // Most often it is the very same label.
        let is_same = |other: &Arc<str>| Arc::ptr_eq(other, label) || other == label;
        if let Some(count) = self.counts.iter_mut().find(|count| count.paid == paid && is_same(&count.label)) {
            count.units = count.units.saturating_add(units);
            count.last = last;
            return;
        }
        if self.counts.len() < LINES {
            self.counts.push(Count { paid, label: Arc::clone(label), units, last });
        }
        if self.counts.len() == 1 {
            // Somebody has to stay to report it.
            self.counted_at = now;
            self.due = true;
        }
        self.due |= self.counts.len() > LINES / 2;
    }

    /// Takes in what the limiter answered to any call.
    pub fn answered(&mut self, reply: &Reply, now: UnixMillis) {
        self.heard = true;
        if let Some((id, _)) = &reply.outcome {
            self.undoing.retain(|undoing| undoing.id != *id || undoing.last_try == UnixMillis(0));
        }
        for account in &mut self.accounts {
            account.live.retain(|held| !reply.settled.contains(&held.lease));
            account.ended.retain(|held| !reply.settled.contains(&held.lease));
        }
        for grant in &reply.grants {
            for account in &mut self.accounts {
                if let Some(sent) = account.renewal.answered(grant, now) {
                    account.granted(grant, sent, now);
                    // Somebody has to stay to give back what will not be spent.
                    self.due |= grant.tokens > 0;
                }
            }
        }
        if self.reporting.as_ref().is_some_and(|sent| reply.usage.is_some_and(|safe| safe >= sent.number)) {
            self.reporting = None;
        }
    }

    /// What came of a TAKE or RESERVE, from its answer if there is one. An ADMIT is acted on once, and only within
    /// [`WAIT_MS`] of the first send: later its tokens may have been minted again.
    #[expect(clippy::needless_pass_by_value, reason = "a ticket is good for one verdict")]
    pub fn verdict(&mut self, ticket: Ticket, reply: Option<&Reply>, now: UnixMillis) -> Verdict {
        let reply = reply.filter(|reply| reply.outcome.as_ref().is_some_and(|outcome| outcome.0 == ticket.id));
        for ((slot, _), remaining) in ticket.costs.iter().zip(reply.iter().flat_map(|reply| &reply.remaining)) {
            if let Some(account) = self.accounts.get_mut(slot.0) {
                account.remaining = *remaining;
            }
        }
        match reply.and_then(|reply| reply.outcome.as_ref()).map(|outcome| &outcome.1) {
            Some(Outcome::Admit) if now.since(ticket.sent) <= WAIT_MS => Verdict::Admit,
            Some(Outcome::Deny(denial)) if denial.code != Code::Expired && denial.code != Code::UnknownLimit => {
                for (slot, cost) in &ticket.costs {
                    let Some(account) = self.accounts.get_mut(slot.0) else { continue };
                    if account.rule.key != denial.key {
                        // What one limit refuses, the others need not provide for.
                        account.renewal.forget(*cost);
                    } else if denial.code == Code::RateLimited || denial.code == Code::QuotaExhausted {
                        account.renewal.refused(*cost, denial.retry_after_ms, now);
                    }
                }
                Verdict::Deny(denial.clone())
            }
            // So it is where the window ended, or the rule did, before the limiter heard of it.
            Some(Outcome::Admit | Outcome::Done | Outcome::Gone | Outcome::Deny(_)) | None => Verdict::Unknown,
        }
    }

    const fn new_call(&self) -> Call {
        Call {
            from: self.me,
            depth: 0,
            rev: self.rev,
            rules: Vec::new(),
            reports: Vec::new(),
            asks: Vec::new(),
            op: None,
            usage: None,
        }
    }

    /// A call about `charges`, with the asks and reports that are due on the way.
    fn call_about(&mut self, charges: &[Charge], now: UnixMillis) -> (Call, Vec<Cost>) {
        self.due = false;
        let mut call = self.new_call();
        let mut costs = Vec::with_capacity(charges.len());
        for charge in charges {
            let asked = self.ask_if_due(charge.slot.0, now);
            let at = self.add(&mut call, charge.slot.0, asked, now);
            costs.push((at, charge.cost));
        }
        self.add_usage(&mut call, now);
        (call, costs)
    }

    /// Adds a limit to a call, with what is to be said of it; where it is.
    fn add(&mut self, call: &mut Call, at: usize, asked: Option<(u64, u64)>, now: UnixMillis) -> usize {
        let rule = call.rules.len();
        let Some(account) = self.accounts.get_mut(at) else {
            return rule;
        };
        if let Some(rule) = call.rules.iter().position(|rule| rule.key == account.rule.key) {
            return rule;
        }
        call.rules.push(account.rule.clone());
        call.asks.extend(asked.map(|(seq, want)| Ask { rule, seq, want }));
        for held in account.live.iter_mut().chain(&mut account.ended) {
            held.told = now;
            let used = held.tokens - held.left - held.returned;
            call.reports.push(Report { rule, lease: held.lease, used, returned: held.returned });
        }
        rule
    }

    fn add_usage(&mut self, call: &mut Call, now: UnixMillis) {
        if self.reporting.is_none() && !self.counts.is_empty() {
            self.last_usage += 1;
            let counts = std::mem::take(&mut self.counts);
            self.reporting = Some(Reporting { number: self.last_usage, counts, last_try: now });
        }
        let Some(mut reporting) = self.reporting.take() else {
            return;
        };
        reporting.last_try = now;
        let mut lines = Vec::with_capacity(reporting.counts.len());
        for Count { paid, label, units, last } in &reporting.counts {
            let paid = paid.map(|(slot, lease)| (self.add(call, slot.0, None, now), lease));
            lines.push(Line { paid, label: label.as_ref().to_owned(), units: *units, last: *last });
        }
        call.usage = Some(Usage { number: reporting.number, lines });
        self.reporting = Some(reporting);
    }

    fn ask_if_due(&mut self, at: usize, now: UnixMillis) -> Option<(u64, u64)> {
        let account = self.accounts.get_mut(at)?;
        account.tidy(now);
        let due = now >= account.renew_at || account.left() <= account.low_water;
        if !due {
            return None;
        }
        let steady = account.renewal.is_steady(TTL_MS, now) && !account.renewal.takes(now);
        account.yield_excess(now);
        if !steady {
            return None;
        }
        let want = account.renewal.demand(TTL_MS, now).saturating_add(1);
        account.renewal.ask(want, TTL_MS, &mut self.last_seq, now)
    }
}

impl Account {
    /// What it is called when there is nothing left.
    const fn exhausted(&self) -> Code {
        match self.rule.policy.ends() {
            None => Code::RateLimited,
            Some(_) => Code::QuotaExhausted,
        }
    }

    #[inline]
    fn covers(&self, cost: u64, now: UnixMillis) -> bool {
        self.live.iter().any(|held| held.left >= cost && now < held.deadline)
    }

    /// Spends from the oldest lease that covers `cost`; whether it is time to renew.
    #[inline]
    fn spend(&mut self, cost: u64, now: UnixMillis) -> bool {
        self.renewal.note(cost);
        let mut left = 0;
        let mut due = cost;
        for held in &mut self.live {
            if due > 0 && held.left >= due && now < held.deadline {
                held.left -= due;
                due = 0;
                self.payer = held.lease;
            }
            left += held.left;
        }
        left <= self.low_water || now >= self.renew_at
    }

    /// When to renew, or to tell what goes back.
    fn wakes_at(&self) -> Option<UnixMillis> {
        let live = (!self.live.is_empty()).then_some(self.renew_at);
        live.into_iter().chain(self.gives_back_at()).min()
    }

    /// When to tell the limiter what goes back to it, though there is nothing else to say: where that is much of a lease, or no
    /// renewal is to come. Told in vain, again after as long as that has been going on.
    fn gives_back_at(&self) -> Option<UnixMillis> {
        let worth = |held: &&Held| held.returned > 0 && (self.live.is_empty() || held.returned > held.tokens / 4);
        let again = |held: &Held| held.told.plus(RETRY_MS.max(held.told.since(held.deadline)));
        self.ended.iter().filter(worth).map(again).min()
    }

    fn left(&self) -> u64 {
        self.live.iter().map(|held| held.left).sum()
    }

    /// Sets aside what can no longer be spent: past its deadline the rest is given back.
    fn tidy(&mut self, now: UnixMillis) {
        let ended = |held: &Held| held.left == 0 || now >= held.deadline;
        for mut held in self.live.extract_if(.., |held| ended(held)) {
            held.returned += held.left;
            held.left = 0;
            self.ended.push(held);
        }
        let kept_ms = if self.rule.recording == Recording::Unmetered { TTL_MS } else { GRACE_MS };
        self.ended.retain(|held| now.since(held.deadline) <= kept_ms);
    }

    /// Gives back what will not be spent by the end of a lease that ends soon.
    fn yield_excess(&mut self, now: UnixMillis) {
        let mut spare = self.renewal.demand(2 * LAST_MS, now);
        for held in &mut self.live {
            let kept = held.left.min(spare);
            spare -= kept;
            if held.deadline.since(now) <= LAST_MS {
                held.returned += held.left - kept;
                held.left = kept;
            }
        }
        self.renew_at = UnixMillis(u64::MAX);
        let deadlines = self.live.iter().filter(|held| held.left > 0).map(|held| held.deadline);
        if let Some(last) = deadlines.max() {
            self.renew_at = if last.since(now) > LAST_MS { last.minus(LAST_MS) } else { last };
        }
        self.renew_at = self.renew_at.max(self.renewal.asks_from());
        self.low_water = 0;
        self.tidy(now);
    }

    /// A lease has arrived. An older one is spent first; nothing granted leaves the older one as it was.
    fn granted(&mut self, grant: &Grant, sent: UnixMillis, now: UnixMillis) {
        self.remaining = grant.remaining;
        let deadline = sent.plus(grant.ttl_ms);
        if grant.tokens > 0 {
            self.live.push(Held {
                lease: grant.lease,
                tokens: grant.tokens,
                left: grant.tokens,
                returned: 0,
                deadline,
                told: UnixMillis(0),
            });
        }
        self.tidy(now);
        let last = self.live.iter().map(|held| held.deadline).max();
        let asks_from = self.renewal.asks_from();
        self.renew_at = last.map_or(asks_from, |last| last.minus(LAST_MS)).max(asks_from);
        self.low_water = self.renewal.low_water(self.left(), now);
        if self.left() <= self.low_water {
            // Already low: there was too little. Again as soon as it makes sense.
            (self.renew_at, self.low_water) = (asks_from, 0);
        }
    }
}

/// The limit that a refusal names, for callers that hold slots.
impl Isolate {
    /// The key behind a slot.
    #[must_use]
    pub fn key(&self, slot: Slot) -> Option<&LimitKey> {
        self.rule(slot).map(|rule| &rule.key)
    }
}
