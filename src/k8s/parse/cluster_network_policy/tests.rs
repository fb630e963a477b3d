use super::*;
use crate::model::{Operator, Requirement};

const HEAD: &str = "tier: Admin, priority: 10, subject: {namespaces: {}}";

fn parsed(spec: &str) -> (Option<ClusterNetworkPolicy>, Vec<String>) {
    let yaml = format!("{{metadata: {{name: p}}, spec: {spec}}}");
    let object: ClusterNetworkPolicyObject =
        serde_saphyr::from_str(&yaml).unwrap_or_else(|error| panic!("{yaml}: {error}"));
    let (name, policy, warnings) = cluster_network_policy(&object);
    assert_eq!(name, "p");
    (policy, warnings.iter().map(Warning::to_string).collect())
}

fn sound(spec: &str) -> ClusterNetworkPolicy {
    let (policy, warnings) = parsed(spec);
    assert_eq!(warnings, [""; 0], "{spec}");
    policy.expect("it is sound")
}

fn is(key: &str, value: &str) -> Selector {
    [Requirement { key: key.into(), operator: Operator::In([value.into()].into()) }].into_iter().collect()
}

/// The only rule of a policy for egress with this rule, and the warnings.
fn egress_rule(rule: &str) -> (ClusterRule, Vec<String>) {
    let (policy, warnings) = parsed(&format!("{{{HEAD}, egress: [{rule}]}}"));
    let rules = policy.expect("the policy itself is sound").egress;
    assert_eq!(rules.len(), 1, "{rule}: {warnings:?}");
    (rules[0].clone(), warnings)
}

/// Matches of a valid rule.
fn matches(rule: &str) -> PolicyRule {
    let (rule, warnings) = egress_rule(rule);
    assert_eq!(warnings, [""; 0], "{rule:?}");
    rule.matches
}

fn of(namespaces: Selector, pods: Selector) -> Peer {
    Peer::Pods { namespaces: Namespaces::Selected(namespaces), pods }
}

fn network(cidr: &str) -> Peer {
    Peer::Block { cidr: cidr.parse().expect("a range"), except: [].into() }
}

#[test]
fn tier_priority_and_subject_are_those_of_the_spec() {
    let all = Selector::everything;
    for (spec, tier, priority, subject) in [
        ("{tier: Admin, priority: 0, subject: {namespaces: {}}}", Tier::Admin, 0, (all(), all())),
        (
            "{tier: Baseline, priority: 1000, subject: {namespaces: {matchLabels: {team: red}}}}",
            Tier::Baseline,
            1000,
            (is("team", "red"), all()),
        ),
        (
            "{tier: Admin, priority: 7, subject: {pods: {namespaceSelector: {matchLabels: {team: red}}, podSelector: {matchLabels: {app: web}}}}}",
            Tier::Admin,
            7,
            (is("team", "red"), is("app", "web")),
        ),
        ("{tier: Admin, priority: 7, subject: {pods: {podSelector: {}}}}", Tier::Admin, 7, (all(), all())),
    ] {
        let (namespaces, pods) = subject;
        let expected = ClusterNetworkPolicy {
            tier,
            priority,
            subject: Subject { namespaces, pods },
            ingress: [].into(),
            egress: [].into(),
        };
        assert_eq!(sound(spec), expected, "{spec}");
    }
}

#[test]
fn what_decides_about_the_whole_policy_is_understood_or_the_policy_is_unreadable() {
    for (spec, field) in [
        ("", "spec.tier"),
        ("{tier: admin, priority: 1, subject: {namespaces: {}}}", "spec.tier"),
        ("{tier: Admin, subject: {namespaces: {}}}", "spec.priority"),
        ("{tier: Admin, priority: 1001, subject: {namespaces: {}}}", "spec.priority"),
        ("{tier: Admin, priority: -1, subject: {namespaces: {}}}", "spec.priority"),
        ("{tier: Admin, priority: first, subject: {namespaces: {}}}", "spec.priority"),
        ("{tier: Admin, priority: 1}", "spec.subject"),
        ("{tier: Admin, priority: 1, subject: {}}", "spec.subject"),
        ("{tier: Admin, priority: 1, subject: {namespaces: {}, pods: {podSelector: {}}}}", "spec.subject"),
        ("{tier: Admin, priority: 1, subject: {services: {}}}", "spec.subject.services"),
        ("{tier: Admin, priority: 1, subject: {pods: {}}}", "spec.subject.pods.podSelector"),
        (
            "{tier: Admin, priority: 1, subject: {namespaces: {matchLabel: {a: b}}}}",
            "spec.subject.namespaces.matchLabel",
        ),
        (
            "{tier: Admin, priority: 1, subject: {pods: {podSelector: {}, namespaceSelectors: {}}}}",
            "spec.subject.pods.namespaceSelectors",
        ),
        ("{tier: Admin, priority: 1, subject: {namespaces: {}}, egres: []}", "spec.egres"),
    ] {
        let (policy, warnings) = parsed(spec);
        assert_eq!(policy, None, "{spec}");
        assert!(warnings.len() == 1 && warnings[0].starts_with(&format!("{field}: ")), "{spec}: {warnings:?}");
    }
}

