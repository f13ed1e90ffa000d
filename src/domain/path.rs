//! The canonical form of a request path: the one string that route rules are matched with and that is forwarded.
//!
//! Invariant: what a [`CanonicalPath`] holds has one reading. Nothing in it can be decoded, split or resolved again into
//! another route, so an origin that is more lenient than the gate still sees the route that the gate saw.
//!
//! The form, and what becomes of the rest:
//!
//! - Bytes that a segment may hold plainly stay plain, and are decoded if they came encoded: letters, digits, `-._~` and
//!   `!$'()*:@`. Where an encoded byte carries data beside its plain twin (`& + , =` separate values in some APIs) both
//!   spellings are kept as they came; a route's literal may not contain them (see `route`).
//! - Everything else that is allowed is percent-encoded, in upper case; characters beyond ASCII are UTF-8.
//! - Several slashes in a row are one. A slash at the end is **kept** (frameworks redirect for it, so dropping it could
//!   loop) and **insignificant when matching** (most frameworks serve both).
//! - Refused, because some origin reads them differently: an encoded delimiter (`/ \ ? # ; %`), `\`, `;` and whatever it
//!   would start, control characters, segments of dots alone, broken percent-encoding, broken UTF-8.
//!   Dot segments are refused and not resolved: a browser, and the platform, resolve the plain ones before they arrive,
//!   so one that is still there was hidden.
//!
//! Letter case stays as it is. Whether it matters is the origin's [`Case`].

use std::borrow::Cow;
use std::fmt;

use super::decision::stored_as_name;

/// The longest path, in bytes as received. Longer than any route needs; short enough to be cheap to refuse by.
pub const MAX_LEN: usize = 4096;

/// Whether an origin tells `/Reports` from `/reports`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Case {
    /// It does. Most do.
    #[default]
    Sensitive,
    /// It does not: rules match in any ASCII case, and a path is refused where folding could reach further
    /// (see [`CanonicalPath::ambiguous_without_case`]).
    Insensitive,
}

impl Case {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Sensitive, Self::Insensitive];

    /// Its stored form.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Sensitive => "sensitive",
            Self::Insensitive => "insensitive",
        }
    }
}

stored_as_name!(Case);

/// Why a path has no canonical form. Each is answered 400 `path_not_canonical`, with this as its reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum NotCanonical {
    /// It does not begin with `/`.
    NotAbsolute,
    /// It is longer than [`MAX_LEN`].
    TooLong,
    /// A `%` without two hexadecimal digits.
    InvalidPercent,
    /// Its bytes, decoded, are no UTF-8: an overlong form, for example.
    InvalidUtf8,
    /// A control character, plain or encoded; NUL among them.
    Control,
    /// A segment of nothing but dots, plain or encoded.
    DotSegment,
    /// `/` as `%2F`.
    EncodedSlash,
    /// `\`, plain or encoded.
    Backslash,
    /// `%` as `%25`: decoded twice, it is something else.
    EncodedPercent,
    /// `;`, plain or encoded: some origins cut the segment there.
    Semicolon,
    /// `?` or `#`, plain or encoded: decoded, the path would end there.
    Delimiter,
    /// At an origin without letter case: a character that such an origin may take for another one.
    CaseAmbiguous,
}

impl NotCanonical {
    /// Every reason.
    pub const ALL: [Self; 12] = [
        Self::NotAbsolute,
        Self::TooLong,
        Self::InvalidPercent,
        Self::InvalidUtf8,
        Self::Control,
        Self::DotSegment,
        Self::EncodedSlash,
        Self::Backslash,
        Self::EncodedPercent,
        Self::Semicolon,
        Self::Delimiter,
        Self::CaseAmbiguous,
    ];

    /// Its stable name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::NotAbsolute => "not_absolute",
            Self::TooLong => "too_long",
            Self::InvalidPercent => "invalid_percent",
            Self::InvalidUtf8 => "invalid_utf8",
            Self::Control => "control",
            Self::DotSegment => "dot_segment",
            Self::EncodedSlash => "encoded_slash",
            Self::Backslash => "backslash",
            Self::EncodedPercent => "encoded_percent",
            Self::Semicolon => "semicolon",
            Self::Delimiter => "delimiter",
            Self::CaseAmbiguous => "case_ambiguous",
        }
    }

    /// One sentence for the answer.
    #[must_use]
    pub const fn detail(self) -> &'static str {
        match self {
            Self::NotAbsolute => "The path does not begin with a slash.",
            Self::TooLong => "The path is longer than 4096 bytes.",
            Self::InvalidPercent => "The path has a percent sign without two hexadecimal digits.",
            Self::InvalidUtf8 => "The path is not UTF-8 once decoded.",
            Self::Control => "The path has a control character.",
            Self::DotSegment => "The path has a segment of dots.",
            Self::EncodedSlash => "The path has an encoded slash.",
            Self::Backslash => "The path has a backslash.",
            Self::EncodedPercent => "The path has an encoded percent sign.",
            Self::Semicolon => "The path has a semicolon.",
            Self::Delimiter => "The path has a question mark or a number sign inside.",
            Self::CaseAmbiguous => "The path has a character that this API may take for another one.",
        }
    }
}

