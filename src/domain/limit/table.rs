//! A limiter's memory, row by row, so that a shell can store exactly what a step changed.
//!
//! Invariant: whatever was put or removed since the last drain is in the next one. A row is written only through
//! [`Table`], which notes it.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeBounds;

use serde::{Deserialize, Serialize};

use super::limiter::{Allowance, Head, Hold, KeyNo, Lease, Memo, Queued, Reporter, Sender};
use super::message::{Incarnation, LeaseId, OpId};
use super::pool::Piece;

/// One row of a limiter's memory, with its key.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Row {
    /// What there is one of.
    Head(Head),
    /// What one limit has left.
    Allowance(KeyNo, Box<Allowance>),
    /// A lease that may still be spent.
    Lease((KeyNo, LeaseId), Lease),
    /// A lease that has ended and still takes records.
    Past((KeyNo, LeaseId), Lease),
    /// A lease from the parent's limiter.
    Piece((KeyNo, LeaseId), Piece),
    /// A reservation.
    Hold(OpId, Hold),
    /// A large cost that waits.
    Queued(u64, Queued),
    /// An answer, in case it is asked again.
    Memo(OpId, Memo),
    /// Who asked for leases or took, of which limit.
    Sender((KeyNo, Incarnation), Sender),
    /// Who reported usage.
    Reporter(Incarnation, Reporter),
}

/// What became of one row.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    /// Its table.
    pub table: &'static str,
    /// Its primary key within the table.
    pub id: String,
    /// What it holds now; none when it is gone.
    pub row: Option<Row>,
}

/// Everything a step changed: to be stored in one transaction with what the step's effects ask for.
pub type Changes = Vec<Change>;

/// A value that is kept in a table of its own.
pub(super) trait Stored: Clone + PartialEq {
    type Key: Copy + Ord;
    const TABLE: &'static str;
    fn id(key: Self::Key) -> String;
    fn row(key: Self::Key, value: Self) -> Row;
}

/// An ordered table that notes which of its rows changed.
#[derive(Clone, Debug)]
pub(super) struct Table<V: Stored> {
    rows: BTreeMap<V::Key, V>,
    touched: BTreeSet<V::Key>,
}

impl<V: Stored> Default for Table<V> {
    fn default() -> Self {
        Self { rows: BTreeMap::new(), touched: BTreeSet::new() }
    }
}

/// Two tables are the same when they hold the same; what was drained does not matter.
impl<V: Stored> PartialEq for Table<V> {
    fn eq(&self, other: &Self) -> bool {
        self.rows == other.rows
    }
}

impl<V: Stored> Table<V> {
    pub(super) fn get(&self, key: V::Key) -> Option<&V> {
        self.rows.get(&key)
    }

    pub(super) fn get_mut(&mut self, key: V::Key) -> Option<&mut V> {
        let row = self.rows.get_mut(&key)?;
        self.touched.insert(key);
        Some(row)
    }

    pub(super) fn insert(&mut self, key: V::Key, value: V) {
        self.touched.insert(key);
        self.rows.insert(key, value);
    }

    pub(super) fn remove(&mut self, key: V::Key) -> Option<V> {
        let row = self.rows.remove(&key)?;
        self.touched.insert(key);
        Some(row)
    }

    pub(super) fn len(&self) -> usize {
        self.rows.len()
    }

    pub(super) fn iter(&self) -> impl DoubleEndedIterator<Item = (V::Key, &V)> {
        self.rows.iter().map(|(key, value)| (*key, value))
    }

    pub(super) fn range(&self, range: impl RangeBounds<V::Key>) -> impl DoubleEndedIterator<Item = (V::Key, &V)> {
        self.rows.range(range).map(|(key, value)| (*key, value))
    }

    /// The keys of the rows for which `wanted` holds, to change them one by one.
    pub(super) fn keys_where(&self, wanted: impl Fn(V::Key, &V) -> bool) -> Vec<V::Key> {
        self.iter().filter(|(key, value)| wanted(*key, value)).map(|(key, _)| key).collect()
    }

    /// Puts a row back that was stored before.
    pub(super) fn restore(&mut self, key: V::Key, value: V) {
        self.rows.insert(key, value);
    }

    /// Moves what changed since the last drain to `changes`.
    pub(super) fn drain(&mut self, changes: &mut Changes) {
        for key in std::mem::take(&mut self.touched) {
            let row = self.rows.get(&key).map(|value| V::row(key, value.clone()));
            changes.push(Change { table: V::TABLE, id: V::id(key), row });
        }
    }
}

macro_rules! stored {
    ($($value:ty, $key:ty, $table:literal, |$k:ident| $id:expr, $row:expr;)*) => {$(
        impl Stored for $value {
            type Key = $key;
            const TABLE: &'static str = $table;

            fn id($k: $key) -> String {
                $id
            }

            fn row(key: $key, value: Self) -> Row {
                $row(key, value)
            }
        }
    )*};
}

/// A lease after its end: the same facts, another table.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Past(pub(super) Lease);

stored! {
    Allowance, KeyNo, "allowance", |k| k.to_string(), |k, v| Row::Allowance(k, Box::new(v));
    Lease, (KeyNo, LeaseId), "lease", |k| format!("{}.{}", k.0, k.1.0), Row::Lease;
    Past, (KeyNo, LeaseId), "past", |k| format!("{}.{}", k.0, k.1.0), |k, v: Past| Row::Past(k, v.0);
    Piece, (KeyNo, LeaseId), "piece", |k| format!("{}.{}", k.0, k.1.0), Row::Piece;
    Hold, OpId, "hold", |k| k.to_string(), Row::Hold;
    Queued, u64, "queued", |k| k.to_string(), Row::Queued;
    Memo, OpId, "memo", |k| k.to_string(), Row::Memo;
    Sender, (KeyNo, Incarnation), "sender", |k| format!("{}.{}", k.0, k.1), Row::Sender;
    Reporter, Incarnation, "reporter", |k| k.to_string(), Row::Reporter;
}
