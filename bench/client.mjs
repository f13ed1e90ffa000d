// A client that keeps a pace: requests begin when they are due, not when the one before has ended. wrk cannot do that, and
// `fetch` costs more than what it asks.

import net from "node:net";

const END = Buffer.from("\r\n\r\n");

class Connection {
  #socket;
  #rest = Buffer.alloc(0);
  #done;

  constructor(host, port) {
    this.#socket = net.connect({ host, port, noDelay: true });
    this.#socket.on("data", (chunk) => this.#take(chunk));
    this.#socket.on("error", () => this.#finish({ status: 0 }));
    this.#socket.on("close", () => this.#finish({ status: 0 }));
  }
  ask(request, done) {
    this.#done = done;
    this.#socket.write(request);
  }
  close() {
    this.#socket.destroy();
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

/**
 * Asks `path` of each of `urls` in turn, for each of `keys` at `perSecond`, evenly spread; `take(answer, millisecond)` gets each answer.
 * Resolves when `secs` are over and every answer has come.
 */
export async function pace({ urls, path, keys, perSecond, secs }, take) {
  const gates = urls.map((url) => ({ host: new URL(url).hostname, port: Number(new URL(url).port), idle: [], all: [] }));
  const requests = keys.map((key) => `GET ${path} HTTP/1.1\r\nHost: bench\r\nX-API-Key: ${key}\r\n\r\n`);
  const total = perSecond * keys.length * secs;
  const began = performance.now();
  let sent = 0, answered = 0;
  await new Promise((resolve) => {
    const timer = setInterval(() => {
      const due = Math.min(total, Math.floor(((performance.now() - began) / 1000) * perSecond * keys.length));
      for (; sent < due; sent += 1) {
        // A tenant's requests go to every gate in turn.
        const gate = gates[(sent + Math.floor(sent / keys.length)) % gates.length];
        const connection = gate.idle.pop() ?? new Connection(gate.host, gate.port);
        if (!gate.all.includes(connection)) gate.all.push(connection);
        const at = performance.now();
        connection.ask(requests[sent % keys.length], (answer) => {
          if (answer.status) gate.idle.push(connection);
          answered += 1;
          take({ ...answer, us: (performance.now() - at) * 1000 }, at - began);
        });
      }
      if (sent >= total && answered >= total) {
        clearInterval(timer);
        resolve();
      }
    }, 1);
  });
  for (const gate of gates) for (const connection of gate.all) connection.close();
}
