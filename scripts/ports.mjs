// Ports for what runs on this machine: one that stays free while a Worker is stopped and started again on it.

import net from "node:net";

/** The loopback address on which everything local listens. */
export const HOST = "127.0.0.1";

// Systems lend ports from 32768 (Linux) or 49152 up to whoever connects out. One of those would be free when asked for and lent
// before it is used: with thousands of connections beside it that happens.
const FIRST = 10_240;
const AFTER = 32_768;

/** A free port, outside those that are lent to outgoing connections. */
export async function freePort() {
  for (;;) {
    const port = FIRST + Math.floor(Math.random() * (AFTER - FIRST));
    if (await isFree(port)) return port;
  }
}

/** Whether something may listen on it now. */
export function isFree(port) {
  return new Promise((resolve, reject) => {
    const server = net.createServer();
    server.on("error", (error) => (error.code === "EADDRINUSE" || error.code === "EACCES" ? resolve(false) : reject(error)));
    server.listen(port, HOST, () => server.close(() => resolve(true)));
  });
}
