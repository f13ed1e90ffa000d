//! Names that an operator chooses: of features, plans, meters, limits, origins.
//!
//! Invariant: a name is 1 to 128 characters of `A-Z a-z 0-9 . _ -` and begins with a letter or digit, so that it is safe
//! in a URL, a header, a KV key and a log line without escaping.

use std::borrow::{Borrow, Cow};
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// The text is no name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InvalidName;

impl fmt::Display for InvalidName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("must be 1 to 128 characters of A-Z, a-z, 0-9, '.', '_' and '-', beginning with a letter or digit")
    }
}

impl std::error::Error for InvalidName {}

/// The most characters a name has.
const MAX_LEN: usize = 128;
const COUNT: &str = "count.";

fn is_name(text: &str) -> bool {
    text.len() <= MAX_LEN
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
}

macro_rules! names {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {$(
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Arc<str>);

        impl $name {
            /// The name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = InvalidName;

            fn from_str(text: &str) -> Result<Self, InvalidName> {
                if is_name(text) { Ok(Self(text.into())) } else { Err(InvalidName) }
            }
        }

        impl Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                Cow::<'de, str>::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
            }
        }
    )*};
}

names! {
    /// The name of a feature: something a plan can switch on.
    FeatureName,
    /// The name of a plan.
    PlanName,
    /// The name of a meter: what usage is counted under.
    MeterName,
    /// The name of a limit within its plan.
    LimitName,
    /// The name of an origin: an API that the gate protects.
    OriginName,
    /// The name of a shard: one D1 database of tenant-owned rows.
    ShardName,
    /// A tenant's own short name, unique at its operator.
    Slug,
    /// A permission that an API key carries.
    Scope,
}

impl LimitName {
    /// Where use of a meter is counted that no limit bounds: `count.` and as much of its name as a name may hold.
    #[must_use]
    pub fn for_count_of(meter: &MeterName) -> Self {
        let room = MAX_LEN - COUNT.len();
        let name = meter.as_str().get(..room).unwrap_or(meter.as_str());
        Self(format!("{COUNT}{name}").into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_needs_no_escaping_anywhere() {
        for good in ["a", "pdf-export", "Team.Seats_2", "0", &"x".repeat(128)] {
            assert!(good.parse::<FeatureName>().is_ok(), "{good}");
        }
        for bad in ["", ".", "-a", "a b", "a/b", "ä", "a\n", "%61", &"x".repeat(129)] {
            assert!(bad.parse::<FeatureName>().is_err(), "{bad}");
        }
    }
}
