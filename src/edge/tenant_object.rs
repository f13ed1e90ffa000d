//! The tenant object: limiter, outbox, publisher and sealer of one tenant, on one thread and in one database.
//!
//! Invariant: a message is one transaction, opened by the door around [`TenantShell::call`]. The memory of the limiter is a
//! copy of its rows: a call that fails drops the copy, and the next one reads the rows.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use js_sys::Promise;
use serde::Deserialize;
use wasm_bindgen::prelude::*;
use worker::durable::State;
use worker::worker_sys::DurableObjectState;
use worker::{Env, SqlStorageValue, console_error};

use super::config::Config;
use super::object::ask_limiter;
use super::promise::promise;
use super::publisher;
use super::storage::{Tables, integer, unreadable};
use super::{isolate, ledger, sealer};
use crate::domain::document::DocumentKey;
use crate::domain::id::{RequestId, TenantId};
use crate::domain::job::Job;
use crate::domain::limit::{Call, Effects, Incarnation, Limiter, OpId, Reply};
use crate::domain::tally::{self, Label};
use crate::domain::tenant::Tenant;
use crate::domain::time::UnixMillis;
use crate::wire::json;
use crate::wire::object::{AskTenant, Books, DocumentAnswer, LimitAnswer, ToTenant};

/// For how long what was refused is kept: a week.
const TRAFFIC_MINUTES: u64 = 7 * 24 * 60;

/// The shell around one tenant's rules.
#[wasm_bindgen]
pub struct TenantShell(Rc<TenantObject>);

struct TenantObject {
    tables: Tables,
    env: Env,
    config: Arc<Config>,
    limiter: RefCell<Option<Limiter>>,
    tenant: RefCell<Option<Rc<Tenant>>>,
    /// What is to be sent to the parent's limiter behind the answer.
    upward: RefCell<Option<Call>>,
}

/// A panic leaves no memory half changed: the limiter is taken out while it works and put back when all is stored, and the
/// tenant and the upward call are only ever replaced whole.
impl std::panic::RefUnwindSafe for TenantObject {}

/// A call on its way to the parent's limiter and back.
#[derive(serde::Serialize, Deserialize)]
struct Upward {
    tenant: TenantId,
    call: Box<Call>,
    /// The op that only the parent's limiter can decide, and what of its message is already answered. None for a call that
    /// fetches and reports.
    waits: Option<(OpId, Reply)>,
}

#[wasm_bindgen]
impl TenantShell {
    /// Wakes up: opens the tables.
    ///
    /// # Errors
    /// When the deployment is not configured, or the storage refuses.
    #[wasm_bindgen(constructor)]
    pub fn new(state: DurableObjectState, env: Env) -> Result<TenantShell, JsError> {
        let config = isolate::ready(&env).map_err(|error| broken(&error))?;
        let tables = Tables::open(&State::from(state).storage()).map_err(|error| broken(&error))?;
        Ok(Self(Rc::new(TenantObject {
            tables,
            env,
            config,
            limiter: RefCell::new(None),
            tenant: RefCell::new(None),
            upward: RefCell::new(None),
        })))
    }

    /// Answers one message, within the transaction that the door has opened. An answer that begins with `above` is none
    /// yet: the door hands the rest of it to [`Self::above`], and what that gives to [`Self::conclude`].
    ///
    /// # Errors
    /// When the message makes no sense, is for another tenant, or the storage refuses; nothing was changed then.
    pub fn call(&self, message: &str, now: f64) -> Result<String, JsError> {
        let now = super::door::instant(now);
        let ToTenant { tenant, ask } = json::parse(message)?;
        self.0.recognise(tenant)?;
        match ask {
            AskTenant::Limit(call) => self.0.limit(tenant, &call, now),
            AskTenant::Document => {
                let signed =
                    publisher::signed(&self.0.tables, &DocumentKey::Tenant(tenant)).map_err(|error| broken(&error))?;
                Ok(serde_json::to_string(&DocumentAnswer { signed })?)
            }
            AskTenant::Publish(publication) => {
                let newer = publisher::publish(&self.0.tables, &self.0.config, &publication, now)
                    .map_err(|error| broken(&error))?;
                if newer {
                    *self.0.tenant.borrow_mut() = None;
                    self.0.tables.schedule(Job::Seal, now).map_err(|error| broken(&error))?;
                }
                Ok(serde_json::to_string(&newer)?)
            }
            AskTenant::Seal => {
                self.0.tables.schedule(Job::Seal, now).map_err(|error| broken(&error))?;
                Ok("true".to_owned())
            }
            AskTenant::Books => Ok(serde_json::to_string(&self.0.books(tenant, now)?)?),
        }
    }

