// Issue 2, show 2: what is decided about a feature, from which source, and how a change of it arrives (G-6, G-12, G-13).
//
// A gate that nobody asked yet reads every document anew, so it shows a change at once. A warm one keeps the catalog for 30 s and
// a tenant for 5 minutes, unless a limiter's answer tells it of a newer document; those bounds are measured where time is given.

import assert from "node:assert/strict";
import { test } from "node:test";
import { figures, size, until } from "./harness.mjs";
import { FEATURES, ask, counter, each, payload, sleep, told, world } from "./world.mjs";

const counted = counter("DOCUMENTS", "TENANT");
const { local, op, tenant, cold } = await world({
  gates: 12,
  watch: counted.watch,
  features: { ...FEATURES, beta: { kind: "boolean", mode: "observe" } },
  origins: {
    default: { target: { service: "ECHO" }, unmatched: "deny", routes: [
      { method: "GET", path: "/v1/reports", feature: "reports", meter: "calls" },
      { method: "GET", path: "/v1/analytics", feature: "analytics" },
      { method: "GET", path: "/v1/watched", feature: "analytics", meter: "calls", mode: "observe" },
      { method: "GET", path: "/v1/beta", feature: "beta", meter: "calls" },
      { method: "GET", path: "/v1/large", feature: "reports", meter: "calls", cost: 60 },
    ] },
    open: { target: { service: "ECHO" }, hosts: ["open.example.com"], unmatched: "allow", routes: [
      { method: "GET", path: "/v1/analytics", feature: "analytics" },
    ] },
  },
});
const warm = local.url;

const get = (base, path, key, more = {}) => ask(base, `/gate${path}`, { key, ...more });
const settled = () => until("KV holds what was made", async () => {
  const before = counted.calls("DOCUMENTS", "put").length;
  await sleep(400);
  return counted.calls("DOCUMENTS", "put").length === before;
});

test("a feature that the plan leaves off is refused with 403 and everything a client needs to go on", async () => {
  const { id, api_key } = await tenant("free");
  const answer = await get(warm, "/v1/analytics", api_key);
  const { snapshot, request_id, ...rest } = answer.json;
  assert.equal(answer.status, 403);
  assert.equal(answer.headers["content-type"], "application/problem+json");
  assert.equal(answer.headers["cache-control"], "no-store");
  assert.deepEqual(rest, {
    type: `${local.url}/problems/feature_not_available`, title: "Feature not available", status: 403, code: "feature_not_available",
    error: "Feature not available", feature: "analytics", current_plan: "Free", upgrade_url: "/pricing", source: "plan", tenant: id, tier: "isolate",
  });
  assert.ok(Number.isInteger(snapshot.serial) && snapshot.serial > 0 && Number.isInteger(snapshot.age_ms), JSON.stringify(snapshot));
  assert.match(request_id, /^req_/);
  assert.deepEqual(told(answer), { serial: String(snapshot.serial), age: String(snapshot.age_ms), tier: "isolate", id: request_id });
  const page = await fetch(answer.json.type);
  assert.equal(page.status, 200);
  assert.match(await page.text(), /feature_not_available/);
});

test("a refused limit is said as the plan of now says it, however often it was refused before", async () => {
  const tight = (units, title, wording) => ({ title, features: { reports: true }, upgrade_url: `/more-than-${title}`, wording: { rate_limited: wording },
    limits: { calls: { meter: "calls", rate: { units, per_ms: 600_000, burst: 2 } } } });
  await op("POST", "/plans/tight/versions", tight(1, "Tight", "Not so fast"));
  await op("POST", "/plans/tighter/versions", tight(3, "Tighter", "Langsamer, später 🐢"));
  const { id, api_key } = await tenant("tight");
  await settled();
  const gate = cold();
  const refusal = (answer, title, wording, quota) => {
    const { snapshot, tier, request_id, retry_after, ...rest } = answer.json;
    assert.deepEqual(rest, {
      type: `${local.url}/problems/rate_limited`, title: wording, status: 429, code: "rate_limited", error: wording, current_plan: title, upgrade_url: `/more-than-${title}`,
      limit: { name: "calls", tenant: id, level: 0, quota, cost: 1 }, "violated-policies": ["calls"], tenant: id,
    });
    assert.deepEqual(told(answer), { serial: String(snapshot.serial), age: String(snapshot.age_ms), tier, id: request_id });
    const { "content-type": type, "cache-control": cache, "retry-after": retry, ratelimit, "ratelimit-policy": policy } = answer.headers;
    assert.deepEqual([type, cache], ["application/problem+json", "no-store"]);
    assert.deepEqual([retry, ratelimit, policy], [String(retry_after), `"calls";r=0;t=${retry_after}`, `"calls";q=${quota};w=600`]);
    return `${retry_after} ${tier}`;
  };
  while ((await get(gate, "/v1/reports", api_key)).status === 200);
  const seen = new Set();
  // Long enough for both whole seconds that a refusal is remembered for, and for its end.
  for (const end = Date.now() + 2_500; Date.now() < end; await sleep(20)) seen.add(refusal(await get(gate, "/v1/reports", api_key), "Tight", "Not so fast", 1));
  assert.ok(seen.has("2 isolate") && seen.has("1 isolate"), [...seen].join());
  await op("PUT", `/tenants/${id}/subscription`, { plan: "tighter" });
  await until("a warm gate says what the new plan says", async () => (await get(gate, "/v1/reports", api_key)).json.current_plan === "Tighter", 12_000);
  for (let times = 0; times < 50; times += 1) refusal(await get(gate, "/v1/reports", api_key), "Tighter", "Langsamer, später 🐢", 3);
});

