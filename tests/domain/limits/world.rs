//! A simulated world: isolates, limiters, clocks and a network between them, all decided by a seed. It does to the shipped
//! code what the shells do, and nothing more.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

use tollgate::domain::id::{Jurisdiction, TenantId};
use tollgate::domain::limit::*;
use tollgate::domain::time::UnixMillis;

use super::bound::{Mark, Slack, excess};
use super::random::Random;

pub(crate) const SECOND: u64 = 1_000_000;

/// One limit of the world, and where its bucket is.
#[derive(Clone, Debug)]
pub(crate) struct Limit {
    pub name: &'static str,
    pub policy: Policy,
    /// The limiter that owns the bucket.
    pub owner: usize,
    pub recording: Recording,
}

/// One isolate: where it belongs, what its requests cost, and how many come.
#[derive(Clone, Debug)]
pub(crate) struct Site {
    pub limiter: usize,
    pub charges: Vec<(usize, u64)>,
    pub per_second: f64,
}

/// What may go wrong, in percent where it is a chance.
#[derive(Clone, Debug)]
pub(crate) struct Faults {
    pub loss: f64,
    pub duplicates: f64,
    pub late: f64,
    pub isolate_crashes_per_minute: f64,
    pub limiter_crashes_per_minute: f64,
    pub jumps_per_minute: f64,
    pub steps_back_per_minute: f64,
    pub policy_changes_per_minute: f64,
    pub drift: bool,
    pub lag: bool,
    pub quiet: bool,
}

impl Faults {
    pub(crate) const NONE: Self = Self {
        loss: 0.0,
        duplicates: 0.0,
        late: 0.0,
        isolate_crashes_per_minute: 0.0,
        limiter_crashes_per_minute: 0.0,
        jumps_per_minute: 0.0,
        steps_back_per_minute: 0.0,
        policy_changes_per_minute: 0.0,
        drift: false,
        lag: false,
        quiet: false,
    };
}

#[derive(Clone, Debug)]
pub(crate) struct Setup {
    pub limits: Vec<Limit>,
    /// The parent of each limiter; the first has none.
    pub parents: Vec<Option<usize>>,
    pub sites: Vec<Site>,
    pub faults: Faults,
    /// Every so many requests is a large one: one in n, of what cost, and whether it asks again when refused.
    pub large: Option<(u64, u64, bool)>,
    /// One in n requests reserves, and commits or not.
    pub reserves: Option<u64>,
    /// Whether an isolate sends a TAKE again when no answer has come after a while.
    pub resends: bool,
    pub seconds: u64,
    /// How long the world goes on when no request comes any more.
    pub idle_seconds: u64,
}

/// A clock that may run at another pace, stand still, and be set.
#[derive(Clone, Debug)]
struct Clock {
    offset_us: i128,
    pace_ppm: i128,
    lags: bool,
    shown: u64,
}

impl Clock {
    fn new(random: &mut Random, faults: &Faults) -> Self {
        let pace = if faults.drift { random.pick(&[-10_000, -3_000, 0, 3_000, 10_000]) } else { 0 };
        let offset = 1_790_000_000_000_000 + i128::from(random.within(0, 20_000_000));
        Self { offset_us: offset, pace_ppm: pace, lags: faults.lag, shown: 0 }
    }

    /// What it shows: in production a clock moves only on I/O, so up to 250 ms may be missing.
    fn read(&mut self, at: u64, random: &mut Random) -> UnixMillis {
        let local = self.offset_us + i128::from(at) * (1_000_000 + self.pace_ppm) / 1_000_000;
        let lag = if self.lags { i128::from(random.pick(&[0, 0, 0, 100_000, 249_000])) } else { 0 };
        self.shown = self.shown.max(((local - lag) / 1_000) as u64);
        UnixMillis(self.shown)
    }

    fn set(&mut self, by_us: i128) {
        self.offset_us += by_us;
        if by_us < 0 {
            self.shown = 0;
        }
    }

    /// When it will show `shown`, or a little later.
    fn when(&self, shown: UnixMillis) -> u64 {
        let local = i128::from(shown.0) * 1_000 - self.offset_us;
        (local * 1_000_000 / (1_000_000 + self.pace_ppm)).max(0) as u64 + 1_000
    }
}

