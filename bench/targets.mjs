// What is measured, a workerd of its own each.
//
// `does` is the job, to compare like with like: A who asks (by API key), F feature, R enforced limit, M metering, P passing on to
// an origin. `against` is the target that a ratio is taken to.

import fs from "node:fs";
import path from "node:path";
import zlib from "node:zlib";
import esbuild from "esbuild";
import { Log, LogLevel, Miniflare } from "miniflare";
import { sizes } from "../scripts/build.mjs";
import { startLocal } from "../scripts/local.mjs";
import { HOST, freePort } from "../scripts/ports.mjs";
import { config } from "../scripts/settings.mjs";
import { PATH, TENANTS, keys, records, vars } from "./fixtures.mjs";
import { residentMb } from "./machine.mjs";
import { addTenants, publishCatalog, publishPlan, settle, warm } from "./tenants.mjs";

const here = import.meta.dirname;
const GATE = `/gate${PATH}`;

const tollgate = (target) => ({ start: () => startTollgate(target), target });
const peer = (file, options = {}) => ({ start: (name, mode) => startPeer(name, file, { ...options, ...mode }), counts: true });

export const targets = [
  { name: "hello", title: "JavaScript hello world", does: "", against: "hello", ...peer("hello") },
  { name: "hello-empty", title: "the same without a body", does: "", against: "hello", ...peer("hello-empty") },
  { name: "open-gate", title: "a gate that decides nothing", does: "", against: "hello", ...peer("open-gate") },
  { name: "tollgate", title: "Tollgate", does: "AFRM", against: "hello", ...tollgate("none") },
  { name: "tollgate-demo", title: "Tollgate with its built-in origin", does: "AFRM", against: "hello", ...tollgate("demo") },
  { name: "lease-js", title: "the same design by hand in JavaScript", does: "AFRM", against: "hello", ...peer("lease", { records: "lease", object: "Limiter" }) },
  { name: "launchdarkly", title: "LaunchDarkly SDK for Cloudflare", does: "F", against: "hello", ...peer("launchdarkly", { records: "launchdarkly" }) },
  { name: "hono-rate-limiter", title: "hono-rate-limiter, Durable Object store", does: "R", against: "hello", ...peer("hono-rate-limiter", { object: "DurableObjectRateLimiter" }) },
  { name: "hono", title: "Hono with KV, D1 and a Durable Object", does: "AFRM", against: "hello", ...peer("hono", { records: "hono", object: "Counter" }) },
  { name: "passthrough", title: "JavaScript that only passes on", does: "P", against: "passthrough", ...peer("passthrough", { origin: true }) },
  { name: "passthrough-one", title: "passing on with a header changed each way", does: "P", against: "passthrough", ...peer("passthrough-one", { origin: true }) },
  { name: "passthrough-headers", title: "passing on with Tollgate's headers", does: "P", against: "passthrough", ...peer("passthrough-headers", { origin: true }) },
  { name: "tollgate-origin", title: "Tollgate before an origin", does: "AFRMP", against: "passthrough", ...tollgate({ service: "ORIGIN" }) },
  // The same as the first, and farthest from it in each round: its distance from 1 is the noise of this run.
  { name: "control", title: "JavaScript hello world, again", does: "", against: "hello", ...peer("hello") },
];

/** Starts a target, warms it, and says where it is. */
export async function start(target, mode = {}) {
  const running = await target.start(target.name, mode);
  try {
    await warm(running.url, running.keys);
  } catch (error) {
    await running.stop();
    throw error;
  }
  return { ...target, ...running, idleMb: residentMb(running.pid) };
}

export const originWorker = { name: "origin", script: fs.readFileSync(path.join(here, "peers/origin.js"), "utf8") };

