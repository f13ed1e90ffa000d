// `npm run bench -- --flood`: what a flood costs those beside it, on the same workerd. A good tenant asks as fast as it is
// answered, first beside a flood of hello world, then beside a flood of the same number of requests a second that Tollgate
// refuses; rounds are interleaved, the ratio is taken within each. Then: CPU of a refusal against CPU of admissions.

import fs from "node:fs";
import path from "node:path";
import { startLocal } from "../scripts/local.mjs";
import { option, root, say } from "../scripts/tools.mjs";
import { AMPLE, PATH } from "./fixtures.mjs";
import { startCounted } from "./hops.mjs";
import { checkLoadGenerator, digits, load, median, table } from "./machine.mjs";
import { atAddress, originWorker } from "./targets.mjs";
import { addTenants, publishCatalog, publishOrigin, publishPlan, settle, warm } from "./tenants.mjs";

const rounds = Number(option("rounds") ?? 5);
const secs = Number(option("secs") ?? 4);
const file = option("json") ?? path.join(root, "bench/results/flood.json");

/**
 * Tenants that flood: what their plan allows, and a flood of about 10 times that: paced connections, each of which asks, waits for the
 * answer, and pauses. The larger one is of the design's own table.
 */
const FLOODS = [
  { plan: "small", limit: { units: 20, per_ms: 1_000, burst: 60 }, shape: { connections: 5, paceMs: 24 } },
  { plan: "large", limit: { units: 200, per_ms: 1_000, burst: 600 }, shape: { connections: 56, paceMs: 20 } },
];
const GOOD = { connections: 4 };
const GATE = `/gate${PATH}`;
/** What is asked of this host is passed on. */
const BEHIND = "behind.example.com";
const INVENTED = 20_000;
const COUNTED = 100_000;

export async function flood(dir) {
  checkLoadGenerator();
  const refusals = await beside(dir);
  const invented = await inventedKeys(dir);
  say(`\nInvented keys, counted: ${invented.requests} requests, all ${invented.refused === invented.requests ? "refused" : "NOT REFUSED"}, ${invented.kv_reads} KV reads, ${invented.object_calls} Durable Object calls.`);
  fs.mkdirSync(path.dirname(file), { recursive: true });
  fs.writeFileSync(file, `${JSON.stringify({ at: new Date().toISOString(), rounds, secs, ...refusals, invented }, null, 2)}\n`);
  say(`Written: ${path.relative(root, file)}`);
}

