// What Tollgate's answer costs whoever gives it: hello world with the same body and headers, all but one of them made beforehand.
const headers = new Headers({
  "content-type": "application/json",
  "ratelimit-policy": '"requests";q=1000000;w=1',
  "ratelimit": '"requests";r=1999999',
  "tollgate": "",
});
const init = { headers };
let answered = 0;

export default {
  fetch() {
    answered += 1;
    headers.set("tollgate", `serial=1, age=840, tier=lease, id=req_01m7q5cqg0000000${answered}`);
    return new Response('{"origin":"demo","method":"GET","path":"/v1/feature-07","tenant":"ten_e6gywnjy000g40r4"}', init);
  },
};
