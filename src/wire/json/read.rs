//! Reading JSON: what others wrote strictly, what this crate wrote itself quickly.
//!
//! Invariant: what [`read`] returns had one meaning: no member twice, none unknown, no number that JSON readers would
//! disagree about, nothing deeper than [`MAX_DEPTH`]. Each fault has its own code and the place it is at.
//!
//! There is one reader for every type and every text, so that each type is compiled into the Worker once: a type costs
//! kilobytes for each deserializer that it meets. It gives a visitor only what it asked for, and an object where a struct is
//! wanted, so no code for other shapes is compiled either. Its errors hold an offset; the place is found for a fault only.

use std::borrow::Cow;
use std::fmt::{self, Write as _};

use serde::de::{
    self, Deserialize, DeserializeOwned, DeserializeSeed, EnumAccess, Expected, MapAccess, SeqAccess, Unexpected,
    VariantAccess, Visitor,
};
use serde::forward_to_deserialize_any;
use serde_json::{Number, Value};

use crate::domain::decision::Code;
use crate::wire::problem::Fault;

/// How deep a body may nest.
pub const MAX_DEPTH: usize = 32;
/// The largest integer, of either sign, that every JSON reader holds exactly.
pub const MAX_SAFE: u64 = (1 << 53) - 1;
/// The longest detail: details quote the body, and an answer should not be as long as a hostile body.
const MAX_DETAIL: usize = 300;
/// How deep anything may nest.
const DEEPEST: usize = 128;

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
    let text = sound(bytes, max_len)?;
    whole(text).map_err(|error| error.fault(text))
}

/// Reads any JSON of at most `max_len` bytes.
///
/// # Errors
/// The first fault found.
pub fn read_tree(bytes: &[u8], max_len: usize) -> Result<Value, Fault> {
    read(bytes, max_len)
}

/// Reads a `T` from a text that this crate wrote, or that is signed.
///
/// # Errors
/// When it is not JSON, or not a `T`.
pub fn parse<'de, T: Deserialize<'de>>(text: &'de str) -> Result<T, Unreadable> {
    whole(text).map_err(|error| Unreadable(error.0.detail))
}

/// A text is not what this crate writes; it says why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unreadable(String);

impl fmt::Display for Unreadable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Unreadable {}

fn whole<'de, T: Deserialize<'de>>(text: &'de str) -> Result<T, Mismatch> {
    let mut reader = Reader::of(text, DEEPEST);
    reader.peek();
    let at = reader.at;
    let value = T::deserialize(&mut reader).map_err(|error| error.within(at))?;
    reader.end()?;
    Ok(value)
}

/// The text of a body in which every object names its members once and every number is exact.
fn sound(bytes: &[u8], max_len: usize) -> Result<&str, Fault> {
    let fault = |code, detail: String| Fault { detail, pointer: "#".into(), code };
    if bytes.len() > max_len {
        return Err(fault(Code::BodyTooLarge, format!("the body has more than {max_len} bytes")));
    }
    let text = std::str::from_utf8(bytes).map_err(|error| fault(Code::MalformedJson, error.to_string()))?;
    let mut reader = Reader::of(text, MAX_DEPTH);
    reader.check().and_then(|()| reader.end()).map_err(|error| error.fault(text))?;
    Ok(text)
}

fn short(mut detail: String) -> String {
    if let Some((end, _)) = detail.char_indices().nth(MAX_DETAIL) {
        detail.truncate(end);
        detail.push_str("...");
    }
    detail
}

