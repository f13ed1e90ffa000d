//! What the gate recalls of a request is where it would walk.
//!
//! A gate meets requests of a few texts in any order, while documents change, keys are revoked, tenants are suspended and time
//! goes on past every end. Whenever it recalls a request, a gate with the same documents that never met any must walk it to the
//! same standpoint.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test may stop")]

use proptest::prelude::*;
use serde_json::{Value, json};
use tollgate::domain::api_key::{ApiKey, KeyRing, Mode};
use tollgate::domain::catalog::Catalog;
use tollgate::domain::decision::Code;
use tollgate::domain::document::Document;
use tollgate::domain::gate::{Gate, Request, Standpoint, Step};
use tollgate::domain::id::{Jurisdiction, KeyId, TenantId};
use tollgate::domain::time::UnixMillis;

const TENANTS: usize = 2;
const PATHS: [&str; 6] =
    ["/gate/v1/reports", "/gate//v1/%72eports?a=1", "/gate/v1/items/7", "/gate/v1/items/8?a", "/gate/v2", "/other"];
const METHODS: [&str; 3] = ["GET", "POST", "OPTIONS"];

/// The documents, as they are published now.
#[derive(Clone)]
struct Published {
    catalog: (u64, Value, UnixMillis),
    tenants: [(u64, Value, UnixMillis); TENANTS],
}

fn tenant(number: usize) -> TenantId {
    TenantId::new(Jurisdiction::Global, UnixMillis(1), [0, 0, 0, u8::try_from(number).unwrap()])
}

fn ring() -> KeyRing {
    KeyRing::new([&[7_u8; 32][..]]).unwrap()
}

/// Each tenant has two keys, one of them for tests.
fn key(of: usize, number: u64) -> ApiKey {
    let mode = if number == 0 { Mode::Live } else { Mode::Test };
    ring().mint(mode, tenant(of), KeyId::new(number), [9; 16])
}

