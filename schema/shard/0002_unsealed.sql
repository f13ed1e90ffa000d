-- Records that the chain does not hold yet: here with the record, gone with its link, so that whoever seals need not look
-- through all that was sealed before.
CREATE TABLE unsealed (
  tenant_id TEXT NOT NULL,
  audit_id  TEXT NOT NULL,
  PRIMARY KEY (tenant_id, audit_id)
) STRICT, WITHOUT ROWID;
INSERT INTO unsealed (tenant_id, audit_id)
SELECT a.tenant_id, a.id FROM audit a
WHERE NOT EXISTS (SELECT 1 FROM seal s WHERE s.tenant_id = a.tenant_id AND s.audit_id = a.id);
CREATE TRIGGER audit_waits_for_its_link AFTER INSERT ON audit BEGIN
  INSERT INTO unsealed (tenant_id, audit_id) VALUES (NEW.tenant_id, NEW.id);
END;
CREATE TRIGGER link_seals_a_record AFTER INSERT ON seal BEGIN
  DELETE FROM unsealed WHERE tenant_id = NEW.tenant_id AND audit_id = NEW.audit_id;
END;
