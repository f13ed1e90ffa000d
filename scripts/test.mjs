// `npm test`: everything that must hold before a change is merged. It sets itself up, stops at the first failure and names it.

import { performance } from "node:perf_hooks";
import { build } from "./build.mjs";
import { checkMachine, command, ensureToolchain, pinnedNode, run, say, seconds, sinceBegan, step } from "./tools.mjs";

const WASM = ["--target", "wasm32-unknown-unknown"];
const quiet = { CARGO_TERM_COLOR: "never" };
const done = [];

/** A line of the summary; `count` reads from the output what was counted. */
async function summed(title, work, count = () => "") {
  const began = performance.now();
  try {
    const output = await work();
    done.push({ title, took: seconds(began), note: count(String(output ?? "")) });
  } catch (error) {
    done.push({ title, took: seconds(began), note: "FAILED" });
    throw error;
  }
}
const check = (title, work, count) => summed(title, () => step(title, work), count);
const cargo = (title, args, { env = {}, count } = {}) => check(title, (onLine) => run("cargo", args, { env: { ...quiet, ...env }, onLine, title }), count);
const sum = (output, pattern) => [...output.matchAll(pattern)].reduce((total, [, count]) => total + Number(count), 0);

async function native() {
  await cargo("format", ["fmt", "--check", "--", "--color=never"]);
  await cargo("lints, native", ["clippy", "--locked", "--all-targets", "--", "-D", "warnings"]);
  await cargo("lints, wasm32", ["clippy", "--locked", "--lib", ...WASM, "--", "-D", "warnings"]);
  await cargo("native tests", ["test", "--locked"], { count: (output) => `${sum(output, /(\d+) passed/g)} passed` });
  await check("controls, a tenth", () => run(pinnedNode, ["tests/domain/controls/run.mjs", "--quick"]), (output) => output.trim().split("\n").at(-1));
  await cargo("documentation", ["doc", "--locked", "--no-deps", "--lib"], { env: { RUSTDOCFLAGS: "-D warnings" } });
  await cargo("documentation, wasm32", ["doc", "--locked", "--no-deps", "--lib", ...WASM], { env: { RUSTDOCFLAGS: "-D warnings" } });
}

function summary() {
  const width = Math.max(...done.map(({ title }) => title.length));
  say("\nSummary");
  for (const { title, took, note } of done) say(`  ${title.padEnd(width)}  ${took.padStart(8)}  ${note}`);
}

await command(async () => {
  checkMachine();
  try {
    // The Worker's own std compiles on one core for most of a minute; the native checks use the other.
    await ensureToolchain();
    await Promise.all([native(), summed("build", () => build({ always: true }).then(() => ""))]);

    // One file at a time: several measure time, and each has a workerd of its own.
    await check("end-to-end tests on workerd", (onLine) => run(pinnedNode, ["--test", "--test-concurrency=1", "--test-reporter=spec", "tests/e2e/*.test.mjs"], { onLine, title: "end-to-end tests" }),
      (output) => `${sum(output, /^ℹ pass (\d+)/gm)} passed`);
    await check("wrangler deploy --dry-run", () => run(pinnedNode, ["node_modules/wrangler/bin/wrangler.js", "deploy", "--dry-run", "--outdir", "build/dry-run"],
      { env: { WRANGLER_SEND_METRICS: "false", CI: "1" } }));
  } catch (error) {
    summary();
    say(`\nFailed at: ${done.find(({ note }) => note === "FAILED")?.title ?? "set-up"}, after ${sinceBegan()}`);
    throw error;
  }
  summary();
  say(`\nAll passed in ${sinceBegan()}.`);
});
