//! A tenant as one isolate holds it: its verified documents, what follows from them for each route, and its leases.
//!
//! Invariant: what follows from documents is worked out once for each of their versions, holds until an instant that is
//! known, and is worked out anew from then on. So an override ends by itself, and the warm path only looks things up.

use std::fmt;
use std::rc::Rc;
use std::sync::Arc;

use super::api_key::{KeyHash, Mode};
use super::breaker::Breaker;
use super::catalog::{Catalog, Charge, Recording};
use super::decision::{self, Code};
use super::document::Document;
use super::feature::{self, Entitlement, Voices};
use super::id::{KeyId, TenantId};
use super::limit::{self, Incarnation, Isolate, LimitKey, Policy, Rev, Rule, Slot};
use super::name::{FeatureName, LimitName, MeterName};
use super::plan::{Amount, Plan};
use super::tenant::{KeyRecord, Level, Relation, Subscription, Tenant};
use super::time::UnixMillis;

/// For how long a tenant's document is used without asking whether there is a newer one.
pub const SOFT_TTL_MS: u64 = 5 * 60 * 1000;

/// For how long an owner's word about a key that is not listed is believed.
const WONDERS_MS: u64 = 5_000;
/// What each further way takes, in bytes: 983 were measured where requests pass, and the text of a refusal is kept too.
const WAY: usize = 1_500;

/// A plan version, as this isolate read it.
#[derive(Debug)]
pub struct HeldPlan {
    /// The version.
    pub document: Document<Plan>,
    /// Whether it stands in for a newer one that could not be read yet.
    pub stands_in: bool,
}

/// A tenant in an isolate.
pub struct Resident {
    document: Document<Tenant>,
    /// How long the document is as it was signed, in bytes.
    text: usize,
    read_at: UnixMillis,
    /// When to look for a newer document; pushed on while someone is looking.
    refresh_at: UnixMillis,
    /// The newest serial that anyone told of.
    wanted_serial: u64,
    /// When its owner may be asked again about a key that is not listed.
    wonders_from: UnixMillis,
    /// The features that are on, and until when that is so.
    features: Option<(UnixMillis, Rc<str>)>,
    levels: Vec<feature::Level>,
    plans: Vec<Option<Rc<HeldPlan>>>,
    /// Whether one of them stands in for a newer one.
    stands_in: bool,
    /// The first of the signed ends of these.
    equipped_until: UnixMillis,
    /// The serial of the catalog that `ways` follow from.
    catalog: u64,
    ways: Vec<(WayKey, Way)>,
    /// What may be spent, and what must be reported.
    pub limits: Isolate,
    /// Whether its limiter may be asked.
    pub breaker: Breaker,
    /// Counts those who stayed behind a reply to tell the limiter what becomes due: the last one is to, and the others may go.
    pub turn: u64,
}

/// Which route, for which mode of key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct WayKey(Mode, usize);

/// What a route means for this tenant, until `until`.
#[derive(Debug)]
pub struct Way {
    /// The feature it needs and cannot have: why.
    pub refusal: Option<Refusal>,
    /// What it takes from which limits.
    pub charges: Vec<limit::Charge>,
    /// The limits, as a client is shown them.
    pub shown: Vec<Shown>,
    /// What it counts under.
    pub meter: Option<Metering>,
    /// What pays for it, in the books.
    pub payer: Option<Slot>,
    /// What refusals of it have in common.
    pub said: Said,
    /// The headers that all answers that let it pass have.
    pub head: Option<Rc<str>>,
    /// What they say is left.
    pub left: Left,
    until: UnixMillis,
    used: Label,
    shown_only: Label,
}

/// A refused feature.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Why.
    pub code: Code,
    /// Which feature.
    pub feature: FeatureName,
    /// Where the answer comes from.
    pub source: &'static str,
    /// Whether the feature is such that this is carried out.
    pub mode: decision::Mode,
}

/// How a route counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Metering {
    /// Under what.
    pub meter: MeterName,
    /// When it is durable.
    pub recording: Recording,
    /// When it is charged.
    pub charge: Charge,
    /// Whether a caller's `Idempotency-Key` names the use.
    pub idempotent: bool,
    /// How many units.
    pub cost: u64,
}

