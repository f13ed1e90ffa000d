//! A limit's bucket: minting, and giving back.
//!
//! Invariant: `0 <= avail` and `avail + open <= capacity` at every instant; minting goes stepwise through expiries, so nothing
//! that counts as leased is minted again.

use super::GRACE_MS;
use super::limiter::{Limiter, soonest_first};
use super::message::LeaseId;
use super::policy::{Policy, Recording};
use super::state::{Allowance, Hold, KeyNo, Lease, Past};
use crate::domain::time::UnixMillis;

impl Limiter {
    /// Mints up to `now`, through each expiry in turn: what was leased may be minted again only after it is forgotten.
    pub(super) fn catch_up(&mut self, k: KeyNo, now: UnixMillis) {
        let expired = self.rows.about::<Lease>(k).filter(|(_, lease)| lease.ends <= now);
        for (ends, id) in soonest_first(expired.map(|((_, id), lease)| (lease.ends, id.0.into())).collect()) {
            let id = LeaseId(u64::try_from(id).unwrap_or_default());
            self.mint(k, ends);
            if let Some(lease) = self.rows.remove::<Lease>((k, id)) {
                self.bury(k, id, lease, now);
            }
        }
        self.mint(k, now);
        self.return_pieces(k, now);
    }

    fn mint(&mut self, k: KeyNo, to: UnixMillis) {
        let open = self.open(k);
        let Some(allowance) = self.rows.get::<Allowance>(k) else {
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
        let Some(allowance) = self.rows.get_mut::<Allowance>(k) else {
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
    pub(super) fn open(&self, k: KeyNo) -> u64 {
        let leased: u64 = self.rows.about::<Lease>(k).map(|(_, lease)| lease.open()).sum();
        let held = self.rows.all::<Hold>().flat_map(|(_, hold)| &hold.costs).filter(|cost| cost.0 == k);
        leased + held.map(|cost| cost.1).sum::<u64>()
    }

    /// What nobody holds of one limit: of its bucket, or of its pool.
    pub(super) fn avail(&self, k: KeyNo) -> u64 {
        match self.rows.get::<Allowance>(k) {
            Some(allowance) if allowance.rule.above == 0 => allowance.avail,
            Some(_) => self.pool_free(k),
            None => 0,
        }
    }

    /// Puts tokens back that were taken and never spent.
    pub(super) fn give_back(&mut self, k: KeyNo, tokens: u64) {
        let open = self.open(k);
        let Some(allowance) = self.rows.get_mut::<Allowance>(k) else {
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

    /// A lease has ended: what may still be recorded under it, or come back of a quota, is kept for the grace.
    pub(super) fn bury(&mut self, k: KeyNo, id: LeaseId, mut lease: Lease, now: UnixMillis) {
        let recorded = lease.recording == Recording::Unmetered || lease.billed >= lease.kept();
        let returns = self.is_quota(k) && lease.open() > 0;
        if let Some(piece) = lease.on.filter(|_| !returns) {
            self.piece_used(k, piece, lease.open());
        }
        if !recorded || returns {
            lease.ends = now.plus(GRACE_MS);
            self.rows.insert((k, id), Past(lease));
        }
    }

    /// Nothing more can be said about a lease: what of an exact quota no event was recorded for goes back; what else was never
    /// reported is a gap.
    pub(super) fn settle(&mut self, (k, id): (KeyNo, LeaseId)) {
        let Some(Past(lease)) = self.rows.remove::<Past>((k, id)) else {
            return;
        };
        if let Some(piece) = lease.on.filter(|_| self.is_quota(k)) {
            self.piece_used(k, piece, lease.open());
        }
        let rest = match lease.recording {
            Recording::Unmetered => 0,
            Recording::Leased | Recording::Exact => lease.kept().saturating_sub(lease.billed),
        };
        if lease.recording == Recording::Exact && lease.on.is_none() && self.is_quota(k) {
            self.give_back(k, rest);
        } else if let Some(allowance) = self.rows.get_mut::<Allowance>(k).filter(|_| rest > 0) {
            allowance.gap += rest;
        }
    }

    /// Whether nothing of a limit is ever minted again.
    pub(super) fn is_quota(&self, k: KeyNo) -> bool {
        self.rows.get::<Allowance>(k).is_some_and(|allowance| allowance.rule.policy.ends().is_some())
    }
}

/// A newer policy comes into force, after minting under the old one.
pub(super) fn change_policy(allowance: &mut Allowance, new: Policy, open: u64) {
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
