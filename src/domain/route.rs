//! Route rules: from a method and a path to the feature, the meter and the cost of a request.
//!
//! Invariant: for any method and canonical path, at most one rule is the most specific that matches, and
//! [`RouteTable::find`] returns that one. Rules that would tie are refused when the table is compiled.
//!
//! **Patterns.** `/v1/reports` is literal, `/v1/reports/{id}` has a parameter (exactly one segment), `/v1/files/{*rest}`
//! takes any number of further segments, **none included**: it also covers `/v1/files`. A slash at the end of a path does
//! not count. At an origin without letter case literals match in any ASCII case.
//!
//! **Which wins.** Among the rules whose method and path both match: compare the patterns segment by segment from the
//! left, a literal before a parameter before `{*rest}`, and the end of the pattern before a `{*rest}` that takes nothing.
//! The first difference decides. Of two rules with the same pattern, the one that names the method wins over the one
//! for any method.
//!
//! **Methods.** `HEAD` is matched as `GET`, since an origin answers it from the same handler. A method outside [`Method`] is
//! never forwarded, whatever the default says: no rule could have named it, so no rule could protect from it.

use std::cmp::Ordering;
use std::fmt;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::closed::stored_as_name;
use super::decision::{Fail, Mode};
use super::name::{FeatureName, MeterName};
use super::path::{CanonicalPath, Case, NotCanonical, Segments};

/// The most rules that one origin may have. Compiling them costs a cold isolate about a microsecond each.
pub const MAX_ROUTES: usize = 1000;
/// The most segments that a pattern may have: bounds the depth of the walk.
pub const MAX_SEGMENTS: usize = 32;
/// The largest cost, as any number of units: what JSON carries exactly.
pub const MAX_COST: u64 = (1 << 53) - 1;

/// The methods that the gate forwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Method {
    /// `GET`
    Get,
    /// `HEAD`: matched as `GET`, so no rule names it.
    Head,
    /// `POST`
    Post,
    /// `PUT`
    Put,
    /// `PATCH`
    Patch,
    /// `DELETE`
    Delete,
    /// `OPTIONS`
    Options,
}

impl Method {
    /// Every method that is forwarded.
    pub const ALL: [Self; 7] = [Self::Get, Self::Head, Self::Post, Self::Put, Self::Patch, Self::Delete, Self::Options];

    /// The method as HTTP spells it. Methods are case-sensitive: `get` is another, unknown one.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Head => "HEAD",
            Self::Post => "POST",
            Self::Put => "PUT",
            Self::Patch => "PATCH",
            Self::Delete => "DELETE",
            Self::Options => "OPTIONS",
        }
    }

    /// Several, as `Allow` lists them (RFC 9110, 10.2.1).
    #[must_use]
    pub fn listed(methods: &[Self]) -> String {
        methods.iter().map(|method| method.name()).collect::<Vec<_>>().join(", ")
    }

    /// Whether asking twice does no more than asking once (RFC 9110, 9.2.2).
    #[must_use]
    pub const fn is_idempotent(self) -> bool {
        match self {
            Self::Get | Self::Head | Self::Put | Self::Delete | Self::Options => true,
            Self::Post | Self::Patch => false,
        }
    }

    /// Its place in a node of the table: `HEAD` has that of `GET`.
    const fn slot(self) -> usize {
        match self {
            Self::Get | Self::Head => 0,
            Self::Post => 1,
            Self::Put => 2,
            Self::Patch => 3,
            Self::Delete => 4,
            Self::Options => 5,
        }
    }
}

stored_as_name!(Method);

const SLOTS: usize = 6;

/// The methods of a rule. In JSON `"GET"`, `["GET", "POST"]`, or `"*"` for any, which is also the default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Methods {
    /// Any method that is forwarded.
    #[default]
    Any,
    /// These, in the order written; at least one, each once, `HEAD` not among them.
    Only(Vec<Method>),
}

