// Sets Tollgate up through its operator API, as an operator would: features, a meter, an origin with a route for each feature,
// a plan and tenants. Nothing here reaches around it.

import { AMPLE, FEATURES } from "./fixtures.mjs";

const PLAN = "bench";
const METER = "requests";

async function change(local, method, path, body) {
  const response = await fetch(`${local.url}${path}`, {
    method,
    headers: { Authorization: `Bearer ${local.secrets.OPERATOR_KEY}`, "Content-Type": "application/json", "Idempotency-Key": crypto.randomUUID() },
    body: JSON.stringify(body),
  });
  const text = await response.text();
  if (!response.ok) throw new Error(`${method} ${path}: ${response.status} ${text}`);
  return JSON.parse(text);
}

/** What a request may ask for, and `more` routes. `target`: `"none"`, `"demo"` or `{ service: "BINDING" }`. */
export async function publishCatalog(local, target, more = []) {
  for (const name of FEATURES) await change(local, "PUT", `/v1/admin/features/${name}`, { kind: "boolean" });
  await change(local, "PUT", `/v1/admin/meters/${METER}`, { recording: "leased" });
  await publishOrigin(local, "default", { target }, more);
}

/** An origin with a route for each feature, and `more` routes. */
export const publishOrigin = (local, name, origin, more = []) =>
  change(local, "PUT", `/v1/admin/origins/${name}`, {
    ...origin,
    routes: [...FEATURES.map((feature) => ({ method: "GET", path: `/v1/${feature}`, feature, meter: METER, cost: 1 })), ...more],
  });

/** An isolate that read the catalog while it was being made would use that for half a minute: it begins anew. */
export const settle = (local) => local.restart();

/** A plan with every feature, and one limit. */
export const publishPlan = (local, name = PLAN, rate = AMPLE) =>
  change(local, "POST", `/v1/admin/plans/${name}/versions`, {
    title: name, features: Object.fromEntries(FEATURES.map((feature) => [feature, true])), limits: { [METER]: { meter: METER, rate } },
    upgrade_url: "https://example.com/pricing",
  });

/** Tenants on a plan; their API keys. */
export async function addTenants(local, count, plan = PLAN) {
  const keys = [];
  for (let at = 0; at < count; at += 8) {
    const made = Array.from({ length: Math.min(8, count - at) }, (_, place) =>
      change(local, "POST", "/v1/admin/tenants", { slug: `${plan}-${at + place}`, name: `${plan} ${at + place}`, plan }));
    keys.push(...(await Promise.all(made)).map((tenant) => tenant.api_key));
  }
  return keys;
}

/** Asks once with each key, and fails unless all are admitted: what follows is warm. */
export async function warm(url, keys) {
  for (const key of keys) {
    const response = await fetch(url, { headers: { "X-API-Key": key } });
    const body = await response.text();
    if (response.status !== 200) throw new Error(`${url}: ${response.status} ${body.slice(0, 400)}`);
  }
}