struct Station {
    isolate: Isolate,
    incarnation: Incarnation,
    clock: Clock,
    slots: Vec<Slot>,
    /// The newest policy of each limit it has read.
    revs: Vec<u64>,
    wake: u64,
}

struct Authority {
    limiter: Limiter,
    rows: BTreeMap<String, String>,
    clock: Clock,
    down_until: u64,
    wake: u64,
}

#[derive(Clone, Debug)]
enum Asker {
    Isolate(usize, Incarnation, Option<OpId>),
    Child(usize),
    /// A child that forwarded an op for an isolate's call.
    Forward(usize, OpId, Box<Asker>, Reply),
}

#[derive(Clone, Debug)]
enum Happening {
    Request(usize),
    /// A refused large cost asks again: site, charges, tag.
    Again(usize, Tag, Vec<(usize, u64)>),
    Call(usize, Asker, Call),
    Reply(Asker, Reply),
    Resend(usize, OpId),
    Timeout(usize, OpId),
    Wake(usize),
    LimiterWake(usize),
    Commit(usize, OpId, bool),
    IsolateCrash,
    LimiterCrash,
    Jump(bool),
    PolicyChange,
    /// An isolate reads the newest documents.
    Learn(usize),
}

struct Waiting {
    ticket: Option<Ticket>,
    call: Call,
    charges: Vec<(usize, u64)>,
    tag: Option<Tag>,
    reserve: bool,
}

/// What a run counted.
#[derive(Clone, Debug, Default)]
pub(crate) struct Counts {
    pub offered: u64,
    pub admitted: u64,
    pub admitted_at_once: u64,
    pub denied: u64,
    pub unknown: u64,
    pub calls: u64,
    pub parent_calls: u64,
    pub lost: u64,
    pub duplicated: u64,
    pub late: u64,
    pub isolate_crashes: u64,
    pub limiter_crashes: u64,
    pub jumps: u64,
    pub steps_back: u64,
    pub policy_changes: u64,
    pub large_admitted: u64,
    pub reserved: u64,
    pub voided: u64,
    pub forwarded: u64,
    pub quiet: u64,
}

impl std::ops::AddAssign<&Self> for Counts {
    fn add_assign(&mut self, o: &Self) {
        for (a, b) in [
            (&mut self.offered, o.offered),
            (&mut self.admitted, o.admitted),
            (&mut self.admitted_at_once, o.admitted_at_once),
            (&mut self.denied, o.denied),
            (&mut self.unknown, o.unknown),
            (&mut self.calls, o.calls),
            (&mut self.parent_calls, o.parent_calls),
            (&mut self.lost, o.lost),
            (&mut self.duplicated, o.duplicated),
            (&mut self.late, o.late),
            (&mut self.isolate_crashes, o.isolate_crashes),
            (&mut self.limiter_crashes, o.limiter_crashes),
            (&mut self.jumps, o.jumps),
            (&mut self.steps_back, o.steps_back),
            (&mut self.policy_changes, o.policy_changes),
            (&mut self.large_admitted, o.large_admitted),
            (&mut self.reserved, o.reserved),
            (&mut self.voided, o.voided),
            (&mut self.forwarded, o.forwarded),
            (&mut self.quiet, o.quiet),
        ] {
            *a += b;
        }
    }
}

pub(crate) struct World {
    setup: Setup,
    random: Random,
    now: u64,
    order: u64,
    agenda: BinaryHeap<Reverse<(u64, u64)>>,
    happenings: BTreeMap<u64, Happening>,
    stations: Vec<Station>,
    authorities: Vec<Authority>,
    waiting: BTreeMap<OpId, Waiting>,
    /// Takes that a limiter admitted: when, for the bound as the limiter sees it.
    taken: BTreeMap<(OpId, usize), u64>,
    policies: Vec<Vec<Policy>>,
    in_force: Vec<u64>,
    /// What was admitted when, by whoever decided it.
    pub marks: Vec<Vec<(u64, Mark)>>,
    /// The same as the isolates see it: a TAKE counts when its answer has arrived.
    arrived: Vec<Vec<(u64, Mark)>>,
    pub counts: Counts,
    /// When each large cost was first asked for, and how long it took.
    large: BTreeMap<Tag, (u64, Option<u64>)>,
    tallies: BTreeMap<String, u64>,
    counted: u64,
    pub print: bool,
}

