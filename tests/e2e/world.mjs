// A small business for a test to live in, made through the operator API alone: a catalog, plans, tenants, and an origin that
// tells what reached it. Requests go by node:http, which sends what it is told, where `fetch` forbids or rewrites.

import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import http from "node:http";
import { operator, until, worker } from "./harness.mjs";

/** An origin that answers with what it was sent. Under /special/ it does what origins also do. */
export const ECHO = `
const told = async (request) => ({
  origin: "echo", method: request.method, url: request.url, headers: [...request.headers], body: request.body ? await request.text() : null,
});
export default {
  async fetch(request) {
    const url = new URL(request.url);
    if (request.headers.get("upgrade") === "websocket") {
      const [client, server] = Object.values(new WebSocketPair());
      server.accept();
      server.send(JSON.stringify({ method: request.method, url: request.url, headers: [...request.headers] }));
      server.addEventListener("message", ({ data }) => server.send(data));
      return new Response(null, { status: 101, webSocket: client });
    }
    switch (url.pathname) {
      case "/special/status": {
        const status = Number(url.searchParams.get("is"));
        return new Response([204, 304].includes(status) ? null : "said " + status, { status, headers: { "x-origin": "yes", location: "/elsewhere" } });
      }
      case "/exact/pipe":
      case "/special/pipe": return new Response(request.body, { headers: { "content-type": "application/octet-stream" } });
      case "/special/count": {
        let bytes = 0, chunks = 0;
        for await (const chunk of request.body) { bytes += chunk.length; chunks += 1; }
        return Response.json({ bytes, chunks });
      }
      case "/special/flood": {
        let left = Number(url.searchParams.get("bytes"));
        const chunk = new Uint8Array(65536);
        return new Response(new ReadableStream({
          pull(controller) {
            if (left <= 0) return controller.close();
            controller.enqueue(chunk.subarray(0, Math.min(left, chunk.length)));
            left -= chunk.length;
          },
        }));
      }
      case "/special/events": {
        let n = 0;
        const encoder = new TextEncoder();
        return new Response(new ReadableStream({
          async pull(controller) {
            controller.enqueue(encoder.encode("data: " + n + "\\n\\n"));
            if (++n === 3) return controller.close();
            await new Promise((resolve) => setTimeout(resolve, 300));
          },
        }), { headers: { "content-type": "text/event-stream" } });
      }
      case "/special/headers": {
        const headers = new Headers({ "tollgate": "forged=1", "ratelimit": "forged", "x-kept": "1" });
        headers.append("set-cookie", "a=1");
        headers.append("set-cookie", "b=2");
        return new Response("ok", { headers });
      }
    }
    return Response.json(await told(request));
  },
};`;

export const FEATURES = {
  reports: { kind: "boolean" },
  analytics: { kind: "boolean" },
  exports: { kind: "metered" },
  branding: { kind: "config", default: { color: "#335577" } },
};
export const METERS = { calls: {}, jobs: { recording: "exact" } };
export const ROUTES = [
  { method: "GET", path: "/v1/reports", feature: "reports", meter: "calls" },
  { method: "GET", path: "/v1/analytics", feature: "analytics" },
  { method: "GET", path: "/v1/watched", feature: "analytics", meter: "calls", mode: "observe" },
  { path: "/v1/echo/{*rest}" },
  { path: "/special/{*rest}" },
];
const plenty = { calls: { meter: "calls", rate: { units: 1_000_000, per_ms: 1000, burst: 1_000_000 } } };
export const PLANS = {
  free: { title: "Free", features: { reports: true, analytics: false }, limits: plenty, upgrade_url: "/pricing" },
  pro: { title: "Pro", features: { reports: true, analytics: true, exports: true }, limits: plenty },
};

/**
 * Starts the Worker and sells something: `{ features, meters, origins, plans }`, each by name, over the ones above. Further
 * options are startLocal's. The origin is bound as ECHO.
 */
