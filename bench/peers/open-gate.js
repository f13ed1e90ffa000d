// What a gate costs that decides nothing: it reads of a request what a decision needs, and gives Tollgate's answer, with all
// headers but one made beforehand. Nothing that we tried gives it cheaper than copying from a response that is kept.
const kept = new Response(null, {
  headers: {
    "content-type": "application/json",
    "ratelimit-policy": '"requests";q=1000000;w=1',
    "ratelimit": '"requests";r=1999999',
    "tollgate": "",
  },
});
const { headers } = kept;
let answered = 0;

export default {
  fetch(request) {
    const { method, url } = request;
    const key = request.headers.get("x-api-key") ?? "", authorization = request.headers.get("authorization") ?? "";
    if (key === authorization) return new Response(null, { status: 401 });
    answered += 1;
    headers.set("tollgate", `serial=1, age=840, tier=lease, id=req_01m7q5cqg0000000${answered}`);
    return new Response(`{"origin":"demo","method":"${method}","path":"${url.slice(url.indexOf("/gate/", 8) + 5)}","tenant":"ten_e6gywnjy000g40r4"}`, kept);
  },
};
