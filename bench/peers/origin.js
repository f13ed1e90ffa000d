// The API behind a gate.
export default { fetch: () => new Response("ok") };
