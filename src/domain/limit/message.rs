//! What crosses between an isolate and its tenant's limiter, and between a limiter and its parent's: one [`Call`], one
//! [`Reply`].
//!
//! Invariant: a call may be lost, repeated, late or overtaken. Whatever it carries is therefore either cumulative (reports:
//! the larger value wins) or numbered (asks, ops and usage: the same number gets the same answer and is done once).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::policy::{LimitKey, Rev, Rule};
use crate::domain::closed::closed;
use crate::domain::id::RequestId;
use crate::domain::outbox::Event;

/// 128 bits, in JSON as 32 hexadecimal digits because JavaScript has no such number.
macro_rules! hex_ids {
    ($($(#[$doc:meta])* $id:ident),* $(,)?) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $id(pub u128);

        impl fmt::Display for $id {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:032x}", self.0)
            }
        }

        impl fmt::Debug for $id {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:x}", self.0)
            }
        }

        impl FromStr for $id {
            type Err = crate::domain::id::InvalidId;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                let digits = text.len() == 32 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
                let bits = u128::from_str_radix(text, 16).ok().filter(|_| digits);
                bits.map(Self).ok_or(crate::domain::id::InvalidId)
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

hex_ids! {
    /// Who sends: random, made anew whenever the sender lost its memory.
    Incarnation,
    /// One TAKE, RECORD or RESERVE, the same in every repetition of it.
    OpId,
    /// What a refused large cost keeps its place under: the same when its caller asks again (a hash of who asks for what).
    Tag,
}

impl Tag {
    /// The tag of those who ask for this.
    #[must_use]
    pub fn of(what: &str) -> Self {
        let hash = Sha256::digest(what.as_bytes());
        Self(hash.iter().take(16).fold(0, |bits, byte| (bits << 8) | u128::from(*byte)))
    }
}

/// A lease, by its limiter's own count. Never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct LeaseId(pub u64);

/// What a sender asks of a limiter in one message.
#[derive(Clone, Debug, PartialEq, Hash, Serialize, Deserialize)]
pub struct Call {
    /// Who asks.
    pub from: Incarnation,
    /// How many limiters are between the isolates and the sender: 0 for an isolate. A lease lasts the longer.
    #[serde(default)]
    pub depth: u8,
    /// The documents of the limiter's tenant that the sender knows.
    pub rev: Rev,
    /// Every limit that the rest is about; asks and costs name them by place.
    pub rules: Vec<Rule>,
    /// What became of earlier leases.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub reports: Vec<Report>,
    /// LEASE, for several keys at once. Each is answered for itself.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub asks: Vec<Ask>,
    /// One decision or record.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub op: Option<Op>,
    /// Counts of leased meters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
}

/// What became of a lease so far. Cumulative: it may be repeated, and overtaken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Report {
    /// The place of its limit in [`Call::rules`].
    pub rule: usize,
    /// Which lease.
    pub lease: LeaseId,
    /// How much of it was spent.
    pub used: u64,
    /// How much of it the holder has given up: it will never be spent from this lease. All of the rest freezes it.
    pub returned: u64,
}

/// LEASE: tokens to spend without asking.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Ask {
    /// The place of its limit in [`Call::rules`].
    pub rule: usize,
    /// Counts the sender's asks; a repetition has the same.
    pub seq: u64,
    /// How much is wanted.
    pub want: u64,
}

/// A cost of one limit.
pub type Cost = (usize, u64);

/// A decision or a record, done once for each op id.
#[derive(Clone, Debug, PartialEq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Op {
    /// TAKE, and RESERVE.
    Take(Take),
    /// RECORD: an event that a live lease paid.
    Record {
        /// Its id.
        id: OpId,
        /// The place of its limit in [`Call::rules`].
        rule: usize,
        /// The lease that paid.
        lease: LeaseId,
        /// How much.
        cost: u64,
        /// What to record.
        event: Event,
    },
    /// The reservation is used.
    Commit {
        /// The reservation's id.
        id: OpId,
    },
    /// The reservation is given back. Of a TAKE whose ADMIT came too late to be acted on: it is as if it had been refused.
    Void {
        /// The reservation's id, or the TAKE's.
        id: OpId,
        /// What to record if the TAKE's own events were.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        reversals: Vec<Event>,
    },
}

