// Show 3: one promise for many isolates. Four gates share one tenant object; what they admit together is what is checked.

import assert from "node:assert/strict";
import test from "node:test";
import { figures, size, until, worker } from "./harness.mjs";
import { atOnce, excess, load, statuses } from "./load.mjs";
import { exact, leased, meters, published, quota, rate } from "./metered.mjs";
import { payload } from "./world.mjs";

const GATES = 4;
const CLIENTS = 64;
const ms = size(20_000, 3_000);

const local = await worker({ gates: GATES });
const made = await meters(local);
const organisation = { rate: 200, burst: 200 };
const large = { rate: 200, burst: 600 };
const units = size(1_000, 100);
await made.plan("warm", leased(rate(1000, 1000)));
await made.plan("r200", leased(rate(200, 600)));
await made.plan("r500", leased(rate(500, 500)));
await made.plan("burst", leased(rate(10, 100)));
await made.plan("organisation", leased(rate(organisation.rate, organisation.burst)));
await made.plan("spends", leased(rate(100, 100)));
await made.plan("paced", { pace: { meter: "exact_calls", ...rate(10, 10) }, units: { meter: "exact_calls", ...quota(1_000) } });
await made.plan("large", leased(rate(large.rate, large.burst)));
await made.plan("quota", exact(quota(units)));
await published(local);
// Every isolate has read the catalog before something is measured; the tenants that are measured it has never seen.
const { api_key: warm } = await made.tenant("warm", "warm");
await atOnce({ gates: local.gates, count: GATES * 4, path: "/gate/api/leased", key: warm });

/**
 * A team of `parent`, with what it may of the limit `name`. An isolate that reads its document as it was before the relation lets
 * pass what that would not; so KV must show it.
 */
async function team(parent, slug, name, relation) {
  const child = await made.call("POST", "/v1/admin/tenants", { slug, name: slug, parent: parent.id });
  if (!relation) return child;
  await made.call("PUT", `/v1/admin/tenants/${child.id}/relations/${name}`, relation);
  const kv = await local.documents();
  await until("KV shows the relation", async () => JSON.stringify(payload(await kv.get(`tenant/${child.id}`))).includes(`"${Object.keys(relation)[0]}"`));
  return child;
}

const admitted = (answers) => answers.filter(({ status }) => status === 200);
/** Admitted or refused by a limit. A small run shares its machine with others: now and then its limiter answers too late. */
const onlyDecided = (answers) => {
  const late = answers.filter(({ status, body }) => status === 503 && body.includes('"code":"limiter_unavailable"'));
  const other = answers.filter((answer) => ![200, 429].includes(answer.status) && !late.includes(answer));
  assert.deepEqual(other.slice(0, 1), [], JSON.stringify(statuses(answers)));
  assert.ok(late.length <= answers.length * size(0.001, 0.05), `${late.length} of ${answers.length} waited for the limiter in vain`);
};
/** How much of what may be admitted must be. */
const MOST = size(0.97, 0.9);
const round = (value, digits = 3) => Number(value.toFixed(digits));

for (const { units, burst } of [{ units: 200, burst: 600 }, { units: 500, burst: 500 }].slice(0, size(2, 1))) {
  test(`64 clients at three times ${units}/s, burst ${burst}: no window holds more than it may, and what may be is used`, async () => {
    const name = `r${units}`;
    const { api_key: key } = await made.tenant(name, name);
    const answers = await load({ gates: local.gates, clients: CLIENTS, perSecond: 3 * units, ms, request: () => ({ path: "/gate/api/leased", key }) });
    onlyDecided(answers);
    const passed = admitted(answers);
    const over = excess(passed, { rate: units, burst });
    const span = Math.max(...answers.map(({ received }) => received)) - Math.min(...answers.map(({ sent }) => sent));
    const used = passed.length / (burst + (units * span) / 1000);
    figures({ [`limits: r ${units}/s, B ${burst}, ${GATES} isolates`]: { asked: answers.length, admitted: passed.length, seconds: round(span / 1000, 1), used: round(used), worst_excess: round(over, 1) } });
    assert.ok(over <= 0, `a window holds ${over} more than it may`);
    assert.ok(used >= MOST, `only ${used} of what may be admitted was`);
  });
}

