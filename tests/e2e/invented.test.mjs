// Issue 2, show 8, its counting half: an invented API key is refused with no I/O at all (G-4). The MAC inside a key says by itself
// that Tollgate made it, so whoever has no key can cause no read.

import assert from "node:assert/strict";
import { test } from "node:test";
import { figures, size, until } from "./harness.mjs";
import { ask, counter, each, random, world } from "./world.mjs";

const counted = counter("DOCUMENTS", "TENANT", "CATALOG", "CONTROL", "SHARD_GLOBAL_1");
const { local, tenant } = await world({ gates: 3, watch: counted.watch });
const { api_key } = await tenant("free");
const other = await tenant("free");

const ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
const rnd = random(8);
const letters = (count) => Array.from({ length: count }, () => ALPHABET[Math.floor(rnd() * 62)]).join("");
/** Five blocks of eleven, each below 62^11 and so 8 bytes: the first letter is small enough for most of them to fit. */
const wellFormed = (prefix) => prefix + Array.from({ length: 5 }, () => ALPHABET[Math.floor(rnd() * 21)] + letters(10)).join("");
const INVENTED = {
  "well-formed": () => wellFormed("tg_live_"),
  "well-formed, for tests": () => wellFormed("tg_test_"),
  "a real key with another MAC": () => api_key.slice(0, -11) + wellFormed("").slice(0, 11),
  "a real key with one letter changed": () => {
    const at = 8 + Math.floor(rnd() * 55);
    return api_key.slice(0, at) + ALPHABET[(ALPHABET.indexOf(api_key[at]) + 1 + Math.floor(rnd() * 60)) % 62] + api_key.slice(at + 1);
  },
  "one tenant's key with another's beginning": () => other.api_key.slice(0, 8 + 22) + api_key.slice(8 + 22),
  "a real live key as a test key": () => api_key.replace("live", "test"),
  "truncated": () => api_key.slice(0, Math.floor(rnd() * (api_key.length - 1)) + 1),
  "too long": () => api_key + letters(1 + Math.floor(rnd() * 40)),
  "random": () => letters(1 + Math.floor(rnd() * 100)),
};

test("an invented key is refused with no KV read, no Durable Object call and no query", async () => {
  // Two gates are warm: what they hold then is what a flood meets.
  for (const gate of local.gates.slice(0, 2)) await until("the gate is warm", async () => (await ask(gate, "/gate/v1/reports", { key: api_key })).status === 200);
  await new Promise((resolve) => setTimeout(resolve, 1500));
  const kinds = Object.entries(INVENTED);
  const flood = size(100_000, 5_000);
  const wrong = [];
  counted.forget();
  const began = performance.now();
  await each(flood, 32, async (at) => {
    const [what, invent] = kinds[at % kinds.length];
    const key = invent();
    // Half in each header, spread over the gate, its hostnames' paths and the API.
    const headers = at % 2 ? { "X-API-Key": key } : { Authorization: `Bearer ${key}` };
    const path = at % 5 ? "/gate/v1/reports" : ["/v1/features", "/v1/usage", "/v1/features/reports"][at % 3];
    const { status, json } = await ask(local.gates[at % 2], path, { headers });
    // A bearer that has not even a key's beginning is none, and belongs to the origin.
    const none = !(at % 2) && !/^tg_(live|test)_/.test(key);
    if (status !== 401 || json.code !== (none ? "key_missing" : "key_invalid")) wrong.push(`${what} ${key}: ${status} ${json.code}`);
  });
  const seconds = (performance.now() - began) / 1000;
  // The gates' own work for the tenant that was warm (a lease that is given back) names that tenant, and was not caused by the flood.
  const calls = counted.calls("DOCUMENTS").concat(counted.calls("TENANT"), counted.calls("CATALOG"), counted.calls("CONTROL"), counted.calls("SHARD_GLOBAL_1"));
  assert.deepEqual(wrong.slice(0, 5), []);
  assert.deepEqual(calls.map(({ binding, method, detail }) => `${binding} ${method} ${detail}`), []);
  figures({ invented_keys: flood, kv_reads: 0, object_calls: 0, invented_keys_per_second: Math.round(flood / seconds) });
});

test("nor at a gate that has read nothing yet, not even the catalog", async () => {
  counted.forget();
  for (const [what, invent] of Object.entries(INVENTED)) {
    for (const path of ["/gate/v1/reports", "/v1/features"]) {
      const { status, json } = await ask(local.gates[2], path, { key: invent() });
      assert.deepEqual([status, json.code], [401, "key_invalid"], what);
    }
  }
  assert.deepEqual(["DOCUMENTS", "TENANT", "CATALOG"].flatMap((binding) => counted.calls(binding)), []);
  assert.equal((await ask(local.gates[2], "/gate/v1/reports", { key: api_key })).status, 200);
  assert.ok(counted.calls("DOCUMENTS", "get").some(({ detail }) => detail === "catalog"), "it had not read it");
});

test("a key that is good is read for, so the counting counts", async () => {
  const third = await tenant("free");
  counted.forget();
  assert.equal((await ask(local.gates[1], "/gate/v1/reports", { key: third.api_key })).status, 200);
  assert.ok(counted.calls("DOCUMENTS", "get").length >= 1 && counted.calls("TENANT", "call").length >= 1);
});