/// The place of the value or the name that begins at `offset`, as a JSON pointer in a URI fragment (RFC 6901, section 6).
fn pointer(text: &str, offset: usize) -> String {
    enum Part<'t> {
        Item(usize),
        Member(Option<Cow<'t, str>>),
    }
    let mut reader = Reader::of(text, 0);
    let mut parts = Vec::new();
    while let Some(byte) = reader.peek() {
        let at = reader.at;
        if byte == b'"' {
            let Ok(string) = reader.string() else { break };
            if reader.peek() == Some(b':')
                && let Some(Part::Member(name)) = parts.last_mut()
            {
                *name = Some(string);
            }
        }
        if at >= offset {
            break;
        }
        match byte {
            b'"' => continue,
            b'[' => parts.push(Part::Item(0)),
            b'{' => parts.push(Part::Member(None)),
            b']' | b'}' => drop(parts.pop()),
            b',' => {
                if let Some(Part::Item(index)) = parts.last_mut() {
                    *index += 1;
                }
            }
            _ => {}
        }
        reader.at += 1;
    }
    let mut pointer = String::from("#");
    for part in parts {
        // Writing to a String cannot fail.
        match part {
            Part::Item(index) => drop(write!(pointer, "/{index}")),
            Part::Member(name) => member(&mut pointer, &name.unwrap_or_default()),
        }
    }
    pointer
}

/// Adds a member to a pointer.
fn member(pointer: &mut String, name: &str) {
    pointer.push('/');
    for byte in name.bytes() {
        match byte {
            b'~' => pointer.push_str("~0"),
            b'/' => pointer.push_str("~1"),
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'$' | b'@' | b':' => {
                pointer.push(char::from(byte));
            }
            other => drop(write!(pointer, "%{other:02X}")),
        }
    }
}

/// What is wrong, and where: its offset is filled in by the innermost value that the error passes.
#[derive(Debug)]
struct Mismatch(Box<Wrong>);

#[derive(Debug)]
struct Wrong {
    code: Code,
    detail: String,
    /// The member that is missing, of the object at `at`.
    missing: Option<&'static str>,
    at: Option<usize>,
}

impl Mismatch {
    #[cold]
    fn new(code: Code, detail: fmt::Arguments<'_>) -> Self {
        Self(Box::new(Wrong { code, detail: fmt::format(detail), missing: None, at: None }))
    }

    #[cold]
    fn within(mut self, at: usize) -> Self {
        self.0.at.get_or_insert(at);
        self
    }

    #[cold]
    fn fault(self, text: &str) -> Fault {
        let Wrong { code, detail, missing, at } = *self.0;
        let at = at.unwrap_or_default();
        let pointer = if code == Code::MalformedJson {
            // Where the text makes no sense there is no place in a tree.
            "#".to_owned()
        } else {
            let mut pointer = pointer(text, at);
            if let Some(name) = missing {
                member(&mut pointer, name);
            }
            pointer
        };
        Fault { detail: short(detail), pointer, code }
    }
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.detail)
    }
}

impl std::error::Error for Mismatch {}

impl de::Error for Mismatch {
    /// What our own types say about a value of the right type.
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self::new(Code::InvalidValue, format_args!("{message}"))
    }

    #[cold]
    fn invalid_type(found: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self::new(Code::WrongType, format_args!("{} where {} is wanted", kind(found), wanted(expected)))
    }

    /// serde calls this for a number that does not fit the wanted integer, and for a text that is no variant.
    #[cold]
    fn invalid_value(found: Unexpected<'_>, expected: &dyn Expected) -> Self {
        let wanted = wanted(expected);
        match found {
            Unexpected::Unsigned(number) => {
                Self::new(Code::NumberOutOfRange, format_args!("{number} where {wanted} is wanted"))
            }
            Unexpected::Signed(number) => {
                Self::new(Code::NumberOutOfRange, format_args!("{number} where {wanted} is wanted"))
            }
            Unexpected::Str(text) => Self::new(Code::InvalidValue, format_args!("`{text}` where {wanted} is wanted")),
            _ => Self::new(Code::InvalidValue, format_args!("{} where {wanted} is wanted", kind(found))),
        }
    }

    #[cold]
    fn invalid_length(length: usize, expected: &dyn Expected) -> Self {
        Self::new(Code::InvalidValue, format_args!("{length} where {expected} is wanted"))
    }

    #[cold]
    fn unknown_variant(variant: &str, expected: &'static [&'static str]) -> Self {
        Self::new(Code::InvalidValue, format_args!("`{variant}` is not one of {}", expected.join(", ")))
    }

    #[cold]
    fn unknown_field(_: &str, expected: &'static [&'static str]) -> Self {
        if expected.is_empty() {
            return Self::new(Code::UnknownField, format_args!("no member is known here"));
        }
        Self::new(Code::UnknownField, format_args!("not one of {}", expected.join(", ")))
    }

    #[cold]
    fn missing_field(field: &'static str) -> Self {
        let mut error = Self::new(Code::MissingField, format_args!("this member is needed"));
        error.0.missing = Some(field);
        error
    }

    #[cold]
    fn duplicate_field(_: &'static str) -> Self {
        Self::new(Code::DuplicateField, format_args!("this member is there twice"))
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

/// A place in a text.
struct Reader<'de> {
    text: &'de str,
    at: usize,
    /// How many more levels may open here.
    depth: usize,
    /// What the next identifier may be.
    names: Names,
}

