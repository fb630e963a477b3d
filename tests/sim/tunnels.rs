//! Direct server return: Services whose marks collide, and which change between NAT and tunnels, with a program that is killed before every step.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use sluice::config::ProxyConfig;
use sluice::kernel::conntrack::Flows;
use sluice::kernel::ipset::Entry;
use sluice::kernel::iptables::{Piece, Rules, Table};
use sluice::kernel::ipvs::{Destination, Forwarding, Service as VirtualProperties, ServiceKey, Virtual};
use sluice::kernel::nftables::Content;
use sluice::kernel::rule::{Packets, PolicyRule};
use sluice::model::{
    Authority, Conditions, Endpoint, EndpointPort, EndpointSlice, Endpoints, ObjectName, ProxyAnnotations, Scheduler,
    Service, ServicePort, ServiceType, World,
};
use sluice::net::{Family, Protocol};
use sluice::proxy::desired::Desired;
use sluice::proxy::dsr::packet_marks::MOST_OF_A_NAMESPACE;
use sluice::proxy::dsr::rules::{
    given_mark, marking, marking_chain, marks_of as rules_marks, policy_rule, unmarking, unmarking_chain,
};
use sluice::proxy::marks::marks_of;
use sluice::proxy::names::{EMPTY_TABLE, Set};
use sluice::proxy::plan::{local_route_key, marked_route_key};
use sluice::subsystem::Kinds;

use crate::agent::{Agent, known};
use crate::support::memory::{Faults, Object, State};
use crate::support::random::Random;
use crate::support::{flags, packet};
use crate::takeover::leave_direct_server_return;
use crate::walk::Walk;

/// An address of which two ports have one mark.
const ADDRESS: &str = "147.160.180.44";
/// The older Service, and the younger one, which has to give way.
const OLDER: Given = Given { name: "older", created: 1, protocol: Protocol::Tcp, port: 8080, endpoint: "10.244.0.7" };
const YOUNGER: Given = Given { name: "younger", created: 2, protocol: Protocol::Udp, port: 80, endpoint: "10.244.1.8" };

/// A mark that no text gives to the two.
const UNLIKELY: u32 = 4711;

/// What somebody else's virtual services lead to.
const FOREIGN: &str = "203.0.113.50:9999";

#[derive(Clone, Copy)]
struct Given {
    name: &'static str,
    created: i64,
    protocol: Protocol,
    port: u16,
    endpoint: &'static str,
}

impl Given {
    /// The virtual service of its external address with NAT.
    fn key(self) -> ServiceKey {
        let address = ADDRESS.parse().expect("an address");
        ServiceKey::Address { address, protocol: self.protocol, port: self.port }
    }
}

/// How a Service is served.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Mode {
    Tunnel,
    Nat,
}

use Mode::{Nat, Tunnel};

/// The modes of the two, one after the other; `None` is no Service.
const STORY: [[Option<Mode>; 2]; 11] = [
    [None, None],
    [None, Some(Tunnel)],
    [Some(Tunnel), Some(Tunnel)],
    [Some(Nat), Some(Tunnel)],
    [Some(Nat), Some(Nat)],
    [Some(Tunnel), Some(Nat)],
    [Some(Tunnel), Some(Tunnel)],
    [None, Some(Tunnel)],
    [None, Some(Nat)],
    [Some(Tunnel), None],
    [None, None],
];

impl Walk {
    /// From each of these worlds to the next, with a kill before every step, and a next run that knows everything, or at first a part.
    pub fn changes_between_nat_and_tunnels(&mut self, backend: &str) {
        self.configure(backend);
        let mut kills = 0;
        for pair in STORY.windows(2) {
            let [before, after] = [pair[0], pair[1]].map(|modes| world(&self.world, modes));
            self.begin(&before);
            let held = self.kernel.state();
            for steps in 0.. {
                self.kernel.with(|machine| machine.state = held.clone());
                self.begin(&before);
                self.start_from(known(Authority::Complete, &after));
                self.kernel.with(|machine| machine.faults = Faults { alive_for: Some(steps), ..Faults::none() });
                self.round();
                let is_alive = self.kernel.with(|machine| machine.faults.alive_for != Some(0));
                self.kernel.with(|machine| machine.faults = Faults::none());
                self.kernel.with(|machine| loses_marks(&machine.state, &machine.foreign));
                kills += 1;
                self.agent = Agent::start(&self.kernel, &self.config, self.families);
                if steps % 2 == 1 {
                    self.start_from(known(Authority::Partial, &after));
                    self.settle();
                }
                self.start_from(known(Authority::Complete, &after));
                self.settle();
                if is_alive {
                    break;
                }
            }
        }
        assert!(kills > 50, "{kills} kills");
    }

