//! No spelling of a path reaches a protected route unpaid.
//!
//! A corpus of path variants meets route tables under default allow and default deny, for origins with and without letter
//! case. Whatever the gate forwards is read again by an origin that is as lenient as this test knows to make one, written
//! apart from the gate's code: it decodes until nothing changes, overlong UTF-8 included, takes `\` for `/`, cuts matrix
//! parameters, NUL, `?` and `#`, resolves dot segments, drops empty ones. The route that such an origin serves must be
//! the very route that the gate decided about.
//!
//! The corpus is also `tests/e2e/paths.json`, for real workerd. `UPDATE=1` writes that file anew.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test may stop")]

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};
use tollgate::domain::path::{CanonicalPath, Case, NotCanonical};
use tollgate::domain::route::{Method, Route, RouteTable, Routed, Unmatched};

/// Protected routes: literal, literal beside a cheaper parameter, a whole tree with its root, a literal behind a parameter
/// inside a cheaper tree.
const PROTECTED: [&str; 5] =
    ["/v1/reports", "/v1/reports/export", "/v1/admin/{*rest}", "/v1/files/{id}/keys", "/v1/skills/access"];
/// Cheaper routes that a spelling may not borrow.
const CHEAP: [&str; 3] = ["/v1/reports/{id}", "/v1/files/{*rest}", "/public/{*rest}"];
/// What an attacker wants, plainly spelled.
const TARGETS: [&str; 6] =
    ["/v1/reports", "/v1/reports/export", "/v1/admin", "/v1/admin/users", "/v1/files/42/keys", "/v1/skills/access"];

fn routes() -> Vec<Value> {
    let rule = |path: &&str, feature: &str| json!({ "method": "GET", "path": path, "feature": feature });
    PROTECTED.iter().map(|path| rule(path, "protected")).chain(CHEAP.iter().map(|path| rule(path, "cheap"))).collect()
}

fn table(unmatched: Unmatched, case: Case) -> RouteTable {
    let routes: Vec<Route> = routes().into_iter().map(|rule| serde_json::from_value(rule).unwrap()).collect();
    RouteTable::compile(routes, unmatched, case).unwrap()
}

// The corpus.

/// Each way to write one place of a path differently: `at` is the byte, `instead` what stands there.
fn replacements(target: &str) -> Vec<String> {
    const SLASHES: [&str; 36] = [
        "//",
        "///",
        "%2f",
        "%2F",
        "/%2f",
        "%252f",
        "%c0%af",
        "%e0%80%af",
        "%u002f",
        "\\",
        "%5c",
        "%5C",
        "/\\",
        "%255c",
        "/./",
        "/%2e/",
        "/.%2e/",
        "/%2e%2E/",
        "/../",
        "/x/../",
        "/x/%2e%2e/",
        "/x/.%2e/",
        "/x/..;/",
        "/;/",
        "/;a=b/",
        ";/",
        ";x=1/",
        "%3b/",
        "/%3b/",
        "/%00/",
        "%00/",
        "/%20/",
        "/.../",
        "/%252e%252e/",
        "/%c0%ae%c0%ae/",
        "/%09/",
    ];
    let mut out = Vec::new();
    for (at, byte) in target.bytes().enumerate() {
        let mut replace = |instead: &str| out.push(format!("{}{instead}{}", &target[..at], &target[at + 1..]));
        if byte == b'/' {
            for instead in SLASHES {
                replace(instead);
            }
            continue;
        }
        replace(&format!("%{byte:02x}"));
        replace(&format!("%{byte:02X}"));
        replace(&format!("%25{byte:02x}"));
        replace(&format!("%2525{byte:02x}"));
        replace(&format!("%u00{byte:02x}"));
        // Overlong UTF-8, in two and in three bytes.
        replace(&format!("%{:02x}%{:02x}", 0xc0 | byte >> 6, 0x80 | byte & 0x3f));
        replace(&format!("%e0%{:02x}%{:02x}", 0x80 | byte >> 6, 0x80 | byte & 0x3f));
        let letter = char::from(byte);
        for instead in ["%00", "%0d%0a", "%7f", "%e2%80%8b", ";x"] {
            replace(&format!("{letter}{instead}"));
        }
        if letter.is_ascii_alphabetic() {
            replace(&letter.to_ascii_uppercase().to_string());
            replace(&format!("%{:02x}", letter.to_ascii_uppercase() as u8));
        }
        match letter {
            'k' => replace("%e2%84%aa"),
            's' => replace("%c5%bf"),
            'i' => {
                replace("%c4%b1");
                replace("%c4%b0");
            }
            _ => {}
        }
    }
    for (double, ligature) in [("ss", "%c3%9f"), ("ss", "%e1%ba%9e"), ("fi", "%ef%ac%81")] {
        out.push(target.replace(double, ligature));
    }
    out.push(target.to_ascii_uppercase());
    out.push(target.bytes().map(|b| if b == b'/' { "/".into() } else { format!("%{b:02x}") }).collect());
    out.push(target.bytes().map(|b| if b == b'/' { "/".into() } else { format!("%25{b:02X}") }).collect());
    out
}

