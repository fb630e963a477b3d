//! Rules that choose a table by the source.

use std::collections::BTreeMap;

use sluice::kernel::rule::{Packets, Place, PolicyRule, PolicyRules, RuleKey, SourceRules};
use sluice::net::Family;
use sluice::proxy::marks::is_rule_of_ours;
use sluice::reconcile::{Phase, Step, Target};

use crate::namespace::{in_new, run};

fn key(source: &str) -> RuleKey {
    RuleKey { source: source.parse().expect("a prefix"), table: 77 }
}

#[test]
fn rules_of_our_table_are_made_found_and_deleted_and_those_of_others_stay() {
    in_new(|| {
        let foreign = ["from 10.1.0.0/16 lookup 78", "from all fwmark 0x5 lookup 77", "to 10.2.0.0/16 lookup 77"];
        for rule in foreign {
            run(&format!("ip rule add {rule}"));
        }
        let (before, before6) = (run("ip rule"), run("ip -6 rule"));
        let mut rules = SourceRules::open([77]).expect("a socket");
        assert!(rules.read().expect("a reading").is_empty());
        let keys = [key("10.244.1.0/24"), key("fd00:10:244:1::/64")];
        let make: Vec<_> = keys.iter().map(|key| Step { key, have: None, want: Some(&()) }).collect();
        assert!(rules.apply(Phase::Grow, &make).is_empty());
        assert!(run("ip rule").contains("from 10.244.1.0/24 lookup 77"));
        assert!(run("ip -6 rule").contains("from fd00:10:244:1::/64 lookup 77"));
        assert_eq!(rules.read().expect("a reading"), keys.iter().map(|key| (*key, ())).collect::<BTreeMap<_, _>>());
        run("ip rule add from 10.244.1.0/24 lookup 77 priority 100");
        assert_eq!(rules.read().expect("a reading").len(), 2);
        let delete: Vec<_> = keys.iter().map(|key| Step { key, have: Some(&()), want: None }).collect();
        assert!(rules.apply(Phase::Shrink, &delete).is_empty());
        assert_eq!((run("ip rule"), run("ip -6 rule")), (before, before6));
    });
}

#[test]
fn a_rule_that_kube_router_made_is_ours() {
    in_new(|| {
        run("ip rule add from 10.244.1.0/24 lookup 77");
        let mut rules = SourceRules::open([77]).expect("a socket");
        assert_eq!(rules.read().expect("a reading"), BTreeMap::from([(key("10.244.1.0/24"), ())]));
    });
}

const DSR: Place = Place { priority: 32764, table: 78 };

#[test]
fn a_rule_that_asks_more_than_the_mark_is_not_ours() {
    in_new(|| {
        let foreign = [
            "from all fwmark 0x5 lookup 78 priority 100",
            "from all fwmark 0x5 iif lo lookup 78 priority 32764",
            "from 10.1.0.0/16 fwmark 0x5 lookup 78 priority 32764",
            "from all fwmark 0x5 ipproto tcp lookup 78 priority 32764",
            "from all fwmark 0x5 lookup 77 priority 32764",
            "from all fwmark 0x5 lookup 78 suppress_prefixlength 0 priority 32764",
        ];
        for rule in foreign {
            run(&format!("ip rule add {rule}"));
        }
        assert_eq!(PolicyRules::open(is_rule_of_ours).expect("a socket").read().expect("a reading"), BTreeMap::new());
    });
}