    /// Somebody else's virtual services, with NAT or without any destination, have marks that a port in tunnel mode may have.
    pub fn leaves_those_of_others_with_likely_marks(&mut self, backend: &str, destinations: &[&str]) {
        self.configure(backend);
        let [_, others @ ..] = &*marks_of(&OLDER.key()).collect::<Vec<_>>() else { panic!("it may have some") };
        assert!(!others.is_empty());
        others.iter().for_each(|key| self.somebody_makes(*key, destinations));
        let [with, without] = [Some(Tunnel), None].map(|mode| world(&self.world, [mode, None]));
        for (authority, world) in [
            (Authority::Complete, &with),
            (Authority::Remembered, &with),
            (Authority::Partial, &with),
            (Authority::Partial, &without),
            (Authority::Complete, &with),
            (Authority::Complete, &without),
        ] {
            self.agent = Agent::start(&self.kernel, &self.config, self.families);
            self.start_from(known(authority, world));
            self.settle();
            self.audit();
            self.settle();
        }
    }

    /// Somebody else's virtual service has the mark that a port in tunnel mode is to have: it stays, which is trouble, until it is gone.
    pub fn waits_for_a_mark_that_somebody_else_has(&mut self, backend: &str, authority: Authority) {
        self.configure(backend);
        let key = marks_of(&OLDER.key()).next().expect("it may have some");
        self.somebody_makes(key, &[FOREIGN]);
        self.start_from(known(authority, &world(&self.world, [Some(Tunnel), None])));
        for _ in 0..5 {
            self.damaged();
            self.round();
            self.clock.pass_until(self.agent.mirrors.retry_at());
        }
        assert!(self.agent.mirrors.reflections().iter().any(|kind| kind.trouble().is_some()));
        self.kernel.with(|machine| {
            machine.foreign.virtuals.remove(&key);
            machine.state.virtuals.remove(&key);
        });
        self.settle();
        assert_eq!(self.kernel.state().virtuals.get(&key), self.agent.desired().virtuals.get(&key));
    }

    /// The last known state has a Service more than the kernel, an older one that is to have the mark of the other.
    pub fn remembers_another_owner_of_a_mark(&mut self, backend: &str) {
        self.configure(backend);
        let [before, remembered] = [None, Some(Tunnel)].map(|older| world(&self.world, [older, Some(Tunnel)]));
        self.begin(&before);
        let given = packet::mark(&self.kernel.state(), YOUNGER.key());
        assert!(given.is_some());
        self.agent = Agent::start(&self.kernel, &self.config, self.families);
        self.start_from(known(Authority::Remembered, &remembered));
        self.settle();
        let [older, younger] = [OLDER, YOUNGER].map(|it| packet::mark(&self.kernel.state(), it.key()));
        assert_eq!(younger, given);
        assert_ne!(older, given, "packets go to endpoints of another Service");
    }

    /// A rule of routing that kube-router left stays while not everything is known.
    pub fn rules_of_routing_concern_nobody_without_a_tunnel(&mut self, backend: &str) {
        self.configure(backend);
        let rule = PolicyRule { family: Family::V4, place: EMPTY_TABLE, packets: Packets::All };
        self.kernel.with(|machine| machine.state.policy_rules.insert(rule, ()));
        self.start_from(known(Authority::Partial, &world(&self.world, [Some(Nat), None])));
        self.settle();
        assert!(self.kernel.state().policy_rules.contains_key(&rule));
        assert_eq!(self.agent.mirrors.unsettled_virtuals(self.agent.plan.desired()), Some(Vec::new()));
    }

