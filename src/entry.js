// The door. It reads from a request what a decision needs, makes one call into Rust, and acts on the verdict. No rule is here.
//
// What an exported Rust function may rely on: nothing that it is told. These functions take the place of the platform's own
// arguments and hold no authority; only the handlers at the end are reachable from outside.
import { DurableObject } from "cloudflare:workers";
import * as tollgate from "../build/glue/index.js";

const state = tollgate.__worker_init_state();

// Of a panic's stack the first ten are what panics; build/functions.txt names them all.
Error.stackTraceLimit = 30;

/** Does what Rust says, a line each: the verb, then what it needs. src/wire/verdict.rs writes it and explains it. */
function act(verdict, request, env, ctx, atOnce = false) {
  if (verdict.startsWith("renew\n")) {
    const end = verdict.indexOf("\n", 6);
    // First the answer: whatever becomes of the renewal, what was to be kept is kept.
    const response = act(verdict.slice(end + 1), request, env, ctx, atOnce);
    ctx.waitUntil(tollgate.renew(verdict.slice(6, end), env, Date.now()));
    return response;
  }
  if (verdict.startsWith("answer\n")) return answer(verdict, atOnce);
  if (verdict.startsWith("forward\n")) return forward(verdict.split("\n"), request, env, ctx);
  return tollgate.api(request, env, Date.now()).then((verdict) => act(verdict, request, env, ctx));
}

/**
 * Answers without their bodies, by their place, for `new Response` to copy: setting four headers takes a tenth of the time that a
 * Worker has for a request, and copying them from a response takes the least. All but the last two headers hardly ever change, so
 * Rust says what to keep, and then only where it is. What is kept is shared by all whose answers are alike, and near for that.
 */
const kept = [];

/** A place is two characters, of six bits each. What is not to be kept has none. */
const place = (text, at) => (text[at] === "-" ? undefined : ((text.charCodeAt(at) - 48) << 6) | (text.charCodeAt(at + 1) - 48));

function answer(verdict, atOnce) {
  const bodyEnd = verdict.indexOf("\n", 7), valueEnd = verdict.indexOf("\n", bodyEnd + 1), end = verdict.indexOf("\n", valueEnd + 1);
  const like = verdict.length > end + 3 ? headed(verdict, end + 1) : kept[place(verdict, end + 1)];
  const { response, headers } = like;
  headers.set(like.name, verdict.slice(bodyEnd + 1, valueEnd));
  const left = verdict.slice(valueEnd + 1, end);
  if (left !== like.left) headers.set(like.nameOfLeft, (like.left = left));
  // Without a body it is that very response. The platform sends what a handler returns before any other JavaScript runs; what it gets
  // from a promise it sends later, when the headers may be another answer's.
  if (bodyEnd === 7 && atOnce) return response;
  // Where no body may be, not even an empty one may.
  return new Response(verdict.slice(7, bodyEnd) || null, response);
}

/** An answer without its body, by its head. */
function headed(verdict, from) {
  const [, status, ...lines] = verdict.slice(from).split("\n");
  const [name, nameOfLeft] = lines.splice(-2);
  const headers = new Headers();
  setAll(headers, lines, []);
  const response = new Response(null, { status: +status, headers });
  const like = { response, headers: response.headers, name, nameOfLeft, left: "" };
  const at = place(verdict, from);
  if (at !== undefined) kept[at] = like;
  return like;
}

/**
 * Which headers Rust wants deleted, by the names that were there: clients send the same ones again and again. `forEach`, because
 * an iterator of the platform's makes an object for each name.
 */
const judged = new Map();
const MOST_JUDGED = 256;
const LONGEST_JUDGED = 1_024;

function stripped(headers) {
  let names = "";
  headers.forEach((_, name) => {
    names += names === "" ? name : `\n${name}`;
  });
  const known = judged.get(names);
  if (known !== undefined) return known;
  const connection = headers.get("connection");
  const authorization = headers.get("authorization");
  const refused = tollgate.stripped(names, connection ?? "", authorization ?? "").split("\n").filter((name) => name !== "");
  // With these two it depends on their values as well.
  if (connection === null && authorization === null && names.length <= LONGEST_JUDGED) {
    if (judged.size === MOST_JUDGED) judged.clear();
    judged.set(names, refused);
  }
  return refused;
}