#[test]
fn rules_by_mark_are_made_found_and_deleted_and_those_of_others_stay() {
    in_new(|| {
        for rule in ["from all fwmark 0x5 lookup 78 priority 100", "from all fwmark 0x5 lookup 77 priority 32764"] {
            run(&format!("ip rule add {rule}"));
        }
        let (before, before6) = (run("ip rule"), run("ip -6 rule"));
        let mut rules = PolicyRules::open(is_rule_of_ours).expect("a socket");
        let marked = Packets::Marked { value: 5, mask: u32::MAX };
        let all = [Packets::NotMarked { value: 0, mask: 0x3fff }, marked, Packets::All];
        let of = |family| all.map(|packets| PolicyRule { family, place: DSR, packets });
        let keys: Vec<PolicyRule> = Family::BOTH.into_iter().flat_map(of).collect();
        let make: Vec<_> = keys.iter().map(|key| Step { key, have: None, want: Some(&()) }).collect();
        assert!(rules.apply(Phase::Grow, &make).is_empty());
        for shown in [run("ip rule"), run("ip -6 rule")] {
            for line in
                ["not from all fwmark 0/0x3fff lookup 78", "from all fwmark 0x5 lookup 78", "from all lookup 78"]
            {
                assert!(shown.contains(&format!("32764:\t{line} ")), "{line} in {shown}");
            }
        }
        assert_eq!(rules.read().expect("a reading"), keys.iter().map(|key| (*key, ())).collect::<BTreeMap<_, _>>());
        assert_eq!(rules.apply(Phase::Grow, &make).len(), keys.len(), "the kernel has each once");
        let delete: Vec<_> = keys.iter().map(|key| Step { key, have: Some(&()), want: None }).collect();
        assert!(rules.apply(Phase::Shrink, &delete).is_empty());
        assert_eq!((run("ip rule"), run("ip -6 rule")), (before, before6));
    });
}

#[test]
fn what_kube_router_leaves_of_direct_server_return_is_ours() {
    in_new(|| {
        for family in ["-4", "-6"] {
            run(&format!("ip {family} rule add fwmark 13766 lookup 78 priority 32764"));
            run(&format!("ip {family} rule add from all lookup 79 priority 32765"));
        }
        let mut rules = PolicyRules::open(is_rule_of_ours).expect("a socket");
        let found = rules.read().expect("a reading");
        assert_eq!(found.len(), 4, "{found:?}");
        let delete: Vec<_> = found.keys().map(|key| Step { key, have: Some(&()), want: None }).collect();
        assert!(rules.apply(Phase::Shrink, &delete).is_empty());
        assert!(rules.read().expect("a reading").is_empty());
        assert!(!run("ip rule").contains("78") && !run("ip -6 rule").contains("79"));
    });
}

#[test]
fn rules_of_others_in_the_places_that_the_kernel_gives_by_itself_stay() {
    in_new(|| {
        for family in ["-4", "-6"] {
            // Without a priority the kernel gives 32765 and then 32764.
            run(&format!("ip {family} rule add not fwmark 0x1 lookup 79"));
            run(&format!("ip {family} rule add fwmark 0x10000/0x10000 lookup 78"));
            run(&format!("ip {family} rule add fwmark 0x4001 lookup 78 priority 32764"));
        }
        let mut rules = PolicyRules::open(is_rule_of_ours).expect("a socket");
        assert_eq!(rules.read().expect("a reading"), BTreeMap::new(), "{} {}", run("ip rule"), run("ip -6 rule"));
    });
}

#[test]
fn a_rule_for_all_packets_is_not_deleted_where_the_kernel_might_delete_another_ones_instead() {
    in_new(|| {
        run("ip rule add from 10.1.0.0/16 iif lo lookup 79 priority 32765");
        run("ip rule add from all lookup 79 priority 32765");
        let before = run("ip rule");
        let mut rules = PolicyRules::open(is_rule_of_ours).expect("a socket");
        let found = rules.read().expect("a reading");
        let delete: Vec<_> = found.keys().map(|key| Step { key, have: Some(&()), want: None }).collect();
        let failures = rules.apply(Phase::Shrink, &delete);
        assert_eq!((delete.len(), failures.len()), (1, 1));
        assert!(failures[0].error.to_string().contains("somebody else"), "{}", failures[0].error);
        assert_eq!(run("ip rule"), before);
        run("ip rule del from 10.1.0.0/16 iif lo lookup 79 priority 32765");
        assert!(rules.apply(Phase::Shrink, &delete).is_empty());
        assert!(!run("ip rule").contains("lookup 79"));
    });
}