    /// What is to be sent to the parent's limiter behind an answer: for [`Self::above`].
    ///
    /// # Errors
    /// When the storage refuses.
    pub fn upward(&self) -> Result<Option<String>, JsError> {
        let Some(call) = self.0.upward.borrow_mut().take() else { return Ok(None) };
        let Some(tenant) = self.0.document().map_err(|error| broken(&error))? else { return Ok(None) };
        Ok(Some(serde_json::to_string(&Upward { tenant: tenant.tenant, call: Box::new(call), waits: None })?))
    }

    /// Sends a call to the parent's limiter; what it said is for [`Self::conclude`].
    pub fn above(&self, upward: String) -> Promise {
        let object = Rc::clone(&self.0);
        promise(async move { object.above(&upward).await.map(Some).map_err(JsValue::from) })
    }

    /// Takes in what the parent's limiter said, within a transaction; answers the message that waited for it, if one did.
    ///
    /// # Errors
    /// When the storage refuses; nothing was changed then.
    pub fn conclude(&self, said: &str, now: f64) -> Result<String, JsError> {
        let now = super::door::instant(now);
        let (upward, reply): (Upward, Option<Reply>) = json::parse(said)?;
        let (answer, effects) = self.0.with_limiter(upward.tenant, now, |limiter| {
            if let Some((id, mut so_far)) = upward.waits {
                let (outcome, effects) = limiter.forwarded(id, reply.as_ref(), now);
                so_far.outcome = outcome.map(|outcome| (id, outcome));
                return (so_far, effects);
            }
            if let Some(reply) = &reply {
                limiter.parent_reply(reply, now);
            }
            (Reply::default(), Effects::default())
        })?;
        self.0.book(effects, now)?;
        Ok(serde_json::to_string(&LimitAnswer { reply: answer, document: None })?)
    }

    /// Lets time pass at the limiter, within a transaction: reservations lapse, leases from above are renewed.
    ///
    /// # Errors
    /// When the storage refuses; nothing was changed then.
    pub fn tick(&self, _: &str, now: f64) -> Result<String, JsError> {
        let now = super::door::instant(now);
        if self.0.tables.due(now).map_err(|error| broken(&error))?.contains(&Job::Tick)
            && let Some(tenant) = self.0.document().map_err(|error| broken(&error))?
        {
            self.0.tables.finish_at_once(Job::Tick).map_err(|error| broken(&error))?;
            let effects = self.0.with_limiter(tenant.tenant, now, |limiter| limiter.tick(now))?;
            self.0.book(effects, now)?;
        }
        Ok(String::new())
    }

    /// When the alarm must ring.
    ///
    /// # Errors
    /// When the storage refuses.
    pub fn due(&self) -> Result<Option<f64>, JsError> {
        #[expect(clippy::cast_precision_loss, reason = "times are below 2^53")]
        Ok(self.0.tables.next_alarm().map_err(|error| broken(&error))?.map(|at| at.0 as f64))
    }

    /// Does what is due. Never fails: what fails is tried again later.
    pub fn alarm(&self) -> Promise {
        let object = Rc::clone(&self.0);
        promise(async move {
            object.tables.serve(async |job, now| object.work(job, now).await).await;
            Ok(None)
        })
    }
}

fn broken(error: &worker::Error) -> JsError {
    JsError::new(&error.to_string())
}

impl TenantObject {
    async fn above(&self, upward: &str) -> Result<String, JsError> {
        let upward: Upward = json::parse(upward)?;
        let tenant = self.document().map_err(|error| broken(&error))?;
        let reply = match tenant.and_then(|tenant| tenant.ancestors.first().map(|parent| parent.tenant)) {
            Some(parent) => ask_limiter(&self.env, &self.config, parent, upward.call.clone())
                .await
                .inspect_err(|error| console_error!("limiter of {parent}: {error}"))
                .ok()
                .map(|answer| answer.reply),
            None => None,
        };
        Ok(serde_json::to_string(&(upward, reply))?)
    }