pub(crate) fn tenant(n: usize) -> TenantId {
    TenantId::new(Jurisdiction::Global, UnixMillis(1_790_000_000_000), [0, 0, 0, n as u8])
}

impl World {
    pub(crate) fn new(setup: Setup, seed: u64) -> Self {
        let mut random = Random::new(seed);
        let authorities = (0..setup.parents.len())
            .map(|n| Authority {
                limiter: Limiter::new(tenant(n), Incarnation(random.id())),
                rows: BTreeMap::new(),
                clock: Clock::new(&mut random, &setup.faults),
                down_until: 0,
                wake: u64::MAX,
            })
            .collect();
        let mut world = Self {
            policies: setup.limits.iter().map(|limit| vec![limit.policy]).collect(),
            in_force: vec![0; setup.limits.len()],
            marks: vec![Vec::new(); setup.limits.len()],
            arrived: vec![Vec::new(); setup.limits.len()],
            setup,
            random,
            now: 0,
            order: 0,
            agenda: BinaryHeap::new(),
            happenings: BTreeMap::new(),
            stations: Vec::new(),
            authorities,
            waiting: BTreeMap::new(),
            taken: BTreeMap::new(),
            counts: Counts::default(),
            large: BTreeMap::new(),
            tallies: BTreeMap::new(),
            counted: 0,
            print: false,
        };
        for site in 0..world.setup.sites.len() {
            let station = world.station(site);
            world.stations.push(station);
            let gap = world.random.gap_us(world.setup.sites[site].per_second);
            world.schedule(gap, Happening::Request(site));
        }
        let faults = world.setup.faults.clone();
        for (rate, what) in [
            (faults.isolate_crashes_per_minute, Happening::IsolateCrash),
            (faults.limiter_crashes_per_minute, Happening::LimiterCrash),
            (faults.jumps_per_minute, Happening::Jump(true)),
            (faults.steps_back_per_minute, Happening::Jump(false)),
            (faults.policy_changes_per_minute, Happening::PolicyChange),
        ] {
            world.schedule_often(rate, what);
        }
        world
    }

    pub(crate) fn run(mut self) -> Self {
        let end = (self.setup.seconds + self.setup.idle_seconds) * SECOND;
        while let Some(Reverse((at, order))) = self.agenda.pop() {
            if at > end {
                break;
            }
            self.now = at;
            if let Some(what) = self.happenings.remove(&order) {
                self.happen(what);
            }
        }
        self
    }

    /// By how many tokens each limit exceeded its contract in its worst interval; and what was billed that was not used.
    pub(crate) fn excesses(&self) -> Vec<(&'static str, f64, u64, u64)> {
        let drift = if self.setup.faults.drift { 1 } else { 0 };
        let delta = if self.setup.faults.lag { 250 } else { 0 };
        // A lease from a parent's limiter lasts twice as long for each limiter below it.
        let depth = (0..self.setup.parents.len()).map(|at| self.depth(at)).max().unwrap_or(0);
        let lease_ms = ((TTL_MS << depth.min(2)) + delta) * 100 / (100 - drift) + 1;
        // A clock that shows whole milliseconds lags by one.
        let slack = Slack { drift_percent: drift, delta_ms: delta + 1, lease_ms };
        let mut all = Vec::new();
        // An isolate may act on an ADMIT for 250 ms after its first send, on its own clock.
        let seen = Slack { delta_ms: 2 * delta + 254, ..slack };
        for (marks, slack) in [(&self.marks, slack), (&self.arrived, seen)] {
            for (limit, marks) in self.setup.limits.iter().zip(marks) {
                let mut marks = marks.clone();
                marks.sort_by_key(|mark| mark.0);
                let (over, from, to) = excess(limit.policy, &marks, slack);
                all.push((limit.name, over, from, to));
            }
        }
        all
    }

    /// Which of the world's limits a key is about.
    fn limit(&self, key: &LimitKey) -> usize {
        let same = |limit: &Limit| limit.name == key.limit.as_str() && tenant(limit.owner) == key.tenant;
        self.setup.limits.iter().position(same).unwrap()
    }

    /// How many limiters are above this one.
    fn depth(&self, limiter: usize) -> usize {
        self.setup.parents[limiter].map_or(0, |parent| 1 + self.depth(parent))
    }

