//! The limiter: the one authority on what a tenant may still use.
//!
//! Invariant: of every limit, `avail` plus what is leased and reserved never exceeds its capacity, at any instant; and a
//! token is in `avail`, in one lease or reservation, or gone. A step that refuses spends nothing.

use serde::{Deserialize, Serialize};

use super::message::{
    Ask, Call, Code, Cost, Denial, Event, Grant, Incarnation, LeaseId, Op, OpId, Outcome, Reply, Report, Tag, Tally,
    Usage,
};
use super::policy::{LimitKey, Policy, Recording, Rev, Rule, lease_life, ttl_within};
use super::pool::Piece;
use super::renewal::Renewal;
use super::table::{Changes, Past, Row, Table};
use super::{GRACE_MS, LEAST_TTL_MS, MEMO_MS, QUEUE_LENGTH, QUEUE_MS, SENDER_MS, TTL_MS};
use crate::domain::id::TenantId;
use crate::domain::time::UnixMillis;

/// A limit, by the limiter's own count.
pub(super) type KeyNo = u32;

/// How many old rows of each table are cleared in a second at most: twice what a limiter's 500 writes a second leave behind.
const PRUNED_PER_SECOND: usize = 1_024;
/// How many tokens each isolate should find when it is told to come back to a limit that has run dry.
const TOKENS_PER_RETURN: u64 = 8;
/// How soon a refused large cost is told to ask again: well within [`QUEUE_MS`], or it would lose its place.
const QUEUED_RETRY_MS: u64 = 500;
/// How long a reservation outlives the call that was forwarded for it.
const FORWARD_MS: u64 = 2_000;

/// What there is one of.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Head {
    pub(super) tenant: TenantId,
    /// Who this limiter is to its parent's.
    pub(super) me: Incarnation,
    /// The latest instant seen: time never runs backward here.
    pub(super) clock: UnixMillis,
    pub(super) rev: Rev,
    pub(super) last_key: KeyNo,
    pub(super) last_lease: u64,
    pub(super) last_ticket: u64,
    pub(super) last_seq: u64,
}

/// What one limit has left.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Allowance {
    pub(super) rule: Rule,
    /// Whole tokens that nobody holds.
    pub(super) avail: u64,
    /// And parts of one more, less than `policy.parts()`.
    pub(super) part: u64,
    /// What a lowered quota could not take back: it comes off whatever is returned or raised first.
    pub(super) owed: u64,
    /// Up to when `avail` is minted. Never decreases.
    pub(super) minted: UnixMillis,
    /// Tokens of settled leases that nobody reported.
    pub(super) gap: u64,
    pub(super) heard: UnixMillis,
    /// The longest way down to an isolate, of those who borrow from here.
    pub(super) depth: u8,
    /// For a pool: when to fetch the next piece.
    pub(super) renewal: Renewal,
}

/// Tokens lent to one holder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    pub(super) holder: Incarnation,
    pub(super) tokens: u64,
    /// Reported as spent; `used + returned <= tokens`.
    pub(super) used: u64,
    /// Given back.
    pub(super) returned: u64,
    /// Recorded or tallied; at most `tokens - returned`.
    pub(super) billed: u64,
    /// When it expires; once past, when it is settled.
    pub(super) ends: UnixMillis,
    pub(super) recording: Recording,
    /// The parent's lease that it draws on.
    pub(super) on: Option<LeaseId>,
}

impl Lease {
    /// What its holder may still have in hand.
    const fn open(&self) -> u64 {
        self.tokens.saturating_sub(self.used).saturating_sub(self.returned)
    }

    /// What was debited for good.
    const fn kept(&self) -> u64 {
        self.tokens.saturating_sub(self.returned)
    }
}

/// Tokens set aside for an op whose end is not known yet.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Hold {
    pub(super) costs: Vec<(KeyNo, u64)>,
    pub(super) drawn: Vec<(KeyNo, LeaseId, u64)>,
    pub(super) event: Option<Event>,
    pub(super) ends: UnixMillis,
    pub(super) commits: bool,
    /// Waits for the parent's limiter; then: how long it stays reserved, if it is to.
    pub(super) forwarded: Option<Forwarded>,
}

/// What becomes of an op once the parent's limiter has admitted it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Forwarded {
    /// For how long it is then reserved, and whether it commits at the end of that; none for a TAKE.
    reserve: Option<(u64, bool)>,
    /// What was asked of the parent's limiter.
    costs: Vec<(KeyNo, u64)>,
}

/// A refused large cost that keeps its place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Queued {
    tag: Tag,
    costs: Vec<(KeyNo, u64)>,
    asked: UnixMillis,
    /// It has asked again, and so holds what it waits for. Most that are refused never do: held for nothing, the costs of
    /// 2 % of the requests took three quarters of a limit away from the others.
    holds: bool,
}

/// An answer, in case it is asked again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memo {
    outcome: Outcome,
    at: UnixMillis,
}

/// Who asked, of one limit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sender {
    heard: UnixMillis,
    seq: u64,
    grant: Option<Grant>,
}

/// Who reported usage.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reporter {
    number: u64,
    heard: UnixMillis,
}

/// What the shell does besides answering: store this with the step's [`Changes`] in one transaction, then send.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Effects {
    /// Events of exact meters, for the outbox.
    pub events: Vec<Event>,
    /// Counts of leased meters, for the outbox.
    pub tallies: Vec<Tally>,
    /// The op is decided by the parent's limiter: send this there and hand its reply to [`Limiter::forwarded`].
    pub forward: Option<Call>,
}

/// How one limit stands, to be shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Standing {
    /// Tokens that nobody holds.
    pub avail: u64,
    /// Tokens leased or reserved, and not reported as spent.
    pub open: u64,
    /// The most there can be.
    pub capacity: u64,
    /// Debited, never reported, not billed.
    pub gap: u64,
}

