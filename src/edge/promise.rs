//! Promises of exported functions, and futures that run side by side.
//!
//! Invariant: a panic inside rejects the promise and nothing else. What it may have left half done is in no memory that
//! outlives the request: the isolate's goes with the panic that interrupts its use, and so does an object's copy of rows.

use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::task::Poll;

use futures_util::future::maybe_done;
use js_sys::Promise;
use js_sys::futures::future_to_promise;
use wasm_bindgen::JsValue;

/// A promise of the text that `future` gives; `undefined` where it gives none. Boxed, so that what makes a promise of a future
/// is compiled once.
pub(crate) fn promise(future: impl Future<Output = Result<Option<String>, JsValue>> + 'static) -> Promise {
    let future: Pin<Box<dyn Future<Output = Result<Option<String>, JsValue>>>> = Box::pin(future);
    future_to_promise(AssertUnwindSafe(async { future.await.map(JsValue::from) }))
}

/// What all of them give. Each is polled whenever one has news: there are a few, and a queue of those that have is kilobytes.
pub(crate) async fn all<F: Future>(futures: impl Iterator<Item = F>) -> Vec<F::Output> {
    let mut futures: Vec<_> = futures.map(|future| Box::pin(maybe_done(future))).collect();
    std::future::poll_fn(|context| {
        let mut running = 0;
        for future in &mut futures {
            running += usize::from(future.as_mut().poll(context).is_pending());
        }
        if running == 0 { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
    futures.iter_mut().filter_map(|future| future.as_mut().take_output()).collect()
}