/// A limit, as a client is shown it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shown {
    /// Its name.
    pub name: LimitName,
    /// Whose it is, and how far up: 0 is the tenant that asked.
    pub tenant: TenantId,
    /// How far up that is.
    pub level: usize,
    /// Units per window, or the burst.
    pub quota: u64,
    /// The window in seconds; 0 where it is not of fixed length.
    pub window_s: u64,
    /// The end of the window, for a quota.
    pub ends: Option<UnixMillis>,
    /// Where it is counted.
    pub slot: Slot,
}

/// What a request is counted as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counted {
    /// It passed, and is billed.
    Used,
    /// It passed although it would have been refused: shown, not billed.
    Observed(Code),
    /// It was refused: shown, not billed.
    Refused(Code),
}

/// The words that a count is reported under: in which minute, with which key, as what.
type Label = Latest<(u64, KeyId, Counted), Arc<str>>;

/// What an answer to a refusal says (its body, what is left, its other headers), as far as it is the same for this code, this limit,
/// this many seconds until asking again may help, and this many units that are left.
pub type Said = Latest<(Code, Option<Slot>, Option<u64>, u64), (Box<str>, Box<str>, Rc<str>)>;

/// What the door is told to let a request pass, up to the first word that is another one each time: the same for requests with the
/// same text, and for the same [`Resident::version`].
pub type Begun = Latest<(u64, bool), Box<str>>;

/// What is said of this being left of each limit, for this many seconds.
pub type Left = Latest<Vec<(u64, Option<u64>)>, Rc<str>>;

/// What was made of `K` the last time it was another: made once, however often it is looked at.
#[derive(Debug)]
pub struct Latest<K, V>(Option<(K, V)>);

impl<K, V> Default for Latest<K, V> {
    fn default() -> Self {
        Self(None)
    }
}

impl<K: PartialEq, V> Latest<K, V> {
    /// What `make` made of `of`.
    pub fn of(&mut self, of: K, make: impl FnOnce() -> V) -> &V {
        if self.0.as_ref().is_some_and(|(last, _)| *last != of) {
            self.0 = None;
        }
        &self.0.get_or_insert_with(|| (of, make())).1
    }
}

impl<T: Copy + PartialEq, V> Latest<Vec<T>, V> {
    /// What `make` made of `all`, which are listed only where they changed.
    pub fn of_all(&mut self, all: impl Iterator<Item = T> + Clone, make: impl FnOnce() -> V) -> &V {
        if self.0.as_ref().is_some_and(|(last, _)| !all.clone().eq(last.iter().copied())) {
            self.0 = None;
        }
        &self.0.get_or_insert_with(|| (all.collect(), make())).1
    }
}

/// How a key stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It may be used.
    Good(KeyId, Mode),
    /// It may not.
    Bad(Code),
}

impl Resident {
    /// A tenant that was just read, from a signed document of `text` bytes.
    #[must_use]
    pub fn new(document: Document<Tenant>, text: usize, me: Incarnation, now: UnixMillis) -> Self {
        let mut resident = Self {
            text,
            levels: Vec::new(),
            plans: Vec::new(),
            stands_in: false,
            equipped_until: UnixMillis(0),
            wanted_serial: document.serial,
            wonders_from: UnixMillis(0),
            features: None,
            document,
            read_at: now,
            refresh_at: now.plus(SOFT_TTL_MS),
            catalog: 0,
            ways: Vec::new(),
            limits: Isolate::new(me),
            breaker: Breaker::default(),
            turn: 0,
        };
        resident.limits.has_read(resident.document.serial);
        resident.arrange();
        resident
    }

    /// Takes in a document that was read at `now`, from its owner or from KV. One with an older serial is no news, and
    /// from KV one older than is wanted is no answer. Leases and counts stay.
    pub fn refresh(&mut self, document: Document<Tenant>, text: usize, from_owner: bool, now: UnixMillis) {
        if document.serial < self.document.serial {
            return;
        }
        if from_owner || document.serial >= self.wanted_serial {
            self.wanted_serial = document.serial;
            self.read_at = now;
            self.refresh_at = now.plus(SOFT_TTL_MS);
        }
        let changed = document.serial > self.document.serial;
        self.document = document;
        self.text = text;
        self.limits.has_read(self.document.serial);
        if changed {
            self.arrange();
        }
    }

    fn arrange(&mut self) {
        let tenant = &self.document.body;
        let own = feature::Level { tenant: tenant.tenant, overrides: tenant.level.overrides.clone() };
        let above = tenant
            .ancestors
            .iter()
            .map(|ancestor| feature::Level { tenant: ancestor.tenant, overrides: ancestor.level.overrides.clone() });
        self.levels = std::iter::once(own).chain(above).collect();
        self.plans.clear();
        self.equipped_until = UnixMillis(0);
        self.ways.clear();
        self.features = None;
    }

