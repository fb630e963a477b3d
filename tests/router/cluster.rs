//! A cluster in memory. Connections are made at once and lose nothing; time goes on where nothing else happens.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ffi::OsString;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ipnet::IpNet;

use sluice::bgp::message::{Attributes, Community};
use sluice::bgp::policy::{Decision, Policy};
use sluice::bgp::rib::{Bounds, NextHops, Own, Policies, Rules};
use sluice::bgp::session::{LinkId, Local, Moment, Settings, State};
use sluice::bgp::speaker::{Input, Neighbour, Order, Output, Speaker, WantedNeighbour};
use sluice::bgp::transport::Transport;
use sluice::config::{Config, Environment, Mistakes, Request, RouterConfig, request};
use sluice::kernel::route::{RouteKey, TABLE_MAIN};
use sluice::kernel::vxlan::{self, EntryKey};
use sluice::model::{
    Authority, Host, HostAddress, HostLink, Node, NodeAddress, NodeAddressKind, ObjectName, OnLink, Routing, Service,
    World,
};
use sluice::net::{Family, PerFamily};
use sluice::router::desired::SHARING;
use sluice::router::drain::{self, Drain};
use sluice::router::plan::Plan;

pub fn address(text: &str) -> IpAddr {
    text.parse().unwrap_or_else(|_| panic!("{text} is no address"))
}

pub fn prefix(text: &str) -> IpNet {
    text.parse().unwrap_or_else(|_| panic!("{text} is no prefix"))
}

/// A router outside, which believes everything.
pub struct External {
    pub address: IpAddr,
    pub asn: u32,
    pub originates: Vec<IpNet>,
}

pub struct Cluster {
    config: Arc<RouterConfig>,
    families: PerFamily<bool>,
    /// Cluster as the API tells it; each node adds its own host.
    world: World,
    members: BTreeMap<usize, Member>,
    external: Option<External>,
    outside: Option<Speaker>,
    wires: Vec<[End; 2]>,
    links: u64,
    events: VecDeque<Event>,
    now: Instant,
    /// What the router outside had from nodes, each time that this was something else.
    heard: Vec<Heard>,
}

/// Routes that the router outside has from nodes, by node and prefix, and whether each has the community GRACEFUL_SHUTDOWN.
pub type Heard = BTreeMap<(usize, IpNet), bool>;

/// A node with its plan and its speaker.
struct Member {
    host: Arc<Host>,
    plan: Plan,
    speaker: Option<Speaker>,
    drain: Drain,
}

/// The end of a connection: whose it is, and what it is called there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct End {
    owner: Owner,
    link: LinkId,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Owner {
    Node(usize),
    Outside,
}

enum Event {
    Dial(Owner, IpAddr),
    Bytes(Owner, LinkId, Arc<[u8]>),
    Taken(Owner, LinkId, usize),
    Closed(Owner, LinkId),
}

/// What an agent is asked by these words.
fn meant(words: &[&str]) -> (Arc<RouterConfig>, PerFamily<bool>) {
    let words: Vec<OsString> = ["sluice"].iter().chain(words).map(OsString::from).collect();
    let asked = request(&words).unwrap_or_else(|refusal| panic!("{}", refusal.text));
    let Request::Run { flags, verbosity } = asked else { panic!("these words ask for a text, not for a run") };
    let environment = Environment { host_name: "any".to_owned(), ..Environment::default() };
    let mut mistakes = Mistakes::default();
    let config = Config::meant(&flags, verbosity, &environment, &mut mistakes);
    assert!(mistakes.is_empty(), "{mistakes}");
    (Arc::new(config.router.expect("the router is on by default")), config.families)
}

impl Cluster {
    pub fn new(words: &[&str]) -> Cluster {
        let (config, families) = meant(words);
        let mut world = World::empty();
        (world.authority.proxy, world.authority.router) = (Authority::Complete, Authority::Complete);
        Cluster {
            config,
            families,
            world,
            members: BTreeMap::new(),
            external: None,
            outside: None,
            wires: Vec::new(),
            links: 0,
            events: VecDeque::new(),
            now: Instant::now(),
            heard: Vec::new(),
        }
    }

