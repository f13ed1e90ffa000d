//! The gate where memory is not enough: documents are read, the limiter is asked, use is recorded; then the same verdict as
//! from `warm` goes to the door.
//!
//! Invariant: every pass over the walk begins at its beginning, so what was learnt while waiting counts. A request waits
//! for its own calls only, never for another request's.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use futures_util::future::{Either, select};
use js_sys::Promise;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use wasm_bindgen::prelude::*;
use worker::{Date, Delay, Env, console_error};

use super::api;
use super::config::Config;
use super::documents::{self, Read};
use super::door::{self, behind, behind_refusal, instant};
use super::isolate;
use super::object::{Message, Unreachable, ask_limiter};
use super::promise::{all, promise};
use crate::domain::breaker::Breaker;
use crate::domain::catalog::{Charge, Recording};
use crate::domain::decision::{Code, Fail, Mode, Tier};
use crate::domain::document::DocumentKey;
use crate::domain::gate::{Outcome, Passage, Reason, Refused, Request, Standpoint, Step, limit_code, refused};
use crate::domain::id::{RequestId, TenantId};
use crate::domain::limit::{self, Call, LeaseId, OpId, Reserve, Tag, Ticket, Verdict as Limited, WAIT_MS};
use crate::domain::outbox::Event;
use crate::domain::resident::Shown;
use crate::domain::tally::{self, Behind};
use crate::domain::time::UnixMillis;
use crate::wire::answer::{Asked, Passed};
use crate::wire::json;
use crate::wire::kept::Kept;
use crate::wire::object::LimitAnswer;
use crate::wire::verdict::{Release, Verdict};

/// How often a walk may find something missing: catalog, tenant, plan, its stand-in, and each once more.
const WALKS: usize = 8;
/// How often a request asks the limiter, a quarter of a second each.
const TRIES: usize = 2;
/// The same while the limiter has never answered: its object may have to wake first.
const FIRST_TRIES: usize = 6;
/// After how long without an answer a TAKE is sent again.
const RESEND_MS: u64 = 140;
/// How long to wait where the limiter answered that what was asked about is over: clocks may differ by so much.
const CLOCKS_MS: u64 = 100;
/// For how long somebody stays behind a reply.
const STAY_MS: u64 = 25_000;
/// For how long units stay reserved for a request whose origin has not answered.
const HOLD_MS: u64 = 60_000;

/// The time, read anew: on this platform it moves only while waiting.
pub(crate) fn clock() -> UnixMillis {
    UnixMillis(Date::now().as_millis())
}

/// Decides about a request, waiting for what it needs. `head` is what `warm` could not decide; then come, of its headers, its
/// `Idempotency-Key`, and whether it has an `Access-Control-Request-Method`; and whether KV was just seen not to have its tenant's
/// document. The answer is a verdict, or `api`: the request is not for the gate.
#[wasm_bindgen]
pub fn gate(head: String, idempotency_key: String, preflight: bool, unseen: bool, env: Env, now: f64) -> Promise {
    let now = instant(now);
    promise(async move {
        let config = isolate::ready(&env)?;
        let head = Head { text: head, preflight, unseen, idempotency_key, id: isolate::request_id(now)?, now };
        Ok(Some(decide(&env, &config, &head).await))
    })
}

/// What of a request a decision looks at, owned.
struct Head {
    text: String,
    preflight: bool,
    /// Whether KV has just not shown its tenant's document.
    unseen: bool,
    /// The caller's own name for what it asks: the same when it asks again.
    idempotency_key: String,
    id: RequestId,
    now: UnixMillis,
}

impl Head {
    fn request(&self, now: UnixMillis) -> Request<'_> {
        Request { waits: true, preflight: self.preflight, ..door::request(&self.text, now) }
    }
}

/// What a pass over the walk came to.
enum Next {
    Done(String),
    Read(Vec<DocumentKey>),
    Ask(Box<Question>),
    /// Spent here; must be recorded beside the origin's answer.
    Forward(String),
}

/// A question to the limiter, and what is needed to act on its answer.
struct Question {
    tenant: TenantId,
    id: OpId,
    call: Call,
    ticket: Ticket,
    settle: bool,
    /// How often to ask at most.
    tries: usize,
    /// What takes the request's use back if it was recorded and then refused.
    reversals: Vec<Event>,
}

