//! The operator's part of the API: what is sold, to whom, with which exceptions.
//!
//! Invariant: a change, its audit record, the stored answer for its idempotency key and the note that it must be published
//! are one batch, or nothing. What is published is carried at once, and by the sweep if a crash left it.
//!
//! Every change: 1. the operator key (401); 2. `Idempotency-Key` (400); 3. a stored answer
//! for it is given again (422 where the request is another); 4. `wire::change` decides (400, 404, 409, 413, 422); 5. the
//! batch (409); 6. its answer.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;
use sha2::{Digest, Sha256};
use worker::console_error;

use super::api::{Answer, Call};
use super::carry;
use super::d1::{Abort, Database, after};
use super::object::ask_tenant;
use super::{caller, documents, isolate};
use crate::domain::api_key::{KeyHash, Mode};
use crate::domain::decision::Code;
use crate::domain::document::DocumentKey;
use crate::domain::id::{Jurisdiction, TenantId};
use crate::domain::name::{PlanName, ShardName, Slug};
use crate::domain::tenant::Subscription;
use crate::domain::time::UnixMillis;
use crate::wire::change::tenant::{Facts, Minted, check_plan, whole_minute};
use crate::wire::change::{self, Asked, MAX_BODY, Record, catalog, tenant};
use crate::wire::json::{self, Invalid, List, Object, Row, written};
use crate::wire::object::AskTenant;
use crate::wire::problem::Failure;
use crate::wire::rows::{self, ChainRow};
use crate::wire::sql::{Param, Statement, control, shard};

/// How often a change is tried again when another came between reading and writing.
const TRIES: usize = 5;
/// The most levels of a tree: an organisation, and three below it.
const LEVELS: usize = 4;
/// Ids begin with the time in base 32, whose last digit is below this.
const NEWEST: &str = "req_~";

impl From<Abort> for Failure {
    fn from(abort: Abort) -> Self {
        console_error!("{abort}");
        match abort {
            Abort::Guard(reason) if reason == "exists" || reason == "absent" => Self::new(Code::NotFound),
            Abort::Guard(reason) if reason == "bound" => {
                Self::new(Code::Conflict).because("this tenant has as many of these as it may have")
            }
            Abort::Guard(_) => Self::new(Code::Conflict).because("it was changed meanwhile; read it again"),
            Abort::Constraint(_) => Self::new(Code::Conflict).because("it is there already"),
            Abort::Unavailable(_) => Self { retry_after_s: Some(1), ..Self::new(Code::Unavailable) },
        }
    }
}

impl From<Invalid> for Failure {
    fn from(invalid: Invalid) -> Self {
        Abort::from(invalid).into()
    }
}

/// Who operates, as audit records name them.
const OPERATOR: &str = "operator";

/// Lets nobody else through.
///
/// # Errors
/// 401 for no operator key, or another one.
fn operator(call: &Call) -> Result<(), Failure> {
    let authorization = call.header("authorization").unwrap_or_default();
    let text = authorization.strip_prefix("Bearer ").or_else(|| authorization.strip_prefix("bearer ")).map(str::trim);
    let missing = || Failure::new(Code::KeyMissing).because("send the operator key as Authorization: Bearer");
    // Comparing hashes tells nothing about the key, however long it takes.
    if KeyHash::of(text.ok_or_else(missing)?) == call.config.operator_key {
        Ok(())
    } else {
        Err(Failure::new(Code::KeyInvalid))
    }
}

/// A change that is under way.
struct Change {
    key: String,
    fingerprint: String,
    body: Vec<u8>,
    random: (u128, u128),
}