    /// A node on a link, which is named by the beginning of its IPv4 addresses.
    pub fn add_node(&mut self, number: usize, link: &str, families: &str, ranges: &str) {
        let third = link.split('.').next_back().expect("a link has a number");
        let v4 = prefix(&format!("{link}.{number}/24"));
        let v6 = prefix(&format!("2001:db8:{third}::{number}/64"));
        let networks: Vec<IpNet> = match families {
            "v4" => vec![v4],
            "v6" => vec![v6],
            _ => vec![v4, v6],
        };
        self.add_node_in(number, &networks, ranges);
    }

    /// A node with these addresses in these networks, in one of which all hosts are neighbours unless it is of one host alone.
    pub fn add_node_in(&mut self, number: usize, networks: &[IpNet], ranges: &str) {
        let internal = |network: &IpNet| NodeAddress { kind: NodeAddressKind::Internal, address: network.addr() };
        let addresses = networks.iter().map(internal).collect();
        self.add_node_with(number, networks, addresses, ranges);
    }

    /// The same, with other addresses in its Node object than its host has.
    pub fn add_node_with(&mut self, number: usize, networks: &[IpNet], addresses: Vec<NodeAddress>, ranges: &str) {
        let own = |network: &IpNet| HostAddress { address: network.addr(), link: "eth0".into(), global: true };
        let on_link = |network: &IpNet| OnLink { prefix: network.trunc(), link: "eth0".into() };
        let host = Host {
            node_name: name(number).into(),
            addresses: networks.iter().map(own).collect(),
            on_link: networks
                .iter()
                .filter(|network| network.prefix_len() < network.max_prefix_len())
                .map(on_link)
                .collect(),
            links: vec![HostLink { name: "eth0".into(), mtu: 1500, bridge: false }],
            ..Host::default()
        };
        let node = Node { addresses, pod_cidrs: ranges.split_whitespace().map(prefix).collect(), ..Node::default() };
        self.world.cluster.nodes.insert(name(number).into(), node);
        self.members.insert(number, self.member(Arc::new(host), self.config.clone()));
    }

    /// A node whose agent has just started.
    fn member(&self, host: Arc<Host>, config: Arc<RouterConfig>) -> Member {
        let plan = Plan::new(config, self.families);
        Member { host, plan, speaker: None, drain: Drain::new(self.config.drain.delay) }
    }

    /// The agent of a node ends and is started anew. Who spoke with it sees the connections end.
    pub fn restart(&mut self, number: usize) {
        self.restart_as(number, self.config.clone());
    }

    /// The same, with other flags.
    pub fn restart_with(&mut self, number: usize, words: &[&str]) {
        self.restart_as(number, meant(words).0);
    }

    fn restart_as(&mut self, number: usize, config: Arc<RouterConfig>) {
        let host = self.members[&number].host.clone();
        self.members.insert(number, self.member(host, config));
        self.break_off(number);
    }

    /// The node and its host are gone without a word.
    pub fn remove_node(&mut self, number: usize) {
        self.world.cluster.nodes.remove(&name(number).into());
        self.members.remove(&number);
        self.break_off(number);
    }

    /// All connections of a node end.
    fn break_off(&mut self, number: usize) {
        for [one, other] in self.wires.clone() {
            for (gone, left) in [(one, other), (other, one)] {
                if gone.owner == Owner::Node(number) {
                    self.events.push_back(Event::Closed(left.owner, left.link));
                }
            }
        }
        self.wires.retain(|ends| ends.iter().all(|end| end.owner != Owner::Node(number)));
    }

    pub fn annotate(&mut self, number: usize, change: impl FnOnce(&mut Routing)) {
        self.change_node(number, |node| {
            let mut routing = node.routing().clone();
            change(&mut routing);
            node.routing = Some(Box::new(routing));
        });
    }

    pub fn change_node(&mut self, number: usize, change: impl FnOnce(&mut Node)) {
        let key = name(number).into();
        let mut node = (**self.world.cluster.nodes.get(&key).expect("it was added")).clone();
        change(&mut node);
        self.world.cluster.nodes.insert(key, node);
    }

