// Issue 2, show 10: no spelling of a path reaches a protected feature unpaid, and of two hostile tenants neither sees anything of
// the other's (G-7, G-11, G-13). On real workerd, which reads paths in its own way before the gate sees them.

import assert from "node:assert/strict";
import fs from "node:fs";
import { test } from "node:test";
import { figures, size, until } from "./harness.mjs";
import { ask, each, payload, random, world } from "./world.mjs";

const corpus = JSON.parse(fs.readFileSync(new URL("paths.json", import.meta.url), "utf8"));
const KINDS = ["sensitive", "insensitive"].flatMap((letters) => ["deny", "allow"].map((unmatched) => ({ case: letters, unmatched, host: `${letters}-${unmatched}.example.com` })));
const limits = {
  calls: { meter: "calls", rate: { units: 1_000_000, per_ms: 1000, burst: 1_000_000 } },
  scarce: { meter: "scarce", rate: { units: 5, per_ms: 1000, burst: 20 } },
};
const { local, op, tenant } = await world({
  gates: 2,
  features: { protected: { kind: "boolean" }, cheap: { kind: "boolean" } },
  meters: { calls: {}, jobs: { recording: "exact" }, scarce: {} },
  plans: {
    poor: { title: "Poor", features: { cheap: true } },
    rich: { title: "Rich", features: { cheap: true, protected: true } },
    alphaplan: { title: "AlphaTitle", features: { cheap: true }, limits, upgrade_url: "/alpha-upgrade" },
    betaplan: { title: "BetaTitle", features: { cheap: true, protected: true }, limits, upgrade_url: "/beta-upgrade" },
  },
  origins: {
    default: { target: { service: "ECHO" }, unmatched: "deny", routes: [
      { method: "GET", path: "/v1/cheap", feature: "cheap", meter: "calls" },
      { method: "GET", path: "/v1/exact", feature: "cheap", meter: "jobs" },
      { method: "GET", path: "/v1/protected", feature: "protected", meter: "calls" },
      { method: "GET", path: "/v1/scarce", feature: "cheap", meter: "scarce" },
    ] },
    ...Object.fromEntries(KINDS.map(({ case: letters, unmatched, host }) => [`${letters}-${unmatched}`, { target: { service: "ECHO" }, hosts: [host], case: letters, unmatched, routes: corpus.routes }])),
  },
});

// The origin, as lenient as tests/domain/paths.rs makes it: bytes as a latin-1 string.

const decode = (bytes) => bytes.replace(/%([0-9a-fA-F]{2})|%u([0-9a-fA-F]{4})/g, (all, byte, unit) => {
  if (byte) return String.fromCharCode(parseInt(byte, 16));
  const code = parseInt(unit, 16);
  return code >= 0xd800 && code < 0xe000 ? all : Buffer.from(String.fromCodePoint(code)).toString("latin1");
});
const overlong = (bytes) => bytes
  .replace(/([\xc0\xc1])([\x80-\xbf])|\xe0([\x80\x81])([\x80-\xbf])/g, (_, two, tail, three, last) =>
    String.fromCharCode(((two ?? three).charCodeAt(0) & 1) << 6 | ((tail ?? last).charCodeAt(0) & 0x3f)));
