//! Features: something a plan can switch on, and how one answer comes of everything that was said about it.
//!
//! Invariant: an entitlement comes of exactly one source, the first that speaks in the order kill switch > override
//! (unexpired, nearest in the parent chain) > plan > global default > off; an explicit `false` speaks. What has ended
//! says nothing any more, with no write: ends are exclusive, so at the instant `until` it is over.

use super::map::Map;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value as Json;

use super::closed::stored_as_name;
use super::decision::{Code, Fail, Mode};
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

    /// Why a feature of this kind cannot have `value`.
    #[must_use]
    pub fn misfit(self, value: &Value) -> String {
        // Not by `Display`: that would bring a second and a third writer of JSON into the module.
        format!("a {} feature cannot be {}", self.name(), serde_json::to_string(&value.0).unwrap_or_default())
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
    /// Whether what is refused for want of it is refused. Where it only observes, that passes, is recorded, and says so; limits are not
    /// touched by it.
    #[serde(default, skip_serializing_if = "is_usual")]
    pub mode: Mode,
    /// What happens to a request that needs it when no decision can be made. It passes where its rule says so or its feature.
    #[serde(default, skip_serializing_if = "is_usual")]
    pub fail: Fail,
}

fn is_usual<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
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
    pub overrides: Map<FeatureName, Override>,
}

