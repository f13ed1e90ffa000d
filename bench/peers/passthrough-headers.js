// What passing on costs whoever changes headers: the key taken out, the headers set that Tollgate sets, all but one on each side made
// beforehand. It decides nothing and signs nothing.
const forOrigin = Object.entries({
  "x-tollgate-tenant": "ten_e6gywnjy000g40r4",
  "x-tollgate-plan": "bench",
  "x-tollgate-key": "key_e6gywnjy000g40r4",
  "x-tollgate-mode": "live",
  "x-tollgate-features": Array.from({ length: 24 }, (_, number) => `feature-${String(number).padStart(2, "0")}`).join(","),
  "x-tollgate-timestamp": "1795000000000",
  "x-tollgate-signature": `v1=${"0".repeat(64)}`,
});
const forClient = Object.entries({ "ratelimit-policy": '"requests";q=1000000;w=1', "ratelimit": '"requests";r=1999999' });
let passed = 0;

export default {
  async fetch(request, env) {
    passed += 1;
    const headers = new Headers(request.headers);
    headers.delete("x-api-key");
    for (const [name, value] of forOrigin) headers.set(name, value);
    headers.set("x-tollgate-request", `req_01m7q5cqg0000000${passed}`);
    const answer = await env.ORIGIN.fetch(request.url, { method: request.method, headers, redirect: "manual" });
    const response = new Response(answer.body, answer);
    for (const [name, value] of forClient) response.headers.set(name, value);
    response.headers.set("tollgate", `serial=1, age=840, tier=lease, id=req_01m7q5cqg0000000${passed}`);
    return response;
  },
};