/// The allowances of one tenant, and of its parents as far as they were leased to it.
#[derive(Clone, Debug, PartialEq)]
pub struct Limiter {
    pub(super) head: Head,
    head_touched: Touched,
    pub(super) allowances: Table<Allowance>,
    leases: Table<Lease>,
    past: Table<Past>,
    pub(super) pieces: Table<Piece>,
    holds: Table<Hold>,
    queue: Table<Queued>,
    memos: Table<Memo>,
    senders: Table<Sender>,
    reporters: Table<Reporter>,
}

/// Whether the head changed; two limiters are the same whether or not it was drained.
#[derive(Clone, Copy, Debug)]
struct Touched(bool);

impl PartialEq for Touched {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Limiter {
    /// A limiter that has never been asked. `me` is random: its parent's limiter knows it by that.
    #[must_use]
    pub fn new(tenant: TenantId, me: Incarnation) -> Self {
        let head = Head {
            tenant,
            me,
            clock: UnixMillis(0),
            rev: Rev::default(),
            last_key: 0,
            last_lease: 0,
            last_ticket: 0,
            last_seq: 0,
        };
        Self {
            head,
            head_touched: Touched(true),
            allowances: Table::default(),
            leases: Table::default(),
            past: Table::default(),
            pieces: Table::default(),
            holds: Table::default(),
            queue: Table::default(),
            memos: Table::default(),
            senders: Table::default(),
            reporters: Table::default(),
        }
    }

    /// The limiter that stored these rows; none when the head is not among them, because it never stored anything.
    #[must_use]
    pub fn restore(rows: impl IntoIterator<Item = Row>) -> Option<Self> {
        let mut limiter =
            Self::new(TenantId::new(crate::domain::id::Jurisdiction::Global, UnixMillis(0), [0; 4]), Incarnation(0));
        let mut head = None;
        for row in rows {
            match row {
                Row::Head(stored) => head = Some(stored),
                Row::Allowance(key, stored) => limiter.allowances.restore(key, *stored),
                Row::Lease(key, stored) => limiter.leases.restore(key, stored),
                Row::Past(key, stored) => limiter.past.restore(key, Past(stored)),
                Row::Piece(key, stored) => limiter.pieces.restore(key, stored),
                Row::Hold(key, stored) => limiter.holds.restore(key, stored),
                Row::Queued(key, stored) => limiter.queue.restore(key, stored),
                Row::Memo(key, stored) => limiter.memos.restore(key, stored),
                Row::Sender(key, stored) => limiter.senders.restore(key, stored),
                Row::Reporter(key, stored) => limiter.reporters.restore(key, stored),
            }
        }
        limiter.head = head?;
        limiter.head_touched = Touched(false);
        Some(limiter)
    }

    /// What changed since the last time, to be stored.
    pub fn changes(&mut self) -> Changes {
        let mut changes = Changes::new();
        if std::mem::replace(&mut self.head_touched, Touched(false)).0 {
            changes.push(super::Change { table: "head", id: String::new(), row: Some(Row::Head(self.head.clone())) });
        }
        self.allowances.drain(&mut changes);
        self.leases.drain(&mut changes);
        self.past.drain(&mut changes);
        self.pieces.drain(&mut changes);
        self.holds.drain(&mut changes);
        self.queue.drain(&mut changes);
        self.memos.drain(&mut changes);
        self.senders.drain(&mut changes);
        self.reporters.drain(&mut changes);
        changes
    }

    /// Answers one call. Nothing waits inside; whatever may fail was parsed before.
    pub fn step(&mut self, call: &Call, clock: UnixMillis) -> (Reply, Effects) {
        let mut effects = Effects::default();
        let now = self.advance(clock, &mut effects);
        let keys: Vec<Option<KeyNo>> = call.rules.iter().map(|rule| self.adopt(rule, call, now)).collect();
        let key_at = |place: usize| keys.get(place).copied().flatten();
        if call.depth == 0 && call.rev != self.head.rev {
            self.head_mut().rev = self.head.rev.with(call.rev);
        }

        let usage = call.usage.as_ref().map(|usage| self.tally(call.from, usage, &key_at, now, &mut effects));
        let settled = call.reports.iter().filter(|report| self.report(call.from, **report, key_at(report.rule), now));
        let settled = settled.map(|report| report.lease).collect::<Vec<_>>();
        let outcome = call.op.as_ref().and_then(|op| {
            let outcome = self.decide(call, op, &key_at, now, &mut effects)?;
            Some((op.id(), outcome))
        });
        let grants = call.asks.iter().filter_map(|ask| Some(self.lease(call, *ask, key_at(ask.rule)?, now))).collect();

        (Reply { rev: self.head.rev, grants, outcome, settled, usage }, effects)
    }

    /// What is due without a message: reservations that ended. The shell calls it from its alarm, at [`Self::wakes_at`].
    pub fn tick(&mut self, clock: UnixMillis) -> Effects {
        let mut effects = Effects::default();
        self.advance(clock, &mut effects);
        effects
    }

    /// When [`Self::tick`] has something to do.
    #[must_use]
    pub fn wakes_at(&self) -> Option<UnixMillis> {
        self.holds.iter().map(|(_, hold)| hold.ends).min()
    }

    /// How a limit stands at `clock`. Changes nothing, and so shows what would be there after the expiries until then.
    #[must_use]
    pub fn standing(&self, key: &LimitKey, clock: UnixMillis) -> Option<Standing> {
        let mut then = self.clone();
        then.advance(clock, &mut Effects::default());
        let k = then.number(key)?;
        then.catch_up(k, then.head.clock);
        let allowance = then.allowances.get(k)?;
        let gap =
            then.past_of(k).fold(allowance.gap, |gap, (_, lease)| gap + lease.0.kept().saturating_sub(lease.0.billed));
        Some(Standing { avail: then.avail(k), open: then.open(k), capacity: allowance.rule.policy.capacity(), gap })
    }

