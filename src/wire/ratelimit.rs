//! `RateLimit`, `RateLimit-Policy` (draft-ietf-httpapi-ratelimit-headers-11) and `Retry-After`.
//!
//! Invariant: [`write()`] is the one place that knows the draft's syntax, so that a rename there (one is proposed) is one
//! edit here. What it writes is a valid RFC 9651 list.

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

/// Digits by hand: this runs for every answer, and `fmt` costs more than the rest of it.
fn push_parameter(out: &mut String, name: &str, value: u64) {
    out.push_str(name);
    let mut value = value.min(MAX_INTEGER);
    let mut digits = ['0'; 15];
    let mut first = digits.len();
    for (place, digit) in digits.iter_mut().enumerate().rev() {
        *digit = char::from(b'0' + u8::try_from(value % 10).unwrap_or(0));
        (first, value) = (place, value / 10);
        if value == 0 {
            break;
        }
    }
    out.extend(digits.iter().skip(first));
}
