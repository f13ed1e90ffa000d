//! What the door is told: one text, a line each. `src/entry.js` acts on it.
//!
//! Invariant: no line holds a line break. What comes from a client passes through here only as a canonical path, which
//! has none, or inside JSON, which escapes them.
//!
//! ```text
//! [renew, what]      call `renew` with this behind the reply
//! read               name: of the document in KV that `read` is to be called with (`edge::door`)
//! answer             body, values of the last two headers, head: its place, then, unless the door keeps it there, the status, names
//!                    and values of headers in turn, names of the last two
//! forward            handle, release, target, URL; then, for a request that is known to be somebody's: the place of the caller, the
//!                    values of the last three headers for the origin and of the last two for the client; the client's head, as
//!                    above but without a status; then, unless the door keeps it, an empty line and the caller: names and values of
//!                    headers for the origin in turn, names of the last three
//! ```
//!
//! What goes out to a client or to an origin differs from one time to the next in its last headers, and an answer in its body.
//! Everything else is written once, and sent to the door once (`wire::kept`, `wire::caller`). Of an answer's last two headers the
//! second is not there where it has no value.

use std::hash::Hasher;
use std::rc::Rc;

use rustc_hash::FxHasher;

use super::caller::Caller;
use super::push_number;

/// What must be done before an answer of the origin is released.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Release {
    /// Nothing.
    Free,
    /// Use is recorded beside the call to the origin, and that must have succeeded.
    Record,
    /// Use is charged or not by what the origin answered, and that must have succeeded.
    Settle,
}

impl Release {
    /// As the door reads it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Free => "free",
            Self::Record => "record",
            Self::Settle => "settle",
        }
    }
}

/// Headers that are being written, names and values in turn, for a verdict to end with.
#[derive(Debug, Default)]
pub struct Headers(String);

impl Headers {
    /// The headers of an answer of this status.
    #[must_use]
    pub fn of_status(status: u16) -> Self {
        let mut text = String::new();
        push_number(&mut text, u64::from(status));
        Self(text)
    }

    /// A header.
    pub fn header(&mut self, name: &str, value: &str) -> &mut Self {
        self.begin(name).push_str(value);
        self
    }

    /// Begins a header whose value the caller writes.
    pub fn begin(&mut self, name: &str) -> &mut String {
        self.line(name);
        self.0.push('\n');
        &mut self.0
    }

    /// All of them, with the names of the last ones, whose values are said elsewhere.
    #[must_use]
    pub fn last(mut self, names: &[&str]) -> String {
        for name in names {
            self.line(name);
        }
        self.0
    }

    /// The same, behind the place that the door keeps it at.
    #[must_use]
    pub fn head(self, last: [&str; 2]) -> String {
        let head = self.last(&last);
        let mut text = String::with_capacity(head.len() + 3);
        push_place(&mut text, Some(Place::of(&head)));
        text.push('\n');
        text.push_str(&head);
        text
    }

    fn line(&mut self, text: &str) {
        if !self.0.is_empty() {
            self.0.push('\n');
        }
        self.0.push_str(text);
    }
}

/// Where the door keeps what it is told once: two characters, of six bits each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place(u16);

impl Place {
    /// How many there are.
    pub const COUNT: usize = 1 << 12;

    /// The place of this text. That others have the same one costs time, and nothing else.
    #[must_use]
    pub fn of(text: &str) -> Self {
        let mut hasher = FxHasher::default();
        hasher.write(text.as_bytes());
        #[expect(clippy::cast_possible_truncation, reason = "the lowest bits are the ones that are mixed best")]
        Self::numbered(hasher.finish() as usize)
    }

    /// The place that a text begins with.
    #[must_use]
    pub fn before(text: &str) -> Option<Self> {
        let value = |digit: &u8| digit.checked_sub(b'0').filter(|six_bits| *six_bits < 64).map(u16::from);
        let [high, low] = text.as_bytes().first_chunk()?;
        Some(Self(value(high)? << 6 | value(low)?))
    }

    /// The place with this number, counted in rounds of [`Self::COUNT`].
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "of 12 bits nothing is lost")]
    pub const fn numbered(number: usize) -> Self {
        Self((number & (Self::COUNT - 1)) as u16)
    }

    /// Its number, below [`Self::COUNT`].
    #[must_use]
    pub const fn number(self) -> usize {
        self.0 as usize
    }
}

/// A verdict that is being written.
#[derive(Debug, Default)]
pub struct Verdict {
    text: String,
    at_once: bool,
    head: Option<Rc<str>>,
    caller: Option<Rc<str>>,
}

