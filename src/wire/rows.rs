//! From the rows of the control plane to what documents say.
//!
//! Invariant: a document is made of one consistent reading of its rows, and of nothing else.

use super::json::{self, Invalid, Object, Row};
use crate::domain::catalog::Catalog;
use crate::domain::feature::Override;
use crate::domain::id::TenantId;
use crate::domain::map::Map;
use crate::domain::name::{LimitName, ShardName};
use crate::domain::outbox::Event;
use crate::domain::plan::Amount;
use crate::domain::tenant::{Ancestor, KeyRecord, Level, LimitOverride, Relation, Status, Subscription, Tenant};

/// The members of a catalog, and the kind of the parts that each is made of.
const PARTS: [(&str, &str); 5] = [
    ("features", "feature"),
    ("kill_switches", "kill_switch"),
    ("meters", "meter"),
    ("origins", "origin"),
    ("plans", "plan"),
];

/// The catalog that these parts make, each a `kind`, a `name` and a `definition` as JSON; in its stored form and parsed.
///
/// # Errors
/// When a part is not of the shape that this version understands.
pub fn catalog(parts: &[Row]) -> Result<Catalog, Invalid> {
    let mut text = Object::new();
    for (member, kind) in PARTS {
        let mut members = Object::new();
        for part in parts {
            if part.text("kind")? == kind {
                members = members.entry(part.text("name")?, part.text("definition")?);
            }
        }
        text = text.json(member, &members.end());
    }
    json::parse(&text.end()).map_err(|_| Invalid("definition"))
}

/// One tenant of a chain, as its rows have it. What is structured is JSON.
#[derive(Clone, Debug)]
pub struct ChainRow {
    /// Who it is.
    pub tenant_id: TenantId,
    /// Its parent.
    pub parent_id: Option<TenantId>,
    /// Its short name.
    pub slug: String,
    /// Its name.
    pub name: String,
    /// Its standing.
    pub status: Status,
    /// Its hold on a plan.
    pub subscription: Option<String>,
    /// How it stands to its ancestors' limits.
    pub relations: String,
    /// The serial of its document.
    pub serial: u64,
    /// The version of its row, for guards.
    pub version: u64,
    /// Its overrides of features.
    pub overrides: String,
    /// Its overrides of limits.
    pub limits: String,
    /// The relations of its children, a list.
    pub children: String,
    /// Its keys, a list; of the first in a chain only.
    pub keys: String,
}

impl TryFrom<&Row> for ChainRow {
    type Error = Invalid;

    fn try_from(row: &Row) -> Result<Self, Invalid> {
        let text = |column| row.text(column).map(str::to_owned);
        Ok(Self {
            tenant_id: row.parsed("tenant_id")?,
            parent_id: row.optional("parent_id")?.map(str::parse).transpose().map_err(|_| Invalid("parent_id"))?,
            slug: text("slug")?,
            name: text("name")?,
            status: row.parsed("status")?,
            subscription: row.optional("subscription")?.map(str::to_owned),
            relations: text("relations")?,
            serial: row.integer("serial")?,
            version: row.integer("version")?,
            overrides: text("overrides")?,
            limits: text("limits")?,
            children: text("children")?,
            keys: text("keys")?,
        })
    }
}

impl ChainRow {
    /// Its hold on a plan.
    ///
    /// # Errors
    /// When the stored JSON is not of the shape that this version understands.
    pub fn subscription(&self) -> Result<Option<Subscription>, Invalid> {
        self.subscription.as_deref().map(|text| stored(text, "subscription")).transpose()
    }

    /// How it stands to its ancestors' limits.
    ///
    /// # Errors
    /// As [`Self::subscription`].
    pub fn relations(&self) -> Result<Map<LimitName, Relation>, Invalid> {
        stored(&self.relations, "relations")
    }

