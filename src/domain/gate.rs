//! The gate: everything one isolate remembers, and the walk of a request through it.
//!
//! Invariant: the rooms are walked in one order (origin and path, key, documents, route, entitlement, limits) and never
//! backward; each step either decides or says what is missing. Nothing here waits: a caller that is told what is missing
//! fetches it and walks again.

use rustc_hash::FxHashMap;
use std::cell::Cell;
use std::rc::Rc;

use super::api_key::{ApiKey, KeyHash, KeyRing, Mode};
use super::cache::{Cache, Place};
use super::catalog::{Catalog, DEFAULT_ORIGIN, Origin, Preflights, Target};
use super::decision::{self, Code, Fail, Tier};
use super::document::{Document, DocumentKey};
use super::id::{KeyId, TenantId};
use super::limit::{self, Admission, Incarnation};
use super::map::Map;
use super::met::Met;
use super::name::{OriginName, PlanName};
use super::path::{CanonicalPath, NotCanonical, Url, cut_last};
use super::plan::Plan;
use super::resident::{Asked, Begun, HeldPlan, Refusal, Resident, Shown, Standing, Way};
use super::route::{InvalidRoutes, Method, Route, RouteTable, Routed};
use super::tally::Behind;
use super::tenant::{Subscription, Tenant};
use super::time::UnixMillis;

/// For how long the catalog is used without asking whether there is a newer one.
pub const CATALOG_SOFT_TTL_MS: u64 = 30 * 1000;
/// How many bytes of tenants an isolate keeps: half of the 128 MB that the platform gives it.
pub const RESIDENT_BYTES: usize = 64 * 1024 * 1024;
/// For how long a tenant that nobody knows is not asked for again.
const ABSENT_MS: u64 = 5_000;
/// How many absent tenants are remembered. Each costs a MAC that only Tollgate could have made, so there are few.
const ABSENT: usize = 1_024;
/// For how long the absence of a catalog is believed.
const EMPTY_MS: u64 = 1_000;
/// For how long a catalog that its owner called the newest is not asked for again.
const NEWEST_MS: u64 = 1_000;
/// The first segment of gated paths on the API host.
const PREFIX: &str = "gate";

/// What one isolate remembers.
pub struct Gate {
    me: Incarnation,
    born: u128,
    catalog: Option<Compiled>,
    plans: Map<(PlanName, u32), Rc<HeldPlan>>,
    residents: Cache<TenantId, Resident>,
    /// Keys that were verified, by their text. Only a sound MAC and a listed hash bring a key in here.
    keys: FxHashMap<Box<str>, Known>,
    absent: Map<TenantId, UnixMillis>,
    /// Requests that came as far as their limits, by their text.
    met: Met<Errand>,
    /// How many walks found their tenant here, and how many did not.
    pub hits: u64,
    /// See [`Self::hits`].
    pub misses: u64,
}

#[derive(Clone, Copy)]
struct Known {
    tenant: TenantId,
    resident: Place,
    place: usize,
    id: KeyId,
}

/// What follows from the text of a request as long as the catalog stays the same: where it goes, and who sends it.
struct Errand {
    origin: usize,
    method: Method,
    path: CanonicalPath<'static>,
    query: Option<Box<str>>,
    known: Known,
    number: usize,
    begun: Begun,
}

/// The catalog, made ready for looking up.
pub struct Compiled {
    document: Document<Catalog>,
    read_at: UnixMillis,
    /// When to look for a newer one; pushed on while someone is looking.
    refresh_at: Cell<UnixMillis>,
    /// A tenant is on a plan that it does not name, so there must be a newer one.
    is_outdated: Cell<bool>,
    /// When its owner last said that this is the newest.
    newest_at: UnixMillis,
    origins: Vec<CompiledOrigin>,
    hosts: Map<Box<str>, usize>,
    default: Option<usize>,
}

/// An origin, made ready.
pub struct CompiledOrigin {
    name: OriginName,
    /// Its place among the origins.
    place: usize,
    origin: Origin,
    table: RouteTable,
    /// The number of its first route among the routes of all origins; the number after its last is what no rule matches.
    first: usize,
}

/// A request, as far as a decision looks at it.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// Method, URL and both headers in one text, which it is remembered by; empty where it need not be.
    pub text: &'a str,
    /// The method as received.
    pub method: &'a str,
    /// The absolute URL as the platform gives it.
    pub url: &'a str,
    /// The value of `X-API-Key`; empty where there is none.
    pub api_key: &'a str,
    /// The value of `Authorization`; empty where there is none.
    pub authorization: &'a str,
    /// Whether whoever asks can wait for a document. The warm path cannot, and leaves looking for one to who can.
    pub waits: bool,
    /// Whether it has `Access-Control-Request-Method`. Unknown on the warm path, which leaves `OPTIONS` alone.
    pub preflight: bool,
    /// When it arrived.
    pub now: UnixMillis,
}

