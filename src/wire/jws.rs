//! The signed form of documents: JWS in compact serialisation (RFC 7515), HS256.
//!
//! Invariant: the signature is checked before anything is parsed. The header is not parsed at all: it must be, byte for
//! byte, the header that one of the trusted keys writes, which fixes algorithm, key id and type together.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, KeyInit, Mac};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use sha2::Sha256;

use super::json::{self, Object};
use crate::domain::api_key::WeakSecret;
use crate::domain::document::{Document, DocumentKey, LIFE_MS, Untrusted};
use crate::domain::time::UnixMillis;

/// What a reader needs of the payload: the document's own name, so that one can never pass for another, its serial and its
/// end in seconds, as RFC 7519 has it.
#[derive(Deserialize)]
struct Envelope<B> {
    key: DocumentKey,
    serial: u64,
    exp: u64,
    body: B,
}

struct Signer {
    /// The header's base64url and the dot behind it.
    header: String,
    state: Hmac<Sha256>,
}

/// The keys that sign documents: the first signs, all of them are trusted. Two are held at all times, so that a rotation
/// is never new.
pub struct DocumentRing(Vec<Signer>);

impl DocumentRing {
    /// A ring of these key ids and secrets, the signing one first.
    ///
    /// # Errors
    /// When there is none, or a secret is shorter than 32 bytes (RFC 7518 section 3.2).
    pub fn new<'a>(keys: impl IntoIterator<Item = (&'a str, &'a [u8])>) -> Result<Self, WeakSecret> {
        let signers = keys
            .into_iter()
            .map(|(kid, secret)| {
                if secret.len() < 32 {
                    return Err(WeakSecret);
                }
                let header = Object::new().text("alg", "HS256").text("kid", kid).text("typ", "tollgate+jws").end();
                let header = URL_SAFE_NO_PAD.encode(header.as_bytes()) + ".";
                Ok(Signer { header, state: Hmac::new_from_slice(secret).map_err(|_| WeakSecret)? })
            })
            .collect::<Result<Vec<_>, _>>()?;
        if signers.is_empty() { Err(WeakSecret) } else { Ok(Self(signers)) }
    }

    /// Signs `body`, which is JSON, as the document `key`, valid from `now` for [`LIFE_MS`].
    #[must_use]
    pub fn sign(&self, key: &DocumentKey, serial: u64, now: UnixMillis, body: &str) -> String {
        let payload = Object::new()
            .shown("key", key)
            .number("serial", serial)
            .number("iat", now.0 / 1000)
            .number("exp", (now.0 + LIFE_MS) / 1000)
            .json("body", body)
            .end();
        let Some(signer) = self.0.first() else { return String::new() };
        let mut text = signer.header.clone();
        text.push_str(&URL_SAFE_NO_PAD.encode(payload.as_bytes()));
        let mut mac = signer.state.clone();
        mac.update(text.as_bytes());
        text.push('.');
        text.push_str(&URL_SAFE_NO_PAD.encode(mac.finalize().into_bytes()));
        text
    }

    /// The document in `text`, if it is the one called `key` and may be used at `now`.
    ///
    /// # Errors
    /// Why it is not trusted.
    pub fn verify<B: DeserializeOwned>(
        &self,
        text: &str,
        key: &DocumentKey,
        now: UnixMillis,
    ) -> Result<Document<B>, Untrusted> {
        let signer = self.0.iter().find(|signer| text.starts_with(&signer.header)).ok_or(Untrusted::Header)?;
        let (message, signature) = text.rsplit_once('.').ok_or(Untrusted::Header)?;
        let payload = message.get(signer.header.len()..).ok_or(Untrusted::Header)?;
        let tag = URL_SAFE_NO_PAD.decode(signature).map_err(|_| Untrusted::Signature)?;
        let mut mac = signer.state.clone();
        mac.update(message.as_bytes());
        mac.verify_slice(&tag).map_err(|_| Untrusted::Signature)?;

        let payload = URL_SAFE_NO_PAD.decode(payload).map_err(|_| Untrusted::Shape)?;
        let payload = std::str::from_utf8(&payload).map_err(|_| Untrusted::Shape)?;
        let envelope: Envelope<B> = json::parse(payload).map_err(|_| Untrusted::Shape)?;
        if envelope.key != *key {
            return Err(Untrusted::OtherDocument);
        }
        let expires = UnixMillis(envelope.exp.saturating_mul(1000));
        if now >= expires {
            return Err(Untrusted::Expired);
        }
        Ok(Document { serial: envelope.serial, expires, body: envelope.body })
    }
}

