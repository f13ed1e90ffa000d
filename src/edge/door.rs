//! What the door calls: `warm` for a request that can be decided from memory, `read` for one that wanted only its tenant's
//! document, `gate` for one that must wait longer, `renew` behind a reply. All of them answer in the words of `wire::verdict`.
//!
//! Invariant: these functions hold no authority. They trust no argument, and a request that neither `warm` nor `read` decides
//! is decided by `gate`, from the beginning.

use std::sync::Arc;

use wasm_bindgen::prelude::*;

use super::config::Config;
use super::documents;
use super::isolate::{self, Isolate};
use crate::domain::catalog::Recording;
use crate::domain::decision::Tier;
use crate::domain::document::DocumentKey;
use crate::domain::gate::{Outcome, Refused, Request, Standpoint, Step};
use crate::domain::path::cut;
use crate::domain::tally;
use crate::domain::time::UnixMillis;
use crate::wire::answer::{Asked, Passed};
use crate::wire::caller::Callers;
use crate::wire::headers;
use crate::wire::verdict::{Place, Verdict};

/// A time from JavaScript. What is no time is the epoch: then nothing is valid yet, and nothing is admitted.
pub(crate) fn instant(now: f64) -> UnixMillis {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "casts saturate; times are below 2^53")]
    UnixMillis(now as u64)
}

/// Decides about a request from memory alone: no I/O, no waiting. `undefined` where that is not possible; `read` where it is but for
/// one document, which the door reads for less than it costs here. `head` is its method, its URL, its `X-API-Key` and its
/// `Authorization`, a line each.
#[wasm_bindgen]
#[must_use]
pub fn warm(head: &str, now: f64) -> Option<String> {
    let now = instant(now);
    isolate::with(|isolate| {
        let asked = Asked { id: isolate.request_id(now), now };
        let config = &isolate.config;
        if let Some(standpoint) = isolate.gate.recall(head, now) {
            return Some(isolate.kept.shorten(decided(standpoint, config, &mut isolate.callers, asked)?));
        }
        let request = request(head, now);
        // Whether an OPTIONS is a preflight only its headers tell.
        if request.method == "OPTIONS" {
            return None;
        }
        let verdict = match isolate.gate.walk(&request, &config.api_keys) {
            Step::Elsewhere | Step::Preflight(_) => return None,
            Step::Missing(keys) => return unread(isolate, &keys),
            Step::Refuse(refused) => {
                let mut verdict = Verdict::at(Place::of(refused.code as u64));
                behind_refusal(&refused, &mut verdict);
                config.voice.refusal(&refused, asked, verdict)
            }
            Step::Way(standpoint) => decided(standpoint, config, &mut isolate.callers, asked)?,
        };
        Some(isolate.kept.shorten(verdict))
    })
    .flatten()
}

/// What memory alone says to a request whose key, route and feature are settled, if that is enough.
fn decided(
    mut standpoint: Standpoint<'_, '_>,
    config: &Config,
    callers: &mut Callers,
    asked: Asked,
) -> Option<Verdict> {
    let now = asked.now;
    let (way, limits) = standpoint.way(now)?;
    let exact = way.meter.as_ref().is_some_and(|metering| metering.recording == Recording::Exact);
    // A limiter that was never asked has lent nothing. `gate` asks it, and counts what is wanted of it once.
    let unasked = way.refusal.is_none() && !way.charges.is_empty() && !limits.has_heard();
    if exact || unasked {
        return None;
    }
    let outcome = standpoint.decide(now);
    let group = standpoint.group() ^ u64::from(matches!(outcome, Outcome::Refuse(_)));
    let mut verdict = Verdict::at(Place::of(group));
    let passed = match outcome {
        Outcome::Ask => return None,
        Outcome::Refuse(reason) => {
            tally::refused(&mut standpoint, reason.code, asked.id, now);
            behind(&mut standpoint, now, &mut verdict);
            return Some(config.voice.refuse(&mut standpoint, &reason, Tier::Isolate, asked, verdict));
        }
        Outcome::Admit(tier) => {
            tally::admitted(&mut standpoint, now);
            Passed::by(tier)
        }
        Outcome::Observed(code) => {
            tally::observed(&mut standpoint, code, asked.id, now);
            Passed::despite(code, Tier::Isolate)
        }
    };
    behind(&mut standpoint, now, &mut verdict);
    Some(config.voice.pass(&mut standpoint, callers, passed, asked, verdict))
}

/// Decides like [`warm`] once the document that was missing is read: `text`, which KV shows under `name`.
#[wasm_bindgen]
#[must_use]
pub fn read(head: &str, name: &str, text: &str, now: f64) -> Option<String> {
    let config = isolate::with(|isolate| Arc::clone(&isolate.config))?;
    // What is not trusted is read again by `gate`, which asks its owner too.
    documents::take(&config, &name.parse().ok()?, text, false, instant(now)).ok()?;
    // Read once: should the same be missing again, `gate` goes on.
    warm(head, now).filter(|verdict| !verdict.starts_with("read\n"))
}

/// What the door is to read, where nothing but the document of a tenant that is not here is missing.
fn unread(isolate: &mut Isolate, keys: &[DocumentKey]) -> Option<String> {
    match keys {
        [key @ DocumentKey::Tenant(tenant)] if isolate.gate.resident(*tenant).is_none() => Some(format!("read\n{key}")),
        _ => None,
    }
}

/// What `head` says of a request: see [`warm`]. One text costs one copy into this memory, four cost four.
pub(crate) fn request(head: &str, now: UnixMillis) -> Request<'_> {
    let mut rest = head;
    let mut line = || next_line(&mut rest);
    let (method, url, api_key, authorization) = (line(), line(), line(), line());
    Request { text: head, method, url, api_key, authorization, waits: false, preflight: false, now }
}

/// Takes a line off `text`.
fn next_line<'t>(text: &mut &'t str) -> &'t str {
    let (line, rest) = cut(text, b'\n').unwrap_or((text, ""));
    *text = rest;
    line
}

/// Notes what is to be done behind the reply.
pub(crate) fn behind(standpoint: &mut Standpoint<'_, '_>, now: UnixMillis, verdict: &mut Verdict) {
    if let Some(behind) = tally::behind(standpoint, now) {
        verdict.renew(&behind.to_string());
    }
}

/// The same behind a refusal.
pub(crate) fn behind_refusal(refused: &Refused<'_>, verdict: &mut Verdict) {
    if let Some(behind) = &refused.behind {
        verdict.renew(&behind.to_string());
    }
}

/// Which of these header names, a line each, may not reach the origin. `connection` is the value of that header, and
/// `authorization` of that one.
#[wasm_bindgen]
#[must_use]
pub fn stripped(names: &str, connection: &str, authorization: &str) -> String {
    let connection = Some(connection).filter(|value| !value.is_empty());
    let carried = crate::domain::gate::carries_key(authorization);
    headers::refused(names.split('\n'), connection, carried).collect::<Vec<_>>().join("\n")
}
