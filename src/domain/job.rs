//! The jobs of an object, behind its one alarm.
//!
//! Invariant: a job that is due stays due until it succeeds. An alarm that let an error escape would be retried six times
//! in about 140 seconds and then be gone for good (measured), so failures only push the next try away.

use super::time::UnixMillis;

/// The longest pause between two tries: a recovered database is noticed at most a minute later, and a quarter for the spread.
const LONGEST_MS: u64 = 60 * 1000;

/// What an object has to do behind its replies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Job {
    /// Puts documents to KV.
    Put,
    /// Signs documents anew at half of their life.
    Sign,
    /// Sends the outbox to the ledger.
    Flush,
    /// Seals audit records into the chain.
    Seal,
    /// Lets reservations lapse, and leases from the parent's limiter be renewed.
    Tick,
}

impl Job {
    /// All of them, in the order they are done when due together.
    pub const ALL: [Self; 5] = [Self::Tick, Self::Put, Self::Flush, Self::Seal, Self::Sign];

    /// Its name in the table.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Put => "put",
            Self::Sign => "sign",
            Self::Flush => "flush",
            Self::Seal => "seal",
            Self::Tick => "tick",
        }
    }

    /// When to try again after `failures` in a row, the last of them at `now`: 1, 2, 4 seconds and so on, up to a
    /// minute, plus up to a quarter of it by `random`, so that ten thousand objects do not come back together.
    #[must_use]
    pub fn retry(self, failures: u32, now: UnixMillis, random: u32) -> UnixMillis {
        let pause = 1000_u64.checked_shl(failures.saturating_sub(1).min(20)).unwrap_or(LONGEST_MS).min(LONGEST_MS);
        now.plus(pause + pause * u64::from(random % 256) / 1024)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip() {
        let names: std::collections::BTreeSet<_> = Job::ALL.iter().map(|job| job.name()).collect();
        assert_eq!(names.len(), Job::ALL.len());
    }

    #[test]
    fn a_pause_doubles_up_to_a_minute() {
        let pause = |failures| Job::Flush.retry(failures, UnixMillis(0), 0).0;
        assert_eq!((pause(1), pause(2), pause(6), pause(7), pause(1000)), (1000, 2000, 32_000, 60_000, 60_000));
        assert!(Job::Flush.retry(10, UnixMillis(0), u32::MAX).0 < 75_000);
    }
}
