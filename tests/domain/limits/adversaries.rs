//! Schedules that chance does not find, each by hand. Every one of them broke a draft of the protocol, or would have.

use tollgate::domain::limit::*;
use tollgate::domain::outbox::Event;
use tollgate::domain::time::UnixMillis;

use super::bound::{Mark, Slack, excess};
use super::world::{quota, rate, tenant};

const START: u64 = 1_790_000_000_000;

fn at(ms: u64) -> UnixMillis {
    UnixMillis(START + ms)
}

fn rule(policy: Policy, rev: u64) -> Rule {
    Rule {
        key: LimitKey {
            tenant: tenant(0),
            limit: "rps".parse().unwrap(),
            mode: Mode::Live,
            window: policy.ends().map(|_| UnixMillis(1_700_000_000_000)),
        },
        policy,
        rev: Rev { catalog: 1, plan: 1, tenant: rev },
        valid_until: UnixMillis(9_000_000_000_000),
        above: 0,
        recording: Recording::Unmetered,
        carved: false,
    }
}

fn pooled(policy: Policy) -> Rule {
    Rule { above: 1, ..rule(policy, 1) }
}

fn limiter() -> Limiter {
    Limiter::new(tenant(0), Incarnation(99))
}

fn call(from: u128, rule: &Rule) -> Call {
    Call {
        from: Incarnation(from),
        depth: 0,
        rev: rule.rev,
        rules: vec![rule.clone()],
        reports: vec![],
        asks: vec![],
        op: None,
        usage: None,
    }
}

fn lease(limiter: &mut Limiter, from: u128, rule: &Rule, seq: u64, want: u64, now: u64) -> Grant {
    let call = Call { asks: vec![Ask { rule: 0, seq, want }], ..call(from, rule) };
    limiter.step(&call, at(now)).0.grants[0]
}

fn report(limiter: &mut Limiter, from: u128, rule: &Rule, lease: LeaseId, used: u64, returned: u64, now: u64) {
    let call = Call { reports: vec![Report { rule: 0, lease, used, returned }], ..call(from, rule) };
    limiter.step(&call, at(now));
}

fn take_call(from: u128, rules: &[Rule], id: u128, tag: Option<u128>, cost: u64) -> Call {
    let costs = (0..rules.len()).map(|place| (place, cost)).collect();
    let op = Op::Take(Take { id: OpId(id), tag: tag.map(Tag), costs, events: vec![], reserve: None });
    Call { rules: rules.to_vec(), op: Some(op), ..call(from, &rules[0]) }
}

fn take(limiter: &mut Limiter, rule: &Rule, id: u128, tag: Option<u128>, cost: u64, now: u64) -> Outcome {
    let call = take_call(7, std::slice::from_ref(rule), id, tag, cost);
    limiter.step(&call, at(now)).0.outcome.unwrap().1
}

fn reserve(limiter: &mut Limiter, rule: &Rule, id: u128, cost: u64, hold_ms: u64, now: u64) -> Outcome {
    let reserve = Some(Reserve { hold_ms, commits: false });
    let op = Op::Take(Take { id: OpId(id), tag: None, costs: vec![(0, cost)], events: vec![], reserve });
    limiter.step(&Call { op: Some(op), ..call(7, rule) }, at(now)).0.outcome.unwrap().1
}

fn end(limiter: &mut Limiter, rule: &Rule, id: u128, commit: bool, now: u64) -> Outcome {
    let id = OpId(id);
    let op = if commit { Op::Commit { id } } else { Op::Void { id, reversals: vec![] } };
    limiter.step(&Call { op: Some(op), ..call(7, rule) }, at(now)).0.outcome.unwrap().1
}

fn event(id: &str) -> Event {
    Event {
        source: "gate".to_owned(),
        id: id.to_owned(),
        meter: "calls".parse().unwrap(),
        mode: Mode::Live,
        quantity: 1,
        reverses: None,
        at: at(0),
        period: at(0),
        detail: serde_json::Value::Null,
    }
}

fn record(limiter: &mut Limiter, from: u128, rule: &Rule, id: u128, lease: LeaseId, cost: u64, now: u64) -> Outcome {
    let op = Op::Record { id: OpId(id), rule: 0, lease, cost, event: event(&id.to_string()) };
    limiter.step(&Call { op: Some(op), ..call(from, rule) }, at(now)).0.outcome.unwrap().1
}

fn is_denied(outcome: &Outcome) -> bool {
    matches!(outcome, Outcome::Deny(_))
}

/// Everything that can be taken at once, token by token.
fn drain(limiter: &mut Limiter, rule: &Rule, first_id: u128, now: u64) -> u64 {
    (0..).take_while(|n| take(limiter, rule, first_id + n, None, 1, now) == Outcome::Admit).count() as u64
}

fn standing(limiter: &mut Limiter, rule: &Rule, now: u64) -> Standing {
    limiter.tick(at(now));
    limiter.standing(&rule.key).unwrap()
}

fn avail(limiter: &mut Limiter, rule: &Rule, now: u64) -> u64 {
    standing(limiter, rule, now).avail
}

fn assert_within(policy: Policy, admitted: &[(u64, u64)]) {
    let marks: Vec<_> = admitted.iter().map(|(ms, tokens)| (ms * 1_000, Mark::Admitted(*tokens))).collect();
    let over = excess(policy, &marks, Slack::NONE);
    assert!(over.0 <= 0.0, "exceeded by {over:?}: {admitted:?}");
}

/// An isolate that spends all of its lease at the last moment, and others that take all there is as soon as the limiter
/// has forgotten that lease: minting must not have gone on while the lease counted.
#[test]
fn spending_at_the_deadline_and_leasing_again_just_after_the_limiter_forgets() {
    let rule = rule(rate(200, 600), 1);
    let mut limiter = limiter();
    let first = lease(&mut limiter, 1, &rule, 1, 600, 0);
    assert_eq!(first.tokens, 300);
    let rest = drain(&mut limiter, &rule, 1_000, 0);
    assert_eq!(rest, 300);
    let forgotten = lease_life(TTL_MS);
    let mut admitted = vec![(0, rest), (TTL_MS - 1, first.tokens)];
    for ms in [forgotten, forgotten + 1, forgotten + 500] {
        admitted.push((ms, drain(&mut limiter, &rule, u128::from(ms) * 10_000, ms)));
    }
    assert_within(rate(200, 600), &admitted);
}

