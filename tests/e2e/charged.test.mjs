// What an exact meter charges: on admission or by what the origin answered, and what counts as asked again (G-14: RESERVE, COMMIT
// and VOID). The ledger is what is believed.

import assert from "node:assert/strict";
import { test } from "node:test";
import { until } from "./harness.mjs";
import { ROUTES, ask, each, sleep, world } from "./world.mjs";

const METERS = {
  calls: {},
  jobs: { recording: "exact" },
  paid: { recording: "exact", charge: "success" },
  orders: { recording: "exact", idempotent: true },
};
const routes = [...ROUTES, { path: "/paid/{*rest}", meter: "paid" }, { path: "/jobs", meter: "jobs" }, { path: "/orders/{id}", meter: "orders" }];
const { local, tenant } = await world({
  meters: METERS,
  // What it is asked to answer stands in the path.
  workers: [{ name: "answers", script: "export default { fetch: (request) => new Response('said', { status: +request.url.split('/').pop() || 200 }) };" }],
  services: { ANSWERS: "answers" },
  origins: {
    default: { target: { service: "ANSWERS" }, unmatched: "deny", routes },
    demo: { target: "demo", hosts: ["demo.example.com"], routes },
    none: { target: "none", hosts: ["asked.example.com"], routes },
  },
});

/** What is in the ledger for a meter, once nothing is on its way there. */
async function charged(key, meter) {
  const said = await until("the outbox is empty", async () => {
    const { json } = await ask(local.url, "/v1/usage", { key });
    return json.pending === 0 && json;
  }, 30_000);
  assert.equal(said.quarantine, 0);
  return said.totals.find((total) => total.meter === meter)?.quantity ?? 0;
}

test("what is charged on success is charged for what its origin answered well, and not for the rest", async () => {
  const { api_key: key } = await tenant("pro");
  for (const [status, times] of [[200, 3], [302, 1], [404, 2], [500, 2]]) {
    await each(times, 2, async () => assert.equal((await ask(local.url, `/gate/paid/${status}`, { key, method: "POST" })).status, status));
  }
  assert.equal(await charged(key, "paid"), 4);
});

test("what is answered by the gate itself succeeds", async () => {
  for (const host of ["demo.example.com", "asked.example.com"]) {
    const { api_key: key } = await tenant("pro");
    await each(3, 2, async () => assert.equal((await ask(local.url, "/paid/x", { key, host })).status, 200));
    assert.equal(await charged(key, "paid"), 3, host);
  }
});

test("an Idempotency-Key makes one use of many requests only where the meter says so", async () => {
  const { api_key: key } = await tenant("pro");
  const post = (path, named) => ask(local.url, `/gate${path}`, { key, method: "POST", headers: { "Idempotency-Key": named } });
  for (let times = 0; times < 3; times += 1) {
    for (const path of ["/jobs", "/orders/a"]) assert.equal((await post(path, "same")).status, 200);
  }
  assert.deepEqual([await charged(key, "jobs"), await charged(key, "orders")], [3, 1]);
  // Asked again when the first one has long been in the ledger, at another time and by another request.
  await sleep(1_100);
  await post("/orders/a", "same");
  assert.equal(await charged(key, "orders"), 1);
  // Another URL, and another name, are other uses.
  await post("/orders/b", "same");
  await post("/orders/a", "another");
  assert.equal(await charged(key, "orders"), 3);
});
