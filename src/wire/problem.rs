//! Refusals as problem details (RFC 9457), `application/problem+json`.
//!
//! Invariant: status, title and `type` come from the one table of codes ([`Code`]), and every refusal that leaves
//! Tollgate is written here, so clients meet one shape. It is always answered with `Cache-Control: no-store`.

use super::json::{List, Object, quoted};
use crate::domain::decision::{Code, Tier};
use crate::domain::id::{RequestId, TenantId};
use crate::domain::resident::Resident;
use crate::domain::time::UnixMillis;

/// The media type of a problem.
pub const CONTENT_TYPE: &str = "application/problem+json";

/// After how many seconds asking again may help where something could not be reached, which nobody knows.
pub const RETRY_AFTER_S: &str = "1";

/// The address of a code's page: `{base}/problems/{code}`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Page<'a> {
    base: &'a str,
    code: Code,
}

impl Page<'_> {
    fn push_to(self, out: &mut String) {
        out.push_str(self.base);
        out.push_str("/problems/");
        out.push_str(self.code.name());
    }
}

/// What is said of a plan whose version before stands in for the one that it should be.
pub const STAND_IN: &str = "previous";

/// Which documents an answer was made from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// The serial of the tenant's document.
    pub serial: u64,
    /// How long ago it was verified to be the newest that could be read.
    pub age_ms: u64,
    /// Whether a plan's version before stands in for one that could not be read yet.
    pub stands_in: bool,
}

/// The limit that refused, and at which level.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// What is wrong with it.
    pub detail: String,
    /// Its place in the body: a JSON pointer as a URI fragment, `#/limits/0/rate`; `#` is the whole body.
    pub pointer: String,
    /// What is wrong with it, for programs.
    pub code: Code,
}

/// Why a call of the API failed: a problem to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Its stable code.
    pub code: Code,
    /// What is particular about this occurrence.
    pub detail: Option<String>,
    /// What is wrong with the body.
    pub faults: Vec<Fault>,
    /// After how many seconds asking again may help.
    pub retry_after_s: Option<u64>,
    /// The methods that would have been served, where this one is not.
    pub allow: Option<String>,
}

impl Failure {
    /// A failure that its code says all about.
    #[must_use]
    pub const fn new(code: Code) -> Self {
        Self { code, detail: None, faults: Vec::new(), retry_after_s: None, allow: None }
    }

    /// With what is particular about it.
    #[must_use]
    pub fn because(self, detail: impl Into<String>) -> Self {
        Self { detail: Some(detail.into()), ..self }
    }

    /// Something that the body says cannot be: `pointer` is where.
    #[must_use]
    pub fn at(pointer: impl Into<String>, detail: impl Into<String>) -> Self {
        Fault { detail: detail.into(), pointer: pointer.into(), code: Code::InvalidValue }.into()
    }

    /// The problem that it is, of one request.
    #[must_use]
    pub fn problem<'a>(&'a self, base: &'a str, id: RequestId) -> Problem<'a> {
        Problem {
            detail: self.detail.as_deref(),
            errors: &self.faults,
            retry_after: self.retry_after_s,
            occurrence: Occurrence { request_id: Some(id), ..Occurrence::default() },
            ..Problem::new(base, self.code)
        }
    }
}

impl From<Fault> for Failure {
    fn from(fault: Fault) -> Self {
        Self { detail: Some(fault.detail.clone()), faults: vec![fault.clone()], ..Self::new(fault.code) }
    }
}

/// A refusal. Members that do not apply are left out of it; their order here is their order in JSON.
#[derive(Clone, Copy, Debug)]
pub struct Problem<'a> {
    /// The code's page.
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
    pub detail: Option<&'a str>,
    /// The feature that was refused.
    pub feature: Option<&'a str>,
    /// The plan of the tenant, by the name its users know.
    pub current_plan: Option<&'a str>,
    /// Where a larger plan can be had.
    pub upgrade_url: Option<&'a str>,
    /// Where the answer about the feature comes from.
    pub source: Option<&'a str>,
    /// The limit that refused. Also named as the IETF draft's problem type `quota-exceeded` does.
    pub limit: Option<Limit<'a>>,
    /// After how many seconds asking again may help; the same number as in `Retry-After`.
    pub retry_after: Option<u64>,
    /// What is wrong with the body.
    pub errors: &'a [Fault],
    /// Who asked, once that is known.
    pub tenant: Option<TenantId>,
    /// What is said of this occurrence alone.
    pub occurrence: Occurrence,
}