    /// An older Service asks for a mark that a younger one has.
    pub fn takes_no_mark_from_whoever_has_it(&mut self, backend: &str) {
        self.configure(backend);
        let [before, both] = [None, Some(Tunnel)].map(|older| world(&self.world, [older, Some(Tunnel)]));
        self.begin(&before);
        let given = packet::mark(&self.kernel.state(), YOUNGER.key());
        assert!(given.is_some());
        for starts_again in [false, true, true] {
            if starts_again {
                self.agent = Agent::start(&self.kernel, &self.config, self.families);
            }
            self.start_from(known(Authority::Complete, &both));
            self.settle();
            let [older, younger] = [OLDER, YOUNGER].map(|it| packet::mark(&self.kernel.state(), it.key()));
            assert_eq!(younger, given, "its connections end");
            assert!(older.is_some() && older != given);
        }
    }

    /// A port has another mark than it shall, which somebody else has: other ports get theirs.
    pub fn a_mark_that_cannot_be_had_concerns_its_port_alone(&mut self, backend: &str) {
        self.configure(backend);
        self.begin(&world(&self.world, [None, Some(Tunnel)]));
        let taken = marks_of(&OLDER.key()).nth(1).expect("it may have some, of which the first is the younger one's");
        self.somebody_makes(taken, &[FOREIGN]);
        let mut world = world(&self.world, [Some(Tunnel), Some(Tunnel)]);
        let newest = Given { name: "newest", created: 3, protocol: Protocol::Tcp, port: 9090, endpoint: "10.244.1.9" };
        for is_damaged in [false, true] {
            self.start_from(known(Authority::Complete, &world));
            for _ in 0..5 {
                self.damaged();
                self.round();
                self.clock.pass_until(self.agent.mirrors.retry_at());
            }
            if !is_damaged {
                self.kernel.with(|machine| give_mark(&mut machine.state, OLDER.key(), UNLIKELY));
                self.audit();
                let name = ObjectName::new("shop", newest.name);
                world.cluster.services.insert(name.clone(), service(newest, Tunnel));
                world.cluster.endpoints.insert(name, endpoints(newest));
            }
        }
        let state = self.kernel.state();
        assert_eq!(self.agent.desired().kernel_key(&OLDER.key()), taken);
        assert_eq!(packet::mark(&state, OLDER.key()), Some(ServiceKey::Mark { mark: UNLIKELY, family: Family::V4 }));
        let mark = packet::mark(&state, newest.key()).expect("it is in tunnel mode");
        assert_eq!(mark, self.agent.desired().kernel_key(&newest.key()));
        assert!(state.virtuals.contains_key(&mark));
    }

    /// A Service cannot leave its tunnel, because the kernel refuses the virtual service with NAT; one at another address goes.
    pub fn a_mark_that_stays_keeps_no_other(&mut self, backend: &str) {
        self.configure(backend);
        let mut both = world(&self.world, [Some(Tunnel), None]);
        let address: IpAddr = [203, 0, 113, 77].into();
        let other = Given { name: "other", created: 3, protocol: Protocol::Tcp, port: 9090, endpoint: "10.244.1.9" };
        let name = ObjectName::new("shop", other.name);
        let its = Service { external_ips: vec![address], ..service(other, Tunnel) };
        both.cluster.services.insert(name.clone(), its);
        both.cluster.endpoints.insert(name, endpoints(other));
        self.begin(&both);
        let key = ServiceKey::Address { address, protocol: other.protocol, port: other.port };
        let given = [OLDER.key(), key].map(|key| packet::mark(&self.kernel.state(), key));
        assert!(given.iter().all(Option::is_some));
        self.kernel.with(|machine| machine.broken_object = Some(Object::Virtual(OLDER.key())));
        self.start_from(known(Authority::Complete, &world(&self.world, [Some(Nat), None])));
        for _ in 0..5 {
            self.damaged();
            self.round();
            self.clock.pass_until(self.agent.mirrors.retry_at());
        }
        let left = [OLDER.key(), key].map(|key| packet::mark(&self.kernel.state(), key));
        assert_eq!(left, [given[0], None], "one is served as before, the other one is gone");
        self.kernel.with(|machine| machine.broken_object = None);
        self.settle();
    }