stored_as_name!(NotCanonical);

/// A path in canonical form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CanonicalPath<'a>(Cow<'a, str>);

impl<'a> CanonicalPath<'a> {
    /// The canonical form of the path of a request, without its query. Copies nothing if it is canonical and ASCII.
    ///
    /// ```
    /// # use tollgate::domain::path::{CanonicalPath, NotCanonical};
    /// assert_eq!(CanonicalPath::parse("//v1/%72eports/a%c3%bc").unwrap().as_str(), "/v1/reports/a%C3%BC");
    /// assert_eq!(CanonicalPath::parse("/v1/x%2f..%2freports"), Err(NotCanonical::EncodedSlash));
    /// ```
    ///
    /// # Errors
    /// When the path could be read in more than one way.
    pub fn parse(raw: &'a str) -> Result<Self, NotCanonical> {
        if raw.len() > MAX_LEN {
            return Err(NotCanonical::TooLong);
        }
        if !raw.starts_with('/') {
            return Err(NotCanonical::NotAbsolute);
        }
        if is_plainly_canonical(raw.as_bytes()) {
            return Ok(Self(Cow::Borrowed(raw)));
        }
        let canonical = canonicalise(raw.as_bytes())?;
        // What carries `%20` or UTF-8 is often canonical too; it then needs no copy to live on.
        Ok(Self(if canonical == raw { Cow::Borrowed(raw) } else { Cow::Owned(canonical) }))
    }

    /// The path: what to forward, byte for byte.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it is the received text itself.
    #[must_use]
    pub const fn is_borrowed(&self) -> bool {
        matches!(self.0, Cow::Borrowed(_))
    }

    /// The first segment, and the path after it: `/gate/api/v1` is `gate` and `/api/v1`. None of `/` itself.
    #[must_use]
    pub fn split_first(&self) -> Option<(&str, CanonicalPath<'_>)> {
        let rest = self.0.get(1..).filter(|rest| !rest.is_empty())?;
        let end = rest.find('/').unwrap_or(rest.len());
        let (first, rest) = rest.split_at(end);
        Some((first, CanonicalPath(Cow::Borrowed(if rest.is_empty() { "/" } else { rest }))))
    }

    /// Its segments in order, percent-encoded as they are forwarded. A slash at the end adds none.
    pub fn segments(&self) -> Segments<'_> {
        Segments(self.0.trim_matches('/'))
    }

    /// Whether an origin without letter case might read a segment as another one than ASCII folding says:
    ///
    /// - a character beyond ASCII whose upper or lower case has an ASCII letter (the Kelvin sign is a `k`, `ß` is `SS`);
    /// - a dot or a space at either end of a segment, which the file systems of such origins drop.
    ///
    /// An origin that maps other characters to ASCII ("best fit", compatibility forms) needs rules that do not rest on
    /// literals, or default deny.
    #[must_use]
    pub fn ambiguous_without_case(&self) -> bool {
        let plain = |segment: &str| !segment.ends_with('.') && !segment.ends_with("%20") && !segment.starts_with("%20");
        !self.segments().all(plain) || self.0.contains('%') && decoded_chars(&self.0).any(folds_to_ascii)
    }
}

/// The segments of a path; see [`CanonicalPath::segments`].
#[derive(Clone, Debug)]
pub struct Segments<'a>(&'a str);

impl<'a> Iterator for Segments<'a> {
    type Item = &'a str;

    fn next(&mut self) -> Option<&'a str> {
        if self.0.is_empty() {
            return None;
        }
        let (first, rest) = self.0.split_once('/').unwrap_or((self.0, ""));
        self.0 = rest;
        Some(first)
    }
}

impl fmt::Display for CanonicalPath<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a byte may be in a path.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Byte {
    /// Stays plain, and is decoded if it came encoded.
    Plain,
    /// Stays as it came: its two spellings may differ to the origin.
    AsCame,
    /// Is percent-encoded.
    Encoded,
    /// Has no place in a path.
    Refused(NotCanonical),
}

const fn class(byte: u8) -> Byte {
    match byte {
        b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => Byte::Plain,
        b'!' | b'$' | b'\'' | b'(' | b')' | b'*' | b':' | b'@' => Byte::Plain,
        b'&' | b'+' | b',' | b'=' => Byte::AsCame,
        b' ' | b'"' | b'<' | b'>' | b'[' | b']' | b'^' | b'`' | b'{' | b'|' | b'}' | 0x80.. => Byte::Encoded,
        0x00..=0x1f | 0x7f => Byte::Refused(NotCanonical::Control),
        b'/' => Byte::Refused(NotCanonical::EncodedSlash),
        b'\\' => Byte::Refused(NotCanonical::Backslash),
        b'%' => Byte::Refused(NotCanonical::EncodedPercent),
        b';' => Byte::Refused(NotCanonical::Semicolon),
        b'?' | b'#' => Byte::Refused(NotCanonical::Delimiter),
    }
}

