// Runs the built Worker in workerd on this machine, bound as wrangler.toml says: the one way in which `npm start`, the tests,
// the long proofs and the benchmarks do it.
//
// workerd itself answers on the port (a direct socket): what is measured and broken here is the runtime that Cloudflare runs,
// with nothing of ours before it. Faults come from outside the Worker, whose bytes stay the deployed ones: a watched binding,
// which is asked before and told after every call, or a SIGKILL.

import { spawnSync } from "node:child_process";
import fs from "node:fs";
import os from "node:os";
import path from "node:path";
import { Log, LogLevel, Miniflare } from "miniflare";
import { HOST, freePort } from "./ports.mjs";
import { config, localSecrets } from "./settings.mjs";
import { root } from "./tools.mjs";

const GATE = "tollgate";
const KEPT_LOG_LINES = 2000;

/**
 * Starts the Worker. Options, all optional:
 *
 * - `port`: of the first gate; 0 (the default) picks a free one
 * - `gates`: how many gate services, each an isolate of its own, that share objects, KV and D1; default 1
 * - `state`: a directory that survives; without it a temporary one that `stop` removes
 * - `vars`, `secrets`: over those of wrangler.toml and of this checkout
 * - `workers`: further workers, `{ name, script, ...Miniflare's options }`, e.g. an origin; each gets a URL in `urls[name]`
 * - `services`: service bindings of every gate, `{ BINDING: worker name or function (Request) => Response }`
 * - `watch`: `{ BINDING: (call) => verdict }` for KV, D1 and Durable Object bindings of every gate and object. The function sees
 *   `{ binding, phase, method, detail, message }` before and after each call (`message` to an object); returning a string before
 *   refuses the call with that reason, `{ overloaded: reason }` as an object does that has too much to do.
 *   A worker's name in its place has that worker asked, by POST, which spares workerd the way to this process
 * - `cron`: run the scheduled handler every minute
 * - `onLog`: takes each line that workerd prints; without it the last lines are kept for `logs()`
 * - `modules`: the directory of index.js and index_bg.wasm, if not build/
 */
export async function startLocal(options = {}) {
  const local = new Local(options);
  try {
    await local.start();
  } catch (error) {
    await local.stop();
    throw error;
  }
  return local;
}

class Local {
  #options;
  #config = config();
  #miniflare;
  #stateIsTemporary;
  #lines = [];
  #timer;
  #ports = new Map();
  #workerd;

  constructor(options) {
    this.#options = { gates: 1, port: 0, workers: [], services: {}, watch: {}, vars: {}, ...options };
    this.#stateIsTemporary = !options.state;
    this.state = options.state ?? fs.mkdtempSync(path.join(os.tmpdir(), "tollgate-"));
    this.secrets = { ...localSecrets(), ...options.secrets };
  }