/// Where a walk ended.
pub enum Step<'g, 'r> {
    /// Not a request for the gate: it is for the API of Tollgate itself.
    Elsewhere,
    /// It cannot go on without these documents.
    Missing(Vec<DocumentKey>),
    /// A preflight that passes unmetered.
    Preflight(Passage<'g, 'r>),
    /// Decided: it may not pass.
    Refuse(Refused<'g>),
    /// Decided, or decided but for its limits.
    Way(Standpoint<'g, 'r>),
}

/// Which origin, and what to ask of it.
#[derive(Debug)]
pub struct Passage<'g, 'r> {
    /// The origin's name.
    pub origin: &'g OriginName,
    /// Where it is.
    pub target: &'g Target,
    /// The method.
    pub method: Method,
    /// The path: what was matched is what is forwarded.
    pub path: CanonicalPath<'r>,
    /// The query, as received.
    pub query: Option<&'r str>,
}

/// A refusal, and what is known about who was refused.
pub struct Refused<'g> {
    /// Why.
    pub code: Code,
    /// Why the path has no canonical form.
    pub path: Option<NotCanonical>,
    /// Who.
    pub resident: Option<&'g Resident>,
    /// Who decided.
    pub tier: Tier,
    /// What is to be done behind the reply.
    pub behind: Option<Behind>,
}

impl<'g> Refused<'g> {
    /// A refusal for `code`, of someone not yet known.
    #[must_use]
    pub const fn new(code: Code) -> Self {
        Self { code, path: None, resident: None, tier: Tier::Isolate, behind: None }
    }

    /// Of this tenant, by what `catalog` says. What refuses it may have been changed, so that is looked for behind the
    /// refusal, as behind any reply.
    #[must_use]
    pub fn of(self, resident: &'g mut Resident, catalog: &Compiled, now: UnixMillis) -> Self {
        Self { behind: Behind::of(resident, catalog, now), resident: Some(resident), ..self }
    }
}

/// A request whose key, route and feature are settled.
pub struct Standpoint<'g, 'r> {
    /// Where it goes.
    pub passage: Passage<'g, 'r>,
    /// Who asks.
    pub resident: &'g mut Resident,
    /// With which key.
    pub key: KeyId,
    /// Live or test.
    pub mode: Mode,
    /// The rule; none where the default lets it pass.
    pub route: Option<&'g Route>,
    /// The number of the route.
    pub number: usize,
    /// The catalog it was decided from.
    pub catalog: &'g Catalog,
    /// The same, with its age.
    pub held: &'g Compiled,
    /// What verdicts about this text begin with, if it was met before.
    pub begun: Option<&'g mut Begun>,
    /// Where its way is, once that is known: a standpoint is of one instant.
    at: Option<usize>,
}

impl Gate {
    /// A gate that remembers nothing. `me` is random.
    #[must_use]
    pub fn new(me: u128) -> Self {
        Self {
            me: Incarnation(me),
            born: 0,
            catalog: None,
            plans: Map::new(),
            residents: Cache::new(RESIDENT_BYTES),
            keys: FxHashMap::default(),
            absent: Map::new(),
            met: Met::default(),
            hits: 0,
            misses: 0,
        }
    }

