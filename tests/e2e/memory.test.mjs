// Show 12: how many tenants one isolate holds at once, what they weigh, and what starting costs.

import assert from "node:assert/strict";
import fs from "node:fs";
import { performance } from "node:perf_hooks";
import test from "node:test";
import { sizes } from "../../scripts/build.mjs";
import { figures, size, worker } from "./harness.mjs";
import { Connection } from "./load.mjs";
import { leased, meters, published, rate } from "./metered.mjs";

const TENANTS = size(10_000, 300);
const MOST_BYTES = 64 * 2 ** 20;
const AT_ONCE = 16;
const ROUTES = 24;

const rss = (pid) => Number(/VmRSS:\s+(\d+)/.exec(fs.readFileSync(`/proc/${pid}/status`, "utf8"))[1]) * 1024;
/** User and system time of a process, in ms: clock ticks are 10 ms. */
const cpuMs = (pid) => {
  const fields = fs.readFileSync(`/proc/${pid}/stat`, "utf8").replace(/^.*\) /s, "").split(" ");
  return (Number(fields[11]) + Number(fields[12])) * 10;
};
const health = async (url) => (await fetch(`${url}/healthz`)).json();

async function inTurn(count, work) {
  let next = 0;
  await Promise.all(Array.from({ length: AT_ONCE }, async () => {
    while (next < count) await work(next++);
  }));
}

test(`${TENANTS} tenants are resident in one isolate at once, none evicted, in at most 64 MB per 10,000`, { skip: !fs.existsSync("/proc/self/stat") && "needs /proc" }, async () => {
  // The second gate is the isolate that is weighed: it only decides. The first one makes the tenants.
  const local = await worker({ gates: 2 });
  const made = await meters(local, { routes: Array.from({ length: ROUTES }, (_, at) => ({ method: "GET", path: `/api/way/${at}`, meter: "leased_calls" })) });
  await made.plan("plan", leased(rate(100, 200)));
  await published(local);
  const keys = [];
  await inTurn(TENANTS, async (at) => {
    keys[at] = (await made.tenant(`t${at}`, "plan")).api_key;
  });
  // An orderly restart: what making them cost is not what keeping them costs. To say its features asks no limiter, so no object wakes.
  await local.restart();
  const [, gate] = local.gates;
  await health(gate);
  const connections = Array.from({ length: AT_ONCE }, () => new Connection(gate));
  const free = [...connections];
  const ask = async (key, path = "/v1/features") => {
    const connection = free.pop();
    const answer = await connection.send(path, key);
    free.push(connection);
    assert.equal(answer.status, 200, answer.body);
  };
  for (let at = 0; at < 200; at += 1) await ask(keys[0]);
  const [before, began] = [rss(local.pid), (await health(gate)).memory_bytes];
  await inTurn(TENANTS, (at) => ask(keys[at]));
  const held = await health(gate);
  // All that the isolate keeps of tenants is in wasm's memory. The process holds more: the local KV, which was read, is in it.
  const [grown, process] = [held.memory_bytes - began, rss(local.pid) - before];
  const misses = held.misses;
  await inTurn(TENANTS, (at) => ask(keys[at]));
  const after = await health(gate);
  // What a lease, its counts and a remembered request take beside that. Of some of them: each wakes an object of this machine's.
  const served = Math.min(TENANTS, 1_000);
  for (let times = 0; times < 2; times += 1) await inTurn(served, (at) => ask(keys[at], "/gate/api/leased"));
  const leasedBytes = ((await health(gate)).memory_bytes - after.memory_bytes) / served;
  // And each further route that it uses: counted, or an isolate would keep more than its bound.
  const one = await health(gate);
  const using = size(300, 100);
  for (let route = 0; route < ROUTES; route += 1) await inTurn(using, (at) => ask(keys[at], `/gate/api/way/${route}`));
  await inTurn(using, (at) => ask(keys[at]));
  const many = await health(gate);
  const perRoute = (what) => Math.round((many[what] - one[what]) / using / ROUTES);
  for (const connection of connections) connection.close();
  const per = (bytes) => Math.round((bytes / TENANTS) * 10_000 / 2 ** 20 * 10) / 10;
  figures({ "memory: tenants resident": held.tenants, "memory: MB of wasm's memory per 10,000": per(grown), "memory: MB of the process per 10,000, the local KV among it": per(process), "memory: MB per 10,000 as the isolate counts": per(held.bytes), "memory: KB of wasm's memory more for each that was served": Math.round(leasedBytes / 102.4) / 10,
    "memory: bytes more for each route that a tenant uses, of wasm's memory and as counted": [perRoute("memory_bytes"), perRoute("bytes")] });
  assert.equal(after.tenants, TENANTS);
  assert.equal(after.misses, misses, "one was evicted and read again");
  assert.ok(held.bytes * (10_000 / TENANTS) <= MOST_BYTES, `${per(held.bytes)} MB per 10,000 tenants, as counted`);
  assert.ok(perRoute("bytes") >= 0.8 * perRoute("memory_bytes"), "a route that a tenant uses weighs more than is counted");
  // Memory grows in steps: of a few hundred tenants the last step outweighs what they need.
  if (size(true, false)) assert.ok(grown + leasedBytes * TENANTS <= MOST_BYTES, `${per(grown + leasedBytes * TENANTS)} MB of wasm's memory for ${TENANTS} tenants`);
});

test("Wasm and JavaScript together are at most 300 KB gzipped", () => {
  const { module, script } = sizes();
  figures({ "size: KB gzipped": Math.round((module.gzip + script.gzip) / 100) / 10 });
  assert.ok(module.gzip + script.gzip <= 300_000);
});

test("Starting costs what is printed here", { skip: !fs.existsSync("/proc/self/stat") && "needs /proc" }, async () => {
  const local = await worker();
  const before = cpuMs(local.pid);
  const began = performance.now();
  const said = await health(local.url);
  const first = performance.now() - began;
  const cpu = cpuMs(local.pid) - before;
  assert.equal(said.status, "ok");
  figures({ "start-up: ms to the first /healthz in a fresh isolate": Math.round(first), "start-up: CPU ms of the process for it, in steps of 10": cpu });
  assert.ok(cpu <= 2_000, `${cpu} ms`);
});
