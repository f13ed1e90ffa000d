//! Sparing a limiter that has too much to do, or does not answer.
//!
//! Invariant: from then on nobody asks it for a while, a longer one each time; then one asks, and all others wait for what that one
//! hears.

use super::time::UnixMillis;

/// How long nobody asks after the first time.
const FIRST_MS: u64 = 200;
/// The same at most: one that has recovered is not left alone for long, and one question in a second or two harms none.
const MOST_MS: u64 = 2_000;
/// How many requests in a row may get no answer, however often they ask: a busy machine is slow at times.
const UNANSWERED: u32 = 4;
/// For how long the others wait for the one that asks: longer than a request does.
const PROBE_MS: u64 = 1_000;

/// Of one limiter, as one isolate knows it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Breaker {
    failures: u32,
    until: UnixMillis,
    probes: bool,
    unanswered: u32,
}

impl Breaker {
    /// Whether the limiter is not to be asked at `now`.
    #[must_use]
    pub fn holds(&self, now: UnixMillis) -> bool {
        now < self.until
    }

    /// From when on it may be asked.
    #[must_use]
    pub const fn until(&self) -> UnixMillis {
        self.until
    }

    /// Somebody asks at `now`.
    pub const fn asks(&mut self, now: UnixMillis) {
        if self.failures > 0 {
            self.until = now.plus(PROBE_MS);
            self.probes = true;
        }
    }

    /// The limiter said at `now` that it has too much to do. Half of the while is at `random`: those that heard it together do not come
    /// back together.
    pub fn overloaded(&mut self, random: u64, now: UnixMillis) {
        // What was asked before it was known tells nothing new.
        if self.holds(now) && !self.probes {
            return;
        }
        let while_ms = FIRST_MS.saturating_mul(1 << self.failures.min(16)).min(MOST_MS);
        let half = while_ms / 2;
        let until = now.plus(half + random % half);
        *self = Self { failures: self.failures.saturating_add(1), until, probes: false, ..*self };
    }

    /// A request got no answer, as often as it asked.
    pub fn unanswered(&mut self, random: u64, now: UnixMillis) {
        self.unanswered = self.unanswered.saturating_add(1);
        if self.unanswered >= UNANSWERED {
            self.overloaded(random, now);
        }
    }

    /// The limiter answered.
    pub fn answered(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NOW: UnixMillis = UnixMillis(1_795_000_000_000);

    #[test]
    fn while_it_answers_everybody_asks() {
        let mut breaker = Breaker::default();
        for _ in 0..3 {
            assert!(!breaker.holds(NOW));
            breaker.asks(NOW);
        }
        breaker.answered();
        assert!(!breaker.holds(NOW));
    }

    #[test]
    fn afterwards_one_asks_and_all_others_wait_for_it() {
        let mut breaker = Breaker::default();
        breaker.overloaded(0, NOW);
        assert!(breaker.holds(NOW.plus(99)));
        let then = NOW.plus(100);
        assert!(!breaker.holds(then));
        breaker.asks(then);
        assert!(breaker.holds(then) && breaker.holds(then.plus(PROBE_MS - 1)));
        // One that hears nothing is not waited for any longer.
        assert!(!breaker.holds(then.plus(PROBE_MS)));
        breaker.answered();
        assert!(!breaker.holds(then));
    }

    #[test]
    fn those_that_asked_together_count_once() {
        let mut breaker = Breaker::default();
        for _ in 0..50 {
            breaker.overloaded(0, NOW);
        }
        assert_eq!(breaker.until(), NOW.plus(FIRST_MS / 2));
    }

    #[test]
    fn silence_counts_when_nothing_else_was_heard_for_a_while() {
        let mut breaker = Breaker::default();
        for _ in 0..10 {
            for _ in 1..UNANSWERED {
                breaker.unanswered(0, NOW);
            }
            assert!(!breaker.holds(NOW));
            breaker.answered();
        }
        for _ in 0..UNANSWERED {
            breaker.unanswered(0, NOW);
        }
        assert!(breaker.holds(NOW));
        // The one that asks next need not be unanswered four times.
        let then = breaker.until();
        breaker.asks(then);
        breaker.unanswered(0, then);
        assert_eq!(breaker.until(), then.plus(FIRST_MS));
    }

    proptest! {
        #[test]
        fn each_while_may_be_twice_as_long_as_the_one_before_up_to_the_most(randoms: [u64; 40]) {
            let (mut breaker, mut now, mut most) = (Breaker::default(), NOW, FIRST_MS);
            for random in randoms {
                breaker.asks(now);
                breaker.overloaded(random, now);
                let paused = breaker.until().since(now);
                prop_assert!((most / 2..most).contains(&paused), "{} of {}", paused, most);
                most = (2 * most).min(MOST_MS);
                now = breaker.until();
            }
        }
    }
}
