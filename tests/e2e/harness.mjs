// What every end-to-end test stands on: the built Worker in real workerd, a client for its operator, and a size.

import { after } from "node:test";
import { startLocal } from "../../scripts/local.mjs";

/** Starts the Worker for one test or one file (options: `startLocal` in scripts/local.mjs) and stops it afterwards. */
export async function worker(options = {}) {
  const local = await startLocal(options);
  after(() => local.stop());
  return local;
}

/** `npm run prove` runs the full size of a test, `npm test` a small one. */
export const size = (full, small) => (process.env.TOLLGATE_FULL ? full : small);

/** What a proof's report shows of this test. */
export const figures = (values) => console.log(JSON.stringify(values));

/** A caller of the operator API: `const { status, body } = await operator(local)("PUT", "/v1/admin/...", { ... })`. */
export const operator = (local) => async (method, path, body, headers = {}) => {
  const response = await fetch(`${local.url}${path}`, {
    method,
    headers: {
      Authorization: `Bearer ${local.secrets.OPERATOR_KEY}`,
      ...(body === undefined ? {} : { "Content-Type": "application/json" }),
      ...(method === "GET" ? {} : { "Idempotency-Key": crypto.randomUUID() }),
      ...headers,
    },
    ...(body === undefined ? {} : { body: JSON.stringify(body) }),
  });
  const text = await response.text();
  return { status: response.status, headers: response.headers, body: response.headers.get("content-type")?.includes("json") ? JSON.parse(text) : text };
};

/** Waits until `condition` holds, and fails with `what` if it does not within `withinMs`. */
export async function until(what, condition, withinMs = 5000) {
  for (const end = Date.now() + withinMs; ; await new Promise((resolve) => setTimeout(resolve, 20))) {
    const answer = await condition();
    if (answer) return answer;
    if (Date.now() > end) throw new Error(`not within ${withinMs} ms: ${what}`);
  }
}
