//! Rules that choose a table by the source.

use std::collections::BTreeMap;

use sluice::kernel::rule::{RuleKey, SourceRules};
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
