//! What a limiter remembers: the rows of its memory, each with what can be said about it alone.
//!
//! Invariant: of a lease `used + returned <= tokens`; of an allowance `avail` is whole tokens that nobody holds.

use serde::{Deserialize, Serialize};

use super::message::{Grant, Incarnation, LeaseId, Outcome, Reserve, Tag};
use super::policy::{Recording, Rev, Rule};
use super::renewal::Renewal;
use crate::domain::id::TenantId;
use crate::domain::outbox::Event;
use crate::domain::time::UnixMillis;

/// A limit, by the limiter's own count.
pub(super) type KeyNo = u32;

/// What there is one of.
#[derive(Clone, Debug, PartialEq, Hash, Serialize, Deserialize)]
pub struct Head {
    pub(super) tenant: TenantId,
    /// Who this limiter is to its parent's.
    pub(super) me: Incarnation,
    /// The latest instant seen: time never runs backward here.
    pub(super) clock: UnixMillis,
    pub(super) rev: Rev,
    pub(super) last_key: KeyNo,
    pub(super) last_lease: u64,
    pub(super) last_ticket: u64,
    pub(super) last_seq: u64,
}

/// What one limit has left.
#[derive(Clone, Debug, PartialEq, Hash, Serialize, Deserialize)]
pub struct Allowance {
    pub(super) rule: Rule,
    /// Whole tokens that nobody holds.
    pub(super) avail: u64,
    /// And parts of one more, less than `policy.parts()`.
    pub(super) part: u64,
    /// What a lowered quota could not take back: it comes off whatever is returned or raised first.
    pub(super) owed: u64,
    /// Up to when `avail` is minted. Never decreases.
    pub(super) minted: UnixMillis,
    /// Tokens of settled leases that nobody reported.
    pub(super) gap: u64,
    pub(super) heard: UnixMillis,
    /// The longest way down to an isolate, of those who borrow from here.
    pub(super) depth: u8,
    /// For a pool: when to fetch the next piece.
    pub(super) renewal: Renewal,
}

/// Tokens lent to one holder.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Lease {
    pub(super) holder: Incarnation,
    pub(super) tokens: u64,
    /// Reported as spent; `used + returned <= tokens`.
    pub(super) used: u64,
    /// Given back.
    pub(super) returned: u64,
    /// Recorded or tallied; at most `tokens - returned`.
    pub(super) billed: u64,
    /// When it expires; once past, when it is settled.
    pub(super) ends: UnixMillis,
    pub(super) recording: Recording,
    /// The parent's lease that it draws on.
    pub(super) on: Option<LeaseId>,
}

impl Lease {
    /// What its holder may still have in hand.
    pub(super) const fn open(&self) -> u64 {
        self.tokens.saturating_sub(self.used).saturating_sub(self.returned)
    }

    /// What was debited for good.
    pub(super) const fn kept(&self) -> u64 {
        self.tokens.saturating_sub(self.returned)
    }
}

/// A lease after its end: what may still be recorded under it is kept for the grace.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Past(pub(super) Lease);

/// Tokens set aside for an op whose end is not known yet.
#[derive(Clone, Debug, PartialEq, Hash, Serialize, Deserialize)]
pub struct Hold {
    pub(super) costs: Vec<(KeyNo, u64)>,
    pub(super) drawn: Vec<(KeyNo, LeaseId, u64)>,
    pub(super) events: Vec<Event>,
    pub(super) ends: UnixMillis,
    pub(super) commits: bool,
    /// Waits for the parent's limiter; then: how long it stays reserved, if it is to.
    pub(super) forwarded: Option<Forwarded>,
}

/// What becomes of an op once the parent's limiter has admitted it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(super) struct Forwarded {
    /// For a RESERVE.
    pub(super) reserve: Option<Reserve>,
    /// What was asked of the parent's limiter.
    pub(super) costs: Vec<(KeyNo, u64)>,
}

/// A refused large cost that keeps its place.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Queued {
    pub(super) tag: Tag,
    pub(super) costs: Vec<(KeyNo, u64)>,
    pub(super) asked: UnixMillis,
    /// It has asked again, and so holds what it waits for. Most that are refused never do: held for nothing, the costs of
    /// 2 % of the requests took three quarters of a limit away from the others.
    pub(super) holds: bool,
}

/// An answer, in case it is asked again.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Memo {
    pub(super) outcome: Outcome,
    pub(super) at: UnixMillis,
    /// What an admitted TAKE with an event took of its own buckets, in case it is voided.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) costs: Vec<(KeyNo, u64)>,
    /// And of leases from above.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) drawn: Vec<(KeyNo, LeaseId, u64)>,
}

impl Memo {
    pub(super) const fn new(outcome: Outcome, at: UnixMillis) -> Self {
        Self { outcome, at, costs: Vec::new(), drawn: Vec::new() }
    }
}

/// Who asked, of one limit.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Sender {
    pub(super) heard: UnixMillis,
    pub(super) seq: u64,
    pub(super) grant: Option<Grant>,
}

/// Who reported usage.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Reporter {
    pub(super) number: u64,
    pub(super) heard: UnixMillis,
}
