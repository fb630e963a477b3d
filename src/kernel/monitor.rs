//! Reports changes by others in the kernel, from netlink notifications.
//!
//! Coarse on purpose: a notification says where to look, and the subscribers read what is there. So nothing
//! queues: subscribers get counters, and only their difference counts. After an overrun of the socket
//! every counter grows, because anything may have happened.
//!
//! Not reported: changes of our own (see `own`), what the kernel puts on every device by itself, pods'
//! routes. Not observable: legacy iptables, ipset, IPVS and sysctls have no notifications, and the kernel
//! drops IPv4 routes silently with a device's last address and when it is set down; therefore a change of
//! a device or of its addresses counts as one of its routes.
//!
//! A thread of its own listens. It ends when nobody listens to it any more, within a second.
//!
//! Kernel: rtnetlink groups `LINK`, `IPV4_IFADDR`, `IPV4_ROUTE`, `IPV4_RULE`, `IPV6_IFADDR`, `IPV6_ROUTE`, `IPV6_RULE`
//! (include/uapi/linux/rtnetlink.h); `NFNLGRP_NFTABLES`, of which only the end of a change is looked at.

use std::collections::BTreeMap;
use std::thread;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::sync::watch;
use tracing::{debug, warn};

use super::address;
use super::bridge;
use super::link::{self, Device, LinkKind, LinkName};
use super::netlink::{Answer, Bus, Fault, Listener, Socket};
use super::nftables::listener::RuleListener;
use super::route::{self, Protocol, RouteNotification, TABLE_LOCAL, TABLE_MAIN};
use super::{Cause, Error, own, rule};
use crate::net::Prefixes;

/// Numbers of changes by others since the monitor was started. Only differences count.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Changes {
    /// One of the devices that are ours: itself, or its addresses.
    pub ours: u64,
    /// The routes of those devices in the table of local addresses: others made or deleted one, or some may have gone with their device or with an
    /// address. A device that has just come had none, and the kernel's own route to an address that is added is no change. Also all routes in
    /// [tables of such routes](Watched::tables).
    pub local_routes: u64,
    /// Another device of this host or its addresses: what [`address::host_addresses`] returns.
    pub host: u64,
    /// The rules of nf_tables, to which iptables belongs in that flavour.
    pub rules: u64,
    /// Routes that are watched, others' routes within watched prefixes, and devices that may carry them: all but those of pods (`veth`). A device that is set down or
    /// goes, or loses an address, takes routes along without a notification.
    pub routes: u64,
    /// Rules of routing that lead to [watched tables](Watched::led_to), whoever made them.
    pub routing_rules: u64,
    /// The ways to other hosts may have changed: routes of the main table that we do not watch and that do not lead to
    /// pods; devices, their carriers and addresses.
    pub ways: u64,
    /// Bridges and ports: a device came to or left another one that it is a port of, a watched bridge has told of a port without hairpin mode, or a bridge, or a device with such ports, came, went or has
    /// another name.
    pub ports: u64,
}

/// Notices that subsystems wait for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Notice {
    /// [`Changes::ours`].
    Ours,
    /// [`Changes::local_routes`].
    LocalRoutes,
    /// [`Changes::rules`].
    Rules,
    /// [`Changes::routes`].
    Routes,
    /// [`Changes::routing_rules`].
    RoutingRules,
    /// [`Changes::ways`].
    Ways,
    /// [`Changes::ports`].
    Ports,
}

impl Changes {
    /// Returns the number of changes by others that this notice is about.
    pub fn count(&self, notice: Notice) -> u64 {
        match notice {
            Notice::Ours => self.ours,
            Notice::LocalRoutes => self.local_routes,
            Notice::Rules => self.rules,
            Notice::Routes => self.routes,
            Notice::RoutingRules => self.routing_rules,
            Notice::Ways => self.ways,
            Notice::Ports => self.ports,
        }
    }
}

/// Objects to watch besides those that every host has.
#[derive(Clone, Default, Debug)]
pub struct Watched {
    /// Devices that are watched in detail.
    pub ours: Vec<LinkName>,
    pub routes: Vec<Protocol>,
    /// Tables for routes through devices of ours, besides that of local addresses. All routes in them are watched: who replaces one of ours is told of by
    /// the new one alone, which need not be ours.
    pub tables: Vec<u32>,
    /// Tables that rules of routing of ours lead to.
    pub led_to: Vec<u32>,
    /// Bridges whose ports are to have hairpin mode.
    pub bridges: Vec<LinkName>,
    /// Prefixes within which all routes of the main table are watched, whoever made them.
    pub prefixes: Option<watch::Receiver<Prefixes>>,
}

