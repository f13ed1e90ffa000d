// `npm run bench`: Tollgate beside its peers. Every target has a workerd of its own; rounds go A B C, A B C, so that a machine
// that drifts drifts for all; a ratio is taken within each round, then the median. README.md here says how to read it.
//
//   --rounds N   interleaved rounds, at least 5 (the default) for figures that are to be believed
//   --secs N     seconds of load in each, 4 by default: a second in which V8 looks through its whole heap costs up to twice another one
//   --only a,b   some targets; those they are compared to come along
//   --tries N    how often to run again while the control says that the machine was not quiet; 3 by default
//   --json FILE  the figures, bench/results/bench.json by default
//   --flood      another measurement: tenants beside floods (flood.mjs)
//   --paced      another: hops and calls at a steady load (paced.mjs)

import fs from "node:fs";
import os from "node:os";
import path from "node:path";
import { has, option, root, say } from "../scripts/tools.mjs";
import { chart } from "./chart.mjs";
import { cold, hops } from "./hops.mjs";
import { checkLoadGenerator, digits, load, median, residentMb, storeInMemory, table } from "./machine.mjs";
import { start, targets } from "./targets.mjs";

const CONNECTIONS = 16;
/** Before anything is measured. */
const WARM_SECS = 3;
/** Before each measurement: while others had their turn, leases ended, and what is measured is a warm gate. Longer than a lease. */
const LEAD_SECS = 6;
const QUIET = [0.95, 1.05];

const rounds = Number(option("rounds") ?? 5);
const secs = Number(option("secs") ?? 4);
const tries = Number(option("tries") ?? 3);
const file = option("json") ?? path.join(root, "bench/results/bench.json");

/** All rounds once; what each target measured, round by round. */
async function measure(running, dir) {
  for (const target of running) {
    Object.assign(target, { many: [], one: [] });
    await load(target, { connections: CONNECTIONS, secs: WARM_SECS, dir }); // V8 optimises what is called often, wasm last
  }
  for (let round = 0; round < rounds; round += 1) {
    for (const target of running) {
      await load(target, { connections: CONNECTIONS, secs: LEAD_SECS, dir });
      target.many.push(await load(target, { connections: CONNECTIONS, secs, dir }));
      target.one.push(await load(target, { connections: 1, secs: 1, dir }));
    }
    process.stderr.write(`  round ${round + 1} of ${rounds}\n`);
  }
}

/** The median over rounds of `figure`, each divided by what the target's floor measured in the same round. */
const paired = (running, target, figure) => {
  const floor = running.find(({ name }) => name === target.against);
  return median(figure(target).map((value, round) => value / figure(floor)[round]));
};

async function summary(running, target) {
  const many = (name) => median(target.many.map((round) => round[name]));
  const health = target.local && await (await fetch(`${target.local.url}/healthz`)).json();
  return {
    name: target.name, title: target.title, does: target.does, against: target.against,
    per_second: many("perSecond"), ratio: paired(running, target, ({ many }) => many.map(({ perSecond }) => perSecond)),
    one_p50_us: median(target.one.map(({ p50 }) => p50)), one_p50_ratio: paired(running, target, ({ one }) => one.map(({ p50 }) => p50)),
    cpu_us: many("cpuUs"), cpu_ratio: paired(running, target, ({ many }) => many.map(({ cpuUs }) => cpuUs)),
    hops: target.hops, hit_rate: health ? health.hits / (health.hits + health.misses) : undefined,
    gzip_kb: target.gzip / 1000, idle_mb: target.idleMb, loaded_mb: residentMb(target.pid),
    errors: [...target.many, ...target.one].reduce((sum, { refused, failed }) => sum + refused + failed, 0),
  };
}

const waits = ({ awaited, behind }) => {
  const words = (counts) => Object.entries(counts).map(([kind, count]) => `${digits(count, count % 1 ? 2 : 0)} ${kind}`).join(" ");
  return (words(awaited) || "0") + (words(behind) ? ` (behind: ${words(behind)})` : "");
};

