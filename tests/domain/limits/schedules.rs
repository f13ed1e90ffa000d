//! Random schedules: whole worlds decided by a seed, every interval checked.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use super::random::Random;
use super::world::{Counts, Faults, Limit, Setup, Site, World, quota, rate};
use tollgate::domain::limit::{Policy, Recording};

/// How many seeds by default: a tenth of a full run is 1,000, and this a part of that so that it takes seconds.
const SEEDS: u64 = 300;

/// The world that a seed makes: which limits at which levels, how many isolates, and what goes wrong.
pub(crate) fn setup(seed: u64) -> Setup {
    let mut random = Random::new(seed ^ 0xabcd_ef01);
    let r = &mut random;
    let tokens = r.pick(&[5, 20, 100, 400]);
    let main = rate(tokens, tokens * r.pick(&[1, 2, 4]));
    let limit = |name, policy, owner, recording| Limit { name, policy, owner, recording };
    let unmetered = Recording::Unmetered;
    let per_minute = Policy::Rate { tokens: tokens * 40, interval_ms: 60_000, burst: tokens * 3 };
    let metered = r.pick(&[Recording::Leased, unmetered]);
    let (limits, parents): (Vec<Limit>, Vec<Option<usize>>) = match seed % 6 {
        0 => (vec![limit("rps", main, 0, unmetered)], vec![None]),
        1 => {
            let quota = quota(tokens * r.within(3, 60));
            let limits = vec![
                limit("rps", main, 0, unmetered),
                limit("rpm", per_minute, 0, unmetered),
                limit("units", quota, 0, metered),
            ];
            (limits, vec![None])
        }
        // share: children draw on the parent's bucket alone
        2 => (vec![limit("rps", main, 0, metered)], vec![None, Some(0), Some(0)]),
        // cap: a bucket of their own as well
        3 => {
            let own = rate(tokens.div_ceil(2), tokens);
            (vec![limit("rps", main, 0, unmetered), limit("own", own, 1, metered)], vec![None, Some(0)])
        }
        // three levels
        4 => (vec![limit("rps", main, 0, unmetered)], vec![None, Some(0), Some(1)]),
        _ => (vec![limit("units", quota(tokens * r.within(3, 60)), 0, metered)], vec![None, Some(0)]),
    };
    let isolates = r.pick(&[1, 2, 3, 5, 10, 30, 100]).min(if tokens < 20 { 10 } else { 100 });
    let load = r.pick(&[0.3, 0.8, 1.5, 4.0]);
    let sites = (0..isolates)
        .map(|n| {
            let limiter = (n as usize) % parents.len();
            // A site is charged for what its limiter or one above it owns.
            let above = |owner: usize| {
                let mut at = Some(limiter);
                while let Some(here) = at {
                    if here == owner {
                        return true;
                    }
                    at = parents[here];
                }
                false
            };
            let mine = limits.iter().enumerate().filter(|(_, limit)| above(limit.owner));
            let charges = mine.map(|(n, _)| (n, 1)).collect();
            Site { limiter, charges, per_second: tokens as f64 * load / isolates as f64 }
        })
        .collect();
    let faults = Faults {
        loss: r.pick(&[0.0, 3.0, 20.0]),
        duplicates: r.pick(&[0.0, 5.0, 30.0]),
        late: r.pick(&[0.0, 2.0, 10.0]),
        isolate_crashes_per_minute: r.pick(&[0.0, 6.0, 60.0]),
        limiter_crashes_per_minute: r.pick(&[0.0, 3.0, 20.0]),
        jumps_per_minute: r.pick(&[0.0, 0.0, 3.0]),
        steps_back_per_minute: r.pick(&[0.0, 0.0, 3.0]),
        policy_changes_per_minute: r.pick(&[0.0, 0.0, 6.0]),
        drift: r.chance(60.0),
        lag: r.chance(60.0),
        quiet: r.chance(30.0),
    };
    let large = r.chance(40.0).then(|| (20, (tokens / 2).max(2), r.chance(70.0)));
    let reserves = r.chance(30.0).then_some(10);
    Setup { limits, parents, sites, faults, large, reserves, resends: r.chance(50.0), seconds: 25, idle_seconds: 0 }
}

#[test]
fn no_schedule_breaks_the_bound() {
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse().ok());
    if let Some(seed) = number("SEED") {
        let setup = setup(seed);
        println!("{setup:#?}");
        let mut world = World::new(setup, seed);
        world.print = true;
        let world = world.run();
        println!("{:#?}\n{:?}", world.counts, world.excesses());
        world.check(seed);
        return;
    }
    let seeds = number("SEEDS").unwrap_or(SEEDS);
    let next = AtomicU64::new(0);
    let sum = Mutex::new((Counts::default(), f64::MIN));
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                while let Some(seed) = Some(next.fetch_add(1, Ordering::Relaxed)).filter(|seed| *seed < seeds) {
                    let world = World::new(setup(seed), seed).run();
                    world.check(seed);
                    let mut sum = sum.lock().unwrap();
                    sum.0 += &world.counts;
                    sum.1 = world.excesses().iter().fold(sum.1, |closest, limit| closest.max(limit.1));
                    if seed % 500 == 499 {
                        println!("{} of {seeds} seeds", seed + 1);
                    }
                }
            });
        }
    });
    let (total, closest) = sum.into_inner().unwrap();
    println!("{seeds} schedules, the closest {:.3} tokens below its bound: {total:#?}", -closest);
    for (what, count) in [
        ("losses", total.lost),
        ("duplicates", total.duplicated),
        ("late messages", total.late),
        ("isolate crashes", total.isolate_crashes),
        ("limiter crashes", total.limiter_crashes),
        ("jumps", total.jumps),
        ("steps back", total.steps_back),
        ("policy changes", total.policy_changes),
        ("large costs", total.large_admitted),
        ("reservations", total.reserved),
        ("voids", total.voided),
        ("forwards", total.forwarded),
        ("quiet isolates", total.quiet),
    ] {
        assert!(count > 0, "these schedules have no {what}");
    }
}