const ROUTING_GROUPS: [u32; 7] = [1, 5, 7, 8, 9, 11, 19];
const DELETE_LINK: u16 = 17;
const NEW_ROUTE: u16 = 24;
const DELETE_ROUTE: u16 = 25;
/// `NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_NEWGEN`: a change of the rules is complete.
const NEW_GENERATION: u16 = 10 << 8 | 15;

/// Interval at which the thread checks whether anybody still listens.
const LOOK_UP: Timespec = Timespec { tv_sec: 4, tv_nsec: 0 };
/// Pause after an unexplained failure of a socket.
const PAUSE: Duration = Duration::from_secs(1);

/// Starts a thread that listens in the network namespace of the calling thread.
///
/// # Errors
/// The kernel refuses a socket or a listing of devices, or the system a thread.
pub fn start(watched: Watched) -> Result<watch::Receiver<Changes>, Error> {
    let monitor = Monitor::open(watched)?;
    let (told, receiver) = watch::channel(Changes::default());
    thread::Builder::new().name("monitor".into()).spawn(move || monitor.run(&told)).map_err(|error| {
        let errno = rustix::io::Errno::from_io_error(&error).unwrap_or(rustix::io::Errno::AGAIN);
        Error::new("start the monitor", "", Cause::Errno(errno, None))
    })?;
    Ok(receiver)
}

/// State of the thread.
pub struct Monitor {
    routing: Listener,
    rules: RuleListener,
    socket: Socket,
    view: View,
    changes: Changes,
    /// Ports of ours whose routes are not heard of.
    hidden: Vec<u32>,
}

impl Monitor {
    /// Listens from now on in the network namespace of the calling thread.
    ///
    /// # Errors
    /// The kernel refuses a socket or a listing of devices.
    pub fn open(watched: Watched) -> Result<Monitor, Error> {
        let mut monitor = Monitor {
            routing: Listener::open(Bus::Route, &ROUTING_GROUPS)?,
            rules: RuleListener::open()?,
            socket: Socket::open(Bus::Route)?,
            view: View::new(watched),
            changes: Changes::default(),
            hidden: Vec::new(),
        };
        monitor.look_around()?;
        Ok(monitor)
    }

    /// Processes the pending notifications without waiting; returns the counters.
    pub fn hear(&mut self) -> Changes {
        let mut changes = self.changes;
        self.hear_routing(&mut changes);
        self.hear_rules(&mut changes);
        self.changes = changes;
        changes
    }

    fn run(mut self, told: &watch::Sender<Changes>) {
        while !told.is_closed() {
            self.hide_own_routes();
            let rules = &self.rules;
            let missed = PollFd::from_borrowed_fd(rules.missed(), PollFlags::IN);
            let (routing, rules) = (PollFd::new(&self.routing, PollFlags::IN), PollFd::new(rules, PollFlags::IN));
            let mut sockets = [routing, rules, missed];
            // An interrupted or failed wait is followed by a look at the sockets, as any other.
            let _ = poll(&mut sockets, Some(&LOOK_UP));
            let changes = self.hear();
            told.send_if_modified(|told| std::mem::replace(told, changes) != changes);
        }
    }

    /// Has the kernel keep to itself what it would tell of routes that we make and delete: thousands at once, each of which would wake this
    /// thread. Sockets that open or close are taken notice of with the next notification, or after a while.
    fn hide_own_routes(&mut self) {
        let ports = own::ports(Bus::Route, self.routing.namespace_cookie());
        if ports == self.hidden {
            return;
        }
        // Without it they are heard, and known by their ports; a former filter that is left in place is replaced with the next notification.
        match self.routing.ignore(&[NEW_ROUTE, DELETE_ROUTE], &ports) {
            Ok(()) => self.hidden = ports,
            Err(errno) => debug!(%errno, "The kernel takes no filter of notifications"),
        }
    }

    fn hear_routing(&mut self, changes: &mut Changes) {
        let view = &mut self.view;
        let heard = self.routing.receive(|answer| match own::is_own(Bus::Route, answer.port) {
            true => view.learn(answer),
            false => view.note(answer, changes),
        });
        let Err(fault) = heard else { return };
        self.note_fault("rtnetlink", fault);
        changes.ours += 1;
        changes.local_routes += 1;
        changes.host += 1;
        changes.routes += 1;
        changes.routing_rules += 1;
        changes.ways += 1;
        changes.ports += 1;
        if let Err(error) = self.look_around() {
            warn!(%error, "Listing links failed");
        }
    }

    fn hear_rules(&mut self, changes: &mut Changes) {
        let heard = self.rules.receive(|answer| {
            if answer.kind == NEW_GENERATION && !own::is_own(Bus::Netfilter, answer.port) {
                changes.rules += 1;
            }
        });
        if let Err(fault) = heard {
            self.note_fault("nf_tables", fault);
            changes.rules += 1;
        }
    }

