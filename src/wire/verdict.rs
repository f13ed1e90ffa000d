//! What the door is told: one text, a line each. `src/entry.js` acts on it.
//!
//! Invariant: no line holds a line break. What comes from a client passes through here only as a canonical path, which
//! has none, or inside JSON, which escapes them.
//!
//! ```text
//! [renew, what]      call `renew` with this behind the reply
//! answer             place, body, value of the last header; then, unless it is what the door keeps at that place, the head:
//!                    status, names and values of headers in turn, name of the last one
//! forward            handle, target, release, URL, then headers for the origin in turn, an empty line, headers for the client
//! ```
//!
//! Answers differ from one another in their body and in the last header. Everything else is the head: it is written once, held
//! by what it follows from, and sent to the door once (`wire::kept`).

use std::rc::Rc;

use crate::wire::push_number;

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

/// Where the door keeps the head of an answer: two characters, of six bits each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place([u8; 2]);

impl Place {
    /// How many there are.
    pub const COUNT: usize = 1 << 12;

    /// The place of all answers of one group. That other groups meet there costs time, and nothing else.
    #[must_use]
    pub const fn of(group: u64) -> Self {
        // The upper bits of a product are mixed best (Fibonacci hashing).
        let mixed = group.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        Self([(mixed >> 58) as u8, (mixed >> 52 & 63) as u8])
    }

    /// Its number, below [`Self::COUNT`].
    #[must_use]
    pub fn number(self) -> usize {
        self.0.into_iter().fold(0, |number, six_bits| number << 6 | usize::from(six_bits))
    }
}

/// A verdict that is being written.
#[derive(Debug)]
pub struct Verdict {
    text: String,
    place: Option<Place>,
    head: Option<Rc<str>>,
}

/// Room for an answer that lets pass, without its head: growing on the way costs more than writing, and so does asking for more than
/// the allocator holds ready (its small chunks end at 256 bytes).
const ROOM: usize = 240;

impl Default for Verdict {
    fn default() -> Self {
        Self { text: String::with_capacity(ROOM), place: None, head: None }
    }
}

impl Verdict {
    /// A verdict whose head, if it is an answer, may be kept at `place`: for `wire::kept`.
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

    /// Begins an answer of the door itself, whose body the caller writes.
    pub fn begin_answer(&mut self) -> &mut String {
        self.text.push_str("answer\n");
        match self.place {
            Some(Place(digits)) => self.text.extend(digits.map(|six_bits| char::from(b'0' + six_bits))),
            None => self.text.push_str("--"),
        }
        self.text.push('\n');
        &mut self.text
    }

    /// Ends the body. `head` is the rest of the answer, but for the value of the last header, which the caller writes.
    pub fn begin_value(&mut self, head: Rc<str>) -> &mut String {
        self.head = Some(head);
        self.text.push('\n');
        &mut self.text
    }

    /// The door sends the request on to `url` by `target`: a service binding's name behind `service:`, or nothing for
    /// the internet.
    pub fn forward(&mut self, handle: &str, target: &str, release: Release, url: &str) -> &mut Self {
        self.text.push_str("forward\n");
        self.line(handle).line(target).line(release.name());
        self.text.push_str(url);
        self
    }

    /// A header for the origin.
    pub fn header(&mut self, name: &str, value: &str) -> &mut Self {
        self.text.push('\n');
        self.line(name).text.push_str(value);
        self
    }

    /// Ends the headers for the origin. `headers` are those for the client, but for the value of the last one, which the caller
    /// writes.
    pub fn begin_client(&mut self, headers: &str) -> &mut String {
        self.text.push_str("\n\n");
        self.line(headers);
        &mut self.text
    }

    /// The whole text.
    #[must_use]
    pub fn into_text(mut self) -> String {
        if let Some(head) = self.head {
            self.text.push('\n');
            self.text.push_str(&head);
        }
        self.text
    }

    /// The head of an answer that has a place.
    #[must_use]
    pub fn head(&self) -> Option<(Place, &Rc<str>)> {
        self.place.zip(self.head.as_ref())
    }

    /// The text without its head, for a door that keeps it.
    #[must_use]
    pub fn without_head(self) -> String {
        self.text
    }

    fn line(&mut self, text: &str) -> &mut Self {
        self.text.push_str(text);
        self.text.push('\n');
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
    fn only_an_answer_has_a_head() {
        let placed = answer(Verdict::at(Place([1, 1])));
        let (place, head) = placed.head().unwrap();
        assert_eq!((place.number(), &**head), (65, "200\ncontent-type\napplication/json\ntollgate"));
        assert_eq!(placed.without_head(), "answer\n11\n{}\nid=1");
        let mut verdict = Verdict::at(Place([1, 1]));
        verdict.forward("h", "", Release::Free, "https://a/").header("a", "1");
        assert_eq!(verdict.head(), None);
    }

    #[test]
    fn what_is_behind_is_said_once() {
        let once = Verdict::also("answer\n--\n", "ten_x l");
        assert_eq!(once, "renew\nten_x l\nanswer\n--\n");
        assert_eq!(Verdict::also(&once, "ten_x l"), once);
    }

    #[test]
    fn a_forward_tells_the_origins_headers_from_the_clients() {
        let mut verdict = Verdict::default();
        verdict.forward("h", "service:API", Release::Free, "https://api/x").header("a", "1");
        verdict.begin_client(&Headers::default().last("b")).push('2');
        let text = verdict.into_text();
        assert_eq!(
            text.split('\n').collect::<Vec<_>>(),
            ["forward", "h", "service:API", "free", "https://api/x", "a", "1", "", "b", "2"]
        );
    }
}