impl Change {
    /// Steps 1 and 2, and the body as bytes.
    ///
    /// # Errors
    /// Why the change cannot begin.
    async fn begin(call: &Call) -> Result<Self, Failure> {
        operator(call)?;
        let key = call.header("idempotency-key").ok_or_else(|| Failure::new(Code::IdempotencyKeyMissing))?;
        // A structured-field string is quoted; many clients send the bare value.
        let key = key.strip_prefix('"').and_then(|key| key.strip_suffix('"')).unwrap_or(&key);
        if key.is_empty() || key.len() > 255 || !key.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(Failure::new(Code::IdempotencyKeyInvalid));
        }
        let body = call.body(MAX_BODY).await?;
        let mut hash = Sha256::new();
        hash.update(call.what().as_bytes());
        hash.update([0]);
        hash.update(&body);
        let fingerprint = URL_SAFE_NO_PAD.encode(hash.finalize());
        let random = (isolate::random()?, isolate::random()?);
        Ok(Self { key: key.to_owned(), fingerprint, body, random })
    }

    fn asked<'a>(&'a self, call: &'a Call) -> Asked<'a> {
        Asked {
            route: call.route,
            path: call.path(),
            body: &self.body,
            actor: OPERATOR,
            now: call.now,
            random: self.random,
            keys: &call.config.api_keys,
        }
    }

    /// Where the answer that was given before would be, with the operator's own or with a tenant's.
    fn before(&self, home: Option<TenantId>) -> Statement {
        let (actor, key) = (OPERATOR.into(), self.key.as_str().into());
        match home {
            None => control::IDEMPOTENT.with(vec![actor, key]),
            Some(tenant) => shard::IDEMPOTENT.with(vec![tenant.to_string().into(), actor, key]),
        }
    }

    /// Step 3: the answer that was given before, if any.
    ///
    /// # Errors
    /// 422 when the key was used for something else.
    fn replay(&self, stored: &[Row]) -> Result<Option<Answer>, Failure> {
        let Some(stored) = stored.first() else { return Ok(None) };
        if stored.text("fingerprint")? != self.fingerprint {
            return Err(Failure::new(Code::IdempotencyKeyReused));
        }
        let status = u16::try_from(stored.integer("status")?).unwrap_or(200);
        Ok(Some(Answer::json(status, stored.text("body")?.to_owned())))
    }

    /// What stores the answer and the audit record. Nothing secret may be in `body`.
    fn seal(&self, call: &Call, home: Option<TenantId>, record: Record, status: u16, body: &str) -> [Statement; 2] {
        let first = || home.map(|tenant| Param::from(tenant.to_string()));
        let answer = [
            OPERATOR.into(),
            self.key.as_str().into(),
            self.fingerprint.as_str().into(),
            u64::from(status).into(),
            body.into(),
            call.now.0.into(),
        ];
        let (add_answer, add_audit) = match home {
            None => (control::ADD_IDEMPOTENT, control::ADD_AUDIT),
            Some(_) => (shard::ADD_IDEMPOTENT, shard::ADD_AUDIT),
        };
        let audit = audit(call, record);
        [
            add_answer.with(first().into_iter().chain(answer).collect()),
            add_audit.with(first().into_iter().chain(audit).collect()),
        ]
    }
}

fn audit(call: &Call, Record { action, subject, detail }: Record) -> [Param; 7] {
    let id = call.id.to_string();
    [id.as_str().into(), call.now.0.into(), OPERATOR.into(), action.into(), subject.into(), detail.into(), id.into()]
}

/// What a batch of a change came to.
enum Batched {
    Done,
    /// Another change came between.
    Again,
}

/// What became of a change's batch; a change that was made by the same request at the same time is still under way.
fn batched(result: Result<Vec<Vec<Row>>, Abort>) -> Result<Batched, Failure> {
    match result {
        Ok(_) => Ok(Batched::Done),
        Err(Abort::Guard(reason)) if reason == "version" => Ok(Batched::Again),
        Err(Abort::Constraint(message)) if after(&message, "idempotency").is_some() => {
            Err(Failure::new(Code::IdempotencyInProgress))
        }
        Err(abort) => Err(abort.into()),
    }
}

/// The next of the results of a batch.
fn next(results: &mut std::vec::IntoIter<Vec<Row>>) -> Vec<Row> {
    results.next().unwrap_or_default()
}

