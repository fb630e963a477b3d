use std::sync::Arc;

use super::super::super::given::{object, selector};
use super::super::super::rules::Selection;
use super::super::tiers::Rest;
use super::*;
use crate::kernel::nftables::Key;

fn class_of(policies: &[&str], by_namespace: bool) -> Class {
    let policies = policies.iter().map(|name| object(name)).collect();
    Class { direction: Direction::Ingress, namespace: "shop".into(), policies, by_namespace }
}

fn key_of(tier: Tier, direction: Direction) -> ClusterPolicyKey {
    ClusterPolicyKey { tier, priority: 1, policy: "guard".into(), direction }
}

fn tier_of(keys: &[ClusterPolicyKey]) -> TierPolicies {
    let first = keys.first().expect("a policy");
    TierPolicies { tier: first.tier, direction: first.direction, policies: keys.into() }
}

fn pods_of(namespace: &str) -> SetKey {
    SetKey::Pods(Selection { namespaces: Scope::Named(namespace.into()), pods: selector("app=web") })
}

fn without_hash(name: &Name) -> &str {
    name.as_str().rsplit_once('_').expect("a hash").0
}

#[test]
fn a_class_is_called_by_its_policies() {
    assert_eq!(without_hash(&class(&class_of(&["shop/db"], false))), "in_shop_db");
    assert_eq!(without_hash(&class(&class_of(&["shop/a", "shop/b"], false))), "in_shop_2_policies");
    assert_eq!(without_hash(&class(&class_of(&[], true))), "in_shop_annotation");
    assert_ne!(class(&class_of(&["shop/a"], true)), class(&class_of(&["shop/a"], false)));
    assert_ne!(class(&class_of(&["shop/a", "shop/bc"], false)), class(&class_of(&["shop/ab", "shop/c"], false)));
}

#[test]
fn objects_of_a_tier_are_called_by_their_policies() {
    let key = |priority| ClusterPolicyKey { priority, ..key_of(Tier::Admin, Direction::Egress) };
    assert_eq!(without_hash(&tier(&tier_of(&[key(1)]))), "admin_out_guard");
    assert_eq!(without_hash(&denied(&key(1))), "denied_out_guard");
    assert_ne!(tier(&tier_of(&[key(1)])), tier(&tier_of(&[key(2)])), "each has objects of its own");
}

#[test]
fn maps_and_sets_of_ports_are_called_by_what_they_hold() {
    let class = class(&class_of(&["shop/db"], false));
    let (http, all) = (PortRange { first: 80, last: 81 }, PortRange { first: 0, last: 65535 });
    let to = |chain: &str| Verdict::Jump(chain.into());
    let maps = [
        vec![],
        vec![(http, Verdict::Accept)],
        vec![(all, Verdict::Accept)],
        vec![(http, to("from_a"))],
        vec![(http, to("from_b"))],
        vec![(http, to("from_a")), (all, Verdict::Accept)],
    ];
    let of_ranges = maps.iter().map(|verdicts| ranges(&class, Protocol::Tcp, verdicts));
    let singles = |verdicts: &Vec<(PortRange, Verdict)>| -> Vec<_> {
        verdicts.iter().map(|(range, verdict)| ((Protocol::Tcp, range.first), verdict.clone())).collect()
    };
    let of_singles = maps.iter().map(|verdicts| ports(&class, &singles(verdicts)));
    let many = [vec![80], vec![81], vec![80, 81]].map(|ports| ports.into_iter().map(|port| (Protocol::Udp, port)));
    let many = many.map(|all| ports_of(&class, &to("from_a"), &all.collect::<Vec<_>>()));
    let names: Vec<Name> = of_ranges.chain(of_singles).chain(many).collect();
    let different: std::collections::BTreeSet<&Name> = names.iter().collect();
    assert_eq!(different.len(), 2 * maps.len() + 3);
    for name in &names {
        assert!(looking_up(name).any(|chain| chain == class), "{name}");
    }
    let tier = tier(&tier_of(&[key_of(Tier::Admin, Direction::Ingress)]));
    for map in [ports(&run(&tier, 10), &[]), ranges(&run(&tier, 0), Protocol::Sctp, &[])] {
        assert!(looking_up(&map).any(|chain| chain == tier), "{map}");
    }
    let endpoint_of = HostEndpoint { address: [192, 0, 2, 1].into(), protocol: Protocol::Tcp, port: 443 };
    for other in [set(&pods_of("shop"), Family::V4), endpoint(&endpoint_of), isolated(Direction::Egress, Family::V4)] {
        assert!(
            !looking_up(&other).any(|chain| kind(&chain).is_some_and(|kind| kind != ChainKind::RefusedServices)),
            "{other}"
        );
    }
}

/// A table in the kernel is read by the next run, also by one of another version.
#[test]
fn the_number_of_a_pod_is_stable_and_each_pod_has_its_own() {
    assert_eq!(pod_id(&object("shop/db")), 919_323_059);
    assert_ne!(pod_id(&object("shop/db")), pod_id(&object("shop/web")));
    assert_ne!(pod_id(&ObjectName::new("a", "bc")), pod_id(&ObjectName::new("ab", "c")));
}

