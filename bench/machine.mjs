// What the machine says of a process, and the load generator.

import { spawn } from "node:child_process";
import fs from "node:fs";
import os from "node:os";
import path from "node:path";
import { Missing } from "../scripts/tools.mjs";

/** The kernel's clock counts in hundredths of a second on every Linux that we know. */
const TICK_US = 10_000;
const onLinux = fs.existsSync("/proc/self/stat");

/** CPU time that a process has used so far, in microseconds; not a number where there is no /proc. */
export function cpuUs(pid) {
  if (!onLinux) return NaN;
  const fields = fs.readFileSync(`/proc/${pid}/stat`, "utf8").split(") ").pop().split(" ");
  return (Number(fields[11]) + Number(fields[12])) * TICK_US;
}

/** Resident memory of a process, in megabytes. */
export function residentMb(pid) {
  if (!onLinux) return NaN;
  return Number(fs.readFileSync(`/proc/${pid}/status`, "utf8").match(/VmRSS:\s+(\d+)/)[1]) / 1024;
}

/** Stores in memory where the machine has that: the best case for every target that writes. */
export function storeInMemory() {
  if (fs.existsSync("/dev/shm")) process.env.TMPDIR = "/dev/shm";
  const dir = fs.mkdtempSync(path.join(os.tmpdir(), "tollgate-bench-"));
  process.on("exit", () => fs.rmSync(dir, { recursive: true, force: true }));
  return dir;
}

/** wrk costs a tenth of what it loads; generators for Node cost more than the Worker, on the same cores. */
export function checkLoadGenerator() {
  const found = (process.env.PATH ?? "").split(path.delimiter).some((dir) => fs.existsSync(path.join(dir, "wrk")));
  if (!found) throw new Missing("`wrk`, the load generator, was not found. Debian and Ubuntu: apt install wrk; macOS: brew install wrk");
}

const text = (value) => JSON.stringify(value).replaceAll("\\u", "\\\\u");

/**
 * A script for wrk that asks `path`, of `host` if there is one, with each of `keys` in turn. With `invented`, every key is a new one of
 * the right form, made from `seed`. `paceMs` is a pause of each connection between two requests.
 */
function script({ path, host, keys, invented = 0, seed = 1, paceMs = 0 }) {
  const list = keys.map((key) => text(key)).join(",\n");
  return `local keys = {${list}}
local digits = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
local requests, at = {}, 0
local function invent()
  local key = {}
  -- Eleven letters hold eight bytes: with a first one among these most of them fit, and the MAC is looked at.
  for place = 1, 55 do local digit = math.random((place - 1) % 11 == 0 and 21 or 62); key[place] = digits:sub(digit, digit) end
  return "tg_live_" .. table.concat(key)
end
function init(arguments)
  math.randomseed(${seed})
  for place = 1, ${invented} do keys[place] = invent() end
  for place, key in ipairs(keys) do requests[place] = wrk.format("GET", ${text(path)}, { ["X-API-Key"] = key${host ? `, Host = ${text(host)}` : ""} }) end
end
function request()
  at = at % #requests + 1
  return requests[at]
end
${paceMs ? `function delay() return ${paceMs} end` : ""}
function done(summary, latency, requests)
  local e = summary.errors
  io.write(string.format('\\nRESULT {"requests":%d,"us":%d,"refused":%d,"failed":%d,"p50":%d,"p99":%d}\\n', summary.requests, summary.duration,
    e.status, e.connect + e.read + e.write + e.timeout, latency:percentile(50), latency:percentile(99)))
end
`;
}

/**
 * Loads a target with `wrk -t1`. Returns requests a second, latencies in microseconds, CPU of the target per request, how many
 * answers were not 2xx (`refused`), and how many did not come (`failed`).
 */
export async function load(target, { connections, secs, dir, ...asked }) {
  const file = path.join(dir, `${Math.random().toString(36).slice(2)}.lua`);
  fs.writeFileSync(file, script({ path: target.path, host: target.host, keys: target.keys, ...asked }));
  const before = cpuUs(target.pid);
  const output = await new Promise((resolve, reject) => {
    const child = spawn("wrk", ["-t1", `-c${connections}`, `-d${secs}s`, "--timeout", "10s", "-s", file, target.url]);
    let all = "";
    for (const stream of [child.stdout, child.stderr]) stream.on("data", (chunk) => (all += chunk));
    child.on("error", reject);
    child.on("close", () => resolve(all));
  });
  fs.rmSync(file, { force: true });
  const found = output.match(/RESULT (\{.*\})/);
  if (!found) throw new Error(`${target.name}: wrk said\n${output}`);
  const { us, ...result } = JSON.parse(found[1]);
  return { ...result, perSecond: result.requests / (us / 1e6), cpuUs: (cpuUs(target.pid) - before) / result.requests };
}

export const median = (values) => {
  const sorted = values.filter(Number.isFinite).sort((a, b) => a - b);
  if (!sorted.length) return NaN;
  const half = sorted.length >> 1;
  return sorted.length % 2 ? sorted[half] : (sorted[half - 1] + sorted[half]) / 2;
};

export const digits = (value, places = 0) => (Number.isFinite(value) ? value.toFixed(places) : "-");

/** A table in Markdown, which a terminal shows well enough. */
export function table(head, rows) {
  const widths = head.map((title, at) => Math.max(title.length, ...rows.map((row) => String(row[at]).length)));
  const line = (cells) => `| ${cells.map((cell, at) => String(cell).padEnd(widths[at])).join(" | ")} |`;
  return [line(head), line(widths.map((width) => "-".repeat(width))), ...rows.map(line)].join("\n");
}
