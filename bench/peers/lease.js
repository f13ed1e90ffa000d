// Tollgate's design by hand in JavaScript, as fast as we could make it.
//
// It does: the key's hash and state from a signed document, catalog, plan and tenant verified once for each version and kept in
// memory, refresh behind the reply, the route's feature, a limit leased from a Durable Object by demand and renewed behind the
// reply, usage reported with each renewal and written to D1 in batches from the object's alarm, and the same headers.
//
// It leaves out what makes Tollgate's promises hold: one canonical form of a path, a MAC in the key (an invented key costs a
// read here), overrides and ancestors, several limits at once, large costs, quotas, exactly-once reports across crashes and
// lost messages, serials that never go backwards, and a bound on memory.
import { DurableObject } from "cloudflare:workers";

const TTL_MS = 5_000, RENEW_MS = 1_000, LEAST = 100, TENANT_MS = 300_000, CATALOG_MS = 30_000, OUTBOX_MS = 1_000;

const text = new TextEncoder();
const keys = new Map(), tenants = new Map();
let catalog, hmac, instance, counted = 0;

const decode = (part) => Uint8Array.from(atob(part.replaceAll("-", "+").replaceAll("_", "/")), (c) => c.charCodeAt(0));

async function read(env, key) {
  const document = await env.KV.get(key);
  if (document === null) return undefined;
  hmac ??= await crypto.subtle.importKey("raw", text.encode(env.SECRET), { name: "HMAC", hash: "SHA-256" }, false, ["verify"]);
  const end = document.lastIndexOf(".");
  if (!(await crypto.subtle.verify("HMAC", hmac, decode(document.slice(end + 1)), text.encode(document.slice(0, end))))) return undefined;
  const body = JSON.parse(new TextDecoder().decode(decode(document.slice(document.indexOf(".") + 1, end))));
  return body.key === key && body.exp > Date.now() ? body : undefined;
}

async function readCatalog(env) {
  const body = await read(env, "catalog");
  const plans = {};
  for (const [name, version] of Object.entries(body.plans)) plans[name] = await read(env, `plan/${name}/${version}`);
  catalog = { body, plans, routes: new Map(body.routes.map((route) => [`${route.method} ${route.path}`, route])), refresh: Date.now() + CATALOG_MS };
  tenants.forEach((tenant) => (tenant.ways = new Map()));
}

async function readTenant(env, id) {
  const document = await read(env, `tenant/${id}`);
  if (document === undefined) return undefined;
  const now = Date.now(), held = tenants.get(id);
  const tenant = Object.assign(held ?? { tokens: 0, left: 0, deadline: 0, remaining: 0, asked: 0, used: 0, seen: new Map(), pending: false },
    { document, read: now, refresh: now + TENANT_MS, ways: new Map() });
  tenants.set(id, tenant);
  return tenant;
}

/** Which tenant a key is of, where this isolate does not know it yet. */
async function identify(env, key) {
  const at = key.split("_")[2];
  const tenant = tenants.get(`ten_${at.padStart(17, "0")}`) ?? await readTenant(env, `ten_${at.padStart(17, "0")}`);
  if (tenant === undefined) return undefined;
  const hash = btoa(String.fromCharCode(...new Uint8Array(await crypto.subtle.digest("SHA-256", text.encode(key)))))
    .replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
  const record = tenant.document.keys.find((each) => each.sha256 === hash);
  if (record === undefined || record.revoked) return undefined;
  const known = { tenant, id: record.id };
  keys.set(key, known);
  return known;
}

/** What a route means for a tenant; worked out once for each version of its documents. */
function way(tenant, method, path) {
  const name = `${method} ${path}`;
  let found = tenant.ways.get(name);
  if (found === undefined) {
    const route = catalog.routes.get(name);
    const plan = catalog.plans[tenant.document.plan];
    const limit = plan.limits.requests, { units, per_ms, burst } = limit.rate;
    found = {
      route, limit: limit.rate,
      allowed: route !== undefined && (tenant.document.overrides[route.feature] ?? plan.features[route.feature] ?? false),
      policy: `"requests";q=${units};w=${Math.ceil(per_ms / 1000)}`,
    };
    tenant.ways.set(name, found);
  }
  return found;
}

async function renew(env, tenant, limit) {
  tenant.pending = true;
  const sent = Date.now();
  const want = Math.max(LEAST, Math.ceil((tenant.used / Math.max(sent - tenant.asked, 100)) * 2 * TTL_MS));
  const reports = [...tenant.seen], { used, left } = tenant;
  tenant.seen = new Map();
  tenant.used = tenant.left = 0;
  try {
    const lease = await env.OBJECT.getByName(tenant.document.id).lease(tenant.document.id, want, left, limit, reports);
    tenant.remaining = lease.remaining;
    tenant.asked = sent;
    // What is left of the lease before is given back with the next report, not spent any more.
    if (lease.tokens > 0) [tenant.left, tenant.tokens, tenant.deadline] = [tenant.tokens, lease.tokens, sent + TTL_MS];
  } catch {
    for (const [label, units] of reports) tenant.seen.set(label, (tenant.seen.get(label) ?? 0) + units);
    tenant.used += used;
    tenant.left += left;
  }
  tenant.pending = false;
}

