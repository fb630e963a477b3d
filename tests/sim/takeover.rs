//! Taking over from kube-router, and going back to it: what it left is adopted, and no connection ends.

use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use sluice::kernel::address::AddressKey;
use sluice::kernel::ipset::{ElementKey, Entry, SetName};
use sluice::kernel::iptables::{Piece, Rules, Table};
use sluice::kernel::ipvs::{Destination, Service, ServiceKey, Virtual};
use sluice::kernel::link::LinkName;
use sluice::kernel::nftables::Object;
use sluice::kernel::route::{NextHop, Route, RouteKey, RouteKind, TABLE_LOCAL};
use sluice::kernel::rule::{Packets, PolicyRule};
use sluice::model::Authority;
use sluice::net::service_mark::service_mark;
use sluice::net::{Family, Protocol};
use sluice::proxy::names::{CHAIN_GUARD, CHAIN_SNAT, DEVICE, DSR_TABLE, EMPTY_TABLE, NFT_GUARD, Set};
use sluice::proxy::plan::local_route_key;
use sluice::subsystem::Kinds;

use crate::agent::{Agent, known};
use crate::support::memory::{Links, Rows, State};
use crate::support::{flags, generate};
use crate::walk::Walk;

impl Walk {
    /// kube-router ran here a moment ago, for the same cluster.
    pub fn takes_over_from_kube_router(&mut self, backend: &str) {
        (self.config, self.families) = flags::proxy(&["--strict-external-ip-validation=false", "--enable-ipv6=true"]);
        self.agent = Agent::start(&self.kernel, &self.config, self.families);
        self.world.authority.proxy = Authority::Complete;
        for _ in 0..60 {
            generate::change(&mut self.world, &mut self.random);
        }
        self.start_from(self.world.clone());
        self.settle();
        self.kernel.with(|machine| as_kube_router_leaves_it(&mut machine.state));

        (self.config, self.families) =
            flags::proxy(&["--strict-external-ip-validation=false", "--enable-ipv6=true", backend]);
        self.agent = Agent::start(&self.kernel, &self.config, self.families);
        self.start_from(self.world.clone());
        self.round();
        self.clock.pass(Duration::from_secs(1));
        self.settle();
    }
}

impl Walk {
    /// A run with the other backend ran here for the same cluster, and before it ended a Service was deleted.
    pub fn changes_the_backend(&mut self, [before, after]: [&str; 2]) {
        let configuration =
            |backend| flags::proxy(&["--strict-external-ip-validation=false", "--enable-ipv6=true", backend]);
        (self.config, self.families) = configuration(before);
        self.agent = Agent::start(&self.kernel, &self.config, self.families);
        self.world.authority.proxy = Authority::Complete;
        while self.agent.plan.owners().is_empty() {
            for _ in 0..60 {
                generate::change(&mut self.world, &mut self.random);
            }
            self.start_from(self.world.clone());
            self.settle();
        }
        let virtuals = self.kernel.state().virtuals.len();
        let deleted = self.agent.plan.owners().iter().next().map(|(_, owner)| owner.name.clone());
        self.world.cluster.services.remove(&deleted.expect("somebody has a service"));

        (self.config, self.families) = configuration(after);
        self.agent = Agent::start(&self.kernel, &self.config, self.families);
        // At first the cluster cannot be reached: a guard that lacks ports would refuse what the other one lets in.
        let guards = |state: &State| {
            let chain = Object::Chain(NFT_GUARD.into());
            let is_guard = |piece: &&Piece| matches!(piece, Piece::Chain { chain, .. } if chain == CHAIN_GUARD);
            (state.proxy_table.contains_key(&chain), state.rules.keys().any(|piece| is_guard(&piece)))
        };
        let others = guards(&self.kernel.state());
        self.start_from(known(Authority::Remembered, &self.world));
        self.settle();
        self.start_from(known(Authority::Partial, &self.world));
        self.settle();
        assert_eq!(guards(&self.kernel.state()), others, "the other backend's guard is the only one");
        assert_eq!(self.kernel.state().virtuals.len(), virtuals, "nothing goes before everything is known");
        let is_left = |state: &State, foreign: &State| {
            let has_iptables =
                state.rules != foreign.rules || state.elements != foreign.elements || state.sets != foreign.sets;
            (!state.proxy_table.is_empty(), has_iptables)
        };
        let foreign = self.kernel.with(|machine| machine.foreign.clone());
        // At first the kernel refuses to delete what nothing but the other backend's marks tells to be ours.
        let all = self.kernel.state().virtuals.keys().copied().collect();
        self.kernel.with(|machine| machine.undeletable = all);
        self.start_from(known(Authority::Complete, &self.world));
        for _ in 0..5 {
            self.round();
            self.clock.pass(Duration::from_secs(1));
        }
        assert_eq!(is_left(&self.kernel.state(), &foreign), (true, true), "the other backend's marks are there");
        self.kernel.with(|machine| machine.undeletable.clear());
        self.settle();
        let state = self.kernel.state();
        assert!(state.virtuals.len() < virtuals, "what the other backend marked as ours was not found");
        let uses_table = after.contains("nftables");
        assert_eq!(is_left(&state, &foreign), (uses_table, !uses_table), "one of the two is there");
    }
}

