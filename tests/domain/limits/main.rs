//! The proofs of the lease protocol (design: limits.md, "What proves it"), all over the shipped code.
//!
//! - `schedules`: a seeded simulation of whole worlds, every interval of which is checked;
//! - `adversaries`: the schedules that chance does not find, each by hand;
//! - `liveness`: large costs do get in;
//! - `figures`: how much of the ideal is admitted, and for how many calls;
//! - `model`: every schedule there is of a small world;
//! - `bench`: what an admission costs.
//!
//! `SEEDS=10000` runs all seeds, `SEED=17` one of them, printing its schedule.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::pedantic,
    reason = "a test may stop, and count as it likes"
)]

mod adversaries;
mod bench;
mod bound;
mod figures;
mod liveness;
mod model;
mod random;
mod schedules;
mod world;
