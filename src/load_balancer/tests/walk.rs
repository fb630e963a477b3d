//! Random walks: Services and pools change, agents are killed, cut off and slow, requests and answers are late or lost, and what an agent
//! sees lags behind. No address is ever written to a second Service, no two agents may write at one time, and when it is quiet
//! everything is as it should be, once and for all.
//!
//! `PROPERTY_SEED` runs one walk again; `PROPERTY_RUNS` says how many are run.

mod api;
#[path = "../../../tests/support/random.rs"]
mod random;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use compact_str::{CompactString, format_compact};

use self::api::{Answer, Api, Body, Request};
use self::random::{Random, for_many};
use super::{Allocator, Outcome, externals, name, pool, pools, service};
use crate::load_balancer::election::{Elector, Step, TIMING, Timing, Unclaimed};
use crate::load_balancer::pools::{Pools, Recipient};
use crate::model::{AddressPool, BalancedService, ClientPolicy, ObjectName};
use crate::net::{Family, PerFamily, Protocol};

/// A process that contends for the Lease, and gives addresses while it holds it.
struct Agent {
    number: usize,
    elector: Elector,
    is_asking: bool,
    identity: CompactString,
    allocator: Option<Allocator>,
    epoch: u64,
    /// When a list of everything is taken.
    lists: Option<Instant>,
    /// How much of the log it has seen.
    seen: usize,
    pools: usize,
    asleep: Option<Instant>,
    /// It has seen a Lease since one was deleted.
    has_seen_lease: bool,
}

struct Walk {
    random: Random,
    api: Api,
    agents: Vec<Agent>,
    identities: usize,
    pools: usize,
    is_quiet: bool,
    timing: Timing,
    /// Since the Lease was deleted.
    deleted: Option<Instant>,
}

const RANGES: [&str; 2] = ["203.0.113.0/29", "2001:db8::/126"];

fn pools_of(number: usize) -> Pools {
    let gold = AddressPool { namespaces: vec!["bank".into()], ..pool("gold", "203.0.113.4/31") };
    match number {
        0 => pools(&RANGES, Vec::new()),
        1 => pools(&RANGES, vec![gold]),
        _ => pools(&["203.0.113.0/29"], Vec::new()),
    }
}

fn milliseconds(count: usize) -> Duration {
    Duration::from_millis(u64::try_from(count).expect("a small number"))
}

impl Walk {
    fn new(random: Random, is_strict: bool, timing: Timing) -> Walk {
        let now = Instant::now();
        let (services, log, requests) = (BTreeMap::new(), Vec::new(), Vec::new());
        let api = Api { now, version: 100, services, log, lease: None, requests, writes: 0, is_strict };
        let mut walk =
            Walk { random, api, agents: Vec::new(), identities: 0, pools: 0, is_quiet: false, timing, deleted: None };
        walk.agents = (0..3).map(|number| walk.agent(number)).collect();
        walk
    }

    /// A process that has just been started.
    fn agent(&mut self, number: usize) -> Agent {
        self.identities += 1;
        let identity = format_compact!("{}", self.identities);
        let elector = Elector::new(identity.clone(), self.timing);
        let epoch = u64::try_from(self.identities).expect("few") << 32;
        Agent {
            number,
            elector,
            is_asking: false,
            identity,
            allocator: None,
            epoch,
            lists: None,
            seen: 0,
            pools: self.pools,
            asleep: None,
            has_seen_lease: false,
        }
    }

    fn step(&mut self) {
        self.api.now += milliseconds(20 + self.random.below(400));
        if !self.is_quiet {
            self.disturb();
        }
        self.apply_requests();
        for index in 0..self.agents.len() {
            let mut agent = self.agents.remove(index);
            if agent.asleep.is_none_or(|until| until <= self.api.now) {
                agent.asleep = None;
                self.run(&mut agent);
            }
            self.agents.insert(index, agent);
        }
        let now = self.api.now;
        let usable = self.agents.iter().filter(|agent| agent.elector.usable_until().is_some_and(|until| until > now));
        assert!(usable.count() <= 1 || self.timing.usable > TIMING.usable, "two agents may write");
    }

