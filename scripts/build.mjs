// Builds the Worker: src/ -> build/index.js + build/index_bg.wasm, the two files that are deployed.
//
//   1. cargo      the crate, with its own std
//   2. bindgen    the JavaScript glue, and the module fitted to it, without the code that would clean up after a panic
//   3. esbuild    src/entry.js with the glue, in one minified file
//   4. wasm-opt   the module without what that file never calls, smaller, and in an order that compresses
//
// It is what `worker-build --panic-unwind` does, with these differences: the pinned stable toolchain instead of a nightly, nothing
// that takes minutes to install, no JavaScript proxies between the platform and the Worker's classes (they cost more than a
// decision); and for size, a panic that frees nothing on its way (scripts/bindgen/src/unwinding.rs: a tenth of the module), nothing of
// the dependencies that is never called, imports without hashes (names.rs beside it), and functions in the order of their
// resemblance.
//
// Why std is built too: with the std that rustup ships, a panic aborts the whole instance, which fails every request in flight
// and forgets the memory of every Durable Object in the isolate. With `-Cpanic=unwind` it fails its own request. Building std
// is unstable, so RUSTC_BOOTSTRAP=1 opens exactly that door in the pinned compiler.
//
// A step is skipped when nothing that goes into it changed.

import fs from "node:fs";
import path from "node:path";
import { performance } from "node:perf_hooks";
import zlib from "node:zlib";
import { namedByResemblance, namesOf, withoutNames } from "./resemblance.mjs";
import { checkMachine, command, ensurePackages, ensureToolchain, hashOf, isMain, pinnedNode, root, run, say, seconds, step, unlessDone } from "./tools.mjs";

const RAW = "target/worker/wasm32-unknown-unknown/release/tollgate.wasm";
const BINDGEN = ".tools/target/debug/bindgen";
const GLUE = ["build/glue/index.js", "build/glue/index_bg.wasm"];
const MODULE = "build/index_bg.wasm";
const BUNDLE = "build/index.js";
/** What `wasm-function[42]` in a stack is: line 42, counted from 0. */
const FUNCTIONS = "build/functions.txt";

/**
 * What the compiler is told beside Cargo.toml. Optimised for size it inlines what is at most 5 instructions long: with 45 the module
 * is as large, and a decision takes a sixth to a quarter less. That pays with what nobody reads: how values look to a debugger. Where
 * a panic began, its stack says better: FUNCTIONS names what is in it.
 */
const COMPILER = ["-Cpanic=unwind", "-Cllvm-args=-inline-threshold=45", "-Zfmt-debug=none", "-Zlocation-detail=none"];

/** A target directory of its own: these flags would otherwise rebuild what `cargo test` and clippy built, and the other way round. */
const WORKER = {
  args: ["build", "--lib", "--release", "--locked", "--target", "wasm32-unknown-unknown", "-Z", "build-std=std,panic_unwind",
    "-Z", "build-std-features=panic-unwind,optimize_for_size"],
  env: {
    CARGO_TARGET_DIR: path.join(root, "target/worker"),
    CARGO_TERM_COLOR: "never",
    RUSTC_BOOTSTRAP: "1",
    RUSTFLAGS: COMPILER.join(" "),
    // Futures of exported functions use the executor in js-sys, which works with unwinding.
    WASM_BINDGEN_USE_JS_SYS: "1",
  },
};

/** Named one by one: `--all-features` emits a module that workerd refuses. These are what rustc uses, and unwinding's exceptions. */
const FEATURES = ["mutable-globals", "sign-ext", "nontrapping-float-to-int", "bulk-memory", "multivalue", "reference-types", "exception-handling"]
  .map((feature) => `--enable-${feature}`);
/** Nothing is inlined beyond what the compiler did: that is a tenth of what is sent. */
const SMALLER = ["-Os", "-aimfs", "0", "-fimfs", "0", "-ocimfs", "0", "--strip-producers", "-g"];
/** Function by function as they are named. */
const IN_ORDER = ["--reorder-functions-by-name", "-g"];

const cargo = (title, cwd, args, env) => step(title, (onLine) => run("cargo", args, { cwd, env, onLine, title }));

const buildBindgen = () => unlessDone(".tools/bindgen.stamp", hashOf(["scripts/bindgen", "rust-toolchain.toml"]), [BINDGEN], () =>
  cargo("wasm-bindgen", path.join(root, "scripts/bindgen"), ["build", "--locked"], { CARGO_TARGET_DIR: path.join(root, ".tools/target"), CARGO_TERM_COLOR: "never" }));

const compile = () => unlessDone("target/worker/stamp", hashOf(["src", "schema", "Cargo.toml", "Cargo.lock", "rust-toolchain.toml"], JSON.stringify(WORKER)), [RAW], () =>
  cargo("Worker, Rust to wasm", root, WORKER.args, WORKER.env));

const bind = () => unlessDone("build/.glue", hashOf([RAW, "scripts/bindgen", "src/entry.js", "scripts/build.mjs"]), GLUE, () =>
  step("glue", async () => {
    await run(BINDGEN, [RAW, "build/glue"]);
    // workerd imports a module as WebAssembly.Module already; "import source" is not yet syntax there.
    const glue = text(GLUE[0]).replace("import source ", "import ");
    fs.writeFileSync(path.join(root, GLUE[0]), withoutUnmade(encodedByThePlatform(glue), text("src/entry.js")));
  }));

const text = (file) => fs.readFileSync(path.join(root, file), "utf8");

