//! From a decision to what the door is told: headers, problems, the identity for the origin.
//!
//! Invariant: every answer of the gate says which document it was made from, how old that is and who decided, in one
//! header: `Tollgate: serial=12, age=840, tier=lease, id=req_...` (an RFC 9651 dictionary; age in milliseconds). Where a plan's version
//! before stands in for one that cannot be read yet, it says `plan=previous` too.

use std::borrow::Cow;
use std::rc::Rc;

use super::caller::Identity;
use super::json::Object;
use super::kept::Kept;
use super::problem::{self, Occurrence, Problem, STAND_IN, Snapshot};
use super::ratelimit::{self, Field};
use super::verdict::{Headers, Release, Verdict};
use super::{Decimal, push_number};
use crate::domain::api_key::ApiKey;
use crate::domain::catalog::Target;
use crate::domain::decision::{Code, Tier};
use crate::domain::gate::{Passage, Reason, Refused, Standpoint};
use crate::domain::id::{RequestId, TenantId};
use crate::domain::path::{NotCanonical, cut_last};
use crate::domain::plan::Plan;
use crate::domain::resident::{Resident, Shown, Way};
use crate::domain::route::Method;
use crate::domain::time::UnixMillis;

/// What every answer of one deployment has in common.
#[derive(Debug)]
pub struct Voice {
    /// Scheme and host of the API, for the pages of codes.
    pub base_url: String,
}

/// How a request came to pass.
#[derive(Clone, Copy, Debug)]
pub struct Passed<'a> {
    /// Who decided.
    pub tier: Tier,
    /// Why it would have been refused, did its rule not only observe.
    pub observed: Option<Code>,
    /// What must be done before the origin's answer is released, and with which handle.
    pub release: (Release, &'a str),
}

impl Passed<'_> {
    /// As `tier` decided; nothing holds back the origin's answer.
    #[must_use]
    pub const fn by(tier: Tier) -> Self {
        Self { tier, observed: None, release: (Release::Free, "") }
    }

    /// Although `tier` found that it would be refused for `code`.
    #[must_use]
    pub const fn despite(code: Code, tier: Tier) -> Self {
        Self { observed: Some(code), ..Self::by(tier) }
    }
}

/// One request, as its answer names it.
#[derive(Clone, Copy, Debug)]
pub struct Asked {
    /// Its id.
    pub id: RequestId,
    /// When it was decided.
    pub now: UnixMillis,
}

impl Voice {
    /// A refusal of someone who may not be known.
    #[must_use]
    pub fn refusal(&self, refused: &Refused<'_>, asked: Asked, mut verdict: Verdict) -> Verdict {
        let detail = refused.path.map(NotCanonical::detail);
        let problem = named(&Problem { detail, ..Problem::new(&self.base_url, refused.code) }, refused.resident);
        let body = verdict.begin_answer();
        let kind = problem.write_kind(Object::behind(std::mem::take(body)));
        *body = occurrence(refused.resident, refused.tier, asked).write(kind).end();
        signature_line(refused.resident, refused.tier, None, asked, verdict.next_line());
        verdict.next_line();
        verdict.with_head(refused_with(problem.status).head(LAST).into())
    }

    /// A refusal of what was let pass before. `said` is the `Tollgate` header that its answer would have had, and has: it is one and
    /// the same request. Nothing, of a preflight.
    #[must_use]
    pub fn withdrawal(&self, code: Code, said: &str, asked: Asked) -> Verdict {
        let Some(id) = cut_last(said, b'=').and_then(|(_, id)| id.parse().ok()) else {
            return self.refusal(&Refused::new(code), asked, Verdict::default());
        };
        let problem = Problem::new(&self.base_url, code);
        let mut verdict = Verdict::default();
        let body = verdict.begin_answer();
        let kind = problem.write_kind(Object::behind(std::mem::take(body)));
        *body = Occurrence { request_id: Some(id), ..Occurrence::default() }.write(kind).end();
        verdict.next_line().push_str(said);
        verdict.next_line();
        verdict.with_head(refused_with(problem.status).head(LAST).into())
    }

