// Issue 2, show 13: whatever is wrong about a body has its own code and its place, and nothing changes (G-10, G-15).

import assert from "node:assert/strict";
import { randomBytes } from "node:crypto";
import net from "node:net";
import { test } from "node:test";
import { figures, until } from "./harness.mjs";
import { METERS, PLANS, ask, sleep, world } from "./world.mjs";

const SCARCE = { meter: "scarce", quota: { units: 1000, per: "month" } };
const { local, op, operator, tenant } = await world({
  meters: { ...METERS, scarce: { recording: "exact" } },
  plans: { ...PLANS, free: { ...PLANS.free, limits: { scarce: SCARCE } } },
});
const { id, api_key: key } = await tenant("free");
const check = (body, headers = {}) => ask(local.url, "/v1/check", { method: "POST", key, body, headers: { "Content-Type": "application/json", ...headers } });
const nested = (depth, open = "[", close = "]") => open.repeat(depth) + close.repeat(depth);

/** Everything that a body could have changed. */
const state = async () => {
  const { request_id, period_start, ...usage } = await until("what was used is in the ledger", async () => {
    const usage = await op("GET", `/tenants/${id}/usage`);
    return usage.pending === 0 && usage;
  }, 30_000);
  const { data: audit } = await op("GET", "/audit");
  const peek = await check(JSON.stringify({ meter: "scarce", cost: 1, peek: true }));
  const control = await local.database("CONTROL"), shard = await local.database("SHARD_GLOBAL_1");
  const count = async (database, table) => (await database.prepare(`SELECT count(*) AS n FROM ${table}`).first()).n;
  return {
    usage, audit: audit.length, limits: peek.json.checks, catalog: await op("GET", "/catalog"), tenant: await op("GET", `/tenants/${id}`),
    idempotency: [await count(control, "idempotency"), await count(shard, "idempotency")], keys: await count(shard, "api_key"),
  };
};
const said = ({ status, json }) => [status, json?.code, json?.errors?.[0]?.pointer];

/** What is wrong with a question: body, status, code, pointer. */
const QUESTIONS = {
  "nothing": ["", 400, "malformed_json", "#"],
  "white space": [" \n", 400, "malformed_json", "#"],
  "no JSON": ["feature=analytics", 400, "malformed_json", "#"],
  "JSON that breaks off": ["{\"meter\":\"scarce\"", 400, "malformed_json", "#"],
  "two texts": ["{\"meter\":\"scarce\"}{}", 400, "malformed_json", "#"],
  "a trailing comma": ["{\"meter\":\"scarce\",}", 400, "malformed_json", "#"],
  "single quotes": ["{'meter':'scarce'}", 400, "malformed_json", "#"],
  "NaN": ["{\"meter\":\"scarce\",\"cost\":NaN}", 400, "malformed_json", "#"],
  "bytes that are no UTF-8": [Buffer.from([0x7b, 0x22, 0xff, 0x22, 0x3a, 0x31, 0x7d]), 400, "malformed_json", "#"],
  "a byte order mark": ["\ufeff{\"meter\":\"scarce\"}", 400, "malformed_json", "#"],
  "a lone surrogate": ["{\"meter\":\"\\ud800\"}", 400, "malformed_json", "#"],
  "an array": ["[]", 422, "wrong_type", "#"],
  "null": ["null", 422, "wrong_type", "#"],
  "a number": ["7", 422, "wrong_type", "#"],
  "a string": ["\"scarce\"", 422, "wrong_type", "#"],
  "depth 33 of arrays": [nested(33), 400, "depth_exceeded", `#${"/0".repeat(32)}`],
  "a depth bomb of arrays": ["[".repeat(60_000), 400, "depth_exceeded", `#${"/0".repeat(32)}`],
  "a depth bomb of objects": ["{\"a\":".repeat(12_000), 400, "depth_exceeded", `#${"/a".repeat(32)}`],
  "a member twice": ["{\"meter\":\"scarce\",\"cost\":1,\"cost\":2}", 400, "duplicate_field", "#/cost"],
  "a member twice, once escaped": ["{\"meter\":\"scarce\",\"cost\":1,\"c\\u006fst\":2}", 400, "duplicate_field", "#/cost"],
  "a member twice, deep": ["{\"checks\":[{\"meter\":\"scarce\"},{\"meter\":\"scarce\",\"meter\":\"scarce\"}]}", 400, "duplicate_field", "#/checks/1/meter"],
  "2^53": ["{\"meter\":\"scarce\",\"cost\":9007199254740992}", 422, "number_out_of_range", "#/cost"],
  "2^64": ["{\"meter\":\"scarce\",\"cost\":18446744073709551616}", 422, "number_out_of_range", "#/cost"],
  "1e400": ["{\"meter\":\"scarce\",\"cost\":1e400}", 422, "number_out_of_range", "#/cost"],
  "-2^53": ["{\"meter\":\"scarce\",\"cost\":-9007199254740992}", 422, "number_out_of_range", "#/cost"],
  "a negative cost": ["{\"meter\":\"scarce\",\"cost\":-1}", 422, "number_out_of_range", "#/cost"],
  "half a unit": ["{\"meter\":\"scarce\",\"cost\":0.5}", 422, "wrong_type", "#/cost"],
  "a cost in words": ["{\"meter\":\"scarce\",\"cost\":\"1\"}", 422, "wrong_type", "#/cost"],
  "a cost that is null": ["{\"meter\":\"scarce\",\"cost\":null}", 422, "wrong_type", "#/cost"],
  "a peek that is no boolean": ["{\"meter\":\"scarce\",\"peek\":1}", 422, "wrong_type", "#/peek"],
  "an unknown member": ["{\"meter\":\"scarce\",\"costs\":1}", 422, "unknown_field", "#/costs"],
  "an unknown member of a check": ["{\"checks\":[{\"meter\":\"scarce\",\"peek\":true}]}", 422, "unknown_field", "#/checks/0/peek"],
  "an unknown member with a hostile name": ["{\"meter\":\"scarce\",\"a/b~c \":1}", 422, "unknown_field", "#/a~1b~0c%20"],
  "__proto__": ["{\"meter\":\"scarce\",\"__proto__\":{\"peek\":true}}", 422, "unknown_field", "#/__proto__"],
  "no checks": ["{\"checks\":[]}", 422, "invalid_value", "#/checks"],
  "too many checks": [JSON.stringify({ checks: Array(33).fill({ meter: "scarce" }) }), 422, "invalid_value", "#/checks"],
  "checks that are an object": ["{\"checks\":{}}", 422, "wrong_type", "#/checks"],
  "a check of nothing": ["{\"checks\":[{\"meter\":\"scarce\"},{}]}", 422, "invalid_value", "#/checks/1"],
  "a name that is none": ["{\"meter\":\"Not a name\"}", 422, "invalid_value", "#/meter"],
  "a feature that is no string": ["{\"feature\":[\"analytics\"]}", 422, "wrong_type", "#/feature"],
  "more than 64 KiB": [JSON.stringify({ meter: "scarce", pad: "x".repeat(65_536) }), 413, "body_too_large", undefined],
};

