//! Our rules in the host's own chains, on the real kernel: iptables' programs read what was written, and nothing else changes.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, UdpSocket};
use std::time::{Duration, Instant};

use sluice::firewall::{iptables, nftables};
use sluice::kernel::nftables::foreign::DroppingChains;
use sluice::kernel::nftables::passages::{HostChain, InHostChain, Passage, Passages, Passing, remove};
use sluice::kernel::nftables::rule::Mark;
use sluice::kernel::nftables::{OwnTable, passages};
use sluice::net::{Family, PerFamily, Protocol};
use sluice::reconcile::{Growth, Mirror, Moment, Reflection};
use sluice::router::forward::{self, AnswersBy};
use sluice::router::identity::Identity;

use super::places::{Place, Places};
use crate::namespace::{in_new, own_run, run, shell};

const COMMENTS: [&str; 1] = ["allow traffic to ports of Services"];
const MARK: Mark = Mark { value: 0x20000, mask: 0x20000 };

fn wanted() -> BTreeMap<Passage, Passing> {
    let key = |family| Passage { family, comment: COMMENTS[0] };
    Family::BOTH.map(|family| (key(family), Passing::Marked(MARK))).into()
}

fn moment() -> Moment {
    Moment { now: Instant::now(), jitter: 0 }
}

/// A mirror that has brought about what the host's chains can have, and sees it so when it reads anew.
fn kept() -> Mirror<Passages> {
    let mut mirror = Mirror::new(Passages::open(HostChain::Input, &COMMENTS).expect("a socket"));
    for _ in 0..2 {
        let needed = mirror.target().needed(&wanted());
        mirror.grow(&needed, Growth::Full, moment());
        assert!(mirror.is_settled(), "{:?}", mirror.trouble());
        mirror.forget();
    }
    mirror
}

fn input(program: &str) -> Vec<String> {
    let text = run(&format!("{program} -t filter"));
    text.lines().filter(|line| line.starts_with("-A INPUT")).map(str::to_owned).collect()
}

#[test]
fn a_mark_passes_an_input_chain_that_drops_and_iptables_reads_the_rule() {
    in_new(|| {
        run("ip link set lo up");
        for program in ["iptables-nft", "ip6tables-nft"] {
            run(&format!("{program} -P INPUT DROP"));
            run(&format!("{program} -N KUBE-ROUTER-INPUT"));
            run(&format!("{program} -A INPUT -j KUBE-ROUTER-INPUT"));
            run(&format!("{program} -A INPUT -p tcp --dport 22 -j ACCEPT"));
        }
        // Who marks packets as the guard does: before the host's chain.
        run("nft add table inet marking");
        run("nft add chain inet marking input { type filter hook input priority -5 ; }");
        run("nft add rule inet marking input udp dport 9001 meta mark set 0x20005");
        let arrives = |port: u16| {
            let receiver = UdpSocket::bind((Ipv4Addr::LOCALHOST, port)).expect("a socket");
            receiver.set_read_timeout(Some(Duration::from_millis(300))).expect("a time");
            let sender = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a socket");
            sender.send_to(b"x", (Ipv4Addr::LOCALHOST, port)).expect("sent");
            receiver.recv(&mut [0; 8]).is_ok()
        };
        assert_eq!([arrives(9001), arrives(9002)], [false, false], "the host drops");
        let before = [input("iptables-nft-save"), input("ip6tables-nft-save")];
        let _kept = kept();
        assert_eq!([arrives(9001), arrives(9002)], [true, false], "what is marked passes, and nothing else");
        for (program, before) in ["iptables-nft-save", "ip6tables-nft-save"].into_iter().zip(&before) {
            let rules = input(program);
            assert_eq!([&rules[0], &rules[2]], [&before[0], &before[1]], "policies first, the host's own behind");
            let ours = "-A INPUT -m mark --mark 0x20000/0x20000 -m comment --comment \"allow traffic to ports of Services\" -j ACCEPT";
            assert_eq!((rules[1].as_str(), rules.len()), (ours, 3), "{rules:#?}");
        }
        // Saved and restored by somebody else it is still ours, and in its place.
        shell("saved=$(iptables-nft-save); echo \"$saved\" | iptables-nft-restore");
        let again = kept();
        assert_eq!(again.steps_done(), 0, "nothing is written again");
        assert_eq!(remove(HostChain::Input, &COMMENTS), None);
        assert_eq!([input("iptables-nft-save"), input("ip6tables-nft-save")], before);
    });
}