impl Walk {
    /// A run with the other backend came to know of more Services, but not of everything, so the guard of the first backend
    /// still stands when the next run has that one again.
    pub fn returns_to_a_backend_whose_guard_stands(&mut self, [first, second]: [&str; 2]) {
        let configuration =
            |backend| flags::proxy(&["--strict-external-ip-validation=false", "--enable-ipv6=true", backend]);
        self.world.authority.proxy = Authority::Complete;
        let mut served = 0;
        for (backend, authority) in [(first, Authority::Complete), (second, Authority::Partial)] {
            (self.config, self.families) = configuration(backend);
            self.agent = Agent::start(&self.kernel, &self.config, self.families);
            while self.kernel.state().virtuals.len() < served + 20 {
                for _ in 0..60 {
                    generate::change(&mut self.world, &mut self.random);
                }
                self.start_from(known(authority, &self.world));
                self.settle();
            }
            served = self.kernel.state().virtuals.len();
        }
        (self.config, self.families) = configuration(first);
        self.agent = Agent::start(&self.kernel, &self.config, self.families);
        self.start_from(known(Authority::Complete, &self.world));
        self.settle();
    }
}

impl Walk {
    /// At the start it cannot be read what the other backend marks as ours, for a while.
    pub fn does_not_know_what_the_other_backend_marks(&mut self) {
        self.world.authority.proxy = Authority::Complete;
        for _ in 0..60 {
            generate::change(&mut self.world, &mut self.random);
        }
        self.kernel.with(|machine| machine.marks_fail = true);
        self.start_from(self.world.clone());
        for _ in 0..5 {
            self.round();
            let mirrors = &self.agent.mirrors;
            let troubled = mirrors.reflections().iter().any(|kind| kind.trouble().is_some());
            assert!(troubled && !mirrors.is_settled(), "it is ready although it has not begun");
            let next = mirrors.retry_at();
            assert!(next.is_some_and(|next| next > self.clock.now), "it has to be tried again, and not at once");
            self.clock.pass_until(next);
        }
        self.kernel.with(|machine| machine.marks_fail = false);
        self.settle();
    }
}