test("every malformed question has its own code and place, and spends nothing", async () => {
  assert.equal((await check("{\"meter\":\"scarce\",\"cost\":2}")).json.allowed, true, "the limit is there to be spent");
  const before = await state();
  for (const [what, [body, ...expected]] of Object.entries(QUESTIONS)) {
    const answer = await check(body);
    assert.deepEqual(said(answer), expected, `${what}: ${answer.text.slice(0, 300)}`);
    assert.equal(answer.headers["content-type"], "application/problem+json", what);
    assert.equal(answer.headers["cache-control"], "no-store", what);
    assert.ok(answer.text.length < 2500, `${what}: the answer is not as long as the question`);
  }
  assert.deepEqual(await state(), before);
  figures({ malformed_questions: Object.keys(QUESTIONS).length });
});

test("a sound question at every edge of the rules is answered", async () => {
  for (const body of [
    "{\"meter\":\"scarce\",\"cost\":9007199254740991,\"peek\":true}", "{\"meter\":\"scarce\",\"cost\":0}", " {\"feature\":\"analytics\"} ",
    JSON.stringify({ checks: Array(32).fill({ feature: "reports" }) }),
  ]) {
    const answer = await check(body);
    assert.equal(answer.status, 200, `${body.slice(0, 80)}: ${answer.text.slice(0, 200)}`);
  }
});