    /// A Service that waits to change from NAT to a tunnel gets another endpoint.
    pub fn follows_its_endpoints_while_it_waits(&mut self, backend: &str, authority: Authority) {
        self.configure(backend);
        self.begin(&world(&self.world, [Some(Nat), None]));
        let mark = marks_of(&OLDER.key()).next().expect("it may have some");
        self.somebody_makes(mark, &[FOREIGN]);
        let later = Given { endpoint: "10.244.0.9", ..OLDER };
        for given in [OLDER, later] {
            let mut world = world(&self.world, [Some(Tunnel), None]);
            world.cluster.endpoints.insert(ObjectName::new("shop", given.name), endpoints(given));
            self.start_from(known(authority, &world));
            for _ in 0..3 {
                self.damaged();
                self.round();
                self.clock.pass_until(self.agent.mirrors.retry_at());
            }
        }
        let state = self.kernel.state();
        let found = state.virtuals.get(&OLDER.key()).expect("it waits");
        let ends: Vec<String> =
            found.destinations.iter().map(|to| format!("{} {:?}", to.address, to.forwarding)).collect();
        let expected: &[&str] = match authority {
            Authority::Complete => &["10.244.0.9:8080 Nat"],
            _ => &["10.244.0.7:8080 Nat", "10.244.0.9:8080 Nat"],
        };
        assert_eq!(ends, expected);
    }

    /// While the other backend is replaced and not everything is known no rule marks packets: a Service in tunnel mode that has no endpoint comes, and
    /// the next run knows of none.
    pub fn leaves_no_virtual_service_for_a_mark_that_nobody_was_given(&mut self) {
        let [without, mut with] = [None, Some(Tunnel)].map(|mode| world(&self.world, [mode, Some(Nat)]));
        with.cluster.endpoints.remove(&ObjectName::new("shop", OLDER.name));
        self.configure("--netfilter=nftables");
        self.begin(&without);
        self.configure("--netfilter=iptables");
        self.start_from(known(Authority::Partial, &with));
        for _ in 0..3 {
            self.round();
            self.clock.pass_until(self.agent.mirrors.retry_at());
        }
        self.configure("--netfilter=nftables");
        self.begin(&without);
    }

    /// What an earlier run left cannot be read at once: neither rules that give marks, nor anything else, at any of the first tries.
    pub fn knows_its_virtual_services_although_reads_fail(&mut self, backend: &str) {
        self.configure(backend);
        let mut with = world(&self.world, [Some(Tunnel), None]);
        with.cluster.endpoints.remove(&ObjectName::new("shop", OLDER.name));
        for seed in 0..40 {
            self.begin(&with);
            assert!(
                packet::mark(&self.kernel.state(), OLDER.key()).is_some_and(|key| self
                    .kernel
                    .state()
                    .virtuals
                    .contains_key(&key))
            );
            self.agent = Agent::start(&self.kernel, &self.config, self.families);
            self.start_from(known(Authority::Complete, &self.world));
            let random = Random::new(seed);
            self.kernel.with(|machine| machine.faults = Faults { random, steps: 0, reads: 30, alive_for: None });
            for _ in 0..4 {
                self.round();
                self.clock.pass_until(self.agent.mirrors.retry_at());
            }
            self.kernel.with(|machine| machine.faults = Faults::none());
            self.settle();
        }
    }

    /// Others delete a virtual service of UDP, beside a port in tunnel mode, and virtual services cannot be read when that is looked for.
    pub fn forgets_flows_of_what_others_deleted_although_a_read_fails(&mut self, backend: &str) {
        self.configure(backend);
        self.begin(&world(&self.world, [Some(Tunnel), Some(Nat)]));
        let key @ ServiceKey::Address { address, protocol, port } = YOUNGER.key() else { unreachable!() };
        let destination = SocketAddr::new(address, port);
        let flow = Flows { protocol, original_destination: destination, reply_source: destination };
        self.kernel.with(|machine| {
            assert!(machine.state.virtuals.remove(&key).is_some());
            machine.state.flows = [flow].into();
            machine.unreadable = Some("virtual services");
        });
        self.damaged();
        self.audit();
        self.round();
        assert!(!self.kernel.state().virtuals.contains_key(&key));
        self.kernel.with(|machine| machine.unreadable = None);
        self.settle();
        let state = self.kernel.state();
        assert!(state.virtuals.contains_key(&key));
        assert!(state.flows.is_empty(), "what its client sends is never translated");
    }