#[test]
fn a_host_without_the_chain_gets_no_rule_and_one_that_gets_it_later_does() {
    in_new(|| {
        let before = run("nft list ruleset");
        let mut mirror = kept();
        assert_eq!(run("nft list ruleset"), before);
        run("nft add table ip filter");
        run("nft add chain ip filter INPUT { type filter hook input priority 0 ; policy drop ; }");
        let needed = mirror.target().needed(&wanted());
        mirror.grow(&needed, Growth::Full, moment());
        assert!(mirror.is_settled(), "{:?}", mirror.trouble());
        assert_eq!(input("iptables-nft-save").len(), 1);
        assert!(!run("nft list ruleset").contains("table ip6"), "{}", run("nft list ruleset"));
    });
}

#[test]
fn a_rule_that_asks_otherwise_is_put_right() {
    in_new(|| {
        run("nft add table ip filter");
        run("nft add chain ip filter INPUT { type filter hook input priority 0 ; }");
        for wrong in ["meta mark 7", "meta mark and 0x20000 == 0", "tcp dport 80", "meta mark and 0x30000 == 0x20000"] {
            shell(&format!("nft 'add rule ip filter INPUT {wrong} accept comment \"{}\"'", COMMENTS[0]));
            let _kept = kept();
            let rules = input("iptables-nft-save");
            assert_eq!(rules.len(), 1, "{wrong}: {rules:#?}");
            assert!(rules[0].contains("--mark 0x20000/0x20000 "), "{wrong}: {rules:#?}");
        }
        // The same, as `nft` or a kernel without xt_mark has it, stays.
        run("nft flush chain ip filter INPUT");
        shell(&format!(
            "nft 'add rule ip filter INPUT meta mark and 0x20000 == 0x20000 counter accept comment \"{}\"'",
            COMMENTS[0]
        ));
        assert_eq!(kept().steps_done(), 0);
    });
}

#[test]
fn chains_of_others_that_drop_by_their_policy_are_named_and_ours_and_open_ones_are_not() {
    in_new(|| {
        let named = || -> Vec<String> {
            let chains = DroppingChains::default().read().expect("the kernel can be asked");
            chains.into_iter().map(|chain| chain.to_string()).collect()
        };
        assert_eq!(named(), [""; 0]);
        for (table, chain, hook, policy) in [
            ("ip filter", "FORWARD", "forward", "drop"),
            ("ip filter", "INPUT", "input", "accept"),
            ("ip filter", "OUTPUT", "output", "drop"),
            ("ip6 filter", "INPUT", "input", "drop"),
            ("inet firewalld", "filter_FORWARD", "forward", "drop"),
            ("inet sluice_policy", "forward_egress", "forward", "drop"),
        ] {
            run(&format!("nft add table {table}"));
            run(&format!("nft add chain {table} {chain} {{ type filter hook {hook} priority 0 ; policy {policy} ; }}"));
        }
        run("nft add chain ip filter DOCKER");
        assert_eq!(
            named(),
            [
                "chain filter_FORWARD of table inet firewalld",
                "chain FORWARD of table ip filter",
                "chain INPUT of table ip6 filter"
            ]
        );
    });
}