    /// How every limit stands at `clock`.
    #[must_use]
    pub fn standings(&self, clock: UnixMillis) -> Vec<(LimitKey, Standing)> {
        let keys = self.allowances.iter().map(|(_, allowance)| allowance.rule.key.clone());
        keys.filter_map(|key| self.standing(&key, clock).map(|standing| (key, standing))).collect()
    }

    /// The newest documents that anyone told of.
    #[must_use]
    pub const fn rev(&self) -> Rev {
        self.head.rev
    }

    pub(super) fn head_mut(&mut self) -> &mut Head {
        self.head_touched = Touched(true);
        &mut self.head
    }

    /// Moves time on: reservations that ended lapse, what is old is forgotten.
    pub(super) fn advance(&mut self, clock: UnixMillis, effects: &mut Effects) -> UnixMillis {
        let before = self.head.clock;
        if clock > before {
            self.head_mut().clock = clock;
        }
        let now = self.head.clock;
        let mut lapsed: Vec<_> =
            self.holds.iter().filter(|(_, hold)| hold.ends <= now).map(|(id, hold)| (hold.ends, id)).collect();
        lapsed.sort_unstable();
        for (ends, id) in lapsed {
            let commits = self.holds.get(id).is_some_and(|hold| hold.commits);
            self.resolve(id, commits, ends, now, effects);
        }
        for ticket in self.queue.keys_where(|_, queued| now.since(queued.asked) > QUEUE_MS) {
            self.queue.remove(ticket);
        }
        // Once a second is often enough for what only takes up space.
        if before.0 / 1_000 != now.0 / 1_000 {
            self.prune(now);
        }
        now
    }

    /// Forgets what can no longer matter. Each rule says why.
    fn prune(&mut self, now: UnixMillis) {
        let old = |since: UnixMillis, kept_ms: u64| now.since(since) > kept_ms;
        // A repeated op id is the network's doing, within seconds.
        let memos = self.memos.iter().filter(|(_, memo)| old(memo.at, MEMO_MS)).map(|(id, _)| id);
        for id in memos.take(PRUNED_PER_SECOND).collect::<Vec<_>>() {
            self.memos.remove(id);
        }
        let senders = self.senders.iter().filter(|(_, sender)| old(sender.heard, SENDER_MS)).map(|(id, _)| id);
        for id in senders.take(PRUNED_PER_SECOND).collect::<Vec<_>>() {
            self.senders.remove(id);
        }
        // Its leases are settled by then: lines about them are no longer accepted, whatever their number.
        let reporters =
            self.reporters.iter().filter(|(_, from)| old(from.heard, SENDER_MS + 2 * GRACE_MS)).map(|(id, _)| id);
        for id in reporters.take(PRUNED_PER_SECOND).collect::<Vec<_>>() {
            self.reporters.remove(id);
        }
        let past = self.past.iter().filter(|(_, lease)| lease.0.ends <= now).map(|(id, _)| id);
        for id in past.take(PRUNED_PER_SECOND).collect::<Vec<_>>() {
            self.settle(id);
        }
        self.prune_pieces(now);
        self.prune_allowances(now);
    }

    /// A limit that nobody asked about for an hour is forgotten when remembering it says nothing: its window is over, or its
    /// bucket is as full as a new one.
    fn prune_allowances(&mut self, now: UnixMillis) {
        const IDLE_MS: u64 = 3_600_000;
        let idle = self.allowances.keys_where(|_, allowance| now.since(allowance.heard) > IDLE_MS);
        for k in idle.into_iter().take(PRUNED_PER_SECOND) {
            self.catch_up(k, now);
            let Some(allowance) = self.allowances.get(k) else {
                continue;
            };
            let over = match allowance.rule.policy {
                Policy::Quota { ends, .. } => now.since(ends) > GRACE_MS,
                Policy::Rate { burst, .. } => allowance.rule.above > 0 || allowance.avail >= burst,
            };
            let held = self.open(k) > 0
                || self.past_of(k).next().is_some()
                || self.pieces_of(k).next().is_some()
                || self.holds.iter().any(|(_, hold)| hold.costs.iter().any(|cost| cost.0 == k));
            if over && !held {
                self.allowances.remove(k);
                for id in self.senders.keys_where(|id, _| id.0 == k) {
                    self.senders.remove(id);
                }
            }
        }
    }

    pub(super) fn number(&self, key: &LimitKey) -> Option<KeyNo> {
        self.allowances.iter().find(|(_, allowance)| allowance.rule.key == *key).map(|(k, _)| k)
    }

    /// Brings one limit up to `now` and takes in what a message says about it. None when it cannot be believed.
    fn adopt(&mut self, rule: &Rule, call: &Call, now: UnixMillis) -> Option<KeyNo> {
        let believed = now < rule.valid_until;
        let Some(k) = self.number(&rule.key) else {
            // A window that is over starts no second time.
            if !believed || rule.policy.ends().is_some_and(|ends| ends <= now) {
                return None;
            }
            let k = self.head.last_key + 1;
            self.head_mut().last_key = k;
            let avail = if rule.above == 0 { rule.policy.capacity() } else { 0 };
            let allowance = Allowance {
                rule: rule.clone(),
                avail,
                part: 0,
                owed: 0,
                minted: now,
                gap: 0,
                heard: now,
                depth: call.depth,
                renewal: Renewal::default(),
            };
            self.allowances.insert(k, allowance);
            return Some(k);
        };
        self.catch_up(k, now);
        let open = self.open(k);
        let allowance = self.allowances.get_mut(k)?;
        allowance.heard = now;
        allowance.depth = allowance.depth.max(call.depth);
        if believed && rule.rev.is_newer_than(allowance.rule.rev) && rule.above == allowance.rule.above {
            change_policy(allowance, rule.policy, open);
            allowance.rule = rule.clone();
        } else if rule.rev == allowance.rule.rev {
            allowance.rule.valid_until = allowance.rule.valid_until.max(rule.valid_until);
        }
        Some(k)
    }