const fold = (segment) => {
  const trimmed = segment.trim().replace(/\.+$/, "");
  return (trimmed === "" ? segment.trim() : trimmed).toUpperCase().replaceAll("\u0130", "I").toLowerCase();
};
function lenient(path, letters) {
  let bytes = path;
  for (let decoded = decode(bytes); decoded !== bytes; decoded = decode(bytes)) bytes = decoded;
  const text = Buffer.from(overlong(bytes), "latin1").toString().replaceAll("\\", "/").split(/[\0?#\r\n]/)[0];
  const segments = [];
  for (const part of text.split("/")) {
    let segment = part.split(";")[0].replace(/[\u0000-\u001f\u007f-\u009f]/g, "");
    if (letters === "insensitive") segment = fold(segment);
    if (segment === "..") segments.pop();
    else if (segment !== "" && segment !== ".") segments.push(segment);
  }
  return `/${segments.join("/")}`;
}
const patterns = corpus.routes.map(({ path, feature }) => ({
  feature,
  expression: new RegExp(`^${path.replace(/\/\{\*\w+\}$/, "(/.*)?").replace(/\{\w+\}/g, "[^/]*")}$`),
}));
/** The feature that such an origin serves for what it read. Protected rules stand first in the file. */
const serves = (read) => patterns.find(({ expression }) => expression.test(read))?.feature;

test("the lenient origin reads every trick, so what it does not take for protected is not", () => {
  for (const trick of ["//v1//reports/", "/v1%2freports", "/v1%252freports", "/v1\\reports", "/v1/%72eports", "/v1/x/..;/reports", "/v1/reports;x=1", "/v1/reports%00.html", "/v1/reports%3fx", "/v1%c0%afreports", "/v1/%u0072eports", "/v1/./x/%2e%2e/reports"]) {
    assert.equal(lenient(trick, "sensitive"), "/v1/reports", trick);
  }
  for (const trick of ["/V1/REPORTS", "/v1/report%c5%bf", "/v1/reports.", "/v1/reports%20"]) assert.equal(lenient(trick, "insensitive"), "/v1/reports", trick);
  assert.equal(serves("/v1/files/42/keys"), "protected");
  assert.equal(serves("/v1/admin"), "protected");
  assert.equal(serves("/v1/files/42"), "cheap");
});

test("no spelling of a path reaches a protected feature of a tenant that has not paid for it", async () => {
  const poor = await tenant("poor"), rich = await tenant("rich");
  const paths = corpus.paths.filter((_, at) => at % size(1, 20) === 0);
  const counts = {};
  const unpaid = [];
  for (const { case: letters, unmatched, host } of KINDS) {
    const count = counts[`${letters}_${unmatched}`] = { variants: paths.length, refused: 0, passed: 0, paid: 0 };
    await each(paths.length, 32, async (at) => {
      const path = paths[at];
      const { status, json, text } = await ask(local.gates[at % 2], path, { key: poor.api_key, host });
      if (json?.origin !== "echo") {
        assert.ok([400, 403, 404].includes(status), `${path}: ${status} ${text}`);
        count.refused += 1;
        return;
      }
      count.passed += 1;
      const read = lenient(json.url.replace(/^https:\/\/[^/]*/, ""), letters);
      if (serves(read) === "protected") unpaid.push(`${letters} ${unmatched}: ${path} arrived as ${json.url}, read as ${read}`);
    });
    // The control: with the feature paid for, the same paths do reach it.
    await each(Math.ceil(paths.length / 4), 32, async (at) => {
      const { json } = await ask(local.gates[at % 2], paths[at * 4], { key: rich.api_key, host });
      if (json?.origin === "echo" && serves(lenient(json.url.replace(/^https:\/\/[^/]*/, ""), letters)) === "protected") count.paid += 1;
    });
    assert.ok(count.passed > 0 && count.refused > 0 && count.paid > 0, JSON.stringify(counts));
  }
  assert.deepEqual(unpaid, []);
  figures({ path_variants: counts });
});

test("of two hostile tenants neither sees a trace of the other, in any response, header or row", async () => {
  const make = async (name, plan) => {
    const slug = `${name}-slug-${Math.random().toString(36).slice(2, 10)}`;
    const made = await op("POST", "/tenants", { slug, name: `${name}-name`, plan });
    const second = await op("POST", `/tenants/${made.id}/keys`, { name: `${name}-key`, mode: "test" });
    const { data } = await op("GET", `/tenants/${made.id}/keys`);
    return { id: made.id, slug, keys: [made.api_key, second.api_key], ids: data.map(({ id }) => id), plan, used: Object.fromEntries(["calls", "jobs", "scarce"].flatMap((meter) => [`${meter} live`, `${meter} test`]).map((what) => [what, 0])) };
  };
  const both = [await make("alpha", "alphaplan"), await make("beta", "betaplan")];
  const words = ["alpha", "beta"];
  const traces = both.map(({ id, slug, keys, ids, plan }, at) => [id, slug, plan, `${words[at]}-name`, `${words[at]}-key`, `${words[at] === "alpha" ? "Alpha" : "Beta"}Title`, `${words[at]}-upgrade`, ...ids, ...keys.map((key) => key.slice(8))]);

  const rnd = random(10);
  const pick = (list) => list[Math.floor(rnd() * list.length)];
  const spoofs = (other) => ({
    "X-Tollgate-Tenant": other.id, x_tollgate_tenant: other.id, "X-Tollgate-Plan": other.plan, "X-Tollgate-Key": other.ids[0], Tollgate: `serial=1, id=${other.id}`,
    "X-Forwarded-User": other.id, "X_Tollgate.Tenant": other.slug,
  });
  /** What they do to each other: every one gives path and options, who may be shown (0 none, 1 the caller), and what it spends. */
  const OPERATIONS = {
    own: (me) => ["/gate/v1/cheap", { key: pick(me.keys) }, 1],
    exact: (me) => ["/gate/v1/exact", { key: pick(me.keys) }, 1],
    refused: (me) => ["/gate/v1/scarce", { key: pick(me.keys) }, 1],
    protected: (me) => ["/gate/v1/protected", { key: pick(me.keys) }, 1],
    unknown: (me) => ["/gate/v1/unknown", { key: pick(me.keys) }, 1],
    spoofed: (me, other) => ["/gate/v1/cheap", { key: pick(me.keys), headers: spoofs(other) }, 1],
    connection: (me, other) => ["/gate/v1/cheap", { key: pick(me.keys), headers: { ...spoofs(other), Connection: "x-tollgate-tenant, x-tollgate-signature, keep-alive" } }, 1],
    both: (me, other) => ["/gate/v1/cheap", { headers: { "X-API-Key": me.keys[0], Authorization: `Bearer ${other.keys[0]}` } }, 0],
    twice: (me, other) => ["/gate/v1/cheap", { headers: { "X-API-Key": [me.keys[0], other.keys[0]] } }, 0],
    // Blocks of eleven letters: whose tenant, key id, secret and MAC are mixed.
    mixed: (me, other) => {
      const blocks = (key) => key.slice(8).match(/.{11}/g);
      const [mine, theirs] = [blocks(me.keys[0]), blocks(other.keys[0])];
      const cut = 1 + Math.floor(rnd() * 4);
      return [pick(["/gate/v1/cheap", "/v1/features", "/v1/usage"]), { key: `tg_live_${[...theirs.slice(0, cut), ...mine.slice(cut)].join("")}` }, 0];
    },
    mode: (me) => ["/gate/v1/cheap", { key: me.keys[0].replace("live", "test") }, 0],
    features: (me, other) => ["/v1/features", { key: pick(me.keys), headers: spoofs(other) }, 1],
    feature: (me) => [`/v1/features/${pick(["cheap", "protected", "none"])}`, { key: pick(me.keys) }, 1],
    usage: (me, other) => ["/v1/usage", { key: pick(me.keys), headers: spoofs(other) }, 1],
    peek: (me) => ["/v1/check", { key: pick(me.keys), method: "POST", body: JSON.stringify({ checks: [{ feature: "protected" }, { meter: "calls" }], peek: true }) }, 1],
    administrate: (me, other) => [`/v1/admin/tenants/${other.id}${pick(["", "/keys", "/usage", "/audit"])}`, { headers: { Authorization: `Bearer ${me.keys[0]}` } }, 0],
    nobody: () => ["/gate/v1/cheap", {}, 0],
  };
  const count = size(100_000, 5_000);
  const kinds = Object.keys(OPERATIONS);
  const leaks = [];
  const seen = {};
  await each(count, 48, async (at) => {
    const who = Math.floor(rnd() * 2);
    const [me, other] = [both[who], both[1 - who]];
    const kind = kinds[at % kinds.length];
    const [path, options, shown] = OPERATIONS[kind](me, other);
    const answer = await ask(local.gates[Math.floor(rnd() * 2)], path, options);
    const whole = `${answer.raw.join("\n")}\n${answer.text}`;
    for (const trace of [...traces[1 - who], ...(shown ? [] : traces[who])]) {
      if (whole.includes(trace)) leaks.push(`${kind} ${path}: ${trace} in ${answer.status} ${whole.slice(0, 600)}`);
    }
    const mode = options.key?.startsWith("tg_test_") ? "test" : "live";
    const meter = { exact: "jobs", refused: "scarce" }[kind] ?? "calls";
    if (answer.status === 200 && answer.json?.origin === "echo") me.used[`${meter} ${mode}`] += 1;
    const outcome = `${answer.status} ${answer.json?.code ?? ""}`.trim();
    (seen[kind] ??= {})[outcome] = (seen[kind][outcome] ?? 0) + 1;
  });
  assert.deepEqual(leaks.slice(0, 3), []);
  const only = (kind, ...outcomes) => assert.deepEqual(Object.keys(seen[kind]).sort(), outcomes.sort(), kind);
  only("own", "200");
  only("refused", "200", "429 rate_limited");
  only("spoofed", "200");
  only("connection", "200");
  only("both", "400 key_conflict");
  only("twice", "401 key_invalid");
  only("mixed", "401 key_invalid");
  only("mode", "401 key_invalid");
  only("administrate", "401 key_invalid");
  only("nobody", "401 key_missing");
  only("protected", "200", "403 feature_not_available");

  // What each used is counted for it alone: to the unit where nothing was lost, and by its own keys.
  const shard = await local.database("SHARD_GLOBAL_1");
  for (const [at, { id, used: wanted, ids }] of both.entries()) {
    let totals;
    await until(`${words[at]}'s use is in the ledger`, async () => {
      totals = (await op("GET", `/tenants/${id}/usage`)).totals;
      return JSON.stringify(Object.fromEntries(totals.map(({ meter, mode, quantity }) => [`${meter} ${mode}`, quantity]))) === JSON.stringify(wanted);
    }, 30_000).catch(() => assert.fail(`${JSON.stringify(totals)}, not ${JSON.stringify(wanted)}`));
    const { results } = await shard.prepare("SELECT * FROM entry WHERE tenant_id = ?1").bind(id).all();
    for (const row of results) {
      const text = JSON.stringify(row);
      for (const trace of traces[1 - at]) assert.ok(!text.includes(trace), `${trace} in ${text}`);
      assert.ok(ids.some((key) => text.includes(key)), text);
    }
  }
  // Nor does a document of one name the other; plans and the catalog, which they share, name neither.
  const kv = await local.documents();
  const names = (await kv.list()).keys.map(({ name }) => name);
  for (const [at, { id }] of both.entries()) assert.equal(names.filter((name) => name.includes(id)).length, 1, `${words[at]}'s document`);
  for (const name of names) {
    const text = `${name} ${JSON.stringify(payload(await kv.get(name)))}`;
    const theirs = both.filter(({ id }) => name.includes(id));
    for (const { id, slug, keys, ids } of both.filter((tenant) => !theirs.includes(tenant))) {
      for (const trace of [id, slug, ...ids, ...keys.map((key) => key.slice(8))]) assert.ok(!text.includes(trace), `${trace} in ${name}`);
    }
  }
  figures({ hostile_operations: count, leaks: leaks.length, documents: names.length });
});
