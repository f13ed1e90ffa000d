//! Writing JSON: objects and lists, member by member.
//!
//! Invariant: what was begun is whole when it is ended, and every text in it is escaped. Members stand in the order in which
//! they were given.
//!
//! Answers are written with this and not with a serializer: a type costs the Worker a kilobyte for each of them, a member
//! here a call.

use std::fmt::{Display, Write as _};

use serde::Serialize;

/// A value as JSON; nothing that this crate stores can fail to be.
#[must_use]
pub fn written(value: &impl Serialize) -> String {
    serde_json::to_string(value).unwrap_or_default()
}

/// Appends `text` as a JSON string.
pub fn quoted(out: &mut String, text: &str) {
    out.push('"');
    let mut rest = text;
    while let Some(at) = rest.bytes().position(|byte| byte < b' ' || byte == b'"' || byte == b'\\') {
        let (plain, special) = rest.split_at(at);
        out.push_str(plain);
        // A byte below 0x80 is a character of its own.
        let (special, after) = special.split_at(1);
        match special.as_bytes().first().copied().unwrap_or_default() {
            b'"' => out.push_str("\\\""),
            b'\\' => out.push_str("\\\\"),
            b'\n' => out.push_str("\\n"),
            // Writing to a String cannot fail.
            control => drop(write!(out, "\\u{control:04x}")),
        }
        rest = after;
    }
    out.push_str(rest);
    out.push('"');
}

/// An object that is being written. A member's name is a literal of this crate and needs no escaping; other names are for
/// [`Object::entry`].
#[derive(Clone, Debug)]
pub struct Object {
    text: String,
    empty: bool,
}

impl Default for Object {
    fn default() -> Self {
        Self::new()
    }
}

impl Object {
    /// An object without members.
    #[must_use]
    pub fn new() -> Self {
        Self::behind(String::new())
    }

    /// An object without members, behind what is written already.
    #[must_use]
    pub fn behind(mut text: String) -> Self {
        text.push('{');
        Self { text, empty: true }
    }

    /// An object that goes on where [`Object::open`] left it.
    #[must_use]
    pub const fn resumed(text: String) -> Self {
        Self { text, empty: false }
    }

    /// Room for another member.
    fn next(&mut self) -> &mut String {
        if !self.empty {
            self.text.push(',');
        }
        self.empty = false;
        &mut self.text
    }

    /// Room for the value of another member.
    fn member(&mut self, name: &'static str) -> &mut String {
        let text = self.next();
        text.push('"');
        text.push_str(name);
        text.push_str("\":");
        text
    }

    /// A text.
    #[must_use]
    pub fn text(mut self, name: &'static str, value: &str) -> Self {
        quoted(self.member(name), value);
        self
    }

    /// What is written as a text: an id, a name.
    #[must_use]
    pub fn shown(self, name: &'static str, value: &dyn Display) -> Self {
        self.text(name, &value.to_string())
    }

    /// A text of letters, digits and marks that need no escaping, as `write` appends it: what a refusal names often is not
    /// worth a text of its own first.
    #[must_use]
    pub fn plain(mut self, name: &'static str, write: impl FnOnce(&mut String)) -> Self {
        let text = self.member(name);
        text.push('"');
        write(text);
        text.push('"');
        self
    }

    /// A number.
    #[must_use]
    pub fn number(mut self, name: &'static str, value: u64) -> Self {
        crate::wire::push_number(self.member(name), value);
        self
    }

    /// True or false.
    #[must_use]
    pub fn flag(self, name: &'static str, value: bool) -> Self {
        self.json(name, if value { "true" } else { "false" })
    }

    /// A value that is JSON already.
    #[must_use]
    pub fn json(mut self, name: &'static str, value: &str) -> Self {
        self.member(name).push_str(value);
        self
    }

    /// An object, written in its place.
    #[must_use]
    pub fn object(mut self, name: &'static str, fill: impl FnOnce(Self) -> Self) -> Self {
        self.member(name);
        Self { text: fill(Self::behind(self.text)).end(), empty: false }
    }

    /// A member under any name, whose value is JSON already.
    #[must_use]
    pub fn entry(mut self, name: &str, value: &str) -> Self {
        quoted(self.next(), name);
        self.text.push(':');
        self.text.push_str(value);
        self
    }

    /// `add`, where there is a value.
    #[must_use]
    pub fn maybe<T>(self, value: Option<T>, add: impl FnOnce(Self, T) -> Self) -> Self {
        match value {
            Some(value) => add(self, value),
            None => self,
        }
    }

    /// The object so far, with at least one member: for [`Object::resumed`].
    #[must_use]
    pub fn open(self) -> String {
        self.text
    }

    /// The whole object.
    #[must_use]
    pub fn end(mut self) -> String {
        self.text.push('}');
        self.text
    }
}

/// A list that is being written.
#[derive(Debug)]
pub struct List(String);

impl Default for List {
    fn default() -> Self {
        Self::new()
    }
}

impl List {
    /// A list without items.
    #[must_use]
    pub fn new() -> Self {
        Self("[".to_owned())
    }

    /// Adds an item that is JSON already.
    pub fn push(&mut self, item: &str) {
        if self.0.len() > 1 {
            self.0.push(',');
        }
        self.0.push_str(item);
    }

    /// The whole list.
    #[must_use]
    pub fn end(mut self) -> String {
        self.0.push(']');
        self.0
    }
}

impl<S: AsRef<str>> FromIterator<S> for List {
    fn from_iter<I: IntoIterator<Item = S>>(items: I) -> Self {
        let mut list = Self::new();
        for item in items {
            list.push(item.as_ref());
        }
        list
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn members_stand_in_the_order_given() {
        let list: List = ["1", "{}"].into_iter().collect();
        let text = Object::new()
            .text("a", "\"b\"\n")
            .number("n", 7)
            .flag("f", false)
            .json("l", &list.end())
            .maybe(None, |object, value: u64| object.number("none", value))
            .object("o", |object| object.plain("p", |out| out.push('q')).number("r", 1))
            .object("e", |object| object)
            .end();
        assert_eq!(text, r#"{"a":"\"b\"\n","n":7,"f":false,"l":[1,{}],"o":{"p":"q","r":1},"e":{}}"#);
        assert_eq!(Object::behind("x=".to_owned()).number("n", 1).end(), r#"x={"n":1}"#);
        assert_eq!(Object::resumed(Object::new().number("n", 1).open()).number("m", 2).end(), r#"{"n":1,"m":2}"#);
        assert_eq!(Object::new().end() + &List::new().end(), "{}[]");
    }

    proptest! {
        #[test]
        fn an_independent_reader_reads_what_was_meant(name: String, value: String) {
            let mut member = String::new();
            quoted(&mut member, &value);
            let text = Object::new().entry(&name, &member).end();
            let read: serde_json::Value = serde_json::from_str(&text).unwrap();
            prop_assert_eq!(read, serde_json::json!({ name: value }));
        }
    }
}
