// What reaches an origin, and what comes back from it (G-9, G-11): the gate takes away what it must, adds its own signed words,
// and otherwise streams both ways untouched.

import assert from "node:assert/strict";
import { createHash, createHmac, randomBytes, timingSafeEqual } from "node:crypto";
import fs from "node:fs";
import http from "node:http";
import { test } from "node:test";
import { figures, until } from "./harness.mjs";
import { ROUTES, ask, each, told, world } from "./world.mjs";

const everything = [...ROUTES, { path: "/exact/{*rest}", meter: "jobs" }];
const { local, op, tenant } = await world({
  workers: [
    { name: "broken", script: "export default { fetch() { throw new Error('nobody is there'); } };" },
    { name: "asking", script: "export default { fetch: (request, env) => env.GATE.fetch(request) };", serviceBindings: { GATE: "tollgate" } },
  ],
  services: { BROKEN: "broken" },
  origins: {
    default: { target: { service: "ECHO" }, unmatched: "deny", routes: everything },
    hosted: { target: { service: "ECHO" }, hosts: ["api.example.com"], unmatched: "allow", preflights: "pass" },
    built_in: { target: "demo", hosts: ["demo.example.com"], unmatched: "allow", preflights: "pass" },
    none: { target: "none", hosts: ["asked.example.com"], unmatched: "deny", preflights: "pass", routes: everything },
    gated: { target: { service: "ECHO" }, hosts: ["gated.example.com"], unmatched: "allow", preflights: "gate" },
    down: { target: { service: "BROKEN" }, hosts: ["down.example.com"], unmatched: "allow" },
    unbound: { target: { service: "NO_SUCH_BINDING" }, hosts: ["unbound.example.com"], unmatched: "allow" },
  },
});
const { id, api_key: key } = await tenant("pro");
const arrived = (answer) => Object.fromEntries(answer.json.headers);
const echo = (path, more = {}) => ask(local.url, `/gate/v1/echo${path}`, { key, ...more });

test("the prefix is stripped, and method, path, query and body arrive as they were sent", async () => {
  for (const [method, body] of [["GET"], ["DELETE"], ["POST", "{\"a\":1}"], ["PUT", "x".repeat(100_000)], ["PATCH", "p"], ["OPTIONS"]]) {
    const { status, json } = await echo("/a%20b/c?q=%2f..%2f&q=2&empty=", { method, body });
    assert.equal(status, 200, method);
    assert.deepEqual([json.method, json.url, json.body ?? ""], [method, "https://origin/v1/echo/a%20b/c?q=%2f..%2f&q=2&empty=", body ?? ""]);
  }
});

test("a URL of any length arrives whole, and so do short ones between", async () => {
  // 4,096 bytes are what the door and the gate first lay ready for each other.
  for (const length of [...Array.from({ length: 17 }, (_, step) => 3_000 + 100 * step), 12_000, 30_000]) {
    for (const query of [`q=${"y".repeat(length)}`, "q=short"]) {
      const { status, json } = await echo(`/long?${query}`);
      assert.deepEqual([status, json.url], [200, `https://origin/v1/echo/long?${query}`], `${length} characters`);
    }
  }
});

test("a GET that has a body is passed on, not answered as if the origin were down", async () => {
  const { status, json } = await echo("/search", { method: "GET", body: "{\"query\":1}" });
  assert.equal(status, 200, JSON.stringify(json));
});

test("an API key never arrives, in whichever header it came", async () => {
  for (const headers of [{ "X-API-Key": key }, { "x-api-key": key }, { Authorization: `Bearer ${key}` }, { "X-API-Key": key, Authorization: `Bearer ${key}` }, { authorization: `BEARER   ${key}` }, ...["Token ", "Bearer\t", "", "Bearer other, Bearer "].map((scheme) => ({ "X-API-Key": key, Authorization: `${scheme}${key}` }))]) {
    const answer = await ask(local.url, "/gate/v1/echo/x", { headers });
    assert.equal(answer.status, 200, JSON.stringify(headers));
    assert.ok(!answer.text.includes(key) && !answer.text.includes(key.slice(20)), answer.text);
  }
});

test("an Authorization of the origin's own passes beside the key", async () => {
  assert.equal(arrived(await echo("/x", { headers: { Authorization: "Bearer of-the-origin" } })).authorization, "Bearer of-the-origin");
  assert.equal(arrived(await echo("/x", { headers: { Authorization: "Basic dXNlcjpwYXNz" } })).authorization, "Basic dXNlcjpwYXNz");
});