impl fmt::Display for Methods {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("*"),
            Self::Only(methods) => {
                for (place, method) in methods.iter().enumerate() {
                    f.write_str(if place == 0 { "" } else { "," })?;
                    f.write_str(method.name())?;
                }
                Ok(())
            }
        }
    }
}

impl Serialize for Methods {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Any => serializer.serialize_str("*"),
            Self::Only(methods) => match methods.as_slice() {
                [one] => one.serialize(serializer),
                several => several.serialize(serializer),
            },
        }
    }
}

impl<'de> Deserialize<'de> for Methods {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Wanted;

        impl<'de> serde::de::Visitor<'de> for Wanted {
            type Value = Vec<Method>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a method, a list of methods, or \"*\"")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Self::Value, E> {
                if text == "*" {
                    return Ok(Vec::new());
                }
                text.parse().map(|method| vec![method]).map_err(|_| E::custom(format_args!("`{text}` is not a method")))
            }

            fn visit_seq<A: serde::de::SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
                let mut methods = Vec::new();
                while let Some(method) = seq.next_element::<Method>()? {
                    if methods.contains(&method) {
                        return Err(A::Error::custom(format_args!("{method} is named twice")));
                    }
                    methods.push(method);
                }
                if methods.is_empty() {
                    return Err(A::Error::custom("an empty list would match nothing; leave `method` out for any"));
                }
                Ok(methods)
            }
        }

        let methods = deserializer.deserialize_any(Wanted)?;
        if methods.contains(&Method::Head) {
            return Err(D::Error::custom("HEAD is matched as GET; name GET"));
        }
        Ok(if methods.is_empty() { Self::Any } else { Self::Only(methods) })
    }
}

/// One segment of a pattern, most specific kind first.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Segment {
    /// In canonical form.
    Literal(Box<str>),
    Param,
    Rest,
}

/// The path pattern of a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern {
    text: Box<str>,
    segments: Vec<Segment>,
}

/// Why a text is no path pattern.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InvalidPattern {
    /// It has no canonical form as a path.
    NotCanonical(NotCanonical),
    /// It has an empty segment: `//` inside, or a slash at the end.
    EmptySegment,
    /// A brace that is not around a whole segment, or a parameter without a name.
    Parameter,
    /// Two parameters of one name.
    RepeatedParameter,
    /// Segments after `{*rest}`.
    RestNotLast,
    /// A literal with `& + , =` or with an encoded ASCII character: origins differ in how they read these, so the
    /// literal would not cover every spelling. A parameter does.
    AmbiguousLiteral,
    /// More than [`MAX_SEGMENTS`] segments.
    TooManySegments,
}

impl fmt::Display for InvalidPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotCanonical(why) => why.detail(),
            Self::EmptySegment => "A pattern has no empty segment and no slash at the end; it matches with and without.",
            Self::Parameter => "A parameter is a whole segment, `{name}`, of letters, digits and `_`.",
            Self::RepeatedParameter => "Two parameters have the same name.",
            Self::RestNotLast => "`{*rest}` has to be the last segment.",
            Self::AmbiguousLiteral => {
                "A literal cannot hold `&`, `+`, `,`, `=` or an encoded ASCII character, which origins read differently: use a parameter."
            }
            Self::TooManySegments => "A pattern has at most 32 segments.",
        })
    }
}

impl std::error::Error for InvalidPattern {}

impl std::str::FromStr for Pattern {
    type Err = InvalidPattern;

