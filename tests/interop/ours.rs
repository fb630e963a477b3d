//! A speaker of ours on a host: its driver with real sockets, what it has heard, and what it has to tell.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use sluice::bgp::driver::{self, Event, Handle, Setup};
use sluice::bgp::message::{Attributes, Community, ExtendedCommunity, LargeCommunity, Notification, Origin, Reason};
use sluice::bgp::policy::{Decision, Policy};
use sluice::bgp::rib::{Bounds, NextHops, Own, PeerId, Policies, RouteChange, Rules};
use sluice::bgp::session::{Local, Restart, Settings, State};
use sluice::bgp::speaker::{Fact, Neighbour, Order, Restarting, Speaker, WantedNeighbour};
use sluice::bgp::transport::{Password, TimeToLive, Transport};
use sluice::net::{Family, PerFamily};
use sluice::observe::health::Health;
use tokio::runtime::Runtime;
use tokio::sync::watch;

use crate::cell::{Cell, Dials, Hops, OURS, PREFERENCE, Reflects};
use crate::ground::{Host, eventually, look};
use crate::route::Route;

pub struct Ours {
    pub handle: Handle,
    heard: Arc<Mutex<Vec<Event>>>,
    runtime: Runtime,
    stop: watch::Sender<bool>,
    threads: Vec<JoinHandle<()>>,
}

/// Every family that a host has.
const BOTH: PerFamily<bool> = PerFamily { v4: true, v6: true };

impl Ours {
    /// A speaker that listens on all addresses of a host. `restarting`: an earlier one has left routes.
    pub fn start(host: &Host, asn: u32, restarting: bool) -> Ours {
        let addresses = Family::BOTH.map(|family| host.address(family));
        let ours = Ours::with(host, rules(asn, addresses[0], &addresses), restarting);
        let on = Family::BOTH.map(|family| SocketAddr::new(host.address(family), 179));
        ours.listen(&on);
        ours
    }

    /// One of many on a host, that dials only.
    pub fn spoke(host: &Host, address: IpAddr) -> Ours {
        Ours::with(host, rules(65001, address, &[address]), false)
    }