const SIGNED = ["tenant", "plan", "key", "mode", "features", "timestamp", "request"];
/** The lines that an origin verifies, of a request as it arrived, and whether its signature is one of such lines. */
const signed = (json) => {
  const headers = Object.fromEntries(json.headers);
  const lines = ["tollgate-v1", ...SIGNED.map((name) => headers[`x-tollgate-${name}`]), json.method, new URL(json.url).pathname];
  const sign = (of) => `v1=${createHmac("sha256", Buffer.from(local.secrets.ORIGIN_KEY, "base64url")).update(of.join("\n")).digest("hex")}`;
  return { lines, verifies: (of) => timingSafeEqual(Buffer.from(sign(of)), Buffer.from(headers["x-tollgate-signature"])) };
};

test("the origin is told who calls, under a signature that verifies and that no change survives", async () => {
  const before = Date.now();
  const { json } = await echo("/signed/path?not=signed", { method: "POST", body: "x" });
  const { lines, verifies } = signed(json);
  assert.ok(verifies(lines), JSON.stringify(json.headers));
  for (const at of lines.keys()) assert.ok(!verifies(lines.with(at, `${lines[at]}x`)), `line ${at}`);
  assert.deepEqual([lines[1], lines[2], lines[4], lines[5]], [id, "pro", "live", "analytics,branding,exports,reports"]);
  assert.match(lines[3], /^key_/);
  assert.ok(Number(lines[6]) >= before - 5 && Number(lines[6]) <= Date.now() + 5);
  assert.match(lines[7], /^req_/);
});

/** Waits until analytics is refused. The gate hears of it from the limiter, which only reports asks: a lease lasts 5 s. */
const refused = ({ api_key }) => until("the override is heard of", async () => {
  await ask(local.url, "/gate/v1/reports", { key: api_key });
  return (await ask(local.url, "/gate/v1/analytics", { key: api_key })).status === 403;
}, 12_000);

test("callers that come again and again, mixed, arrive each under their own name, and as they are by then", async () => {
  await op("POST", "/plans/slow/versions", { title: "Slow", features: { reports: true }, limits: { calls: { meter: "calls", rate: { units: 77_777, per_ms: 1000, burst: 1_000_000 } } } });
  const [one, other] = [await tenant("pro"), await tenant("slow")];
  const more = await Promise.all(["live", "test"].map((mode) => op("POST", `/tenants/${one.id}/keys`, { name: `a ${mode} one`, mode })));
  const features = { pro: "analytics,branding,exports,reports", slow: "branding,reports" };
  const callers = [...more.map(({ id: keyId, api_key, mode }) => ({ key: api_key, told: [one.id, "pro", keyId, mode] })), ...await Promise.all([["pro", one], ["slow", other]].map(async ([plan, made]) => {
    const { data } = await op("GET", `/tenants/${made.id}/keys`);
    return { key: made.api_key, told: [made.id, plan, data.find(({ name }) => !/^a /.test(name)).id, "live"] };
  }))];
  const come = (rounds) => each(rounds * callers.length, 8, async (at) => {
    const { key, told: [...said] } = callers[(at * 7) % callers.length];
    const answer = await ask(local.url, "/gate/v1/reports", { key });
    assert.equal(answer.status, 200, answer.text);
    const { lines, verifies } = signed(answer.json);
    assert.deepEqual(lines.slice(1, 6), [...said, features[said[1]]]);
    assert.ok(verifies(lines), answer.text);
    assert.equal(lines[7], told(answer).id);
    assert.match(answer.headers["ratelimit-policy"], said[1] === "slow" ? /q=77777;/ : /q=1000000;/);
  });
  await come(50);
  await op("PUT", `/tenants/${one.id}/overrides/analytics`, { value: false });
  await refused(one);
  features.pro = "branding,exports,reports";
  await come(50);
});

test("what a client sends under the gate's names never arrives, in any spelling", async () => {
  const names = ["tenant", "plan", "key", "mode", "features", "timestamp", "request", "signature", "anything"];
  const spell = [(n) => `X-Tollgate-${n}`, (n) => `x_tollgate_${n}`, (n) => `X-TOLLGATE_${n.toUpperCase()}`, (n) => `x.tollgate.${n}`, (n) => `Tollgate-${n}`, (n) => `x!tollgate~${n}`];
  const headers = { Tollgate: "forged", X_Forwarded_For: "forged", "X-Forwarded-Host": "forged", "CF-Connecting-IP": "forged", "X-Original-URL": "/forged", x_rewrite_url: "/forged", "X-HTTP-Method-Override": "forged", x_api_key: "forged", "Proxy-Authorization": "forged", Forwarded: "for=forged" };
  for (const name of names) for (const spelling of spell) headers[spelling(name)] = `forged-${name}`;
  const answer = await echo("/x", { headers });
  assert.equal(answer.status, 200, answer.text);
  assert.ok(!answer.text.includes("forged"), answer.text);
  const ours = answer.json.headers.map(([name]) => name).filter((name) => /tollgate/.test(name)).sort();
  assert.deepEqual(ours, names.filter((name) => name !== "anything").map((name) => `x-tollgate-${name}`).sort());
});

