//! The way of usage events into the ledger: what leaves the outbox, what is tried in halves, what is set aside.
//!
//! Invariant: an event leaves the outbox only when the ledger confirmed it with the same fingerprint, or when it stands in
//! quarantine. Nothing is dropped.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::api_key::Mode;
use super::map::Map;
use super::name::MeterName;
use super::time::UnixMillis;

/// A report of use, on its way to the ledger.
#[derive(Clone, Debug, PartialEq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Event {
    /// Who reports: `gate` for what the gate admitted itself.
    pub source: String,
    /// Unique for its tenant and source, for ever.
    pub id: String,
    /// What was used.
    pub meter: MeterName,
    /// Billed or not.
    pub mode: Mode,
    /// How much; of a reversal, how much less.
    pub quantity: u64,
    /// The event that this one takes back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reverses: Option<String>,
    /// When.
    pub at: UnixMillis,
    /// The beginning of the usage period it belongs to.
    pub period: UnixMillis,
    /// Route, key, status class and so on.
    #[serde(default)]
    pub detail: serde_json::Value,
}

impl Event {
    /// The event that takes this one back. Its id follows from this one's, so that taking back twice is once.
    #[must_use]
    pub fn reversed(&self) -> Self {
        Self { id: format!("{}~", self.id), reverses: Some(self.id.clone()), ..self.clone() }
    }

    /// What distinguishes this event from another with the same id: the SHA-256 of what was used, and how. When, and by which
    /// request, is not in it: what is asked again is the same use.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        let mut used = Self { at: UnixMillis(0), period: UnixMillis(0), ..self.clone() };
        if let Some(request) = used.detail.get_mut("request") {
            *request = serde_json::Value::Null;
        }
        // Maps of serde_json are ordered by key, so equal events have equal texts.
        let text = serde_json::to_vec(&used).unwrap_or_default();
        URL_SAFE_NO_PAD.encode(Sha256::digest(text))
    }
}

/// An event in the outbox.
#[derive(Clone, Debug, PartialEq)]
pub struct Queued {
    /// Its place in the outbox.
    pub seq: u64,
    /// How often the ledger refused it alone.
    pub refusals: u32,
    /// The event.
    pub event: Event,
}

/// What the ledger said of a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Said {
    /// Committed: what it now holds of the batch, `(source, id, fingerprint)`.
    Holds(Vec<(String, String, String)>),
    /// Something in the batch breaks a rule of the ledger; nothing of it was stored.
    Refused(String),
    /// No answer. Whether it was committed is not known, and need not be: the same events may be sent again.
    Silent(String),
}

/// What to do with the rows of a batch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Next {
    /// Confirmed: these places leave the outbox.
    pub done: Vec<u64>,
    /// These leave the outbox for quarantine, each with its reason.
    pub quarantine: Vec<(u64, String)>,
    /// Refused alone, and to be tried again.
    pub refused: Vec<u64>,
    /// Parts of the batch to try by themselves.
    pub retry: Vec<Vec<u64>>,
    /// Whether to stop and come back later.
    pub wait: Option<String>,
}

/// How often an event is tried alone before it is set aside: once could be a schema on its way, three times is the event.
pub const REFUSALS: u32 = 3;