impl Walk {
    /// The last known state was written before Services were deleted, and the program starts while the cluster cannot
    /// be reached: what was deleted does not come back. In an empty kernel everything that is remembered does.
    pub fn remembers_more_than_the_kernel_holds(&mut self) {
        self.world.authority.proxy = Authority::Complete;
        let mut remembered = self.world.clone();
        while self.agent.desired().virtuals.len() < 3 {
            generate::change(&mut self.world, &mut self.random);
            self.start_from(self.world.clone());
            self.settle();
            if self.agent.desired().virtuals.len() == 2 {
                remembered = self.world.clone();
            }
        }
        let newest = std::mem::replace(&mut remembered, self.world.clone());
        remembered.authority.proxy = Authority::Remembered;
        self.world = newest;
        self.start_from(known(Authority::Complete, &self.world));
        self.settle();

        let held = self.kernel.state().virtuals;
        let is_empty = self.agent.desired().virtuals.is_empty();
        self.agent = Agent::start(&self.kernel, &self.config, self.families);
        self.start_from(remembered.clone());
        self.settle();
        if !is_empty {
            let found = self.kernel.state().virtuals;
            assert_eq!(
                found.keys().collect::<Vec<_>>(),
                held.keys().collect::<Vec<_>>(),
                "a deleted Service came back"
            );
            // One that serves nobody may get what the memory has.
            let is_kept =
                |(key, had): (&ServiceKey, &Virtual)| had.destinations.is_empty() || found.get(key) == Some(had);
            assert!(held.iter().all(is_kept), "{held:?} became {found:?}");
        }

        let mut booted = Walk::new(1);
        booted.config = self.config.clone();
        booted.families = self.families;
        booted.agent = Agent::start(&booted.kernel, &booted.config, booted.families);
        booted.start_from(remembered);
        booted.settle();
        let virtuals = booted.kernel.state().virtuals;
        let wanted = &booted.agent.desired().virtuals;
        assert!(wanted.len() > 2 && wanted.keys().all(|key| virtuals.contains_key(key)), "something is forgotten");
    }
}

impl Walk {
    /// The program starts while the cluster cannot be reached, over a kernel that has lost parts of what it held: the device was
    /// deleted, elements were, and an earlier run was killed between the element and the virtual service of one. One
    /// Service was deleted in full after the last known state was written.
    pub fn puts_back_what_a_service_in_the_kernel_needs(&mut self) {
        self.world.authority.proxy = Authority::Complete;
        let addresses = |agent: &Agent| -> Vec<IpAddr> {
            let local = agent.desired().routes.keys().map(|key| key.destination.addr());
            local.filter(|address| agent.desired().virtuals_on(*address).next().is_some()).collect()
        };
        while addresses(&self.agent).len() < 3 {
            generate::change(&mut self.world, &mut self.random);
            self.start_from(self.world.clone());
        }
        self.settle();
        let [deleted, half, ..] = *addresses(&self.agent) else { unreachable!("there are three") };
        let desired = self.agent.desired().clone();
        let is_on = |entry: &Entry, address: IpAddr| matches!(*entry, Entry::Ip(its) | Entry::IpPort(its, ..) if its == address);
        let address_of = |key: &ServiceKey| match desired.port_of(key) {
            Some(ServiceKey::Address { address, .. }) => Some(address),
            _ => None,
        };
        let marking = [Set::ServicePorts, Set::TunnelPorts];
        let ports: Vec<SetName> = Family::BOTH.iter().flat_map(|family| marking.map(|set| set.name(*family))).collect();
        let foreign = self.kernel.with(|machine| {
            let state = &mut machine.state;
            state.virtuals.retain(|key, _| {
                !desired.virtuals.contains_key(key) || ![Some(deleted), Some(half)].contains(&address_of(key))
            });
            state.elements.retain(|key, ()| {
                !desired.elements.contains_key(key)
                    || (!is_on(&key.entry, deleted) && ports.contains(&key.set) && is_on(&key.entry, half))
            });
            state.proxy_table.retain(|object, _| {
                let Some((set, entry)) = Set::of_object(object) else { return true };
                !is_on(&entry, deleted) && (marking.contains(&set) || !is_on(&entry, half))
            });
            let device = LinkName(DEVICE.into());
            state.links.remove(&device);
            Links::follow(state, &device, None);
            machine.foreign.clone()
        });
        self.damaged();

        self.agent = Agent::start(&self.kernel, &self.config, self.families);
        self.start_from(known(Authority::Remembered, &self.world));
        self.settle();
        let state = self.kernel.state();
        let remain = |key: &ServiceKey| address_of(key) != Some(deleted);
        let virtuals: Vec<_> = desired.virtuals.iter().filter(|(key, _)| remain(key)).collect();
        assert!(!virtuals.is_empty(), "there is a service at another address");
        // An endpoint that was on its way out when its virtual service was lost does not come back.
        let serving = |it: &Virtual| -> (Service, Vec<Destination>) {
            (it.service.clone(), it.destinations.iter().filter(|to| to.weight > 0).collect())
        };
        for (key, it) in virtuals {
            assert_eq!(state.virtuals.get(key).map(serving), Some(serving(it)), "{key} is needed");
        }
        let is_deleted = |key: &&ElementKey| is_on(&key.entry, deleted);
        for key in desired.elements.keys().filter(|key| !is_deleted(key)) {
            assert!(state.elements.contains_key(key), "{key} is needed, and does not come back");
        }
        for key in desired.routes.keys().filter(|key| key.destination.addr() != deleted) {
            assert!(state.routes.contains_key(key), "route {key} is needed, and does not come back");
        }
        assert!(
            !state.virtuals.keys().any(|key| !foreign.virtuals.contains_key(key) && !remain(key)),
            "it was deleted"
        );
        assert!(!state.elements.keys().any(|key| is_deleted(&key)), "the elements of a deleted service come back");
        assert!(!state.routes.contains_key(&local_route_key(deleted)), "the address of a deleted service comes back");
    }
}

