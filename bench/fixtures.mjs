// What every target knows: the same 64 tenants, 24 features and routes, in the shape that each of them expects.

import { createHash, createHmac } from "node:crypto";

export const TENANTS = 64;
export const FEATURES = Array.from({ length: 24 }, (_, at) => `feature-${String(at).padStart(2, "0")}`);
/** The feature, and the path that needs it, that every request asks for. */
export const FEATURE = FEATURES[7];
export const PATH = `/v1/${FEATURE}`;

/** More than any target here can serve: what is measured is the decision, not a refusal. */
export const AMPLE = { units: 1_000_000, per_ms: 1_000, burst: 2_000_000 };

/** Of the benchmark alone; it protects nothing. */
const SECRET = "of the benchmark alone, it protects nothing";

const PLAN = "bench";
const tenant = (at) => ({ id: `ten_${String(at).padStart(17, "0")}`, plan: PLAN });
/** Keys of the peers, as long as Tollgate's. Those of Tollgate come from its operator API. */
export const keys = Array.from({ length: TENANTS }, (_, at) => `tk_live_${at}_${createHash("sha256").update(`key ${at}`).digest("hex")}`.slice(0, 63));

const jws = (payload) => {
  const part = (value) => Buffer.from(JSON.stringify(value)).toString("base64url");
  const signed = `${part({ alg: "HS256", kid: "1" })}.${part(payload)}`;
  return `${signed}.${createHmac("sha256", SECRET).update(signed).digest("base64url")}`;
};

const now = Date.now();
const signed = (key, body) => [key, jws({ key, serial: 1, iat: now, exp: now + 86_400_000, ...body })];

/** What the Worker that leases by hand finds in its KV: signed documents, as many as Tollgate's. */
function leaseDocuments() {
  return [
    signed("catalog", {
      features: Object.fromEntries(FEATURES.map((name) => [name, { type: "boolean" }])),
      routes: FEATURES.map((feature) => ({ method: "GET", path: `/v1/${feature}`, feature, meter: "requests", cost: 1 })),
      plans: { [PLAN]: 1 },
    }),
    signed(`plan/${PLAN}/1`, {
      features: Object.fromEntries(FEATURES.map((name) => [name, true])),
      limits: { requests: { meter: "requests", rate: AMPLE } },
    }),
    ...keys.map((key, at) =>
      signed(`tenant/${tenant(at).id}`, { ...tenant(at), overrides: {}, keys: [{ id: `key_${at}`, sha256: createHash("sha256").update(key).digest("base64url") }] })),
  ];
}

/** What the Hono Worker finds: a record for each key, and the plan. */
function honoRecords() {
  return [
    [`plan:${PLAN}`, JSON.stringify({ title: "Bench", features: FEATURES, limit: AMPLE.units })],
    ...keys.map((key, at) => [`key:${key}`, JSON.stringify(tenant(at))]),
  ];
}

export const LAUNCHDARKLY_KEY = "bench";

/** What LaunchDarkly's integration puts into KV: one value with every flag, each with one rule on the plan. */
function launchDarklyPayload() {
  const clause = { contextKind: "tenant", attribute: "plan", op: "in", values: [PLAN], negate: false };
  const flag = (key) => ({
    key, on: true, prerequisites: [], targets: [], contextTargets: [], rules: [{ id: "plan", clauses: [clause], variation: 0, trackEvents: false }],
    fallthrough: { variation: 1 }, offVariation: 1, variations: [true, false], clientSide: false, salt: key, version: 1,
    trackEvents: false, trackEventsFallthrough: false, debugEventsUntilDate: null, deleted: false,
  });
  return [[`LD-Env-${LAUNCHDARKLY_KEY}`, JSON.stringify({ flags: Object.fromEntries(FEATURES.map((key) => [key, flag(key)])), segments: {} })]];
}

export const records = { lease: leaseDocuments, hono: honoRecords, launchdarkly: launchDarklyPayload };

/** The plain bindings that peers share. */
export const vars = { FEATURE, SECRET, LIMIT: AMPLE.units, LAUNCHDARKLY_KEY, PLAN };
