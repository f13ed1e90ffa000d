//! The contract, checked over every interval at once.
//!
//! For a run of admissions c at times t, `sum(c) - r*T <= B` must hold for every interval; so the largest value of
//! `sum - r*t` less the smallest one before it must be at most B. One pass, exact integers.

use tollgate::domain::limit::Policy;

/// Something that moves the bound or counts against it, in order of time.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Mark {
    Admitted(u64),
    /// The limiter's clock jumped forward: one more B.
    Jump,
    /// Another policy came into force at the limiter.
    Policy(Policy),
}

/// What the clocks may add: `(1 + rho)` on the rate, and `delta_ms` once.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Slack {
    pub drift_percent: u64,
    pub delta_ms: u64,
}

/// By how many tokens the worst interval exceeds the contract (negative: how far it stays below), and that interval.
/// Times are in microseconds.
pub(crate) fn excess(first: Policy, marks: &[(u64, Mark)], slack: Slack) -> (f64, u64, u64) {
    if let Policy::Quota { amount, .. } = first {
        let most = marks.iter().fold(amount, |most, (_, mark)| match mark {
            Mark::Policy(policy) => most.max(policy.capacity()),
            _ => most,
        });
        let spent: u64 = marks.iter().map(|(_, mark)| if let Mark::Admitted(c) = mark { *c } else { 0 }).sum();
        return (spent as f64 - most as f64, 0, marks.last().map_or(0, |mark| mark.0));
    }
    // Tokens are scaled so that everything is an integer: SCALE parts, divisible by every interval that tests use.
    const SCALE: i128 = 60_000 * 1_000 * 100;
    let rate = |policy: Policy| match policy {
        Policy::Rate { tokens, interval_ms, .. } => {
            assert_eq!(60_000 % interval_ms, 0, "choose an interval that divides a minute");
            // parts per microsecond, drift included
            i128::from(tokens) * i128::from(60_000 / interval_ms) * i128::from(100 + slack.drift_percent)
        }
        Policy::Quota { .. } => 0,
    };
    let burst = marks.iter().fold(first.capacity(), |most, (_, mark)| match mark {
        Mark::Policy(policy) => most.max(policy.capacity()),
        _ => most,
    });
    let once = |policy: Policy| rate(policy) * i128::from(slack.delta_ms) * 1_000;
    let mut policy = first;
    let (mut sum, mut lowest, mut lowest_at, mut last) = (0_i128, 0_i128, 0_u64, 0_u64);
    let (mut worst, mut from, mut to) = (i128::MIN, 0, 0);
    let mut most_once = once(first);
    for (at, mark) in marks {
        sum -= rate(policy) * i128::from(at - last);
        last = *at;
        // The interval may begin here, before what happens here.
        if sum < lowest {
            (lowest, lowest_at) = (sum, *at);
        }
        match mark {
            Mark::Admitted(cost) => {
                sum += i128::from(*cost) * SCALE;
                if sum - lowest > worst {
                    (worst, from, to) = (sum - lowest, lowest_at, *at);
                }
            }
            Mark::Jump => sum -= i128::from(burst) * SCALE,
            Mark::Policy(new) => {
                // Minted under the old policy up to a clock that may lag.
                policy = *new;
                sum -= once(policy);
                most_once = most_once.max(once(policy));
            }
        }
    }
    if worst == i128::MIN {
        return (-(burst as f64), 0, 0);
    }
    let over = worst - i128::from(burst) * SCALE - most_once;
    (over as f64 / SCALE as f64, from, to)
}

#[test]
fn the_checker_finds_the_worst_interval() {
    let policy = Policy::Rate { tokens: 10, interval_ms: 1_000, burst: 5 };
    let exact = Slack { drift_percent: 0, delta_ms: 0 };
    let at = |ms: u64, cost| (ms * 1_000, Mark::Admitted(cost));

    assert_eq!(excess(policy, &[at(0, 5), at(100, 1), at(200, 1)], exact).0, 0.0);
    assert_eq!(excess(policy, &[at(0, 1), at(5_000, 5), at(5_099, 1)], exact), (0.01, 5_000_000, 5_099_000));
    assert_eq!(excess(policy, &[at(0, 5), (50_000, Mark::Jump), at(100, 5)], exact).0, -0.0 - 1.0 + 1.0 - 0.0);
    assert!(excess(policy, &[at(0, 5), (50_000, Mark::Jump), at(100, 7)], exact).0 > 0.0);
}
