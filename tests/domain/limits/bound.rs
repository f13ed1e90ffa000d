//! The contract, checked over every interval at once.
//!
//! For a run of admissions c at times t, `sum(c) - r*T <= B` must hold for every interval; so the largest value of
//! `sum - r*t` less the smallest one before it must be at most B. One pass, exact integers.

use tollgate::domain::limit::Policy;

/// Something that moves the bound or counts against it, in order of time.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Mark {
    Admitted(u64),
    /// The limiter's clock jumped forward: one more B. It forgets leases that may still be spent, so this also counts for
    /// intervals that begin while they may.
    Jump,
    /// Another policy came into force at the limiter.
    Policy(Policy),
}

/// What the clocks may add: `(1 + rho)` on the rate, and `delta_ms` once.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Slack {
    pub drift_percent: u64,
    pub delta_ms: u64,
    /// For how long in true time a lease may be spent that its limiter has forgotten over a jump.
    pub lease_ms: u64,
}

impl Slack {
    /// Clocks that are exact, and never jump.
    pub(crate) const NONE: Self = Self { drift_percent: 0, delta_ms: 0, lease_ms: 0 };
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
    let mut jumps = Vec::new();
    for (at, mark) in marks {
        sum -= rate(policy) * i128::from(at - last);
        last = *at;
        // The interval may begin here, before what happens here.
        jumps.retain(|jump: &u64| at - jump < slack.lease_ms * 1_000);
        let begin = sum + jumps.len() as i128 * i128::from(burst) * SCALE;
        if begin < lowest {
            (lowest, lowest_at) = (begin, *at);
        }
        match mark {
            Mark::Admitted(cost) => {
                sum += i128::from(*cost) * SCALE;
                if sum - lowest > worst {
                    (worst, from, to) = (sum - lowest, lowest_at, *at);
                }
            }
            Mark::Jump => {
                sum -= i128::from(burst) * SCALE;
                jumps.push(*at);
            }
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
    let exact = Slack::NONE;
    let at = |ms: u64, cost| (ms * 1_000, Mark::Admitted(cost));

    assert_eq!(excess(policy, &[at(0, 5), at(100, 1), at(200, 1)], exact).0, 0.0);
    assert_eq!(excess(policy, &[at(0, 1), at(5_000, 5), at(5_099, 1)], exact), (0.01, 5_000_000, 5_099_000));
    assert_eq!(excess(policy, &[at(0, 5), (50_000, Mark::Jump), at(100, 5)], exact).0, -0.0 - 1.0 + 1.0 - 0.0);
    assert!(excess(policy, &[at(0, 5), (50_000, Mark::Jump), at(100, 7)], exact).0 > 0.0);

    // What a jump forgot may be spent until its lease ends, in whichever interval; once, and not later.
    let jump = Slack { lease_ms: 5_000, ..exact };
    assert_eq!(excess(policy, &[(0, Mark::Jump), at(4_000, 10)], jump).0, 0.0);
    assert_eq!(excess(policy, &[(0, Mark::Jump), at(4_000, 10), at(4_100, 1)], jump).0, 0.0);
    assert_eq!(excess(policy, &[(0, Mark::Jump), at(4_000, 10), at(4_100, 2)], jump).0, 1.0);
    assert_eq!(excess(policy, &[(0, Mark::Jump), at(5_000, 10)], jump).0, 5.0);
}
