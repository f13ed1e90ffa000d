//! A strict reader for JSON that others wrote.
//!
//! Invariant: what [`read`] returns had one meaning: no member twice, none unknown, no number that JSON readers would
//! disagree about, nothing deeper than [`MAX_DEPTH`]. Each fault has its own code and the place it is at.
//!
//! Two passes: bytes to a tree (size, syntax, depth, duplicates, numbers), tree to the wanted type (names and types). The
//! second pass has its own error type, since serde's calls say precisely what is wrong and a message would only hint at it.

use std::cell::RefCell;
use std::fmt::{self, Write as _};

use serde::de::value::MapAccessDeserializer;
use serde::de::{
    self, DeserializeOwned, DeserializeSeed, Expected, IntoDeserializer, MapAccess, SeqAccess, Unexpected, Visitor,
};
use serde::forward_to_deserialize_any;
use serde_json::{Map, Number, Value};

use super::problem::Fault;
use crate::domain::decision::Code;

/// How deep a body may nest.
pub const MAX_DEPTH: usize = 32;
/// The largest integer, of either sign, that every JSON reader holds exactly.
pub const MAX_SAFE: u64 = (1 << 53) - 1;
/// The longest detail: details quote the body, and an answer should not be as long as a hostile body.
const MAX_DETAIL: usize = 300;

/// Reads a `T` from a body of at most `max_len` bytes.
///
/// ```
/// # use tollgate::wire::json;
/// # use tollgate::domain::decision::Code;
/// #[derive(serde::Deserialize)]
/// #[serde(deny_unknown_fields)]
/// struct Check { feature: String, cost: u64 }
///
/// let fault = json::read::<Check>(br#"{"feature":"pdf","cost":"1"}"#, 1024).err().unwrap();
/// assert_eq!((fault.code, fault.pointer.as_str()), (Code::WrongType, "#/cost"));
/// ```
///
/// # Errors
/// The first fault found. Types that want unknown members refused say so with `#[serde(deny_unknown_fields)]`.
pub fn read<T: DeserializeOwned>(bytes: &[u8], max_len: usize) -> Result<T, Fault> {
    let tree = read_tree(bytes, max_len)?;
    T::deserialize(Node { value: tree, place: &Place::Root }).map_err(|error| error.at(&Place::Root).into())
}

/// Reads any JSON of at most `max_len` bytes.
///
/// # Errors
/// The first fault found.
pub fn read_tree(bytes: &[u8], max_len: usize) -> Result<Value, Fault> {
    let fault = |code, detail: String| Fault { detail: short(detail), pointer: "#".into(), code };
    if bytes.len() > max_len {
        return Err(fault(Code::BodyTooLarge, format!("the body has more than {max_len} bytes")));
    }
    let found = RefCell::new(None);
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    Strict { place: &Place::Root, depth: MAX_DEPTH, found: &found }
        .deserialize(&mut reader)
        .and_then(|tree| reader.end().map(|()| tree))
        .map_err(|error| {
            // Ours if it was noted; else serde_json's own, which has a line and a column but no place in the tree.
            found.take().unwrap_or_else(|| {
                let text = error.to_string();
                // The one complaint about a number that serde_json makes before any visitor sees it (1e400).
                let huge = text.starts_with("number out of range");
                fault(if huge { Code::NumberOutOfRange } else { Code::MalformedJson }, text)
            })
        })
}

/// Where in the body something is: a path from the root, kept on the stack and written only for a fault.
enum Place<'a> {
    Root,
    Member(&'a Place<'a>, &'a str),
    Item(&'a Place<'a>, usize),
}

impl Place<'_> {
    /// The place as a JSON pointer in a URI fragment (RFC 6901, section 6).
    fn pointer(&self) -> String {
        match self {
            Self::Root => "#".into(),
            Self::Item(parent, index) => format!("{}/{index}", parent.pointer()),
            Self::Member(parent, name) => {
                let mut pointer = parent.pointer();
                pointer.push('/');
                for byte in name.bytes() {
                    match byte {
                        b'~' => pointer.push_str("~0"),
                        b'/' => pointer.push_str("~1"),
                        b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'$' | b'@' | b':' => {
                            pointer.push(char::from(byte));
                        }
                        // Writing to a String cannot fail.
                        other => drop(write!(pointer, "%{other:02X}")),
                    }
                }
                pointer
            }
        }
    }
}

