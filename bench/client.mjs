// A client that keeps a pace: requests are due at their time, whether those before have ended or not, as wrk2 does it. wrk cannot
// do that, and `fetch` costs more than what it asks.

import net from "node:net";

const END = Buffer.from("\r\n\r\n");
/** To each gate. A request that is due while all are busy waits its turn: more of them would make a slow gate slower. */
const CONNECTIONS = 32;

class Connection {
  #address;
  #socket;
  #rest;
  #done;

  constructor(host, port) {
    this.#address = { host, port, noDelay: true };
    this.#open();
  }
  ask(request, done) {
    this.#done = done;
    this.#socket.write(request);
  }
  close() {
    this.#socket.removeAllListeners("close").destroy();
  }
  #open() {
    this.#rest = Buffer.alloc(0);
    this.#socket = net.connect(this.#address);
    this.#socket.on("data", (chunk) => this.#take(chunk));
    this.#socket.on("error", () => {}); // "close" follows
    this.#socket.on("close", () => {
      this.#open();
      this.#finish({ status: 0 });
    });
  }
  #finish(answer) {
    const done = this.#done;
    this.#done = undefined;
    done?.(answer);
  }
  #take(chunk) {
    this.#rest = this.#rest.length ? Buffer.concat([this.#rest, chunk]) : chunk;
    const end = this.#rest.indexOf(END);
    if (end < 0) return;
    const head = this.#rest.latin1Slice(0, end).toLowerCase();
    const length = Number(head.match(/content-length: (\d+)/)?.[1] ?? 0);
    if (this.#rest.length < end + 4 + length) return;
    this.#rest = this.#rest.subarray(end + 4 + length);
    this.#finish({ status: Number(head.slice(9, 12)), tier: head.match(/tier=(\w+)/)?.[1] });
  }
}

/** A gate's connections, and the requests that wait for one. */
class Gate {
  #idle;
  #all;
  #waiting = [];

  constructor(url) {
    const { hostname, port } = new URL(url);
    this.#all = Array.from({ length: CONNECTIONS }, () => new Connection(hostname, Number(port)));
    this.#idle = [...this.#all];
  }
  ask(request, done) {
    this.#waiting.push({ request, done });
    if (this.#idle.length) this.#next(this.#idle.pop());
  }
  close() {
    for (const connection of this.#all) connection.close();
  }
  #next(connection) {
    const due = this.#waiting.shift();
    if (!due) return void this.#idle.push(connection);
    connection.ask(due.request, (answer) => {
      due.done(answer);
      this.#next(connection);
    });
  }
}

/**
 * Asks `path` of each of `urls` in turn, for each of `keys` at `perSecond`, evenly spread; `take(answer, millisecond)` gets each answer
 * and when its request was due. Resolves when `secs` are over and every answer has come.
 */
export async function pace({ urls, path, keys, perSecond, secs }, take) {
  const gates = urls.map((url) => new Gate(url));
  const requests = keys.map((key) => `GET ${path} HTTP/1.1\r\nHost: bench\r\nX-API-Key: ${key}\r\n\r\n`);
  const total = perSecond * keys.length * secs;
  const began = performance.now();
  let sent = 0, answered = 0;
  await new Promise((resolve) => {
    const timer = setInterval(() => {
      const at = performance.now() - began;
      const due = Math.min(total, Math.floor((at / 1000) * perSecond * keys.length));
      for (; sent < due; sent += 1) {
        // A tenant's requests go to every gate in turn.
        const gate = gates[(sent + Math.floor(sent / keys.length)) % gates.length];
        gate.ask(requests[sent % keys.length], (answer) => {
          answered += 1;
          take(answer, at);
        });
      }
      if (sent >= total && answered >= total) {
        clearInterval(timer);
        resolve();
      }
    }, 1);
  });
  for (const gate of gates) gate.close();
}