    fn from_str(text: &str) -> Result<Self, InvalidPattern> {
        let inner = text.strip_prefix('/').ok_or(InvalidPattern::NotCanonical(NotCanonical::NotAbsolute))?;
        let mut segments = Vec::new();
        let mut names = Vec::new();
        for segment in inner.split('/').filter(|_| !inner.is_empty()) {
            if segments.last() == Some(&Segment::Rest) {
                return Err(InvalidPattern::RestNotLast);
            }
            if segments.len() == MAX_SEGMENTS {
                return Err(InvalidPattern::TooManySegments);
            }
            let name = segment.strip_prefix('{').and_then(|rest| rest.strip_suffix('}'));
            segments.push(match name {
                Some(name) => {
                    let (kind, name) = match name.strip_prefix('*') {
                        Some(name) => (Segment::Rest, name),
                        None => (Segment::Param, name),
                    };
                    if name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
                        return Err(InvalidPattern::Parameter);
                    }
                    if names.contains(&name) {
                        return Err(InvalidPattern::RepeatedParameter);
                    }
                    names.push(name);
                    kind
                }
                None => Segment::Literal(literal(segment)?),
            });
        }
        Ok(Self { text: text.into(), segments })
    }
}

/// A literal segment in canonical form, if it has only one spelling.
fn literal(segment: &str) -> Result<Box<str>, InvalidPattern> {
    if segment.is_empty() {
        return Err(InvalidPattern::EmptySegment);
    }
    if segment.contains(['{', '}']) {
        return Err(InvalidPattern::Parameter);
    }
    let path = format!("/{segment}");
    let path = CanonicalPath::parse(&path).map_err(InvalidPattern::NotCanonical)?;
    let literal = path.segments().next().unwrap_or_default();
    // An encoded byte below 0x80 begins with a digit below 8.
    let encoded_ascii = literal.split('%').skip(1).any(|after| after.starts_with(|c| c < '8'));
    if encoded_ascii || literal.contains(['&', '+', ',', '=']) {
        return Err(InvalidPattern::AmbiguousLiteral);
    }
    Ok(literal.into())
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Serialize for Pattern {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text)
    }
}

impl<'de> Deserialize<'de> for Pattern {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        std::borrow::Cow::<'de, str>::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

/// A rule, as the operator writes it and as the catalog holds it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Route {
    /// Which methods it is for.
    #[serde(default)]
    pub method: Methods,
    /// Which paths it is for.
    pub path: Pattern,
    /// The feature that the tenant must have. Without one, every tenant with a valid key may pass.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub feature: Option<FeatureName>,
    /// The meter that a request counts under, and so the limits that it takes from. Without one it takes from none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub meter: Option<MeterName>,
    /// The units of one request, at most [`MAX_COST`]. 0 is counted as a request of no units, and no limit refuses it.
    #[serde(default = "one", deserialize_with = "cost")]
    pub cost: u64,
    /// Whether a refusal is carried out.
    #[serde(default)]
    pub mode: Mode,
    /// What happens when no decision can be made.
    #[serde(default)]
    pub fail: Fail,
}

const fn one() -> u64 {
    1
}

fn cost<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    let cost = u64::deserialize(deserializer)?;
    if cost > MAX_COST {
        return Err(D::Error::custom("a cost is at most 2^53-1"));
    }
    Ok(cost)
}

/// `GET /v1/reports/{id}`: how reports, logs and audit records name a rule.
impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.method, self.path)
    }
}

/// What becomes of a request that no rule matches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Unmatched {
    /// It passes, ungated but with its tenant known.
    Allow,
    /// It is refused, `route_denied`: what nobody priced is not given away.
    #[default]
    Deny,
}

impl Unmatched {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Allow, Self::Deny];

    /// Its stored form.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Deny => "deny",
        }
    }
}

stored_as_name!(Unmatched);

/// What the table says about a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Routed<'a> {
    /// This rule decides; before it its place among the rules.
    Rule(usize, &'a Route),
    /// No rule matches, and the default lets it pass.
    Allowed,
    /// No rule matches, and the default refuses it: `route_denied`.
    Denied,
    /// This origin could take the path for another one: `path_not_canonical`.
    Refused(NotCanonical),
}

/// Why rules make no table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum InvalidRoutes {
    /// More than [`MAX_ROUTES`].
    TooMany,
    /// Two rules would match the same request equally well.
    Ambiguous {
        /// The earlier one's place.
        first: usize,
        /// The later one's place.
        second: usize,
        /// The later one, as text.
        route: String,
    },
    /// At an origin without letter case, a literal that folding might reach otherwise.
    CaseAmbiguous {
        /// The rule's place.
        place: usize,
        /// The rule, as text.
        route: String,
    },
}