    fn disturb(&mut self) {
        if self.random.chance(25) {
            self.change_service();
        }
        if self.random.chance(1) {
            self.pools = self.random.below(3);
        }
        // Who starts while there is no Lease has never seen one, and does not wait.
        let may_start = self.deleted.is_none_or(|at| self.api.now >= at + self.timing.valid + self.timing.look);
        if self.random.chance(1) && may_start {
            let index = self.random.below(self.agents.len());
            self.agents[index] = self.agent(index);
        }
        if self.random.chance(1) {
            self.disturb_lease();
        }
        if self.random.chance(1) {
            let (index, time) = (self.random.below(self.agents.len()), self.random.below(20_000));
            self.agents[index].asleep = Some(self.api.now + milliseconds(time));
        }
    }

    /// Somebody takes the holder's name out of the Lease, or deletes it.
    fn disturb_lease(&mut self) {
        let is_known = self.agents.iter().all(|agent| agent.has_seen_lease);
        match &mut self.api.lease {
            Some((version, holder)) if self.random.chance(50) => {
                self.api.version += 1;
                (*version, *holder) = (self.api.version, CompactString::default());
            }
            lease if is_known => {
                *lease = None;
                self.deleted = Some(self.api.now);
                self.agents.iter_mut().for_each(|agent| agent.has_seen_lease = false);
            }
            _ => {}
        }
    }

    fn change_service(&mut self) {
        let namespace = *self.random.pick(&["shop", "bank"]);
        let text = name(&format!("{namespace}/s{}", self.random.below(6)));
        let known = self.api.services.get(&text).cloned();
        match (known, self.random.below(10)) {
            (Some(_), 0..=2) => self.api.delete(&text),
            (Some(service), 3) if !self.api.is_strict => {
                let other = self.random.pick_from(self.api.services.values().map(|other| other.status.clone()));
                let status = other.unwrap_or_default();
                let not_served = if self.random.chance(30) { status.clone() } else { Vec::new() };
                self.api.put(text, BalancedService { status, not_served, ..service });
            }
            (Some(service), _) => {
                let changed = self.spec(BalancedService { created: service.created, ..service.clone() });
                // The API server clears the status, in later versions.
                let is_cleared = !changed.is_balancer && self.random.chance(50);
                let status = if is_cleared { Vec::new() } else { service.status };
                self.api.put(text, BalancedService { status, ..changed });
            }
            (None, _) => {
                let created = i64::try_from(self.api.version).expect("small") / 8;
                let uid = format_compact!("{}", self.api.version);
                let new = self.spec(BalancedService { created, uid, ..service() });
                self.api.put(text, new);
            }
        }
    }

    /// Asks for something that a user may ask for.
    fn spec(&mut self, service: BalancedService) -> BalancedService {
        let random = &mut self.random;
        let families: &[&[Family]] = &[&[Family::V4], &[Family::V4, Family::V6], &[Family::V6]];
        let mut asks = |prefix: &str, count: usize| -> Option<IpAddr> {
            let text = |random: &mut Random| format!("{prefix}{}", random.below(count));
            random.chance(15).then(|| text(random).parse().expect("an address"))
        };
        let (v4, v6) = (asks("203.0.113.", 9), asks("2001:db8::", 5));
        let mut request = service.request.clone();
        request.addresses = PerFamily { v4, v6 };
        let local = if random.chance(30) { ClientPolicy::Local("a=b".into()) } else { ClientPolicy::Cluster };
        let external: Option<IpAddr> = random.chance(4).then(|| "203.0.113.3".parse().expect("an address"));
        BalancedService {
            is_balancer: random.chance(85),
            class: random.chance(10).then(|| "metallb".into()),
            families: random.pick(families).to_vec(),
            needs_all_families: random.chance(30),
            request,
            sharing_key: random.chance(30).then(|| "key".into()),
            ports: vec![(Protocol::Tcp, 80 + u16::try_from(random.below(3)).expect("small"))],
            clients: local,
            external_ips: external.into_iter().collect(),
            ..service
        }
    }

