//! The limiter: the one authority on what a tenant may still use.
//!
//! Invariant: of every limit, `avail` plus what is leased and reserved never exceeds its capacity, at any instant; and a
//! token is in `avail`, in one lease or reservation, or gone. A step that refuses spends nothing.
//!
//! What a step is made of: `bucket` mints and gives back, `lending` answers LEASE and takes in reports, `ops` decides TAKE,
//! RECORD and RESERVE, `pool` borrows from the parent's limiter. This file is the memory they share, and time.

use serde::Serialize;

use super::bucket::change_policy;
use super::message::{Call, Incarnation, OpId, Reply, Tally};
use super::policy::{LimitKey, Policy, Recording, Rev, Rule};
use super::pool::Piece;
use super::renewal::Renewal;
use super::state::{Allowance, Head, Hold, KeyNo, Memo, Past, Queued, Reporter, Sender};
use super::table::{Changes, Place, Row, Rows};
use super::{GRACE_MS, MEMO_MS, QUEUE_MS, SENDER_MS};
use crate::domain::id::TenantId;
use crate::domain::outbox::Event;
use crate::domain::time::UnixMillis;

/// How many old rows of each kind are cleared in a second at most: twice what a limiter's 500 writes a second leave behind.
const PRUNED_PER_SECOND: usize = 1_024;

