//! All virtual services with all their destinations in one file: `/proc/net/ip_vs`.
//!
//! Reading it costs a fraction of listing the destinations of each service by netlink, and it knows IPv6. It cannot be asked for single
//! services. It is read in portions ([`Listing::read_some`]), between which services come and go, so that one may be passed over: what
//! is not found as it was seen is read by netlink before anything follows from it. The file does not tell kinds of tunnels apart, and says neither the
//! flags of a scheduler nor that a UDP service of IPv6 schedules every packet alone: audits see these.
//!
//! ```text
//! TCP  [fd00:0010:0096:0000:0000:0000:0000:0001]:0050 rr persistent 10800 128
//!   -> [fd00:0010:0244:0000:0000:0000:0000:0005]:1F90      Masq    1      0          0
//! ```
//!
//! Kernel: `ip_vs_info_seq_show` (net/netfilter/ipvs/ip_vs_ctl.c). It writes a page at a time, and finds the place to go on by walking all services
//! before it: the price of all pages grows with the square of the number of services.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::net::{IpAddr, Ipv6Addr};

use super::{Destination, Forwarding, ServiceKey, Virtual, flags};
use crate::net::Protocol;

/// Of the network namespace of the calling thread.
const FILE: &str = "/proc/thread-self/net/ip_vs";

/// Bytes of a portion: what is read and compared in some tenths of a millisecond.
const PORTION: usize = 1 << 16;

/// A reading of the file, which may be in progress.
#[derive(Default, Debug)]
pub struct Listing {
    file: Option<File>,
    /// The beginning of a service that the next portion goes on with.
    rest: Vec<u8>,
    /// The IPv6 services listed, each with a number that follows from all that is said of it.
    listed: HashMap<ServiceKey, u64>,
}

impl Listing {
    /// Reads the next portion, the first one where none has been read. Returns whether the file has been read to its end.
    ///
    /// # Errors
    /// There is no such file: no IPVS, or no `/proc`.
    pub fn read_some(&mut self) -> io::Result<bool> {
        let mut file = match self.file.take() {
            Some(file) => file,
            None => {
                *self = Listing::default();
                File::open(FILE)?
            }
        };
        let (begun, mut place) = (self.rest.len(), self.rest.len());
        self.rest.resize(begun + PORTION, 0);
        while let Some(free @ [_, ..]) = self.rest.get_mut(place..) {
            match file.read(free)? {
                0 => break,
                read => place += read,
            }
        }
        let is_over = place < self.rest.len();
        self.rest.truncate(place);
        self.take_in(is_over);
        if !is_over {
            self.file = Some(file);
        }
        Ok(is_over)
    }

    /// Returns those of these services that are not listed as they were seen.
    pub fn unlike<'a>(&self, services: impl Iterator<Item = (&'a ServiceKey, Option<&'a Virtual>)>) -> Vec<ServiceKey> {
        let is_listed = |key: &ServiceKey, seen: Option<&Virtual>| {
            seen.is_some_and(|seen| self.listed.get(key) == Some(&number_of(seen)))
        };
        services.filter(|(key, seen)| !is_listed(key, *seen)).map(|(key, _)| *key).collect()
    }

    /// Reads the services of the text, but for the last one where more may be said of it.
    fn take_in(&mut self, is_over: bool) {
        let text = std::mem::take(&mut self.rest);
        let (mut begun, mut open) = (0, None::<Listed>);
        for line in text.split_inclusive(|byte| *byte == b'\n') {
            let at = begun;
            begun += line.len();
            if !is_over && !line.ends_with(b"\n") {
                break;
            }
            if let Some(line) = line.strip_prefix(b"  ->") {
                open.iter_mut().for_each(|open| open.add(destination(line)));
                continue;
            }
            self.close(open.take());
            open = service(line).map(|listed| Listed { at, ..listed });
        }
        if is_over {
            self.close(open);
            return;
        }
        let complete = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |last| last + 1);
        let from = open.map_or(complete, |open| open.at);
        self.rest = text.get(from..).unwrap_or_default().to_vec();
    }

    fn close(&mut self, listed: Option<Listed>) {
        // One that is not understood is not as it was seen.
        if let Some(Listed { key, number: Some(number), .. }) = listed {
            self.listed.insert(key, number);
        }
    }
}

/// A virtual service of IPv6, as the file says it.
struct Listed {
    /// Place of its line in the text.
    at: usize,
    key: ServiceKey,
    /// Sum over all that was listed of it so far; `None` where something was not understood.
    number: Option<u64>,
}

