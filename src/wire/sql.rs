//! Every SQL statement that D1 is ever given.
//!
//! Invariant: a [`Sql`] is made of a literal in this file and nowhere else, and each statement on a shard constrains
//! `tenant_id` on every tenant-owned table it touches, but for the sweep, which reads only who has work waiting.

/// A registered statement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sql(&'static str);

impl Sql {
    /// Its text, parameters as `?1`, `?2` and so on.
    #[must_use]
    pub const fn text(self) -> &'static str {
        self.0
    }

    /// The statement with its parameters, `?1` first.
    #[must_use]
    pub const fn with(self, params: Vec<Param>) -> Statement {
        Statement { sql: self, params }
    }
}

/// A parameter of a statement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Param {
    /// Text.
    Text(String),
    /// An integer within 2^53-1.
    Integer(u64),
    /// NULL.
    Null,
}

impl From<&str> for Param {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<String> for Param {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<u64> for Param {
    fn from(value: u64) -> Self {
        Self::Integer(value)
    }
}

impl<T: Into<Self>> From<Option<T>> for Param {
    fn from(value: Option<T>) -> Self {
        value.map_or(Self::Null, Into::into)
    }
}

/// A registered statement and what it is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Statement {
    /// The statement.
    pub sql: Sql,
    /// Its parameters, `?1` first.
    pub params: Vec<Param>,
}

macro_rules! statements {
    ($(#[$doc:meta])* pub mod $module:ident { $($(#[$each:meta])* $name:ident = $text:literal;)* }) => {
        $(#[$doc])*
        pub mod $module {
            use super::Sql;

            $($(#[$each])* pub const $name: Sql = Sql($text);)*

            /// All of them, by name.
            pub const ALL: &[(&str, Sql)] = &[$((stringify!($name), $name)),*];
        }
    };
}

statements! {
    /// On the control database.
    pub mod control {
        /// The catalog's serial.
        CATALOG_SERIAL = "SELECT serial FROM catalog WHERE id = 1";
        /// Every named definition that the catalog document is made of.
        CATALOG_PARTS = "
            SELECT 'feature' AS kind, name, definition FROM feature
            UNION ALL SELECT 'meter', name, definition FROM meter
            UNION ALL SELECT 'origin', name, definition FROM origin
            UNION ALL SELECT 'kill_switch', feature, definition FROM kill_switch
            UNION ALL SELECT 'plan', name, json_object('version', head, 'previous', previous) FROM plan";
        /// Aborts unless the catalog is still at ?1.
        GUARD_CATALOG = "INSERT INTO guard (ok, reason) SELECT serial = ?1, 'version' FROM catalog WHERE id = 1";
        /// Moves the catalog on.
        ADVANCE_CATALOG = "UPDATE catalog SET serial = serial + 1 WHERE id = 1";
        /// Stores a feature.
        PUT_FEATURE = "
            INSERT INTO feature (name, definition) VALUES (?1, ?2)
            ON CONFLICT (name) DO UPDATE SET definition = excluded.definition, version = version + 1";
        /// Stores a meter.
        PUT_METER = "
            INSERT INTO meter (name, definition) VALUES (?1, ?2)
            ON CONFLICT (name) DO UPDATE SET definition = excluded.definition, version = version + 1";
        /// Stores an origin with its routes.
        PUT_ORIGIN = "
            INSERT INTO origin (name, definition) VALUES (?1, ?2)
            ON CONFLICT (name) DO UPDATE SET definition = excluded.definition, version = version + 1";
        /// Throws a kill switch.
        PUT_KILL_SWITCH = "
            INSERT INTO kill_switch (feature, definition) VALUES (?1, ?2)
            ON CONFLICT (feature) DO UPDATE SET definition = excluded.definition, version = version + 1";
        /// Takes a kill switch back.
        DELETE_KILL_SWITCH = "DELETE FROM kill_switch WHERE feature = ?1";
        /// Makes version ?2 the head of plan ?1.
        PUT_PLAN = "
            INSERT INTO plan (name, head, previous) VALUES (?1, ?2, NULL)
            ON CONFLICT (name) DO UPDATE SET previous = head, head = excluded.head";
        /// Stores a plan version, once and for ever.
        ADD_PLAN_VERSION = "INSERT INTO plan_version (plan, version, definition, published_ms) VALUES (?1, ?2, ?3, ?4)";
        /// A plan version.
        PLAN_VERSION = "SELECT definition FROM plan_version WHERE plan = ?1 AND version = ?2";
        /// Every plan version, for publishing all anew.
        PLAN_VERSIONS = "SELECT plan, version, definition FROM plan_version ORDER BY plan, version";
        /// Notes that the catalog must be published.
        ADD_OUTBOX = "INSERT INTO outbox (document, created_ms) VALUES (?1, ?2)";
        /// What must still be published.
        OUTBOX = "SELECT seq, document FROM outbox ORDER BY seq LIMIT 100";
        /// The newest note so far.
        OUTBOX_HEAD = "SELECT coalesce(max(seq), 0) AS seq FROM outbox";
        /// Forgets what was published.
        CLEAR_OUTBOX = "DELETE FROM outbox WHERE seq <= ?1";
        /// Records who did what.
        ADD_AUDIT = "
            INSERT INTO audit (id, at_ms, actor, action, subject, detail, request_id) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)";
        /// The newest records, before the id ?1.
        AUDIT = "
            SELECT id, at_ms, actor, action, subject, detail, request_id FROM audit
            WHERE id < ?1 ORDER BY id DESC LIMIT ?2";
        /// Reserves a place for a tenant.
        RESERVE_TENANT = "
            INSERT INTO directory (tenant_id, slug, parent_id, shard, state, created_ms)
            VALUES (?1, ?2, ?3, ?4, 'reserved', ?5)";
        /// The tenant's rows are in its shard.
        PLACE_TENANT = "UPDATE directory SET state = 'placed' WHERE tenant_id = ?1";
        /// Where a tenant is.
        DIRECTORY = "SELECT tenant_id, slug, parent_id, shard, state FROM directory WHERE tenant_id = ?1";
        /// Who has a slug.
        DIRECTORY_BY_SLUG = "SELECT tenant_id, slug, parent_id, shard, state FROM directory WHERE slug = ?1";
        /// Tenants in the order of their ids, after ?1.
        DIRECTORY_PAGE = "
            SELECT tenant_id, slug, parent_id, shard, state FROM directory
            WHERE tenant_id > ?1 ORDER BY tenant_id LIMIT ?2";
        /// The stored answer to a mutation.
        IDEMPOTENT = "SELECT fingerprint, status, body FROM idempotency WHERE actor = ?1 AND key = ?2";
        /// Stores the answer to a mutation.
        ADD_IDEMPOTENT = "
            INSERT INTO idempotency (actor, key, fingerprint, status, body, created_ms) VALUES (?1, ?2, ?3, ?4, ?5, ?6)";
        /// Forgets answers older than ?1.
        EXPIRE_IDEMPOTENT = "DELETE FROM idempotency WHERE created_ms < ?1";
    }
}

statements! {
    /// On a shard.
    pub mod shard {
        /// Aborts unless tenant ?1 is at home here.
        GUARD_HOME = "
            INSERT INTO guard (ok, reason)
            SELECT (SELECT count(*) FROM home WHERE tenant_id = ?1 AND state = 'active'), 'home'";
        /// Aborts unless tenant ?1 is still at version ?2.
        GUARD_VERSION = "
            INSERT INTO guard (ok, reason)
            SELECT (SELECT count(*) FROM tenant WHERE tenant_id = ?1 AND version = ?2), 'version'";
        /// Aborts unless tenant ?1 has a key ?2.
        GUARD_KEY = "
            INSERT INTO guard (ok, reason)
            SELECT (SELECT count(*) FROM api_key WHERE tenant_id = ?1 AND key_id = ?2), 'exists'";
        /// Aborts unless tenant ?1 has fewer than ?2 keys that work: its document is bounded.
        GUARD_KEYS_BOUND = "
            INSERT INTO guard (ok, reason)
            SELECT (SELECT count(*) < ?2 FROM api_key WHERE tenant_id = ?1 AND revoked_ms IS NULL), 'bound'";
        /// The tenant comes home.
        ADD_HOME = "INSERT INTO home (tenant_id, epoch, state) VALUES (?1, 1, 'active')";
        /// A new tenant.
        ADD_TENANT = "
            INSERT INTO tenant (tenant_id, parent_id, slug, name, status, subscription, relations, serial, created_ms)
            VALUES (?1, ?2, ?3, ?4, 'active', ?5, '{}', 0, ?6)";
        /// Tenant ?1 and its ancestors, nearest first, each with what is its own.
        TENANT_CHAIN = "
            WITH RECURSIVE chain (tenant_id, depth) AS (
              SELECT tenant_id, 0 FROM tenant WHERE tenant_id = ?1
              UNION ALL
              SELECT t.parent_id, c.depth + 1 FROM chain c JOIN tenant t ON t.tenant_id = c.tenant_id
              WHERE t.parent_id IS NOT NULL AND c.depth < 8
            )
            SELECT t.tenant_id, t.parent_id, t.slug, t.name, t.status, t.subscription, t.relations, t.serial, t.version,
              (SELECT json_group_object(o.feature, json(o.definition)) FROM feature_override o
               WHERE o.tenant_id = t.tenant_id) AS overrides,
              (SELECT json_group_object(l.limit_name, json(l.definition)) FROM limit_override l
               WHERE l.tenant_id = t.tenant_id) AS limits,
              (SELECT json_group_array(json(k.relations)) FROM tenant k WHERE k.parent_id = t.tenant_id) AS children,
              CASE WHEN c.depth = 0 THEN
                (SELECT json_group_array(json_object('id', a.key_id, 'hash', a.hash, 'mode', a.mode,
                  'scopes', json(a.scopes), 'until', a.until_ms, 'revoked', json(iif(a.revoked_ms IS NULL, 'false', 'true'))))
                 FROM api_key a WHERE a.tenant_id = t.tenant_id)
              ELSE '[]' END AS keys
            FROM chain c JOIN tenant t ON t.tenant_id = c.tenant_id ORDER BY c.depth";
        /// Tenant ?1 and all below it.
        TREE = "
            WITH RECURSIVE tree (tenant_id) AS (
              SELECT tenant_id FROM tenant WHERE tenant_id = ?1
              UNION ALL SELECT t.tenant_id FROM tree p JOIN tenant t ON t.parent_id = p.tenant_id
            )
            SELECT tenant_id FROM tree";
        /// Moves the documents of tenant ?1 and all below it on.
        ADVANCE_TREE = "
            UPDATE tenant SET serial = serial + 1 WHERE tenant_id IN (
              WITH RECURSIVE tree (tenant_id) AS (
                SELECT tenant_id FROM tenant WHERE tenant_id = ?1
                UNION ALL SELECT t.tenant_id FROM tree p JOIN tenant t ON t.parent_id = p.tenant_id
              )
              SELECT tenant_id FROM tree)";
        /// Notes that the documents of tenant ?1 and all below it must be published.
        ADD_OUTBOX_TREE = "
            INSERT INTO outbox (tenant_id, created_ms)
            WITH RECURSIVE tree (tenant_id) AS (
              SELECT tenant_id FROM tenant WHERE tenant_id = ?1
              UNION ALL SELECT t.tenant_id FROM tree p JOIN tenant t ON t.parent_id = p.tenant_id
            )
            SELECT tenant_id, ?2 FROM tree";
        /// The sweep: which tenants' documents must still be published.
        OUTBOX = "SELECT seq, tenant_id FROM outbox ORDER BY seq LIMIT 100";
        /// The newest note about tenant ?1.
        OUTBOX_HEAD = "SELECT coalesce(max(seq), 0) AS seq FROM outbox WHERE tenant_id = ?1";
        /// Forgets what was published of tenant ?1.
        CLEAR_OUTBOX = "DELETE FROM outbox WHERE tenant_id = ?1 AND seq <= ?2";
        /// Changes a tenant's standing.
        SET_STATUS = "UPDATE tenant SET status = ?2, version = version + 1 WHERE tenant_id = ?1";
        /// Changes a tenant's hold on a plan.
        SET_SUBSCRIPTION = "UPDATE tenant SET subscription = ?2, version = version + 1 WHERE tenant_id = ?1";
        /// Changes how a tenant stands to its ancestors' limits.
        SET_RELATIONS = "UPDATE tenant SET relations = ?2, version = version + 1 WHERE tenant_id = ?1";
        /// Gives a tenant its own value for a feature.
        PUT_FEATURE_OVERRIDE = "
            INSERT INTO feature_override (tenant_id, feature, definition) VALUES (?1, ?2, ?3)
            ON CONFLICT (tenant_id, feature) DO UPDATE SET definition = excluded.definition";
        /// Takes it back.
        DELETE_FEATURE_OVERRIDE = "DELETE FROM feature_override WHERE tenant_id = ?1 AND feature = ?2";
        /// Gives a tenant its own value for a limit.
        PUT_LIMIT_OVERRIDE = "
            INSERT INTO limit_override (tenant_id, limit_name, definition) VALUES (?1, ?2, ?3)
            ON CONFLICT (tenant_id, limit_name) DO UPDATE SET definition = excluded.definition";
        /// Takes it back.
        DELETE_LIMIT_OVERRIDE = "DELETE FROM limit_override WHERE tenant_id = ?1 AND limit_name = ?2";
        /// A new API key: of its text only the hash.
        ADD_KEY = "
            INSERT INTO api_key (tenant_id, key_id, hash, mode, name, scopes, until_ms, created_ms)
            VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)";
        /// Takes an API key back.
        REVOKE_KEY = "
            UPDATE api_key SET revoked_ms = ?3 WHERE tenant_id = ?1 AND key_id = ?2 AND revoked_ms IS NULL";
        /// Forgets the keys of tenant ?1 that were taken back before ?2.
        FORGET_KEYS = "DELETE FROM api_key WHERE tenant_id = ?1 AND revoked_ms < ?2";
        /// A tenant's keys, without their hashes.
        KEYS = "
            SELECT key_id, mode, name, scopes, until_ms, revoked_ms, created_ms FROM api_key
            WHERE tenant_id = ?1 ORDER BY key_id";
        /// Records who did what.
        ADD_AUDIT = "
            INSERT INTO audit (tenant_id, id, at_ms, actor, action, subject, detail, request_id)
            VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)";
        /// Records that the chain does not hold yet, oldest first.
        UNSEALED = "
            SELECT a.id, a.at_ms, a.actor, a.action, a.subject, a.detail, a.request_id
            FROM unsealed u JOIN audit a ON a.tenant_id = ?1 AND a.id = u.audit_id
            WHERE u.tenant_id = ?1 ORDER BY u.audit_id LIMIT 100";
        /// The end of the chain.
        CHAIN_HEAD = "SELECT sequence, hash FROM seal WHERE tenant_id = ?1 ORDER BY sequence DESC LIMIT 1";
        /// Links to the chain, from JSON.
        ADD_SEALS = "
            INSERT INTO seal (tenant_id, sequence, audit_id, hash)
            SELECT ?1, value ->> 'sequence', value ->> 'audit_id', value ->> 'hash' FROM json_each(?2) WHERE true
            ON CONFLICT DO NOTHING";
        /// The newest records of a tenant, before the id ?2, with their places in the chain.
        AUDIT = "
            SELECT a.id, a.at_ms, a.actor, a.action, a.subject, a.detail, a.request_id, s.sequence, s.hash
            FROM audit a LEFT JOIN seal s ON s.tenant_id = ?1 AND s.audit_id = a.id
            WHERE a.tenant_id = ?1 AND a.id < ?2 ORDER BY a.id DESC LIMIT ?3";
        /// Events into the ledger, from JSON: what is there already stays as it is.
        ADD_ENTRIES = "
            INSERT INTO entry
              (tenant_id, source, event_id, meter, mode, period_start, at_ms, quantity, reverses, detail, fingerprint,
               recorded_ms)
            SELECT ?1, value ->> 'source', value ->> 'id', value ->> 'meter', value ->> 'mode', value ->> 'period',
              value ->> 'at', value ->> 'quantity', value ->> 'reverses', value -> 'detail', value ->> 'fingerprint', ?3
            FROM json_each(?2) WHERE true
            ON CONFLICT DO NOTHING";
        /// Which of these events the ledger holds, and as what. CROSS, so that SQLite begins with the events: by itself it
        /// begins with all that the tenant ever used, and reads the events anew for each (2 to 15 s for a thousand of them).
        CONFIRM_ENTRIES = "
            SELECT e.source, e.event_id AS id, e.fingerprint FROM json_each(?2) j
            CROSS JOIN entry e ON e.tenant_id = ?1 AND e.source = j.value ->> 'source' AND e.event_id = j.value ->> 'id'";
        /// Totals of a tenant since ?2.
        TOTALS = "
            SELECT meter, mode, period_start, quantity, entries FROM total
            WHERE tenant_id = ?1 AND period_start >= ?2 ORDER BY meter, mode, period_start";
        /// The stored answer to a mutation.
        IDEMPOTENT = "
            SELECT fingerprint, status, body FROM idempotency WHERE tenant_id = ?1 AND actor = ?2 AND key = ?3";
        /// Stores the answer to a mutation.
        ADD_IDEMPOTENT = "
            INSERT INTO idempotency (tenant_id, actor, key, fingerprint, status, body, created_ms)
            VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)";
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_statement_on_a_shard_constrains_its_tenant() {
        // The sweep asks who has work waiting, and is told only that.
        let exempt = ["OUTBOX"];
        for (name, sql) in shard::ALL {
            let constrained = sql.text().contains("?1") && sql.text().contains("tenant_id");
            assert!(constrained || exempt.contains(name), "{name}");
        }
    }
}
