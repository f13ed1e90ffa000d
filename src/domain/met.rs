//! What was made of texts that come again and again, by the text.
//!
//! Invariant: what is found under a text was noted under exactly that text. Each text has one place, so looking it up takes one step
//! and the room is bounded. It takes the place from another one only when it comes there twice in a row, so that what comes once
//! neither costs an allocation nor puts out what comes often.

use std::hash::Hasher;

use rustc_hash::FxHasher;

/// How many places there are.
const PLACES: usize = 1 << 12;
/// The longest text that is remembered, in bytes: with paths and beginnings of verdicts noted under them, 8 MiB at most.
const LONGEST: usize = 512;

/// A memory of `T` by text.
pub struct Met<T>(Vec<Place<T>>);

struct Place<T> {
    /// The hash of the text that came here last and was not the one that is held.
    last: u32,
    held: Option<Box<Held<T>>>,
}

struct Held<T> {
    text: Box<str>,
    made: T,
}

impl<T> Default for Met<T> {
    fn default() -> Self {
        Self(std::iter::repeat_with(|| Place { last: 0, held: None }).take(PLACES).collect())
    }
}

impl<T> Met<T> {
    /// What was noted under `text`.
    pub fn get(&mut self, text: &str) -> Option<&mut T> {
        let held = self.0.get_mut(place(hash(text)))?.held.as_mut()?;
        is_same(held.text.as_bytes(), text.as_bytes()).then_some(&mut held.made)
    }

    /// Notes what `make` makes of `text`, if it comes for the second time in a row.
    pub fn note(&mut self, text: &str, make: impl FnOnce() -> T) {
        let hash = hash(text);
        let Some(place) = self.0.get_mut(place(hash)).filter(|_| text.len() <= LONGEST) else { return };
        if place.last == hash {
            place.held = Some(Box::new(Held { text: text.into(), made: make() }));
        }
        place.last = hash;
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        *self = Self::default();
    }
}

/// Whether two texts are the same: by words, which takes wasm an eighth of the time that it takes by bytes.
fn is_same(one: &[u8], other: &[u8]) -> bool {
    let ((one, rest), (other, others)) = (one.as_chunks::<8>(), other.as_chunks::<8>());
    one.len() == other.len()
        && one.iter().zip(other).all(|(one, other)| u64::from_ne_bytes(*one) == u64::from_ne_bytes(*other))
        && rest == others
}

/// A hash that tells texts apart well enough to find a place for them; strangers may choose texts that meet in one.
#[expect(clippy::cast_possible_truncation, reason = "the lowest bits are the ones that are mixed best")]
fn hash(text: &str) -> u32 {
    let mut hasher = FxHasher::default();
    hasher.write(text.as_bytes());
    hasher.finish() as u32
}

const fn place(hash: u32) -> usize {
    hash as usize & (PLACES - 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_comes_once_is_not_kept() {
        let mut met = Met::default();
        met.note("a", || panic!("made though it may never come again"));
        assert_eq!(met.get("a"), None);
        met.note("a", || 1);
        assert_eq!(met.get("a"), Some(&mut 1));
        met.clear();
        assert_eq!(met.get("a"), None);
    }

    #[test]
    fn what_comes_often_is_not_put_out_by_what_comes_once() {
        let mut met = Met::default();
        for _ in 0..2 {
            met.note("often", || 0);
        }
        for once in 1..100_000 {
            met.note(&format!("once {once}"), || once);
        }
        assert_eq!(met.get("often"), Some(&mut 0));
    }

    #[test]
    fn a_long_text_is_not_kept() {
        let mut met = Met::default();
        let (long, longer) = ("x".repeat(LONGEST), "x".repeat(LONGEST + 1));
        for text in [&long, &long, &longer, &longer] {
            met.note(text, || text.len());
        }
        assert_eq!((met.get(&long).copied(), met.get(&longer).copied()), (Some(LONGEST), None));
    }

    proptest! {
        #[test]
        fn what_is_found_under_a_text_was_noted_under_it(texts in prop::collection::vec("[ab]{0,20}", 0..2_000)) {
            let mut met = Met::default();
            for text in texts {
                if let Some(found) = met.get(&text) {
                    prop_assert_eq!(&*found, &text);
                } else {
                    met.note(&text, || text.clone());
                }
            }
        }

        #[test]
        fn texts_are_compared_whole(one in "[ab]{0,20}", other in "[ab]{0,20}") {
            prop_assert_eq!(is_same(one.as_bytes(), other.as_bytes()), one == other);
        }
    }
}
