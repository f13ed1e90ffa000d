// `npm start`: from a fresh clone to a gate on http://localhost:8787 with demo data, in one command.
//
//   --fresh      start over: forget every tenant, key and count
//   --port N     serve there instead
//   --no-demo    serve without demo data
//   --state DIR  keep what it holds there, not in .tollgate/state

import fs from "node:fs";
import path from "node:path";
import { build } from "./build.mjs";
import { isFree } from "./ports.mjs";
import { Missing, checkMachine, command, has, inPinnedNode, option, say, sinceBegan, stateDir, step } from "./tools.mjs";

const port = Number(option("port") ?? 8787);
const state = path.resolve(option("state") ?? path.join(stateDir, "state"));
/** The demo's API keys: they are shown once, so what shows them again must have kept them. They end with the state. */
const demoFile = path.join(state, "demo.json");
/** There while the demo is being made: what was interrupted is begun anew, state and all. */
const halfMadeFile = path.join(state, "demo.half-made");

async function demo(local) {
  const { seed, shown } = await import("./demo.mjs");
  if (!fs.existsSync(demoFile)) {
    fs.writeFileSync(halfMadeFile, "");
    const keys = await step("demo data, through the operator API", () => seed({ url: local.url, operatorKey: local.secrets.OPERATOR_KEY }));
    fs.writeFileSync(demoFile, JSON.stringify(keys, null, 2), { mode: 0o600 });
    fs.rmSync(halfMadeFile);
  }
  return shown(local.url, JSON.parse(fs.readFileSync(demoFile, "utf8")));
}

await command(async () => {
  checkMachine();
  if (!(await isFree(port))) throw new Missing(`Port ${port} is in use. Stop what holds it, or: npm start -- --port ${port + 1}`);
  await build();
  await inPinnedNode();

  if (has("fresh") || fs.existsSync(halfMadeFile)) fs.rmSync(state, { recursive: true, force: true });
  fs.mkdirSync(state, { recursive: true });
  const { startLocal } = await import("./local.mjs");
  const local = await step("workerd and migrations", () => startLocal({ port, state, cron: true, onLog: (line) => say(`  | ${line}`) }));

  let stopping = false;
  const stop = async (code) => {
    if (stopping) return;
    stopping = true;
    await local.stop();
    process.exit(code);
  };
  for (const signal of ["SIGINT", "SIGTERM"]) process.removeAllListeners(signal).on(signal, () => stop(0));

  const { keys = [], curls = [] } = has("no-demo") ? {} : await demo(local);
  say();
  say(`Serving on ${local.url} after ${sinceBegan()}.`);
  say();
  say(`Operator key: ${local.secrets.OPERATOR_KEY}`);
  for (const { label, key } of keys) say(`${label}: ${key}`);
  for (const { says, line } of curls) say(`\n# ${says}\n${line}`);
  say();
  say(`Ctrl-C stops it; what it holds stays in ${path.relative(process.cwd(), state)}/ for the next start (npm start -- --fresh begins anew).`);

  setInterval(() => {
    if (stopping || local.isRunning()) return;
    process.stderr.write("workerd ended by itself; its last lines are above. npm start serves the same state again.\n");
    stop(1);
  }, 1000);
});