/// What the door hands back when the origin has answered, for a meter that must not lose it.
#[derive(Serialize, Deserialize)]
struct Handle {
    tenant: TenantId,
    call: Box<Call>,
}

/// What was sent to a limiter for a request and not acted on, and what takes its use back.
#[derive(Default)]
struct Forsaken {
    tenant: Option<TenantId>,
    ops: Vec<OpId>,
    reversals: Vec<Event>,
}

async fn decide(env: &Env, config: &Arc<Config>, head: &Head) -> String {
    let mut forsaken = Forsaken::default();
    let text = settle_on(env, config, head, &mut forsaken).await;
    forsake(forsaken, text, clock())
}

/// The verdict. However it was come to, what is forsaken is to be undone behind it.
async fn settle_on(env: &Env, config: &Arc<Config>, head: &Head, forsaken: &mut Forsaken) -> String {
    let mut overloaded = false;
    for _ in 0..WALKS {
        let now = clock().max(head.now);
        let Some(next) = isolate::with(|isolate| pass(isolate, head, now)) else { break };
        match next {
            Next::Done(text) => return text,
            Next::Forward(text) => {
                // Its use is recorded beside the origin's work: it is the same event.
                forsaken.reversals.clear();
                return text;
            }
            Next::Read(keys) => {
                let for_catalog = keys.contains(&DocumentKey::Catalog);
                if let Some(code) = read_all(env, config, head, keys, now).await {
                    // Without a catalog nobody knows the gate's hostnames; what the API itself serves is known all the same.
                    return if for_catalog && api::knows(head.request(now).url) {
                        "api".to_owned()
                    } else {
                        open(head, code, now).unwrap_or_else(|| refuse(config, code, head.id, now))
                    };
                }
            }
            Next::Ask(question) => {
                let Question { tenant, id, call, ticket, settle, tries, reversals } = *question;
                let answer = insist(env, config, tenant, call).await;
                let now = clock();
                let reply = match answer {
                    Some(Ok(answer)) => Some(learn(config, tenant, answer, now)),
                    Some(Err(error)) => {
                        // An object with too much to do is not helped by being asked again.
                        overloaded |= error.overloaded;
                        None
                    }
                    None => None,
                };
                let conclusion =
                    isolate::with(|isolate| conclude(isolate, head, ticket, id, settle, reply.as_ref(), now));
                let Some((came, text)) = conclusion else { break };
                match came {
                    Came::Refused => {}
                    // The use stays recorded: it is the same event, whichever op recorded it.
                    Came::Admitted => forsaken.reversals.clear(),
                    // What was asked for may yet be admitted: then that is its use.
                    Came::Passed => forsaken.ops.clear(),
                    Came::Unknown => {
                        *forsaken =
                            Forsaken { tenant: Some(tenant), reversals, ops: std::mem::take(&mut forsaken.ops) };
                        forsaken.ops.push(id);
                        if !overloaded && forsaken.ops.len() < tries {
                            if reply.is_some() {
                                // By its clock the window is over, and by this one not yet.
                                after(CLOCKS_MS).await;
                            }
                            continue;
                        }
                    }
                }
                if reply.is_none() {
                    spare(tenant, Breaker::unanswered);
                }
                return text;
            }
        }
    }
    refuse(config, Code::Unavailable, head.id, clock())
}

/// How often the limiter is asked for one request.
pub(crate) const fn tries(limits: &limit::Isolate) -> usize {
    if limits.has_heard() { TRIES } else { FIRST_TRIES }
}

/// The way of a request that passes though nothing can be read about its tenant, if its route says so.
fn open(head: &Head, code: Code, now: UnixMillis) -> Option<String> {
    isolate::with(|isolate| {
        let (passage, tenant, key) = isolate.gate.open(&head.request(now), &isolate.config.api_keys)?;
        let asked = Asked { id: head.id, now };
        Some(isolate.config.voice.open(&passage, (tenant, &key), &mut isolate.kept, code, asked).into_text())
    })?
}

/// Has ops undone behind the reply, which is `text`.
fn forsake(Forsaken { tenant, ops, reversals }: Forsaken, text: String, now: UnixMillis) -> String {
    if ops.is_empty() {
        return text;
    }
    let behind = isolate::with(|isolate| {
        let resident = isolate.gate.resident(tenant?)?;
        for id in ops {
            resident.limits.forsake(id, reversals.clone(), now);
        }
        isolate.gate.behind(tenant?, now)
    });
    match behind.flatten() {
        Some(behind) => Verdict::also(&text, &behind.to_string()),
        None => text,
    }
}