    /// Sends a request, which is late or lost as chance has it.
    fn send(&mut self, agent: &Agent, body: Body) {
        let (random, now) = (&mut self.random, self.api.now);
        let is_lost = !self.is_quiet && random.chance(8);
        let is_slow = !self.is_quiet && random.chance(30);
        // The API server gives up what takes longer than three seconds.
        let applies = now + milliseconds(random.below(if is_slow { 3000 } else { 60 }));
        let answers = applies + milliseconds(random.below(if is_slow { 1500 } else { 60 }));
        let is_answered = self.is_quiet || random.chance(92);
        let request = Request {
            agent: agent.number,
            epoch: agent.epoch,
            body,
            sent: now,
            applies: (!is_lost).then_some(applies),
            answers: (is_answered && !is_lost).then_some(answers),
            result: None,
        };
        self.api.requests.push(request);
    }

    fn apply_requests(&mut self) {
        let mut requests = std::mem::take(&mut self.api.requests);
        requests.sort_by_key(|request| request.applies);
        for request in &mut requests {
            if request.result.is_none() && request.applies.is_some_and(|at| at <= self.api.now) {
                let is_refused = !self.is_quiet && self.random.chance(10);
                request.result = Some(self.api.answer(&request.body, is_refused));
            }
        }
        self.api.requests = requests;
    }

    fn run(&mut self, agent: &mut Agent) {
        self.take_answers(agent);
        self.lead(agent);
        if !agent.is_asking {
            match agent.elector.step(self.api.now) {
                Step::Wait(_) => {}
                Step::Read => {
                    agent.is_asking = true;
                    self.send(agent, Body::ReadLease);
                }
                Step::Claim(version) => {
                    agent.is_asking = true;
                    self.send(agent, Body::ClaimLease(version, agent.identity.clone()));
                }
            }
        }
    }

    /// Passes on the answers, and the failures of requests that will not be answered.
    fn take_answers(&mut self, agent: &mut Agent) {
        let now = self.api.now;
        let is_over = |request: &Request| {
            let is_answered = request.answers.is_some_and(|at| at <= now) && request.result.is_some();
            is_answered || request.sent + Duration::from_secs(4) <= now
        };
        let all = std::mem::take(&mut self.api.requests);
        let (mine, others) = all.into_iter().partition(|request| request.agent == agent.number && is_over(request));
        self.api.requests = others;
        let mine: Vec<Request> = mine;
        for request in mine {
            let is_process = request.epoch >> 32 == agent.epoch >> 32;
            let answer = request.result.filter(|_| request.answers.is_some_and(|at| at <= now));
            match (request.body, answer) {
                _ if !is_process => {}
                (Body::Status(write), answer) => {
                    let Some(allocator) = agent.allocator.as_mut().filter(|_| request.epoch == agent.epoch) else {
                        continue;
                    };
                    let outcome = match answer {
                        Some(Answer::Status(outcome)) => outcome,
                        _ => Outcome::Unknown,
                    };
                    allocator.finish(&write, outcome, now);
                }
                (_, answer) => {
                    agent.is_asking = false;
                    let is_lease = matches!(answer, Some(Answer::Lease(Some(_)) | Answer::Claimed(Ok(_))));
                    agent.has_seen_lease |= is_lease && self.deleted.is_none_or(|at| request.sent > at);
                    match answer {
                        Some(Answer::Lease(lease)) => agent.elector.read(lease, now),
                        Some(Answer::Claimed(outcome)) => agent.elector.claimed(request.sent, outcome, now),
                        _ if matches!(agent.elector.step(now), Step::Claim(_)) => {
                            agent.elector.claimed(request.sent, Err(Unclaimed::Failed), now);
                        }
                        _ => agent.elector.unread(now),
                    }
                }
            }
        }
    }

