-- The tenant object's own SQLite. Four jobs, each with tables of its own, in one database so that admitting and recording
-- are one transaction. Statements that are run again at every start, so each says IF NOT EXISTS.

-- Whose object this is: said by the first message, and never again.
CREATE TABLE IF NOT EXISTS owner (
  id     INTEGER PRIMARY KEY CHECK (id = 1),
  tenant TEXT NOT NULL
);

-- Publisher: the newest content of each document this object owns. `pending` until KV has it.
CREATE TABLE IF NOT EXISTS document (
  name       TEXT PRIMARY KEY,
  serial     INTEGER NOT NULL,
  body       TEXT NOT NULL,
  signed     TEXT NOT NULL,
  signed_ms  INTEGER NOT NULL,
  pending    INTEGER NOT NULL
) WITHOUT ROWID;

-- Limiter: the rows of src/domain/limit/table.rs, in the form they have there.
CREATE TABLE IF NOT EXISTS limiter (
  place TEXT PRIMARY KEY,
  body  TEXT NOT NULL
) WITHOUT ROWID;

-- Counts of leased meters, gathering until the next batch makes an event of each: a row for all that has the same label.
CREATE TABLE IF NOT EXISTS gathering (
  label TEXT PRIMARY KEY,
  units INTEGER NOT NULL
) WITHOUT ROWID;

-- Outbox: events on their way to the ledger. A row leaves by the sequence number that the ledger confirmed.
CREATE TABLE IF NOT EXISTS outbox (
  seq      INTEGER PRIMARY KEY AUTOINCREMENT,
  source   TEXT NOT NULL,
  event_id TEXT NOT NULL,
  body     TEXT NOT NULL,
  refusals INTEGER NOT NULL DEFAULT 0,
  UNIQUE (source, event_id)
);

-- What the ledger will never take, or holds otherwise: kept for a person to look at.
CREATE TABLE IF NOT EXISTS quarantine (
  seq      INTEGER PRIMARY KEY,
  source   TEXT NOT NULL,
  event_id TEXT NOT NULL,
  body     TEXT NOT NULL,
  reason   TEXT NOT NULL,
  at_ms    INTEGER NOT NULL
);

-- Requests that were refused, or would have been, by minute, key, code and route: shown, never billed.
CREATE TABLE IF NOT EXISTS traffic (
  minute       INTEGER NOT NULL,
  key          TEXT NOT NULL,
  what         TEXT NOT NULL,
  requests     INTEGER NOT NULL,
  last_request TEXT,
  PRIMARY KEY (minute, key, what)
) WITHOUT ROWID;

-- When each job runs next. The platform has one alarm for an object; this is what it serves.
CREATE TABLE IF NOT EXISTS job (
  name     TEXT PRIMARY KEY,
  due_ms   INTEGER NOT NULL,
  begun_ms INTEGER,
  failures INTEGER NOT NULL DEFAULT 0
) WITHOUT ROWID;