impl Walk {
    /// An earlier run was killed between a virtual service and its destinations, or somebody deleted all of them, and
    /// the cluster cannot be reached: perhaps because the API server is behind that virtual service.
    pub fn fills_a_virtual_service_without_destinations(&mut self) {
        self.world.authority.proxy = Authority::Complete;
        let served = |agent: &Agent| -> Vec<(ServiceKey, Virtual)> {
            let is_served = |it: &Virtual| it.destinations.len() > 1 && it.destinations.iter().all(|d| d.weight > 0);
            let desired = agent.desired().virtuals.iter().filter(|(_, it)| is_served(it));
            desired.map(|(key, it)| (*key, it.clone())).collect()
        };
        while served(&self.agent).len() < 3 {
            generate::change(&mut self.world, &mut self.random);
            self.start_from(self.world.clone());
        }
        self.settle();
        let [empty, other, partial, ..] = &*served(&self.agent) else { unreachable!("there are three") };
        let rescheduled = Service { scheduler: "sed".into(), ..other.1.service.clone() };
        let partly: Vec<Destination> = partial.1.destinations.iter().skip(1).collect();
        self.kernel.with(|machine| {
            let mut hold = |key: &ServiceKey, service: &Service, destinations: &[Destination]| {
                let held = Virtual { service: service.clone(), destinations: destinations.iter().copied().collect() };
                machine.state.virtuals.insert(*key, held);
            };
            hold(&empty.0, &empty.1.service, &[]);
            hold(&other.0, &rescheduled, &[]);
            hold(&partial.0, &partial.1.service, &partly);
        });
        self.damaged();

        self.agent = Agent::start(&self.kernel, &self.config, self.families);
        self.start_from(known(Authority::Remembered, &self.world));
        self.settle();
        let state = self.kernel.state();
        let held = |(key, _): &(ServiceKey, Virtual)| state.virtuals.get(key).expect("it exists");
        assert_eq!(held(empty).destinations, empty.1.destinations, "nobody is served");
        assert_eq!(held(other).destinations, other.1.destinations, "nobody is served");
        assert_eq!(held(other).service, rescheduled, "the kernel's state is newer than the file");
        assert_eq!(held(partial).destinations.to_vec(), partly, "the kernel's state is newer than the file");
    }
}

