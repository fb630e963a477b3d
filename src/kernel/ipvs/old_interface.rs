//! All IPv4 virtual services in one system call, each with the number of its destinations; and the destinations of one in
//! another.
//!
//! Kernel: `getsockopt` of `IP_VS_SO_GET_INFO`, `IP_VS_SO_GET_SERVICES` and `IP_VS_SO_GET_DESTS` (include/uapi/linux/ip_vs.h), the
//! interface that IPVS had before netlink. It knows IPv4 only, and costs a small part of listing the same by netlink, which
//! does not say how many destinations a service has without listing them. It does not tell kinds of tunnels apart.
#![expect(unsafe_code, reason = "no safe interface reads socket options of IPVS")]

use std::ffi::c_int;
use std::mem::offset_of;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::os::fd::{AsRawFd, OwnedFd};

use compact_str::CompactString;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

use super::{Destination, Forwarding, Service, ServiceKey, flags};
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

    /// Returns the IPv4 services of the namespace. Those that come while this reads may be left out.
    ///
    /// # Errors
    /// The kernel has no IPVS, or services went while this was reading.
    pub fn services(&self) -> Result<Vec<Summary>, Errno> {
        let mut info = [0; size_of::<Info>()];
        self.get(GET_INFO, &mut info)?;
        let count = number(&info, offset_of!(Info, services)).unwrap_or_default();
        let entries = usize::try_from(count).unwrap_or_default();
        let mut answer = vec![0; size_of::<Header>() + entries * size_of::<Entry>()];
        if let Some(place) = answer.get_mut(..4) {
            place.copy_from_slice(&count.to_ne_bytes());
        }
        self.get(GET_SERVICES, &mut answer)?;
        let table = answer.get(size_of::<Header>()..).unwrap_or_default();
        Ok(table.chunks_exact(size_of::<Entry>()).filter_map(summary).collect())
    }

    /// Returns whether an IPv4 service has exactly these destinations. `known` is sorted by address.
    ///
    /// # Errors
    /// `ESRCH` where there is no such service.
    pub fn has(&self, key: &ServiceKey, known: &[Destination]) -> Result<bool, Errno> {
        // The kernel does not say how many it wrote: a place more than known is left empty where there is no other.
        let count = known.len() + 1;
        let mut answer = query(key, count).ok_or(Errno::INVAL)?;
        self.get(GET_DESTINATIONS, &mut answer)?;
        let table = answer.get(size_of::<Query>()..).unwrap_or_default();
        let mut rows = table.chunks_exact(size_of::<Row>());
        let is_known = |row: &[u8]| destination(row).is_some_and(|found| known.binary_search(&found).is_ok());
        // Each destination is there once, so as many known ones are all of them.
        Ok(rows.by_ref().take(known.len()).all(is_known) && rows.all(|row| row.iter().all(|byte| *byte == 0)))
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

/// A service of the table; `None` where the entry is empty or of a protocol that is never ours.
fn summary(entry: &[u8]) -> Option<Summary> {
    let scheduler = entry.get(offset_of!(Entry, scheduler)..)?.get(..16)?;
    let scheduler = scheduler.split(|byte| *byte == 0).next()?;
    let scheduler = CompactString::from_utf8(scheduler).ok()?;
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
