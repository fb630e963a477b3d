//! Addresses on network devices.
//!
//! Ours: every address on the devices whose names the owner of an [`Addresses`] target lists, but for the
//! link-local ones (`fe80::/10`) that the kernel puts there by itself. Addresses that we add have the scope of
//! their length: a host address is of scope link, as kube-router makes them, or of scope host in `127.0.0.0/8`, any other is global.
//!
//! The kernel walks the addresses of a device for every new one, so this is for devices with few of them.
//!
//! Kernel: rtnetlink `RTM_*ADDR` (include/uapi/linux/if_addr.h).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};

use ipnet::{IpNet, Ipv4Net};
use rustix::io::Errno;

use super::Error;
use super::link::{self, LinkKind, LinkName, Names, no_device};
use super::netlink::{Answer, Bus, DumpBounds, Fault, Messages, Socket, failed_steps, flag};
use crate::net::Family;
use crate::net::address_detection::Candidate;
use crate::reconcile::{Failure, Phase, Step, Target};

/// An address on a device. The prefix keeps its host bits: `10.244.1.1/24`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct AddressKey {
    pub link: LinkName,
    pub address: IpNet,
}

impl fmt::Display for AddressKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} dev {}", self.address, self.link)
    }
}

/// Placeholder address (the dummy address of RFC 7600), for a device whose IPv4 routes must stay while
/// its other addresses come and go: with the last address the kernel drops all IPv4 routes of the device.
pub const KEEPER: IpNet = IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(192, 0, 0, 8), 32));

/// The IPv4 address of our devices for tunnels, which would be unnumbered (RFC 1812 2.2.7) without one. On an unnumbered device Linux takes only what leads back through it, also where
/// it filters sources loosely (RFC 3704 2.4, `rp_filter` 2; `__fib_validate_source` in net/ipv4/fib_frontend.c).
///
/// It is one of `127.0.0.0/8`, of scope host: each host has that range at `lo` already, so nothing becomes local by it; what comes from outside to such an address, or from one, is
/// dropped; and the kernel chooses no address of this scope as the source of packets to other hosts, but through a route of scope link without a source where `route_localnet` is 1.
pub const STAND_IN: IpNet = IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(127, 0, 0, 8), 32));

/// The addresses of some devices.
pub struct Addresses {
    socket: Socket,
    links: Vec<LinkName>,
}

/// An address of this host.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HostAddress {
    pub link: LinkName,
    /// Number of the device.
    pub index: u32,
    pub kind: LinkKind,
    /// The device is set up.
    pub up: bool,
    /// MTU of the device, in bytes.
    pub mtu: u32,
    /// The prefix keeps its host bits.
    pub address: IpNet,
    pub scope: Scope,
    /// It may be used for long and by others: duplicate address detection is over and has found no other (RFC 4862), and it is neither deprecated
    /// nor a temporary one (RFC 8981).
    pub lasting: bool,
    /// Duplicate address detection has found another host that has it.
    pub duplicate: bool,
}

/// Scope of an address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Scope {
    Global,
    /// On this network: `fe80::/10`, and IPv4 addresses that were made so.
    Link,
    /// Inside this host: `127.0.0.0/8`, `::1`.
    Host,
}

const NEW_ADDRESS: u16 = 20;
const DELETE_ADDRESS: u16 = 21;
const GET_ADDRESS: u16 = 22;
/// Length of `struct ifaddrmsg`: family, prefix length, flags, scope, device.
const HEADER: usize = 8;

const ADDRESS: u16 = 1;
const LOCAL: u16 = 2;
/// All flags, of which the header has the first eight.
const FLAGS: u16 = 8;

/// IPv6: usable at once, without duplicate address detection.
const NO_DUPLICATE_DETECTION: u8 = 0x02;
/// Of an IPv6 address that it is temporary; of an IPv4 address that another one of its network was there before.
const TEMPORARY: u32 = 0x01;
const DUPLICATE: u32 = 0x08;
const DEPRECATED: u32 = 0x20;
const TENTATIVE: u32 = 0x40;
const SCOPE_GLOBAL: u8 = 0;
const SCOPE_LINK: u8 = 253;
const SCOPE_HOST: u8 = 254;

/// All addresses of the network namespace of the calling thread, by device and in the kernel's order.
///
/// # Errors
/// The socket cannot be opened, or the kernel does not answer.
pub fn host_addresses() -> Result<Vec<HostAddress>, Error> {
    addresses_of(Socket::open(Bus::Route)?)
}

