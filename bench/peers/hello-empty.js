// The floor without a body: what a body costs whoever writes one is the difference.
export default { fetch: () => new Response(null) };
