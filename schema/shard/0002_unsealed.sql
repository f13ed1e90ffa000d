-- What the chain does not hold yet: to tell it from the records themselves is to read all of them each time.
CREATE TABLE unsealed (
  tenant_id TEXT NOT NULL,
  audit_id  TEXT NOT NULL,
  PRIMARY KEY (tenant_id, audit_id)
) STRICT, WITHOUT ROWID;
INSERT INTO unsealed (tenant_id, audit_id)
SELECT tenant_id, id FROM audit a
WHERE NOT EXISTS (SELECT 1 FROM seal s WHERE s.tenant_id = a.tenant_id AND s.audit_id = a.id);
CREATE TRIGGER audit_waits_for_its_link AFTER INSERT ON audit
BEGIN INSERT INTO unsealed (tenant_id, audit_id) VALUES (NEW.tenant_id, NEW.id); END;
CREATE TRIGGER link_ends_the_wait AFTER INSERT ON seal
BEGIN DELETE FROM unsealed WHERE tenant_id = NEW.tenant_id AND audit_id = NEW.audit_id; END;
CREATE TRIGGER seal_is_immutable BEFORE UPDATE ON seal BEGIN SELECT RAISE(ABORT, 'the chain is append-only'); END;
CREATE TRIGGER seal_is_kept BEFORE DELETE ON seal BEGIN SELECT RAISE(ABORT, 'the chain is append-only'); END;