/// An isolate whose ask is answered with nothing goes on spending its lease: it must not have been given back.
#[test]
fn answered_with_nothing_then_reporting() {
    let rule = rule(rate(1, 40), 1);
    let mut limiter = limiter();
    let mut isolate = Isolate::new(Incarnation(1));
    let slot = isolate.resolve(&rule);
    let charge = [Charge { slot, cost: 1 }];
    let mut spent = 0;
    for n in 0..4 {
        assert_eq!(isolate.admit(&charge, at(n)), Admission::Ask);
        let (call, ticket) = isolate.take(OpId(n.into()), None, &charge, vec![], None, at(n));
        let reply = limiter.step(&call, at(n)).0;
        isolate.answered(&reply, at(n));
        spent += u64::from(isolate.verdict(ticket, Some(&reply), at(n)) == Verdict::Admit);
    }
    assert_eq!(isolate.admit(&charge, at(5)), Admission::Admit, "it holds a lease");
    spent += 1;
    spent += drain(&mut limiter, &rule, 1_000, 10);
    while isolate.admit(&charge, at(11)) == Admission::Admit {
        spent += 1;
        if let Some(call) = isolate.renew(at(12)) {
            let reply = limiter.step(&call, at(12)).0;
            assert!(reply.grants.iter().all(|grant| grant.tokens == 0));
            isolate.answered(&reply, at(12));
        }
    }
    spent += drain(&mut limiter, &rule, 2_000, 13);
    assert_eq!(spent, 40);
}

/// A pool's piece ends: nothing lent from it may be spent later than that, on any clock.
#[test]
fn a_childs_lease_at_the_end_of_its_parents() {
    let rule = pooled(rate(100, 1_000));
    let mut child = limiter();
    stock(&mut child, &rule, 400, 10_000, 0);
    let mut seq = 0;
    for now in (0..10_000).step_by(100) {
        seq += 1;
        let grant = lease(&mut child, 1, &rule, seq, 4, now);
        if grant.tokens > 0 {
            assert!(now + lease_life(grant.ttl_ms) <= 10_000, "lent at {now} for {} ms", grant.ttl_ms);
        }
    }
    assert_eq!(take(&mut child, &rule, 1, None, 1, 9_999), Outcome::Admit);
    let forwarded = child.step(&take_call(7, &[rule], 2, None, 1), at(10_000)).1.forward;
    assert!(forwarded.is_some(), "after its deadline a piece pays for nothing");
}

/// Gives a child one piece of `tokens` for `ttl_ms`, by an exchange with a limiter that has just that.
fn stock(child: &mut Limiter, rule: &Rule, tokens: u64, ttl_ms: u64, now: u64) -> Call {
    lease(child, 1_000, rule, 1, tokens, now);
    let call = child.parent_call(at(now)).expect("a pool without a piece fetches one");
    let grant = Grant {
        seq: call.asks[0].seq,
        lease: LeaseId(5),
        tokens,
        ttl_ms,
        remaining: 0,
        retry_after_ms: 0,
        take: false,
        large: 0,
    };
    child.parent_reply(&Reply { grants: vec![grant], ..Reply::default() }, at(now));
    call
}

/// A team is capped after it was used: what its pool holds beyond the cap goes back at once, not when its piece ends.
#[test]
fn a_cap_heard_of_when_the_pool_is_full() {
    let pool = pooled(rate(100, 100));
    let cap = Rule { key: LimitKey { tenant: tenant(1), ..pool.key.clone() }, ..rule(rate(1, 2), 2) };
    let mut child = limiter();
    stock(&mut child, &pool, 50, 10_000, 0);
    assert!(child.parent_call(at(500)).is_none_or(|call| call.reports.iter().all(|report| report.returned == 0)));
    child.step(&take_call(7, &[cap, pool], 1, None, 1), at(600));
    let told = child.parent_call(at(600)).expect("what nobody can spend is told at once");
    // Of 50 one was taken; the cap gives 2 and, in the 10 s of a piece, 10 more.
    assert_eq!(told.reports, [Report { rule: 0, lease: LeaseId(5), used: 1, returned: 50 - 1 - 12 }]);
    assert_eq!(child.parent_call(at(601)), None);
}

/// A capped team that asks far more than it may: its pool fetches no more than its cap lets be spent, or the organisation's others
/// would find that much less.
#[test]
fn a_pool_below_a_cap_that_is_flooded() {
    let pool = pooled(rate(100, 100));
    let cap = Rule { key: LimitKey { tenant: tenant(1), ..pool.key.clone() }, ..rule(rate(1, 2), 1) };
    let mut child = limiter();
    for id in 0..50 {
        child.step(&take_call(7, &[cap.clone(), pool.clone()], id, None, 1), at(10 * id as u64));
    }
    let asked = child.parent_call(at(500)).expect("a pool without a piece fetches one");
    // The cap has 2, and 10 more in the 10 s of a piece.
    assert_eq!(asked.asks[0].want, 12);
}

/// A TAKE of the whole burst was refused and waits: leases get nothing of what it waits for.
#[test]
fn a_lease_after_a_refused_take_of_b() {
    let rule = rule(rate(100, 100), 1);
    let mut limiter = limiter();
    assert_eq!(take(&mut limiter, &rule, 1, None, 10, 0), Outcome::Admit);
    assert!(is_denied(&take(&mut limiter, &rule, 2, Some(1), 100, 0)));
    assert!(is_denied(&take(&mut limiter, &rule, 3, Some(1), 100, 40)));
    assert_eq!(lease(&mut limiter, 1, &rule, 1, 50, 50).tokens, 0);
    assert!(is_denied(&take(&mut limiter, &rule, 4, None, 1, 60)));
    assert_eq!(take(&mut limiter, &rule, 5, Some(1), 100, 100), Outcome::Admit);
    // One that does not ask again holds nothing, and one that stops asking nothing any more.
    assert!(is_denied(&take(&mut limiter, &rule, 6, Some(2), 100, 1_000)));
    assert_eq!(take(&mut limiter, &rule, 7, None, 1, 1_001), Outcome::Admit);
    assert!(is_denied(&take(&mut limiter, &rule, 8, Some(2), 100, 1_002)));
    assert!(is_denied(&take(&mut limiter, &rule, 9, None, 1, 1_002 + QUEUE_MS)));
    assert_eq!(take(&mut limiter, &rule, 10, None, 1, 1_003 + QUEUE_MS), Outcome::Admit);
}

/// An ADMIT that comes 3 s late is not acted on: its tokens may have been minted again.
#[test]
fn an_admit_that_arrives_three_seconds_late() {
    let rule = rule(rate(10, 20), 1);
    let mut limiter = limiter();
    let mut isolate = Isolate::new(Incarnation(1));
    let charge = [Charge { slot: isolate.resolve(&rule), cost: 20 }];
    for (arrives, verdict) in [(250, Verdict::Admit), (10_251, Verdict::Unknown), (23_000, Verdict::Unknown)] {
        let sent = arrives / 10_000 * 10_000;
        let (call, ticket) = isolate.take(OpId(arrives.into()), None, &charge, vec![], None, at(sent));
        let reply = limiter.step(&call, at(sent + 1)).0;
        assert_eq!(reply.outcome.as_ref().unwrap().1, Outcome::Admit);
        assert_eq!(isolate.verdict(ticket, Some(&reply), at(arrives)), verdict);
    }
}

