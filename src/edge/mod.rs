//! The only room that names the platform: it loads, steps, saves and replies.
//!
//! A placeholder: just enough to prove that the pipeline builds, binds every store and confines a panic.

#![allow(missing_docs, reason = "the durable_object macro generates methods without")]

use worker::{Context, DurableObject, Env, Request, Response, Result, ScheduleContext, ScheduledEvent, State};

#[worker::event(fetch)]
async fn fetch(request: Request, env: Env, _context: Context) -> Result<Response> {
    match request.path().as_str() {
        "/healthz" => Response::ok("ok"),
        "/placeholder/kv" => Response::ok(env.kv("DOCUMENTS")?.get("placeholder").text().await?.unwrap_or_default()),
        "/placeholder/d1" => {
            let row: Option<serde_json::Value> = env.d1("CONTROL")?.prepare("SELECT 1 AS one").first(None).await?;
            Response::from_json(&row)
        }
        "/placeholder/object" => {
            env.durable_object("TENANT")?.id_from_name("placeholder")?.get_stub()?.fetch_with_request(request).await
        }
        #[expect(clippy::panic, reason = "shows that a panic fails its own request only")]
        "/placeholder/panic" => panic!("injected"),
        _ => Response::error("not found", 404),
    }
}

#[worker::event(scheduled)]
async fn scheduled(_event: ScheduledEvent, env: Env, _context: ScheduleContext) {
    if let Ok(kv) = env.kv("DOCUMENTS")
        && let Ok(put) = kv.put("placeholder", "scheduled")
    {
        let _ = put.execute().await;
    }
}

/// The Durable Object of one tenant.
#[worker::durable_object(alarm)]
pub struct TenantObject {
    state: State,
}

impl DurableObject for TenantObject {
    fn new(state: State, _env: Env) -> Self {
        Self { state }
    }

    async fn fetch(&self, _request: Request) -> Result<Response> {
        let storage = self.state.storage();
        let count = storage.get::<u32>("count").await?.unwrap_or(0) + 1;
        storage.put("count", count).await?;
        Response::ok(count.to_string())
    }

    async fn alarm(&self) -> Result<Response> {
        Response::ok("")
    }
}

/// The one owner of catalog, plans and hosts.
#[worker::durable_object(alarm)]
pub struct CatalogObject {}

impl DurableObject for CatalogObject {
    fn new(_state: State, _env: Env) -> Self {
        Self {}
    }

    async fn fetch(&self, _request: Request) -> Result<Response> {
        Response::ok("")
    }

    async fn alarm(&self) -> Result<Response> {
        Response::ok("")
    }
}
