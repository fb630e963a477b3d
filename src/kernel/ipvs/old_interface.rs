//! All IPv4 virtual services in one system call, each with the number of its destinations; and the destinations of one in
//! another.
//!
//! Kernel: `getsockopt` of `IP_VS_SO_GET_INFO`, `IP_VS_SO_GET_SERVICES` and `IP_VS_SO_GET_DESTS` (include/uapi/linux/ip_vs.h), the
//! interface that IPVS had before netlink. It knows IPv4 only, and costs a small part of listing the same by netlink, which
//! does not say how many destinations a service has without listing them. It does not tell kinds of tunnels apart.
#![expect(unsafe_code, reason = "no safe interface reads socket options of IPVS")]

use std::ffi::c_int;
use std::hash::BuildHasher;
use std::mem::offset_of;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::os::fd::{AsRawFd, OwnedFd};

use foldhash::quality::RandomState;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

use super::{Destination, Destinations, Forwarding, SchedulerName, Service, ServiceKey, Virtual, flags};
use crate::net::{Family, Protocol};

/// A socket that changes nothing. It belongs to the network namespace in which it was opened.
#[derive(Debug)]
pub struct OldInterface(OwnedFd);

/// A virtual service without its destinations.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Summary {
    pub key: ServiceKey,
    pub service: Service,
    pub destinations: usize,
}

const GET_INFO: c_int = 64 + 1024 + 64 + 1;
const GET_SERVICES: c_int = GET_INFO + 1;
const GET_DESTINATIONS: c_int = GET_INFO + 3;
const DELETE_DESTINATION: c_int = 64 + 1024 + 64 + 8;

/// `IP_VS_CONN_F_FWD_MASK`, and the methods below it.
const METHOD_MASK: u32 = 0x7;
const METHOD_NAT: u32 = 0;
const METHOD_TUNNEL: u32 = 2;

/// `struct ip_vs_getinfo`.
#[repr(C)]
struct Info {
    version: u32,
    table_size: u32,
    services: u32,
}

/// `struct ip_vs_get_services` without its table.
#[repr(C)]
struct Header {
    count: u32,
    table: [Entry; 0],
}

/// `struct ip_vs_service_entry`.
#[repr(C)]
struct Entry {
    protocol: u16,
    address: u32,
    port: u16,
    mark: u32,
    scheduler: [u8; 16],
    flags: u32,
    timeout: u32,
    netmask: u32,
    destinations: u32,
    counters: Counters,
}

/// `struct ip_vs_get_dests` without its table.
#[repr(C)]
struct Query {
    protocol: u16,
    address: u32,
    port: u16,
    mark: u32,
    count: u32,
    table: [Row; 0],
}

/// `struct ip_vs_dest_entry`.
#[repr(C)]
struct Row {
    address: u32,
    port: u16,
    flags: u32,
    weight: u32,
    thresholds: [u32; 2],
    connections: [u32; 3],
    counters: Counters,
}

/// `struct ip_vs_stats_user`.
#[repr(C)]
struct Counters {
    counts: [u32; 3],
    bytes: [u64; 2],
    rates: [u32; 5],
}

impl OldInterface {
    /// Opens a socket in the network namespace of the calling thread.
    ///
    /// # Errors
    /// The kernel has no sockets of IPv4.
    pub fn open() -> Result<OldInterface, Errno> {
        Ok(OldInterface(socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?))
    }

    /// Lists the IPv4 services of the namespace. Those that come while this reads may be left out.
    ///
    /// # Errors
    /// The kernel has no IPVS, or services went while this was reading.
    pub fn services(&self) -> Result<Listing, Errno> {
        let mut info = [0; size_of::<Info>()];
        self.get(GET_INFO, &mut info)?;
        let count = number(&info, offset_of!(Info, services)).unwrap_or_default();
        let entries = usize::try_from(count).unwrap_or_default();
        let mut answer = vec![0; size_of::<Header>() + entries * size_of::<Entry>()];
        if let Some(place) = answer.get_mut(..4) {
            place.copy_from_slice(&count.to_ne_bytes());
        }
        self.get(GET_SERVICES, &mut answer)?;
        Ok(Listing(answer))
    }

