//! Tenants: who is signed up, on which plan, with which exceptions, and under whom.
//!
//! Invariant: a tenant's document names itself and its ancestors, nearest first, and nothing of any other tenant.

use super::map::Map;

use serde::{Deserialize, Serialize};

use super::api_key::{KeyHash, Mode};
use super::closed::closed;
use super::feature::Override;
use super::id::{KeyId, TenantId};
use super::name::{FeatureName, LimitName, PlanName, Scope, ShardName};
use super::period::Period;
use super::plan::Amount;
use super::time::UnixMillis;

/// What a tenant's document says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tenant {
    /// Who it is.
    pub tenant: TenantId,
    /// Its standing.
    pub status: Status,
    /// Where its rows are.
    pub shard: ShardName,
    /// What it holds and what is its own.
    pub level: Level,
    /// How it stands to each limit of its ancestors; where nothing is said, it shares.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub relations: Map<LimitName, Relation>,
    /// Its API keys.
    #[serde(default)]
    pub keys: Vec<KeyRecord>,
    /// Its ancestors, the parent first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ancestors: Vec<Ancestor>,
}

impl Tenant {
    /// The beginning of the usage period around `now`: by the nearest subscription's anchor, a month long. Totals are kept
    /// by it.
    #[must_use]
    pub fn period(&self, now: UnixMillis) -> UnixMillis {
        let levels = std::iter::once(&self.level).chain(self.ancestors.iter().map(|ancestor| &ancestor.level));
        let anchor = levels.filter_map(|level| level.subscription.as_ref()).map(|held| held.anchor).next();
        Period::Month.window(anchor.unwrap_or_default(), now).start
    }
}

/// What one tenant in a chain holds and has of its own.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Level {
    /// Its hold on a plan; a team without one lives on its parent's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subscription: Option<Subscription>,
    /// Its own values for features.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub overrides: Map<FeatureName, Override>,
    /// Its own values for limits of its plan.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub limits: Map<LimitName, LimitOverride>,
    /// What its children carved out of its limits, added up.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub carved: Map<LimitName, Amount>,
}

/// An ancestor, as its descendant's document shows it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Ancestor {
    /// Who it is.
    pub tenant: TenantId,
    /// The serial of its own document when this one was made.
    pub serial: u64,
    /// Its standing: a suspended organisation's teams are suspended with it.
    pub status: Status,
    /// What it holds and what is its own.
    pub level: Level,
    /// How it stands itself to each limit of its own ancestors.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub relations: Map<LimitName, Relation>,
}

closed! {
    /// A tenant's standing.
    pub enum Status {
        /// Trying it out; the gate treats it as active.
        Trial = "trial",
        /// In good standing.
        Active = "active",
        /// Owes something, within grace; the gate treats it as active.
        PastDue = "past_due",
        /// Every request is refused.
        Suspended = "suspended",
        /// Gone; every request is refused.
        Closed = "closed",
    }
}

impl Status {
    /// Whether requests of such a tenant may be admitted at all.
    #[must_use]
    pub const fn serves(self) -> bool {
        match self {
            Self::Trial | Self::Active | Self::PastDue => true,
            Self::Suspended | Self::Closed => false,
        }
    }
}

/// A tenant's hold on a plan.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Subscription {
    /// Which plan.
    pub plan: PlanName,
    /// A version to stay on; the plan's current one where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<u32>,
    /// An instant at which a usage period begins.
    pub anchor: UnixMillis,
}

/// A tenant's own value for a limit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LimitOverride {
    /// What holds in place of the plan's amount.
    pub amount: Amount,
    /// The first instant at which it holds no more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<UnixMillis>,
}

/// How a tenant stands to a limit of an ancestor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Relation {
    /// It draws on the ancestor's limit with everyone else.
    Share,
    /// It draws on the ancestor's limit, and never more than this.
    Cap(Amount),
    /// This part of its parent's limit is its own, and the parent's is the smaller for it. What is not there to be carved (of another
    /// kind, more than the parent has for all of its children, or of a limit further up) is a cap: nobody gets more than the whole.
    Carve(Amount),
}

/// An API key, as its tenant's document lists it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyRecord {
    /// Its public part.
    pub id: KeyId,
    /// What its text must hash to.
    pub hash: KeyHash,
    /// Live or test.
    pub mode: Mode,
    /// What it may be used for; anything where empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub scopes: Vec<Scope>,
    /// The first instant at which it is refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<UnixMillis>,
    /// Whether it was taken back.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub revoked: bool,
}