/// Everything that can speak about a feature, for one tenant.
#[derive(Clone, Copy, Debug)]
pub struct Voices<'a> {
    /// The features there are.
    pub definitions: &'a Map<FeatureName, Definition>,
    /// The kill switches.
    pub kill_switches: &'a Map<FeatureName, KillSwitch>,
    /// The tenant's own overrides first, then its parent's, and so on upward.
    pub levels: &'a [Level],
    /// What the tenant's plan grants; `false` is an explicit no.
    pub plan: &'a Map<FeatureName, Value>,
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::id::Jurisdiction;
    use proptest::prelude::*;
    use serde_json::json;

    const NOW: UnixMillis = UnixMillis(1_795_000_000_000);
    const FEATURE: &str = "analytics";

    type Until = Option<UnixMillis>;

    /// What is said about one feature, level by level.
    #[derive(Clone, Debug, Default)]
    struct Said {
        kind: Option<Kind>,
        kill: Option<Until>,
        levels: Vec<Option<(Json, Until)>>,
        plan: Option<Json>,
        default: Option<Json>,
    }

    struct World {
        definitions: Map<FeatureName, Definition>,
        kill_switches: Map<FeatureName, KillSwitch>,
        levels: Vec<Level>,
        plan: Map<FeatureName, Value>,
    }

    impl World {
        fn voices(&self) -> Voices<'_> {
            Voices {
                definitions: &self.definitions,
                kill_switches: &self.kill_switches,
                levels: &self.levels,
                plan: &self.plan,
            }
        }
    }

    fn tenant(level: usize) -> TenantId {
        TenantId::new(Jurisdiction::Global, NOW, [u8::try_from(level).unwrap(); 4])
    }

    fn world(said: &Said) -> World {
        fn about<T>(value: Option<T>) -> Map<FeatureName, T> {
            value.into_iter().map(|value| (FEATURE.parse().unwrap(), value)).collect()
        }
        let value = |json: &Json| Value::try_from(json.clone()).unwrap();
        World {
            definitions: about(said.kind.map(|kind| Definition {
                mode: Mode::default(),
                fail: Fail::default(),
                kind,
                default: said.default.as_ref().map(value),
                description: String::new(),
            })),
            kill_switches: about(said.kill.map(|until| KillSwitch {
                reason: "leak".into(),
                author: "op".into(),
                until,
            })),
            levels: (said.levels.iter().enumerate())
                .map(|(level, set)| Level {
                    tenant: tenant(level),
                    overrides: about(set.as_ref().map(|(json, until)| Override {
                        value: value(json),
                        until: *until,
                        reason: String::new(),
                    })),
                })
                .collect(),
            plan: about(said.plan.as_ref().map(value)),
        }
    }

    /// The source's name (with the level of an override), and whether the feature is on.
    fn answer(said: &Said, now: UnixMillis) -> (String, bool) {
        let world = world(said);
        let entitlement = resolve(FEATURE, &world.voices(), now);
        let source = match entitlement.source {
            Source::Override { level, tenant: of, .. } => {
                assert_eq!(of, tenant(level));
                format!("override {level}")
            }
            other => other.name().to_owned(),
        };
        (source, entitlement.enabled)
    }

    #[test]
    fn every_kind_round_trips() {
        for kind in Kind::ALL {
            assert_eq!(kind.name().parse(), Ok(kind));
        }
    }

    #[test]
    fn the_first_that_speaks_decides() {
        let on = || Some(json!(true));
        let off = || Some(json!(false));
        let set = |value: bool| Some((json!(value), None));
        let said = |kill: bool, levels: &[Option<(Json, Until)>], plan, default| Said {
            kind: Some(Kind::Boolean),
            kill: kill.then_some(None),
            levels: levels.to_vec(),
            plan,
            default,
        };
        for (said, source, enabled) in [
            (said(false, &[], None, None), "off", false),
            (said(false, &[], None, on()), "default", true),
            (said(false, &[], None, off()), "default", false),
            (said(false, &[], on(), None), "plan", true),
            (said(false, &[], on(), off()), "plan", true),
            (said(false, &[], off(), on()), "plan", false),
            (said(false, &[set(true)], off(), off()), "override 0", true),
            (said(false, &[set(false)], on(), on()), "override 0", false),
            (said(false, &[None, set(true)], off(), off()), "override 1", true),
            (said(false, &[None, set(false)], on(), on()), "override 1", false),
            (said(false, &[set(true), set(false)], off(), off()), "override 0", true),
            (said(false, &[set(false), set(true)], on(), on()), "override 0", false),
            (said(false, &[None, None, set(true)], None, None), "override 2", true),
            (said(true, &[set(true)], on(), on()), "kill_switch", false),
            (said(true, &[], None, None), "kill_switch", false),
        ] {
            assert_eq!(answer(&said, NOW), (source.to_owned(), enabled), "{said:?}");
            // Metered features are switched as boolean ones are.
            assert_eq!(answer(&Said { kind: Some(Kind::Metered), ..said }, NOW), (source.to_owned(), enabled));
        }
    }

    #[test]
    fn a_feature_that_nobody_defined_is_off_by_its_own_source() {
        let said = Said { plan: Some(json!(true)), levels: vec![Some((json!(true), None))], ..Said::default() };
        assert_eq!(answer(&said, NOW), ("unknown_feature".to_owned(), false));
    }

    #[test]
    fn an_end_comes_by_itself_and_is_exclusive() {
        let end = NOW.plus(1000);
        let said = Said {
            kind: Some(Kind::Boolean),
            levels: vec![Some((json!(true), Some(end)))],
            plan: Some(json!(false)),
            ..Said::default()
        };
        assert_eq!(answer(&said, end.minus(1)), ("override 0".to_owned(), true));
        assert_eq!(answer(&said, end), ("plan".to_owned(), false));
        let world = world(&said);
        assert_eq!(resolve(FEATURE, &world.voices(), NOW).until, Some(end));
        assert_eq!(resolve(FEATURE, &world.voices(), end).until, None);

        let killed = Said { kill: Some(Some(end)), ..said };
        assert_eq!(answer(&killed, end.minus(1)), ("kill_switch".to_owned(), false));
        assert_eq!(answer(&killed, end), ("plan".to_owned(), false));
    }

    #[test]
    fn a_config_value_is_on_unless_it_says_no() {
        for (value, enabled) in [
            (json!({ "seats": 5 }), true),
            (json!(0), true),
            (json!(""), true),
            (json!([]), true),
            (json!(true), true),
            (json!(false), false),
            (json!(null), false),
        ] {
            let said = Said { kind: Some(Kind::Config), plan: Some(value.clone()), ..Said::default() };
            assert_eq!(answer(&said, NOW), ("plan".to_owned(), enabled), "{value}");
            let world = world(&said);
            assert_eq!(resolve(FEATURE, &world.voices(), NOW).value.as_json(), &value);
        }
    }

    #[test]
    fn a_value_of_another_type_switches_nothing_on() {
        for value in [json!("true"), json!(1), json!({ "enabled": true }), json!(null)] {
            let stored = Value::try_from(value.clone()).unwrap();
            for kind in [Kind::Boolean, Kind::Metered] {
                assert!(!kind.accepts(&stored) && !kind.is_on(&stored), "{value}");
            }
            assert!(Kind::Config.accepts(&stored));
        }
        assert!(Kind::Boolean.accepts(&Value::ON) && Kind::Metered.accepts(&Value::OFF));
    }

    #[test]
    fn a_refusal_names_the_kill_switch_apart() {
        let refusal = |said: &Said| resolve(FEATURE, &world(said).voices(), NOW).refusal();
        let on = Said { kind: Some(Kind::Boolean), default: Some(json!(true)), ..Said::default() };
        assert_eq!(refusal(&on), None);
        assert_eq!(refusal(&Said { kill: Some(None), ..on }), Some(Code::FeatureKilled));
        assert_eq!(refusal(&Said::default()), Some(Code::FeatureNotAvailable));
    }

    #[test]
    fn a_value_is_bounded_in_every_direction() {
        let nested = |depth| (0..depth).fold(json!(1), |inner, _| json!([inner]));
        for (json, fits) in [
            (nested(MAX_DEPTH), true),
            (nested(MAX_DEPTH + 1), false),
            (json!("x".repeat(MAX_TEXT)), true),
            (json!("x".repeat(MAX_TEXT + 1)), false),
            (json!({ "x".repeat(MAX_TEXT + 1): 1 }), false),
            (json!(vec![0; MAX_NODES - 1]), true),
            (json!(vec![0; MAX_NODES]), false),
        ] {
            assert_eq!(Value::try_from(json).is_ok(), fits);
        }
        assert!(serde_json::from_value::<Override>(json!({ "value": nested(99) })).is_err());
    }

    #[test]
    fn documents_name_every_member_and_no_other() {
        let level = json!({
            "tenant": tenant(0),
            "overrides": { "analytics": { "value": false, "until": 1_795_000_000_000_u64, "reason": "trial ended" } }
        });
        assert_eq!(serde_json::to_value(serde_json::from_value::<Level>(level.clone()).unwrap()).unwrap(), level);
        assert!(serde_json::from_value::<Override>(json!({ "value": true, "untill": 1 })).is_err());
        assert!(serde_json::from_value::<Override>(json!({ "until": 1 })).is_err(), "an override without a value");
        assert!(serde_json::from_value::<Definition>(json!({ "kind": "flag" })).is_err());
        assert!(serde_json::from_value::<KillSwitch>(json!({ "reason": "x" })).is_err());
    }

    fn json_value() -> impl Strategy<Value = Json> {
        prop_oneof![Just(json!(true)), Just(json!(false)), Just(json!(null)), Just(json!(3)), Just(json!({ "a": [1] }))]
    }

    fn end() -> impl Strategy<Value = Until> {
        proptest::option::of((0_u64..4).prop_map(|ms| NOW.plus(ms)))
    }

    fn said() -> impl Strategy<Value = Said> {
        let kind = prop_oneof![9 => proptest::sample::select(&Kind::ALL[..]).prop_map(Some), 1 => Just(None)];
        let levels = proptest::collection::vec(proptest::option::of((json_value(), end())), 0..5);
        let rest = (proptest::option::of(json_value()), proptest::option::of(json_value()));
        (kind, proptest::option::weighted(0.3, end()), levels, rest)
            .prop_map(|(kind, kill, levels, (plan, default))| Said { kind, kill, levels, plan, default })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2048))]

        /// Everything that speaks, in a list, in order; the first is the answer.
        #[test]
        fn resolution_is_the_first_voice_in_order(said in said(), ms in 0_u64..5) {
            let now = NOW.plus(ms);
            let over = |until: Option<UnixMillis>| until.is_some_and(|until| until <= now);
            let mut voices: Vec<(String, Json)> = Vec::new();
            if said.kill.is_some_and(|until| !over(until)) {
                voices.push(("kill_switch".into(), json!(false)));
            }
            for (level, set) in said.levels.iter().enumerate() {
                if let Some((value, until)) = set && !over(*until) {
                    voices.push((format!("override {level}"), value.clone()));
                }
            }
            voices.extend(said.plan.clone().map(|value| ("plan".into(), value)));
            voices.extend(said.default.clone().map(|value| ("default".into(), value)));
            voices.push(("off".into(), json!(false)));
            if said.kind.is_none() {
                voices.insert(0, ("unknown_feature".into(), json!(false)));
            }
            let (source, value) = voices.swap_remove(0);
            let enabled = match said.kind {
                Some(Kind::Config) => value != json!(false) && value != json!(null),
                _ => value == json!(true),
            };
            prop_assert_eq!(answer(&said, now), (source, enabled));
        }

        /// What an answer promises of its end holds: until then it stays, and at it something else speaks.
        #[test]
        fn an_answer_holds_until_its_end(said in said()) {
            let world = world(&said);
            let voices = world.voices();
            let first = resolve(FEATURE, &voices, NOW);
            if let Some(until) = first.until {
                prop_assert_eq!(&resolve(FEATURE, &voices, until.minus(1)), &first);
                prop_assert_ne!(resolve(FEATURE, &voices, until).source, first.source);
            } else {
                prop_assert_eq!(resolve(FEATURE, &voices, NOW.plus(1_000_000)), first);
            }
        }
    }
}