async function beside(dir) {
  const hello = { ...originWorker, name: "hello" };
  const local = await startLocal({ workers: [hello], services: { ORIGIN: hello.name } });
  try {
    await publishCatalog(local, "demo");
    await publishOrigin(local, "behind", { target: { service: "ORIGIN" }, hosts: [BEHIND] });
    await publishPlan(local, "good", AMPLE);
    for (const { plan, limit } of FLOODS) await publishPlan(local, plan, limit);
    // Nearly nothing is left of this one: what is measured of it is the refusal.
    await publishPlan(local, "spent", { units: 1, per_ms: 60_000, burst: 1 });
    const keys = {};
    for (const plan of ["good", "spent", ...FLOODS.map(({ plan }) => plan)]) keys[plan] = await addTenants(local, 1, plan);
    await settle(local);
    const url = atAddress(local.url) + GATE;
    await warm(url, [...keys.good, ...FLOODS.flatMap(({ plan }) => keys[plan])]);

    const gate = { pid: local.pid, url, path: GATE };
    const good = { ...gate, name: "good", keys: keys.good };
    const hello = (plan) => ({ ...gate, name: "hello world", url: `${atAddress(local.urls.hello)}${GATE}`, keys: keys[plan] });
    const invented = { ...gate, name: "invented keys", keys: [], invented: INVENTED };
    // Each flood of hello world, and after it those of as many requests.
    const floods = FLOODS.flatMap(({ plan, limit, shape }) => {
      const against = { target: hello(plan), shape, measured: [] };
      const over = { ...gate, name: `a tenant at 10 times its limit of ${limit.units}/s`, keys: keys[plan] };
      return [against, { target: over, shape, against, measured: [] }, ...(plan === "large" ? [{ target: invented, shape, against, measured: [] }] : [])];
    });
    for (const target of [good, ...floods.map(({ target }) => target)]) await load(target, { connections: 4, secs: 1, dir, invented: target.invented });
    for (let round = 0; round < rounds; round += 1) {
      for (const { target, shape, measured } of floods) {
        // The flood begins a little before and ends a little after the tenant that is measured.
        const flooding = load(target, { ...shape, secs: secs + 1, dir, invented: target.invented, seed: round + 2 });
        await new Promise((resolve) => setTimeout(resolve, 500));
        const kept = await load(good, { ...GOOD, secs, dir });
        measured.push({ kept, flood: await flooding });
      }
      process.stderr.write(`  round ${round + 1} of ${rounds}\n`);
    }
    const rows = floods.map(({ target, measured, against }) => ({
      flood: target.name,
      flood_per_second: median(measured.map(({ flood }) => flood.perSecond)),
      flood_refused: median(measured.map(({ flood }) => flood.refused / flood.requests)),
      good_per_second: median(measured.map(({ kept }) => kept.perSecond)),
      good_failed: measured.reduce((sum, { kept }) => sum + kept.refused + kept.failed, 0),
      ratio: median(measured.map(({ kept }, round) => kept.perSecond / (against?.measured ?? measured)[round].kept.perSecond)),
    }));
    say(`\n${table(
      ["flood beside a good tenant", "flood req/s", "refused", "good tenant req/s", "ratio", "good tenant refused"],
      rows.map((row) => [row.flood, digits(row.flood_per_second), `${digits(100 * row.flood_refused, 1)} %`, digits(row.good_per_second), digits(row.ratio, 3), row.good_failed]))}`);

    const kinds = {
      admission: good,
      "admission, passed on to an origin": { ...good, path: PATH, host: BEHIND },
      "refusal: rate": { ...gate, name: "spent", keys: keys.spent },
      "refusal: invented key": invented,
      "hello world": hello("large"),
    };
    const cpu = Object.fromEntries(Object.keys(kinds).map((name) => [name, []]));
    for (let round = 0; round < rounds; round += 1) {
      for (const [name, target] of Object.entries(kinds)) {
        cpu[name].push(await load(target, { connections: 16, secs, dir, invented: target.invented, seed: round + 100 }));
      }
    }
    const costs = Object.entries(cpu).map(([name, all]) => ({
      answer: name, cpu_us: median(all.map(({ cpuUs }) => cpuUs)), per_second: median(all.map(({ perSecond }) => perSecond)),
      ratio: median(all.map(({ cpuUs }, round) => cpuUs / cpu.admission[round].cpuUs)),
    }));
    say(`\n${table(["answer", "CPU us", "of an admission's", "req/s"], costs.map((row) => [row.answer, digits(row.cpu_us, 1), digits(row.ratio, 2), digits(row.per_second)]))}`);
    return { floods: rows, costs };
  } finally {
    await local.stop();
  }
}

/** Invented keys against counted bindings: none may be called. */
async function inventedKeys(dir) {
  const { local, calls } = await startCounted();
  try {
    await publishCatalog(local, "demo");
    await publishPlan(local);
    const keys = await addTenants(local, 1);
    await settle(local);
    const url = atAddress(local.url) + GATE;
    await warm(url, keys);
    await new Promise((resolve) => setTimeout(resolve, 7_000)); // what that tenant left behind its replies ends
    const from = calls.length;
    const target = { name: "invented", pid: local.pid, url, path: GATE, keys: [] };
    const totals = { requests: 0, refused: 0 };
    for (let seed = 1; totals.requests < COUNTED; seed += 1) {
      const { requests, refused } = await load(target, { connections: 16, secs: 2, dir, invented: COUNTED / 4, seed });
      totals.requests += requests;
      totals.refused += refused;
    }
    const of = (...bindings) => calls.slice(from).filter((call) => bindings.includes(call.binding)).length;
    return { ...totals, kv_reads: of("DOCUMENTS"), object_calls: of("TENANT", "CATALOG") };
  } finally {
    await local.stop();
  }
}
