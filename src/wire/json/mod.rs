//! JSON: what others wrote is read strictly, what this crate wrote itself is read and written quickly.

mod read;
mod row;
mod write;

pub use read::{MAX_DEPTH, MAX_SAFE, Unreadable, parse, read, read_tree};
pub use row::{Invalid, Row, rows};
pub use write::{List, Object, quoted, written};