/// Room for what is written piece by piece: growing on the way costs more than writing, and so does asking for more than the
/// allocator holds ready (its small chunks end at 256 bytes).
const ROOM: usize = 240;

/// Instead of the place of what the door is not to keep.
const NOWHERE: &str = "--";

impl Verdict {
    /// A verdict that the door acts on at once, so that its head may be kept there (`wire::kept`). Written where `room` was.
    #[must_use]
    pub fn at_once(mut room: String) -> Self {
        room.clear();
        Self { text: room, at_once: true, ..Self::default() }
    }

    /// `renew` is to be called with `what` behind the reply.
    pub fn renew(&mut self, what: &str) {
        self.line("renew").line(what);
    }

    /// A verdict that was written already, with `renew` to be called with `what` behind the reply.
    #[must_use]
    pub fn also(written: &str, what: &str) -> String {
        if written.starts_with("renew\n") {
            return written.to_owned();
        }
        let mut verdict = Self::default();
        verdict.renew(what);
        verdict.text.push_str(written);
        verdict.text
    }

    /// Goes on with these parts of a text.
    #[must_use]
    pub fn go_on(mut self, parts: &[&str]) -> Self {
        self.text.reserve(parts.iter().map(|part| part.len()).sum::<usize>());
        for part in parts {
            self.text.push_str(part);
        }
        self
    }

    /// Begins an answer of the door itself, whose body the caller writes.
    pub fn begin_answer(&mut self) -> &mut String {
        self.text.reserve(ROOM);
        self.text.push_str("answer\n");
        &mut self.text
    }

    /// Ends the line that was begun, and begins another one.
    pub fn next_line(&mut self) -> &mut String {
        self.text.push('\n');
        &mut self.text
    }

    /// Begins sending the request on: the caller writes where to, a service binding's name behind `service:` or nothing for the
    /// internet, and on a line of its own the URL.
    pub fn begin_forward(&mut self, handle: &str, release: Release) -> &mut String {
        self.text.push_str("forward\n");
        self.line(handle).line(release.name());
        &mut self.text
    }

    /// Who sends it, as the origin is told; the caller writes the values of the last three headers, a line each.
    pub fn begin_caller(&mut self, caller: &mut Caller) -> &mut String {
        let (place, head) = if self.at_once {
            let (place, head) = caller.keep();
            (Some(place), head)
        } else {
            (None, Some(Rc::clone(caller.head())))
        };
        self.caller = head;
        self.text.reserve(ROOM);
        self.text.push('\n');
        push_place(&mut self.text, place);
        self.text.push('\n');
        &mut self.text
    }

    /// Ends an answer, or what the client is told of the origin's, with its head, as [`Headers::head`] makes one.
    #[must_use]
    pub fn with_head(mut self, head: Rc<str>) -> Self {
        self.head = Some(head);
        self
    }

    /// The text so far.
    #[must_use]
    pub fn into_begun(self) -> String {
        self.text
    }

    /// The head, if the door may keep it.
    #[must_use]
    pub fn head(&self) -> Option<&Rc<str>> {
        self.head.as_ref().filter(|_| self.at_once)
    }

    /// The whole text.
    #[must_use]
    pub fn into_text(self) -> String {
        self.end(true)
    }

    /// The text with only the place of its head, for a door that keeps it.
    #[must_use]
    pub fn without_head(self) -> String {
        self.end(false)
    }

    fn end(mut self, whole: bool) -> String {
        if let Some(head) = &self.head {
            let (place, rest) = head.split_at_checked(NOWHERE.len()).unwrap_or_default();
            self.text.push('\n');
            self.text.push_str(if self.at_once { place } else { NOWHERE });
            self.text.push_str(if whole { rest } else { "" });
        }
        if let Some(caller) = &self.caller {
            self.text.push_str("\n\n");
            self.text.push_str(caller);
        }
        self.text
    }

    fn line(&mut self, text: &str) -> &mut Self {
        self.text.push_str(text);
        self.text.push('\n');
        self
    }
}