    /// Mints up to `now`, through each expiry in turn: what was leased may be minted again only after it is forgotten.
    pub(super) fn catch_up(&mut self, k: KeyNo, now: UnixMillis) {
        let mut expired: Vec<_> =
            self.leases_of(k).filter(|(_, lease)| lease.ends <= now).map(|(id, lease)| (lease.ends, id)).collect();
        expired.sort_unstable();
        for (ends, id) in expired {
            self.mint(k, ends);
            if let Some(lease) = self.leases.remove((k, id)) {
                if let Some(piece) = lease.on {
                    self.piece_used(k, piece, lease.open());
                }
                self.bury(k, id, lease, now);
            }
        }
        self.mint(k, now);
        self.return_ended_pieces(k, now);
    }

    fn mint(&mut self, k: KeyNo, to: UnixMillis) {
        let open = self.open(k);
        let Some(allowance) = self.allowances.get(k) else {
            return;
        };
        if to <= allowance.minted {
            return;
        }
        let policy = allowance.rule.policy;
        let ms = to.since(allowance.minted);
        let parts = u128::from(policy.parts());
        let minted = u128::from(allowance.part) + u128::from(policy.parts_per_ms()) * u128::from(ms);
        let own = allowance.rule.above == 0 && policy.ends().is_none();
        let Some(allowance) = self.allowances.get_mut(k) else {
            return;
        };
        allowance.minted = to;
        if own {
            let room = policy.capacity().saturating_sub(open);
            let whole = u64::try_from(minted / parts).unwrap_or(u64::MAX).saturating_add(allowance.avail);
            allowance.part = if whole >= room { 0 } else { u64::try_from(minted % parts).unwrap_or(0) };
            allowance.avail = whole.min(room);
        }
    }

    /// What is leased or reserved of one limit, and not reported as spent.
    fn open(&self, k: KeyNo) -> u64 {
        let leased: u64 = self.leases_of(k).map(|(_, lease)| lease.open()).sum();
        let held = self.holds.iter().flat_map(|(_, hold)| &hold.costs).filter(|cost| cost.0 == k);
        leased + held.map(|cost| cost.1).sum::<u64>()
    }

    /// What nobody holds of one limit: of its bucket, or of its pool.
    pub(super) fn avail(&self, k: KeyNo) -> u64 {
        match self.allowances.get(k) {
            Some(allowance) if allowance.rule.above == 0 => allowance.avail,
            Some(_) => self.pool_free(k),
            None => 0,
        }
    }

    fn leases_of(&self, k: KeyNo) -> impl DoubleEndedIterator<Item = (LeaseId, &Lease)> {
        self.leases.range((k, LeaseId(0))..=(k, LeaseId(u64::MAX))).map(|(id, lease)| (id.1, lease))
    }

    fn past_of(&self, k: KeyNo) -> impl DoubleEndedIterator<Item = ((KeyNo, LeaseId), &Past)> {
        self.past.range((k, LeaseId(0))..=(k, LeaseId(u64::MAX)))
    }

    /// Puts tokens back that were taken and never spent.
    fn give_back(&mut self, k: KeyNo, tokens: u64) {
        let open = self.open(k);
        let Some(allowance) = self.allowances.get_mut(k) else {
            return;
        };
        let paid = tokens.min(allowance.owed);
        allowance.owed -= paid;
        let room = allowance.rule.policy.capacity().saturating_sub(open);
        let avail = allowance.avail.saturating_add(tokens - paid);
        if avail >= room {
            allowance.part = 0;
        }
        allowance.avail = avail.min(room);
    }

    /// A lease has ended: what may still be recorded under it is kept for the grace.
    fn bury(&mut self, k: KeyNo, id: LeaseId, mut lease: Lease, now: UnixMillis) {
        let recorded = match lease.recording {
            Recording::Unmetered => true,
            Recording::Leased | Recording::Exact => lease.billed >= lease.kept(),
        };
        if !recorded {
            lease.ends = now.plus(GRACE_MS);
            self.past.insert((k, id), Past(lease));
        }
    }

    /// Nothing more can be recorded under a lease: what no event was recorded for goes back, or is a gap.
    fn settle(&mut self, id: (KeyNo, LeaseId)) {
        let Some(Past(lease)) = self.past.remove(id) else {
            return;
        };
        let rest = lease.kept().saturating_sub(lease.billed);
        match lease.recording {
            Recording::Exact if lease.on.is_none() => self.give_back(id.0, rest),
            Recording::Unmetered | Recording::Leased | Recording::Exact => {
                if let Some(allowance) = self.allowances.get_mut(id.0) {
                    allowance.gap += rest;
                }
            }
        }
    }

    /// Takes in what a holder says of its lease; whether there is nothing more to say.
    fn report(&mut self, from: Incarnation, report: Report, k: Option<KeyNo>, now: UnixMillis) -> bool {
        let Some(k) = k else { return true };
        let id = (k, report.lease);
        let Some(lease) = self.leases.get(id).filter(|lease| lease.holder == from) else {
            // An ended lease gives nothing back, but what was spent of it may still be told.
            if let Some(Past(lease)) = self.past.get(id).filter(|past| past.0.holder == from) {
                let used = report.used.min(lease.kept());
                if used > lease.used
                    && let Some(past) = self.past.get_mut(id)
                {
                    past.0.used = used;
                }
            }
            return true;
        };
        let (on, was_used, was_returned) = (lease.on, lease.used, lease.returned);
        let used = report.used.min(lease.kept()).max(lease.used);
        let returned = report.returned.min(lease.tokens - used.max(lease.billed)).max(lease.returned);
        let Some(lease) = self.leases.get_mut(id) else {
            return true;
        };
        (lease.used, lease.returned) = (used, returned);
        let closed = lease.open() == 0;
        if closed && let Some(lease) = self.leases.remove(id) {
            self.bury(k, report.lease, lease, now);
        }
        match on {
            Some(piece) => {
                self.piece_used(k, piece, used - was_used);
                self.piece_returned(k, piece, returned - was_returned, now);
            }
            None => self.give_back(k, returned - was_returned),
        }
        closed
    }