/// Like [`host_addresses`], for a network namespace where somebody else decides how many there are, and how often they change.
///
/// # Errors
/// As there; and there are more devices, or addresses of a family, than the bounds allow.
pub fn addresses_within(bounds: DumpBounds) -> Result<Vec<HostAddress>, Error> {
    addresses_of(Socket::open(Bus::Route)?.with_bounds(bounds))
}

fn addresses_of(mut socket: Socket) -> Result<Vec<HostAddress>, Error> {
    let devices: BTreeMap<u32, link::Device> =
        link::devices(&mut socket)?.into_iter().map(|device| (device.index, device)).collect();
    let mut found = Vec::new();
    for family in Family::BOTH {
        for Listed { device: index, address, scope, lasting, duplicate } in list(&mut socket, family, 0)? {
            let Some(device) = devices.get(&index) else { continue };
            found.push(HostAddress {
                link: device.name.clone(),
                index,
                kind: device.kind.clone(),
                up: device.up,
                mtu: device.mtu,
                address,
                scope,
                lasting,
                duplicate,
            });
        }
    }
    Ok(found)
}

impl From<&HostAddress> for Candidate {
    fn from(found: &HostAddress) -> Candidate {
        Candidate {
            link: found.link.0.clone(),
            index: found.index,
            kind: match &found.kind {
                LinkKind::Dummy => "dummy".into(),
                LinkKind::Other(kind) => kind.clone(),
            },
            up: found.up,
            address: found.address,
            global: found.scope == Scope::Global,
            lasting: found.lasting,
            duplicate: found.duplicate,
        }
    }
}

impl Addresses {
    /// Opens sockets in the network namespace of the calling thread.
    ///
    /// # Errors
    /// A socket cannot be opened.
    pub fn open(links: impl IntoIterator<Item = LinkName>) -> Result<Addresses, Error> {
        Ok(Addresses { socket: Socket::open(Bus::Route)?, links: links.into_iter().collect() })
    }
}

impl Target for Addresses {
    type Key = AddressKey;
    type Value = ();
    type Error = Error;

    fn name(&self) -> &'static str {
        "addresses"
    }

    fn read(&mut self) -> Result<BTreeMap<AddressKey, ()>, Error> {
        let mut found = BTreeMap::new();
        let mut names = Names::default();
        for link in &self.links {
            let Some(index) = names.number(&self.socket, link) else { continue };
            for family in Family::BOTH {
                let listed = list(&mut self.socket, family, index)?.into_iter();
                let ours = listed.map(|one| one.address).filter(|address| !is_link_local(address.addr()));
                found.extend(ours.map(|address| (AddressKey { link: link.clone(), address }, ())));
            }
        }
        Ok(found)
    }

    fn apply(&mut self, _phase: Phase, steps: &[Step<'_, AddressKey, ()>]) -> Vec<Failure<Error>> {
        let mut messages = Messages::new();
        let mut owners = Vec::new();
        let mut failures = Vec::new();
        let mut names = Names::default();
        for (index, step) in steps.iter().enumerate() {
            match names.number(&self.socket, &step.key.link) {
                Some(device) => {
                    write(&mut messages, device, step.key.address, step.want.is_some());
                    owners.push(index);
                }
                None => {
                    let error = no_device(operation(step), step.key.to_string(), &step.key.link);
                    failures.push(Failure { step: index, error });
                }
            }
        }
        failures.extend(failed_steps(self.socket.batch(&mut messages), &owners, |index, cause| {
            let step = steps.get(index).expect("a failure belongs to a step");
            Error::new(operation(step), step.key.to_string(), cause)
        }));
        failures
    }
}