const PREFIXES: [&str; 14] = [
    "",
    "/",
    "//",
    "/.",
    "/%2e",
    "/%2f",
    "/..",
    "/%2e%2e",
    "/;x",
    "/public/..",
    "/public/%2e%2e",
    "/public/..%2f..",
    "\\",
    "/public%2f..",
];
const SUFFIXES: [&str; 34] = [
    "",
    "/",
    "//",
    "/.",
    "/%2e",
    "/..",
    "/x/..",
    "/x/%2e%2e",
    "/x%2f..",
    ";",
    ";x",
    ";x=1",
    "%3b",
    "%3bx",
    "/;x",
    "%00",
    "%00.html",
    "%20",
    ".",
    "%2e",
    "%3f",
    "%3fx",
    "%23",
    "%23x",
    "%0a",
    "%0d%0aX:1",
    "%09",
    "%7f",
    "%",
    "%zz",
    "%ff",
    "%c0%80",
    "%25",
    "\\",
];

/// Every variant: each replacement in place, prefixes and suffixes around each of a spread of them, and pairs.
fn corpus() -> Vec<String> {
    let mut paths = BTreeSet::new();
    for target in TARGETS {
        let replaced = replacements(target);
        for prefix in PREFIXES {
            for suffix in SUFFIXES {
                paths.insert(format!("{prefix}{target}{suffix}"));
            }
        }
        for (at, one) in replaced.iter().enumerate() {
            paths.insert(one.clone());
            // Strides that are prime to the lists meet every prefix and suffix without their full product.
            let (prefix, suffix) = (PREFIXES[at * 5 % PREFIXES.len()], SUFFIXES[at * 7 % SUFFIXES.len()]);
            paths.insert(format!("{prefix}{one}{suffix}"));
            // Two places at once, and a place written twice: the encoding of an encoding, case on top of it.
            if at % 4 == 0 {
                paths.insert(one.to_ascii_uppercase());
                paths.extend(replacements(one).into_iter().skip(at % 31).step_by(31));
            }
        }
    }
    paths.into_iter().collect()
}

// The origin.

/// As lenient a reading of a path as any origin is known to make. Knows nothing of the gate's.
fn lenient(path: &str, case: Case) -> String {
    let mut bytes = path.as_bytes().to_vec();
    loop {
        let decoded = decode(&bytes);
        if decoded == bytes {
            break;
        }
        bytes = decoded;
    }
    let mut text = String::from_utf8_lossy(&overlong(&bytes)).replace('\\', "/");
    if let Some(end) = text.find(['\0', '?', '#', '\r', '\n']) {
        text.truncate(end);
    }
    let mut segments: Vec<String> = Vec::new();
    for segment in text.split('/') {
        let mut segment = segment.split(';').next().unwrap().to_owned();
        segment.retain(|c| !c.is_control());
        if case == Case::Insensitive {
            segment = fold(segment.trim().trim_end_matches('.'), segment.trim());
        }
        match segment.as_str() {
            "" | "." => {}
            ".." => drop(segments.pop()),
            _ => segments.push(segment),
        }
    }
    format!("/{}", segments.join("/"))
}

