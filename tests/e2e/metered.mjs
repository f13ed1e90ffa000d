// A small world for what is counted: a leased and an exact meter, and an origin of our own; all through the operator API.

import { operator, until } from "./harness.mjs";

/** Unlimited, for all that a test does. */
export const PLENTY = { rate: { units: 100_000, per_ms: 1000, burst: 400_000 } };
export const rate = (units, burst) => ({ rate: { units, per_ms: 1000, burst } });
export const quota = (units) => ({ quota: { units, per: "month" } });
export const leased = (amount) => ({ leased: { meter: "leased_calls", ...amount } });
export const exact = (amount) => ({ exact: { meter: "exact_calls", ...amount } });

/** Answers 200 to everything, a worker beside the gates. */
export const ORIGIN = { name: "origin", script: 'export default { fetch: () => new Response("done") }' };
/** What `startLocal` needs for the routes below /api/origin. */
export const WITH_ORIGIN = { workers: [ORIGIN], services: { ORIGIN: "origin" } };

const ROUTES = [
  { method: "GET", path: "/api/leased", meter: "leased_calls" },
  { method: "GET", path: "/api/large", meter: "leased_calls", cost: 200 },
  { method: "GET", path: "/api/open", meter: "leased_calls", fail: "open" },
  { method: "POST", path: "/api/exact", meter: "exact_calls" },
];

/** The operator's side of `local`: `call` fails unless it is answered 2xx. */
export function publisher(local) {
  const ask = operator(local);
  const call = async (method, path, body) => {
    // workerd closes idle connections, which a client may notice too late.
    const answer = await ask(method, path, body, { Connection: "close" });
    if (answer.status >= 300) throw new Error(`${method} ${path}: ${answer.status} ${JSON.stringify(answer.body)}`);
    return answer.body;
  };
  return {
    call,
    plan: (name, limits) => call("POST", `/v1/admin/plans/${name}/versions`, { title: name, limits }),
    tenant: (slug, plan, more = {}) => call("POST", "/v1/admin/tenants", { slug, name: slug, plan, ...more }),
  };
}

/** The catalog of the tests of what is counted; `origin` further routes to a worker of our own, below /api/origin. */
export async function meters(local, { routes = [], target = "demo" } = {}) {
  const made = publisher(local);
  await made.call("PUT", "/v1/admin/meters/leased_calls", {});
  await made.call("PUT", "/v1/admin/meters/exact_calls", { recording: "exact" });
  await made.call("PUT", "/v1/admin/origins/default", { target, unmatched: "deny", routes: [...ROUTES, ...routes] });
  return made;
}

/** The ledger, past any watch: entries of all tenants or one. */
export async function ledger(local, tenant) {
  const database = await local.database("SHARD_GLOBAL_1");
  const where = tenant ? "WHERE tenant_id = ?" : "";
  const bound = (sql) => (tenant ? database.prepare(sql).bind(tenant) : database.prepare(sql));
  const entries = (await bound(`SELECT * FROM entry ${where}`).all()).results;
  const totals = (await bound(`SELECT * FROM total ${where}`).all()).results;
  return { entries: entries.map((entry) => ({ ...entry, detail: JSON.parse(entry.detail) })), totals };
}

export const sum = (entries) => entries.reduce((total, { quantity }) => total + quantity, 0);

/** What the totals say must be what the entries add up to. */
export function disagreement({ entries, totals }) {
  const name = (row) => `${row.tenant_id} ${row.meter} ${row.mode} ${row.period_start}`;
  const counted = new Map();
  for (const entry of entries) {
    const total = counted.get(name(entry)) ?? { quantity: 0, entries: 0 };
    counted.set(name(entry), { quantity: total.quantity + entry.quantity, entries: total.entries + 1 });
  }
  return totals.filter((row) => counted.get(name(row))?.quantity !== row.quantity || counted.get(name(row))?.entries !== row.entries)
    .concat(totals.length === counted.size ? [] : [{ totals: totals.length, counted: counted.size }]);
}

/** Waits until KV shows the newest catalog; before that an isolate may have begun with one that has no routes yet. */
export async function published(local) {
  const { serial } = await publisher(local).call("GET", "/v1/admin/catalog");
  const kv = await local.documents();
  const shown = (jws) => JSON.parse(Buffer.from(jws.split(".")[1], "base64url")).serial;
  await until("KV shows the catalog", async () => {
    const jws = await kv.get("catalog");
    return jws !== null && shown(jws) === serial;
  });
}

/** What the tenant of this key is told about its use. */
export async function usage(local, key) {
  const response = await fetch(`${local.url}/v1/usage`, { headers: { "X-API-Key": key } });
  const text = await response.text();
  if (!response.ok) throw new Error(`/v1/usage: ${response.status} ${text}`);
  return JSON.parse(text);
}

/** Waits until the tenant's outbox is empty. */
export const drained = (local, key, withinMs = 30_000) => until("the outbox is empty", async () => {
  const said = await usage(local, key);
  return said.pending === 0 && said;
}, withinMs);