    /// The agent of a node was taken over: it announces what it likes to all its neighbours, with its own address as the next hop, and as the best there is.
    pub fn lie(&mut self, number: usize, prefixes: &[IpNet]) {
        let everything = Arc::new(Policy::all(Decision::Accept));
        let policies = Policies { import: everything.clone(), export: everything };
        self.step(Owner::Node(number), Order::Policies(policies).into());
        for prefix in prefixes {
            let host = &self.members[&number].host;
            let is_of_family = |own: &&HostAddress| Family::from(own.address) == Family::from(*prefix);
            let next_hop = host.addresses.iter().find(is_of_family).expect("it has both families").address;
            let mut best = Attributes::local(next_hop);
            best.local_pref = Some(1000);
            self.step(Owner::Node(number), Order::Originate(*prefix, Box::new(best)).into());
        }
    }

    pub fn put_service(&mut self, name: ObjectName, service: Service) {
        self.world.cluster.services.insert(name, service);
    }

    pub fn remove_service(&mut self, name: &ObjectName) {
        self.world.cluster.services.remove(name);
    }

    pub fn add_external(&mut self, external: External) {
        self.external = Some(external);
    }

    /// Lets every node see the cluster, and everything happen that follows.
    pub fn settle(&mut self) {
        self.settle_for(Duration::from_secs(300));
    }

    /// The same, where so much time passes.
    pub fn settle_for(&mut self, time: Duration) {
        self.begin_outside();
        for number in self.members.keys().copied().collect::<Vec<_>>() {
            self.update(number);
        }
        let end = self.now + time;
        loop {
            while let Some(event) = self.events.pop_front() {
                self.happen(event);
                self.note_heard();
            }
            let speakers = self.members.values().filter_map(|member| member.speaker.as_ref());
            let drains = self.members.values().filter_map(|member| member.drain.deadline());
            let next = speakers.chain(&self.outside).filter_map(Speaker::deadline).chain(drains).min();
            match next.filter(|next| *next <= end) {
                Some(next) => self.now = self.now.max(next) + Duration::from_millis(1),
                None => break,
            }
            for number in self.members.keys().copied().collect::<Vec<_>>() {
                self.step_drain(number, drain::Event::Tick);
            }
            for owner in
                self.members.keys().map(|number| Owner::Node(*number)).chain([Owner::Outside]).collect::<Vec<_>>()
            {
                self.step(owner, Input::Tick);
            }
        }
        self.now = end;
        for member in self.members.values_mut() {
            member.plan.drop_stale_routes();
        }
    }

    fn update(&mut self, number: usize) {
        let node = self.world.cluster.nodes.get(&name(number).into()).expect("it was added");
        let event = drain::event(node, &self.config.drain);
        self.step_drain(number, event);
        let member = self.members.get_mut(&number).expect("it is there");
        let world = World { host: member.host.clone(), ..self.world.clone() };
        let changed = member.plan.update(&world);
        if changed.speaker {
            member.plan.keep_routes_as_stale();
        }
        let desired = member.plan.desired();
        let orders = if changed.speaker {
            member.speaker = desired.speaker.as_ref().map(|speaker| {
                let policies = desired.policies.clone().expect("the cluster is known");
                let rules = Rules {
                    own: speaker.own,
                    policies,
                    addresses: speaker.addresses.clone(),
                    sharing: SHARING,
                    held: PerFamily::default(),
                    bounds: Bounds::default(),
                    seed: 7,
                };
                Speaker::new(rules, None, self.now)
            });
            let orders = desired.all_orders();
            self.break_off(number);
            orders
        } else {
            desired.orders(&changed)
        };
        for order in orders {
            self.step(Owner::Node(number), order.into());
        }
    }

    /// Service addresses stand as the drain of a node has it from now on; nobody looks for their clients here.
    fn step_drain(&mut self, number: usize, event: drain::Event) {
        let member = self.members.get_mut(&number).expect("it is there");
        for effect in member.drain.step(self.now, event) {
            let drain::Effect::Stand(stage) = effect else { continue };
            let member = self.members.get_mut(&number).expect("it is there");
            let changed = member.plan.stand(stage);
            let orders = member.plan.desired().orders(&changed);
            orders.into_iter().for_each(|order| self.step(Owner::Node(number), order.into()));
        }
    }

