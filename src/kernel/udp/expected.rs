//! Which datagrams take a place in a socket's queue: those of expected senders, and no others, however many somebody sends.
//!
//! A filter of the socket (`socket_filter`) judges a datagram in the context of its sender's packet, before it counts against the socket's buffer. The kernel counts
//! what it drops (`SO_MEMINFO`), together with what does not fit into the buffer.
//!
//! A program sees a datagram from the UDP header on, the IP header from `SKF_NET_OFF` on, and the link's index at `SKF_AD_IFINDEX` (linux/filter.h). IPv4 addresses are
//! compared as they are. Those of IPv6 are compared by a sum of their parts, each of which is multiplied by a secret number: two different addresses have the same sum with a
//! chance of 1 in 131,072 at most, and nobody knows which have. So the reader has to look at the source as well.

use std::collections::BTreeSet;
use std::hash::{BuildHasher, RandomState};
use std::net::{IpAddr, UdpSocket};
use std::os::fd::AsFd;

use super::super::Error;
use super::super::socket_filter::{
    self, DROP, Instruction, RECEIVE, add, add_kept, among, attach, keep, keep_value, load_1, load_2, load_4, multiply,
    skip, unless_less,
};

/// Senders of the datagrams that a socket is to receive, all of the socket's family.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Expected {
    pub sources: BTreeSet<IpAddr>,
    /// Indices of the links over which datagrams have to come, and with the highest TTL (hop limit); `None` where they may come from anywhere.
    pub links: Option<BTreeSet<u32>>,
    /// The least TTL (hop limit) that they may have left, where they may come from anywhere.
    pub least_ttl: u8,
}

/// `SKF_NET_OFF`, and `SKF_AD_OFF + SKF_AD_IFINDEX`.
const NETWORK: u32 = -0x10_0000_i32 as u32;
const LINK: u32 = (-0x1000_i32 + 8) as u32;
/// Offsets in the header of IPv4, and in that of IPv6.
const TTL: u32 = 8;
const SOURCE: u32 = 12;
const HOP_LIMIT: u32 = 7;
const SOURCE_6: u32 = 8;
/// Number of parts of 2 bytes of an IPv6 address.
const PARTS: usize = 8;
/// Sources in one program at most: so much fits into what a socket may have.
pub const MOST: usize = 2000;
/// From here on the kernel keeps a number as a negative one.
const HALF: u32 = 1 << 31;
/// Sources that are compared one after the other.
const ROW: usize = 64;

/// Has the kernel drop what comes from others, before it takes a place in the socket's queue. Another call replaces this one. Of more than [`MOST`] sources every source
/// is heard, and of more than [`socket_filter::MOST`] links every link.
///
/// # Errors
/// The kernel refuses.
pub fn expect(socket: &UdpSocket, expected: &Expected) -> Result<(), Error> {
    let chance = RandomState::new();
    let secrets = std::array::from_fn(|part| chance.hash_one(part) as u32);
    attach(socket.as_fd(), &program(expected, &secrets)).map_err(|errno| {
        let on = socket.local_addr().map_or_else(|_| "any address".to_owned(), |on| on.to_string());
        Error::errno("filter UDP on", on, errno)
    })
}