    /// Rules cannot be read at a start, and so nobody knows which marks packets are given: Services with NAT are served and follow their endpoints all the same, and virtual services for marks
    /// stay as they are, whoever they are for.
    pub fn serves_with_nat_while_rules_cannot_be_read(&mut self) {
        self.configure("--netfilter=iptables");
        let before = world(&self.world, [Some(Tunnel), None]);
        self.begin(&before);
        let port = YOUNGER.key();
        let marked = |walk: &Walk| -> Vec<(ServiceKey, Virtual)> {
            let virtuals = walk.kernel.state().virtuals;
            virtuals.into_iter().filter(|(key, _)| matches!(key, ServiceKey::Mark { .. })).collect()
        };
        let held = marked(self);
        assert!(!held.is_empty());
        let mut after = world(&self.world, [Some(Tunnel), Some(Nat)]);
        let older = ObjectName::new("shop", OLDER.name);
        after.cluster.endpoints.remove(&older);
        let cluster_ip = ServiceKey::Address { address: [10, 96, 0, 2].into(), protocol: Protocol::Udp, port: 80 };
        self.agent = Agent::start(&self.kernel, &self.config, self.families);
        self.kernel.with(|machine| machine.unreadable = Some("rules"));
        for (world, serves) in [(&after, true), (&before, false)] {
            self.start_from(known(Authority::Complete, world));
            for _ in 0..4 {
                self.round();
                self.clock.pass_until(self.agent.mirrors.retry_at());
            }
            let state = self.kernel.state();
            assert_eq!(state.virtuals.contains_key(&cluster_ip), serves, "it came and went");
            assert_eq!(state.virtuals.contains_key(&port), serves, "{port}");
            assert_eq!(marked(self), held, "it stays as it is");
        }
        self.kernel.with(|machine| machine.unreadable = None);
        self.start_from(known(Authority::Complete, &after));
        self.settle();
        assert!(marked(self).iter().all(|(_, found)| found.destinations.is_empty()));
    }

    /// A step on a virtual service fails while somebody has taken the mark of its packets away, and then its Service goes.
    pub fn knows_what_a_failed_step_leaves(&mut self) {
        self.configure("--netfilter=iptables");
        let mut with = world(&self.world, [Some(Tunnel), None]);
        let name = ObjectName::new("shop", OLDER.name);
        with.cluster.endpoints.remove(&name);
        self.begin(&with);
        let key = packet::mark(&self.kernel.state(), OLDER.key()).expect("it is in tunnel mode");
        self.kernel.with(|machine| {
            machine.state.rules.insert(marking_chain(Family::V4), marking([]));
            (machine.broken, machine.broken_object) = (Some(Family::V4), Some(Object::Virtual(key)));
        });
        self.damaged();
        self.audit();
        let mut changed = service(OLDER, Tunnel);
        changed.annotations.scheduler = Scheduler::Mh;
        with.cluster.services.insert(name, changed);
        self.start_from(known(Authority::Complete, &with));
        for _ in 0..4 {
            self.damaged();
            self.round();
            self.clock.pass_until(self.agent.mirrors.retry_at());
        }
        let other = self.world.clone();
        self.start_from(known(Authority::Complete, &other));
        self.kernel.with(|machine| (machine.broken, machine.broken_object) = (None, None));
        self.settle();
    }

    /// Packets to a port are given a mark that follows from nothing that a process without memory knows.
    pub fn goes_on_with_a_mark_that_follows_from_nothing(&mut self, backend: &str) {
        self.configure(backend);
        let [with, without] = [Some(Tunnel), None].map(|mode| world(&self.world, [mode, None]));
        for next in [&with, &without] {
            self.begin(&with);
            let mark = packet::mark(&self.kernel.state(), OLDER.key()).expect("it is in tunnel mode");
            let other = ServiceKey::Mark { mark: UNLIKELY, family: Family::V4 };
            assert!(!marks_of(&OLDER.key()).any(|key| key == other));
            self.kernel.with(|machine| {
                let held = machine.state.virtuals.remove(&mark).expect("it stands");
                machine.state.virtuals.insert(other, held);
                give_mark(&mut machine.state, OLDER.key(), UNLIKELY);
            });
            self.agent = Agent::start(&self.kernel, &self.config, self.families);
            self.start_from(known(Authority::Complete, next));
            let before = self.kernel.with(|machine| machine.acts);
            self.round();
            let acts = self.kernel.with(|machine| machine.acts) - before;
            assert_eq!(acts == 0, std::ptr::eq(next, &with), "{acts} acts");
            self.settle();
            let stands = self.kernel.state().virtuals.contains_key(&other);
            assert_eq!(stands, std::ptr::eq(next, &with), "it is known as ours by the packets that are given the mark");
        }
    }