/// What a reservation held is given back after the bucket could have refilled: it did not, because the reservation counted.
#[test]
fn a_void_after_the_refill() {
    let rule = rule(rate(100, 100), 1);
    let mut limiter = limiter();
    assert_eq!(reserve(&mut limiter, &rule, 1, 100, 60_000, 0), Outcome::Admit);
    assert_eq!(avail(&mut limiter, &rule, 5_000), 0);
    assert_eq!(end(&mut limiter, &rule, 1, false, 5_000), Outcome::Done);
    assert_eq!(drain(&mut limiter, &rule, 10, 5_000), 100);
    assert_eq!(end(&mut limiter, &rule, 1, false, 5_001), Outcome::Done, "said again, it is done once");
    assert_eq!(end(&mut limiter, &rule, 1, true, 5_001), Outcome::Gone);
    assert_eq!(drain(&mut limiter, &rule, 1_000, 5_001), 0);
}

/// A reservation of which nothing is heard ends as of its end, not as of when that is noticed.
#[test]
fn a_reservation_that_lapsed_long_ago() {
    let rule = rule(rate(100, 100), 1);
    let mut limiter = limiter();
    assert_eq!(reserve(&mut limiter, &rule, 1, 60, 1_000, 0), Outcome::Admit);
    assert_eq!(limiter.wakes_at(), Some(at(1_000)));
    limiter.tick(at(1_100));
    let standing = standing(&mut limiter, &rule, 1_100);
    assert_eq!((standing.avail, standing.open), (100, 0));
    assert_eq!(drain(&mut limiter, &rule, 10, 1_100), 100);
}

/// The rate is raised a hundredfold after ten idle seconds: those seconds were minted at the old rate.
#[test]
fn r_raised_a_hundredfold_after_ten_idle_seconds() {
    let (old, new) = (rule(rate(1, 1_000), 1), rule(rate(100, 1_000), 2));
    let mut limiter = limiter();
    assert_eq!(drain(&mut limiter, &old, 0, 0), 1_000);
    assert_eq!(drain(&mut limiter, &new, 10_000, 10_000), 10);
    assert_eq!(drain(&mut limiter, &old, 20_000, 11_000), 100, "the older policy does not come back");
    assert_eq!(drain(&mut limiter, &old, 30_000, 12_000), 100);
}

/// The burst is shrunk while leases are out: nothing is minted until they fit, and nothing they return exceeds it.
#[test]
fn b_shrunk_with_leases_out() {
    let (old, new) = (rule(rate(100, 1_000), 1), rule(rate(100, 50), 2));
    let mut limiter = limiter();
    let big = lease(&mut limiter, 1, &old, 1, 500, 0);
    assert_eq!(big.tokens, 500);
    assert_eq!(drain(&mut limiter, &new, 0, 10), 0);
    assert_eq!(drain(&mut limiter, &new, 1_000, 3_000), 0, "500 are still out");
    report(&mut limiter, 1, &new, big.lease, 100, 400, 3_001);
    assert_eq!(drain(&mut limiter, &new, 2_000, 3_001), 50);
}

/// The slowest isolate's clock that is allowed against the fastest limiter's: the lease still ends first where it is spent.
#[test]
fn a_slow_isolate_clock_against_a_fast_limiter_clock() {
    for ttl in [1_000, 5_000, 20_000_u64] {
        // The isolate's clock shows 250 ms too little when it matters and runs 1 % slow; the limiter's was 250 ms behind at
        // the grant, caught up since, and runs 1 % fast.
        let spent_until = (ttl + LAG_MS) * 1_000 * 100 / (100 - DRIFT_PERCENT);
        let forgotten_at = (lease_life(ttl) - LAG_MS) * 1_000 * 100 / (100 + DRIFT_PERCENT);
        assert!(spent_until <= forgotten_at, "ttl {ttl}: spent until {spent_until} us, forgotten at {forgotten_at} us");
        assert!(forgotten_at - spent_until < 3_000, "and not much later");
    }
}

/// A quota is lowered below what is used and raised again: what was used stays used.
#[test]
fn q_lowered_and_raised_mid_period() {
    let [full, lowered, raised, more] = [(100, 1), (50, 2), (100, 3), (120, 4)].map(|(q, rev)| rule(quota(q), rev));
    let mut limiter = limiter();
    assert_eq!(take(&mut limiter, &full, 1, None, 80, 0), Outcome::Admit);
    assert_eq!(drain(&mut limiter, &lowered, 100, 1), 0);
    assert_eq!(drain(&mut limiter, &raised, 200, 2), 20);
    assert_eq!(drain(&mut limiter, &more, 300, 3), 20);
}

/// The same with a lease out that is given back while the quota is low.
#[test]
fn q_lowered_while_leased_and_raised_again() {
    let [full, lowered, raised] = [(10_000, 1), (5_000, 2), (10_000, 3)].map(|(q, rev)| rule(quota(q), rev));
    let mut limiter = limiter();
    let mut spent = 9_000;
    assert_eq!(take(&mut limiter, &full, 1, None, spent, 0), Outcome::Admit);
    let out = lease(&mut limiter, 1, &full, 1, 10, 0);
    assert_eq!(out.tokens, 10);
    report(&mut limiter, 1, &lowered, out.lease, 2, 8, 1);
    assert_eq!(drain(&mut limiter, &lowered, 10, 2), 0, "what comes back is owed");
    spent += 2 + drain(&mut limiter, &raised, 100_000, 3);
    assert_eq!(spent, 10_000);
}

/// A carve is moved from a giver to a taker: lowered, one lease life later raised. Together they never exceed the whole.
#[test]
fn a_raised_carve() {
    let whole = rate(100, 200);
    let carved = |rps, burst| rate(rps, burst);
    let giver_after = carve(whole, &[carved(80, 150)]);
    assert_eq!(giver_after, rate(20, 50));
    let (mut giver, mut taker) = (limiter(), limiter());
    let giver_rules = [rule(carve(whole, &[carved(20, 50)]), 1), rule(giver_after, 2)];
    let taker_rules = [rule(carved(20, 50), 1), rule(carved(80, 150), 2)];
    let out = lease(&mut giver, 1, &giver_rules[0], 1, 75, 0);
    let mut admitted = vec![(0, drain(&mut giver, &giver_rules[0], 0, 0) + drain(&mut taker, &taker_rules[0], 0, 0))];
    drain(&mut giver, &giver_rules[1], 10_000, 1);
    admitted.push((TTL_MS - 1, out.tokens));
    let moved = 1 + lease_life(TTL_MS);
    for ms in [moved, moved + 1, moved + 500, moved + 3_000] {
        let id = u128::from(ms) * 100_000;
        let n = drain(&mut giver, &giver_rules[1], id, ms) + drain(&mut taker, &taker_rules[1], id, ms);
        admitted.push((ms, n));
    }
    assert_within(whole, &admitted);
    // A quota's taker gains exactly what the giver lost.
    let (mut giver, mut taker) = (limiter(), limiter());
    let given = |q, rev| rule(quota(q), rev);
    let used = drain(&mut giver, &given(50, 1), 0, 0) + drain(&mut taker, &given(50, 1), 0, 0);
    let after = drain(&mut giver, &given(30, 2), 1_000, 1) + drain(&mut taker, &given(70, 2), 1_000, 2);
    assert_eq!((used, after), (100, 20), "the giver owes what it had used already");
}

