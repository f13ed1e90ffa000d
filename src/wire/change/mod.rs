//! Changes that an operator makes: from a request and what is stored to the statements that carry it out.
//!
//! Invariant: a change is decided here whole (its statements, its audit record, its answer) or refused with the place of what
//! is wrong; `edge` reads the facts, runs the statements in one batch, and replies.

pub mod catalog;
pub mod tenant;

use std::str::FromStr;

use serde::de::DeserializeOwned;

use super::json;
use super::problem::Failure;
use crate::domain::api_key::KeyRing;
use crate::domain::decision::Code;
use crate::domain::path::CanonicalPath;
use crate::domain::time::UnixMillis;

/// The largest body of a change: an origin with a thousand routes.
pub const MAX_BODY: usize = 512 * 1024;

/// What was asked, by whom and when.
#[derive(Debug)]
pub struct Asked<'a> {
    /// The pattern of the route that was called.
    pub route: &'static str,
    /// The path.
    pub path: &'a CanonicalPath<'a>,
    /// The body.
    pub body: &'a [u8],
    /// As audit records name the operator.
    pub actor: &'a str,
    /// When.
    pub now: UnixMillis,
    /// 256 random bits, for what has to be new.
    pub random: (u128, u128),
    /// Makes API keys.
    pub keys: &'a KeyRing,
}

impl Asked<'_> {
    /// A part of the path, by its name in the route.
    #[must_use]
    pub fn param(&self, name: &str) -> &str {
        self.path.part(self.route, name).unwrap_or_default()
    }

    /// A part of the path that names something to be made or replaced.
    ///
    /// # Errors
    /// 422 when it is no such name.
    pub fn named<N: FromStr<Err: std::fmt::Display>>(&self, name: &str) -> Result<N, Failure> {
        let parsed = self.param(name).parse();
        parsed.map_err(|error: N::Err| Failure::new(Code::InvalidValue).because(format!("the name {error}")))
    }

    /// A part of the path that names something there.
    ///
    /// # Errors
    /// 404 when it cannot be there.
    pub fn known<N: FromStr>(&self, name: &str) -> Result<N, Failure> {
        self.param(name).parse().map_err(|_| Failure::new(Code::NotFound))
    }

    /// The body, which must be a `T`.
    ///
    /// # Errors
    /// 400, 413 or 422: what is wrong with it, and where.
    pub fn read<T: DeserializeOwned>(&self) -> Result<T, Failure> {
        Ok(json::read(self.body, MAX_BODY)?)
    }
}

/// What was done, for the audit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// What: `feature.put`.
    pub action: &'static str,
    /// To what.
    pub subject: String,
    /// How, as JSON.
    pub detail: String,
}
