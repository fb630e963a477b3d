//! Nodes on links of this host beside the number of neighbours that its kernel finds out by itself.
//!
//! Every node to which packets go over a link takes an entry of the neighbour table (ARP, neighbour discovery). `gc_thresh3` bounds the entries of all network
//! namespaces of the host together, those of pods too; permanent ones do not count. Where all are in use the kernel makes no other one, and a node
//! beyond is not reached: its session says "no answer". The setting is the host's, for all programs on it, so it is named and not written.
//!
//! Kernel: Documentation/networking/ip-sysctl.rst, `neigh/default/gc_thresh3`. Only the first network namespace has the file.

use std::collections::BTreeSet;
use std::net::IpAddr;

use crate::kernel::sysctl::Setting;
use crate::model::OnLink;
use crate::net::{Family, PerFamily};

use super::problem::{About, Problem};

/// Returns the setting of a family.
pub fn setting(family: Family) -> Setting {
    let of = match family {
        Family::V4 => "ipv4",
        Family::V6 => "ipv6",
    };
    Setting(format!("net/{of}/neigh/default/gc_thresh3").into())
}

/// Returns the number of addresses of each family in these networks.
pub fn on_links(addresses: impl IntoIterator<Item = IpAddr>, networks: &[OnLink]) -> PerFamily<usize> {
    // A network may be on several links.
    let prefixes: BTreeSet<_> = networks.iter().map(|network| network.prefix).collect();
    let mut count = PerFamily::default();
    for address in addresses.into_iter().filter(|address| prefixes.iter().any(|prefix| prefix.contains(address))) {
        *count.of_mut(Family::from(address)) += 1;
    }
    count
}

/// Returns what is wrong with more nodes of a family than the kernel finds out, and what to do, each a sentence without its end. A limit that cannot be read
/// is none. The number of nodes is not in them: each node that comes would be another problem.
pub fn excess(family: Family, nodes: usize, limit: Option<usize>) -> Option<(String, String)> {
    let limit = limit.filter(|limit| nodes > *limit)?;
    let name = setting(family).0.replace('/', ".");
    let enough = nodes.saturating_mul(2).next_power_of_two();
    let what = format!(
        "more than {limit} other nodes are on links of this host, and its kernel finds out {limit} neighbours at most ({name}); those beyond are not reached"
    );
    Some((what, format!("sysctl -w {name}={enough}, and the same in /etc/sysctl.d")))
}

/// Returns the problems of both families.
pub fn problems(nodes: PerFamily<usize>, limits: PerFamily<Option<usize>>) -> Vec<Problem> {
    let of = |family: Family| {
        let (what, todo) = excess(family, *nodes.of(family), *limits.of(family))?;
        Some(Problem::new(About::Family(family), format!("{what}: {todo}")))
    };
    Family::BOTH.into_iter().filter_map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(prefix: &str, link: &str) -> OnLink {
        OnLink { prefix: prefix.parse().expect("a network"), link: link.into() }
    }

    #[test]
    fn nodes_on_links_are_counted_once_each_and_those_behind_routers_are_not() {
        let networks =
            [network("192.0.2.0/24", "eth0"), network("192.0.2.0/24", "eth1"), network("2001:db8::/64", "eth0")];
        let addresses = ["192.0.2.7", "192.0.2.8", "198.51.100.9", "2001:db8::7", "2001:db8:1::7"];
        let addresses = addresses.map(|text| text.parse::<IpAddr>().expect("an address"));
        assert_eq!(on_links(addresses, &networks), PerFamily { v4: 2, v6: 1 });
    }

    #[test]
    fn as_many_nodes_as_the_kernel_finds_out_are_no_problem_and_one_more_is() {
        let limits = PerFamily { v4: Some(1024), v6: Some(1024) };
        assert_eq!(problems(PerFamily { v4: 1024, v6: 1024 }, limits), []);
        let found = problems(PerFamily { v4: 1024, v6: 1025 }, limits);
        let [problem] = &found[..] else { panic!("one problem: {found:?}") };
        assert_eq!(
            problem.to_string(),
            "IPv6: more than 1024 other nodes are on links of this host, and its kernel finds out 1024 neighbours at most \
             (net.ipv6.neigh.default.gc_thresh3); those beyond are not reached: sysctl -w net.ipv6.neigh.default.gc_thresh3=4096, and the same in /etc/sysctl.d"
        );
    }

    #[test]
    fn a_limit_that_cannot_be_read_is_no_problem() {
        assert_eq!(problems(PerFamily { v4: 5000, v6: 5000 }, PerFamily::default()), []);
    }
}
