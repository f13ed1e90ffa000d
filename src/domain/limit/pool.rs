//! Pools: what a child's limiter leased from its parent's and lends on. To its parent it is what an isolate is to it.
//!
//! Invariant: a piece's tokens are free, lent on, used or returned; and no lease drawn on it outlives its deadline, its
//! own margins included. A pool mints nothing.

use serde::{Deserialize, Serialize};

use super::limiter::{Effects, Limiter, soonest_first};
use super::message::{Ask, Call, LeaseId, Op, Reply, Report};
use super::policy::{Policy, Rev, Rule, lease_life, ttl_within};
use super::state::{Allowance, KeyNo};
use super::{GRACE_MS, LEAST_TTL_MS, TTL_MS};
use crate::domain::time::UnixMillis;

/// How much of the demand a pool keeps in hand before it fetches more: isolates renew about once in 4 s.
const AHEAD_MS: u64 = 3_000;
/// Pieces are at least this part of the parent's capacity: small ones fragment, and each costs the parent a call.
const LEAST_PIECE: u64 = 50;
/// After how long without a confirmation the parent's limiter is told again what became of a piece.
const TELL_AGAIN_MS: u64 = 1_000;

/// A lease from the parent's limiter.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Piece {
    tokens: u64,
    free: u64,
    used: u64,
    returned: u64,
    /// Until when it may be spent, counted from the first send of its ask.
    deadline: UnixMillis,
    /// `used + returned` as last reported, and when.
    told: u64,
    told_at: UnixMillis,
}

impl Piece {
    /// Nothing of it is free or lent on any more.
    const fn is_done(&self) -> bool {
        self.used + self.returned >= self.tokens
    }

    /// When the parent's limiter is to be told what became of it, seen from `now`.
    fn is_told_at(&self, now: UnixMillis) -> UnixMillis {
        if self.told != self.used + self.returned && self.is_done() {
            now
        } else if now < self.deadline {
            self.deadline
        } else {
            self.told_at.plus(TELL_AGAIN_MS).max(self.deadline)
        }
    }
}

impl Limiter {
    /// What to ask of the parent's limiter now and to tell it, if anything. The shell sends it behind its answer, after each
    /// step and tick, and hands the reply to [`Self::parent_reply`]. Its changes must be stored before it is sent.
    pub fn parent_call(&mut self, clock: UnixMillis) -> Option<Call> {
        let now = self.advance(clock, &mut Effects::default());
        let pools = self.rows.keys_where::<Allowance>(usize::MAX, |allowance| allowance.rule.above > 0);
        let (mut rules, mut reports, mut asks) = (Vec::new(), Vec::new(), Vec::new());
        let mut is_due = false;
        for k in pools {
            self.catch_up(k, now);
            let rule = rules.len();
            is_due |= self.return_unspendable(k);
            let ask = self.fetch(k, now).map(|(seq, want)| Ask { rule, seq, want });
            let about: Vec<_> = self.pieces_of(k).map(|(id, piece)| (id, piece.clone())).collect();
            // What was merely used can wait for the next ask; what ended or goes back frees its tokens at the parent's.
            is_due |= ask.is_some() || about.iter().any(|(_, piece)| piece.is_told_at(now) <= now);
            if ask.is_none() && about.is_empty() {
                continue;
            }
            let Some(above) = self.rule_above(k) else {
                continue;
            };
            rules.push(above);
            asks.extend(ask);
            reports.extend(about.into_iter().map(|(lease, piece)| Report {
                rule,
                lease,
                used: piece.used,
                returned: piece.returned,
            }));
        }
        if !is_due {
            return None;
        }
        for id in self.rows.keys_where::<Piece>(usize::MAX, |piece| {
            piece.told != piece.used + piece.returned || piece.is_told_at(now) <= now
        }) {
            if let Some(piece) = self.rows.get_mut::<Piece>(id) {
                (piece.told, piece.told_at) = (piece.used + piece.returned, now);
            }
        }
        Some(self.call_above(rules, reports, asks, None))
    }

