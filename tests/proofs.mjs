// The long proofs, in the order in which `npm run prove` runs them: the same tests that `npm test` runs small, in full.
//
// `name` is a file name; `says` is one sentence for the report; `node` as a command is the pinned one; `env` is what makes it
// long. Lines that a proof prints and that are JSON objects are its figures (`figures` in tests/e2e/harness.mjs).

export const proofs = [
  {
    name: "end-to-end",
    says: "Every end-to-end test, on real workerd.",
    command: ["node", "--test", "--test-reporter=spec", "--test-concurrency=1", "tests/e2e/*.test.mjs"],
    env: { TOLLGATE_FULL: "1" },
  },
];