    /// Where the walk of a request would end that has the text of one that came as far as its limits. None where anything that
    /// its text does not say has changed, and for a text that was not met: then it has to be walked.
    pub fn recall<'g>(&'g mut self, text: &str, now: UnixMillis) -> Option<Standpoint<'g, 'g>> {
        let catalog = self.catalog.as_ref().filter(|catalog| now < catalog.document.expires)?;
        let Errand { origin, method, path, query, known, number, begun } = self.met.get(text)?;
        let origin = catalog.origins.get(*origin)?;
        let resident = self.residents.get(known.resident)?;
        let serves =
            resident.is_equipped(catalog.document.serial, now) && !resident.is_expired(now) && resident.serves();
        let Standing::Good(key, mode) = resident.standing_at(known.place, known.id, now).filter(|_| serves)? else {
            return None;
        };
        self.hits += 1;
        Some(Standpoint {
            passage: Passage {
                origin: &origin.name,
                target: &origin.origin.target,
                method: *method,
                path: path.borrowed(),
                query: query.as_deref(),
            },
            resident,
            key,
            mode,
            route: number.checked_sub(origin.first).and_then(|place| origin.table.routes().get(place)),
            number: *number,
            catalog: &catalog.document.body,
            held: catalog,
            begun: Some(begun),
            at: None,
        })
    }

    /// Walks as far as the limits.
    pub fn walk<'g, 'r>(&'g mut self, request: &Request<'r>, ring: &KeyRing) -> Step<'g, 'r> {
        let now = request.now;
        let Some(url) = Url::split(request.url) else { return Step::Refuse(Refused::new(Code::NotFound)) };
        let Some(catalog) = self.catalog.as_ref().filter(|catalog| now < catalog.document.expires) else {
            // Nothing is read for a key that only somebody else can have made, the catalog neither.
            let asks_for_a_key = is_prefixed(request.url) || url.path.starts_with("/v1/");
            return match forged(request, ring).filter(|_| asks_for_a_key) {
                Some(code) => Step::Refuse(Refused::new(code)),
                None => Step::Missing(vec![DocumentKey::Catalog]),
            };
        };

        let (origin, path) = match catalog.locate(&url) {
            Ok(Some(found)) => found,
            Ok(None) => return Step::Elsewhere,
            Err(Unlocated::NoOrigin) => return Step::Refuse(Refused::new(Code::NotFound)),
            Err(Unlocated::Path(why)) => {
                return Step::Refuse(Refused { path: Some(why), ..Refused::new(Code::PathNotCanonical) });
            }
        };
        let Ok(method) = request.method.parse::<Method>() else {
            return Step::Refuse(Refused::new(Code::MethodNotAllowed));
        };
        let passage = Passage { origin: &origin.name, target: &origin.origin.target, method, path, query: url.query };
        if request.preflight && method == Method::Options && origin.origin.preflights == Preflights::Pass {
            return Step::Preflight(passage);
        }

        let text = match credential(request.api_key, request.authorization) {
            Ok(text) => text,
            Err(code) => return Step::Refuse(Refused::new(code)),
        };
        let (place, standing) = match identify(&mut self.keys, &mut self.residents, &self.absent, ring, text, request) {
            Identified::As(place, standing) => (place, standing),
            Identified::Not(code) => return Step::Refuse(Refused::new(code)),
            Identified::Unread(tenant) => {
                self.misses += 1;
                return Step::Missing(vec![DocumentKey::Tenant(tenant)]);
            }
        };
        weigh(&mut self.residents, place);
        let Some(resident) = self.residents.get(place) else {
            return Step::Refuse(Refused::new(Code::SnapshotUnavailable));
        };
        match equip(resident, catalog, &self.plans, now) {
            Equipped::Ready => {}
            Equipped::Missing(missing) => return Step::Missing(missing),
            Equipped::Unknown => {
                return Step::Refuse(Refused::new(Code::SnapshotUnavailable).of(resident, catalog, now));
            }
        }
        self.hits += 1;
        let (key, mode) = match standing {
            Standing::Good(key, mode) => (key, mode),
            Standing::Bad(code) => return Step::Refuse(Refused::new(code).of(resident, catalog, now)),
        };
        if !resident.serves() {
            return Step::Refuse(Refused::new(Code::TenantSuspended).of(resident, catalog, now));
        }

        let (route, number) = match origin.table.route(method, &passage.path) {
            Routed::Rule(place, route) => (Some(route), origin.first + place),
            Routed::Allowed => (None, origin.first + origin.table.routes().len()),
            Routed::Denied => return Step::Refuse(Refused::new(Code::RouteDenied).of(resident, catalog, now)),
            Routed::Refused(why) => {
                let refused = Refused::new(Code::PathNotCanonical).of(resident, catalog, now);
                return Step::Refuse(Refused { path: Some(why), ..refused });
            }
        };
        // Whether an OPTIONS is a preflight its text does not say; and nobody else's credentials are kept.
        let is_told = method != Method::Options && (request.authorization.is_empty() || text != request.api_key);
        if let Some(known) = self.keys.get(text).filter(|_| is_told) {
            self.met.note(request.text, || Errand {
                origin: origin.place,
                method,
                path: passage.path.to_owned(),
                query: passage.query.map(Into::into),
                known: *known,
                number,
                begun: Begun::default(),
            });
        }
        Step::Way(Standpoint {
            passage,
            resident,
            key,
            mode,
            route,
            number,
            catalog: &catalog.document.body,
            held: catalog,
            begun: None,
            at: None,
        })
    }

    /// Where a request goes whose tenant's documents cannot be read, if its route fails open, with the key that it came with: one that
    /// only Tollgate can have made, and that no document that is here speaks against.
    #[must_use]
    pub fn open<'r>(&self, request: &Request<'r>, ring: &KeyRing) -> Option<(Passage<'_, 'r>, TenantId, ApiKey)> {
        let catalog = self.catalog(request.now)?;
        let url = Url::split(request.url)?;
        let (origin, path) = catalog.locate(&url).ok()??;
        let method = request.method.parse::<Method>().ok()?;
        let text = credential(request.api_key, request.authorization).ok()?;
        let key = text.parse::<ApiKey>().ok().filter(|key| ring.verify(key))?;
        let tenant = key.tenant().ok()?;
        let known = self.residents.find(&tenant).and_then(|place| self.residents.peek(place));
        let is_good = |resident: &Resident| {
            resident.serves() && matches!(resident.standing(KeyHash::of(text), request.now), Standing::Good(..))
        };
        let Routed::Rule(_, route) = origin.table.route(method, &path) else { return None };
        if route.fail == Fail::Closed || !known.is_none_or(is_good) {
            return None;
        }
        let passage = Passage { origin: &origin.name, target: &origin.origin.target, method, path, query: url.query };
        Some((passage, tenant, key))
    }

    /// The tenant behind an API key, for the API's own calls.
    pub fn caller<'g>(&'g mut self, request: &Request<'_>, ring: &KeyRing) -> Caller<'g> {
        let now = request.now;
        let Some(catalog) = self.catalog.as_ref().filter(|catalog| now < catalog.document.expires) else {
            return match forged(request, ring) {
                Some(code) => Caller::Refused(Refused::new(code)),
                None => Caller::Missing(vec![DocumentKey::Catalog]),
            };
        };
        let text = match credential(request.api_key, request.authorization) {
            Ok(text) => text,
            Err(code) => return Caller::Refused(Refused::new(code)),
        };
        let (place, standing) = match identify(&mut self.keys, &mut self.residents, &self.absent, ring, text, request) {
            Identified::As(place, standing) => (place, standing),
            Identified::Not(code) => return Caller::Refused(Refused::new(code)),
            Identified::Unread(tenant) => return Caller::Missing(vec![DocumentKey::Tenant(tenant)]),
        };
        let Some(resident) = self.residents.get(place) else {
            return Caller::Refused(Refused::new(Code::SnapshotUnavailable));
        };
        match equip(resident, catalog, &self.plans, now) {
            Equipped::Ready => {}
            Equipped::Missing(missing) => return Caller::Missing(missing),
            Equipped::Unknown => {
                return Caller::Refused(Refused::new(Code::SnapshotUnavailable).of(resident, catalog, now));
            }
        }
        match standing {
            Standing::Good(key, mode) if resident.serves() => {
                Caller::Known { resident, catalog: &catalog.document.body, key, mode }
            }
            Standing::Good(..) => Caller::Refused(Refused::new(Code::TenantSuspended).of(resident, catalog, now)),
            Standing::Bad(code) => Caller::Refused(Refused::new(code).of(resident, catalog, now)),
        }
    }

    /// The tenant that a request will turn out to be of, if it turns out to be of any: so that its document can be read
    /// beside the catalog. Only a sound MAC makes it worth reading.
    #[must_use]
    pub fn foresee(&self, request: &Request<'_>, ring: &KeyRing) -> Option<TenantId> {
        let key = credential(request.api_key, request.authorization).ok()?.parse::<ApiKey>().ok()?;
        let tenant = key.tenant().ok().filter(|_| ring.verify(&key))?;
        self.residents.find(&tenant).is_none().then_some(tenant)
    }

    /// A tenant that is here.
    pub fn resident(&mut self, tenant: TenantId) -> Option<&mut Resident> {
        let place = self.residents.find(&tenant)?;
        self.residents.get(place)
    }

    /// What is to be done behind a reply to this tenant, if anything.
    pub fn behind(&mut self, tenant: TenantId, now: UnixMillis) -> Option<Behind> {
        let place = self.residents.find(&tenant)?;
        Behind::of(self.residents.get(place)?, self.catalog.as_ref()?, now)
    }

    /// How many tenants are here, and the bytes they are counted with.
    #[must_use]
    pub fn occupancy(&self) -> (usize, usize) {
        (self.residents.len(), self.residents.weight())
    }

    /// Whether the catalog is here, and may be used at `now`.
    #[must_use]
    pub fn catalog(&self, now: UnixMillis) -> Option<&Compiled> {
        self.catalog.as_ref().filter(|catalog| now < catalog.document.expires)
    }

    /// Takes in a catalog that was read at `now`; an older one than is here only proves that this one still holds.
    ///
    /// # Errors
    /// When its routes make no table; what was here before stays.
    pub fn take_catalog(&mut self, document: Document<Catalog>, now: UnixMillis) -> Result<(), InvalidRoutes> {
        if self.catalog.as_ref().is_some_and(|held| held.document.serial > document.serial) {
            return Ok(());
        }
        let known = self.catalog.as_mut().filter(|held| held.document.serial == document.serial);
        if let Some(held) = known {
            held.document.expires = held.document.expires.max(document.expires);
            held.read_at = now;
            held.refresh_at.set(now.plus(CATALOG_SOFT_TTL_MS));
            return Ok(());
        }
        self.catalog = Some(Compiled::new(document, now)?);
        self.met.clear();
        // Versions that no head names any more are forgotten with the tenants that stay on them read anew.
        let heads: Vec<(PlanName, u32)> = self
            .catalog
            .iter()
            .flat_map(|held| &held.document.body.plans)
            .flat_map(|(plan, head)| {
                std::iter::once((plan.clone(), head.version))
                    .chain(head.previous.map(|version| (plan.clone(), version)))
            })
            .collect();
        if self.plans.len() > 4 * heads.len() + 64 {
            self.plans.retain(|key, _| heads.contains(key));
        }
        Ok(())
    }

    /// Whether a newer catalog is known of than the one that is here: KV may not show it yet, its owner does.
    #[must_use]
    pub fn is_catalog_outdated(&self) -> bool {
        self.catalog.as_ref().is_some_and(|held| held.is_outdated.get())
    }

    /// Notes that the catalog that is here is the newest, as its owner says.
    pub fn note_newest_catalog(&mut self, now: UnixMillis) {
        if let Some(held) = &mut self.catalog {
            held.newest_at = now;
            held.is_outdated.set(false);
        }
    }

    /// Notes that no catalog was published yet: an empty one, looked for again soon.
    pub fn take_empty_catalog(&mut self, now: UnixMillis) {
        if self.catalog.as_ref().is_none_or(|held| held.document.serial == 0) {
            self.catalog = None;
            let document = Document { serial: 0, expires: now.plus(EMPTY_MS), body: Catalog::default() };
            // An empty catalog has no routes that could make no table.
            let _ = self.take_catalog(document, now);
        }
    }

    /// Takes in a plan version.
    pub fn take_plan(&mut self, document: Document<Plan>) {
        let key = (document.body.plan.clone(), document.body.version);
        self.plans.insert(key, Rc::new(HeldPlan { document, stands_in: false }));
    }

    /// Notes that a plan version cannot be read for now: the one before stands in for it until the catalog is read anew.
    /// False when there is none to stand in.
    pub fn stand_in(&mut self, plan: &PlanName, version: u32) -> bool {
        let previous = self
            .catalog
            .as_ref()
            .and_then(|held| held.document.body.plans.get(plan))
            .filter(|head| head.version == version)
            .and_then(|head| head.previous)
            .and_then(|previous| self.plans.get(&(plan.clone(), previous)));
        let Some(held) = previous.filter(|held| !held.stands_in) else { return false };
        let document = held.document.clone();
        self.plans.insert((plan.clone(), version), Rc::new(HeldPlan { document, stands_in: true }));
        true
    }

    /// The plan version that would stand in for this one.
    #[must_use]
    pub fn previous(&self, plan: &PlanName, version: u32) -> Option<DocumentKey> {
        let head = self.catalog.as_ref()?.document.body.plans.get(plan)?;
        head.previous.filter(|_| head.version == version).map(|previous| DocumentKey::Plan(plan.clone(), previous))
    }

    /// Plan versions that others stand in for: to be asked for again behind a reply.
    pub fn stood_in(&mut self) -> Vec<DocumentKey> {
        let keys: Vec<_> = self.plans.iter().filter(|(_, held)| held.stands_in).map(|(key, _)| key.clone()).collect();
        keys.into_iter().map(|(plan, version)| DocumentKey::Plan(plan, version)).collect()
    }

    /// Makes residents look their plans up again: one that stood in was replaced.
    pub fn forget_equipment(&mut self) {
        for resident in self.residents.values_mut() {
            resident.equip(Vec::new(), 0);
        }
    }

    /// Takes in a tenant's document of `text` bytes, read at `now`.
    pub fn take_tenant(&mut self, document: Document<Tenant>, text: usize, from_owner: bool, now: UnixMillis) {
        let tenant = document.body.tenant;
        self.absent.remove(&tenant);
        if let Some(place) = self.residents.find(&tenant) {
            if let Some(resident) = self.residents.get(place) {
                resident.refresh(document, text, from_owner, now);
            }
            weigh(&mut self.residents, place);
            return;
        }
        self.born += 1;
        // An isolate that forgot a tenant is another borrower to its limiter when it meets it again.
        let me = Incarnation(self.me.0.wrapping_add(self.born));
        let resident = Resident::new(document, text, me, now);
        let weight = resident.weight();
        self.residents.insert(tenant, resident, weight);
        // Places of what was put out lead nowhere; they are swept when they outnumber what is here.
        if self.keys.len() > 2 * self.residents.len() + 1_024 {
            let residents = &self.residents;
            self.keys.retain(|_, known| residents.peek(known.resident).is_some());
        }
    }

    /// Notes that nobody knows `tenant`.
    pub fn note_absent(&mut self, tenant: TenantId, now: UnixMillis) {
        if self.absent.len() >= ABSENT {
            self.absent.retain(|_, until| now < *until);
        }
        if self.absent.len() < ABSENT {
            self.absent.insert(tenant, now.plus(ABSENT_MS));
        }
    }
}