const refusal = (status, code) => Response.json({ status, code }, { status, headers: { "content-type": "application/problem+json", "cache-control": "no-store" } });

function decide(request, env, ctx, known, now, tier) {
  const { tenant } = known;
  const { url } = request;
  const from = url.indexOf("/gate/", 8) + 5, query = url.indexOf("?", from);
  const found = way(tenant, request.method, query < 0 ? url.slice(from) : url.slice(from, query));
  if (!found.allowed) return refusal(403, "feature_not_available");
  const { cost } = found.route;
  if (tenant.tokens < cost || now >= tenant.deadline) return undefined;
  tenant.tokens -= cost;
  tenant.used += cost;
  if (tenant.minute !== (now / 60_000 | 0) || tenant.label?.route !== found.route || tenant.label.key !== known.id) {
    tenant.minute = now / 60_000 | 0;
    tenant.label = { route: found.route, key: known.id, text: `${tenant.minute} ${found.route.meter} ${known.id} ${found.route.path}` };
  }
  tenant.seen.set(tenant.label.text, (tenant.seen.get(tenant.label.text) ?? 0) + cost);
  if (!tenant.pending && (now - tenant.asked >= RENEW_MS || tenant.tokens < 2 * tenant.used)) ctx.waitUntil(renew(env, tenant, found.limit));
  if (now >= tenant.refresh) {
    tenant.refresh = now + 5_000;
    ctx.waitUntil(readTenant(env, tenant.document.id));
  }
  if (now >= catalog.refresh) {
    catalog.refresh = now + 5_000;
    ctx.waitUntil(readCatalog(env));
  }
  counted += 1;
  return new Response(null, {
    headers: {
      "ratelimit-policy": found.policy,
      "ratelimit": `"requests";r=${tenant.remaining + tenant.tokens}`,
      "tollgate": `serial=${tenant.document.serial}, age=${now - tenant.read}, tier=${tier}, id=req_${instance}${counted}`,
    },
  });
}

async function cold(request, env, ctx, key) {
  instance ??= crypto.randomUUID().replaceAll("-", "").slice(0, 16);
  if (!catalog) await readCatalog(env);
  const known = keys.get(key) ?? await identify(env, key);
  if (known === undefined) return refusal(401, "key_invalid");
  const answer = decide(request, env, ctx, known, Date.now(), "lease");
  if (answer !== undefined) return answer;
  const { limit } = way(known.tenant, request.method, new URL(request.url).pathname.slice(5));
  await renew(env, known.tenant, limit);
  return decide(request, env, ctx, known, Date.now(), "limiter") ?? refusal(429, "rate_limited");
}

export default {
  fetch(request, env, ctx) {
    const { headers } = request;
    const key = headers.get("x-api-key") ?? headers.get("authorization")?.slice(7);
    if (key === undefined) return refusal(401, "key_missing");
    if (headers.has("authorization") && headers.get("authorization") !== `Bearer ${key}`) return refusal(400, "key_conflict");
    const known = keys.get(key);
    if (known !== undefined) {
      const answer = decide(request, env, ctx, known, Date.now(), "lease");
      if (answer !== undefined) return answer;
    }
    return cold(request, env, ctx, key);
  },
};

export class Limiter extends DurableObject {
  constructor(ctx, env) {
    super(ctx, env);
    ctx.storage.sql.exec("CREATE TABLE IF NOT EXISTS bucket(id INTEGER PRIMARY KEY, available REAL NOT NULL, at INTEGER NOT NULL)");
    ctx.storage.sql.exec("CREATE TABLE IF NOT EXISTS outbox(label TEXT PRIMARY KEY, tenant TEXT NOT NULL, units INTEGER NOT NULL)");
  }

  /** Takes back what an isolate did not use, notes what it used, and lends it what it wants, or half of what there is. */
  lease(tenant, want, left, { units, per_ms, burst }, reports) {
    const { sql } = this.ctx.storage, now = Date.now();
    const held = sql.exec("SELECT available, at FROM bucket").toArray()[0] ?? { available: burst, at: now };
    const available = Math.min(burst, held.available + left + ((now - held.at) * units) / per_ms);
    const tokens = Math.max(0, Math.floor(Math.min(want, available / 2)));
    sql.exec("INSERT INTO bucket VALUES (1, ?, ?) ON CONFLICT DO UPDATE SET available = excluded.available, at = excluded.at", available - tokens, now);
    for (const [label, used] of reports) {
      sql.exec("INSERT INTO outbox VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET units = units + excluded.units", label, tenant, used);
    }
    if (reports.length && !this.armed) {
      this.armed = true;
      this.ctx.storage.setAlarm(now + OUTBOX_MS);
    }
    return { tokens, remaining: Math.floor(available - tokens) };
  }

  async alarm() {
    this.armed = false;
    const { sql } = this.ctx.storage;
    const rows = sql.exec("DELETE FROM outbox RETURNING tenant, label, units").toArray();
    if (rows.length) {
      await this.env.DB.prepare(`INSERT INTO usage SELECT value ->> 'tenant', value ->> 'label', value ->> 'units' FROM json_each(?)
        WHERE true ON CONFLICT DO UPDATE SET quantity = quantity + excluded.quantity`).bind(JSON.stringify(rows)).run();
    }
  }
}
