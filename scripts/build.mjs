// Builds the Worker: src/ -> build/index.js + build/index_bg.wasm, the two files that are deployed.
//
//   1. cargo      the crate, with its own std
//   2. bindgen    the JavaScript glue, and the module fitted to it, without the code that would clean up after a panic
//   3. wasm-opt   the module, smaller
//   4. esbuild    src/entry.js with the glue, in one minified file
//
// It is what `worker-build --panic-unwind` does, with four differences: the pinned stable toolchain instead of a nightly,
// nothing that takes minutes to install, a panic that frees nothing on its way (scripts/bindgen/src/unwinding.rs: a tenth of
// the module), and no JavaScript proxies between the platform and the Worker's classes (they cost more than a decision).
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
import { checkMachine, command, ensurePackages, ensureToolchain, hashOf, isMain, pinnedNode, root, run, say, seconds, step, unlessDone } from "./tools.mjs";

const RAW = "target/worker/wasm32-unknown-unknown/release/tollgate.wasm";
const BINDGEN = ".tools/target/debug/bindgen";
const GLUE = ["build/glue/index.js", "build/glue/index_bg.wasm"];
const MODULE = "build/index_bg.wasm";
const BUNDLE = "build/index.js";

/** A target directory of its own: these flags would otherwise rebuild what `cargo test` and clippy built, and the other way round. */
const WORKER = {
  args: ["build", "--lib", "--release", "--locked", "--target", "wasm32-unknown-unknown", "-Z", "build-std=std,panic_unwind",
    "-Z", "build-std-features=panic-unwind,optimize_for_size"],
  env: {
    CARGO_TARGET_DIR: path.join(root, "target/worker"),
    CARGO_TERM_COLOR: "never",
    RUSTC_BOOTSTRAP: "1",
    RUSTFLAGS: "-Cpanic=unwind",
    // Futures of exported functions use the executor in js-sys, which works with unwinding.
    WASM_BINDGEN_USE_JS_SYS: "1",
  },
};

/** Named one by one: `--all-features` emits a module that workerd refuses. These are what rustc uses, and unwinding's exceptions. */
const FEATURES = ["mutable-globals", "sign-ext", "nontrapping-float-to-int", "bulk-memory", "multivalue", "reference-types", "exception-handling"];
/** Nothing is inlined beyond what the compiler did, and functions of one name lie side by side: the same code for many types is
 * then within gzip's window. Together that is a tenth of what is sent. */
const WASM_OPT = ["-Os", "-aimfs", "0", "-fimfs", "0", "-ocimfs", "0", "--reorder-functions-by-name", "--strip-debug", "--strip-producers",
  ...FEATURES.map((feature) => `--enable-${feature}`)];

const cargo = (title, cwd, args, env) => step(title, (onLine) => run("cargo", args, { cwd, env, onLine, title }));

const buildBindgen = () => unlessDone(".tools/bindgen.stamp", hashOf(["scripts/bindgen", "rust-toolchain.toml"]), [BINDGEN], () =>
  cargo("wasm-bindgen", path.join(root, "scripts/bindgen"), ["build", "--locked"], { CARGO_TARGET_DIR: path.join(root, ".tools/target"), CARGO_TERM_COLOR: "never" }));

const compile = () => unlessDone("target/worker/stamp", hashOf(["src", "schema", "Cargo.toml", "Cargo.lock", "rust-toolchain.toml"], JSON.stringify(WORKER)), [RAW], () =>
  cargo("Worker, Rust to wasm", root, WORKER.args, WORKER.env));

const bind = () => unlessDone("build/.glue", hashOf([RAW, "scripts/bindgen"]), GLUE, () =>
  step("glue", async () => {
    await run(BINDGEN, [RAW, "build/glue"]);
    // workerd imports a module as WebAssembly.Module already; "import source" is not yet syntax there.
    const file = path.join(root, GLUE[0]);
    fs.writeFileSync(file, fs.readFileSync(file, "utf8").replace("import source ", "import "));
  }));

const optimise = () => unlessDone("build/.module", hashOf([GLUE[1]], WASM_OPT.join()), [MODULE], () =>
  step("wasm-opt", () => run(pinnedNode, ["node_modules/binaryen/bin/wasm-opt", ...WASM_OPT, GLUE[1], "-o", MODULE])));

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
  const bound = await bind();
  const changed = (await Promise.all([optimise(), bundle()])).some(Boolean) || bound;
  if (!changed && !always) return false;
  const { module, script } = sizes();
  const kib = (bytes) => `${(bytes / 1024).toFixed(1)} KiB`;
  say(`  build/: module ${kib(module.raw)} (${kib(module.gzip)} gzipped), script ${kib(script.raw)} (${kib(script.gzip)}); ` +
    `${kib(module.gzip + script.gzip)} gzipped together; ${changed ? `built in ${seconds(began)}` : "nothing changed"}`);
  return changed;
}

if (isMain(import.meta)) await command(async () => {
  checkMachine();
  await build({ always: true });
});
