//! Features: something a plan can switch on, and how one answer comes of everything that was said about it.
//!
//! Invariant: an entitlement comes of exactly one source, the first that speaks in the order kill switch > override
//! (unexpired, nearest in the parent chain) > plan > global default > off; an explicit `false` speaks. What has ended
//! says nothing any more, with no write: ends are exclusive, so at the instant `until` it is over.

use std::collections::BTreeMap;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value as Json;

use super::decision::{Code, stored_as_name};
use super::id::TenantId;
use super::name::FeatureName;
use super::time::UnixMillis;

/// How many JSON values a config value may hold, containers included. With [`MAX_TEXT`] it bounds a document's size.
pub const MAX_NODES: usize = 256;
/// How many bytes of text (strings and member names) a config value may hold.
pub const MAX_TEXT: usize = 4096;
/// How deep a config value may nest.
pub const MAX_DEPTH: usize = 8;

/// What a feature's value is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// On or off.
    Boolean,
    /// A JSON value that the operator's API reads. `false` and `null` are off, anything else is on.
    Config,
    /// On or off, and what is on is counted against limits.
    Metered,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 3] = [Self::Boolean, Self::Config, Self::Metered];

    /// Its stored form.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Boolean => "boolean",
            Self::Config => "config",
            Self::Metered => "metered",
        }
    }

    /// Whether a feature of this kind may be set to `value`.
    #[must_use]
    pub const fn accepts(self, value: &Value) -> bool {
        match self {
            Self::Boolean | Self::Metered => matches!(value.0, Json::Bool(_)),
            Self::Config => true,
        }
    }

    /// Whether `value` switches such a feature on. What is not of its type does not.
    #[must_use]
    pub const fn is_on(self, value: &Value) -> bool {
        match self {
            Self::Boolean | Self::Metered => matches!(value.0, Json::Bool(true)),
            Self::Config => !matches!(value.0, Json::Bool(false) | Json::Null),
        }
    }
}

stored_as_name!(Kind);

/// What a feature is set to: JSON of bounded size.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(transparent)]
pub struct Value(Json);

/// What a feature is that nobody switched on.
static OFF: Value = Value::OFF;

impl Value {
    /// Switched on.
    pub const ON: Self = Self(Json::Bool(true));
    /// Switched off.
    pub const OFF: Self = Self(Json::Bool(false));

    /// The value as JSON.
    #[must_use]
    pub const fn as_json(&self) -> &Json {
        &self.0
    }
}

/// The value is larger than a feature's value may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooLarge;

impl std::fmt::Display for TooLarge {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "holds more than {MAX_NODES} values or {MAX_TEXT} bytes of text, or nests deeper than {MAX_DEPTH}")
    }
}

impl std::error::Error for TooLarge {}

impl TryFrom<Json> for Value {
    type Error = TooLarge;

    fn try_from(json: Json) -> Result<Self, TooLarge> {
        fn measure(json: &Json, depth: usize, nodes: &mut usize, text: &mut usize) -> Option<()> {
            *nodes = nodes.checked_sub(1)?;
            let depth_below = || depth.checked_sub(1);
            match json {
                Json::Null | Json::Bool(_) | Json::Number(_) => {}
                Json::String(string) => *text = text.checked_sub(string.len())?,
                Json::Array(items) => {
                    let depth = depth_below()?;
                    items.iter().try_for_each(|item| measure(item, depth, nodes, text))?;
                }
                Json::Object(members) => {
                    let depth = depth_below()?;
                    members.iter().try_for_each(|(name, item)| {
                        *text = text.checked_sub(name.len())?;
                        measure(item, depth, nodes, text)
                    })?;
                }
            }
            Some(())
        }
        measure(&json, MAX_DEPTH, &mut { MAX_NODES }, &mut { MAX_TEXT }).ok_or(TooLarge)?;
        Ok(Self(json))
    }
}

impl From<bool> for Value {
    fn from(on: bool) -> Self {
        Self(Json::Bool(on))
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Json::deserialize(deserializer)?.try_into().map_err(D::Error::custom)
    }
}

/// A feature, as the catalog defines it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Definition {
    /// What its value is.
    pub kind: Kind,
    /// What it is where nothing else says so. Without one it is off.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default: Option<Value>,
    /// What it is, for people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub description: String,
}

