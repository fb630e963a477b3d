//! Advertisement, seen from the neighbours: every parcel is parsed, and builds the Adj-RIB-In of the neighbour.

mod changes;
mod inspection;
mod told;
mod told_again;

use super::super::message::{
    self, AsPath, Community, Dialect, ExtendedCommunity, Framing, Message, Refresh, RefreshKind,
};
use super::super::policy::{Change, Condition, Decision, Lengths, Matching, NeighbourSet, PrefixSet, Statement};
use super::*;
use crate::net::LinkLocal;
use std::net::Ipv4Addr;

const OWN: Own = Own { asn: 65001, identifier: Ipv4Addr::new(192, 0, 2, 1), cluster: Ipv4Addr::new(192, 0, 2, 1) };

/// A neighbour, and its Adj-RIB-In.
struct TestNeighbour {
    kind: Kind,
    dialect: Dialect,
    routes: BTreeMap<IpNet, Attributes>,
    /// End-of-RIB, BoRR and EoRR, in order.
    marks: Vec<String>,
    messages: usize,
    /// Its socket accepts nothing.
    deaf: bool,
}

/// Dialect with a neighbour that has no extensions but four-octet AS numbers, in both families.
fn usual(kind: Kind) -> Dialect {
    let families = PerFamily { v4: true, v6: true };
    let internal = kind != Kind::External;
    Dialect { internal, four_octets: true, families, extended_next_hop: false, extended_message: false }
}

struct Bench {
    rib: Rib,
    told: BTreeMap<PeerId, TestNeighbour>,
    routes: BTreeMap<IpNet, Vec<IpAddr>>,
    parcels: Vec<Parcel>,
    /// Whether the sockets of new neighbours accept output.
    hearing: bool,
}

fn address(number: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(192, 0, 2, number))
}

fn prefix(text: &str) -> IpNet {
    text.parse().unwrap()
}

fn prefixes(count: u32) -> Vec<IpNet> {
    let net = |number: u32| IpNet::new(Ipv4Addr::from(0x0a00_0000 + (number << 8)).into(), 24).unwrap();
    (0..count).map(net).collect()
}

fn policies() -> Policies {
    let all = Arc::new(Policy::all(Decision::Accept));
    Policies { import: all.clone(), export: all }
}

/// Builds a policy that rejects one prefix.
fn without(text: &str) -> Arc<Policy> {
    let mut set = PrefixSet::new("set");
    set.insert_exactly(prefix(text));
    let prefixes = Some(Condition { set: Arc::new(set), matching: Matching::Any });
    let statement = Statement { prefixes, decision: Some(Decision::Reject), ..Statement::default() };
    Arc::new(Policy { name: "policy".into(), statements: vec![statement], otherwise: Decision::Accept })
}

impl Bench {
    fn new() -> Bench {
        Bench::with(Bounds::default(), 1, PerFamily::default())
    }

    fn with(bounds: Bounds, sharing: usize, held: PerFamily<bool>) -> Bench {
        let addresses = BTreeSet::from([address(1)]);
        let rules = Rules { own: OWN, policies: policies(), addresses, sharing, held, bounds, seed: 7 };
        Bench {
            rib: Rib::new(rules, Instant::now()),
            told: BTreeMap::new(),
            routes: BTreeMap::new(),
            parcels: Vec::new(),
            hearing: true,
        }
    }

    fn join(&mut self, number: u8, kind: Kind) -> PeerId {
        self.join_speaking(number, kind, usual(kind))
    }

    /// Adds a neighbour without long-lived graceful restart.
    fn join_plain(&mut self, number: u8, kind: Kind) -> PeerId {
        self.join_with(number, kind, usual(kind), false)
    }

    fn join_speaking(&mut self, number: u8, kind: Kind, dialect: Dialect) -> PeerId {
        self.join_with(number, kind, dialect, true)
    }