/// Reads the catalog, changes it, checks it whole, stores the part, and publishes; from the beginning where another change
/// came between.
pub(crate) async fn alter_catalog(call: Call, decide: catalog::Decide) -> Result<Answer, Failure> {
    let change = Change::begin(&call).await?;
    let database = Database::control(&call.env)?;
    for _ in 0..TRIES {
        let reads = vec![
            change.before(None),
            control::CATALOG_SERIAL.with(Vec::new()),
            control::CATALOG_PARTS.with(Vec::new()),
        ];
        let mut results = database.run(reads).await?.into_iter();
        if let Some(answer) = change.replay(&next(&mut results))? {
            return Ok(answer);
        }
        let serial = next(&mut results).first().map_or(Ok(0), |row| row.integer("serial"))?;
        let mut catalog = rows::catalog(&next(&mut results))?;
        let edit = change::catalog::make(decide, &change.asked(&call), &mut catalog)?;
        let status = if edit.plan.is_some() { 201 } else { 200 };
        let body = edit.answer.number("serial", serial + 1).end();
        let mut batch = vec![control::GUARD_CATALOG.with(vec![serial.into()])];
        batch.extend(edit.statements);
        batch.push(control::ADVANCE_CATALOG.with(Vec::new()));
        batch.push(control::ADD_OUTBOX.with(vec!["catalog".into(), call.now.0.into()]));
        batch.extend(change.seal(&call, None, edit.record, status, &body));
        if let Batched::Again = batched(database.run(batch).await)? {
            continue;
        }
        // It is stored: from here on nothing fails the request. What does not arrive now, the sweep carries.
        match carry::catalog(&call.env, edit.plan.as_ref(), &catalog, serial + 1).await {
            Ok(()) => {
                documents::read_own_change(&call.env, &call.config, &DocumentKey::Catalog, call.now).await;
                if let Err(abort) = clear(&database, serial + 1).await {
                    console_error!("outbox: {abort}");
                }
            }
            Err(message) => console_error!("catalog {}: {message}", serial + 1),
        }
        return Ok(Answer::json(status, body));
    }
    Err(Failure::new(Code::Conflict).because("the catalog is being changed by others; try again"))
}

/// Takes the note off the outbox, if this was the last change: what others noted meanwhile stays.
async fn clear(database: &Database, serial: u64) -> Result<(), Abort> {
    let head = database.row(control::OUTBOX_HEAD.with(Vec::new())).await?;
    let head = head.map_or(Ok(0), |head| head.integer("seq"))?;
    let batch = vec![control::GUARD_CATALOG.with(vec![serial.into()]), control::CLEAR_OUTBOX.with(vec![head.into()])];
    match database.run(batch).await {
        Ok(_) | Err(Abort::Guard(_)) => Ok(()),
        Err(abort) => Err(abort),
    }
}

/// Where a tenant is.
struct Placed {
    tenant: TenantId,
    slug: String,
    parent: Option<TenantId>,
    shard: ShardName,
    state: String,
}

impl TryFrom<&Row> for Placed {
    type Error = Invalid;

    fn try_from(row: &Row) -> Result<Self, Invalid> {
        Ok(Self {
            tenant: row.parsed("tenant_id")?,
            slug: row.text("slug")?.to_owned(),
            parent: row.optional("parent_id")?.map(str::parse).transpose().map_err(|_| Invalid("parent_id"))?,
            shard: row.parsed("shard")?,
            state: row.text("state")?.to_owned(),
        })
    }
}

/// Where the tenant with this id is, if it is anywhere.
async fn placed(call: &Call, id: &str) -> Result<Placed, Failure> {
    let id: TenantId = id.parse().map_err(|_| Failure::new(Code::NotFound))?;
    let row = Database::control(&call.env)?.row(control::DIRECTORY.with(vec![id.to_string().into()])).await?;
    let placed = row.as_ref().map(Placed::try_from).transpose()?;
    placed.filter(|placed| placed.state == "placed").ok_or_else(|| Failure::new(Code::NotFound))
}

