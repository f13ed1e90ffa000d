//! What is promised: keys, policies, and which of two policies is newer; and the one formula for how long a lease lives.
//!
//! Invariant: a policy is exact in integers. One token is `interval_ms` parts and each millisecond mints `tokens` of
//! them, so 100 a minute is 100 a minute for ever, with no rounding to drift.

use serde::{Deserialize, Serialize};

use super::{DRIFT_PERCENT, LAG_MS};
pub use crate::domain::api_key::Mode;
use crate::domain::closed::closed;
use crate::domain::id::TenantId;
use crate::domain::name::LimitName;
use crate::domain::time::UnixMillis;

/// What one allowance is kept for. The tenant is the one that owns the bucket: the level that a refusal names.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct LimitKey {
    /// Whose limit it is.
    pub tenant: TenantId,
    /// Which one.
    pub limit: LimitName,
    /// For which keys.
    pub mode: Mode,
    /// Where the usage period of a quota begins; none for a rate limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window: Option<UnixMillis>,
}

/// How much, and how fast.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Policy {
    /// `tokens` each `interval_ms`, and up to `burst` at once.
    Rate {
        /// Tokens minted in each interval, evenly.
        tokens: u64,
        /// The interval.
        interval_ms: u64,
        /// How many may be kept.
        burst: u64,
    },
    /// `amount` until `ends`. A limit that is only counted has an amount of 2^53-1.
    Quota {
        /// Tokens for the whole window.
        amount: u64,
        /// The end of the window.
        ends: UnixMillis,
    },
}

impl Policy {
    /// The most that can ever be there at once: B of a rate limit, Q of a quota.
    #[must_use]
    pub const fn capacity(self) -> u64 {
        match self {
            Self::Rate { burst, .. } => burst,
            Self::Quota { amount, .. } => amount,
        }
    }

    /// Into how many parts a token is divided; 1 for a quota.
    #[must_use]
    pub(super) const fn parts(self) -> u64 {
        match self {
            Self::Rate { interval_ms: 0, .. } | Self::Quota { .. } => 1,
            Self::Rate { interval_ms, .. } => interval_ms,
        }
    }

    /// How many parts a millisecond mints.
    #[must_use]
    pub(super) const fn parts_per_ms(self) -> u64 {
        match self {
            Self::Rate { tokens, .. } => tokens,
            Self::Quota { .. } => 0,
        }
    }

    /// How long minting `tokens` takes, rounded up; none when it never ends.
    #[must_use]
    pub fn ms_to_mint(self, tokens: u64) -> Option<u64> {
        let parts = u128::from(tokens) * u128::from(self.parts());
        match u128::from(self.parts_per_ms()) {
            0 => None,
            rate => Some(u64::try_from(parts.div_ceil(rate)).unwrap_or(u64::MAX)),
        }
    }

    /// The end of the window of a quota.
    #[must_use]
    pub const fn ends(self) -> Option<UnixMillis> {
        match self {
            Self::Rate { .. } => None,
            Self::Quota { ends, .. } => Some(ends),
        }
    }
}

/// Which documents a rule was resolved from. Each serial only grows, whatever plan the tenant is on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Rev {
    /// The serial of the catalog.
    pub catalog: u64,
    /// The serial of the plan.
    pub plan: u64,
    /// The serial of the tenant's own document.
    pub tenant: u64,
}

impl Rev {
    /// Whether nothing in it is older than in `other` and something is newer. Of two that are each newer in one component
    /// neither is: both senders have something to learn, and the first that learnt it decides.
    #[must_use]
    pub fn is_newer_than(self, other: Self) -> bool {
        self != other && self.with(other) == self
    }

    /// The newest of each component.
    #[must_use]
    pub fn with(self, other: Self) -> Self {
        Self {
            catalog: self.catalog.max(other.catalog),
            plan: self.plan.max(other.plan),
            tenant: self.tenant.max(other.tenant),
        }
    }
}

closed! {
    /// How the use of a limit is recorded, which decides what becomes of an expired lease.
    #[derive(Default)]
    pub enum Recording {
        /// Not at all: a plain rate limit. An expired lease is forgotten.
        #[default]
        Unmetered = "unmetered",
        /// Counted by the isolate and reported with its renewals. What an expired lease never reported is a gap: it stays
        /// debited, is shown, is not billed.
        Leased = "leased",
        /// Event by event, before the answer is released. What no event was recorded for goes back after the grace.
        Exact = "exact",
    }
}

