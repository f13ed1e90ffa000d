//! Documents: the signed, versioned records that decisions are made from, and what holds for all of them.
//!
//! Invariant: a [`Document`] exists only of bytes whose signature was checked before they were parsed, whose own name was
//! the one asked for, and whose end had not come. `wire::jws` alone makes them.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::id::TenantId;
use super::name::PlanName;
use super::time::UnixMillis;

/// How long a signature is valid. A document is signed anew at half of it, so readers survive an outage of KV and of
/// its owner for at least a day, and a tenant costs one KV write a day.
pub const LIFE_MS: u64 = 48 * 3600 * 1000;

/// The name of a document, which is its key in KV.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum DocumentKey {
    /// Features, kill switches, meters, origins with their routes, plan heads.
    Catalog,
    /// One version of a plan; its content never changes.
    Plan(PlanName, u32),
    /// One tenant, with what its ancestors contribute.
    Tenant(TenantId),
}

impl fmt::Display for DocumentKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Catalog => f.write_str("catalog"),
            Self::Plan(plan, version) => write!(f, "plan/{plan}/{version}"),
            Self::Tenant(tenant) => write!(f, "tenant/{tenant}"),
        }
    }
}

/// The text is no document's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InvalidDocumentKey;

impl fmt::Display for InvalidDocumentKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not the name of a document")
    }
}

impl FromStr for DocumentKey {
    type Err = InvalidDocumentKey;

    fn from_str(text: &str) -> Result<Self, InvalidDocumentKey> {
        let mut parts = text.split('/');
        let key = match (parts.next(), parts.next(), parts.next(), parts.next()) {
            (Some("catalog"), None, ..) => Some(Self::Catalog),
            (Some("tenant"), Some(id), None, _) => id.parse().ok().map(Self::Tenant),
            (Some("plan"), Some(plan), Some(version), None) => {
                plan.parse().ok().zip(version.parse().ok()).map(|(plan, version)| Self::Plan(plan, version))
            }
            _ => None,
        };
        key.filter(|key| key.to_string() == text).ok_or(InvalidDocumentKey)
    }
}

impl Serialize for DocumentKey {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for DocumentKey {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        std::borrow::Cow::<'de, str>::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// A verified document: its body, and what its envelope says.
#[derive(Clone, Debug)]
pub struct Document<B> {
    /// Grows with every change of the content, never with a mere new signature.
    pub serial: u64,
    /// The first instant at which nothing may be decided from it any more.
    pub expires: UnixMillis,
    /// What it says.
    pub body: B,
}

/// Why bytes that claim to be a document are not trusted. Nothing of them was used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Untrusted {
    /// Not three segments of base64url, or the header of no trusted key: an unknown key id, or another algorithm.
    Header,
    /// The signature is not of these bytes by that key.
    Signature,
    /// Signed and sound, but not the document that was asked for.
    OtherDocument,
    /// Its signed end has come.
    Expired,
    /// Signed, but not of a shape that this version understands.
    Shape,
}

impl Untrusted {
    /// Every reason.
    pub const ALL: [Self; 5] = [Self::Header, Self::Signature, Self::OtherDocument, Self::Expired, Self::Shape];

    /// Its stable name, for logs.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Header => "header",
            Self::Signature => "signature",
            Self::OtherDocument => "other_document",
            Self::Expired => "expired",
            Self::Shape => "shape",
        }
    }
}

impl fmt::Display for Untrusted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