    /// Panics when a promise was broken.
    pub(crate) fn check(&self, seed: u64) {
        for (name, over, from, to) in self.excesses() {
            assert!(
                over <= 0.000_001,
                "SEED={seed}: {name} exceeded its bound by {over:.2} tokens from {:.3} s to {:.3} s",
                from as f64 / 1e6,
                to as f64 / 1e6
            );
        }
        let billed: u64 = self.tallies.values().sum();
        assert!(billed <= self.counted, "SEED={seed}: billed {billed}, used {}", self.counted);
    }

    fn say(&self, what: impl Fn() -> String) {
        if self.print {
            println!("{:>10.3} {}", self.now as f64 / 1e6, what());
        }
    }

    fn schedule(&mut self, at: u64, what: Happening) {
        self.order += 1;
        self.agenda.push(Reverse((at, self.order)));
        self.happenings.insert(self.order, what);
    }

    fn schedule_often(&mut self, per_minute: f64, what: Happening) {
        if per_minute > 0.0 {
            let gap = self.random.gap_us(per_minute / 60.0);
            self.schedule(self.now + gap, what);
        }
    }

    fn station(&mut self, site: usize) -> Station {
        let incarnation = Incarnation(self.random.id());
        let mut station = Station {
            isolate: Isolate::new(incarnation),
            incarnation,
            clock: Clock::new(&mut self.random, &self.setup.faults),
            slots: Vec::new(),
            revs: self.policies.iter().map(|policies| policies.len() as u64 - 1).collect(),
            wake: u64::MAX,
        };
        for limit in 0..self.setup.limits.len() {
            let rule = self.rule(limit, self.setup.sites[site].limiter, station.revs[limit]);
            station.slots.push(station.isolate.resolve(&rule));
        }
        station
    }

    fn rule(&self, limit: usize, at: usize, version: u64) -> Rule {
        let about = &self.setup.limits[limit];
        let (mut above, mut limiter) = (0, at);
        while limiter != about.owner {
            let Some(parent) = self.setup.parents[limiter] else { break };
            (above, limiter) = (above + 1, parent);
        }
        let policy = self.policies[limit][version as usize];
        Rule {
            key: LimitKey {
                tenant: tenant(about.owner),
                limit: about.name.parse().unwrap(),
                mode: Mode::Live,
                window: policy.ends().map(|_| UnixMillis(1_700_000_000_000)),
            },
            policy,
            rev: Rev { catalog: 1, plan: 1, tenant: version + 1 },
            valid_until: UnixMillis(9_000_000_000_000),
            above,
            recording: about.recording,
            carved: false,
        }
    }

    /// Sends with what the network does to messages.
    fn send(&mut self, what: Happening) {
        let faults = self.setup.faults.clone();
        let copies = if self.random.chance(faults.duplicates) { 2 } else { 1 };
        self.counts.duplicated += copies - 1;
        for _ in 0..copies {
            if self.random.chance(faults.loss) {
                self.counts.lost += 1;
                continue;
            }
            let mut delay = self.random.within(5_000, 65_000);
            if self.random.chance(faults.late) {
                self.counts.late += 1;
                delay = self.random.within(200_000, 9_000_000);
            }
            self.schedule(self.now + delay, what.clone());
        }
    }

    fn call(&mut self, site: usize, call: Call, op: Option<OpId>) {
        let limiter = self.setup.sites[site].limiter;
        let incarnation = self.stations[site].incarnation;
        self.counts.calls += 1;
        // Messages are JSON on their way.
        let call = serde_json::from_str(&serde_json::to_string(&call).unwrap()).unwrap();
        self.send(Happening::Call(limiter, Asker::Isolate(site, incarnation, op), call));
    }

