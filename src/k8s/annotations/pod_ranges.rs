//! The ranges of pods that a Node names, in its spec or its annotations.
//!
//! Kubernetes: `Node.spec.podCIDRs`, and the annotations `kube-router.io/pod-cidr` and `kube-router.io/pod-cidrs`, which a node's kubelet may write. All nodes
//! send packets for these ranges to that Node, and do not masquerade what their pods send there. So what no pod can have is none: what is for links, for groups or for
//! the host itself, as the address of a cloud's metadata (169.254.169.254), and what is so wide that it would be a part of a default route.

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::k8s::warning::Warnings;
use crate::net::Family;

/// Number of ranges of one Node that count: each may be a route, an element of a set and a prefix of a policy on every node.
pub const COUNTED: usize = 16;

/// Returns the ranges in these texts, each with the field that it stands in, without duplicates, in their order.
pub fn read<'a>(texts: impl Iterator<Item = (&'static str, &'a str)>, warnings: &mut Warnings) -> Vec<IpNet> {
    let mut ranges = Vec::new();
    for (field, text) in texts {
        let Ok(range) = text.parse::<IpNet>() else {
            warnings.odd(field, format_args!("{text:?} is not a CIDR; it is left out"));
            continue;
        };
        match range.trunc() {
            range if !is_for_pods(range) => {
                warnings.odd(field, format_args!("{range} is no range that pods can have; it is left out"));
            }
            range if ranges.contains(&range) => {}
            range if ranges.len() < COUNTED => ranges.push(range),
            _ => {
                warnings.odd(field, format_args!("there are more than {COUNTED} ranges; the others are left out"));
                break;
            }
        }
    }
    ranges.shrink_to_fit();
    ranges
}

/// Returns whether pods can have addresses of a range.
fn is_for_pods(range: IpNet) -> bool {
    let overlap = |other: &IpNet| range.contains(other) || other.contains(&range);
    let is_wide = range.prefix_len() < Family::from(range).narrowest_default();
    let v4 = |first: [u8; 4], length| Ipv4Net::new_assert(first.into(), length).into();
    let v6 = |first: u16, length| Ipv6Net::new_assert([first, 0, 0, 0, 0, 0, 0, 0].into(), length).into();
    let others: [IpNet; 7] = [
        v4([0; 4], 8),
        v4([127, 0, 0, 0], 8),
        v4([169, 254, 0, 0], 16),
        v4([224, 0, 0, 0], 3),
        // The host itself, and IPv4 in IPv6 (::/80, ::ffff:0:0/96).
        v6(0, 64),
        v6(0xfe80, 10),
        v6(0xff00, 8),
    ];
    !is_wide && !others.iter().any(overlap)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(texts: &[&str]) -> (Vec<String>, usize) {
        let mut warnings = Warnings::default();
        let ranges = read(texts.iter().map(|text| ("spec.podCIDRs", *text)), &mut warnings);
        (ranges.iter().map(IpNet::to_string).collect(), warnings.take().len())
    }

    #[test]
    fn ranges_of_pods_are_read_once_each_without_the_bits_of_hosts() {
        let texts =
            ["10.244.1.7/24", "10.244.1.0/24", "fd00:10:244:1::/64", "192.0.2.9/32", "10.0.0.0/8", "100.64.0.0/10"];
        let expected = ["10.244.1.0/24", "fd00:10:244:1::/64", "192.0.2.9/32", "10.0.0.0/8", "100.64.0.0/10"];
        assert_eq!(found(&texts), (expected.map(str::to_owned).to_vec(), 0));
    }

    #[test]
    fn what_no_pod_can_have_is_no_range_of_pods() {
        for text in [
            "0.0.0.0/0",
            "0.0.0.0/1",
            "128.0.0.0/1",
            "10.0.0.0/7",
            "127.0.0.0/8",
            "127.0.0.1/32",
            "169.254.169.254/32",
            "169.254.0.0/16",
            "169.0.0.0/8",
            "224.0.0.0/8",
            "239.1.1.1/32",
            "255.255.255.255/32",
            "::/0",
            "::/1",
            "8000::/1",
            "::1/128",
            "::ffff:10.0.0.0/104",
            "fe80::/64",
            "fe80::1/128",
            "fe00::/7",
            "ff02::/16",
            "word",
            "",
        ] {
            assert_eq!(found(&[text, "10.244.1.0/24"]), (vec!["10.244.1.0/24".to_owned()], 1), "{text}");
        }
    }

    #[test]
    fn of_very_many_ranges_the_first_ones_count() {
        let texts: Vec<String> = (0..30_000).map(|n| format!("10.{}.{}.0/24", n >> 8, n & 255)).collect();
        let (ranges, warnings) = found(&texts.iter().map(String::as_str).collect::<Vec<_>>());
        assert_eq!((ranges.len(), warnings), (COUNTED, 1));
    }
}
