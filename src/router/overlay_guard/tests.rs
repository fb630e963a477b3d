use super::*;
use crate::kernel::nftables::Statement;
use crate::net::PerFamily;
use crate::router::given::{address, config};

fn own(v4: Option<&str>, v6: Option<&str>) -> Identity {
    let addresses = PerFamily { v4: v4.map(address), v6: v6.map(address) };
    Identity { addresses, ..Identity::default() }
}

fn overlay(words: &[&str]) -> Overlay {
    config(words).overlay.expect("there are tunnels")
}

fn lines(words: &[&str], family: Family) -> Vec<String> {
    let own = own(Some("192.0.2.1"), Some("2001:db8::1"));
    let pieces = rules(&own, overlay(words), family);
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
fn the_port_of_fou_takes_any_protocol_so_it_is_for_nodes_alone_and_ipip_has_none() {
    let fou = lines(&["--overlay-encap=fou"], Family::V4);
    assert!(fou.iter().all(|line| !line.contains("OVERLAY-IN")), "{fou:?}");
    assert_eq!(fou.iter().filter(|line| line.contains("--dport 5555")).count(), 3);
    let arriving: Vec<&String> = fou.iter().filter(|line| line.contains("mangle KUBE-ROUTER-FOU-IN: ")).collect();
    let refused = [
        "-m set ! --match-set kube-router-node-ips src -m comment --comment",
        "! -d 192.0.2.1/32 -m comment --comment",
    ];
    assert!(arriving.len() == 2 && arriving.iter().zip(refused).all(|(line, of)| line.contains(of)), "{fou:?}");
    assert_eq!(lines(&[], Family::V4), Vec::<String>::new());
    let own = own(Some("192.0.2.1"), None);
    assert!(table_chains(&own, overlay(&[]), &Family::BOTH).is_empty());
    let chains = table_chains(&own, overlay(&["--overlay-encap=fou"]), &Family::BOTH);
    let names: Vec<String> = chains.keys().map(ToString::to_string).collect();
    assert_eq!(
        names,
        ["chain overlay_in_fou4", "chain overlay_out_fou4", "chain overlay_pods_fou4"],
        "a host's firewall may let it in by its state"
    );
}

#[test]
fn where_no_tunnel_of_a_family_ends_it_has_no_rules() {
    let own = own(None, Some("2001:db8::1"));
    let vxlan = overlay(&["--overlay-encap=vxlan"]);
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
fn each_kind_that_is_received_is_guarded_by_chains_of_its_own_whatever_is_sent_by() {
    let own = own(Some("192.0.2.1"), Some("2001:db8::1"));
    let of = |words: &[&str]| {
        let pieces = Family::BOTH.into_iter().flat_map(|family| rules(&own, overlay(words), family));
        (pieces.collect::<BTreeMap<_, _>>(), table_chains(&own, overlay(words), &Family::BOTH))
    };
    let (by_fou, by_vxlan) = (of(&["--overlay-encap=fou"]), of(&["--overlay-encap=vxlan"]));
    for words in [
        ["--overlay-encap=fou", "--overlay-encap-receive=vxlan"],
        ["--overlay-encap=vxlan", "--overlay-encap-receive=fou"],
        ["--overlay-encap=ipip", "--overlay-encap-receive=vxlan,fou"],
        ["--overlay-encap=wireguard", "--overlay-encap-receive=vxlan,fou,ipip"],
    ] {
        let (pieces, chains) = of(&words);
        assert_eq!(pieces, by_fou.0.clone().into_iter().chain(by_vxlan.0.clone()).collect(), "{words:?}");
        assert_eq!(chains, by_fou.1.clone().into_iter().chain(by_vxlan.1.clone()).collect(), "{words:?}");
    }
    assert!(by_fou.0.keys().all(|piece| is_piece(piece) && !guards_vxlan(piece)));
    assert!(by_vxlan.0.keys().all(guards_vxlan));
    // A family that is switched off takes nothing from the other one.
    let of_one = table_chains(&own, overlay(&["--overlay-encap=vxlan"]), &[Family::V4]);
    assert!(of_one.iter().all(|(object, content)| by_vxlan.1.get(object) == Some(content)));
    assert!(guarding_vxlan(Family::V4).iter().all(|chain| of_one.contains_key(chain)));
    assert!(needs(&Object::Chain("overlay_in".into())), "an earlier version has made it");
}

#[test]
fn with_nftables_packets_of_our_number_alone_are_judged_and_those_between_nodes_are_not_tracked() {
    let own = own(Some("192.0.2.1"), Some("2001:db8::1"));
    let words = ["--overlay-encap=vxlan", "--overlay-vxlan-id=7", "--overlay-vxlan-port=8472"];
    let chains = table_chains(&own, overlay(&words), &Family::BOTH);
    let dropping: Vec<Object> = Family::BOTH.into_iter().flat_map(guarding_vxlan).collect();
    assert!(dropping.iter().all(|chain| chains.contains_key(chain) && needs(chain)));
    // To whomever: a node may not be known here.
    for family in Family::BOTH {
        let [of_pods, ..] = guarding_vxlan(family);
        let Some(Content::Chain(of_pods)) = chains.get(&of_pods) else { panic!("{chains:?}") };
        let matches: Vec<usize> = of_pods.rules.iter().map(|rule| rule.matches().len()).collect();
        assert_eq!(matches, [4], "port, number, family and link");
    }
    for (object, content) in &chains {
        let Content::Chain(chain) = content else { panic!("{content:?}") };
        let base = chain.base.expect("the kernel enters it");
        assert!(dropping.contains(object) != (base.priority == RAW), "{object}");
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

#[test]
fn the_rules_say_at_which_port_an_earlier_run_has_received_fou() {
    let own = own(Some("192.0.2.1"), Some("2001:db8::1"));
    for (words, expected) in [
        (&["--overlay-encap=fou", "--overlay-encap-port=6000"][..], &[6000][..]),
        (&["--overlay-encap=ipip", "--overlay-encap-receive=fou,vxlan", "--overlay-encap-port=6000"], &[6000]),
        (&["--overlay-encap=vxlan"], &[]),
        (&["--overlay-encap=ipip", "--overlay-encap-port=6000"], &[]),
    ] {
        let expected = expected.iter().copied().collect();
        for family in Family::BOTH {
            assert_eq!(guarded_ports(&rules(&own, overlay(words), family)), expected, "{words:?}");
            assert_eq!(guarded_ports_of_table(&table_chains(&own, overlay(words), &[family])), expected, "{words:?}");
        }
    }
}

#[test]
fn a_former_port_of_fou_is_guarded_as_it_was_beside_the_one_that_is_wanted() {
    let own = own(Some("192.0.2.1"), Some("2001:db8::1"));
    let at = |port: &str| overlay(&["--overlay-encap=fou", "--overlay-encap-receive=vxlan", port]);
    let (before, now) = (at("--overlay-encap-port=6000"), at("--overlay-encap-port=7000"));
    let former = BTreeSet::from([6000]);
    for family in Family::BOTH {
        let (was, wanted) = (rules(&own, before, family), rules(&own, now, family));
        let also = guarding_also(&former, &wanted);
        assert_eq!(also.len(), 3, "{also:?}");
        for (piece, Rules(all)) in &also {
            assert_eq!(*all, [&wanted[piece].0[..], &was[piece].0[..]].concat(), "{piece}");
        }
        assert_eq!(guarded_ports(&also), BTreeSet::from([6000, 7000]));
        assert!(guarding_also(&BTreeSet::new(), &wanted).is_empty());
    }
    let chains = |overlay| table_chains(&own, overlay, &Family::BOTH);
    let (was, wanted) = (chains(before), chains(now));
    let also = guarding_also_in_table(&former, &wanted);
    assert_eq!(also.len(), 6, "{also:?}");
    let rules_of = |chains: &BTreeMap<Object, Content>, object: &Object| match &chains[object] {
        Content::Chain(chain) => (chain.base, chain.rules.clone()),
        other => panic!("{other:?}"),
    };
    for object in also.keys() {
        let (base, both) = rules_of(&wanted, object);
        let both = [both, rules_of(&was, object).1].concat();
        assert_eq!(rules_of(&also, object), (base, both), "{object}");
    }
    assert!(guarding_also_in_table(&BTreeSet::new(), &wanted).is_empty());
}

#[test]
fn a_port_of_fou_is_guarded_in_a_family_that_has_all_of_its_rules() {
    let own = own(Some("192.0.2.1"), Some("2001:db8::1"));
    let fou = overlay(&["--overlay-encap=fou"]);
    let v4 = rules(&own, fou, Family::V4);
    assert_eq!(guarded_fully(&v4), BTreeSet::from([(Family::V4, 5555)]), "no program writes the rules of IPv6");
    for gone in v4.keys().filter(|piece| matches!(piece, Piece::Jump { .. })) {
        let others = v4.iter().filter(|(piece, _)| *piece != gone).map(|(piece, rules)| (piece.clone(), rules.clone()));
        assert!(guarded_fully(&others.collect()).is_empty(), "{gone}");
    }
    let table = table_chains(&own, fou, &Family::BOTH);
    assert_eq!(guarded_fully_in_table(&table), Family::BOTH.map(|family| (family, 5555)).into());
    for gone in table.keys() {
        let others = table.iter().filter(|(object, _)| *object != gone);
        let others = others.map(|(object, content)| (object.clone(), content.clone())).collect();
        assert_eq!(guarded_fully_in_table(&others).len(), 1, "{gone}");
    }
}