    /// Takes in what the parent's limiter answered to [`Self::parent_call`].
    pub fn parent_reply(&mut self, reply: &Reply, clock: UnixMillis) {
        let now = self.advance(clock, &mut Effects::default());
        for lease in &reply.settled {
            let settled = self.rows.all::<Piece>().map(|(id, _)| id).filter(|id| id.1 == *lease);
            for id in settled.collect::<Vec<_>>() {
                self.rows.remove::<Piece>(id);
            }
        }
        let pools = self.rows.keys_where::<Allowance>(usize::MAX, |allowance| allowance.rule.above > 0);
        for grant in &reply.grants {
            for k in &pools {
                let Some(allowance) = self.rows.get_mut::<Allowance>(*k) else {
                    continue;
                };
                let Some(sent) = allowance.renewal.answered(grant, now) else {
                    continue;
                };
                if grant.tokens > 0 {
                    let piece = Piece {
                        tokens: grant.tokens,
                        free: grant.tokens,
                        used: 0,
                        returned: 0,
                        deadline: sent.plus(grant.ttl_ms),
                        told: 0,
                        told_at: now,
                    };
                    let lendable = lendable_until(allowance.depth, now);
                    self.rows.insert((*k, grant.lease), piece);
                    // What can no longer be lent only keeps the parent's others from it.
                    self.return_pieces(*k, lendable.min(sent.plus(grant.ttl_ms).minus(1)));
                }
            }
        }
    }

    /// The ask for the next piece, when the pool runs low or its pieces end.
    fn fetch(&mut self, k: KeyNo, now: UnixMillis) -> Option<(u64, u64)> {
        let allowance = self.rows.get::<Allowance>(k)?;
        let ttl_ms = piece_ttl_ms(allowance.depth);
        if now < allowance.renewal.asks_from() || allowance.rule.valid_until <= now {
            return None;
        }
        let capacity = allowance.rule.policy.capacity();
        let lendable = lendable_until(allowance.depth, now);
        let free: u64 =
            self.pieces_of(k).filter(|(_, piece)| piece.deadline > lendable).map(|(_, piece)| piece.free).sum();
        let mut renewal = allowance.renewal.clone();
        let needed = renewal.demand(AHEAD_MS, now);
        let spendable = self.spendable(k, ttl_ms).saturating_sub(self.held(k));
        if needed == 0 || free > needed || spendable == 0 {
            return None;
        }
        let want = renewal.demand(ttl_ms, now).max(capacity / LEAST_PIECE).max(1).min(spendable);
        let mut seq = self.head.last_seq;
        let ask = renewal.ask(want, ttl_ms, &mut seq, now)?;
        self.head.last_seq = seq;
        self.rows.get_mut::<Allowance>(k)?.renewal = renewal;
        Some(ask)
    }

    /// What is free of a pool beyond what its caps let be spent goes back at once: it was fetched before a cap was heard of, or
    /// under a higher one, and would be out of the parent's others' reach until its piece ends. Whether there was any.
    fn return_unspendable(&mut self, k: KeyNo) -> bool {
        let Some(allowance) = self.rows.get::<Allowance>(k) else { return false };
        let spendable = self.spendable(k, piece_ttl_ms(allowance.depth));
        let free = self.pieces_of(k).filter(|(_, piece)| piece.free > 0).map(|(id, _)| id).collect::<Vec<_>>();
        let excess = self.held(k).saturating_sub(spendable);
        let mut rest = excess;
        for id in free {
            let Some(piece) = self.rows.get_mut::<Piece>((k, id)).filter(|_| rest > 0) else { break };
            let part = rest.min(piece.free);
            piece.free -= part;
            piece.returned += part;
            rest -= part;
        }
        rest < excess
    }

    /// What a pool has that is neither used nor given back.
    fn held(&self, k: KeyNo) -> u64 {
        self.pieces_of(k).map(|(_, piece)| piece.tokens - piece.used - piece.returned).sum()
    }