test("a large cost that is refused is told what is left for smaller ones", async () => {
  await op("POST", "/plans/hundred/versions", { title: "Hundred", features: { reports: true }, limits: { calls: { meter: "calls", rate: { units: 1, per_ms: 600_000, burst: 100 } } } });
  const { api_key } = await tenant("hundred");
  assert.equal((await get(warm, "/v1/large", api_key)).status, 200);
  for (let times = 0; times < 2; times += 1) {
    const { status, headers, json } = await get(warm, "/v1/large", api_key);
    assert.deepEqual([status, json.code, json.limit.cost, headers.ratelimit], [429, "rate_limited", 60, `"calls";r=40;t=${json.retry_after}`]);
  }
});

test("an override with an end lets it in, and past its end not, with no write between", async () => {
  const { id, api_key } = await tenant("free");
  const end = Date.now() + 4000;
  await op("PUT", `/tenants/${id}/overrides/analytics`, { value: true, until: end, reason: "trial" });
  await settled();
  const gate = cold();
  assert.equal((await get(gate, "/v1/analytics", api_key)).status, 200);
  assert.equal((await ask(gate, "/v1/features/analytics", { key: api_key })).json.source, "override");
  counted.forget();
  // One isolate asked warm, up to the end and over it: the answer changes at the instant itself.
  const seen = [];
  while (Date.now() < end + 300) {
    const sent = Date.now();
    seen.push({ sent, got: 0, status: (await get(gate, "/v1/analytics", api_key)).status });
    seen.at(-1).got = Date.now();
    await sleep(20);
  }
  for (const { sent, got, status } of seen) {
    if (got < end - 5) assert.equal(status, 200, `${end - got} ms before the end`);
    if (sent > end + 5) assert.equal(status, 403, `${sent - end} ms past the end`);
  }
  assert.ok(seen.some(({ status }) => status === 200) && seen.some(({ status }) => status === 403));
  assert.equal((await ask(gate, "/v1/features/analytics", { key: api_key })).json.source, "plan");
  assert.deepEqual(counted.calls("DOCUMENTS", "put", "delete"), [], "nothing was written");
  figures({ override_answers: seen.length });
});

test("an explicit false of a tenant's own is honoured over its plan's true", async () => {
  const { id, api_key } = await tenant("pro");
  await op("PUT", `/tenants/${id}/overrides/analytics`, { value: false });
  await settled();
  const refused = await get(warm, "/v1/analytics", api_key);
  assert.deepEqual([refused.status, refused.json.source], [403, "override"]);
});

test("a kill switch beats plan and override, and lifted, they speak again", async () => {
  const { id, api_key } = await tenant("pro");
  await op("PUT", `/tenants/${id}/overrides/analytics`, { value: true });
  // Another gate than the one that makes the change, and so hears of it at once.
  const elsewhere = cold();
  assert.equal((await get(elsewhere, "/v1/analytics", api_key)).status, 200);
  await op("PUT", "/kill-switches/analytics", { reason: "an incident" });
  const thrown = Date.now();
  await settled();
  const killed = await get(cold(), "/v1/analytics", api_key);
  assert.deepEqual([killed.status, killed.json.code, killed.json.source], [503, "feature_killed", "kill_switch"]);
  if (size(true, false)) {
    // How it arrives where the catalog is warm: soft TTL (30 s), then one request that is still answered from the old one.
    const arrived = await until("the kill switch arrives at a warm gate", async () => (await get(elsewhere, "/v1/analytics", api_key)).status === 503 && Date.now(), 40_000);
    assert.ok(arrived - thrown < 35_000, `${arrived - thrown} ms`);
    figures({ kill_switch_arrives_warm_ms: arrived - thrown });
  }
  await op("DELETE", "/kill-switches/analytics", undefined);
  await settled();
  assert.equal((await get(cold(), "/v1/analytics", api_key)).status, 200);
});