/// Who calls the API of Tollgate itself.
pub enum Caller<'g> {
    /// This tenant.
    Known {
        /// The tenant.
        resident: &'g mut Resident,
        /// The catalog.
        catalog: &'g Catalog,
        /// The key it called with.
        key: KeyId,
        /// Live or test.
        mode: Mode,
    },
    /// Nobody who may.
    Refused(Refused<'g>),
    /// It cannot be said without these documents.
    Missing(Vec<DocumentKey>),
}

enum Identified {
    As(Place, Standing),
    Not(Code),
    Unread(TenantId),
}

/// The API key in an `Authorization`. A bearer that is not of Tollgate's form belongs to the origin.
fn bearer(authorization: &str) -> Option<&str> {
    authorization
        .get(..7)
        .filter(|scheme| scheme.eq_ignore_ascii_case("bearer "))
        .and_then(|_| authorization.get(7..))
        .map(str::trim)
        .filter(|text| Mode::ALL.iter().any(|mode| text.starts_with(mode.prefix())))
}

/// Whether a URL is for the gate by its prefix, whatever its host.
#[must_use]
pub fn is_prefixed(url: &str) -> bool {
    Url::split(url).is_some_and(|url| match CanonicalPath::parse(url.path) {
        Ok(path) => path.strip_first(PREFIX).is_some(),
        Err(_) => true,
    })
}