impl fmt::Display for InvalidRoutes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooMany => write!(f, "an origin has at most {MAX_ROUTES} routes"),
            Self::Ambiguous { first, second, route } => {
                write!(f, "routes {first} and {second} match the same requests equally well: {route}")
            }
            Self::CaseAmbiguous { place, route } => write!(
                f,
                "route {place} has a literal beyond ASCII, or with a dot or space at its end, which an origin without \
                 letter case may also serve under another name; use a parameter: {route}"
            ),
        }
    }
}

impl std::error::Error for InvalidRoutes {}

/// Rules compiled for looking up; made once per version of the catalog.
#[derive(Clone, Debug)]
pub struct RouteTable {
    routes: Vec<Route>,
    root: Node,
    unmatched: Unmatched,
    case: Case,
}

/// One place in the tree of patterns.
#[derive(Clone, Debug, Default)]
struct Node {
    /// Sorted by text; folded to lower case at an origin without letter case.
    literals: Vec<(Box<str>, Node)>,
    param: Option<Box<Node>>,
    /// Rules whose pattern ends here.
    here: Slots,
    /// Rules whose pattern goes on with `{*rest}` from here.
    rest: Slots,
}

/// For each method the place of its rule; a rule for any method fills what no other rule named.
#[derive(Clone, Debug, Default)]
struct Slots {
    named: [Option<usize>; SLOTS],
    any: Option<usize>,
}

impl Slots {
    fn get(&self, method: Method) -> Option<usize> {
        self.named.get(method.slot()).copied().flatten().or(self.any)
    }

    /// Enters the rule at `place`, or says which one is there already.
    fn enter(&mut self, methods: &Methods, place: usize) -> Result<(), usize> {
        let enter = |slot: &mut Option<usize>| slot.replace(place).map_or(Ok(()), Err);
        match methods {
            Methods::Any => enter(&mut self.any),
            Methods::Only(methods) => {
                methods.iter().try_for_each(|method| self.named.get_mut(method.slot()).map_or(Ok(()), enter))
            }
        }
    }
}

impl RouteTable {
    /// The table of these rules.
    ///
    /// # Errors
    /// When two rules tie, or there are too many, or a literal cannot be matched safely at such an origin.
    pub fn compile(routes: Vec<Route>, unmatched: Unmatched, case: Case) -> Result<Self, InvalidRoutes> {
        if routes.len() > MAX_ROUTES {
            return Err(InvalidRoutes::TooMany);
        }
        let mut root = Node::default();
        for (place, route) in routes.iter().enumerate() {
            let (node, is_rest) = root
                .descend(&route.path.segments, case)
                .ok_or_else(|| InvalidRoutes::CaseAmbiguous { place, route: route.to_string() })?;
            let slots = if is_rest { &mut node.rest } else { &mut node.here };
            slots.enter(&route.method, place).map_err(|first| InvalidRoutes::Ambiguous {
                first,
                second: place,
                route: route.to_string(),
            })?;
        }
        Ok(Self { routes, root, unmatched, case })
    }

    /// The rules, in the order given.
    #[must_use]
    pub fn routes(&self) -> &[Route] {
        &self.routes
    }