    fn lead(&mut self, agent: &mut Agent) {
        let now = self.api.now;
        if agent.elector.usable_until().is_none_or(|until| until <= now) {
            agent.allocator = None;
            return;
        }
        if agent.allocator.is_none() {
            // Whoever renews the Lease after its time was over waits for the end of its own writes.
            let is_mine = |request: &Request| request.agent == agent.number && request.epoch >> 32 == agent.epoch >> 32;
            if self.api.requests.iter().any(|request| is_mine(request) && matches!(request.body, Body::Status(_))) {
                return;
            }
            let mut allocator = Allocator::new(true, externals());
            agent.pools = self.pools;
            allocator.set_pools(Some(pools_of(self.pools)), now);
            agent.allocator = Some(allocator);
            agent.epoch += 1;
            agent.seen = usize::MAX;
            agent.lists = Some(now + milliseconds(self.random.below(800)));
        }
        let Some(allocator) = agent.allocator.as_mut() else { return };
        allocator.tick(now);
        if agent.pools != self.pools && self.random.chance(30) {
            agent.pools = self.pools;
            allocator.set_pools(Some(pools_of(self.pools)), now);
        }
        let is_audit = agent.seen != usize::MAX && self.random.chance(2);
        if agent.lists.is_some_and(|at| at <= now) || is_audit {
            agent.lists = None;
            agent.seen = self.api.log.len();
            let all =
                self.api.services.iter().map(|(name, service)| (name.clone(), Arc::new(service.clone()))).collect();
            allocator.list(all, &self.api.version.to_string(), now);
        }
        while agent.seen < self.api.log.len() && (self.is_quiet || self.random.chance(80)) {
            let (version, name, service) = &self.api.log[agent.seen];
            match service {
                Some(service) => allocator.observe(name.clone(), service.clone(), now),
                None => allocator.gone(name, &version.to_string(), now),
            }
            agent.seen += 1;
        }
        for write in allocator.next_writes(now, 3) {
            self.send(agent, Body::Status(write));
        }
    }

    /// Checks what is to be true when nothing has happened for long.
    fn check_settled(&self) {
        let now = self.api.now;
        let holder = self.agents.iter().find(|agent| agent.elector.usable_until().is_some_and(|until| until > now));
        let allocator = holder.and_then(|agent| agent.allocator.as_ref()).expect("somebody gives addresses");
        assert!(!allocator.is_writing() && allocator.next_time().is_none(), "something is left to do");
        let pools = pools_of(self.pools);
        let mut used = BTreeSet::new();
        for (text, service) in &self.api.services {
            used.extend(service.status.iter().chain(&service.external_ips).copied());
            let ours = service.is_balancer && service.class.is_none();
            let is_within = |address: &&IpAddr| pools.pool_of(**address).is_some();
            assert!(
                service.is_balancer || !service.status.iter().any(|address| is_within(&address)),
                "{text} keeps an address"
            );
            for address in service.status.iter().filter(|_| ours) {
                // Of no pool any more, it may be another allocator's.
                let Some(pool) = pools.pool_of(*address) else { continue };
                assert!(
                    pools.admits(pool, Recipient { name: text, service, class: None }),
                    "{text} has an address that is not for it"
                );
                assert!(service.families.contains(&Family::from(*address)));
                assert!(!service.not_served.contains(address), "{address} of {text} is served by no node");
                for (other, it) in
                    self.api.services.iter().filter(|(other, it)| *other != text && it.status.contains(address))
                {
                    let is_ours = it.is_balancer && it.class.is_none();
                    assert!(
                        !is_ours || other.namespace == text.namespace && service.can_share_with(it),
                        "{address} has two owners"
                    );
                }
            }
            if service.needs_all_families && ours {
                let has = |family: &&Family| service.status.iter().any(|it| Family::from(*it) == **family);
                let is_whole = service.families.iter().all(|family| has(&family));
                assert!(is_whole || !service.status.iter().any(|it| is_within(&it)), "{text} has a part");
            }
        }
        let counted: usize = allocator.pool_uses().iter().map(|used| used.used).sum();
        assert_eq!(
            counted,
            used.iter().filter(|address| pools.pool_of(**address).is_some()).count(),
            "an address leaks"
        );
        let mut pools = pools;
        used.iter().for_each(|address| pools.take(*address));
        for (text, service) in self.api.services.iter().filter(|(_, it)| it.is_balancer && it.class.is_none()) {
            let missing =
                service.families.iter().filter(|family| !service.status.iter().any(|it| Family::from(*it) == **family));
            let mut missing = missing.peekable();
            if missing.peek().is_none() {
                continue;
            }
            let can_have = |family: &Family| self.can_have(&pools, text, service, *family);
            let is_wrong =
                if service.needs_all_families { service.families.iter().all(can_have) } else { missing.any(can_have) };
            assert!(!is_wrong, "{text} waits for what is free, or for what it could share");
        }
    }

