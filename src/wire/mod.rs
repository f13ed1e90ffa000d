//! The shapes that cross a border: parsed once, then trusted.

pub mod answer;
pub mod headers;
pub mod json;
pub mod jws;
pub mod object;
pub mod problem;
pub mod ratelimit;
pub mod rows;
pub mod sql;
pub mod verdict;
