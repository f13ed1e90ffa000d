//! A limiter's memory, row by row, so that a shell can store exactly what a step changed.
//!
//! Invariant: whatever was put or removed since the last drain is in the next one. A row is written only through [`Rows`],
//! which notes it.
//!
//! Rows of every kind are in one order, and so in one table of the shell's: a map for each kind would be compiled nine times.

use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::message::{Incarnation, LeaseId, OpId};
use super::pool::Piece;
use super::state::{Allowance, Head, Hold, KeyNo, Lease, Memo, Past, Queued, Reporter, Sender};
use crate::domain::id::InvalidId;

/// One row of a limiter's memory.
#[derive(Clone, Debug, PartialEq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(clippy::large_enum_variant, reason = "there are few allowances, and the rows that are many are small ones")]
pub enum Row {
    /// What there is one of.
    Head(Head),
    /// What one limit has left.
    Allowance(Allowance),
    /// A lease that may still be spent.
    Lease(Lease),
    /// A lease that has ended and still takes records.
    Past(Past),
    /// A lease from the parent's limiter.
    Piece(Piece),
    /// A reservation.
    Hold(Hold),
    /// A large cost that waits.
    Queued(Queued),
    /// An answer, in case it is asked again.
    Memo(Memo),
    /// Who asked for leases or took, of which limit.
    Sender(Sender),
    /// Who reported usage.
    Reporter(Reporter),
}

/// Where a row is: its kind, the limit that it is about (0 where it is about none), and the rest of its key. As text
/// `lease/3/1a`: kind, limit, the rest in hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    kind: &'static str,
    limit: KeyNo,
    rest: u128,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{:x}", self.kind, self.limit, self.rest)
    }
}

impl FromStr for Place {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        let mut parts = text.split('/');
        let mut next = || parts.next().ok_or(InvalidId);
        let kind = next()?;
        Ok(Self {
            kind: KINDS.into_iter().find(|known| *known == kind).ok_or(InvalidId)?,
            limit: next()?.parse().map_err(|_| InvalidId)?,
            rest: u128::from_str_radix(next()?, 16).map_err(|_| InvalidId)?,
        })
    }
}

/// What became of one row.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    /// Where it is.
    pub place: Place,
    /// What it holds now; none when it is gone.
    pub row: Option<Row>,
}

/// Everything a step changed: to be stored in one transaction with what the step's effects ask for.
pub type Changes = Vec<Change>;

/// A kind of row, with a key of its own.
pub(super) trait Stored: Sized {
    type Key: Copy;
    const KIND: &'static str;
    fn place(key: Self::Key) -> Place;
    fn key(place: Place) -> Self::Key;
    fn into_row(self) -> Row;
    fn from_row(row: Row) -> Option<Self>;
    fn of(row: &Row) -> Option<&Self>;
    fn of_mut(row: &mut Row) -> Option<&mut Self>;
}

/// The most rows in a part: what an insertion moves is within a microsecond.
const PART: usize = 64;

/// Rows in the order of their places, in parts none of which is empty. A tree of std's would be a fiftieth of the Worker.
#[derive(Clone, Debug, Default)]
struct Parts(Vec<Vec<(Place, Row)>>);

impl Parts {
    /// The part in which a row is or would be, and where in it.
    fn find(&self, place: Place) -> (usize, Result<usize, usize>) {
        let begins_before = |part: &Vec<(Place, Row)>| part.first().is_some_and(|(first, _)| *first <= place);
        let part = self.0.partition_point(begins_before).saturating_sub(1);
        let rows = self.0.get(part).map_or(&[] as &[_], Vec::as_slice);
        (part, rows.binary_search_by_key(&place, |(place, _)| *place))
    }

    fn get(&self, place: Place) -> Option<&Row> {
        let (part, at) = self.find(place);
        self.0.get(part)?.get(at.ok()?).map(|(_, row)| row)
    }

    fn get_mut(&mut self, place: Place) -> Option<&mut Row> {
        let (part, at) = self.find(place);
        self.0.get_mut(part)?.get_mut(at.ok()?).map(|(_, row)| row)
    }

    fn insert(&mut self, place: Place, row: Row) {
        let (part, at) = self.find(place);
        let Some(rows) = self.0.get_mut(part) else { return self.0.push(vec![(place, row)]) };
        match at {
            Ok(at) => drop(rows.get_mut(at).map(|held| held.1 = row)),
            Err(at) => rows.insert(at, (place, row)),
        }
        if rows.len() > PART {
            let upper = rows.split_off(PART / 2);
            self.0.insert(part + 1, upper);
        }
    }

