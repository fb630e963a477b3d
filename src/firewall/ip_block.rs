//! `ipBlock`: peers given as an address range with exceptions.
//!
//! Kubernetes: `NetworkPolicyPeer.ipBlock { cidr, except[] }`. An address matches when it lies in `cidr` and in none of
//! `except`. The blocks of one rule are alternatives: one match is enough, so a hole is a hole in its own block only and
//! another block may fill it.
//!
//! In the kernel the blocks of a rule are one set. Excluding elements (`nomatch`) would be shorter, but they cut a hole into every block of the
//! set. So the blocks are ranges here that neither overlap nor touch: a hole is one range more. Where the kernel's sets know prefixes alone, a range becomes several, and a hole
//! costs at most 32 of them (128 for IPv6); how many a policy may have `oversized` says.
//!
//! A whole family (`0.0.0.0/0`, `::/0`) is one prefix of length 0; that `hash:net` refuses it is the backend's
//! concern. Addresses are compared as they are seen on this node: blocks match pods of the cluster too, and traffic
//! whose source was translated on its way matches by the translated address.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use crate::net::Family;

use super::rules::Block;

/// Addresses of one family from the first to the last, both included, as numbers.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Span {
    pub first: u128,
    pub last: u128,
}

/// Returns the addresses of one family in all blocks, as spans that neither overlap nor touch; sorted.
pub fn spans(blocks: &[Block], family: Family) -> Vec<Span> {
    let of_family = blocks.iter().filter(|block| Family::from(block.cidr) == family);
    let mut spans: Vec<Span> = of_family.flat_map(without_holes).collect();
    spans.sort();
    let mut joined: Vec<Span> = Vec::new();
    for span in spans {
        match joined.last_mut() {
            // The first address behind the last span; none if that span reaches the end of the address space.
            Some(last) if last.last.checked_add(1).is_none_or(|behind| span.first <= behind) => {
                last.last = last.last.max(span.last);
            }
            _ => joined.push(span),
        }
    }
    joined
}

/// Returns the most spans that the blocks may have, of both families together.
pub fn most_spans(blocks: &[Block]) -> usize {
    blocks.iter().map(|block| 1 + block.except.len()).sum()
}

/// Returns whether a block of this family has exceptions. Without them the blocks have at most as many prefixes as they are.
pub fn has_holes(blocks: &[Block], family: Family) -> bool {
    blocks.iter().any(|block| Family::from(block.cidr) == family && !block.except.is_empty())
}

/// Returns a block in canonical form, without exceptions that have no effect.
pub fn block(cidr: IpNet, except: &[IpNet]) -> Block {
    let cidr = cidr.trunc();
    let meets = |hole: &IpNet| hole.contains(&cidr) || cidr.contains(hole);
    // An exception larger than the block excludes all of it, as one of the same size does.
    let within = |hole: &IpNet| if cidr.contains(hole) { hole.trunc() } else { cidr };
    let mut except: Vec<IpNet> = except.iter().filter(|hole| meets(hole)).map(within).collect();
    except.sort();
    except.dedup();
    Block { cidr, except: except.into() }
}

impl From<IpNet> for Span {
    fn from(prefix: IpNet) -> Span {
        Span { first: number(prefix.network()), last: number(prefix.broadcast()) }
    }
}

impl Span {
    /// Returns the first and the last address.
    pub fn ends(self, family: Family) -> (IpAddr, IpAddr) {
        (address(self.first, family), address(self.last, family))
    }

    /// Returns the fewest prefixes that cover exactly this span, sorted: each as large as its first address and the end allow.
    pub fn prefixes(self, family: Family) -> impl Iterator<Item = IpNet> {
        let mut next = Some(self.first).filter(|first| *first <= self.last);
        std::iter::from_fn(move || {
            let first = next?;
            let left = (self.last - first).checked_add(1).map_or(u128::BITS, u128::ilog2);
            let host_bits = first.trailing_zeros().min(left).min(u32::from(family.host_bits()));
            let last = first + u128::MAX.checked_shr(u128::BITS - host_bits).unwrap_or(0);
            let length = family.host_bits() - u8::try_from(host_bits).expect("at most 128 bits");
            next = last.checked_add(1).filter(|next| *next <= self.last);
            Some(IpNet::new(address(first, family), length).expect("no longer than the family's addresses"))
        })
    }
}