    /// Whether a newer document is known of than the one that is here: KV may not show it yet, its owner does.
    #[must_use]
    pub const fn is_outdated(&self) -> bool {
        self.wanted_serial > self.document.serial
    }

    /// The features that are on for it at `now`, joined by commas: the very same text as long as nothing changes.
    pub fn features(&mut self, catalog: &Catalog, now: UnixMillis) -> Rc<str> {
        if let Some((until, text)) = &self.features
            && now < *until
        {
            return Rc::clone(text);
        }
        let mut until = self.document.expires;
        let mut text = String::new();
        for name in catalog.features.keys() {
            let entitlement = self.entitlement(catalog, name.as_str(), now);
            until = entitlement.until.map_or(until, |ends| until.min(ends));
            if entitlement.enabled {
                text.push_str(if text.is_empty() { "" } else { "," });
                text.push_str(name.as_str());
            }
        }
        let text: Rc<str> = text.into();
        self.features = Some((until, Rc::clone(&text)));
        text
    }

    /// Who it is.
    #[must_use]
    pub fn tenant(&self) -> &Tenant {
        &self.document.body
    }

    /// The serial of its document.
    #[must_use]
    pub const fn serial(&self) -> u64 {
        self.document.serial
    }

    /// What its answers are made from: the serial of its document, and whether a plan's version before stands in for one that could not
    /// be read yet.
    #[must_use]
    pub const fn version(&self) -> (u64, bool) {
        (self.document.serial, self.stands_in)
    }

    /// How long ago its document was read, in milliseconds.
    #[must_use]
    pub const fn age_ms(&self, now: UnixMillis) -> u64 {
        now.since(self.read_at)
    }

    /// Whether anything may still be decided from its document.
    #[must_use]
    pub fn is_expired(&self, now: UnixMillis) -> bool {
        now >= self.document.expires
    }

    /// Whether to look for a newer document behind this reply. True once in five seconds while nobody finds one.
    pub fn wants_refresh(&mut self, now: UnixMillis) -> bool {
        let wants = now >= self.refresh_at;
        if wants {
            self.refresh_at = now.plus(5_000);
        }
        wants
    }

    /// Someone told of a newer document.
    pub fn hear(&mut self, serial: u64, now: UnixMillis) {
        if serial > self.wanted_serial {
            self.wanted_serial = serial;
            self.refresh_at = now;
        }
    }

    /// Whether to ask its owner about a key that only Tollgate can have made and that the document does not list: perhaps it is
    /// younger. Once in five seconds, whatever the owner says; `asks` is whether whoever wonders will ask now.
    pub fn wonders(&mut self, asks: bool, now: UnixMillis) -> bool {
        let wonders = now >= self.wonders_from;
        if wonders && asks {
            self.wonders_from = now.plus(WONDERS_MS);
            self.hear(self.document.serial + 1, now);
        }
        wonders
    }

    /// How the key that hashes to `hash` stands at `now`.
    #[must_use]
    pub fn standing(&self, hash: KeyHash, now: UnixMillis) -> Standing {
        match self.document.body.keys.iter().find(|key| key.hash == hash) {
            Some(key) => Self::standing_of(key, now),
            None => Standing::Bad(Code::KeyInvalid),
        }
    }

    /// How the key at `place` of the document stands at `now`, if it is still the one with this id.
    #[must_use]
    pub fn standing_at(&self, place: usize, id: KeyId, now: UnixMillis) -> Option<Standing> {
        self.document.body.keys.get(place).filter(|key| key.id == id).map(|key| Self::standing_of(key, now))
    }

    /// The place of the key that hashes to `hash`.
    #[must_use]
    pub fn place_of(&self, hash: KeyHash) -> Option<(usize, KeyId)> {
        self.document
            .body
            .keys
            .iter()
            .position(|key| key.hash == hash)
            .and_then(|at| self.document.body.keys.get(at).map(|key| (at, key.id)))
    }

    fn standing_of(key: &KeyRecord, now: UnixMillis) -> Standing {
        if key.revoked {
            Standing::Bad(Code::KeyRevoked)
        } else if key.until.is_some_and(|until| now >= until) {
            Standing::Bad(Code::KeyExpired)
        } else {
            Standing::Good(key.id, key.mode)
        }
    }

