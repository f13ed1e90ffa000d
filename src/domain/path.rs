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

use super::closed::stored_as_name;

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

    /// The same, borrowed from this one.
    #[must_use]
    pub fn borrowed(&self) -> CanonicalPath<'_> {
        CanonicalPath(Cow::Borrowed(&self.0))
    }

    /// The same, to keep.
    #[must_use]
    pub fn to_owned(&self) -> CanonicalPath<'static> {
        CanonicalPath(Cow::Owned(self.as_str().to_owned()))
    }

    /// The first segment, and the path after it: `/gate/api/v1` is `gate` and `/api/v1`. None of `/` itself.
    #[must_use]
    pub fn split_first(&self) -> Option<(&str, CanonicalPath<'_>)> {
        let rest = self.0.get(1..).filter(|rest| !rest.is_empty())?;
        let end = rest.find('/').unwrap_or(rest.len());
        let (first, rest) = rest.split_at(end);
        Some((first, CanonicalPath(Cow::Borrowed(if rest.is_empty() { "/" } else { rest }))))
    }

    /// The path after its first segment, if that is `first`: of `/gate/api/v1` and `gate`, `/api/v1`. Borrows what is
    /// borrowed.
    #[must_use]
    pub fn strip_first(&self, first: &str) -> Option<CanonicalPath<'a>> {
        let rest = |path: &str| {
            let rest = path.strip_prefix('/')?.strip_prefix(first)?.len();
            (rest == 0 || path.as_bytes().get(path.len() - rest) == Some(&b'/')).then_some(path.len() - rest)
        };
        let at = rest(&self.0)?;
        Some(CanonicalPath(match &self.0 {
            Cow::Borrowed(path) => Cow::Borrowed(path.get(at..).filter(|path| !path.is_empty()).unwrap_or("/")),
            Cow::Owned(path) => Cow::Owned(path.get(at..).filter(|path| !path.is_empty()).unwrap_or("/").to_owned()),
        }))
    }

    /// Its segments in order, percent-encoded as they are forwarded. A slash at the end adds none.
    #[must_use]
    pub fn segments(&self) -> Segments<'_> {
        Segments(self.0.trim_matches('/'))
    }

    /// Whether it has as many segments as `pattern`, and the same ones but where that has one in braces.
    ///
    /// ```
    /// # use tollgate::domain::path::CanonicalPath;
    /// let path = CanonicalPath::parse("/v1/tenants/7/keys").unwrap();
    /// assert!(path.fits("/v1/tenants/{id}/keys") && !path.fits("/v1/tenants/{id}"));
    /// assert_eq!(path.part("/v1/tenants/{id}/keys", "id"), Some("7"));
    /// ```
    #[must_use]
    pub fn fits(&self, pattern: &str) -> bool {
        let mut segments = self.segments();
        let mut parts = Segments(pattern.trim_matches('/'));
        loop {
            match (parts.next(), segments.next()) {
                (None, None) => return true,
                (Some(part), Some(segment)) if part == segment || part.starts_with('{') => {}
                _ => return false,
            }
        }
    }

    /// The segment that stands where `pattern` has `{name}`.
    #[must_use]
    pub fn part(&self, pattern: &str, name: &str) -> Option<&str> {
        let parts = Segments(pattern.trim_matches('/')).zip(self.segments());
        let is_named = |part: &str| part.strip_prefix('{').and_then(|part| part.strip_suffix('}')) == Some(name);
        parts.filter(|(part, _)| is_named(part)).map(|(_, segment)| segment).next()
    }

    /// The same, borrowing nothing.
    #[must_use]
    pub fn into_owned(self) -> CanonicalPath<'static> {
        CanonicalPath(Cow::Owned(self.0.into_owned()))
    }

    /// Whether an origin without letter case might read a segment as another one than ASCII folding says:
    ///
    /// - a character beyond ASCII whose upper or lower case has an ASCII letter (the Kelvin sign is a `k`, `ß` is `SS`);
    /// - a dot at the end, or white space at either end, which the file systems of such origins drop.
    ///
    /// An origin that maps other characters to ASCII ("best fit", compatibility forms) needs rules that do not rest on
    /// literals, or default deny.
    #[must_use]
    pub fn ambiguous_without_case(&self) -> bool {
        self.segments().any(|segment| {
            segment.ends_with('.')
                || segment.contains('%') && {
                    let text = decode(segment);
                    text.trim() != text || text.chars().any(folds_to_ascii)
                }
        })
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
        let (first, rest) = cut(self.0, b'/').unwrap_or((self.0, ""));
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
        b'A'..=b'Z'
        | b'a'..=b'z'
        | b'0'..=b'9'
        | b'-'
        | b'.'
        | b'_'
        | b'~'
        | b'!'
        | b'$'
        | b'\''
        | b'('
        | b')'
        | b'*'
        | b':'
        | b'@' => Byte::Plain,
        b'&' | b'+' | b',' | b'=' => Byte::AsCame,
        0x00..=0x20 | b'"' | b'<' | b'>' | b'[' | b']' | b'^' | b'`' | b'{' | b'|' | b'}' | 0x7f.. => Byte::Encoded,
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
        // Those beyond ASCII too: U+0085 ends a line for some readers.
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

/// What a canonical segment stands for. Its encoding was checked when it was made.
fn decode(segment: &str) -> String {
    let mut bytes = segment.bytes();
    let decoded = std::iter::from_fn(|| match bytes.next()? {
        b'%' => hex_pair(&mut bytes).ok(),
        byte => Some(byte),
    });
    String::from_utf8_lossy(&decoded.collect::<Vec<_>>()).into_owned()
}

/// Whether folding the case of this character beyond ASCII, in either direction, gives an ASCII one. They are named here since
/// Unicode's tables of letter case, which say the same, would be a twentieth of the Worker.
const fn folds_to_ascii(c: char) -> bool {
    matches!(c, 'ß' | 'İ' | 'ı' | 'ŉ' | 'ſ' | 'ǰ' | 'ẖ' | 'ẗ' | 'ẘ' | 'ẙ' | 'ẚ' | '\u{212a}' | '\u{fb00}'..='\u{fb06}')
}

/// What is before and behind the first `byte` of `text`, which is an ASCII one. What the library searches with is made for pages:
/// in a line it costs a tenth of a decision.
#[must_use]
pub fn cut(text: &str, byte: u8) -> Option<(&str, &str)> {
    around(text, text.as_bytes().iter().position(|each| *each == byte)?)
}

/// The same around the last one.
#[must_use]
pub fn cut_last(text: &str, byte: u8) -> Option<(&str, &str)> {
    around(text, text.as_bytes().iter().rposition(|each| *each == byte)?)
}

fn around(text: &str, at: usize) -> Option<(&str, &str)> {
    Some((text.get(..at)?, text.get(at + 1..)?))
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
        let rest = cut(rest, b'#').map_or(rest, |(rest, _)| rest);
        let (rest, query) = cut(rest, b'?').map_or((rest, None), |(rest, query)| (rest, Some(query)));
        let authority = cut(rest, b'/').map_or(rest, |(authority, _)| authority);
        let path = rest.get(authority.len()..).filter(|path| !path.is_empty()).unwrap_or("/");
        let host = cut_last(authority, b'@').map_or(authority, |(_, host)| host);
        (!host.is_empty()).then_some(Self { host, path, query })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn canonical(raw: &str) -> Result<String, NotCanonical> {
        CanonicalPath::parse(raw).map(|path| path.as_str().to_owned())
    }

    #[test]
    fn the_characters_that_fold_to_ascii_are_those_of_unicode() {
        for c in '\u{80}'..=char::MAX {
            let folds = c.to_uppercase().chain(c.to_lowercase()).any(|folded| folded.is_ascii());
            assert_eq!(folds_to_ascii(c), folds, "{c:?}");
        }
    }

    #[test]
    fn every_reason_round_trips() {
        for why in NotCanonical::ALL {
            assert_eq!(why.name().parse(), Ok(why));
            assert!(why.detail().ends_with('.'));
        }
        for case in Case::ALL {
            assert_eq!(case.name().parse(), Ok(case));
        }
        assert!(NotCanonical::TooLong.detail().contains(&MAX_LEN.to_string()));
    }

    #[test]
    fn one_route_has_one_spelling() {
        for (raw, wanted) in [
            ("/", "/"),
            ("//", "/"),
            ("/v1/reports", "/v1/reports"),
            ("/v1/reports/", "/v1/reports/"),
            ("//v1///reports//", "/v1/reports/"),
            ("/v1/%72eports", "/v1/reports"),
            ("/%7euser/%2d%2E%5f", "/~user/-._"),
            ("/%21%24%27%28%29%2a%3a%40", "/!$'()*:@"),
            ("/a%2cb%2bc%26d%3de", "/a%2Cb%2Bc%26d%3De"),
            ("/a,b+c&d=e", "/a,b+c&d=e"),
            ("/a b/%20", "/a%20b/%20"),
            ("/ü/%c3%bc", "/%C3%BC/%C3%BC"),
            ("/[x]|{y}^\"<>`", "/%5Bx%5D%7C%7By%7D%5E%22%3C%3E%60"),
            ("/v1.2/..a/a..", "/v1.2/..a/a.."),
        ] {
            assert_eq!(canonical(raw).as_deref(), Ok(wanted), "{raw}");
        }
    }

    #[test]
    fn what_could_be_read_twice_is_refused_by_a_stable_reason() {
        use NotCanonical as No;
        for (raw, why) in [
            ("", No::NotAbsolute),
            ("v1", No::NotAbsolute),
            ("%2fv1", No::NotAbsolute),
            ("/a%", No::InvalidPercent),
            ("/a%4", No::InvalidPercent),
            ("/a%zz", No::InvalidPercent),
            ("/a%+4", No::InvalidPercent),
            ("/a%4/1", No::InvalidPercent),
            ("/a%u0061", No::InvalidPercent),
            ("/%ff", No::InvalidUtf8),
            ("/%c0%af", No::InvalidUtf8),
            ("/%c1%a1", No::InvalidUtf8),
            ("/%e2%82", No::InvalidUtf8),
            ("/%ed%a0%80", No::InvalidUtf8),
            ("/a%00", No::Control),
            ("/a\0", No::Control),
            ("/a%0d%0aX:1", No::Control),
            ("/a\t", No::Control),
            ("/%7f", No::Control),
            ("/%c2%85", No::Control),
            ("/.", No::DotSegment),
            ("/a/..", No::DotSegment),
            ("/a/%2e%2E/b", No::DotSegment),
            ("/a/.%2e/b", No::DotSegment),
            ("/.../b", No::DotSegment),
            ("/a%2fb", No::EncodedSlash),
            ("/a%2Fb", No::EncodedSlash),
            ("/a\\b", No::Backslash),
            ("/a%5cb", No::Backslash),
            ("/a%25b", No::EncodedPercent),
            ("/%2572eports", No::EncodedPercent),
            ("/a;x=1", No::Semicolon),
            ("/a%3bx", No::Semicolon),
            ("/a?b", No::Delimiter),
            ("/a%3fb", No::Delimiter),
            ("/a#b", No::Delimiter),
            ("/a%23b", No::Delimiter),
        ] {
            assert_eq!(canonical(raw), Err(why), "{raw:?}");
        }
        assert!(canonical(&format!("/{}", "a".repeat(MAX_LEN - 1))).is_ok());
        assert_eq!(canonical(&format!("/{}", "a".repeat(MAX_LEN))), Err(No::TooLong));
    }

    #[test]
    fn the_usual_path_is_not_copied() {
        for raw in ["/", "/v1/reports/42", "/v1/reports/", "/a,b/.well-known/x..y", "/%20/%C3%BC"] {
            assert!(CanonicalPath::parse(raw).unwrap().is_borrowed(), "{raw}");
        }
        for raw in ["//", "/%61", "/%c3%bc"] {
            assert!(!CanonicalPath::parse(raw).unwrap().is_borrowed(), "{raw}");
        }
    }

    #[test]
    fn a_prefix_comes_off_segment_by_segment() {
        let path = CanonicalPath::parse("/gate/api/v1/").unwrap();
        let (gate, rest) = path.split_first().unwrap();
        let (api, rest) = rest.split_first().unwrap();
        assert_eq!((gate, api, rest.as_str()), ("gate", "api", "/v1/"));
        let (_, rest) = rest.split_first().unwrap();
        assert_eq!(rest.as_str(), "/");
        assert!(rest.split_first().is_none());
    }

    #[test]
    fn folding_beyond_ascii_is_noticed() {
        for raw in [
            "/%e2%84%aaeys",
            "/re%c5%bf",
            "/%c4%b1tems",
            "/%c4%b0tems",
            "/acce%c3%9f",
            "/%ef%ac%81les",
            "/a.",
            "/a%20",
            "/%20a/b",
            "/a%c2%a0",
        ] {
            assert!(CanonicalPath::parse(raw).unwrap().ambiguous_without_case(), "{raw}");
        }
        for raw in ["/v1/reports", "/J%c3%bcrgen", "/%e6%97%a5", "/a%20b", "/.a"] {
            assert!(!CanonicalPath::parse(raw).unwrap().ambiguous_without_case(), "{raw}");
        }
    }

    #[test]
    fn a_url_is_split_without_a_copy() {
        for (url, host, path, query) in [
            ("https://api.example/v1/x?a=1?b#c?d", "api.example", "/v1/x", Some("a=1?b")),
            ("http://localhost:8787/gate//x", "localhost:8787", "/gate//x", None),
            ("https://[::1]:80?x=/y@z", "[::1]:80", "/", Some("x=/y@z")),
            ("https://a", "a", "/", None),
            ("https://a/?", "a", "/", Some("")),
            ("https://u:p@a/@b", "a", "/@b", None),
        ] {
            assert_eq!(Url::split(url), Some(Url { host, path, query }), "{url}");
        }
        for bad in ["", "/v1", "ftp://a/b", "https:///x", "https://", "HTTPS://a/"] {
            assert_eq!(Url::split(bad), None, "{bad}");
        }
    }

    /// Paths of the bytes that matter, far more often than chance would.
    fn paths() -> impl Strategy<Value = String> {
        let piece = prop_oneof![
            8 => "[a-zA-Z0-9._~-]{1,3}",
            4 => "/{1,3}",
            4 => "%[0-9a-fA-F]{2}",
            2 => "[!-~]",
            1 => "%c3%[89abAB][0-9a-f]",
            1 => any::<char>().prop_map(|c| c.to_string()),
            1 => Just("%2e".to_owned()),
        ];
        proptest::collection::vec(piece, 0..12).prop_map(|pieces| format!("/{}", pieces.concat()))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4096))]

        #[test]
        fn canonical_is_canonical(raw in paths()) {
            if let Ok(once) = CanonicalPath::parse(&raw) {
                let twice = CanonicalPath::parse(once.as_str());
                prop_assert_eq!(twice.as_ref().map(CanonicalPath::as_str), Ok(once.as_str()));
                prop_assert!(twice.unwrap().is_borrowed());
            }
        }

        #[test]
        fn the_glance_and_the_long_way_agree(raw in paths()) {
            if is_plainly_canonical(raw.as_bytes()) {
                prop_assert_eq!(canonicalise(raw.as_bytes()), Ok(raw));
            }
        }

        #[test]
        fn what_is_accepted_has_nothing_left_to_read(raw in paths()) {
            if let Ok(path) = CanonicalPath::parse(&raw) {
                let path = path.as_str();
                prop_assert!(path.bytes().all(|b| (0x21..0x7f).contains(&b)));
                prop_assert!(!path.contains("//") && !path.contains([';', '\\', '?', '#', '"']));
                for after in path.split('%').skip(1) {
                    let byte = u8::from_str_radix(&after[..2], 16).unwrap();
                    prop_assert_eq!(&after[..2], after[..2].to_ascii_uppercase());
                    prop_assert!(!byte.is_ascii_alphanumeric() && !b"-._~/\\%;?#".contains(&byte));
                }
                prop_assert!(CanonicalPath::parse(path).unwrap().segments().all(|s| s.bytes().any(|b| b != b'.')));
            }
        }

        #[test]
        fn no_input_panics(raw in ".{0,64}") {
            let _ = CanonicalPath::parse(&raw).map(|path| path.ambiguous_without_case());
            let _ = Url::split(&raw);
        }
    }
}
