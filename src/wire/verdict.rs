//! What the door is told: one text, a line each. `src/entry.js` acts on it.
//!
//! Invariant: no line holds a line break. What comes from a client passes through here only as a canonical path, which
//! has none, or inside JSON, which escapes them.
//!
//! ```text
//! [renew, what]      call `renew` with this behind the reply
//! answer             status, body, then names and values of headers in turn, at least one; the last is the one that differs
//!                    from answer to answer
//! keep, again        an answer whose headers the door keeps: wire::kept
//! forward            handle, target, release, URL, then headers for the origin in turn, an empty line, headers for the client
//! ```

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

/// A verdict that is being written.
#[derive(Debug)]
pub struct Verdict {
    text: String,
    /// Of an answer: where it, its body, its headers and the value of the last one begin.
    answer: usize,
    body: usize,
    headers: usize,
    value: usize,
}

/// What an answer is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parts<'v> {
    /// What is to be done besides.
    pub before: &'v str,
    /// Its status, and the end of that line.
    pub status: &'v str,
    /// Its body.
    pub body: &'v str,
    /// Its headers, each line behind a line break, and the name of the last one.
    pub headers: &'v str,
    /// The value of the last header.
    pub value: &'v str,
}

const ANSWER: &str = "answer\n";

/// Room for an answer with all its headers: growing on the way costs more than writing.
const ROOM: usize = 1024;

impl Default for Verdict {
    fn default() -> Self {
        Self::within(String::new())
    }
}

impl Verdict {
    /// A verdict that is written in the room that `text` has.
    #[must_use]
    pub fn within(mut text: String) -> Self {
        text.clear();
        text.reserve(ROOM);
        Self { text, answer: 0, body: 0, headers: 0, value: 0 }
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

    /// The door answers by itself.
    pub fn answer(&mut self, status: u16, body: &str) -> &mut Self {
        self.begin_answer(status).push_str(body);
        self
    }

    /// Begins an answer whose body the caller writes.
    pub fn begin_answer(&mut self, status: u16) -> &mut String {
        self.answer = self.text.len();
        self.text.push_str(ANSWER);
        push_number(&mut self.text, u64::from(status));
        self.text.push('\n');
        self.body = self.text.len();
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

    /// A header: for the origin, or behind [`Self::client`] and in an answer for the client.
    pub fn header(&mut self, name: &str, value: &str) -> &mut Self {
        self.begin_header(name).push_str(value);
        self
    }

    /// Headers that were written before, as the text of a verdict that is nothing else.
    pub fn headers(&mut self, written: &str) -> &mut Self {
        self.next_header().push_str(written);
        self
    }

    /// Begins a header whose value the caller writes.
    pub fn begin_header(&mut self, name: &str) -> &mut String {
        self.next_header();
        self.text.push('\n');
        self.text.push_str(name);
        self.text.push('\n');
        self.value = self.text.len();
        &mut self.text
    }

    fn next_header(&mut self) -> &mut String {
        if self.headers == 0 {
            self.headers = self.text.len();
        }
        &mut self.text
    }

    /// Ends the headers for the origin.
    pub fn client(&mut self) -> &mut Self {
        self.text.push('\n');
        self
    }

    /// The parts of an answer with headers; none where it is something else.
    #[must_use]
    pub fn parts(&self) -> Option<Parts<'_>> {
        let part = |from, to| self.text.get(from..to);
        (self.body > 0 && self.headers > 0).then_some(())?;
        Some(Parts {
            before: part(0, self.answer)?,
            status: part(self.answer + ANSWER.len(), self.body)?,
            body: part(self.body, self.headers)?,
            headers: part(self.headers, self.value)?,
            value: part(self.value, self.text.len())?,
        })
    }

    /// The text.
    #[must_use]
    pub fn into_text(self) -> String {
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

    #[test]
    fn an_answer_is_lines_in_a_fixed_order() {
        let mut verdict = Verdict::default();
        verdict.renew("ten_x l");
        verdict.answer(200, "{}").header("content-type", "application/json");
        assert_eq!(verdict.into_text(), "renew\nten_x l\nanswer\n200\n{}\ncontent-type\napplication/json");
    }

    #[test]
    fn an_answer_is_known_by_its_parts() {
        let mut verdict = Verdict::default();
        verdict.renew("ten_x l");
        verdict.answer(200, "{}").header("a", "1").header("b", "2");
        let parts = verdict.parts().unwrap();
        assert_eq!((parts.before, parts.status, parts.body), ("renew\nten_x l\n", "200\n", "{}"));
        assert_eq!((parts.headers, parts.value), ("\na\n1\nb\n", "2"));
        let mut headers = Verdict::default();
        headers.header("a", "1");
        let mut same = Verdict::default();
        same.renew("ten_x l");
        same.answer(200, "{}").headers(&headers.into_text()).header("b", "2");
        assert_eq!(same.parts(), Some(parts));
        let mut verdict = Verdict::default();
        verdict.forward("h", "", Release::Free, "https://a/").header("a", "1");
        assert_eq!(verdict.parts(), None);
    }

    #[test]
    fn what_is_behind_is_said_once() {
        let once = Verdict::also("answer\n503\n", "ten_x l");
        assert_eq!(once, "renew\nten_x l\nanswer\n503\n");
        assert_eq!(Verdict::also(&once, "ten_x l"), once);
    }

    #[test]
    fn a_forward_tells_the_origins_headers_from_the_clients() {
        let mut verdict = Verdict::default();
        verdict.forward("h", "service:API", Release::Free, "https://api/x").header("a", "1").client().header("b", "2");
        let text = verdict.into_text();
        assert_eq!(
            text.split('\n').collect::<Vec<_>>(),
            ["forward", "h", "service:API", "free", "https://api/x", "a", "1", "", "b", "2"]
        );
    }
}