/// An operator's switch that turns a feature off for everyone, above every override.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KillSwitch {
    /// Why.
    pub reason: String,
    /// Who threw it.
    pub author: String,
    /// The first instant at which it no longer holds; without one, until it is lifted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<UnixMillis>,
}

/// A tenant's own value for a feature.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Override {
    /// The value; `false` switches off what the plan grants.
    pub value: Value,
    /// The first instant at which it no longer holds; without one, until it is removed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<UnixMillis>,
    /// Why.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
}

/// The overrides of one tenant in a parent chain.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Level {
    /// Whose they are.
    pub tenant: TenantId,
    /// Its overrides.
    #[serde(default)]
    pub overrides: BTreeMap<FeatureName, Override>,
}

/// Everything that can speak about a feature, for one tenant.
#[derive(Clone, Copy, Debug)]
pub struct Voices<'a> {
    /// The features there are.
    pub definitions: &'a BTreeMap<FeatureName, Definition>,
    /// The kill switches.
    pub kill_switches: &'a BTreeMap<FeatureName, KillSwitch>,
    /// The tenant's own overrides first, then its parent's, and so on upward.
    pub levels: &'a [Level],
    /// What the tenant's plan grants; `false` is an explicit no.
    pub plan: &'a BTreeMap<FeatureName, Value>,
}

/// What an entitlement comes of.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Source<'a> {
    /// A kill switch.
    KillSwitch(&'a KillSwitch),
    /// An override.
    Override {
        /// Of which tenant: the one that asked, or an ancestor.
        tenant: TenantId,
        /// How far up it is: 0 is the tenant that asked.
        level: usize,
        /// The override.
        set: &'a Override,
    },
    /// The plan.
    Plan,
    /// The feature's global default.
    Default,
    /// Nothing says anything about it.
    Off,
    /// There is no such feature.
    Unknown,
}

impl Source<'_> {
    /// Its stable name in answers.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::KillSwitch(_) => "kill_switch",
            Self::Override { .. } => "override",
            Self::Plan => "plan",
            Self::Default => "default",
            Self::Off => "off",
            Self::Unknown => "unknown_feature",
        }
    }
}

/// The resolved answer for one tenant and one feature.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Entitlement<'a> {
    /// Whether the feature is on.
    pub enabled: bool,
    /// What it is set to; `false` where it was switched off or never set.
    pub value: &'a Value,
    /// What this answer comes of.
    pub source: Source<'a>,
    /// When this answer ends by itself, if it does.
    pub until: Option<UnixMillis>,
}

impl Entitlement<'_> {
    /// The code of a refusal for want of this feature; none if it is on.
    #[must_use]
    pub const fn refusal(&self) -> Option<Code> {
        if self.enabled {
            return None;
        }
        Some(match self.source {
            Source::KillSwitch(_) => Code::FeatureKilled,
            Source::Override { .. } | Source::Plan | Source::Default | Source::Off | Source::Unknown => {
                Code::FeatureNotAvailable
            }
        })
    }
}

/// The entitlement of a tenant to `feature` at `now`. Allocates nothing.
#[must_use]
pub fn resolve<'a>(feature: &str, voices: &Voices<'a>, now: UnixMillis) -> Entitlement<'a> {
    let off = |source, until| Entitlement { enabled: false, value: &OFF, source, until };
    let Some(definition) = voices.definitions.get(feature) else {
        return off(Source::Unknown, None);
    };
    let says =
        |value: &'a Value, source, until| Entitlement { enabled: definition.kind.is_on(value), value, source, until };

    if let Some(kill) = voices.kill_switches.get(feature).filter(|kill| holds(kill.until, now)) {
        return off(Source::KillSwitch(kill), kill.until);
    }
    for (level, Level { tenant, overrides }) in voices.levels.iter().enumerate() {
        if let Some(set) = overrides.get(feature).filter(|set| holds(set.until, now)) {
            return says(&set.value, Source::Override { tenant: *tenant, level, set }, set.until);
        }
    }
    if let Some(value) = voices.plan.get(feature) {
        return says(value, Source::Plan, None);
    }
    match &definition.default {
        Some(value) => says(value, Source::Default, None),
        None => off(Source::Off, None),
    }
}

/// Ends are exclusive.
fn holds(until: Option<UnixMillis>, now: UnixMillis) -> bool {
    until.is_none_or(|until| now < until)
}
