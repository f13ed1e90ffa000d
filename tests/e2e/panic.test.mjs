// G-14: a panic fails its own request only. No input reaches one; so the platform is made to break a promise: once, `setTimeout`
// throws, which workers-rs unwraps while a request waits for its limiter. The wasm is the shipped one, byte for byte.

import assert from "node:assert/strict";
import fs from "node:fs";
import os from "node:os";
import path from "node:path";
import test, { after } from "node:test";
import { root } from "../../scripts/tools.mjs";
import { figures, worker } from "./harness.mjs";
import { Connection, sleep, statuses } from "./load.mjs";
import { PLENTY, drained, exact, leased, ledger, meters, published, sum } from "./metered.mjs";

/** The shipped door, around which a request with `X-Break` makes the next timer fail. */
function breakable() {
  const modules = fs.mkdtempSync(path.join(os.tmpdir(), "tollgate-panic-"));
  after(() => fs.rmSync(modules, { recursive: true, force: true }));
  const shipped = fs.readFileSync(path.join(root, "build/index.js"), "utf8");
  const [, inner] = /([\w$]+) as default\}/.exec(shipped);
  const around = `
    const set = globalThis.setTimeout;
    let broken = 0;
    globalThis.setTimeout = (...args) => {
      if (broken-- > 0) throw new Error("no timer");
      broken = 0;
      return set(...args);
    };
    const breakable = { ...${inner}, fetch(request, env, ctx) {
      if (request.headers.has("x-break")) broken = 1;
      return ${inner}.fetch(request, env, ctx);
    } };`;
  fs.writeFileSync(path.join(modules, "index.js"), `${shipped.replace(`${inner} as default}`, () => "breakable as default}")}\n${around}`);
  fs.copyFileSync(path.join(root, "build/index_bg.wasm"), path.join(modules, "index_bg.wasm"));
  return modules;
}

test("An injected panic fails its own request only: what is in flight is answered, and memory stays", async () => {
  const slow = { name: "origin", script: 'export default { async fetch() { await new Promise((done) => setTimeout(done, 600)); return new Response("done"); } }' };
  // One gate: its isolate holds the door, the documents and the tenant objects.
  const local = await worker({ modules: breakable(), workers: [slow], services: { ORIGIN: "origin" } });
  const made = await meters(local, { target: { service: "ORIGIN" } });
  await made.plan("all", { ...leased(PLENTY), ...exact(PLENTY) });
  const { api_key: key, id } = await made.tenant("panics", "all");
  await published(local);
  const health = async () => (await fetch(`${local.url}/healthz`)).json();

  const first = new Connection(local.url);
  for (let at = 0; at < 5; at += 1) assert.equal((await first.send("/gate/api/leased", key)).status, 200);
  const before = await health();
  const connections = Array.from({ length: 20 }, () => new Connection(local.url));
  const inFlight = connections.map((connection, at) => connection.send(at % 2 ? "/gate/api/leased" : "/gate/api/exact", key, { method: at % 2 ? "GET" : "POST" }));
  await sleep(300);
  // An exact use, not idempotent, always asks the limiter, and waits for it with a timer.
  const broken = await fetch(`${local.url}/gate/api/exact`, { method: "POST", headers: { "X-API-Key": key, "X-Break": "1" } });
  const answers = await Promise.all(inFlight);
  const next = await first.send("/gate/api/leased", key);
  const later = await first.send("/gate/api/exact", key, { method: "POST" });
  const held = await health();
  for (const connection of [first, ...connections]) connection.close();
  const panics = local.logs().split("\n").filter((line) => line.includes("panicked"));
  figures({ "panic: its own request": broken.status, "panic: in flight beside it": statuses(answers), "panic: tenants resident before and after": [before.tenants, held.tenants] });

  assert.equal(broken.status, 500);
  assert.equal(broken.headers.get("content-type"), "application/problem+json");
  assert.equal((await broken.json()).code, "internal");
  assert.ok(panics.length === 1, `${panics.length} panics: ${local.logs().slice(-500)}`);
  // Its stack numbers the module's functions; the build names them.
  const names = fs.readFileSync(path.join(root, "build/functions.txt"), "utf8").split("\n");
  const stack = [...local.logs().matchAll(/wasm-function\[(\d+)\]/g)].map(([, at]) => names[at]);
  assert.ok(stack.some((name) => name.includes("panic_with_hook")) && stack.some((name) => /worker\[\w+\]::delay::Delay/.test(name)), stack.join("\n"));
  assert.deepEqual(statuses(answers), { 200: 20 });
  assert.equal(next.status, 200);
  assert.match(next.head, /tier=lease/, "the lease from before is still there");
  assert.equal(later.status, 200);
  assert.equal(held.tenants, before.tenants);
  assert.ok(held.hits > before.hits, "the isolate's memory was not made anew");
  await drained(local, key, 30_000);
  const uses = sum((await ledger(local, id)).entries.filter(({ meter }) => meter === "exact_calls"));
  assert.ok(uses === 11 || uses === 12, `${uses} exact uses: the one that panicked may have been recorded, no other twice`);
});

test("A deployment without its secrets answers every request with a problem, and tells its operator which one", async () => {
  const local = await worker({ secrets: { ORIGIN_KEY: "" } });
  for (const path of ["/gate/api/leased", "/healthz", "/v1/usage"]) {
    const answer = await fetch(`${local.url}${path}`, { headers: { "X-API-Key": "tg_live_x" } });
    assert.deepEqual([answer.status, answer.headers.get("content-type"), (await answer.json()).code], [500, "application/problem+json", "internal"], path);
  }
  assert.match(local.logs(), /binding ORIGIN_KEY is missing or malformed/);
});