fn operation(step: &Step<'_, AddressKey, ()>) -> &'static str {
    if step.want.is_some() { "add address" } else { "delete address" }
}

/// `ip address add ADDRESS dev DEVICE`, or `delete`.
fn write(messages: &mut Messages, device: u32, address: IpNet, wanted: bool) {
    let family = Family::from(address);
    let flags = if family == Family::V6 { NO_DUPLICATE_DETECTION } else { 0 };
    let scope = match address.prefix_len() == family.host_bits() {
        true if address.addr().is_loopback() => SCOPE_HOST,
        true => SCOPE_LINK,
        false => SCOPE_GLOBAL,
    };
    if wanted {
        messages.begin(NEW_ADDRESS, flag::CREATE | flag::EXCLUSIVE);
        messages.header(&header([family.number(), address.prefix_len(), flags, scope], device));
    } else {
        messages.begin(DELETE_ADDRESS, 0).header(&header([family.number(), address.prefix_len(), 0, 0], device));
    }
    messages.address(LOCAL, address.addr()).address(ADDRESS, address.addr());
}

/// The addresses of one family: on one device, or on all where `device` is 0.
fn list(socket: &mut Socket, family: Family, device: u32) -> Result<Vec<Listed>, Error> {
    let mut message = Messages::new();
    message.begin(GET_ADDRESS, 0).header(&header([family.number(), 0, 0, 0], device));
    let listed = socket.dump(&mut message, |answer| {
        // A kernel without this family lists addresses of the others, and an old one those of all devices.
        address(answer).filter(|one| Family::from(one.address) == family && (device == 0 || one.device == device))
    });
    match listed {
        Ok(listed) => Ok(listed),
        Err(Fault::Refused(refusal)) if matches!(refusal.errno, libc::ENODEV | libc::EAFNOSUPPORT) => Ok(Vec::new()),
        Err(fault) => Err(Error::new("list addresses", "", fault.into())),
    }
}

/// Returns which of these devices of the socket's network namespace have the [`STAND_IN`], by their numbers. Without any the kernel is not asked.
pub(super) fn numbered(socket: &mut Socket, devices: impl Iterator<Item = u32>) -> Result<BTreeSet<u32>, Fault> {
    let devices: BTreeSet<u32> = devices.collect();
    if devices.is_empty() {
        return Ok(devices);
    }
    let mut message = Messages::new();
    message.begin(GET_ADDRESS, 0).header(&header([Family::V4.number(), 0, 0, 0], 0));
    let has_it =
        |answer: &Answer<'_>| address(answer).filter(|one| one.address == STAND_IN && devices.contains(&one.device));
    let listed = socket.dump(&mut message, |answer| has_it(answer).map(|one| one.device))?;
    Ok(listed.into_iter().collect())
}

/// Gives a device the [`STAND_IN`], where it does not have it.
// ip address add 127.0.0.8/32 dev NAME scope host
pub(super) fn number(socket: &mut Socket, link: &LinkName) -> Result<(), Fault> {
    let device = Names::default().number(socket, link).ok_or(Fault::System(Errno::NODEV))?;
    let mut messages = Messages::new();
    write(&mut messages, device, STAND_IN, true);
    match socket.batch(&mut messages)?.into_iter().next() {
        Some(refusal) if refusal.errno != libc::EEXIST => Err(Fault::Refused(refusal)),
        _ => Ok(()),
    }
}

/// An address in a message, be it an answer or a notification.
pub(super) struct Listed {
    /// Number of the device.
    pub device: u32,
    pub address: IpNet,
    pub scope: Scope,
    /// As in [`HostAddress`], both.
    pub lasting: bool,
    pub duplicate: bool,
}

/// Returns the address in a message.
pub(super) fn address(answer: &Answer<'_>) -> Option<Listed> {
    if answer.kind != NEW_ADDRESS && answer.kind != DELETE_ADDRESS {
        return None;
    }
    let [_, length, flags, scope, i0, i1, i2, i3] = *answer.header::<HEADER>()?;
    let attributes = answer.attributes(HEADER);
    // On point-to-point links `ADDRESS` is the peer's.
    let own = attributes.get(LOCAL).or_else(|| attributes.get(ADDRESS))?;
    let scope = match scope {
        SCOPE_LINK => Scope::Link,
        SCOPE_HOST => Scope::Host,
        _ => Scope::Global,
    };
    let flags = attributes.get(FLAGS).and_then(|flags| flags.u32()).unwrap_or(flags.into());
    let address = IpNet::new(own.address()?, length).ok()?;
    let passing = match Family::from(address) {
        Family::V4 => DEPRECATED,
        Family::V6 => TEMPORARY | DUPLICATE | DEPRECATED | TENTATIVE,
    };
    let device = u32::from_ne_bytes([i0, i1, i2, i3]);
    let duplicate = matches!(address, IpNet::V6(_)) && flags & DUPLICATE != 0;
    Some(Listed { device, address, scope, lasting: flags & passing == 0, duplicate })
}

fn header([family, length, flags, scope]: [u8; 4], device: u32) -> [u8; HEADER] {
    let [i0, i1, i2, i3] = device.to_ne_bytes();
    [family, length, flags, scope, i0, i1, i2, i3]
}

/// Returns whether the kernel puts this address on a device by itself.
pub(super) fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(_) => false,
        IpAddr::V6(address) => address.is_unicast_link_local(),
    }
}