    /// Whether the tenant and everyone above it may be served.
    #[must_use]
    pub fn serves(&self) -> bool {
        self.document.body.status.serves()
            && self.document.body.ancestors.iter().all(|ancestor| ancestor.status.serves())
    }

    /// The subscriptions that count for it, its own level first; none where a level has none.
    pub fn subscriptions(&self) -> impl Iterator<Item = Option<&Subscription>> {
        let tenant = &self.document.body;
        std::iter::once(&tenant.level)
            .chain(tenant.ancestors.iter().map(|ancestor| &ancestor.level))
            .map(|level| level.subscription.as_ref())
    }

    /// Whether `plans` are set for the catalog with this serial, and may be used at `now`.
    #[must_use]
    pub fn is_equipped(&self, catalog: u64, now: UnixMillis) -> bool {
        self.catalog == catalog && now < self.equipped_until
    }

    /// Sets the plans of its subscriptions, in their order, as the catalog with this serial says.
    pub fn equip(&mut self, plans: Vec<Option<Rc<HeldPlan>>>, catalog: u64) {
        let ends = plans.iter().flatten().map(|held| held.document.expires);
        self.equipped_until = if plans.is_empty() { UnixMillis(0) } else { ends.min().unwrap_or(UnixMillis(u64::MAX)) };
        self.stands_in = plans.iter().flatten().any(|held| held.stands_in);
        self.plans = plans;
        self.catalog = catalog;
        self.ways.clear();
        self.features = None;
    }

    /// The plan that speaks for it: its own, or that of the nearest ancestor that has one.
    #[must_use]
    pub fn plan(&self) -> Option<&Plan> {
        self.plans.iter().flatten().next().map(|held| &held.document.body)
    }

    /// The beginning of the usage period around `now`: by the nearest subscription's anchor, a month long.
    #[must_use]
    pub fn period(&self, now: UnixMillis) -> UnixMillis {
        self.document.body.period(now)
    }

    /// What it is entitled to of `feature` at `now`.
    #[must_use]
    pub fn entitlement<'a>(&'a self, catalog: &'a Catalog, feature: &str, now: UnixMillis) -> Entitlement<'a> {
        static NOTHING: super::map::Map<FeatureName, feature::Value> = super::map::Map::new();
        let voices = Voices {
            definitions: &catalog.features,
            kill_switches: &catalog.kill_switches,
            levels: &self.levels,
            plan: self.plan().map_or(&NOTHING, |plan| &plan.content.features),
        };
        feature::resolve(feature, &voices, now)
    }

    /// The way at `place`.
    pub fn way(&mut self, place: usize) -> Option<(&mut Way, &mut Isolate)> {
        self.ways.get_mut(place).map(|(_, way)| (way, &mut self.limits))
    }

    /// Where the way is that a route means for this tenant: worked out from `now` on where it is not, or does not hold any more. It
    /// stays there until another one is asked for.
    pub fn place_of_way(&mut self, catalog: &Catalog, asked: &Asked<'_>, now: UnixMillis) -> usize {
        let key = WayKey(asked.mode, asked.route);
        let found = self.ways.binary_search_by_key(&key, |(key, _)| *key);
        match found {
            Ok(at) if self.ways.get(at).is_some_and(|(_, way)| now < way.until) => {}
            Ok(at) => {
                let way = self.assess(catalog, asked, now);
                if let Some(slot) = self.ways.get_mut(at) {
                    slot.1 = way;
                }
            }
            Err(at) => {
                let way = self.assess(catalog, asked, now);
                self.ways.insert(at, (key, way));
            }
        }
        found.unwrap_or_else(|at| at)
    }