    /// How much of a pool could be spent in the next `ms`: whoever draws on it pays the caps of the same name too, and those
    /// give no more than they hold and mint.
    pub(super) fn spendable(&self, k: KeyNo, ms: u64) -> u64 {
        let Some(pool) = self.rows.get::<Allowance>(k) else { return 0 };
        let caps = self.rows.all::<Allowance>().map(|(_, cap)| &cap.rule).filter(|cap| {
            let pool = &pool.rule;
            cap.above < pool.above && cap.key.limit == pool.key.limit && cap.key.mode == pool.key.mode
        });
        caps.filter_map(|cap| match cap.policy {
            Policy::Rate { tokens, interval_ms, burst } => {
                Some(burst.saturating_add(tokens.saturating_mul(ms) / interval_ms.max(1)))
            }
            Policy::Quota { .. } => None,
        })
        .fold(u64::MAX, u64::min)
    }

    /// A message to the parent's limiter.
    pub(super) fn call_above(&self, rules: Vec<Rule>, reports: Vec<Report>, asks: Vec<Ask>, op: Option<Op>) -> Call {
        let pools = self.rows.all::<Allowance>().filter(|(_, allowance)| allowance.rule.above > 0);
        let depth = pools.map(|(_, allowance)| allowance.depth.saturating_add(1)).max().unwrap_or(1);
        let rev = rules.iter().fold(Rev::default(), |rev, rule| rev.with(rule.rev));
        Call { from: self.head.me, depth, rev, rules, reports, asks, op, usage: None }
    }

    /// A pool's rule as the limiter above sees it: one step nearer to its bucket.
    pub(super) fn rule_above(&self, k: KeyNo) -> Option<Rule> {
        let rule = &self.rows.get::<Allowance>(k)?.rule;
        Some(Rule { above: rule.above.saturating_sub(1), ..rule.clone() })
    }

    pub(super) fn is_pool(&self, k: KeyNo) -> bool {
        self.rows.get::<Allowance>(k).is_some_and(|allowance| allowance.rule.above > 0)
    }

    pub(super) fn pieces_of(&self, k: KeyNo) -> impl Iterator<Item = (LeaseId, &Piece)> + Clone {
        self.rows.about::<Piece>(k).map(|((_, id), piece)| (id, piece))
    }

    /// What may be lent or spent of a pool now. Ended pieces have nothing free: [`Self::return_ended_pieces`] saw to it.
    pub(super) fn pool_free(&self, k: KeyNo) -> u64 {
        self.pieces_of(k).map(|(_, piece)| piece.free).sum()
    }

    /// The piece to lend from, how much, and for how long: the one that ends first, if it has half of what is wanted and
    /// lasts; else the fullest that does.
    pub(super) fn choose_piece(
        &self,
        k: KeyNo,
        want: u64,
        full_ttl: u64,
        now: UnixMillis,
    ) -> (Option<LeaseId>, u64, u64) {
        let lasting = self.pieces_of(k).filter(|(_, piece)| piece.free > 0).filter_map(|(id, piece)| {
            let ttl = ttl_within(piece.deadline.since(now)).min(full_ttl);
            (ttl >= LEAST_TTL_MS).then_some((ttl, id, piece))
        });
        let soonest = lasting.clone().filter(|(_, _, piece)| piece.free >= want.div_ceil(2));
        let chosen = soonest
            .min_by_key(|(_, id, piece)| (piece.deadline, *id))
            .or_else(|| lasting.max_by_key(|(_, _, piece)| piece.free));
        chosen.map_or((None, 0, full_ttl), |(ttl, id, piece)| (Some(id), want.min(piece.free), ttl))
    }

    pub(super) fn piece_lent(&mut self, k: KeyNo, id: LeaseId, tokens: u64) {
        if let Some(piece) = self.rows.get_mut::<Piece>((k, id)) {
            piece.free = piece.free.saturating_sub(tokens);
        }
    }

