//! What this isolate remembers between requests: the configuration and the gate.
//!
//! Invariant: the memory is in use only between two awaits, never across one; and nothing of the platform (no binding, no
//! stub, no promise) is kept in it, because such things belong to one request. Whoever uses it takes it out and puts it back,
//! so a panic meanwhile takes it along: what is half changed is never used again, and the next request makes it anew.

use std::cell::Cell;
use std::sync::Arc;

use worker::{Env, Result, console_error};

use super::config::Config;
use crate::domain::decision::Code;
use crate::domain::gate::Gate;
use crate::domain::id::RequestId;
use crate::domain::limit::OpId;
use crate::domain::time::UnixMillis;
use crate::wire::kept::Kept;
use crate::wire::problem::Failure;

/// The memory of this isolate.
pub(crate) struct Isolate {
    /// What the deployment says.
    pub(crate) config: Arc<Config>,
    /// What the gate remembers.
    pub(crate) gate: Gate,
    /// What the door keeps.
    pub(crate) kept: Kept,
    /// Where its numbers begin, which no other isolate's do, and how many it has given.
    beginning: u128,
    given: u128,
}

thread_local! {
    static ISOLATE: Cell<Option<Box<Isolate>>> = const { Cell::new(None) };
}

/// The platform gave no random numbers: nothing that must be new can be made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NoRandom;

const NO_RANDOM: &str = "the platform gave no random numbers";

impl From<NoRandom> for Failure {
    fn from(_: NoRandom) -> Self {
        console_error!("{NO_RANDOM}");
        Self::new(Code::Internal)
    }
}

impl From<NoRandom> for worker::Error {
    fn from(_: NoRandom) -> Self {
        Self::RustError(NO_RANDOM.to_owned())
    }
}

impl Isolate {
    /// A request id: the time, then a number of its own.
    pub(crate) fn request_id(&mut self, now: UnixMillis) -> RequestId {
        RequestId::new(now, self.number())
    }

    /// An op of its own.
    pub(crate) fn op_id(&mut self) -> OpId {
        OpId(self.number())
    }

    /// A number that no isolate gives again: 128 bits, counted from a random beginning.
    fn number(&mut self) -> u128 {
        self.given += 1;
        self.beginning.wrapping_add(self.given)
    }
}

/// Uses the memory, if it is there and nobody else is using it.
pub(crate) fn with<T>(use_it: impl FnOnce(&mut Isolate) -> T) -> Option<T> {
    let mut isolate = ISOLATE.take()?;
    let result = use_it(&mut isolate);
    ISOLATE.set(Some(isolate));
    Some(result)
}

/// An id for a request, whether or not the memory can be used just now.
///
/// # Errors
/// When there are no random numbers.
pub(crate) fn request_id(now: UnixMillis) -> Result<RequestId> {
    match with(|isolate| isolate.request_id(now)) {
        Some(id) => Ok(id),
        None => Ok(RequestId::new(now, random()?)),
    }
}

/// Makes the memory where there is none yet, and gives the configuration.
///
/// # Errors
/// When the deployment is not configured.
pub(crate) fn ready(env: &Env) -> Result<Arc<Config>> {
    if let Some(config) = with(|isolate| Arc::clone(&isolate.config)) {
        return Ok(config);
    }
    let config = Arc::new(Config::read(env)?);
    let isolate = Isolate {
        config: Arc::clone(&config),
        gate: Gate::new(random()?),
        kept: Kept::new(config.signer.clone()),
        beginning: random()?,
        given: 0,
    };
    ISOLATE.set(Some(Box::new(isolate)));
    Ok(config)
}

/// 128 random bits. Only within a request: the platform gives none before.
///
/// # Errors
/// When the platform's generator fails.
pub(crate) fn random() -> std::result::Result<u128, NoRandom> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(|_| NoRandom)?;
    Ok(u128::from_be_bytes(bytes))
}
