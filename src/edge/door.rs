//! What the door calls: `warm` for a request that can be decided from memory, `read` for one that wanted only its tenant's
//! document, `gate` for one that must wait longer, `renew` behind a reply. All of them answer in the words of `wire::verdict`.
//!
//! Invariant: these functions hold no authority. They trust no argument, and a request that neither `warm` nor `read` decides
//! is decided by `gate`, from the beginning.

use std::cell::Cell;
use std::sync::Arc;

use js_sys::{Uint8Array, WebAssembly};
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
use crate::wire::headers;
use crate::wire::kept::Kept;
use crate::wire::verdict::Verdict;

/// A time from JavaScript. What is no time is the epoch: then nothing is valid yet, and nothing is admitted.
pub(crate) fn instant(now: f64) -> UnixMillis {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "casts saturate; times are below 2^53")]
    UnixMillis(now as u64)
}

/// Where the door and [`warm`] hand each other texts: to ask for memory and give it back for each of them takes two more calls, and
/// reads and writes what the decision itself never needs.
///
/// The door writes into `open` from outside, and only while no Rust runs. Whoever uses it takes it out and puts it back; what a panic
/// takes along is lost and never freed (scripts/bindgen/src/unwinding.rs), so the door harms nobody until it asks for another one.
#[derive(Default)]
struct Desk {
    open: Vec<u8>,
    /// Where verdicts are written, again and again.
    verdict: String,
}

thread_local! {
    static DESK: Cell<Desk> = const { Cell::new(Desk { open: Vec::new(), verdict: String::new() }) };
}

/// The desk, with room for this many bytes. What lies on it stays there. The view ends when the memory grows.
#[wasm_bindgen]
#[must_use]
pub fn desk(bytes: u32) -> Uint8Array {
    let mut desk = DESK.take();
    if desk.open.len() < bytes as usize {
        desk.open.resize(bytes as usize, 0);
    }
    let at = desk.open.as_ptr().expose_provenance();
    DESK.set(desk);
    let memory: WebAssembly::Memory = wasm_bindgen::memory().unchecked_into();
    Uint8Array::new_with_byte_offset_and_length(&memory.buffer(), u32::try_from(at).unwrap_or(u32::MAX), bytes)
}

/// Decides about a request from memory alone: no I/O, no waiting. On the [`desk`] lie `bytes` bytes of text: the request's method, its
/// URL, its `X-API-Key` and its `Authorization`, a line each. The verdict lies there afterwards, as long as the answer says, in
/// bytes; 0 where there is none. It is `read` where but one document is missing, which the door reads for less than it costs here.
/// Should it be longer than the desk, another one has it.
#[wasm_bindgen]
#[must_use]
pub fn warm(bytes: usize, now: f64) -> usize {
    let mut desk = DESK.take();
    let head = desk.open.get(..bytes).and_then(|head| std::str::from_utf8(head).ok());
    let verdict = head.and_then(|head| at_once(head, std::mem::take(&mut desk.verdict), now));
    let length = verdict.as_ref().map_or(0, String::len);
    if let Some(verdict) = verdict {
        if desk.open.len() < length {
            desk.open.resize(length, 0);
        }
        if let Some(place) = desk.open.get_mut(..length) {
            place.copy_from_slice(verdict.as_bytes());
        }
        desk.verdict = verdict;
    }
    DESK.set(desk);
    length
}

/// Decides about a request from memory alone, and writes the verdict where `room` was.
fn at_once(head: &str, room: String, now: f64) -> Option<String> {
    let now = instant(now);
    isolate::with(|isolate| {
        let asked = Asked { id: isolate.request_id(now), now };
        let config = &isolate.config;
        if let Some(standpoint) = &mut isolate.gate.recall(head, now) {
            let verdict = decided(standpoint, config, &mut isolate.kept, asked, room)?;
            return Some(isolate.kept.shorten(verdict));
        }
        let request = request(head, now);
        // Whether an OPTIONS is a preflight only its headers tell.
        if request.method == "OPTIONS" {
            return None;
        }
        let verdict = match &mut isolate.gate.walk(&request, &config.api_keys) {
            Step::Elsewhere | Step::Preflight(_) => return None,
            Step::Missing(keys) => return unread(isolate, keys),
            Step::Refuse(refused) => {
                let mut verdict = Verdict::at_once(room);
                behind_refusal(refused, &mut verdict);
                config.voice.refusal(refused, asked, verdict)
            }
            Step::Way(standpoint) => decided(standpoint, config, &mut isolate.kept, asked, room)?,
        };
        Some(isolate.kept.shorten(verdict))
    })
    .flatten()
}

/// What memory alone says to a request whose key, route and feature are settled, if that is enough.
fn decided(
    standpoint: &mut Standpoint<'_, '_>,
    config: &Config,
    kept: &mut Kept,
    asked: Asked,
    room: String,
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
    let mut verdict = Verdict::at_once(room);
    let passed = match outcome {
        Outcome::Ask => return None,
        Outcome::Refuse(reason) => {
            tally::refused(standpoint, reason.code, asked.id, now);
            behind(standpoint, now, &mut verdict);
            return Some(config.voice.refuse(standpoint, &reason, Tier::Isolate, asked, verdict));
        }
        Outcome::Admit(tier) => {
            tally::admitted(standpoint, now);
            Passed::by(tier)
        }
        Outcome::Observed(code) => {
            tally::observed(standpoint, code, asked.id, now);
            Passed::despite(code, Tier::Isolate)
        }
    };
    behind(standpoint, now, &mut verdict);
    Some(config.voice.pass(standpoint, kept, passed, asked, verdict))
}

/// Decides like [`warm`] once the document that was missing is read: `text`, which KV shows under `name`.
#[wasm_bindgen]
#[must_use]
pub fn read(head: &str, name: &str, text: &str, now: f64) -> Option<String> {
    let config = isolate::with(|isolate| Arc::clone(&isolate.config))?;
    // What is not trusted is read again by `gate`, which asks its owner too.
    documents::take(&config, &name.parse().ok()?, text, false, instant(now)).ok()?;
    // Read once: should the same be missing again, `gate` goes on.
    at_once(head, String::new(), now).filter(|verdict| !verdict.starts_with("read\n"))
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