test("a plan edit reaches every tenant of the plan by exactly two KV writes", async () => {
  const many = size(1000, 60);
  await op("POST", "/plans/team/versions", { title: "Team", features: { analytics: false } });
  const tenants = [];
  await each(many, 16, async () => tenants.push(await tenant("team")));
  await settled();
  counted.forget();
  const { serial } = await op("POST", "/plans/team/versions", { title: "Team", features: { analytics: true } });
  await until("KV shows the new catalog", async () => payload(await (await local.documents()).get("catalog")).serial === serial);
  await settled();
  assert.deepEqual(counted.calls("DOCUMENTS", "put", "delete").map(({ method, detail }) => `${method} ${detail}`), ["put plan/team/2", "put catalog"]);
  const gate = cold();
  const answers = {};
  await each(many, 16, async (at) => {
    const { status, json } = await get(gate, "/v1/analytics", tenants[at].api_key);
    const answer = `${status} ${json.code ?? json.origin}`;
    answers[answer] = (answers[answer] ?? 0) + 1;
  });
  assert.deepEqual(answers, { "200 echo": many });
  assert.equal(counted.calls("DOCUMENTS", "put", "delete").length, 2, "and none since");
  figures({ plan_edit_tenants: many, plan_edit_kv_writes: 2 });
});

test("a route that only observes lets pass, says what it would have done, and records it", async () => {
  const { id, api_key } = await tenant("free");
  const gate = local.url;
  let last;
  for (let times = 0; times < 3; times += 1) {
    const passed = await get(gate, "/v1/watched", api_key);
    assert.deepEqual([passed.status, passed.json.origin, told(passed).observed], [200, "echo", "feature_not_available"]);
    last = told(passed).id;
  }
  assert.equal(told(await get(gate, "/v1/reports", api_key)).observed, undefined);
  const usage = await until("the use of reports alone is in the ledger", async () => {
    const { totals } = await op("GET", `/tenants/${id}/usage`);
    return totals.some(({ meter }) => meter === "calls") && totals;
  }, 30_000);
  assert.deepEqual(usage.map(({ meter, mode, quantity }) => [meter, mode, quantity]), [["calls", "live", 1]], "what only passed for being observed is not billed");
  const [seen] = await until("what was observed is noted", async () => {
    const { not_served } = await op("GET", `/tenants/${id}/usage`);
    return not_served.length > 0 && not_served;
  }, 30_000);
  assert.deepEqual([seen.what, seen.requests, seen.last_request_id], ["observed feature_not_available GET /v1/watched", 3, last]);
});

test("a feature that only observes lets pass what is refused for want of it, in checks too, and that spends nothing", async () => {
  await op("POST", "/plans/trying/versions", { title: "Trying", features: { reports: true }, limits: { calls: { meter: "calls", rate: { units: 1, per_ms: 600_000, burst: 1 } } } });
  const { id, api_key } = await tenant("trying");
  const gate = local.url;
  for (let times = 0; times < 3; times += 1) {
    const passed = await get(gate, "/v1/beta", api_key);
    assert.deepEqual([passed.status, told(passed).observed], [200, "feature_not_available"]);
  }
  const check = async (more = {}) => {
    const { json } = await ask(gate, "/v1/check", { key: api_key, method: "POST", body: JSON.stringify({ checks: [{ feature: "beta", meter: "calls" }, { feature: "reports", meter: "calls" }], ...more }) });
    return [json.allowed, ...json.checks.map(({ allowed, code, observed }) => [allowed, code, observed]), json.request_id];
  };
  const beta = [true, undefined, "feature_not_available"];
  assert.deepEqual((await check({ peek: true })).slice(0, -1), [true, beta, [true, undefined, undefined]]);
  assert.deepEqual((await check()).slice(0, -1), [true, beta, [true, undefined, undefined]], "one unit is there, and one is taken");
  const refused = await check();
  assert.deepEqual(refused.slice(0, -1), [false, beta, [false, "rate_limited", undefined]]);
  const noted = await until("what was observed and refused is noted", async () => {
    const { not_served } = await op("GET", `/tenants/${id}/usage`);
    return not_served.length > 2 && Object.fromEntries(not_served.map(({ what, requests, last_request_id }) => [what, [requests, last_request_id]]));
  }, 30_000);
  assert.equal(noted["observed feature_not_available GET /v1/beta"][0], 3);
  assert.equal(noted["observed feature_not_available /v1/check beta"][0], 2);
  assert.deepEqual(noted["refused rate_limited /v1/check reports"], [1, refused.at(-1)]);
  await op("PUT", "/features/beta", { kind: "boolean" });
  await settled();
  const enforced = await get(cold(), "/v1/beta", api_key);
  assert.deepEqual([enforced.status, enforced.json.code, enforced.json.feature], [403, "feature_not_available", "beta"]);
});