/// One limit as resolved from verified documents; every message carries those it is about.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Rule {
    /// What is counted.
    pub key: LimitKey,
    /// How much.
    pub policy: Policy,
    /// The documents of the key's owner that say so.
    pub rev: Rev,
    /// Until when these documents may be believed.
    pub valid_until: UnixMillis,
    /// How many limiters above this one the bucket is: 0 is a bucket of its own (own, cap and carve), 1 a pool leased from
    /// the parent's limiter (share and cap), and so on.
    #[serde(default)]
    pub above: u8,
    /// How use is recorded.
    #[serde(default)]
    pub recording: Recording,
    /// Whether it is carved out of another limit. What that had lent when this was carved may still be spent, so a rate begins with
    /// nothing; its burst fills as time passes.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub carved: bool,
}

/// What is left to a parent after its children's carves: rates and bursts are subtracted, never below zero, rounding down.
///
/// ```
/// use tollgate::domain::limit::{Policy, carve};
/// let rate = |tokens, interval_ms, burst| Policy::Rate { tokens, interval_ms, burst };
///
/// assert_eq!(carve(rate(100, 1_000, 300), &[rate(600, 60_000, 100)]), rate(90, 1_000, 200));
/// ```
#[must_use]
pub fn carve(whole: Policy, pieces: &[Policy]) -> Policy {
    pieces.iter().fold(whole, |rest, piece| match (rest, *piece) {
        (
            Policy::Rate { tokens, interval_ms, burst },
            Policy::Rate { tokens: taken, interval_ms: of_ms, burst: taken_burst },
        ) => {
            // taken/of_ms tokens a millisecond is taken*interval_ms/of_ms in the parent's own interval.
            let scaled = (u128::from(taken) * u128::from(interval_ms)).div_ceil(u128::from(of_ms.max(1)));
            Policy::Rate {
                tokens: tokens.saturating_sub(u64::try_from(scaled).unwrap_or(u64::MAX)),
                interval_ms,
                burst: burst.saturating_sub(taken_burst),
            }
        }
        (Policy::Quota { amount, ends }, piece) => {
            Policy::Quota { amount: amount.saturating_sub(piece.capacity()), ends }
        }
        (rest @ Policy::Rate { .. }, Policy::Quota { .. }) => rest,
    })
}

/// How long a limiter keeps a lease whose holder may spend it for `ttl_ms`.
///
/// The holder counts from its first send on a clock that may run slow by rho and show delta too little, so it stops within
/// `(ttl + delta)/(1 - rho)` of true time. The limiter counts on a clock that may run fast by rho, from a reading that may be
/// delta too old: `(ttl + delta)*(1 + rho)/(1 - rho) + delta` on its own clock is never less.
#[must_use]
pub const fn lease_life(ttl_ms: u64) -> u64 {
    ((ttl_ms + LAG_MS) * (100 + DRIFT_PERCENT)).div_ceil(100 - DRIFT_PERCENT) + LAG_MS
}

/// The longest time to spend whose [`lease_life`] fits into `life_ms`; 0 when none does.
#[must_use]
pub const fn ttl_within(life_ms: u64) -> u64 {
    (life_ms.saturating_sub(LAG_MS) * (100 - DRIFT_PERCENT) / (100 + DRIFT_PERCENT)).saturating_sub(LAG_MS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_revision_is_newer_only_when_nothing_in_it_is_older() {
        let rev = |catalog, plan, tenant| Rev { catalog, plan, tenant };

        assert!(rev(1, 1, 2).is_newer_than(rev(1, 1, 1)));
        assert!(!rev(1, 1, 1).is_newer_than(rev(1, 1, 1)));
        assert!(!rev(2, 1, 1).is_newer_than(rev(1, 1, 2)));
        assert!(!rev(1, 1, 2).is_newer_than(rev(2, 1, 1)));
        assert_eq!(rev(1, 1, 2).with(rev(2, 1, 1)), rev(2, 1, 2));
    }

    #[test]
    fn a_default_lease_lives_5606_ms_at_its_limiter() {
        assert_eq!(lease_life(5_000), 5_607);
    }

    proptest! {
        #[test]
        fn the_ttl_within_a_life_is_the_longest_that_fits(life in 0_u64..100_000) {
            let ttl = ttl_within(life);
            prop_assert!(ttl == 0 || lease_life(ttl) <= life);
            prop_assert!(lease_life(ttl + 2) > life);
        }
    }
}