    fn join_with(&mut self, number: u8, kind: Kind, dialect: Dialect, knows_long_lived: bool) -> PeerId {
        let peer = PeerId(u32::from(number));
        let identifier = Ipv4Addr::new(192, 0, 2, number);
        let own = PerFamily { v4: Some(address(1)), v6: Some("2001:db8:2::1".parse().unwrap()) };
        let view = View {
            kind,
            dialect,
            own,
            next_hops: NextHops::Usual,
            knows_long_lived,
            statements: Applicable::default(),
        };
        self.rib.join(Joining {
            peer,
            source: Source { kind, identifier, address: address(number), first: None },
            view,
            retains: true,
        });
        let told =
            TestNeighbour { kind, dialect, routes: BTreeMap::new(), marks: vec![], messages: 0, deaf: !self.hearing };
        self.told.insert(peer, told);
        self.flush();
        peer
    }

    /// Adds a neighbour whose socket accepts nothing for now.
    fn join_deaf(&mut self, number: u8, kind: Kind) -> PeerId {
        self.hearing = false;
        let peer = self.join(number, kind);
        self.hearing = true;
        peer
    }

    /// Lets its socket accept output from now on.
    fn listen(&mut self, peer: PeerId) {
        self.told.get_mut(&peer).unwrap().deaf = false;
        self.rib.taken(peer, usize::MAX);
        self.flush();
    }

    fn announce(&mut self, peer: PeerId, attributes: Attributes, prefixes: &[IpNet]) {
        let announced = vec![Announced { attributes, prefixes: prefixes.to_vec() }];
        self.rib.receive(peer, Update { announced, ..Update::default() });
        self.flush();
    }

    fn withdraw(&mut self, peer: PeerId, prefixes: &[IpNet]) {
        self.rib.receive(peer, Update { withdrawn: prefixes.to_vec(), ..Update::default() });
        self.flush();
    }

    fn flush(&mut self) {
        loop {
            let flushed = self.rib.flush();
            if flushed == Flushed::default() {
                return;
            }
            for change in flushed.routes.into_iter().map(|prefix| self.rib.route(prefix)) {
                assert_eq!(change.best.is_some(), !change.next_hops.is_empty());
                match change.next_hops.is_empty() {
                    true => drop(self.routes.remove(&change.prefix)),
                    false => drop(self.routes.insert(change.prefix, change.next_hops)),
                }
            }
            for parcel in flushed.parcels {
                let told = self.told.get_mut(&parcel.to).expect("nobody else is told");
                told.take(&parcel);
                if !told.deaf {
                    self.rib.taken(parcel.to, parcel.bytes.len());
                }
                self.parcels.push(parcel);
            }
        }
    }

    fn told(&self, peer: PeerId) -> &TestNeighbour {
        &self.told[&peer]
    }

    fn has(&self, peer: PeerId, text: &str) -> Option<&Attributes> {
        self.told(peer).routes.get(&prefix(text))
    }

    /// Checks that every neighbour has been sent exactly what it should have.
    fn check(&mut self) {
        self.rib.table().check();
        let peers: Vec<PeerId> = self.told.keys().copied().collect();
        for peer in peers {
            let all = Family::BOTH.into_iter().flat_map(|family| self.rib.table().walk(family, None));
            let all: Vec<IpNet> = all.map(|(prefix, _)| prefix).collect();
            let mut should = BTreeMap::new();
            for prefix in all {
                should.extend(self.rib.shown_to(peer, prefix).map(|shown| (prefix, (*shown).clone())));
            }
            assert_eq!(self.told(peer).routes, should, "{peer:?}");
        }
        self.check_answers();
    }