    fn with(host: &Host, rules: Rules, restarting: bool) -> Ours {
        let patience = Duration::from_secs(300);
        let restarting = restarting.then_some(Restarting { patience, deferral: 2 * patience });
        let pulse = Health::default().register("bgp", Duration::from_secs(60), Instant::now());
        let (stop, stopped) = watch::channel(false);
        let setup = Setup { rules, restarting, forwarding: true, pulse };
        let spawned = host.inside(|| driver::spawn(setup, stopped));
        let (handle, mut events, thread) = spawned.expect("a thread for the speaker");
        let heard = Arc::new(Mutex::new(Vec::new()));
        let hearing = heard.clone();
        let listener = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
            runtime.block_on(async {
                while let Some(batch) = events.next().await {
                    hearing.lock().expect("nobody has died with it").extend(batch);
                }
            });
        });
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        Ours { handle, heard, runtime, stop, threads: vec![thread, listener] }
    }

    pub fn listen(&self, on: &[SocketAddr]) {
        let on: BTreeSet<SocketAddr> = on.iter().copied().collect();
        self.runtime.block_on(self.handle.listen(on)).expect("the speaker lives");
        // It answers when it has done so.
        self.ask(|_| ());
    }

    pub fn order(&self, orders: Vec<Order>) {
        self.runtime.block_on(self.handle.order(orders)).expect("the speaker lives");
        // It answers when it has obeyed.
        self.ask(|_| ());
    }

    /// Gives orders, and waits until neighbours have been told what comes of them.
    pub fn order_and_write(&self, orders: Vec<Order>) {
        self.runtime.block_on(async {
            self.handle.order(orders).await.expect("the speaker lives");
            let written = self.handle.written().await.expect("the speaker lives");
            written.await.expect("the speaker answers");
        });
    }

    pub fn want(&self, wanted: WantedNeighbour) {
        self.order(vec![Order::Want(Arc::new(wanted))]);
    }

    pub fn ask<T: Send + 'static>(&self, question: impl FnOnce(&mut Speaker) -> T + Send + 'static) -> T {
        self.runtime.block_on(self.handle.ask(question)).expect("the speaker lives")
    }

    /// Asks about one neighbour.
    pub fn of<T: Send + 'static>(&self, address: IpAddr, question: impl FnOnce(&Neighbour) -> T + Send + 'static) -> T {
        self.ask(move |speaker| question(speaker.neighbour(address).expect("it is wanted")))
    }

    pub fn state(&self, address: IpAddr) -> State {
        self.of(address, |neighbour| neighbour.peer().state())
    }

    pub fn is_up(&self, address: IpAddr) {
        eventually("the session", &State::Established, || self.state(address));
    }

    /// Tells the routes that a cell asks for.
    pub fn announce(&self, cell: &Cell, host: &Host) {
        let mut orders = Vec::new();
        for family in Family::BOTH.into_iter().filter(|family| *cell.families.of(*family)) {
            let next_hop = cell.next_hop(host, family).parse().expect("an address");
            let plain = Attributes::local(next_hop);
            let mut rich = plain.clone();
            (rich.origin, rich.med) = (Origin::Incomplete, Some(50));
            rich.add_communities(&[Community(65001 << 16 | 100), Community(65001 << 16 | 200)]);
            rich.local_pref = cell.is_inside().then_some(PREFERENCE);
            rich.change_rare(|rare| {
                rare.extended = [ExtendedCommunity(0x0002_fde9_0000_012c)].into();
                rare.large = [LargeCommunity([65001, 1, 2])].into();
            });
            for (prefix, attributes) in OURS.of(family).iter().zip([plain, rich]) {
                let prefix: IpNet = prefix.parse().expect("a prefix");
                orders.push(Order::Originate(prefix, Box::new(attributes)));
            }
        }
        self.order(orders);
    }

    /// The best routes that have come from others, in lines.
    pub fn table(&self) -> BTreeSet<String> {
        let routes = self.ask(|speaker| {
            let table = speaker.rib().table();
            let all = Family::BOTH.into_iter().flat_map(|family| table.walk(family, None));
            let best = all.filter_map(|(prefix, _)| Some((prefix, table.best(prefix)?)));
            let foreign = best.filter(|(_, best)| best.source != PeerId::LOCAL);
            foreign.map(|(prefix, best)| route(prefix, &best.attributes)).collect::<Vec<_>>()
        });
        routes.iter().map(Route::to_string).collect()
    }

    pub fn heard(&self) -> MutexGuard<'_, Vec<Event>> {
        self.heard.lock().expect("nobody has died with it")
    }

    /// Waits until something has been heard.
    pub fn hears<T>(&self, what: &str, mut which: impl FnMut(&Event) -> Option<T>) -> T {
        look(|| self.heard().iter().find_map(&mut which)).unwrap_or_else(|| panic!("{what} was not heard"))
    }

    /// Waits for a fact about a neighbour.
    pub fn learns<T>(&self, what: &str, mut which: impl FnMut(&Fact) -> Option<T>) -> T {
        self.hears(what, |event| match event {
            Event::Fact(_, fact) => which(fact),
            _ => None,
        })
    }

    /// Next hops of the routes of others that the speaker has asked the kernel to hold, by prefix.
    pub fn programmed(&self) -> BTreeMap<IpNet, Vec<IpAddr>> {
        let mut programmed = BTreeMap::new();
        for change in changes(&self.heard()) {
            let local = change.best.as_ref().is_some_and(|best| best.source == PeerId::LOCAL);
            match &change.best {
                Some(_) if !local => drop(programmed.insert(change.prefix, change.next_hops.clone())),
                _ => drop(programmed.remove(&change.prefix)),
            }
        }
        programmed
    }

    /// How often a route was taken away without another one.
    pub fn withdrawals(&self) -> usize {
        changes(&self.heard()).filter(|change| change.best.is_none()).count()
    }

    /// Ends as a crash would: no word to anybody.
    pub fn kill(mut self) {
        self.end();
    }

    fn end(&mut self) {
        self.stop.send_replace(true);
        for thread in self.threads.drain(..) {
            thread.join().expect("a speaker does not die");
        }
    }
}

impl Drop for Ours {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.heard().iter().for_each(|event| eprintln!("--- our speaker: {event:?}"));
            self.stop.send_replace(true);
        } else {
            self.end();
        }
    }
}

fn changes(heard: &[Event]) -> impl Iterator<Item = &RouteChange> {
    heard.iter().filter_map(|event| if let Event::Routes(changes) = event { Some(changes) } else { None }).flatten()
}