/// Lower case as the most generous reader has it: by way of upper case, so that ligatures and `ß` come apart too. Keeps
/// segments of dots, which mean something else.
fn fold(trimmed: &str, whole: &str) -> String {
    let segment = if trimmed.is_empty() { whole } else { trimmed };
    segment.to_uppercase().replace('\u{130}', "I").to_lowercase()
}

fn decode(bytes: &[u8]) -> Vec<u8> {
    let hex = |from: usize, to: usize| {
        let digits = std::str::from_utf8(bytes.get(from..to)?).ok()?;
        digits.bytes().all(|b| b.is_ascii_hexdigit()).then(|| u32::from_str_radix(digits, 16).ok())?
    };
    let mut out = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        if bytes[at] == b'%'
            && let Some(byte) = hex(at + 1, at + 3)
        {
            out.push(u8::try_from(byte).unwrap());
            at += 3;
        } else if bytes[at..].starts_with(b"%u")
            && let Some(c) = hex(at + 2, at + 6).and_then(char::from_u32)
        {
            out.extend(c.to_string().bytes());
            at += 6;
        } else {
            out.push(bytes[at]);
            at += 1;
        }
    }
    out
}

/// Reads overlong forms of ASCII as the ASCII they stand for.
fn overlong(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        match bytes[at..] {
            [lead @ (0xc0 | 0xc1), next @ 0x80..0xc0, ..] => {
                out.push((lead & 1) << 6 | next & 0x3f);
                at += 2;
            }
            [0xe0, lead @ (0x80 | 0x81), next @ 0x80..0xc0, ..] => {
                out.push((lead & 1) << 6 | next & 0x3f);
                at += 3;
            }
            [byte, ..] => {
                out.push(byte);
                at += 1;
            }
            [] => break,
        }
    }
    out
}

/// The route that an origin serves for what it read, the most specific first.
fn served(read: &str) -> Option<&'static str> {
    let matches = |pattern: &str| {
        let (mut wanted, mut got) = (pattern[1..].split('/'), read[1..].split('/'));
        loop {
            match (wanted.next(), got.next()) {
                (None, None) => return true,
                (Some(rest), _) if rest.starts_with("{*") => return true,
                (Some(param), Some(_)) if param.starts_with('{') => {}
                (Some(literal), Some(segment)) if literal == segment => {}
                _ => return false,
            }
        }
    };
    // Written in this order: literals stand before the parameters that they are beside.
    PROTECTED.into_iter().chain(CHEAP).find(|pattern| matches(pattern))
}

// The proof.

/// What the gate did with one path.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Outcome {
    Refused(NotCanonical),
    Denied,
    /// Forwarded, decided by this rule (none: by the default).
    Forwarded(String, Option<String>),
}

fn gate(table: &RouteTable, raw: &str) -> Outcome {
    let path = match CanonicalPath::parse(raw) {
        Ok(path) => path,
        Err(why) => return Outcome::Refused(why),
    };
    let rule = match table.route(Method::Get, &path) {
        Routed::Rule(_, rule) => Some(rule.path.to_string()),
        Routed::Allowed => None,
        Routed::Denied => return Outcome::Denied,
        Routed::Refused(why) => return Outcome::Refused(why),
    };
    Outcome::Forwarded(path.as_str().to_owned(), rule)
}

#[test]
fn no_spelling_reaches_a_protected_route_as_another() {
    let corpus = corpus();
    assert!(corpus.len() >= 2000, "{} variants", corpus.len());
    let mut reasons: BTreeMap<NotCanonical, usize> = BTreeMap::new();
    for unmatched in Unmatched::ALL {
        for case in Case::ALL {
            let table = table(unmatched, case);
            let (mut paid, mut elsewhere) = (0, 0);
            for raw in &corpus {
                match gate(&table, raw) {
                    Outcome::Refused(why) => *reasons.entry(why).or_default() += 1,
                    Outcome::Denied => {
                        assert_eq!(unmatched, Unmatched::Deny, "{raw}");
                        elsewhere += 1;
                    }
                    Outcome::Forwarded(path, rule) => {
                        let read = lenient(&path, case);
                        let serves = served(&read);
                        assert_eq!(serves, rule.as_deref(), "{raw} was forwarded as {path}, and read as {read}");
                        if serves.is_some_and(|route| PROTECTED.contains(&route)) { paid += 1 } else { elsewhere += 1 }
                    }
                }
            }
            println!(
                "default {unmatched}, {case}: {} variants, {paid} paid, {elsewhere} to no protected route",
                corpus.len()
            );
            // The proof would be empty if everything were refused.
            assert!(paid > 200 && elsewhere > 50, "{paid} {elsewhere}");
        }
    }
    println!("refused: {reasons:?}");
    let unseen: Vec<_> = NotCanonical::ALL.into_iter().filter(|why| !reasons.contains_key(why)).collect();
    assert_eq!(unseen, [NotCanonical::TooLong], "the corpus exercises every other reason");
}

