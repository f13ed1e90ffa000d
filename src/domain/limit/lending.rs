//! LEASE: tokens lent for a short time, and what becomes of them.
//!
//! Invariant: the same seq gets the same answer; a report counts for the lease's holder alone, and only upward; what is
//! billed to a lease never exceeds what it held.

use super::limiter::{Effects, Limiter, key_at};
use super::message::{Ask, Call, Grant, Incarnation, LeaseId, Report, Tally, Usage};
use super::policy::{Policy, Recording, lease_life, ttl_within};
use super::state::{Allowance, KeyNo, Lease, Past, Queued, Reporter, Sender};
use super::{LEAST_TTL_MS, TTL_MS};
use crate::domain::time::UnixMillis;

/// How many tokens each isolate should find when it is told to come back to a limit that has run dry.
const TOKENS_PER_RETURN: u64 = 8;
/// A share below this is of what there is, not of what there may be.
const FEW: u64 = 3;
/// A limit is scarce when less than this part of its capacity is left; and that is what all wait for, at most.
const SCARCE: u64 = 8;

impl Limiter {
    /// Takes in what a holder says of its lease; whether there is nothing more to say.
    pub(super) fn report(&mut self, from: Incarnation, report: Report, k: Option<KeyNo>, now: UnixMillis) -> bool {
        let Some(k) = k else { return true };
        let id = (k, report.lease);
        let is_quota = self.is_quota(k);
        let is_live = self.rows.get::<Lease>(id).is_some();
        let Some(lease) = self.lease_or_past_mut(id).filter(|lease| lease.holder == from) else {
            return true;
        };
        let (on, was_used, was_returned) = (lease.on, lease.used, lease.returned);
        lease.used = report.used.min(lease.kept()).max(lease.used);
        lease.returned = report.returned.min(lease.tokens - lease.used.max(lease.billed)).max(lease.returned);
        let (used, returned) = (lease.used - was_used, lease.returned - was_returned);
        let closed = lease.open() == 0;
        // What was lent of a rate limit is minted again once its lease has expired, and so cannot come back. Of a quota
        // nothing is: it comes back as long as it is known.
        if is_live || is_quota {
            match on {
                Some(piece) => {
                    self.piece_used(k, piece, used);
                    self.piece_returned(k, piece, returned, now);
                }
                None => self.give_back(k, returned),
            }
        }
        if is_live
            && closed
            && let Some(lease) = self.rows.remove::<Lease>(id)
        {
            self.bury(k, report.lease, lease, now);
        }
        closed || !is_live
    }

    /// Takes in counts, once; at most what the lease held.
    pub(super) fn tally(
        &mut self,
        from: Incarnation,
        usage: &Usage,
        keys: &[Option<KeyNo>],
        now: UnixMillis,
        effects: &mut Effects,
    ) -> u64 {
        let last = self.rows.get::<Reporter>(from).map_or(0, |reporter| reporter.number);
        if usage.number <= last {
            return last;
        }
        self.rows.insert(from, Reporter { number: usage.number, heard: now });
        for (place, line) in usage.lines.iter().enumerate() {
            let paid = line.paid.map(|(rule, lease)| (key_at(keys, rule), lease));
            let (key, units) = match paid {
                None => (None, line.units),
                Some((Some(k), lease)) => {
                    (self.rows.get::<Allowance>(k).map(|a| a.rule.key.clone()), self.bill((k, lease), from, line.units))
                }
                Some((None, _)) => (None, 0),
            };
            if units > 0 {
                effects.tallies.push(Tally {
                    id: format!("{from}-{}-{place}", usage.number),
                    key,
                    label: line.label.clone(),
                    units,
                    last: line.last,
                });
            }
        }
        usage.number
    }

    /// Bills up to `units` to a lease that is not settled; how many it still held.
    pub(super) fn bill(&mut self, id: (KeyNo, LeaseId), from: Incarnation, units: u64) -> u64 {
        let Some(lease) = self.lease_or_past(id).filter(|lease| lease.holder == from) else {
            return 0;
        };
        let billed = units.min(lease.kept().saturating_sub(lease.billed));
        if let Some(lease) = self.lease_or_past_mut(id) {
            lease.billed += billed;
        }
        billed
    }

    fn lease_or_past_mut(&mut self, id: (KeyNo, LeaseId)) -> Option<&mut Lease> {
        if self.rows.get::<Lease>(id).is_some() {
            self.rows.get_mut::<Lease>(id)
        } else {
            self.rows.get_mut::<Past>(id).map(|past| &mut past.0)
        }
    }

