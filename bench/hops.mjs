// How many calls to the platform a request waits for: counted at the bindings, one request at a time, and not while timing.

import { startLocal } from "../scripts/local.mjs";
import { PATH, TENANTS } from "./fixtures.mjs";
import { median } from "./machine.mjs";
import { atAddress, originWorker, start } from "./targets.mjs";
import { addTenants, publishCatalog, publishPlan, settle, warm } from "./tenants.mjs";

const COLD_TENANTS = 128;
/** Each call is held this long, so that none that was left behind a reply can end before the reply has come. */
const HOLD_MS = 25;
const KINDS = { DOCUMENTS: "KV", CONTROL: "D1", SHARD_GLOBAL_1: "D1", TENANT: "DO", CATALOG: "DO" };
const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

/**
 * Tollgate with every binding counted. While `hold.d1` is a promise, D1 answers only when that is fulfilled: an object that
 * writes behind a reply can wait for it, a request that needed D1 would never be answered.
 */
export async function startCounted(holdMs = 0, hold = {}) {
  const calls = [];
  const note = async ({ binding, phase, detail }) => {
    if (phase === "before") {
      const call = { kind: KINDS[binding], binding, detail, settled: false };
      calls.push(call);
      if (holdMs) await pause(holdMs);
      if (call.kind === "D1") await hold.d1;
    } else calls.findLast((call) => call.binding === binding && call.detail === detail && !call.settled).settled = true;
  };
  const local = await startLocal({
    workers: [originWorker], services: { ORIGIN: originWorker.name },
    watch: Object.fromEntries(Object.keys(KINDS).map((binding) => [binding, note])),
  });
  return { local, calls };
}

const tally = (calls) => {
  const counts = {};
  for (const { kind } of calls) counts[kind] = (counts[kind] ?? 0) + 1;
  return counts;
};

const add = (total, counts) => {
  for (const [kind, count] of Object.entries(counts)) total[kind] = (total[kind] ?? 0) + count;
};

const perRequest = (totals, requests) => Object.fromEntries(Object.entries(totals).map(([name, counts]) =>
  [name, Object.fromEntries(Object.entries(counts).map(([kind, count]) => [kind, count / requests]))]));

async function ask(url, key) {
  const began = performance.now();
  const response = await fetch(url, { headers: { "X-API-Key": key }, signal: AbortSignal.timeout(10_000) });
  const body = await response.text();
  if (response.status !== 200) throw new Error(`${url}: ${response.status} ${body.slice(0, 400)}`);
  return { response, us: (performance.now() - began) * 1000 };
}

/** What a warm request of a target waits for and leaves behind, on average. */
export async function hops(target) {
  if (!target.counts) return tollgateHops(target);
  const running = await start(target, { counted: true });
  try {
    const totals = { awaited: {}, behind: {} };
    for (const key of running.keys) {
      const { response } = await ask(running.url, key);
      const counts = JSON.parse(response.headers.get("x-hops"));
      add(totals.awaited, counts.awaited);
      add(totals.behind, counts.behind);
    }
    return perRequest(totals, running.keys.length);
  } finally {
    await running.stop();
  }
}

async function tollgateHops(target) {
  const hold = {};
  const { local, calls } = await startCounted(HOLD_MS, hold);
  try {
    await publishCatalog(local, target.target);
    await publishPlan(local);
    const keys = await addTenants(local, TENANTS);
    await settle(local);
    const url = `${atAddress(local.url)}/gate${PATH}`;
    await warm(url, [...keys, ...keys, ...keys, ...keys, ...keys, ...keys]); // asked often enough to be lent units
    await pause(200);
    return await count(url, [...keys, ...keys], { calls, hold, apart: 0 });
  } finally {
    await local.stop();
  }
}

async function count(url, keys, { calls, hold, apart }) {
  const totals = { awaited: {}, behind: {} };
  for (const key of keys) {
    const from = calls.length;
    let release;
    hold.d1 = new Promise((resolve) => (release = resolve));
    await ask(url, key);
    release();
    // D1 is the objects' own, then: no reply has waited for it.
    const mine = calls.slice(from).filter(({ kind }) => kind !== "D1");
    add(totals.awaited, tally(mine.filter((call) => call.settled)));
    add(totals.behind, tally(mine.filter((call) => !call.settled)));
    if (apart) await pause(apart);
  }
  return perRequest(totals, keys.length);
}

/** Tenants that the gate has not met yet, where it has read the catalog and their plan. */
async function strangers(local) {
  await publishCatalog(local, "demo");
  await publishPlan(local);
  const [first, ...keys] = await addTenants(local, COLD_TENANTS + 1);
  await settle(local);
  const url = `${atAddress(local.url)}/gate${PATH}`;
  await warm(url, [first]);
  return { url, keys };
}

/** The first request of each of many tenants, where catalog and plan are warm. */
export async function cold() {
  const hold = {};
  const { local, calls } = await startCounted(HOLD_MS, hold);
  try {
    const { url, keys } = await strangers(local);
    await pause(200);
    const counted = await count(url, keys, { calls, hold, apart: 2 * HOLD_MS });
    const timed = await coldTimes();
    return { ...counted, tenants: keys.length, p50_us: timed };
  } finally {
    await local.stop();
  }
}

/** The same without anything between the Worker and its bindings. */
async function coldTimes() {
  const local = await startLocal({ workers: [originWorker], services: { ORIGIN: originWorker.name } });
  try {
    const { url, keys } = await strangers(local);
    const times = [];
    for (const key of keys) times.push((await ask(url, key)).us);
    return median(times);
  } finally {
    await local.stop();
  }
}