fn short(mut detail: String) -> String {
    if let Some((end, _)) = detail.char_indices().nth(MAX_DETAIL) {
        detail.truncate(end);
        detail.push_str("...");
    }
    detail
}

/// The first pass: builds a tree, and notes the fault that stopped it.
#[derive(Clone, Copy)]
struct Strict<'a> {
    place: &'a Place<'a>,
    /// How many more levels may open here.
    depth: usize,
    found: &'a RefCell<Option<Fault>>,
}

impl Strict<'_> {
    fn refuse<E: de::Error>(&self, place: &Place<'_>, code: Code, detail: &str) -> E {
        *self.found.borrow_mut() = Some(Fault { detail: detail.into(), pointer: place.pointer(), code });
        E::custom(detail)
    }

    /// How many levels may open below, if one may open here.
    fn below<E: de::Error>(&self) -> Result<usize, E> {
        self.depth
            .checked_sub(1)
            .ok_or_else(|| self.refuse(self.place, Code::DepthExceeded, "nested deeper than 32 levels"))
    }

    fn number<E: de::Error>(&self, number: impl Into<Option<Number>>, safe: bool) -> Result<Value, E> {
        number.into().filter(|_| safe).map(Value::Number).ok_or_else(|| {
            self.refuse(self.place, Code::NumberOutOfRange, "outside -(2^53-1) to 2^53-1, where JSON stops being exact")
        })
    }
}

impl<'de> DeserializeSeed<'de> for Strict<'_> {
    type Value = Value;

    fn deserialize<D: de::Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<Value, E> {
        self.number(Number::from(value), value <= MAX_SAFE)
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<Value, E> {
        self.number(Number::from(value), value.unsigned_abs() <= MAX_SAFE)
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<Value, E> {
        // 2^53 is exact as an f64, so this refuses every float that stands for an integer which would not be.
        self.number(Number::from_f64(value), value.abs() < 9_007_199_254_740_992.0)
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.into()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let depth = self.below()?;
        let mut items = Vec::new();
        while let Some(item) =
            seq.next_element_seed(Strict { place: &Place::Item(self.place, items.len()), depth, found: self.found })?
        {
            items.push(item);
        }
        Ok(Value::Array(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let depth = self.below()?;
        let mut members = Map::new();
        while let Some(name) = map.next_key::<String>()? {
            let place = Place::Member(self.place, &name);
            if members.contains_key(&name) {
                return Err(self.refuse(&place, Code::DuplicateField, "this member is there twice"));
            }
            let value = map.next_value_seed(Strict { place: &place, depth, found: self.found })?;
            members.insert(name, value);
        }
        Ok(Value::Object(members))
    }
}

/// What the second pass found; its place is filled in by the innermost node that the error passes.
#[derive(Debug)]
struct Mismatch {
    code: Code,
    detail: String,
    /// The member that is missing or unknown, below the node that complains.
    member: Option<String>,
    pointer: Option<String>,
}

impl Mismatch {
    fn new(code: Code, detail: impl fmt::Display) -> Self {
        Self { code, detail: detail.to_string(), member: None, pointer: None }
    }

    fn at(mut self, place: &Place<'_>) -> Self {
        if self.pointer.is_none() {
            self.pointer = Some(match &self.member {
                Some(member) => Place::Member(place, member).pointer(),
                None => place.pointer(),
            });
        }
        self
    }
}

impl From<Mismatch> for Fault {
    fn from(error: Mismatch) -> Self {
        Self { detail: short(error.detail), pointer: error.pointer.unwrap_or_else(|| "#".into()), code: error.code }
    }
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.detail)
    }
}

impl std::error::Error for Mismatch {}

impl de::Error for Mismatch {
    /// What our own types say about a value of the right type.
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self::new(Code::InvalidValue, message)
    }

    fn invalid_type(found: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self::new(Code::WrongType, format_args!("{} where {} is wanted", kind(found), wanted(expected)))
    }

    /// serde calls this for a number that does not fit the wanted integer, and for a text that is no variant.
    fn invalid_value(found: Unexpected<'_>, expected: &dyn Expected) -> Self {
        let number = matches!(found, Unexpected::Unsigned(_) | Unexpected::Signed(_) | Unexpected::Float(_));
        let code = if number { Code::NumberOutOfRange } else { Code::InvalidValue };
        Self::new(code, format_args!("{found} where {} is wanted", wanted(expected)))
    }

    fn invalid_length(length: usize, expected: &dyn Expected) -> Self {
        Self::new(Code::InvalidValue, format_args!("{length} where {expected} is wanted"))
    }

    fn unknown_variant(variant: &str, expected: &'static [&'static str]) -> Self {
        Self::new(Code::InvalidValue, format_args!("`{variant}` is not one of {}", expected.join(", ")))
    }

    fn unknown_field(field: &str, expected: &'static [&'static str]) -> Self {
        let detail = if expected.is_empty() {
            "no member is known here".to_owned()
        } else {
            format!("not one of {}", expected.join(", "))
        };
        Self { member: Some(field.to_owned()), ..Self::new(Code::UnknownField, detail) }
    }

    fn missing_field(field: &'static str) -> Self {
        Self { member: Some(field.to_owned()), ..Self::new(Code::MissingField, "this member is needed") }
    }

    fn duplicate_field(field: &'static str) -> Self {
        Self { member: Some(field.to_owned()), ..Self::new(Code::DuplicateField, "this member is there twice") }
    }
}