    fn note_fault(&self, bus: &'static str, fault: Fault) {
        if fault == Fault::Lost {
            debug!(bus, "Netlink notifications lost; auditing everything");
            return;
        }
        warn!(bus, cause = ?fault, "Receiving netlink notifications failed; auditing everything");
        thread::sleep(PAUSE);
    }

    /// Lists the devices.
    fn look_around(&mut self) -> Result<(), Error> {
        self.view.devices = link::devices(&mut self.socket)?.into_iter().map(|device| (device.index, device)).collect();
        Ok(())
    }
}

/// Last seen state of the devices, to tell changes from repetitions.
struct View {
    watched: Watched,
    devices: BTreeMap<u32, Device>,
}

impl View {
    fn new(watched: Watched) -> View {
        View { watched, devices: BTreeMap::new() }
    }

    /// Takes over how we have left a device of ours: what somebody else does to it is compared with that. The kernel says of some of our changes that
    /// they are ours, and of others not (those of a device that comes, since Linux 6.2).
    fn learn(&mut self, answer: &Answer<'_>) {
        let Some(device) = link::device(answer).filter(|device| self.watched.ours.contains(&device.name)) else {
            return;
        };
        match answer.kind == DELETE_LINK {
            true => drop(self.devices.remove(&device.index)),
            false => drop(self.devices.insert(device.index, device)),
        }
    }

    fn note(&mut self, answer: &Answer<'_>, changes: &mut Changes) {
        if let Some(device) = link::device(answer) {
            return self.note_device(device, answer.kind == DELETE_LINK, changes);
        }
        if let Some(master) = bridge::tells_of_port_without_hairpin(answer) {
            // Ports of other bridges never have it, and tell of each change of their link.
            let is_watched =
                self.devices.get(&master).is_some_and(|bridge| self.watched.bridges.contains(&bridge.name));
            changes.ports += u64::from(is_watched);
            return;
        }
        if let Some(address::Listed { device: index, address, .. }) = address::address(answer) {
            // The kernel by itself takes it away with its device alone, of which it tells as well.
            if address == address::STAND_IN && answer.port == 0 {
                return;
            }
            if self.is_ours(index) {
                let is_told = u64::from(!address::is_link_local(address.addr()));
                changes.ours += is_told;
                changes.local_routes += is_told;
            } else {
                let carries = u64::from(self.devices.get(&index).is_none_or(carries_routes));
                changes.host += 1;
                changes.routes += carries;
                changes.ways += carries;
            }
            return;
        }
        if let Some(table) = rule::told_table(answer) {
            changes.routing_rules += u64::from(self.watched.led_to.contains(&table));
            return;
        }
        let Some(RouteNotification { of, destination, to_host, devices }) = route::told(answer) else { return };
        let is_local = of.table == TABLE_LOCAL && devices.iter().any(|device| self.is_ours(*device));
        // No program asked for it: it comes with an address, of which the kernel tells as well.
        let comes_with_address = answer.kind == NEW_ROUTE && answer.port == 0;
        let is_changed = is_local && !comes_with_address || self.watched.tables.contains(&of.table);
        changes.local_routes += u64::from(is_changed);
        let is_ours = self.watched.routes.contains(&of);
        let is_within = |prefixes: &watch::Receiver<Prefixes>| prefixes.borrow().around(destination).is_some();
        // `ip route replace` over a route of ours notifies only of the new one, which is not ours.
        let is_watched = is_ours || of.table == TABLE_MAIN && self.watched.prefixes.as_ref().is_some_and(is_within);
        // Some plugins give each pod a route of its own.
        let is_pod = |device: &u32| to_host && self.devices.get(device).is_some_and(|one| !carries_routes(one));
        let leads_nowhere = |device: &u32| self.is_ours(*device) || is_pod(device);
        let elsewhere = of.table == TABLE_MAIN && !is_watched && !devices.iter().any(leads_nowhere);
        changes.routes += u64::from(is_watched);
        changes.ways += u64::from(elsewhere);
    }