impl Listed {
    fn add(&mut self, destination: Option<u64>) {
        self.number = self.number.zip(destination).map(|(number, more)| number.wrapping_add(more));
    }
}

/// Returns the number that follows from what was seen of a service; different ones of different services, but by chance. The
/// order of destinations does not matter.
fn number_of(seen: &Virtual) -> u64 {
    let is_persistent = seen.service.flags & flags::PERSISTENT != 0;
    let seconds = if is_persistent { seen.service.persistence_seconds } else { 0 };
    let destinations = seen.destinations.iter().map(|Destination { address, weight, forwarding }| {
        let IpAddr::V6(ip) = address.ip() else { return 0 };
        number_of_destination(ip, address.port(), weight, forwarding)
    });
    destinations.fold(number_of_service(seen.service.scheduler.as_bytes(), seconds), u64::wrapping_add)
}

fn number_of_service(scheduler: &[u8], persistence_seconds: u32) -> u64 {
    scheduler.iter().fold(mixed(u64::from(persistence_seconds)), |number, byte| mixed(number ^ u64::from(*byte)))
}

fn number_of_destination(address: Ipv6Addr, port: u16, weight: u32, forwarding: Forwarding) -> u64 {
    let method = match forwarding {
        Forwarding::Nat => 0,
        Forwarding::Tunnel => 1,
        Forwarding::Other(method) => u64::from(method) + 2,
    };
    let bits = address.to_bits();
    let address = mixed(mixed((bits >> 64) as u64) ^ bits as u64);
    mixed(address ^ (u64::from(weight) << 32 | u64::from(port) << 16 | method))
}

/// Spreads the bits of a number (the last steps of SplitMix64). Hashes of the standard library cost as much as all of the file's text.
fn mixed(number: u64) -> u64 {
    let number = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let number = (number ^ number >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ number >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ number >> 31
}

/// A line of a service; `None` where it is none of IPv6.
fn service(line: &[u8]) -> Option<Listed> {
    let mut words = words(line);
    let protocol = match words.next()? {
        b"TCP" => Protocol::Tcp,
        b"UDP" => Protocol::Udp,
        b"SCTP" => Protocol::Sctp,
        _ => return None,
    };
    let (address, port) = address(words.next()?)?;
    let scheduler = words.next()?;
    let persistence_seconds = match words.next() {
        Some(b"persistent") => decimal(words.next()?)?,
        _ => 0,
    };
    let key = ServiceKey::Address { address: address.into(), protocol, port };
    Some(Listed { at: 0, key, number: Some(number_of_service(scheduler, persistence_seconds)) })
}

/// A line of a destination, behind its arrow.
fn destination(line: &[u8]) -> Option<u64> {
    let mut words = words(line);
    let (address, port) = address(words.next()?)?;
    let forwarding = match words.next()? {
        b"Masq" => Forwarding::Nat,
        b"Tunnel" => Forwarding::Tunnel,
        _ => return None,
    };
    Some(number_of_destination(address, port, decimal(words.next()?)?, forwarding))
}

fn words(line: &[u8]) -> impl Iterator<Item = &[u8]> {
    line.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty())
}

/// `[fd00:0010:0096:0000:0000:0000:0000:0001]:0050`: always whole, and the port is hexadecimal.
fn address(word: &[u8]) -> Option<(Ipv6Addr, u16)> {
    let (address, port) = word.strip_prefix(b"[")?.split_at_checked(39)?;
    let mut bits = 0;
    for group in address.chunks(5) {
        let (digits, colon) = group.split_at_checked(4)?;
        if !matches!(colon, b":" | b"") {
            return None;
        }
        bits = bits << 16 | u128::from(hexadecimal(digits)?);
    }
    Some((Ipv6Addr::from_bits(bits), hexadecimal(port.strip_prefix(b"]:")?)?))
}

/// Four digits.
fn hexadecimal(digits: &[u8]) -> Option<u16> {
    let digits: &[u8; 4] = digits.try_into().ok()?;
    digits.iter().try_fold(0, |number, digit| Some(number << 4 | char::from(*digit).to_digit(16)? as u16))
}

