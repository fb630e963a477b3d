//! Keys of TCP MD5 on a listening socket: one for each neighbour with a password, or few for many.
//!
//! The kernel keeps the keys of a socket in a list that it searches for each new connection, in memory of which a socket may have
//! little (`net.core.optmem_max`, 20 KiB for a long time: about a hundred keys). A cluster has more nodes than that, all with one
//! password. From some number on a key is therefore for a whole prefix: the shortest that has only neighbours with that password in
//! it (`TCP_MD5SIG_EXT`, Linux 4.13). Addresses there that are no neighbour's need the key as well, and are refused without it by
//! the kernel, and with it by us.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

use super::super::transport::Password;
use crate::net::link_local::of_socket;
use crate::net::{Family, LinkLocal, number_of};

/// All neighbours, with their passwords.
pub(super) type Passwords = BTreeMap<IpAddr, Option<Password>>;
/// Keys of a socket.
pub(super) type Keys = BTreeMap<IpNet, Password>;

/// Number of neighbours with a password up to which each has a key of its own.
const SEVERAL: usize = 64;

/// The keys for the neighbours with a password that may connect to a socket: those of its family, and on a link those on that link alone. Neighbours on two links
/// may have one address.
pub(super) fn keys(passwords: &Passwords, socket: SocketAddr) -> Keys {
    let family = Family::from(socket.ip());
    let link = |address: IpAddr| LinkLocal::within(address).map(LinkLocal::link);
    let of_socket = link(of_socket(socket));
    let of_family: Vec<(IpAddr, Option<&Password>)> = passwords
        .iter()
        .filter(|(address, _)| Family::from(**address) == family && link(**address) == of_socket)
        .map(|(address, password)| (*address, password.as_ref()))
        .collect();
    let with = of_family.iter().filter_map(|(address, password)| Some((IpNet::from(*address), (*password)?.clone())));
    match with.clone().count() {
        0..=SEVERAL => with.collect(),
        _ => {
            let mut keys = Keys::new();
            cover(&of_family, &mut keys);
            keys
        }
    }
}

/// The key for a neighbour.
pub(super) fn key_of(keys: &Keys, of: IpAddr) -> Option<&Password> {
    let lengths = (0..=Family::from(of).host_bits()).rev();
    let mut prefixes = lengths.filter_map(|length| IpNet::new(of, length).ok()).map(|prefix| prefix.trunc());
    prefixes.find_map(|prefix| keys.get(&prefix))
}

/// Adds the keys for neighbours in the order of their addresses: one where all have the same password, and else those of both halves
/// of the shortest prefix around them.
fn cover(neighbours: &[(IpAddr, Option<&Password>)], keys: &mut Keys) {
    let (Some((first, password)), Some((last, _))) = (neighbours.first(), neighbours.last()) else { return };
    let around = around(*first, *last);
    if neighbours.iter().all(|(_, other)| other == password) {
        keys.extend(password.map(|password| (around, password.clone())));
        return;
    }
    // They differ in the bit behind the prefix, because it is the shortest one.
    let upper = neighbours.partition_point(|(address, _)| !has_bit(*address, around.prefix_len()));
    let (lower, upper) = neighbours.split_at(upper);
    cover(lower, keys);
    cover(upper, keys);
}

/// The longest prefix that has both.
fn around(one: IpAddr, other: IpAddr) -> IpNet {
    let bits = Family::from(one).host_bits();
    let unused = 128 - u32::from(bits);
    let common = (number_of(one) ^ number_of(other)).leading_zeros().saturating_sub(unused);
    let length = u8::try_from(common).unwrap_or(bits).min(bits);
    IpNet::new(one, length).map_or(IpNet::from(one), |prefix| prefix.trunc())
}

/// Returns whether the bit behind so many others is set.
fn has_bit(address: IpAddr, place: u8) -> bool {
    let bits = Family::from(address).host_bits();
    bits.checked_sub(place + 1).is_some_and(|shift| number_of(address) >> shift & 1 == 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::address_of;

    fn at(family: Family, number: u32) -> IpAddr {
        let first = if family == Family::V4 { "10.0.0.0" } else { "2001:db8::" };
        address_of(family, number_of(first.parse().unwrap()) + u128::from(number))
    }

    fn socket(family: Family) -> SocketAddr {
        SocketAddr::new(at(family, 0), 179)
    }

    #[test]
    fn a_socket_on_a_link_has_the_keys_of_neighbours_on_that_link_alone() {
        let on_link = |link| LinkLocal::new("fe80::7".parse().unwrap(), link).unwrap().combined();
        let global = at(Family::V6, 7);
        let passwords = Passwords::from([
            (on_link(5), password("one")),
            (on_link(6), password("two")),
            (global, password("three")),
        ]);
        for (on, neighbour, its) in
            [(on_link(5), on_link(5), "one"), (on_link(6), on_link(6), "two"), (global, global, "three")]
        {
            let keys = keys(&passwords, crate::net::link_local::to_socket(on, 179));
            assert_eq!((keys.len(), key_of(&keys, neighbour)), (1, password(its).as_ref()));
        }
    }

    fn password(text: &str) -> Option<Password> {
        Password::new(text).ok()
    }

    fn text(keys: &Keys) -> String {
        keys.keys().map(ToString::to_string).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn few_neighbours_have_a_key_each_and_many_nodes_share_one() {
        for (family, few, many) in
            [(Family::V4, "10.0.0.5/32", "10.0.0.0/20"), (Family::V6, "2001:db8::5/128", "2001:db8::/116")]
        {
            let mut passwords = Passwords::from([(at(family, 5), password("one")), (at(family, 6), None)]);
            assert_eq!(text(&keys(&passwords, socket(family))), few);
            passwords = (0..4096).map(|number| (at(family, number), password("one"))).collect();
            assert_eq!(text(&keys(&passwords, socket(family))), many);
            let other = if family == Family::V4 { Family::V6 } else { Family::V4 };
            assert!(keys(&passwords, socket(other)).is_empty());
        }
    }

    #[test]
    fn every_neighbour_has_its_own_password_or_none_however_they_lie() {
        // A generator of Lehmer's, so that a failure comes again.
        let mut state = 48271_u64;
        let mut next = |below: u64| {
            state = state * 48271 % 2_147_483_647;
            state % below
        };
        for round in 0..200 {
            let family = if round % 2 == 0 { Family::V4 } else { Family::V6 };
            let mut one = || {
                (
                    at(family, next(5000) as u32),
                    [password("one"), password("one"), password("two"), None][next(4) as usize].clone(),
                )
            };
            let passwords: Passwords = (0..300).map(|_| one()).collect();
            let keys = keys(&passwords, socket(family));
            for (address, password) in &passwords {
                assert_eq!(key_of(&keys, *address), password.as_ref(), "{address}");
            }
        }
        let odd = Passwords::from([(at(Family::V4, 0), None)]);
        let mut all = odd.clone();
        all.extend((1..=1000).map(|number| (at(Family::V4, number), password("one"))));
        let keys = keys(&all, socket(Family::V4));
        assert!(keys.len() <= 12, "one that has none costs a prefix for each bit: {}", text(&keys));
        assert_eq!(key_of(&keys, at(Family::V4, 0)), None);
    }
}