    /// A rule that kube-router left gives packets of another Service the mark that one asks for.
    pub fn leaves_a_mark_to_whom_kube_router_gave_it(&mut self, backend: &str) {
        self.configure(backend);
        self.begin(&world(&self.world, [None, Some(Nat)]));
        let Some(ServiceKey::Mark { mark, family }) = marks_of(&OLDER.key()).next() else { panic!("it may have some") };
        let text = format!("-d {ADDRESS}/32 -p udp -m udp --dport 80 -j MARK --set-xmark {mark:#x}/0xffffffff");
        let piece =
            Piece::Leftover { family, table: Table::Mangle, from: "PREROUTING".into(), rule: text.as_str().into() };
        self.kernel.with(|machine| machine.state.rules.insert(piece, Rules(vec![text.as_str().into()])));
        self.agent = Agent::start(&self.kernel, &self.config, self.families);
        self.start_from(known(Authority::Complete, &world(&self.world, [Some(Tunnel), Some(Nat)])));
        self.settle();
    }

    /// A run with the other backend had a Service in tunnel mode that is served with NAT now.
    pub fn ends_tunnels_of_the_other_backend(&mut self, [before, after]: [&str; 2]) {
        self.configure(before);
        self.begin(&world(&self.world, [Some(Tunnel), None]));
        self.configure(after);
        self.start_from(known(Authority::Complete, &world(&self.world, [Some(Nat), None])));
        self.settle();
    }

    /// A run with the other backend gave packets of a Service that is gone the mark that another one asks for.
    pub fn takes_no_mark_that_the_other_backend_gives(&mut self, [before, after]: [&str; 2]) {
        self.configure(before);
        self.begin(&world(&self.world, [None, Some(Tunnel)]));
        let given = packet::mark(&self.kernel.state(), YOUNGER.key());
        self.configure(after);
        let both = [Authority::Partial, Authority::Complete];
        for authority in both {
            self.start_from(known(authority, &world(&self.world, [Some(Tunnel), None])));
            self.round();
        }
        assert_ne!(Some(self.agent.desired().kernel_key(&OLDER.key())), given);
        self.settle();
    }

    /// kube-router's table of routes makes all addresses local for marked packets: our rule leads nobody there.
    pub fn leads_no_packets_to_the_route_of_kube_router(&mut self, backend: &str) {
        self.configure(backend);
        self.kernel.with(|machine| leave_direct_server_return(&mut machine.state));
        let with = world(&self.world, [Some(Tunnel), None]);
        let ours = policy_rule(Family::V4);
        for (authority, leads) in [(Authority::Partial, false), (Authority::Complete, true)] {
            self.start_from(known(authority, &with));
            self.settle();
            assert_eq!(self.kernel.state().policy_rules.contains_key(&ours), leads, "{authority:?}");
        }
    }

    /// One namespace asks for more marks than it may have.
    pub fn leaves_marks_to_other_namespaces(&mut self, backend: &str) {
        self.configure(backend);
        let mut world = world(&self.world, [Some(Tunnel), None]);
        let addresses = |range: std::ops::Range<u8>| range.map(|host| IpAddr::from([203, 0, 113, host])).collect();
        let port = |port: u16| ServicePort { name: "".into(), protocol: Protocol::Tcp, port, node_port: None };
        let (greedy, most) = (ObjectName::new("greedy", "web"), MOST_OF_A_NAMESPACE);
        let ports: Vec<ServicePort> = (0..most as u16 / 16).map(|number| port(8000 + number)).collect();
        let of_addresses =
            |range| Service { external_ips: addresses(range), ports: ports.clone().into(), ..service(OLDER, Tunnel) };
        world.cluster.services.insert(greedy.clone(), of_addresses(0..17));
        self.start_from(known(Authority::Complete, &world));
        let has_marks = |desired: &Desired| {
            let is_greedy = |key: &&ServiceKey| matches!(key, ServiceKey::Address { address, .. } if address.to_string() != ADDRESS);
            (desired.marks.keys().filter(is_greedy).count(), desired.marks.contains_key(&OLDER.key()))
        };
        assert_eq!(has_marks(self.agent.desired()), (most, true));
        // The last address has no mark at all, and is served with NAT. Other nodes may have one: pods of this node answer with it as source, so
        // it is local for marked packets alone.
        let last: IpAddr = [203, 0, 113, 16].into();
        assert!(!self.agent.desired().marks.keys().any(|key| key.to_string().contains(&format!("{last}:"))));
        let routes = [local_route_key(last), marked_route_key(last)];
        assert_eq!(routes.map(|key| self.agent.desired().routes.contains_key(&key)), [false, true]);
        let told = |agent: &Agent| -> Vec<String> {
            agent.plan.problems().get(&greedy).into_iter().flat_map(|all| all.iter()).map(ToString::to_string).collect()
        };
        let problems = told(&self.agent);
        assert!(problems.iter().any(|text| text.contains("63 others are served with NAT")), "{problems:?}");
        world.cluster.services.insert(greedy.clone(), of_addresses(1..17));
        self.start_from(known(Authority::Complete, &world));
        assert_eq!(has_marks(self.agent.desired()), (most, true), "what is free goes to those that wait");
        assert!(told(&self.agent).iter().all(|text| !text.contains("NAT")), "{:?}", told(&self.agent));
    }