    /// Takes in counts, once; at most what the lease held.
    fn tally(
        &mut self,
        from: Incarnation,
        usage: &Usage,
        key_at: &impl Fn(usize) -> Option<KeyNo>,
        now: UnixMillis,
        effects: &mut Effects,
    ) -> u64 {
        let last = self.reporters.get(from).map_or(0, |reporter| reporter.number);
        if usage.number <= last {
            return last;
        }
        self.reporters.insert(from, Reporter { number: usage.number, heard: now });
        for (place, line) in usage.lines.iter().enumerate() {
            let paid = line.paid.map(|(rule, lease)| (key_at(rule), lease));
            let (key, units) = match paid {
                None => (None, line.units),
                Some((Some(k), lease)) => {
                    (self.allowances.get(k).map(|a| a.rule.key.clone()), self.bill((k, lease), from, line.units))
                }
                Some((None, _)) => (None, 0),
            };
            if units > 0 {
                effects.tallies.push(Tally {
                    id: format!("{from}-{}-{place}", usage.number),
                    key,
                    label: line.label.clone(),
                    units,
                });
            }
        }
        usage.number
    }

    /// Bills up to `units` to a lease that is not settled; how many it still held.
    fn bill(&mut self, id: (KeyNo, LeaseId), from: Incarnation, units: u64) -> u64 {
        let Some(lease) = self.lease_or_past(id).filter(|lease| lease.holder == from) else {
            return 0;
        };
        let billed = units.min(lease.kept().saturating_sub(lease.billed));
        if let Some(lease) = self.leases.get_mut(id) {
            lease.billed += billed;
        } else if let Some(Past(lease)) = self.past.get_mut(id) {
            lease.billed += billed;
        }
        billed
    }

    fn lease_or_past(&self, id: (KeyNo, LeaseId)) -> Option<&Lease> {
        self.leases.get(id).or_else(|| self.past.get(id).map(|past| &past.0))
    }

    /// Isolates and child limiters that used one limit lately.
    fn borrowers(&self, k: KeyNo, now: UnixMillis) -> u64 {
        let senders = self.senders.range((k, Incarnation(0))..=(k, Incarnation(u128::MAX)));
        senders.filter(|(_, sender)| now.since(sender.heard) < TTL_MS + 1_000).count().max(1) as u64
    }

    /// What is kept for large costs; ahead of `ticket`, if that is one of them.
    fn queued(&self, k: KeyNo, ticket: Option<u64>) -> u64 {
        let ahead = self.queue.iter().take_while(|(other, _)| ticket.is_none_or(|ticket| *other < ticket));
        ahead
            .filter(|(_, queued)| queued.holds)
            .flat_map(|(_, queued)| &queued.costs)
            .filter(|cost| cost.0 == k)
            .map(|cost| cost.1)
            .sum()
    }

    /// LEASE.
    fn lease(&mut self, call: &Call, ask: Ask, k: KeyNo, now: UnixMillis) -> Grant {
        let sender = self.senders.get((k, call.from)).cloned();
        let none = Grant {
            seq: ask.seq,
            lease: LeaseId(0),
            tokens: 0,
            ttl_ms: 0,
            remaining: 0,
            retry_after_ms: 0,
            take: false,
            large: 0,
        };
        match &sender {
            Some(Sender { seq, grant: Some(grant), .. }) if *seq == ask.seq => return *grant,
            // An older one than the last: its sender has given up on it.
            Some(Sender { seq, .. }) if *seq >= ask.seq => return none,
            _ => {}
        }
        self.senders.insert((k, call.from), Sender { heard: now, seq: ask.seq, grant: None });
        let grant = self.grant(call, ask, k, now).unwrap_or(none);
        self.senders.insert((k, call.from), Sender { heard: now, seq: ask.seq, grant: Some(grant) });
        grant
    }

    fn grant(&mut self, call: &Call, ask: Ask, k: KeyNo, now: UnixMillis) -> Option<Grant> {
        let allowance = self.allowances.get(k)?;
        let policy = allowance.rule.policy;
        let recording = if call.depth == 0 { allowance.rule.recording } else { Recording::Unmetered };
        let pooled = allowance.rule.above > 0;
        let others = self.borrowers(k, now);
        let avail = self.avail(k);
        let full_ttl = TTL_MS << call.depth.min(2);
        let life = policy.ends().map_or(u64::MAX, |ends| ends.since(now)).min(allowance.rule.valid_until.since(now));
        let mut ttl_ms = full_ttl.min(ttl_within(life));
        // Nobody gets more than a part of a quota at a time, so that little of it is out when it nears its end.
        let (want, share) = match policy {
            Policy::Rate { burst, .. } if !pooled => (ask.want, burst / (2 * others)),
            Policy::Rate { .. } => (ask.want, ask.want),
            Policy::Quota { amount, .. } => {
                (ask.want.min((amount / 1_000).max(ask.want * 1_000 / full_ttl)), avail / (2 * others))
            }
        };
        let free = avail.saturating_sub(self.queued(k, None));
        let mut tokens = want.min(free).min(share).min((avail / 2).max(1));
        let mut take = share < 2 && !pooled;
        let mut on = None;
        if pooled {
            self.allowances.get_mut(k)?.renewal.note(tokens.max(want.div_ceil(4)));
            take = self.allowances.get(k)?.renewal.takes(now);
            (on, tokens, ttl_ms) = self.choose_piece(k, tokens, full_ttl, now);
        }
        if take || ttl_ms < LEAST_TTL_MS {
            (tokens, take) = (0, take || !pooled);
        }
        let scarce = tokens < want.min(share.max(1)) && free.saturating_sub(tokens) < policy.capacity() / 8 && !take;
        // A pool is short while its next piece is under way.
        let retry_after_ms = match (scarce, pooled) {
            (false, _) => 0,
            (true, true) => 200,
            (true, false) => Self::pace(policy, others),
        };
        let lease = LeaseId(self.head.last_lease + 1);
        if tokens > 0 {
            self.head_mut().last_lease = lease.0;
            match on {
                Some(piece) => self.piece_lent(k, piece, tokens),
                None => self.allowances.get_mut(k)?.avail -= tokens,
            }
            let ends = now.plus(lease_life(ttl_ms));
            let lent = Lease { holder: call.from, tokens, used: 0, returned: 0, billed: 0, ends, recording, on };
            self.leases.insert((k, lease), lent);
        }
        Some(Grant {
            seq: ask.seq,
            lease,
            tokens,
            ttl_ms: if take { TTL_MS } else { ttl_ms },
            remaining: self.avail(k),
            retry_after_ms,
            take,
            large: fair_share(policy, others),
        })
    }