    fn note_heard(&mut self) {
        let Some(outside) = &self.outside else { return };
        let speaks = |member: &Member| outside.neighbour(member.host.addresses[0].address).is_some();
        let speaking: Vec<usize> =
            self.members.iter().filter(|(_, member)| speaks(member)).map(|(number, _)| *number).collect();
        let of_node = |number: usize| {
            let seen = self.seen_outside(number).into_iter();
            let is_leaving = |attributes: &Attributes| attributes.has(Community::GRACEFUL_SHUTDOWN);
            seen.map(move |(prefix, attributes)| ((number, prefix), is_leaving(&attributes)))
        };
        let heard: Heard = speaking.into_iter().flat_map(of_node).collect();
        if self.heard.last() != Some(&heard) {
            self.heard.push(heard);
        }
    }

    /// What the router outside had from nodes since the last call, beginning with what it had then.
    pub fn take_heard(&mut self) -> Vec<Heard> {
        let last = self.heard.last().cloned().into_iter().collect();
        std::mem::replace(&mut self.heard, last)
    }

    fn begin_outside(&mut self) {
        let Some(external) = &self.external else { return };
        let own = Own { asn: external.asn, identifier: Ipv4Addr::new(9, 9, 9, 9), cluster: Ipv4Addr::new(9, 9, 9, 9) };
        let everything = Arc::new(Policy::all(Decision::Accept));
        let mut orders: Vec<Order> = Vec::new();
        if self.outside.is_none() {
            let rules = Rules {
                own,
                policies: Policies { import: everything.clone(), export: everything },
                addresses: BTreeSet::from([external.address]),
                sharing: 1,
                held: PerFamily::default(),
                bounds: Bounds::default(),
                seed: 7,
            };
            self.outside = Some(Speaker::new(rules, None, self.now));
            let next_hop = |prefix: &IpNet| match prefix {
                IpNet::V4(_) => external.address,
                IpNet::V6(_) => address("2001:db8:2::fe"),
            };
            let originate = |prefix: &IpNet| Order::Originate(*prefix, Box::new(Attributes::local(next_hop(prefix))));
            orders.extend(external.originates.iter().map(originate));
        }
        let (here, asn) = (external.address, external.asn);
        for member in self.members.values() {
            let there = member.host.addresses.iter().map(|own| own.address);
            let there = there.filter(|there| Family::from(*there) == Family::from(here));
            orders.extend(there.map(|there| Order::Want(Arc::new(outside_wants(here, asn, there)))));
        }
        orders.into_iter().for_each(|order| self.step(Owner::Outside, order.into()));
    }

    fn step(&mut self, owner: Owner, input: Input) {
        let at = Moment { now: self.now, jitter: 3 };
        if let Some(speaker) = self.speaker(owner) {
            let outputs = speaker.step(at, input);
            self.take(owner, outputs);
        }
    }

    fn speaker(&mut self, owner: Owner) -> Option<&mut Speaker> {
        match owner {
            Owner::Outside => self.outside.as_mut(),
            Owner::Node(number) => self.members.get_mut(&number)?.speaker.as_mut(),
        }
    }

    fn take(&mut self, owner: Owner, outputs: Vec<Output>) {
        for output in outputs {
            match output {
                Output::Dial(to) => self.events.push_back(Event::Dial(owner, to)),
                Output::Send(link, bytes) => {
                    self.events.push_back(Event::Taken(owner, link, bytes.len()));
                    if let Some(other) = self.other(owner, link) {
                        self.events.push_back(Event::Bytes(other.owner, other.link, bytes));
                    }
                }
                Output::Close(link) => {
                    if let Some(other) = self.other(owner, link) {
                        self.events.push_back(Event::Closed(other.owner, other.link));
                    }
                }
                Output::Routes(changed) => {
                    if let Owner::Node(number) = owner {
                        let member = self.members.get_mut(&number).expect("it is there");
                        let rib = member.speaker.as_ref().expect("it has just spoken").rib();
                        let changes: Vec<_> = changed.into_iter().map(|one| rib.route(one.prefix)).collect();
                        member.plan.learn(&changes);
                    }
                }
                Output::AbandonDial(_) | Output::Fact(..) | Output::Complete => {}
            }
        }
    }