    fn happen(&mut self, what: Happening) {
        match what {
            Happening::Request(site) => {
                let gap = self.random.gap_us(self.setup.sites[site].per_second);
                let mut next = self.now + gap;
                if self.setup.faults.quiet && self.random.chance(0.3) {
                    self.counts.quiet += 1;
                    next += self.random.within(2, 15) * SECOND;
                }
                if next < self.setup.seconds * SECOND {
                    self.schedule(next, Happening::Request(site));
                }
                let mut charges = self.setup.sites[site].charges.clone();
                let mut tag = None;
                if let Some((one_in, cost, _)) = self.setup.large
                    && self.random.within(1, one_in) == 1
                {
                    let own = Tag(self.random.id());
                    self.large.insert(own, (self.now, None));
                    tag = Some(own);
                    for charge in &mut charges {
                        charge.1 = cost;
                    }
                }
                self.request(site, charges, tag);
            }
            Happening::Again(site, tag, charges) => self.request(site, charges, Some(tag)),
            Happening::Call(limiter, asker, call) => self.arrive(limiter, asker, &call),
            Happening::Reply(asker, reply) => self.answer(asker, reply),
            Happening::Resend(site, op) => {
                if let Some(call) = self.waiting.get(&op).map(|waiting| waiting.call.clone()) {
                    self.call(site, call, Some(op));
                }
            }
            Happening::Timeout(site, op) => {
                if let Some(mut waiting) = self.waiting.remove(&op)
                    && let Some(ticket) = waiting.ticket.take()
                {
                    let now = self.read(site);
                    self.stations[site].isolate.verdict(ticket, None, now);
                    self.counts.unknown += 1;
                    if let Some(tag) = waiting.tag {
                        self.again(site, tag, waiting.charges, 100);
                    }
                }
            }
            Happening::Wake(site) => {
                self.stations[site].wake = u64::MAX;
                self.renew(site);
            }
            Happening::LimiterWake(limiter) => {
                self.authorities[limiter].wake = u64::MAX;
                let now = self.limiter_clock(limiter);
                self.authorities[limiter].limiter.tick(now);
                self.store(limiter);
                self.parent(limiter);
            }
            Happening::Commit(site, op, commit) => {
                self.counts.voided += u64::from(!commit);
                let call = self.stations[site].isolate.end(op, commit);
                self.call(site, call, None);
            }
            Happening::IsolateCrash => {
                self.schedule_often(self.setup.faults.isolate_crashes_per_minute, what);
                self.counts.isolate_crashes += 1;
                let site = self.random.within(0, self.stations.len() as u64 - 1) as usize;
                self.say(|| format!("isolate {site} crashes"));
                self.stations[site] = self.station(site);
            }
            Happening::LimiterCrash => {
                self.schedule_often(self.setup.faults.limiter_crashes_per_minute, what);
                self.counts.limiter_crashes += 1;
                let limiter = self.random.within(0, self.authorities.len() as u64 - 1) as usize;
                self.say(|| format!("limiter {limiter} crashes"));
                self.restart(limiter);
                self.authorities[limiter].down_until = self.now + self.random.within(0, 2_000_000);
            }
            Happening::Jump(forward) => {
                let faults = &self.setup.faults;
                let rate = if forward { faults.jumps_per_minute } else { faults.steps_back_per_minute };
                self.schedule_often(rate, what);
                let by = i128::from(self.random.pick(&[300_000, 2_000_000, 6_000_000, 20_000_000]));
                // A child's clock that is set back lies about its parent's leases: the contract excludes it.
                let limiter =
                    if forward { self.random.within(0, self.authorities.len() as u64 - 1) as usize } else { 0 };
                self.say(|| format!("clock of limiter {limiter} set by {by} us, forward {forward}"));
                self.authorities[limiter].clock.set(if forward { by } else { -by });
                if forward {
                    self.counts.jumps += 1;
                    for ((limit, marks), jumped) in self.setup.limits.iter().zip(&mut self.marks).zip(&mut self.arrived)
                    {
                        if limit.owner == limiter {
                            marks.push((self.now, Mark::Jump));
                            jumped.push((self.now, Mark::Jump));
                        }
                    }
                } else {
                    self.counts.steps_back += 1;
                }
            }
            Happening::PolicyChange => {
                self.schedule_often(self.setup.faults.policy_changes_per_minute, what);
                self.change_policy();
            }
            Happening::Learn(site) => {
                for limit in 0..self.setup.limits.len() {
                    let newest = self.policies[limit].len() as u64 - 1;
                    self.stations[site].revs[limit] = newest;
                    let rule = self.rule(limit, self.setup.sites[site].limiter, newest);
                    self.stations[site].isolate.resolve(&rule);
                }
            }
        }
    }