/// The classes as a table, so that the usual path costs one load per byte.
static PLAIN: [bool; 256] = {
    let mut table = [false; 256];
    let mut byte = 0_u8;
    loop {
        #[expect(clippy::indexing_slicing, reason = "a u8 is within 256, and this runs at compile time")]
        {
            table[byte as usize] = matches!(class(byte), Byte::Plain | Byte::AsCame);
        }
        if byte == u8::MAX {
            break table;
        }
        byte += 1;
    }
};

/// Whether the path is canonical at a glance: only plain bytes, no empty segment inside, no segment of dots.
fn is_plainly_canonical(path: &[u8]) -> bool {
    let mut dots_only = false;
    let mut length = 1;
    for &byte in path {
        if byte == b'/' {
            if length == 0 || dots_only {
                return false;
            }
            (length, dots_only) = (0, false);
        } else {
            if !PLAIN.get(usize::from(byte)).is_some_and(|plain| *plain) {
                return false;
            }
            dots_only = byte == b'.' && (length == 0 || dots_only);
            length += 1;
        }
    }
    !dots_only
}

fn canonicalise(raw: &[u8]) -> Result<String, NotCanonical> {
    let mut path = String::with_capacity(raw.len() + 16);
    let mut decoded = Vec::with_capacity(raw.len());
    for segment in raw.split(|byte| *byte == b'/').filter(|segment| !segment.is_empty()) {
        path.push('/');
        decoded.clear();
        let mut bytes = segment.iter().copied();
        while let Some(byte) = bytes.next() {
            let (byte, came_encoded) = if byte == b'%' { (hex_pair(&mut bytes)?, true) } else { (byte, false) };
            match class(byte) {
                Byte::Plain => path.push(char::from(byte)),
                Byte::AsCame if !came_encoded => path.push(char::from(byte)),
                Byte::AsCame | Byte::Encoded => push_encoded(&mut path, byte),
                Byte::Refused(why) => return Err(why),
            }
            decoded.push(byte);
        }
        if decoded.iter().all(|byte| *byte == b'.') {
            return Err(NotCanonical::DotSegment);
        }
        let text = std::str::from_utf8(&decoded).map_err(|_| NotCanonical::InvalidUtf8)?;
        if text.chars().any(char::is_control) {
            return Err(NotCanonical::Control);
        }
    }
    if path.is_empty() || raw.ends_with(b"/") {
        path.push('/');
    }
    Ok(path)
}

fn hex_pair(bytes: &mut impl Iterator<Item = u8>) -> Result<u8, NotCanonical> {
    let mut digit = || bytes.next().and_then(|byte| char::from(byte).to_digit(16)).ok_or(NotCanonical::InvalidPercent);
    let (high, low) = (digit()?, digit()?);
    u8::try_from(high << 4 | low).map_err(|_| NotCanonical::InvalidPercent)
}

fn push_encoded(path: &mut String, byte: u8) {
    let digit = |value: u8| char::from_digit(u32::from(value), 16).unwrap_or('0').to_ascii_uppercase();
    path.extend(['%', digit(byte >> 4), digit(byte & 15)]);
}

/// The characters beyond ASCII of a canonical path. Its encoding was checked when it was made.
fn decoded_chars(path: &str) -> impl Iterator<Item = char> {
    let mut bytes = path.bytes();
    let decoded: Vec<u8> = std::iter::from_fn(move || match bytes.next()? {
        b'%' => hex_pair(&mut bytes).ok(),
        byte => Some(byte),
    })
    .collect();
    String::from_utf8_lossy(&decoded).chars().filter(|c| !c.is_ascii()).collect::<Vec<_>>().into_iter()
}

fn folds_to_ascii(c: char) -> bool {
    c.to_uppercase().chain(c.to_lowercase()).any(|folded| folded.is_ascii())
}

/// The parts of an absolute URL that the gate needs, borrowed from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Url<'a> {
    /// The host, with its port if the URL names one. The platform writes it in lower case.
    pub host: &'a str,
    /// The path as received; `/` if the URL has none.
    pub path: &'a str,
    /// What follows the first `?`, passed on as it is: rules do not look at it.
    pub query: Option<&'a str>,
}

impl<'a> Url<'a> {
    /// Splits an `http` or `https` URL as the platform gives it in `request.url`, which it has parsed already.
    #[must_use]
    pub fn split(url: &'a str) -> Option<Self> {
        let rest = url.strip_prefix("https://").or_else(|| url.strip_prefix("http://"))?;
        let rest = rest.split_once('#').map_or(rest, |(rest, _)| rest);
        let (rest, query) = match rest.split_once('?') {
            Some((rest, query)) => (rest, Some(query)),
            None => (rest, None),
        };
        let (authority, path) = match rest.find('/') {
            Some(at) => rest.split_at(at),
            None => (rest, "/"),
        };
        let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
        (!host.is_empty()).then_some(Self { host, path, query })
    }
}