/** Sends a body of `bytes` until an answer comes; it may come, and the connection be closed, long before all is sent. */
const flood = (path, bytes, headers) => new Promise((resolve, reject) => {
  const { hostname, port } = new URL(local.url);
  const socket = net.connect(port, hostname);
  const chunk = Buffer.alloc(1 << 16, 0x20);
  const chunked = headers["Transfer-Encoding"] === "chunked";
  let sent = 0, answer = "";
  const lines = Object.entries({ Host: "localhost", Connection: "close", ...headers }).map(([name, value]) => `${name}: ${value}`);
  socket.write(`POST ${path} HTTP/1.1\r\n${lines.join("\r\n")}\r\n\r\n`);
  // A server that answers early closes what it does not read, and an answer can be lost with it: so it gets time to arrive.
  const more = async () => {
    await sleep(300);
    while (sent < bytes && !answer && !socket.destroyed) {
      sent += chunk.length;
      socket.write(chunked ? Buffer.concat([Buffer.from(`${chunk.length.toString(16)}\r\n`), chunk, Buffer.from("\r\n")]) : chunk);
      await sleep(50);
    }
  };
  const settle = (error) => {
    const [head, body] = answer.split("\r\n\r\n");
    if (!body) return reject(error ?? new Error("no answer"));
    resolve({ status: Number(head.split(" ")[1]), json: JSON.parse(body.slice(body.indexOf("{"), body.lastIndexOf("}") + 1)), sent });
  };
  socket.on("data", (data) => { answer += data; if (answer.includes("request_id") && answer.includes("}", answer.indexOf("request_id"))) { settle(); socket.destroy(); } });
  socket.on("error", settle).on("close", () => settle());
  more();
});

test("a body of 100 MB is refused by its announced length, and without one as soon as it is too long", async () => {
  const before = await state();
  const bytes = 100 << 20;
  const announced = await flood("/v1/check", bytes, { "X-API-Key": key, "Content-Length": bytes });
  assert.deepEqual(said(announced).slice(0, 2), [413, "body_too_large"]);
  const chunked = await flood("/v1/check", bytes, { "X-API-Key": key, "Transfer-Encoding": "chunked" });
  assert.deepEqual(said(chunked).slice(0, 2), [413, "body_too_large"]);
  const stranger = await flood("/v1/check", bytes, { "Transfer-Encoding": "chunked" });
  assert.deepEqual(said(stranger).slice(0, 2), [401, "key_missing"]);
  const admin = await flood("/v1/admin/tenants", bytes, { Authorization: `Bearer ${local.secrets.OPERATOR_KEY}`, "Idempotency-Key": "big", "Transfer-Encoding": "chunked" });
  assert.deepEqual(said(admin).slice(0, 2), [413, "body_too_large"]);
  assert.deepEqual(await state(), before);
  figures({ refused_100_mb_after_kb: { announced: announced.sent >> 10, chunked: chunked.sent >> 10 } });
});

test("a caller without a good key is told so before anything is said about a body", async () => {
  assert.deepEqual(said(await ask(local.url, "/v1/check", { method: "POST", body: "{" })).slice(0, 2), [401, "key_missing"]);
  assert.deepEqual(said(await ask(local.url, "/v1/check", { method: "POST", body: "{", key: "tg_live_x" })).slice(0, 2), [401, "key_invalid"]);
});

test("another method or an unknown path is a problem too", async () => {
  for (const [method, path, status, code, allow] of [
    ["GET", "/v1/check", 405, "method_not_allowed", "POST"], ["POST", "/v1/features", 405, "method_not_allowed", "GET, HEAD"],
    ["PROPFIND", "/v1/admin/features/reports", 405, "method_not_allowed", "PUT"],
    ["PROPFIND", "/gate/v1/reports", 405, "method_not_allowed", "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"],
    ["GET", "/v1/nothing", 404, "not_found"], ["GET", "/v1/features/no-such", 404, "not_found"], ["GET", "/problems/no-such", 404, "not_found"],
  ]) {
    const answer = await ask(local.url, path, { method, key, ...(method === "POST" ? { body: "{}" } : {}) });
    assert.deepEqual([...said(answer).slice(0, 2), answer.headers.allow], [status, code, allow], `${method} ${path}`);
  }
});

