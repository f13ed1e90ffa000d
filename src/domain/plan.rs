//! Plans: versioned, immutable sets of entitlements and limits. Data, never code.
//!
//! Invariant: a published version never changes; a change is the next version.

use std::collections::BTreeMap;

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
    #[serde(flatten)]
    pub content: PlanContent,
}

/// What a plan version grants, and the words it refuses with.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PlanContent {
    /// The name that people see, such as "Free".
    pub title: String,
    /// What it says about features. A feature it does not name keeps its global default.
    #[serde(default)]
    pub features: BTreeMap<FeatureName, Value>,
    /// What its tenants may use of each meter.
    #[serde(default)]
    pub limits: BTreeMap<LimitName, Limit>,
    /// Where a refused caller can get more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upgrade_url: Option<String>,
    /// The plan's own words for a refusal, by code; the service's own where it has none.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub wording: BTreeMap<String, String>,
}

/// A bound on the use of one meter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limit {
    /// What it bounds.
    pub meter: MeterName,
    /// By how much.
    #[serde(flatten)]
    pub amount: Amount,
}

/// How much of a meter may be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
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
