//! The catalog: what an operator offers, and how requests map to it. One document, the same for every tenant.
//!
//! Invariant: a catalog that was parsed names only features and meters that it defines, and each gate hostname leads to
//! one origin.

use super::map::Map;

use serde::{Deserialize, Serialize};

use super::closed::closed;
use super::feature::{Definition, KillSwitch};
use super::name::{FeatureName, MeterName, OriginName, PlanName};
use super::path::Case;
use super::route::{Route, RouteTable, Unmatched};

/// The origin that `/gate/*` on the API host leads to.
pub const DEFAULT_ORIGIN: &str = "default";

/// What the catalog document says.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Catalog {
    /// What plans can switch on.
    #[serde(default)]
    pub features: Map<FeatureName, Definition>,
    /// Features that are off for everyone, above every override.
    #[serde(default)]
    pub kill_switches: Map<FeatureName, KillSwitch>,
    /// What usage is counted under.
    #[serde(default)]
    pub meters: Map<MeterName, Meter>,
    /// The APIs that the gate protects.
    #[serde(default)]
    pub origins: Map<OriginName, Origin>,
    /// Which version of each plan is current.
    #[serde(default)]
    pub plans: Map<PlanName, Head>,
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
    /// Whether requests of one key with the same `Idempotency-Key`, method and URL are one use, however often they come. Who calls
    /// says so: a caller that sends one for all of its requests is billed once.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub idempotent: bool,
}

closed! {
    /// When an event is durable.
    #[derive(Default)]
    pub enum Recording {
        /// The isolate counts, and reports with its renewals: no waiting. A crash loses at most what its lease held; that gap
        /// is shown and never billed.
        #[default]
        Leased = "leased",
        /// The event is in the tenant's outbox before the response is released.
        Exact = "exact",
    }
}

closed! {
    /// When a request is charged.
    #[derive(Default)]
    pub enum Charge {
        /// When it is admitted, whatever the origin makes of it.
        #[default]
        Admit = "admit",
        /// When the origin answered below 400. Only an exact meter can: the units are reserved meanwhile.
        Success = "success",
    }
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
    /// Nowhere: an admitted request is answered with 200 and no body. For a proxy that asks here before it passes a request on itself.
    None,
    /// A service binding of this Worker, by its name.
    Service(String),
    /// An `https` origin: scheme and host, no path.
    Https(String),
}

impl Target {
    /// Whether the gate answers itself what it admits.
    #[must_use]
    pub const fn is_here(&self) -> bool {
        matches!(self, Self::Demo | Self::None)
    }
}

closed! {
    /// What becomes of CORS preflights.
    #[derive(Default)]
    pub enum Preflights {
        /// They go to the origin, unmetered and without an identity.
        Pass = "pass",
        /// They need a key like any request.
        #[default]
        Gate = "gate",
    }
}

/// Why a catalog cannot be published: what is wrong with it, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inconsistent {
    /// A JSON pointer into the catalog.
    pub pointer: String,
    /// What is wrong there.
    pub detail: String,
}