#[test]
fn a_field_that_is_not_known_has_no_effect_beside_all_that_a_policy_needs() {
    let (policy, warnings) =
        parsed("{tier: Admin, priority: 1, subject: {namespaces: {}}, audit: true, ingress: [], egress: []}");
    assert!(policy.is_some());
    assert_eq!(warnings, ["spec.audit: is not known; it has no effect"]);
}

#[test]
fn the_rules_of_each_direction_keep_their_order_their_names_and_their_actions() {
    let policy = sound(&format!(
        "{{{HEAD}, ingress: [{{name: one, action: Pass, from: [{{namespaces: {{}}}}]}}],
          egress: [{{action: Accept, to: [{{networks: [10.0.0.0/8]}}]}}, {{name: last, action: Deny, to: [{{namespaces: {{}}}}]}}]}}"
    ));
    let said =
        |rules: &[ClusterRule]| rules.iter().map(|rule| format!("{} {:?}", rule.name, rule.action)).collect::<Vec<_>>();
    assert_eq!(said(&policy.ingress), ["one Pass"]);
    assert_eq!(said(&policy.egress), [" Accept", "last Deny"]);
}

#[test]
fn peers_are_pods_or_nodes_or_networks_of_either_family() {
    let rule = matches(
        "{action: Deny, to: [{namespaces: {matchLabels: {team: red}}}, {pods: {podSelector: {matchLabels: {app: web}}}},
          {networks: [10.0.0.7/8, 'fd00::/8']}, {nodes: {matchLabels: {pool: gpu}}}, {nodes: {}}]}",
    );
    let expected = [
        of(is("team", "red"), Selector::everything()),
        of(Selector::everything(), is("app", "web")),
        network("10.0.0.0/8"),
        network("fd00::/8"),
        Peer::Nodes(is("pool", "gpu")),
        Peer::Nodes(Selector::everything()),
    ];
    assert_eq!(rule, PolicyRule { peers: Peers::Of(expected.into()), ports: Ports::Any });
}

#[test]
fn protocols_are_numbers_ranges_and_names_of_any_protocol() {
    let rule = matches(
        "{action: Deny, to: [{namespaces: {}}], protocols: [{tcp: {destinationPort: {number: 80}}},
          {udp: {destinationPort: {range: {start: 5000, end: 6000}}}}, {sctp: {destinationPort: {number: 65535}}},
          {destinationNamedPort: http}]}",
    );
    let port = |protocol, first, last| PolicyPort { protocol, number: PortMatch::Range { first, last } };
    let named = |protocol| PolicyPort { protocol, number: PortMatch::Named("http".into()) };
    let numbers = [port(Protocol::Tcp, 80, 80), port(Protocol::Udp, 5000, 6000), port(Protocol::Sctp, 65535, 65535)];
    let expected: Box<[PolicyPort]> = numbers.into_iter().chain(Protocol::ALL.map(named)).collect();
    assert_eq!(rule.ports, Ports::Of(expected));
}