fn push_place(text: &mut String, place: Option<Place>) {
    let digit = |six_bits: u16| char::from(b'0' + (six_bits & 63) as u8);
    match place {
        Some(Place(number)) => text.extend([digit(number >> 6), digit(number)]),
        None => text.push_str(NOWHERE),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::api_key::Mode;
    use crate::domain::id::KeyId;
    use crate::wire::caller::{Callers, Identity, Signer};

    const LAST: [&str; 2] = ["tollgate", "ratelimit"];

    fn at_once() -> Verdict {
        Verdict::at_once("what was there".to_owned())
    }

    fn answer(mut verdict: Verdict) -> Verdict {
        let mut headers = Headers::of_status(200);
        headers.header("content-type", "application/json");
        verdict.begin_answer().push_str("{}\nid=1\nr=5");
        verdict.with_head(headers.head(LAST).into())
    }

    const HEAD: &str = "\n200\ncontent-type\napplication/json\ntollgate\nratelimit";

    #[test]
    fn an_answer_is_lines_in_a_fixed_order() {
        let mut verdict = Verdict::default();
        verdict.renew("ten_x l");
        let text = answer(verdict).into_text();
        assert_eq!(text, format!("renew\nten_x l\nanswer\n{{}}\nid=1\nr=5\n--{HEAD}"));
    }

    #[test]
    fn what_is_kept_is_shorter_without_its_head() {
        let head = answer(at_once()).head().unwrap().to_string();
        let (place, rest) = head.split_at(2);
        assert_eq!((rest, Place::before(&head)), (HEAD, Some(Place::of(HEAD.trim_start()))));
        assert_eq!(answer(at_once()).into_text(), format!("answer\n{{}}\nid=1\nr=5\n{head}"));
        assert_eq!(answer(at_once()).without_head(), format!("answer\n{{}}\nid=1\nr=5\n{place}"));
        assert!(answer(Verdict::default()).head().is_none());
    }

    #[test]
    fn places_and_their_numbers_are_one_to_one() {
        for number in 0..Place::COUNT {
            let mut text = String::new();
            push_place(&mut text, Some(Place::numbered(number)));
            assert_eq!(Place::before(&text).map(Place::number), Some(number));
        }
        assert_eq!((Place::before("--"), Place::before("0"), Place::before("0\u{70}")), (None, None, None));
    }

    #[test]
    fn what_is_behind_is_said_once() {
        let once = Verdict::also("answer\n--\n", "ten_x l");
        assert_eq!(once, "renew\nten_x l\nanswer\n--\n");
        assert_eq!(Verdict::also(&once, "ten_x l"), once);
    }

    fn forward(mut verdict: Verdict, callers: &mut Callers) -> Verdict {
        verdict.begin_forward("h", Release::Free).push_str("service:API\nhttps://api/x");
        let identity = Identity {
            tenant: TENANT.parse().unwrap(),
            key: KeyId::new(5),
            mode: Mode::Live,
            plan: "pro",
            features: &"".into(),
        };
        verdict.begin_caller(callers.meet(&identity)).push_str("1795\nreq_1\nv1=0\nid=1\nr=5");
        let mut headers = Headers::default();
        headers.header("ratelimit-policy", "5");
        verdict.with_head(headers.head(LAST).into())
    }

    const TENANT: &str = "ten_e6gywnjy000g40r4";
    const CLIENT: &str = "\nratelimit-policy\n5\ntollgate\nratelimit";
    const CALLER: &str = "\n\nX-Tollgate-Tenant\nten_e6gywnjy000g40r4\nX-Tollgate-Plan\npro\nX-Tollgate-Key\nkey_000000005\nX-Tollgate-Mode\nlive\nX-Tollgate-Features\n\nX-Tollgate-Timestamp\nX-Tollgate-Request\nX-Tollgate-Signature";

    fn forwarded(caller: &str, client: &str) -> String {
        format!("forward\nh\nfree\nservice:API\nhttps://api/x\n{caller}\n1795\nreq_1\nv1=0\nid=1\nr=5\n{client}")
    }

    #[test]
    fn a_forward_tells_the_door_of_a_caller_once() {
        let mut callers = Callers::new(Signer::new(&[7; 32]).unwrap());
        let head = forward(at_once(), &mut Callers::new(Signer::new(&[7; 32]).unwrap())).head().unwrap().to_string();
        let (place, client) = head.split_at(2);
        assert_eq!(client, CLIENT);
        assert_eq!(forward(at_once(), &mut callers).without_head(), forwarded("00", place) + CALLER);
        assert_eq!(forward(at_once(), &mut callers).into_text(), forwarded("00", &head));
        assert_eq!(forward(at_once(), &mut callers).without_head(), forwarded("00", place));
        let whole = forward(Verdict::default(), &mut callers).into_text();
        assert_eq!(whole, forwarded("--", "--") + CLIENT + CALLER);
    }
}