/// What differs from one occurrence of a problem to the next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Occurrence {
    /// What the answer was made from.
    pub snapshot: Option<Snapshot>,
    /// Who decided.
    pub tier: Option<Tier>,
    /// The request's id, which the operator can look up.
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
            retry_after: None,
            errors: &[],
            tenant: None,
            occurrence: Occurrence { snapshot: None, tier: None, request_id: None },
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
        Self { limit: Some(limit), retry_after, ..self }
    }

    /// The problem as JSON.
    #[must_use]
    pub fn to_json(&self) -> String {
        self.write(Object::new()).end()
    }

    /// Fills an object with the problem.
    #[must_use]
    pub fn write(&self, object: Object) -> Object {
        self.occurrence.write(self.write_kind(object))
    }

    /// Fills an object with what is the same in every occurrence; [`Occurrence::write`] goes on from there.
    #[must_use]
    pub fn write_kind(&self, object: Object) -> Object {
        object
            .plain("type", |out| self.page.push_to(out))
            .text("title", self.title)
            .number("status", u64::from(self.status))
            .plain("code", |out| out.push_str(self.code.name()))
            .text("error", self.error)
            .maybe(self.detail, |object, detail| object.text("detail", detail))
            .maybe(self.feature, |object, feature| object.text("feature", feature))
            .maybe(self.current_plan, |object, plan| object.text("current_plan", plan))
            .maybe(self.upgrade_url, |object, url| object.text("upgrade_url", url))
            .maybe(self.source, |object, source| object.text("source", source))
            .maybe(self.limit, |object, limit| {
                let mut violated = "[".to_owned();
                quoted(&mut violated, limit.name);
                violated.push(']');
                object.object("limit", |object| limit.write(object)).json("violated-policies", &violated)
            })
            .maybe(self.retry_after, |object, seconds| object.number("retry_after", seconds))
            .maybe(Some(self.errors).filter(|faults| !faults.is_empty()), |object, faults| {
                object.json("errors", &faults.iter().map(Fault::to_json).collect::<List>().end())
            })
            .maybe(self.tenant, |object, tenant| object.plain("tenant", |out| out.push_str(tenant.text().as_str())))
    }
}

impl Occurrence {
    /// Goes on with a problem.
    #[must_use]
    pub fn write(self, object: Object) -> Object {
        object
            .maybe(self.snapshot, |object, snapshot| object.object("snapshot", |object| snapshot.write(object)))
            .maybe(self.tier, |object, tier| object.plain("tier", |out| out.push_str(tier.name())))
            .maybe(self.request_id, |object, id| object.plain("request_id", |out| out.push_str(id.text().as_str())))
    }
}

impl Snapshot {
    /// What is in memory of a tenant.
    #[must_use]
    pub fn of(resident: &Resident, now: UnixMillis) -> Self {
        let (serial, stands_in) = resident.version();
        Self { serial, age_ms: resident.age_ms(now), stands_in }
    }

    /// Fills a member of an answer.
    #[must_use]
    pub fn write(self, object: Object) -> Object {
        let stand_in = self.stands_in.then_some(STAND_IN);
        object
            .number("serial", self.serial)
            .number("age_ms", self.age_ms)
            .maybe(stand_in, |object, plan| object.text("plan", plan))
    }
}

impl Limit<'_> {
    fn write(self, object: Object) -> Object {
        object
            .text("name", self.name)
            .plain("tenant", |out| out.push_str(self.tenant.text().as_str()))
            .number("level", self.level as u64)
            .number("quota", self.quota)
            .number("cost", self.cost)
    }
}

impl Fault {
    fn to_json(&self) -> String {
        Object::new().text("detail", &self.detail).text("pointer", &self.pointer).text("code", self.code.name()).end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::id::Jurisdiction;

    const BASE: &str = "http://localhost:8787";
    const NOW: UnixMillis = UnixMillis(1_795_000_000_000);

    fn tenant() -> TenantId {
        TenantId::new(Jurisdiction::Eu, NOW, [1, 2, 3, 4])
    }

    fn answered<'a>(problem: &Problem<'a>, tier: Option<Tier>) -> Problem<'a> {
        Problem {
            tenant: Some(tenant()),
            occurrence: Occurrence {
                snapshot: Some(Snapshot { serial: 12, age_ms: 840, stands_in: false }),
                tier,
                request_id: Some(RequestId::new(NOW, 42)),
            },
            ..*problem
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
        let detail = "this member is needed".to_owned();
        let fault = Fault { detail, pointer: "#/feature".to_owned(), code: Code::MissingField };
        golden("problem_fault", &Failure::from(fault).problem(BASE, RequestId::new(NOW, 42)).to_json());
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
