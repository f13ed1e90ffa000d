//! Promises of exported functions.
//!
//! Invariant: a panic inside rejects the promise and nothing else. What it may have left half done is in no memory that
//! outlives the request: the isolate's is borrowed only between awaits, and an object drops its copy of the limiter's rows.

use std::panic::AssertUnwindSafe;

use js_sys::Promise;
use js_sys::futures::future_to_promise;
use wasm_bindgen::JsValue;

/// A promise of what `future` gives.
pub(crate) fn promise<T: Into<JsValue>>(future: impl Future<Output = Result<T, JsValue>> + 'static) -> Promise {
    future_to_promise(AssertUnwindSafe(async { future.await.map(Into::into) }))
}