    /// What `asked` means for this tenant from `now` on.
    pub fn assess(&mut self, catalog: &Catalog, asked: &Asked<'_>, now: UnixMillis) -> Way {
        let mut until = self.document.expires;
        let mut refusal = None;
        if let Some(feature) = asked.feature {
            let entitlement = self.entitlement(catalog, feature.as_str(), now);
            until = entitlement.until.map_or(until, |ends| until.min(ends));
            refusal = entitlement.refusal().map(|code| Refusal {
                code,
                feature: feature.clone(),
                source: entitlement.source.name(),
                mode: catalog.features.get(feature).map_or_else(Default::default, |definition| definition.mode),
            });
        }
        let mut way = Way {
            refusal,
            charges: Vec::new(),
            shown: Vec::new(),
            meter: None,
            payer: None,
            said: Said::default(),
            head: None,
            left: Left::default(),
            until,
            used: Label::default(),
            shown_only: Label::default(),
        };
        if let Some(name) = asked.meter {
            let meter = catalog.meters.get(name).cloned().unwrap_or_default();
            let bounds = self.bounds(name, asked.mode, now);
            for bound in bounds {
                way.until = way.until.min(bound.until);
                let recording = match (way.payer, meter.recording) {
                    (Some(_), _) => limit::Recording::Unmetered,
                    (None, Recording::Leased) => limit::Recording::Leased,
                    (None, Recording::Exact) => limit::Recording::Exact,
                };
                let slot = self.limits.resolve(&Rule { recording, ..bound.rule });
                way.payer = way.payer.or(Some(slot));
                way.charges.push(limit::Charge { slot, cost: asked.cost });
                if let Some((quota, window_s, ends)) = bound.shown {
                    way.shown.push(Shown {
                        name: bound.name,
                        tenant: bound.tenant,
                        level: bound.level,
                        quota,
                        window_s,
                        ends,
                        slot,
                    });
                }
            }
            way.meter = Some(Metering {
                meter: name.clone(),
                recording: meter.recording,
                charge: meter.charge,
                idempotent: meter.idempotent,
                cost: asked.cost,
            });
        }
        way
    }

    /// Every limit that bounds `meter` for this tenant: its own, and those of its ancestors as it stands to them.
    fn bounds(&self, meter: &MeterName, mode: Mode, now: UnixMillis) -> Vec<Bound> {
        let tenant = &self.document.body;
        let own = Holder {
            tenant: tenant.tenant,
            serial: self.document.serial,
            level: &tenant.level,
            relations: &tenant.relations,
        };
        let above = tenant.ancestors.iter().map(|ancestor| Holder {
            tenant: ancestor.tenant,
            serial: ancestor.serial,
            level: &ancestor.level,
            relations: &ancestor.relations,
        });
        let chain: Vec<Holder<'_>> = std::iter::once(own).chain(above).collect();
        let valid_until = self.document.expires;
        let mut bounds: Vec<Bound> = Vec::new();
        for (level, owner) in chain.iter().enumerate() {
            let Some((subscription, held)) =
                owner.level.subscription.as_ref().zip(self.plans.get(level).and_then(Option::as_ref))
            else {
                continue;
            };
            for (name, limit) in held.document.body.content.limits.iter().filter(|(_, limit)| limit.meter == *meter) {
                let source = Resolving { mode, now, catalog: self.catalog, held, anchor: subscription.anchor };
                let own = owner.level.limits.get(name).filter(|own| own.until.is_none_or(|until| now < until));
                let until = own.and_then(|own| own.until).map_or(valid_until, |ends| valid_until.min(ends));
                let amount = own.map_or(limit.amount, |own| own.amount);
                let carved = owner.level.carved.get(name).filter(|carved| amount.holds(**carved));
                // From this tenant up to the owner: a cap adds a bucket on the way, a carve ends it.
                let apart = chain.iter().take(level).enumerate().any(|(below, holder)| {
                    let (amount, apart) = match holder.relations.get(name) {
                        None | Some(Relation::Share) => return false,
                        Some(Relation::Cap(amount)) => (amount, false),
                        Some(Relation::Carve(amount)) => (amount, below + 1 == level && carved.is_some()),
                    };
                    let mut bound = source.bound(holder, below, name, *amount, if apart { until } else { valid_until });
                    bound.rule.carved = apart;
                    // Where two levels above have a limit of this name, there is still one cap.
                    if !bounds.iter().any(|other| other.rule.key == bound.rule.key) {
                        bounds.push(bound);
                    }
                    apart
                });
                if !apart {
                    let mut bound = source.bound(owner, level, name, amount, until);
                    if let Some(carved) = carved {
                        bound.rule.policy = limit::carve(bound.rule.policy, &[source.policy(*carved).0]);
                    }
                    bounds.push(bound);
                }
            }
        }
        if bounds.is_empty() {
            bounds.push(counted(tenant.tenant, meter, mode, self.rev(), self.document.expires));
        }
        bounds
    }

    fn rev(&self) -> Rev {
        Rev { catalog: self.catalog, plan: self.catalog, tenant: self.document.serial }
    }

