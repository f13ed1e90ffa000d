//! What an admission costs. Prints it; the bound in the assertion is loose, because other work shares the machine.

use std::hint::black_box;

use tollgate::domain::limit::*;
use tollgate::domain::time::UnixMillis;

use super::world::{rate, tenant};

#[test]
fn an_admission_takes_nanoseconds() {
    const ROUNDS: u64 = 1_000_000;
    let now = UnixMillis(1_790_000_000_000);
    for limits in [1, 3] {
        let mut limiter = Limiter::new(tenant(0), Incarnation(1));
        let mut isolate = Isolate::new(Incarnation(2));
        let charges: Vec<_> = (0..limits)
            .map(|n| {
                let slot = isolate.resolve(&Rule {
                    key: LimitKey {
                        tenant: tenant(0),
                        limit: format!("limit-{n}").parse().unwrap(),
                        mode: Mode::Live,
                        window: None,
                    },
                    policy: rate(1, 100_000_000_000),
                    rev: Rev::default(),
                    valid_until: UnixMillis(9_000_000_000_000),
                    above: 0,
                    recording: Recording::Unmetered,
                    carved: false,
                });
                Charge { slot, cost: 1 }
            })
            .collect();
        for charge in &charges {
            // Enough demand for a lease that lasts.
            let large = [Charge { cost: 2_000_000, ..*charge }];
            for n in 0..4 {
                isolate.admit(&large, now);
                let (call, _ticket) = isolate.take(OpId(n), None, &large, vec![], None, now);
                isolate.answered(&limiter.step(&call, now).0, now);
            }
        }
        // The only place that reads a clock: to measure, not to decide.
        #[allow(clippy::disallowed_methods)]
        let start = std::time::Instant::now();
        let mut admitted = 0;
        for _ in 0..ROUNDS {
            admitted += u64::from(isolate.admit(black_box(&charges), now) == Admission::Admit);
        }
        let each = start.elapsed().as_nanos() as u64 / ROUNDS;
        println!("{limits} limits: {each} ns an admission");
        assert_eq!(admitted, ROUNDS);
        assert!(each < 1_000);
    }
}
