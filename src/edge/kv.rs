//! KV, in one place: the documents in their signed form, by name.
//!
//! Invariant: what is read may be old, and what is put is seen somewhere else a minute later. Nothing is deleted.

use wasm_bindgen::prelude::*;
use worker::Env;

use super::config;
use super::object::Unreachable;

#[wasm_bindgen]
extern "C" {
    type Binding;
    #[wasm_bindgen(method, catch)]
    async fn get(this: &Binding, name: &str) -> Result<JsValue, JsValue>;
    #[wasm_bindgen(method, catch)]
    async fn put(this: &Binding, name: &str, value: &str) -> Result<JsValue, JsValue>;
}

/// The namespace of documents.
pub(crate) struct Documents(Binding);

impl Documents {
    /// The namespace that is bound.
    ///
    /// # Errors
    /// When none is.
    pub(crate) fn open(env: &Env) -> Result<Self, String> {
        config::binding(env, "DOCUMENTS").map(Self)
    }

    /// The document of this name, if it is seen here.
    ///
    /// # Errors
    /// When KV does not answer.
    pub(crate) async fn get(&self, name: &str) -> Result<Option<String>, String> {
        self.0.get(name).await.map(|text| text.as_string()).map_err(|error| Unreachable::thrown(&error).message)
    }

    /// Puts a document under its name.
    ///
    /// # Errors
    /// When KV does not take it.
    pub(crate) async fn put(&self, name: &str, signed: &str) -> Result<(), String> {
        self.0.put(name, signed).await.map(drop).map_err(|error| Unreachable::thrown(&error).message)
    }
}