/// Whether an `Authorization` carries an API key, in whatever form, which the origin must not see.
#[must_use]
pub fn carries_key(authorization: &str) -> bool {
    Mode::ALL.iter().any(|mode| {
        let prefix = mode.prefix().as_bytes();
        authorization.as_bytes().windows(prefix.len()).any(|part| part == prefix)
    })
}

/// The one API key that a request carries.
fn credential<'r>(api_key: &'r str, authorization: &'r str) -> Result<&'r str, Code> {
    match (api_key, bearer(authorization)) {
        ("", None) => Err(Code::KeyMissing),
        ("", Some(bearer)) => Ok(bearer),
        (key, Some(bearer)) if key != bearer => Err(Code::KeyConflict),
        (key, _) => Ok(key),
    }
}

/// Why the key of a request is none that was made here, if it has one.
fn forged(request: &Request<'_>, ring: &KeyRing) -> Option<Code> {
    match credential(request.api_key, request.authorization) {
        Ok(text) => {
            let sound = text.parse::<ApiKey>().is_ok_and(|key| key.tenant().is_ok() && ring.verify(&key));
            (!sound).then_some(Code::KeyInvalid)
        }
        Err(Code::KeyMissing) => None,
        Err(code) => Some(code),
    }
}

/// Whose key it is and how it stands. A key that is not in the memory of this isolate must carry a sound MAC before
/// anything is read for it.
fn identify(
    keys: &mut FxHashMap<Box<str>, Known>,
    residents: &mut Cache<TenantId, Resident>,
    absent: &Map<TenantId, UnixMillis>,
    ring: &KeyRing,
    text: &str,
    request: &Request<'_>,
) -> Identified {
    let now = request.now;
    if let Some(known) = keys.get(text) {
        match residents.get(known.resident) {
            Some(resident) if resident.is_expired(now) => return Identified::Unread(known.tenant),
            Some(resident) => {
                if let Some(standing) = resident.standing_at(known.place, known.id, now) {
                    return Identified::As(known.resident, standing);
                }
            }
            None => {}
        }
    }
    let Ok(key) = text.parse::<ApiKey>() else { return Identified::Not(Code::KeyInvalid) };
    let Ok(tenant) = key.tenant() else { return Identified::Not(Code::KeyInvalid) };
    if !ring.verify(&key) {
        return Identified::Not(Code::KeyInvalid);
    }
    let Some(place) = residents.find(&tenant) else {
        if absent.get(&tenant).is_some_and(|until| now < *until) {
            return Identified::Not(Code::KeyInvalid);
        }
        return Identified::Unread(tenant);
    };
    let Some(resident) = residents.get(place).filter(|resident| !resident.is_expired(now)) else {
        return Identified::Unread(tenant);
    };
    let hash = KeyHash::of(text);
    if let Some((at, id)) = resident.place_of(hash) {
        keys.insert(text.into(), Known { tenant, resident: place, place: at, id });
    } else if resident.wonders(request.waits, now) {
        return Identified::Unread(tenant);
    }
    Identified::As(place, resident.standing(hash, now))
}