    fn change_policy(&mut self) {
        let limit = self.random.within(0, self.setup.limits.len() as u64 - 1) as usize;
        let newest = *self.policies[limit].last().unwrap();
        let factor = |value: u64, random: &mut Random| (value * random.pick(&[1, 2, 5, 10, 20, 50, 100]) / 10).max(1);
        let policy = match newest {
            Policy::Rate { interval_ms, burst, tokens } => Policy::Rate {
                tokens: factor(tokens, &mut self.random).min(5_000),
                interval_ms,
                burst: factor(burst, &mut self.random).min(5_000),
            },
            Policy::Quota { amount, ends } => {
                Policy::Quota { amount: factor(amount, &mut self.random).min(100_000), ends }
            }
        };
        self.counts.policy_changes += 1;
        self.say(|| format!("limit {limit} becomes {policy:?}"));
        self.policies[limit].push(policy);
        for site in 0..self.stations.len() {
            let delay = self.random.within(0, 3 * SECOND);
            self.schedule(self.now + delay, Happening::Learn(site));
        }
    }

    fn read(&mut self, site: usize) -> UnixMillis {
        self.stations[site].clock.read(self.now, &mut self.random)
    }

    fn limiter_clock(&mut self, limiter: usize) -> UnixMillis {
        self.authorities[limiter].clock.read(self.now, &mut self.random)
    }

    fn request(&mut self, site: usize, charges: Vec<(usize, u64)>, tag: Option<Tag>) {
        self.counts.offered += 1;
        let now = self.read(site);
        let reserve = tag.is_none() && self.setup.reserves.is_some_and(|one_in| self.random.within(1, one_in) == 1);
        let station = &mut self.stations[site];
        let charged: Vec<_> =
            charges.iter().map(|(limit, cost)| Charge { slot: station.slots[*limit], cost: *cost }).collect();
        let admission = if reserve { Admission::Ask } else { station.isolate.admit(&charged, now) };
        match admission {
            Admission::Admit => {
                self.counts.admitted_at_once += 1;
                for (limit, cost) in &charges {
                    if self.setup.limits[*limit].recording == Recording::Leased {
                        let slot = self.stations[site].slots[*limit];
                        let payer = self.stations[site].isolate.payer(slot);
                        self.stations[site].isolate.count(Some((slot, payer)), &"minute".into(), *cost, None, now);
                        self.counted += cost;
                    }
                }
                self.admitted(&charges, self.now, tag);
            }
            Admission::Deny { retry_after_ms, .. } => {
                self.counts.denied += 1;
                if let Some(tag) = tag {
                    self.again(site, tag, charges, retry_after_ms);
                }
            }
            Admission::Ask => {
                let op = OpId(self.random.id());
                let isolate = &mut self.stations[site].isolate;
                let (call, ticket) = if reserve {
                    self.counts.reserved += 1;
                    // A lost COMMIT must not give back what was used; a lost VOID only wastes.
                    let reserve = Reserve { hold_ms: 3_000, commits: true };
                    isolate.take(op, None, &charged, vec![], Some(reserve), now)
                } else {
                    isolate.take(op, tag, &charged, vec![], None, now)
                };
                let waiting = Waiting { ticket: Some(ticket), call: call.clone(), charges, tag, reserve };
                self.waiting.insert(op, waiting);
                self.call(site, call, Some(op));
                if self.setup.resends {
                    self.schedule(self.now + 140_000, Happening::Resend(site, op));
                }
                self.schedule(self.now + 260_000, Happening::Timeout(site, op));
            }
        }
        if self.stations[site].isolate.is_due() {
            self.renew(site);
        }
        self.arm(site);
    }

    fn again(&mut self, site: usize, tag: Tag, charges: Vec<(usize, u64)>, retry_after_ms: u64) {
        if self.setup.large.is_some_and(|large| large.2) && retry_after_ms > 0 {
            let delay = retry_after_ms * 1_000 + self.random.within(0, 50_000);
            self.schedule(self.now + delay, Happening::Again(site, tag, charges));
        }
    }

    fn admitted(&mut self, charges: &[(usize, u64)], at: u64, tag: Option<Tag>) {
        self.counts.admitted += 1;
        self.large_admitted(tag);
        for (limit, cost) in charges {
            self.marks[*limit].push((at, Mark::Admitted(*cost)));
            self.arrived[*limit].push((at, Mark::Admitted(*cost)));
        }
    }