/**
 * The glue with the platform's encoder for every text that goes into the module's memory. wasm-bindgen copies ASCII one character at
 * a time: of a text that was joined just before, as the door's is, that takes workerd 0.7 us for 120 characters, and the encoder
 * 0.26. A text that is not all ASCII does not fit, and takes the generated way around.
 */
function encodedByThePlatform(glue) {
  const copying = /let offset = 0;\n\s+for \(; offset < len; offset\+\+\) \{[^]*?\n {4}\}\n/;
  if (!copying.test(glue)) throw new Error("the glue copies texts in another way than it did: see encodedByThePlatform in scripts/build.mjs");
  return glue.replace(copying, "let offset = cachedTextEncoder.encodeInto(arg, mem.subarray(ptr, ptr + len)).read === len ? len : 0;\n");
}

/** The glue without the classes that src/entry.js never makes. They are dependencies', and no bundler can tell that they do nothing. */
function withoutUnmade(glue, entry) {
  for (const [, name] of glue.matchAll(/^(?:export )?class (\w+) \{/gm)) {
    if (entry.includes(`new tollgate.${name}(`)) continue;
    for (const part of [`(export )?class ${name} \\{[^]*?\n\\}\n`, `if \\(Symbol.dispose\\) ${name}\\..*\n`, `const ${name}Finalization = [^]*?\n\\}\\);\n`]) {
      glue = glue.replace(new RegExp(`^${part}`, "m"), "");
    }
  }
  return glue;
}

const optimise = () => unlessDone("build/.module", hashOf([GLUE[1], BUNDLE, "scripts/build.mjs", "scripts/resemblance.mjs"]), [MODULE, FUNCTIONS], () =>
  step("wasm-opt", async () => {
    const graph = "build/reached.json";
    const [reached, smaller, named, ordered] = ["reached", "smaller", "named", "ordered"].map((name) => `build/${name}.wasm`);
    const binaryen = (tool, args) => run(pinnedNode, [`node_modules/binaryen/bin/${tool}`, ...FEATURES, ...args]);
    fs.writeFileSync(path.join(root, graph), JSON.stringify(await exportsCalled()));
    await binaryen("wasm-metadce", [GLUE[1], "-f", graph, "-g", "-o", reached]);
    await binaryen("wasm-opt", [reached, ...SMALLER, "-o", smaller]);
    fs.writeFileSync(path.join(root, named), namedByResemblance(fs.readFileSync(path.join(root, smaller))));
    await binaryen("wasm-opt", [named, ...IN_ORDER, "-o", ordered]);
    const module = fs.readFileSync(path.join(root, ordered));
    fs.writeFileSync(path.join(root, MODULE), withoutNames(module));
    const names = namesOf(module);
    fs.writeFileSync(path.join(root, FUNCTIONS), Array.from({ length: Math.max(...names.keys()) + 1 }, (_, at) => `${names.get(at) ?? ""}\n`).join(""));
  }));

/** What the bundle calls of the module, as wasm-metadce wants to be told. */
async function exportsCalled() {
  const exports = WebAssembly.Module.exports(await WebAssembly.compile(fs.readFileSync(path.join(root, GLUE[1]))));
  const called = new Set(text(BUNDLE).match(/(?<=\.)\w+/g));
  return exports.filter(({ name }) => called.has(name)).map(({ name }) => ({ name: `export ${name}`, export: name, root: true }));
}

const bundle = () => unlessDone("build/.bundle", hashOf(["src/entry.js", "build/glue/index.js", "build/glue/snippets", ...javaScript("src")]), [BUNDLE], () =>
  step("bundle", () => run("node_modules/.bin/esbuild", ["src/entry.js", "--bundle", "--minify", "--format=esm", "--target=es2022",
    "--external:./index_bg.wasm", "--external:cloudflare:*", `--outfile=${BUNDLE}`, "--log-level=warning"])));

const javaScript = (dir) => fs.readdirSync(path.join(root, dir), { recursive: true }).filter((name) => name.endsWith(".js")).map((name) => path.join(dir, name));

/** Sizes in bytes, gzipped as Cloudflare counts them. */
export function sizes() {
  const of = (file) => {
    const bytes = fs.readFileSync(path.join(root, file));
    return { raw: bytes.length, gzip: zlib.gzipSync(bytes, { level: 9 }).length };
  };
  return { module: of(MODULE), script: of(BUNDLE) };
}

/** Installs what the build needs and builds what changed; true if anything did. Sizes are printed then, or if `always`. */
export async function build({ always = false } = {}) {
  const began = performance.now();
  fs.mkdirSync(path.join(root, "build"), { recursive: true });
  // One failure is enough to stop for; the other step would only be noise after it.
  const settled = await Promise.allSettled([
    ensurePackages(),
    ensureToolchain().then(() => Promise.all([buildBindgen(), compile()])),
  ]);
  const failure = settled.find((each) => each.status === "rejected");
  if (failure) throw failure.reason;
  let changed = false;
  for (const make of [bind, bundle, optimise]) changed = (await make()) || changed;
  if (!changed && !always) return false;
  const { module, script } = sizes();
  const kb = (bytes) => `${(bytes / 1000).toFixed(1)} KB`;
  say(`  build/: module ${kb(module.raw)} (${kb(module.gzip)} gzipped), script ${kb(script.raw)} (${kb(script.gzip)}); ` +
    `${kb(module.gzip + script.gzip)} gzipped together; ${changed ? `built in ${seconds(began)}` : "nothing changed"}`);
  return changed;
}

if (isMain(import.meta)) await command(async () => {
  checkMachine();
  await build({ always: true });
});