/// Parts of a rule for egress that make no sense, each with the field that is named.
const ODD: [(&str, &str); 31] = [
    ("", "to"),
    ("to: []", "to"),
    ("to: [{}]", "to[0]"),
    ("to: [{namespaces: {}}, {namespaces: {}, pods: {podSelector: {}}}]", "to[1]"),
    ("to: [{services: {}}]", "to[0].services"),
    ("to: [{namespaces: {}}], from: [{namespaces: {}}]", "from"),
    ("to: [{namespaces: {}}], ports: []", "ports"),
    ("to: [{namespaces: {matchExpressions: [{key: a, operator: Near}]}}]", "to[0].namespaces.matchExpressions[0]"),
    ("to: [{pods: {}}]", "to[0].pods.podSelector"),
    ("to: [{pods: {podSelector: {}, namespaces: {}}}]", "to[0].pods.namespaces"),
    ("to: [{networks: []}]", "to[0].networks"),
    ("to: [{networks: [10.0.0.0/8, 10.0.0.0/33]}]", "to[0].networks[1]"),
    ("to: [{networks: [example.org]}]", "to[0].networks[0]"),
    ("to: [{networks: [10.0.0.0/8]}], protocols: [{destinationNamedPort: http}]", "protocols"),
    ("to: [{nodes: {matchExpressions: [{key: a, operator: Near}]}}]", "to[0].nodes.matchExpressions[0]"),
    ("to: [{nodes: {}}], protocols: [{destinationNamedPort: http}]", "protocols"),
    ("to: [{domainNames: [example.org]}]", "to[0].domainNames"),
    ("to: [{namespaces: {}}], protocols: []", "protocols"),
    ("to: [{namespaces: {}}], protocols: [{}]", "protocols[0]"),
    ("to: [{namespaces: {}}], protocols: [{icmp: {}}]", "protocols[0].icmp"),
    ("to: [{namespaces: {}}], protocols: [{tcp: {}}]", "protocols[0].tcp.destinationPort"),
    ("to: [{namespaces: {}}], protocols: [{tcp: {sourcePort: 1}}]", "protocols[0].tcp.sourcePort"),
    ("to: [{namespaces: {}}], protocols: [{tcp: {destinationPort: {}}}]", "protocols[0].tcp.destinationPort"),
    (
        "to: [{namespaces: {}}], protocols: [{tcp: {destinationPort: {number: 0}}}]",
        "protocols[0].tcp.destinationPort.number",
    ),
    (
        "to: [{namespaces: {}}], protocols: [{tcp: {destinationPort: {number: 65536}}}]",
        "protocols[0].tcp.destinationPort.number",
    ),
    (
        "to: [{namespaces: {}}], protocols: [{tcp: {destinationPort: {range: {start: 9}}}}]",
        "protocols[0].tcp.destinationPort.range.end",
    ),
    (
        "to: [{namespaces: {}}], protocols: [{tcp: {destinationPort: {range: {start: 9, end: 8}}}}]",
        "protocols[0].tcp.destinationPort.range",
    ),
    (
        "to: [{namespaces: {}}], protocols: [{tcp: {destinationPort: {range: {start: 8, end: 9, step: 1}}}}]",
        "protocols[0].tcp.destinationPort.range.step",
    ),
    (
        "to: [{namespaces: {}}], protocols: [{tcp: {destinationPort: {number: 1}}, udp: {destinationPort: {number: 1}}}]",
        "protocols[0]",
    ),
    ("to: [{namespaces: {}}], protocols: [{destinationNamedPort: '80'}]", "protocols[0].destinationNamedPort"),
    ("to: [{namespaces: {}}], protocols: [{destinationNamedPort: ''}]", "protocols[0]"),
];

#[test]
fn a_rule_that_makes_no_sense_accepts_nothing_or_denies_everything() {
    for (parts, field) in ODD {
        for (action, closed) in [
            ("Accept", (Action::Accept, nothing())),
            ("Deny", (Action::Deny, everything())),
            ("Pass", (Action::Deny, everything())),
            ("Allow", (Action::Deny, everything())),
        ] {
            let (rule, warnings) = egress_rule(&format!("{{name: odd, action: {action}, {parts}}}"));
            assert_eq!((rule.action, rule.matches), closed, "{action} {parts}");
            let named = if action == "Allow" { "action" } else { field };
            let begins = format!("spec.egress[0].{named}: ");
            assert!(warnings.len() == 1 && warnings[0].starts_with(&begins), "{action} {parts}: {warnings:?}");
        }
    }
}

#[test]
fn ingress_knows_neither_networks_nor_nodes_nor_names() {
    for peer in ["networks: [10.0.0.0/8]", "nodes: {}", "domainNames: [example.org]"] {
        let (policy, warnings) = parsed(&format!("{{{HEAD}, ingress: [{{action: Pass, from: [{{{peer}}}]}}]}}"));
        let rules = policy.expect("the policy itself is sound").ingress;
        assert_eq!((rules[0].action, &rules[0].matches), (Action::Deny, &everything()), "{peer}");
        assert_eq!(warnings.len(), 1, "{peer}");
    }
}

#[test]
fn json_of_the_api_and_yaml_of_a_manifest_give_the_same_policy() {
    let json = r#"{"apiVersion":"policy.networking.k8s.io/v1beta1","kind":"ClusterNetworkPolicy","metadata":{"name":"p",
        "resourceVersion":"7","managedFields":[{"manager":"x"}]},"spec":{"tier":"Admin","priority":50,
        "subject":{"namespaces":{}},"ingress":[{"name":"a","action":"Accept","from":[{"namespaces":{"matchLabels":{"team":"red"}}}],
        "protocols":[{"tcp":{"destinationPort":{"number":80}}}]}]},"status":{"conditions":[]}}"#;
    let from_json: ClusterNetworkPolicyObject = serde_json::from_str(json).expect("the test's JSON is sound");
    let from_yaml: ClusterNetworkPolicyObject = serde_saphyr::from_str(json).expect("JSON is YAML");
    let (_, policy, warnings) = cluster_network_policy(&from_json);
    assert_eq!((&policy, warnings), (&cluster_network_policy(&from_yaml).1, vec![]));
    assert_eq!(policy.expect("it is sound").ingress.len(), 1);
}