    /// Returns whether an IPv4 service has exactly these destinations. `known` is sorted by address.
    ///
    /// # Errors
    /// `ESRCH` where there is no such service.
    pub fn has(&self, key: &ServiceKey, known: &Destinations) -> Result<bool, Errno> {
        // The kernel does not say how many it wrote: a place more than known is left empty where there is no other.
        let count = known.len() + 1;
        let mut answer = query(key, count).ok_or(Errno::INVAL)?;
        self.get(GET_DESTINATIONS, &mut answer)?;
        let table = answer.get(size_of::<Query>()..).unwrap_or_default();
        let mut rows = table.chunks_exact(size_of::<Row>());
        // The kernel lists the newest first, and they are added in order from one of them on (`replacement`): most come before the one that was found last.
        let mut last = 0_usize;
        let mut is_known = |row: &[u8]| {
            let Some(found) = destination(row) else { return false };
            let before = last.checked_sub(1).unwrap_or(known.len().saturating_sub(1));
            let place = if known.at(before) == Some(found) { Some(before) } else { known.place_of(&found) };
            last = place.unwrap_or(last);
            place.is_some()
        };
        // Each destination is there once, so as many known ones are all of them.
        Ok(rows.by_ref().take(known.len()).all(&mut is_known) && rows.all(|row| row.iter().all(|byte| *byte == 0)))
    }

    /// Gives a command that the kernel refuses before it looks at it, because it is too short to name a service.
    pub fn knock(&self) {
        let too_short = [0_u8; 1];
        // SAFETY: the descriptor is ours and open, and the kernel reads no more than the one byte.
        unsafe {
            libc::setsockopt(self.0.as_raw_fd(), libc::IPPROTO_IP, DELETE_DESTINATION, too_short.as_ptr().cast(), 1);
        }
    }

    /// Reads an option whose value has exactly this length; the kernel also reads what the value begins with.
    fn get(&self, option: c_int, value: &mut [u8]) -> Result<(), Errno> {
        let mut length = libc::socklen_t::try_from(value.len()).map_err(|_| Errno::NOMEM)?;
        // SAFETY: the descriptor is ours and open, and the kernel reads and writes no more than `length` bytes of the value,
        // which is its size.
        let result = unsafe {
            libc::getsockopt(self.0.as_raw_fd(), libc::IPPROTO_IP, option, value.as_mut_ptr().cast(), &raw mut length)
        };
        if result == 0 {
            return Ok(());
        }
        Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::INVAL))
    }
}

/// Services as the kernel described them.
#[derive(Debug)]
pub struct Listing(Vec<u8>);

impl Listing {
    fn entries(&self) -> impl Iterator<Item = &[u8]> {
        self.0.get(size_of::<Header>()..).unwrap_or_default().chunks_exact(size_of::<Entry>())
    }

    /// Returns the services, in the kernel's order.
    pub fn summaries(&self) -> Vec<Summary> {
        self.entries().filter_map(summary).collect()
    }

    /// Returns a number that is equal for two listings with the same services in whatever order, and else different but by a chance of one in 2^64.
    /// Traffic does not change it.
    pub fn fingerprint(&self, spread: &RandomState) -> u64 {
        let described = |entry: &[u8]| entry.get(..offset_of!(Entry, counters)).map(|what| spread.hash_one(what));
        self.entries().filter_map(described).fold(0, u64::wrapping_add)
    }
}

/// The part of the fingerprint of a listing that one service is, as the kernel will describe it. 0 for a service of IPv6, which no listing has.
pub fn part(key: &ServiceKey, described: &Virtual, spread: &RandomState) -> u64 {
    description(key, described).map_or(0, |bytes| spread.hash_one(bytes.as_slice()))
}

/// An entry of the table as far as its counters. `None` for a service of IPv6, and for what no table can say.
fn description(key: &ServiceKey, described: &Virtual) -> Option<[u8; offset_of!(Entry, counters)]> {
    let mut entry = [0; offset_of!(Entry, counters)];
    let mut put = |offset: usize, bytes: &[u8]| {
        let place = entry.get_mut(offset..)?.get_mut(..bytes.len())?;
        place.copy_from_slice(bytes);
        Some(())
    };
    match *key {
        ServiceKey::Address { address: IpAddr::V4(address), protocol, port } => {
            put(offset_of!(Entry, protocol), &u16::from(protocol.number()).to_ne_bytes())?;
            put(offset_of!(Entry, address), &address.octets())?;
            put(offset_of!(Entry, port), &port.to_be_bytes())?;
        }
        ServiceKey::Mark { mark, family: Family::V4 } => {
            // Netlink gives services for marks this protocol, which means nothing there.
            put(offset_of!(Entry, protocol), &u16::from(Protocol::Tcp.number()).to_ne_bytes())?;
            put(offset_of!(Entry, mark), &mark.to_ne_bytes())?;
        }
        ServiceKey::Address { .. } | ServiceKey::Mark { .. } => return None,
    }
    let Service { scheduler, flags, persistence_seconds } = &described.service;
    put(offset_of!(Entry, scheduler), scheduler.as_bytes())?;
    put(offset_of!(Entry, flags), &(flags | flags::HASHED).to_ne_bytes())?;
    put(offset_of!(Entry, timeout), &persistence_seconds.to_ne_bytes())?;
    // Each of ours is for a single address.
    put(offset_of!(Entry, netmask), &u32::MAX.to_ne_bytes())?;
    put(offset_of!(Entry, destinations), &u32::try_from(described.destinations.len()).ok()?.to_ne_bytes())?;
    Some(entry)
}

