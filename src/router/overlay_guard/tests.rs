use super::*;
use crate::kernel::nftables::Statement;
use crate::net::PerFamily;
use crate::router::given::{address, config};

fn own(v4: Option<&str>, v6: Option<&str>) -> Identity {
    let addresses = PerFamily { v4: v4.map(address), v6: v6.map(address) };
    Identity { addresses, ..Identity::default() }
}

fn encapsulation(words: &[&str]) -> Encapsulation {
    config(words).overlay.expect("there are tunnels").encapsulation
}

fn lines(words: &[&str], family: Family) -> Vec<String> {
    let own = own(Some("192.0.2.1"), Some("2001:db8::1"));
    let pieces = rules(&own, encapsulation(words), family);
    assert!(pieces.keys().all(is_piece));
    let line = |(piece, Rules(rules)): (&Piece, &Rules)| {
        rules.iter().map(move |rule| format!("{piece}: {rule}")).collect::<Vec<_>>()
    };
    pieces.iter().flat_map(line).collect()
}

#[test]
fn with_iptables_the_port_of_vxlan_is_for_nodes_alone_in_either_family() {
    let said = |text: &str| format!("-m comment --comment \"{text}\" -j DROP");
    let nodes = "-m set --match-set kube-router-node-ips";
    let not_nodes = "-m set ! --match-set kube-router-node-ips";
    let port = "-p udp -m udp --dport 4789";
    let expected = [
        format!("IPv4 mangle KUBE-ROUTER-OVERLAY-IN: {not_nodes} src {}", said(BY_OTHERS)),
        format!("IPv4 mangle KUBE-ROUTER-OVERLAY-IN: ! -d 192.0.2.1/32 {}", said(ELSEWHERE)),
        format!(
            "IPv4 mangle KUBE-ROUTER-OVERLAY-OUT: ! -s 192.0.2.1/32 {nodes} dst {not_nodes} src {}",
            said(BORROWED)
        ),
        format!("IPv4 mangle KUBE-ROUTER-OVERLAY-PODS: -i kube-bridge {nodes} dst {}", said(BY_PODS)),
        format!("IPv4 mangle INPUT to KUBE-ROUTER-OVERLAY-IN: {port} -j KUBE-ROUTER-OVERLAY-IN"),
        format!("IPv4 mangle POSTROUTING to KUBE-ROUTER-OVERLAY-OUT: {port} -j KUBE-ROUTER-OVERLAY-OUT"),
        format!("IPv4 mangle PREROUTING to KUBE-ROUTER-OVERLAY-PODS: {port} -j KUBE-ROUTER-OVERLAY-PODS"),
    ];
    assert_eq!(lines(&["--overlay-encap=vxlan"], Family::V4), expected);
    let v6 = lines(&["--overlay-encap=vxlan"], Family::V6);
    assert_eq!(v6.len(), expected.len());
    assert!(v6[1].contains("! -d 2001:db8::1/128") && v6[0].contains(" inet6:kube-router-node-ips src"), "{v6:?}");
}

#[test]
fn of_fou_it_is_guarded_what_the_kernel_cannot_tell_and_of_ipip_nothing() {
    let fou = lines(&["--overlay-encap=fou"], Family::V4);
    assert!(fou.iter().all(|line| !line.contains("OVERLAY-IN")), "{fou:?}");
    assert_eq!(fou.iter().filter(|line| line.contains("--dport 5555")).count(), 2);
    assert_eq!(lines(&[], Family::V4), Vec::<String>::new());
    let own = own(Some("192.0.2.1"), None);
    assert!(table_chains(&own, encapsulation(&[]), &Family::BOTH).is_empty());
    let chains = table_chains(&own, encapsulation(&["--overlay-encap=fou"]), &Family::BOTH);
    let named = |chain: &str| chains.contains_key(&Object::Chain(chain.into()));
    assert!(!named(NFT_OVERLAY_IN) && named(NFT_OVERLAY_PODS));
    assert!(!named(NFT_OVERLAY_UNTRACKED) && !named(NFT_OVERLAY_SENT), "a host's firewall may let it in by its state");
}

#[test]
fn where_no_tunnel_of_a_family_ends_it_has_no_rules() {
    let own = own(None, Some("2001:db8::1"));
    let vxlan = encapsulation(&["--overlay-encap=vxlan"]);
    assert!(rules(&own, vxlan, Family::V4).is_empty());
    let chains = table_chains(&own, vxlan, &Family::BOTH);
    let rules = chains.values().map(|content| match content {
        Content::Chain(chain) => chain.rules.len(),
        other => panic!("{other:?}"),
    });
    assert_eq!(rules.sum::<usize>(), 6, "one family's");
    assert!(table_chains(&Identity::default(), vxlan, &Family::BOTH).is_empty());
}

#[test]
fn with_nftables_packets_of_our_number_alone_are_judged_and_those_between_nodes_are_not_tracked() {
    let own = own(Some("192.0.2.1"), Some("2001:db8::1"));
    let words = ["--overlay-encap=vxlan", "--overlay-vxlan-id=7", "--overlay-vxlan-port=8472"];
    let chains = table_chains(&own, encapsulation(&words), &Family::BOTH);
    assert!(dropping_chains().iter().all(|chain| chains.contains_key(chain)));
    // To whomever: a node may not be known here.
    let Some(Content::Chain(of_pods)) = chains.get(&Object::Chain(NFT_OVERLAY_PODS.into())) else {
        panic!("{chains:?}")
    };
    let matches: Vec<usize> = of_pods.rules.iter().map(|rule| rule.matches().len()).collect();
    assert_eq!(matches, [3], "port, number and link");
    for (object, content) in &chains {
        let Content::Chain(chain) = content else { panic!("{content:?}") };
        let base = chain.base.expect("the kernel enters it");
        assert!(dropping_chains().contains(object) != (base.priority == RAW), "{object}");
        for rule in &chain.rules {
            let range = PortRange { first: 8472, last: 8472 };
            let of_ours =
                [nftables::Match::DestinationPort { protocol: Protocol::Udp, range }, nftables::Match::VxlanNumber(7)];
            assert_eq!(rule.matches()[..2], of_ours, "{object}");
            let is_dropped = rule.verdict() == Some(&nftables::Verdict::Drop);
            let is_untracked = rule.verdict().is_none() && rule.statements() == [Statement::Untrack];
            assert!(is_dropped != is_untracked && is_untracked == (base.priority == RAW), "{object}");
        }
    }
}