    fn level(&self) -> Result<Level, Invalid> {
        let children: Vec<Map<LimitName, Relation>> = stored(&self.children, "children")?;
        let mut carved: Map<LimitName, Amount> = Map::new();
        for (name, relation) in children.into_iter().flatten() {
            if let Relation::Carve(amount) = relation {
                let sum = carved.get(&name).map_or(amount, |sum| sum.with(amount));
                carved.insert(name, sum);
            }
        }
        Ok(Level {
            subscription: self.subscription()?,
            overrides: stored::<Map<_, Override>>(&self.overrides, "overrides")?,
            limits: stored::<Map<_, LimitOverride>>(&self.limits, "limits")?,
            carved,
        })
    }
}

/// An event as the ledger takes it: a reversal's quantity is below zero there, so that totals are sums.
#[must_use]
pub fn entry(event: &Event) -> String {
    let sign = if event.reverses.is_some() { "-" } else { "" };
    Object::new()
        .text("source", &event.source)
        .text("id", &event.id)
        .text("meter", event.meter.as_str())
        .text("mode", event.mode.name())
        .number("period", event.period.0)
        .number("at", event.at.0)
        .json("quantity", &format!("{sign}{}", event.quantity))
        .maybe(event.reverses.as_deref(), |object, id| object.text("reverses", id))
        .json("detail", &json::written(&event.detail))
        .text("fingerprint", &event.fingerprint())
        .end()
}

/// What a column holds as JSON.
fn stored<'de, T: serde::Deserialize<'de>>(text: &'de str, column: &'static str) -> Result<T, Invalid> {
    json::parse(text).map_err(|_| Invalid(column))
}

/// The document of the first in `chain`, and its serial; none for an empty chain.
///
/// # Errors
/// When a row is not of the shape that this version understands.
pub fn tenant(chain: &[ChainRow], shard: &ShardName) -> Result<Option<(u64, Tenant)>, Invalid> {
    let Some((own, above)) = chain.split_first() else { return Ok(None) };
    let ancestors = above
        .iter()
        .map(|row| {
            Ok(Ancestor {
                tenant: row.tenant_id,
                serial: row.serial,
                status: row.status,
                level: row.level()?,
                relations: row.relations()?,
            })
        })
        .collect::<Result<_, Invalid>>()?;
    let document = Tenant {
        tenant: own.tenant_id,
        status: own.status,
        shard: shard.clone(),
        level: own.level()?,
        relations: own.relations()?,
        keys: stored::<Vec<KeyRecord>>(&own.keys, "keys")?,
        ancestors,
    };
    Ok(Some((own.serial, document)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(id: &str, relations: &str, children: &str) -> ChainRow {
        let row = serde_json::json!([{
            "tenant_id": id, "parent_id": null, "slug": "s", "name": "n", "status": "active",
            "subscription": r#"{"plan":"pro","anchor":1795000000000}"#, "relations": relations, "serial": 3, "version": 1,
            "overrides": r#"{"analytics":{"value":true}}"#, "limits": "{}", "children": children, "keys": "[]",
        }]);
        ChainRow::try_from(&json::rows(&row.to_string()).unwrap()[0]).unwrap()
    }

    #[test]
    fn what_children_carve_is_added_up() {
        let carve = r#"{"requests":{"carve":{"rate":{"units":600,"per_ms":60000,"burst":5}}}}"#;
        let children = format!("[{carve},{carve},{{\"requests\":\"share\"}}]");
        let (serial, tenant) =
            tenant(&[row("ten_g000000000000001", "{}", &children)], &"global-1".parse().unwrap()).unwrap().unwrap();
        assert_eq!(serial, 3);
        let carved = tenant.level.carved.values().next().unwrap();
        assert_eq!(*carved, Amount::Rate { units: 1200, per_ms: 60_000, burst: 10 });
    }

    #[test]
    fn the_tenant_document_is_pinned() {
        let chain = [
            row("ten_g000000000000002", r#"{"requests":"share"}"#, "[]"),
            row("ten_g000000000000001", "{}", r#"[{"requests":"share"}]"#),
        ];
        let (_, tenant) = tenant(&chain, &"global-1".parse().unwrap()).unwrap().unwrap();
        let text = serde_json::to_string_pretty(&tenant).unwrap();
        assert_eq!(text, include_str!("../../tests/golden/tenant.json").trim_end());
    }
}