test("400 at once against a burst of 100 never pass the bound", async () => {
  for (let again = 0; again < size(10, 2); again += 1) {
    const { api_key: key } = await made.tenant(`burst-${again}`, "burst");
    const answers = await atOnce({ gates: local.gates, count: 400, path: "/gate/api/leased", key });
    const passed = admitted(answers);
    const over = excess(passed, { rate: 10, burst: 100 });
    figures({ [`limits: 400 at once, r 10/s, B 100, ${GATES} isolates, ${again + 1}`]: { ...statuses(answers), worst_excess: round(over, 1) } });
    assert.ok(over <= 0, `a window holds ${over} more than it may`);
    assert.ok(passed.length >= 100 * MOST, `only ${passed.length} of a burst of 100 were admitted`);
  }
});

test("An organisation and its teams keep both limits: one shares, one is capped, one has a part of its own", async () => {
  const org = organisation;
  const cap = { rate: 40, burst: 40 };
  const carve = { rate: 50, burst: 50 };
  const parent = await made.tenant("org", "organisation");
  const keys = {
    org: parent.api_key,
    share: (await team(parent, "team-share")).api_key,
    cap: (await team(parent, "team-cap", "leased", { cap: rate(cap.rate, cap.burst) })).api_key,
    carve: (await team(parent, "team-carve", "leased", { carve: rate(carve.rate, carve.burst) })).api_key,
  };
  const names = Object.keys(keys);
  const answers = await load({ gates: local.gates, clients: CLIENTS, perSecond: 3 * org.rate, ms, request: (n) => ({ path: "/gate/api/leased", key: keys[names[n % names.length]] }) });
  onlyDecided(answers);
  const of = (...which) => admitted(answers).filter(({ key }) => which.some((name) => keys[name] === key));
  const rest = { rate: org.rate - carve.rate, burst: org.burst - carve.burst };
  const span = (Math.max(...answers.map(({ received }) => received)) - Math.min(...answers.map(({ sent }) => sent))) / 1000;
  const said = {
    organisation: round(excess(of(...names), org), 1),
    rest: round(excess(of("org", "share", "cap"), rest), 1),
    cap: round(excess(of("cap"), cap), 1),
    carve: round(excess(of("carve"), carve), 1),
  };
  const used = of(...names).length / (org.burst + org.rate * span);
  figures({ "limits: organisation r 200 B 200, cap 40/40, carve 50/50, worst excess": said,
    "limits: organisation and teams, admitted": { ...Object.fromEntries(names.map((name) => [name, of(name).length])), used: round(used) } });
  for (const [what, over] of Object.entries(said)) assert.ok(over <= 0, `${what}: a window holds ${over} more than it may`);
  for (const name of names) assert.ok(of(name).length > 0, `${name} was shut out`);
});

test("A refusal spends neither the team's limit nor the organisation's", async () => {
  const parent = await made.tenant("spends", "spends");
  const child = await team(parent, "spends-team", "leased", { cap: rate(1, 2) });
  // The capped team is refused hundreds of times; the organisation beside it still has what it asks for, all but the team's.
  const answers = await load({ gates: local.gates, clients: CLIENTS, perSecond: 280, ms, request: (n) => ({ path: "/gate/api/leased", key: n % 3 ? child.api_key : parent.api_key }) });
  onlyDecided(answers);
  const refusedTeam = answers.filter(({ key, status }) => key === child.api_key && status === 429).length;
  const own = answers.filter(({ key }) => key === parent.api_key);
  figures({ "limits: refusals of a capped team": refusedTeam, "limits: its organisation beside them, at 0.93 of its rate": { asked: own.length, admitted: admitted(own).length } });
  const passed = admitted(answers).filter(({ key }) => key === child.api_key);
  const span = answers.at(-1).received - answers[0].sent;
  assert.ok(refusedTeam > own.length, "the team was to be refused often");
  assert.ok(excess(passed, { rate: 1, burst: 2 }) <= 0 && passed.length >= 1 + Math.floor(span / 2_000), `the team was left ${passed.length} in ${span} ms`);
  assert.ok(admitted(own).length >= MOST * own.length, `the organisation lost ${own.length - admitted(own).length} of ${own.length} to its team's refusals`);
});

