//! When to ask for a lease, and for how much: the same for an isolate towards its limiter and for a child limiter towards
//! its parent's.
//!
//! Invariant: at most one ask is pending. A repetition keeps the seq and the first send of the original, so that a lease is
//! never spent longer than its limiter remembers it.

use serde::{Deserialize, Serialize};

use super::RETRY_MS;
use super::message::Grant;
use crate::domain::time::UnixMillis;

/// Fewer requests than this in one lease are not worth leasing for: each asks for itself.
const LEAST_REQUESTS: u64 = 4;
/// How much of the demand is kept in hand while a renewal is under way.
const AHEAD_MS: u64 = 700;

/// What one borrower knows about borrowing from one limit.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(super) struct Renewal {
    pending: Option<Pending>,
    demand: Demand,
    /// The smallest cost known to be refused, and until when.
    refused_cost: u64,
    refused_until: UnixMillis,
    /// Do not ask for leases until then: there is too little for that, or it was only just shared out.
    no_ask_until: UnixMillis,
    take_until: UnixMillis,
    /// The last answer said that there is too little.
    scarce: bool,
    /// Costs above this keep a place at the limiter while they are refused; 0 as long as it did not say.
    large: u64,
    large_until: UnixMillis,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
struct Pending {
    seq: u64,
    want: u64,
    sent: UnixMillis,
    last_try: UnixMillis,
}

impl Renewal {
    /// Counts one request, for estimating how much is needed.
    pub(super) fn note(&mut self, cost: u64) {
        self.demand.units = self.demand.units.saturating_add(cost);
        self.demand.requests = self.demand.requests.saturating_add(1);
    }

    /// Takes back a request that was counted and that something else refused.
    pub(super) fn forget(&mut self, cost: u64) {
        self.demand.units = self.demand.units.saturating_sub(cost);
        self.demand.requests = self.demand.requests.saturating_sub(1);
    }

    /// Units needed in `ms`, as far as can be told.
    pub(super) fn demand(&mut self, ms: u64, now: UnixMillis) -> u64 {
        self.demand.fold(now);
        self.demand.unit_rate.max(self.demand.units.saturating_mul(1_000)).saturating_mul(ms) / 1_000_000
    }

    /// Whether so many requests come within `ttl_ms` that a lease pays.
    pub(super) fn is_steady(&mut self, ttl_ms: u64, now: UnixMillis) -> bool {
        self.demand.fold(now);
        let expected = self.demand.request_rate.saturating_mul(ttl_ms) / 1_000_000;
        expected.max(self.demand.requests) >= LEAST_REQUESTS
    }

    /// How little in hand, and what it took to get there, calls for a renewal: some of the demand, at most half of a lease.
    pub(super) fn low_water(&mut self, tokens: u64, now: UnixMillis) -> u64 {
        self.demand(AHEAD_MS, now).saturating_add(1).min(tokens / 2)
    }

    /// For how long a cost is known to be refused, if it is. While there is too little and an ask is on its way, everyone
    /// else need not ask too: what is minted meanwhile is not lost, and comes with its answer.
    ///
    /// A large cost is refused here for a moment only: it has to ask, or it loses its place.
    pub(super) fn refuses(&self, cost: u64, now: UnixMillis) -> Option<u64> {
        if self.is_large(cost) {
            return (now < self.large_until).then(|| self.large_until.since(now));
        }
        if now < self.refused_until && cost >= self.refused_cost {
            return Some(self.refused_until.since(now));
        }
        let asking = self.pending.is_some_and(|pending| now.since(pending.last_try) < RETRY_MS);
        (self.scarce && asking).then_some(100)
    }

    /// When asking makes sense again.
    pub(super) fn asks_from(&self) -> UnixMillis {
        let retry = self.pending.map_or(UnixMillis(0), |pending| pending.last_try.plus(RETRY_MS));
        retry.max(self.no_ask_until).max(self.take_until)
    }

    /// Whether the limiter said that there is too little to lease.
    pub(super) fn takes(&self, now: UnixMillis) -> bool {
        now < self.take_until
    }

    /// The ask to send now: a new one, a repetition of the pending one, or none for the time being.
    pub(super) fn ask(&mut self, want: u64, ttl_ms: u64, next_seq: &mut u64, now: UnixMillis) -> Option<(u64, u64)> {
        if now < self.asks_from() {
            return None;
        }
        // Past half of its time the lease would not be worth having: the old ask is forgotten, and its answer ignored.
        let pending = match self.pending {
            Some(pending) if now.since(pending.sent) <= ttl_ms / 2 => Pending { last_try: now, ..pending },
            _ => {
                *next_seq += 1;
                Pending { seq: *next_seq, want, sent: now, last_try: now }
            }
        };
        self.pending = Some(pending);
        Some((pending.seq, pending.want))
    }

    /// Takes in an answer. If it is the one to the pending ask: when that was first sent.
    pub(super) fn answered(&mut self, grant: &Grant, now: UnixMillis) -> Option<UnixMillis> {
        let pending = self.pending.take_if(|pending| pending.seq == grant.seq)?;
        if grant.take {
            self.take_until = now.plus(grant.ttl_ms);
        }
        self.large = grant.large;
        self.scarce = grant.retry_after_ms > 0;
        if self.scarce {
            self.no_ask_until = now.plus(grant.retry_after_ms);
            self.refused(1, grant.retry_after_ms, now);
        } else if grant.tokens > 0 {
            self.refused_until = now;
        }
        Some(pending.sent)
    }

    const fn is_large(&self, cost: u64) -> bool {
        self.large > 0 && cost > self.large
    }

    /// Remembers that `cost` was refused for `retry_after_ms`; of two that are in force the smaller counts.
    pub(super) fn refused(&mut self, cost: u64, retry_after_ms: u64, now: UnixMillis) {
        if self.is_large(cost) {
            self.large_until = now.plus(LARGE_MS);
            return;
        }
        let in_force = now < self.refused_until;
        if !in_force || cost <= self.refused_cost {
            self.refused_cost = cost;
            self.refused_until = now.plus(retry_after_ms.clamp(100, 2_000));
        }
    }
}

/// How long a refused large cost refuses others of its kind.
const LARGE_MS: u64 = 100;

/// How fast a limit is used: what the last seconds say, halving every second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
struct Demand {
    since: UnixMillis,
    units: u64,
    requests: u64,
    /// Thousandths a second.
    unit_rate: u64,
    request_rate: u64,
}

impl Demand {
    fn fold(&mut self, now: UnixMillis) {
        if self.since == UnixMillis(0) {
            self.since = now;
        }
        let passed = now.since(self.since);
        if passed < 1_000 {
            return;
        }
        // After n seconds the older estimate weighs 1/2^n: over a longer pause it means nothing.
        let weight = |old: u64, new: u64| {
            if passed < 3_000 { old.midpoint(new) } else { new }
        };
        self.unit_rate = weight(self.unit_rate, self.units.saturating_mul(1_000_000) / passed);
        self.request_rate = weight(self.request_rate, self.requests.saturating_mul(1_000_000) / passed);
        (self.since, self.units, self.requests) = (now, 0, 0);
    }
}
