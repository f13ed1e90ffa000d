-- What tenants own. Every table but the guards begins with tenant_id, and every statement constrains it.

CREATE VIEW guard AS SELECT 1 AS ok, '' AS reason WHERE 0;
CREATE TRIGGER guard_home INSTEAD OF INSERT ON guard WHEN NEW.reason = 'home' AND NEW.ok IS NOT 1
BEGIN SELECT RAISE(ABORT, 'guard: home'); END;
CREATE TRIGGER guard_version INSTEAD OF INSERT ON guard WHEN NEW.reason = 'version' AND NEW.ok IS NOT 1
BEGIN SELECT RAISE(ABORT, 'guard: version'); END;
CREATE TRIGGER guard_exists INSTEAD OF INSERT ON guard WHEN NEW.reason = 'exists' AND NEW.ok IS NOT 1
BEGIN SELECT RAISE(ABORT, 'guard: exists'); END;
CREATE TRIGGER guard_bound INSTEAD OF INSERT ON guard WHEN NEW.reason = 'bound' AND NEW.ok IS NOT 1
BEGIN SELECT RAISE(ABORT, 'guard: bound'); END;

-- The fence: a writing batch proves that the tenant is at home here, at the epoch its writer knew.
CREATE TABLE home (
  tenant_id TEXT PRIMARY KEY,
  epoch     INTEGER NOT NULL,
  state     TEXT NOT NULL CHECK (state IN ('active', 'leaving', 'gone'))
) STRICT, WITHOUT ROWID;