    /// A refusal of a known tenant, at a known route. What others like it say too is written once: a flood of refusals must
    /// not cost more than as much work.
    #[must_use]
    pub fn refuse(
        &self,
        standpoint: &mut Standpoint<'_, '_>,
        reason: &Reason,
        tier: Tier,
        asked: Asked,
        mut verdict: Verdict,
    ) -> Verdict {
        let retry_s = retry_after_s(reason, asked.now);
        let mut said = standpoint.way(asked.now).map(|(way, _)| std::mem::take(&mut way.said)).unwrap_or_default();
        let slot = reason.limit.as_ref().map(|(shown, _)| shown.slot);
        // Who asks for less may still have that much.
        let cost = standpoint.route.map_or(0, |route| route.cost);
        let remaining = slot.map_or(0, |slot| standpoint.resident.limits.remaining(slot).min(cost.saturating_sub(1)));
        let kind = (reason.code, slot, retry_s, remaining);
        let (body, left, head) = said.of(kind, || self.said(standpoint, reason, retry_s, remaining));
        let answer = verdict.begin_answer();
        answer.reserve(body.len() + OCCURRENCE);
        answer.push_str(body);
        let resident = Some(&*standpoint.resident);
        *answer = occurrence(resident, tier, asked).write(Object::resumed(std::mem::take(answer))).end();
        signature_line(resident, tier, None, asked, verdict.next_line());
        let verdict = verdict.go_on(&["\n", left]).with_head(Rc::clone(head));
        if let Some((way, _)) = standpoint.way(asked.now) {
            way.said = said;
        }
        verdict
    }

    /// The body of a refusal, up to what is of one occurrence alone; what it says is left; and its head.
    fn said(
        &self,
        standpoint: &Standpoint<'_, '_>,
        reason: &Reason,
        retry_s: Option<u64>,
        remaining: u64,
    ) -> (Box<str>, Box<str>, Rc<str>) {
        let Reason { code, feature, limit } = reason;
        let mut problem = Problem::new(&self.base_url, *code);
        if let Some(refusal) = feature {
            problem = Problem { feature: Some(refusal.feature.as_str()), source: Some(refusal.source), ..problem };
        }
        let mut headers = refused_with(problem.status);
        if let Some(seconds) = retry_s {
            push_number(headers.begin("retry-after"), seconds);
        }
        let mut left = String::new();
        if let Some((shown, _)) = limit {
            let cost = standpoint.route.map_or(0, |route| route.cost);
            let Shown { name, tenant, level, quota, .. } = shown;
            let refuser = problem::Limit { name: name.as_str(), tenant: *tenant, level: *level, quota: *quota, cost };
            problem = problem.limited(refuser, retry_s);
            let told = told(shown, (remaining, retry_s));
            ratelimit::write(Field::Policy, [told], headers.begin("ratelimit-policy"));
            ratelimit::write(Field::Limit, [told], &mut left);
        }
        let body = named(&problem, Some(standpoint.resident)).write_kind(Object::new()).open();
        // All this stays as long as the way does, for each tenant that was refused.
        (body.into(), left.into(), headers.head(LAST).into())
    }

    /// A request that passes: on to its origin, or answered here.
    #[must_use]
    pub fn pass(
        &self,
        standpoint: &mut Standpoint<'_, '_>,
        kept: &mut Kept,
        passed: Passed<'_>,
        asked: Asked,
        mut verdict: Verdict,
    ) -> Verdict {
        let Passed { tier, observed, release } = passed;
        let Asked { id, now } = asked;
        let (head, left) = limited(standpoint, kept, now);
        let met = standpoint.begun.take().filter(|_| release.0 == Release::Free);
        let begun = if let Some(begun) = met {
            begun.of(standpoint.resident.version(), || {
                begin(standpoint, release, Verdict::default()).into_begun().into_boxed_str()
            })
        } else {
            verdict = begin(standpoint, release, verdict);
            ""
        };
        if standpoint.passage.target.is_here() {
            let (age, id) = (Decimal::of(standpoint.resident.age_ms(now)), id.text());
            return verdict
                .go_on(&[begun, age.as_str(), &decided_by(tier, observed), id.as_str(), "\n", &left])
                .with_head(head);
        }
        let features = standpoint.resident.features(standpoint.catalog, now);
        let caller = kept.callers.meet(&Identity {
            tenant: standpoint.resident.tenant().tenant,
            key: standpoint.key,
            mode: standpoint.mode,
            plan: standpoint.resident.plan().map_or("", |plan| plan.plan.as_str()),
            features: &features,
        });
        let Passage { method, path, .. } = &standpoint.passage;
        let mut verdict = verdict.go_on(&[begun]);
        let values = verdict.begin_caller(caller);
        caller.sign(*method, path, now, id, values);
        signature_line(Some(standpoint.resident), tier, observed, asked, verdict.next_line());
        verdict.go_on(&["\n", &left]).with_head(head)
    }

