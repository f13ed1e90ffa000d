//! Tollgate: multi-tenant licensing at the edge.
//!
//! For every request to an operator's API it answers, without asking a central server: which tenant is this, may it use
//! this feature, has it any allowance left, and how much did it just use.
//!
//! The rooms, from the inside out. Dependencies point one way, `edge -> portal, wire -> domain`:
//!
//! - [`domain`]: the rules. Pure functions over plain data; time and randomness are arguments. No I/O, no async.
//! - [`wire`]: the shapes that cross a border (JSON, headers, problem+json, signed documents). Parse once, then trusted.
//! - [`portal`]: views, from data to escaped HTML.
//! - `edge` (wasm32 only): loads, steps, saves, replies. The only room that names the platform.
//!
//! `src/entry.js` is the door: it makes one call into Rust for a warm request and holds no rule.

pub mod domain;
pub mod portal;
pub mod wire;

#[cfg(target_arch = "wasm32")]
pub mod edge;