    pub(super) fn lease_or_past(&self, id: (KeyNo, LeaseId)) -> Option<&Lease> {
        self.rows.get::<Lease>(id).or_else(|| self.rows.get::<Past>(id).map(|past| &past.0))
    }

    /// Isolates and child limiters that used one limit lately.
    pub(super) fn borrowers(&self, k: KeyNo, now: UnixMillis) -> u64 {
        let heard = |sender: &Sender| now.since(sender.heard) < TTL_MS + 1_000;
        self.rows.about::<Sender>(k).filter(|(_, sender)| heard(sender)).count().max(1) as u64
    }

    /// What is kept for large costs; ahead of `ticket`, if that is one of them.
    pub(super) fn queued(&self, k: KeyNo, ticket: Option<u64>) -> u64 {
        let ahead = self.rows.all::<Queued>().take_while(|(other, _)| ticket.is_none_or(|ticket| *other < ticket));
        ahead
            .filter(|(_, queued)| queued.holds)
            .flat_map(|(_, queued)| &queued.costs)
            .filter(|cost| cost.0 == k)
            .map(|cost| cost.1)
            .sum()
    }

    /// LEASE.
    pub(super) fn lease(&mut self, call: &Call, ask: Ask, k: KeyNo, now: UnixMillis) -> Grant {
        let sender = self.rows.get::<Sender>((k, call.from)).cloned();
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
        self.rows.insert((k, call.from), Sender { heard: now, seq: ask.seq, grant: None });
        let grant = self.grant(call, ask, k, now).unwrap_or(none);
        self.rows.insert((k, call.from), Sender { heard: now, seq: ask.seq, grant: Some(grant) });
        grant
    }

    fn grant(&mut self, call: &Call, ask: Ask, k: KeyNo, now: UnixMillis) -> Option<Grant> {
        let allowance = self.rows.get::<Allowance>(k)?;
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
        // Of a burst of a few tokens for each, what some hold idle is soon what others lack: there the share is one of what is
        // there now, to the nearest token.
        let most = if share < FEW { (avail + others) / (2 * others) } else { avail / 2 };
        let mut tokens = want.min(free).min(share).min(most.max(1));
        let mut take = share < 2 && !pooled;
        let mut on = None;
        if pooled {
            self.rows.get_mut::<Allowance>(k)?.renewal.note(tokens.max(want.div_ceil(4)));
            take = self.rows.get::<Allowance>(k)?.renewal.takes(now);
            (on, tokens, ttl_ms) = self.choose_piece(k, tokens, full_ttl, now);
        }
        if take || ttl_ms < LEAST_TTL_MS {
            (tokens, take) = (0, take || !pooled);
        }
        let scarce =
            tokens < want.min(share.max(1)) && free.saturating_sub(tokens) < policy.capacity() / SCARCE && !take;
        // A pool is short while its next piece is under way. That says nothing of a quota, which is refused until its end: each
        // asks for itself.
        let retry_after_ms = match (scarce, pooled, policy) {
            (false, ..) | (true, true, Policy::Quota { .. }) => 0,
            (true, true, Policy::Rate { .. }) => 200,
            (true, false, _) => pace(policy, others),
        };
        let lease = LeaseId(self.head.last_lease + 1);
        if tokens > 0 {
            self.head.last_lease = lease.0;
            match on {
                Some(piece) => self.piece_lent(k, piece, tokens),
                None => self.rows.get_mut::<Allowance>(k)?.avail -= tokens,
            }
            let ends = now.plus(lease_life(ttl_ms));
            let lent = Lease { holder: call.from, tokens, used: 0, returned: 0, billed: 0, ends, recording, on };
            self.rows.insert((k, lease), lent);
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
}

/// What one of `others` may hold of a rate limit, and above which a cost is a large one; a quota has no queue.
pub(super) fn fair_share(policy: Policy, others: u64) -> u64 {
    match policy {
        Policy::Rate { burst, .. } => (burst / (2 * others)).max(1),
        Policy::Quota { .. } => 0,
    }
}

/// When a limit has run dry, how long until everyone finds something again: the longer, the fewer calls; but not so
/// long that those who are within the limit are refused what has long been there again.
pub(super) fn pace(policy: Policy, others: u64) -> u64 {
    let each = policy.ms_to_mint(others * TOKENS_PER_RETURN).unwrap_or(2_000);
    let plenty = policy.ms_to_mint((policy.capacity() / SCARCE).max(1)).unwrap_or(2_000);
    each.min(plenty).clamp(100, 2_000)
}
