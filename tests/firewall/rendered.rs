//! The text of every kind of rule of both backends, letter by letter: nodes that run have these rules, and a new version adopts them
//! without a step only where it writes the same.

use std::fmt::Write;
use std::sync::Arc;
use std::time::Duration;

use sluice::config::{FirewallConfig, ServiceRanges};
use sluice::firewall::iptables::lowering::Lowering;
use sluice::firewall::nftables;
use sluice::firewall::plan::Plan;
use sluice::model::{Action, ClusterNetworkPolicy, ClusterRule, Namespace, Node, Selector, Subject, Tier};
use sluice::net::{Family, PerFamily};
use sluice::proxy::guard;
use sluice::router::{forward, identity::Identity, pod_egress};

use super::cases::{Case, ELSEWHERE, HERE, block, pods, pods_in, port, rule};
use super::services;
use super::support::tables_text;

/// One cluster with every feature that shows in a rule.
fn case() -> Case {
    let numbers: Vec<_> = (0..16).map(|number| port(&format!("tcp/{}", 1000 + 2 * number))).collect();
    let ingress = [
        rule(&[pods("app=db"), pods_in("team=a", "app=db")], &[port("tcp/80"), port("udp/53"), port("sctp/70-90")]),
        rule(&[block("10.0.0.0/8", &["10.1.0.0/16"]), block("fd00::/8", &[])], &[port("tcp/http")]),
        rule(&[], &numbers),
        rule(&[], &[port("udp/*")]),
        rule(&[pods("app=web")], &[]),
    ];
    let egress = [rule(&[pods("app=web")], &[port("tcp/http")]), rule(&[], &[port("tcp/5432")])];
    let mut case = Case::new()
        .namespace("shop", "team=a")
        .pod("shop/web", HERE, ["10.244.0.1 fd00:10:244::1", "app=web", "http/tcp/8080"])
        .pod("shop/db", HERE, ["10.244.0.2", "app=db", ""])
        .pod("shop/far", ELSEWHERE, ["10.244.1.2 fd00:10:244:1::2", "app=db", ""])
        .policy("shop/web", "app=web", [Some(&ingress), None])
        .policy("shop/all", "", [Some(&[]), Some(&egress)]);
    case.0.cluster.namespaces.insert("shut".into(), Namespace { isolated: true, ..Namespace::default() });
    case = case.pod("shut/one", HERE, ["10.244.0.3", "", ""]);
    for tier in [Tier::Admin, Tier::Baseline] {
        case.0.cluster.cluster_policies.insert(tier.name().to_lowercase().into(), of_tier(tier));
    }
    let pod_cidrs = vec!["10.244.0.0/24".parse().expect("a range"), "fd00:10:244::/64".parse().expect("a range")];
    case.0.cluster.nodes.insert(HERE.into(), Node { pod_cidrs, ..Node::default() });
    case
}

/// A policy for all pods that denies, passes and accepts.
fn of_tier(tier: Tier) -> ClusterNetworkPolicy {
    let rules = [
        (
            Action::Deny,
            rule(&[pods_in("team=a", "app=db"), block("203.0.113.0/24", &[])], &[port("tcp/80"), port("tcp/90-99")]),
        ),
        (Action::Pass, rule(&[pods_in("team=a", "app=db")], &[port("tcp/http")])),
        (Action::Accept, rule(&[pods_in("", "")], &[])),
        (Action::Deny, rule(&[], &[])),
    ];
    let rule = |(action, matches)| ClusterRule { name: "rule".into(), action, matches };
    let rules: Box<[ClusterRule]> = rules.into_iter().map(rule).collect();
    let subject = Subject { namespaces: Selector::everything(), pods: Selector::everything() };
    ClusterNetworkPolicy { tier, priority: 7, subject, ingress: rules.clone(), egress: rules }
}

fn config() -> FirewallConfig {
    let range = |text: &str| vec![text.parse().expect("a range")];
    FirewallConfig {
        backend: sluice::config::Backend::default(),
        sync_period: Duration::from_secs(300),
        default_deny: true,
        flush_established: false,
        ranges: ServiceRanges {
            cluster_ips: [range("10.96.0.0/12"), range("fd00:10:96::/108")].concat(),
            external_ips: range("203.0.113.128/25"),
            load_balancer_ips: range("2001:db8:9::/64"),
            ..ServiceRanges::default()
        },
        knows_services: true,
        tunnel_mode: true,
        service_node_port_range: 30000..=32767,
    }
}

#[test]
fn every_kind_of_rule_is_written_as_on_running_nodes() {
    let world = case().0;
    let mut plan = Plan::new();
    let changed = plan.update(&world);
    let mut lowering = Lowering::new(Arc::new(config()), PerFamily { v4: true, v6: true });
    lowering.update(plan.rules(), &world, &changed);
    let mut all = lowering.desired().rules.clone();
    let all_links = PerFamily { v4: ["eth0".into()].into(), v6: ["eth1".into()].into() };
    let own = Identity { all_links, ..Identity::default() };
    for family in Family::BOTH {
        all.extend(guard::rules(family, &[]));
        all.extend(pod_egress::rules(family));
        all.extend(forward::rules(&own, None, family));
    }
    let mut text = String::new();
    for (piece, rules) in &all {
        writeln!(text, "{piece}").expect("a text takes in any text");
        rules.0.iter().for_each(|rule| writeln!(text, "  {rule}").expect("a text takes in any text"));
    }
    check(&text, "rendered.txt", include_str!("rendered.txt"));
}

#[test]
fn every_object_of_the_table_is_as_on_running_nodes() {
    let mut world = case().0;
    services::put(&mut world, "shop/api", ("10.96.0.1", 443), &["192.0.2.11:6443"]);
    let mut plan = Plan::new();
    let changed = plan.update(&world);
    let mut lowering = nftables::lowering::Lowering::new(Arc::new(config()), PerFamily { v4: true, v6: true });
    lowering.update(plan.rules(), &world, &changed);
    check(&tables_text::text(&lowering.desired().table), "table.txt", include_str!("table.txt"));
}

fn check(text: &str, file: &str, expected: &str) {
    if std::env::var_os("UPDATE_EXPECTED").is_some() {
        let file = format!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/firewall/{}"), file);
        std::fs::write(file, text).expect("the file can be written");
    }
    let differing = text.lines().zip(expected.lines()).find(|(found, expected)| found != expected);
    assert!(text == expected, "the first that differs: {differing:?}");
}
