//! The shapes that cross a border: parsed once, then trusted.

pub mod headers;
pub mod json;
pub mod jws;
pub mod problem;
pub mod ratelimit;
pub mod sql;
