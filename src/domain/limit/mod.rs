//! Limits by escrow leases: how many isolates decide locally and still keep one global promise.
//!
//! [`Isolate`] spends what [`Limiter`] leased to it; a limiter may in turn lease from its parent's. All of it is pure:
//! a message and an instant go in, an answer and what to store come out.
//!
//! Invariant: in every interval of length T at most `B + r*T` is admitted worldwide (a quota: `Q` per window), whatever
//! is lost, repeated, late or crashed; a fault only wastes allowance. `tests/domain/limits` proves it, and
//! `tests/domain/controls` proves that it would notice.

mod bucket;
mod isolate;
mod lending;
mod limiter;
mod message;
mod ops;
mod policy;
mod pool;
mod renewal;
mod state;
mod table;

pub use isolate::{Admission, Charge, Isolate, Slot, Ticket, Verdict};
pub use limiter::{Effects, Limiter, Standing};
pub use message::{
    Ask, Call, Code, Cost, Denial, Grant, Incarnation, LeaseId, Line, Op, OpId, Outcome, Reply, Report, Reserve, Tag,
    Take, Tally, Usage,
};
pub use policy::{LimitKey, Mode, Policy, Recording, Rev, Rule, carve, lease_life, ttl_within};
pub use table::{Change, Changes, Place, Row};

/// How long an isolate may spend a lease. A child limiter's lease lasts twice as long for each limiter below it: 10, 20 s.
pub const TTL_MS: u64 = 5_000;
/// How far a clock may drift, in percent.
pub const DRIFT_PERCENT: u64 = 1;
/// How far a clock may lag behind true time, in ms: a Worker's clock moves only on I/O.
pub const LAG_MS: u64 = 250;
/// How long a request waits for the limiter, and an ADMIT is good for, in ms after the first send.
pub const WAIT_MS: u64 = 250;
/// A lease shorter than this is not worth its call.
pub const LEAST_TTL_MS: u64 = 1_000;
/// How soon an unanswered LEASE is sent again.
pub const RETRY_MS: u64 = 400;
/// How long a refused large cost keeps its place without asking again.
pub const QUEUE_MS: u64 = 1_000;
/// How many large costs wait at one limiter at most; the next one is refused without a place.
pub const QUEUE_LENGTH: usize = 64;
/// How long the answer to an op id is remembered. An ADMIT older than [`WAIT_MS`] is worth nothing, so this only has to
/// outlive the network; at 500 TAKEs a second it holds 15,000 answers.
pub const MEMO_MS: u64 = 30_000;
/// How long after its end a lease or a window still takes records of what was spent under it.
pub const GRACE_MS: u64 = 60_000;
/// After how long without a message a sender is forgotten. It must exceed the longest lease ([`TTL_MS`] * 4 and margins),
/// so that no repeated LEASE is mistaken for a first one while its answer could still be acted on.
pub const SENDER_MS: u64 = 60_000;