    /// What is to happen with a request: its rule, else the default. Allocates nothing for an ASCII path.
    #[must_use]
    pub fn route(&self, method: Method, path: &CanonicalPath<'_>) -> Routed<'_> {
        if self.case == Case::Insensitive && path.ambiguous_without_case() {
            return Routed::Refused(NotCanonical::CaseAmbiguous);
        }
        match (self.place(method, path), self.unmatched) {
            (Some((place, route)), _) => Routed::Rule(place, route),
            (None, Unmatched::Allow) => Routed::Allowed,
            (None, Unmatched::Deny) => Routed::Denied,
        }
    }

    /// The most specific rule that matches. Allocates nothing. [`Self::route`] is what decides about a request.
    #[must_use]
    pub fn find(&self, method: Method, path: &CanonicalPath<'_>) -> Option<&Route> {
        self.place(method, path).map(|(_, route)| route)
    }

    fn place(&self, method: Method, path: &CanonicalPath<'_>) -> Option<(usize, &Route)> {
        let place = self.root.find(method, path.segments(), self.case)?;
        self.routes.get(place).map(|route| (place, route))
    }
}

impl Node {
    /// The node of a pattern, made where there was none, and whether the pattern goes on with `{*rest}` from there.
    /// None if a literal cannot be matched safely.
    fn descend(&mut self, segments: &[Segment], case: Case) -> Option<(&mut Self, bool)> {
        let Some((first, rest)) = segments.split_first() else {
            return Some((self, false));
        };
        match first {
            Segment::Rest => Some((self, true)),
            Segment::Param => self.param.get_or_insert_default().descend(rest, case),
            Segment::Literal(text) => {
                let text = match case {
                    Case::Sensitive => text.clone(),
                    Case::Insensitive if text.contains('%') || text.ends_with('.') => return None,
                    Case::Insensitive => text.to_ascii_lowercase().into(),
                };
                let at = match self.literals.binary_search_by(|(known, _)| known.as_ref().cmp(&text)) {
                    Ok(at) => at,
                    Err(at) => {
                        self.literals.insert(at, (text, Self::default()));
                        at
                    }
                };
                self.literals.get_mut(at)?.1.descend(rest, case)
            }
        }
    }

    /// Visits each node at most once, since a node has one depth: the work is bounded by the size of the table.
    fn find(&self, method: Method, mut segments: Segments<'_>, case: Case) -> Option<usize> {
        let Some(first) = segments.next() else {
            return self.here.get(method).or_else(|| self.rest.get(method));
        };
        self.literal(first, case)
            .and_then(|node| node.find(method, segments.clone(), case))
            .or_else(|| self.param.as_ref()?.find(method, segments, case))
            .or_else(|| self.rest.get(method))
    }

