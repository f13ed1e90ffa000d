// `npm run bench`: Tollgate beside its peers on one workerd (bench/run.mjs). `npm run bench:core`: the decision alone, in V8 on
// the shipped module (bench/core.mjs). Sets up what they need; what else is on the command line is theirs.

import fs from "node:fs";
import path from "node:path";
import { spawn } from "node:child_process";
import { build } from "./build.mjs";
import { Missing, checkMachine, command, has, hashOf, inPinnedNode, pinnedNode, root, run, step, unlessDone } from "./tools.mjs";

await command(async () => {
  checkMachine();
  const program = has("core") ? "bench/core.mjs" : "bench/run.mjs";
  if (!fs.existsSync(path.join(root, program))) throw new Missing(`${program} does not exist yet`);
  await build();
  await inPinnedNode();
  // The peers are dependencies of bench/ alone: nobody who only starts or tests waits for them.
  if (fs.existsSync(path.join(root, "bench/package-lock.json"))) {
    await unlessDone("bench/node_modules/.installed", hashOf(["bench/package-lock.json"]), [], () =>
      step("npm packages of the peers", (onLine) => run("npm", ["ci", "--no-audit", "--no-fund", "--loglevel=error"], { cwd: path.join(root, "bench"), onLine })));
  }
  const child = spawn(pinnedNode, [program, ...process.argv.slice(2).filter((word) => word !== "--core")], { cwd: root, stdio: "inherit" });
  process.exitCode = await new Promise((resolve) => child.on("close", (code) => resolve(code ?? 1)));
});