    /// Checks that answers say what is so: which routes are used, which is the best, and what each neighbour has.
    fn check_answers(&mut self) {
        let all = Family::BOTH.into_iter().flat_map(|family| self.rib.table().walk(family, None));
        let all: Vec<IpNet> = all.map(|(prefix, _)| prefix).collect();
        for prefix in all {
            let best = self.rib.table().best(prefix).map(|best| best.source);
            let state = self.rib.state(prefix, usize::MAX, true);
            let is_best = |path: &&PathState| matches!(path.standing, Standing::Best(_));
            assert_eq!(state.paths.iter().find(is_best).map(|path| path.source), best, "{prefix}");
            for path in &state.paths {
                let is_refused = matches!(path.standing, Standing::Refused(_));
                assert_eq!(path.used.is_none(), is_refused, "{prefix}: {path:?}");
            }
            for (peer, sent) in state.told.expect("it was asked").neighbours {
                let has = self.told(peer).routes.get(&prefix);
                assert_eq!(sent.as_ref().ok().map(|sent| &**sent), has, "{prefix} to {peer:?}: {sent:?}");
            }
        }
    }
}

impl TestNeighbour {
    fn take(&mut self, parcel: &Parcel) {
        let mut framing = Framing::default();
        framing.push(&parcel.bytes);
        let mut messages = 0;
        while let Some(frame) = framing.next(self.dialect.extended_message).unwrap() {
            messages += 1;
            match message::decode(frame, Some(&self.dialect)).unwrap() {
                Message::Update(update) => {
                    assert_eq!(update.remarks, [], "{:?}", self.kind);
                    update.withdrawn.iter().for_each(|prefix| drop(self.routes.remove(prefix)));
                    for Announced { attributes, prefixes } in update.announced {
                        self.routes.extend(prefixes.into_iter().map(|prefix| (prefix, attributes.clone())));
                    }
                    self.marks.extend(update.end_of_rib.map(|family| format!("end of {family}")));
                }
                Message::Refresh(refresh) => self.marks.push(format!("{:?} {}", refresh.kind, refresh.family)),
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(messages, parcel.messages);
        self.messages += messages as usize;
    }
}

fn route(path: &[u32], next_hop: u8) -> Attributes {
    Attributes { as_path: AsPath::sequence(path), ..Attributes::local(address(next_hop)) }
}

const NET: &str = "10.244.1.0/24";

fn net() -> [IpNet; 1] {
    [prefix(NET)]
}

#[test]
fn a_route_goes_to_everybody_but_the_one_it_came_from() {
    let mut bench = Bench::new();
    let [one, two, three] = [11, 12, 13].map(|number| bench.join(number, Kind::External));
    bench.announce(one, route(&[64611], 11), &net());
    assert_eq!([one, two, three].map(|peer| bench.has(peer, NET).is_some()), [false, true, true]);
    let told = bench.has(two, NET).unwrap();
    assert_eq!((told.as_path.to_string().as_str(), told.next_hop), ("65001 64611", address(1)));
    // A better route from another neighbour: the first one is sent it, the other one a withdrawal.
    bench.announce(two, route(&[], 12), &net());
    assert!(bench.has(two, NET).is_some(), "a path from outside has to begin with a number");
    bench.announce(two, route(&[64612], 12), &net());
    bench.withdraw(one, &net());
    assert_eq!([one, two, three].map(|peer| bench.has(peer, NET).is_some()), [true, false, true]);
    bench.withdraw(two, &net());
    assert_eq!([one, two, three].map(|peer| bench.has(peer, NET).is_some()), [false; 3]);
    assert_eq!(bench.routes, BTreeMap::new());
    bench.check();
}

#[test]
fn neighbours_that_see_the_same_share_the_bytes() {
    let mut bench = Bench::new();
    let one = bench.join(11, Kind::External);
    for number in 12..60 {
        bench.join(number, Kind::External);
    }
    bench.parcels.clear();
    bench.announce(one, route(&[64611], 11), &prefixes(100));
    assert_eq!(bench.parcels.len(), 48);
    let first = bench.parcels[0].bytes.clone();
    assert!(bench.parcels.iter().all(|parcel| Arc::ptr_eq(&parcel.bytes, &first)));
    assert_eq!((bench.rib.groups(), bench.parcels[0].messages), (1, 1));
    bench.check();
}

#[test]
fn communities_keep_routes_where_they_belong() {
    for (community, outside, inside) in [
        (Community::NO_EXPORT, false, true),
        (Community::NO_EXPORT_SUBCONFED, false, true),
        (Community::NO_ADVERTISE, false, false),
        (Community(7), true, true),
    ] {
        let mut bench = Bench::new();
        let (from, out, inner) =
            (bench.join(11, Kind::External), bench.join(12, Kind::External), bench.join(13, Kind::Internal));
        let mut route = route(&[64611], 11);
        route.add_communities(&[community]);
        bench.announce(from, route, &net());
        assert_eq!((bench.has(out, NET).is_some(), bench.has(inner, NET).is_some()), (outside, inside), "{community}");
        assert!(bench.routes.contains_key(&prefix(NET)), "we use it ourselves");
    }
}

#[test]
fn what_has_no_meaning_outside_stays_inside() {
    let mut bench = Bench::new();
    let (inner, out) = (bench.join(11, Kind::Internal), bench.join(12, Kind::External));
    let mut attributes = Attributes { med: Some(5), local_pref: Some(300), ..route(&[64999], 50) };
    attributes.change_rare(|rare| {
        rare.originator = Some(Ipv4Addr::new(192, 0, 2, 77));
        rare.clusters = Box::from([Ipv4Addr::new(0, 0, 0, 9)]);
        rare.extended = Box::from([ExtendedCommunity(1), ExtendedCommunity(1 << 62)]);
        rare.link_local = Some("fe80::1".parse().unwrap());
    });
    bench.announce(inner, attributes, &net());
    let told = bench.has(out, NET).unwrap();
    assert_eq!((told.med, told.local_pref, told.next_hop), (None, None, address(1)));
    assert_eq!((told.rare().originator, told.rare().clusters.len()), (None, 0));
    assert_eq!(told.rare().extended.as_ref(), [ExtendedCommunity(1)]);
    bench.rib.originate(PeerId::LOCAL, prefix("10.244.2.0/24"), Attributes { med: Some(9), ..route(&[], 5) });
    bench.flush();
    let own = bench.has(out, "10.244.2.0/24").unwrap();
    assert_eq!((own.med, own.next_hop, own.as_path.to_string().as_str()), (Some(9), address(5), "65001"));
    let own = bench.has(inner, "10.244.2.0/24").unwrap();
    assert_eq!((own.local_pref, own.next_hop, own.as_path.is_empty()), (Some(100), address(5), true));
}

#[test]
fn routes_from_inside_go_on_inside_only_by_reflection() {
    let mut bench = Bench::new();
    let [client, other] = [11, 12].map(|number| bench.join(number, Kind::Client));
    let [plain, second] = [13, 14].map(|number| bench.join(number, Kind::Internal));
    bench.announce(client, route(&[], 11), &net());
    assert_eq!([client, other, plain, second].map(|peer| bench.has(peer, NET).is_some()), [false, true, true, true]);
    let rare = bench.has(other, NET).unwrap().rare().clone();
    assert_eq!((rare.originator, rare.clusters.as_ref()), (Some(Ipv4Addr::new(192, 0, 2, 11)), &[OWN.cluster][..]));
    assert_eq!(bench.has(other, NET).unwrap().next_hop, address(11), "the next hop stays");
    bench.announce(plain, route(&[], 13), &prefixes(1));
    let of = |peer| bench.told(peer).routes.contains_key(&prefixes(1)[0]);
    assert_eq!([client, other, plain, second].map(of), [true, true, false, false]);
    bench.check();
}

#[test]
fn loops_and_what_leads_to_ourselves_are_kept_and_not_used() {
    let mut own_originator = route(&[], 20);
    own_originator.change_rare(|rare| rare.originator = Some(OWN.identifier));
    let mut own_cluster = route(&[], 20);
    own_cluster.change_rare(|rare| rare.clusters = Box::from([Ipv4Addr::new(0, 0, 0, 1), OWN.cluster]));
    for (attributes, why) in [
        (route(&[64611, 65001], 20), "our number in the path"),
        (own_originator, "it began here"),
        (own_cluster, "it has passed here"),
        (route(&[], 1), "the next hop is ours"),
        (Attributes::local("0.0.0.0".parse().unwrap()), "no next hop"),
        (Attributes::local("224.0.0.1".parse().unwrap()), "a next hop of many"),
        (Attributes::local("255.255.255.255".parse().unwrap()), "a next hop of all"),
    ] {
        let mut bench = Bench::new();
        let (one, two) = (bench.join(11, Kind::Client), bench.join(12, Kind::Client));
        bench.announce(one, attributes, &net());
        assert_eq!((bench.has(two, NET), bench.routes.len()), (None, 0), "{why}");
        assert_eq!(bench.rib.table().count(one).v4, Count { received: 1, used: 0, stale: 0 });
    }
}

#[test]
fn a_path_has_to_begin_with_its_neighbour_where_that_is_asked_for() {
    let mut bench = Bench::new();
    let one = bench.join(11, Kind::External);
    let source = *bench.rib.table().source(one).unwrap();
    bench.rib.table.set_source(one, Source { first: Some(64611), ..source });
    bench.announce(one, route(&[64612, 64611], 11), &net());
    assert_eq!(bench.routes.len(), 0);
    bench.announce(one, route(&[64611, 64612], 11), &net());
    assert_eq!(bench.routes.len(), 1);
}

#[test]
fn a_route_whose_next_hop_is_lost_is_withdrawn_and_comes_back() {
    let mut bench = Bench::new();
    let [one, two, three] = [11, 12, 13].map(|number| bench.join(number, Kind::External));
    bench.announce(one, route(&[64611], 11), &net());
    bench.announce(two, route(&[64612, 1], 12), &net());
    bench.rib.set_unreachable(BTreeSet::from([address(11)]));
    bench.flush();
    assert_eq!(bench.has(three, NET).unwrap().as_path.to_string(), "65001 64612 1");
    assert_eq!(bench.routes[&prefix(NET)], [address(12)]);
    bench.check();
    bench.rib.set_unreachable(BTreeSet::from([address(11), address(12)]));
    bench.flush();
    assert_eq!((bench.has(three, NET), bench.routes.len()), (None, 0));
    bench.rib.set_unreachable(BTreeSet::from([address(12)]));
    bench.flush();
    assert_eq!(bench.routes[&prefix(NET)], [address(11)]);
    bench.check();
}

#[test]
fn traffic_is_shared_among_equals() {
    let mut bench = Bench::with(Bounds::default(), 2, PerFamily::default());
    let peers = [11, 12, 13].map(|number| bench.join(number, Kind::External));
    for (peer, number) in peers.into_iter().zip([11, 12, 13]) {
        bench.announce(peer, route(&[64600], number), &net());
    }
    assert_eq!(bench.routes[&prefix(NET)].len(), 2, "no more than are wanted");
    bench.withdraw(peers[1], &net());
    assert_eq!(bench.routes[&prefix(NET)], [address(11), address(13)]);
    bench.withdraw(peers[2], &net());
    assert_eq!(bench.routes[&prefix(NET)], [address(11)], "the best has stayed, and is alone now");
}

#[test]
fn a_route_is_as_old_as_it_is_without_a_change() {
    let now = Instant::now();
    let mut bench = Bench::new();
    bench.rib = Rib::new(bench.rib.rules.clone(), now);
    let one = bench.join(11, Kind::External);
    let age = |bench: &Bench| {
        let table = bench.rib.table();
        table.path(prefix(NET), one).map(|path| (table.age(path).as_secs(), path.is_stale()))
    };
    bench.rib.set_time(now + std::time::Duration::from_secs(10));
    bench.announce(one, route(&[64611], 11), &net());
    bench.rib.set_time(now + std::time::Duration::from_secs(30));
    bench.rib.leave(one, PerFamily { v4: true, v6: false });
    assert_eq!(age(&bench), Some((20, true)));
    bench.join(11, Kind::External);
    bench.announce(one, route(&[64611], 11), &net());
    assert_eq!(age(&bench), Some((20, false)), "it came again as it was");
    bench.announce(one, route(&[64611, 1], 11), &net());
    assert_eq!(age(&bench), Some((0, false)));
    assert_eq!(size_of::<Path>(), 24, "a table has many of them");
}

#[test]
fn the_last_resort_loses_to_every_other_route_and_is_marked_for_who_knows_the_mark() {
    for text in ["10.244.7.0/24", "fd00:10:244:7::/64"] {
        let mut bench = Bench::new();
        let net = prefix(text);
        let hop = |number: u8| match Family::from(net) {
            Family::V4 => address(number),
            Family::V6 => format!("2001:db8::{number}").parse().unwrap(),
        };
        let lost = bench.join(2, Kind::External);
        let other = bench.join(3, Kind::External);
        let knows = bench.join(4, Kind::External);
        let outside = bench.join_plain(5, Kind::External);
        let inside = bench.join_plain(6, Kind::Internal);
        let route =
            |number: u8, path: &[u32]| Attributes { as_path: AsPath::sequence(path), ..Attributes::local(hop(number)) };
        bench.announce(lost, route(2, &[65002]), &[net]);
        let mut barred = route(2, &[65002]);
        barred.add_communities(&[Community::NO_LLGR]);
        let never = if Family::from(net) == Family::V4 { "10.244.8.0/24" } else { "fd00:10:244:8::/64" };
        bench.announce(lost, barred, &[prefix(never)]);
        bench.announce(other, route(3, &[65003, 65003, 65003, 65004]), &[net]);
        assert_eq!(bench.routes[&net], [hop(2)]);
        bench.told.remove(&lost);
        bench.rib.leave(lost, PerFamily { v4: true, v6: true });
        bench.flush();
        assert_eq!(bench.routes[&net], [hop(2)], "stale routes are as good as any");
        bench.rib.keep_long(lost, PerFamily { v4: true, v6: true });
        bench.flush();
        assert_eq!(bench.routes[&net], [hop(3)], "long-lived ones are not");
        assert!(!bench.routes.contains_key(&prefix(never)), "NO_LLGR");
        bench.withdraw(other, &[net]);
        assert_eq!(bench.routes[&net], [hop(2)], "better than none");
        assert!(bench.has(knows, text).expect("it is told").has(Community::LLGR_STALE));
        assert_eq!(bench.has(outside, text), None);
        let told = bench.has(inside, text).expect("it is told");
        assert!(
            told.has(Community::LLGR_STALE) && told.has(Community::NO_EXPORT) && told.local_pref == Some(0),
            "RFC 9494 4.6"
        );
        bench.check();
        bench.rib.drop_stale(lost, PerFamily { v4: true, v6: true });
        bench.flush();
        assert!(bench.routes.is_empty());
        bench.check();
    }
}

#[test]
fn a_next_hop_on_a_link_is_used_there_and_told_to_nobody() {
    let mut bench = Bench::new();
    let on_link = LinkLocal::new("fe80::2".parse().unwrap(), 7).unwrap().combined();
    let (outside, inner, kept) =
        (bench.join(11, Kind::External), bench.join(12, Kind::Internal), bench.join(13, Kind::External));
    bench.rib.originate(PeerId::LOCAL, prefix(NET), Attributes { next_hop: on_link, ..route(&[], 5) });
    bench.flush();
    for peer in [outside, inner, kept] {
        assert_eq!(bench.has(peer, NET).map(|told| told.next_hop), Some(address(1)), "{peer:?}");
    }
    bench.rib.originate(PeerId::OPERATOR, prefix("203.0.113.0/24"), Attributes { next_hop: on_link, ..route(&[], 5) });
    bench.flush();
    let unplaced = vec!["fe80::2".parse::<IpAddr>().unwrap()];
    assert_eq!(bench.routes.get(&prefix("203.0.113.0/24")), Some(&unplaced), "a client of gobgp knows no links");
}
