//! Large costs do get in: a cost of at most B that keeps asking is admitted within the life of a lease, the time to mint it
//! and what waits ahead of it, and one retry.

use tollgate::domain::limit::{Recording, TTL_MS, lease_life};

use super::world::{Faults, Limit, Setup, Site, World, rate};

#[test]
fn a_large_cost_that_keeps_asking_is_admitted_in_time() {
    for (seed, cost, isolates, load) in [(1, 600, 4, 1.5), (2, 300, 20, 1.5), (3, 600, 20, 4.0), (4, 100, 4, 0.8)] {
        let (tokens, burst) = (200, 600);
        let setup = Setup {
            limits: vec![Limit { name: "rps", policy: rate(tokens, burst), owner: 0, recording: Recording::Unmetered }],
            parents: vec![None],
            sites: vec![
                Site { limiter: 0, charges: vec![(0, 1)], per_second: tokens as f64 * load / isolates as f64 };
                isolates
            ],
            faults: Faults::NONE,
            // So rare that seldom more than one waits.
            large: Some((4_000, cost, true)),
            reserves: None,
            resends: true,
            seconds: 200,
            idle_seconds: 0,
        };
        let world = World::new(setup, seed).run();
        world.check(seed);
        let waits = world.waits();
        // What waits ahead: seldom more than one other, of the same cost.
        let mint = 2 * cost * 1_000 / tokens;
        let allowed = lease_life(TTL_MS) + mint + 1_000;
        let longest = waits.iter().max().copied().unwrap_or(0);
        println!(
            "cost {cost}, {isolates} isolates, load {load}: {} admitted, longest wait {longest} of {allowed} ms",
            waits.len()
        );
        assert!(waits.len() > 3, "too few large costs to tell");
        assert!(longest <= allowed, "waited {longest} ms, allowed {allowed}");
        assert_eq!(world.overdue(allowed), 0, "still waiting at the end");
    }
}