/// The type that was wanted, in the words of JSON where serde has words of Rust.
fn wanted(expected: &dyn Expected) -> String {
    let text = expected.to_string();
    match text.as_str() {
        "u8" => "an integer of 0 to 255".into(),
        "u16" => "an integer of 0 to 65535".into(),
        "u32" => "an integer of 0 to 4294967295".into(),
        "u64" | "usize" => "an integer of 0 or more".into(),
        "i8" | "i16" | "i32" | "i64" | "isize" => "an integer".into(),
        "f32" | "f64" => "a number".into(),
        "a map" => "an object".into(),
        "a sequence" => "an array".into(),
        other if other.starts_with("struct ") => "an object".into(),
        _ => text,
    }
}

/// The type that was found, in the words of JSON.
const fn kind(found: Unexpected<'_>) -> &'static str {
    match found {
        Unexpected::Bool(_) => "a boolean",
        Unexpected::Unsigned(_) | Unexpected::Signed(_) => "an integer",
        Unexpected::Float(_) => "a number that is no integer",
        Unexpected::Char(_) | Unexpected::Str(_) | Unexpected::Bytes(_) => "a string",
        Unexpected::Unit | Unexpected::Option => "null",
        Unexpected::Seq => "an array",
        Unexpected::Map => "an object",
        Unexpected::NewtypeStruct
        | Unexpected::Enum
        | Unexpected::UnitVariant
        | Unexpected::NewtypeVariant
        | Unexpected::TupleVariant
        | Unexpected::StructVariant
        | Unexpected::Other(_) => "something else",
    }
}

/// A part of the tree and where it is, being read as some type.
struct Node<'a> {
    value: Value,
    place: &'a Place<'a>,
}

