//! Refusals as problem details (RFC 9457), `application/problem+json`.
//!
//! Invariant: status, title and `type` come from the one table of codes ([`Code`]), and every refusal that leaves
//! Tollgate is written here, so clients meet one shape. It is always answered with `Cache-Control: no-store`.

use std::fmt;

use serde::{Serialize, Serializer};

use crate::domain::decision::{Code, Tier};
use crate::domain::id::{RequestId, TenantId};

/// The media type of a problem.
pub const CONTENT_TYPE: &str = "application/problem+json";

/// The address of a code's page: `{base}/problems/{code}`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Page<'a> {
    base: &'a str,
    code: Code,
}

impl fmt::Display for Page<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/problems/{}", self.base, self.code)
    }
}

impl Serialize for Page<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Which documents an answer was made from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Snapshot {
    /// The serial of the tenant's document.
    pub serial: u64,
    /// How long ago it was verified to be the newest that could be read.
    pub age_ms: u64,
}

/// The limit that refused, and at which level.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Limit<'a> {
    /// The limit's name.
    pub name: &'a str,
    /// The tenant whose limit it is: the one that asked, or an ancestor.
    pub tenant: TenantId,
    /// How far up that is: 0 is the tenant that asked.
    pub level: usize,
    /// The units it gives per window, or its burst.
    pub quota: u64,
    /// The units that this request asked for.
    pub cost: u64,
}

/// One thing that is wrong about a request, and where.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Fault {
    /// What is wrong with it.
    pub detail: String,
    /// Its place in the body: a JSON pointer as a URI fragment, `#/limits/0/rate`; `#` is the whole body.
    pub pointer: String,
    /// What is wrong with it, for programs.
    pub code: Code,
}

/// A refusal. Members that do not apply are left out of it; their order here is their order in JSON.
#[derive(Clone, Debug, Serialize)]
pub struct Problem<'a> {
    /// The code's page.
    #[serde(rename = "type")]
    pub page: Page<'a>,
    /// The code's title, or the plan's own wording.
    pub title: &'a str,
    /// The HTTP status.
    pub status: u16,
    /// The stable code.
    pub code: Code,
    /// The title again: many clients show a member of this name.
    pub error: &'a str,
    /// What is particular about this occurrence.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detail: Option<&'a str>,
    /// The feature that was refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub feature: Option<&'a str>,
    /// The plan of the tenant, by the name its users know.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub current_plan: Option<&'a str>,
    /// Where a larger plan can be had.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub upgrade_url: Option<&'a str>,
    /// Where the answer about the feature comes from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<&'a str>,
    /// The limit that refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<Limit<'a>>,
    /// The same limit, as the IETF draft's problem type `quota-exceeded` names it.
    #[serde(rename = "violated-policies", skip_serializing_if = "Option::is_none")]
    pub violated_policies: Option<[&'a str; 1]>,
    /// After how many seconds asking again may help; the same number as in `Retry-After`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry_after: Option<u64>,
    /// What is wrong with the body.
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    pub errors: &'a [Fault],
    /// Who asked, once that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tenant: Option<TenantId>,
    /// What the answer was made from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<Snapshot>,
    /// Who decided.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tier: Option<Tier>,
    /// The request's id, which the operator can look up.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request_id: Option<RequestId>,
}

impl<'a> Problem<'a> {
    /// The bare problem of `code`, whose page is under `base` (scheme and host, without a slash at the end).
    #[must_use]
    pub const fn new(base: &'a str, code: Code) -> Self {
        Self {
            page: Page { base, code },
            title: code.title(),
            status: code.status(),
            code,
            error: code.title(),
            detail: None,
            feature: None,
            current_plan: None,
            upgrade_url: None,
            source: None,
            limit: None,
            violated_policies: None,
            retry_after: None,
            errors: &[],
            tenant: None,
            snapshot: None,
            tier: None,
            request_id: None,
        }
    }

    /// With wording of the plan's own as its title.
    #[must_use]
    pub const fn worded(self, title: &'a str) -> Self {
        Self { title, error: title, ..self }
    }