    fn large_admitted(&mut self, tag: Option<Tag>) {
        if let Some((since, took)) = tag.and_then(|tag| self.large.get_mut(&tag)) {
            self.counts.large_admitted += 1;
            *took = Some(self.now - *since);
        }
    }

    /// What isolates counted of leased meters, and what of it a limiter took in.
    pub(crate) fn reported(&self) -> (u64, u64) {
        (self.counted, self.tallies.values().sum())
    }

    /// What a limiter has debited and never heard of.
    pub(crate) fn gaps(&mut self, limiter: usize) -> u64 {
        let now = self.limiter_clock(limiter);
        let limiter = &mut self.authorities[limiter].limiter;
        limiter.tick(now);
        limiter.standings().iter().map(|(_, standing)| standing.gap).sum()
    }

    /// How long each admitted large cost waited, in ms.
    pub(crate) fn waits(&self) -> Vec<u64> {
        self.large.values().filter_map(|(_, took)| took.map(|took| took / 1_000)).collect()
    }

    /// How many large costs have waited longer than `ms` and still do.
    pub(crate) fn overdue(&self, ms: u64) -> usize {
        self.large.values().filter(|(since, took)| took.is_none() && (self.now - since) / 1_000 > ms).count()
    }

    fn renew(&mut self, site: usize) {
        let now = self.read(site);
        if let Some(call) = self.stations[site].isolate.renew(now) {
            self.call(site, call, None);
        }
        self.arm(site);
    }

    fn arm(&mut self, site: usize) {
        let station = &mut self.stations[site];
        if let Some(at) = station.isolate.wakes_at() {
            let when = station.clock.when(at).max(self.now + 20_000);
            if when < station.wake && when < station.wake.saturating_sub(50_000) {
                station.wake = when;
                self.schedule(when, Happening::Wake(site));
            }
        }
    }

    /// A limiter gets a call: the shell loads, steps, stores, replies.
    fn arrive(&mut self, limiter: usize, asker: Asker, call: &Call) {
        if self.now < self.authorities[limiter].down_until {
            return;
        }
        self.note_policies(limiter, call);
        let now = self.limiter_clock(limiter);
        let (reply, effects) = self.authorities[limiter].limiter.step(call, now);
        for tally in effects.tallies {
            let before = self.tallies.insert(tally.id.clone(), tally.units);
            assert!(before.is_none(), "the tally {} was accepted twice", tally.id);
        }
        self.store(limiter);
        self.say(|| format!("limiter {limiter}: {call:?} -> {reply:?}"));
        let reply: Reply = serde_json::from_str(&serde_json::to_string(&reply).unwrap()).unwrap();
        if let Some(Op::Take(Take { id, costs, .. })) = &call.op {
            let admitted = matches!(reply.outcome, Some((_, Outcome::Admit)));
            for (place, _) in costs {
                let rule = &call.rules[*place];
                if admitted || (effects.forward.is_some() && rule.above == 0) {
                    let limit = self.limit(&rule.key);
                    self.taken.entry((*id, limit)).or_insert(self.now);
                }
            }
        }
        match (effects.forward, call.op.as_ref().map(Op::id)) {
            (Some(forward), Some(op)) => {
                self.counts.forwarded += 1;
                let parent = self.setup.parents[limiter].expect("only a child forwards");
                self.counts.parent_calls += 1;
                self.send(Happening::Call(parent, Asker::Forward(limiter, op, Box::new(asker), reply), forward));
            }
            _ => self.send(Happening::Reply(asker, reply)),
        }
        // Now and then it is replaced by what it stored.
        if self.random.within(1, 50) == 1 {
            self.restart(limiter);
        }
        self.parent(limiter);
    }

    fn note_policies(&mut self, limiter: usize, call: &Call) {
        for rule in &call.rules {
            let limit = self.limit(&rule.key);
            if self.setup.limits[limit].owner == limiter && rule.rev.tenant - 1 > self.in_force[limit] {
                self.in_force[limit] = rule.rev.tenant - 1;
                self.marks[limit].push((self.now, Mark::Policy(rule.policy)));
                self.arrived[limit].push((self.now, Mark::Policy(rule.policy)));
            }
        }
    }

