//! API keys: a caller's credential, which says by itself whose it is and proves that Tollgate made it.
//!
//! Invariant: a key that [`KeyRing::verify`] accepts was minted with a key of that ring, so an invented key is refused
//! before any lookup. What is stored and compared afterwards is its SHA-256 alone: with 128 random bits inside, a slow
//! hash would only add latency.
//!
//! Text: `tg_live_` or `tg_test_`, then 55 characters of base 62, which are five blocks of 11 for 8 bytes each:
//!
//! ```text
//! tenant id (10) | key id (6) | secret (16) | MAC (8) = first 64 bits of HMAC-SHA256(prefix | the 32 bytes before)
//! ```

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, KeyInit, Mac};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::closed::closed;
use super::id::{KeyId, TenantId};

closed! {
    /// Whether use is billed (`live`) or only tried (`test`): the same checks, metered apart.
    #[derive(Default)]
    pub enum Mode {
        /// Counted and billed.
        #[default]
        Live = "live",
        /// Counted apart, never billed.
        Test = "test",
    }
}

impl Mode {
    /// What begins the text of a key of this mode.
    #[must_use]
    pub const fn prefix(self) -> &'static str {
        match self {
            Self::Live => "tg_live_",
            Self::Test => "tg_test_",
        }
    }
}

const SECRET: usize = 16;
const SIGNED: usize = 10 + 6 + SECRET;
const BYTES: usize = SIGNED + 8;
const BLOCK: usize = 11;

/// A well-formed API key; whether Tollgate made it is for [`KeyRing::verify`] to say.
#[derive(Clone, PartialEq, Eq)]
pub struct ApiKey {
    mode: Mode,
    bytes: [u8; BYTES],
}

/// The SHA-256 of a key's text: all that is ever stored of it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyHash([u8; 32]);

/// The text is no API key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InvalidApiKey;

impl fmt::Display for InvalidApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not an API key of this service")
    }
}

impl std::error::Error for InvalidApiKey {}

impl ApiKey {
    /// The length of every key's text.
    pub const TEXT_LEN: usize = 8 + BYTES / 8 * BLOCK;

    /// The tenant that the key claims.
    ///
    /// # Errors
    /// When the claimed bits are no tenant id; a key that Tollgate made never is.
    pub fn tenant(&self) -> Result<TenantId, InvalidApiKey> {
        let mut id = [0; 10];
        id.copy_from_slice(&self.bytes[..10]);
        TenantId::from_bytes(id).map_err(|_| InvalidApiKey)
    }

    /// The key's public part.
    #[must_use]
    pub fn id(&self) -> KeyId {
        KeyId::new(self.bytes[10..16].iter().fold(0, |bits, byte| (bits << 8) | u64::from(*byte)))
    }

    /// Live or test.
    #[must_use]
    pub const fn mode(&self) -> Mode {
        self.mode
    }

    /// The text: to be shown once, and never logged.
    #[must_use]
    pub fn reveal(&self) -> String {
        let mut text = String::with_capacity(Self::TEXT_LEN);
        text.push_str(self.mode.prefix());
        for block in self.bytes.chunks_exact(8) {
            let mut value = block.iter().fold(0_u64, |bits, byte| (bits << 8) | u64::from(*byte));
            let mut digits = ['0'; BLOCK];
            for digit in digits.iter_mut().rev() {
                *digit = ALPHABET.get((value % 62) as usize).map_or('0', |digit| char::from(*digit));
                value /= 62;
            }
            text.extend(digits);
        }
        text
    }

    /// What is stored in place of the key.
    #[must_use]
    pub fn hash(&self) -> KeyHash {
        KeyHash::of(&self.reveal())
    }
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ApiKey({}, secret withheld)", self.id())
    }
}

const ALPHABET: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// The value of a base 62 digit.
const fn digit(byte: u8) -> Option<u8> {
    match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'A'..=b'Z' => Some(byte - b'A' + 10),
        b'a'..=b'z' => Some(byte - b'a' + 36),
        _ => None,
    }
}