impl<'de> de::Deserializer<'de> for Node<'_> {
    type Error = Mismatch;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mismatch> {
        let place = self.place;
        match self.value {
            Value::Null => visitor.visit_unit(),
            Value::Bool(value) => visitor.visit_bool(value),
            Value::Number(number) => match (number.as_u64(), number.as_i64(), number.as_f64()) {
                (Some(value), ..) => visitor.visit_u64(value),
                (None, Some(value), _) => visitor.visit_i64(value),
                (None, None, value) => visitor.visit_f64(value.unwrap_or(f64::NAN)),
            },
            Value::String(value) => visitor.visit_string(value),
            Value::Array(items) => {
                let mut items = Items { left: items.into_iter(), next: 0, place };
                visitor.visit_seq(&mut items).and_then(|value| match items.left.len() {
                    0 => Ok(value),
                    _ => Err(de::Error::invalid_length(items.next + items.left.len(), &"fewer items")),
                })
            }
            Value::Object(members) => visitor.visit_map(Members { left: members.into_iter(), value: None, place }),
        }
        .map_err(|error| error.at(place))
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mismatch> {
        match self.value {
            Value::Null => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, Mismatch> {
        let place = self.place;
        visitor.visit_newtype_struct(self).map_err(|error| error.at(place))
    }

    /// An object and nothing else: serde would also take an array, by position, which no page documents.
    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mismatch> {
        match self.value {
            Value::Array(_) => Err(<Mismatch as de::Error>::invalid_type(Unexpected::Seq, &visitor).at(self.place)),
            _ => self.deserialize_any(visitor),
        }
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Mismatch> {
        self.deserialize_map(visitor)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Mismatch> {
        let place = self.place;
        match self.value {
            Value::String(variant) => visitor.visit_enum(variant.into_deserializer()),
            Value::Object(members) if members.len() == 1 => visitor.visit_enum(MapAccessDeserializer::new(Members {
                left: members.into_iter(),
                value: None,
                place,
            })),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => {
                Err(Mismatch::new(Code::WrongType, "a string, or an object of one member, is wanted"))
            }
        }
        .map_err(|error| error.at(place))
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit unit_struct seq tuple
        tuple_struct identifier ignored_any
    }
}

struct Items<'a> {
    left: std::vec::IntoIter<Value>,
    next: usize,
    place: &'a Place<'a>,
}

impl<'de> SeqAccess<'de> for &mut Items<'_> {
    type Error = Mismatch;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Mismatch> {
        let Some(value) = self.left.next() else { return Ok(None) };
        let place = Place::Item(self.place, self.next);
        self.next += 1;
        seed.deserialize(Node { value, place: &place }).map_err(|error| error.at(&place)).map(Some)
    }
}

struct Members<'a> {
    left: serde_json::map::IntoIter,
    /// The member whose name was read and whose value was not yet.
    value: Option<(String, Value)>,
    place: &'a Place<'a>,
}

impl<'de> MapAccess<'de> for Members<'_> {
    type Error = Mismatch;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Mismatch> {
        let Some((name, value)) = self.left.next() else { return Ok(None) };
        self.value = Some((name.clone(), value));
        let place = Place::Member(self.place, &name);
        seed.deserialize(name.as_str().into_deserializer())
            // An unknown field names itself; any other complaint about a name is about this member.
            .map_err(|error: Mismatch| if error.member.is_some() { error } else { error.at(&place) })
            .map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Mismatch> {
        let Some((name, value)) = self.value.take() else { return Err(de::Error::custom("a value without a name")) };
        let place = Place::Member(self.place, &name);
        seed.deserialize(Node { value, place: &place }).map_err(|error| error.at(&place))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::decision::Mode;
    use proptest::prelude::*;
    use serde::Deserialize;
    use serde_json::json;
    use std::collections::BTreeMap;

    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Check {
        feature: crate::domain::name::FeatureName,
        #[serde(default)]
        cost: Option<u64>,
        #[serde(default)]
        mode: Mode,
        #[serde(default)]
        small: u8,
        #[serde(default)]
        parts: Vec<Part>,
        #[serde(default)]
        tags: BTreeMap<String, i64>,
    }

    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(rename_all = "snake_case", deny_unknown_fields)]
    enum Part {
        Whole,
        Share { units: u32 },
        Pair(u8, u8),
    }

    fn fault(body: &str) -> (Code, String) {
        let fault = read::<Check>(body.as_bytes(), 4096).expect_err(body);
        assert!(!fault.detail.is_empty() && fault.detail.chars().count() <= MAX_DETAIL + 3, "{}", fault.detail);
        (fault.code, fault.pointer)
    }

    #[test]
    fn a_sound_body_is_read() {
        let body = br#" {"feature":"pdf","cost":9007199254740991,"mode":"observe","parts":["whole",{"share":{"units":2}},{"pair":[1,2]}],
            "tags":{"a":-9007199254740991}} "#;
        let check = read::<Check>(body, 4096).unwrap();
        assert_eq!(check.cost, Some(MAX_SAFE));
        assert_eq!(check.parts, [Part::Whole, Part::Share { units: 2 }, Part::Pair(1, 2)]);
        assert_eq!(check.tags["a"], -9_007_199_254_740_991);
        assert_eq!(read::<Check>(br#"{"feature":"pdf","cost":null}"#, 64).unwrap().cost, None);
    }

    #[test]
    fn each_fault_has_its_own_code_and_place() {
        for (body, code, pointer) in [
            ("", Code::MalformedJson, "#"),
            ("{", Code::MalformedJson, "#"),
            ("{\"feature\":\"a\"} x", Code::MalformedJson, "#"),
            ("{\"feature\":\"a\",}", Code::MalformedJson, "#"),
            ("{'feature':1}", Code::MalformedJson, "#"),
            ("{\"feature\":NaN}", Code::MalformedJson, "#"),
            ("\u{feff}{\"feature\":\"a\"}", Code::MalformedJson, "#"),
            ("{\"feature\":\"\\ud800\"}", Code::MalformedJson, "#"),
            ("{\"feature\":\"a\",\"feature\":\"a\"}", Code::DuplicateField, "#/feature"),
            ("{\"feature\":\"a\",\"f\\u0065ature\":\"a\"}", Code::DuplicateField, "#/feature"),
            ("{\"tags\":{\"x\":1,\"y\":2,\"x\":1}}", Code::DuplicateField, "#/tags/x"),
            ("{\"tags\":{\"x\":9007199254740992}}", Code::NumberOutOfRange, "#/tags/x"),
            ("{\"tags\":{\"x\":-9007199254740992}}", Code::NumberOutOfRange, "#/tags/x"),
            ("{\"cost\":18446744073709551616}", Code::NumberOutOfRange, "#/cost"),
            ("{\"cost\":1e300}", Code::NumberOutOfRange, "#/cost"),
            ("{\"cost\":9007199254740992.0}", Code::NumberOutOfRange, "#/cost"),
            ("{\"cost\":1e400}", Code::NumberOutOfRange, "#"),
            ("{\"feature\":\"a\",\"cost\":-1}", Code::NumberOutOfRange, "#/cost"),
            ("{\"feature\":\"a\",\"small\":256}", Code::NumberOutOfRange, "#/small"),
            ("{\"feature\":\"a\",\"cost\":1.5}", Code::WrongType, "#/cost"),
            ("{\"feature\":\"a\",\"cost\":\"1\"}", Code::WrongType, "#/cost"),
            ("{\"feature\":\"a\",\"small\":null}", Code::WrongType, "#/small"),
            ("{\"feature\":\"a\",\"parts\":{}}", Code::WrongType, "#/parts"),
            ("{\"feature\":\"a\",\"parts\":[\"whole\",3]}", Code::WrongType, "#/parts/1"),
            ("[]", Code::WrongType, "#"),
            ("null", Code::WrongType, "#"),
            ("[\"a\",1,\"enforce\",0,[],{}]", Code::WrongType, "#"),
            ("{\"feature\":\"a\",\"parts\":[{\"share\":[1]}]}", Code::WrongType, "#/parts/0/share"),
            ("{}", Code::MissingField, "#/feature"),
            ("{\"feature\":\"a\",\"parts\":[{\"share\":{}}]}", Code::MissingField, "#/parts/0/share/units"),
            ("{\"feature\":\"a\",\"csot\":1}", Code::UnknownField, "#/csot"),
            ("{\"feature\":\"a\",\"a/b~c d\":1}", Code::UnknownField, "#/a~1b~0c%20d"),
            (
                "{\"feature\":\"a\",\"parts\":[{\"share\":{\"units\":1,\"x\":1}}]}",
                Code::UnknownField,
                "#/parts/0/share/x",
            ),
            ("{\"feature\":\"a b\"}", Code::InvalidValue, "#/feature"),
            ("{\"feature\":\"a\",\"mode\":\"off\"}", Code::InvalidValue, "#/mode"),
            ("{\"feature\":\"a\",\"parts\":[\"half\"]}", Code::InvalidValue, "#/parts/0"),
            ("{\"feature\":\"a\",\"parts\":[{\"pair\":[1]}]}", Code::InvalidValue, "#/parts/0/pair"),
            ("{\"feature\":\"a\",\"parts\":[{\"pair\":[1,2,3]}]}", Code::InvalidValue, "#/parts/0/pair"),
        ] {
            assert_eq!(fault(body), (code, pointer.to_owned()), "{body}");
        }
        assert_eq!(read_tree(b"{\"a\":\"\xff\"}", 99).unwrap_err().code, Code::MalformedJson);
    }

    #[test]
    fn words_of_rust_do_not_reach_the_reader() {
        for (body, detail) in [
            ("{\"cost\":\"1\",\"feature\":\"a\"}", "a string where an integer of 0 or more is wanted"),
            ("{\"small\":300,\"feature\":\"a\"}", "integer `300` where an integer of 0 to 255 is wanted"),
            ("[]", "an array where an object is wanted"),
            ("{\"feature\":\"a\",\"tags\":[]}", "an array where an object is wanted"),
            ("{\"feature\":\"a\",\"mode\":1}", "an integer where a string is wanted"),
        ] {
            assert_eq!(read::<Check>(body.as_bytes(), 99).unwrap_err().detail, detail, "{body}");
        }
    }

    #[test]
    fn size_is_looked_at_first_and_depth_on_the_way_down() {
        assert_eq!(read_tree(b"not json at all", 3).unwrap_err().code, Code::BodyTooLarge);
        assert!(read_tree(b"123", 3).is_ok());

        let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        assert!(read_tree(nested(MAX_DEPTH).as_bytes(), 4096).is_ok());
        let fault = read_tree(nested(MAX_DEPTH + 1).as_bytes(), 4096).unwrap_err();
        assert_eq!((fault.code, fault.pointer), (Code::DepthExceeded, format!("#{}", "/0".repeat(MAX_DEPTH))));
        // A bomb that never closes is refused by its depth, not by its missing end.
        assert_eq!(read_tree("[".repeat(1 << 20).as_bytes(), 1 << 20).unwrap_err().code, Code::DepthExceeded);
        assert_eq!(read_tree("{\"a\":".repeat(1 << 18).as_bytes(), 1 << 21).unwrap_err().code, Code::DepthExceeded);
    }

    #[test]
    fn a_hostile_body_is_not_echoed_at_length() {
        let body = format!("{{\"feature\":\"a\",\"mode\":\"{}\"}}", "é".repeat(5000));
        assert!(read::<Check>(body.as_bytes(), 1 << 20).unwrap_err().detail.len() < 2 * MAX_DETAIL + 4);
    }

    fn trees() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            (-9_007_199_254_740_991_i64..=9_007_199_254_740_991).prop_map(Value::from),
            // Quarters: serde_json may read a float of 17 digits one unit off in the last place.
            (-1_000_000..1_000_000).prop_map(|quarters| Value::from(f64::from(quarters) / 4.0)),
            ".{0,8}".prop_map(Value::from),
        ];
        leaf.prop_recursive(5, 40, 5, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
                proptest::collection::btree_map(".{0,4}", inner, 0..5).prop_map(|members| json!(members)),
            ]
        })
    }

    proptest! {
        #[test]
        fn every_sound_tree_is_read_as_it_is(tree in trees()) {
            let bytes = serde_json::to_vec(&tree).unwrap();
            prop_assert_eq!(&read_tree(&bytes, bytes.len()).unwrap(), &tree);
            prop_assert_eq!(read::<Value>(&bytes, bytes.len()).unwrap(), tree);
        }

        #[test]
        fn no_input_panics(bytes: Vec<u8>, text in "[\\[\\]{}\",:0-9eE.a-]{0,40}") {
            let _ = read::<Check>(&bytes, 64);
            let _ = read::<Check>(text.as_bytes(), 64);
        }

        /// The pointer of a fault leads to the fault.
        #[test]
        fn a_pointer_leads_there(path in proptest::collection::vec("[a-z/~ %é]{1,3}", 1..6)) {
            let bad = json!(1_u64 << 60);
            let tree = path.iter().rev().fold(bad.clone(), |inner, name| json!({ name: inner }));
            let pointer = read_tree(tree.to_string().as_bytes(), 4096).unwrap_err().pointer;
            let plain = pointer.strip_prefix('#').unwrap();
            let mut decoded = Vec::new();
            let mut bytes = plain.bytes();
            while let Some(byte) = bytes.next() {
                let pair = |bytes: &mut std::str::Bytes<'_>| [bytes.next().unwrap(), bytes.next().unwrap()];
                decoded.push(match byte {
                    b'%' => u8::from_str_radix(std::str::from_utf8(&pair(&mut bytes)).unwrap(), 16).unwrap(),
                    other => other,
                });
            }
            prop_assert_eq!(tree.pointer(&String::from_utf8(decoded).unwrap()), Some(&bad));
        }
    }
}