/// The names of a struct's members, or of an enum's variants. serde's visitors take a place among them too, so they are looked
/// up here for all types, and no type has code for it.
#[derive(Clone, Copy)]
struct Names {
    known: &'static [&'static str],
    unknown: fn(&str, &'static [&'static str]) -> Mismatch,
}

impl Names {
    const fn members(known: &'static [&'static str]) -> Self {
        Self { known, unknown: <Mismatch as de::Error>::unknown_field }
    }

    const fn variants(known: &'static [&'static str]) -> Self {
        Self { known, unknown: <Mismatch as de::Error>::unknown_variant }
    }
}

impl<'de> Reader<'de> {
    const fn of(text: &'de str, depth: usize) -> Self {
        Self { text, at: 0, depth, names: Names::members(&[]) }
    }

    /// The place of the name here among those that are known; one beyond all where it is unknown.
    fn place(&mut self) -> Result<u64, Mismatch> {
        let name = self.string()?;
        Ok(self.names.known.iter().position(|known| *known == name).map_or(u64::MAX, |place| place as u64))
    }

    /// The name at `at` is unknown, to a type that ignores none.
    #[cold]
    fn unknown(&mut self, at: usize) -> Mismatch {
        self.at = at;
        match self.string() {
            Ok(name) => (self.names.unknown)(&name, self.names.known),
            Err(error) => error,
        }
    }

    /// The next byte that is no white space.
    fn peek(&mut self) -> Option<u8> {
        let bytes = self.text.as_bytes();
        while let Some(b' ' | b'\n' | b'\r' | b'\t') = bytes.get(self.at) {
            self.at += 1;
        }
        bytes.get(self.at).copied()
    }

