//! What the door is told: one text, a line each. `src/entry.js` acts on it.
//!
//! Invariant: no line holds a line break. What comes from a client passes through here only as a canonical path, which
//! has none, or inside JSON, which escapes them.
//!
//! ```text
//! [renew, what]      call `renew` with this behind the reply
//! read               name: of the document in KV that `read` is to be called with (`edge::door`)
//! answer             place, body, value of the last header; then, unless it is what the door keeps at that place, the head:
//!                    status, names and values of headers in turn, name of the last one
//! forward            handle, release, target, URL; then, for a request that is known to be somebody's: the place of the caller and
//!                    of the client's headers, the values of the last three headers for the origin and of the last one for the
//!                    client; then, unless the door keeps it, the head of the client's: names and values of headers in turn, name
//!                    of the last one; then, unless the door keeps it, an empty line and the caller: names and values of headers
//!                    for the origin in turn, names of the last three
//! ```
//!
//! What goes out to a client or to an origin differs from one time to the next in its last headers, and an answer in its body.
//! Everything else is written once, held by what it follows from, and sent to the door once (`wire::kept`, `wire::caller`).

use std::rc::Rc;

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

    /// The name of a header whose value is said elsewhere.
    pub fn name(&mut self, name: &str) {
        self.line(name);
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

    /// All of them, with the name of the last one.
    #[must_use]
    pub fn last(mut self, name: &str) -> Rc<str> {
        self.line(name);
        self.0.into()
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

    /// The place of all answers of one group. That other groups meet there costs time, and nothing else.
    #[must_use]
    pub const fn of(group: u64) -> Self {
        // The upper bits of a product are mixed best (Fibonacci hashing).
        Self((group.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 52) as u16)
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
    place: Option<Place>,
    head: Option<Rc<str>>,
    caller: Option<Rc<str>>,
}

/// Room for what is written piece by piece: growing on the way costs more than writing, and so does asking for more than the
/// allocator holds ready (its small chunks end at 256 bytes).
const ROOM: usize = 240;

impl Verdict {
    /// A verdict whose head may be kept at `place`: for `wire::kept`. Only for what the door acts on at once.
    #[must_use]
    pub fn at(place: Place) -> Self {
        Self { place: Some(place), ..Self::default() }
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

    /// Begins a verdict for the same place, to be kept as a text that others begin with.
    #[must_use]
    pub fn anew(&self) -> Self {
        Self { place: self.place, ..Self::default() }
    }

    /// Goes on with a text that was written before, and leaves room for more.
    pub fn go_on(&mut self, begun: &str) -> &mut Self {
        self.text.reserve(begun.len() + ROOM);
        self.text.push_str(begun);
        self
    }

    /// Ends an answer with these parts of its text, all but for its head. They get the room that they take and no more: growing on
    /// the way, and giving back what was too much, cost more than writing.
    pub fn end_answer(&mut self, parts: &[&str], head: Rc<str>) {
        self.text.reserve_exact(parts.iter().map(|part| part.len()).sum());
        for part in parts {
            self.text.push_str(part);
        }
        self.head = Some(head);
    }

    /// Begins an answer of the door itself, whose body the caller writes.
    pub fn begin_answer(&mut self) -> &mut String {
        self.text.reserve(ROOM);
        self.text.push_str("answer\n");
        push_place(&mut self.text, self.place);
        self.text.push('\n');
        &mut self.text
    }

    /// Ends what is before. `head` is the rest of the answer, or of the headers for the client, but for the value of the last one,
    /// which the caller writes.
    pub fn begin_value(&mut self, head: Rc<str>) -> &mut String {
        self.head = Some(head);
        self.next_line()
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
        let (place, head) = match self.place {
            Some(_) => {
                let (place, head) = caller.keep();
                (Some(place), head)
            }
            None => (None, Some(Rc::clone(caller.head()))),
        };
        self.caller = head;
        self.text.push('\n');
        push_place(&mut self.text, place);
        self.text.push('\n');
        push_place(&mut self.text, self.place);
        self.text.push('\n');
        &mut self.text
    }

    /// The whole text.
    #[must_use]
    pub fn into_text(mut self) -> String {
        if let Some(head) = self.head.take() {
            self.text.push('\n');
            self.text.push_str(&head);
        }
        self.without_head()
    }

    /// The head of what has a place.
    #[must_use]
    pub fn head(&self) -> Option<(Place, &Rc<str>)> {
        self.place.zip(self.head.as_ref())
    }

    /// The text without its head, for a door that keeps it.
    #[must_use]
    pub fn without_head(mut self) -> String {
        if let Some(caller) = self.caller {
            self.text.push_str("\n\n");
            self.text.push_str(&caller);
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
        None => text.push_str("--"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::api_key::Mode;
    use crate::domain::id::KeyId;
    use crate::wire::caller::{Callers, Identity, Signer};

    fn answer(mut verdict: Verdict) -> Verdict {
        let mut headers = Headers::of_status(200);
        headers.header("content-type", "application/json");
        verdict.begin_answer().push_str("{}");
        verdict.begin_value(headers.last("tollgate")).push_str("id=1");
        verdict
    }

    #[test]
    fn an_answer_is_lines_in_a_fixed_order() {
        let mut verdict = Verdict::default();
        verdict.renew("ten_x l");
        let text = answer(verdict).into_text();
        assert_eq!(text, "renew\nten_x l\nanswer\n--\n{}\nid=1\n200\ncontent-type\napplication/json\ntollgate");
    }

    #[test]
    fn what_has_a_place_is_shorter_without_its_head() {
        let placed = answer(Verdict::at(Place(65)));
        let (place, head) = placed.head().unwrap();
        assert_eq!((place.number(), &**head), (65, "200\ncontent-type\napplication/json\ntollgate"));
        assert_eq!(placed.without_head(), "answer\n11\n{}\nid=1");
    }

    #[test]
    fn places_and_their_numbers_are_one_to_one() {
        for number in 0..Place::COUNT {
            assert_eq!(Place::numbered(number).number(), number);
        }
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
        verdict.begin_caller(callers.meet(&identity)).push_str("1795\nreq_1\nv1=0");
        let mut headers = Headers::default();
        headers.header("ratelimit", "5");
        verdict.begin_value(headers.last("tollgate")).push_str("id=1");
        verdict
    }

    const TENANT: &str = "ten_e6gywnjy000g40r4";
    const SHORT: &str = "forward\nh\nfree\nservice:API\nhttps://api/x\n00\n11\n1795\nreq_1\nv1=0\nid=1";
    const CLIENT: &str = "\nratelimit\n5\ntollgate";
    const CALLER: &str = "\n\nX-Tollgate-Tenant\nten_e6gywnjy000g40r4\nX-Tollgate-Plan\npro\nX-Tollgate-Key\nkey_000000005\nX-Tollgate-Mode\nlive\nX-Tollgate-Features\n\nX-Tollgate-Timestamp\nX-Tollgate-Request\nX-Tollgate-Signature";

    #[test]
    fn a_forward_tells_the_door_of_a_caller_once() {
        let mut callers = Callers::new(Signer::new(&[7; 32]).unwrap());
        let placed = || Verdict::at(Place(65));
        assert_eq!(forward(placed(), &mut callers).without_head(), format!("{SHORT}{CALLER}"));
        assert_eq!(forward(placed(), &mut callers).into_text(), format!("{SHORT}{CLIENT}"));
        assert_eq!(forward(placed(), &mut callers).without_head(), SHORT);
        let whole = forward(Verdict::default(), &mut callers).into_text();
        assert_eq!(whole, format!("{}{CLIENT}{CALLER}", SHORT.replace("\n00\n11\n", "\n--\n--\n")));
    }
}
