// The floor: what a Worker costs that does nothing.
export default { fetch: () => new Response("ok") };