/// Brings up to date what a tenant weighs: it grows with the routes that its requests take.
fn weigh(residents: &mut Cache<TenantId, Resident>, place: Place) {
    if let Some(weight) = residents.peek(place).map(Resident::weight) {
        residents.reweigh(place, weight);
    }
}

enum Equipped {
    Ready,
    Missing(Vec<DocumentKey>),
    /// Even the newest catalog does not name its plan.
    Unknown,
}

/// Gives a tenant the plans that the catalog names for its subscriptions, or says which are missing. A plan that the catalog
/// does not name is one that it does not name yet: without its limits nothing may pass.
fn equip(
    resident: &mut Resident,
    catalog: &Compiled,
    plans: &Map<(PlanName, u32), Rc<HeldPlan>>,
    now: UnixMillis,
) -> Equipped {
    if resident.is_equipped(catalog.document.serial, now) {
        return Equipped::Ready;
    }
    let heads = &catalog.document.body.plans;
    let names = |subscription: &Subscription| subscription.version.is_some() || heads.contains_key(&subscription.plan);
    if !resident.subscriptions().flatten().all(names) {
        if now < catalog.newest_at.plus(NEWEST_MS) {
            return Equipped::Unknown;
        }
        catalog.is_outdated.set(true);
        return Equipped::Missing(vec![DocumentKey::Catalog]);
    }
    let mut held = Vec::new();
    let mut missing = Vec::new();
    for subscription in resident.subscriptions() {
        let wanted = subscription.and_then(|subscription| {
            let current = heads.get(&subscription.plan).map(|head| head.version);
            let version = subscription.version.or(current)?;
            Some((subscription.plan.clone(), version))
        });
        let plan = wanted.as_ref().and_then(|key| plans.get(key)).filter(|held| now < held.document.expires);
        let plan = plan.map(Rc::clone);
        if let (None, Some((plan, version))) = (&plan, wanted) {
            missing.push(DocumentKey::Plan(plan, version));
        }
        held.push(plan);
    }
    if missing.is_empty() {
        resident.equip(held, catalog.document.serial);
        Equipped::Ready
    } else {
        Equipped::Missing(missing)
    }
}