impl Catalog {
    /// Checks what no single part can: that names lead somewhere, that routes make a table, that no host has two origins.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn check(&self) -> Result<(), Inconsistent> {
        let wrong = |pointer: String, detail: String| Err(Inconsistent { pointer, detail });
        for (name, definition) in &self.features {
            if let Some(default) = definition.default.as_ref().filter(|default| !definition.kind.accepts(default)) {
                return wrong(format!("/features/{name}/default"), definition.kind.misfit(default));
            }
        }
        if let Some(name) = self.kill_switches.keys().find(|name| !self.features.contains_key(*name)) {
            return wrong(format!("/kill_switches/{name}"), "there is no such feature".to_owned());
        }
        for (name, meter) in &self.meters {
            if meter.charge == Charge::Success && meter.recording == Recording::Leased {
                let detail = "only an exact meter can be charged on success: set recording to exact".to_owned();
                return wrong(format!("/meters/{name}/charge"), detail);
            }
            if meter.idempotent && meter.recording == Recording::Leased {
                let detail = "a leased meter counts and names no use: set recording to exact".to_owned();
                return wrong(format!("/meters/{name}/idempotent"), detail);
            }
        }
        let mut hosts: Map<&str, &OriginName> = Map::new();
        for (name, origin) in &self.origins {
            if let Target::Https(base) = &origin.target
                && !is_https_base(base)
            {
                let detail =
                    "must be https://host, without user, port of another kind, path or query, and not an address"
                        .to_owned();
                return wrong(format!("/origins/{name}/target/https"), detail);
            }
            for (at, host) in origin.hosts.iter().enumerate() {
                if !is_hostname(host) {
                    return wrong(
                        format!("/origins/{name}/hosts/{at}"),
                        "must be a host name in lower case".to_owned(),
                    );
                }
                if let Some(other) = hosts.insert(host, name) {
                    return wrong(
                        format!("/origins/{name}/hosts/{at}"),
                        format!("leads to the origin {other} already"),
                    );
                }
            }
            for (at, route) in origin.routes.iter().enumerate() {
                if let Some(feature) = route.feature.as_ref().filter(|feature| !self.features.contains_key(*feature)) {
                    return wrong(
                        format!("/origins/{name}/routes/{at}/feature"),
                        format!("there is no feature {feature}"),
                    );
                }
                if let Some(meter) = route.meter.as_ref().filter(|meter| !self.meters.contains_key(*meter)) {
                    return wrong(format!("/origins/{name}/routes/{at}/meter"), format!("there is no meter {meter}"));
                }
            }
            if let Err(invalid) = RouteTable::compile(origin.routes.clone(), origin.unmatched, origin.case) {
                return wrong(format!("/origins/{name}/routes"), invalid.to_string());
            }
        }
        Ok(())
    }
}

/// A DNS name in lower case: letters, digits, `-` and `.`, with a dot in it, no label empty, and not an address.
fn is_hostname(text: &str) -> bool {
    let label = |label: &str| {
        !label.is_empty()
            && label.len() <= 63
            && label.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    text.len() <= 253
        && text.contains('.')
        && text.split('.').all(label)
        && text.contains(|c: char| c.is_ascii_lowercase())
}

/// `https://host` and nothing more. Where requests go is the operator's word, and still no way into private networks.
fn is_https_base(text: &str) -> bool {
    let private = [".local", ".internal", ".localhost", ".lan", ".home", ".arpa"];
    text.strip_prefix("https://").is_some_and(|host| {
        // The last label of an address is a number.
        let named = host.rsplit('.').next().is_some_and(|last| last.bytes().any(|b| b.is_ascii_lowercase()));
        is_hostname(host) && named && !private.iter().any(|ending| host.ends_with(ending))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn catalog(json: serde_json::Value) -> Result<(), String> {
        let catalog: Catalog = serde_json::from_value(json).unwrap();
        catalog.check().map_err(|wrong| wrong.pointer)
    }

    #[test]
    fn a_catalog_names_only_what_it_defines() {
        let origin = |routes: serde_json::Value| serde_json::json!({"origins": {"default": {"target": "demo", "routes": routes}}});
        assert_eq!(catalog(origin(serde_json::json!([{"path": "/a"}]))), Ok(()));
        assert_eq!(
            catalog(origin(serde_json::json!([{"path": "/a", "feature": "x"}]))),
            Err("/origins/default/routes/0/feature".into())
        );
        assert_eq!(
            catalog(origin(serde_json::json!([{"path": "/a", "meter": "x"}]))),
            Err("/origins/default/routes/0/meter".into())
        );
        assert_eq!(
            catalog(origin(serde_json::json!([{"path": "/a"}, {"path": "/a"}]))),
            Err("/origins/default/routes".into())
        );
        let kill = serde_json::json!({"kill_switches": {"x": {"reason": "r", "author": "a"}}});
        assert_eq!(catalog(kill), Err("/kill_switches/x".into()));
    }

    #[test]
    fn an_origin_is_a_public_https_host() {
        for good in ["https://api.example.com", "https://a-1.example.co"] {
            assert!(is_https_base(good), "{good}");
        }
        for bad in [
            "http://api.example.com",
            "https://api.example.com/",
            "https://u@example.com",
            "https://10.0.0.1",
            "https://[::1]",
            "https://localhost",
            "https://db.internal",
            "https://example.com:8443",
            "https://0x7f.1",
        ] {
            assert!(!is_https_base(bad), "{bad}");
        }
    }
}
