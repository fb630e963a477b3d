//! The routes that neighbours tell, and whether what a neighbour hears is exactly what it should hear.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::{IpAddr, Ipv4Addr};
use std::rc::Rc;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use sluice::net::Family;

use crate::wire::{self, Attributes, Hello, Update};

/// How many prefixes share their attributes.
const SHARED: usize = 5;
/// Prefixes that are spread as those of the Internet are.
const FIRST: u32 = 1 << 28;
const APART: u32 = 9;

/// Routes that one neighbour receives: for each prefix the expected and the present one.
pub struct Heard {
    asn: u32,
    own: IpAddr,
    /// Hash of the expected route, with the next hop of its origin and with that of the daemon in between.
    wanted: Vec<Option<[u64; 2]>>,
    known: Vec<Option<u64>>,
    wrong: usize,
}

/// The address of a neighbour.
pub fn address(neighbour: usize) -> Ipv4Addr {
    let number = neighbour as u32;
    Ipv4Addr::from(0xc612_0100 + (number / 250) * 256 + 1 + number % 250)
}

pub fn prefix(number: usize) -> IpNet {
    Ipv4Net::new(Ipv4Addr::from(FIRST + ((number as u32) << APART)), 24).expect("a length").into()
}

fn number(prefix: IpNet) -> Option<usize> {
    let IpNet::V4(prefix) = prefix else { return None };
    let offset = prefix.network().to_bits().checked_sub(FIRST)?;
    (offset % (1 << APART) == 0 && prefix.prefix_len() == 24).then_some((offset >> APART) as usize)
}

/// The range of a node's pods.
pub fn pods(neighbour: usize, family: Family) -> IpNet {
    match family {
        Family::V4 => {
            Ipv4Net::new(Ipv4Addr::from(0x0a00_0000 + ((neighbour as u32 + 1) << 8)), 24).expect("a length").into()
        }
        Family::V6 => {
            let bits = 0xfd00_0010_0244 << 80 | (neighbour as u128 + 1) << 64;
            Ipv6Net::new(bits.into(), 64).expect("a length").into()
        }
    }
}

/// Attributes of a neighbour's route for a prefix. No two of the first three neighbours have paths of one length for it, and of the first two the first one
/// has the shorter path for two of three prefixes.
pub fn attributes(hello: Hello, neighbour: usize, prefix: usize, internal: bool) -> Attributes {
    let number = (prefix / SHARED) as u32;
    let hops = 1 + (number as usize + neighbour) % 3;
    let others = [1000 + number % 40, 2000 + number % 900, 10_000 + number];
    let first = (!internal).then_some(hello.asn);
    Attributes {
        path: first.into_iter().chain(others[..hops].iter().copied()).collect(),
        communities: vec![((64600 + neighbour as u32) << 16) | (number % 500)],
        next_hop: hello.identifier.into(),
        internal,
    }
}

/// A whole table, as the bytes of the messages that tell it.
pub fn table(said: impl Iterator<Item = (usize, Attributes)>) -> Rc<[u8]> {
    let all: Vec<(usize, Attributes)> = said.collect();
    let together = all.chunk_by(|(_, one), (_, other)| one == other);
    let message = |some: &[(usize, Attributes)]| {
        let prefixes: Vec<IpNet> = some.iter().map(|(number, _)| prefix(*number)).collect();
        prefixes.chunks(500).flat_map(|prefixes| wire::update(&some[0].1, prefixes)).collect::<Vec<u8>>()
    };
    together.flat_map(message).collect()
}

impl Heard {
    /// Nothing is known yet, and nothing should be. `own`: the address of the daemon between, `asn` its number.
    pub fn new(asn: u32, own: Ipv4Addr, prefixes: usize) -> Heard {
        Heard { asn, own: own.into(), wanted: vec![None; prefixes], known: vec![None; prefixes], wrong: 0 }
    }

    /// This is what should be known of a prefix.
    pub fn want(&mut self, prefix: usize, attributes: &Attributes) {
        self.wrong -= usize::from(!self.is_right(prefix));
        let look = |next_hop| looks(&attributes.path, &attributes.communities, next_hop);
        self.wanted[prefix] = Some([look(attributes.next_hop), look(self.own)]);
        self.wrong += usize::from(!self.is_right(prefix));
    }

    /// How many prefixes are not as they should be.
    pub fn wrong(&self) -> usize {
        self.wrong
    }

    /// Whether it has what it should know.
    pub fn is_right(&self, prefix: usize) -> bool {
        match (self.wanted[prefix], self.known[prefix]) {
            (None, None) => true,
            (Some(wanted), Some(known)) => wanted.contains(&known),
            (None, Some(_)) | (Some(_), None) => false,
        }
    }

    /// Forgets what it has heard: its session has ended.
    pub fn forget(&mut self) {
        self.known.fill(None);
        self.wrong = self.wanted.iter().flatten().count();
    }

    /// Takes in what has come.
    pub fn take(&mut self, update: &Update) {
        for prefix in update.withdrawn.iter().filter_map(|prefix| number(*prefix)) {
            self.set(prefix, None);
        }
        if let Some(next_hop) = update.next_hop {
            // A daemon between systems puts its own number before the others.
            let path = update.path.strip_prefix(&[self.asn]).unwrap_or(&update.path);
            let known = looks(path, &update.communities, next_hop);
            for prefix in update.announced.iter().filter_map(|prefix| number(*prefix)) {
                self.set(prefix, Some(known));
            }
        }
    }

    fn set(&mut self, prefix: usize, known: Option<u64>) {
        self.wrong -= usize::from(!self.is_right(prefix));
        self.known[prefix] = known;
        self.wrong += usize::from(!self.is_right(prefix));
    }
}

fn looks(path: &[u32], communities: &[u32], next_hop: IpAddr) -> u64 {
    let mut hasher = DefaultHasher::new();
    (path, communities, next_hop).hash(&mut hasher);
    hasher.finish()
}