impl Compiled {
    fn new(document: Document<Catalog>, now: UnixMillis) -> Result<Self, InvalidRoutes> {
        let mut origins = Vec::new();
        let mut hosts = Map::new();
        let mut first = 0;
        let features = &document.body.features;
        let fail = |route: &Route| {
            let feature = route.feature.as_ref().and_then(|feature| features.get(feature));
            feature.map_or(route.fail, |feature| feature.fail.max(route.fail))
        };
        for (name, origin) in &document.body.origins {
            let routes = origin.routes.iter().map(|route| Route { fail: fail(route), ..route.clone() }).collect();
            let table = RouteTable::compile(routes, origin.unmatched, origin.case)?;
            for host in &origin.hosts {
                hosts.insert(host.as_str().into(), origins.len());
            }
            let routes = table.routes().len();
            let place = origins.len();
            origins.push(CompiledOrigin { name: name.clone(), place, origin: origin.clone(), table, first });
            first += routes + 1;
        }
        let default = origins.iter().position(|origin| origin.name.as_str() == DEFAULT_ORIGIN);
        Ok(Self {
            document,
            read_at: now,
            refresh_at: Cell::new(now.plus(CATALOG_SOFT_TTL_MS)),
            is_outdated: Cell::new(false),
            newest_at: UnixMillis(0),
            origins,
            hosts,
            default,
        })
    }

    /// The catalog itself.
    #[must_use]
    pub const fn body(&self) -> &Catalog {
        &self.document.body
    }

    /// Its serial.
    #[must_use]
    pub const fn serial(&self) -> u64 {
        self.document.serial
    }

    /// How long ago it was read, in milliseconds.
    #[must_use]
    pub const fn age_ms(&self, now: UnixMillis) -> u64 {
        now.since(self.read_at)
    }

    /// Whether to look for a newer one behind this reply. True once in five seconds while nobody finds one.
    pub fn wants_refresh(&self, now: UnixMillis) -> bool {
        let wants = now >= self.refresh_at.get();
        if wants {
            self.refresh_at.set(now.plus(5_000));
        }
        wants
    }