/// As firewalld has it: the policy accepts, and the last rule rejects what none before has accepted.
#[test]
fn chains_of_others_that_end_in_a_rule_that_drops_or_rejects_everything_are_named() {
    in_new(|| {
        for (table, chain, hook, rules) in [
            (
                "inet firewalld",
                "filter_FORWARD",
                "forward",
                [
                    "ct state { established, related } accept",
                    "ct state invalid drop",
                    "reject with icmpx admin-prohibited",
                ],
            ),
            (
                "ip open",
                "forward",
                "forward",
                ["tcp dport 22 drop", "counter accept", "reject with icmp admin-prohibited"],
            ),
            (
                "ip midst",
                "forward",
                "forward",
                ["tcp dport 22 accept", "reject with icmp admin-prohibited", "counter accept"],
            ),
            ("ip closed", "input", "input", ["tcp dport 22 accept", "counter comment \\\"all\\\"", "counter log drop"]),
            ("ip passes", "input", "input", ["tcp dport 22 accept", "accept comment \\\"all\\\"", "counter log drop"]),
            ("ip asks", "input", "input", ["tcp dport 22 accept", "counter", "tcp dport 23 drop"]),
        ] {
            run(&format!("nft add table {table}"));
            run(&format!("nft add chain {table} {chain} {{ type filter hook {hook} priority 10 ; policy accept ; }}"));
            rules.iter().for_each(|rule| drop(shell(&format!("nft \"add rule {table} {chain} {rule}\""))));
        }
        run("ip6tables-nft -A FORWARD -j REJECT --reject-with icmp6-adm-prohibited");
        let mut chains = DroppingChains::default();
        let mut named = || -> Vec<String> {
            chains.read().expect("the kernel can be asked").iter().map(ToString::to_string).collect()
        };
        let all = [
            "chain filter_FORWARD of table inet firewalld",
            "chain input of table ip closed",
            "chain forward of table ip midst",
            "chain FORWARD of table ip6 filter",
        ];
        assert_eq!(named(), all);
        run("nft delete table inet firewalld");
        assert_eq!(named(), all[1..], "asked again by the same socket");
    });
}

#[test]
fn a_chain_of_the_host_that_drops_is_named_where_it_drops_what_policies_allow() {
    use iptables::apply::Kernel as _;
    use nftables::apply::Kernel as _;
    in_new(|| {
        run("iptables-nft -P FORWARD DROP");
        run("iptables-nft -P INPUT DROP");
        let by_iptables = || iptables::linux::open_for_cleanup().expect("a kernel").0.kernel.dropping_chains();
        let by_nftables = || nftables::linux::open_for_cleanup().expect("a kernel").kernel.dropping_chains();
        let said = |chain| {
            format!(
                "chain {chain} of table ip filter drops what none of its own rules accepts, also what policies allow"
            )
        };
        let both = [said("FORWARD"), said("INPUT")];
        assert_eq!((by_iptables(), by_nftables()), (both.to_vec(), both.to_vec()));
        run("iptables-nft -N KUBE-ROUTER-FORWARD");
        run("iptables-nft -A FORWARD -p tcp -j KUBE-ROUTER-FORWARD");
        assert_eq!(by_iptables(), both, "not every packet comes to our rules");
        shell("iptables-nft -A FORWARD -m comment --comment ours -j KUBE-ROUTER-FORWARD");
        assert_eq!(by_iptables(), both[1..], "our rules there accept what policies allow");
        assert_eq!(by_nftables(), both);
        run("iptables-nft -A FORWARD -i kube-bridge -j ACCEPT");
        run("iptables-nft -A FORWARD -i cni0 -j ACCEPT");
        assert_eq!(by_nftables(), both, "answers do not pass");
        run("iptables-nft -A FORWARD -o kube-bridge -j ACCEPT");
        assert_eq!(by_nftables(), [format!("{}, except on kube-bridge", both[0]), both[1].clone()]);
    });
}

/// The node's end of the link to a place.
fn link(place: &str) -> String {
    format!("to-{place}")
}