fn program(expected: &Expected, secrets: &[u32; PARTS]) -> Vec<Instruction> {
    let Some(first) = expected.sources.first() else { return vec![DROP] };
    let mut program = Vec::new();
    let load_ttl = load_1(NETWORK.wrapping_add(if first.is_ipv4() { TTL } else { HOP_LIMIT }));
    if expected.links.is_none() && expected.least_ttl > 0 {
        program.extend([load_ttl, unless_less(expected.least_ttl.into()), skip(1), DROP]);
    }
    if let Some(links) = &expected.links {
        program.push(load_ttl);
        program.extend(among(&[u32::from(u8::MAX)], DROP));
        let links: Vec<u32> = links.iter().copied().collect();
        if links.len() <= socket_filter::MOST {
            program.push(load_4(LINK));
            program.extend(among(&links, DROP));
        }
    }
    if expected.sources.len() > MOST {
        program.push(RECEIVE);
        return program;
    }
    match first {
        IpAddr::V4(_) => program.push(load_4(NETWORK.wrapping_add(SOURCE))),
        IpAddr::V6(_) => {
            program.push(keep_value(0));
            for (part, secret) in (0..).zip(secrets) {
                let offset = SOURCE_6 + 2 * part;
                program.extend([load_2(NETWORK.wrapping_add(offset)), multiply(*secret), add_kept(), keep()]);
            }
        }
    }
    let mut numbers: Vec<u32> = expected.sources.iter().map(|source| number(source, secrets)).collect();
    numbers.sort_unstable();
    let (lower, upper) = numbers.split_at(numbers.partition_point(|number| *number < HALF));
    let lower = search(lower);
    program.extend([unless_less(HALF), skip(length(&lower))]);
    program.extend(lower);
    // Greater numbers cost the kernel another instruction each.
    program.push(add(HALF));
    program.extend(search(&upper.iter().map(|number| number - HALF).collect::<Vec<_>>()));
    program
}

/// The number by which a source is found.
fn number(source: &IpAddr, secrets: &[u32; PARTS]) -> u32 {
    match source {
        IpAddr::V4(v4) => v4.to_bits(),
        IpAddr::V6(v6) => {
            let products =
                v6.segments().into_iter().zip(secrets).map(|(part, secret)| u32::from(part).wrapping_mul(*secret));
            products.fold(0, u32::wrapping_add)
        }
    }
}

/// Instructions that receive a message if the loaded number is among these, which are sorted, and drop it if not: halved until a row of them is left.
fn search(numbers: &[u32]) -> Vec<Instruction> {
    let (lower, upper) = numbers.split_at(numbers.len() / 2);
    let Some(middle) = upper.first().filter(|_| numbers.len() > ROW) else {
        return among(numbers, DROP).chain([RECEIVE]).collect();
    };
    let lower = search(lower);
    [unless_less(*middle), skip(length(&lower))].into_iter().chain(lower).chain(search(upper)).collect()
}

