//! Typed ids: who is meant, in one form that cannot be mistaken for another.
//!
//! Invariant: an id's text and its bits are one to one, so that two texts never name the same thing.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::closed::closed;
use super::time::UnixMillis;

/// Crockford's base 32 in lower case: no `i`, `l`, `o`, `u`, so ids survive being read aloud.
const ALPHABET: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";

closed! {
    /// Where a tenant's rows and its tenant object live, for ever: the first five bits of its id.
    pub enum Jurisdiction {
        /// No restriction: the platform places the tenant where it is used.
        Global = "global",
        /// The European Union.
        Eu = "eu",
        /// FedRAMP-compliant data centres.
        Fedramp = "fedramp",
    }
}

impl Jurisdiction {
    /// The letter that begins the ids of its tenants.
    #[must_use]
    pub const fn letter(self) -> char {
        match self {
            Self::Global => 'g',
            Self::Eu => 'e',
            Self::Fedramp => 'f',
        }
    }

    fn from_bits(bits: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|j| digit(j.letter() as u8) == Some(bits))
    }
}

/// The text or bits are not an id of the wanted kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InvalidId;

impl fmt::Display for InvalidId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not a valid id")
    }
}

impl std::error::Error for InvalidId {}

/// A tenant: 5 bits of jurisdiction, 43 bits of milliseconds since 1970 (enough until 2248), 32 random bits.
///
/// Its text is `ten_` and 16 digits of base 32, the first of them the jurisdiction's letter. Two tenants made in the same
/// millisecond collide once in 2^32; the directory's primary key then refuses the second and its maker draws again.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TenantId([u8; 10]);

impl TenantId {
    /// An id for a tenant made at `now` in `jurisdiction`.
    #[must_use]
    pub fn new(jurisdiction: Jurisdiction, now: UnixMillis, random: [u8; 4]) -> Self {
        let place = u128::from(digit(jurisdiction.letter() as u8).unwrap_or(0));
        let time = u128::from(now.0) & ((1 << 43) - 1);
        let bits = (place << 75) | (time << 32) | u128::from(u32::from_be_bytes(random));
        Self::from_bits(bits)
    }

    /// The id that these bytes carry.
    ///
    /// # Errors
    /// When they name no known jurisdiction.
    pub fn from_bytes(bytes: [u8; 10]) -> Result<Self, InvalidId> {
        Jurisdiction::from_bits(bytes[0] >> 3).map(|_| Self(bytes)).ok_or(InvalidId)
    }

    /// The 80 bits of the id.
    #[must_use]
    pub const fn to_bytes(self) -> [u8; 10] {
        self.0
    }

    /// The bits of the id that were random: 32 of them.
    #[must_use]
    pub const fn random(self) -> u32 {
        let [.., a, b, c, d] = self.0;
        u32::from_be_bytes([a, b, c, d])
    }

    /// Where this tenant lives.
    #[must_use]
    pub fn jurisdiction(self) -> Jurisdiction {
        Jurisdiction::from_bits(self.0[0] >> 3).unwrap_or(Jurisdiction::Global)
    }

    fn from_bits(bits: u128) -> Self {
        let mut bytes = [0; 10];
        bytes.copy_from_slice(&bits.to_be_bytes()[6..]);
        Self(bytes)
    }

    fn bits(self) -> u128 {
        self.0.iter().fold(0, |bits, byte| (bits << 8) | u128::from(*byte))
    }
}

impl FromStr for TenantId {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        let bits = from_base32(text.strip_prefix("ten_").ok_or(InvalidId)?, 16)?;
        Self::from_bytes(Self::from_bits(bits).0)
    }
}

impl TenantId {
    /// Its text: `fmt` costs more than the rest of an answer.
    #[must_use]
    pub fn text(self) -> IdText {
        IdText::of(*b"ten_", self.bits(), 16)
    }
}

impl fmt::Display for TenantId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text().as_str())
    }
}

/// An API key's public part: 45 random bits, unique within its tenant. Text: `key_` and 9 digits of base 32.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyId(u64);

impl KeyId {
    /// The bits an id has.
    pub const BITS: u32 = 45;

    /// An id of the low 45 bits of `random`.
    #[must_use]
    pub const fn new(random: u64) -> Self {
        Self(random & ((1 << Self::BITS) - 1))
    }

    /// The id as a number below 2^45.
    #[must_use]
    pub const fn bits(self) -> u64 {
        self.0
    }
}

impl FromStr for KeyId {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        let bits = from_base32(text.strip_prefix("key_").ok_or(InvalidId)?, 9)?;
        u64::try_from(bits).map(Self).map_err(|_| InvalidId)
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(IdText::of(*b"key_", self.0.into(), 9).as_str())
    }
}

/// One request, as its answer, its log lines and its audit records name it: 128 bits, the first 48 of them the time.
/// Text: `req_` and 26 digits of base 32.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(u128);

