//! Promises of exported functions.
//!
//! Invariant: a panic inside rejects the promise and nothing else. What it may have left half done is in no memory that
//! outlives the request: the isolate's goes with the panic that interrupts its use, and so does an object's copy of rows.

use std::panic::AssertUnwindSafe;
use std::pin::Pin;

use js_sys::Promise;
use js_sys::futures::future_to_promise;
use wasm_bindgen::JsValue;

/// A promise of the text that `future` gives; `undefined` where it gives none. Boxed, so that what makes a promise of a future
/// is compiled once.
pub(crate) fn promise(future: impl Future<Output = Result<Option<String>, JsValue>> + 'static) -> Promise {
    let future: Pin<Box<dyn Future<Output = Result<Option<String>, JsValue>>>> = Box::pin(future);
    future_to_promise(AssertUnwindSafe(async { future.await.map(JsValue::from) }))
}
