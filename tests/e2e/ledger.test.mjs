// The way of use into the ledger: all of it, once, by meter and mode.

import assert from "node:assert/strict";
import test from "node:test";
import { figures, size, until, worker } from "./harness.mjs";
import { load, sleep, statuses } from "./load.mjs";
import { PLENTY, WITH_ORIGIN, disagreement, exact, leased, ledger, meters, published, sum, usage } from "./metered.mjs";

/** Batches that were committed and whose answer is then lost, so that they are sent again. */
let lose = 0;
let lost = 0;
const SHARD_GLOBAL_1 = ({ phase, method, detail }) => {
  if (phase !== "after" || method !== "batch" || !detail.includes("entry") || lose === 0) return undefined;
  lose -= 1;
  lost += 1;
  return "the answer is lost";
};
const local = await worker({ gates: 2, watch: { SHARD_GLOBAL_1 }, ...WITH_ORIGIN });
const made = await meters(local, { target: { service: "ORIGIN" }, routes: [{ method: "GET", path: "/api/exact", meter: "exact_calls" }] });
await made.plan("all", { ...leased(PLENTY), ...exact(PLENTY) });
await published(local);

const recorded = async (id, meter, mode = "live") => sum((await ledger(local, id)).entries.filter((entry) => entry.meter === meter && entry.mode === mode));
const asking = { gates: local.gates, clients: 8, perSecond: size(200, 60), ms: size(20_000, 2_000) };
const ok = (answers) => assert.deepEqual(Object.keys(statuses(answers)), ["200"]);

test("Leased use arrives whole once the isolates are quiet, test keys apart from live ones, and totals are what entries add up to", async () => {
  const { api_key: live, id } = await made.tenant("leased", "all");
  const { api_key: trial } = await made.call("POST", `/v1/admin/tenants/${id}/keys`, { name: "trial", mode: "test" });
  const answers = await load({ ...asking, request: (n) => ({ path: "/gate/api/leased", key: n % 3 ? live : trial }) });
  ok(answers);
  const used = (key) => answers.filter((answer) => answer.key === key).length;
  await until("everything is in the ledger", async () => (await recorded(id, "leased_calls")) >= used(live) && (await recorded(id, "leased_calls", "test")) >= used(trial), 30_000);
  await sleep(1_000);
  const books = await ledger(local, id);
  const said = await usage(local, live);
  figures({ "ledger: leased": { live: used(live), test: used(trial), entries: books.entries.length, gap: said.gap } });
  assert.equal(await recorded(id, "leased_calls"), used(live));
  assert.equal(await recorded(id, "leased_calls", "test"), used(trial));
  assert.deepEqual(disagreement(books), []);
  assert.equal(said.totals.find(({ meter, mode }) => meter === "leased_calls" && mode === "live").quantity, used(live));
});

test("A batch whose answer is lost is sent again, and counts once", async () => {
  const { api_key: key, id } = await made.tenant("replayed", "all");
  lose = 3;
  const answers = await load({ ...asking, request: (n) => ({ path: "/gate/api/exact", key, method: n % 2 ? "POST" : "GET" }) });
  ok(answers);
  await until("everything is in the ledger and confirmed", async () => (await usage(local, key)).pending === 0, 60_000);
  const books = await ledger(local, id);
  figures({ "ledger: exact, with lost answers of D1": { used: answers.length, entries: books.entries.length, answers_lost: lost } });
  assert.equal(lost, 3);
  assert.equal(sum(books.entries), answers.length);
  assert.equal(books.entries.length, answers.length, "an entry for each use");
  assert.deepEqual(disagreement(books), []);
});

test("An orderly restart loses nothing of what exact meters recorded", async () => {
  const { api_key: key, id } = await made.tenant("restarted", "all");
  const answers = await load({ ...asking, ms: 1_000, request: () => ({ path: "/gate/api/exact", key, method: "POST" }) });
  ok(answers);
  await local.restart();
  // Nobody asks: the alarm is what wakes the object, or at the latest the scheduled sweep.
  await until("everything is in the ledger", async () => (await recorded(id, "exact_calls")) >= answers.length, 70_000);
  assert.equal(await recorded(id, "exact_calls"), answers.length);
});
