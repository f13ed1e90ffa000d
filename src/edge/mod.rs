//! The only room that names the platform: it loads, steps, saves and replies.
//!
//! From the request inward: [`door`] and [`gate`] decide about requests; [`api`] serves Tollgate's own API, whose table of
//! contents is `routes`: `caller` answers tenants, `operator` changes what is decided from. `documents` reads that; the objects
//! ([`tenant_object`], [`catalog_object`]) own it.

pub mod api;
mod caller;
pub mod carry;
pub mod catalog_object;
mod config;
mod d1;
mod documents;
pub mod door;
pub mod gate;
mod isolate;
mod kv;
mod ledger;
mod object;
mod operator;
mod promise;
mod publisher;
mod routes;
mod sealer;
mod storage;
pub mod tenant_object;