    fn literal(&self, segment: &str, case: Case) -> Option<&Self> {
        let compare = |known: &str| match case {
            Case::Sensitive => known.cmp(segment),
            Case::Insensitive => cmp_folded(known, segment),
        };
        let at = self.literals.binary_search_by(|(known, _)| compare(known)).ok()?;
        self.literals.get(at).map(|(_, node)| node)
    }
}

/// Compares a text in lower case with one in any.
fn cmp_folded(lower: &str, any: &str) -> Ordering {
    lower.bytes().cmp(any.bytes().map(|byte| byte.to_ascii_lowercase()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn route(method: &str, path: &str) -> Route {
        serde_json::from_value(json!({ "method": method, "path": path })).unwrap()
    }

    fn table(routes: &[(&str, &str)], case: Case) -> RouteTable {
        let routes = routes.iter().map(|(method, path)| route(method, path)).collect();
        RouteTable::compile(routes, Unmatched::Deny, case).unwrap()
    }

    fn found(table: &RouteTable, method: Method, path: &str) -> Option<String> {
        table.find(method, &CanonicalPath::parse(path).unwrap()).map(Route::to_string)
    }

    #[test]
    fn every_stored_form_round_trips() {
        for method in Method::ALL {
            assert_eq!(method.name().parse(), Ok(method));
        }
        for unmatched in Unmatched::ALL {
            assert_eq!(unmatched.name().parse(), Ok(unmatched));
        }
        for unknown in ["get", "PROPFIND", "TRACE", "CONNECT", "GET ", ""] {
            assert!(unknown.parse::<Method>().is_err(), "{unknown}");
        }
    }

    #[test]
    fn a_rule_is_what_the_operator_writes() {
        let full = json!({
            "method": "GET", "path": "/v1/reports/{id}", "feature": "reports", "meter": "api_calls", "cost": 5,
            "mode": "observe", "fail": "open"
        });
        let rule: Route = serde_json::from_value(full.clone()).unwrap();
        assert_eq!(serde_json::to_value(&rule).unwrap(), full);

        let least: Route = serde_json::from_value(json!({ "path": "/" })).unwrap();
        assert_eq!(
            (least.method, least.cost, least.mode, least.fail, least.feature, least.meter),
            (Methods::Any, 1, Mode::Enforce, Fail::Closed, None, None)
        );

        let list: Route = serde_json::from_value(json!({ "method": ["GET", "POST"], "path": "/" })).unwrap();
        assert_eq!(list.to_string(), "GET,POST /");
        assert_eq!(serde_json::to_value(&list).unwrap()["method"], json!(["GET", "POST"]));
    }

    #[test]
    fn a_rule_that_means_nothing_is_refused() {
        for (bad, says) in [
            (json!({ "path": "/", "costs": 1 }), "unknown field"),
            (json!({ "method": "GET" }), "missing field"),
            (json!({ "path": "/", "method": "get" }), "not a method"),
            (json!({ "path": "/", "method": "HEAD" }), "name GET"),
            (json!({ "path": "/", "method": ["GET", "HEAD"] }), "name GET"),
            (json!({ "path": "/", "method": [] }), "match nothing"),
            (json!({ "path": "/", "method": ["GET", "GET"] }), "twice"),
            (json!({ "path": "/", "cost": -1 }), "invalid value"),
            (json!({ "path": "/", "cost": 9_007_199_254_740_992_u64 }), "2^53-1"),
            (json!({ "path": "/", "mode": "off" }), "enforce, observe"),
            (json!({ "path": "/", "feature": "a b" }), "must be 1 to 128"),
        ] {
            let error = serde_json::from_value::<Route>(bad.clone()).unwrap_err().to_string();
            assert!(error.contains(says), "{bad}: {error}");
        }
    }

    #[test]
    fn a_pattern_has_one_spelling() {
        use InvalidPattern as No;
        for (bad, why) in [
            ("", No::NotCanonical(NotCanonical::NotAbsolute)),
            ("v1", No::NotCanonical(NotCanonical::NotAbsolute)),
            ("/a;b", No::NotCanonical(NotCanonical::Semicolon)),
            ("/a/../b", No::NotCanonical(NotCanonical::DotSegment)),
            ("/a%2fb", No::NotCanonical(NotCanonical::EncodedSlash)),
            ("/a/", No::EmptySegment),
            ("//a", No::EmptySegment),
            ("/{id}.json", No::Parameter),
            ("/x{id}", No::Parameter),
            ("/{}", No::Parameter),
            ("/{*}", No::Parameter),
            ("/{a-b}", No::Parameter),
            ("/{a}/{a}", No::RepeatedParameter),
            ("/{*a}/b", No::RestNotLast),
            ("/a+b", No::AmbiguousLiteral),
            ("/a%2Cb", No::AmbiguousLiteral),
            ("/a b", No::AmbiguousLiteral),
            (&"/a".repeat(MAX_SEGMENTS + 1), No::TooManySegments),
        ] {
            assert_eq!(bad.parse::<Pattern>(), Err(why), "{bad}");
            assert!(why.to_string().ends_with('.'));
        }
        assert_eq!(
            "/%72eports/ü".parse::<Pattern>().unwrap().segments,
            "/reports/%c3%bc".parse::<Pattern>().unwrap().segments
        );
    }

    #[test]
    fn the_most_specific_wins() {
        let table = table(
            &[
                ("*", "/{*rest}"),
                ("*", "/v1/reports/{id}"),
                ("GET", "/v1/reports/{id}"),
                ("GET", "/v1/reports/export"),
                ("POST", "/v1/{kind}/export"),
                ("*", "/v1/files/{*rest}"),
                ("*", "/v1/files"),
            ],
            Case::Sensitive,
        );
        for (method, path, wanted) in [
            (Method::Get, "/v1/reports/export", "GET /v1/reports/export"),
            (Method::Head, "/v1/reports/export/", "GET /v1/reports/export"),
            // The literal's rule is not for POST; `reports` before `{kind}` decides before `export` is looked at.
            (Method::Post, "/v1/reports/export", "* /v1/reports/{id}"),
            (Method::Post, "/v1/audits/export", "POST /v1/{kind}/export"),
            (Method::Get, "/v1/reports/7", "GET /v1/reports/{id}"),
            (Method::Put, "/v1/reports/7", "* /v1/reports/{id}"),
            (Method::Get, "/v1/files", "* /v1/files"),
            (Method::Get, "/v1/files/a/b/c", "* /v1/files/{*rest}"),
            (Method::Get, "/v1/reports", "* /{*rest}"),
            (Method::Get, "/", "* /{*rest}"),
        ] {
            assert_eq!(found(&table, method, path).as_deref(), Some(wanted), "{method} {path}");
        }
    }

    #[test]
    fn rest_takes_nothing_too() {
        let table = table(&[("*", "/v1/admin/{*rest}")], Case::Sensitive);
        for path in ["/v1/admin", "/v1/admin/", "/v1/admin/users"] {
            assert!(found(&table, Method::Delete, path).is_some(), "{path}");
        }
        for path in ["/v1", "/v1/administrator", "/"] {
            assert!(found(&table, Method::Delete, path).is_none(), "{path}");
        }
    }

    #[test]
    fn letter_case_counts_where_the_origin_says_so() {
        let rules = [("*", "/v1/Reports"), ("*", "/V1/{x}/A")];
        let (with, without) = (table(&rules, Case::Sensitive), table(&rules, Case::Insensitive));
        assert!(found(&with, Method::Get, "/v1/reports").is_none());
        assert!(found(&without, Method::Get, "/V1/rEPORTS").is_some());
        assert!(found(&without, Method::Get, "/v1/Zz/a").is_some());

        let path = CanonicalPath::parse("/v1/report%c5%bf").unwrap();
        assert_eq!(with.route(Method::Get, &path), Routed::Denied);
        assert_eq!(without.route(Method::Get, &path), Routed::Refused(NotCanonical::CaseAmbiguous));
    }

    #[test]
    fn ties_and_unsafe_literals_are_refused() {
        let compile = |rules: &[(&str, &str)], case| {
            RouteTable::compile(rules.iter().map(|(m, p)| route(m, p)).collect(), Unmatched::Allow, case).err()
        };
        let tie = compile(&[("GET", "/a"), ("GET", "/{x}"), ("GET", "/{y}")], Case::Sensitive).unwrap();
        assert_eq!(tie.to_string(), "routes 1 and 2 match the same requests equally well: GET /{y}");
        assert!(compile(&[("*", "/a"), ("*", "/a")], Case::Sensitive).is_some());
        assert!(compile(&[("*", "/a"), ("GET", "/a"), ("POST", "/a")], Case::Sensitive).is_none());
        assert!(compile(&[("GET", "/a/{*r}"), ("GET", "/a/{*s}")], Case::Sensitive).is_some());
        assert!(compile(&[("GET", "/a"), ("GET", "/A")], Case::Sensitive).is_none());
        assert!(compile(&[("GET", "/a"), ("GET", "/A")], Case::Insensitive).is_some());
        assert!(compile(&[("GET", "/ü")], Case::Sensitive).is_none());
        assert!(matches!(compile(&[("GET", "/ü")], Case::Insensitive), Some(InvalidRoutes::CaseAmbiguous { .. })));
        let many = (0..=MAX_ROUTES).map(|n| route("GET", &format!("/{n}"))).collect();
        assert_eq!(RouteTable::compile(many, Unmatched::Allow, Case::Sensitive).err(), Some(InvalidRoutes::TooMany));
    }

    #[test]
    fn what_no_rule_names_meets_the_default() {
        let path = CanonicalPath::parse("/x").unwrap();
        for (unmatched, wanted) in [(Unmatched::Allow, Routed::Allowed), (Unmatched::Deny, Routed::Denied)] {
            let table = RouteTable::compile(vec![route("GET", "/a")], unmatched, Case::Sensitive).unwrap();
            assert_eq!(table.route(Method::Get, &path), wanted);
        }
    }

    /// The rule that should win, found by comparing all of them: the order as the module's page words it.
    fn reference(routes: &[Route], method: Method, path: &str, case: Case) -> Option<String> {
        let same = |a: &str, b: &str| if case == Case::Sensitive { a == b } else { a.eq_ignore_ascii_case(b) };
        let path: Vec<&str> = path.split('/').filter(|segment| !segment.is_empty()).collect();
        let method = if method == Method::Head { Method::Get } else { method };
        let rank = |route: &Route| {
            let text = route.path.to_string();
            let pattern: Vec<&str> = text.split('/').filter(|segment| !segment.is_empty()).collect();
            let mut rank = Vec::new();
            for (place, segment) in pattern.iter().enumerate() {
                if segment.starts_with("{*") {
                    rank.push(3);
                } else if segment.starts_with('{') {
                    path.get(place)?;
                    rank.push(1);
                } else if same(segment, path.get(place)?) {
                    rank.push(0);
                } else {
                    return None;
                }
            }
            if rank.last() != Some(&3) {
                if pattern.len() != path.len() {
                    return None;
                }
                rank.push(2);
            }
            let named = match &route.method {
                Methods::Any => 1,
                Methods::Only(methods) if methods.contains(&method) => 0,
                Methods::Only(_) => return None,
            };
            Some((rank, named))
        };
        let mut ranked: Vec<_> = routes.iter().filter_map(|route| Some((rank(route)?, route))).collect();
        ranked.sort_by(|(a, _), (b, _)| a.cmp(b));
        if let [(a, _), (b, _), ..] = ranked.as_slice() {
            assert_ne!(a, b, "a tie that compiling let through");
        }
        ranked.first().map(|(_, route)| route.to_string())
    }

    fn patterns() -> impl Strategy<Value = String> {
        let segment = prop_oneof![3 => "[abAB]", 2 => Just("{}".to_owned())];
        (proptest::collection::vec(segment, 0..4), any::<bool>()).prop_map(|(mut segments, rest)| {
            for (place, segment) in segments.iter_mut().enumerate() {
                if segment == "{}" {
                    *segment = format!("{{p{place}}}");
                }
            }
            if rest {
                segments.push("{*rest}".into());
            }
            format!("/{}", segments.join("/"))
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2048))]

        #[test]
        fn the_table_agrees_with_comparing_every_rule(
            rules in proptest::collection::vec((prop_oneof![Just("*"), Just("GET"), Just("POST")], patterns()), 0..12),
            paths in proptest::collection::vec("(/[abAB]){0,5}/?", 1..12),
            case in prop_oneof![Just(Case::Sensitive), Just(Case::Insensitive)],
        ) {
            // Keep the rules that can stand together, as an operator is made to.
            let mut routes = Vec::new();
            for (method, path) in rules {
                routes.push(route(method, &path));
                if RouteTable::compile(routes.clone(), Unmatched::Allow, case).is_err() {
                    routes.pop();
                }
            }
            let table = RouteTable::compile(routes.clone(), Unmatched::Allow, case).unwrap();
            for path in &paths {
                let raw = format!("/{}", path.trim_start_matches('/'));
                let path = CanonicalPath::parse(&raw).unwrap();
                for method in Method::ALL {
                    let found = table.find(method, &path).map(Route::to_string);
                    prop_assert_eq!(found, reference(&routes, method, &raw, case), "{} {}", method, raw);
                }
            }
        }

        #[test]
        fn no_pattern_panics(text in "[/{}*a%;.]{0,24}") {
            if let Ok(pattern) = text.parse::<Pattern>() {
                prop_assert_eq!(pattern.to_string().parse::<Pattern>(), Ok(pattern));
            }
        }
    }
}