/// The control: gates that do less than canonicalise let many of the same paths through, so the corpus bites.
#[test]
fn the_corpus_defeats_a_gate_that_does_less() {
    let corpus = corpus();
    let raw_match = |path: &str| served(path).map(str::to_owned);
    let decodes_once = |path: &str| raw_match(&String::from_utf8_lossy(&decode(path.as_bytes())));
    for (name, bypasses) in
        [("matches the raw path", &raw_match as &dyn Fn(&str) -> Option<String>), ("decodes once", &decodes_once)]
    {
        for case in Case::ALL {
            let unpaid = corpus.iter().filter(|raw| {
                let serves = served(&lenient(raw, case));
                raw.starts_with('/')
                    && serves.is_some_and(|route| PROTECTED.contains(&route))
                    && bypasses(raw).as_deref() != serves
            });
            let unpaid = unpaid.count();
            println!("a gate that {name}, {case}: {unpaid} variants unpaid");
            assert!(unpaid > 500, "{name}: {unpaid}");
        }
    }
}

/// The origin of this test is as lenient as it says.
#[test]
fn the_lenient_origin_reads_every_trick() {
    for trick in [
        "//v1//reports/",
        "/v1%2freports",
        "/v1%252freports",
        "/v1\\reports",
        "/v1/%72eports",
        "/v1/%2572eports",
        "/v1/x/..;/reports",
        "/v1/reports;x=1",
        "/v1/reports%00.html",
        "/v1/reports%3fx",
        "/v1/reports%23",
        "/v1%c0%afreports",
        "/v1/%c1%b2eports",
        "/v1/%u0072eports",
        "/v1/./x/%2e%2e/reports",
        "/v1/reports%0d%0aX:1",
    ] {
        assert_eq!(lenient(trick, Case::Sensitive), "/v1/reports", "{trick}");
    }
    for trick in ["/V1/REPORTS", "/v1/report%c5%bf", "/v1/reports.", "/v1/reports%20"] {
        assert_eq!(lenient(trick, Case::Insensitive), "/v1/reports", "{trick}");
        assert_ne!(lenient(trick, Case::Sensitive), "/v1/reports", "{trick}");
    }
    for trick in ["/v1/%c5%bf%e2%84%aa%c4%b1lls/acce%c3%9f", "/v1/s%e2%84%aa%c4%b0lls/access"] {
        assert_eq!(lenient(trick, Case::Insensitive), "/v1/skills/access", "{trick}");
    }
}

/// `tests/e2e/paths.json` is this corpus and these rules.
#[test]
fn the_end_to_end_corpus_is_this_one() {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/e2e/paths.json");
    // A request line carries no other bytes, so only these can be sent to a server.
    let sent: Vec<String> = corpus().into_iter().filter(|path| path.starts_with('/')).collect();
    assert!(sent.iter().all(|path| path.bytes().all(|b| (0x21..0x7f).contains(&b))));
    let lines = |values: &[Value]| values.iter().map(Value::to_string).collect::<Vec<_>>().join(",\n");
    let paths: Vec<Value> = sent.into_iter().map(Value::from).collect();
    let text = format!("{{\"routes\":[\n{}\n],\"paths\":[\n{}\n]}}\n", lines(&routes()), lines(&paths));
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(file, &text).unwrap();
    }
    assert!(std::fs::read_to_string(file).unwrap_or_default() == text, "run again with UPDATE=1");
}
