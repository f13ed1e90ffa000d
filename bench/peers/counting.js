// Around a peer, in the counting run alone: which calls to the platform a request waits for, and which it leaves behind.
// Requests come one at a time there, so a call belongs to the request that is being served.
let calls = [];

const counted = (kind, call) => {
  const entry = { kind, settled: false };
  calls.push(entry);
  const result = call();
  Promise.resolve(result).finally(() => (entry.settled = true)).catch(() => {});
  return result;
};

const methods = (target, names, kind) => new Proxy(target, {
  get: (inner, name) => {
    const value = inner[name];
    if (typeof value !== "function") return value;
    return names.includes(name) ? (...args) => counted(kind, () => inner[name](...args)) : value.bind(inner);
  },
});

const statement = (inner) => new Proxy(methods(inner, ["first", "run", "all", "raw"], "D1"), {
  get: (proxied, name) => (name === "bind" ? (...args) => statement(inner.bind(...args)) : proxied[name]),
});

const object = (inner) => new Proxy(inner, {
  get: (stub, name) => (typeof stub[name] === "function" ? (...args) => counted("DO", () => stub[name](...args)) : stub[name]),
});

const around = {
  KV: (inner) => methods(inner, ["get", "getWithMetadata", "put"], "KV"),
  DB: (inner) => new Proxy(inner, { get: (db, name) => (name === "prepare" ? (sql) => statement(db.prepare(sql)) : db[name].bind(db)) }),
  OBJECT: (inner) => new Proxy(inner, {
    get: (names, name) => (name === "get" || name === "getByName" ? (...args) => object(names[name](...args)) : names[name].bind(names)),
  }),
  ORIGIN: (inner) => methods(inner, ["fetch"], "origin"),
};

const tally = (entries) => {
  const counts = {};
  for (const { kind } of entries) counts[kind] = (counts[kind] ?? 0) + 1;
  return counts;
};

/** The peer, whose answers say in `x-hops` what they waited for and what they left behind. */
export const counting = (peer) => ({
  async fetch(request, env, ctx) {
    calls = [];
    const bindings = Object.fromEntries(Object.entries(env).map(([name, inner]) => [name, around[name]?.(inner) ?? inner]));
    const answer = await peer.fetch(request, bindings, ctx);
    const mine = calls;
    await null; // what settled with the answer is marked in the next turn
    const hops = { awaited: tally(mine.filter((call) => call.settled)), behind: tally(mine.filter((call) => !call.settled)) };
    const response = new Response(answer.body, answer);
    response.headers.set("x-hops", JSON.stringify(hops));
    return response;
  },
});
