//! Ops: TAKE, RECORD, RESERVE, COMMIT and VOID.
//!
//! Invariant: the same op id gets the same answer and is done once; all of an op's costs are taken, or none.

use super::QUEUE_LENGTH;
use super::lending::{fair_share, pace};
use super::limiter::{Effects, Limiter, key_at};
use super::message::{Call, Code, Denial, Incarnation, LeaseId, Op, OpId, Outcome, Reply, Reserve, Tag, Take};
use super::policy::Policy;
use super::state::{Allowance, Forwarded, Hold, KeyNo, Lease, Memo, Queued, Sender};
use crate::domain::outbox::Event;
use crate::domain::time::UnixMillis;

/// How soon a refused large cost is told to ask again: well within [`QUEUE_MS`](super::QUEUE_MS), or it would lose its place.
const QUEUED_RETRY_MS: u64 = 500;
/// How long a reservation outlives the call that was forwarded for it.
const FORWARD_MS: u64 = 2_000;

impl Limiter {
    /// Decides or records, once for each op id. None when the parent's limiter has the word.
    pub(super) fn decide(
        &mut self,
        call: &Call,
        op: &Op,
        keys: &[Option<KeyNo>],
        now: UnixMillis,
        effects: &mut Effects,
    ) -> Option<Outcome> {
        // COMMIT and VOID have the id of their RESERVE, and are answered by what became of it.
        match op {
            Op::Commit { id } => return Some(self.commit(*id, now, effects)),
            Op::Void { id, reversals } => return Some(self.void(*id, reversals, now, effects)),
            Op::Take(_) | Op::Record { .. } => {}
        }
        if let Some(memo) = self.rows.get::<Memo>(op.id()) {
            return Some(memo.outcome.clone());
        }
        let outcome = match op {
            Op::Take(take) => {
                if self.rows.get::<Hold>(take.id).is_some_and(|hold| hold.forwarded.is_none()) {
                    return Some(Outcome::Admit);
                }
                self.take(call, take, keys, now, effects)?
            }
            Op::Record { rule, lease, cost, event, .. } => {
                self.record(call.from, key_at(keys, *rule), *lease, *cost, event, effects)
            }
            Op::Commit { .. } | Op::Void { .. } => return None,
        };
        let reserved = self.rows.get::<Hold>(op.id()).is_some();
        // An admitted TAKE with an event has written its memo.
        if !reserved && self.rows.get::<Memo>(op.id()).is_none() {
            self.rows.insert(op.id(), Memo::new(outcome.clone(), now));
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

    /// COMMIT: a reservation is used.
    fn commit(&mut self, id: OpId, now: UnixMillis, effects: &mut Effects) -> Outcome {
        if self.rows.get::<Hold>(id).is_some_and(|hold| hold.forwarded.is_none()) {
            self.resolve(id, true, now, now, effects);
            return Outcome::Done;
        }
        // The memo of a resolved reservation says how it ended.
        match self.rows.get::<Memo>(id).map(|memo| &memo.outcome) {
            Some(Outcome::Done) => Outcome::Done,
            _ => Outcome::Gone,
        }
    }

    /// VOID: a reservation is given back, or a TAKE undone that nobody acted on. Before its op it forbids it.
    ///
    /// What a TAKE took of a rate limit is gone: it did not count as leased, so it may have been minted again since.
    fn void(&mut self, id: OpId, reversals: &[Event], now: UnixMillis, effects: &mut Effects) -> Outcome {
        if self.rows.get::<Hold>(id).is_some() {
            self.resolve(id, false, now, now, effects);
            return Outcome::Done;
        }
        let Some(memo) = self.rows.get::<Memo>(id).cloned() else {
            self.rows.insert(id, Memo::new(Outcome::Gone, now));
            return Outcome::Done;
        };
        match memo.outcome {
            Outcome::Gone | Outcome::Deny(_) => return Outcome::Done,
            Outcome::Done => return Outcome::Gone,
            Outcome::Admit => {}
        }
        for (k, cost) in memo.costs {
            self.catch_up(k, now);
            if self.is_quota(k) {
                self.give_back(k, cost);
            }
        }
        for (k, piece, cost) in memo.drawn {
            self.piece_taken_back(k, piece, cost, now);
        }
        effects.events.extend_from_slice(reversals);
        self.rows.insert(id, Memo::new(Outcome::Gone, now));
        Outcome::Done
    }

    /// A reservation ends as of `at`: it is used, or its tokens go back.
    pub(super) fn resolve(&mut self, id: OpId, commit: bool, at: UnixMillis, now: UnixMillis, effects: &mut Effects) {
        let Some(hold) = self.rows.get::<Hold>(id).cloned() else {
            return;
        };
        // As for an expired lease: minted up to here while it still counted.
        for (k, _) in &hold.costs {
            self.catch_up(*k, at);
        }
        self.rows.remove::<Hold>(id);
        if commit {
            effects.events.extend(hold.events);
        } else {
            for (k, cost) in hold.costs {
                self.give_back(k, cost);
            }
            for (k, piece, cost) in hold.drawn {
                self.piece_taken_back(k, piece, cost, now);
            }
        }
        let outcome = if commit { Outcome::Done } else { Outcome::Gone };
        self.rows.insert(id, Memo::new(outcome, now));
    }

    /// TAKE and RESERVE: all of the costs or none. None when the parent's limiter has the word.
    fn take(
        &mut self,
        call: &Call,
        take: &Take,
        keys: &[Option<KeyNo>],
        now: UnixMillis,
        effects: &mut Effects,
    ) -> Option<Outcome> {
        let Take { id, tag, costs, events, reserve } = take;
        let (id, tag) = (*id, *tag);
        let mut wanted: Vec<(KeyNo, u64)> = Vec::with_capacity(costs.len());
        for (place, cost) in costs {
            let Some(k) = key_at(keys, *place) else {
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
            let seen = self.rows.get::<Sender>((*k, call.from)).cloned();
            let sender = Sender { heard: now, ..seen.unwrap_or(Sender { heard: now, seq: 0, grant: None }) };
            self.rows.insert((*k, call.from), sender);
        }
        let waiting = self.rows.get::<Hold>(id).is_some_and(|hold| hold.forwarded.is_some());
        let ticket = tag
            .and_then(|tag| self.rows.all::<Queued>().find(|(_, queued)| queued.tag == tag).map(|(ticket, _)| ticket));
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
            self.rows.remove::<Queued>(ticket);
        }
        if forward {
            self.hold_and_forward(take, &wanted, now, effects);
            return None;
        }
        let mut drawn = Vec::new();
        let mut own = Vec::new();
        for (k, cost) in &wanted {
            if self.is_pool(*k) {
                drawn.extend(self.draw(*k, *cost, now));
            } else {
                if let Some(allowance) = self.rows.get_mut::<Allowance>(*k) {
                    allowance.avail = allowance.avail.saturating_sub(*cost);
                }
                own.push((*k, *cost));
            }
        }
        if let Some(Reserve { hold_ms, commits }) = *reserve {
            let (events, ends) = (events.clone(), now.plus(hold_ms));
            self.rows.insert(id, Hold { costs: own, drawn, events, ends, commits, forwarded: None });
        } else if !events.is_empty() {
            effects.events.extend_from_slice(events);
            self.rows.insert(id, Memo { costs: own, drawn, ..Memo::new(Outcome::Admit, now) });
        }
        Some(Outcome::Admit)
    }

    /// Whether one limit has `cost` for the holder of `ticket`; and if not, whether it may wait in the queue.
    fn affords(&mut self, k: KeyNo, cost: u64, ticket: Option<u64>, waiting: bool, now: UnixMillis) -> Affords {
        let Some(allowance) = self.rows.get::<Allowance>(k) else {
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
            if let Some(allowance) = self.rows.get_mut::<Allowance>(k).filter(|_| pooled) {
                allowance.renewal.note(cost);
            }
            return Affords::Yes;
        }
        if pooled {
            let denied = allowance.renewal.refuses(cost, now).map(|retry| deny(Code::RateLimited, retry));
            if let Some(allowance) = self.rows.get_mut::<Allowance>(k) {
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
                let wait = if large { wait } else { wait.max(pace(policy, others)) };
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
            None if self.rows.all::<Queued>().count() >= QUEUE_LENGTH => return false,
            None => {
                self.head.last_ticket += 1;
                self.head.last_ticket
            }
        };
        self.rows.insert(ticket, Queued { tag, costs: costs.to_vec(), asked: now, holds });
        true
    }

    /// The child's own part of an op is set aside while its parent's limiter decides the rest.
    fn hold_and_forward(&mut self, take: &Take, wanted: &[(KeyNo, u64)], now: UnixMillis, effects: &mut Effects) {
        let id = take.id;
        let (pooled, own): (Vec<_>, Vec<_>) = wanted.iter().copied().partition(|(k, _)| self.is_pool(*k));
        if self.rows.get::<Hold>(id).is_none() {
            for (k, cost) in &own {
                if let Some(allowance) = self.rows.get_mut::<Allowance>(*k) {
                    allowance.avail = allowance.avail.saturating_sub(*cost);
                }
            }
            let hold = Hold {
                costs: own,
                drawn: Vec::new(),
                events: take.events.clone(),
                ends: now.plus(FORWARD_MS),
                commits: false,
                forwarded: Some(Forwarded { reserve: take.reserve, costs: pooled.clone() }),
            };
            self.rows.insert(id, hold);
        }
        let rules = pooled.iter().filter_map(|(k, _)| self.rule_above(*k)).collect();
        let costs = pooled.iter().enumerate().map(|(place, (_, cost))| (place, *cost)).collect();
        let op = Some(Op::Take(Take { id, tag: take.tag, costs, events: Vec::new(), reserve: None }));
        effects.forward = Some(self.call_above(rules, Vec::new(), Vec::new(), op));
    }

    /// What the parent's limiter said to a forwarded op, and with that the outcome. `None` for an unreachable parent: then
    /// there is no outcome, and the fail mode decides.
    pub fn forwarded(&mut self, id: OpId, reply: Option<&Reply>, clock: UnixMillis) -> (Option<Outcome>, Effects) {
        let mut effects = Effects::default();
        let now = self.advance(clock, &mut effects);
        if let Some(memo) = self.rows.get::<Memo>(id) {
            return (Some(memo.outcome.clone()), effects);
        }
        let Some(hold) = self.rows.get::<Hold>(id).filter(|hold| hold.forwarded.is_some()).cloned() else {
            let reserved = self.rows.get::<Hold>(id).is_some();
            return (reserved.then_some(Outcome::Admit), effects);
        };
        let answer =
            reply.and_then(|reply| reply.outcome.clone()).filter(|answer| answer.0 == id).map(|answer| answer.1);
        let reserve = hold.forwarded.as_ref().and_then(|forwarded| forwarded.reserve);
        match (&answer, reserve) {
            (Some(Outcome::Admit), Some(Reserve { hold_ms, commits })) => {
                self.rows.insert(id, Hold { ends: now.plus(hold_ms), commits, forwarded: None, ..hold });
            }
            (Some(Outcome::Admit), None) => {
                let costs = if hold.events.is_empty() { Vec::new() } else { hold.costs };
                self.resolve(id, true, now, now, &mut effects);
                self.rows.insert(id, Memo { costs, ..Memo::new(Outcome::Admit, now) });
            }
            (Some(outcome), _) => {
                self.resolve(id, false, now, now, &mut effects);
                self.rows.insert(id, Memo::new(outcome.clone(), now));
                if let Outcome::Deny(denial) = outcome
                    && denial.code == Code::RateLimited
                    && let Some(k) = self.number(&denial.key)
                    && let Some(cost) =
                        hold.forwarded.iter().flat_map(|forwarded| &forwarded.costs).find(|cost| cost.0 == k)
                    && let Some(allowance) = self.rows.get_mut::<Allowance>(k)
                {
                    allowance.renewal.refused(cost.1, denial.retry_after_ms, now);
                }
            }
            (None, _) => {}
        }
        (answer, effects)
    }
}

enum Affords {
    Yes,
    AskParent,
    No(Denial, bool),
}
