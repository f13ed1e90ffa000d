//! The tenant object: limiter, outbox, publisher and sealer of one tenant, on one thread and in one database.
//!
//! Invariant: a message is one transaction, opened by the door around [`TenantShell::call`]. What is in memory is a copy of
//! rows: where the transaction is rolled back, the door has the copies forgotten, and the next message reads the rows.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;

use js_sys::Promise;
use serde::Deserialize;
use wasm_bindgen::prelude::*;
use worker::durable::State;
use worker::worker_sys::DurableObjectState;
use worker::{Env, SqlStorageValue, console_error};

use super::config::Config;
use super::object::{Message, ask_limiter};
use super::promise::promise;
use super::publisher;
use super::storage::{Tables, integer, unreadable};
use super::{isolate, ledger, sealer};
use crate::domain::document::DocumentKey;
use crate::domain::id::{RequestId, TenantId};
use crate::domain::job::Job;
use crate::domain::limit::{Call, Effects, Incarnation, LimitKey, Limiter, OpId, Reply, Standing};
use crate::domain::outbox::Event;
use crate::domain::tally::{self, Label};
use crate::domain::tenant::Tenant;
use crate::domain::time::UnixMillis;
use crate::wire::json;
use crate::wire::object::{AskTenant, Books, DocumentAnswer, LimitAnswer, ToTenant, limit_name};

/// For how long what was refused is kept: a week.
const TRAFFIC_MINUTES: u64 = 7 * 24 * 60;

/// The shell around one tenant's rules.
#[wasm_bindgen]
pub struct TenantShell(Rc<TenantObject>);

struct TenantObject {
    tables: Tables,
    env: Env,
    config: Arc<Config>,
    /// Whose object this is, once a message said so.
    owner: Cell<Option<TenantId>>,
    limiter: RefCell<Option<Limiter>>,
    published: RefCell<Option<Rc<Published>>>,
    /// What is to be sent to the parent's limiter behind the answer.
    upward: RefCell<Option<Call>>,
}

/// The tenant's document, as this object last published it.
struct Published {
    serial: u64,
    tenant: Tenant,
}