    /// When a limit has run dry, how long until everyone finds something again: the longer, the fewer calls; but not so
    /// long that the bucket could fill up, because what it cannot hold is lost.
    fn pace(policy: Policy, others: u64) -> u64 {
        let each = policy.ms_to_mint(others * TOKENS_PER_RETURN).unwrap_or(2_000);
        let half = policy.ms_to_mint(policy.capacity() / 2).unwrap_or(2_000);
        each.min(half).clamp(100, 2_000)
    }

    /// Decides or records, once for each op id. None when the parent's limiter has the word.
    fn decide(
        &mut self,
        call: &Call,
        op: &Op,
        key_at: &impl Fn(usize) -> Option<KeyNo>,
        now: UnixMillis,
        effects: &mut Effects,
    ) -> Option<Outcome> {
        // COMMIT and VOID have the id of their RESERVE, and are answered by what became of it.
        match op {
            Op::Commit { id } => return Some(self.end(*id, true, now, effects)),
            Op::Void { id } => return Some(self.end(*id, false, now, effects)),
            Op::Take { .. } | Op::Record { .. } | Op::Reserve { .. } => {}
        }
        if let Some(memo) = self.memos.get(op.id()) {
            return Some(memo.outcome.clone());
        }
        let outcome = match op {
            Op::Take { id, tag, costs, event } => {
                self.take(call, *id, *tag, costs, event.as_ref(), None, key_at, now, effects)?
            }
            Op::Reserve { id, tag, costs, event, hold_ms, commits } => {
                if self.holds.get(*id).is_some_and(|hold| hold.forwarded.is_none()) {
                    return Some(Outcome::Admit);
                }
                let reserve = Some((*hold_ms, *commits));
                self.take(call, *id, *tag, costs, event.as_ref(), reserve, key_at, now, effects)?
            }
            Op::Record { rule, lease, cost, event, .. } => {
                self.record(call.from, key_at(*rule), *lease, *cost, event, effects)
            }
            Op::Commit { .. } | Op::Void { .. } => return None,
        };
        let reserved = matches!(op, Op::Reserve { .. }) && outcome == Outcome::Admit;
        if !reserved {
            self.memos.insert(op.id(), Memo { outcome: outcome.clone(), at: now });
        }
        Some(outcome)
    }

    /// RECORD: an event that a lease paid for, live or not, as long as it is not settled.
    fn record(
        &mut self,
        from: Incarnation,
        k: Option<KeyNo>,
        lease: LeaseId,
        cost: u64,
        event: &Event,
        effects: &mut Effects,
    ) -> Outcome {
        let Some(k) = k else { return Outcome::Gone };
        let holds = |lease: &Lease| lease.holder == from && lease.kept().saturating_sub(lease.billed) >= cost;
        if !self.lease_or_past((k, lease)).is_some_and(holds) {
            return Outcome::Gone;
        }
        self.bill((k, lease), from, cost);
        effects.events.push(event.clone());
        Outcome::Done
    }

    /// COMMIT and VOID.
    fn end(&mut self, id: OpId, commit: bool, now: UnixMillis, effects: &mut Effects) -> Outcome {
        if self.holds.get(id).is_some_and(|hold| hold.forwarded.is_none()) {
            self.resolve(id, commit, now, now, effects);
            return Outcome::Done;
        }
        // The memo of a resolved reservation says how it ended: DENY is no more than Gone here.
        match self.memos.get(id).map(|memo| &memo.outcome) {
            Some(Outcome::Done) if commit => Outcome::Done,
            Some(Outcome::Gone) if !commit => Outcome::Done,
            _ => Outcome::Gone,
        }
    }

    /// A reservation ends as of `at`: it is used, or its tokens go back.
    fn resolve(&mut self, id: OpId, commit: bool, at: UnixMillis, now: UnixMillis, effects: &mut Effects) {
        let Some(hold) = self.holds.get(id).cloned() else {
            return;
        };
        // As for an expired lease: minted up to here while it still counted.
        for (k, _) in &hold.costs {
            self.catch_up(*k, at);
        }
        self.holds.remove(id);
        if commit {
            effects.events.extend(hold.event);
        } else {
            for (k, cost) in hold.costs {
                self.give_back(k, cost);
            }
            for (k, piece, cost) in hold.drawn {
                self.piece_taken_back(k, piece, cost, now);
            }
        }
        let outcome = if commit { Outcome::Done } else { Outcome::Gone };
        self.memos.insert(id, Memo { outcome, at: now });
    }