/// Small TAKEs stream past a large one that waits, at ten times the rate: it still gets in.
#[test]
fn small_takes_streaming_past_a_large_one() {
    let rule = rule(rate(100, 100), 1);
    let mut limiter = limiter();
    drain(&mut limiter, &rule, 0, 0);
    let mut admitted_at = None;
    for ms in 1..4_000 {
        take(&mut limiter, &rule, 1_000 + u128::from(ms), None, 1, ms);
        if ms % 400 == 0 && take(&mut limiter, &rule, 100_000 + u128::from(ms), Some(5), 90, ms) == Outcome::Admit {
            admitted_at = Some(ms);
            break;
        }
    }
    // Asked again at 800 ms, and 90 tokens take 900 ms: admitted with the first try after that.
    assert_eq!(admitted_at, Some(2_000));
}

/// Two large costs over the same two limits, named in a different order: neither waits for the other for ever.
#[test]
fn two_large_costs_over_two_limits() {
    let one = rule(rate(100, 100), 1);
    let two = Rule { key: LimitKey { limit: "rpm".parse().unwrap(), ..one.key.clone() }, ..one.clone() };
    let mut limiter = limiter();
    drain(&mut limiter, &one, 0, 0);
    drain(&mut limiter, &two, 1_000, 0);
    let mut admitted = Vec::new();
    for ms in (100..5_000_u64).step_by(100) {
        for (tag, rules) in [(1, [one.clone(), two.clone()]), (2, [two.clone(), one.clone()])] {
            let call = take_call(7, &rules, 10_000 + u128::from(ms * 10) + tag, Some(tag), 80);
            if limiter.step(&call, at(ms)).0.outcome.unwrap().1 == Outcome::Admit {
                admitted.push(tag);
            }
        }
    }
    assert!(admitted.contains(&1) && admitted.contains(&2), "{admitted:?}");
}

/// An exact event that comes after its lease was settled is refused: its tokens may be someone else's by now.
#[test]
fn record_after_the_rest_was_returned() {
    let exact = Rule { recording: Recording::Exact, ..rule(quota(1_000), 1) };
    let mut limiter = limiter();
    let out = lease(&mut limiter, 1, &exact, 1, 500, 0);
    assert_eq!(out.tokens, 100);
    assert_eq!(record(&mut limiter, 1, &exact, 1, out.lease, 30, 1_000), Outcome::Done);
    let forgotten = lease_life(TTL_MS);
    assert_eq!(
        record(&mut limiter, 1, &exact, 2, out.lease, 30, forgotten + 1_000),
        Outcome::Done,
        "expired, not settled"
    );
    assert_eq!(
        record(&mut limiter, 1, &exact, 2, out.lease, 30, forgotten + 1_001),
        Outcome::Done,
        "said again, done once"
    );
    assert_eq!(
        record(&mut limiter, 1, &exact, 3, out.lease, 41, forgotten + 2_000),
        Outcome::Gone,
        "more than it held"
    );
    assert_eq!(avail(&mut limiter, &exact, forgotten + 2_000), 900);
    let settled = forgotten + 1_000 + GRACE_MS;
    assert_eq!(record(&mut limiter, 1, &exact, 4, out.lease, 10, settled), Outcome::Gone);
    assert_eq!(avail(&mut limiter, &exact, settled), 940);
    assert_eq!(drain(&mut limiter, &exact, 100, settled), 940);
}

/// What was given back cannot be recorded, and what was reported as spent still can.
#[test]
fn record_after_the_lease_was_closed() {
    let exact = Rule { recording: Recording::Exact, ..rule(quota(1_000), 1) };
    let mut limiter = limiter();
    let out = lease(&mut limiter, 1, &exact, 1, 500, 0);
    report(&mut limiter, 1, &exact, out.lease, 40, 60, 10);
    assert_eq!(avail(&mut limiter, &exact, 10), 960);
    assert_eq!(record(&mut limiter, 1, &exact, 1, out.lease, 40, 20), Outcome::Done);
    assert_eq!(record(&mut limiter, 1, &exact, 2, out.lease, 1, 21), Outcome::Gone);
}

/// The answer to an ask comes after a long cut: it is for a pending ask no more, and its lease is not spent.
#[test]
fn the_first_answer_after_a_long_cut() {
    let rule = rule(rate(100, 1_000), 1);
    let mut limiter = limiter();
    let mut isolate = Isolate::new(Incarnation(1));
    let charge = [Charge { slot: isolate.resolve(&rule), cost: 1 }];
    let mut first = None;
    for n in 0..4_u64 {
        isolate.admit(&charge, at(n));
        first = Some(isolate.take(OpId(n.into()), None, &charge, vec![], None, at(n)).0);
    }
    let first = first.unwrap();
    assert_eq!(first.asks.len(), 1);
    // Repeated within half of the lease: the same ask. Later: another one.
    isolate.admit(&charge, at(403));
    let again = isolate.renew(at(403)).unwrap();
    assert_eq!(again.asks[0].seq, first.asks[0].seq);
    isolate.admit(&charge, at(2_600));
    let reply = limiter.step(&first, at(2_590)).0;
    let (other, _) = isolate.take(OpId(9), None, &charge, vec![], None, at(2_600));
    assert!(other.asks.is_empty() || other.asks[0].seq != first.asks[0].seq);
    isolate.answered(&reply, at(2_700));
    assert_eq!(isolate.admit(&charge, at(2_701)), Admission::Ask, "the old answer is ignored");
    // An answer in time counts from the first send, however late it comes.
    let (retried, _) = isolate.take(OpId(10), None, &charge, vec![], None, at(3_100));
    let reply = limiter.step(&retried, at(3_200)).0;
    isolate.answered(&reply, at(4_000));
    assert_eq!(isolate.admit(&charge, at(4_001)), Admission::Admit);
    let sent = if other.asks.is_empty() { 3_100 } else { 2_600 };
    assert_eq!(isolate.admit(&charge, at(sent + TTL_MS - 1)), Admission::Admit);
    assert_ne!(isolate.admit(&charge, at(sent + TTL_MS)), Admission::Admit, "past its deadline");
}