test("headers that Connection names do not arrive, and it cannot have the gate's own dropped", async () => {
  const answer = await echo("/x", { headers: { Connection: "close, X-Secret, x-tollgate-tenant, X-Tollgate-Signature", "X-Secret": "hop", "X-Kept": "end to end" } });
  const headers = arrived(answer);
  assert.equal(headers["x-secret"], undefined);
  assert.equal(headers["x-kept"], "end to end");
  assert.equal(headers["x-tollgate-tenant"], id);
  assert.match(headers["x-tollgate-signature"], /^v1=/);
  // The same names again: what Connection lists is another matter each time.
  const other = arrived(await echo("/x", { headers: { Connection: "close, X-Kept", "X-Secret": "hop", "X-Kept": "end to end" } }));
  assert.deepEqual([other["x-secret"], other["x-kept"]], ["hop", undefined]);
});

test("an origin's own words under the gate's names do not reach the client; its cookies do, one by one", async () => {
  const answer = await ask(local.url, "/gate/special/headers", { key });
  assert.equal(told(answer).forged, undefined);
  assert.match(answer.headers.tollgate, /^serial=\d+, age=\d+, tier=\w+, id=req_\w+$/);
  assert.deepEqual(answer.headers["set-cookie"], ["a=1", "b=2"]);
  assert.equal(answer.headers["x-kept"], "1");
});

test("HEAD is asked as HEAD and answered without a body", async () => {
  const answer = await echo("/x", { method: "HEAD" });
  assert.deepEqual([answer.status, answer.text], [200, ""]);
  assert.ok(answer.headers.tollgate);
});

test("redirects are handed to the client, not followed", async () => {
  for (const status of [301, 302, 303, 307, 308]) {
    const answer = await ask(local.url, `/gate/special/status?is=${status}`, { key });
    assert.deepEqual([answer.status, answer.headers.location], [status, "/elsewhere"]);
  }
});

test("every other status passes, those without a body too", async () => {
  for (const status of [200, 201, 204, 206, 304, 400, 401, 403, 404, 410, 418, 429, 500, 502, 503]) {
    const answer = await ask(local.url, `/gate/special/status?is=${status}`, { key });
    assert.equal(answer.status, status);
    assert.equal(answer.headers["x-origin"], "yes");
    assert.equal(answer.text, [204, 304].includes(status) ? "" : `said ${status}`);
  }
});

test("a gate hostname gates every path of its own, whatever looks like a prefix there", async () => {
  const host = "api.example.com";
  const answer = await ask(local.url, "/any/path?x=1", { key, host });
  assert.deepEqual([answer.status, answer.json.url], [200, "https://origin/any/path?x=1"]);
  assert.equal((await ask(local.url, "/gate/v1/x", { key, host })).json.url, "https://origin/gate/v1/x");
  assert.equal((await ask(local.url, "/healthz", { key, host })).json.origin, "echo", "no path of Tollgate's own is there");
  assert.equal((await ask(local.url, "/v1/admin/catalog", { key, host })).json.origin, "echo");
  for (const spelled of ["API.Example.COM", "api.example.com:1234", "api.example.com."]) {
    const { status, json } = await ask(local.url, "/any", { host: spelled });
    assert.ok(status === 401 || status === 404, `${spelled}: ${status}`);
    assert.notEqual(json?.origin, "echo");
  }
  assert.equal((await ask(local.url, "/any", { key, host: "unknown.example.com" })).status, 404);
});

test("a CORS preflight passes without a key where the origin says so, and needs one elsewhere", async () => {
  const headers = { Origin: "https://app.example.com", "Access-Control-Request-Method": "POST", "X-Tollgate-Tenant": "forged" };
  const passed = await ask(local.url, "/v1/x", { method: "OPTIONS", headers, host: "api.example.com" });
  assert.deepEqual([passed.status, passed.json.method, passed.json.url], [200, "OPTIONS", "https://origin/v1/x"]);
  assert.equal(arrived(passed)["x-tollgate-tenant"], undefined, "nobody is named");
  assert.equal((await ask(local.url, "/v1/x", { method: "OPTIONS", headers, host: "gated.example.com" })).status, 401);
  const built = await ask(local.url, "/v1/x", { method: "OPTIONS", headers, host: "demo.example.com" });
  const of = ["access-control-allow-origin", "access-control-allow-headers", "tollgate", "ratelimit"].map((name) => built.headers[name]);
  assert.deepEqual([built.status, built.text, ...of], [200, "", "*", "*", undefined, undefined], "the built-in origin says so itself");
  const plain = await ask(local.url, "/v1/x", { method: "OPTIONS", host: "api.example.com" });
  assert.equal(plain.status, 401, "an OPTIONS that is no preflight is a request like any other");
});