test("what no rule names is refused under default deny and passes under default allow, but never without a key", async () => {
  const { api_key } = await tenant("free");
  const denied = await get(warm, "/v1/unheard-of", api_key);
  assert.deepEqual([denied.status, denied.json.code], [403, "route_denied"]);
  const open = { host: "open.example.com", key: api_key };
  const gate = cold();
  const allowed = await ask(gate, "/v1/unheard-of", open);
  assert.deepEqual([allowed.status, allowed.json.url], [200, "https://origin/v1/unheard-of"]);
  assert.equal((await ask(gate, "/v1/analytics", open)).status, 403);
  assert.equal((await ask(gate, "/v1/unheard-of", { host: "open.example.com" })).json.code, "key_missing");
});

test("a new tenant, and a new key of a tenant that is in memory, work at once", async () => {
  for (let times = 0; times < 5; times += 1) {
    const { id, api_key } = await tenant("free");
    assert.equal((await get(warm, "/v1/reports", api_key)).status, 200, "a new tenant, at once");
    const second = await op("POST", `/tenants/${id}/keys`, { name: "second" });
    assert.equal((await get(warm, "/v1/reports", second.api_key)).status, 200, "a new key, at once");
  }
});

test("a tenant that is met the first time costs one reading of KV, and one question to its owner where KV does not show it", async () => {
  const kv = await local.documents();
  for (const shown of [true, false]) {
    const { id, api_key } = await tenant("pro");
    await settled();
    if (!shown) await kv.delete(`tenant/${id}`);
    counted.forget();
    assert.equal((await get(warm, "/v1/analytics", api_key)).status, 200);
    const reads = counted.calls("DOCUMENTS", "get").filter(({ detail }) => detail === `tenant/${id}`);
    assert.deepEqual([reads.length, counted.calls("TENANT").length], [1, shown ? 0 : 1], shown ? "in KV" : "not in KV");
  }
});

test("a revoked key is refused at once by a cold gate, and by a warm one within a lease", async () => {
  const { id, api_key } = await tenant("free");
  const other = await op("POST", `/tenants/${id}/keys`, { name: "to be revoked" });
  assert.equal((await get(warm, "/v1/reports", other.api_key)).status, 200);
  await op("DELETE", `/tenants/${id}/keys/${other.id}`, undefined);
  const revoked = Date.now();
  const refused = await get(cold(), "/v1/reports", other.api_key);
  assert.deepEqual([refused.status, refused.json.code], [401, "key_revoked"]);
  await until("a warm gate refuses it", async () => {
    const { status, json } = await get(warm, "/v1/reports", other.api_key);
    await sleep(50);
    return status === 401 && json.code === "key_revoked";
  }, 12_000);
  figures({ revocation_arrives_warm_ms: Date.now() - revoked });
  assert.equal((await get(warm, "/v1/reports", api_key)).status, 200, "the tenant's other key still works");
});

test("a suspended tenant is refused whatever its key, and its teams with it", async () => {
  const parent = await tenant("pro");
  const team = await op("POST", "/tenants", { slug: `team-${Date.now()}`, name: "Team", parent: parent.id });
  await op("PUT", `/tenants/${parent.id}/status`, { status: "suspended" });
  await settled();
  const gate = cold();
  for (const { api_key } of [parent, team]) {
    const refused = await get(gate, "/v1/reports", api_key);
    assert.deepEqual([refused.status, refused.json.code], [403, "tenant_suspended"]);
  }
});

