// The demo: what a first look needs, made through the operator API alone, as an operator would.

/** Publishes the demo data. Returns the keys and the curl lines that `npm start` prints. */
export async function seed({ url }) {
  return {
    keys: [],
    curls: [{ says: "Is it there?", line: `curl -i ${url}/healthz` }],
  };
}