export async function world({ features = FEATURES, meters = METERS, origins, plans = PLANS, workers = [], services = {}, ...options } = {}) {
  const local = await worker({ workers: [{ name: "echo", script: ECHO }, ...workers], services: { ECHO: "echo", ...services }, ...options });
  const call = operator(local);
  /** Calls the operator API and expects success. */
  const op = async (method, path, body, headers) => {
    const answer = await call(method, `/v1/admin${path}`, body, headers);
    assert.ok(answer.status < 300, `${method} ${path}: ${answer.status} ${JSON.stringify(answer.body)}`);
    return answer.body;
  };
  for (const [name, feature] of Object.entries(features)) await op("PUT", `/features/${name}`, feature);
  for (const [name, meter] of Object.entries(meters)) await op("PUT", `/meters/${name}`, meter);
  const sold = origins ?? { default: { target: { service: "ECHO" }, unmatched: "deny", routes: ROUTES } };
  for (const [name, origin] of Object.entries(sold)) await op("PUT", `/origins/${name}`, origin);
  for (const [name, plan] of Object.entries(plans)) await op("POST", `/plans/${name}/versions`, plan);
  // A gate that is asked before KV shows the catalog would keep the one before for its soft TTL.
  const { serial } = await op("GET", "/catalog");
  await until("KV shows the catalog", async () => payload(await local.documents().then((kv) => kv.get("catalog")))?.serial === serial);
  let made = 0;
  const tenant = (plan = "free", more = {}) =>
    op("POST", "/tenants", { slug: `tenant-${++made}-${Math.random().toString(36).slice(2, 8)}`, name: "A Tenant", plan, ...more });
  // A gate is cold until it is first asked.
  let warmed = 0;
  const cold = () => {
    assert.ok(++warmed < local.gates.length, "start more gates: every one of them was asked already");
    return local.gates[warmed];
  };
  return { local, op, operator: call, tenant, cold };
}

const agent = new http.Agent({ keepAlive: true, maxSockets: 64 });

/**
 * Sends exactly this and takes the whole answer: status, headers, `raw` headers as they came, text, and JSON where it is some.
 * `key` is sent as X-API-Key.
 */
export function ask(base, path, { method = "GET", headers = {}, body, key, host } = {}) {
  const { hostname, port } = new URL(base);
  return new Promise((resolve, reject) => {
    const request = http.request({
      hostname, port, path, method, agent,
      headers: { ...(host ? { Host: host } : {}), ...(key === undefined ? {} : { "X-API-Key": key }), ...(body === undefined ? {} : { "Content-Length": Buffer.byteLength(body) }), ...headers },
    }, (response) => {
      const chunks = [];
      response.on("data", (chunk) => chunks.push(chunk)).on("error", reject).on("end", () => {
        const text = Buffer.concat(chunks).toString();
        let json;
        try { json = JSON.parse(text); } catch {} // not JSON, then
        resolve({ status: response.statusCode, headers: response.headers, raw: response.rawHeaders, text, json });
      });
    });
    // A kept connection may be closed at the moment it is used again; nothing was asked then.
    request.on("error", (error) => (request.reusedSocket && error.code === "ECONNRESET" ? resolve(ask(base, path, { method, headers, body, key, host })) : reject(error)));
    request.end(body);
  });
}

/** The header `Tollgate` as an object. */
export const told = (answer) => Object.fromEntries((answer.headers.tollgate ?? "").split(", ").filter(Boolean).map((part) => part.split("=")));

/** Runs `work(0..count)` with at most `width` at a time. */
export async function each(count, width, work) {
  let next = 0;
  await Promise.all(Array.from({ length: width }, async () => {
    while (next < count) await work(next++);
  }));
}

/** Counts calls of watched bindings: `watch` for startLocal; `count(binding, method)` since the last `forget()`. */
export function counter(...bindings) {
  let calls = [];
  return {
    watch: Object.fromEntries(bindings.map((binding) => [binding, (call) => { if (call.phase === "before") calls.push(call); }])),
    forget: () => { calls = []; },
    calls: (binding, ...methods) => calls.filter((call) => call.binding === binding && (!methods.length || methods.includes(call.method))),
  };
}

/** What a signed document says; nothing is verified. */
export const payload = (signed) => signed && JSON.parse(Buffer.from(signed.split(".")[1], "base64url"));

export const sha256 = (text) => createHash("sha256").update(text).digest("hex");
export const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

/** Numbers between 0 and 1 that are the same in every run (mulberry32). */
export function random(seed) {
  return () => {
    seed = (seed + 0x6d2b79f5) | 0;
    let t = Math.imul(seed ^ (seed >>> 15), 1 | seed);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
}
