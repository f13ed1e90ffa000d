// What the guides show: middleware that looks everything up for each request. Key and plan in KV, the count in a Durable
// Object, the use written to D1 behind the reply.
import { DurableObject } from "cloudflare:workers";
import { Hono } from "hono";

export class Counter extends DurableObject {
  constructor(ctx, env) {
    super(ctx, env);
    ctx.storage.sql.exec("CREATE TABLE IF NOT EXISTS counted(second INTEGER PRIMARY KEY, units INTEGER NOT NULL)");
  }
  /** Counts one request in this second, if there is room. */
  add(limit) {
    const second = Math.floor(Date.now() / 1000);
    const { rowsWritten } = this.ctx.storage.sql.exec(
      "INSERT INTO counted VALUES (?, 1) ON CONFLICT DO UPDATE SET units = units + 1 WHERE units < ?", second, limit);
    return rowsWritten > 0;
  }
}

const app = new Hono();

app.use(async (c, next) => {
  const tenant = await c.env.KV.get(`key:${c.req.header("X-API-Key")}`, "json");
  if (!tenant) return c.json({ error: "Unknown API key" }, 401);
  c.set("tenant", tenant);
  await next();
});

const requires = (feature) => async (c, next) => {
  const plan = await c.env.KV.get(`plan:${c.get("tenant").plan}`, "json");
  if (!plan.features.includes(feature)) return c.json({ error: "Feature not available", feature, current_plan: plan.title }, 403);
  c.set("plan", plan);
  await next();
};

app.get("/gate/v1/:feature", async (c, next) => requires(c.req.param("feature"))(c, next), async (c) => {
  const { id } = c.get("tenant");
  if (!(await c.env.OBJECT.getByName(id).add(c.get("plan").limit))) return c.json({ error: "Limit reached" }, 429);
  const month = new Date().toISOString().slice(0, 7);
  c.executionCtx.waitUntil(c.env.DB.prepare(
    "INSERT INTO usage VALUES (?, ?, 1) ON CONFLICT DO UPDATE SET quantity = quantity + 1").bind(id, month).run());
  return c.json({ origin: "demo", method: c.req.method, path: c.req.path, tenant: id });
});

export default app;