fn rules(asn: u32, identifier: IpAddr, addresses: &[IpAddr]) -> Rules {
    let IpAddr::V4(identifier) = identifier else { unreachable!("it is IPv4") };
    let accept = || Arc::new(Policy::all(Decision::Accept));
    Rules {
        own: Own { asn, identifier, cluster: identifier },
        policies: Policies { import: accept(), export: accept() },
        addresses: addresses.iter().copied().collect(),
        sharing: 1,
        held: PerFamily::default(),
        bounds: Bounds::default(),
        seed: 1,
    }
}

/// A neighbour as a cell has it, seen from `host`.
pub fn wanted(cell: &Cell, host: &Host, peer: &Host) -> WantedNeighbour {
    let IpAddr::V4(identifier) = host.address(Family::V4) else { unreachable!("it is IPv4") };
    let (seconds, long_lived) = (cell.restart_time(), cell.long_lived.unwrap_or(0));
    let restart = Restart { seconds, stale: Duration::from_secs(600), long_lived, notifications: true };
    let time_to_live = match cell.hops {
        Hops::Plain if cell.is_inside() => TimeToLive::System,
        Hops::Plain => TimeToLive::Hops(1),
        Hops::Multihop(hops) => TimeToLive::Hops(hops),
        Hops::Secured(hops) => TimeToLive::Secured { hops },
    };
    let own = |family| (!cell.extended_next_hop || family == Family::V6).then(|| host.address(family));
    WantedNeighbour {
        address: peer.address(cell.over),
        settings: Settings {
            local: Local { asn: cell.asns[0], identifier },
            asn: Some(cell.asns[1]),
            is_external: false,
            passive: cell.dials == Dials::They,
            hold_time: 240,
            connect_retry: Duration::from_secs(2),
            mutual: false,
            families: cell.families,
            restart: cell.graceful.then_some(restart),
        },
        transport: Transport {
            local: Some(host.address(cell.over)),
            password: cell.passwords[0].map(|password| Password::new(password).expect("a password")),
            time_to_live,
            ..Transport::default()
        },
        client: cell.reflects == Reflects::We,
        own: PerFamily::from_fn(own),
        next_hops: NextHops::Usual,
        liveness: None,
        expected: true,
        first_as: true,
        most: PerFamily::from_fn(|_| cell.most[0]),
    }
}

/// Two speakers of ours inside of one system, with both families and without anything else.
pub fn plain(host: &Host, peer: &Host) -> WantedNeighbour {
    let cell = Cell { families: BOTH, ..Cell::inside(crate::cell::Daemon::Bird) };
    wanted(&cell, host, peer)
}

/// NOTIFICATION of a session that ended or did not come up; none for the loser of a connection collision.
pub fn received(fact: &Fact) -> Option<Notification> {
    use sluice::bgp::session::Cause;
    match fact {
        Fact::Down { cause: Cause::Received(notification), .. } | Fact::Failed(Cause::Received(notification)) => {
            let said = notification.wrapped().unwrap_or_else(|| notification.clone());
            (said.reason != Reason::COLLISION).then_some(said)
        }
        _ => None,
    }
}

fn route(prefix: IpNet, attributes: &Attributes) -> Route {
    let rare = attributes.rare();
    let extended = |one: &ExtendedCommunity| {
        assert_eq!(one.0 >> 48, 0x0002, "a route target of two octets");
        format!("rt:{}:{}", one.0 >> 32 & 0xffff, one.0 & 0xffff_ffff)
    };
    Route {
        prefix: prefix.to_string(),
        next_hop: attributes.next_hop.to_string(),
        path: attributes.as_path.numbers().map(|number| number.to_string()).collect::<Vec<_>>().join(" "),
        origin: attributes.origin.to_string(),
        med: attributes.med.map(u64::from),
        preference: attributes.local_pref.map(u64::from),
        communities: attributes.communities.iter().map(ToString::to_string).collect(),
        extended: rare.extended.iter().map(extended).collect(),
        large: rare.large.iter().map(ToString::to_string).collect(),
        originator: rare.originator.map(|originator: Ipv4Addr| originator.to_string()),
        clusters: rare.clusters.iter().map(ToString::to_string).collect(),
    }
}