/// A cost that a child's pool cannot pay goes to the parent as the same op, with the child's own part set aside.
#[test]
fn a_cost_larger_than_a_childs_pool() {
    let shared = rule(rate(100, 100), 1);
    let own = Rule {
        key: LimitKey { limit: "own".parse().unwrap(), tenant: tenant(1), ..shared.key.clone() },
        ..shared.clone()
    };
    let pool = Rule { above: 1, ..shared.clone() };
    let (mut child, mut parent) = (Limiter::new(tenant(1), Incarnation(5)), limiter());
    let rules = [own.clone(), pool];
    let ask = |id, cost| take_call(7, &rules, id, None, cost);
    for (id, cost, admitted) in [(1, 60, true), (2, 60, false)] {
        let (reply, effects) = child.step(&ask(id, cost), at(0));
        assert_eq!(reply.outcome, if id == 1 { None } else { reply.outcome.clone() });
        if let Some(up) = effects.forward {
            // Asked again before the parent answered: forwarded again, set aside once.
            assert!(child.step(&ask(id, cost), at(1)).1.forward.is_some());
            assert_eq!(avail(&mut child, &own, 1), 40);
            let answer = parent.step(&up, at(1)).0;
            assert_eq!(parent.step(&up, at(2)).0.outcome, answer.outcome);
            assert_eq!(child.forwarded(OpId(id), Some(&answer), at(3)).0, Some(Outcome::Admit));
            assert_eq!(child.forwarded(OpId(id), Some(&answer), at(4)).0, Some(Outcome::Admit));
        }
        let outcome = child.step(&ask(id, cost), at(5)).0.outcome;
        assert_eq!(outcome.map(|outcome| outcome.1 == Outcome::Admit), Some(admitted));
    }
    assert_eq!((avail(&mut child, &own, 5), avail(&mut parent, &shared, 5)), (40, 40));
    // Refused above, the child's own part goes back.
    let mut parent = limiter();
    drain(&mut parent, &shared, 1_000, 0);
    let mut child = Limiter::new(tenant(1), Incarnation(5));
    let up = child.step(&ask(3, 60), at(0)).1.forward.unwrap();
    let answer = parent.step(&up, at(1)).0;
    let (outcome, _) = child.forwarded(OpId(3), Some(&answer), at(2));
    assert!(matches!(&outcome, Some(Outcome::Deny(denial)) if denial.key.tenant == tenant(0)), "{outcome:?}");
    assert_eq!(avail(&mut child, &own, 2), 100);
    // Unreachable, it goes back by itself.
    child.step(&ask(4, 30), at(3));
    assert_eq!(avail(&mut child, &own, 3), 70);
    assert_eq!(child.forwarded(OpId(4), None, at(300)).0, None);
    assert_eq!(avail(&mut child, &own, 3_000), 100);
}

/// A child takes from several pieces at once, and tells the parent what became of each.
#[test]
fn a_take_from_several_pieces() {
    let shared = rule(rate(1, 400), 1);
    let pool = Rule { above: 1, ..shared.clone() };
    let (mut child, mut parent) = (Limiter::new(tenant(1), Incarnation(5)), limiter());
    let mut pieces = 0;
    for now in [0, 500, 1_000] {
        lease(&mut child, 1, &pool, now + 1, 10, now);
        if let Some(call) = child.parent_call(at(now)) {
            let reply = parent.step(&call, at(now)).0;
            pieces += reply.grants.iter().filter(|grant| grant.tokens > 0).count();
            child.parent_reply(&reply, at(now));
        }
    }
    let free = avail(&mut child, &pool, 1_000);
    assert!(pieces >= 2 && free > 0, "{pieces} pieces, {free} free");
    assert_eq!(take(&mut child, &pool, 1, None, free, 1_000), Outcome::Admit);
    assert_eq!(avail(&mut child, &pool, 1_000), 0);
}

/// A reservation that a piece paid and the parent was told of does not come back to the piece: the parent minted on.
#[test]
fn a_void_of_what_the_parent_was_told_is_used() {
    let pool = pooled(rate(100, 1_000));
    let mut child = limiter();
    stock(&mut child, &pool, 100, 10_000, 0);
    assert_eq!(reserve(&mut child, &pool, 1, 60, 60_000, 10), Outcome::Admit);
    lease(&mut child, 2, &pool, 1, 40, 20);
    let told = child.parent_call(at(2_000)).map(|call| call.reports[0]);
    assert!(told.is_some_and(|report| report.used >= 60), "{told:?}");
    let before = avail(&mut child, &pool, 2_001);
    end(&mut child, &pool, 1, false, 2_001);
    assert_eq!(avail(&mut child, &pool, 2_001), before);
}

/// Reports that overtake each other, and come again after the lease was closed, change nothing.
#[test]
fn reports_out_of_order() {
    let rule = rule(rate(1, 100), 1);
    let mut limiter = limiter();
    let out = lease(&mut limiter, 1, &rule, 1, 50, 0);
    report(&mut limiter, 1, &rule, out.lease, 20, 0, 1);
    report(&mut limiter, 1, &rule, out.lease, 10, 0, 2);
    assert_eq!(standing(&mut limiter, &rule, 2).open, 30);
    report(&mut limiter, 2, &rule, out.lease, 20, 30, 3);
    assert_eq!(avail(&mut limiter, &rule, 3), 50, "another isolate's report");
    report(&mut limiter, 1, &rule, out.lease, 20, 30, 4);
    report(&mut limiter, 1, &rule, out.lease, 20, 30, 5);
    assert_eq!(avail(&mut limiter, &rule, 5), 80);
    let late = lease(&mut limiter, 1, &rule, 2, 10, 6);
    report(&mut limiter, 1, &rule, late.lease, 0, 10, 6 + lease_life(TTL_MS));
    assert_eq!(avail(&mut limiter, &rule, 6 + lease_life(TTL_MS)), 70 + 5, "an expired lease gives nothing back");
}

/// The same ask, however often it comes, gets the same lease; an older one gets nothing.
#[test]
fn an_ask_repeated_and_overtaken() {
    let rule = rule(rate(1, 100), 1);
    let mut limiter = limiter();
    let first = lease(&mut limiter, 1, &rule, 1, 10, 0);
    assert_eq!(lease(&mut limiter, 1, &rule, 1, 10, 400), first);
    let second = lease(&mut limiter, 1, &rule, 2, 10, 500);
    assert_ne!(second.lease, first.lease);
    assert_eq!(lease(&mut limiter, 1, &rule, 1, 10, 600).tokens, 0);
    assert_eq!(standing(&mut limiter, &rule, 600).open, 20);
}

/// The same op, however often it comes, gets the same answer and spends once; a refusal too.
#[test]
fn an_op_repeated() {
    let rule = rule(rate(10, 10), 1);
    let mut limiter = limiter();
    assert_eq!(take(&mut limiter, &rule, 1, None, 10, 0), Outcome::Admit);
    assert_eq!(take(&mut limiter, &rule, 1, None, 10, 10), Outcome::Admit);
    let refused = take(&mut limiter, &rule, 2, None, 10, 20);
    assert!(is_denied(&refused));
    assert_eq!(take(&mut limiter, &rule, 2, None, 10, 5_000), refused);
    assert_eq!(avail(&mut limiter, &rule, 5_000), 10);
}