    /// Services of two namespaces have ports of one address, one of them in tunnel mode, whichever of them is older and came first: each is served as it asks. A node that was booted a moment ago does what the others do,
    /// so whatever comes through a tunnel to a pod there is answered.
    pub fn serves_each_port_as_its_service_asks_with_history_and_without(&mut self, backend: &str) {
        self.configure(backend);
        let empty = self.kernel.state();
        let address: IpAddr = ADDRESS.parse().expect("an address");
        let routes = [local_route_key(address), marked_route_key(address)];
        for (tunnelled, served) in [(YOUNGER, OLDER), (OLDER, YOUNGER)] {
            let put = |world: &mut World, namespace, given: Given, mode| {
                let name = ObjectName::new(namespace, given.name);
                world.cluster.services.insert(name.clone(), service(given, mode));
                world.cluster.endpoints.insert(name, endpoints(given));
            };
            let both = |mode| {
                let mut world = self.world.clone();
                put(&mut world, "others", tunnelled, mode);
                put(&mut world, "shop", served, Nat);
                world
            };
            let [mut alone, mut stranger] = [self.world.clone(), self.world.clone()];
            put(&mut alone, "others", tunnelled, Tunnel);
            put(&mut stranger, "shop", served, Nat);
            let (before, after) = (both(Nat), both(Tunnel));
            let is_as_asked = |walk: &Walk, told: &str| {
                let state = walk.kernel.state();
                let marked = packet::mark(&state, tunnelled.key()).is_some_and(|key| state.virtuals.contains_key(&key));
                let with_nat = state.virtuals.contains_key(&served.key());
                let routes = routes.each_ref().map(|key| state.routes.contains_key(key));
                let told = format!("{} in tunnel mode, {told}", tunnelled.name);
                assert_eq!((marked, with_nat, routes), (true, true, [false, true]), "{told}");
                let problems = ["shop", "others"].map(|namespace| {
                    let names = [OLDER.name, YOUNGER.name].map(|name| ObjectName::new(namespace, name));
                    names.iter().any(|name| walk.agent.plan.problems().get(name).is_some())
                });
                assert_eq!(problems, [false; 2], "{told}");
            };
            for (first, told) in [(&alone, "first"), (&stranger, "last"), (&before, "by an annotation")] {
                self.kernel.with(|machine| machine.state = empty.clone());
                self.begin(first);
                self.start_from(known(Authority::Complete, &after));
                self.settle();
                is_as_asked(self, told);
                self.begin(&after);
                is_as_asked(self, "after a start");
            }
            self.kernel.with(|machine| machine.state = empty.clone());
            self.begin(&after);
            is_as_asked(self, "after a boot");
        }
    }

    fn configure(&mut self, backend: &str) {
        let (config, families) = flags::proxy(&["--strict-external-ip-validation=false", backend]);
        self.config = Arc::new(ProxyConfig { tunnel_mode: true, ..(*config).clone() });
        self.families = families;
        self.agent = Agent::start(&self.kernel, &self.config, self.families);
    }

