import assert from "node:assert/strict";
import { test } from "node:test";
import { worker } from "./harness.mjs";

const text = async (url) => {
  const response = await fetch(url);
  return `${response.status} ${await response.text()}`;
};

test("the built Worker answers in workerd", async () => {
  const local = await worker();
  assert.equal(await text(`${local.url}/healthz`), "200 ok");
});

test("every store is bound", async () => {
  const local = await worker();
  assert.equal(await text(`${local.url}/placeholder/d1`), '200 {"one":1}');
  await local.scheduled();
  assert.equal(await text(`${local.url}/placeholder/kv`), "200 scheduled");
  assert.equal(await text(`${local.url}/placeholder/object`), "200 1");
});

test("a panic fails its own request only", async () => {
  const local = await worker();
  assert.equal(await text(`${local.url}/placeholder/object`), "200 1");
  const [panicked, ...others] = await Promise.all(["panic", "kv", "object", "d1"].map((name) => text(`${local.url}/placeholder/${name}`)));
  assert.match(panicked, /^500/);
  assert.deepEqual(others, ["200 ", "200 2", '200 {"one":1}']);
  assert.match(local.logs(), /injected/);
});

test("gates share objects, KV and D1 but not an isolate", async () => {
  const local = await worker({ gates: 4 });
  assert.equal(local.gates.length, 4);
  const answers = [];
  for (const gate of local.gates) answers.push(await text(`${gate}/placeholder/object`));
  assert.deepEqual(answers, ["200 1", "200 2", "200 3", "200 4"]);
});

test("state survives a SIGKILL", async () => {
  const local = await worker();
  assert.equal(await text(`${local.url}/placeholder/object`), "200 1");
  await local.crash();
  await assert.rejects(fetch(local.url));
  await local.restart();
  assert.equal(await text(`${local.url}/placeholder/object`), "200 2");
});

test("a watched binding is seen, counted and refused", async () => {
  const calls = [];
  let refusing = false;
  const see = (call) => {
    calls.push(`${call.phase} ${call.binding} ${call.method} ${call.detail}`);
    return refusing && call.phase === "before" ? "refused by the test" : undefined;
  };
  const local = await worker({ gates: 2, watch: { CONTROL: see, DOCUMENTS: see, TENANT: see } });
  for (const gate of local.gates) {
    assert.equal(await text(`${gate}/placeholder/d1`), '200 {"one":1}');
    assert.equal(await text(`${gate}/placeholder/kv`), "200 ");
  }
  assert.equal(await text(`${local.gates[0]}/placeholder/object`), "200 1");
  assert.equal(await text(`${local.gates[1]}/placeholder/object`), "200 2");
  assert.deepEqual(calls.slice(0, 4), ["before CONTROL first SELECT 1 AS one", "after CONTROL first SELECT 1 AS one", "before DOCUMENTS get placeholder", "after DOCUMENTS get placeholder"]);
  assert.equal(calls.length, 12);
  refusing = true;
  assert.match(await text(`${local.url}/placeholder/d1`), /^500/);
  refusing = false;
  assert.equal(await text(`${local.url}/placeholder/d1`), '200 {"one":1}');
});

test("workerd is killed at the moment a test chooses", async () => {
  let armed = true;
  const local = await worker({
    watch: {
      DOCUMENTS: async ({ phase, method }) => {
        if (armed && phase === "after" && method === "put") await local.crash();
      },
    },
  });
  await assert.rejects(local.scheduled());
  armed = false;
  await local.restart();
  assert.equal(await text(`${local.url}/placeholder/kv`), "200 scheduled");
});

test("a further worker has its own address", async () => {
  const script = "export default { fetch: (request) => new Response(new URL(request.url).pathname) };";
  const local = await worker({ workers: [{ name: "origin", script }] });
  assert.equal(await text(`${local.urls.origin}/hello`), "200 /hello");
});

test("a watch on a binding that does not exist is refused", async () => {
  await assert.rejects(worker({ watch: { NOTHING: () => {} } }), /NOTHING is no KV/);
});