function print(rows) {
  say(table(
    ["target", "does", "req/s", "ratio", "1-conn p50 us", "ratio", "CPU us/req", "ratio", "awaited hops, warm", "hit rate", "gz KB", "RSS MB idle/loaded", "errors"],
    rows.map((row) => [row.name, row.does || "-", digits(row.per_second), digits(row.ratio, 2), digits(row.one_p50_us), digits(row.one_p50_ratio, 2),
      digits(row.cpu_us, 1), digits(row.cpu_ratio, 2), row.hops ? waits(row.hops) : "-", row.hit_rate === undefined ? "-" : `${digits(row.hit_rate * 100, 2)} %`,
      digits(row.gzip_kb, 1), `${digits(row.idle_mb)}/${digits(row.loaded_mb)}`, row.errors])));
  const floors = [...new Set(rows.map(({ against }) => against))];
  say(`\nRatios are to ${floors.join(", and where there is an origin to ")}. Does: A who asks, F feature, R enforced limit, M metering, P an origin.`);
}

async function main() {
  checkLoadGenerator();
  const dir = storeInMemory();
  if (has("flood")) return (await import("./flood.mjs")).flood(dir);
  if (has("paced")) return (await import("./paced.mjs")).paced();

  const only = option("only")?.split(",");
  for (const name of only ?? []) if (!targets.some((target) => target.name === name)) throw new Error(`--only: there is no ${name}; there are ${targets.map((target) => target.name).join(", ")}`);
  const chosen = targets.filter(({ name }) => !only || name === "control" || only.includes(name));
  const wanted = targets.filter(({ name }) => chosen.some((each) => each.name === name || each.against === name));

  say("Counting hops, one request at a time ...");
  const counted = new Map();
  for (const target of wanted) counted.set(target.name, await hops(target));
  const tollgateCold = wanted.some(({ local, name }) => local || name === "tollgate") ? await cold() : undefined;

  const running = [];
  try {
    for (const target of wanted) running.push({ ...(await start(target)), hops: counted.get(target.name) });
    let rows;
    for (let attempt = 1; attempt <= tries; attempt += 1) {
      say(`${rounds} interleaved rounds of ${secs} s after ${LEAD_SECS} s unmeasured, wrk -t1 -c${CONNECTIONS}, and 1 s on one connection; ${os.cpus().length} cores, load ${digits(os.loadavg()[0], 2)} ...`);
      await measure(running, dir);
      rows = [];
      for (const target of running) rows.push(await summary(running, target));
      const { ratio } = rows.find(({ name }) => name === "control");
      if (ratio >= QUIET[0] && ratio <= QUIET[1]) break;
      say(`The control, which is hello again, came to ${digits(ratio, 2)} of it: the machine was not quiet. ${attempt < tries ? "Again." : "These figures are noisy."}`);
    }
    say();
    print(rows);
    if (tollgateCold) say(`\nCold tenant, catalog warm: ${waits(tollgateCold)} for each of ${tollgateCold.tenants} tenants asked once; one-connection p50 ${digits(tollgateCold.p50_us)} us.`);
    const machine = { cores: os.cpus().length, cpu: os.cpus()[0].model, memory_gb: Math.round(os.totalmem() / 2 ** 30) };
    fs.mkdirSync(path.dirname(file), { recursive: true });
    fs.writeFileSync(file, `${JSON.stringify({ at: new Date().toISOString(), machine, rounds, secs, connections: CONNECTIONS, rows, cold: tollgateCold }, null, 2)}\n`);
    if (!only) fs.writeFileSync(path.join(root, "bench/results.svg"), chart(rows));
    say(`\nWritten: ${path.relative(root, file)}${only ? "" : ", bench/results.svg"}`);
  } finally {
    for (const target of running) await target.stop();
  }
}

await main();