fn decimal(digits: &[u8]) -> Option<u32> {
    std::str::from_utf8(digits).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::net::SocketAddr;

    use super::super::Service;
    use super::*;
    use proptest::prelude::*;

    const TEXT: &str = "IP Virtual Server version 1.2.1 (size=4096)\n\
        Prot LocalAddress:Port Scheduler Flags\n\
        \x20 -> RemoteAddress:Port Forward Weight ActiveConn InActConn\n\
        TCP  0A600001:0050 rr  \n\
        \x20 -> 0AF40005:1F90      Masq    1      0          0         \n\
        TCP  [fd00:0010:0096:0000:0000:0000:0000:0001]:0050 rr \n\
        \x20 -> [fd00:0010:0244:0000:0000:0000:0000:0006]:1F90      Masq    1      0          0         \n\
        \x20 -> [fd00:0010:0244:0000:0000:0000:0000:0005]:1F90      Tunnel  0      2          3         \n\
        UDP  [fd00:0010:0096:0000:0000:0000:0000:0002]:0035 sh persistent 10800 128\n\
        FWM  00000007 rr \n\
        SCTP  [fd00:0010:0096:0000:0000:0000:0000:0003]:0035 rr \n\
        \x20 -> [fd00:0010:0244:0000:0000:0000:0000:0005]:1F90      Route   1      0          0         \n";

    fn key(protocol: Protocol, last: u16, port: u16) -> ServiceKey {
        let address = IpAddr::from([0xfd00, 0x10, 0x96, 0, 0, 0, 0, last]);
        ServiceKey::Address { address, protocol, port }
    }

    fn seen() -> BTreeMap<ServiceKey, Virtual> {
        let destination = |last, weight, forwarding| Destination {
            address: SocketAddr::new(IpAddr::from([0xfd00, 0x10, 0x244, 0, 0, 0, 0, last]), 8080),
            weight,
            forwarding,
        };
        let service = |scheduler: &str, seconds: u32| Service {
            scheduler: scheduler.into(),
            flags: if seconds > 0 { flags::PERSISTENT } else { 0 },
            persistence_seconds: seconds,
        };
        let two = [destination(5, 0, Forwarding::Tunnel), destination(6, 1, Forwarding::Nat)];
        [
            (key(Protocol::Tcp, 1, 80), Virtual { service: service("rr", 0), destinations: two.into() }),
            (key(Protocol::Udp, 2, 53), Virtual { service: service("sh", 10_800), destinations: [].into() }),
        ]
        .into()
    }

    /// Reads the text in portions of so many bytes.
    fn unlike(text: &[u8], portion: usize, seen: &BTreeMap<ServiceKey, Virtual>) -> Vec<ServiceKey> {
        let mut listing = Listing::default();
        for some in text.chunks(portion) {
            listing.rest.extend(some);
            listing.take_in(false);
        }
        listing.take_in(true);
        listing.unlike(seen.iter().map(|(key, known)| (key, Some(known))))
    }

    #[test]
    fn services_that_are_listed_as_they_were_seen_are_alike_wherever_portions_end() {
        for portion in 1..TEXT.len() {
            assert_eq!(unlike(TEXT.as_bytes(), portion, &seen()), [], "portions of {portion} bytes");
        }
    }

    #[test]
    fn every_difference_that_the_text_says_is_found() {
        let keys: Vec<ServiceKey> = seen().into_keys().collect();
        let [tcp, udp] = keys[..] else { panic!("two") };
        for (from, to, expected) in [
            ("0001]:0050 rr", "0001]:0050 lc", tcp),
            ("0001]:0050 rr", "0009]:0050 rr", tcp),
            ("0006]:1F90      Masq    1", "0006]:1F90      Masq    2", tcp),
            ("0006]:1F90", "0006]:1F91", tcp),
            ("0006]:1F90", "0007]:1F90", tcp),
            ("Tunnel", "Masq  ", tcp),
            ("Tunnel", "Route ", tcp),
            ("persistent 10800", "persistent 60", udp),
            (" persistent 10800 128", "", udp),
            ("UDP ", "TCP ", udp),
        ] {
            let text = TEXT.replace(from, to);
            assert_ne!(text, TEXT, "{from}");
            assert_eq!(unlike(text.as_bytes(), 100, &seen()), [expected], "{from} became {to}");
        }
        let mut more = seen();
        more.insert(key(Protocol::Sctp, 3, 53), more[&udp].clone());
        assert_eq!(unlike(TEXT.as_bytes(), 100, &more), [key(Protocol::Sctp, 3, 53)], "a method that is never ours");
    }

    proptest! {
        #[test]
        fn no_text_makes_the_reader_panic(text in "(TCP|  ->|FWM)?[ \\[\\]:0-9a-fA-F\n-]{0,200}") {
            let keys: Vec<ServiceKey> = seen().into_keys().collect();
            prop_assert_eq!(unlike(text.as_bytes(), 100, &seen()), keys);
        }
    }
}
