//! Closed sets: enums whose members each have one name, in JSON, in tables and in headers.
//!
//! Invariant: a member and its name are one to one, and are written in one place.

use std::fmt;

/// The text names no member of the closed set that it should.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unknown;

impl fmt::Display for Unknown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not a known name")
    }
}

impl std::error::Error for Unknown {}

/// Display, parsing and serde for an enum with `ALL` and `name()`.
macro_rules! stored_as_name {
    ($($kind:ty),*) => {$(
        impl ::std::fmt::Display for $kind {
            fn fmt(&self, f: &mut ::std::fmt::Formatter<'_>) -> ::std::fmt::Result {
                f.write_str(self.name())
            }
        }

        impl ::std::str::FromStr for $kind {
            type Err = $crate::domain::closed::Unknown;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                Self::ALL.into_iter().find(|it| it.name() == text).ok_or($crate::domain::closed::Unknown)
            }
        }

        impl ::serde::Serialize for $kind {
            fn serialize<S: ::serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.name())
            }
        }

        impl<'de> ::serde::Deserialize<'de> for $kind {
            fn deserialize<D: ::serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = <::std::borrow::Cow<'de, str> as ::serde::Deserialize>::deserialize(deserializer)?;
                text.parse().map_err(|_| {
                    let known: Vec<_> = Self::ALL.iter().map(|it| it.name()).collect();
                    ::serde::de::Error::custom(format_args!("must be one of {}", known.join(", ")))
                })
            }
        }
    )*};
}
pub(crate) use stored_as_name;

/// An enum, each member with its name.
macro_rules! closed {
    ($(#[$doc:meta])* $vis:vis enum $set:ident { $($(#[$each:meta])* $member:ident = $name:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        $vis enum $set {
            $($(#[$each])* $member,)+
        }

        impl $set {
            /// Every member.
            pub const ALL: [Self; [$($name),+].len()] = [$(Self::$member),+];

            /// Its name, which is its stored form.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$member => $name,)+
                }
            }
        }

        $crate::domain::closed::stored_as_name!($set);
    };
}
pub(crate) use closed;
