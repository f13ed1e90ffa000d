// `npm run bench:core`: the decision alone, in V8, on the shipped module: build/index_bg.wasm, called through its glue as the door
// calls it. A local Tollgate set up through its operator API provides the signed documents, and the leases from its objects.
//
//   warm   one call of `warm` for a request that came before, from its strings to the text of the verdict: key and URL copied in,
//          recalled with where it goes and who sends it, feature, a token of a lease, the use counted, headers written, text
//          copied out
//   walked the same for one that did not, of a tenant and with a key that did: canonical path, key, route are looked up as well
//   cold   from the call of `warm` for a tenant that is not in memory to the verdict, where no limit is to be asked for: the key's MAC
//          and hash, the document of the tenant verified and parsed, route and feature decided, headers written. KV answers from
//          memory at once; its promise is in the figure
//   asked  the same for a request that takes from a limit, to the question for its limiter, which is written too
//
// Memory and clocks are Node's. No workerd, no Request, no Response: those are measured by `npm run bench`.

import fs from "node:fs";
import { registerHooks } from "node:module";
import path from "node:path";
import { pathToFileURL } from "node:url";
import { setFlagsFromString } from "node:v8";
import { startLocal } from "../scripts/local.mjs";
import { option, root, say } from "../scripts/tools.mjs";
import { FEATURE, PATH, TENANTS } from "./fixtures.mjs";
import { digits, median, storeInMemory, table } from "./machine.mjs";
import { originWorker } from "./targets.mjs";
import { addTenants, publishCatalog, publishPlan, settle } from "./tenants.mjs";

const WARM = { rounds: 30, calls: 20_000 };
/** Each is cold once in an isolate, so there are many, as many as KV lists at once. */
const COLD_TENANTS = 900;
/** V8 has optimised what they take after the first two or three. */
const COLD_ISOLATES = 4;
const GOALS = { warm: 1, cold: 20 };
/** A route that takes from no limit. */
const UNLIMITED = "/v1/unlimited";
const file = option("json") ?? path.join(root, "bench/results/core.json");

// The glue imports the module as workerd gives it: compiled. V8 begins with quick code and optimises what is called often, by
// instance; here all of it is optimised from the beginning, as in an isolate that is busy.
setFlagsFromString("--no-liftoff");
globalThis.shippedModule = new WebAssembly.Module(fs.readFileSync(path.join(root, "build/index_bg.wasm")));
registerHooks({
  load(url, context, next) {
    if (!url.endsWith("index_bg.wasm")) return next(url, context);
    return { format: "module", shortCircuit: true, source: "export default globalThis.shippedModule" };
  },
});
/** Larger than what any text here takes. */
const DESK = 4_096;
let instances = 0;
/** A new isolate's memory: the glue again, with its own instance of the module. `warm` hands over texts as the door does (src/entry.js). */
async function isolate() {
  const glue = await import(`${pathToFileURL(path.join(root, "build/glue/index.js"))}?${(instances += 1)}`);
  const encoder = new TextEncoder(), decoder = new TextDecoder();
  let desk = glue.desk(DESK), views = [];
  const warm = (head, now) => {
    if (desk.length === 0) [desk, views] = [glue.desk(DESK), []];
    const length = glue.warm(encoder.encodeInto(head, desk).written, now);
    if (desk.length === 0) [desk, views] = [glue.desk(DESK), []];
    return length === 0 ? undefined : decoder.decode((views[length] ??= desk.subarray(0, length)));
  };
  return { ...glue, warm };
}

/** The platform's bindings as the Worker sees them; documents come from memory. `object` answers for a tenant's object. */
function bindings(local, documents, object) {
  class KvNamespace {
    get = async (key) => documents.get(key) ?? null;
  }
  class DurableObjectNamespace {
    getByName = (name) => (typeof object === "function" ? object(name) : object);
  }
  return { PUBLIC_URL: "https://api.example.com", ENVIRONMENT: "local", ...local.secrets, DOCUMENTS: new KvNamespace(), TENANT: new DurableObjectNamespace() };
}

const headOf = (key, path = PATH) => `GET\nhttps://api.example.com/gate${path}\n${key}\n`;
const microseconds = (since) => Number(process.hrtime.bigint() - since) / 1000;