    fn other(&self, owner: Owner, link: LinkId) -> Option<End> {
        let own = End { owner, link };
        let ends = self.wires.iter().find(|ends| ends.contains(&own))?;
        ends.iter().copied().find(|end| *end != own)
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Dial(from, to) => self.dial(from, to),
            Event::Bytes(owner, link, bytes) => {
                let at = Moment { now: self.now, jitter: 3 };
                if let Some(speaker) = self.speaker(owner) {
                    let outputs = speaker.receive(at, link, &bytes);
                    self.take(owner, outputs);
                }
            }
            Event::Taken(owner, link, bytes) => self.step(owner, Input::Taken(link, bytes)),
            Event::Closed(owner, link) => self.step(owner, Input::Closed(link)),
        }
    }

    /// A connection is made where somebody has the address, wants the one that dials from where it does, and takes it there.
    fn dial(&mut self, from: Owner, to: IpAddr) {
        let wanted = self.speaker(from).and_then(|speaker| Some(speaker.neighbour(to)?.wanted().clone()));
        let Some(here) = wanted.and_then(|wanted| wanted.transport.local) else {
            return self.step(from, Input::DialFailed(to));
        };
        let there = self.owner_of(to).filter(|there| {
            let neighbour = self.speaker(*there).and_then(|speaker| speaker.neighbour(here));
            neighbour.is_some_and(|neighbour| neighbour.wanted().transport.local == Some(to))
        });
        let Some(there) = there else { return self.step(from, Input::DialFailed(to)) };
        self.links += 1;
        let link = LinkId(self.links);
        self.wires.push([End { owner: from, link }, End { owner: there, link }]);
        self.step(from, Input::Dialled(to, link));
        self.step(there, Input::Accepted(here, link));
    }

    fn owner_of(&self, address: IpAddr) -> Option<Owner> {
        if self.external.as_ref().is_some_and(|external| external.address == address) {
            return Some(Owner::Outside);
        }
        let has = |member: &Member| member.host.addresses.iter().any(|own| own.address == address);
        self.members.iter().find(|(_, member)| has(member)).map(|(number, _)| Owner::Node(*number))
    }

    /// Sends a packet from each node to a pod of each other one, over the routes of the nodes between them.
    pub fn all_pods_reach_each_other(&self) {
        for from in self.members.keys() {
            for (to, member) in &self.members {
                for range in member.plan.own().all_pod_cidrs() {
                    let pod = range.hosts().nth(6).expect("a range has seven addresses");
                    assert_eq!(
                        self.walk(*from, pod),
                        Ok(*to),
                        "from node {from} to {pod}\n{}",
                        self.routes(*from).join("\n")
                    );
                }
            }
        }
    }

    /// The node that a packet ends at.
    fn walk(&self, from: usize, to: IpAddr) -> Result<usize, String> {
        let mut at = from;
        for _ in 0..4 {
            let member = self.members.get(&at).ok_or("it left the cluster")?;
            if member.plan.own().all_pod_cidrs().any(|range| range.contains(&to)) {
                return Ok(at);
            }
            let routes = member.plan.routes().routes().iter();
            let fits = |key: &RouteKey| key.table == TABLE_MAIN && key.destination.contains(&to);
            let best = routes.filter(|(key, _)| fits(key)).max_by_key(|(key, _)| key.destination.prefix_len());
            let (_, route) = best.ok_or_else(|| format!("node {at} has no route"))?;
            let hop = route.next_hops.first().ok_or("a route leads nowhere")?;
            let is_remote =
                |entry: &&EntryKey| entry.link == hop.link && Some(vxlan::gateway(entry.remote)) == hop.gateway;
            let entry = member.plan.routes().entries().keys().find(is_remote);
            if let Some(entry) = entry {
                let far = self.members.values().find(|far| far.plan.own().all.contains(&entry.remote));
                for end in [Some(member), far] {
                    let devices = end.map(|end| &end.plan.desired().overlay_devices);
                    assert!(devices.is_some_and(|devices| devices.contains_key(&entry.link)), "{entry} has two ends");
                }
            }
            let next = match hop.gateway {
                _ if entry.is_some() => entry.map(|entry| entry.remote).ok_or("there is one")?,
                Some(gateway) if member.host.on_link.iter().any(|network| network.prefix.contains(&gateway)) => gateway,
                Some(gateway) => return Err(format!("{gateway} is not on a link of node {at}")),
                None => {
                    let tunnel = member.plan.routes().tunnels().get(&hop.link);
                    let tunnel = tunnel.ok_or_else(|| format!("{} is no tunnel of node {at}", hop.link))?;
                    let is_own = member.host.addresses.iter().any(|own| own.address == tunnel.local);
                    let source = route.source.map(Family::from);
                    assert!(is_own && source == Some(Family::from(to)), "{tunnel:?} {route:?}");
                    tunnel.remote
                }
            };
            at = match self.owner_of(next) {
                Some(Owner::Node(number)) => number,
                other => return Err(format!("{next} is {other:?}")),
            };
        }
        Err("it goes in circles".to_owned())
    }

    /// The main table of a node, as `ip route` would print it.
    pub fn routes(&self, number: usize) -> Vec<String> {
        let routes = self.members[&number].plan.routes().routes().iter().filter(|(key, _)| key.table == TABLE_MAIN);
        let line = |(key, route): (&RouteKey, &Arc<sluice::kernel::route::Route>)| {
            let ways = route.next_hops.iter().map(|hop| match hop.gateway {
                Some(gateway) => format!("via {gateway} dev {}", hop.link),
                None => format!("dev {}", hop.link),
            });
            format!("{} {}", key.destination, ways.collect::<Vec<_>>().join(" + "))
        };
        routes.map(line).collect()
    }

    pub fn plan(&self, number: usize) -> &Plan {
        &self.members[&number].plan
    }

    /// The cluster as a node sees it.
    pub fn world(&self, number: usize) -> World {
        World { host: self.members[&number].host.clone(), ..self.world.clone() }
    }

    pub fn config(&self) -> (Arc<RouterConfig>, PerFamily<bool>) {
        (self.config.clone(), self.families)
    }

    pub fn tunnels(&self, number: usize) -> usize {
        self.members[&number].plan.routes().tunnels().len()
    }

    pub fn sessions(&self, number: usize) -> usize {
        self.neighbours_up(number).len()
    }

    /// The neighbours with which a node has a session.
    pub fn neighbours_up(&self, number: usize) -> BTreeSet<IpAddr> {
        let speaker = self.members[&number].speaker.as_ref();
        let all = speaker.into_iter().flat_map(Speaker::neighbours);
        let is_up = |neighbour: &Neighbour| neighbour.peer().state() == State::Established;
        all.filter(|(_, neighbour)| is_up(neighbour)).map(|(address, _)| address).collect()
    }

    pub fn problems(&self) -> Vec<String> {
        let all = self.members.values().flat_map(|member| &member.plan.desired().problems);
        all.map(|problem| format!("{}: {}", problem.about, problem.text)).collect()
    }

    /// Routes that the external router has learned from a node.
    pub fn seen_outside(&self, number: usize) -> Vec<(IpNet, Arc<Attributes>)> {
        let outside = self.outside.as_ref().expect("there is a router outside");
        let address = self.members[&number].host.addresses[0].address;
        let id = outside.neighbour(address).expect("it peers with every node").id();
        let table = outside.rib().table();
        let all = Family::BOTH.into_iter().flat_map(|family| table.walk(family, None));
        let paths = all.flat_map(|(prefix, paths)| paths.iter().map(move |path| (prefix, path)));
        paths.filter(|(_, path)| path.source == id).map(|(prefix, path)| (prefix, path.received.clone())).collect()
    }
}

fn name(number: usize) -> String {
    format!("node-{number}")
}

fn outside_wants(here: IpAddr, asn: u32, there: IpAddr) -> WantedNeighbour {
    WantedNeighbour {
        address: there,
        settings: Settings {
            local: Local { asn, identifier: Ipv4Addr::new(9, 9, 9, 9) },
            asn: Some(64512),
            is_external: false,
            passive: false,
            hold_time: 90,
            connect_retry: Duration::from_secs(20),
            mutual: false,
            families: PerFamily { v4: true, v6: true },
            restart: None,
        },
        transport: Transport { local: Some(here), ..Transport::default() },
        client: false,
        own: PerFamily { v4: Some(here), v6: Some(address("2001:db8:2::fe")) },
        next_hops: NextHops::Usual,
        liveness: None,
        expected: true,
        first_as: true,
        most: PerFamily::default(),
    }
}