    /// Returns whether there is an address of a family for a Service, where all that are used are taken out of the pools.
    fn can_have(&self, pools: &Pools, text: &ObjectName, service: &BalancedService, family: Family) -> bool {
        let to = Recipient { name: text, service, class: None };
        let is_given = |address: IpAddr, it: &BalancedService| {
            it.is_balancer && it.class.is_none() && it.status.contains(&address)
        };
        let may_have = |address: IpAddr| {
            self.api.services.iter().filter(|(other, _)| *other != text).all(|(other, it)| {
                let uses = it.status.contains(&address) || it.external_ips.contains(&address);
                let shares = is_given(address, it)
                    && !it.external_ips.contains(&address)
                    && other.namespace == text.namespace
                    && service.can_share_with(it);
                !uses || shares
            })
        };
        match *service.request.addresses.of(family) {
            Some(asked) => {
                let is_for_it = pools.pool_of(asked).is_some_and(|id| pools.admits(id, to));
                is_for_it && pools.may_give(asked) && may_have(asked)
            }
            None => {
                let is_free = pools.offers(to).any(|id| pools.first_free(id, family).is_some());
                let others =
                    self.api.services.values().flat_map(|it| it.status.iter().map(move |address| (address, it)));
                let mut given =
                    others.filter(|(address, it)| Family::from(**address) == family && is_given(**address, it));
                let is_offered = |address: IpAddr| pools.pool_of(address).is_some_and(|id| pools.is_offered(id, to));
                is_free
                    || service.sharing_key.is_some()
                        && given
                            .any(|(address, _)| is_offered(*address) && pools.may_give(*address) && may_have(*address))
            }
        }
    }
}

fn walk(random: &mut Random, is_strict: bool, timing: Timing) {
    let mut walk = Walk::new(random.clone(), is_strict, timing);
    for _ in 0..3 {
        walk.is_quiet = false;
        for _ in 0..400 {
            walk.step();
        }
        walk.is_quiet = true;
        let quiet = walk.api.now + Duration::from_secs(700);
        while walk.api.now < quiet {
            walk.step();
        }
        let writes = walk.api.writes;
        while walk.api.now < quiet + Duration::from_secs(60) {
            walk.step();
        }
        assert_eq!(walk.api.writes, writes, "it writes without a cause");
        walk.check_settled();
    }
}

#[test]
fn no_address_is_ever_given_twice_whatever_fails_and_everything_settles() {
    for_many(12, |random| walk(random, true, TIMING));
}

#[test]
fn addresses_that_somebody_else_wrote_twice_are_repaired() {
    for_many(12, |random| walk(random, false, TIMING));
}

/// The walks find what they are for: a holder that goes on writing after others may have taken the Lease.
#[test]
fn a_holder_that_writes_for_longer_than_the_lease_is_valid_gives_an_address_twice() {
    let timing = Timing { usable: TIMING.valid * 3, ..TIMING };
    let is_found = |seed| std::panic::catch_unwind(|| walk(&mut Random::new(seed), true, timing)).is_err();
    assert!((0..200).any(is_found));
}
