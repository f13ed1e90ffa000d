//! A cache bounded in bytes, for what an isolate keeps of its tenants.
//!
//! Invariant: the weights of what is kept never add up to more than the bound. What goes first is what was not touched
//! since the hand last came round (CLOCK), so that a hit costs one flag and not a reordered list.

use rustc_hash::FxHashMap;
use std::hash::Hash;

/// Where an entry is, for as long as it stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    at: usize,
    /// Tells the entry from a later one in the same place.
    birth: u64,
}

struct Entry<K, V> {
    key: K,
    value: V,
    weight: usize,
    birth: u64,
    touched: bool,
}

/// A map from `K` to `V` within a number of bytes.
pub struct Cache<K, V> {
    entries: Vec<Option<Entry<K, V>>>,
    // A hasher without a seed, and std's has none on wasm32 either: no stranger chooses these keys, which are ids of tenants whose
    // API key carried a sound MAC.
    places: FxHashMap<K, usize>,
    free: Vec<usize>,
    hand: usize,
    births: u64,
    weight: usize,
    bound: usize,
}

impl<K: Copy + Eq + Hash, V> Cache<K, V> {
    /// An empty cache of at most `bound` bytes.
    #[must_use]
    pub fn new(bound: usize) -> Self {
        Self {
            entries: Vec::new(),
            places: FxHashMap::default(),
            free: Vec::new(),
            hand: 0,
            births: 0,
            weight: 0,
            bound,
        }
    }

    /// Where `key` is.
    #[must_use]
    pub fn find(&self, key: &K) -> Option<Place> {
        let at = *self.places.get(key)?;
        let birth = self.entries.get(at)?.as_ref()?.birth;
        Some(Place { at, birth })
    }

    /// What is at `place`, if it is still there. Counts as a use.
    pub fn get(&mut self, place: Place) -> Option<&mut V> {
        let entry = self.entries.get_mut(place.at)?.as_mut().filter(|entry| entry.birth == place.birth)?;
        entry.touched = true;
        Some(&mut entry.value)
    }

    /// What is at `place`, without counting as a use.
    #[must_use]
    pub fn peek(&self, place: Place) -> Option<&V> {
        self.entries.get(place.at)?.as_ref().filter(|entry| entry.birth == place.birth).map(|entry| &entry.value)
    }

    /// Keeps `value`, of `weight` bytes, in place of what was there under `key`; puts out what it needs the room of.
    /// Something heavier than the whole bound is not kept.
    pub fn insert(&mut self, key: K, value: V, weight: usize) -> Option<Place> {
        self.remove(&key);
        while self.weight + weight > self.bound {
            self.evict(None)?;
        }
        self.births += 1;
        let birth = self.births;
        // Untouched: a stranger that never comes back does not put out a regular.
        let entry = Entry { key, value, weight, birth, touched: false };
        let at = if let Some(at) = self.free.pop() {
            *self.entries.get_mut(at)? = Some(entry);
            at
        } else {
            self.entries.push(Some(entry));
            self.entries.len() - 1
        };
        self.places.insert(key, at);
        self.weight += weight;
        Some(Place { at, birth })
    }

    /// Says that what is at `place` now weighs `weight`; puts out others for it where it must, and never itself.
    pub fn reweigh(&mut self, place: Place, weight: usize) {
        let Some(entry) = self.entries.get_mut(place.at).and_then(Option::as_mut).filter(|e| e.birth == place.birth)
        else {
            return;
        };
        self.weight = self.weight - entry.weight + weight;
        entry.weight = weight;
        entry.touched = true;
        while self.weight > self.bound && self.evict(Some(place.at)).is_some() {}
    }

    /// Forgets `key`.
    pub fn remove(&mut self, key: &K) -> Option<V> {
        let at = self.places.remove(key)?;
        let entry = self.entries.get_mut(at)?.take()?;
        self.free.push(at);
        self.weight -= entry.weight;
        Some(entry.value)
    }

    /// How many entries are kept.
    #[must_use]
    pub fn len(&self) -> usize {
        self.places.len()
    }

    /// Whether nothing is kept.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// The bytes that are kept, by the weights given.
    #[must_use]
    pub const fn weight(&self) -> usize {
        self.weight
    }

    /// Every value, in no order.
    pub fn values_mut(&mut self) -> impl Iterator<Item = &mut V> {
        self.entries.iter_mut().filter_map(|entry| entry.as_mut().map(|entry| &mut entry.value))
    }

    /// Puts one entry out that is not at `spared`; none when there is none. Two rounds of the hand pass every entry untouched.
    fn evict(&mut self, spared: Option<usize>) -> Option<()> {
        if self.places.len() <= usize::from(spared.is_some()) {
            return None;
        }
        loop {
            self.hand = (self.hand + 1) % self.entries.len().max(1);
            let Some(entry) = self.entries.get_mut(self.hand).and_then(Option::as_mut) else { continue };
            if !std::mem::replace(&mut entry.touched, false) && spared != Some(self.hand) {
                let key = entry.key;
                self.remove(&key);
                return Some(());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_is_used_stays_and_what_is_not_goes() {
        let mut cache = Cache::new(30);
        let used = cache.insert('a', 1, 10).unwrap();
        let idle = cache.insert('b', 2, 10).unwrap();
        cache.insert('c', 3, 10);
        for key in 'd'..'z' {
            assert!(cache.get(used).is_some(), "what is used was put out");
            cache.insert(key, 0, 10);
        }
        assert_eq!(cache.get(idle), None);
    }

    #[test]
    fn what_grows_puts_out_others_and_stays() {
        let mut cache = Cache::new(30);
        let places: Vec<_> = ('a'..='c').filter_map(|key| cache.insert(key, key, 10)).collect();
        for place in &places {
            assert!(cache.get(*place).is_some());
        }
        cache.reweigh(places[1], 30);
        assert_eq!((cache.len(), cache.weight(), cache.get(places[1])), (1, 30, Some(&mut 'b')));
    }

    #[test]
    fn a_place_does_not_lead_to_a_later_entry() {
        let mut cache = Cache::new(10);
        let first = cache.insert('a', 1, 10).unwrap();
        cache.insert('b', 2, 10);
        assert_eq!(cache.get(first), None);
        assert_eq!(cache.insert('c', 3, 11), None);
    }

    proptest! {
        #[test]
        fn the_bound_holds_and_the_map_agrees(ops in prop::collection::vec((0_u8..20, 0_usize..40, 0_u8..4), 0..200)) {
            let mut cache = Cache::new(100);
            for (key, weight, op) in ops {
                match op {
                    0 => { cache.remove(&key); }
                    1 => { if let Some(place) = cache.find(&key) { cache.reweigh(place, weight); } }
                    _ => { cache.insert(key, key, weight); }
                }
                prop_assert!(cache.weight() <= 100);
                prop_assert_eq!(cache.values_mut().count(), cache.len());
                for key in 0..20 {
                    if let Some(place) = cache.find(&key) { prop_assert_eq!(cache.get(place), Some(&mut { key })); }
                }
            }
        }
    }
}