/// TAKE: decide now, in the limiter, over all of `costs` or none.
#[derive(Clone, Debug, PartialEq, Hash, Serialize, Deserialize)]
pub struct Take {
    /// Its id.
    pub id: OpId,
    /// The place that a large cost keeps while it is refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tag: Option<Tag>,
    /// Places in [`Call::rules`] and units.
    pub costs: Vec<Cost>,
    /// What to record when it is admitted, or committed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub events: Vec<Event>,
    /// RESERVE: what becomes of it is said later.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reserve: Option<Reserve>,
}

/// What makes a TAKE a RESERVE.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Reserve {
    /// When nobody says what becomes of it, it ends after this long.
    pub hold_ms: u64,
    /// Whether it then counts as committed.
    pub commits: bool,
}

impl Op {
    /// Its id.
    #[must_use]
    pub const fn id(&self) -> OpId {
        match self {
            Self::Take(take) => take.id,
            Self::Record { id, .. } | Self::Commit { id } | Self::Void { id, .. } => *id,
        }
    }

    /// What it costs, of which limits.
    #[must_use]
    pub fn costs(&self) -> &[Cost] {
        match self {
            Self::Take(take) => &take.costs,
            Self::Record { .. } | Self::Commit { .. } | Self::Void { .. } => &[],
        }
    }
}

/// Counts since the last report, numbered by the sender. A report not yet acknowledged is repeated as it was.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Usage {
    /// 1, 2, 3 and so on, for each incarnation.
    pub number: u64,
    /// What was counted.
    pub lines: Vec<Line>,
}

/// One count.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Line {
    /// The limit and lease that paid, when it is to be billed: the place in [`Call::rules`], and the lease.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub paid: Option<(usize, LeaseId)>,
    /// Minute, route, key, status class: the limiter does not look inside.
    pub label: String,
    /// How many units.
    pub units: u64,
    /// The last request that was counted, where somebody may ask about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last: Option<RequestId>,
}

/// Counts that the limiter accepted for the first time.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Tally {
    /// The line it is of, the same however often the report arrives: `{incarnation}-{report}-{line}`. What was accepted twice
    /// would show by it.
    pub id: String,
    /// The limit to bill; none for a count that is only shown.
    pub key: Option<LimitKey>,
    /// As the isolate labelled it.
    pub label: String,
    /// At most what its lease held.
    pub units: u64,
    /// As the isolate said.
    pub last: Option<RequestId>,
}

/// What a limiter answers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Reply {
    /// The newest documents that the limiter heard of; a sender with older ones has something to learn.
    pub rev: Rev,
    /// An answer to each ask, by its seq.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub grants: Vec<Grant>,
    /// The answer to the op.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcome: Option<(OpId, Outcome)>,
    /// What each limit that the op is about has left for everyone, in the order of its costs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub remaining: Vec<u64>,
    /// Reported leases about which nothing more need be said.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub settled: Vec<LeaseId>,
    /// The number of the last usage report that is safe.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<u64>,
}

/// The answer to a LEASE.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Grant {
    /// The ask that it answers.
    pub seq: u64,
    /// The lease, when `tokens > 0`.
    pub lease: LeaseId,
    /// How much.
    pub tokens: u64,
    /// How long it may be spent, from the first send of the ask.
    pub ttl_ms: u64,
    /// What the limiter has left for everyone.
    pub remaining: u64,
    /// When there was less than asked and fair: how long to make do without asking again. 0: ask when it is needed.
    pub retry_after_ms: u64,
    /// The allowance is too small to be leased among so many: use TAKE.
    pub take: bool,
    /// A refused TAKE of more than this keeps a place, if it has a tag; 0: none does.
    #[serde(default)]
    pub large: u64,
}

/// The answer to an op.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Taken, or reserved.
    Admit,
    /// Refused; nothing was spent.
    Deny(Denial),
    /// Recorded, committed or given back.
    Done,
    /// Too late, or never heard of: the lease is settled, the reservation has ended.
    Gone,
}

/// Why not, at which level, and when to ask again.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Denial {
    /// The limit; its tenant is the level.
    pub key: LimitKey,
    /// Why.
    pub code: Code,
    /// When asking again may help; 0 when it never will.
    pub retry_after_ms: u64,
}

closed! {
    /// Why a cost was refused.
    pub enum Code {
        /// The rate limit has nothing left just now.
        RateLimited = "rate_limited",
        /// The quota is used up.
        QuotaExhausted = "quota_exhausted",
        /// More than the limit could ever give.
        CostTooLarge = "cost_too_large",
        /// The window is over, or the documents are too old to be believed.
        Expired = "expired",
        /// The message names no such limit.
        UnknownLimit = "unknown_limit",
    }
}