/// A service of the table; `None` where the entry is empty or of a protocol that is never ours.
fn summary(entry: &[u8]) -> Option<Summary> {
    let scheduler = entry.get(offset_of!(Entry, scheduler)..)?.get(..16)?;
    let scheduler = scheduler.split(|byte| *byte == 0).next()?;
    let scheduler = SchedulerName::from(str::from_utf8(scheduler).ok()?);
    let key = match number(entry, offset_of!(Entry, mark))? {
        0 => ServiceKey::Address {
            address: IpAddr::V4(Ipv4Addr::from(*entry.get(offset_of!(Entry, address)..)?.first_chunk::<4>()?)),
            protocol: Protocol::from_number(u8::try_from(short(entry, offset_of!(Entry, protocol))?).ok()?)?,
            port: u16::from_be(short(entry, offset_of!(Entry, port))?),
        },
        mark => ServiceKey::Mark { mark, family: Family::V4 },
    };
    let service = Service {
        scheduler,
        flags: number(entry, offset_of!(Entry, flags))? & !flags::HASHED,
        persistence_seconds: number(entry, offset_of!(Entry, timeout))?,
    };
    let destinations = usize::try_from(number(entry, offset_of!(Entry, destinations))?).ok()?;
    Some(Summary { key, service, destinations })
}

/// The value with which the destinations of a service are asked for: this many places, all empty.
fn query(key: &ServiceKey, count: usize) -> Option<Vec<u8>> {
    let mut value = vec![0; size_of::<Query>() + count * size_of::<Row>()];
    let mut put = |offset: usize, bytes: &[u8]| {
        let place = value.get_mut(offset..)?.get_mut(..bytes.len())?;
        place.copy_from_slice(bytes);
        Some(())
    };
    match key {
        ServiceKey::Address { address: IpAddr::V4(address), protocol, port } => {
            put(offset_of!(Query, protocol), &u16::from(protocol.number()).to_ne_bytes())?;
            put(offset_of!(Query, address), &address.octets())?;
            put(offset_of!(Query, port), &port.to_be_bytes())?;
        }
        ServiceKey::Mark { mark, family: Family::V4 } => put(offset_of!(Query, mark), &mark.to_ne_bytes())?,
        ServiceKey::Address { .. } | ServiceKey::Mark { .. } => return None,
    }
    put(offset_of!(Query, count), &u32::try_from(count).ok()?.to_ne_bytes())?;
    Some(value)
}

/// A destination of the table; `None` where the place is empty.
fn destination(row: &[u8]) -> Option<Destination> {
    let address = Ipv4Addr::from(*row.get(offset_of!(Row, address)..)?.first_chunk::<4>()?);
    let port = u16::from_be(short(row, offset_of!(Row, port))?);
    let forwarding = match number(row, offset_of!(Row, flags))? & METHOD_MASK {
        METHOD_NAT => Forwarding::Nat,
        METHOD_TUNNEL => Forwarding::Tunnel,
        method => Forwarding::Other(u8::try_from(method).ok()?),
    };
    let weight = number(row, offset_of!(Row, weight))?;
    let address = SocketAddr::V4(SocketAddrV4::new(address, port));
    (!address.ip().is_unspecified()).then_some(Destination { address, weight, forwarding })
}

fn number(bytes: &[u8], offset: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.get(offset..)?.first_chunk::<4>()?))
}