/// A large cost that was refused does not refuse small ones, nor forget a smaller one that is.
#[test]
fn a_refused_large_cost_leaves_small_ones_alone() {
    let rule = rule(rate(10, 100), 1);
    let mut limiter = limiter();
    assert_eq!(drain(&mut limiter, &rule, 0, 0), 100);
    let mut isolate = Isolate::new(Incarnation(1));
    let slot = isolate.resolve(&rule);
    let (large, small) = ([Charge { slot, cost: 90 }], [Charge { slot, cost: 1 }]);
    let (call, ticket) = isolate.take(OpId(900), None, &large, vec![], None, at(150));
    let reply = limiter.step(&call, at(150)).0;
    assert!(matches!(isolate.verdict(ticket, Some(&reply), at(150)), Verdict::Deny(_)));
    assert!(matches!(isolate.admit(&large, at(151)), Admission::Deny { code: Code::RateLimited, .. }));
    assert_eq!(isolate.admit(&small, at(151)), Admission::Ask);
    let (call, ticket) = isolate.take(OpId(901), None, &small, vec![], None, at(151));
    let reply = limiter.step(&call, at(151)).0;
    assert_eq!(isolate.verdict(ticket, Some(&reply), at(151)), Verdict::Admit);
}

/// All or nothing: what one limit refuses spends nothing of another, at the limiter and in the isolate.
#[test]
fn a_refusal_spends_nothing() {
    let [wide, narrow] = [("wide", 100), ("narrow", 10)].map(|(name, burst)| {
        let one = rule(rate(1, burst), 1);
        Rule { key: LimitKey { limit: name.parse().unwrap(), ..one.key.clone() }, ..one }
    });
    let mut limiter = limiter();
    let before = (avail_of(&mut limiter, &wide), avail_of(&mut limiter, &narrow));
    let outcome = limiter.step(&take_call(7, &[wide.clone(), narrow.clone()], 1, None, 11), at(0)).0.outcome.unwrap().1;
    assert!(matches!(outcome, Outcome::Deny(denial) if denial.key == narrow.key && denial.code == Code::CostTooLarge));
    assert_eq!((avail_of(&mut limiter, &wide), avail_of(&mut limiter, &narrow)), before);

    // In the isolate: a lease of one, none of the other.
    let mut isolate = Isolate::new(Incarnation(1));
    let (a, b) = (isolate.resolve(&wide), isolate.resolve(&narrow));
    let both = [Charge { slot: a, cost: 1 }, Charge { slot: b, cost: 1 }];
    for n in 0..4_u64 {
        isolate.admit(&both[..1], at(n));
        let (call, _ticket) = isolate.take(OpId(n.into()), None, &both[..1], vec![], None, at(n));
        isolate.answered(&limiter.step(&call, at(n)).0, at(n));
    }
    let mut twin = isolate.clone();
    for _ in 0..3 {
        assert_eq!(isolate.admit(&both, at(5)), Admission::Ask);
    }
    assert_eq!(count(&mut isolate, both[0]), count(&mut twin, both[0]));
}

fn avail_of(limiter: &mut Limiter, rule: &Rule) -> u64 {
    limiter.step(&call(3, rule), at(0));
    avail(limiter, rule, 0)
}

fn count(isolate: &mut Isolate, charge: Charge) -> u64 {
    (0..).take_while(|_| isolate.admit(&[charge], at(6)) == Admission::Admit).count() as u64
}

/// Usage is accepted once, whatever is repeated, and never more than the lease held.
#[test]
fn usage_reported_twice_and_too_much() {
    let leased = Rule { recording: Recording::Leased, ..rule(quota(1_000_000), 1) };
    let mut limiter = limiter();
    let out = lease(&mut limiter, 1, &leased, 1, 100, 0);
    let usage = |number, units| {
        let lines = vec![Line { paid: Some((0, out.lease)), label: "m".to_owned(), units, last: None }];
        Call { usage: Some(Usage { number, lines }), ..call(1, &leased) }
    };
    let accepted = |limiter: &mut Limiter, number, units, now| {
        let (reply, effects) = limiter.step(&usage(number, units), at(now));
        assert_eq!(reply.usage, Some(number.max(reply.usage.unwrap())));
        effects.tallies.iter().map(|tally| tally.units).sum::<u64>()
    };
    assert_eq!(accepted(&mut limiter, 1, 30, 1), 30);
    assert_eq!(accepted(&mut limiter, 1, 30, 2), 0, "said again");
    let late = lease_life(TTL_MS) + 1_000;
    assert_eq!(accepted(&mut limiter, 2, 30, late), 30, "expired, not settled");
    assert_eq!(standing(&mut limiter, &leased, late).gap, out.tokens - 60, "debited, never reported");
    assert_eq!(accepted(&mut limiter, 3, 1_000, late + 1), out.tokens - 60, "no more than it held");
    assert_eq!(accepted(&mut limiter, 4, 10, late + 2), 0);
    assert_eq!(standing(&mut limiter, &leased, late + 3 * GRACE_MS).gap, 0);
}

/// A clock that jumps forward adds one burst at most; one that is set back adds nothing.
#[test]
fn clocks_that_jump() {
    let rule = rule(rate(100, 100), 1);
    let mut limiter = limiter();
    assert_eq!(drain(&mut limiter, &rule, 0, 0), 100);
    assert_eq!(drain(&mut limiter, &rule, 1_000, 3_600_000), 100);
    assert_eq!(drain(&mut limiter, &rule, 2_000, 1_000), 0);
    assert_eq!(drain(&mut limiter, &rule, 3_000, 3_600_000), 0);
}

/// Over a jump the limiter forgets a lease that is still spent: with what it mints instead that is two bursts, not three.
#[test]
fn a_jump_with_leases_out() {
    let policy = rate(1, 100);
    let rule = rule(policy, 1);
    let mut limiter = limiter();
    let out = lease(&mut limiter, 1, &rule, 1, 100, 0).tokens;
    // In true time 10 ms pass, on the limiter's clock an hour.
    let (true_us, shown) = (10_000, 3_600_000);
    let marks = [
        (0, Mark::Admitted(drain(&mut limiter, &rule, 1_000, 0))),
        (true_us, Mark::Jump),
        (true_us, Mark::Admitted(drain(&mut limiter, &rule, 2_000, shown))),
        (true_us + 2_000_000, Mark::Admitted(out)),
        (true_us + 2_000_000, Mark::Admitted(drain(&mut limiter, &rule, 3_000, shown + 2_000))),
    ];
    let over = excess(policy, &marks, Slack { lease_ms: TTL_MS, ..Slack::NONE });
    assert!(over.0 <= 0.0, "exceeded by {over:?}");
    assert!(excess(policy, &marks, Slack::NONE).0 > 0.0, "an interval after the jump has more than one burst");
}