    /// For a limit that refused.
    #[must_use]
    pub const fn limited(self, limit: Limit<'a>, retry_after: Option<u64>) -> Self {
        Self { limit: Some(limit), violated_policies: Some([limit.name]), retry_after, ..self }
    }

    /// For a body in which something is wrong: the code of the one fault, or `invalid` for several.
    #[must_use]
    pub fn faulty(base: &'a str, faults: &'a [Fault]) -> Self {
        match faults {
            [one] => Self { detail: Some(&one.detail), errors: faults, ..Self::new(base, one.code) },
            several => Self { errors: several, ..Self::new(base, Code::Invalid) },
        }
    }

    /// The problem as JSON.
    #[must_use]
    pub fn to_json(&self) -> String {
        // Only a map with keys that are no strings, or a failing writer, could fail here: there is neither.
        serde_json::to_string(self).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::id::Jurisdiction;
    use crate::domain::time::UnixMillis;

    const BASE: &str = "http://localhost:8787";
    const NOW: UnixMillis = UnixMillis(1_795_000_000_000);

    fn tenant() -> TenantId {
        TenantId::new(Jurisdiction::Eu, NOW, [1, 2, 3, 4])
    }

    fn answered<'a>(problem: &Problem<'a>, tier: Option<Tier>) -> Problem<'a> {
        Problem {
            tenant: Some(tenant()),
            snapshot: Some(Snapshot { serial: 12, age_ms: 840 }),
            tier,
            request_id: Some(RequestId::new(NOW, 42)),
            ..problem.clone()
        }
    }

    /// Compares with a file of tests/golden, byte for byte; `UPDATE=1` writes it.
    fn golden(name: &str, json: &str) {
        let file = format!("{}/tests/golden/{name}.json", env!("CARGO_MANIFEST_DIR"));
        let text = format!("{json}\n");
        if std::env::var_os("UPDATE").is_some() {
            std::fs::write(&file, &text).unwrap();
        }
        assert_eq!(text, std::fs::read_to_string(&file).unwrap(), "{name}");
    }

    #[test]
    fn a_refused_feature_says_what_plan_and_where_to_upgrade() {
        let problem = Problem {
            feature: Some("analytics"),
            current_plan: Some("Free"),
            upgrade_url: Some("/pricing"),
            source: Some("plan"),
            ..answered(&Problem::new(BASE, Code::FeatureNotAvailable), None)
        };
        golden("problem_feature", &problem.to_json());
    }

    #[test]
    fn a_plan_may_word_its_own_refusal() {
        let problem = Problem::new(BASE, Code::FeatureNotAvailable).worded("Statistik gibt es ab \"Pro\"\n");
        golden("problem_worded", &problem.to_json());
    }

    #[test]
    fn a_refused_limit_says_which_and_at_which_level() {
        let limit = Limit { name: "api_calls", tenant: tenant(), level: 1, quota: 100, cost: 3 };
        let problem = Problem::new(BASE, Code::RateLimited).limited(limit, Some(2));
        golden("problem_limit", &answered(&problem, Some(Tier::Limiter)).to_json());
    }

    #[test]
    fn a_faulty_body_says_where() {
        let fault = |detail: &str, pointer: &str, code| Fault { detail: detail.into(), pointer: pointer.into(), code };
        let one = [fault("this member is needed", "#/feature", Code::MissingField)];
        golden("problem_fault", &Problem::faulty(BASE, &one).to_json());

        let several = [one[0].clone(), fault("a string where an integer is wanted", "#/cost", Code::WrongType)];
        golden("problem_faults", &Problem::faulty(BASE, &several).to_json());
    }

    #[test]
    fn every_code_makes_a_problem_with_a_page_of_its_own() {
        for code in Code::ALL {
            let json: serde_json::Value = serde_json::from_str(&Problem::new(BASE, code).to_json()).unwrap();
            assert_eq!(json["type"], format!("{BASE}/problems/{code}"));
            assert_eq!(json["status"], code.status());
            assert_eq!(json["code"], code.name());
            assert_eq!((&json["title"], &json["error"]), (&code.title().into(), &code.title().into()));
            assert_eq!(json.as_object().unwrap().len(), 5, "members that do not apply are left out");
        }
    }
}