    fn somebody_makes(&mut self, key: ServiceKey, destinations: &[&str]) {
        let service = VirtualProperties { scheduler: "rr".into(), flags: 0, persistence_seconds: 0 };
        let destination = |text: &&str| {
            let address = text.parse().expect("a socket address");
            Destination { address, weight: 5, forwarding: Forwarding::Nat }
        };
        let made = Virtual { service, destinations: destinations.iter().map(destination).collect() };
        self.kernel.with(|machine| {
            machine.foreign.virtuals.insert(key, made.clone());
            machine.state.virtuals.insert(key, made);
        });
    }

    fn begin(&mut self, world: &World) {
        self.agent = Agent::start(&self.kernel, &self.config, self.families);
        self.start_from(known(Authority::Complete, world));
        self.settle();
    }
}

/// What IPVS sends on loses the mark of each virtual service of ours that stands, with either backend: else an overlay could come to that service with it.
fn loses_marks(state: &State, foreign: &State) {
    for key in state.virtuals.keys().filter(|key| !foreign.virtuals.contains_key(*key)) {
        let ServiceKey::Mark { mark, family } = *key else { continue };
        let chain = state.rules.get(&unmarking_chain(family));
        let by_rule = || chain.is_some_and(|chain| unmarking([mark]).0.iter().all(|rule| chain.0.contains(rule)));
        assert!(state.proxy_table.contains_key(&given_mark(mark)) || by_rule(), "what has the mark {mark} keeps it");
    }
}

/// Gives packets to a port another mark, with either backend.
fn give_mark(state: &mut State, port: ServiceKey, mark: u32) {
    if let Some(chain) = state.rules.get_mut(&marking_chain(port.family())) {
        let given = rules_marks(chain).map(|(its, old)| (its, if its == port { mark } else { old }));
        let given: Vec<(ServiceKey, u32)> = given.collect();
        *chain = marking(given.iter().map(|(port, mark)| (port, *mark)));
        let taken = unmarking(given.iter().map(|(_, mark)| *mark));
        state.rules.insert(unmarking_chain(port.family()), taken);
    }
    let ServiceKey::Address { address, protocol, port } = port else { return };
    let object = Set::TunnelPorts.object(&Entry::IpPort(address, protocol, port));
    let Some(Content::Mark(old)) = state.proxy_table.insert(object.clone(), Content::Mark(mark)) else {
        state.proxy_table.remove(&object);
        return;
    };
    assert!(state.proxy_table.remove(&given_mark(old)).is_some(), "packets that IPVS sends on lose it");
    state.proxy_table.insert(given_mark(mark), Content::Element);
}

fn world(empty: &World, modes: [Option<Mode>; 2]) -> World {
    let mut world = empty.clone();
    for (given, mode) in [OLDER, YOUNGER].into_iter().zip(modes) {
        let Some(mode) = mode else { continue };
        let name = ObjectName::new("shop", given.name);
        world.cluster.services.insert(name.clone(), service(given, mode));
        world.cluster.endpoints.insert(name, endpoints(given));
    }
    world
}

fn service(given: Given, mode: Mode) -> Service {
    Service {
        kind: ServiceType::ClusterIp,
        cluster_ips: vec![if given.created == 1 { [10, 96, 0, 1] } else { [10, 96, 0, 2] }.into()],
        external_ips: vec![ADDRESS.parse().expect("an address")],
        load_balancer: Vec::new(),
        source_ranges: None,
        ports: vec![ServicePort { name: "".into(), protocol: given.protocol, port: given.port, node_port: None }]
            .into(),
        affinity_seconds: None,
        internal_traffic_policy: Default::default(),
        external_traffic_policy: Default::default(),
        health_check_node_port: None,
        annotations: ProxyAnnotations { dsr: mode == Tunnel, ..ProxyAnnotations::default() },
        announce: Default::default(),
        created: given.created,
    }
}

fn endpoints(given: Given) -> Endpoints {
    let endpoint = Endpoint {
        address: given.endpoint.parse().expect("an address"),
        node: Some("node1".into()),
        conditions: Conditions::READY,
        hints: None,
    };
    let slice = EndpointSlice {
        family: Family::V4,
        ports: vec![EndpointPort { name: "".into(), protocol: given.protocol, port: given.port }].into(),
        endpoints: [endpoint].into_iter().collect(),
    };
    Endpoints { slices: [("one".into(), Arc::new(slice))].into() }
}
