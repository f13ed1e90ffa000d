// hono-rate-limiter with its Durable Object store, as its pages show it: a limit for each key, and nothing else.
import { DurableObjectRateLimiter, DurableObjectStore } from "@hono-rate-limiter/cloudflare";
import { Hono } from "hono";
import { rateLimiter } from "hono-rate-limiter";

const app = new Hono();

app.use((c, next) => rateLimiter({
  windowMs: 60_000,
  limit: c.env.LIMIT,
  standardHeaders: "draft-6",
  keyGenerator: (c) => c.req.header("X-API-Key") ?? "",
  store: new DurableObjectStore({ namespace: c.env.OBJECT }),
})(c, next));

app.get("/gate/*", (c) => c.text("ok"));

export { DurableObjectRateLimiter };
export default app;