    pub(super) fn piece_used(&mut self, k: KeyNo, id: LeaseId, tokens: u64) {
        if tokens > 0
            && let Some(piece) = self.rows.get_mut::<Piece>((k, id))
        {
            piece.used += tokens;
        }
    }

    /// What an isolate gave back of a piece is free again, or after its deadline goes back to the parent in turn.
    pub(super) fn piece_returned(&mut self, k: KeyNo, id: LeaseId, tokens: u64, now: UnixMillis) {
        if tokens > 0
            && let Some(piece) = self.rows.get_mut::<Piece>((k, id))
        {
            if now < piece.deadline {
                piece.free += tokens;
            } else {
                piece.returned += tokens;
            }
        }
    }

    /// A reservation on a piece is void.
    pub(super) fn piece_taken_back(&mut self, k: KeyNo, id: LeaseId, tokens: u64, now: UnixMillis) {
        // Once told as used it is gone: what was said to the parent is cumulative.
        if now < self.rows.get::<Piece>((k, id)).map_or(UnixMillis(0), |piece| piece.deadline)
            && self.rows.get::<Piece>((k, id)).is_some_and(|piece| piece.told == 0)
            && let Some(piece) = self.rows.get_mut::<Piece>((k, id))
        {
            piece.used = piece.used.saturating_sub(tokens);
            piece.free += tokens;
        }
    }

    /// Spends `cost` of a pool at once, from as many pieces as it takes, those that end first first.
    pub(super) fn draw(&mut self, k: KeyNo, cost: u64, now: UnixMillis) -> Vec<(KeyNo, LeaseId, u64)> {
        let pieces = self.pieces_of(k).filter(|(_, p)| p.free > 0 && now < p.deadline);
        let pieces = soonest_first(pieces.map(|(id, p)| (p.deadline, id.0.into())).collect());
        let mut rest = cost;
        let mut drawn = Vec::new();
        for (_, id) in pieces {
            let id = LeaseId(u64::try_from(id).unwrap_or_default());
            let Some(piece) = self.rows.get_mut::<Piece>((k, id)).filter(|_| rest > 0) else {
                break;
            };
            let part = rest.min(piece.free);
            piece.free -= part;
            piece.used += part;
            rest -= part;
            drawn.push((k, id, part));
        }
        drawn
    }

    /// What is free of the pieces that end by `end` goes back. After its deadline nothing of a piece may be spent.
    pub(super) fn return_pieces(&mut self, k: KeyNo, end: UnixMillis) {
        let ended = self.pieces_of(k).filter(|(_, p)| p.free > 0 && end >= p.deadline).map(|(id, _)| id);
        for id in ended.collect::<Vec<_>>() {
            if let Some(piece) = self.rows.get_mut::<Piece>((k, id)) {
                piece.returned += piece.free;
                piece.free = 0;
            }
        }
    }

    /// When the parent's limiter is next to be told of a piece, though nobody asks.
    pub(super) fn pieces_wake_at(&self) -> impl Iterator<Item = UnixMillis> {
        self.rows.all::<Piece>().map(|(_, piece)| piece.is_told_at(self.head.clock))
    }

    pub(super) fn prune_pieces(&mut self, now: UnixMillis) {
        // The parent's limiter has long forgotten it; nobody will ask.
        for id in self.rows.keys_where::<Piece>(usize::MAX, |piece| now.since(piece.deadline) > GRACE_MS) {
            self.rows.remove::<Piece>(id);
        }
    }
}

/// How long a piece lasts that is fetched for borrowers at `depth` limiters above the isolates.
fn piece_ttl_ms(depth: u8) -> u64 {
    TTL_MS << (depth + 1).min(2)
}

/// What ends by then cannot be lent any more at `now`, to those who are `depth` limiters above the isolates: a lease would
/// outlive it.
fn lendable_until(depth: u8, now: UnixMillis) -> UnixMillis {
    now.plus(lease_life(TTL_MS << depth.min(1)))
}