/// Reads a tenant and the catalog, lets `decide` change the one, stores that, and publishes.
pub(crate) async fn alter_tenant(call: Call, decide: tenant::Decide) -> Result<Answer, Failure> {
    let change = Change::begin(&call).await?;
    let id: TenantId = call.param("id").parse().map_err(|_| Failure::new(Code::NotFound))?;
    let reads = vec![control::DIRECTORY.with(vec![id.to_string().into()]), control::CATALOG_PARTS.with(Vec::new())];
    let mut results = Database::control(&call.env)?.run(reads).await?.into_iter();
    let place = next(&mut results).first().map(Placed::try_from).transpose()?;
    let place = place.filter(|place| place.state == "placed").ok_or_else(|| Failure::new(Code::NotFound))?;
    let catalog = rows::catalog(&next(&mut results))?;

    let database = Database::shard(&call.env, &place.shard)?;
    let reads = vec![change.before(Some(id)), shard::TENANT_CHAIN.with(vec![id.to_string().into()])];
    let mut results = database.run(reads).await?.into_iter();
    if let Some(answer) = change.replay(&next(&mut results))? {
        return Ok(answer);
    }
    let own = next(&mut results).first().map(ChainRow::try_from).transpose()?;
    let own = own.ok_or_else(|| Failure::new(Code::NotFound))?;
    let edit = decide(&change.asked(&call), &Facts { own, catalog })?;

    let body = edit.answer.clone().end();
    let root = Param::from(edit.root.to_string());
    let mut batch = vec![shard::GUARD_HOME.with(vec![id.to_string().into()])];
    batch.extend(edit.statements);
    batch.push(shard::ADVANCE_TREE.with(vec![root.clone()]));
    batch.push(shard::ADD_OUTBOX_TREE.with(vec![root, call.now.0.into()]));
    batch.extend(change.seal(&call, Some(id), edit.record, edit.status, &body));
    if let Batched::Again = batched(database.run(batch).await)? {
        return Err(Failure::new(Code::Conflict).because("it was changed meanwhile; try again"));
    }
    // It is stored: from here on nothing fails the request. What does not arrive now, the sweep carries.
    if let Err(message) = carry::tree(&call.env, &call.config, &place.shard, edit.root).await {
        console_error!("{}: {message}", edit.root);
    }
    if let Err(error) = ask_tenant(&call.env, &call.config, id, AskTenant::Seal).await {
        console_error!("{id}: {error}");
    }
    let shown = edit.answer.maybe(edit.api_key.as_deref(), |object, text| object.text("api_key", text));
    Ok(Answer::json(edit.status, shown.end()))
}

/// A tenant to be.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NewTenant {
    slug: Slug,
    name: String,
    #[serde(default)]
    plan: Option<PlanName>,
    #[serde(default)]
    version: Option<u32>,
    #[serde(default)]
    parent: Option<TenantId>,
    #[serde(default)]
    jurisdiction: Option<Jurisdiction>,
    /// An instant at which a usage period begins; now where absent.
    #[serde(default)]
    anchor: Option<UnixMillis>,
}