    fn remove(&mut self, place: Place) -> Option<Row> {
        let (part, at) = self.find(place);
        let rows = self.0.get_mut(part)?;
        let (_, row) = rows.remove(at.ok()?);
        if rows.is_empty() {
            self.0.remove(part);
        }
        Some(row)
    }

    /// The rows from one place to another, both included.
    fn range(&self, from: Place, to: Place) -> Range<'_> {
        let (part, at) = self.find(from);
        Range { parts: &self.0, part, at: at.unwrap_or_else(|at| at), to }
    }
}

/// Rows one after the other.
#[derive(Clone)]
struct Range<'a> {
    parts: &'a [Vec<(Place, Row)>],
    part: usize,
    at: usize,
    to: Place,
}

impl<'a> Iterator for Range<'a> {
    type Item = &'a (Place, Row);

    fn next(&mut self) -> Option<Self::Item> {
        let mut part = self.parts.get(self.part)?;
        if self.at == part.len() {
            (self.part, self.at) = (self.part + 1, 0);
            part = self.parts.get(self.part)?;
        }
        let row = part.get(self.at).filter(|(place, _)| *place <= self.to)?;
        self.at += 1;
        Some(row)
    }
}

/// Two are the same when they hold the same, wherever their parts end.
impl PartialEq for Parts {
    fn eq(&self, other: &Self) -> bool {
        self.0.iter().flatten().eq(other.0.iter().flatten())
    }
}

/// Ordered rows that note which of them changed.
#[derive(Clone, Debug, Default)]
pub(super) struct Rows {
    rows: Parts,
    /// In no order, and perhaps more than once.
    touched: Vec<Place>,
}

/// Two memories are the same when they hold the same; what was drained does not matter.
impl PartialEq for Rows {
    fn eq(&self, other: &Self) -> bool {
        self.rows == other.rows
    }
}

impl Rows {
    pub(super) fn get<V: Stored>(&self, key: V::Key) -> Option<&V> {
        self.rows.get(V::place(key)).and_then(V::of)
    }

    pub(super) fn get_mut<V: Stored>(&mut self, key: V::Key) -> Option<&mut V> {
        self.touch(V::place(key)).and_then(V::of_mut)
    }

    pub(super) fn insert<V: Stored>(&mut self, key: V::Key, value: V) {
        self.put(V::place(key), value.into_row());
    }

    pub(super) fn remove<V: Stored>(&mut self, key: V::Key) -> Option<V> {
        self.take(V::place(key)).and_then(V::from_row)
    }

    /// Every row of a kind, in the order of their keys.
    pub(super) fn all<V: Stored + 'static>(&self) -> impl Iterator<Item = (V::Key, &V)> + Clone {
        self.range::<V>(0..=KeyNo::MAX)
    }

    /// The rows of a kind that are about one limit.
    pub(super) fn about<V: Stored + 'static>(&self, limit: KeyNo) -> impl Iterator<Item = (V::Key, &V)> + Clone {
        self.range::<V>(limit..=limit)
    }

    fn range<V: Stored + 'static>(&self, limits: RangeInclusive<KeyNo>) -> impl Iterator<Item = (V::Key, &V)> + Clone {
        let from = Place { kind: V::KIND, limit: *limits.start(), rest: 0 };
        let to = Place { kind: V::KIND, limit: *limits.end(), rest: u128::MAX };
        self.rows.range(from, to).filter_map(|(place, row)| Some((V::key(*place), V::of(row)?)))
    }

    /// The keys of the rows for which `wanted` holds, to change them one by one; at most `most` of them.
    pub(super) fn keys_where<V: Stored + 'static>(&self, most: usize, wanted: impl Fn(&V) -> bool) -> Vec<V::Key> {
        self.all::<V>().filter(|(_, value)| wanted(value)).map(|(key, _)| key).take(most).collect()
    }

    /// Puts a row back that was stored before.
    pub(super) fn restore(&mut self, place: Place, row: Row) {
        self.rows.insert(place, row);
    }

    /// What changed since the last drain.
    pub(super) fn drain(&mut self) -> Changes {
        let mut touched = std::mem::take(&mut self.touched);
        touched.sort_unstable();
        touched.dedup();
        touched.into_iter().map(|place| Change { place, row: self.rows.get(place).cloned() }).collect()
    }

    fn touch(&mut self, place: Place) -> Option<&mut Row> {
        let row = self.rows.get_mut(place)?;
        self.touched.push(place);
        Some(row)
    }

    fn put(&mut self, place: Place, row: Row) {
        self.touched.push(place);
        self.rows.insert(place, row);
    }

    fn take(&mut self, place: Place) -> Option<Row> {
        let row = self.rows.remove(place)?;
        self.touched.push(place);
        Some(row)
    }
}