/** What is wrong with a change: method, path, body, status, code, pointer. */
const rate = (more) => ({ meter: "calls", rate: { units: 1, per_ms: 1000, burst: 5, ...more } });
const plan = (more) => ({ title: "T", ...more });
const CHANGES = {
  "a tenant without a slug": ["POST", "/tenants", { name: "N" }, 422, "missing_field", "#/slug"],
  "a tenant with an unknown member": ["POST", "/tenants", { slug: "a-tenant", name: "N", admin: true }, 422, "unknown_field", "#/admin"],
  "a tenant with a bad slug": ["POST", "/tenants", { slug: "Not A Slug", name: "N" }, 422, "invalid_value", "#/slug"],
  "a tenant of an unknown plan": ["POST", "/tenants", { slug: "a-tenant", name: "N", plan: "gold" }, 422, "invalid_value", "#/plan"],
  "a tenant of a version to come": ["POST", "/tenants", { slug: "a-tenant", name: "N", plan: "free", version: 9 }, 422, "invalid_value", "#/version"],
  "a tenant of version 2^32": ["POST", "/tenants", { slug: "a-tenant", name: "N", plan: "free", version: 4294967296 }, 422, "number_out_of_range", "#/version"],
  "a tenant under nobody": ["POST", "/tenants", { slug: "a-tenant", name: "N", parent: "ten_g000000000000001" }, 422, "invalid_value", "#/parent"],
  "a tenant in no jurisdiction": ["POST", "/tenants", { slug: "a-tenant", name: "N", jurisdiction: "moon" }, 422, "invalid_value", "#/jurisdiction"],
  "a feature of no kind": ["PUT", "/features/x", { kind: "magic" }, 422, "invalid_value", "#/kind"],
  "a feature whose default is of another type": ["PUT", "/features/x", { kind: "boolean", default: "yes" }, 422, "invalid_value", "#/default"],
  "a feature with an unknown member": ["PUT", "/features/x", { kind: "boolean", on: true }, 422, "unknown_field", "#/on"],
  "a meter charged on success that is leased": ["PUT", "/meters/x", { charge: "success" }, 422, "invalid_value", "#/charge"],
  "a meter that is idempotent and leased": ["PUT", "/meters/x", { idempotent: true }, 422, "invalid_value", "#/idempotent"],
  "an origin with a route to no feature": ["PUT", "/origins/default", { target: "demo", routes: [{ path: "/a", feature: "nope" }] }, 422, "invalid_value", "#/routes/0/feature"],
  "an origin with an unknown member in a route": ["PUT", "/origins/default", { target: "demo", routes: [{ path: "/a", featur: "reports" }] }, 422, "unknown_field", "#/routes/0/featur"],
  "an origin that is an address": ["PUT", "/origins/x", { target: { https: "https://10.0.0.1" } }, 422, "invalid_value", "#/target/https"],
  "a plan with an unknown feature": ["POST", "/plans/free/versions", plan({ features: { nope: true } }), 422, "invalid_value", "#/features/nope"],
  "a plan with a feature of another type": ["POST", "/plans/free/versions", plan({ features: { analytics: "on" } }), 422, "invalid_value", "#/features/analytics"],
  "a plan with an unknown member": ["POST", "/plans/free/versions", plan({ feature: { analytics: true } }), 422, "unknown_field", "#/feature"],
  "a plan with a limit of an unknown meter": ["POST", "/plans/free/versions", plan({ limits: { l: { ...rate(), meter: "nope" } } }), 422, "invalid_value", "#/limits/l/meter"],
  "a plan with a rate per nothing": ["POST", "/plans/free/versions", plan({ limits: { l: rate({ per_ms: 0 }) } }), 422, "invalid_value", "#/limits/l"],
  // A limit is read by way of serde's flatten, behind which the place is known to the limit and no further.
  "a plan with a limit of two kinds": ["POST", "/plans/free/versions", plan({ limits: { l: { ...rate(), quota: { units: 1, per: "month" } } } }), 422, "invalid_value", "#/limits/l"],
  "a plan with an unknown member of a rate": ["POST", "/plans/free/versions", plan({ limits: { l: rate({ per: "second" }) } }), 422, "unknown_field", "#/limits/l/rate/per"],
  "an override of another type": ["PUT", `/tenants/${id}/overrides/analytics`, { value: "yes" }, 422, "wrong_type", "#/value"],
  "an override without a value": ["PUT", `/tenants/${id}/overrides/analytics`, {}, 422, "missing_field", "#/value"],
  "an override past 2^53": ["PUT", `/tenants/${id}/overrides/analytics`, "{\"value\":true,\"until\":9007199254740993}", 422, "number_out_of_range", "#/until"],
  "an override twice": ["PUT", `/tenants/${id}/overrides/analytics`, "{\"value\":true,\"value\":false}", 400, "duplicate_field", "#/value"],
  "an override of no feature": ["PUT", `/tenants/${id}/overrides/nope`, { value: true }, 404, "not_found", undefined],
  "a standing that there is not": ["PUT", `/tenants/${id}/status`, { status: "gone" }, 422, "invalid_value", "#/status"],
  "a key of no mode": ["POST", `/tenants/${id}/keys`, { name: "k", mode: "dead" }, 422, "invalid_value", "#/mode"],
  "a key with a scope, which nothing asks for": ["POST", `/tenants/${id}/keys`, { name: "k", scopes: ["read"] }, 422, "invalid_value", "#/scopes"],
  "a key with an unknown member": ["POST", `/tenants/${id}/keys`, { name: "k", tenant: "other" }, 422, "unknown_field", "#/tenant"],
  "a depth bomb": ["PUT", "/features/x", "[".repeat(100_000), 400, "depth_exceeded", `#${"/0".repeat(32)}`],
  "a change of a tenant that is not there": ["PUT", "/tenants/ten_g000000000000001/status", { status: "active" }, 404, "not_found", undefined],
  "a change of a tenant that is no id": ["PUT", "/tenants/%27%20OR%201=1/status", { status: "active" }, 404, "not_found", undefined],
};

