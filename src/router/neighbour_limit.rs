//! Nodes on links of this host beside the number of neighbours that its kernel finds out by itself.
//!
//! Every node to which packets go over a link takes an entry of the neighbour table (ARP, neighbour discovery). `gc_thresh3` bounds the entries of all network
//! namespaces of the host together, those of pods and routers too; permanent ones do not count. Where all are in use the kernel makes no other one, and a node
//! beyond is not reached: its session says "no answer". The setting is the host's, for all programs on it, so it is named and not written.
//!
//! Kernel: Documentation/networking/ip-sysctl.rst, `neigh/default/gc_thresh2` and `gc_thresh3`. Only the first network namespace has the files.

use std::collections::BTreeSet;
use std::net::IpAddr;

use crate::kernel::sysctl::{self, Setting};
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

/// Returns the limits of the network namespace of the calling thread; `None` where they cannot be read.
pub fn limits() -> PerFamily<Option<usize>> {
    PerFamily::from_fn(|family| sysctl::value(&setting(family))?.parse().ok())
}

/// Returns how many of these addresses are in these networks. An address that two nodes have is one neighbour.
pub fn on_links(addresses: impl IntoIterator<Item = IpAddr>, networks: &[OnLink]) -> PerFamily<usize> {
    // A network may be on several links.
    let prefixes: BTreeSet<_> = networks.iter().map(|network| network.prefix).collect();
    let is_on_link = |address: &IpAddr| prefixes.iter().any(|prefix| prefix.contains(address));
    let found: BTreeSet<IpAddr> = addresses.into_iter().filter(is_on_link).collect();
    PerFamily::from_fn(|family| found.iter().filter(|address| Family::from(**address) == family).count())
}

/// Returns whether so many nodes are too many. A router and the host itself take entries as well, so as many as the limit are. Where they were too many
/// before, they are until a tenth of the entries is free: nodes that are replaced one by one would be a problem again and again.
pub fn are_too_many(nodes: usize, limit: usize, before: bool) -> bool {
    nodes >= if before { limit - limit / 10 } else { limit }
}

/// Returns what is wrong with too many nodes of a family, and what to do, each a sentence without its end. The number of nodes is in neither: each node that comes
/// would be another problem.
pub fn sentences(family: Family, limit: usize) -> (String, String) {
    let name = setting(family).0.replace('/', ".");
    let what = format!(
        "{limit} other nodes or nearly as many are on links of this host, and its kernel finds out {limit} neighbours at most ({name}): of more in use at once those beyond are not reached"
    );
    (
        what,
        format!(
            "raise {name} and gc_thresh2 beside it above the number of nodes and pods (sysctl -w, and in /etc/sysctl.d)"
        ),
    )
}

/// Returns the problems of both families, after the former ones.
pub fn problems(nodes: PerFamily<usize>, limits: PerFamily<Option<usize>>, former: &[Problem]) -> Vec<Problem> {
    let of = |family: Family| {
        let limit = (*limits.of(family))?;
        let (what, todo) = sentences(family, limit);
        let problem = Problem::new(About::Family(family), format!("{what}: {todo}"));
        are_too_many(*nodes.of(family), limit, former.contains(&problem)).then_some(problem)
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
        let addresses = ["192.0.2.7", "192.0.2.8", "192.0.2.8", "198.51.100.9", "2001:db8::7", "2001:db8:1::7"];
        let addresses = addresses.map(|text| text.parse::<IpAddr>().expect("an address"));
        assert_eq!(on_links(addresses, &networks), PerFamily { v4: 2, v6: 1 });
    }

    #[test]
    fn as_many_nodes_as_the_kernel_finds_out_are_a_problem_of_their_family() {
        let limits = PerFamily { v4: Some(1024), v6: Some(1024) };
        assert_eq!(problems(PerFamily { v4: 1023, v6: 1023 }, limits, &[]), []);
        let found = problems(PerFamily { v4: 1023, v6: 1024 }, limits, &[]);
        let [problem] = &found[..] else { panic!("one problem: {found:?}") };
        assert_eq!(
            problem.to_string(),
            "IPv6: 1024 other nodes or nearly as many are on links of this host, and its kernel finds out 1024 neighbours at most (net.ipv6.neigh.default.gc_thresh3): \
             of more in use at once those beyond are not reached: raise net.ipv6.neigh.default.gc_thresh3 and gc_thresh2 beside it above the number of nodes and pods \
             (sysctl -w, and in /etc/sysctl.d)"
        );
    }

    #[test]
    fn nodes_that_come_and_go_make_no_problem_twice() {
        let limits = PerFamily { v4: Some(1024), v6: None };
        let mut told = 0;
        let mut former = Vec::new();
        for nodes in [1000, 1024, 1023, 1024, 2048, 2049, 5000, 922].into_iter().chain([1023, 1024].repeat(100)) {
            let found = problems(PerFamily { v4: nodes, v6: 0 }, limits, &former);
            told += usize::from(found != former && !found.is_empty());
            former = found;
        }
        assert_eq!((told, former.len()), (1, 1));
        assert_eq!(problems(PerFamily { v4: 921, v6: 0 }, limits, &former), [], "a tenth is free");
        assert_eq!(
            problems(PerFamily { v4: 5000, v6: 0 }, PerFamily { v4: Some(8192), v6: None }, &former),
            [],
            "it was raised"
        );
    }

    #[test]
    fn a_limit_that_cannot_be_read_is_no_problem() {
        assert_eq!(problems(PerFamily { v4: 5000, v6: 5000 }, PerFamily::default(), &[]), []);
    }
}
