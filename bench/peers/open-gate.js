// What a gate costs that decides nothing: it reads of a request what a decision needs, and gives Tollgate's answer, one and the same
// with a header set anew. Nothing that we tried gives it cheaper.
const answer = new Response(null, {
  headers: {
    "ratelimit-policy": '"requests";q=1000000;w=1',
    "ratelimit": '"requests";r=1999999',
    "tollgate": "",
  },
});
const { headers } = answer;
let answered = 0;

export default {
  fetch(request) {
    const { method, url } = request;
    const key = request.headers.get("x-api-key") ?? "", authorization = request.headers.get("authorization") ?? "";
    if (key === authorization || method === url) return new Response(null, { status: 401 });
    answered += 1;
    headers.set("tollgate", `serial=1, age=840, tier=lease, id=req_01m7q5cqg0000000${answered}`);
    return answer;
  },
};
