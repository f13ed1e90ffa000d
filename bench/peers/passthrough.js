// The floor of a gate before an origin: it passes everything on and decides nothing.
export default { fetch: (request, env) => env.ORIGIN.fetch(request) };