/** `path` is asked for anew for each request. */
async function warmTimes(env, keys, path) {
  const tollgate = await isolate();
  for (let turn = 0; turn < 8; turn += 1) for (const key of keys) await decide(tollgate, headOf(key), env);
  const times = [];
  let warm = 0, asked = 0;
  for (let round = 0; round < WARM.rounds; round += 1) {
    const behind = new Set();
    const missed = [];
    const now = Date.now();
    const began = process.hrtime.bigint();
    for (let call = 0; call < WARM.calls; call += 1) {
      const verdict = tollgate.warm(headOf(keys[call % keys.length], path()), now);
      if (verdict === undefined) missed.push(keys[call % keys.length]);
      else if (verdict.startsWith("renew\n")) behind.add(verdict.slice(6, verdict.indexOf("\n", 6)));
    }
    const took = microseconds(began);
    asked += missed.length;
    warm += WARM.calls - missed.length;
    if (!missed.length) times.push(took / WARM.calls);
    // Behind the replies, and the requests that had to ask: not what is measured here.
    for (const what of behind) tollgate.renew(what, env, Date.now());
    for (const key of new Set(missed)) await decide(tollgate, headOf(key), env);
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
  return { times, warm, asked };
}

/** As the door decides. */
async function decide(tollgate, head, env) {
  const verdict = tollgate.warm(head, Date.now());
  if (verdict === undefined) return tollgate.gate(head, "", false, false, env, Date.now());
  if (!verdict.startsWith("read\n")) return verdict;
  const name = verdict.slice(5);
  return tollgate.read(head, name, await env.DOCUMENTS.get(name), Date.now()) ?? tollgate.gate(head, "", false, false, env, Date.now());
}

/** Of the last of several isolates, each of which meets every tenant for the first time. */
async function coldTimes(bindings, keys, path) {
  let times;
  for (let isolates = 0; isolates < COLD_ISOLATES; isolates += 1) times = await coldOnce(bindings, keys, path);
  return times;
}

async function coldOnce(bindings, keys, path) {
  const times = [];
  let asked = () => {};
  // A question is where the measuring ends: nobody answers it, and what becomes of the request then is not looked at.
  const env = bindings({ call: () => (asked(), Promise.reject(Object.assign(new Error("not asked here"), { overloaded: true }))) });
  const { error } = console;
  console.error = () => {};
  const tollgate = await isolate();
  const [first, ...others] = keys;
  await decide(tollgate, headOf(first, path), env);
  for (const key of others) {
    let took;
    asked = () => (took ??= microseconds(began));
    const head = headOf(key, path);
    const began = process.hrtime.bigint();
    await decide(tollgate, head, env);
    asked();
    times.push(took);
  }
  console.error = error;
  return times;
}

const dir = storeInMemory();
const local = await startLocal({ workers: [originWorker], services: { ORIGIN: originWorker.name }, state: path.join(dir, "state") });
try {
  await publishCatalog(local, "none", [{ method: "GET", path: UNLIMITED, feature: FEATURE }]);
  await publishPlan(local);
  const keys = await addTenants(local, COLD_TENANTS);
  await settle(local);
  const store = await local.documents();
  const documents = new Map();
  for (const { name } of (await store.list()).keys) documents.set(name, await store.get(name));
  const objects = await local.miniflare.getDurableObjectNamespace("TENANT", "tollgate");
  const leasing = bindings(local, documents, (name) => objects.get(objects.idFromName(name)));
  const size = [...documents].filter(([name]) => name.startsWith("tenant/")).map(([, text]) => text.length);

  // Cold first: what is warm renews its leases meanwhile, and for half a minute more.
  const cold = (path) => coldTimes((object) => bindings(local, documents, object), keys, path);
  const [decided, question] = [await cold(UNLIMITED), await cold(PATH)];
  const known = keys.slice(0, TENANTS);
  let others = 0;
  const [came, walked] = [await warmTimes(leasing, known, () => PATH), await warmTimes(leasing, known, () => `${PATH}?${(others += 1)}`)];
  const calls = ({ warm, asked }) => `${warm} calls, ${asked} more had to ask the limiter`;
  const of = `${decided.length} tenants, documents of ${digits(median(size))} bytes`;
  const rows = [
    { step: "warm", us: median(came.times), least_us: Math.min(...came.times), goal_us: GOALS.warm, of: calls(came) },
    { step: "walked", us: median(walked.times), least_us: Math.min(...walked.times), of: calls(walked) },
    { step: "cold", us: median(decided), least_us: Math.min(...decided), goal_us: GOALS.cold, of },
    { step: "asked", us: median(question), least_us: Math.min(...question), of },
  ];
  say(`\n${table(["decision", "median us", "least us", "goal us", "of"], rows.map((row) => [row.step, digits(row.us, 2), digits(row.least_us, 2), row.goal_us ? `<= ${row.goal_us}` : "-", row.of]))}`);
  fs.mkdirSync(path.dirname(file), { recursive: true });
  fs.writeFileSync(file, `${JSON.stringify({ at: new Date().toISOString(), rows }, null, 2)}\n`);
  say(`\nWritten: ${path.relative(root, file)}`);
} finally {
  console.error = () => {}; // leases that are still out cannot be given back any more
  await local.stop();
}
process.exit();
