// Answers of the limiter that come late, or only after several askings: what the client is told, and what the books say then.

import assert from "node:assert/strict";
import test from "node:test";
import { until, worker } from "./harness.mjs";
import { sleep } from "./load.mjs";
import { PLENTY, WITH_ORIGIN, disagreement, exact, leased, ledger, meters, published, rate, usage } from "./metered.mjs";

/** For how long answers of tenant objects are held back, and until when calls to them are. */
let holdBack = 0;
let asleepUntil = 0;
/** How many calls found their object asleep. */
let woke = 0;
/** Until when messages that take something back are held back: a promise. */
let undone;
/** From when on the first message of an op is lost: the ops that were sent since. */
let sent;
const TENANT = ({ phase, method, message }) => {
  if (method !== "call") return undefined;
  if (undone && phase === "before" && JSON.parse(message).ask.limit?.op?.void) return undone;
  const op = sent && phase === "before" ? JSON.parse(message).ask.limit?.op?.take?.id : undefined;
  if (op !== undefined && sent.push(op) === 1) return new Promise(() => {});
  if (phase === "before" && Date.now() < asleepUntil) woke += 1;
  return sleep(phase === "after" ? holdBack : asleepUntil - Date.now());
};
const local = await worker({ watch: { TENANT }, ...WITH_ORIGIN });
const made = await meters(local, { target: { service: "ORIGIN" } });
await made.plan("exact", exact(PLENTY));
await made.plan("slow", leased(rate(1, 20)));
await published(local);

const ask = (key, path, method) => fetch(`${local.url}/gate/api/${path}`, { method, headers: { "X-API-Key": key, Connection: "close" } });

test("What was admitted too late is refused, and taken back: a reversal in the ledger, nothing billed", async () => {
  const { api_key: key, id } = await made.tenant("late", "exact");
  assert.equal((await ask(key, "exact", "POST")).status, 200);
  holdBack = 1_000;
  const refused = await ask(key, "exact", "POST");
  const { code } = await refused.json();
  holdBack = 0;
  assert.deepEqual([refused.status, code], [503, "limiter_unavailable"]);
  const entries = async () => (await ledger(local, id)).entries;
  await until("the use was recorded, and reversed", async () => (await entries()).some(({ reverses }) => reverses !== null), 30_000);
  const books = await ledger(local, id);
  const reversal = books.entries.find(({ reverses }) => reverses !== null);
  assert.deepEqual(books.entries.map(({ quantity }) => quantity).sort(), [-1, 1, 1]);
  assert.ok(books.entries.some(({ event_id }) => event_id === reversal.reverses), "it names what it reverses");
  assert.deepEqual(disagreement(books), []);
  assert.equal((await usage(local, key)).totals.find(({ meter }) => meter === "exact_calls").quantity, 1);
  assert.equal((await ask(key, "exact", "POST")).status, 200);
});

test("It is taken back too where the limiter is spared meanwhile, and the request does not ask it again", async () => {
  const { api_key: key, id } = await made.tenant("spared", "exact");
  assert.equal((await ask(key, "exact", "POST")).status, 200);
  let release;
  undone = new Promise((resolve) => { release = resolve; });
  holdBack = 1_000;
  const four = await Promise.all(Array.from({ length: 4 }, () => ask(key, "exact", "POST")));
  await sleep(1_600); // 200 ms in which nobody asks, and a second for what was to be taken back, which asks first and hears nothing
  const probing = await ask(key, "exact", "POST");
  assert.deepEqual([...four, probing].map(({ status }) => status), Array(5).fill(503));
  holdBack = 0;
  undone = undefined;
  release();
  const entries = async () => (await ledger(local, id)).entries;
  await until("all five uses were recorded, and reversed", async () => (await entries()).filter(({ reverses }) => reverses !== null).length === 5, 30_000);
  assert.deepEqual(disagreement(await ledger(local, id)), []);
  assert.equal((await usage(local, key)).totals.find(({ meter }) => meter === "exact_calls").quantity, 1);
});

test("A message that is lost is sent again, as the same one", async () => {
  const { api_key: key, id } = await made.tenant("lost", "exact");
  assert.equal((await ask(key, "exact", "POST")).status, 200);
  sent = [];
  assert.equal((await ask(key, "exact", "POST")).status, 200);
  assert.deepEqual(sent, [sent[0], sent[0]]);
  sent = undefined;
  const entries = () => ledger(local, id).then(({ entries }) => entries.map(({ quantity }) => quantity));
  await until("both uses are in the ledger", async () => (await entries()).length >= 2, 30_000);
  assert.deepEqual(await entries(), [1, 1]);
});

test("A tenant's first request is admitted though its object takes 700 ms to wake", async () => {
  const { api_key: key } = await made.tenant("asleep", "slow");
  asleepUntil = Date.now() + 700;
  assert.equal((await ask(key, "leased")).status, 200);
  assert.ok(woke > 1, "it was asked again while it woke");
});

test("RateLimit says what is left, request for request, while each asks the limiter", async () => {
  const { api_key: key } = await made.tenant("left", "slow");
  const left = [];
  for (let n = 0; n < 3; n += 1) {
    const answer = await ask(key, "leased");
    assert.match(answer.headers.get("tollgate"), /tier=limiter/);
    left.push(Number(/"leased";r=(\d+)/.exec(answer.headers.get("ratelimit"))[1]));
  }
  // One a second comes back meanwhile.
  assert.ok(left[0] === 19 && left[0] - left[2] >= 1, JSON.stringify(left));
});