test("every malformed change of the operator has its own code and place, and changes nothing", async () => {
  const before = await state();
  const wrong = [];
  for (const [what, [method, path, body, ...expected]] of Object.entries(CHANGES)) {
    const answer = await ask(local.url, `/v1/admin${path}`, {
      method, body: typeof body === "string" ? body : JSON.stringify(body),
      headers: { Authorization: `Bearer ${local.secrets.OPERATOR_KEY}`, "Idempotency-Key": randomBytes(8).toString("hex"), "Content-Type": "application/json" },
    });
    const got = said(answer);
    if (JSON.stringify(got) !== JSON.stringify(expected)) wrong.push(`${what}: ${JSON.stringify(got)}, not ${JSON.stringify(expected)}: ${answer.json?.detail}`);
  }
  assert.deepEqual(wrong, []);
  assert.deepEqual(await state(), before);
  figures({ malformed_changes: Object.keys(CHANGES).length });
});

test("a change needs an idempotency key, takes effect once for it, and refuses it for another change", async () => {
  const path = `/v1/admin/tenants/${id}/keys`;
  const post = (idempotency, body) => operator("POST", path, body, { "Idempotency-Key": idempotency });
  const missing = await ask(local.url, path, { method: "POST", body: "{\"name\":\"n\"}", headers: { Authorization: `Bearer ${local.secrets.OPERATOR_KEY}` } });
  assert.deepEqual(said(missing).slice(0, 2), [400, "idempotency_key_missing"]);
  for (const bad of ["", " ", "\"\"", "x".repeat(256), "a b"]) {
    const { status, json } = await ask(local.url, path, { method: "POST", body: "{\"name\":\"n\"}", headers: { Authorization: `Bearer ${local.secrets.OPERATOR_KEY}`, "Idempotency-Key": bad } });
    assert.deepEqual([status, json.code], [400, "idempotency_key_invalid"], JSON.stringify(bad));
  }
  const before = (await op("GET", `/tenants/${id}/keys`)).data.length;
  const first = await post("once", { name: "one" });
  assert.equal(first.status, 201);
  const again = await post("once", { name: "one" });
  assert.equal(again.status, 201);
  assert.equal(again.body.id, first.body.id);
  assert.equal(again.body.api_key, undefined, "a key is shown once");
  const quoted = await post("\"once\"", { name: "one" });
  assert.equal(quoted.body.id, first.body.id, "quoted or bare, it is the same");
  const reused = await post("once", { name: "another" });
  assert.deepEqual([reused.status, reused.body.code], [422, "idempotency_key_reused"]);
  const crowd = await Promise.all(Array.from({ length: 8 }, () => post("crowd", { name: "crowd" })));
  assert.ok(crowd.every(({ status }) => status === 201 || status === 409), JSON.stringify(crowd.map(({ status }) => status)));
  assert.equal(new Set(crowd.filter(({ status }) => status === 201).map(({ body }) => body.id)).size, 1);
  assert.equal((await op("GET", `/tenants/${id}/keys`)).data.length, before + 2);
  const creator = { slug: `twice-${Date.now()}`, name: "Twice", plan: "free" };
  const made = await operator("POST", "/v1/admin/tenants", creator, { "Idempotency-Key": "tenant" });
  const same = await operator("POST", "/v1/admin/tenants", creator, { "Idempotency-Key": "tenant" });
  assert.deepEqual([made.status, same.status, same.body.id], [201, 201, made.body.id]);
});

test("an operator key is needed, and a tenant's own is none", async () => {
  for (const headers of [{}, { Authorization: "Bearer x" }, { Authorization: `Bearer ${key}` }, { "X-API-Key": local.secrets.OPERATOR_KEY }]) {
    for (const [method, path] of [["GET", "/catalog"], ["POST", "/tenants"], ["GET", `/tenants/${id}`], ["DELETE", `/tenants/${id}/keys/x`]]) {
      const { status } = await ask(local.url, `/v1/admin${path}`, { method, headers: { ...headers, "Idempotency-Key": "x" }, ...(method === "POST" ? { body: "{}" } : {}) });
      assert.equal(status, 401, `${method} ${path} ${JSON.stringify(headers)}`);
    }
  }
});