  /** The first gate. */
  get url() {
    return this.urls[GATE];
  }
  /** Every gate's address, in order. */
  get gates() {
    return this.#gateNames().map((name) => this.urls[name]);
  }
  /** Addresses by worker name. */
  get urls() {
    return Object.fromEntries([...this.#ports].map(([name, port]) => [name, `http://localhost:${port}`]));
  }
  /** The process id of workerd. */
  get pid() {
    return this.#workerd;
  }
  isRunning() {
    return isAlive(this.#workerd);
  }
  get miniflare() {
    return this.#miniflare;
  }
  /** What workerd printed last. */
  logs() {
    return this.#lines.join("\n");
  }

  async start() {
    for (let tries = 1; !(await this.#listens()); tries += 1) {
      // Somebody else took a port that was free a moment ago.
      if (tries === 3 || this.#workerd) throw new Error(`a port is in use: ${[...this.#ports.values()].join(", ")}`);
      this.#ports.clear();
    }
    await this.#migrate();
    if (this.#options.cron) this.#timer = setInterval(() => this.scheduled().catch((error) => this.#log(`cron: ${error}`)), 60_000);
  }

  /** Starts workerd; false where a port is in use. */
  async #listens() {
    await this.#choosePorts();
    const before = new Set(childrenNamed("workerd"));
    this.#miniflare = new Miniflare(this.#miniflareOptions());
    try {
      await this.#miniflare.ready;
    } catch (error) {
      if (error.code !== "ERR_ADDRESS_IN_USE") throw error;
      await this.#miniflare.dispose().catch(() => {});
      this.#miniflare = undefined;
      return false;
    }
    this.#workerd = childrenNamed("workerd").find((pid) => !before.has(pid));
    return true;
  }

  async stop() {
    clearInterval(this.#timer);
    await this.#miniflare?.dispose();
    this.#miniflare = undefined;
    if (this.#stateIsTemporary) fs.rmSync(this.state, { recursive: true, force: true });
  }

  /** Kills workerd where it stands, as a power cut would: nothing in memory survives. */
  async crash() {
    const pid = this.#workerd;
    process.kill(pid, "SIGKILL");
    while (isAlive(pid)) await new Promise((resolve) => setTimeout(resolve, 5));
  }

  /** Starts again on the same state and ports, after `crash` or in an orderly way. `change` merges into the options. */
  async restart(change = {}) {
    clearInterval(this.#timer);
    await this.#miniflare.dispose().catch(() => {});
    Object.assign(this.#options, change);
    await this.start();
  }

  /** Runs the scheduled handler, as the platform does every minute. */
  async scheduled(at = new Date()) {
    const worker = await this.#miniflare.getWorker(GATE);
    return worker.scheduled({ cron: this.#config.triggers.crons[0], scheduledTime: at });
  }

  /** A D1 database by its binding, past any watch. */
  database(binding) {
    return this.#miniflare.getD1Database(binding, STORES);
  }
  /** The KV namespace, past any watch. */
  documents() {
    return this.#miniflare.getKVNamespace("DOCUMENTS", STORES);
  }

  #gateNames() {
    return Array.from({ length: this.#options.gates }, (_, index) => (index ? `${GATE}-${index + 1}` : GATE));
  }

  async #choosePorts() {
    for (const name of [...this.#gateNames(), ...this.#options.workers.map((worker) => worker.name)]) {
      if (!this.#ports.has(name)) this.#ports.set(name, name === GATE && this.#options.port ? this.#options.port : await freePort());
    }
  }

  #log(line) {
    if (this.#options.onLog) this.#options.onLog(line);
    else {
      this.#lines.push(line);
      if (this.#lines.length > KEPT_LOG_LINES) this.#lines.shift();
    }
  }

  #miniflareOptions() {
    const { watch, workers, services, vars } = this.#options;
    const shared = {
      compatibilityDate: this.#config.compatibility_date,
      compatibilityFlags: this.#config.compatibility_flags ?? [],
    };
    const socket = (name) => [{ host: HOST, port: this.#ports.get(name) }];
    // Without an id, Wrangler names a local store by its binding; so both find the same files.
    const databases = Object.fromEntries(this.#config.d1_databases.map(({ binding }) => [binding, binding]));
    const namespaces = Object.fromEntries(this.#config.kv_namespaces.map(({ binding }) => [binding, binding]));
    const objects = Object.fromEntries(this.#config.durable_objects.bindings.map(({ name, class_name }) => [name, class_name]));
    const unwatched = (bindings) => Object.fromEntries(Object.entries(bindings).filter(([name]) => !watch[name]));
    for (const name of Object.keys(watch)) {
      if (!databases[name] && !namespaces[name] && !objects[name]) throw new Error(`watch: ${name} is no KV, D1 or Durable Object binding`);
    }

    const modules = this.#options.modules ?? path.join(root, "build");
    const gate = (name, index) => ({
      ...shared,
      name,
      modulesRoot: modules,
      modules: [
        { type: "ESModule", path: path.join(modules, "index.js") },
        { type: "CompiledWasm", path: path.join(modules, "index_bg.wasm") },
      ],
      bindings: { ...this.#config.vars, ENVIRONMENT: "local", PUBLIC_URL: this.url, ...vars, ...this.secrets },
      kvNamespaces: unwatched(namespaces),
      d1Databases: unwatched(databases),
      // The first gate owns the objects; the others reach the same ones.
      durableObjects: Object.fromEntries(Object.entries(unwatched(objects)).map(([binding, className]) =>
        [binding, { className, useSQLite: true, ...(index ? { scriptName: GATE } : {}) }])),
      // A class that is watched is still this gate's; under this name only its own binding reaches it.
      ...(index ? {} : { additionalUnboundDurableObjects: Object.entries(objects).filter(([name]) => watch[name]).map(([, className]) => ({ className, useSQLite: true })) }),
      serviceBindings: services,
      wrappedBindings: Object.fromEntries(Object.keys(watch).map((binding) => [binding, `watched-${binding}`])),
      unsafeDirectSockets: socket(name),
    });
    const watched = Object.entries(watch).map(([binding, judge]) => ({
      name: `watched-${binding}`,
      modules: [{ type: "ESModule", path: "watched.mjs", contents: WATCHED(binding, databases[binding] ? "d1" : namespaces[binding] ? "kv" : "object") }],
      ...(databases[binding] ? { d1Databases: { inner: databases[binding] } } : {}),
      ...(namespaces[binding] ? { kvNamespaces: { inner: namespaces[binding] } } : {}),
      ...(objects[binding] ? { durableObjects: { inner: { className: objects[binding], scriptName: GATE, useSQLite: true } } } : {}),
      serviceBindings: {
        judge: typeof judge === "string" ? judge : async (request) => {
          const { Response } = await import("miniflare");
          const refusal = await judge(await request.json());
          const overloaded = refusal?.overloaded;
          const reason = overloaded ?? (typeof refusal === "string" ? refusal : undefined);
          return new Response(reason ?? null, { status: reason === undefined ? 204 : overloaded === undefined ? 503 : 529 });
        },
      },
    }));
    const further = workers.map(({ script, ...worker }) => ({
      ...shared,
      ...(script ? { modules: [{ type: "ESModule", path: `${worker.name}.mjs`, contents: script }] } : {}),
      unsafeDirectSockets: socket(worker.name),
      ...worker,
    }));
    // Reaches the stores for migrations and for the tests' own eyes, whatever is watched.
    const stores = { ...shared, name: STORES, modules: true, script: "export default {}", kvNamespaces: namespaces, d1Databases: databases };

    return {
      host: HOST,
      port: 0,
      cf: false, // otherwise Miniflare asks a server for an example
      log: new Log(LogLevel.ERROR),
      handleRuntimeStdio: (out, err) => {
        for (const stream of [out, err]) eachLine(stream, (line) => this.#log(line));
      },
      // Where `wrangler ... --local --persist-to` looks, so its commands work on a local database too.
      defaultPersistRoot: path.join(this.state, "v3"),
      workers: [...this.#gateNames().map(gate), ...further, stores, ...watched],
    };
  }

  /** Each database's own directory of migrations, in wrangler's own table, so that both know what was applied. */
  async #migrate() {
    for (const { binding, migrations_dir } of this.#config.d1_databases) {
      const dir = path.join(root, migrations_dir);
      const files = fs.existsSync(dir) ? fs.readdirSync(dir).filter((name) => name.endsWith(".sql")).sort() : [];
      if (!files.length) continue;
      const database = await this.database(binding);
      await database.prepare("CREATE TABLE IF NOT EXISTS d1_migrations(id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT UNIQUE, applied_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP NOT NULL)").run();
      const { results } = await database.prepare("SELECT name FROM d1_migrations").all();
      const applied = new Set(results.map(({ name }) => name));
      for (const name of files.filter((file) => !applied.has(file))) {
        const sql = fs.readFileSync(path.join(dir, name), "utf8");
        try {
          await database.batch([...statements(sql).map((each) => database.prepare(each)), database.prepare("INSERT INTO d1_migrations (name) VALUES (?)").bind(name)]);
        } catch (error) {
          throw new Error(`migration ${migrations_dir}/${name} on ${binding}: ${error.message}`);
        }
      }
    }
  }
}

const STORES = "stores";

/** Splits SQL into statements: at semicolons, but not inside quotes, comments or the BEGIN ... END of a trigger. */
export function statements(sql) {
  const found = [];
  let current = "";
  let depth = 0;
  for (const [token] of sql.matchAll(/--[^\n]*|\/\*[\s\S]*?\*\/|'(?:[^']|'')*'|"(?:[^"]|"")*"|`[^`]*`|\[[^\]]*\]|[A-Za-z_][A-Za-z_0-9]*|;|[\s\S]/g)) {
    if (/^(--|\/\*)/.test(token)) continue;
    if (/^create$/i.test(token) && !current.trim()) depth = 0;
    // BEGIN opens a block only in a trigger; CASE has an END of its own.
    if ((/^begin$/i.test(token) && /^\s*create\s+(temp\s+|temporary\s+)?trigger/i.test(current)) || (/^case$/i.test(token) && depth)) depth += 1;
    else if (/^end$/i.test(token) && depth) depth -= 1;
    if (token === ";" && !depth) {
      if (current.trim()) found.push(current.trim());
      current = "";
    } else current += token;
  }
  if (current.trim()) found.push(current.trim());
  return found;
}

function eachLine(stream, take) {
  let rest = "";
  stream.setEncoding("utf8").on("data", (text) => {
    const lines = (rest + text).split("\n");
    rest = lines.pop();
    for (const line of lines) if (line.trim()) take(line);
  });
}

/** Process ids of this process's living children whose command has this name. */
function childrenNamed(name) {
  return processes().filter(({ parent, comm, state }) => parent === process.pid && comm === name && state !== "Z").map(({ pid }) => pid);
}

function isAlive(pid) {
  return processes(pid).some(({ state }) => state !== "Z");
}

/** All processes, or one: from /proc, which needs no program, and elsewhere from `ps`. */
function processes(only) {
  if (!fs.existsSync("/proc/self/stat")) {
    const { stdout } = spawnSync("ps", [...(only ? ["-p", only] : ["-A"]), "-o", "pid=,ppid=,stat=,comm="], { encoding: "utf8" });
    return stdout.split("\n").filter(Boolean).map((line) => {
      const [pid, parent, stat, ...comm] = line.trim().split(/\s+/);
      return { pid: Number(pid), parent: Number(parent), state: stat[0], comm: path.basename(comm.join(" ")) };
    });
  }
  return (only ? [String(only)] : fs.readdirSync("/proc").filter((entry) => /^\d+$/.test(entry))).flatMap((entry) => {
    try {
      const [, comm, state, parent] = fs.readFileSync(`/proc/${entry}/stat`, "utf8").match(/^\d+ \((.*)\) (\S) (\d+)/s);
      return [{ pid: Number(entry), parent: Number(parent), state, comm }];
    } catch {
      return []; // it ended meanwhile
    }
  });
}

/**
 * A binding that asks before each call and tells after it. Class names are the platform's, which the Worker checks.
 * It lives in the isolate of the gate, but holds no state of it.
 */
const WATCHED = (binding, kind) => `
const ask = async (judge, phase, method, detail, message) => {
  const answer = await judge.fetch("http://judge/", { method: "POST", body: JSON.stringify({ binding: ${JSON.stringify(binding)}, phase, method, detail, message }) });
  if (answer.status >= 500) throw Object.assign(new Error(await answer.text()), { overloaded: answer.status === 529 });
};
const watch = async (judge, method, detail, call, message) => {
  await ask(judge, "before", method, detail, message);
  const result = await call();
  await ask(judge, "after", method, detail, message);
  return result;
};
class D1PreparedStatement {
  constructor(judge, inner, sql) { this.judge = judge; this.inner = inner; this.sql = sql; }
  bind(...values) { return new D1PreparedStatement(this.judge, this.inner.bind(...values), this.sql); }
  first(...a) { return watch(this.judge, "first", this.sql, () => this.inner.first(...a)); }
  run(...a) { return watch(this.judge, "run", this.sql, () => this.inner.run(...a)); }
  all(...a) { return watch(this.judge, "all", this.sql, () => this.inner.all(...a)); }
  raw(...a) { return watch(this.judge, "raw", this.sql, () => this.inner.raw(...a)); }
}
class D1Database {
  constructor(judge, inner) { this.judge = judge; this.inner = inner; }
  prepare(sql) { return new D1PreparedStatement(this.judge, this.inner.prepare(sql), sql); }
  batch(list) { return watch(this.judge, "batch", list.map((each) => each.sql).join(";"), () => this.inner.batch(list.map((each) => each.inner))); }
  exec(sql) { return watch(this.judge, "exec", sql, () => this.inner.exec(sql)); }
  withSession(...a) { return new D1Database(this.judge, this.inner.withSession(...a)); }
  getBookmark() { return this.inner.getBookmark(); }
}
class KvNamespace {
  constructor(judge, inner) { this.judge = judge; this.inner = inner; }
  get(key, ...a) { return watch(this.judge, "get", key, () => this.inner.get(key, ...a)); }
  getWithMetadata(key, ...a) { return watch(this.judge, "getWithMetadata", key, () => this.inner.getWithMetadata(key, ...a)); }
  put(key, ...a) { return watch(this.judge, "put", key, () => this.inner.put(key, ...a)); }
  delete(key, ...a) { return watch(this.judge, "delete", key, () => this.inner.delete(key, ...a)); }
  list(...a) { return watch(this.judge, "list", "", () => this.inner.list(...a)); }
}
class DurableObjectNamespace {
  constructor(judge, inner) { this.judge = judge; this.inner = inner; }
  idFromName(name) { return this.inner.idFromName(name); }
  idFromString(id) { return this.inner.idFromString(id); }
  newUniqueId(...a) { return this.inner.newUniqueId(...a); }
  jurisdiction(...a) { return new DurableObjectNamespace(this.judge, this.inner.jurisdiction(...a)); }
  getByName(name, ...a) { return this.get(this.inner.idFromName(name), ...a); }
  get(id, ...a) {
    const judge = this.judge;
    return new Proxy(this.inner.get(id, ...a), {
      get: (stub, method) => typeof stub[method] !== "function" ? stub[method]
        : (...args) => watch(judge, String(method), id.name ?? id.toString(), () => stub[method](...args), args[0]),
    });
  }
}
const kinds = { d1: D1Database, kv: KvNamespace, object: DurableObjectNamespace };
export default (env) => new kinds[${JSON.stringify(kind)}](env.judge, env.inner);
`;