-- `serial` grows with every change of what the tenant's document holds, also when only an ancestor changed.
CREATE TABLE tenant (
  tenant_id    TEXT PRIMARY KEY,
  parent_id    TEXT REFERENCES tenant (tenant_id),
  slug         TEXT NOT NULL,
  name         TEXT NOT NULL,
  status       TEXT NOT NULL CHECK (status IN ('trial', 'active', 'past_due', 'suspended', 'closed')),
  subscription TEXT CHECK (subscription IS NULL OR json_valid(subscription)),
  relations    TEXT NOT NULL DEFAULT '{}' CHECK (json_valid(relations)),
  serial       INTEGER NOT NULL,
  version      INTEGER NOT NULL DEFAULT 1,
  created_ms   INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX tenant_by_parent ON tenant (parent_id);

CREATE TABLE feature_override (
  tenant_id  TEXT NOT NULL REFERENCES tenant (tenant_id),
  feature    TEXT NOT NULL,
  definition TEXT NOT NULL CHECK (json_valid(definition)),
  PRIMARY KEY (tenant_id, feature)
) STRICT, WITHOUT ROWID;

CREATE TABLE limit_override (
  tenant_id  TEXT NOT NULL REFERENCES tenant (tenant_id),
  limit_name TEXT NOT NULL,
  definition TEXT NOT NULL CHECK (json_valid(definition)),
  PRIMARY KEY (tenant_id, limit_name)
) STRICT, WITHOUT ROWID;

CREATE TABLE api_key (
  tenant_id  TEXT NOT NULL REFERENCES tenant (tenant_id),
  key_id     TEXT NOT NULL,
  hash       TEXT NOT NULL,
  mode       TEXT NOT NULL CHECK (mode IN ('live', 'test')),
  name       TEXT NOT NULL,
  scopes     TEXT NOT NULL CHECK (json_valid(scopes)),
  until_ms   INTEGER,
  revoked_ms INTEGER,
  created_ms INTEGER NOT NULL,
  PRIMARY KEY (tenant_id, key_id)
) STRICT, WITHOUT ROWID;

-- The ledger: append-only, each event of a source once, for ever. What takes another back is an entry of its own, below zero.
CREATE TABLE entry (
  tenant_id    TEXT NOT NULL,
  source       TEXT NOT NULL,
  event_id     TEXT NOT NULL,
  meter        TEXT NOT NULL,
  mode         TEXT NOT NULL CHECK (mode IN ('live', 'test')),
  period_start INTEGER NOT NULL,
  at_ms        INTEGER NOT NULL,
  quantity     INTEGER NOT NULL CHECK (quantity >= 0 OR reverses IS NOT NULL),
  reverses     TEXT,
  detail       TEXT NOT NULL CHECK (json_valid(detail)),
  fingerprint  TEXT NOT NULL,
  recorded_ms  INTEGER NOT NULL,
  PRIMARY KEY (tenant_id, source, event_id)
) STRICT, WITHOUT ROWID;
CREATE INDEX entry_by_time ON entry (tenant_id, meter, at_ms);
CREATE TRIGGER entry_is_immutable BEFORE UPDATE ON entry BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END;

-- Totals in the same transaction as the entry, so they cannot drift from it.
CREATE TABLE total (
  tenant_id    TEXT NOT NULL,
  meter        TEXT NOT NULL,
  mode         TEXT NOT NULL,
  period_start INTEGER NOT NULL,
  quantity     INTEGER NOT NULL,
  entries      INTEGER NOT NULL,
  PRIMARY KEY (tenant_id, meter, mode, period_start)
) STRICT, WITHOUT ROWID;
CREATE TRIGGER entry_adds_to_total AFTER INSERT ON entry BEGIN
  INSERT INTO total (tenant_id, meter, mode, period_start, quantity, entries)
  VALUES (NEW.tenant_id, NEW.meter, NEW.mode, NEW.period_start, NEW.quantity, 1)
  ON CONFLICT (tenant_id, meter, mode, period_start)
  DO UPDATE SET quantity = quantity + excluded.quantity, entries = entries + 1;
END;

-- What must still reach a tenant's object: carried at once behind the reply, and by the sweep if a crash left it.
CREATE TABLE outbox (
  seq        INTEGER PRIMARY KEY AUTOINCREMENT,
  tenant_id  TEXT NOT NULL,
  created_ms INTEGER NOT NULL
) STRICT;

-- What was done to or by a tenant. The tenant object seals the records into a chain, in its own order.
CREATE TABLE audit (
  tenant_id  TEXT NOT NULL,
  id         TEXT NOT NULL,
  at_ms      INTEGER NOT NULL,
  actor      TEXT NOT NULL,
  action     TEXT NOT NULL,
  subject    TEXT NOT NULL,
  detail     TEXT NOT NULL CHECK (json_valid(detail)),
  request_id TEXT NOT NULL,
  PRIMARY KEY (tenant_id, id)
) STRICT, WITHOUT ROWID;
CREATE TRIGGER audit_is_immutable BEFORE UPDATE ON audit BEGIN SELECT RAISE(ABORT, 'audit is append-only'); END;
CREATE TRIGGER audit_is_kept BEFORE DELETE ON audit BEGIN SELECT RAISE(ABORT, 'audit is append-only'); END;

-- The chain: which record came when, each link naming the one before by its hash.
CREATE TABLE seal (
  tenant_id TEXT NOT NULL,
  sequence  INTEGER NOT NULL,
  audit_id  TEXT NOT NULL,
  hash      TEXT NOT NULL,
  PRIMARY KEY (tenant_id, sequence),
  UNIQUE (tenant_id, audit_id)
) STRICT, WITHOUT ROWID;

CREATE TABLE idempotency (
  tenant_id   TEXT NOT NULL,
  actor       TEXT NOT NULL,
  key         TEXT NOT NULL,
  fingerprint TEXT NOT NULL,
  status      INTEGER NOT NULL,
  body        TEXT NOT NULL,
  created_ms  INTEGER NOT NULL,
  PRIMARY KEY (tenant_id, actor, key)
) STRICT, WITHOUT ROWID;
CREATE INDEX idempotency_by_age ON idempotency (created_ms);