    async fn work(&self, job: Job, now: UnixMillis) -> Result<Option<UnixMillis>, String> {
        let kv = || self.env.kv("DOCUMENTS").map_err(|error| error.to_string());
        match job {
            Job::Put => publisher::put(&self.tables, &kv()?).await.map(|()| None).map_err(|error| error.to_string()),
            Job::Sign => publisher::sign(&self.tables, &self.config, now).map_err(|error| error.to_string()),
            Job::Flush => {
                let Some(tenant) = self.document().map_err(|error| error.to_string())? else { return Ok(None) };
                ledger::flush(&self.tables, &self.env, &tenant, now).await
            }
            Job::Seal => {
                let Some(tenant) = self.document().map_err(|error| error.to_string())? else { return Ok(None) };
                let more = sealer::seal(&self.env, &tenant).await.map_err(|abort| abort.to_string())?;
                Ok(more.then_some(now))
            }
            // Done by `tick`, in a transaction, before the others.
            Job::Tick => Ok(None),
        }
    }

    /// The first message says whose object this is; from then on it is nobody else's.
    fn recognise(&self, tenant: TenantId) -> Result<(), JsError> {
        let owners = self.tables.rows("SELECT tenant FROM owner", vec![]).map_err(|error| broken(&error))?;
        match owners.first() {
            Some(owner) if owner.parsed("tenant") == Ok(tenant) => Ok(()),
            Some(_) => Err(JsError::new("a message for another tenant's object")),
            None => self
                .tables
                .run("INSERT INTO owner (id, tenant) VALUES (1, ?1)", vec![tenant.to_string().into()])
                .map_err(|error| broken(&error)),
        }
    }

    /// The tenant's document, as this object last published it.
    fn document(&self) -> worker::Result<Option<Rc<Tenant>>> {
        if let Some(tenant) = &*self.tenant.borrow() {
            return Ok(Some(Rc::clone(tenant)));
        }
        let rows = self.tables.rows("SELECT body FROM document WHERE name LIKE 'tenant/%'", vec![])?;
        let Some(row) = rows.first() else { return Ok(None) };
        let body = row.text("body").map_err(|invalid| unreadable(&invalid))?;
        let tenant: Rc<Tenant> = Rc::new(json::parse(body)?);
        *self.tenant.borrow_mut() = Some(Rc::clone(&tenant));
        Ok(Some(tenant))
    }

    fn limit(&self, tenant: TenantId, call: &Call, now: UnixMillis) -> Result<String, JsError> {
        let (reply, mut effects) = self.with_limiter(tenant, now, |limiter| limiter.step(call, now))?;
        let forward = effects.forward.take();
        self.book(effects, now)?;
        if let (Some(above), Some(op)) = (forward, &call.op) {
            let upward = Upward { tenant, call: Box::new(above), waits: Some((op.id(), reply)) };
            return Ok(format!("above\n{}", serde_json::to_string(&upward)?));
        }
        let key = DocumentKey::Tenant(tenant);
        let newest = publisher::serial(&self.tables, &key).map_err(|error| broken(&error))?.unwrap_or(0);
        let mut reply = reply;
        reply.rev.tenant = reply.rev.tenant.max(newest);
        let document = if call.depth == 0 && newest > call.rev.tenant && call.rev.tenant > 0 {
            publisher::signed(&self.tables, &key).map_err(|error| broken(&error))?
        } else {
            None
        };
        Ok(serde_json::to_string(&LimitAnswer { reply, document })?)
    }

    /// Runs a step of the limiter and stores what it changed. The copy in memory is put back only when all of that went well.
    fn with_limiter<T>(
        &self,
        tenant: TenantId,
        now: UnixMillis,
        step: impl FnOnce(&mut Limiter) -> T,
    ) -> Result<T, JsError> {
        let held = self.limiter.borrow_mut().take();
        let mut limiter = match held {
            Some(limiter) => limiter,
            None => self.restore(tenant).map_err(|error| broken(&error))?,
        };
        let result = step(&mut limiter);
        let upward = limiter.parent_call(now);
        for change in limiter.changes() {
            let place = change.place.to_string();
            let stored = match change.row {
                Some(row) => self.tables.run(
                    "INSERT INTO limiter (place, body) VALUES (?1, ?2)
                     ON CONFLICT (place) DO UPDATE SET body = excluded.body",
                    vec![place.into(), serde_json::to_string(&row)?.into()],
                ),
                None => self.tables.run("DELETE FROM limiter WHERE place = ?1", vec![place.into()]),
            };
            stored.map_err(|error| broken(&error))?;
        }
        if let Some(at) = limiter.wakes_at() {
            self.tables.schedule(Job::Tick, at).map_err(|error| broken(&error))?;
        }
        if upward.is_some() {
            *self.upward.borrow_mut() = upward;
        }
        *self.limiter.borrow_mut() = Some(limiter);
        Ok(result)
    }

