//! The chain of a tenant's audit records.
//!
//! Invariant: a link's hash covers its place, the hash before it and every field of its record, so no record can be
//! changed, dropped, added or moved without every later hash telling.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::id::TenantId;

/// Who did what, when.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Its id: sorts by time.
    pub id: String,
    /// When, in milliseconds since 1970.
    pub at_ms: u64,
    /// Who.
    pub actor: String,
    /// What was done.
    pub action: String,
    /// To what.
    pub subject: String,
    /// How, as JSON.
    pub detail: String,
    /// In which request.
    pub request_id: String,
}

/// A record's place in the chain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Link {
    /// From 1, without gaps.
    pub sequence: u64,
    /// The record.
    pub audit_id: String,
    /// SHA-256, base64url.
    pub hash: String,
}

/// The end of a chain: none before its first record.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Head {
    /// The last place.
    pub sequence: u64,
    /// Its hash.
    pub hash: String,
}

/// The links of `records`, in their order, behind `head`.
#[must_use]
pub fn seal(tenant: TenantId, head: &Head, records: &[Record]) -> Vec<Link> {
    let mut previous = head.clone();
    records
        .iter()
        .map(|record| {
            let sequence = previous.sequence + 1;
            let hash = hash(tenant, sequence, &previous.hash, record);
            previous = Head { sequence, hash: hash.clone() };
            Link { sequence, audit_id: record.id.clone(), hash }
        })
        .collect()
}

/// Whether `links` are the unbroken chain of `records` behind `head`.
#[must_use]
pub fn verify(tenant: TenantId, head: &Head, records: &[Record], links: &[Link]) -> bool {
    seal(tenant, head, records) == links
}

fn hash(tenant: TenantId, sequence: u64, previous: &str, record: &Record) -> String {
    // JSON marks where one text ends and the next begins.
    let text = serde_json::to_vec(&("tollgate-audit-v1", tenant, sequence, previous, record)).unwrap_or_default();
    URL_SAFE_NO_PAD.encode(Sha256::digest(text))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn tenant() -> TenantId {
        "ten_g000000000000001".parse().unwrap()
    }

    fn record(id: usize) -> Record {
        Record {
            id: format!("req_{id:026}"),
            at_ms: 1_795_000_000_000,
            actor: "operator:ada".into(),
            action: "override.put".into(),
            subject: "analytics".into(),
            detail: r#"{"value":true}"#.into(),
            request_id: "req_1".into(),
        }
    }

    #[test]
    fn the_hash_of_a_link_is_pinned() {
        let links = seal(tenant(), &Head::default(), &[record(1), record(2)]);
        let text = serde_json::to_string(&links).unwrap();
        assert_eq!(text, include_str!("../../tests/golden/audit_chain.json").trim_end());
    }

    proptest! {
        #[test]
        fn any_change_drop_or_reorder_is_detected(count in 2_usize..8, at in 0_usize..8, what in 0_usize..4) {
            let records: Vec<_> = (0..count).map(record).collect();
            let links = seal(tenant(), &Head::default(), &records);
            prop_assert!(verify(tenant(), &Head::default(), &records, &links));
            let at = at % count;
            let mut tampered = records.clone();
            let mut kept = links.clone();
            match what {
                0 => tampered[at].detail = r#"{"value":false}"#.into(),
                1 => { tampered.remove(at); kept.remove(at); if at == count - 1 { return Ok(()); } }
                2 => tampered.swap(at, (at + 1) % count),
                _ => tampered[at].actor.push('x'),
            }
            prop_assert!(!verify(tenant(), &Head::default(), &tampered, &kept));
        }
    }
}