/**
 * Headers of what is passed on, by their place: names and values in turn, then the names of those whose values are other ones each
 * time. Rust says them once.
 */
const callers = [], clients = [];

function keep(headers, at, said) {
  if (said.length === 0) return headers[at];
  if (at !== undefined) headers[at] = said;
  return said;
}

function setAll(headers, said, values) {
  const same = said.length - values.length;
  for (let at = 0; at < same; at += 2) headers.set(said[at], said[at + 1]);
  for (let at = 0; at < values.length; at += 1) if (values[at] !== "") headers.set(said[same + at], values[at]);
}

/** Sends an admitted request on, streaming both ways, and releases the answer when its use is recorded as its meter demands. */
async function forward(lines, request, env, ctx) {
  const [, handle, release, target, url, callerAt] = lines;
  const said = lines[9] ?? "";
  const headers = new Headers(request.headers);
  for (const name of stripped(headers)) headers.delete(name);
  if (request.headers.get("upgrade")?.toLowerCase() === "websocket") headers.set("upgrade", "websocket");
  let client;
  if (callerAt !== undefined) {
    const end = lines.indexOf("", 12);
    client = keep(clients, place(lines[11], 0), lines.slice(12, end < 0 ? lines.length : end));
    setAll(headers, keep(callers, place(callerAt, 0), end < 0 ? [] : lines.slice(end + 1)), lines.slice(6, 9));
  }
  const recorded = release === "record" ? tollgate.record(handle, said, env) : undefined;
  // A body of GET or HEAD means nothing (RFC 9110, 9.3.1), and the platform sends none.
  const body = request.method === "GET" || request.method === "HEAD" ? undefined : request.body;
  let answer;
  try {
    // The platform makes a request of these; of a request it would make another one, and copy its headers again.
    const init = { method: request.method, headers, body, redirect: "manual" };
    answer = await (target === "" ? fetch(url, init) : env[target.slice("service:".length)].fetch(url, init));
  } catch (error) {
    console.error(`origin: ${error}`);
  }
  const settled = await (recorded ?? (release === "settle" ? tollgate.settle(handle, answer?.status ?? 0, said, env) : undefined));
  if (settled !== undefined) return act(settled, request, env, ctx);
  if (answer === undefined) return act(tollgate.unreachable(said, Date.now()), request, env, ctx);
  const response = answer.status === 101
    ? new Response(null, { status: 101, headers: answer.headers, webSocket: answer.webSocket })
    : new Response(answer.body, answer);
  if (client !== undefined) setAll(response.headers, client, lines.slice(9, 11));
  return response;
}

/** A request that Rust broke off is answered with a problem like any other; the platform would say 500 and no more, or hang up. */
function brokenOff(error) {
  console.error(error);
  desk = undefined;
  return answer(tollgate.broken_off(Date.now()));
}

const encoder = new TextEncoder(), decoder = new TextDecoder();

/**
 * The desk on which `warm` and the door hand each other texts (src/edge/door.rs), as this instance of the module has it. When memory
 * grows it is empty, and is laid anew.
 */
let desk, instance;
/** Its first so many bytes, by how many they are: making a view costs nearly as much as decoding it. */
let views;
const MOST_VIEWED = 512;

function lay(bytes) {
  instance = state.instanceId;
  desk = tollgate.desk(bytes);
  views = [];
}

const view = (bytes) => (bytes < MOST_VIEWED ? (views[bytes] ??= desk.subarray(0, bytes)) : desk.subarray(0, bytes));

/** What a desk holds at least; few requests and verdicts are longer. */
const LEAST_DESK = 4_096;
/** How many bytes of UTF-8 a character of JavaScript takes at most. */
const BYTES = 3;

function warm(head) {
  if (desk === undefined || instance !== state.instanceId) lay(LEAST_DESK);
  let { read, written } = encoder.encodeInto(head, desk);
  if (read < head.length) {
    lay(Math.max(LEAST_DESK, head.length * BYTES));
    ({ written } = encoder.encodeInto(head, desk));
  }
  const length = tollgate.warm(written, Date.now());
  if (length > desk.length) lay(Math.max(LEAST_DESK, length));
  return length === 0 ? undefined : decoder.decode(view(length));
}