impl fmt::Debug for DocumentRing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DocumentRing({} secrets withheld)", self.0.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: UnixMillis = UnixMillis(1_795_000_000_000);
    const TENANT: &str = "tenant/ten_g000000000000001";

    fn ring() -> DocumentRing {
        DocumentRing::new([("2026-11", &[1_u8; 32][..]), ("2026-08", &[2; 32])]).unwrap()
    }

    fn key(text: &str) -> DocumentKey {
        text.parse().unwrap()
    }

    fn signed() -> String {
        ring().sign(&key(TENANT), 12, NOW, r#"{"status":"active"}"#)
    }

    fn verify(text: &str) -> Result<Document<serde_json::Value>, Untrusted> {
        ring().verify(text, &key(TENANT), NOW)
    }

    #[test]
    fn a_signed_document_is_pinned() {
        // Documents of the last 48 hours are out there, signed like this.
        assert_eq!(signed(), include_str!("../../tests/golden/document.txt").trim_end());
        let document = verify(&signed()).unwrap();
        assert_eq!((document.serial, document.body["status"].as_str()), (12, Some("active")));
        assert_eq!(document.expires, NOW.plus(LIFE_MS));
    }

    #[test]
    fn the_previous_key_is_trusted_and_a_third_is_not() {
        let previous = DocumentRing::new([("2026-08", &[2_u8; 32][..])]).unwrap();
        let text = previous.sign(&key(TENANT), 1, NOW, "null");
        assert!(ring().verify::<()>(&text, &key(TENANT), NOW).is_ok());
        let third = DocumentRing::new([("2026-05", &[1_u8; 32][..])]).unwrap();
        let text = third.sign(&key(TENANT), 1, NOW, "null");
        assert_eq!(ring().verify::<()>(&text, &key(TENANT), NOW).unwrap_err(), Untrusted::Header);
    }

    #[test]
    fn no_flipped_bit_is_trusted() {
        let text = signed().into_bytes();
        for at in 0..text.len() {
            for bit in 0..8 {
                let mut changed = text.clone();
                changed[at] ^= 1 << bit;
                if let Ok(changed) = String::from_utf8(changed) {
                    assert!(verify(&changed).is_err(), "byte {at}, bit {bit}");
                }
            }
        }
    }

    #[test]
    fn a_header_with_another_algorithm_is_refused_unread() {
        let (_, rest) = signed().split_once('.').map(|(a, b)| (a.to_owned(), b.to_owned())).unwrap();
        for alg in ["none", "HS512", "RS256", "hs256"] {
            let header = format!(r#"{{"alg":"{alg}","kid":"2026-11","typ":"tollgate+jws"}}"#);
            let text = format!("{}.{rest}", URL_SAFE_NO_PAD.encode(header.as_bytes()));
            assert_eq!(verify(&text).unwrap_err(), Untrusted::Header, "{alg}");
        }
        for text in ["", ".", "..", "a.b.c", &signed()[..60]] {
            assert!(verify(text).is_err(), "{text}");
        }
    }

    #[test]
    fn one_document_never_passes_for_another() {
        let other = key("tenant/ten_g000000000000002");
        assert_eq!(ring().verify::<serde_json::Value>(&signed(), &other, NOW).unwrap_err(), Untrusted::OtherDocument);
    }

    #[test]
    fn a_document_ends_at_its_signed_end() {
        let at = |now| ring().verify::<serde_json::Value>(&signed(), &key(TENANT), now).map(|_| ());
        assert_eq!(at(NOW.plus(LIFE_MS - 1)), Ok(()));
        assert_eq!(at(NOW.plus(LIFE_MS)), Err(Untrusted::Expired));
    }

    #[test]
    fn names_of_documents_round_trip() {
        for text in ["catalog", "plan/free/3", TENANT] {
            assert_eq!(key(text).to_string(), text);
        }
        for text in ["", "catalog/", "plan/free", "plan/free/03", "plan/free/x", "tenant/", "tenant/ten_x", "host/a"] {
            assert!(text.parse::<DocumentKey>().is_err(), "{text}");
        }
    }
}
