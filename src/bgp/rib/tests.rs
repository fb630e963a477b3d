//! Advertisement, seen from the neighbours: every parcel is parsed, and builds the Adj-RIB-In of the neighbour.

mod advertising;
mod ahead;
mod changes;
mod inspection;
mod told;
mod told_again;
mod using;

use super::super::message::{
    self, AsPath, Community, Dialect, ExtendedCommunity, Framing, Message, Refresh, RefreshKind,
};
use super::super::policy::{Change, Condition, Decision, Lengths, Matching, NeighbourSet, PrefixSet, Statement};
use super::*;
use crate::net::LinkLocal;
use std::net::Ipv4Addr;

const OWN: Own = Own { asn: 65001, identifier: Ipv4Addr::new(192, 0, 2, 1), cluster: Ipv4Addr::new(192, 0, 2, 1) };

/// Returns what gives numbers below a bound by chance, the same ones for the same seed.
fn chance(seed: u64) -> impl FnMut(usize) -> usize {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    move |end| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) as usize % end
    }
}

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
        self.join_with(number, kind, usual(kind), |joining| joining.view.knows_long_lived = false)
    }

    fn join_speaking(&mut self, number: u8, kind: Kind, dialect: Dialect) -> PeerId {
        self.join_with(number, kind, dialect, |_| ())
    }

    fn join_with(&mut self, number: u8, kind: Kind, dialect: Dialect, change: impl FnOnce(&mut Joining)) -> PeerId {
        let peer = PeerId(u32::from(number));
        let identifier = Ipv4Addr::new(192, 0, 2, number);
        let own = PerFamily { v4: Some(address(1)), v6: Some("2001:db8:2::1".parse().unwrap()) };
        let view = View {
            kind,
            dialect,
            own,
            next_hops: NextHops::Usual,
            knows_long_lived: true,
            statements: Applicable::default(),
        };
        let mut joining =
            Joining { peer, source: Source { kind, identifier, address: address(number), first: None }, view };
        change(&mut joining);
        self.rib.join(joining);
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
            // A prefix may change twice: what it has then is what it had before the second change.
            let mut now = BTreeMap::new();
            for Changed { prefix, had, has } in &flushed.routes {
                let before = now.insert(*prefix, *has).unwrap_or_else(|| self.routes.contains_key(prefix));
                assert_eq!(*had, before, "{prefix} had a route");
            }
            for (prefix, has) in now {
                assert_eq!(has, self.rib.route(prefix).best.is_some(), "{prefix} has a route");
            }
            for change in flushed.routes.into_iter().map(|changed| self.rib.route(changed.prefix)) {
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
