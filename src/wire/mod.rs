//! The shapes that cross a border: parsed once, then trusted.
pub mod jws;
pub mod sql;