    /// The kernel also notifies when only a device's counters changed. A change of carrier concerns the ways alone.
    fn note_device(&mut self, device: Device, gone: bool, changes: &mut Changes) {
        let index = device.index;
        let is_ours = self.watched.ours.contains(&device.name) || self.is_ours(index);
        let carries_routes = carries_routes(&device);
        let (carrier, master) = (!gone && device.carrier, device.master);
        let before = if gone { self.devices.remove(&index) } else { self.devices.insert(index, device) };
        let port = |device: &Device| {
            let is_bridge = matches!(&device.kind, LinkKind::Other(kind) if kind == BRIDGE);
            (is_bridge || device.master.is_some()).then(|| (device.name.clone(), device.master))
        };
        let (port_before, port_now) = (before.as_ref().and_then(port), self.devices.get(&index).and_then(port));
        changes.ports += u64::from(port_before != port_now);
        let other_carrier = before.as_ref().is_none_or(|before| before.carrier != carrier);
        changes.ways += u64::from(other_carrier && !is_ours && master.is_none());
        let same = |device: &Device| before.as_ref().is_some_and(|before| is_same(before, device));
        if self.devices.get(&index).map_or(before.is_none(), same) {
            return;
        }
        if is_ours {
            changes.ours += 1;
            changes.local_routes += u64::from(may_lack_routes(before.as_ref(), self.devices.get(&index)));
        } else {
            changes.host += 1;
            changes.routes += u64::from(carries_routes);
        }
    }

    fn is_ours(&self, index: u32) -> bool {
        self.devices.get(&index).is_some_and(|device| self.watched.ours.contains(&device.name))
    }
}

/// The kind of a bridge, as the kernel names it.
const BRIDGE: &str = "bridge";

/// Returns whether all but the carrier, and the device that it is a port of, is equal.
fn is_same(one: &Device, other: &Device) -> bool {
    *one == Device { carrier: one.carrier, master: one.master, ..other.clone() }
}

/// Returns whether a device that was so may have fewer routes as it is now, or others. `before`: `None` where it has just come.
fn may_lack_routes(before: Option<&Device>, now: Option<&Device>) -> bool {
    match (before, now) {
        (_, None) => true,
        (None, Some(_)) => false,
        (Some(before), Some(now)) => before.name != now.name || before.up && !now.up,
    }
}

/// Devices of pods come and go all the time, and no route that is watched leads through them.
fn carries_routes(device: &Device) -> bool {
    !matches!(&device.kind, LinkKind::Other(kind) if kind == "veth")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn no_notification_makes_the_view_panic(
            kind in proptest::sample::select(vec![16_u16, 17, 20, 21, 24, 25, 32, 33, NEW_GENERATION]),
            payload in proptest::collection::vec(any::<u8>(), 0..200),
        ) {
            let mut changes = Changes::default();
            let ours = vec![LinkName("ours".into())];
            let mut view = View::new(Watched { ours, tables: vec![78], led_to: vec![0, 78], ..Watched::default() });
            view.note(&Answer { kind, flags: 0, sequence: 0, port: 0, payload: &payload }, &mut changes);
            prop_assert!(changes.ours + changes.host + changes.routing_rules <= 1 && changes.local_routes <= 1);
        }
    }

    #[test]
    fn who_comes_to_a_bridge_or_leaves_it_is_told_and_who_has_none_is_not() {
        let mut view = View::new(Watched::default());
        let device = |index, name: &str, kind: &str, master| Device {
            index,
            name: LinkName(name.into()),
            kind: LinkKind::Other(kind.into()),
            up: true,
            carrier: true,
            master,
            mtu: 1500,
        };
        let mut told = |device, gone| {
            let mut changes = Changes::default();
            view.note_device(device, gone, &mut changes);
            changes.ports
        };
        assert_eq!(told(device(2, "veth1", "veth", None), false), 0);
        assert_eq!(told(device(1, "kube-bridge", "bridge", None), false), 1, "a bridge");
        assert_eq!(told(device(2, "veth1", "veth", Some(1)), false), 1, "on it");
        assert_eq!(told(device(2, "veth1", "veth", Some(1)), false), 0, "as before");
        assert_eq!(told(device(2, "veth2", "veth", Some(1)), false), 1, "another name");
        assert_eq!(told(device(2, "veth2", "veth", Some(3)), false), 1, "on another one");
        assert_eq!(told(device(2, "veth2", "veth", None), false), 1, "off it");
        assert_eq!(told(device(2, "veth2", "veth", None), true), 0);
        assert_eq!(told(device(1, "kube-bridge", "bridge", None), true), 1, "it goes");
    }

    #[test]
    fn a_repeated_description_of_a_device_is_no_change() {
        let device = |up| Device {
            index: 7,
            name: LinkName("ours".into()),
            kind: link::LinkKind::Dummy,
            up,
            carrier: up,
            master: None,
            mtu: 1500,
        };
        let mut changes = Changes::default();
        let mut view = View::new(Watched { ours: vec![LinkName("ours".into())], ..Watched::default() });
        for (device, gone, ours, local_routes) in [
            (device(true), false, 1, 0),
            (device(true), false, 1, 0),
            (device(false), false, 2, 1),
            (device(true), false, 3, 1),
            (device(true), true, 4, 2),
        ] {
            view.note_device(device, gone, &mut changes);
            assert_eq!(changes, Changes { ours, local_routes, ..Changes::default() });
        }
    }
}