function decide(request, env, ctx) {
  const headers = request.headers;
  const head = `${request.method}\n${request.url}\n${headers.get("x-api-key") ?? ""}\n${headers.get("authorization") ?? ""}`;
  const verdict = warm(head);
  if (verdict === undefined) return decideLater(head, false, request, env, ctx);
  return verdict.startsWith("read\n") ? decideRead(head, verdict.slice(5), request, env, ctx) : act(verdict, request, env, ctx, true);
}

/** What waits for one document: a promise that goes through Rust costs 7 us more, a third of the whole decision. */
async function decideRead(head, name, request, env, ctx) {
  // KV that does not answer is asked again, and what it says then is looked at.
  const text = await env.DOCUMENTS.get(name).catch(() => undefined);
  const verdict = text ? tollgate.read(head, name, text, Date.now()) : undefined;
  return verdict === undefined ? decideLater(head, text === null, request, env, ctx) : act(verdict, request, env, ctx);
}

/** What waits for more. */
async function decideLater(head, unseen, request, env, ctx) {
  const { headers } = request;
  const preflight = headers.has("access-control-request-method");
  return act(await tollgate.gate(head, headers.get("idempotency-key") ?? "", preflight, unseen, env, Date.now()), request, env, ctx);
}

export default {
  fetch(request, env, ctx) {
    try {
      const response = decide(request, env, ctx);
      return response instanceof Promise ? response.catch(brokenOff) : response;
    } catch (error) {
      return brokenOff(error);
    }
  },
  scheduled(event, env, ctx) {
    ctx.waitUntil(tollgate.sweep(env, Date.now()));
  },
};

/** After how long an alarm that has not rung is set again. */
const OVERDUE_MS = 2_000;

/** After how long an alarm that failed rings again. */
const FAILED_MS = 10_000;

/** A Durable Object around a Rust shell: a message is one transaction, and the alarm follows what the shell has to do. */
class Shell extends DurableObject {
  #make;
  #shell;
  #instance;
  #alarm;

  constructor(ctx, env, make) {
    super(ctx, env);
    this.#make = make;
  }

  /** The shell, made anew when wasm itself was: nothing of an old instance may be held. */
  get shell() {
    if (this.#instance !== state.instanceId) {
      this.#shell = this.#make(this.ctx, this.env);
      this.#instance = state.instanceId;
    }
    return this.#shell;
  }

  async call(message) {
    const answer = this.#step("call", message);
    // What only the parent's limiter can decide is asked there, between two transactions.
    if (!answer.startsWith("above\n")) return answer;
    return this.#step("conclude", await this.shell.above(answer.slice(6)));
  }

  #step(verb, message) {
    const answer = this.#transact(verb, message);
    this.#wake();
    return answer;
  }

  #transact(verb, message) {
    const shell = this.shell;
    let answer;
    try {
      answer = this.ctx.storage.transactionSync(() => shell[verb](message, Date.now()));
    } catch (error) {
      shell.forget(); // the rows are what they were before
      throw error;
    }
    const upward = shell.upward?.();
    if (upward !== undefined) this.ctx.waitUntil(shell.above(upward).then((said) => this.#step("conclude", said)));
    return answer;
  }

  async alarm() {
    this.#alarm = undefined;
    try {
      if (this.shell.tick) this.#transact("tick", "");
      await this.shell.alarm();
      this.#wake();
    } catch (error) {
      // The platform repeats an alarm that throws for two minutes or so, and then never again: this one does not throw.
      console.error(error);
      this.#alarm = undefined;
      this.ctx.storage.setAlarm(Date.now() + FAILED_MS);
    }
  }

  #wake() {
    const due = this.shell.due();
    const now = Date.now();
    // An alarm that should have rung a while ago is not to be relied on.
    if (due === undefined || (this.#alarm !== undefined && this.#alarm <= due && this.#alarm + OVERDUE_MS > now)) return;
    // Later than now: an alarm that is set anew for the very millisecond it is just ringing for is forgotten by workerd.
    this.#alarm = Math.max(due, now + 1);
    this.ctx.storage.setAlarm(this.#alarm);
  }
}

export class TenantObject extends Shell {
  constructor(ctx, env) {
    super(ctx, env, (ctx, env) => new tollgate.TenantShell(ctx, env));
  }
}

export class CatalogObject extends Shell {
  constructor(ctx, env) {
    super(ctx, env, (ctx, env) => new tollgate.CatalogShell(ctx, env));
  }
}
