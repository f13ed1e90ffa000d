//! The catalog: what an operator offers, and how requests map to it. One document, the same for every tenant.
//!
//! Invariant: a catalog that was parsed names only features and meters that it defines, and each gate hostname leads to
//! one origin.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::feature::{Definition, KillSwitch};
use super::name::{FeatureName, MeterName, OriginName, PlanName};
use super::path::Case;
use super::route::{Route, Unmatched};

/// The origin that `/gate/*` on the API host leads to.
pub const DEFAULT_ORIGIN: &str = "default";

/// What the catalog document says.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Catalog {
    /// What plans can switch on.
    #[serde(default)]
    pub features: BTreeMap<FeatureName, Definition>,
    /// Features that are off for everyone, above every override.
    #[serde(default)]
    pub kill_switches: BTreeMap<FeatureName, KillSwitch>,
    /// What usage is counted under.
    #[serde(default)]
    pub meters: BTreeMap<MeterName, Meter>,
    /// The APIs that the gate protects.
    #[serde(default)]
    pub origins: BTreeMap<OriginName, Origin>,
    /// Which version of each plan is current.
    #[serde(default)]
    pub plans: BTreeMap<PlanName, Head>,
}

/// A plan's current version, and the one before it, which a reader serves while it cannot see the current one yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Head {
    /// The version that "latest" means.
    pub version: u32,
    /// The version before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous: Option<u32>,
}

/// How usage of one kind is recorded.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Meter {
    /// For people.
    #[serde(default)]
    pub description: String,
    /// When an event is durable.
    #[serde(default)]
    pub recording: Recording,
    /// When a request is charged.
    #[serde(default)]
    pub charge: Charge,
}

/// When an event is durable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Recording {
    /// The isolate counts, and reports with its renewals: no waiting. A crash loses at most what its lease held; that gap
    /// is shown and never billed.
    #[default]
    Leased,
    /// The event is in the tenant's outbox before the response is released.
    Exact,
}

/// When a request is charged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Charge {
    /// When it is admitted, whatever the origin makes of it.
    #[default]
    Admit,
    /// When the origin answered below 400. Only an exact meter can: the units are reserved meanwhile.
    Success,
}

/// An API that the gate protects.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Origin {
    /// Where admitted requests go.
    pub target: Target,
    /// Gate hostnames: every path of them is gated for this origin. In lower case, without port.
    #[serde(default)]
    pub hosts: Vec<String>,
    /// Whether the origin tells `/A` from `/a`. The match must do as the origin does.
    #[serde(default = "sensitive")]
    pub case: Case,
    /// What becomes of a request that no rule matches.
    #[serde(default)]
    pub unmatched: Unmatched,
    /// Whether CORS preflights (`OPTIONS` with `Access-Control-Request-Method`), which browsers send without a key, pass.
    #[serde(default)]
    pub preflights: Preflights,
    /// The rules.
    #[serde(default)]
    pub routes: Vec<Route>,
}

const fn sensitive() -> Case {
    Case::Sensitive
}

/// Where admitted requests go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum Target {
    /// The built-in origin, which answers with what it was sent: to see the gate work before there is an API behind it.
    Demo,
    /// A service binding of this Worker, by its name.
    Service(String),
    /// An `https` origin: scheme and host, no path.
    Https(String),
}

/// What becomes of CORS preflights.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Preflights {
    /// They go to the origin, unmetered and without an identity.
    Pass,
    /// They need a key like any request.
    #[default]
    Gate,
}
