// Show 1, what `npm start` promises once everything is installed (G-2): three curl lines that do what they say, state that survives a
// restart, and a demo that was interrupted begun anew.

import assert from "node:assert/strict";
import { spawn, spawnSync } from "node:child_process";
import fs from "node:fs";
import os from "node:os";
import path from "node:path";
import { after, test } from "node:test";
import { freePort } from "../../scripts/ports.mjs";
import { root } from "../../scripts/tools.mjs";
import { until } from "./harness.mjs";

const dir = fs.mkdtempSync(path.join(os.tmpdir(), "tollgate-start-"));
const state = path.join(dir, "state");
after(() => fs.rmSync(dir, { recursive: true, force: true }));

/** Runs `npm start` until it serves, lets `then` look at what it printed, and stops it as Ctrl-C does. */
async function started(then) {
  const port = await freePort();
  const child = spawn(process.execPath, [path.join(root, "scripts/start.mjs"), "--state", state, "--port", port], { cwd: root, stdio: ["ignore", "pipe", "pipe"] });
  const ended = new Promise((resolve) => child.on("exit", resolve));
  let printed = "";
  for (const stream of [child.stdout, child.stderr]) stream.on("data", (text) => { printed += text; });
  try {
    await until("it serves", () => printed.includes("Ctrl-C stops it") || child.exitCode !== null, 60_000);
    const curls = printed.match(/^curl .*$/gm) ?? [];
    assert.equal(curls.length, 3, printed);
    for (const line of curls) assert.ok(line.includes(`localhost:${port}/`), line);
    // Pasted, as they are.
    await then(curls.map((line) => () => spawnSync("sh", ["-c", line], { encoding: "utf8" }).stdout), printed.match(/tg_live_\w+/)[0]);
  } finally {
    child.kill("SIGINT");
    assert.equal(await ended, 0, printed);
  }
}

test("its three lines are allowed, refused for the plan, and refused for the rate; all of it is there after a restart, at any port", { skip: spawnSync("curl", ["--version"]).error && "needs curl" }, async () => {
  let first;
  await started(async ([allowed, plan, often], key) => {
    first = key;
    assert.match(allowed(), /^HTTP\/1\.1 200 [\s\S]*"origin":"demo"/);
    assert.match(plan(), /^HTTP\/1\.1 403 [\s\S]*"code":"feature_not_available"[\s\S]*"current_plan":"Free"/);
    const statuses = often().trim().split(" ");
    assert.deepEqual([statuses.length, [...new Set(statuses)].sort()], [20, ["200", "429"]]);
  });
  await started(async ([allowed], key) => {
    assert.equal(key, first);
    await until("the rate has come back", () => /^HTTP\/1\.1 200 /.test(allowed()));
  });
});

test("a demo that was interrupted is made anew", async () => {
  fs.rmSync(path.join(state, "demo.json"), { force: true });
  fs.writeFileSync(path.join(state, "demo.half-made"), "");
  await started(async ([allowed]) => assert.match(allowed(), /^HTTP\/1\.1 200 /));
});