/// Returns whether one of these spans, which are sorted and apart, has an address of their family.
pub fn any_holds(spans: &[Span], address: IpAddr) -> bool {
    let number = number(address);
    let behind = spans.partition_point(|span| span.first <= number);
    spans.get(..behind).and_then(<[Span]>::last).is_some_and(|span| number <= span.last)
}

/// Returns the spans of one block without its exceptions.
fn without_holes(block: &Block) -> Vec<Span> {
    let Span { first, last } = Span::from(block.cidr);
    let mut left = Vec::new();
    let mut next = Some(first);
    // Exceptions are sorted by their first address, so no later one affects what lies before the current one.
    for hole in block.except.iter().map(|hole| Span::from(*hole)) {
        let Some(first) = next else { break };
        if let Some(before) = hole.first.checked_sub(1).filter(|before| first <= *before) {
            left.push(Span { first, last: before });
        }
        next = hole.last.checked_add(1).map(|behind| behind.max(first));
    }
    left.extend(next.filter(|first| *first <= last).map(|first| Span { first, last }));
    left
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(u32::from(address)),
        IpAddr::V6(address) => u128::from(address),
    }
}

/// Returns the address with this number; truncates a number too large for the family.
fn address(number: u128, family: Family) -> IpAddr {
    match family {
        Family::V4 => IpAddr::V4(Ipv4Addr::from(u32::try_from(number).unwrap_or(u32::MAX))),
        Family::V6 => IpAddr::V6(Ipv6Addr::from(number)),
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    /// The addresses of all blocks as prefixes, IPv4 first.
    fn prefixes(blocks: &[Block]) -> Vec<IpNet> {
        let of_family = |family| spans(blocks, family).into_iter().flat_map(move |span| span.prefixes(family));
        Family::BOTH.into_iter().flat_map(of_family).collect()
    }

    fn check(blocks: &[(&str, &[&str])], expected: &str) {
        let net = |text: &&str| text.parse::<IpNet>().unwrap();
        let blocks: Vec<Block> =
            blocks.iter().map(|(cidr, except)| block(net(cidr), &except.iter().map(net).collect::<Vec<_>>())).collect();
        let found: Vec<String> = prefixes(&blocks).iter().map(IpNet::to_string).collect();
        assert_eq!(found.join(" "), expected);
    }

    #[test]
    fn a_hole_is_not_allowed() {
        check(&[("10.0.0.0/30", &["10.0.0.1/32"])], "10.0.0.0/32 10.0.0.2/31");
    }

    #[test]
    fn one_block_may_fill_the_hole_of_another() {
        check(&[("10.0.0.0/30", &["10.0.0.1/32"]), ("10.0.0.1/32", &[])], "10.0.0.0/30");
        check(&[("10.0.0.0/30", &["10.0.0.1/32"]), ("10.0.0.0/30", &[])], "10.0.0.0/30");
    }

    #[test]
    fn a_hole_outside_its_block_changes_nothing() {
        check(&[("10.0.0.0/30", &["10.9.0.0/16", "2001:db8::/32"])], "10.0.0.0/30");
    }

    #[test]
    fn holes_may_overlap_and_stand_in_any_order() {
        check(&[("10.0.0.0/29", &["10.0.0.4/30", "10.0.0.0/31", "10.0.0.4/32"])], "10.0.0.2/31");
    }

    #[test]
    fn a_hole_of_the_block_s_size_or_larger_leaves_nothing() {
        check(&[("10.0.0.0/30", &["10.0.0.0/30"])], "");
        check(&[("10.0.0.0/30", &["10.0.0.0/8"])], "");
        check(&[("::/0", &["::/0"])], "");
    }

    #[test]
    fn overlapping_nested_and_touching_blocks_become_one() {
        check(&[("10.0.0.0/25", &[]), ("10.0.0.128/25", &[]), ("10.0.0.64/26", &[])], "10.0.0.0/24");
        check(&[("0.0.0.0/0", &[]), ("10.0.0.0/8", &[])], "0.0.0.0/0");
    }

    #[test]
    fn a_whole_family_is_one_prefix() {
        check(&[("0.0.0.0/0", &[])], "0.0.0.0/0");
        check(&[("::/0", &[])], "::/0");
        check(&[("0.0.0.0/1", &[]), ("128.0.0.0/1", &[]), ("::/1", &[]), ("8000::/1", &[])], "0.0.0.0/0 ::/0");
    }

    #[test]
    fn the_first_and_the_last_address_of_a_family_may_be_holes() {
        check(
            &[("0.0.0.0/0", &["0.0.0.0/1", "255.255.255.255/32"])],
            &(1..32).map(|n| format!("{}/{}", Ipv4Addr::from(!(u32::MAX >> n)), n + 1)).collect::<Vec<_>>().join(" "),
        );
        check(&[("fffe::/15", &["ffff::/16"])], "fffe::/16");
        check(&[("::/0", &["8000::/1", "::/2"])], "4000::/2");
    }

    #[test]
    fn host_bits_do_not_matter() {
        check(&[("10.0.0.3/30", &["10.0.0.1/31"])], "10.0.0.2/31");
    }

    #[test]
    fn a_hole_is_one_span_more_whatever_prefixes_it_takes() {
        let holes: Vec<IpNet> =
            (1..=1000_u128).map(|number| Family::host_prefix(address(number << 100 | 1 << 50, Family::V6))).collect();
        let blocks = [block("::/0".parse().unwrap(), &holes)];
        let found = spans(&blocks, Family::V6);
        assert_eq!((found.len(), most_spans(&blocks)), (1001, 1001));
        assert!(prefixes(&blocks).len() > 100 * 1000);
        assert!(spans(&blocks, Family::V4).is_empty());
        assert!(has_holes(&blocks, Family::V6) && !has_holes(&blocks, Family::V4));
    }

    proptest! {
        /// A small corner of either family is small enough to test every address.
        #[test]
        fn prefixes_hold_what_the_blocks_hold(
            blocks in vec((0..32u32, 27..=32u8, vec((0..32u32, 27..=32u8), 0..4)), 0..5),
            family in prop_oneof![Just(Family::V4), Just(Family::V6)],
            at_end: bool,
        ) {
            let longer = family.host_bits() - 32;
            let start = match (family, at_end) {
                (_, false) => 0,
                (Family::V4, true) => u128::from(u32::MAX - 31),
                (Family::V6, true) => u128::MAX - 31,
            };
            let net = |(low, length): (u32, u8)| {
                IpNet::new(address(start + u128::from(low), family), length + longer).unwrap()
            };
            let blocks: Vec<(IpNet, Vec<IpNet>)> = blocks
                .into_iter()
                .map(|(low, length, except)| (net((low, length)), except.into_iter().map(net).collect()))
                .collect();
            let canonical: Vec<Block> = blocks.iter().map(|(cidr, except)| block(*cidr, except)).collect();
            let found = prefixes(&canonical);
            let apart = spans(&canonical, family);
            prop_assert!(apart.windows(2).all(|two| two[0].last + 1 < two[1].first), "apart and sorted");
            prop_assert!(apart.len() <= most_spans(&canonical));
            for low in 0..32 {
                let address = address(start + low, family);
                let wanted = blocks.iter().any(|(cidr, except)| {
                    cidr.contains(&address) && !except.iter().any(|hole| hole.contains(&address))
                });
                prop_assert_eq!(found.iter().filter(|prefix| prefix.contains(&address)).count(), usize::from(wanted));
                prop_assert_eq!(any_holds(&apart, address), wanted);
            }
            prop_assert_eq!(&found, &IpNet::aggregate(&found), "as few as can be, and sorted");
        }
    }
}
