// What was done to a tenant stands in its chain: every record once, in one order, each link naming the one before by its hash,
// computed here as src/domain/audit.rs says and not by Tollgate's own code.

import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import test from "node:test";
import { size, until } from "./harness.mjs";
import { world } from "./world.mjs";

/** More than one batch of the sealer, which is a hundred. */
const CHANGES = size(1_000, 130);
const AT_ONCE = 8;

const { local, op, tenant } = await world();
const shard = await local.database("SHARD_GLOBAL_1");
const rows = async (sql, ...values) => (await shard.prepare(sql).bind(...values).all()).results;

/** The links that these records, in this order, must have. */
function chained(id, records) {
  let previous = "";
  return records.map(({ id: record, at_ms, actor, action, subject, detail, request_id }, at) => {
    const covered = ["tollgate-audit-v1", id, at + 1, previous, { id: record, at_ms, actor, action, subject, detail, request_id }];
    previous = createHash("sha256").update(JSON.stringify(covered)).digest("base64url");
    return { sequence: at + 1, audit_id: record, hash: previous };
  });
}

test("Every change of a tenant is sealed once, in an unbroken chain, though many come at once", async () => {
  const { id } = await tenant();
  const other = await tenant();
  let made = 0;
  const change = async () => {
    while (made < CHANGES) {
      made += 1;
      await op("PUT", `/tenants/${made % 10 ? id : other.id}/overrides/analytics`, { value: made % 2 === 0, reason: `change "${made}" \n` });
    }
  };
  await Promise.all(Array.from({ length: AT_ONCE }, change));

  for (const owner of [id, other.id]) {
    const records = await rows("SELECT * FROM audit WHERE tenant_id = ?", owner);
    // One more made the tenant.
    assert.equal(records.length, 1 + (owner === id ? CHANGES - Math.floor(CHANGES / 10) : Math.floor(CHANGES / 10)));
    const links = await until("all of them are sealed", async () => {
      const links = await rows("SELECT sequence, audit_id, hash FROM seal WHERE tenant_id = ? ORDER BY sequence", owner);
      return links.length >= records.length && links;
    }, 60_000);
    const inOrder = links.map(({ audit_id }) => records.find((record) => record.id === audit_id));
    assert.equal(new Set(inOrder).size, records.length, "each record has one link");
    assert.deepEqual(links, chained(owner, inOrder));
    assert.deepEqual(await rows("SELECT audit_id FROM unsealed WHERE tenant_id = ?", owner), []);

    const { data } = await op("GET", `/tenants/${owner}/audit?limit=3`);
    const shown = await rows("SELECT a.id, sequence, hash FROM audit a JOIN seal s ON s.tenant_id = a.tenant_id AND s.audit_id = a.id WHERE a.tenant_id = ? ORDER BY a.id DESC LIMIT 3", owner);
    assert.deepEqual(data.map(({ id, sequence, hash }) => ({ id, sequence, hash })), shown);
  }
});

test("No record and no link can be changed or taken away", async () => {
  for (const sql of ["UPDATE audit SET actor = 'nobody'", "DELETE FROM audit", "UPDATE seal SET hash = ''", "DELETE FROM seal"]) {
    await assert.rejects(shard.prepare(sql).run(), /append-only/, sql);
  }
});