/// The differences between what we keep and what kube-router does: an address for every service address on the device,
/// none to keep the device, and masquerading straight in POSTROUTING.
fn as_kube_router_leaves_it(state: &mut State) {
    let device = LinkName(DEVICE.into());
    state.addresses.retain(|key, ()| key.link != device);
    state.routes.retain(|_, route| {
        let is_the_devices = route.next_hops.iter().any(|hop| hop.link == device);
        !(is_the_devices && route.source.is_some_and(|source| source.to_string() == "192.0.0.8"))
    });
    let local = state
        .routes
        .iter()
        .filter(|(key, route)| key.table == TABLE_LOCAL && route.next_hops.iter().any(|hop| hop.link == device));
    let addresses: Vec<AddressKey> =
        local.map(|(key, _)| AddressKey { link: device.clone(), address: key.destination }).collect();
    state.addresses.extend(addresses.into_iter().map(|key| (key, ())));
    leave_direct_server_return(state);
    state.rules.retain(|piece, _| !piece.to_string().contains(CHAIN_SNAT));
    for family in Family::BOTH {
        let rule = "-m ipvs --vdir ORIGINAL --vmethod MASQ -m comment --comment \"\" -j MASQUERADE";
        let from = "POSTROUTING".into();
        let piece = Piece::Leftover { family, table: Table::Nat, from, rule: rule.into() };
        state.rules.insert(piece, Rules(vec![rule.into()]));
    }
}

impl Walk {
    /// `--cleanup-config` where kube-router had direct server return, and nothing of this program ever ran: nothing of it is left, and all of others is.
    pub fn cleans_up_behind_kube_router(&mut self) {
        self.kernel.with(|machine| leave_direct_server_return(&mut machine.state));
        let (left, foreign) = self.kernel.with(|machine| (machine.state.clone(), machine.foreign.clone()));
        let more = |count: usize, of_others: usize| count > of_others;
        assert!(more(left.virtuals.len(), foreign.virtuals.len()) && more(left.rules.len(), foreign.rules.len()));
        assert!(more(left.policy_rules.len(), foreign.policy_rules.len()));
        assert!(more(left.routes.len(), foreign.routes.len()));
        self.clean_up();
    }
}

/// What kube-router's direct server return leaves: virtual services for marks of packets, the rules that mark and that have answers announce smaller segments,
/// rules of routing, and a route that makes everything local.
pub fn leave_direct_server_return(state: &mut State) {
    let addresses: [(Family, &str, u16); 2] =
        [(Family::V4, "203.0.113.250", 80), (Family::V6, "2001:db8:113::250", 80)];
    for (family, address, port) in addresses {
        let address: IpAddr = address.parse().expect("an address");
        let mark = service_mark(address, Protocol::Tcp, port, 0);
        let service = Service { scheduler: "rr".into(), flags: 0, persistence_seconds: 0 };
        state.virtuals.insert(ServiceKey::Mark { mark, family }, Virtual { service, destinations: [].into() });
        let marks = format!(
            "-d {} -p tcp -m tcp --dport {port} -j MARK --set-xmark {mark:#x}/0xffffffff",
            Family::host_prefix(address)
        );
        for from in ["PREROUTING", "OUTPUT"] {
            let rule = marks.as_str().into();
            let piece = Piece::Leftover { family, table: Table::Mangle, from: from.into(), rule };
            state.rules.insert(piece, Rules(vec![marks.as_str().into()]));
        }
        let segments = format!(
            "-s {} -i kube-bridge -p tcp -m tcp --sport {port} --tcp-flags SYN,RST SYN -j TCPMSS --set-mss 1440",
            Family::host_prefix(address)
        );
        let (from, rule) = ("PREROUTING".into(), segments.as_str().into());
        let piece = Piece::Leftover { family, table: Table::Mangle, from, rule };
        state.rules.insert(piece, Rules(vec![segments.as_str().into()]));
        for (place, packets) in
            [(DSR_TABLE, Packets::Marked { value: mark, mask: u32::MAX }), (EMPTY_TABLE, Packets::All)]
        {
            state.policy_rules.insert(PolicyRule { family, place, packets }, ());
        }
        let everything = IpNet::new(address, 0).expect("a length of this family");
        let next_hops = [NextHop { link: LinkName("lo".into()), gateway: None, on_link: false }].into();
        let route = Route { kind: RouteKind::Local, protocol: 3, source: None, next_hops };
        state.routes.insert(RouteKey::new(DSR_TABLE.table, everything), route.into());
    }
}