    fn parent(&mut self, limiter: usize) {
        let Some(parent) = self.setup.parents[limiter] else { return };
        let now = self.limiter_clock(limiter);
        let call = self.authorities[limiter].limiter.parent_call(now);
        self.store(limiter);
        if let Some(call) = call {
            self.counts.parent_calls += 1;
            self.send(Happening::Call(parent, Asker::Child(limiter), call));
        }
        let authority = &mut self.authorities[limiter];
        if let Some(at) = authority.limiter.wakes_at() {
            let when = authority.clock.when(at);
            if when < authority.wake {
                authority.wake = when;
                self.schedule(when.max(self.now + 1_000), Happening::LimiterWake(limiter));
            }
        }
    }

    fn answer(&mut self, asker: Asker, reply: Reply) {
        match asker {
            Asker::Isolate(site, incarnation, op) => {
                if self.stations[site].incarnation != incarnation {
                    return;
                }
                let now = self.read(site);
                self.stations[site].isolate.answered(&reply, now);
                if let Some(op) = op
                    && let Some(mut waiting) = self.waiting.remove(&op)
                    && let Some(ticket) = waiting.ticket.take()
                {
                    match self.stations[site].isolate.verdict(ticket, Some(&reply), now) {
                        Verdict::Admit => {
                            let commit = !waiting.reserve || self.random.chance(50.0);
                            self.counts.admitted += 1;
                            self.large_admitted(waiting.tag);
                            // What is given back never counted.
                            for (limit, cost) in waiting.charges.iter().filter(|_| commit) {
                                let at = self.taken[&(op, *limit)];
                                self.marks[*limit].push((at, Mark::Admitted(*cost)));
                                self.arrived[*limit].push((self.now, Mark::Admitted(*cost)));
                            }
                            if waiting.reserve {
                                let delay = self.random.within(50_000, 2_000_000);
                                self.schedule(self.now + delay, Happening::Commit(site, op, commit));
                            }
                        }
                        Verdict::Deny(denial) => {
                            self.counts.denied += 1;
                            if let Some(tag) = waiting.tag {
                                self.again(site, tag, waiting.charges, denial.retry_after_ms);
                            }
                        }
                        Verdict::Unknown => self.counts.unknown += 1,
                    }
                }
                self.arm(site);
            }
            Asker::Child(limiter) => {
                if self.now < self.authorities[limiter].down_until {
                    return;
                }
                let now = self.limiter_clock(limiter);
                self.authorities[limiter].limiter.parent_reply(&reply, now);
                self.store(limiter);
                self.parent(limiter);
            }
            Asker::Forward(limiter, op, asker, mut own) => {
                if self.now < self.authorities[limiter].down_until {
                    return;
                }
                let now = self.limiter_clock(limiter);
                let (outcome, _) = self.authorities[limiter].limiter.forwarded(op, Some(&reply), now);
                self.store(limiter);
                own.outcome = outcome.map(|outcome| (op, outcome));
                self.send(Happening::Reply(*asker, own));
            }
        }
    }

    /// What the shell does after every step: stores what changed, as JSON.
    fn store(&mut self, limiter: usize) {
        let authority = &mut self.authorities[limiter];
        for change in authority.limiter.changes() {
            let id = change.place.to_string();
            match change.row {
                Some(row) => authority.rows.insert(id, serde_json::to_string(&row).unwrap()),
                None => authority.rows.remove(&id),
            };
        }
    }

    /// The limiter is what its rows say, and nothing else.
    fn restart(&mut self, limiter: usize) {
        let authority = &mut self.authorities[limiter];
        let rows =
            authority.rows.iter().map(|(place, row)| (place.parse().unwrap(), serde_json::from_str(row).unwrap()));
        if let Some(restored) = Limiter::restore(rows) {
            assert_eq!(restored, authority.limiter, "what is stored is not what is there");
            authority.limiter = restored;
        }
    }
}

/// A rate limit for tests: per second.
pub(crate) fn rate(tokens: u64, burst: u64) -> Policy {
    Policy::Rate { tokens, interval_ms: 1_000, burst }
}

pub(crate) fn quota(amount: u64) -> Policy {
    Policy::Quota { amount, ends: UnixMillis(8_000_000_000_000) }
}