impl RequestId {
    /// An id for a request that arrived at `now`.
    #[must_use]
    pub const fn new(now: UnixMillis, random: u128) -> Self {
        Self(((now.0 as u128) << 80) | (random & ((1 << 80) - 1)))
    }
}

impl FromStr for RequestId {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        from_base32(text.strip_prefix("req_").ok_or(InvalidId)?, 26).map(Self)
    }
}

impl RequestId {
    /// Its text: `fmt` costs more than the rest of an answer.
    #[must_use]
    pub fn text(self) -> IdText {
        IdText::of(*b"req_", self.0, 26)
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text().as_str())
    }
}

/// The text of an id, in no memory of its own.
pub struct IdText {
    text: [u8; PREFIX + 26],
    used: usize,
}

/// How long what an id's text begins with is.
const PREFIX: usize = 4;

impl IdText {
    /// `prefix`, and the low `digits * 5` bits of `bits`, most significant first; at most 26 digits.
    fn of(prefix: [u8; PREFIX], mut bits: u128, digits: usize) -> Self {
        /// As many digits as 64 bits hold: shifting 128 bits for each digit takes wasm32 several times as long.
        const TOGETHER: usize = 12;
        const MASK: u128 = (1 << (5 * TOGETHER)) - 1;
        let mut text = [b'0'; PREFIX + 26];
        let used = PREFIX + digits;
        if let Some((before, digits)) = text.get_mut(..used).and_then(|text| text.split_first_chunk_mut()) {
            *before = prefix;
            for digits in digits.rchunks_mut(TOGETHER) {
                let mut part = u64::try_from(bits & MASK).unwrap_or_default();
                for digit in digits.iter_mut().rev() {
                    *digit = ALPHABET.get((part & 31) as usize).copied().unwrap_or(b'0');
                    part >>= 5;
                }
                bits >>= 5 * TOGETHER;
            }
        }
        Self { text, used }
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        self.text.get(..self.used).and_then(|text| std::str::from_utf8(text).ok()).unwrap_or_default()
    }
}

/// Reads exactly `digits` digits; refuses a value that 128 bits cannot hold.
fn from_base32(text: &str, digits: usize) -> Result<u128, InvalidId> {
    if text.len() != digits {
        return Err(InvalidId);
    }
    text.bytes().try_fold(0_u128, |bits, byte| {
        let value = digit(byte).ok_or(InvalidId)?;
        if bits >> 123 != 0 {
            return Err(InvalidId);
        }
        Ok((bits << 5) | u128::from(value))
    })
}

const fn digit(byte: u8) -> Option<u8> {
    // By the letters that the alphabet leaves out.
    match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'h' => Some(byte - b'a' + 10),
        b'j' | b'k' => Some(byte - b'j' + 18),
        b'm' | b'n' => Some(byte - b'm' + 20),
        b'p'..=b't' => Some(byte - b'p' + 22),
        b'v'..=b'z' => Some(byte - b'v' + 27),
        _ => None,
    }
}

/// `Debug` and serde for ids whose text is the whole truth.
macro_rules! id_as_text {
    ($($id:ty),*) => {$(
        impl fmt::Debug for $id {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl Serialize for $id {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $id {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    )*};
}

id_as_text!(TenantId, KeyId, RequestId);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_id_shows_its_jurisdiction_first() {
        let id = TenantId::new(Jurisdiction::Eu, UnixMillis(1_795_000_000_000), [1, 2, 3, 4]);

        assert!(id.to_string().starts_with("ten_e"));
        assert_eq!(id.jurisdiction(), Jurisdiction::Eu);
    }

    #[test]
    fn an_id_of_an_unknown_jurisdiction_is_refused() {
        assert_eq!("ten_z000000000000000".parse::<TenantId>(), Err(InvalidId));
        assert_eq!("ten_g00000000000000".parse::<TenantId>(), Err(InvalidId));
        assert_eq!("ten_G000000000000000".parse::<TenantId>(), Err(InvalidId));
    }

    proptest! {
        #[test]
        fn ids_and_their_texts_are_one_to_one(ms in 0_u64..(1 << 43), random: [u8; 4], key: u64, request: u128) {
            for place in Jurisdiction::ALL {
                let id = TenantId::new(place, UnixMillis(ms), random);
                prop_assert_eq!(id.to_string().parse(), Ok(id));
                prop_assert_eq!(TenantId::from_bytes(id.to_bytes()), Ok(id));
                prop_assert_eq!(id.jurisdiction(), place);
            }
            let key = KeyId::new(key);
            prop_assert_eq!(key.to_string().parse(), Ok(key));
            let request = RequestId::new(UnixMillis(ms), request);
            prop_assert_eq!(request.to_string().parse(), Ok(request));
        }
    }
}