test("Refused by its organisation's rate, a team loses nothing of its own quota", async () => {
  const cap = 50;
  const parent = await made.tenant("paced", "paced");
  const child = await team(parent, "paced-team", "units", { cap: quota(cap) });
  // 10 at once and 10 a second: the quota is used up after some 4 s.
  const answers = await load({ gates: local.gates, clients: 16, perSecond: 100, ms: 9_000, request: () => ({ path: "/gate/api/exact", key: child.api_key, method: "POST" }) });
  onlyDecided(answers);
  const refusedBy = (limit) => answers.filter(({ status, body }) => status === 429 && body.includes(`"limit":{"name":"${limit}"`)).length;
  figures({ "limits: a team's quota of 50 below its organisation's 10/s": { ...statuses(answers), by_rate: refusedBy("pace"), by_quota: refusedBy("units") } });
  assert.ok(refusedBy("pace") > cap && refusedBy("units") > cap, "both were to refuse");
  assert.equal(admitted(answers).length, cap);
});

test("Large costs pass too: 2 % of requests cost a third of the burst, at half load", async () => {
  const { api_key: key } = await made.tenant("large", "large");
  // 0.98 * 1 + 0.02 * 200 = 4.98 units a request on average: 100 units a second.
  const answers = await load({ gates: local.gates, clients: 16, perSecond: 20, ms: size(30_000, 6_500),
    request: (n) => (n % 50 === 25 ? { path: "/gate/api/large", key } : { path: "/gate/api/leased", key }) });
  onlyDecided(answers);
  const larges = answers.filter(({ path }) => path === "/gate/api/large");
  const small = answers.filter(({ path }) => path !== "/gate/api/large");
  const over = excess(admitted(answers).map((each) => ({ ...each, units: each.path === "/gate/api/large" ? 200 : 1 })), large);
  figures({ [`limits: costs of 200 beside 1, r 200/s, B 600, ${GATES} isolates, half load`]: { large: `${admitted(larges).length} of ${larges.length}`, small: `${admitted(small).length} of ${small.length}`, worst_excess: round(over, 1) } });
  assert.ok(over <= 0);
  assert.ok(larges.length >= 2);
  assert.equal(admitted(larges).length, larges.length);
  assert.ok(admitted(small).length >= MOST * small.length);
});

test("A quota of an exact meter admits exactly what it says, asked by four isolates at once", async () => {
  const { api_key: key } = await made.tenant("quota", "quota");
  const answers = await load({ gates: local.gates, clients: CLIENTS, perSecond: 400, ms: size(10_000, 1_000), request: () => ({ path: "/gate/api/exact", key, method: "POST" }) });
  onlyDecided(answers);
  figures({ [`limits: exact quota of ${units}, ${GATES} isolates`]: statuses(answers) });
  assert.ok(answers.length > 1.5 * units);
  assert.equal(admitted(answers).length, units);
  assert.match(answers.find(({ status }) => status === 429).body, /"code":"quota_exceeded"/);
});

test("A tenant on a plan that an isolate has not heard of is limited all the same", async () => {
  // Every isolate has the catalog, and no reason to read it again for half a minute.
  await made.plan("new", leased(rate(1, 20)));
  const { api_key: key } = await made.tenant("new", "new");
  const answers = await load({ gates: local.gates, clients: 8, perSecond: 100, ms: 1_500, request: () => ({ path: "/gate/api/leased", key }) });
  figures({ "limits: a plan made a moment ago, r 1/s, B 20": statuses(answers) });
  assert.ok(admitted(answers).length > 0, "it works at once");
  assert.ok(excess(admitted(answers), { rate: 1, burst: 20 }) <= 0);
});
