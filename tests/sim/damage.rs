//! Damage: changes by others to objects of ours.

use std::net::IpAddr;

use sluice::kernel::address::AddressKey;
use sluice::kernel::ipset::Entry;
use sluice::kernel::iptables::Piece;
use sluice::kernel::ipvs::{Destination, Forwarding, ServiceKey};
use sluice::kernel::link::LinkName;
use sluice::kernel::nftables::{Content, Object};
use sluice::kernel::route::RouteKey;
use sluice::net::{Family, Protocol};
use sluice::proxy::marks::marks_of;
use sluice::proxy::names::{DEVICE, Set};

use crate::support::memory::{Addresses, Links, Rows, State};
use crate::support::packet;
use crate::support::random::Random;

/// A kind of damage.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    DeleteVirtual,
    ChangeScheduler,
    AddDestination,
    RemoveDestination,
    DeleteElement,
    AddElement,
    DeleteJump,
    ChangeChain,
    DeleteRoute,
    ChangeRoute,
    AddRoute,
    DeleteDevice,
    DeviceDown,
    AddAddress,
    DeleteAddress,
    ChangeSetting,
}

/// Extent of the damage.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Hurt {
    /// Objects of one service address.
    Address(IpAddr),
    /// Objects that all Services share.
    Everything,
}

impl Kind {
    pub const ALL: [Kind; 16] = [
        Kind::DeleteVirtual,
        Kind::ChangeScheduler,
        Kind::AddDestination,
        Kind::RemoveDestination,
        Kind::DeleteElement,
        Kind::AddElement,
        Kind::DeleteJump,
        Kind::ChangeChain,
        Kind::DeleteRoute,
        Kind::ChangeRoute,
        Kind::AddRoute,
        Kind::DeleteDevice,
        Kind::DeviceDown,
        Kind::AddAddress,
        Kind::DeleteAddress,
        Kind::ChangeSetting,
    ];
}

