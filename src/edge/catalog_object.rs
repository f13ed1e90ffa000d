//! The catalog object: the one owner of catalog and plan documents.
//!
//! Invariant: what it publishes goes to KV from its alarm, one document at a time, a plan before the catalog that names it.

use std::rc::Rc;
use std::sync::Arc;

use js_sys::Promise;
use wasm_bindgen::prelude::*;
use worker::Env;
use worker::durable::State;
use worker::worker_sys::DurableObjectState;

use super::config::Config;
use super::promise::promise;
use super::storage::Tables;
use super::{isolate, publisher};
use crate::domain::job::Job;
use crate::domain::time::UnixMillis;
use crate::wire::json;
use crate::wire::object::{DocumentAnswer, ToCatalog};

/// The shell around it.
#[wasm_bindgen]
pub struct CatalogShell(Rc<CatalogObject>);

struct CatalogObject {
    tables: Tables,
    env: Env,
    config: Arc<Config>,
}

#[wasm_bindgen]
impl CatalogShell {
    /// Wakes up: opens the tables.
    ///
    /// # Errors
    /// When the deployment is not configured, or the storage refuses.
    #[wasm_bindgen(constructor)]
    pub fn new(state: DurableObjectState, env: Env) -> Result<CatalogShell, JsError> {
        let config = isolate::ready(&env).map_err(|error| JsError::new(&error.to_string()))?;
        let tables = Tables::open(&State::from(state).storage()).map_err(|error| JsError::new(&error.to_string()))?;
        Ok(Self(Rc::new(CatalogObject { tables, env, config })))
    }

    /// Answers one message, within the transaction that the door has opened.
    ///
    /// # Errors
    /// When the message makes no sense or the storage refuses; nothing was changed then.
    pub fn call(&self, message: &str, now: f64) -> Result<String, JsError> {
        let now = super::door::instant(now);
        let broken = |error: worker::Error| JsError::new(&error.to_string());
        match json::parse(message)? {
            ToCatalog::Document(key) => {
                let signed = publisher::signed(&self.0.tables, &key).map_err(broken)?;
                Ok(json::written(&DocumentAnswer { signed }))
            }
            ToCatalog::Publish(publications) => {
                for publication in &publications {
                    publisher::publish(&self.0.tables, &self.0.config, publication, now).map_err(broken)?;
                }
                Ok("true".to_owned())
            }
        }
    }

    /// Forgets what is only a copy of rows. The door says so when it rolled a transaction back.
    pub fn forget(&self) {
        self.0.tables.forget();
    }

    /// When the alarm must ring.
    ///
    /// # Errors
    /// When the storage refuses.
    pub fn due(&self) -> Result<Option<f64>, JsError> {
        #[expect(clippy::cast_precision_loss, reason = "times are below 2^53")]
        Ok(self.0.tables.next_alarm().map_err(|error| JsError::new(&error.to_string()))?.map(|at| at.0 as f64))
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

impl CatalogObject {
    async fn work(&self, job: Job, now: UnixMillis) -> Result<Option<UnixMillis>, String> {
        match job {
            Job::Put => publisher::put(&self.tables, &self.env).await.map(|()| None),
            Job::Sign => publisher::sign(&self.tables, &self.config, now).map_err(|error| error.to_string()),
            // These are jobs of tenants.
            Job::Flush | Job::Seal | Job::Tick => Ok(None),
        }
    }
}