fn length(program: &[Instruction]) -> u32 {
    u32::try_from(program.len()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRETS: [u32; PARTS] = [1, 0x9e37_79b9, 0x7f4a_7c15, 0xbf58_476d, 0x1ce4_e5b9, 0x94d0_49bb, 0x1331_11eb, 77];

    /// A datagram with its link.
    #[derive(Clone, Copy)]
    struct Packet {
        from: IpAddr,
        ttl: u8,
        link: u32,
    }

    fn passes(program: &[Instruction], packet: Packet) -> bool {
        let mut header = [0_u8; 40];
        match packet.from {
            IpAddr::V4(from) => {
                header[8] = packet.ttl;
                header[12..16].copy_from_slice(&from.octets());
            }
            IpAddr::V6(from) => {
                header[7] = packet.ttl;
                header[8..24].copy_from_slice(&from.octets());
            }
        }
        let load = |offset: u32, size: usize| {
            if offset == LINK {
                return Some(packet.link);
            }
            let bytes = header.get(offset.wrapping_sub(NETWORK) as usize..)?.get(..size)?;
            Some(bytes.iter().fold(0, |number, byte| number << 8 | u32::from(*byte)))
        };
        socket_filter::passes(program, load)
    }

    fn of(source: IpAddr) -> Expected {
        Expected { sources: BTreeSet::from([source]), ..Expected::default() }
    }

    /// Every other address of a network.
    fn sources(is_v4: bool, count: u32) -> (BTreeSet<IpAddr>, BTreeSet<IpAddr>) {
        let address = |number: u32| -> IpAddr {
            if is_v4 {
                // On both sides of the middle.
                return IpAddr::from((0x7fff_ff00 + number).to_be_bytes());
            }
            IpAddr::from([0x2001, 0xdb8, (number >> 16) as u16, number as u16, 0, 0, 0, number as u16])
        };
        let every_other = |first: u32| (0..count).map(|number| address(2 * number + first)).collect();
        (every_other(0), every_other(1))
    }

    #[test]
    fn expected_sources_are_received_and_others_are_not_in_both_families() {
        for is_v4 in [true, false] {
            for count in [1, 2, 63, 64, 65, 500, 1000, MOST as u32] {
                let (known, others) = sources(is_v4, count);
                let program = program(&Expected { sources: known.clone(), ..Expected::default() }, &SECRETS);
                let from = |from: &IpAddr| passes(&program, Packet { from: *from, ttl: 64, link: 9 });
                assert!(known.iter().all(from), "{count}");
                assert_eq!(others.iter().filter(|one| from(one)).count(), 0, "{count}");
            }
        }
    }

    #[test]
    fn a_neighbour_on_the_link_is_heard_over_its_link_and_with_the_highest_ttl_alone() {
        for from in ["192.0.2.2", "2001:db8::2"].map(|text| text.parse::<IpAddr>().unwrap()) {
            let expected = Expected { links: Some(BTreeSet::from([2, 7])), ..of(from) };
            let program = program(&expected, &SECRETS);
            let arrives = |ttl, link| passes(&program, Packet { from, ttl, link });
            assert!(arrives(255, 2) && arrives(255, 7));
            assert!(!arrives(254, 2) && !arrives(0, 2), "it has passed a router");
            assert!(!arrives(255, 3) && !arrives(255, 0), "a pod has sent it");
        }
    }

    #[test]
    fn a_neighbour_that_may_be_so_many_hops_away_is_not_heard_from_farther() {
        for from in ["192.0.2.2", "2001:db8::2"].map(|text| text.parse::<IpAddr>().unwrap()) {
            let program = program(&Expected { least_ttl: 254, ..of(from) }, &SECRETS);
            let arrives = |ttl| passes(&program, Packet { from, ttl, link: 9 });
            assert!(arrives(255) && arrives(254));
            assert!(!arrives(253) && !arrives(64) && !arrives(0));
        }
    }

    #[test]
    fn nobody_is_heard_where_nobody_is_expected_and_over_no_link_where_none_is_known() {
        let from = IpAddr::from([192, 0, 2, 2]);
        let packet = Packet { from, ttl: 255, link: 2 };
        assert!(!passes(&program(&Expected::default(), &SECRETS), packet));
        let unknown = Expected { links: Some(BTreeSet::new()), ..of(from) };
        assert!(!passes(&program(&unknown, &SECRETS), packet));
    }

    #[test]
    fn more_sources_and_links_than_fit_are_all_heard() {
        let (known, _) = sources(true, MOST as u32 + 1);
        let links = (1..=socket_filter::MOST as u32 + 1).collect();
        let program = program(&Expected { sources: known, links: Some(links), least_ttl: 0 }, &SECRETS);
        let packet = Packet { from: IpAddr::from([203, 0, 113, 1]), ttl: 255, link: 9999 };
        assert!(passes(&program, packet) && !passes(&program, Packet { ttl: 64, ..packet }));
    }

    #[test]
    fn a_thousand_sources_fit_twice_into_what_a_socket_of_an_old_kernel_may_have_and_the_most_fit_once() {
        let size = |count: u32, is_v4| {
            let links = Some((1..=4).collect());
            let program = program(&Expected { sources: sources(is_v4, count).0, links, least_ttl: 0 }, &SECRETS);
            socket_filter::weight(&program)
        };
        for is_v4 in [true, false] {
            assert!(2 * size(1000, is_v4) < 20 * 1024, "{}", size(1000, is_v4));
            assert!(size(MOST as u32, is_v4) < 20 * 1024, "{}", size(MOST as u32, is_v4));
        }
    }
}