    /// A request that passes although the documents of its tenant cannot be read, for `code`: its origin is told who says to call, by
    /// its key alone, and of no plan and no feature.
    #[must_use]
    pub fn open(
        &self,
        passage: &Passage<'_, '_>,
        (tenant, key): (TenantId, &ApiKey),
        kept: &mut Kept,
        code: Code,
        asked: Asked,
    ) -> Verdict {
        let mut verdict = Verdict::default();
        let head = kept.share(passed_with(passage.target), LAST);
        if passage.target.is_here() {
            answer_here(passage, tenant, &mut verdict);
        } else {
            begin_forward(passage, (Release::Free, ""), &mut verdict);
            let (key, mode) = (key.id(), key.mode());
            let caller = kept.callers.meet(&Identity { tenant, key, mode, plan: "", features: &Rc::default() });
            let values = verdict.begin_caller(caller);
            caller.sign(passage.method, &passage.path, asked.now, asked.id, values);
        }
        signature_line(None, Tier::Isolate, Some(code), asked, verdict.next_line());
        verdict.go_on(&["\n"]).with_head(head)
    }

    /// A preflight that passes: without an identity, unmetered.
    #[must_use]
    pub fn preflight(&self, passage: &Passage<'_, '_>, mut verdict: Verdict) -> Verdict {
        if passage.target.is_here() {
            verdict.begin_answer();
            let mut headers = Headers::of_status(200);
            headers.header("access-control-allow-origin", "*");
            let [_, left] = LAST;
            verdict.go_on(&["\n*\n"]).with_head(headers.head(["access-control-allow-headers", left]).into())
        } else {
            begin_forward(passage, (Release::Free, ""), &mut verdict);
            verdict
        }
    }
}

/// After how many seconds asking a limit again may help.
fn retry_after_s(reason: &Reason, now: UnixMillis) -> Option<u64> {
    let (shown, retry_after_ms) = reason.limit.as_ref()?;
    let ms = retry_after_ms.filter(|ms| *ms > 0)?;
    Some(ratelimit::retry_after_s(match shown.ends {
        // A quota comes back at the end of its window, whenever else it is asked for.
        Some(ends) if reason.code == Code::QuotaExceeded => ends.since(now),
        _ => ms,
    }))
}

/// A problem of someone who may be known, in the words of their plan.
fn named<'a>(problem: &Problem<'a>, resident: Option<&'a Resident>) -> Problem<'a> {
    let plan: Option<&Plan> = resident.and_then(Resident::plan);
    let worded = plan.and_then(|plan| plan.content.wording.get(problem.code.name()));
    let upgrades = problem.feature.is_some() || problem.limit.is_some();
    let problem = Problem {
        current_plan: plan.map(|plan| plan.content.title.as_str()),
        upgrade_url: plan.filter(|_| upgrades).and_then(|plan| plan.content.upgrade_url.as_deref()),
        tenant: resident.map(|resident| resident.tenant().tenant),
        ..*problem
    };
    match worded {
        Some(words) => problem.worded(words),
        None => problem,
    }
}

fn occurrence(resident: Option<&Resident>, tier: Tier, asked: Asked) -> Occurrence {
    Occurrence {
        snapshot: resident.map(|resident| Snapshot::of(resident, asked.now)),
        tier: Some(tier),
        request_id: Some(asked.id),
    }
}

/// What the text of a refusal has of one occurrence alone, in bytes at most: 140 in its body, 90 in its last header.
const OCCURRENCE: usize = 256;

/// The headers that are last in every answer of the gate: another one each time, and one that soon is.
pub const LAST: [&str; 2] = ["tollgate", "ratelimit"];

/// The first headers of a refusal.
fn refused_with(status: u16) -> Headers {
    let mut headers = Headers::of_status(status);
    headers.header("content-type", problem::CONTENT_TYPE).header("cache-control", "no-store");
    match status {
        401 => headers.header("www-authenticate", "Bearer realm=\"tollgate\""),
        405 => headers.header("allow", &Method::listed(&Method::ALL)),
        503 => headers.header("retry-after", problem::RETRY_AFTER_S),
        _ => &mut headers,
    };
    headers
}

/// The first headers of what passes: of an answer given here; none that are added to an origin's.
fn passed_with(target: &Target) -> Headers {
    if !target.is_here() {
        return Headers::default();
    }
    let mut headers = Headers::of_status(200);
    if *target == Target::Demo {
        headers.header("content-type", "application/json");
    }
    headers
}

/// A limit with what is left of it, and when there will be more, as the two fields tell it.
const fn told(shown: &Shown, (remaining, reset_s): (u64, Option<u64>)) -> ratelimit::Shown<'_> {
    ratelimit::Shown { name: &shown.name, quota: shown.quota, window_s: shown.window_s, remaining, reset_s }
}