/// Makes a tenant with its first API key. Two databases: a place is reserved in the directory, then the rows are written to
/// the shard, then the place is confirmed. The same request again takes up where a crash left it.
pub(crate) async fn create_tenant(call: Call) -> Result<Answer, Failure> {
    let change = Change::begin(&call).await?;
    let control = Database::control(&call.env)?;
    if let Some(answer) = change.replay(&control.rows(change.before(None)).await?)? {
        return Ok(answer);
    }
    let wanted: NewTenant = json::read(&change.body, MAX_BODY)?;
    let place = reserve(&call, &control, &wanted, change.random.0).await?;
    let api_key = settle(&call, &change, &wanted, &place).await?;

    let placement =
        Object::new().text("jurisdiction", place.tenant.jurisdiction().name()).text("shard", place.shard.as_str());
    let subscription = wanted.plan.as_ref().map_or("null".to_owned(), |plan| {
        let version = wanted.version.map(u64::from);
        let object = Object::new().text("plan", plan.as_str());
        object.maybe(version, |object, version| object.number("version", version)).end()
    });
    let answer = Object::new()
        .shown("id", &place.tenant)
        .text("slug", &place.slug)
        .text("name", &wanted.name)
        .json("parent", &written(&place.parent))
        .text("status", "active")
        .json("placement", &placement.end())
        .json("subscription", &subscription);
    let id = place.tenant.to_string();
    let record =
        Record { action: "tenant.create", subject: id.clone(), detail: Object::new().text("slug", &place.slug).end() };
    let mut batch = vec![control::PLACE_TENANT.with(vec![id.into()])];
    batch.extend(change.seal(&call, None, record, 201, &answer.clone().end()));
    batched(control.run(batch).await)?;
    // The parent's document does not name its children, but what they carve; a new child carves nothing.
    if let Err(message) = carry::tree(&call.env, &call.config, &place.shard, place.tenant).await {
        console_error!("{}: {message}", place.tenant);
    }
    Ok(Answer::json(201, answer.text("api_key", &api_key).end()))
}

/// A place in the directory: a new one, or the one that an interrupted request reserved under the same slug.
async fn reserve(call: &Call, control: &Database, wanted: &NewTenant, random: u128) -> Result<Placed, Failure> {
    let slug = wanted.slug.as_str();
    let reads = vec![
        control::DIRECTORY_BY_SLUG.with(vec![slug.into()]),
        control::DIRECTORY.with(vec![wanted.parent.map(|parent| parent.to_string()).into()]),
        control::CATALOG_PARTS.with(Vec::new()),
    ];
    let mut results = control.run(reads).await?.into_iter();
    let held = next(&mut results).first().map(Placed::try_from).transpose()?;
    let parent = next(&mut results).first().map(Placed::try_from).transpose()?;
    let catalog = rows::catalog(&next(&mut results))?;
    if let Some(plan) = &wanted.plan {
        check_plan(&catalog, plan, wanted.version)?;
    }
    match held {
        Some(held) if held.state == "placed" => {
            return Err(Failure::new(Code::Conflict).because(format!("the slug {slug} is taken")));
        }
        Some(held) => return Ok(held),
        None => {}
    }
    let (jurisdiction, shard) = if let Some(id) = wanted.parent {
        let parent = parent.filter(|parent| parent.state == "placed");
        let parent = parent.ok_or_else(|| Failure::at("#/parent", format!("there is no tenant {id}")))?;
        if wanted.jurisdiction.is_some_and(|wanted| wanted != id.jurisdiction()) {
            return Err(Failure::at("#/jurisdiction", "a tenant lives where its parent does"));
        }
        if carry::chain(&Database::shard(&call.env, &parent.shard)?, id).await?.len() >= LEVELS {
            return Err(Failure::at("#/parent", format!("a tree has at most {LEVELS} levels")));
        }
        (id.jurisdiction(), parent.shard)
    } else {
        let jurisdiction = wanted.jurisdiction.unwrap_or(Jurisdiction::Global);
        let prefix = format!("{jurisdiction}-");
        let shard = carry::shards(&call.env).into_iter().filter(|shard| shard.as_str().starts_with(&prefix)).max();
        let shard =
            shard.ok_or_else(|| Failure::at("#/jurisdiction", format!("no shard is bound in {jurisdiction}")))?;
        (jurisdiction, shard)
    };
    #[expect(clippy::cast_possible_truncation, reason = "any 32 of its bits will do")]
    let tenant = TenantId::new(jurisdiction, call.now, (random as u32).to_be_bytes());
    let params = vec![
        tenant.to_string().into(),
        slug.into(),
        wanted.parent.map(|parent| parent.to_string()).into(),
        shard.as_str().into(),
        call.now.0.into(),
    ];
    control.run(vec![control::RESERVE_TENANT.with(params)]).await?;
    Ok(Placed { tenant, slug: slug.to_owned(), parent: wanted.parent, shard, state: "reserved".to_owned() })
}

