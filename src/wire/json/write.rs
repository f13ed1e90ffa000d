//! Writing JSON: objects and lists, member by member.
//!
//! Invariant: what was begun is whole when it is ended, and every text in it is escaped. Members stand in the order in which
//! they were given.
//!
//! Answers are written with this and not with a serializer: a type costs the Worker a kilobyte for each of them, a member
//! here a call.

use std::fmt::{Display, Write as _};

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

/// An object that is being written.
#[derive(Clone, Debug)]
pub struct Object(String);

impl Default for Object {
    fn default() -> Self {
        Self::new()
    }
}

impl Object {
    /// An object without members.
    #[must_use]
    pub fn new() -> Self {
        Self("{".to_owned())
    }

    /// Room for the value of another member.
    fn member(&mut self, name: &str) -> &mut String {
        if self.0.len() > 1 {
            self.0.push(',');
        }
        quoted(&mut self.0, name);
        self.0.push(':');
        &mut self.0
    }

    /// A text.
    #[must_use]
    pub fn text(mut self, name: &str, value: &str) -> Self {
        quoted(self.member(name), value);
        self
    }

    /// What is written as a text: an id, a name.
    #[must_use]
    pub fn shown(self, name: &str, value: &dyn Display) -> Self {
        self.text(name, &value.to_string())
    }

    /// A number.
    #[must_use]
    pub fn number(mut self, name: &str, value: u64) -> Self {
        crate::wire::push_number(self.member(name), value);
        self
    }

    /// True or false.
    #[must_use]
    pub fn flag(self, name: &str, value: bool) -> Self {
        self.json(name, if value { "true" } else { "false" })
    }

    /// A value that is JSON already.
    #[must_use]
    pub fn json(mut self, name: &str, value: &str) -> Self {
        self.member(name).push_str(value);
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

    /// The whole object.
    #[must_use]
    pub fn end(mut self) -> String {
        self.0.push('}');
        self.0
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
            .end();
        assert_eq!(text, r#"{"a":"\"b\"\n","n":7,"f":false,"l":[1,{}]}"#);
        assert_eq!(Object::new().end() + &List::new().end(), "{}[]");
    }

    proptest! {
        #[test]
        fn an_independent_reader_reads_what_was_meant(name: String, value: String) {
            let text = Object::new().text(&name, &value).end();
            let read: serde_json::Value = serde_json::from_str(&text).unwrap();
            prop_assert_eq!(read, serde_json::json!({ name: value }));
        }
    }
}
