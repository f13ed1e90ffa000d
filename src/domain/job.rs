//! The jobs of an object, behind its one alarm.
//!
//! Invariant: a job that is due stays due until it succeeds. An alarm that let an error escape would be retried six times
//! in about 140 seconds and then be gone for good (measured), so failures only push the next try away.

use super::time::UnixMillis;

/// After how long a job that was begun and never ended is begun again.
const WATCH_MS: u64 = 60_000;
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
}

/// A job on the list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Due {
    /// When it is to be done.
    pub at: UnixMillis,
    /// What `at` was made when it was last begun: where it is still that, nobody scheduled it anew meanwhile.
    pub begun: Option<UnixMillis>,
    /// How often in a row it has failed.
    pub failures: u32,
}

/// What an object has to do, and when.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Jobs([Option<Due>; Job::ALL.len()]);

impl Jobs {
    /// The list that was stored.
    #[must_use]
    pub fn restore(stored: impl IntoIterator<Item = (Job, Due)>) -> Self {
        let mut jobs = Self::default();
        for (job, due) in stored {
            *jobs.of(job) = Some(due);
        }
        jobs
    }

    #[expect(clippy::indexing_slicing, reason = "there is a place for each job")]
    const fn of(&mut self, job: Job) -> &mut Option<Due> {
        &mut self.0[job as usize]
    }

    /// How a job stands: none where it is not on the list.
    #[must_use]
    #[expect(clippy::indexing_slicing, reason = "there is a place for each job")]
    pub const fn get(&self, job: Job) -> Option<Due> {
        self.0[job as usize]
    }

    /// Makes `job` due at `at`, or earlier where it already was. One that was put off stays so: work that is added does not
    /// bring a database back.
    pub fn schedule(&mut self, job: Job, at: UnixMillis) {
        let due = self.of(job).get_or_insert(Due { at, begun: None, failures: 0 });
        let put_off = due.failures > 0 && due.begun.is_none();
        if !put_off {
            due.at = due.at.min(at);
        }
    }

    /// Begins `job`: it stays on the list, far enough off not to be begun again meanwhile. Where the object dies before it is
    /// done, it is begun again then; what schedules it meanwhile brings it back near.
    pub fn begin(&mut self, job: Job, now: UnixMillis) {
        if let Some(due) = self.of(job) {
            due.at = now.plus(WATCH_MS);
            due.begun = Some(due.at);
        }
    }

    /// Ends `job`: off the list, unless it was scheduled anew meanwhile; and on it at `next`, if there is one.
    pub fn finish(&mut self, job: Job, next: Option<UnixMillis>) {
        let scheduled = self.get(job).filter(|due| due.begun != Some(due.at)).map(|due| due.at);
        *self.of(job) = None;
        for at in scheduled.into_iter().chain(next) {
            self.schedule(job, at);
        }
    }

    /// Puts `job` off after a failure; `random` spreads the tries of many objects.
    pub fn put_off(&mut self, job: Job, now: UnixMillis, random: u32) {
        let failures = self.get(job).map_or(0, |due| due.failures).saturating_add(1);
        *self.of(job) = Some(Due { at: retry(failures, now, random), begun: None, failures });
    }

    /// Takes `job` off the list, within the transaction that does it.
    pub const fn remove(&mut self, job: Job) {
        *self.of(job) = None;
    }

    /// Whether `job` is due at `now`.
    #[must_use]
    pub fn is_due(&self, job: Job, now: UnixMillis) -> bool {
        self.get(job).is_some_and(|due| due.at <= now)
    }

    /// Which jobs are due at `now`, in the order to do them.
    pub fn due(self, now: UnixMillis) -> impl Iterator<Item = Job> {
        Job::ALL.into_iter().filter(move |job| self.is_due(*job, now))
    }

    /// When the alarm must ring.
    #[must_use]
    pub fn next(&self) -> Option<UnixMillis> {
        self.0.iter().flatten().map(|due| due.at).min()
    }
}

/// When to try again after `failures` in a row, the last of them at `now`: 1, 2, 4 seconds and so on, up to a
/// minute, plus up to a quarter of it by `random`, so that ten thousand objects do not come back together.
fn retry(failures: u32, now: UnixMillis, random: u32) -> UnixMillis {
    let pause = 1000_u64.checked_shl(failures.saturating_sub(1).min(20)).unwrap_or(LONGEST_MS).min(LONGEST_MS);
    now.plus(pause + pause * u64::from(random % 256) / 1024)
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
        let pause = |failures| retry(failures, UnixMillis(0), 0).0;
        assert_eq!((pause(1), pause(2), pause(6), pause(7), pause(1000)), (1000, 2000, 32_000, 60_000, 60_000));
        assert!(retry(10, UnixMillis(0), u32::MAX).0 < 75_000);
    }

    const NOW: UnixMillis = UnixMillis(1_000_000);

    #[test]
    fn a_job_is_due_from_the_earliest_time_it_was_scheduled_for() {
        let mut jobs = Jobs::default();
        jobs.schedule(Job::Flush, NOW.plus(500));
        jobs.schedule(Job::Flush, NOW.plus(900));
        jobs.schedule(Job::Put, NOW.plus(700));
        assert_eq!(jobs.next(), Some(NOW.plus(500)));
        assert_eq!(jobs.due(NOW.plus(499)).count(), 0);
        assert_eq!(jobs.due(NOW.plus(700)).collect::<Vec<_>>(), [Job::Put, Job::Flush], "in the order to do them");
    }

    #[test]
    fn what_is_scheduled_while_a_job_is_done_is_not_forgotten_with_it() {
        let mut jobs = Jobs::default();
        jobs.schedule(Job::Flush, NOW);
        jobs.begin(Job::Flush, NOW);
        assert_eq!(jobs.due(NOW.plus(WATCH_MS - 1)).count(), 0, "it is being done");
        assert_eq!(jobs.due(NOW.plus(WATCH_MS)).count(), 1, "whoever did it has died");
        let mut again = jobs;
        jobs.finish(Job::Flush, None);
        assert_eq!(jobs, Jobs::default());
        again.schedule(Job::Flush, NOW.plus(10));
        again.finish(Job::Flush, None);
        assert_eq!(again.next(), Some(NOW.plus(10)));
        again.finish(Job::Flush, Some(NOW.plus(5)));
        assert_eq!(again.next(), Some(NOW.plus(5)), "there is more to do");
    }

    #[test]
    fn failures_push_a_job_away_until_it_succeeds() {
        let mut jobs = Jobs::default();
        jobs.schedule(Job::Flush, NOW);
        for failures in 1..=3 {
            jobs.begin(Job::Flush, NOW);
            jobs.put_off(Job::Flush, NOW, 0);
            assert_eq!(
                jobs.get(Job::Flush).map(|due| (due.at, due.failures)),
                Some((retry(failures, NOW, 0), failures))
            );
        }
        jobs.schedule(Job::Flush, NOW.plus(1));
        assert_eq!(jobs.next(), Some(retry(3, NOW, 0)), "more work changes nothing");
        jobs.begin(Job::Flush, NOW);
        jobs.schedule(Job::Flush, NOW.plus(1));
        jobs.finish(Job::Flush, None);
        assert_eq!(jobs.get(Job::Flush), Some(Due { at: NOW.plus(1), begun: None, failures: 0 }));
    }
}
