//! From the rows of the control plane to what documents say.
//!
//! Invariant: a document is made of one consistent reading of its rows, and of nothing else.

use serde::Deserialize;

use super::json;
use crate::domain::catalog::Catalog;
use crate::domain::feature::Override;
use crate::domain::id::TenantId;
use crate::domain::map::Map;
use crate::domain::name::{LimitName, ShardName};
use crate::domain::plan::Amount;
use crate::domain::tenant::{Ancestor, KeyRecord, Level, LimitOverride, Relation, Status, Subscription, Tenant};

/// One of the parts that the catalog is made of.
#[derive(Debug, Deserialize)]
pub struct Part {
    /// `feature`, `meter`, `origin`, `kill_switch` or `plan`.
    pub kind: String,
    /// Its name.
    pub name: String,
    /// What it says, as JSON.
    pub definition: String,
}

/// The catalog that these parts make.
///
/// # Errors
/// When a part is not of the shape that this version understands.
pub fn catalog(parts: &[Part]) -> Result<Catalog, serde_json::Error> {
    let mut tree = serde_json::Map::new();
    for part in parts {
        let within = match part.kind.as_str() {
            "feature" => "features",
            "meter" => "meters",
            "origin" => "origins",
            "kill_switch" => "kill_switches",
            _ => "plans",
        };
        let mut value: serde_json::Value = json::parse(&part.definition)?;
        // SQL writes a missing previous version as null.
        if let Some(head) = value.as_object_mut().filter(|_| within == "plans") {
            head.retain(|_, value| !value.is_null());
        }
        let map = tree.entry(within).or_insert_with(|| serde_json::Value::Object(serde_json::Map::new()));
        if let Some(map) = map.as_object_mut() {
            map.insert(part.name.clone(), value);
        }
    }
    json::parse(&serde_json::Value::Object(tree).to_string())
}

/// One tenant of a chain, as its rows have it.
#[derive(Debug, Deserialize)]
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
    /// Its hold on a plan, as JSON.
    pub subscription: Option<String>,
    /// How it stands to its ancestors' limits, as JSON.
    pub relations: String,
    /// The serial of its document.
    pub serial: u64,
    /// The version of its row, for guards.
    pub version: u64,
    /// Its overrides of features, as JSON.
    pub overrides: String,
    /// Its overrides of limits, as JSON.
    pub limits: String,
    /// The relations of its children, as a JSON array.
    pub children: String,
    /// Its keys, as a JSON array; of the first in a chain only.
    pub keys: String,
}

impl ChainRow {
    /// Its hold on a plan.
    ///
    /// # Errors
    /// When the stored JSON is not of the shape that this version understands.
    pub fn subscription(&self) -> Result<Option<Subscription>, serde_json::Error> {
        self.subscription.as_deref().map(json::parse).transpose()
    }

    /// How it stands to its ancestors' limits.
    ///
    /// # Errors
    /// As [`Self::subscription`].
    pub fn relations(&self) -> Result<Map<LimitName, Relation>, serde_json::Error> {
        json::parse(&self.relations)
    }

    fn level(&self) -> Result<Level, serde_json::Error> {
        let children: Vec<Map<LimitName, Relation>> = json::parse(&self.children)?;
        let mut carved: Map<LimitName, Amount> = Map::new();
        for (name, relation) in children.into_iter().flatten() {
            if let Relation::Carve(amount) = relation {
                let sum = carved.get(&name).map_or(amount, |sum| sum.with(amount));
                carved.insert(name, sum);
            }
        }
        Ok(Level {
            subscription: self.subscription()?,
            overrides: json::parse::<Map<_, Override>>(&self.overrides)?,
            limits: json::parse::<Map<_, LimitOverride>>(&self.limits)?,
            carved,
        })
    }
}

/// The document of the first in `chain`, and its serial; none for an empty chain.
///
/// # Errors
/// When a row is not of the shape that this version understands.
pub fn tenant(chain: &[ChainRow], shard: &ShardName) -> Result<Option<(u64, Tenant)>, serde_json::Error> {
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
        .collect::<Result<_, serde_json::Error>>()?;
    let document = Tenant {
        tenant: own.tenant_id,
        status: own.status,
        shard: shard.clone(),
        level: own.level()?,
        relations: own.relations()?,
        keys: json::parse::<Vec<KeyRecord>>(&own.keys)?,
        ancestors,
    };
    Ok(Some((own.serial, document)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(id: &str, relations: &str, children: &str) -> ChainRow {
        serde_json::from_value(serde_json::json!({
            "tenant_id": id, "parent_id": null, "slug": "s", "name": "n", "status": "active",
            "subscription": r#"{"plan":"pro","anchor":1795000000000}"#, "relations": relations, "serial": 3, "version": 1,
            "overrides": r#"{"analytics":{"value":true}}"#, "limits": "{}", "children": children, "keys": "[]",
        }))
        .unwrap()
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
