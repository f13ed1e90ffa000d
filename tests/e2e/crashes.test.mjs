// Show 6: SIGKILL where it hurts most, and then the books are compared: what clients were told with what the ledger holds.
//
// Each use has an address of its own: no two requests share tenant, API key and route, and an entry of an exact meter names all
// three. So "in the ledger once" is a join by that address, not a count.

import assert from "node:assert/strict";
import test from "node:test";
import { figures, size, until, worker } from "./harness.mjs";
import { Connection, sleep } from "./load.mjs";
import { PLENTY, WITH_ORIGIN, disagreement, exact, leased, ledger, meters, published, rate, sum, usage } from "./metered.mjs";

const PHASES = ["before the outbox commit", "after the outbox commit, before D1", "between D1 and the delete"];
const KILLS = size(200, 6);
const ROUTES = size(400, 200);
const KEYS = size(60, 6);
const TENANTS = 3;
const CLIENTS = 12;

/** Kills workerd the next time that work is at the place which `arm` names. */
function trap() {
  let armed;
  let spring;
  const here = (places) => {
    if (!armed || !places.includes(armed)) return undefined;
    armed = undefined;
    return spring();
  };
  return {
    arm: (place, kill) => new Promise((resolve) => {
      armed = place;
      spring = async () => {
        await kill();
        resolve(place);
      };
    }),
    watch: {
      TENANT: ({ phase, method }) => (phase === "before" && method === "call" ? here([PHASES[0]]) : undefined),
      SHARD_GLOBAL_1: ({ phase, method, detail }) => (method === "batch" && detail.includes("entry") ? here([PHASES[phase === "before" ? 1 : 2]]) : undefined),
    },
  };
}

test(`${KILLS} SIGKILLs under load: every use of an exact meter whose answer a client saw is in the ledger once, none twice`, async () => {
  const { arm, watch } = trap();
  const local = await worker({ gates: 2, watch, ...WITH_ORIGIN });
  const numbered = Array.from({ length: ROUTES }, (_, at) => [
    { method: "POST", path: `/api/use/${at}`, meter: "exact_calls" },
    { method: "GET", path: `/api/use/${at}`, meter: "exact_calls" },
  ]).flat();
  // A worker behind the gate: what is not idempotent is recorded first, what is beside the origin's work, from a lease.
  const made = await meters(local, { routes: numbered, target: { service: "ORIGIN" } });
  await made.plan("exact", exact(PLENTY));
  const uses = [];
  for (let at = 0; at < TENANTS; at += 1) {
    const tenant = await made.tenant(`t${at}`, "exact");
    for (let k = 0; k < KEYS; k += 1) {
      const key = await made.call("POST", `/v1/admin/tenants/${tenant.id}/keys`, { name: `k${k}` });
      uses.push({ tenant: tenant.id, id: key.id, key: key.api_key });
    }
  }

  await published(local);

  /** Every address once, the keys in turn. */
  let next = 0;
  const take = () => {
    const n = next++;
    const route = Math.floor(n / uses.length / 2);
    if (route >= ROUTES) return undefined;
    const { tenant, id, key } = uses[n % uses.length];
    const method = Math.floor(n / uses.length) % 2 ? "GET" : "POST";
    return { path: `/gate/api/use/${route}`, key, method, address: `${tenant} ${id} ${method} /api/use/${route}` };
  };

  const seen = [];
  /** Refused because the limiter answered too late: the use may be recorded all the same. */
  const late = new Set();
  const told = { 0: 0 };
  let perSecond = 100;
  let stopped = false;
  const client = async (at) => {
    let connection;
    while (!stopped) {
      const use = take();
      if (!use) return;
      connection ??= new Connection(local.gates[at % 2]);
      const { status } = await connection.send(use.path, use.key, { method: use.method });
      told[status] = (told[status] ?? 0) + 1;
      if (status === 200) seen.push(use.address);
      else if (status !== 0) late.add(use.address);
      await sleep(status === 0 ? 100 : (1000 * CLIENTS) / perSecond);
    }
    connection?.close();
  };
  const clients = Array.from({ length: CLIENTS }, (_, at) => client(at));

  const killed = {};
  for (let kill = 0; kill < KILLS; kill += 1) {
    const before = seen.length;
    await until("the load goes on after a crash", () => seen.length > before + CLIENTS, 20_000);
    await sleep(Math.random() * 300);
    const place = await Promise.race([arm(PHASES[kill % PHASES.length], () => local.crash()), sleep(70_000)]);
    assert.ok(place, `nothing came to pass ${PHASES[kill % PHASES.length]}`);
    killed[place] = (killed[place] ?? 0) + 1;
    await local.restart();
  }
  await sleep(500);
  stopped = true;
  await Promise.all(clients);

  const unsettled = new Set(uses.map(({ tenant }) => tenant));
  for (const { tenant, key } of uses) {
    if (!unsettled.delete(tenant)) continue;
    await until(`the outbox of ${tenant} is empty`, async () => (await usage(local, key)).pending === 0, 90_000);
  }
  const books = await ledger(local);
  const counts = new Map();
  for (const { tenant_id, detail, quantity } of books.entries) {
    const address = `${tenant_id} ${detail.key} ${detail.route}`;
    counts.set(address, (counts.get(address) ?? 0) + quantity);
  }
  const lost = seen.filter((address) => !counts.has(address));
  const twice = [...counts].filter(([, count]) => count > 1);
  const refused = [...counts.keys()].filter((address) => late.has(address));
  figures({ "crashes: refused with 503, and recorded": refused.length, "crashes: SIGKILLs by phase": killed, "crashes: uses whose answer was seen": seen.length, "crashes: entries in the ledger": books.entries.length,
    "crashes: lost": lost.length, "crashes: twice": twice.length, "crashes: answers by status, 0 broken off": told, "crashes: addresses used": `${next} of ${uses.length * ROUTES * 2}` });
  for (const phase of PHASES) assert.ok(killed[phase] >= size(10, 2), `${phase}: ${killed[phase]} kills`);
  assert.ok(seen.length > KILLS * CLIENTS, "there was load");
  assert.deepEqual(lost.slice(0, 5), [], `${lost.length} uses that a client saw are not in the ledger`);
  assert.deepEqual(twice.slice(0, 5), [], `${twice.length} uses are in the ledger more than once`);
  assert.deepEqual(disagreement(books), []);
});