    fn rest(&self) -> &'de str {
        self.text.get(self.at..).unwrap_or_default()
    }

    #[cold]
    fn malformed(&self, wanted: &str) -> Mismatch {
        let before = self.text.get(..self.at).unwrap_or_default();
        let (line, column) = (before.split('\n').count(), before.len() - before.rfind('\n').map_or(0, |at| at + 1) + 1);
        Mismatch::new(Code::MalformedJson, format_args!("{wanted} is wanted at line {line} column {column}"))
            .within(self.at)
    }

    /// The value here is of another type.
    #[cold]
    fn other(&mut self, expected: &dyn Expected) -> Mismatch {
        let at = self.at;
        let found = match self.peek() {
            Some(b'"') => Unexpected::Str(""),
            Some(b'[') => Unexpected::Seq,
            Some(b'{') => Unexpected::Map,
            Some(b't' | b'f') => Unexpected::Bool(true),
            Some(b'n') => Unexpected::Unit,
            _ => match self.number() {
                Ok(number) if number.is_f64() => Unexpected::Float(0.0),
                Ok(_) => Unexpected::Unsigned(0),
                Err(error) => return error,
            },
        };
        <Mismatch as de::Error>::invalid_type(found, expected).within(at)
    }

    /// Takes `byte`, if it is next.
    fn take(&mut self, byte: u8) -> bool {
        let there = self.peek() == Some(byte);
        self.at += usize::from(there);
        there
    }

    fn literal(&mut self, literal: &str) -> Result<(), Mismatch> {
        if !self.rest().starts_with(literal) {
            return Err(self.malformed("a value"));
        }
        self.at += literal.len();
        Ok(())
    }

    fn string(&mut self) -> Result<Cow<'de, str>, Mismatch> {
        if self.peek() != Some(b'"') {
            return Err(self.malformed("a string"));
        }
        let bytes = self.text.as_bytes();
        let begin = self.at + 1;
        let (mut end, mut plain) = (begin, true);
        while let Some(byte) = bytes.get(end) {
            match byte {
                b'"' => {
                    let inside = self.text.get(begin..end).unwrap_or_default();
                    let string = if plain {
                        Cow::Borrowed(inside)
                    } else {
                        Cow::Owned(unescaped(inside).ok_or_else(|| self.malformed("a sound string"))?)
                    };
                    self.at = end + 1;
                    return Ok(string);
                }
                b'\\' => {
                    plain = false;
                    end += 1;
                }
                0..=0x1f => break,
                _ => {}
            }
            end += 1;
        }
        Err(self.malformed("a closed string"))
    }

    fn number(&mut self) -> Result<Number, Mismatch> {
        let rest = self.rest();
        let end = rest.bytes().position(|byte| !matches!(byte, b'0'..=b'9' | b'-' | b'+' | b'.' | b'e' | b'E'));
        let token = rest.get(..end.unwrap_or(rest.len())).unwrap_or_default();
        let number = token.parse::<Number>().map_err(|error| {
            // 1e400
            if error.to_string().starts_with("number out of range") {
                Mismatch::new(Code::NumberOutOfRange, format_args!("{token} is out of range")).within(self.at)
            } else {
                self.malformed("a value")
            }
        })?;
        self.at += token.len();
        Ok(number)
    }

    fn open(&mut self) -> Result<(), Mismatch> {
        let Some(depth) = self.depth.checked_sub(1) else {
            let error = Mismatch::new(Code::DepthExceeded, format_args!("nested deeper than {MAX_DEPTH} levels"));
            return Err(error.within(self.at));
        };
        self.depth = depth;
        self.at += 1;
        Ok(())
    }

    /// Whether another item or member follows; then it is next. Otherwise `close` was, and is behind.
    fn another(&mut self, first: &mut bool, close: u8) -> Result<bool, Mismatch> {
        if self.take(close) {
            self.depth += 1;
            return Ok(false);
        }
        if !std::mem::take(first) && !self.take(b',') {
            return Err(self.malformed("a comma or an end"));
        }
        match self.peek() {
            Some(byte) if byte != close => Ok(true),
            _ => Err(self.malformed("a value")),
        }
    }

    /// The end of what holds a known number of items.
    fn close(&mut self, close: u8) -> Result<(), Mismatch> {
        if self.take(close) {
            self.depth += 1;
            return Ok(());
        }
        Err(Mismatch::new(Code::InvalidValue, format_args!("fewer items are wanted")))
    }

    fn colon(&mut self) -> Result<(), Mismatch> {
        if !self.take(b':') {
            return Err(self.malformed("a colon"));
        }
        self.peek();
        Ok(())
    }

    fn end(&mut self) -> Result<(), Mismatch> {
        match self.peek() {
            None => Ok(()),
            Some(_) => Err(self.malformed("the end")),
        }
    }

    /// Goes over a value: its syntax, its depth, its numbers, and that no member is there twice.
    fn check(&mut self) -> Result<(), Mismatch> {
        let byte = self.peek();
        let at = self.at;
        let mut first = true;
        match byte {
            Some(b'"') => self.string().map(drop),
            Some(b't') => self.literal("true"),
            Some(b'f') => self.literal("false"),
            Some(b'n') => self.literal("null"),
            Some(b'[') => {
                self.open()?;
                while self.another(&mut first, b']')? {
                    self.check()?;
                }
                Ok(())
            }
            Some(b'{') => {
                self.open()?;
                // Any map with names would do; of this one there is code already.
                let mut names = serde_json::Map::new();
                while self.another(&mut first, b'}')? {
                    let at = self.at;
                    if names.insert(self.string()?.into_owned(), Value::Null).is_some() {
                        return Err(<Mismatch as de::Error>::duplicate_field("").within(at));
                    }
                    self.colon()?;
                    self.check()?;
                }
                Ok(())
            }
            _ => {
                let number = self.number()?;
                let exact = match (number.as_u64(), number.as_i64(), number.as_f64()) {
                    (Some(value), ..) => value <= MAX_SAFE,
                    (_, Some(value), _) => value.unsigned_abs() <= MAX_SAFE,
                    // 2^53 is exact as an f64, so this refuses every float that stands for an integer which would not be.
                    (_, _, value) => value.is_some_and(|value| value.abs() < 9_007_199_254_740_992.0),
                };
                if exact {
                    return Ok(());
                }
                let detail = format_args!("outside -(2^53-1) to 2^53-1, where JSON stops being exact");
                Err(Mismatch::new(Code::NumberOutOfRange, detail).within(at))
            }
        }
    }

    /// Opens the array or object that is wanted here.
    fn enter(&mut self, open: u8, expected: &dyn Expected) -> Result<(), Mismatch> {
        if self.peek() != Some(open) {
            return Err(self.other(expected));
        }
        self.open()
    }

    fn items<V: Visitor<'de>>(&mut self, visitor: V) -> Result<V::Value, Mismatch> {
        self.enter(b'[', &visitor)?;
        visitor.visit_seq(Within { reader: self, first: true, names: &[] })
    }

    /// As many items as the visitor reads.
    fn tuple<V: Visitor<'de>>(&mut self, visitor: V) -> Result<V::Value, Mismatch> {
        let value = self.items(visitor)?;
        self.close(b']')?;
        Ok(value)
    }

    fn members<V: Visitor<'de>>(&mut self, names: &'static [&'static str], visitor: V) -> Result<V::Value, Mismatch> {
        self.enter(b'{', &visitor)?;
        visitor.visit_map(Within { reader: self, first: true, names })
    }

    fn integer<V: Visitor<'de>>(&mut self, visitor: V) -> Result<V::Value, Mismatch> {
        let at = self.at;
        if matches!(self.peek(), Some(b'0'..=b'9' | b'-')) {
            let number = self.number()?;
            if let Some(value) = number.as_u64() {
                return visitor.visit_u64(value);
            }
            if let Some(value) = number.as_i64() {
                return visitor.visit_i64(value);
            }
            self.at = at;
        }
        Err(self.other(&visitor))
    }
}