/// Sends a call to the limiter, and once more when no answer has come for a while: a message may be lost, and the same op is
/// done once. Gives up when an ADMIT could not be acted on any more.
pub(crate) async fn insist(
    env: &Env,
    config: &Config,
    tenant: TenantId,
    call: Call,
) -> Option<Result<LimitAnswer, Unreachable>> {
    let message = Message::to_limiter(tenant, Box::new(call));
    let first = std::pin::pin!(ask_limiter(env, config, &message));
    // One timer at a time: most answers come before the first one rings.
    let answer = match select(first, after(RESEND_MS)).await {
        Either::Left((answer, _)) => Some(answer),
        Either::Right(((), first)) => {
            let again = std::pin::pin!(ask_limiter(env, config, &message));
            match select(select(first, again), after(WAIT_MS - RESEND_MS)).await {
                Either::Left((answer, _)) => Some(answer.factor_first().0),
                Either::Right(_) => None,
            }
        }
    };
    if let Some(Err(error)) = &answer {
        heard(tenant, error);
    }
    answer
}

/// Logs what a limiter could not be asked for, and spares one that has too much to do.
fn heard(tenant: TenantId, error: &Unreachable) {
    console_error!("limiter of {tenant}: {error}");
    if error.overloaded {
        spare(tenant, Breaker::overloaded);
    }
}

/// Spares a limiter.
pub(crate) fn spare(tenant: TenantId, why: fn(&mut Breaker, u64, UnixMillis)) {
    isolate::with(|isolate| {
        #[expect(clippy::cast_possible_truncation, reason = "the lowest bits are as random as the others")]
        let random = isolate.op_id().0 as u64;
        if let Some(resident) = isolate.gate.resident(tenant) {
            why(&mut resident.breaker, random, clock());
        }
    });
}

fn after(ms: u64) -> Delay {
    Delay::from(Duration::from_millis(ms))
}