#[derive(Clone, Debug)]
enum Event {
    Ask { method: usize, path: usize, tenant: usize, key: u64, bearer: bool, times: usize },
    Wait(u64),
    Catalog { rule: &'static str, unmatched: &'static str, lasts_ms: u64 },
    Tenant { number: usize, status: &'static str, revoked: bool, swapped: bool, until: Option<u64>, lasts_ms: u64 },
}

fn events() -> impl Strategy<Value = Event> {
    let method = prop_oneof![8 => Just(0), 1 => 1..METHODS.len()];
    let path = prop_oneof![8 => Just(0), 1 => 1..PATHS.len()];
    let ask = (method, path, 0..TENANTS, 0..2_u64, prop::bool::weighted(0.1), 1..4_usize)
        .prop_map(|(method, path, tenant, key, bearer, times)| Event::Ask { method, path, tenant, key, bearer, times });
    let lasts_ms = prop_oneof![3 => Just(100_000_u64), 1 => Just(2_000)];
    let rule = prop::sample::select(vec!["/v1/reports", "/v1/items/{id}", "/v1/{*rest}"]);
    let unmatched = prop::sample::select(vec!["allow", "deny"]);
    let catalog = (rule, unmatched, lasts_ms.clone()).prop_map(|(rule, unmatched, lasts_ms)| Event::Catalog {
        rule,
        unmatched,
        lasts_ms,
    });
    let status = prop::sample::select(vec!["active", "active", "suspended"]);
    let until = prop::option::of(0..4_000_u64);
    let changed = (0..TENANTS, status, any::<bool>(), any::<bool>(), until, lasts_ms).prop_map(
        |(number, status, revoked, swapped, until, lasts_ms)| Event::Tenant {
            number,
            status,
            revoked,
            swapped,
            until,
            lasts_ms,
        },
    );
    prop_oneof![20 => ask, 4 => (0..3_000_u64).prop_map(Event::Wait), 1 => catalog, 2 => changed]
}

fn catalog(rule: &str, unmatched: &str) -> Value {
    let routes = json!([{ "method": "GET", "path": rule }, { "method": "POST", "path": "/v1/reports" }]);
    let origin = |target: Value| json!({ "target": target, "unmatched": unmatched, "routes": routes });
    json!({ "plans": { "pro": { "version": 1 } }, "origins": { "another": origin(json!("demo")), "default": origin(json!({ "service": "API" })) } })
}

fn document(number: usize, status: &str, revoked: bool, swapped: bool, until: Option<u64>) -> Value {
    let record = |id: u64| {
        let key = key(number, id);
        let mode = if id == 0 { "live" } else { "test" };
        let mut record = json!({ "id": key.id(), "hash": key.hash(), "mode": mode, "revoked": revoked && id == 0 });
        if let Some(until) = until {
            record["until"] = json!(until);
        }
        record
    };
    let keys = if swapped { [record(1), record(0)] } else { [record(0), record(1)] };
    json!({ "tenant": tenant(number), "status": status, "shard": "global-1", "level": { "subscription": { "plan": "pro", "anchor": 1 } }, "keys": keys })
}

fn teach(gate: &mut Gate, published: &Published, now: UnixMillis) {
    let (serial, body, expires) = &published.catalog;
    let body = serde_json::from_value::<Catalog>(body.clone()).unwrap();
    let plan = json!({ "plan": "pro", "version": 1, "content": { "title": "Pro" } });
    gate.take_plan(Document { serial: 1, expires: UnixMillis(u64::MAX), body: serde_json::from_value(plan).unwrap() });
    gate.take_catalog(Document { serial: *serial, expires: *expires, body }, now).unwrap();
    for (serial, body, expires) in &published.tenants {
        let body = serde_json::from_value(body.clone()).unwrap();
        gate.take_tenant(Document { serial: *serial, expires: *expires, body }, 100, true, now);
    }
}

/// All that a standpoint says, but for who remembers it.
fn said(standpoint: &Standpoint<'_, '_>) -> String {
    let Standpoint { passage, resident, key, mode, route, number, .. } = standpoint;
    let plan = resident.plan().map(|plan| plan.version);
    format!("{passage:?} {} {plan:?} {key} {mode} {route:?} {number}", resident.tenant().tenant)
}

/// A key that only Tollgate can have made and that no document lists is asked about once, whatever comes of it, and then again later.
#[test]
fn a_key_that_is_not_listed_is_asked_about_once() {
    let published = Published {
        catalog: (1, catalog("/v1/reports", "allow"), UnixMillis(u64::MAX)),
        tenants: [0, 1].map(|number| (1, document(number, "active", false, false, None), UnixMillis(u64::MAX))),
    };
    let mut gate = Gate::new(7);
    let text = key(0, 2).reveal();
    let asks = |gate: &mut Gate, now: u64| {
        let now = UnixMillis(now);
        let request = Request {
            text: "",
            method: "GET",
            url: "https://a/gate/v1/reports",
            api_key: &text,
            authorization: "",
            waits: true,
            preflight: false,
            now,
        };
        let asks = match gate.walk(&request, &ring()) {
            Step::Missing(_) => true,
            Step::Refuse(refused) => {
                assert_eq!(refused.code, Code::KeyInvalid);
                false
            }
            _ => panic!("it passes"),
        };
        if asks {
            teach(gate, &published, now);
        }
        asks
    };
    let asked: Vec<bool> = [0, 0, 1, 2, 4_999, 5_001, 5_002].map(|after| asks(&mut gate, 1_000_000 + after)).to_vec();
    assert_eq!(asked, [true, true, false, false, false, true, false], "for the catalog, then its owner");
}

/// How often anything was recalled.
fn play(events: Vec<Event>) -> usize {
    let mut now = UnixMillis(1_000_000);
    let ends = now.plus(100_000);
    let mut published = Published {
        catalog: (1, catalog("/v1/reports", "allow"), ends),
        tenants: std::array::from_fn(|number| (1, document(number, "active", false, false, None), ends)),
    };
    let mut gate = Gate::new(1);
    teach(&mut gate, &published, now);
    let mut recalled = 0;
    for event in events {
        match event {
            Event::Wait(ms) => now = now.plus(ms),
            Event::Catalog { rule, unmatched, lasts_ms } => {
                published.catalog = (published.catalog.0 + 1, catalog(rule, unmatched), now.plus(lasts_ms));
                teach(&mut gate, &published, now);
            }
            Event::Tenant { number, status, revoked, swapped, until, lasts_ms } => {
                let until = until.map(|ms| now.plus(ms).0);
                let body = document(number, status, revoked, swapped, until);
                published.tenants[number] = (published.tenants[number].0 + 1, body, now.plus(lasts_ms));
                teach(&mut gate, &published, now);
            }
            Event::Ask { method, path, tenant, key: number, bearer, times } => {
                let (method, key) = (METHODS[method], key(tenant, number).reveal());
                let url = format!("https://api.example.com{}", PATHS[path]);
                let (api_key, authorization) =
                    if bearer { (String::new(), format!("Bearer {key}")) } else { (key, String::new()) };
                let text = format!("{method}\n{url}\n{api_key}\n{authorization}");
                let request = Request {
                    text: &text,
                    method,
                    url: &url,
                    api_key: &api_key,
                    authorization: &authorization,
                    waits: false,
                    preflight: method == "OPTIONS",
                    now,
                };
                for _ in 0..times {
                    let found = gate.recall(&text, now).map(|standpoint| said(&standpoint));
                    let Some(found) = found else {
                        gate.walk(&request, &ring());
                        continue;
                    };
                    recalled += 1;
                    let mut other = Gate::new(2);
                    teach(&mut other, &published, now);
                    match other.walk(&request, &ring()) {
                        Step::Way(standpoint) => assert_eq!(found, said(&standpoint)),
                        _ => panic!("recalled, and walked elsewhere: {found}"),
                    }
                }
            }
        }
    }
    recalled
}

proptest! {
    #[test]
    fn what_is_recalled_is_where_it_would_walk(events in prop::collection::vec(events(), 0..400)) {
        play(events);
    }
}

#[test]
fn what_is_met_a_third_time_is_recalled() {
    let ask = |method, path, times| Event::Ask { method, path, tenant: 0, key: 0, bearer: false, times };
    assert_eq!(play(vec![ask(0, 0, 3), ask(0, 1, 3), ask(0, 0, 1)]), 3);
    assert_eq!(play(vec![ask(2, 0, 3)]), 0, "whether it is a preflight is not in the text");
}

#[test]
fn somebody_elses_credentials_are_not_kept() {
    let (now, ends) = (UnixMillis(1_000_000), UnixMillis(2_000_000));
    let tenants = std::array::from_fn(|number| (1, document(number, "active", false, false, None), ends));
    let mut gate = Gate::new(1);
    teach(&mut gate, &Published { catalog: (1, catalog("/v1/reports", "allow"), ends), tenants }, now);
    let (key, url) = (key(0, 0).reveal(), "https://api.example.com/gate/v1/reports");
    let mut recalls = |authorization: &str| {
        let text = format!("GET\n{url}\n{key}\n{authorization}");
        let request = Request {
            text: &text,
            method: "GET",
            url,
            api_key: &key,
            authorization,
            waits: false,
            preflight: false,
            now,
        };
        for _ in 0..3 {
            assert!(matches!(gate.walk(&request, &ring()), Step::Way(_)));
        }
        gate.recall(&text, now).is_some()
    };
    assert!(recalls("") && !recalls("Bearer of-the-origin"));
}