/// The rows of a new tenant, unless they are there; and an API key, whose text is given back and nowhere kept.
async fn settle(call: &Call, change: &Change, wanted: &NewTenant, place: &Placed) -> Result<String, Failure> {
    let database = Database::shard(&call.env, &place.shard)?;
    let id = place.tenant.to_string();
    let mut batch = Vec::new();
    if carry::chain(&database, place.tenant).await?.is_empty() {
        let anchor = whole_minute(wanted.anchor.unwrap_or(call.now));
        let subscription = wanted
            .plan
            .as_ref()
            .map(|plan| written(&Subscription { plan: plan.clone(), version: wanted.version, anchor }));
        batch.push(shard::ADD_HOME.with(vec![id.as_str().into()]));
        batch.push(shard::ADD_TENANT.with(vec![
            id.as_str().into(),
            place.parent.map(|parent| parent.to_string()).into(),
            place.slug.as_str().into(),
            wanted.name.as_str().into(),
            subscription.into(),
            call.now.0.into(),
        ]));
    }
    let minted = Minted::new(&call.config.api_keys, place.tenant, Mode::Live, (change.random.1, isolate::random()?));
    batch.extend(minted.statements("first", "[]", None, call.now));
    batch.push(shard::ADVANCE_TREE.with(vec![id.as_str().into()]));
    batch.push(shard::ADD_OUTBOX_TREE.with(vec![id.as_str().into(), call.now.0.into()]));
    let record = Record {
        action: "tenant.create",
        subject: id.clone(),
        detail: Object::new().text("slug", &place.slug).shown("key", &minted.id).end(),
    };
    let audit = audit(call, record);
    batch.push(shard::ADD_AUDIT.with(std::iter::once(id.into()).chain(audit).collect()));
    database.run(batch).await?;
    Ok(minted.text)
}

/// A page of a list: `rows` may hold one more than its length, which is not shown. The cursor is a column of its last row.
fn page(
    mut rows: Vec<Row>,
    limit: u64,
    cursor: &'static str,
    show: fn(&Row) -> Result<String, Invalid>,
) -> Result<Answer, Failure> {
    let has_more = rows.len() as u64 > limit;
    rows.truncate(usize::try_from(limit).unwrap_or(usize::MAX));
    let data = rows.iter().map(show).collect::<Result<List, Invalid>>()?;
    let last = rows.last().filter(|_| has_more).map(|row| row.text(cursor)).transpose()?;
    let page = Object::new().json("data", &data.end()).flag("has_more", has_more);
    Ok(Answer::json(200, page.maybe(last, |page, last| page.text("next_cursor", last)).end()))
}

/// The whole catalog, as it is stored.
pub(crate) async fn catalog(call: Call) -> Result<Answer, Failure> {
    operator(&call)?;
    let (serial, catalog) = carry::read_catalog(&Database::control(&call.env)?).await?;
    let catalog = written(&catalog);
    // Its members beside its serial.
    let members = catalog.strip_prefix('{').and_then(|members| members.strip_suffix('}')).unwrap_or_default();
    Ok(Answer::json(200, format!("{{\"serial\":{serial},{members}}}")))
}

/// The operator's audit records, newest first.
pub(crate) async fn audit_records(call: Call) -> Result<Answer, Failure> {
    operator(&call)?;
    let (cursor, limit) = call.page()?;
    let query = control::AUDIT.with(vec![cursor.unwrap_or(NEWEST).into(), (limit + 1).into()]);
    page(Database::control(&call.env)?.rows(query).await?, limit, "id", audited)
}

