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

/** The module with its functions' names behind numbers in whose order they resemble each other, and no other names. */
export function namedByResemblance(module) {
  const bodies = bodiesOf(module);
  const were = namesOf(module);
  const first = importsOf(module);
  const digits = String(bodies.length).length;
  const ranks = new Map(resembling(bodies).map((body, rank) => [first + body, String(rank).padStart(digits, "0")]));
  const entries = [...ranks].sort(([a], [b]) => a - b).map(([at, rank]) => Buffer.from([...leb(at), ...text(`${rank} ${were.get(at) ?? ""}`)]));
  const names = Buffer.concat([Buffer.from(leb(entries.length)), ...entries]);
  const head = [...text("name"), FUNCTIONS, ...leb(names.length)];
  return Buffer.concat([withoutNames(module), Buffer.from([CUSTOM, ...leb(head.length + names.length), ...head]), names]);
}

/** The module without any names. */
export function withoutNames(module) {
  const kept = [...sections(module)].filter((section) => !isNames(section));
  return Buffer.concat([module.subarray(0, 8), ...kept.map(({ from, to }) => module.subarray(from, to))]);
}

/** What its functions are called, by their numbers. */
export function namesOf(module) {
  const names = new Map();
  const section = [...sections(module)].find(isNames);
  if (!section) return names;
  const reader = new Reader(section.content);
  reader.text();
  while (reader.left()) {
    const kind = reader.byte();
    const part = new Reader(reader.bytes());
    if (kind === FUNCTIONS) for (let count = part.number(); count > 0; count -= 1) names.set(part.number(), part.text());
  }
  return names;
}

/** How many functions come from outside: those of the module are numbered behind them. */
const importsOf = (module) => WebAssembly.Module.imports(new WebAssembly.Module(module)).filter(({ kind }) => kind === "function").length;

function bodiesOf(module) {
  const reader = new Reader([...sections(module)].find(({ id }) => id === CODE).content);
  return Array.from({ length: reader.number() }, () => reader.bytes());
}

/** The sections of a module: what each holds, and from where to where it is. */
function* sections(module) {
  const reader = new Reader(module, 8);
  while (reader.left()) {
    const from = reader.at;
    const id = reader.byte();
    yield { id, content: reader.bytes(), from, to: reader.at };
  }
}

const isNames = ({ id, content }) => id === CUSTOM && new Reader(content).text() === "name";

/** The binary format's numbers, and what is as long as the number before it says. */
class Reader {
  constructor(bytes, at = 0) {
    this.all = bytes;
    this.at = at;
  }
  left = () => this.at < this.all.length;
  byte = () => this.all[this.at++];
  number() {
    let value = 0;
    for (let shift = 0, byte = 128; byte & 128; shift += 7) value += ((byte = this.byte()) & 127) * 2 ** shift;
    return value;
  }
  bytes() {
    const size = this.number();
    return this.all.subarray(this.at, (this.at += size));
  }
  text = () => this.bytes().toString();
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

const text = (value) => [...leb(Buffer.byteLength(value)), ...Buffer.from(value)];