#[test]
fn answers_pass_a_forward_chain_that_drops_by_the_state_of_their_connection_or_by_a_mark_and_nothing_else_does() {
    // A link is named whole, or by the beginning of its name, as tunnels are.
    for (by, link_to_client) in
        [AnswersBy::State, AnswersBy::Mark].map(|by| ["to-client", "to-cl+"].map(|name| (by, name))).concat()
    {
        in_new(move || {
            own_run();
            let client = Place::new("client", "203.0.113.2", "2001:db8:113::2");
            let pod = Place::new("pod", "10.244.2.5", "2001:db8:42:2::5");
            let places = Places::new(vec![client, pod], ("node", "192.0.2.1", "2001:db8::1"));
            for program in ["iptables-nft", "ip6tables-nft"] {
                run(&format!("{program} -P FORWARD DROP"));
                run(&format!("{program} -A FORWARD -o {} -j ACCEPT", link("pod")));
            }
            run("nft add table inet behind");
            run("nft add chain inet behind forward { type filter hook forward priority 2 ; }");
            run("nft add rule inet behind forward meta mark and 0x20000 != 0 counter");
            let connects = |from, to| Family::BOTH.map(|family| places.reaches(family, (from, to), Protocol::Tcp, 80));
            assert_eq!(connects("client", "pod"), [false; 2], "{by:?}: the host drops answers");
            // The Node has an address on another link as well.
            let all_links = PerFamily::from_fn(|_| [link_to_client.into(), "aside".into()].into());
            let own = Identity { all_links, ..Identity::default() };
            let mut table = Mirror::new(OwnTable::open("sluice_router").expect("a socket"));
            if by == AnswersBy::Mark {
                table.grow(&forward::marking_chains(&own, None, &Family::BOTH), Growth::Full, moment());
                assert!(table.is_settled(), "{:?}", table.trouble());
            }
            let wanted =
                Family::BOTH.into_iter().flat_map(|family| forward::passages(&own, None, family, by)).collect();
            let mut rules = Mirror::new(Passages::open(HostChain::Forward, &forward::COMMENTS).expect("a socket"));
            for steps in [6, 6] {
                rules.grow(&wanted, Growth::Full, moment());
                assert!(rules.is_settled(), "{by:?}: {:?}", rules.trouble());
                assert_eq!(rules.steps_done(), steps, "{by:?}: what was written reads as what was wanted");
                rules.forget();
            }
            let ways = Family::BOTH.map(|family| (family, "client", "pod", Protocol::Tcp, 80));
            assert_eq!(places.wrong(&ways, &[Some(true); 2]), [], "{by:?}");
            assert_eq!(connects("pod", "client"), [false; 2], "{by:?}: no answers");
            run("nft add table inet marking");
            run("nft add chain inet marking forward { type filter hook forward priority -150 ; }");
            run("nft add rule inet marking forward meta mark set 0x20000");
            assert_eq!(connects("pod", "client"), [false; 2], "{by:?}: whoever marks them");
            run("nft delete table inet marking");
            let behind = run("nft list table inet behind");
            assert!(by == AnswersBy::State || behind.contains("counter packets 0 "), "marks stay: {behind}");
            // Saved and restored by somebody else they are still ours.
            shell("saved=$(iptables-nft-save -t filter); echo \"$saved\" | iptables-nft-restore");
            rules.forget();
            rules.grow(&wanted, Growth::Full, moment());
            assert_eq!(rules.steps_done(), 6, "{by:?} {link_to_client}: nothing is written again");
            let saved = ["iptables-nft-save", "ip6tables-nft-save"].map(|program| run(&format!("{program} -t filter")));
            let asks = if by == AnswersBy::State { "--ctstate RELATED,ESTABLISHED" } else { "--mark 0x20000/0x20000" };
            for text in saved {
                assert_eq!(text.lines().filter(|line| line.contains(asks)).count(), 2, "one for each link: {text}");
            }
        });
    }
}

#[test]
fn a_trial_says_whether_the_kernel_can_ask_for_the_state_of_a_connection_and_leaves_nothing() {
    in_new(|| {
        let before = run("nft list ruleset");
        let can_iptables = crate::namespace::attempt("iptables-nft -A FORWARD -m conntrack --ctstate ESTABLISHED").0;
        run("nft flush ruleset");
        for family in Family::BOTH {
            assert_eq!(passages::has_connection_match(family).expect("the kernel can be asked"), can_iptables);
        }
        assert_eq!(run("nft list ruleset"), before);
    });
}
