//! The only room that names the platform: it loads, steps, saves and replies.
//!
//! From the request inward: [`door`] and [`gate`] decide about requests, [`api`] serves Tollgate's own API, [`operator`]
//! changes what is decided from; [`documents`] reads it; the objects ([`tenant_object`], [`catalog_object`]) own it.

mod api;
mod carry;
mod catalog_object;
mod config;
mod d1;
mod documents;
mod door;
mod gate;
mod isolate;
mod ledger;
mod object;
mod operator;
mod promise;
mod publisher;
mod sealer;
mod storage;
mod tenant_object;
