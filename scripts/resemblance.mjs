// Puts functions that resemble each other side by side, so that gzip, which looks back 32 KiB, finds what they have in common: a
// twentieth of what is sent. Linkers do the same (LLVM's "compression sort"); for a module of wasm, wasm-opt puts functions in
// the order of their names, and the names are given here.
//
// What two functions have in common is counted in runs of RUN bytes. From each function on it goes to the one of those left
// that has most in common with it, of all the runs that the two have.

const RUN = 5;
/** A run that more functions have is everywhere in the window anyway, and would take most of the time. */
const COMMON = 400;

const [CUSTOM, CODE] = [0, 10];
/** Of the section "name": those of functions. */
const FUNCTIONS = 1;

/** The module with names for its functions, in whose order they resemble each other. It has no others. */
export function namedByResemblance(module) {
  const imports = WebAssembly.Module.imports(new WebAssembly.Module(module)).filter(({ kind }) => kind === "function").length;
  const bodies = functions(module);
  const ranks = resembling(bodies);
  const digits = String(bodies.length).length;
  const names = new Map(ranks.map((body, rank) => [imports + body, String(rank).padStart(digits, "0")]));
  const entries = [...names].sort(([a], [b]) => a - b).map(([at, name]) => [...leb(at), ...text(name)]);
  const subsection = [leb(entries.length), ...entries].flat();
  const content = [...text("name"), FUNCTIONS, ...leb(subsection.length), ...subsection];
  return Buffer.concat([module, Buffer.from([CUSTOM, ...leb(content.length), ...content])]);
}

/** The bodies of a module's functions. */
function functions(module) {
  let at = 8;
  const number = () => {
    let value = 0;
    for (let shift = 0, byte = 128; byte & 128; shift += 7) value += ((byte = module[at++]) & 127) << shift;
    return value;
  };
  for (;;) {
    const section = module[at++], length = number();
    if (section !== CODE) at += length;
    else return Array.from({ length: number() }, () => {
      const size = number();
      return module.subarray(at, (at += size));
    });
  }
}

/** The places of `bodies`, each beside the one that it resembles most of those left. */
function resembling(bodies) {
  const runs = bodies.map((body) => new Set(Array.from({ length: Math.max(0, body.length - RUN + 1) }, (_, at) => body.readUIntBE(at, RUN))));
  const holders = new Map();
  runs.forEach((of, at) => of.forEach((run) => holders.has(run) ? holders.get(run).push(at) : holders.set(run, [at])));
  const shared = runs.map((of) => [...of].map((run) => holders.get(run)).filter(({ length }) => length > 1 && length < COMMON));
  const left = new Set(bodies.keys());
  const order = [];
  for (let next = 0; next !== undefined; ) {
    order.push(next);
    left.delete(next);
    const common = new Map();
    for (const others of shared[next]) for (const other of others) if (left.has(other)) common.set(other, (common.get(other) ?? 0) + 1);
    let [nearest, most] = [left.values().next().value, 0];
    for (const [other, count] of common) {
      const share = count / (runs[next].size + runs[other].size - count);
      if (share > most) [nearest, most] = [other, share];
    }
    next = nearest;
  }
  return order;
}

function leb(value) {
  const bytes = [];
  do bytes.push((value & 127) | (value > 127 ? 128 : 0)); while ((value >>>= 7) > 0);
  return bytes;
}

const text = (value) => [...leb(value.length), ...Buffer.from(value)];
