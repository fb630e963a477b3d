//! Ranges of addresses in which no rule tells one address from another.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv4Subnets, Ipv6Net, Ipv6Subnets};

use super::super::ip_block::Span;
use crate::net::Family;

/// A range of addresses of one family, both ends included.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct AddressRange {
    pub family: Family,
    pub first: u128,
    pub last: u128,
}

/// Returns all addresses of a family as ranges that are cut wherever one of these spans begins or ends; sorted.
pub fn cut(family: Family, spans: impl Iterator<Item = Span>) -> Vec<AddressRange> {
    let end = match family {
        Family::V4 => u128::from(u32::MAX),
        Family::V6 => u128::MAX,
    };
    let mut starts = BTreeSet::from([0]);
    for span in spans {
        starts.insert(span.first);
        starts.extend(span.last.checked_add(1).filter(|next| *next <= end));
    }
    let ends = starts.iter().skip(1).map(|next| next - 1).chain([end]);
    starts.iter().zip(ends).map(|(first, last)| AddressRange { family, first: *first, last }).collect()
}

/// Joins ranges that touch; sorted ones.
pub fn joined(ranges: impl IntoIterator<Item = AddressRange>) -> Vec<AddressRange> {
    let mut joined: Vec<AddressRange> = Vec::new();
    for range in ranges {
        match joined.last_mut() {
            Some(before) if before.family == range.family && before.last.checked_add(1) == Some(range.first) => {
                before.last = range.last;
            }
            _ => joined.push(range),
        }
    }
    joined
}

impl AddressRange {
    /// Returns the first addresses of the range.
    pub fn first_addresses(self, most: u128) -> impl Iterator<Item = IpAddr> {
        let last = self.last.min(self.first.saturating_add(most - 1));
        (self.first..=last).map(move |number| address(self.family, number))
    }

    /// Returns the range as prefixes, as few as possible.
    pub fn prefixes(self) -> Vec<IpNet> {
        match (address(self.family, self.first), address(self.family, self.last)) {
            (IpAddr::V4(first), IpAddr::V4(last)) => Ipv4Subnets::new(first, last, 0).map(IpNet::V4).collect(),
            (IpAddr::V6(first), IpAddr::V6(last)) => Ipv6Subnets::new(first, last, 0).map(IpNet::V6).collect(),
            _ => Vec::new(),
        }
    }
}

/// Returns whether a prefix is all addresses of its family.
pub fn is_everywhere(prefix: &IpNet) -> bool {
    *prefix == IpNet::V4(Ipv4Net::default()) || *prefix == IpNet::V6(Ipv6Net::default())
}

fn address(family: Family, number: u128) -> IpAddr {
    match family {
        // The number of a range of IPv4 has 32 bits.
        Family::V4 => Ipv4Addr::from(number as u32).into(),
        Family::V6 => Ipv6Addr::from(number).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(ranges: &[AddressRange]) -> Vec<String> {
        ranges.iter().flat_map(|range| range.prefixes()).map(|prefix| prefix.to_string()).collect()
    }

    #[test]
    fn a_family_is_cut_at_both_ends_of_each_prefix_and_joined_to_the_whole() {
        let spans = |prefixes: &[&str]| -> Vec<Span> {
            prefixes.iter().map(|text| Span::from(text.parse::<IpNet>().unwrap())).collect()
        };
        let v4 = cut(Family::V4, spans(&["0.0.0.0/1", "192.0.2.0/24", "255.255.255.255/32"]).into_iter());
        assert_eq!(v4.len(), 5);
        assert_eq!(texts(&joined(v4.clone())), ["0.0.0.0/0"]);
        assert_eq!(texts(&v4[2..3]), ["192.0.2.0/24"]);
        let v6 = cut(Family::V6, spans(&["2001:db8::/32"]).into_iter());
        assert_eq!((v6.len(), texts(&v6[1..2])), (3, vec!["2001:db8::/32".to_owned()]));
        assert!(is_everywhere(&joined(v6)[0].prefixes()[0]));
        assert_eq!(v4[4].first_addresses(9).count(), 1);
    }
}