/// What a string with escapes stands for (RFC 8259, section 7), if each is one: a surrogate alone is none.
fn unescaped(escaped: &str) -> Option<String> {
    let mut parts = escaped.split('\\');
    let mut text = String::from(parts.next()?);
    // The text behind each backslash, up to the next one.
    while let Some(part) = parts.next() {
        let mut rest = part.chars();
        let unit = |chars: &mut std::str::Chars<'_>| {
            let digits =
                chars.as_str().get(..4).filter(|digits| digits.bytes().all(|byte| byte.is_ascii_hexdigit()))?;
            *chars = chars.as_str().get(4..)?.chars();
            u16::from_str_radix(digits, 16).ok()
        };
        text.push(match rest.next() {
            // Nothing between two backslashes: the second was escaped, and what follows it is plain.
            None => {
                rest = parts.next()?.chars();
                '\\'
            }
            Some(plain @ ('"' | '/')) => plain,
            Some('b') => '\x08',
            Some('f') => '\x0c',
            Some('n') => '\n',
            Some('r') => '\r',
            Some('t') => '\t',
            Some('u') => match unit(&mut rest)? {
                // The first of a pair: nothing may stand between it and the second.
                first @ 0xd800..=0xdbff if rest.as_str().is_empty() => {
                    rest = parts.next()?.strip_prefix('u')?.chars();
                    let second = unit(&mut rest)?;
                    char::decode_utf16([first, second]).next()?.ok()?
                }
                unit => char::from_u32(unit.into())?,
            },
            Some(_) => return None,
        });
        text.push_str(rest.as_str());
    }
    Some(text)
}

