// `npm run bench -- --paced`: a steady load of 0.8 of every tenant's limit. How many requests wait for the platform, and how many
// calls an admission costs, by the rate of a tenant. Counted at the bindings, not timed.
//
// A request that a lease paid for says `tier=lease`, one that had to ask the limiter says `tier=limiter`; a document that was
// awaited would be a KV read beyond those of the refreshes, which are shown.

import fs from "node:fs";
import path from "node:path";
import { startLocal } from "../scripts/local.mjs";
import { option, root, say } from "../scripts/tools.mjs";
import { pace } from "./client.mjs";
import { PATH } from "./fixtures.mjs";
import { digits, table } from "./machine.mjs";
import { atAddress } from "./targets.mjs";
import { addTenants, publishCatalog, publishPlan, settle } from "./tenants.mjs";

const LOAD = 0.8;
const WARM_SECS = 5;
const secs = Number(option("secs") ?? 10);
const file = option("json") ?? path.join(root, "bench/results/paced.json");

/** Rate and burst of a tenant, how many tenants, over how many isolates; `table`: calls per request in the design's table of them. */
const ROWS = [
  { rate: 125, burst: 1_000, tenants: 32, gates: 1 },
  { rate: 1_000, burst: 4_000, tenants: 4, gates: 1 },
  { rate: 1_000, burst: 4_000, tenants: 4, gates: 4, table: 0.01 },
  { rate: 200, burst: 600, tenants: 16, gates: 4, table: 0.04 },
  { rate: 10, burst: 20, tenants: 64, gates: 4, table: 0.97 },
];

/**
 * Counts the calls of watched bindings, and says how many there were of each. A worker beside the gates: this process asks at a
 * pace, and could not keep it if every call of a binding came here as well.
 */
const TALLY = {
  name: "tally",
  script: `
const counts = {};
export default {
  async fetch(request) {
    if (request.method === "GET") return Response.json(counts);
    const { binding, phase } = await request.json();
    if (phase === "before") counts[binding] = (counts[binding] ?? 0) + 1;
    return new Response(null, { status: 204 });
  },
};`,
};

export async function paced() {
  const rows = [];
  for (const row of ROWS) {
    say(`  ${row.tenants} tenants at ${LOAD * row.rate} requests a second each, burst ${row.burst}, ${row.gates} isolates ...`);
    rows.push({ ...row, ...(await measure(row)) });
  }
  say(`\n${table(
    ["limit/s", "burst", "tenants", "isolates", "requests", "admitted", "no awaited hop", "limiter calls per admission", "in the design's table", "KV reads", "burst >= 1000 x isolates"],
    rows.map((row) => [row.rate, row.burst, row.tenants, row.gates, row.requests, digits(row.admitted / row.requests, 4), `${digits(100 * row.unawaited, 2)} %`,
      digits(row.limiter_calls / row.admitted, 4), row.table ?? "-", row.kv_reads, row.burst >= 1000 * row.gates ? "yes" : "no"]))}`);
  fs.mkdirSync(path.dirname(file), { recursive: true });
  fs.writeFileSync(file, `${JSON.stringify({ at: new Date().toISOString(), load: LOAD, secs, rows }, null, 2)}\n`);
  say(`\nWritten: ${path.relative(root, file)}`);
}

async function measure({ rate, burst, tenants, gates }) {
  const local = await startLocal({ gates, workers: [TALLY], watch: { TENANT: TALLY.name, DOCUMENTS: TALLY.name } });
  const tally = async () => (await fetch(local.urls[TALLY.name])).json();
  try {
    await publishCatalog(local, "demo");
    await publishPlan(local, "bench", { units: rate, per_ms: 1_000, burst });
    const keys = await addTenants(local, tenants);
    await settle(local);
    const counts = { requests: 0, admitted: 0, leased: 0 };
    const before = WARM_SECS * 1000;
    const warm = new Promise((resolve) => setTimeout(() => resolve(tally()), before));
    await pace({ urls: local.gates.map(atAddress), path: `/gate${PATH}`, keys, perSecond: LOAD * rate, secs: WARM_SECS + secs }, ({ status, tier }, at) => {
      if (at < before) return;
      counts.requests += 1;
      if (status === 200) counts.admitted += 1;
      if (tier === "lease") counts.leased += 1;
    });
    const [from, to] = [await warm, await tally()];
    const calls = (binding) => (to[binding] ?? 0) - (from[binding] ?? 0);
    return { ...counts, unawaited: counts.leased / counts.requests, limiter_calls: calls("TENANT"), kv_reads: calls("DOCUMENTS") };
  } finally {
    await local.stop();
  }
}
