// What a statement costs must not grow with how long a tenant has been here: D1 answers one question at a time, and bills rows
// that were read. So every statement is explained by the D1 that runs it, and no plan goes through a table that grows.

import assert from "node:assert/strict";
import fs from "node:fs";
import path from "node:path";
import test from "node:test";
import { root } from "../../scripts/tools.mjs";
import { worker } from "./harness.mjs";

/** What may be read whole: what is sold, work that is waiting, and what a statement carries or has just found itself. */
const WHOLE = new Set(["feature", "meter", "origin", "kill_switch", "plan", "plan_version", "outbox", "json_each", "chain", "tree", "CONSTANT ROW"]);
/** Tables that grow with every request or change: to name the tenant alone is to read all that it ever did. */
const GROWING = new Set(["entry", "seal", "audit"]);
/** The end of an index is one row, however long it is. */
const EXEMPT = new Set(["shard.CHAIN_HEAD"]);

const local = await worker();

/** The statements of one module of src/wire/sql.rs: nothing else is ever given to D1. */
function statements(module) {
  const source = fs.readFileSync(path.join(root, "src/wire/sql.rs"), "utf8");
  const [, inside] = new RegExp(`pub mod ${module} \\{(.*?)\\n\\}`, "s").exec(source);
  return [...inside.matchAll(/([A-Z_]+) = "([^"]*)"/g)].map(([, name, sql]) => ({ name: `${module}.${name}`, sql }));
}

/** Which table a plan means by a name that a statement gave it. */
const tables = (sql) => Object.fromEntries([...sql.matchAll(/(?:FROM|JOIN) (\w+)(?:\([^)]*\))? ([a-z])\b/g)].map(([, table, alias]) => [alias, table]));

for (const [module, binding] of [["control", "CONTROL"], ["shard", "SHARD_GLOBAL_1"]]) {
  test(`No statement on ${module} reads more the longer a tenant has been here`, async () => {
    const database = await local.database(binding);
    const registered = statements(module);
    assert.ok(registered.length >= 25, `${registered.length} statements`);
    const wrong = [];
    for (const { name, sql } of registered) {
      const params = Math.max(0, ...[...sql.matchAll(/\?(\d)/g)].map(([, number]) => Number(number)));
      const { results } = await database.prepare(`EXPLAIN QUERY PLAN ${sql}`).bind(...Array(params).fill("[]")).all();
      for (const { detail } of results) {
        const [, how, known, by] = /^(SCAN|SEARCH) (CONSTANT ROW|\S+)(?:.*\(([^)]*)\))?/.exec(detail) ?? [];
        const table = tables(sql)[known] ?? known;
        const whole = how === "SCAN" && !WHOLE.has(table);
        const allOfTenant = how === "SEARCH" && GROWING.has(table) && by === "tenant_id=?" && !EXEMPT.has(name);
        if (whole || allOfTenant) wrong.push(`${name}: ${detail}`);
      }
    }
    assert.deepEqual(wrong, []);
  });
}