test("Leased meters: after crashes never more is billed than was used, and the gap shown is at most the leases out", async () => {
  const local = await worker({ gates: 2 });
  const made = await meters(local);
  await made.plan("leased", leased(rate(400, 800)));
  await published(local);
  const { api_key: key, id } = await made.tenant("leased", "leased");
  const total = (rows) => sum(rows.map(({ units }) => ({ quantity: units })));
  let admitted = 0;
  let unknown = 0;
  const lost = [];
  const kills = size(20, 2);
  for (let kill = 0; kill < kills; kill += 1) {
    const before = total((await usage(local, key)).gap);
    let stopped = false;
    const clients = Array.from({ length: 8 }, async (_, at) => {
      const connection = new Connection(local.gates[at % 2]);
      while (!stopped) {
        const { status } = await connection.send("/gate/api/leased", key);
        if (status === 200) admitted += 1;
        if (status === 0) unknown += 1;
        await sleep(status === 0 ? 50 : 30);
      }
      connection.close();
    });
    await sleep(1_500 + Math.random() * 500);
    await local.crash();
    stopped = true;
    await Promise.all(clients);
    await local.restart();
    // Nobody is there who could use or report what was out at the kill: what is still lent, and what has ended since.
    const { leased, gap } = await usage(local, key);
    const out = total(leased) + total(gap) - before;
    const after = await until("every lease has ended", async () => {
      const said = await usage(local, key);
      return total(said.leased) === 0 && said;
    }, 15_000);
    lost.push({ out, gap: total(after.gap) - before });
  }
  const said = await until("the outbox is empty", async () => {
    const answer = await usage(local, key);
    return answer.pending === 0 && answer;
  }, 70_000);
  const billed = sum((await ledger(local, id)).entries.filter(({ meter }) => meter === "leased_calls"));
  const gap = total(said.gap);
  figures({ "crashes: leased meter": { kills, seen: admitted, unknown, billed, missing: admitted - billed, gap, leases_out_at_the_kills: lost.reduce((all, { out }) => all + out, 0) } });
  assert.ok(billed <= admitted + unknown, `${billed} billed of ${admitted} used`);
  assert.ok(admitted - billed <= gap, `${admitted - billed} uses are missing and only ${gap} are shown as a gap`);
  for (const { out, gap } of lost) assert.ok(out > 0 && gap <= out, `a gap of ${gap} where ${out} were leased`);
  assert.deepEqual(disagreement(await ledger(local)), []);
});