/// A panic leaves no memory half changed: the limiter is taken out while it works and put back when all is stored, and the
/// rest is only ever replaced whole.
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
            owner: Cell::new(None),
            limiter: RefCell::new(None),
            published: RefCell::new(None),
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
                Ok(json::written(&DocumentAnswer { signed }))
            }
            AskTenant::Publish(publication) => {
                let newer = publisher::publish(&self.0.tables, &self.0.config, &publication, now)
                    .map_err(|error| broken(&error))?;
                if newer {
                    self.0.published.take();
                    self.0.tables.schedule(Job::Seal, now).map_err(|error| broken(&error))?;
                }
                Ok(json::written(&newer))
            }
            AskTenant::Seal => {
                self.0.tables.schedule(Job::Seal, now).map_err(|error| broken(&error))?;
                Ok("true".to_owned())
            }
            AskTenant::Books => Ok(json::written(&self.0.books(tenant, now)?)),
            AskTenant::Left => {
                let standings = self.0.standings(tenant, now)?;
                Ok(json::written(&named(&standings, |standing| standing.avail)))
            }
        }
    }

    /// Forgets what is only a copy of rows. The door says so when it rolled a transaction back.
    pub fn forget(&self) {
        self.0.owner.set(None);
        self.0.limiter.take();
        self.0.published.take();
        self.0.upward.take();
        self.0.tables.forget();
    }

    /// What is to be sent to the parent's limiter behind an answer: for [`Self::above`].
    ///
    /// # Errors
    /// When the storage refuses.
    pub fn upward(&self) -> Result<Option<String>, JsError> {
        let Some(call) = self.0.upward.borrow_mut().take() else { return Ok(None) };
        let Some(published) = self.0.published().map_err(|error| broken(&error))? else { return Ok(None) };
        let tenant = published.tenant.tenant;
        Ok(Some(json::written(&Upward { tenant, call: Box::new(call), waits: None })))
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
        let mut limiter = self.0.take(upward.tenant)?;
        let (mut answer, mut effects) = (Reply::default(), Effects::default());
        if let Some((id, so_far)) = upward.waits {
            let outcome;
            (outcome, effects) = limiter.forwarded(id, reply.as_ref(), now);
            answer = Reply { outcome: outcome.map(|outcome| (id, outcome)), ..so_far };
        } else if let Some(reply) = &reply {
            limiter.parent_reply(reply, now);
        }
        self.0.put_back(limiter, &effects, now)?;
        Ok(json::written(&LimitAnswer { reply: answer, document: None }))
    }

    /// Does, within a transaction, what of the due jobs needs nobody else: lets time pass at the limiter, and makes events of
    /// the counts that have gathered.
    ///
    /// # Errors
    /// When the storage refuses; nothing was changed then.
    pub fn tick(&self, _: &str, now: f64) -> Result<String, JsError> {
        let now = super::door::instant(now);
        let is_due = |job| self.0.tables.is_due(job, now).map_err(|error| broken(&error));
        if is_due(Job::Tick)?
            && let Some(published) = self.0.published().map_err(|error| broken(&error))?
        {
            self.0.tables.remove(Job::Tick).map_err(|error| broken(&error))?;
            let mut limiter = self.0.take(published.tenant.tenant)?;
            let effects = limiter.tick(now);
            self.0.put_back(limiter, &effects, now)?;
        }
        if is_due(Job::Flush)? {
            self.0.gathered()?;
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
        let published = self.published().map_err(|error| broken(&error))?;
        let reply = match published.and_then(|published| published.tenant.ancestors.first().map(|parent| parent.tenant))
        {
            Some(parent) => ask_limiter(&self.env, &self.config, &Message::to_limiter(parent, upward.call.clone()))
                .await
                .inspect_err(|error| console_error!("limiter of {parent}: {error}"))
                .ok()
                .map(|answer| answer.reply),
            None => None,
        };
        Ok(json::written(&(upward, reply)))
    }

    async fn work(&self, job: Job, now: UnixMillis) -> Result<Option<UnixMillis>, String> {
        match job {
            Job::Put => publisher::put(&self.tables, &self.env).await.map(|()| None),
            Job::Sign => publisher::sign(&self.tables, &self.config, now).map_err(|error| error.to_string()),
            Job::Flush => {
                let Some(published) = self.published().map_err(|error| error.to_string())? else { return Ok(None) };
                ledger::flush(&self.tables, &self.env, &published.tenant, now).await
            }
            Job::Seal => {
                let Some(published) = self.published().map_err(|error| error.to_string())? else { return Ok(None) };
                let more = sealer::seal(&self.env, &published.tenant).await.map_err(|abort| abort.to_string())?;
                Ok(more.then_some(now))
            }
            // Done by `tick`, in a transaction, before the others.
            Job::Tick => Ok(None),
        }
    }

    /// The first message says whose object this is; from then on it is nobody else's.
    fn recognise(&self, tenant: TenantId) -> Result<(), JsError> {
        if self.owner.get() == Some(tenant) {
            return Ok(());
        }
        let owners = self.tables.rows("SELECT tenant FROM owner", vec![]).map_err(|error| broken(&error))?;
        match owners.first() {
            Some(owner) if owner.parsed("tenant") == Ok(tenant) => {}
            Some(_) => return Err(JsError::new("a message for another tenant's object")),
            None => self
                .tables
                .run("INSERT INTO owner (id, tenant) VALUES (1, ?1)", vec![tenant.to_string().into()])
                .map_err(|error| broken(&error))?,
        }
        self.owner.set(Some(tenant));
        Ok(())
    }

    fn published(&self) -> worker::Result<Option<Rc<Published>>> {
        if let Some(published) = &*self.published.borrow() {
            return Ok(Some(Rc::clone(published)));
        }
        let rows = self.tables.rows("SELECT serial, body FROM document WHERE name LIKE 'tenant/%'", vec![])?;
        let Some(row) = rows.first() else { return Ok(None) };
        let read = || Ok(Published { serial: row.integer("serial")?, tenant: row.json("body")? });
        let published = Rc::new(read().map_err(|invalid: json::Invalid| unreadable(&invalid))?);
        *self.published.borrow_mut() = Some(Rc::clone(&published));
        Ok(Some(published))
    }

    fn limit(&self, tenant: TenantId, call: &Call, now: UnixMillis) -> Result<String, JsError> {
        let mut limiter = self.take(tenant)?;
        let (mut reply, effects) = limiter.step(call, now);
        self.put_back(limiter, &effects, now)?;
        if let (Some(above), Some(op)) = (effects.forward, &call.op) {
            let upward = Upward { tenant, call: Box::new(above), waits: Some((op.id(), reply)) };
            return Ok(format!("above\n{}", json::written(&upward)));
        }
        let newest = self.published().map_err(|error| broken(&error))?.map_or(0, |published| published.serial);
        reply.rev.tenant = reply.rev.tenant.max(newest);
        let document = if call.depth == 0 && newest > call.rev.tenant && call.rev.tenant > 0 {
            publisher::signed(&self.tables, &DocumentKey::Tenant(tenant)).map_err(|error| broken(&error))?
        } else {
            None
        };
        Ok(json::written(&LimitAnswer { reply, document }))
    }

    /// Takes the limiter out, for one step; [`Self::put_back`] when that went well.
    fn take(&self, tenant: TenantId) -> Result<Limiter, JsError> {
        let held = self.limiter.borrow_mut().take();
        held.map_or_else(|| self.restore(tenant).map_err(|error| broken(&error)), Ok)
    }

    /// Stores what a step changed and what it brought. The copy in memory is put back only when all of that went well.
    fn put_back(&self, mut limiter: Limiter, effects: &Effects, now: UnixMillis) -> Result<(), JsError> {
        let upward = limiter.parent_call(now);
        let (mut written, mut gone) = (Vec::new(), Vec::new());
        for change in limiter.changes() {
            match change.row {
                Some(row) => written.push((change.place.to_string(), json::written(&row))),
                None => gone.push(change.place.to_string()),
            }
        }
        // One statement for all rows: each has its price, whatever it carries.
        self.tables
            .run(
                "INSERT INTO limiter (place, body) SELECT value ->> 0, value ->> 1 FROM json_each(?1) WHERE true
                 ON CONFLICT (place) DO UPDATE SET body = excluded.body",
                vec![json::written(&written).into()],
            )
            .map_err(|error| broken(&error))?;
        if !gone.is_empty() {
            self.tables
                .run(
                    "DELETE FROM limiter WHERE place IN (SELECT value FROM json_each(?1))",
                    vec![json::written(&gone).into()],
                )
                .map_err(|error| broken(&error))?;
        }
        if let Some(at) = limiter.wakes_at() {
            self.tables.schedule(Job::Tick, at).map_err(|error| broken(&error))?;
        }
        if upward.is_some() {
            *self.upward.borrow_mut() = upward;
        }
        self.book(effects, now)?;
        *self.limiter.borrow_mut() = Some(limiter);
        Ok(())
    }

    fn restore(&self, tenant: TenantId) -> worker::Result<Limiter> {
        let rows = self.tables.rows("SELECT place, body FROM limiter", vec![])?;
        let rows = rows.iter().map(|row| Ok((row.parsed("place")?, row.json("body")?)));
        let rows = rows.collect::<Result<Vec<_>, _>>().map_err(|invalid| unreadable(&invalid))?;
        let random = isolate::random()?;
        Ok(Limiter::restore(rows).unwrap_or_else(|| Limiter::new(tenant, Incarnation(random))))
    }

    /// Puts what a step brought where it waits: events to the outbox, counts to what gathers.
    fn book(&self, effects: &Effects, now: UnixMillis) -> Result<(), JsError> {
        for tally in &effects.tallies {
            let Ok(label) = tally.label.parse::<Label>() else { continue };
            if tally.key.is_none() || label.meter.is_none() {
                self.note(&label, tally.units, tally.last).map_err(|error| broken(&error))?;
                continue;
            }
            self.tables
                .run(
                    "INSERT INTO gathering (label, units) VALUES (?1, ?2)
                     ON CONFLICT (label) DO UPDATE SET units = units + excluded.units",
                    vec![label.to_string().into(), integer(tally.units)],
                )
                .and_then(|()| self.tables.schedule(Job::Flush, now.plus(ledger::GATHER_MS)))
                .map_err(|error| broken(&error))?;
        }
        if effects.events.is_empty() {
            return Ok(());
        }
        self.queue(&effects.events).map_err(|error| broken(&error))?;
        self.tables.schedule(Job::Flush, now.plus(ledger::BATCH_MS)).map_err(|error| broken(&error))
    }

    /// Makes an event of each count that has gathered. From then on it may be sent, and never changes.
    fn gathered(&self) -> Result<(), JsError> {
        let rows = self.tables.rows("SELECT label, units FROM gathering", vec![]).map_err(|error| broken(&error))?;
        if rows.is_empty() {
            return Ok(());
        }
        let published = self.published().map_err(|error| broken(&error))?;
        let random = isolate::random().map_err(|error| broken(&error.into()))?;
        let mut events = Vec::with_capacity(rows.len());
        for (place, row) in rows.iter().enumerate() {
            let (Ok(label), Ok(units)) = (row.parsed::<Label>("label"), row.integer("units")) else { continue };
            let period = published.as_ref().map_or(UnixMillis(0), |published| published.tenant.period(label.at()));
            events.extend(tally::entry(&format!("{random:032x}-{place}"), &label, units, period));
        }
        self.queue(&events)
            .and_then(|()| self.tables.run("DELETE FROM gathering", vec![]))
            .map_err(|error| broken(&error))
    }

    fn queue(&self, events: &[Event]) -> worker::Result<()> {
        for event in events {
            // The limiter counts nothing twice; a second time here is a repetition of the very same.
            self.tables.run(
                "INSERT INTO outbox (source, event_id, body) VALUES (?1, ?2, ?3) ON CONFLICT DO NOTHING",
                vec![event.source.as_str().into(), event.id.as_str().into(), json::written(event).into()],
            )?;
        }
        Ok(())
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

    /// How every limit stands. Time passes; nothing else changes.
    fn standings(&self, tenant: TenantId, now: UnixMillis) -> Result<Vec<(LimitKey, Standing)>, JsError> {
        let mut limiter = self.take(tenant)?;
        let effects = limiter.tick(now);
        let standings = limiter.standings();
        self.put_back(limiter, &effects, now)?;
        Ok(standings)
    }

    fn books(&self, tenant: TenantId, now: UnixMillis) -> Result<Books, JsError> {
        let count = |sql| -> Result<u64, JsError> {
            let rows = self.tables.rows(sql, vec![]).map_err(|error| broken(&error))?;
            Ok(rows.first().and_then(|row| row.integer("n").ok()).unwrap_or_default())
        };
        let outbox = count("SELECT (SELECT count(*) FROM outbox) + (SELECT count(*) FROM gathering) AS n")?;
        let quarantine = count("SELECT count(*) AS n FROM quarantine")?;
        let standings = self.standings(tenant, now)?;
        // What was refused or only observed lately, and the last request of each kind.
        let traffic = self.tables.rows(
            "SELECT json_group_array(json_object('minute', minute, 'key', key, 'what', what, 'requests', requests,
               'last_request_id', last_request)) AS rows
             FROM (SELECT * FROM traffic ORDER BY minute DESC, requests DESC LIMIT 50)",
            vec![],
        );
        let traffic = traffic.map_err(|error| broken(&error))?;
        Ok(Books {
            outbox,
            quarantine,
            leased: named(&standings, |standing| standing.open),
            gap: named(&standings, |standing| standing.gap),
            traffic: traffic.first().and_then(|row| row.text("rows").ok()).unwrap_or("[]").to_owned(),
            at: now,
        })
    }
}

/// Something of each limit, by its name.
fn named(standings: &[(LimitKey, Standing)], of: fn(&Standing) -> u64) -> Vec<(String, u64)> {
    standings.iter().map(|(key, standing)| (limit_name(key), of(standing))).collect()
}