impl FromStr for ApiKey {
    type Err = InvalidApiKey;

    fn from_str(text: &str) -> Result<Self, InvalidApiKey> {
        if text.len() != Self::TEXT_LEN {
            return Err(InvalidApiKey);
        }
        let mode = Mode::ALL.into_iter().find(|mode| text.starts_with(mode.prefix())).ok_or(InvalidApiKey)?;
        let digits = text.as_bytes().get(mode.prefix().len()..).ok_or(InvalidApiKey)?;
        let mut bytes = [0; BYTES];
        for (out, block) in bytes.chunks_exact_mut(8).zip(digits.chunks_exact(BLOCK)) {
            let mut value = 0_u64;
            for &byte in block {
                let digit = digit(byte).map(u64::from).ok_or(InvalidApiKey)?;
                // 62^11 exceeds 2^64: a block past it would be a second text for the same bytes. Compared, because wasm32 has no
                // product of 128 bits, which `checked_mul` is made of.
                if value > u64::MAX / 62 {
                    return Err(InvalidApiKey);
                }
                value = (value * 62).checked_add(digit).ok_or(InvalidApiKey)?;
            }
            out.copy_from_slice(&value.to_be_bytes());
        }
        Ok(Self { mode, bytes })
    }
}

impl KeyHash {
    /// The hash of a key's text.
    #[must_use]
    pub fn of(text: &str) -> Self {
        Self(Sha256::digest(text.as_bytes()).into())
    }

    /// The 32 bytes.
    #[must_use]
    pub const fn to_bytes(self) -> [u8; 32] {
        self.0
    }
}

impl FromStr for KeyHash {
    type Err = InvalidApiKey;

    fn from_str(text: &str) -> Result<Self, InvalidApiKey> {
        let mut bytes = [0; 32];
        let decoded = URL_SAFE_NO_PAD.decode_slice(text, &mut bytes).map_err(|_| InvalidApiKey)?;
        if decoded == 32 { Ok(Self(bytes)) } else { Err(InvalidApiKey) }
    }
}

impl fmt::Display for KeyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&URL_SAFE_NO_PAD.encode(self.0))
    }
}

impl fmt::Debug for KeyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for KeyHash {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for KeyHash {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        std::borrow::Cow::<'de, str>::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// The secrets that sign API keys, newest first: new keys are made with the first, all of them are accepted.
///
/// A ring keeps a secret for as long as any key made with it is in use. It holds keyed states, not the secrets, so that a
/// verification costs two compressions of SHA-256 instead of four.
#[derive(Clone)]
pub struct KeyRing(Vec<Hmac<Sha256>>);

impl KeyRing {
    /// A ring of these secrets, newest first.
    ///
    /// # Errors
    /// When there is none, or one is shorter than 32 bytes.
    pub fn new<'a>(secrets: impl IntoIterator<Item = &'a [u8]>) -> Result<Self, WeakSecret> {
        let states = secrets
            .into_iter()
            .map(|secret| {
                if secret.len() < 32 {
                    return Err(WeakSecret);
                }
                Hmac::new_from_slice(secret).map_err(|_| WeakSecret)
            })
            .collect::<Result<Vec<_>, _>>()?;
        if states.is_empty() { Err(WeakSecret) } else { Ok(Self(states)) }
    }

    /// A new key of `tenant`.
    #[must_use]
    pub fn mint(&self, mode: Mode, tenant: TenantId, id: KeyId, secret: [u8; SECRET]) -> ApiKey {
        let mut bytes = [0; BYTES];
        bytes[..10].copy_from_slice(&tenant.to_bytes());
        bytes[10..16].copy_from_slice(&id.bits().to_be_bytes()[2..]);
        bytes[16..SIGNED].copy_from_slice(&secret);
        if let Some(newest) = self.0.first() {
            let mac = Self::mac(newest, mode, &bytes).finalize().into_bytes();
            bytes[SIGNED..].iter_mut().zip(mac).for_each(|(byte, mac)| *byte = mac);
        }
        ApiKey { mode, bytes }
    }