/// What becomes of `batch` after what the ledger `said` of it.
#[must_use]
pub fn settle(batch: &[Queued], said: &Said) -> Next {
    match said {
        Said::Silent(reason) => Next { wait: Some(reason.clone()), ..Next::default() },
        Said::Refused(reason) => match batch {
            [] => Next::default(),
            [alone] if alone.refusals + 1 >= REFUSALS => {
                Next { quarantine: vec![(alone.seq, reason.clone())], ..Next::default() }
            }
            [alone] => Next { refused: vec![alone.seq], ..Next::default() },
            many => {
                let (left, right) = many.split_at(many.len() / 2);
                let places = |part: &[Queued]| part.iter().map(|queued| queued.seq).collect();
                Next { retry: vec![places(left), places(right)], ..Next::default() }
            }
        },
        Said::Holds(held) => {
            let held: Map<(&str, &str), &str> =
                held.iter().map(|(source, id, fingerprint)| ((&**source, &**id), &**fingerprint)).collect();
            let mut next = Next::default();
            for queued in batch {
                let event = &queued.event;
                match held.get(&(&*event.source, &*event.id)) {
                    Some(fingerprint) if **fingerprint == *event.fingerprint() => next.done.push(queued.seq),
                    Some(_) => {
                        next.quarantine.push((queued.seq, "the ledger holds another event with this id".to_owned()));
                    }
                    None => next.wait = Some("the ledger does not show what it committed".to_owned()),
                }
            }
            next
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::{BTreeMap, BTreeSet};

    fn queued(seq: u64, quantity: u64) -> Queued {
        let event = Event {
            source: "gate".into(),
            id: format!("e{seq}"),
            meter: "api_calls".parse().unwrap(),
            mode: Mode::Live,
            quantity,
            reverses: None,
            at: UnixMillis(1_795_000_000_000),
            period: UnixMillis(1_794_000_000_000),
            detail: serde_json::Value::Null,
        };
        Queued { seq, refusals: 0, event }
    }

    /// A ledger that refuses any batch with a poisoned event, as D1 does, and holds what it took.
    #[derive(Default)]
    struct Ledger {
        held: BTreeMap<(String, String), String>,
        deliveries: usize,
    }

    impl Ledger {
        fn offer(&mut self, batch: &[Queued], poisoned: &BTreeSet<u64>) -> Said {
            self.deliveries += 1;
            if batch.iter().any(|queued| poisoned.contains(&queued.seq)) {
                return Said::Refused("CHECK constraint failed".into());
            }
            for Queued { event, .. } in batch {
                self.held.entry((event.source.clone(), event.id.clone())).or_insert_with(|| event.fingerprint());
            }
            Said::Holds(
                batch
                    .iter()
                    .map(|Queued { event, .. }| {
                        let key = (event.source.clone(), event.id.clone());
                        (key.0.clone(), key.1.clone(), self.held[&key].clone())
                    })
                    .collect(),
            )
        }
    }

    #[test]
    fn the_same_use_has_the_same_fingerprint_whenever_it_is_told() {
        let detail = |request: &str, route: &str| serde_json::json!({ "route": route, "request": request });
        let told = |ms, request, route, quantity| Event {
            at: UnixMillis(ms),
            detail: detail(request, route),
            ..queued(1, quantity).event
        };
        let first = told(1, "req_1", "/a", 5).fingerprint();
        assert_eq!(told(2, "req_2", "/a", 5).fingerprint(), first);
        assert_ne!(told(1, "req_1", "/b", 5).fingerprint(), first);
        assert_ne!(told(1, "req_1", "/a", 6).fingerprint(), first);
    }

    proptest! {
        #[test]
        fn a_poisoned_event_is_set_aside_and_the_rest_flows_on(
            count in 1_u64..40,
            poisoned in prop::collection::btree_set(0_u64..40, 0..5),
            silent in prop::collection::vec(any::<bool>(), 200),
        ) {
            let mut outbox: BTreeMap<u64, Queued> = (0..count).map(|seq| (seq, queued(seq, 1))).collect();
            let mut ledger = Ledger::default();
            let mut quarantine = BTreeSet::new();
            let mut silent = silent.into_iter();
            for _round in 0..400 {
                let mut parts: Vec<Vec<u64>> = vec![outbox.keys().copied().collect()];
                while let Some(part) = parts.pop() {
                    let batch: Vec<_> = part.iter().filter_map(|seq| outbox.get(seq).cloned()).collect();
                    let mut said = ledger.offer(&batch, &poisoned);
                    if silent.next() == Some(true) {
                        said = Said::Silent("reply lost".into());
                    }
                    let next = settle(&batch, &said);
                    for seq in next.done { outbox.remove(&seq); }
                    for (seq, _) in next.quarantine { outbox.remove(&seq); quarantine.insert(seq); }
                    for seq in next.refused { outbox.get_mut(&seq).unwrap().refusals += 1; }
                    if next.wait.is_some() { break; }
                    parts.extend(next.retry);
                }
                if outbox.is_empty() { break; }
            }
            prop_assert!(outbox.is_empty());
            let expected: BTreeSet<_> = poisoned.into_iter().filter(|seq| *seq < count).collect();
            prop_assert_eq!(&quarantine, &expected);
            prop_assert_eq!(ledger.held.len() as u64, count - expected.len() as u64);
        }
    }

    #[test]
    fn another_event_with_the_same_id_is_set_aside_not_lost() {
        let (first, second) = (queued(1, 5), Queued { seq: 2, ..queued(1, 7) });
        let mut ledger = Ledger::default();
        let said = ledger.offer(&[first.clone(), second.clone()], &BTreeSet::new());
        let next = settle(&[first, second], &said);
        assert_eq!(next.done, [1]);
        assert_eq!(next.quarantine.iter().map(|(seq, _)| *seq).collect::<Vec<_>>(), [2]);
    }

    #[test]
    fn the_stored_form_of_an_event_is_pinned() {
        let text = serde_json::to_string(&queued(1, 5).event).unwrap();
        assert_eq!(text, include_str!("../../tests/golden/event.json").trim_end());
        assert_ne!(queued(1, 5).event.fingerprint(), queued(1, 6).event.fingerprint());
    }
}