/// Damages something, if there is something of that kind, and says what.
#[expect(clippy::too_many_lines, reason = "one arm for each kind of damage")]
pub fn hurt(state: &mut State, foreign: &State, kind: Kind, random: &mut Random) -> Option<(Hurt, String)> {
    let said = |hurt: Hurt, what: String| Some((hurt, format!("{kind:?}: {what}")));
    match kind {
        Kind::DeleteVirtual => {
            let key = our_virtual(state, foreign, random)?;
            let hurt = hurt_at(state, &key);
            state.virtuals.remove(&key);
            said(hurt, key.to_string())
        }
        Kind::ChangeScheduler => {
            let key = our_virtual(state, foreign, random)?;
            let found = state.virtuals.get_mut(&key)?;
            found.service.scheduler = if found.service.scheduler == "wlc" { "sed".into() } else { "wlc".into() };
            said(hurt_at(state, &key), key.to_string())
        }
        Kind::AddDestination => {
            let key = our_virtual(state, foreign, random)?;
            let text = match key.family() {
                Family::V4 => "203.0.113.66:666",
                Family::V6 => "[2001:db8:113::66]:666",
            };
            let address_and_port = text.parse().expect("a socket address");
            let found = state.virtuals.get_mut(&key)?;
            let mut list = found.destinations.to_vec();
            list.retain(|destination| destination.address != address_and_port);
            // Where all are in tunnel mode, or one that a process without memory finds would not be ours.
            let forwarding = match key {
                ServiceKey::Address { .. } => Forwarding::Nat,
                ServiceKey::Mark { .. } => Forwarding::Tunnel,
            };
            list.push(Destination { address: address_and_port, weight: 9, forwarding });
            list.sort();
            found.destinations = list.into();
            said(hurt_at(state, &key), format!("{text} at {key}"))
        }
        Kind::RemoveDestination => {
            let served = |key: &ServiceKey| !state.virtuals[key].destinations.is_empty();
            let ours = state.virtuals.keys().filter(|key| !foreign.virtuals.contains_key(key) && served(key));
            let key = random.pick_from(ours.copied())?;
            let found = state.virtuals.get_mut(&key)?;
            let mut list = found.destinations.to_vec();
            let gone = list.pop()?.address;
            found.destinations = list.into();
            // Its flows end with the next packet, for which IPVS has no destination (`net.ipv4.vs.expire_nodest_conn`): nobody else knows of them
            // where the endpoint leaves the Service before the loss is noticed.
            state.flows.retain(|flow| {
                let original = flow.original_destination;
                let (address, protocol, port) = (original.ip(), flow.protocol, original.port());
                flow.reply_source != gone || key != ServiceKey::Address { address, protocol, port }
            });
            said(hurt_at(state, &key), key.to_string())
        }
        Kind::DeleteElement => {
            let of_ipset = state.elements.keys().filter_map(Set::of_element);
            let (set, entry) = random.pick_from(of_ipset.chain(state.proxy_table.keys().filter_map(Set::of_object)))?;
            let object = set.object(&entry);
            if state.elements.remove(&set.element(entry.clone())).is_none() {
                state.proxy_table.remove(&object);
            }
            said(Hurt::Address(entry_address(&entry)), object.to_string())
        }
        Kind::AddElement => {
            let stray = IpAddr::from([203, 0, 113, 200 + random.below(8) as u8]);
            let entry = Entry::IpPort(stray, Protocol::Tcp, 81);
            let (key, object) = (Set::ServicePorts.element(entry.clone()), Set::ServicePorts.object(&entry));
            let is_new = if state.sets.contains_key(&key.set) {
                state.elements.insert(key.clone(), ()).is_none()
            } else {
                let has_set = state.proxy_table.contains_key(&Object::Set(Set::ServicePorts.in_table(Family::V4)));
                has_set && state.proxy_table.insert(object, Content::Element).is_none()
            };
            is_new.then_some(())?;
            said(Hurt::Address(stray), key.to_string())
        }
        Kind::DeleteJump => {
            let jumps = state.rules.keys().filter(|piece| matches!(piece, Piece::Jump { .. }));
            let jump = random.pick_from(jumps.filter(|piece| !foreign.rules.contains_key(piece)).cloned());
            if let Some(key) = jump {
                state.rules.remove(&key);
                return said(Hurt::Everything, key.to_string());
            }
            // A base chain is entered by the kernel, as a jump is taken.
            let is_base = |content: &Content| matches!(content, Content::Chain(chain) if chain.base.is_some());
            let bases = state.proxy_table.iter().filter(|(_, content)| is_base(content)).map(|(object, _)| object);
            let object = random.pick_from(bases.cloned())?;
            state.proxy_table.remove(&object);
            said(Hurt::Everything, object.to_string())
        }
        Kind::ChangeChain => {
            let chains = state.rules.keys().filter(|piece| matches!(piece, Piece::Chain { .. }));
            let chain = random.pick_from(chains.filter(|piece| !foreign.rules.contains_key(piece)).cloned());
            if let Some(key) = chain {
                state.rules.get_mut(&key)?.0.pop()?;
                return said(Hurt::Everything, key.to_string());
            }
            let chains = state.proxy_table.iter().filter_map(|(object, content)| match content {
                Content::Chain(chain) => Some((object.clone(), (**chain).clone())),
                _ => None,
            });
            let (object, mut chain) = random.pick_from(chains)?;
            chain.rules.pop()?;
            state.proxy_table.insert(object.clone(), Content::Chain(chain.into()));
            said(Hurt::Everything, object.to_string())
        }
        Kind::DeleteRoute => {
            let key = our_route(state, foreign, random)?;
            state.routes.remove(&key);
            said(Hurt::Address(key.destination.addr()), key.to_string())
        }
        Kind::ChangeRoute => {
            let key = our_route(state, foreign, random)?;
            let route = std::sync::Arc::make_mut(state.routes.get_mut(&key)?);
            route.protocol = route.protocol.wrapping_add(1);
            said(Hurt::Address(key.destination.addr()), key.to_string())
        }
        Kind::AddRoute => {
            let mut key = our_route(state, foreign, random)?;
            let route = state.routes.get(&key)?.clone();
            let stray = IpAddr::from([203, 0, 113, 210]);
            key = RouteKey::new(key.table, Family::host_prefix(stray));
            state.routes.insert(key.clone(), route).is_none().then_some(())?;
            said(Hurt::Address(stray), key.to_string())
        }
        Kind::DeleteDevice => {
            let device = LinkName(DEVICE.into());
            state.links.remove(&device)?;
            Links::follow(state, &device, None);
            said(Hurt::Everything, DEVICE.to_owned())
        }
        Kind::DeviceDown => {
            let device = LinkName(DEVICE.into());
            let link = state.links.get_mut(&device).filter(|link| link.up)?;
            link.up = false;
            let down = link.clone();
            Links::follow(state, &device, Some(&down));
            said(Hurt::Everything, DEVICE.to_owned())
        }
        Kind::AddAddress => {
            state.links.get(&LinkName(DEVICE.into()))?;
            let stray = IpAddr::from([203, 0, 113, 220 + random.below(4) as u8]);
            let key = AddressKey { link: LinkName(DEVICE.into()), address: Family::host_prefix(stray) };
            state.addresses.insert(key.clone(), ()).is_none().then_some(())?;
            Addresses::follow(state, &key, Some(&()));
            said(Hurt::Everything, key.to_string())
        }
        Kind::DeleteAddress => {
            let ours = state.addresses.keys().filter(|key| key.link.0 == DEVICE);
            let key = random.pick_from(ours.cloned())?;
            state.addresses.remove(&key);
            Addresses::follow(state, &key, None);
            said(Hurt::Everything, key.to_string())
        }
        Kind::ChangeSetting => {
            let (key, value) = state.settings.iter_mut().find(|(key, _)| key.0 == "net/ipv4/vs/conntrack")?;
            (*value == "1").then_some(())?;
            *value = "0".into();
            said(Hurt::Everything, key.to_string())
        }
    }
}

fn our_virtual(state: &State, foreign: &State, random: &mut Random) -> Option<ServiceKey> {
    random.pick_from(state.virtuals.keys().filter(|key| !foreign.virtuals.contains_key(key)).copied())
}

fn our_route(state: &State, foreign: &State, random: &mut Random) -> Option<RouteKey> {
    random.pick_from(state.routes.keys().filter(|key| !foreign.routes.contains_key(key)).cloned())
}

/// What is damaged with a virtual service: its address, or that of the port that has its mark.
fn hurt_at(state: &State, key: &ServiceKey) -> Hurt {
    let is_its = |port: &ServiceKey| port == key || marks_of(port).any(|its| its == *key);
    let mut ports = packet::ports(state).into_iter().filter(is_its);
    match (ports.next(), ports.next()) {
        (Some(ServiceKey::Address { address, .. }), None) => Hurt::Address(address),
        (None, _) if let ServiceKey::Address { address, .. } = *key => Hurt::Address(address),
        _ => Hurt::Everything,
    }
}

fn entry_address(entry: &Entry) -> IpAddr {
    match entry {
        Entry::Ip(address) | Entry::IpPort(address, ..) => *address,
        Entry::Net(prefix) => prefix.addr(),
        Entry::IpPortNet(entry) => entry.address,
    }
}
