// The long proofs, in the order in which `npm run prove` runs them: the same tests that `npm test` runs small, in full.
//
// `name` is a file name; `says` is one sentence for the report; `node` as a command is the pinned one; `env` is what makes it
// long. Lines that a proof prints and that are JSON objects are its figures (`figures` in tests/e2e/harness.mjs). `of` is what it
// is a proof of, where that is not everything: its result holds until one of these changes.

import fs from "node:fs";
import path from "node:path";
import { root } from "../scripts/tools.mjs";

/** A module of src/domain and those that it uses, in whatever way they name each other. */
function withUsed(module, known = new Set()) {
  const file = [`src/domain/${module}.rs`, `src/domain/${module}`].find((file) => fs.existsSync(path.join(root, file)));
  if (file === undefined || known.has(file)) return known;
  known.add(file);
  const files = file.endsWith(".rs") ? [file] : fs.readdirSync(path.join(root, file)).map((name) => path.join(file, name));
  const text = files.map((file) => fs.readFileSync(path.join(root, file), "utf8")).join("\n");
  for (const [, used] of text.matchAll(/\b(?:crate::domain|super)::(\w+)/g)) withUsed(used, known);
  return known;
}

/** The lease protocol needs no Worker, and no file outside of these is in it. */
const RULES = [...withUsed("limit"), "tests/domain/limits", "Cargo.toml", "Cargo.lock", "rust-toolchain.toml"];

export const proofs = [
  {
    name: "schedules",
    says: "The lease protocol over 10,000 seeded schedules: loss, duplication, reordering, crashes, drift, policy changes; every interval checked.",
    command: ["cargo", "test", "--locked", "--test", "limits", "--", "--nocapture", "schedules::"],
    of: RULES,
    env: { SEEDS: "10000" },
  },
  {
    name: "adversaries",
    says: "The schedules that chance does not find, each by hand; large costs do get in; what is admitted, and for how many calls.",
    command: ["cargo", "test", "--locked", "--test", "limits", "--", "--nocapture", "adversaries::", "liveness::", "figures::"],
    of: RULES,
  },
  {
    name: "model",
    says: "Every schedule there is of a small world: two isolates, a limiter, its child, eight tokens.",
    command: ["cargo", "test", "--locked", "--test", "limits", "--", "--nocapture", "model::"],
    of: RULES,
    env: { MODEL: "full" },
  },
  {
    name: "controls",
    says: "Each rule of the lease protocol broken on purpose; the named test must notice.",
    command: ["node", "tests/domain/controls/run.mjs"],
    of: [...RULES, "tests/domain/controls"],
  },
  {
    name: "end-to-end",
    says: "Every end-to-end test, on real workerd.",
    command: ["node", "--test", "--test-reporter=spec", "--test-concurrency=1", "tests/e2e/*.test.mjs"],
    env: { TOLLGATE_FULL: "1" },
  },
];