/// One pass over the walk, to where it ends or something is missing.
fn pass(isolate: &mut isolate::Isolate, head: &Head, now: UnixMillis) -> Next {
    let request = head.request(now);
    let id = isolate.op_id();
    let asked = Asked { id: head.id, now };
    let (config, kept) = (&isolate.config, &mut isolate.kept);
    let mut standpoint = match isolate.gate.walk(&request, &config.api_keys) {
        Step::Elsewhere => return Next::Done("api".to_owned()),
        Step::Missing(keys) => return Next::Read(keys),
        Step::Preflight(passage) => {
            return Next::Done(config.voice.preflight(&passage, Verdict::default()).into_text());
        }
        Step::Refuse(refused) => {
            let mut verdict = Verdict::default();
            behind_refusal(&refused, &mut verdict);
            return Next::Done(config.voice.refusal(&refused, asked, verdict).into_text());
        }
        Step::Way(standpoint) => standpoint,
    };
    let metering = standpoint.way(now).and_then(|(way, _)| way.meter.clone());
    let exact = metering.as_ref().is_some_and(|metering| metering.recording == Recording::Exact);
    let here = standpoint.passage.target.is_here();
    // What is answered here succeeds.
    let settle = exact && !here && metering.as_ref().is_some_and(|metering| metering.charge == Charge::Success);
    let named = !head.idempotency_key.is_empty() && metering.as_ref().is_some_and(|metering| metering.idempotent);

    // An exact meter records beside the origin's work only where that work can be asked for again, a lease pays, and no quota is to be
    // kept to the unit.
    let hard = standpoint.way(now).is_some_and(|(way, _)| way.shown.iter().any(|shown| shown.ends.is_some()));
    let serial = exact && (settle || here || hard || !standpoint.passage.method.is_idempotent());
    let outcome = if serial { decide_serial(&mut standpoint, now) } else { standpoint.decide(now) };
    let mut verdict = Verdict::default();
    match outcome {
        Outcome::Refuse(reason) => {
            tally::refused(&mut standpoint, reason.code, asked.id, now);
            behind(&mut standpoint, now, &mut verdict);
            Next::Done(config.voice.refuse(&mut standpoint, &reason, Tier::Isolate, asked, verdict).into_text())
        }
        Outcome::Observed(code) => {
            tally::observed(&mut standpoint, code, asked.id, now);
            behind(&mut standpoint, now, &mut verdict);
            let passed = Passed::despite(code, Tier::Isolate);
            Next::Done(config.voice.pass(&mut standpoint, kept, passed, asked, verdict).into_text())
        }
        Outcome::Admit(tier) if exact && tier == Tier::Lease => {
            let handle = paid_here(&mut standpoint, head, id, named, now);
            behind(&mut standpoint, now, &mut verdict);
            let passed = Passed { release: (Release::Record, &handle), ..Passed::by(tier) };
            Next::Forward(config.voice.pass(&mut standpoint, kept, passed, asked, verdict).into_text())
        }
        Outcome::Admit(tier) => {
            tally::admitted(&mut standpoint, now);
            behind(&mut standpoint, now, &mut verdict);
            Next::Done(config.voice.pass(&mut standpoint, kept, Passed::by(tier), asked, verdict).into_text())
        }
        Outcome::Ask => {
            let name = event_id(&standpoint, head, named);
            // Dated by the request, not by the try: the same event each time.
            let events: Vec<Event> = tally::event(&mut standpoint, &name, head.id, head.now).into_iter().collect();
            let tenant = standpoint.resident.tenant().tenant;
            let tag = tag(tenant, &standpoint);
            // Who names what it asks gets the same event when it asks again, so that must not have been taken back.
            let reversals = events.iter().filter(|_| !named).map(Event::reversed).collect();
            if standpoint.resident.breaker.holds(now) {
                return Next::Done(undecided(config, &mut standpoint, kept, asked).1);
            }
            standpoint.resident.breaker.asks(now);
            let Some((way, limits)) = standpoint.way(now) else {
                return Next::Done(config.voice.refusal(&Refused::new(Code::Internal), asked, verdict).into_text());
            };
            let reserve = settle.then_some(Reserve { hold_ms: HOLD_MS, commits: false });
            let (call, ticket) = limits.take(id, Some(tag), &way.charges, events, reserve, now);
            let tries = tries(limits);
            Next::Ask(Box::new(Question { tenant, id, call, ticket, settle, tries, reversals }))
        }
    }
}

/// The feature is decided here, the limits by the limiter: a lease may not pay for what must be recorded first.
fn decide_serial(standpoint: &mut Standpoint<'_, '_>, now: UnixMillis) -> Outcome {
    let observes = standpoint.enforcement() == Mode::Observe;
    let refusal = standpoint.way(now).and_then(|(way, _)| way.refusal.as_ref());
    refusal.map_or(Outcome::Ask, |refusal| refused(refusal, observes))
}

/// What a large cost keeps its place under while it is refused: who asks for what.
fn tag(tenant: TenantId, standpoint: &Standpoint<'_, '_>) -> Tag {
    Tag::of(&format!("{tenant} {} {}", standpoint.key, standpoint.number))
}

/// The id of a request's event. A caller that is trusted to name what it asks gets the same id when it asks again, so that a retry
/// after a lost answer is not billed twice. Otherwise each request is another; but it is one, however often the limiter is asked.
fn event_id(standpoint: &Standpoint<'_, '_>, head: &Head, named: bool) -> String {
    if !named {
        return head.id.to_string();
    }
    let Passage { method, path, query, .. } = &standpoint.passage;
    let what = (standpoint.key, method.name(), path.as_str(), query, &head.idempotency_key);
    let hash = Sha256::digest(json::written(&what));
    URL_SAFE_NO_PAD.encode(hash)
}

/// The RECORD of a request that a lease has just paid for.
fn paid_here(standpoint: &mut Standpoint<'_, '_>, head: &Head, id: OpId, named: bool, now: UnixMillis) -> String {
    let tenant = standpoint.resident.tenant().tenant;
    let name = event_id(standpoint, head, named);
    let Some(event) = tally::event(standpoint, &name, head.id, head.now) else { return String::new() };
    let Some((way, limits)) = standpoint.way(now) else { return String::new() };
    let Some(charge) = way.payer.and_then(|slot| way.charges.iter().find(|charge| charge.slot == slot)).copied() else {
        return String::new();
    };
    let lease: LeaseId = limits.payer(charge.slot);
    let call = Box::new(limits.record(id, charge, lease, event));
    json::written(&Handle { tenant, call })
}

