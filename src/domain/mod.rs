//! The rules of Tollgate: pure functions over plain data.
//!
//! Nothing here knows the platform, waits, reads a clock or draws a random number; time ([`time::UnixMillis`]) and
//! randomness are arguments. A rule that needs an `await` to be tested is in the wrong room.

pub mod api_key;
pub mod audit;
pub mod breaker;
pub mod cache;
pub mod catalog;
pub mod check;
pub mod closed;
pub mod decision;
pub mod document;
pub mod feature;
pub mod gate;
pub mod id;
pub mod job;
pub mod limit;
pub mod map;
pub mod met;
pub mod name;
pub mod outbox;
pub mod path;
pub mod period;
pub mod plan;
pub mod resident;
pub mod route;
pub mod tally;
pub mod tenant;
pub mod time;
