// Load on a gate, and what may be concluded from it. A connection is a bare socket, so that the client is not what is measured.

import net from "node:net";
import { performance } from "node:perf_hooks";

/**
 * One keep-alive connection; one request at a time. An answer is `{ sent, received, status, head, body }`, the times in ms of
 * this process's monotonic clock. A request whose answer broke off has the status 0: what became of it is not known.
 */
export class Connection {
  #port;
  #socket;
  #waiting;
  #read = "";

  constructor(url) {
    this.#port = Number(new URL(url).port);
  }

  send(path, key, { method = "GET", body = "" } = {}) {
    if (this.#waiting) throw new Error("a connection has one request at a time");
    this.#socket ??= this.#open();
    return new Promise((resolve) => {
      this.#waiting = { resolve, sent: performance.now() };
      this.#read = "";
      this.#socket.write(`${method} ${path} HTTP/1.1\r\nHost: localhost:${this.#port}\r\nX-API-Key: ${key}\r\n${
        method === "GET" ? "" : `Content-Type: application/json\r\nContent-Length: ${Buffer.byteLength(body)}\r\n`}\r\n${body}`);
    });
  }

  close() {
    this.#socket?.destroy();
  }

  #open() {
    const socket = net.connect({ port: this.#port, host: "127.0.0.1", noDelay: true });
    socket.setEncoding("latin1");
    socket.on("data", (text) => {
      this.#read += text;
      this.#finish(false);
    });
    socket.on("error", () => {});
    socket.on("close", () => {
      if (this.#socket === socket) this.#socket = undefined;
      this.#finish(true);
    });
    return socket;
  }

  #finish(closed) {
    if (!this.#waiting) return;
    const end = this.#read.indexOf("\r\n\r\n");
    const head = end < 0 ? "" : this.#read.slice(0, end);
    const body = end < 0 ? "" : this.#read.slice(end + 4);
    const length = /\r\ncontent-length: *(\d+)/i.exec(head);
    const whole = end >= 0 && (length ? body.length >= Number(length[1]) : /\r\ntransfer-encoding: *chunked/i.test(head) && body.endsWith("0\r\n\r\n"));
    if (!whole && !closed) return;
    const { resolve, sent } = this.#waiting;
    this.#waiting = undefined;
    resolve({ sent, received: performance.now(), status: whole ? Number(head.slice(9, 12)) : 0, head, body });
  }
}

export const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, Math.max(0, ms)));

/**
 * `clients` clients, each on a connection of its own, spread over `gates`, together send `perSecond` requests for `ms`, each at
 * its time or, when the answer before is late, as soon as it can. `request(n)` gives the path, key and further options of the
 * n-th request. Answers are in the order in which they came, each with its `n`.
 */
export async function load({ gates, clients, perSecond, ms, request }) {
  const answers = [];
  const began = performance.now();
  let n = 0;
  await Promise.all(Array.from({ length: clients }, async (_, client) => {
    const connection = new Connection(gates[client % gates.length]);
    const every = (1000 * clients) / perSecond;
    for (let due = began + (client * every) / clients; due < began + ms; due = Math.max(due + every, performance.now() - every)) {
      await sleep(due - performance.now());
      if (performance.now() >= began + ms) break;
      const asked = { n: n++ };
      const { path, key, ...options } = request(asked.n, client);
      answers.push(Object.assign(asked, { path, key }, await connection.send(path, key, options)));
    }
    connection.close();
  }));
  return answers;
}

/** `count` requests at once, each on a connection of its own, already open. */
export async function atOnce({ gates, count, path, key, ...options }) {
  const connections = Array.from({ length: count }, (_, at) => new Connection(gates[at % gates.length]));
  await Promise.all(connections.map((connection) => connection.send("/healthz", "")));
  const answers = await Promise.all(connections.map((connection) => connection.send(path, key, options)));
  for (const connection of connections) connection.close();
  return answers;
}

/** How often each status came. */
export function statuses(answers) {
  const counts = {};
  for (const { status } of answers) counts[status] = (counts[status] ?? 0) + 1;
  return counts;
}

// limits.md: the drift of clocks, the lag of a Worker's clock, the time for which an ADMIT is good.
const RHO = 0.01;
const DELTA_MS = 250;
const TAKE_MS = 250;

/**
 * The contract over every window, exactly: the most by which any window [s, t] holds more than it may; at most 0 is kept.
 *
 * An admission happened between its sending and its receiving. So a window certainly holds those sent at s or later and received
 * at t or before; a window that begins at a sending and ends at a receiving is the worst of its kind. In the order of receiving,
 * a tree over all beginnings holds `units admitted since s + r * s`, and its root the greatest of them: O(n log n) for all n^2.
 */
export function excess(admitted, { rate, burst }) {
  if (!admitted.length) return -burst;
  const perMs = (rate / 1000) * (1 + RHO);
  const allowed = burst + (rate / 1000) * (DELTA_MS + TAKE_MS + DELTA_MS);
  const begins = admitted.map(({ sent }) => sent).sort((a, b) => a - b);
  const leaves = 2 ** Math.ceil(Math.log2(begins.length));
  const best = new Float64Array(2 * leaves).fill(-Infinity);
  const added = new Float64Array(2 * leaves);
  /** A window may begin here from now on; nothing that is counted was sent since. */
  const begin = (at) => {
    best[leaves + at] = begins[at] * perMs;
    for (let node = (leaves + at) >> 1; node; node >>= 1) best[node] = Math.max(best[2 * node], best[2 * node + 1]) + added[node];
  };
  /** Adds to the first `count` leaves below `node`, which has `size`. */
  const add = (node, size, count, units) => {
    if (count <= 0) return;
    if (count >= size) {
      best[node] += units;
      added[node] += units;
      return;
    }
    add(2 * node, size / 2, count, units);
    add(2 * node + 1, size / 2, count - size / 2, units);
    best[node] = Math.max(best[2 * node], best[2 * node + 1]) + added[node];
  };
  const upTo = (time) => {
    let [low, high] = [0, begins.length];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (begins[middle] <= time) low = middle + 1;
      else high = middle;
    }
    return low;
  };
  let worst = -Infinity;
  let begun = 0;
  for (const { sent, received, units = 1 } of [...admitted].sort((a, b) => a.received - b.received)) {
    while (begun < begins.length && begins[begun] <= received) begin(begun++);
    add(1, leaves, upTo(sent), units);
    worst = Math.max(worst, best[1] - perMs * received - allowed);
  }
  return worst;
}