/// 100 a minute is 100 a minute: read at odd moments for an hour, not a token more or less.
#[test]
fn minting_is_exact() {
    let policy = Policy::Rate { tokens: 100, interval_ms: 60_000, burst: 10 };
    let rule = rule(policy, 1);
    let mut limiter = limiter();
    let mut taken = 0;
    let mut id = 0;
    let mut ms = 0;
    while ms < 3_600_000 {
        taken += drain(&mut limiter, &rule, id, ms);
        id += 1_000;
        ms += 1 + ms * 7 % 1_931;
    }
    taken += drain(&mut limiter, &rule, id, 3_600_000);
    assert_eq!(taken, 10 + 6_000);
}

fn undo(limiter: &mut Limiter, rule: &Rule, id: u128, now: u64) -> (Outcome, Vec<Event>) {
    let op = Op::Void { id: OpId(id), reversals: vec![event("back")] };
    let (reply, effects) = limiter.step(&Call { op: Some(op), ..call(7, rule) }, at(now));
    (reply.outcome.unwrap().1, effects.events)
}

fn take_event(limiter: &mut Limiter, rule: &Rule, id: u128, cost: u64, now: u64) -> (Outcome, Vec<Event>) {
    let events = vec![event(&id.to_string())];
    let op = Op::Take(Take { id: OpId(id), tag: None, costs: vec![(0, cost)], events, reserve: None });
    let (reply, effects) = limiter.step(&Call { op: Some(op), ..call(7, rule) }, at(now));
    (reply.outcome.unwrap().1, effects.events)
}

/// An ADMIT came too late to be acted on and is undone: what it recorded is reversed, what it took of a quota comes back, and
/// what it took of a rate limit does not, because that may have been minted again.
#[test]
fn a_take_undone() {
    let (period, pace) = (rule(quota(100), 1), rule(rate(10, 100), 1));
    let mut limiter = limiter();
    assert_eq!(take_event(&mut limiter, &period, 1, 60, 0), (Outcome::Admit, vec![event("1")]));
    assert_eq!(undo(&mut limiter, &period, 1, 300), (Outcome::Done, vec![event("back")]));
    assert_eq!(undo(&mut limiter, &period, 1, 301), (Outcome::Done, vec![]), "said again, it is done once");
    assert_eq!(take_event(&mut limiter, &period, 1, 60, 302), (Outcome::Gone, vec![]), "asked again, it stays undone");
    assert_eq!(avail(&mut limiter, &period, 303), 100);

    let pace = Rule { key: LimitKey { limit: "pace".parse().unwrap(), ..pace.key.clone() }, ..pace };
    assert_eq!(take_event(&mut limiter, &pace, 2, 60, 1_000).0, Outcome::Admit);
    assert_eq!(avail(&mut limiter, &pace, 7_000), 100);
    assert_eq!(drain(&mut limiter, &pace, 100, 7_000), 100);
    assert_eq!(undo(&mut limiter, &pace, 2, 7_001).0, Outcome::Done);
    assert_eq!(avail(&mut limiter, &pace, 7_001), 0);
}

/// What undoes a TAKE overtakes it: the TAKE is refused when it comes. A refusal is not undone, and records nothing.
#[test]
fn a_take_undone_before_it_came() {
    let rule = rule(quota(100), 1);
    let mut limiter = limiter();
    assert_eq!(undo(&mut limiter, &rule, 1, 0), (Outcome::Done, vec![]));
    assert_eq!(take_event(&mut limiter, &rule, 1, 60, 1), (Outcome::Gone, vec![]));
    assert!(is_denied(&take_event(&mut limiter, &rule, 2, 101, 2).0));
    assert_eq!(undo(&mut limiter, &rule, 2, 3), (Outcome::Done, vec![]));
    assert_eq!(avail(&mut limiter, &rule, 4), 100);
}

/// A lease has expired unspent. Of a quota nothing was minted since, so what was not spent comes back, once; of a rate limit
/// nothing does, whether it was metered or not.
#[test]
fn what_an_expired_lease_left() {
    let forgotten = lease_life(TTL_MS);
    for recording in [Recording::Unmetered, Recording::Leased, Recording::Exact] {
        let period = Rule { recording, ..rule(quota(10_000), 1) };
        let mut limiter = limiter();
        let out = lease(&mut limiter, 1, &period, 1, 10, 0);
        assert_eq!((out.tokens, avail(&mut limiter, &period, forgotten)), (10, 9_990));
        report(&mut limiter, 1, &period, out.lease, 3, 7, forgotten + 1);
        report(&mut limiter, 1, &period, out.lease, 3, 7, forgotten + 2);
        assert_eq!(avail(&mut limiter, &period, forgotten + 2), 9_997);
        report(&mut limiter, 1, &period, out.lease, 0, 10, forgotten + 3);
        assert_eq!(avail(&mut limiter, &period, forgotten + 3), 9_997, "what is spent stays spent");
        let settled = avail(&mut limiter, &period, forgotten + 2 * GRACE_MS);
        let recorded = if recording == Recording::Exact { 10_000 } else { 9_997 };
        assert_eq!(settled, recorded, "of what was spent, only events that never came make it unspent");

        let pace = Rule { recording, ..rule(rate(100, 100), 1) };
        let mut limiter = Limiter::new(tenant(0), Incarnation(99));
        let out = lease(&mut limiter, 1, &pace, 1, 50, 0);
        let mut admitted = vec![(0, drain(&mut limiter, &pace, 100, 0))];
        let later = forgotten + 2_000;
        admitted.push((later, drain(&mut limiter, &pace, 1_000, later)));
        report(&mut limiter, 1, &pace, out.lease, 0, 50, later);
        admitted.push((later, drain(&mut limiter, &pace, 2_000, later)));
        let settled = later + 2 * GRACE_MS;
        admitted.push((settled, drain(&mut limiter, &pace, 3_000, settled)));
        admitted.push((settled, drain(&mut limiter, &pace, 4_000, settled + 1)));
        assert_within(pace.policy, &admitted);
    }
}

/// A window that is over is not opened again by a late message.
#[test]
fn a_window_that_is_over() {
    let ends = at(10_000);
    let rule = rule(Policy::Quota { amount: 1_000, ends }, 1);
    let mut limiter = limiter();
    let out = lease(&mut limiter, 1, &rule, 1, 10, 8_000);
    assert!(out.tokens > 0 && 8_000 + lease_life(out.ttl_ms) <= 10_000, "a lease ends with its window: {out:?}");
    assert!(
        matches!(take(&mut limiter, &rule, 1, None, 1, 10_000), Outcome::Deny(denial) if denial.code == Code::Expired)
    );
    let mut fresh = Limiter::new(tenant(0), Incarnation(1));
    assert!(
        matches!(take(&mut fresh, &rule, 1, None, 1, 10_000), Outcome::Deny(denial) if denial.code == Code::Expired)
    );
}