/// A tenant's audit records, newest first, with their places in the chain.
pub(crate) async fn tenant_audit(call: Call) -> Result<Answer, Failure> {
    operator(&call)?;
    let (cursor, limit) = call.page()?;
    let place = placed(&call, call.param("id")).await?;
    let params = vec![place.tenant.to_string().into(), cursor.unwrap_or(NEWEST).into(), (limit + 1).into()];
    page(Database::shard(&call.env, &place.shard)?.rows(shard::AUDIT.with(params)).await?, limit, "id", audited)
}

fn audited(row: &Row) -> Result<String, Invalid> {
    let record = Object::new()
        .text("id", row.text("id")?)
        .number("at_ms", row.integer("at_ms")?)
        .text("actor", row.text("actor")?)
        .text("action", row.text("action")?)
        .text("subject", row.text("subject")?)
        .json("detail", row.text("detail")?)
        .text("request_id", row.text("request_id")?)
        .maybe(row.optional_integer("sequence")?, |object, sequence| object.number("sequence", sequence))
        .maybe(row.optional("hash")?, |object, hash| object.text("hash", hash));
    Ok(record.end())
}

/// Tenants, in the order of their ids.
pub(crate) async fn tenants(call: Call) -> Result<Answer, Failure> {
    operator(&call)?;
    let (cursor, limit) = call.page()?;
    let query = control::DIRECTORY_PAGE.with(vec![cursor.unwrap_or_default().into(), (limit + 1).into()]);
    page(Database::control(&call.env)?.rows(query).await?, limit, "tenant_id", |row| {
        let place = Placed::try_from(row)?;
        let listed = Object::new().shown("id", &place.tenant).text("slug", &place.slug);
        Ok(listed.json("parent", &written(&place.parent)).text("shard", place.shard.as_str()).end())
    })
}

/// One tenant, whole.
pub(crate) async fn tenant(call: Call) -> Result<Answer, Failure> {
    operator(&call)?;
    let place = placed(&call, call.param("id")).await?;
    let chain = carry::chain(&Database::shard(&call.env, &place.shard)?, place.tenant).await?;
    let row = chain.first().ok_or_else(|| Failure::new(Code::NotFound))?;
    let placement =
        Object::new().text("jurisdiction", row.tenant_id.jurisdiction().name()).text("shard", place.shard.as_str());
    let shown = Object::new()
        .shown("id", &row.tenant_id)
        .text("slug", &row.slug)
        .text("name", &row.name)
        .json("parent", &written(&row.parent_id))
        .text("status", row.status.name())
        .json("placement", &placement.end())
        .json("subscription", row.subscription.as_deref().unwrap_or("null"))
        .json("overrides", &row.overrides)
        .json("limits", &row.limits)
        .json("relations", &row.relations)
        .number("serial", row.serial)
        .number("version", row.version);
    Ok(Answer::json(200, shown.end()))
}

/// A tenant's API keys, without their secrets.
pub(crate) async fn keys(call: Call) -> Result<Answer, Failure> {
    operator(&call)?;
    let place = placed(&call, call.param("id")).await?;
    let query = shard::KEYS.with(vec![place.tenant.to_string().into()]);
    let rows = Database::shard(&call.env, &place.shard)?.rows(query).await?;
    page(rows, u64::MAX, "key_id", |row| {
        let key = Object::new()
            .text("id", row.text("key_id")?)
            .text("mode", row.text("mode")?)
            .text("name", row.text("name")?)
            .json("scopes", row.text("scopes")?)
            .json("until_ms", &written(&row.optional_integer("until_ms")?))
            .json("revoked_ms", &written(&row.optional_integer("revoked_ms")?))
            .number("created_ms", row.integer("created_ms")?);
        Ok(key.end())
    })
}

/// What a tenant has used, and what of it is still on its way to the ledger.
pub(crate) async fn usage(call: Call) -> Result<Answer, Failure> {
    operator(&call)?;
    let place = placed(&call, call.param("id")).await?;
    caller::used(&call, place.tenant, &place.shard, UnixMillis(0)).await
}
