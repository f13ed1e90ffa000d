// `npm run prove`: the long proofs in full. Hours; interrupted, it goes on where it stopped.
//
//   --only NAME   that proof alone (may be repeated)
//   --fresh       forget earlier results
//   --list        what there is
//
// A proof is a program (tests/proofs.mjs lists them). Exit code 0 means proved. Lines of its output that are JSON objects are its
// figures. A result holds for exactly the files it was made from and the command that made it: it is kept in
// .tollgate/proofs and made again when any of them changed. The report goes to reports/PROOFS-YYYY-MM-DD.md, with the
// names of those that were chosen behind the date.

import { spawnSync } from "node:child_process";
import fs from "node:fs";
import os from "node:os";
import path from "node:path";
import { performance } from "node:perf_hooks";
import { build } from "./build.mjs";
import { Missing, checkMachine, command, has, hash, hashOf, inPinnedNode, pinnedNode, root, run, say, sinceBegan, stateDir, step } from "./tools.mjs";

const resultsDir = path.join(stateDir, "proofs");
const reportsDir = path.join(root, "reports");
/** What a proof can depend on, if it does not say less itself; a changed page or report does not undo it. */
const SOURCES = ["src", "schema", "tests", "bench", "scripts", "Cargo.toml", "Cargo.lock", "rust-toolchain.toml", "package-lock.json", "wrangler.toml"];
const TAIL_LINES = 40;

const git = (...args) => spawnSync("git", args, { cwd: root, encoding: "utf8" }).stdout.trim();

/** A hash of the sources as they are, committed or not. */
function sourcesHash(sources = SOURCES) {
  const files = git("ls-files", "--cached", "--others", "--exclude-standard", "--", ...sources).split("\n").filter(Boolean).sort();
  if (!files.length) throw new Missing("`npm run prove` needs a git checkout: results are kept by what they were made from");
  return hashOf(files);
}

/** Every line that is a JSON object, merged in order. */
function figuresOf(output) {
  const figures = {};
  for (const line of output.split("\n")) {
    if (!line.startsWith("{")) continue;
    try {
      Object.assign(figures, JSON.parse(line));
    } catch {} // a line that only looks like one
  }
  return figures;
}

/** Runs one proof and keeps its result, whatever it is. */
async function prove(proof, key, file) {
  const began = performance.now();
  const at = new Date().toISOString();
  const { command: [program, ...args], env = {} } = proof;
  const result = { name: proof.name, says: proof.says, command: proof.command, env, key, at, commit: git("rev-parse", "--short", "HEAD") };
  let output;
  try {
    output = await step(proof.name, (onLine) => run(program === "node" ? pinnedNode : program, args, { env, onLine, title: proof.name }));
    result.proved = true;
  } catch (error) {
    if (error instanceof Missing) throw error;
    output = error.output ?? String(error);
    result.proved = false;
    say(`  ${proof.name}: FAILED\n${output.trimEnd().split("\n").slice(-TAIL_LINES).join("\n")}`);
  }
  result.seconds = Math.round((performance.now() - began) / 100) / 10;
  result.figures = figuresOf(output);
  result.tail = output.trimEnd().split("\n").slice(-TAIL_LINES);
  fs.mkdirSync(resultsDir, { recursive: true });
  fs.writeFileSync(file, JSON.stringify(result, null, 2));
  return result;
}

const shown = ({ command: words, env = {} }) => [...Object.entries(env).map(([name, value]) => `${name}=${value}`), ...words].map((word) => (/[\s"'$*]/.test(word) ? `'${word}'` : word)).join(" ");
const cell = (value) => String(typeof value === "object" ? JSON.stringify(value) : value).replaceAll("|", "\\|");

function report(results, expected, only) {
  const version = (name) => JSON.parse(fs.readFileSync(path.join(root, "node_modules", name, "package.json"), "utf8")).version;
  const date = new Date().toISOString().slice(0, 10);
  const proved = results.filter((result) => result.proved).length;
  const lines = [
    `# Proofs of ${date}`,
    "",
    `${proved} of ${expected} proved. Commit ${git("rev-parse", "--short", "HEAD")}${git("status", "--porcelain", "--", ...SOURCES) ? ", with changes that are not committed" : ""}; sources ${sourcesHash().slice(0, 12)}.`,
    `${os.cpus().length} x ${os.cpus()[0].model.trim()}, ${Math.round(os.totalmem() / 2 ** 30)} GiB, ${os.type()} ${os.release()}; workerd ${version("workerd")}, node ${process.versions.node}.`,
    "",
    "| proof | result | seconds | when (UTC) |",
    "| --- | --- | --- | --- |",
    ...results.map((result) => `| ${result.name} | ${result.proved ? "proved" : "**FAILED**"} | ${result.seconds} | ${result.at.slice(0, 16).replace("T", " ")} |`),
  ];
  for (const result of results) {
    lines.push("", `## ${result.name}`, "", ...(result.says ? [result.says, ""] : []), `    ${shown(result)}`, "");
    const figures = Object.entries(result.figures);
    if (figures.length) lines.push("| figure | value |", "| --- | --- |", ...figures.map(([name, value]) => `| ${cell(name)} | ${cell(value)} |`));
    // What says its figures in words, and what failed, is quoted.
    if (!figures.length || !result.proved) lines.push("```text", ...result.tail, "```");
  }
  fs.mkdirSync(reportsDir, { recursive: true });
  const file = path.join(reportsDir, `${["PROOFS", date, ...only].join("-")}.md`);
  fs.writeFileSync(file, `${lines.join("\n")}\n`);
  return path.relative(root, file);
}

await command(async () => {
  checkMachine();
  const { proofs } = await import("../tests/proofs.mjs");
  if (has("list")) {
    for (const proof of proofs) say(`${proof.name}: ${proof.says}\n    ${shown(proof)}`);
    return;
  }
  const only = process.argv.flatMap((word, at) => (process.argv[at - 1] === "--only" ? [word] : []));
  const unknown = only.find((name) => !proofs.some((proof) => proof.name === name));
  if (unknown) throw new Missing(`There is no proof named ${unknown}. npm run prove -- --list`);
  const chosen = proofs.filter(({ name }) => !only.length || only.includes(name));

  await build();
  await inPinnedNode();
  if (has("fresh")) for (const { name } of chosen) fs.rmSync(path.join(resultsDir, `${name}.json`), { force: true });

  const results = [];
  for (const proof of chosen) {
    const key = hash(sourcesHash(proof.of), JSON.stringify([proof.command, proof.env ?? {}]));
    const file = path.join(resultsDir, `${proof.name}.json`);
    const kept = fs.existsSync(file) && JSON.parse(fs.readFileSync(file, "utf8"));
    if (kept && kept.proved && kept.key === key) {
      say(`  ${proof.name}: proved on ${kept.at.slice(0, 16).replace("T", " ")} from the same sources, in ${kept.seconds} s`);
      results.push(kept);
    } else results.push(await prove(proof, key, file));
    report(results, chosen.length, only); // what is there so far, if it is interrupted
  }
  const failed = results.filter((result) => !result.proved).map(({ name }) => name);
  say(`\n${results.length - failed.length} of ${results.length} proved in ${sinceBegan()}. Report: ${report(results, chosen.length, only)}`);
  if (failed.length) throw new Missing(`Not proved: ${failed.join(", ")}`);
});
