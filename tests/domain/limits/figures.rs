//! How much of the ideal is admitted, and for how many calls: the table of limits.md, to be met or beaten.

use super::world::{Faults, Limit, Setup, Site, World, quota, rate};
use tollgate::domain::limit::Recording;

pub(crate) struct Figure {
    pub admitted: f64,
    pub calls: f64,
    pub at_once: f64,
}

/// `isolates` that share `tokens` a second, at `load` times that.
#[derive(Clone, Copy)]
pub(crate) struct Load {
    pub tokens: u64,
    pub burst: u64,
    pub load: f64,
    pub isolates: usize,
    /// Percent of calls that are lost, on their way or on the way back.
    pub loss: f64,
    /// Large costs beside: as in [`Setup`].
    pub large: Option<(u64, u64, bool)>,
}

impl Load {
    pub(crate) const fn new(tokens: u64, burst: u64, load: f64, isolates: usize) -> Self {
        Self { tokens, burst, load, isolates, loss: 0.0, large: None }
    }
}

/// The mean of several schedules.
pub(crate) fn figure(load: Load) -> Figure {
    const SEEDS: u64 = 8;
    let figures: Vec<Figure> = (0..SEEDS).map(|seed| seeded(load, seed)).collect();
    let mean = |of: fn(&Figure) -> f64| figures.iter().map(of).sum::<f64>() / SEEDS as f64;
    Figure { admitted: mean(|f| f.admitted), calls: mean(|f| f.calls), at_once: mean(|f| f.at_once) }
}

fn seeded(Load { tokens, burst, load, isolates, loss, large }: Load, seed: u64) -> Figure {
    let per_second = tokens as f64 * load / isolates as f64;
    let seconds = 100;
    // Of a call either message may be lost.
    let loss = 100.0 * (1.0 - (1.0 - loss / 100.0).sqrt());
    let setup = Setup {
        limits: vec![Limit { name: "rps", policy: rate(tokens, burst), owner: 0, recording: Recording::Unmetered }],
        parents: vec![None],
        sites: vec![Site { limiter: 0, charges: vec![(0, 1)], per_second }; isolates],
        faults: Faults { loss, ..Faults::NONE },
        large,
        reserves: None,
        resends: true,
        seconds,
        idle_seconds: 0,
    };
    let world = World::new(setup, seed).run();
    world.check(seed);
    let spent: u64 = world.marks[0]
        .iter()
        .map(|(_, mark)| if let super::bound::Mark::Admitted(cost) = mark { *cost } else { 0 })
        .sum();
    let ideal = if load < 1.0 { world.counts.offered as f64 } else { (tokens * seconds + burst) as f64 };
    Figure {
        admitted: spent as f64 / ideal,
        calls: world.counts.calls as f64 / world.counts.admitted as f64,
        at_once: world.counts.admitted_at_once as f64 / world.counts.offered as f64,
    }
}

#[test]
fn the_table_of_the_design_is_met_or_beaten() {
    let cells = [(4, 0.0), (20, 3.0), (100, 20.0)];
    // (r, B, load), and for each cell admitted/ideal and calls per admission as the independent model reached them.
    let rows = [
        ((200, 600, 0.8), [(1.000, 0.04), (1.000, 0.16), (0.921, 0.71)]),
        ((200, 600, 1.5), [(0.990, 0.76), (0.991, 1.02), (0.940, 1.24)]),
        ((1000, 4000, 0.8), [(1.000, 0.01), (1.000, 0.03), (0.986, 0.20)]),
        ((1000, 4000, 1.5), [(0.987, 0.56), (0.989, 0.75), (0.938, 1.12)]),
        ((10, 20, 0.8), [(1.000, 0.97), (0.985, 1.03), (0.766, 1.37)]),
    ];
    let mut worse = Vec::new();
    let mut table =
        "| r, B | load | 4 isolates, no loss | 20 isolates, 3 % loss | 100 isolates, 20 % loss |\n".to_owned();
    for ((tokens, burst, load), wanted) in rows {
        table += &format!("| {tokens}, {burst} | {load} |");
        for ((isolates, loss), (admitted, calls)) in cells.into_iter().zip(wanted) {
            let figure = figure(Load { loss, ..Load::new(tokens, burst, load, isolates) });
            table += &format!(" {:.3}, {:.3} ({:.3} at once) |", figure.admitted, figure.calls, figure.at_once);
            // No worse than what the table rounds to the same.
            if figure.admitted < admitted - 0.000_5 || figure.calls > calls + 0.005 {
                worse.push(format!(
                    "r {tokens}, load {load}, {isolates} isolates: {:.3}, {:.3}",
                    figure.admitted, figure.calls
                ));
            }
        }
        table.push('\n');
    }
    println!("{table}");
    let large = figure(Load { large: Some((50, 200, false)), ..Load::new(200, 600, 1.5, 20) });
    println!("2 % of B/3 that never ask again, load 1.5: {:.3}, {:.3}", large.admitted, large.calls);
    assert!(large.admitted >= 0.90, "large costs that are held for nobody");
    assert!(worse.is_empty(), "worse than the design: {worse:#?}");
}