    fn restore(&self, tenant: TenantId) -> worker::Result<Limiter> {
        let rows = self.tables.rows("SELECT place, body FROM limiter", vec![])?;
        let rows = rows.iter().map(|row| {
            let place = row.parsed("place").map_err(|invalid| unreadable(&invalid))?;
            Ok((place, json::parse(row.text("body").map_err(|invalid| unreadable(&invalid))?)?))
        });
        let rows = rows.collect::<worker::Result<Vec<_>>>()?;
        let random = isolate::random()?;
        Ok(Limiter::restore(rows).unwrap_or_else(|| Limiter::new(tenant, Incarnation(random))))
    }

    /// Puts what a step brought to the outbox.
    fn book(&self, effects: Effects, now: UnixMillis) -> Result<(), JsError> {
        let mut events = effects.events;
        if !effects.tallies.is_empty() {
            let document = self.document().map_err(|error| broken(&error))?;
            for tally in effects.tallies {
                let Ok(label) = tally.label.parse::<Label>() else { continue };
                let at = UnixMillis(label.minute * tally::MINUTE_MS);
                let period = document.as_ref().map_or(UnixMillis(0), |document| document.period(at));
                match tally::entry(&tally.id, &label, tally.units, period) {
                    Some(event) if tally.key.is_some() => events.push(event),
                    _ => self.note(&label, tally.units, tally.last).map_err(|error| broken(&error))?,
                }
            }
        }
        if events.is_empty() {
            return Ok(());
        }
        for event in events {
            let body = serde_json::to_string(&event)?;
            // The limiter counts nothing twice; a second time here is a repetition of the very same.
            self.tables
                .run(
                    "INSERT INTO outbox (source, event_id, body) VALUES (?1, ?2, ?3) ON CONFLICT DO NOTHING",
                    vec![event.source.into(), event.id.into(), body.into()],
                )
                .map_err(|error| broken(&error))?;
        }
        // A moment later, so that one batch carries what a second brings.
        self.tables.schedule(Job::Flush, now.plus(ledger::GATHER_MS)).map_err(|error| broken(&error))
    }

    /// Notes what is only shown, and forgets what is too old to be.
    fn note(&self, label: &Label, requests: u64, last: Option<RequestId>) -> worker::Result<()> {
        self.tables.run(
            "INSERT INTO traffic (minute, key, what, requests, last_request) VALUES (?1, ?2, ?3, ?4, ?5)
             ON CONFLICT DO UPDATE SET requests = requests + excluded.requests, last_request = excluded.last_request",
            vec![
                integer(label.minute),
                label.key.to_string().into(),
                label.route.as_str().into(),
                integer(requests),
                last.map_or(SqlStorageValue::Null, |last| last.to_string().into()),
            ],
        )?;
        self.tables
            .run("DELETE FROM traffic WHERE minute < ?1", vec![integer(label.minute.saturating_sub(TRAFFIC_MINUTES))])
    }

    fn books(&self, tenant: TenantId, now: UnixMillis) -> Result<Books, JsError> {
        let count = |sql| -> Result<u64, JsError> {
            let rows = self.tables.rows(sql, vec![]).map_err(|error| broken(&error))?;
            Ok(rows.first().and_then(|row| row.integer("n").ok()).unwrap_or_default())
        };
        let outbox = count("SELECT count(*) AS n FROM outbox")?;
        let quarantine = count("SELECT count(*) AS n FROM quarantine")?;
        let (effects, standings) =
            self.with_limiter(tenant, now, |limiter| (limiter.tick(now), limiter.standings()))?;
        self.book(effects, now)?;
        // What was refused or only observed lately, and the last request of each kind.
        let traffic = self.tables.rows(
            "SELECT json_group_array(json_object('minute', minute, 'key', key, 'what', what, 'requests', requests,
               'last_request_id', last_request)) AS rows
             FROM (SELECT * FROM traffic ORDER BY minute DESC, requests DESC LIMIT 50)",
            vec![],
        );
        let traffic = traffic.map_err(|error| broken(&error))?;
        let name = |key: &crate::domain::limit::LimitKey| {
            let window = key.window.map_or(String::new(), |window| format!("@{}", window.0));
            format!("{}/{}/{}{window}", key.tenant, key.limit, key.mode.name())
        };
        Ok(Books {
            outbox,
            quarantine,
            leased: standings.iter().map(|(key, standing)| (name(key), standing.open)).collect(),
            gap: standings.iter().map(|(key, standing)| (name(key), standing.gap)).collect(),
            traffic: traffic.first().and_then(|row| row.text("rows").ok()).unwrap_or("[]").to_owned(),
            at: now,
        })
    }
}