test("without a target, what is admitted is answered with 200 and no body, each request with its own words", async () => {
  const asked = (path, { by = local.url, ...more } = {}) => ask(by, path, { host: "asked.example.com", key, ...more });
  const [one, other] = [await tenant("pro"), await tenant("pro")];
  // Another version of their document, so that their answers differ while their headers are the same.
  await asked("/v1/analytics", { key: other.api_key });
  await op("PUT", `/tenants/${other.id}/overrides/analytics`, { value: false });
  await refused(other);
  const serials = new Map();
  for (const { api_key } of [one, other]) serials.set(api_key, told(await asked("/v1/reports", { key: api_key })).serial);
  assert.equal(new Set(serials.values()).size, 2);
  const ids = new Set();
  await each(4_000, 64, async (at) => {
    const caller = [one, other][at % 2].api_key;
    // Over HTTP, and as another Worker asks: within one process, where nothing is written out.
    const answer = await asked("/v1/reports", { key: caller, by: [local.url, local.urls.asking][(at >> 1) % 2] });
    const { "content-length": length, "content-type": type, ratelimit } = answer.headers;
    assert.deepEqual([answer.status, answer.text, length, type], [200, "", "0", undefined]);
    assert.match(ratelimit, /^"calls";r=\d+/);
    assert.equal(told(answer).serial, serials.get(caller));
    ids.add(told(answer).id);
  });
  assert.equal(ids.size, 4_000);
  for (const [path, more, status] of [["/exact/x", { method: "POST" }, 200], ["/v1/x", { method: "OPTIONS", headers: { "Access-Control-Request-Method": "POST" } }, 200], ["/v1/reports", { key: "tg_live_no" }, 401], ["/nothing", {}, 403]]) {
    const answer = await asked(path, more);
    assert.deepEqual([answer.status, answer.text === ""], [status, status === 200], path);
  }
});

test("an origin that fails or is not bound is a 502 with the gate's own problem", async () => {
  for (const host of ["down.example.com", "unbound.example.com"]) {
    const answer = await ask(local.url, "/x", { key, host });
    assert.deepEqual([answer.status, answer.json?.code, answer.headers["content-type"]], [502, "origin_unreachable", "application/problem+json"], host);
    assert.equal(answer.headers["cache-control"], "no-store");
    assert.equal(told(answer).id, answer.json.request_id);
    assert.match(answer.headers.tollgate, /^serial=\d+, age=\d+, tier=isolate, id=req_\w+$/);
  }
});

test("a request streams up and its answer down: the first chunk is back before the body is complete", async () => {
  const { hostname, port } = new URL(local.url);
  for (const path of ["/gate/special/pipe", "/gate/exact/pipe"]) {
    const request = http.request({ hostname, port, path, method: "POST", headers: { "X-API-Key": key, "Transfer-Encoding": "chunked" } });
    let seen = "";
    const ended = new Promise((resolve, reject) => request.on("error", reject).on("response", (response) => response.on("data", (chunk) => { seen += chunk; }).on("end", resolve)));
    request.write("first ");
    await until("the first chunk is back", () => seen === "first ");
    request.write("second ");
    await until("the second chunk is back", () => seen === "first second ");
    request.end("last");
    await ended;
    assert.equal(seen, "first second last");
  }
});

test("server-sent events arrive one by one", async () => {
  const { hostname, port } = new URL(local.url);
  const times = [];
  await new Promise((resolve, reject) => http.get({ hostname, port, path: "/gate/special/events", headers: { "X-API-Key": key } }, (response) => {
    assert.equal(response.headers["content-type"], "text/event-stream");
    response.on("data", () => times.push(performance.now())).on("end", resolve);
  }).on("error", reject));
  assert.equal(times.length, 3);
  assert.ok(times[1] - times[0] > 150 && times[2] - times[1] > 150, times.join());
});

