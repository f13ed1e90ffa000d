-- What the operator owns: the catalog, plans, operator keys and their audit, and the directory of tenants, which holds
-- nothing personal. What a tenant owns is in its shard (schema/shard).

-- A batch begins with guards. An insert here stores nothing; it aborts the whole batch when `ok` is not 1.
CREATE VIEW guard AS SELECT 1 AS ok, '' AS reason WHERE 0;
CREATE TRIGGER guard_version INSTEAD OF INSERT ON guard WHEN NEW.reason = 'version' AND NEW.ok IS NOT 1
BEGIN SELECT RAISE(ABORT, 'guard: version'); END;
CREATE TRIGGER guard_exists INSTEAD OF INSERT ON guard WHEN NEW.reason = 'exists' AND NEW.ok IS NOT 1
BEGIN SELECT RAISE(ABORT, 'guard: exists'); END;
CREATE TRIGGER guard_absent INSTEAD OF INSERT ON guard WHEN NEW.reason = 'absent' AND NEW.ok IS NOT 1
BEGIN SELECT RAISE(ABORT, 'guard: absent'); END;

-- The catalog's one row: its serial grows with every change of anything the catalog document holds.
CREATE TABLE catalog (
  id     INTEGER PRIMARY KEY CHECK (id = 1),
  serial INTEGER NOT NULL
) STRICT;
INSERT INTO catalog (id, serial) VALUES (1, 0);

CREATE TABLE feature (
  name       TEXT PRIMARY KEY,
  definition TEXT NOT NULL CHECK (json_valid(definition)),
  version    INTEGER NOT NULL DEFAULT 1
) STRICT, WITHOUT ROWID;

CREATE TABLE meter (
  name       TEXT PRIMARY KEY,
  definition TEXT NOT NULL CHECK (json_valid(definition)),
  version    INTEGER NOT NULL DEFAULT 1
) STRICT, WITHOUT ROWID;

CREATE TABLE origin (
  name       TEXT PRIMARY KEY,
  definition TEXT NOT NULL CHECK (json_valid(definition)),
  version    INTEGER NOT NULL DEFAULT 1
) STRICT, WITHOUT ROWID;

CREATE TABLE kill_switch (
  feature    TEXT PRIMARY KEY REFERENCES feature (name),
  definition TEXT NOT NULL CHECK (json_valid(definition)),
  version    INTEGER NOT NULL DEFAULT 1
) STRICT, WITHOUT ROWID;

-- A plan's head is the version that subscriptions to "latest" follow; readers fall back to the previous one while KV
-- does not show the head yet.
CREATE TABLE plan (
  name     TEXT PRIMARY KEY,
  head     INTEGER NOT NULL,
  previous INTEGER
) STRICT, WITHOUT ROWID;

CREATE TABLE plan_version (
  plan         TEXT NOT NULL REFERENCES plan (name),
  version      INTEGER NOT NULL,
  definition   TEXT NOT NULL CHECK (json_valid(definition)),
  published_ms INTEGER NOT NULL,
  PRIMARY KEY (plan, version)
) STRICT, WITHOUT ROWID;
-- Published is immutable: not a habit, a rule of the table.
CREATE TRIGGER plan_version_is_immutable BEFORE UPDATE ON plan_version BEGIN SELECT RAISE(ABORT, 'a published plan version never changes'); END;
CREATE TRIGGER plan_version_is_kept BEFORE DELETE ON plan_version BEGIN SELECT RAISE(ABORT, 'a published plan version is kept'); END;

-- Where each tenant is. `reserved` is a tenant whose shard rows are not known to be there yet.
CREATE TABLE directory (
  tenant_id TEXT PRIMARY KEY,
  slug      TEXT NOT NULL UNIQUE,
  parent_id TEXT REFERENCES directory (tenant_id),
  shard     TEXT NOT NULL,
  state     TEXT NOT NULL CHECK (state IN ('reserved', 'placed')),
  created_ms INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX directory_by_parent ON directory (parent_id);

-- What must still reach the catalog object: carried at once behind the reply, and by the sweep if a crash left it.
CREATE TABLE outbox (
  seq        INTEGER PRIMARY KEY AUTOINCREMENT,
  document   TEXT NOT NULL,
  created_ms INTEGER NOT NULL
) STRICT;

CREATE TABLE audit (
  id         TEXT PRIMARY KEY,
  at_ms      INTEGER NOT NULL,
  actor      TEXT NOT NULL,
  action     TEXT NOT NULL,
  subject    TEXT NOT NULL,
  detail     TEXT NOT NULL CHECK (json_valid(detail)),
  request_id TEXT NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX audit_by_time ON audit (at_ms, id);
CREATE TRIGGER audit_is_immutable BEFORE UPDATE ON audit BEGIN SELECT RAISE(ABORT, 'audit is append-only'); END;
CREATE TRIGGER audit_is_kept BEFORE DELETE ON audit BEGIN SELECT RAISE(ABORT, 'audit is append-only'); END;

-- The stored answer of a mutation, for the same key sent again.
CREATE TABLE idempotency (
  actor       TEXT NOT NULL,
  key         TEXT NOT NULL,
  fingerprint TEXT NOT NULL,
  status      INTEGER NOT NULL,
  body        TEXT NOT NULL,
  created_ms  INTEGER NOT NULL,
  PRIMARY KEY (actor, key)
) STRICT, WITHOUT ROWID;
CREATE INDEX idempotency_by_age ON idempotency (created_ms);