/// A capped team that is refused again and again takes from its organisation what its cap lets it spend, and no more.
#[test]
fn a_capped_team_that_floods_leaves_the_rest_to_its_organisation() {
    let (organisation, cap) = (rate(100, 100), rate(1, 2));
    let limit = |policy, owner| Limit { name: "rps", policy, owner, recording: Recording::Unmetered };
    for isolates in [1, 4] {
        let admitted = |team_per_second: f64| {
            let own = Site { limiter: 0, charges: vec![(0, 1)], per_second: 93.0 / isolates as f64 };
            let team =
                Site { limiter: 1, charges: vec![(1, 1), (0, 1)], per_second: team_per_second / isolates as f64 };
            let setup = Setup {
                limits: vec![limit(organisation, 0), limit(cap, 1)],
                parents: vec![None, Some(0)],
                sites: [vec![own; isolates], vec![team; isolates]].concat(),
                faults: Faults::NONE,
                large: None,
                reserves: None,
                resends: true,
                seconds: 60,
                idle_seconds: 0,
            };
            let world = World::new(setup, 11).run();
            world.check(11);
            let spent = |limit: usize| {
                let marks = world.marks[limit].iter();
                marks
                    .map(|(_, mark)| if let super::bound::Mark::Admitted(cost) = mark { *cost } else { 0 })
                    .sum::<u64>()
            };
            (spent(0) - spent(1), spent(1))
        };
        let (alone, _) = admitted(0.001);
        let (beside, team) = admitted(190.0);
        println!(
            "{isolates} isolates each: the organisation's own {alone} alone, {beside} beside a team that got {team}"
        );
        assert!(beside + team + 60 >= alone, "the organisation was left {beside} of {alone}");
        assert!(team >= 50, "the team was left {team}");
    }
}

/// Of leased meters nothing is lost but to a crash: what a quiet isolate counted is told, and what it held goes back.
#[test]
fn a_quiet_isolate_leaves_no_gap() {
    for (seed, per_second, policy, child) in [
        (1, 0.3, quota(100_000), false),
        (2, 3.0, quota(100_000), false),
        (3, 40.0, quota(1_000_000), false),
        (4, 400.0, rate(2_000, 4_000), false),
        (5, 3.0, quota(100_000), true),
        (6, 40.0, rate(200, 400), true),
    ] {
        let site = Site { limiter: usize::from(child), charges: vec![(0, 1)], per_second };
        let setup = Setup {
            limits: vec![Limit { name: "units", policy, owner: 0, recording: Recording::Leased }],
            parents: if child { vec![None, Some(0)] } else { vec![None] },
            sites: vec![site; 3],
            faults: Faults { quiet: true, ..Faults::NONE },
            large: None,
            reserves: None,
            resends: true,
            seconds: 60,
            idle_seconds: 200,
        };
        let mut world = World::new(setup, seed).run();
        world.check(seed);
        let (counted, told) = world.reported();
        let gap: u64 = (0..=usize::from(child)).map(|limiter| world.gaps(limiter)).sum();
        println!("{per_second} a second, {policy:?}: {told} of {counted} told, gap {gap}");
        assert_eq!((told, gap), (counted, 0));
    }
}

/// Where B is 1000 tokens for each isolate, a request hardly ever waits for the limiter.
#[test]
fn at_four_fifths_of_the_limit_hardly_a_request_waits() {
    for (tokens, burst, isolates) in [(1_000, 4_000, 4), (200, 4_000, 4), (1_000, 20_000, 20)] {
        let figure = figure(Load::new(tokens, burst, 0.8, isolates));
        println!(
            "r {tokens}, B {burst}, {isolates} isolates: {:.4} at once, {:.4} calls",
            figure.at_once, figure.calls
        );
        assert!(figure.at_once >= 0.99 && figure.calls <= 0.01);
    }
}

/// Where B is a few tokens for each isolate, a request within the limit is hardly ever refused because others hold some, or for
/// long after the bucket ran low.
#[test]
fn a_small_limit_admits_what_is_within_it() {
    for (tokens, burst, isolates) in [(10, 20, 1), (10, 20, 3), (10, 30, 4), (10, 40, 4)] {
        let figure = figure(Load::new(tokens, burst, 0.8, isolates));
        println!(
            "r {tokens}, B {burst}, {isolates} isolates: {:.4} admitted, {:.4} calls",
            figure.admitted, figure.calls
        );
        assert!(figure.admitted >= 0.995 && figure.calls < 0.5);
    }
}