/// What the shell does besides answering: store this with the step's [`Changes`] in one transaction, then send.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Effects {
    /// Events of exact meters, for the outbox.
    pub events: Vec<Event>,
    /// Counts of leased meters, to gather until they go to the outbox.
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
    pub(super) rows: Rows,
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
        Self { head, rows: Rows::default() }
    }

    /// The limiter that stored these rows; none when the head is not among them, because it never stored anything.
    #[must_use]
    pub fn restore(stored: impl IntoIterator<Item = (Place, Row)>) -> Option<Self> {
        let mut rows = Rows::default();
        for (place, row) in stored {
            rows.restore(place, row);
        }
        rows.get::<Head>(()).cloned().map(|head| Self { head, rows })
    }

    /// What changed since the last time, to be stored.
    pub fn changes(&mut self) -> Changes {
        if self.rows.get::<Head>(()) != Some(&self.head) {
            self.rows.insert((), self.head.clone());
        }
        self.rows.drain()
    }

    /// Answers one call. Nothing waits inside; whatever may fail was parsed before.
    pub fn step(&mut self, call: &Call, clock: UnixMillis) -> (Reply, Effects) {
        let mut effects = Effects::default();
        let now = self.advance(clock, &mut effects);
        let keys: Vec<Option<KeyNo>> = call.rules.iter().map(|rule| self.adopt(rule, call, now)).collect();
        if call.depth == 0 {
            self.head.rev = self.head.rev.with(call.rev);
        }

        let usage = call.usage.as_ref().map(|usage| self.tally(call.from, usage, &keys, now, &mut effects));
        let mut settled = Vec::new();
        for report in &call.reports {
            if self.report(call.from, *report, key_at(&keys, report.rule), now) {
                settled.push(report.lease);
            }
        }
        let mut outcome = None;
        let mut remaining = Vec::new();
        if let Some(op) = &call.op {
            outcome = self.decide(call, op, &keys, now, &mut effects).map(|outcome| (op.id(), outcome));
            remaining =
                op.costs().iter().map(|(place, _)| key_at(&keys, *place).map_or(0, |k| self.avail(k))).collect();
        }
        let mut grants = Vec::new();
        for ask in &call.asks {
            grants.extend(key_at(&keys, ask.rule).map(|k| self.lease(call, *ask, k, now)));
        }
        (Reply { rev: self.head.rev, grants, outcome, remaining, settled, usage }, effects)
    }

    /// What is due without a message: reservations that ended, and what a parent's limiter lent that did. The shell calls it
    /// from its alarm, at [`Self::wakes_at`], and before it shows how limits stand.
    pub fn tick(&mut self, clock: UnixMillis) -> Effects {
        let mut effects = Effects::default();
        let now = self.advance(clock, &mut effects);
        for k in self.rows.keys_where::<Allowance>(usize::MAX, |_| true) {
            self.catch_up(k, now);
        }
        effects
    }

    /// When [`Self::tick`] has something to do.
    #[must_use]
    pub fn wakes_at(&self) -> Option<UnixMillis> {
        let holds = self.rows.all::<Hold>().map(|(_, hold)| hold.ends);
        holds.chain(self.pieces_wake_at()).min()
    }

    /// How a limit stands as of the last step or tick.
    #[must_use]
    pub fn standing(&self, key: &LimitKey) -> Option<Standing> {
        let k = self.number(key)?;
        let allowance = self.rows.get::<Allowance>(k)?;
        let unreported = |past: &Past| match past.0.recording {
            Recording::Unmetered => 0,
            Recording::Leased | Recording::Exact => past.0.kept().saturating_sub(past.0.billed),
        };
        let gap = self.rows.about::<Past>(k).fold(allowance.gap, |gap, (_, past)| gap + unreported(past));
        Some(Standing { avail: self.avail(k), open: self.open(k), capacity: allowance.rule.policy.capacity(), gap })
    }

    /// How every limit stands as of the last step or tick.
    #[must_use]
    pub fn standings(&self) -> Vec<(LimitKey, Standing)> {
        let keys = self.rows.all::<Allowance>().map(|(_, allowance)| &allowance.rule.key);
        keys.filter_map(|key| Some((key.clone(), self.standing(key)?))).collect()
    }

    /// The newest documents that anyone told of.
    #[must_use]
    pub const fn rev(&self) -> Rev {
        self.head.rev
    }

    /// Moves time on: reservations that ended lapse, what is old is forgotten.
    pub(super) fn advance(&mut self, clock: UnixMillis, effects: &mut Effects) -> UnixMillis {
        let before = self.head.clock;
        let now = before.max(clock);
        self.head.clock = now;
        let lapsed = self.rows.all::<Hold>().filter(|(_, hold)| hold.ends <= now);
        for (ends, id) in soonest_first(lapsed.map(|(id, hold)| (hold.ends, id.0)).collect()) {
            let id = OpId(id);
            let commits = self.rows.get::<Hold>(id).is_some_and(|hold| hold.commits);
            self.resolve(id, commits, ends, now, effects);
        }
        for ticket in self.rows.keys_where::<Queued>(usize::MAX, |queued| now.since(queued.asked) > QUEUE_MS) {
            self.rows.remove::<Queued>(ticket);
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
        for id in self.rows.keys_where::<Memo>(PRUNED_PER_SECOND, |memo| old(memo.at, MEMO_MS)) {
            self.rows.remove::<Memo>(id);
        }
        for id in self.rows.keys_where::<Sender>(PRUNED_PER_SECOND, |sender| old(sender.heard, SENDER_MS)) {
            self.rows.remove::<Sender>(id);
        }
        // Its leases are settled by then: lines about them are no longer accepted, whatever their number.
        let kept_ms = SENDER_MS + 2 * GRACE_MS;
        for id in self.rows.keys_where::<Reporter>(PRUNED_PER_SECOND, |reporter| old(reporter.heard, kept_ms)) {
            self.rows.remove::<Reporter>(id);
        }
        for id in self.rows.keys_where::<Past>(PRUNED_PER_SECOND, |past| past.0.ends <= now) {
            self.settle(id);
        }
        self.prune_pieces(now);
        self.prune_allowances(now);
    }

    /// A limit that nobody asked about for an hour is forgotten when remembering it says nothing: its window is over, or its
    /// bucket is as full as a new one.
    fn prune_allowances(&mut self, now: UnixMillis) {
        const IDLE_MS: u64 = 3_600_000;
        let idle =
            self.rows.keys_where::<Allowance>(PRUNED_PER_SECOND, |allowance| now.since(allowance.heard) > IDLE_MS);
        for k in idle {
            self.catch_up(k, now);
            let Some(allowance) = self.rows.get::<Allowance>(k) else {
                continue;
            };
            let over = match allowance.rule.policy {
                Policy::Quota { ends, .. } => now.since(ends) > GRACE_MS,
                Policy::Rate { burst, .. } => {
                    allowance.rule.above > 0 || (allowance.avail >= burst && !allowance.rule.carved)
                }
            };
            let held = self.open(k) > 0
                || self.rows.about::<Past>(k).next().is_some()
                || self.rows.about::<Piece>(k).next().is_some()
                || self.rows.all::<Hold>().any(|(_, hold)| hold.costs.iter().any(|cost| cost.0 == k));
            if over && !held {
                self.rows.remove::<Allowance>(k);
                for id in self.rows.about::<Sender>(k).map(|(id, _)| id).collect::<Vec<_>>() {
                    self.rows.remove::<Sender>(id);
                }
            }
        }
    }

    pub(super) fn number(&self, key: &LimitKey) -> Option<KeyNo> {
        self.rows.all::<Allowance>().find(|(_, allowance)| allowance.rule.key == *key).map(|(k, _)| k)
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
            self.head.last_key = k;
            let empty = rule.above > 0 || (rule.carved && rule.policy.ends().is_none());
            let avail = if empty { 0 } else { rule.policy.capacity() };
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
            self.rows.insert(k, allowance);
            return Some(k);
        };
        self.catch_up(k, now);
        let open = self.open(k);
        let allowance = self.rows.get_mut::<Allowance>(k)?;
        allowance.heard = now;
        allowance.depth = allowance.depth.max(call.depth);
        let held = &allowance.rule;
        // What was granted until an instant ends at it by itself: the same documents say another thing from then on.
        let ended = held.valid_until <= now && rule.rev == held.rev && rule.policy != held.policy;
        if believed && rule.above == held.above && (rule.rev.is_newer_than(held.rev) || ended) {
            change_policy(allowance, rule.policy, open);
            allowance.rule = rule.clone();
        } else if rule.rev == held.rev && rule.policy == held.policy {
            allowance.rule.valid_until = allowance.rule.valid_until.max(rule.valid_until);
        }
        Some(k)
    }
}

/// The limit at a place of a call's rules, if it may be believed.
pub(super) fn key_at(keys: &[Option<KeyNo>], place: usize) -> Option<KeyNo> {
    keys.get(place).copied().flatten()
}

/// What ends, in the order of the ends.
pub(super) fn soonest_first(mut ends: Vec<(UnixMillis, u128)>) -> Vec<(UnixMillis, u128)> {
    ends.sort_unstable();
    ends
}