    /// Whether one of the ring's secrets made this key. Compares in constant time.
    #[must_use]
    pub fn verify(&self, key: &ApiKey) -> bool {
        self.0
            .iter()
            .any(|state| Self::mac(state, key.mode, &key.bytes).verify_truncated_left(&key.bytes[SIGNED..]).is_ok())
    }

    fn mac(state: &Hmac<Sha256>, mode: Mode, bytes: &[u8; BYTES]) -> Hmac<Sha256> {
        let mut mac = state.clone();
        mac.update(mode.prefix().as_bytes());
        mac.update(&bytes[..SIGNED]);
        mac
    }
}

impl fmt::Debug for KeyRing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyRing({} secrets withheld)", self.0.len())
    }
}

/// A secret is missing or shorter than 32 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WeakSecret;

impl fmt::Display for WeakSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a secret of at least 32 bytes is required")
    }
}

impl std::error::Error for WeakSecret {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::id::Jurisdiction;
    use crate::domain::time::UnixMillis;
    use proptest::prelude::*;

    fn ring() -> KeyRing {
        KeyRing::new([&[7_u8; 32][..]]).unwrap()
    }

    fn key(mode: Mode, secret: [u8; 16]) -> ApiKey {
        let tenant = TenantId::new(Jurisdiction::Eu, UnixMillis(1_795_000_000_000), [1, 2, 3, 4]);
        ring().mint(mode, tenant, KeyId::new(99), secret)
    }

    #[test]
    fn a_keys_text_is_pinned() {
        // Keys live in customers' vaults: a change here locks every one of them out.
        assert_eq!(key(Mode::Live, [9; 16]).reveal(), include_str!("../../tests/golden/api_key.txt").trim_end());
    }

    #[test]
    fn a_secret_that_is_too_short_makes_no_ring() {
        assert_eq!(KeyRing::new([&[7_u8; 31][..]]).unwrap_err(), WeakSecret);
        assert_eq!(KeyRing::new([]).unwrap_err(), WeakSecret);
    }

    #[test]
    fn a_key_of_the_previous_secret_is_still_accepted() {
        let rotated = KeyRing::new([&[8_u8; 32][..], &[7; 32]]).unwrap();
        assert!(rotated.verify(&key(Mode::Live, [9; 16])));
        assert!(!KeyRing::new([&[8_u8; 32][..]]).unwrap().verify(&key(Mode::Live, [9; 16])));
    }

    #[test]
    fn debug_withholds_the_secret() {
        let key = key(Mode::Live, [9; 16]);
        assert!(!format!("{key:?}").contains(&key.reveal()[30..]));
    }

    proptest! {
        #[test]
        fn a_key_and_its_text_are_one_to_one(secret: [u8; 16], test: bool) {
            let mode = if test { Mode::Test } else { Mode::Live };
            let key = key(mode, secret);
            let text = key.reveal();
            prop_assert_eq!(text.len(), ApiKey::TEXT_LEN);
            let parsed: ApiKey = text.parse().unwrap();
            prop_assert_eq!(parsed.tenant(), key.tenant());
            prop_assert_eq!(parsed.id(), KeyId::new(99));
            prop_assert_eq!(parsed.reveal(), text);
            prop_assert!(ring().verify(&parsed));
        }

        #[test]
        fn a_key_with_any_character_changed_is_refused(secret: [u8; 16], at in 0_usize..63, to in 0_usize..62) {
            let text = key(Mode::Live, secret).reveal();
            let mut changed = text.clone().into_bytes();
            changed[at] = ALPHABET[to];
            let changed = String::from_utf8(changed).unwrap();
            if changed != text {
                prop_assert!(changed.parse::<ApiKey>().map_or(true, |key| !ring().verify(&key)));
            }
        }

        #[test]
        fn no_text_makes_it_panic(text in "\\PC{0,80}", tail in "[0-9A-Za-z]{55}") {
            let _ = text.parse::<ApiKey>();
            let _ = format!("tg_live_{tail}").parse::<ApiKey>().map(|key| ring().verify(&key));
        }
    }
}