    /// Which origin a URL is for, and the path there; none for the API of Tollgate itself.
    fn locate<'r>(&self, url: &Url<'r>) -> Result<Option<(&CompiledOrigin, CanonicalPath<'r>)>, Unlocated> {
        let host = cut_last(url.host, b':').map_or(url.host, |(host, _)| host);
        if let Some(origin) = self.hosts.get(host).and_then(|at| self.origins.get(*at)) {
            return CanonicalPath::parse(url.path).map(|path| Some((origin, path))).map_err(Unlocated::Path);
        }
        let path = match CanonicalPath::parse(url.path) {
            Ok(path) => path,
            // What has no canonical form might be meant for the gate, and is not a path of the API either.
            Err(why) => return Err(Unlocated::Path(why)),
        };
        match (path.strip_first(PREFIX), self.default.and_then(|at| self.origins.get(at))) {
            (None, _) => Ok(None),
            (Some(_), None) => Err(Unlocated::NoOrigin),
            (Some(path), Some(origin)) => Ok(Some((origin, path))),
        }
    }
}

/// Why a URL leads nowhere.
enum Unlocated {
    NoOrigin,
    Path(NotCanonical),
}

/// What is decided about the limits of a request.
#[derive(Debug)]
pub enum Outcome {
    /// It may pass.
    Admit(Tier),
    /// It would be refused, but its rule only observes.
    Observed(Code),
    /// It may not pass.
    Refuse(Reason),
    /// Only the limiter can tell.
    Ask,
}

/// Why a known tenant may not pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reason {
    /// The stable code.
    pub code: Code,
    /// Which feature.
    pub feature: Option<Refusal>,
    /// Which limit, and after how many milliseconds to ask again.
    pub limit: Option<(Shown, Option<u64>)>,
}

impl Reason {
    /// A reason that its code says all about.
    #[must_use]
    pub const fn new(code: Code) -> Self {
        Self { code, feature: None, limit: None }
    }

    /// For want of a feature.
    #[must_use]
    pub const fn feature(refusal: Refusal) -> Self {
        Self { code: refusal.code, feature: Some(refusal), limit: None }
    }
}

impl Standpoint<'_, '_> {
    /// Whether a refusal is carried out.
    #[must_use]
    pub fn enforcement(&self) -> decision::Mode {
        self.route.map_or(decision::Mode::Enforce, |route| route.mode)
    }

    /// What happens when no decision can be made.
    #[must_use]
    pub fn fail(&self) -> Fail {
        self.route.map_or(Fail::Closed, |route| route.fail)
    }

    /// What the route means for this tenant now: worked out where that is not known any more.
    pub fn way(&mut self, now: UnixMillis) -> Option<(&mut Way, &mut limit::Isolate)> {
        if self.at.is_none() {
            let asked = Asked {
                mode: self.mode,
                route: self.number,
                feature: self.route.and_then(|route| route.feature.as_ref()),
                meter: self.route.and_then(|route| route.meter.as_ref()),
                cost: self.route.map_or(0, |route| route.cost),
            };
            self.at = Some(self.resident.place_of_way(self.catalog, &asked, now));
        }
        self.resident.way(self.at?)
    }

    /// Decides what can be decided here: the feature, and the limits as far as live leases pay.
    pub fn decide(&mut self, now: UnixMillis) -> Outcome {
        let observes = self.enforcement() == decision::Mode::Observe;
        let Some((way, limits)) = self.way(now) else {
            return Outcome::Refuse(Reason::new(Code::Internal));
        };
        if let Some(refusal) = &way.refusal {
            return refused(refusal, observes);
        }
        if way.charges.is_empty() {
            return Outcome::Admit(Tier::Isolate);
        }
        match limits.admit(&way.charges, now) {
            Admission::Admit => Outcome::Admit(Tier::Lease),
            Admission::Ask => Outcome::Ask,
            Admission::Deny { slot, code, retry_after_ms } => {
                let code = limit_code(code);
                if observes {
                    return Outcome::Observed(code);
                }
                let shown = way.shown.iter().find(|shown| shown.slot == slot).cloned();
                let limit = shown.map(|shown| (shown, Some(retry_after_ms)));
                Outcome::Refuse(Reason { limit, ..Reason::new(code) })
            }
        }
    }
}

/// What the want of a feature comes to, where the route observes or not.
#[must_use]
pub fn refused(refusal: &Refusal, observes: bool) -> Outcome {
    if observes || refusal.mode == decision::Mode::Observe {
        Outcome::Observed(refusal.code)
    } else {
        Outcome::Refuse(Reason::feature(refusal.clone()))
    }
}

/// The stable code of a limit's refusal.
#[must_use]
pub const fn limit_code(code: limit::Code) -> Code {
    match code {
        limit::Code::RateLimited => Code::RateLimited,
        limit::Code::QuotaExhausted => Code::QuotaExceeded,
        limit::Code::CostTooLarge => Code::CostExceedsLimit,
        limit::Code::Expired | limit::Code::UnknownLimit => Code::LimiterUnavailable,
    }
}