test("bodies far larger than a buffer pass both ways, and the Worker does not grow by them", async () => {
  const bytes = 100 << 20;
  // What workerd holds, in KB; only Linux tells.
  const memory = () => Number(fs.existsSync(`/proc/${local.pid}/status`) && fs.readFileSync(`/proc/${local.pid}/status`, "utf8").match(/VmRSS:\s+(\d+)/)[1]);
  const before = memory();
  let most = before;
  const watch = setInterval(() => { most = Math.max(most, memory()); }, 50);
  const { hostname, port } = new URL(local.url);
  const counted = await new Promise((resolve, reject) => {
    const request = http.request({ hostname, port, path: "/gate/special/count", method: "POST", headers: { "X-API-Key": key, "Content-Length": bytes } }, (response) => {
      let text = "";
      response.on("data", (chunk) => { text += chunk; }).on("end", () => resolve(JSON.parse(text)));
    }).on("error", reject);
    const chunk = Buffer.alloc(1 << 20);
    let sent = 0;
    const more = () => {
      while (sent < bytes) {
        sent += chunk.length;
        if (!request.write(chunk)) return request.once("drain", more);
      }
      request.end();
    };
    more();
  });
  assert.equal(counted.bytes, bytes);
  const flooded = await new Promise((resolve, reject) => http.get({ hostname, port, path: `/gate/special/flood?bytes=${bytes}`, headers: { "X-API-Key": key } }, (response) => {
    let got = 0;
    response.on("data", (chunk) => { got += chunk.length; }).on("end", () => resolve(got)).on("error", reject);
  }).on("error", reject));
  clearInterval(watch);
  assert.equal(flooded, bytes);
  const grew = Math.round((most - before) / 1024);
  // An echo of both bodies would be 200 MB; buffers and what no collector has looked at yet are less.
  assert.ok(grew < 80, `workerd grew by ${grew} MB`);
  figures({ streamed_mb_each_way: bytes / 1048576, workerd_grew_mb: grew });
});

test("a WebSocket passes, with who calls in its first request, and frames go both ways", async () => {
  for (const upgrade of ["websocket", "WebSocket"]) {
    const socket = await webSocket("/gate/v1/echo/socket", { Upgrade: upgrade, "X-API-Key": key, "X-Tollgate-Tenant": "forged" });
    const hello = JSON.parse(await socket.next());
    const headers = Object.fromEntries(hello.headers);
    assert.equal(hello.url, "https://origin/v1/echo/socket");
    assert.equal(headers["x-tollgate-tenant"], id);
    assert.equal(headers["x-api-key"], undefined);
    socket.send("there");
    assert.equal(await socket.next(), "there");
    socket.send("and back");
    assert.equal(await socket.next(), "and back");
    socket.close();
  }
  await assert.rejects(webSocket("/gate/v1/echo/socket", { Upgrade: "websocket" }), /401/);
});

/** A WebSocket by hand: Node's own client can send no headers. */
function webSocket(path, headers) {
  const { hostname, port } = new URL(local.url);
  const nonce = randomBytes(16).toString("base64");
  return new Promise((resolve, reject) => {
    const request = http.request({ hostname, port, path, headers: { Connection: "Upgrade", "Sec-WebSocket-Version": "13", "Sec-WebSocket-Key": nonce, ...headers } });
    request.on("error", reject).on("response", (response) => { response.resume(); reject(new Error(`answered ${response.statusCode}`)); });
    request.on("upgrade", (response, socket, head) => {
      assert.equal(response.headers["sec-websocket-accept"], createHash("sha1").update(`${nonce}258EAFA5-E914-47DA-95CA-C5AB0DC85B11`).digest("base64"));
      let buffer = head;
      const messages = [], waiting = [];
      const take = (chunk) => {
        buffer = Buffer.concat([buffer, chunk]);
        for (;;) {
          if (buffer.length < 2) return;
          const short = buffer[1] & 127;
          const start = short === 126 ? 4 : 2;
          const length = short === 126 && buffer.length >= 4 ? buffer.readUInt16BE(2) : short;
          if (buffer.length < start + length) return;
          const text = buffer.subarray(start, start + length).toString();
          buffer = buffer.subarray(start + length);
          if (waiting.length) waiting.shift()(text);
          else messages.push(text);
        }
      };
      socket.on("data", take).on("error", () => {});
      take(Buffer.alloc(0));
      resolve({
        next: () => (messages.length ? Promise.resolve(messages.shift()) : new Promise((next) => waiting.push(next))),
        send: (text) => {
          const mask = randomBytes(4), data = Buffer.from(text);
          socket.write(Buffer.concat([Buffer.from([0x81, 0x80 | data.length]), mask, data.map((byte, at) => byte ^ mask[at % 4])]));
        },
        close: () => socket.destroy(),
      });
    });
    request.end();
  });
}