    /// About how many bytes it occupies: parsed, a text takes about twice its length, and what belongs to leases and the first
    /// way about a kilobyte and a half.
    #[must_use]
    pub fn weight(&self) -> usize {
        2 * self.text + 1_500 + WAY * self.ways.len().saturating_sub(1)
    }
}

impl Way {
    /// The words to count a request under: `minute meter mode key route`, with what became of it before the route where it
    /// is only shown. Made anew when the minute, the key or what became of it changes.
    pub fn label(
        &mut self,
        counted: Counted,
        key: KeyId,
        mode: Mode,
        route: &dyn fmt::Display,
        now: UnixMillis,
    ) -> &Arc<str> {
        let minute = now.0 / 60_000;
        let label = if counted == Counted::Used { &mut self.used } else { &mut self.shown_only };
        label.of((minute, key, counted), || {
            let meter = self.meter.as_ref().filter(|_| counted == Counted::Used);
            let meter = meter.map_or("-", |metering| metering.meter.as_str());
            match counted {
                Counted::Used => format!("{minute} {meter} {mode} {key} {route}"),
                Counted::Observed(code) => format!("{minute} {meter} {mode} {key} observed {code} {route}"),
                Counted::Refused(code) => format!("{minute} {meter} {mode} {key} refused {code} {route}"),
            }
            .into()
        })
    }
}

/// What is asked about: a route, or a check of the API.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    /// Live or test.
    pub mode: Mode,
    /// The place of the route among all routes of all origins.
    pub route: usize,
    /// The feature it needs.
    pub feature: Option<&'a FeatureName>,
    /// The meter it counts under.
    pub meter: Option<&'a MeterName>,
    /// The units.
    pub cost: u64,
}

struct Holder<'a> {
    tenant: TenantId,
    serial: u64,
    level: &'a Level,
    relations: &'a super::map::Map<LimitName, Relation>,
}

struct Resolving<'a> {
    mode: Mode,
    now: UnixMillis,
    catalog: u64,
    held: &'a HeldPlan,
    anchor: UnixMillis,
}

struct Bound {
    rule: Rule,
    name: LimitName,
    tenant: TenantId,
    level: usize,
    shown: Option<(u64, u64, Option<UnixMillis>)>,
    until: UnixMillis,
}

impl Resolving<'_> {
    fn bound(&self, holder: &Holder<'_>, level: usize, name: &LimitName, amount: Amount, until: UnixMillis) -> Bound {
        let (policy, window) = self.policy(amount);
        let shown = match amount {
            Amount::Rate { units, per_ms, .. } => (units, per_ms.div_ceil(1000), None),
            Amount::Quota { units, .. } => (units, 0, policy.ends()),
        };
        let until = policy.ends().map_or(until, |ends| until.min(ends));
        let rule = Rule {
            key: LimitKey { tenant: holder.tenant, limit: name.clone(), mode: self.mode, window },
            policy,
            rev: Rev {
                catalog: self.catalog,
                // A plan that stands in for a newer one must not look as new as that.
                plan: self.catalog - u64::from(self.held.stands_in),
                tenant: holder.serial,
            },
            valid_until: until,
            above: u8::try_from(level).unwrap_or(u8::MAX),
            recording: limit::Recording::Unmetered,
            carved: false,
        };
        Bound { rule, name: name.clone(), tenant: holder.tenant, level, shown: Some(shown), until }
    }

    fn policy(&self, amount: Amount) -> (Policy, Option<UnixMillis>) {
        match amount {
            Amount::Rate { units, per_ms, burst } => {
                (Policy::Rate { tokens: units, interval_ms: per_ms.max(1), burst }, None)
            }
            Amount::Quota { units, per } => {
                let window = per.window(self.anchor, self.now);
                (Policy::Quota { amount: units, ends: window.end }, Some(window.start))
            }
        }
    }
}

/// A meter that nothing bounds is leased all the same, so that what a crash loses is known.
fn counted(tenant: TenantId, meter: &MeterName, mode: Mode, rev: Rev, until: UnixMillis) -> Bound {
    let name = LimitName::for_count_of(meter);
    let policy = Policy::Quota { amount: (1 << 53) - 1, ends: UnixMillis((1 << 53) - 1) };
    let key = LimitKey { tenant, limit: name.clone(), mode, window: Some(UnixMillis(0)) };
    let recording = limit::Recording::Unmetered;
    let rule = Rule { key, policy, rev, valid_until: until, above: 0, recording, carved: false };
    Bound { rule, name, tenant, level: 0, shown: None, until }
}
