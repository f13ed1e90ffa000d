// What every command shares: saying what is being done, running programs, and setting up a fresh machine.
//
// Only Node's own modules are used here, and nothing newer than Node 20: this runs before anything is installed. What comes
// after runs on the Node that package.json pins (`inPinnedNode`), because wrangler needs a newer one than many machines have.

import { spawn } from "node:child_process";
import { createHash } from "node:crypto";
import fs from "node:fs";
import os from "node:os";
import path from "node:path";
import { performance } from "node:perf_hooks";
import { fileURLToPath } from "node:url";

export const root = fileURLToPath(new URL("..", import.meta.url)).replace(/\/$/, "");
export const pinnedNode = path.join(root, "node_modules/node/bin/node");
/** Everything local that must survive a restart: databases, secrets, proofs. */
export const stateDir = path.join(root, ".tollgate");

/** Something the user has to do or install: printed as one line, without a stack. */
export class Missing extends Error {}
/** A program that failed. Its output has what a reader needs. */
export class Failed extends Error {
  constructor(title, output) {
    super(title);
    this.output = output;
  }
}

/** When the user's command began, whichever Node it runs in by now. */
export const beganAt = Number(process.env.TOLLGATE_BEGAN) || Date.now() - performance.now();
export const sinceBegan = () => `${((Date.now() - beganAt) / 1000).toFixed(1)} s`;

export const seconds = (since) => `${((performance.now() - since) / 1000).toFixed(1)} s`;
export const say = (line = "") => process.stdout.write(`${line}\n`);
export const has = (flag) => process.argv.includes(`--${flag}`);
export const option = (name) => {
  const at = process.argv.indexOf(`--${name}`);
  return at < 0 ? undefined : process.argv[at + 1];
};
export const isMain = (meta) => process.argv[1] && fs.realpathSync(process.argv[1]) === fileURLToPath(meta.url);

const HEARTBEAT_MS = 15_000;

/** Runs `work` under a title: one line when it begins, one when it ends, and one every 15 s with the newest line of its output. */
export async function step(title, work) {
  const began = performance.now();
  let newest = "";
  say(`  ${title} ...`);
  const heartbeat = setInterval(() => say(`  ${title}: ${seconds(began)}${newest && `, ${newest}`}`), HEARTBEAT_MS);
  try {
    const result = await work((line) => (newest = line.trim().slice(0, 100)));
    say(`  ${title}: done in ${seconds(began)}`);
    return result;
  } finally {
    clearInterval(heartbeat);
  }
}

/** What was started and still runs: it ends with this process, also when that one stops at the failure of another. */
const running = new Set();
process.on("exit", () => {
  for (const child of running) child.kill();
});
for (const signal of ["SIGINT", "SIGTERM"]) process.once(signal, () => process.exit(130));

/** Runs a program; resolves with its standard output. Both outputs are kept and shown only if it fails. */
export function run(command, args, { cwd = root, env = {}, onLine, input, show = false, title } = {}) {
  return new Promise((resolve, reject) => {
    const child = spawn(command, args, { cwd, env: { ...process.env, ...env }, stdio: [input === undefined ? "ignore" : "pipe", "pipe", "pipe"] });
    running.add(child);
    child.on("close", () => running.delete(child));
    let standard = "";
    let all = "";
    const take = (isStandard) => (chunk) => {
      const text = chunk.toString();
      if (isStandard) standard += text;
      all += text;
      if (show) process.stdout.write(text);
      const lines = text.split("\n").filter((line) => line.trim());
      if (onLine && lines.length) onLine(lines.at(-1));
    };
    child.stdout.on("data", take(true));
    child.stderr.on("data", take(false));
    if (input !== undefined) child.stdin.end(input);
    child.on("error", (error) =>
      reject(error.code === "ENOENT" ? new Missing(`\`${command}\` was not found. ${WHERE[command] ?? ""}`) : error));
    child.on("close", (code, signal) => {
      if (code === 0) resolve(standard);
      else reject(new Failed(`${title ?? [command, ...args].join(" ")}: ${signal ?? `exit code ${code}`}`, show ? "" : all));
    });
  });
}

const WHERE = {
  cargo: "Rust comes with rustup: https://rustup.rs",
  rustup: "It installs and pins the Rust toolchain: https://rustup.rs",
  npm: "It comes with Node.js 20 or newer: https://nodejs.org",
};

const onPath = (name) => (process.env.PATH ?? "").split(path.delimiter).some((dir) => {
  try {
    fs.accessSync(path.join(dir, name), fs.constants.X_OK);
    return true;
  } catch {
    return false;
  }
});

/** One clear line for each thing that only the user can install. */
export function checkMachine() {
  const [major, minor] = process.versions.node.split(".").map(Number);
  if (major < 20 || (major === 20 && minor < 11)) throw new Missing(`Node.js 20.11 or newer is needed; this is ${process.versions.node}. https://nodejs.org`);
  // rustup puts itself on the PATH of new shells only.
  const cargoBin = path.join(process.env.CARGO_HOME ?? path.join(os.homedir(), ".cargo"), "bin");
  if (!onPath("cargo") && fs.existsSync(cargoBin)) process.env.PATH = `${cargoBin}${path.delimiter}${process.env.PATH}`;
  for (const name of ["npm", "rustup", "cargo"]) if (!onPath(name)) throw new Missing(`\`${name}\` was not found. ${WHERE[name]}`);
  if (!["cc", "gcc", "clang"].some(onPath)) throw new Missing("No C compiler was found (`cc`): Rust links with it. Debian and Ubuntu: apt install build-essential; macOS: xcode-select --install");
}