fn short(bytes: &[u8], offset: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(*bytes.get(offset..)?.first_chunk::<2>()?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = (summary(&bytes), destination(&bytes));
        }
    }

    #[test]
    fn a_service_is_read_from_where_the_kernel_writes_it() {
        let mut entry = vec![0; size_of::<Entry>()];
        let mut put = |offset: usize, bytes: &[u8]| entry[offset..offset + bytes.len()].copy_from_slice(bytes);
        put(0, &17_u16.to_ne_bytes());
        put(4, &[10, 96, 0, 10]);
        put(8, &53_u16.to_be_bytes());
        put(16, b"mh\0");
        put(32, &(flags::HASHED | flags::SCHEDULER_1).to_ne_bytes());
        put(36, &60_u32.to_ne_bytes());
        put(44, &7_u32.to_ne_bytes());
        let address = IpAddr::from([10, 96, 0, 10]);
        let expected = Summary {
            key: ServiceKey::Address { address, protocol: Protocol::Udp, port: 53 },
            service: Service { scheduler: "mh".into(), flags: flags::SCHEDULER_1, persistence_seconds: 60 },
            destinations: 7,
        };
        assert_eq!(summary(&entry), Some(expected));
        assert_eq!(summary(&vec![0; size_of::<Entry>()]), None, "an entry that the kernel left empty");
    }

    #[test]
    fn the_fingerprint_of_a_listing_tells_every_property_and_neither_order_nor_traffic() {
        let spread = RandomState::default();
        let entry = |number: u8| (0..size_of::<Entry>()).map(|place| number ^ place as u8).collect::<Vec<u8>>();
        let listing = |entries: &[Vec<u8>]| Listing([vec![0; size_of::<Header>()], entries.concat()].concat());
        let fingerprint = |entries: &[Vec<u8>]| listing(entries).fingerprint(&spread);
        let former = fingerprint(&[entry(1), entry(2)]);
        assert_eq!(fingerprint(&[entry(2), entry(1)]), former);
        for place in 0..size_of::<Entry>() {
            let mut changed = entry(2);
            changed[place] ^= 0x40;
            let is_counter = place >= offset_of!(Entry, counters);
            assert_eq!(fingerprint(&[entry(1), changed]) == former, is_counter, "byte {place}");
        }
        for other in [vec![entry(1)], vec![entry(1), entry(2), entry(3)], vec![entry(1), entry(1)]] {
            assert_ne!(fingerprint(&other), former);
        }
    }

    #[test]
    fn a_service_is_described_as_the_kernel_will_describe_it() {
        let destinations = ["10.244.1.1:80", "10.244.1.2:80"].map(|address| Destination {
            address: address.parse().expect("an address and a port"),
            weight: 1,
            forwarding: Forwarding::Nat,
        });
        let service = Service { scheduler: "mh".into(), flags: flags::SCHEDULER_1, persistence_seconds: 60 };
        let described = Virtual { service: service.clone(), destinations: destinations.to_vec().into() };
        let address = ServiceKey::Address { address: [10, 96, 0, 10].into(), protocol: Protocol::Udp, port: 53 };
        for key in [address, ServiceKey::Mark { mark: 7, family: Family::V4 }] {
            let entry = description(&key, &described).expect("it is of IPv4");
            assert_eq!(summary(&entry), Some(Summary { key, service: service.clone(), destinations: 2 }));
        }
        assert_eq!(description(&ServiceKey::first_of_ipv6(), &described), None);
    }

    #[test]
    fn a_destination_is_read_from_where_the_kernel_writes_it() {
        let mut row = vec![0; size_of::<Row>()];
        let mut put = |offset: usize, bytes: &[u8]| row[offset..offset + bytes.len()].copy_from_slice(bytes);
        put(0, &[10, 244, 1, 5]);
        put(4, &8080_u16.to_be_bytes());
        put(8, &(0x100 | METHOD_TUNNEL).to_ne_bytes());
        put(12, &3_u32.to_ne_bytes());
        put(24, &9_u32.to_ne_bytes());
        let address = "10.244.1.5:8080".parse().expect("an address and a port");
        assert_eq!(destination(&row), Some(Destination { address, weight: 3, forwarding: Forwarding::Tunnel }));
        assert_eq!(destination(&vec![0; size_of::<Row>()]), None, "a place that the kernel left empty");
        assert_eq!((size_of::<Row>(), size_of::<Query>()), (96, 24));
    }

    #[test]
    fn a_query_names_a_service_and_the_places_for_its_destinations() {
        let address = IpAddr::from([10, 96, 0, 10]);
        let value = query(&ServiceKey::Address { address, protocol: Protocol::Udp, port: 53 }, 2).expect("it is IPv4");
        assert_eq!(value.len(), 24 + 2 * 96);
        let mut expected = vec![17, 0, 0, 0, 10, 96, 0, 10, 0, 53];
        expected.resize(16, 0);
        expected.extend(2_u32.to_ne_bytes());
        assert_eq!(value[..20], expected);
        assert!(query(&ServiceKey::Mark { mark: 7, family: Family::V6 }, 1).is_none());
    }
}