/// What came of asking the limiter.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Came {
    /// It may pass, as the limiter said.
    Admitted,
    /// It may not, or only because its rule observes.
    Refused,
    /// No answer; it passes, as the fail mode says.
    Passed,
    /// No answer; it may not pass, as the fail mode says.
    Unknown,
}

/// What the limiter's answer means for the request.
fn conclude(
    isolate: &mut isolate::Isolate,
    head: &Head,
    ticket: Ticket,
    id: OpId,
    settle: bool,
    reply: Option<&limit::Reply>,
    now: UnixMillis,
) -> (Came, String) {
    let request = head.request(now);
    let asked = Asked { id: head.id, now };
    let (config, kept) = (&isolate.config, &mut isolate.kept);
    let Step::Way(mut standpoint) = isolate.gate.walk(&request, &config.api_keys) else {
        let text = config.voice.refusal(&Refused::new(Code::Unavailable), asked, Verdict::default()).into_text();
        return (Came::Unknown, text);
    };
    let limited = standpoint.resident.limits.verdict(ticket, reply, now);
    let observes = standpoint.enforcement() == Mode::Observe;
    let mut verdict = Verdict::default();
    match limited {
        Limited::Admit => {
            behind(&mut standpoint, now, &mut verdict);
            let handle = if settle { ending(&standpoint, id) } else { String::new() };
            let release = if settle { (Release::Settle, handle.as_str()) } else { (Release::Free, "") };
            let passed = Passed { release, ..Passed::by(Tier::Limiter) };
            (Came::Admitted, config.voice.pass(&mut standpoint, kept, passed, asked, verdict).into_text())
        }
        Limited::Deny(denial) => {
            let code = limit_code(denial.code);
            if observes {
                tally::observed(&mut standpoint, code, asked.id, now);
                behind(&mut standpoint, now, &mut verdict);
                let passed = Passed::despite(code, Tier::Limiter);
                let text = config.voice.pass(&mut standpoint, kept, passed, asked, verdict).into_text();
                return (Came::Refused, text);
            }
            tally::refused(&mut standpoint, code, asked.id, now);
            behind(&mut standpoint, now, &mut verdict);
            let shown = shown(&mut standpoint, &denial.key, now);
            let limit = shown.map(|shown| (shown, Some(denial.retry_after_ms)));
            let reason = Reason { limit, ..Reason::new(code) };
            (Came::Refused, config.voice.refuse(&mut standpoint, &reason, Tier::Limiter, asked, verdict).into_text())
        }
        Limited::Unknown => undecided(config, &mut standpoint, kept, asked),
    }
}

/// A request about which the limiter could not be asked, or did not answer.
fn undecided(config: &Config, standpoint: &mut Standpoint<'_, '_>, kept: &mut Kept, asked: Asked) -> (Came, String) {
    let code = Code::LimiterUnavailable;
    if standpoint.enforcement() == Mode::Observe || standpoint.fail() == Fail::Open {
        tally::observed(standpoint, code, asked.id, asked.now);
        let passed = Passed::despite(code, Tier::Isolate);
        return (Came::Passed, config.voice.pass(standpoint, kept, passed, asked, Verdict::default()).into_text());
    }
    tally::refused(standpoint, code, asked.id, asked.now);
    let reason = Reason::new(code);
    (Came::Unknown, config.voice.refuse(standpoint, &reason, Tier::Isolate, asked, Verdict::default()).into_text())
}

/// How the limit with this key is shown to clients.
fn shown(standpoint: &mut Standpoint<'_, '_>, key: &limit::LimitKey, now: UnixMillis) -> Option<Shown> {
    let (way, limits) = standpoint.way(now)?;
    way.shown.iter().find(|shown| limits.key(shown.slot) == Some(key)).cloned()
}

/// The COMMIT of a reservation, to be turned into a VOID where the origin refuses.
fn ending(standpoint: &Standpoint<'_, '_>, id: OpId) -> String {
    let call = Box::new(standpoint.resident.limits.end(id, true));
    json::written(&Handle { tenant: standpoint.resident.tenant().tenant, call })
}

