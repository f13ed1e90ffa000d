//! What bounds a tenant, of its own limits and of those above it: together nobody gets more than the whole.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test may stop")]

use std::rc::Rc;

use proptest::prelude::*;
use serde_json::{Value, json};
use tollgate::domain::api_key::Mode;
use tollgate::domain::catalog::Catalog;
use tollgate::domain::document::Document;
use tollgate::domain::id::{Jurisdiction, TenantId};
use tollgate::domain::limit::{Incarnation, Policy, Rule};
use tollgate::domain::plan::Amount;
use tollgate::domain::resident::{Asked, HeldPlan, Resident};
use tollgate::domain::tenant::Relation;
use tollgate::domain::time::UnixMillis;

const NOW: UnixMillis = UnixMillis(1_790_000_000_000);

fn tenant(number: u8) -> TenantId {
    TenantId::new(Jurisdiction::Global, UnixMillis(1), [0, 0, 0, number])
}

fn rate(units: u64, burst: u64) -> Amount {
    Amount::Rate { units, per_ms: 1_000, burst }
}

fn quota(units: u64) -> Amount {
    Amount::Quota { units, per: "month".parse().unwrap() }
}

/// A level of a tree: the limit `calls` of its plan, what its children carve of it, and how it stands to the ones above.
#[derive(Clone, Default)]
struct Level {
    limit: Option<Amount>,
    carved: Option<Amount>,
    relation: Option<Relation>,
}

/// The rules that bound the first of these, whose ancestors follow.
fn rules(levels: &[Level]) -> Vec<Rule> {
    let level = |at: usize, of: &Level| {
        let mut level = json!({});
        if of.limit.is_some() {
            level["subscription"] = json!({ "plan": format!("plan-{at}"), "anchor": 1 });
        }
        if let Some(carved) = of.carved {
            level["carved"] = json!({ "calls": carved });
        }
        level
    };
    let relations = |of: &Level| of.relation.map_or(json!({}), |relation| json!({ "calls": relation }));
    let ancestors: Vec<Value> = (1..levels.len())
        .map(|at| {
            let (of, number) = (&levels[at], u8::try_from(at).unwrap());
            json!({ "tenant": tenant(number), "serial": 1, "status": "active", "level": level(at, of), "relations": relations(of) })
        })
        .collect();
    let body = json!({
        "tenant": tenant(0), "status": "active", "shard": "global-1", "level": level(0, &levels[0]),
        "relations": relations(&levels[0]), "ancestors": ancestors,
    });
    let plans = levels.iter().enumerate().map(|(at, of)| {
        let amount = of.limit?;
        let mut limit = match amount {
            Amount::Rate { units, per_ms, burst } => json!({ "rate": { "units": units, "per_ms": per_ms, "burst": burst } }),
            Amount::Quota { units, per } => json!({ "quota": { "units": units, "per": per } }),
        };
        limit["meter"] = json!("calls");
        let plan = json!({ "plan": format!("plan-{at}"), "version": 1, "content": { "title": "A", "limits": { "calls": limit } } });
        let document = Document { serial: 1, expires: UnixMillis(u64::MAX), body: serde_json::from_value(plan).unwrap() };
        Some(Rc::new(HeldPlan { document, stands_in: false }))
    });
    let plans = plans.collect();
    let document = Document { serial: 1, expires: NOW.plus(1_000_000), body: serde_json::from_value(body).unwrap() };
    let mut resident = Resident::new(document, 1_000, Incarnation(1), NOW);
    resident.equip(plans, 1);
    let catalog: Catalog = serde_json::from_value(json!({ "meters": { "calls": {} } })).unwrap();
    let meter = "calls".parse().unwrap();
    let asked = Asked { mode: Mode::Live, route: 0, feature: None, meter: Some(&meter), cost: 1 };
    let way = resident.assess(&catalog, &asked, NOW);
    way.charges.iter().map(|charge| resident.limits.rule(charge.slot).unwrap().clone()).collect()
}

/// Whose each bound is, how many levels up, its capacity, and whether it is carved out.
fn said(levels: &[Level]) -> Vec<(TenantId, u8, u64, bool)> {
    rules(levels).iter().map(|rule| (rule.key.tenant, rule.above, rule.policy.capacity(), rule.carved)).collect()
}