    /// TAKE and RESERVE: all of the costs or none. None when the parent's limiter has the word.
    #[expect(clippy::too_many_arguments, reason = "the fields of the op, and what a step is made of")]
    fn take(
        &mut self,
        call: &Call,
        id: OpId,
        tag: Option<Tag>,
        costs: &[Cost],
        event: Option<&Event>,
        reserve: Option<(u64, bool)>,
        key_at: &impl Fn(usize) -> Option<KeyNo>,
        now: UnixMillis,
        effects: &mut Effects,
    ) -> Option<Outcome> {
        let mut wanted: Vec<(KeyNo, u64)> = Vec::with_capacity(costs.len());
        for (place, cost) in costs {
            let Some(k) = key_at(*place) else {
                return call.rules.get(*place).map(|rule| {
                    let code = if rule.valid_until <= now || rule.policy.ends().is_some_and(|ends| ends <= now) {
                        Code::Expired
                    } else {
                        Code::UnknownLimit
                    };
                    Outcome::Deny(Denial { key: rule.key.clone(), code, retry_after_ms: 0 })
                });
            };
            match wanted.iter_mut().find(|other| other.0 == k) {
                Some(other) => other.1 = other.1.saturating_add(*cost),
                None => wanted.push((k, *cost)),
            }
        }
        for (k, _) in &wanted {
            let seen = self.senders.get((*k, call.from)).cloned();
            let sender = Sender { heard: now, ..seen.unwrap_or(Sender { heard: now, seq: 0, grant: None }) };
            self.senders.insert((*k, call.from), sender);
        }
        let waiting = self.holds.get(id).is_some_and(|hold| hold.forwarded.is_some());
        let ticket =
            tag.and_then(|tag| self.queue.iter().find(|(_, queued)| queued.tag == tag).map(|(ticket, _)| ticket));
        let mut refusal: Option<(Denial, bool)> = None;
        let mut forward = false;
        // Its own buckets first: for what they refuse nothing is fetched from above.
        let (pooled, own): (Vec<_>, Vec<_>) = wanted.iter().copied().partition(|(k, _)| self.is_pool(*k));
        for (k, cost) in own.into_iter().chain(pooled) {
            if refusal.is_some() && self.is_pool(k) {
                continue;
            }
            match self.affords(k, cost, ticket, waiting, now) {
                Affords::Yes => {}
                Affords::AskParent => forward = true,
                Affords::No(denial, large) => {
                    let worse = |(other, _): &(Denial, bool)| {
                        denial.code == Code::CostTooLarge || denial.retry_after_ms > other.retry_after_ms
                    };
                    if refusal.as_ref().is_none_or(worse) {
                        refusal = Some((denial, large));
                    }
                }
            }
        }
        if let Some((mut denial, large)) = refusal {
            if large && self.enqueue(tag, ticket, &wanted, now) {
                denial.retry_after_ms = denial.retry_after_ms.min(QUEUED_RETRY_MS);
            }
            return Some(Outcome::Deny(denial));
        }
        if let Some(ticket) = ticket {
            self.queue.remove(ticket);
        }
        if forward {
            self.hold_and_forward(id, tag, &wanted, event, reserve, now, effects);
            return None;
        }
        let mut drawn = Vec::new();
        let mut own = Vec::new();
        for (k, cost) in &wanted {
            if self.is_pool(*k) {
                drawn.extend(self.draw(*k, *cost, now));
            } else {
                if let Some(allowance) = self.allowances.get_mut(*k) {
                    allowance.avail = allowance.avail.saturating_sub(*cost);
                }
                own.push((*k, *cost));
            }
        }
        match reserve {
            Some((hold_ms, commits)) => {
                let hold = Hold {
                    costs: own,
                    drawn,
                    event: event.cloned(),
                    ends: now.plus(hold_ms),
                    commits,
                    forwarded: None,
                };
                self.holds.insert(id, hold);
            }
            None => effects.events.extend(event.cloned()),
        }
        Some(Outcome::Admit)
    }

    /// Whether one limit has `cost` for the holder of `ticket`; and if not, whether it may wait in the queue.
    fn affords(&mut self, k: KeyNo, cost: u64, ticket: Option<u64>, waiting: bool, now: UnixMillis) -> Affords {
        let Some(allowance) = self.allowances.get(k) else {
            return Affords::AskParent;
        };
        let (policy, pooled) = (allowance.rule.policy, allowance.rule.above > 0);
        let deny = |code, retry_after_ms| Denial { key: allowance.rule.key.clone(), code, retry_after_ms };
        if allowance.rule.valid_until <= now || policy.ends().is_some_and(|ends| ends <= now) {
            return Affords::No(deny(Code::Expired, 0), false);
        }
        if cost > policy.capacity() {
            return Affords::No(deny(Code::CostTooLarge, 0), false);
        }
        if waiting {
            // Set aside when this op was first heard; only the parent's answer is missing.
            return if pooled { Affords::AskParent } else { Affords::Yes };
        }
        let ahead = self.queued(k, ticket);
        let avail = self.avail(k);
        if avail.saturating_sub(ahead) >= cost {
            if let Some(allowance) = self.allowances.get_mut(k).filter(|_| pooled) {
                allowance.renewal.note(cost);
            }
            return Affords::Yes;
        }
        if pooled {
            let denied = allowance.renewal.refuses(cost, now).map(|retry| deny(Code::RateLimited, retry));
            if let Some(allowance) = self.allowances.get_mut(k) {
                allowance.renewal.note(cost);
            }
            return denied.map_or(Affords::AskParent, |denial| Affords::No(denial, false));
        }
        match policy {
            Policy::Quota { ends, .. } => Affords::No(deny(Code::QuotaExhausted, ends.since(now)), false),
            Policy::Rate { .. } => {
                let others = self.borrowers(k, now);
                let missing = cost.saturating_add(ahead).saturating_sub(avail);
                let large = cost > fair_share(policy, others);
                let wait = policy.ms_to_mint(missing).unwrap_or(2_000);
                let wait = if large { wait } else { wait.max(Self::pace(policy, others)) };
                Affords::No(deny(Code::RateLimited, wait.clamp(100, 2_000)), large)
            }
        }
    }