async function startTollgate(target) {
  const local = await startLocal({ workers: [originWorker], services: { ORIGIN: "origin" } });
  try {
    await publishCatalog(local, target);
    await publishPlan(local);
    const tenants = await addTenants(local, TENANTS);
    await settle(local);
    const { module, script } = sizes();
    return {
      local, pid: local.pid, url: atAddress(local.url) + GATE, path: GATE, keys: tenants,
      gzip: module.gzip + script.gzip, stop: () => local.stop(),
    };
  } catch (error) {
    await local.stop();
    throw error;
  }
}

/** wrk and Node may disagree on what `localhost` is. */
export const atAddress = (url) => url.replace("localhost", HOST);

const workerds = () => new Set(fs.existsSync("/proc/self/task")
  ? fs.readFileSync(`/proc/${process.pid}/task/${process.pid}/children`, "utf8").split(" ").filter(Boolean).map(Number)
  : []);
const isWorkerd = (pid) => fs.readFileSync(`/proc/${pid}/comm`, "utf8").startsWith("workerd");

/** A peer in one bundled file, as it would be deployed; with `counted` around it, its answers say what they waited for. */
async function bundle(file, counted) {
  const entry = counted
    ? `import peer from "./peers/${file}.js"; import { counting } from "./peers/counting.js"; export * from "./peers/${file}.js"; export default counting(peer);`
    : `export * from "./peers/${file}.js"; export { default } from "./peers/${file}.js";`;
  const { outputFiles } = await esbuild.build({
    stdin: { contents: entry, resolveDir: here }, bundle: true, minify: true, write: false, format: "esm", target: "es2022", logLevel: "error",
    conditions: ["workerd", "worker", "browser", "import"], mainFields: ["module", "main"], external: ["cloudflare:*", "node:*"], plugins: [nodeModules],
  });
  return outputFiles[0].text;
}

/** A `require` of one of Node's modules becomes an import, which workerd serves. */
const nodeModules = {
  name: "node modules",
  setup(build) {
    build.onResolve({ filter: /^(node:)?(events|crypto|util|buffer|async_hooks|stream|url|path)$/ }, ({ path, namespace }) =>
      namespace === "node" ? { path, external: true } : { path: path.replace("node:", ""), namespace: "node" });
    build.onLoad({ filter: /.*/, namespace: "node" }, ({ path }) => ({ contents: `export * from "node:${path}"; export { default } from "node:${path}";` }));
  },
};

async function startPeer(name, file, { records: kind, object, origin = false, counted = false }) {
  const script = await bundle(file, counted);
  const port = await freePort();
  const before = workerds();
  const shared = { compatibilityDate: config().compatibility_date, compatibilityFlags: ["nodejs_compat"] };
  const miniflare = new Miniflare({
    host: HOST, port: 0, cf: false, log: new Log(LogLevel.ERROR),
    handleRuntimeStdio: (out, err) => [out, err].forEach((stream) => stream.resume()),
    workers: [
      {
        ...shared, name, modules: [{ type: "ESModule", path: `${name}.mjs`, contents: script }], bindings: vars, kvNamespaces: ["KV"], d1Databases: ["DB"],
        ...(object ? { durableObjects: { OBJECT: { className: object, useSQLite: true } } } : {}),
        ...(origin ? { serviceBindings: { ORIGIN: originWorker.name } } : {}),
        unsafeDirectSockets: [{ host: HOST, port }],
      },
      ...(origin ? [{ ...shared, name: originWorker.name, modules: true, script: originWorker.script }] : []),
    ],
  });
  await miniflare.ready;
  const store = await miniflare.getKVNamespace("KV", name);
  for (const [key, value] of kind ? records[kind]() : []) await store.put(key, value);
  const database = await miniflare.getD1Database("DB", name);
  await database.exec("CREATE TABLE IF NOT EXISTS usage(tenant TEXT, period TEXT, quantity INTEGER NOT NULL, PRIMARY KEY (tenant, period))");
  const pid = [...workerds()].find((child) => !before.has(child) && isWorkerd(child));
  return { pid, url: `http://${HOST}:${port}${GATE}`, path: GATE, keys, gzip: zlib.gzipSync(script, { level: 9 }).length, stop: () => miniflare.dispose() };
}
