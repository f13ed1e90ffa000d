// What every end-to-end test stands on: the built Worker in real workerd, and a client.

import { after } from "node:test";
import { startLocal } from "../../scripts/local.mjs";

/** Starts the Worker for the tests of one file (options: `startLocal` in scripts/local.mjs) and stops it after them. */
export async function worker(options = {}) {
  const local = await startLocal(options);
  after(() => local.stop());
  return local;
}