/// The events of an exact lease never came, and its bucket is empty at the moment when nothing more can be said about it.
#[test]
fn nothing_comes_back_of_a_rate() {
    for recording in [Recording::Unmetered, Recording::Leased, Recording::Exact] {
        let rule = Rule { recording, ..rule(rate(10, 100), 1) };
        let mut limiter = limiter();
        assert!(lease(&mut limiter, 1, &rule, 1, 50, 0).tokens >= 30);
        let forgotten = lease_life(TTL_MS);
        let settled = forgotten + GRACE_MS;
        let admitted: Vec<_> = std::iter::once(forgotten)
            .chain((settled - 3_000..settled + 3_000).step_by(500))
            .map(|now| (now, drain(&mut limiter, &rule, u128::from(now) * 1_000, now)))
            .collect();
        assert_within(rule.policy, &admitted);
    }
}

/// Nothing was leased that would be renewed or given back: what an isolate counted, refusals say, it tells all the same.
#[test]
fn what_was_counted_is_told_without_a_lease() {
    let mut isolate = Isolate::new(Incarnation(1));
    isolate.count(None, &"refused".into(), 3, None, at(0));
    let told_at = isolate.wakes_at().expect("somebody has to stay");
    assert!(told_at <= at(TTL_MS) && isolate.renew(told_at).is_some_and(|call| call.usage.is_some()));
}

/// A quiet isolate gives back what it holds, another takes that, and then the first one has requests again.
#[test]
fn what_was_given_back_is_spent_elsewhere() {
    let rule = rule(rate(1, 40), 1);
    let mut limiter = limiter();
    let mut isolate = Isolate::new(Incarnation(1));
    let charge = [Charge { slot: isolate.resolve(&rule), cost: 1 }];
    let mut admitted = Vec::new();
    for n in 0..4 {
        assert_eq!(isolate.admit(&charge, at(n)), Admission::Ask);
        let (call, ticket) = isolate.take(OpId(n.into()), None, &charge, vec![], None, at(n));
        let reply = limiter.step(&call, at(n)).0;
        isolate.answered(&reply, at(n));
        admitted.push((n, u64::from(isolate.verdict(ticket, Some(&reply), at(n)) == Verdict::Admit)));
    }
    assert!(isolate.is_due(), "whoever was lent units stays to give them back");
    let woken = isolate.wakes_at().unwrap();
    let call = isolate.renew(woken).unwrap();
    assert!(call.reports.iter().any(|report| report.returned > 0), "it has something to give back: {call:?}");
    isolate.answered(&limiter.step(&call, woken).0, woken);
    let now = woken.since(at(0));
    admitted.push((now, drain(&mut limiter, &rule, 1_000, now)));
    admitted.push((now, std::iter::from_fn(|| (isolate.admit(&charge, woken) == Admission::Admit).then_some(1)).sum()));
    assert_within(rule.policy, &admitted);
}

/// A tenant that is refused a thousand times a second: behind a refusal there is something to send only when it may ask again.
#[test]
fn behind_most_refusals_there_is_nothing_to_send() {
    let rule = rule(rate(1, 1), 1);
    let mut limiter = limiter();
    let mut isolate = Isolate::new(Incarnation(1));
    let charge = [Charge { slot: isolate.resolve(&rule), cost: 1 }];
    let (mut refused, mut sent) = (0, 0);
    for n in 0..10_000 {
        match isolate.admit(&charge, at(n)) {
            Admission::Ask => {
                let (call, ticket) = isolate.take(OpId(n.into()), None, &charge, vec![], None, at(n));
                let reply = limiter.step(&call, at(n)).0;
                isolate.answered(&reply, at(n));
                let _ = isolate.verdict(ticket, Some(&reply), at(n));
            }
            Admission::Deny { .. } => refused += 1,
            Admission::Admit => {}
        }
        if isolate.is_due() {
            sent += 1;
            if let Some(call) = isolate.renew(at(n)) {
                isolate.answered(&limiter.step(&call, at(n)).0, at(n));
            }
        }
    }
    assert!(refused > 9_900 && sent * 100 < refused, "{sent} times behind {refused} refusals");
}

/// An override of a limit ends by itself: no document changes, and yet it is the plan's own limit from then on, raised or lowered.
#[test]
fn what_was_granted_until_an_instant() {
    let until = 10_000;
    for (granted, policy) in [(rate(1_000, 1_000), rate(10, 20)), (rate(10, 20), rate(1_000, 1_000))] {
        let granted = Rule { valid_until: at(until), ..rule(granted, 1) };
        let plan = rule(policy, 1);
        let mut limiter = limiter();
        assert_eq!(drain(&mut limiter, &granted, 0, 0), granted.policy.capacity());
        // An isolate whose clock is ahead ends nothing.
        let early = drain(&mut limiter, &plan, 10_000, until - 1);
        assert_eq!(early, granted.policy.capacity());
        let late = take(&mut limiter, &granted, 20_000, None, 1, until);
        assert!(matches!(late, Outcome::Deny(denial) if denial.code == Code::Expired));
        assert!(drain(&mut limiter, &plan, 30_000, until) <= policy.capacity());
        // Nor does one whose clock is behind bring it back.
        take(&mut limiter, &granted, 40_000, None, 1, until + 1);
        assert_eq!(drain(&mut limiter, &plan, 50_000, until + 60_000), policy.capacity());
    }
}

/// A pool of a quota is empty until its first piece arrives. That is no reason to say that the quota is used up.
#[test]
fn a_quota_whose_pool_is_empty() {
    let shared = pooled(quota(1_000_000));
    let mut child = limiter();
    let mut isolate = Isolate::new(Incarnation(1));
    let charge = [Charge { slot: isolate.resolve(&shared), cost: 1 }];
    for n in 0..10 {
        assert_eq!(isolate.admit(&charge, at(n)), Admission::Ask);
        let (call, _) = isolate.take(OpId(n.into()), None, &charge, vec![], None, at(n));
        let (reply, _) = child.step(&call, at(n));
        isolate.answered(&reply, at(n));
    }
}

/// A dry limit says of a cost that can never be paid what it always says, and refuses nothing that costs nothing.
#[test]
fn costs_at_both_ends_of_a_dry_limit() {
    let dry = rule(rate(1, 8), 1);
    let mut limiter = limiter();
    let mut isolate = Isolate::new(Incarnation(1));
    let charge = |isolate: &mut Isolate, cost| [Charge { slot: isolate.resolve(&dry), cost }];
    let one = charge(&mut isolate, 1);
    for n in 0..20 {
        if isolate.admit(&one, at(n)) == Admission::Ask {
            let (call, ticket) = isolate.take(OpId(n.into()), None, &one, vec![], None, at(n));
            let reply = limiter.step(&call, at(n)).0;
            isolate.answered(&reply, at(n));
            isolate.verdict(ticket, Some(&reply), at(n));
        }
    }
    assert!(matches!(isolate.admit(&one, at(20)), Admission::Deny { code: Code::RateLimited, .. }));
    let (never, nothing) = (charge(&mut isolate, 9), charge(&mut isolate, 0));
    assert!(matches!(isolate.admit(&never, at(20)), Admission::Deny { code: Code::CostTooLarge, .. }));
    assert!(!matches!(isolate.admit(&nothing, at(20)), Admission::Deny { .. }));
}