/// The head of what passes, those headers and the limits of the request; and what is left of them.
fn limited(standpoint: &mut Standpoint<'_, '_>, kept: &mut Kept, now: UnixMillis) -> (Rc<str>, Rc<str>) {
    let target = standpoint.passage.target;
    let Some((way, limits)) = standpoint.way(now) else {
        return (kept.share(passed_with(target), LAST), Rc::default());
    };
    let Way { head, left, shown, .. } = way;
    let head = head.get_or_insert_with(|| {
        let mut headers = passed_with(target);
        if !shown.is_empty() {
            let policy = shown.iter().map(|shown| told(shown, (0, None)));
            ratelimit::write(Field::Policy, policy, headers.begin("ratelimit-policy"));
        }
        kept.share(headers, LAST)
    });
    let remains = |shown: &Shown| (limits.remaining(shown.slot), shown.ends.map(|ends| ends.since(now).div_ceil(1000)));
    let left = left.of_all(shown.iter().map(remains), || {
        let mut text = String::new();
        ratelimit::write(Field::Limit, shown.iter().map(|shown| told(shown, remains(shown))), &mut text);
        text.into()
    });
    (Rc::clone(head), Rc::clone(left))
}

/// What the door is told to let pass, up to the first word that is another one each time: the age, or what is said of the caller.
fn begin(standpoint: &Standpoint<'_, '_>, release: (Release, &str), mut verdict: Verdict) -> Verdict {
    if !standpoint.passage.target.is_here() {
        begin_forward(&standpoint.passage, release, &mut verdict);
        return verdict;
    }
    answer_here(&standpoint.passage, standpoint.resident.tenant().tenant, &mut verdict);
    signed_by(standpoint.resident, verdict.next_line());
    verdict
}

/// The body of an answer that is given here.
fn answer_here(Passage { target, method, path, .. }: &Passage<'_, '_>, tenant: TenantId, verdict: &mut Verdict) {
    let body = verdict.begin_answer();
    if **target == Target::Demo {
        let (method, path, tenant) = (method.name(), path.as_str(), tenant.text());
        // A canonical path needs no escaping in JSON: what would is percent-encoded or refused.
        let parts = [
            "{\"origin\":\"demo\",\"method\":\"",
            method,
            "\",\"path\":\"",
            path,
            "\",\"tenant\":\"",
            tenant.as_str(),
            "\"}",
        ];
        for part in parts {
            body.push_str(part);
        }
    }
}

fn begin_forward(passage: &Passage<'_, '_>, (release, handle): (Release, &str), verdict: &mut Verdict) {
    let out = verdict.begin_forward(handle, release);
    match passage.target {
        Target::Service(binding) => {
            out.push_str("service:");
            out.push_str(binding);
            out.push_str("\nhttps://origin");
        }
        Target::Https(base) => {
            out.push('\n');
            out.push_str(base);
        }
        Target::Demo | Target::None => out.push('\n'),
    }
    out.push_str(passage.path.as_str());
    if let Some(query) = passage.query {
        out.push('?');
        out.push_str(query);
    }
}

/// The `Tollgate` header.
fn signature_line(
    resident: Option<&Resident>,
    tier: Tier,
    observed: Option<Code>,
    Asked { id, now }: Asked,
    out: &mut String,
) {
    let decided = decided_by(tier, observed);
    if let Some(resident) = resident {
        signed_by(resident, out);
        push_number(out, resident.age_ms(now));
        out.push_str(&decided);
    } else {
        out.push_str(decided.strip_prefix(", ").unwrap_or(&decided));
    }
    out.push_str(id.text().as_str());
}

/// Its beginning, up to the age.
fn signed_by(resident: &Resident, out: &mut String) {
    let (serial, stands_in) = resident.version();
    out.push_str("serial=");
    push_number(out, serial);
    if stands_in {
        out.push_str(", plan=");
        out.push_str(STAND_IN);
    }
    out.push_str(", age=");
}

/// What stands between the age and the id.
fn decided_by(tier: Tier, observed: Option<Code>) -> Cow<'static, str> {
    match (observed, tier) {
        (Some(code), _) => [", tier=", tier.name(), ", observed=", code.name(), ", id="].concat().into(),
        (None, Tier::Isolate) => ", tier=isolate, id=".into(),
        (None, Tier::Lease) => ", tier=lease, id=".into(),
        (None, Tier::Limiter) => ", tier=limiter, id=".into(),
    }
}
