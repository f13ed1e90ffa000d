//! `RateLimit`, `RateLimit-Policy` (draft-ietf-httpapi-ratelimit-headers-11) and `Retry-After`.
//!
//! Invariant: [`write()`] is the one place that knows the draft's syntax, so that a rename there (one is proposed) is one
//! edit here. What it writes is a valid RFC 9651 list.

use super::push_number;
use crate::domain::name::LimitName;

/// The largest integer of a structured field: 15 digits.
const MAX_INTEGER: u64 = 999_999_999_999_999;

/// Which of the two fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field {
    /// What the limits are.
    Policy,
    /// What is left of them.
    Limit,
}

impl Field {
    /// Both fields.
    pub const ALL: [Self; 2] = [Self::Policy, Self::Limit];

    /// The header's name.
    #[must_use]
    pub const fn header(self) -> &'static str {
        match self {
            Self::Policy => "RateLimit-Policy",
            Self::Limit => "RateLimit",
        }
    }
}

/// A limit, as a client is shown it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shown<'a> {
    /// Its name, which by its type needs no escaping.
    pub name: &'a LimitName,
    /// Units per window.
    pub quota: u64,
    /// The window in seconds; 0 where it has none (a quota of a period that is not of fixed length).
    pub window_s: u64,
    /// Units that are left.
    pub remaining: u64,
    /// Seconds until more is left, where that is known.
    pub reset_s: Option<u64>,
}

/// Appends the value of `field` for these limits. Appends nothing for none: the header is then left out.
pub fn write<'a>(field: Field, limits: impl IntoIterator<Item = Shown<'a>>, out: &mut String) {
    for (place, limit) in limits.into_iter().enumerate() {
        out.push_str(if place == 0 { "\"" } else { ", \"" });
        out.push_str(limit.name.as_str());
        match field {
            Field::Policy => {
                push_parameter(out, "\";q=", limit.quota);
                // The draft wants w > 0 or no w.
                if limit.window_s > 0 {
                    push_parameter(out, ";w=", limit.window_s);
                }
            }
            Field::Limit => {
                push_parameter(out, "\";r=", limit.remaining);
                if let Some(reset_s) = limit.reset_s {
                    push_parameter(out, ";t=", reset_s);
                }
            }
        }
    }
}

/// The value of `Retry-After`: whole seconds, rounded up so that nobody comes too early, and at least 1.
#[must_use]
pub const fn retry_after_s(retry_after_ms: u64) -> u64 {
    match retry_after_ms.div_ceil(1000) {
        0 => 1,
        seconds => seconds,
    }
}

fn push_parameter(out: &mut String, name: &str, value: u64) {
    out.push_str(name);
    push_number(out, value.min(MAX_INTEGER));
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use sfv::{BareItem, ListEntry, Parser};

    fn name(text: &str) -> LimitName {
        text.parse().unwrap()
    }

    fn written(field: Field, limits: &[Shown<'_>]) -> String {
        let mut out = String::new();
        write(field, limits.iter().copied(), &mut out);
        out
    }

    #[test]
    fn the_fields_are_those_of_the_draft() {
        let (burst, daily) = (name("burst"), name("daily"));
        let limits = [
            Shown { name: &burst, quota: 100, window_s: 60, remaining: 50, reset_s: Some(30) },
            Shown { name: &daily, quota: 1000, window_s: 86_400, remaining: 912, reset_s: Some(40_211) },
        ];
        assert_eq!(written(Field::Policy, &limits), r#""burst";q=100;w=60, "daily";q=1000;w=86400"#);
        assert_eq!(written(Field::Limit, &limits), r#""burst";r=50;t=30, "daily";r=912;t=40211"#);
        assert_eq!(written(Field::Limit, &[]), "");
        assert_eq!(Field::ALL.map(Field::header), ["RateLimit-Policy", "RateLimit"]);
    }

    #[test]
    fn what_is_not_known_is_left_out() {
        let month = name("month");
        let limit = [Shown { name: &month, quota: 0, window_s: 0, remaining: 0, reset_s: None }];
        assert_eq!(written(Field::Policy, &limit), r#""month";q=0"#);
        assert_eq!(written(Field::Limit, &limit), r#""month";r=0"#);
    }

    #[test]
    fn nobody_is_told_to_come_back_too_early_or_at_once() {
        for (ms, seconds) in
            [(0, 1), (1, 1), (1000, 1), (1001, 2), (1999, 2), (2000, 2), (u64::MAX, u64::MAX / 1000 + 1)]
        {
            assert_eq!(retry_after_s(ms), seconds, "{ms}");
        }
    }

    proptest! {
        #[test]
        fn an_independent_parser_reads_what_was_meant(
            names in proptest::collection::vec("[A-Za-z0-9][A-Za-z0-9._-]{0,20}", 1..5),
            quota: u64, window_s in 0..100_000_u64, remaining: u64, reset_s in proptest::option::of(any::<u64>()),
        ) {
            let names: Vec<_> = names.iter().map(|text| name(text)).collect();
            let limits: Vec<_> =
                names.iter().map(|name| Shown { name, quota, window_s, remaining, reset_s }).collect();
            for field in Field::ALL {
                let list = Parser::new(&written(field, &limits)).parse::<sfv::List>().unwrap();
                prop_assert_eq!(list.len(), names.len());
                for (entry, name) in list.iter().zip(&names) {
                    let ListEntry::Item(item) = entry else { panic!("an inner list") };
                    prop_assert_eq!(item.bare_item.as_string().map(sfv::StringRef::as_str), Some(name.as_str()));
                    let wanted: Vec<(&str, u64)> = match field {
                        Field::Policy => [("q", quota)].into_iter().chain((window_s > 0).then_some(("w", window_s))).collect(),
                        Field::Limit => [("r", remaining)].into_iter().chain(reset_s.map(|t| ("t", t))).collect(),
                    };
                    let got: Vec<(&str, u64)> = item.params.iter().map(|(key, value)| match value {
                        BareItem::Integer(number) => (key.as_str(), u64::try_from(i64::from(*number)).unwrap()),
                        other => panic!("{other:?}"),
                    }).collect();
                    let wanted: Vec<_> = wanted.into_iter().map(|(key, value)| (key, value.min(MAX_INTEGER))).collect();
                    prop_assert_eq!(got, wanted);
                }
            }
        }
    }
}