#[test]
fn the_purpose_of_a_chain_follows_from_its_name() {
    for direction in Direction::BOTH {
        for namespace in ["shop", "admin", "baseline", "shared", "in", "denied", "passed", "kept"] {
            let class_of = Class { namespace: namespace.into(), direction, ..class_of(&["shop/in"], false) };
            assert_eq!(kind(&class(&class_of)), Some(ChainKind::Class), "{}", class(&class_of));
            assert_eq!(kind(&each(&class_of)), Some(ChainKind::Each), "{}", each(&class_of));
        }
        for of_tier in [Tier::Admin, Tier::Baseline] {
            let key = key_of(of_tier, direction);
            let policies = Arc::new(tier_of(std::slice::from_ref(&key)));
            let judged = Judged { direction, admin: None, rest: Some(Rest::Baseline(policies.clone())) };
            let each_of = EachTier { tier: policies.clone(), rest: None };
            let (sets, outcome) = ([Arc::new(pods_of("shop"))].into(), Outcome::Deny(key.clone()));
            let of_peers = Peers { direction, sets, alone: [].into(), outcome };
            for (chain, expected) in [
                (tier(&policies), ChainKind::Tier),
                (denied(&key), ChainKind::Denied),
                (passed(&key), ChainKind::Passed),
                (kept(&["rule".to_owned()], Some(&tier(&policies))), ChainKind::Kept),
                (shared(&[judged.clone(), judged]), ChainKind::Shared),
                (each_tier(&each_of), ChainKind::Each),
                (peers(&of_peers), ChainKind::Peers),
            ] {
                assert_eq!(kind(&chain), Some(expected), "{chain}");
            }
        }
        assert_eq!(kind(&closed(direction)), Some(ChainKind::Fixed));
    }
    for address in ["10.244.1.7", "fd00:10:244::7"] {
        let chain = refused_services(address.parse().expect("an address"));
        assert_eq!(kind(&chain), Some(ChainKind::RefusedServices), "{chain}");
    }
    let bases = [FORWARD_EGRESS, INPUT_EGRESS, OUTPUT_EGRESS, FORWARD_INGRESS, OUTPUT_INGRESS];
    let fixed = bases.into_iter().chain([LINK_LOCAL, MULTICAST]).map(Name::from);
    for chain in fixed.chain(Family::BOTH.map(icmp)) {
        assert_eq!(kind(&chain), Some(ChainKind::Fixed), "{chain}");
    }
    assert_eq!(kind(&"strange".into()), None);
    for (head, _) in CHAINS {
        let others = CHAINS.iter().filter(|(other, _)| *other != head);
        assert!(others.clone().all(|(other, _)| !head.starts_with(other)), "{head}");
    }
}

#[test]
fn a_set_whose_elements_close_paths_is_found_by_its_name() {
    let element = |set: &Name| Object::Element(set.clone(), Key::Address("10.244.1.7".parse().expect("an address")));
    let port = SetKey::NamedPort { pods: PortOwners::Local, name: "http".into(), protocol: Protocol::Tcp };
    for family in Family::BOTH {
        let opening = [pods_of("denied"), port.clone()];
        let closing = opening.clone().map(|key| SetKey::Denied(key.into()));
        for key in opening.into_iter().chain(closing).chain([SetKey::Blocks([].into())]) {
            let union_of = Union { sets: [Arc::new(key.clone()), Arc::new(pods_of("shop"))].into() };
            for set in [set(&key, family), union(&union_of, family)] {
                assert_eq!(closes(&element(&set)), key.closes(), "{set}");
            }
        }
        let address = if family == Family::V4 { "192.0.2.11" } else { "2001:db8::11" };
        let address = address.parse().expect("an address");
        let services = endpoint(&HostEndpoint { address, protocol: Protocol::Tcp, port: 6443 });
        let maps = Direction::BOTH.into_iter().flat_map(|one| [admin(one, family), isolated(one, family)]);
        for set in maps.chain([host_endpoints(family), services]) {
            assert!(closes(&element(&set)), "{set}");
        }
        for set in [to_itself(family), pods(family)] {
            assert!(!closes(&element(&set)), "{set}");
        }
    }
    let class = class(&class_of(&["shop/db"], false));
    assert!(!closes(&element(&ports(&class, &[]))) && !closes(&element(&ranges(&class, Protocol::Tcp, &[]))));
    assert!(!closes(&Object::Set(host_endpoints(Family::V4))), "a set alone closes nothing");
}

#[test]
fn every_name_can_be_read_by_nft_and_fits_into_the_kernel() {
    let odd = ObjectName::new(&"n".repeat(300), "sp ace\"{}#\u{e9}");
    let odd = Class {
        direction: Direction::Egress,
        namespace: (*odd.namespace).clone(),
        policies: [odd].into(),
        by_namespace: true,
    };
    let chain = class(&odd);
    let selection = Selection { namespaces: Scope::Named("a b".into()), pods: selector("app=web") };
    let six: IpAddr = "fd00:10:244::1".parse().unwrap();
    let endpoint_of = HostEndpoint { address: six, protocol: Protocol::Sctp, port: 65535 };
    let key = ClusterPolicyKey {
        tier: Tier::Baseline,
        priority: 1000,
        policy: "sp ace\"{}#\u{e9}".repeat(99).into(),
        direction: Direction::Egress,
    };
    let of_tier = TierPolicies { tier: key.tier, direction: key.direction, policies: [key.clone()].into() };
    let each_of = EachTier { tier: of_tier.clone().into(), rest: None };
    for name in [
        tier(&of_tier),
        each_tier(&each_of),
        ranges(&run(&tier(&of_tier), 1000), Protocol::Sctp, &[]),
        denied(&key),
        each(&odd),
        ports(&chain, &[]),
        ranges(&chain, Protocol::Sctp, &[]),
        set(&SetKey::Pods(selection), Family::V6),
        refused_services(six),
        endpoint(&endpoint_of),
        isolated(Direction::Egress, Family::V4),
        to_itself(Family::V6),
    ] {
        let name = name.as_str();
        assert!(name.starts_with(|first: char| first.is_ascii_alphabetic()), "{name}");
        assert!(name.chars().all(|c| c.is_ascii_alphanumeric() || "/_-.".contains(c)), "{name}");
        assert!(name.len() < 128, "{name}: also the prefix of a logged packet");
    }
}