macro_rules! stored {
    ($($kind:ident $name:literal: $key:ty, |$k:pat_param| $parts:expr, |$limit:pat_param, $rest:pat_param| $back:expr;)*) => {
        const KINDS: [&str; [$($name),*].len()] = [$($name),*];
        $(
            impl Stored for $kind {
                type Key = $key;
                const KIND: &'static str = $name;

                fn place($k: $key) -> Place {
                    let (limit, rest) = $parts;
                    Place { kind: $name, limit, rest }
                }

                fn key(Place { limit: $limit, rest: $rest, .. }: Place) -> $key {
                    $back
                }

                fn into_row(self) -> Row {
                    Row::$kind(self)
                }

                fn from_row(row: Row) -> Option<Self> {
                    if let Row::$kind(value) = row { Some(value) } else { None }
                }

                fn of(row: &Row) -> Option<&Self> {
                    if let Row::$kind(value) = row { Some(value) } else { None }
                }

                fn of_mut(row: &mut Row) -> Option<&mut Self> {
                    if let Row::$kind(value) = row { Some(value) } else { None }
                }
            }
        )*
    };
}

stored! {
    Head "head": (), |()| (0, 0), |_, _| ();
    Allowance "allowance": KeyNo, |k| (k, 0), |k, _| k;
    Lease "lease": (KeyNo, LeaseId), |(k, id)| (k, id.0.into()), |k, id| (k, LeaseId(low(id)));
    Past "past": (KeyNo, LeaseId), |(k, id)| (k, id.0.into()), |k, id| (k, LeaseId(low(id)));
    Piece "piece": (KeyNo, LeaseId), |(k, id)| (k, id.0.into()), |k, id| (k, LeaseId(low(id)));
    Hold "hold": OpId, |id| (0, id.0), |_, id| OpId(id);
    Queued "queued": u64, |ticket| (0, ticket.into()), |_, ticket| low(ticket);
    Memo "memo": OpId, |id| (0, id.0), |_, id| OpId(id);
    Sender "sender": (KeyNo, Incarnation), |(k, from)| (k, from.0), |k, from| (k, Incarnation(from));
    Reporter "reporter": Incarnation, |from| (0, from.0), |_, from| Incarnation(from);
}

/// What was widened to be a part of a key.
#[expect(clippy::cast_possible_truncation, reason = "it came from a u64")]
const fn low(rest: u128) -> u64 {
    rest as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::time::UnixMillis;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    proptest! {
        /// Parts are a map: whatever is put in and taken out, in any order, and whatever is asked.
        #[test]
        fn parts_hold_what_a_map_holds(
            steps in proptest::collection::vec((0_u8..4, 0_u128..400), 0..1200), from in 0_u128..400, len in 0_u128..400
        ) {
            let place = |rest| Place { kind: "sender", limit: 0, rest };
            let row = |at: usize| Row::Reporter(Reporter { number: at as u64, heard: UnixMillis(0) });
            let (mut parts, mut map) = (Parts::default(), BTreeMap::new());
            for (at, (what, rest)) in steps.into_iter().enumerate() {
                let place = place(rest);
                if what == 0 {
                    prop_assert_eq!(parts.remove(place), map.remove(&place));
                } else {
                    parts.insert(place, row(at));
                    map.insert(place, row(at));
                }
                prop_assert_eq!(parts.get(place), map.get(&place));
                prop_assert_eq!(parts.get_mut(place), map.get_mut(&place));
            }
            let (from, to) = (place(from), place(from + len));
            prop_assert!(parts.range(from, to).map(|(place, row)| (place, row)).eq(map.range(from..=to)));
            prop_assert!(parts.0.iter().all(|part| (1..=PART).contains(&part.len())));
            let mut again = Parts::default();
            map.into_iter().rev().for_each(|(place, row)| again.insert(place, row));
            prop_assert_eq!(parts, again);
        }
    }

    #[test]
    fn places_round_trip() {
        for text in ["head/0/0", "lease/3/1a", "memo/0/ffffffffffffffffffffffffffffffff"] {
            assert_eq!(text.parse::<Place>().unwrap().to_string(), text);
        }
        for text in ["", "lease", "lease/3", "lease/x/1", "lease/3/g", "letter/3/1"] {
            assert_eq!(text.parse::<Place>(), Err(InvalidId), "{text}");
        }
    }
}