fn owner(limit: Amount, carved: Option<Amount>) -> Level {
    Level { limit: Some(limit), carved, relation: None }
}

fn child(relation: Relation) -> Level {
    Level { relation: Some(relation), ..Level::default() }
}

#[test]
fn a_carve_is_its_own_and_the_less_for_its_parent() {
    let piece = rate(40, 100);
    let organisation = owner(rate(100, 300), Some(piece));
    assert_eq!(said(&[child(Relation::Carve(piece)), organisation.clone()]), [(tenant(0), 0, 100, true)]);
    assert_eq!(said(&[child(Relation::Share), organisation.clone()]), [(tenant(1), 1, 200, false)]);
    assert_eq!(said(std::slice::from_ref(&organisation)), [(tenant(0), 0, 200, false)]);
}

#[test]
fn a_carve_that_is_not_there_to_be_carved_is_a_cap() {
    for (limit, piece) in [
        (rate(100, 300), rate(101, 100)),
        (rate(100, 300), rate(40, 301)),
        (rate(100, 300), quota(10)),
        (quota(1_000), rate(1, 10)),
        (quota(1_000), quota(1_001)),
        (quota(1_000), Amount::Quota { units: 10, per: "day".parse().unwrap() }),
    ] {
        let organisation = owner(limit, Some(piece));
        let whole = match limit {
            Amount::Rate { burst, .. } => burst,
            Amount::Quota { units, .. } => units,
        };
        let [cap, pool] = said(&[child(Relation::Carve(piece)), organisation.clone()])[..] else { panic!() };
        assert_eq!((cap.0, cap.1, cap.3, pool), (tenant(0), 0, false, (tenant(1), 1, whole, false)));
        assert_eq!(said(std::slice::from_ref(&organisation)), [(tenant(0), 0, whole, false)]);
    }
}

#[test]
fn what_a_grandchild_carves_is_a_cap_too() {
    let piece = rate(40, 100);
    let tree = [child(Relation::Carve(piece)), child(Relation::Cap(rate(50, 150))), owner(rate(100, 300), None)];
    assert_eq!(said(&tree), [(tenant(0), 0, 100, false), (tenant(1), 1, 150, false), (tenant(2), 2, 300, false)]);
}

#[test]
fn a_cap_below_two_limits_of_one_name_is_there_once() {
    let tree = [child(Relation::Cap(rate(40, 100))), owner(rate(100, 300), None), owner(rate(200, 600), None)];
    assert_eq!(said(&tree), [(tenant(0), 0, 100, false), (tenant(1), 1, 300, false), (tenant(2), 2, 600, false)]);
}

fn amounts() -> impl Strategy<Value = Amount> {
    prop_oneof![
        8 => (0..60_u64, 1..3_u64, 0..200_u64).prop_map(|(units, seconds, burst)| Amount::Rate { units, per_ms: seconds * 1_000, burst }),
        1 => (0..100_u64).prop_map(quota),
    ]
}

proptest! {
    /// A parent and all children that carve hold no more than the parent's whole limit.
    #[test]
    fn all_parts_are_within_the_whole(pieces in prop::collection::vec(amounts(), 1..5)) {
        let whole = rate(100, 300);
        let carved = pieces[1..].iter().fold(pieces[0], |sum, piece| sum.with(*piece));
        let organisation = owner(whole, Some(carved));
        let children = pieces.iter().flat_map(|piece| rules(&[child(Relation::Carve(*piece)), organisation.clone()]));
        let parts = children.filter(|rule| rule.carved).chain(rules(std::slice::from_ref(&organisation)));
        let (mut bursts, mut per_million_s) = (0, 0);
        for part in parts {
            let Policy::Rate { tokens, interval_ms, burst } = part.policy else { panic!() };
            bursts += burst;
            per_million_s += tokens * 1_000_000_000 / interval_ms;
        }
        prop_assert!(bursts <= 300 && per_million_s <= 100_000_000, "{bursts} {per_million_s}");
    }
}