export const hash = (...parts) => {
  const sum = createHash("sha256");
  for (const part of parts) sum.update(part).update("\0");
  return sum.digest("hex").slice(0, 32);
};

/** A hash over the names and contents of files, and of all files under directories. */
export function hashOf(paths, extra = "") {
  const sum = createHash("sha256").update(extra);
  const visit = (file) => {
    const stat = fs.statSync(file, { throwIfNoEntry: false });
    if (!stat) return;
    if (stat.isDirectory()) for (const name of fs.readdirSync(file).sort()) visit(path.join(file, name));
    else sum.update(path.relative(root, file)).update("\0").update(fs.readFileSync(file)).update("\0");
  };
  for (const each of paths) visit(path.resolve(root, each));
  return sum.digest("hex").slice(0, 32);
}

/** Does `work` only when `key` is new or an output is not as it was left; remembers both in `stamp` when it succeeded. */
export async function unlessDone(stamp, key, outputs, work) {
  const file = path.resolve(root, stamp);
  const done = fs.existsSync(file) && fs.readFileSync(file, "utf8") === [key, ...outputs.map(lookOf)].join("\n");
  if (done) return false;
  fs.rmSync(file, { force: true });
  await work();
  fs.mkdirSync(path.dirname(file), { recursive: true });
  fs.writeFileSync(file, [key, ...outputs.map(lookOf)].join("\n"));
  return true;
}

/** How a file looks from outside: reading a hundred megabytes to see that nothing happened would take longer than all else. */
function lookOf(output) {
  const stat = fs.statSync(path.resolve(root, output), { throwIfNoEntry: false });
  return stat ? `${stat.size} ${stat.mtimeMs}` : "missing";
}

/** The Rust toolchain that rust-toolchain.toml names, with its components; once, before cargo runs twice side by side. */
async function installToolchain() {
  const toml = fs.readFileSync(path.join(root, "rust-toolchain.toml"), "utf8");
  const list = (key) => [...(toml.match(new RegExp(`^${key}\\s*=\\s*\\[(.*)\\]`, "m"))?.[1] ?? "").matchAll(/"([^"]+)"/g)].map((match) => match[1]);
  const channel = toml.match(/^channel\s*=\s*"([^"]+)"/m)[1];
  const toolchains = path.join(process.env.RUSTUP_HOME ?? path.join(os.homedir(), ".rustup"), "toolchains");
  const installed = fs.existsSync(toolchains) && fs.readdirSync(toolchains).some((name) => {
    const has = (file) => fs.existsSync(path.join(toolchains, name, file));
    return name.startsWith(`${channel}-`) && has("lib/rustlib/src/rust/library") && has("bin/cargo-clippy") && has("bin/rustfmt") &&
      list("targets").every((target) => has(`lib/rustlib/${target}/lib`));
  });
  if (installed) return;
  await step(`Rust ${channel}`, (onLine) => run("rustup", ["toolchain", "install", channel, "--profile", "minimal", "--no-self-update",
    ...list("components").flatMap((name) => ["-c", name]), ...list("targets").flatMap((name) => ["-t", name])], { onLine }));
}

let toolchain;
export const ensureToolchain = () => (toolchain ??= installToolchain());

let packages;
/** node_modules as package-lock.json says. */
export const ensurePackages = () => (packages ??= unlessDone("node_modules/.installed", hashOf(["package-lock.json"]), [pinnedNode], () =>
  step("npm packages", async (onLine) => {
    await run("npm", ["ci", "--no-audit", "--no-fund", "--loglevel=error"], { onLine });
    // npm may be configured not to run the packages' own install scripts: three of ours fetch the binary for this machine.
    if (!fs.existsSync(pinnedNode)) await run("npm", ["rebuild", "node", "esbuild", "workerd", "--ignore-scripts=false"], { onLine });
    if (!fs.existsSync(pinnedNode)) throw new Missing("npm did not install the pinned Node.js: its install scripts are switched off (npm config get ignore-scripts)");
  })));

/** Runs this same command again in the pinned Node and ends with its exit code. Returns only when already in it. */
export async function inPinnedNode() {
  if (fs.realpathSync(process.execPath) === fs.realpathSync(pinnedNode)) return;
  const child = spawn(pinnedNode, [...process.execArgv, ...process.argv.slice(1)], { stdio: "inherit", env: { ...process.env, TOLLGATE_BEGAN: String(beganAt) } });
  // Ctrl-C reaches the whole foreground group; only the child acts on it, and this process ends with it.
  process.removeAllListeners("SIGINT").removeAllListeners("SIGTERM").on("SIGINT", () => {});
  for (const signal of ["SIGTERM", "SIGHUP"]) process.on(signal, () => child.kill(signal));
  const code = await new Promise((resolve) => child.on("close", (status, signal) => resolve(status ?? (signal === "SIGINT" ? 130 : 143))));
  process.exit(code);
}

/** Runs a command's body: failures end it with one line (and the failed program's output), never with a stack of our own. */
export async function command(body) {
  try {
    await body();
  } catch (error) {
    if (error instanceof Failed && error.output) process.stderr.write(`\n${error.output.trimEnd()}\n`);
    process.stderr.write(`\n${error instanceof Missing || error instanceof Failed ? error.message : error?.stack ?? error}\n`);
    process.exit(1);
  }
}