/// Takes in what a limiter's answer tells beside the answer.
pub(crate) fn learn(config: &Config, tenant: TenantId, answer: LimitAnswer, now: UnixMillis) -> limit::Reply {
    if let Some(text) = &answer.document
        && let Err(untrusted) = documents::take(config, &DocumentKey::Tenant(tenant), text, true, now)
    {
        console_error!("{tenant}, from its limiter: not trusted: {untrusted}");
    }
    isolate::with(|isolate| {
        if let Some(resident) = isolate.gate.resident(tenant) {
            resident.hear(answer.reply.rev.tenant, now);
            resident.limits.answered(&answer.reply, now);
            resident.breaker.answered();
        }
    });
    answer.reply
}

/// Reads documents side by side; the code of what could not be read, if the walk cannot go on without it.
async fn read_all(
    env: &Env,
    config: &Arc<Config>,
    head: &Head,
    keys: Vec<DocumentKey>,
    now: UnixMillis,
) -> Option<Code> {
    let mut keys = keys;
    if keys.contains(&DocumentKey::Catalog)
        && let Some(tenant) =
            isolate::with(|isolate| isolate.gate.foresee(&head.request(now), &config.api_keys)).flatten()
    {
        keys.push(DocumentKey::Tenant(tenant));
    }
    let reads = all(keys.iter().map(async |key| match key {
        DocumentKey::Tenant(_) if head.unseen => documents::read_owned(env, config, key, now).await,
        _ => documents::read(env, config, key, now).await,
    }))
    .await;
    for (key, read) in keys.iter().zip(reads) {
        let code = match read {
            Read::Here => continue,
            Read::Failed(code) => code,
            Read::Absent => Code::SnapshotUnavailable,
        };
        match key {
            DocumentKey::Tenant(tenant) if read == Read::Absent => {
                isolate::with(|isolate| isolate.gate.note_absent(*tenant, now));
            }
            // What is here already goes on being used until its signed end.
            DocumentKey::Tenant(tenant) => {
                let usable = isolate::with(|isolate| {
                    isolate.gate.resident(*tenant).is_some_and(|resident| !resident.is_expired(now))
                });
                if usable != Some(true) {
                    return Some(code);
                }
            }
            DocumentKey::Plan(plan, version) => {
                if let Some(previous) = isolate::with(|isolate| isolate.gate.previous(plan, *version)).flatten() {
                    documents::read(env, config, &previous, now).await;
                }
                if isolate::with(|isolate| isolate.gate.stand_in(plan, *version)) != Some(true) {
                    return Some(code);
                }
            }
            // Nothing was published yet.
            DocumentKey::Catalog if read == Read::Absent => {
                isolate::with(|isolate| isolate.gate.take_empty_catalog(now));
            }
            DocumentKey::Catalog => return Some(code),
        }
    }
    None
}

fn refuse(config: &Config, code: Code, id: RequestId, now: UnixMillis) -> String {
    config.voice.refusal(&Refused::new(code), Asked { id, now }, Verdict::default()).into_text()
}

/// Behind a reply: renews leases, reports use, reads documents anew; then stays until what is not spent was given back.
#[wasm_bindgen]
pub fn renew(what: &str, env: Env, now: f64) -> Promise {
    let behind = what.parse::<Behind>();
    promise(async move {
        if let (Ok(behind), Ok(config)) = (behind, isolate::ready(&env)) {
            renewed(&env, &config, behind, instant(now)).await;
        }
        Ok(None)
    })
}

pub(crate) async fn renewed(env: &Env, config: &Config, behind: Behind, now: UnixMillis) {
    let mut keys = Vec::new();
    if behind.catalog {
        keys.push(DocumentKey::Catalog);
        keys.extend(isolate::with(|isolate| isolate.gate.stood_in()).unwrap_or_default());
    }
    if behind.document {
        keys.push(DocumentKey::Tenant(behind.tenant));
    }
    let had_stand_ins = keys.iter().any(|key| matches!(key, DocumentKey::Plan(..)));
    let reads = async {
        all(keys.iter().map(|key| documents::read(env, config, key, now))).await;
        if had_stand_ins {
            isolate::with(|isolate| isolate.gate.forget_equipment());
        }
    };
    futures_util::future::join(reads, tend(env, config, behind.tenant, now)).await;
}