    /// Gives a refused large cost a place, or keeps the one it has. One place for all of its limits: two costs that each
    /// held one limit would wait for each other for ever.
    fn enqueue(&mut self, tag: Option<Tag>, ticket: Option<u64>, costs: &[(KeyNo, u64)], now: UnixMillis) -> bool {
        let Some(tag) = tag else { return false };
        let holds = ticket.is_some();
        let ticket = match ticket {
            Some(ticket) => ticket,
            None if self.queue.len() >= QUEUE_LENGTH => return false,
            None => {
                self.head_mut().last_ticket += 1;
                self.head.last_ticket
            }
        };
        self.queue.insert(ticket, Queued { tag, costs: costs.to_vec(), asked: now, holds });
        true
    }

    /// The child's own part of an op is set aside while its parent's limiter decides the rest.
    #[expect(clippy::too_many_arguments, reason = "the fields of the op, and what a step is made of")]
    fn hold_and_forward(
        &mut self,
        id: OpId,
        tag: Option<Tag>,
        wanted: &[(KeyNo, u64)],
        event: Option<&Event>,
        reserve: Option<(u64, bool)>,
        now: UnixMillis,
        effects: &mut Effects,
    ) {
        let (pooled, own): (Vec<_>, Vec<_>) = wanted.iter().copied().partition(|(k, _)| self.is_pool(*k));
        if self.holds.get(id).is_none() {
            for (k, cost) in &own {
                if let Some(allowance) = self.allowances.get_mut(*k) {
                    allowance.avail = allowance.avail.saturating_sub(*cost);
                }
            }
            let hold = Hold {
                costs: own,
                drawn: Vec::new(),
                event: event.cloned(),
                ends: now.plus(FORWARD_MS),
                commits: false,
                forwarded: Some(Forwarded { reserve, costs: pooled.clone() }),
            };
            self.holds.insert(id, hold);
        }
        let rules = pooled.iter().filter_map(|(k, _)| self.rule_above(*k)).collect();
        let costs = pooled.iter().enumerate().map(|(place, (_, cost))| (place, *cost)).collect();
        let op = Some(Op::Take { id, tag, costs, event: None });
        effects.forward = Some(self.call_above(rules, Vec::new(), Vec::new(), op));
    }

    /// What the parent's limiter said to a forwarded op, and with that the outcome. `None` for an unreachable parent: then
    /// there is no outcome, and the fail mode decides.
    pub fn forwarded(&mut self, id: OpId, reply: Option<&Reply>, clock: UnixMillis) -> (Option<Outcome>, Effects) {
        let mut effects = Effects::default();
        let now = self.advance(clock, &mut effects);
        if let Some(memo) = self.memos.get(id) {
            return (Some(memo.outcome.clone()), effects);
        }
        let Some(hold) = self.holds.get(id).filter(|hold| hold.forwarded.is_some()).cloned() else {
            let reserved = self.holds.get(id).is_some();
            return (reserved.then_some(Outcome::Admit), effects);
        };
        let answer =
            reply.and_then(|reply| reply.outcome.clone()).filter(|answer| answer.0 == id).map(|answer| answer.1);
        let reserve = hold.forwarded.as_ref().and_then(|forwarded| forwarded.reserve);
        match (&answer, reserve) {
            (Some(Outcome::Admit), Some((hold_ms, commits))) => {
                self.holds.insert(id, Hold { ends: now.plus(hold_ms), commits, forwarded: None, ..hold });
            }
            (Some(Outcome::Admit), None) => {
                self.resolve(id, true, now, now, &mut effects);
                self.memos.insert(id, Memo { outcome: Outcome::Admit, at: now });
            }
            (Some(outcome), _) => {
                self.resolve(id, false, now, now, &mut effects);
                self.memos.insert(id, Memo { outcome: outcome.clone(), at: now });
                if let Outcome::Deny(denial) = outcome
                    && denial.code == Code::RateLimited
                    && let Some(k) = self.number(&denial.key)
                    && let Some(cost) =
                        hold.forwarded.iter().flat_map(|forwarded| &forwarded.costs).find(|cost| cost.0 == k)
                    && let Some(allowance) = self.allowances.get_mut(k)
                {
                    allowance.renewal.refused(cost.1, denial.retry_after_ms, now);
                }
            }
            (None, _) => {}
        }
        (answer, effects)
    }
}

/// What one of `others` may hold of a rate limit, and above which a cost is a large one; a quota has no queue.
fn fair_share(policy: Policy, others: u64) -> u64 {
    match policy {
        Policy::Rate { burst, .. } => (burst / (2 * others)).max(1),
        Policy::Quota { .. } => 0,
    }
}

enum Affords {
    Yes,
    AskParent,
    No(Denial, bool),
}

/// A newer policy comes into force, after minting under the old one.
fn change_policy(allowance: &mut Allowance, new: Policy, open: u64) {
    let old = allowance.rule.policy;
    if let (Policy::Quota { amount, .. }, Policy::Quota { amount: raised, .. }) = (old, new) {
        // Signed: what a lowering could not take back is owed, or lowering and raising again would make tokens.
        let lost = amount.saturating_sub(raised);
        allowance.owed += lost.saturating_sub(allowance.avail);
        allowance.avail = allowance.avail.saturating_sub(lost);
        let gained = raised.saturating_sub(amount);
        let paid = gained.min(allowance.owed);
        allowance.owed -= paid;
        allowance.avail += gained - paid;
    } else {
        // A rate never rises by a change: raised a hundredfold, it still starts from what is there.
        let room = new.capacity().saturating_sub(open);
        let part = u128::from(allowance.part) * u128::from(new.parts()) / u128::from(old.parts());
        allowance.part = if allowance.avail >= room { 0 } else { u64::try_from(part).unwrap_or(0) };
        allowance.avail = allowance.avail.min(room);
    }
}
