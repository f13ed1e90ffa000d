//! Plans: versioned, immutable sets of entitlements and limits. Data, never code.
//!
//! Invariant: a published version never changes; a change is the next version.

use super::map::Map;

use serde::{Deserialize, Serialize};

use super::feature::Value;
use super::name::{FeatureName, LimitName, MeterName, PlanName};
use super::period::Period;

/// One version of a plan.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// Its name.
    pub plan: PlanName,
    /// Its version, from 1.
    pub version: u32,
    /// What the operator published.
    pub content: PlanContent,
}

/// What a plan version grants, and the words it refuses with.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlanContent {
    /// The name that people see, such as "Free".
    pub title: String,
    /// What it says about features. A feature it does not name keeps its global default.
    #[serde(default)]
    pub features: Map<FeatureName, Value>,
    /// What its tenants may use of each meter.
    #[serde(default)]
    pub limits: Map<LimitName, Limit>,
    /// Where a refused caller can get more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upgrade_url: Option<String>,
    /// The plan's own words for a refusal, by code; the service's own where it has none.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub wording: Map<String, String>,
}

/// A bound on the use of one meter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Written", into = "Written")]
pub struct Limit {
    /// What it bounds.
    pub meter: MeterName,
    /// By how much.
    pub amount: Amount,
}

/// A bound, as it is written: its amount is a member of its own name.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    meter: MeterName,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    rate: Option<Rate>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    quota: Option<Quota>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Rate {
    units: u64,
    per_ms: u64,
    burst: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Quota {
    units: u64,
    per: Period,
}

impl TryFrom<Written> for Limit {
    type Error = &'static str;

    fn try_from(Written { meter, rate, quota }: Written) -> Result<Self, &'static str> {
        let amount = match (rate, quota) {
            (Some(Rate { units, per_ms, burst }), None) => Amount::Rate { units, per_ms, burst },
            (None, Some(Quota { units, per })) => Amount::Quota { units, per },
            _ => return Err("a limit has a rate or a quota, and not both"),
        };
        Ok(Self { meter, amount })
    }
}

impl From<Limit> for Written {
    fn from(Limit { meter, amount }: Limit) -> Self {
        let (rate, quota) = match amount {
            Amount::Rate { units, per_ms, burst } => (Some(Rate { units, per_ms, burst }), None),
            Amount::Quota { units, per } => (None, Some(Quota { units, per })),
        };
        Self { meter, rate, quota }
    }
}

/// How much of a meter may be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum Amount {
    /// A pace, and how far use may bunch.
    Rate {
        /// Units per interval.
        units: u64,
        /// The interval in milliseconds.
        per_ms: u64,
        /// Units that may be used at once after a pause.
        burst: u64,
    },
    /// A total per usage period.
    Quota {
        /// Units per period.
        units: u64,
        /// The period.
        per: Period,
    },
}

impl Amount {
    /// Whether it can be promised at all, with units that JavaScript can count.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn check(self) -> Result<(), &'static str> {
        const MOST: u64 = (1 << 53) - 1;
        match self {
            Self::Rate { units, per_ms, burst } => {
                if per_ms == 0 || per_ms > 86_400_000 {
                    return Err("per_ms must be from 1 to 86400000, a day");
                }
                if units > 1_000_000_000 || burst > 1_000_000_000 {
                    return Err("units and burst must be at most 1000000000");
                }
                Ok(())
            }
            Self::Quota { units, .. } if units > MOST => Err("units must be at most 2^53-1"),
            Self::Quota { .. } => Ok(()),
        }
    }

    /// More than any limit holds.
    const BEYOND: Self = Self::Rate { units: (1 << 53) - 1, per_ms: 1, burst: (1 << 53) - 1 };

    /// Whether `part` can be taken out of it: it is of the same kind and period, and no more.
    #[must_use]
    pub fn holds(self, part: Self) -> bool {
        match (self, part) {
            (Self::Rate { units, per_ms, burst }, Self::Rate { units: some, per_ms: of_ms, burst: fewer }) => {
                fewer <= burst && u128::from(some) * u128::from(per_ms) <= u128::from(units) * u128::from(of_ms)
            }
            (Self::Quota { units, per }, Self::Quota { units: some, per: of }) => some <= units && per == of,
            (Self::Rate { .. }, Self::Quota { .. }) | (Self::Quota { .. }, Self::Rate { .. }) => false,
        }
    }

    /// Both together. A rate of another interval is brought to this one's, rounded up so that nothing of it is lost. Amounts of
    /// different kinds or periods do not add: no limit holds both.
    #[must_use]
    pub fn with(self, other: Self) -> Self {
        match (self, other) {
            (Self::Rate { units, per_ms, burst }, Self::Rate { units: more, per_ms: of_ms, burst: further }) => {
                let scaled = (u128::from(more) * u128::from(per_ms)).div_ceil(u128::from(of_ms.max(1)));
                Self::Rate {
                    units: units.saturating_add(u64::try_from(scaled).unwrap_or(u64::MAX)),
                    per_ms,
                    burst: burst.saturating_add(further),
                }
            }
            (Self::Quota { units, per }, Self::Quota { units: more, per: same }) if per == same => {
                Self::Quota { units: units.saturating_add(more), per }
            }
            (Self::Rate { .. } | Self::Quota { .. }, _) => Self::BEYOND,
        }
    }
}