/// Sends what is due to the limiter, then stays to send what becomes due while nobody comes: until that is done, or somebody
/// else stays instead. The platform ends what stays longer than 30 s behind a reply; a lease ends after 5, and whoever renews
/// it takes over.
async fn tend(env: &Env, config: &Config, tenant: TenantId, now: UnixMillis) {
    let until = now.plus(STAY_MS);
    let turn = isolate::with(|isolate| {
        isolate.gate.resident(tenant).map(|resident| {
            resident.turn += 1;
            resident.turn
        })
    });
    let Some(turn) = turn.flatten() else { return };
    loop {
        while let Some(call) = due(tenant, clock()) {
            match ask_limiter(env, config, &Message::to_limiter(tenant, Box::new(call))).await {
                Ok(answer) => drop(learn(config, tenant, answer, clock())),
                Err(error) => heard(tenant, &error),
            }
        }
        let wakes = isolate::with(|isolate| {
            let resident = isolate.gate.resident(tenant).filter(|resident| resident.turn == turn)?;
            Some(resident.limits.wakes_at()?.max(resident.breaker.until()))
        });
        let Some(wakes) = wakes.flatten().filter(|wakes| *wakes < until) else { break };
        after(wakes.since(clock()).clamp(20, 5_000)).await;
    }
}

/// What is due to the limiter now.
fn due(tenant: TenantId, now: UnixMillis) -> Option<Call> {
    isolate::with(|isolate| {
        let resident = isolate.gate.resident(tenant).filter(|resident| !resident.breaker.holds(now))?;
        let call = resident.limits.undo(now).or_else(|| resident.limits.renew(now))?;
        resident.breaker.asks(now);
        Some(call)
    })
    .flatten()
}

/// Records the use of a request that a lease paid for, beside the origin's work. `undefined` when it is safe; otherwise the
/// verdict that takes the place of the origin's answer. `said` is the `Tollgate` header that this would have had.
#[wasm_bindgen]
pub fn record(handle: String, said: String, env: Env) -> Promise {
    promise(async move { conclude_exact(&handle, &said, &env, None).await })
}

/// Charges a request by what its origin answered: `status`, 0 for no answer. `undefined` when that is safe.
#[wasm_bindgen]
pub fn settle(handle: String, status: u16, said: String, env: Env) -> Promise {
    promise(async move { conclude_exact(&handle, &said, &env, Some((1..400).contains(&status))).await })
}

async fn conclude_exact(handle: &str, said: &str, env: &Env, commit: Option<bool>) -> Result<Option<String>, JsValue> {
    let config = isolate::ready(env)?;
    let refusal = || {
        let now = clock();
        let asked = Asked { id: isolate::request_id(now)?, now };
        Ok(Some(config.voice.withdrawal(Code::UseNotRecorded, said, asked).into_text()))
    };
    let Ok(Handle { tenant, mut call }) = json::parse(handle) else { return refusal() };
    if commit == Some(false)
        && let Some(limit::Op::Commit { id }) = call.op
    {
        call.op = Some(limit::Op::Void { id, reversals: Vec::new() });
    }
    let message = Message::to_limiter(tenant, call);
    // The same id is done once however often it is asked, so asking again can only help.
    for _ in 0..3 {
        match ask_limiter(env, &config, &message).await {
            Ok(answer) => {
                let reply = learn(&config, tenant, answer, clock());
                match reply.outcome.map(|(_, outcome)| outcome) {
                    Some(limit::Outcome::Done | limit::Outcome::Admit) => return Ok(None),
                    Some(limit::Outcome::Gone | limit::Outcome::Deny(_)) => break,
                    None => {}
                }
            }
            Err(error) => {
                heard(tenant, &error);
                if error.overloaded {
                    break;
                }
            }
        }
    }
    // A reservation that could not be given back lapses by itself; the client need not suffer for it.
    if commit == Some(false) { Ok(None) } else { refusal() }
}

/// The refusal for an origin that did not answer; `said` as for [`record`].
#[wasm_bindgen]
#[must_use]
pub fn unreachable(said: &str, now: f64) -> String {
    let now = instant(now);
    isolate::with(|isolate| {
        let asked = Asked { id: isolate.request_id(now), now };
        isolate.config.voice.withdrawal(Code::OriginUnreachable, said, asked).into_text()
    })
    .unwrap_or_else(|| api::failed(Code::OriginUnreachable, now))
}