impl<'de> de::Deserializer<'de> for &mut Reader<'de> {
    type Error = Mismatch;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mismatch> {
        match self.peek() {
            Some(b'n') => self.literal("null").and_then(|()| visitor.visit_unit()),
            Some(b't') => self.literal("true").and_then(|()| visitor.visit_bool(true)),
            Some(b'f') => self.literal("false").and_then(|()| visitor.visit_bool(false)),
            Some(b'"') => self.deserialize_str(visitor),
            Some(b'[') => self.items(visitor),
            Some(b'{') => self.members(&[], visitor),
            _ => {
                let number = self.number()?;
                match (number.as_u64(), number.as_i64(), number.as_f64()) {
                    (Some(value), ..) => visitor.visit_u64(value),
                    (None, Some(value), _) => visitor.visit_i64(value),
                    (None, None, value) => visitor.visit_f64(value.unwrap_or(f64::NAN)),
                }
            }
        }
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mismatch> {
        match self.peek() {
            Some(b't') => self.literal("true").and_then(|()| visitor.visit_bool(true)),
            Some(b'f') => self.literal("false").and_then(|()| visitor.visit_bool(false)),
            _ => Err(self.other(&visitor)),
        }
    }

    fn deserialize_u8<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mismatch> {
        self.integer(visitor)
    }

    fn deserialize_u16<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mismatch> {
        self.integer(visitor)
    }

    fn deserialize_u32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mismatch> {
        self.integer(visitor)
    }

    fn deserialize_u64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mismatch> {
        self.integer(visitor)
    }

    fn deserialize_i64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mismatch> {
        self.integer(visitor)
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mismatch> {
        if self.peek() != Some(b'"') {
            return Err(self.other(&visitor));
        }
        visitor.visit_str(&self.string()?)
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mismatch> {
        self.deserialize_str(visitor)
    }

    fn deserialize_identifier<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mismatch> {
        let at = self.at;
        let place = self.place()?;
        visitor.visit_u64(place).map_err(|_: Mismatch| self.unknown(at))
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mismatch> {
        match self.peek() {
            Some(b'n') => self.literal("null").and_then(|()| visitor.visit_none()),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, Mismatch> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mismatch> {
        self.items(visitor)
    }

    fn deserialize_tuple<V: Visitor<'de>>(self, _: usize, visitor: V) -> Result<V::Value, Mismatch> {
        self.tuple(visitor)
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mismatch> {
        self.members(&[], visitor)
    }

    /// An object and nothing else: serde would also take an array, by position, which no page documents.
    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        names: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Mismatch> {
        self.members(names, visitor)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        names: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Mismatch> {
        let at = self.at;
        let other = || Mismatch::new(Code::WrongType, format_args!("a string, or an object of one member, is wanted"));
        match self.peek() {
            Some(b'"') => visitor.visit_enum(Variant { reader: self, holds: false, names }),
            Some(b'{') => {
                self.open()?;
                if self.peek() != Some(b'"') {
                    return Err(other().within(at));
                }
                let value = visitor.visit_enum(Variant { reader: &mut *self, holds: true, names })?;
                self.close(b'}').map_err(|_| other().within(at))?;
                Ok(value)
            }
            _ => Err(other()),
        }
    }

    forward_to_deserialize_any! {
        i8 i16 i32 i128 u128 f32 f64 char bytes byte_buf unit unit_struct tuple_struct ignored_any
    }
}

/// The items of an array, or the members of an object.
struct Within<'a, 'de> {
    reader: &'a mut Reader<'de>,
    first: bool,
    names: &'static [&'static str],
}

impl<'de> SeqAccess<'de> for Within<'_, 'de> {
    type Error = Mismatch;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Mismatch> {
        if !self.reader.another(&mut self.first, b']')? {
            return Ok(None);
        }
        let at = self.reader.at;
        seed.deserialize(&mut *self.reader).map(Some).map_err(|error| error.within(at))
    }
}

impl<'de> MapAccess<'de> for Within<'_, 'de> {
    type Error = Mismatch;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Mismatch> {
        if !self.reader.another(&mut self.first, b'}')? {
            return Ok(None);
        }
        let at = self.reader.at;
        if self.reader.peek() != Some(b'"') {
            return Err(self.reader.malformed("a name"));
        }
        self.reader.names = Names::members(self.names);
        seed.deserialize(&mut *self.reader).map(Some).map_err(|error| error.within(at))
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Mismatch> {
        self.reader.colon()?;
        let at = self.reader.at;
        seed.deserialize(&mut *self.reader).map_err(|error| error.within(at))
    }
}

/// A variant: its name, and behind it what it holds, if it holds anything.
struct Variant<'a, 'de> {
    reader: &'a mut Reader<'de>,
    holds: bool,
    names: &'static [&'static str],
}

impl<'a, 'de> Variant<'a, 'de> {
    /// Where what it holds begins.
    fn held(self) -> Result<&'a mut Reader<'de>, Mismatch> {
        if self.holds {
            Ok(self.reader)
        } else {
            Err(Mismatch::new(Code::WrongType, format_args!("an object of one member is wanted")))
        }
    }
}

impl<'de> EnumAccess<'de> for Variant<'_, 'de> {
    type Error = Mismatch;
    type Variant = Self;

    fn variant_seed<V: DeserializeSeed<'de>>(self, seed: V) -> Result<(V::Value, Self), Mismatch> {
        let at = self.reader.at;
        self.reader.names = Names::variants(self.names);
        let variant = seed.deserialize(&mut *self.reader).map_err(|error| error.within(at))?;
        if self.holds {
            self.reader.colon()?;
        }
        Ok((variant, self))
    }
}

impl<'de> VariantAccess<'de> for Variant<'_, 'de> {
    type Error = Mismatch;

    fn unit_variant(self) -> Result<(), Mismatch> {
        if self.holds { self.reader.literal("null") } else { Ok(()) }
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<T::Value, Mismatch> {
        let at = self.reader.at;
        self.held().and_then(|reader| seed.deserialize(reader)).map_err(|error| error.within(at))
    }

    fn tuple_variant<V: Visitor<'de>>(self, _: usize, visitor: V) -> Result<V::Value, Mismatch> {
        let at = self.reader.at;
        self.held().and_then(|reader| reader.tuple(visitor)).map_err(|error| error.within(at))
    }

    fn struct_variant<V: Visitor<'de>>(self, names: &'static [&'static str], visitor: V) -> Result<V::Value, Mismatch> {
        let at = self.reader.at;
        self.held().and_then(|reader| reader.members(names, visitor)).map_err(|error| error.within(at))
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
            ("{\"cost\":1e400}", Code::NumberOutOfRange, "#/cost"),
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
            ("{\"small\":300,\"feature\":\"a\"}", "300 where an integer of 0 to 255 is wanted"),
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

        /// Escapes mean what another reader says that they mean, and what it refuses is refused.
        #[test]
        fn escapes_are_read_as_serde_json_reads_them(parts in proptest::collection::vec(
            "[a\\u{e9}dD8]|\\\\[\"\\\\/bfnrtux]|\\\\u[0-9a-fA-F]{3,5}|\\\\u[dD][89abcdAB][0-9a-f]{2}", 0..8)
        ) {
            let quoted = format!("\"{}\"", parts.concat());
            let theirs = serde_json::from_str::<String>(&quoted);
            prop_assert_eq!(parse::<String>(&quoted).ok(), theirs.ok(), "{}", quoted);
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
