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