test("a key with an end is refused from that instant", async () => {
  const { id } = await tenant("free");
  const end = Date.now() + 1500;
  const { api_key } = await op("POST", `/tenants/${id}/keys`, { name: "short", until: end });
  assert.equal((await get(warm, "/v1/reports", api_key)).status, 200);
  await sleep(end - Date.now() + 5);
  const refused = await get(warm, "/v1/reports", api_key);
  assert.deepEqual([refused.status, refused.json.code], [401, "key_expired"]);
});

test("a wrong, a missing and a second, different key are refused each with its own code", async () => {
  const [one, other] = [await tenant("free"), await tenant("free")];
  const code = async (headers) => {
    const { status, json } = await ask(warm, "/gate/v1/reports", { headers });
    return `${status} ${json.code ?? json.origin}`;
  };
  const wrong = one.api_key.slice(0, -1) + (one.api_key.endsWith("A") ? "B" : "A");
  assert.equal(await code({}), "401 key_missing");
  assert.equal(await code({ "X-API-Key": wrong }), "401 key_invalid");
  assert.equal(await code({ "X-API-Key": "secret" }), "401 key_invalid");
  assert.equal(await code({ Authorization: `Bearer ${one.api_key}` }), "200 echo");
  assert.equal(await code({ Authorization: `bearer ${one.api_key}` }), "200 echo");
  assert.equal(await code({ "X-API-Key": one.api_key, Authorization: `Bearer ${one.api_key}` }), "200 echo");
  assert.equal(await code({ "X-API-Key": one.api_key, Authorization: `Bearer ${other.api_key}` }), "400 key_conflict");
  assert.equal(await code({ "X-API-Key": [one.api_key, other.api_key] }), "401 key_invalid", "two in one header are one that is no key");
  assert.equal(await code({ "X-API-Key": one.api_key, Authorization: "Bearer of-the-origins-own" }), "200 echo");
});

test("a test key passes the same checks and is metered apart", async () => {
  const { id, api_key } = await tenant("free");
  const trial = await op("POST", `/tenants/${id}/keys`, { name: "trial", mode: "test" });
  assert.match(trial.api_key, /^tg_test_/);
  assert.equal((await get(warm, "/v1/analytics", trial.api_key)).status, 403);
  for (let times = 0; times < 2; times += 1) assert.equal((await get(warm, "/v1/reports", trial.api_key)).status, 200);
  assert.equal((await get(warm, "/v1/reports", api_key)).status, 200);
  const totals = await until("both are in the ledger", async () => {
    const { totals } = await op("GET", `/tenants/${id}/usage`);
    return totals.reduce((sum, { quantity }) => sum + quantity, 0) === 3 && totals;
  }, 30_000);
  assert.deepEqual(totals.map(({ meter, mode, quantity }) => [meter, mode, quantity]), [["calls", "live", 1], ["calls", "test", 2]]);
});

test("a peek says what its limits' owners have left, at a gate that never met the tenant, and spends nothing", async () => {
  const units = (units) => ({ quota: { units, per: "month" } });
  await op("POST", "/plans/peeked/versions", { title: "Peeked", features: { reports: true }, limits: { calls: { meter: "calls", ...units(5) } } });
  const organisation = await tenant("peeked");
  const team = await op("POST", "/tenants", { slug: "peeking-team", name: "Team", parent: organisation.id });
  await settled();
  const gate = cold();
  const check = async (base, key, question) => (await ask(base, "/v1/check", { key, method: "POST", body: JSON.stringify({ meter: "calls", ...question }) })).json;
  const look = async (cost = 1) => {
    const said = await check(gate, team.api_key, { cost, peek: true });
    return [said.allowed, said.checks[0].code, said.checks[0].limits.at(-1).remaining, said.tier];
  };

  assert.deepEqual(await look(), [true, undefined, 5, "limiter"]);
  const before = (await ask(warm, "/v1/usage", { key: team.api_key })).json;
  assert.deepEqual([before.leased, before.gap], [[], []], "a peek leaves no trace at a limiter");
  assert.equal((await check(warm, organisation.api_key, { cost: 3 })).allowed, true);
  assert.deepEqual(await look(), [true, undefined, 2, "limiter"]);
  assert.deepEqual(await look(3), [false, "quota_exceeded", 2, "limiter"]);
  assert.deepEqual(await look(6), [false, "cost_exceeds_limit", 2, "limiter"]);
  assert.equal((await check(warm, organisation.api_key, { cost: 2 })).allowed, true);
  assert.deepEqual(await look(), [false, "quota_exceeded", 0, "limiter"]);
});
