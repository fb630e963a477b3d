use serde_json::{Value, json};

use super::*;
use crate::model::{Operator, Requirement};
use crate::net::Protocol;

fn parsed(spec: &str) -> (Option<NetworkPolicy>, Vec<String>) {
    let yaml = format!("{{metadata: {{name: p, namespace: shop}}, spec: {spec}}}");
    let object: NetworkPolicyObject = serde_saphyr::from_str(&yaml).unwrap_or_else(|error| panic!("{yaml}: {error}"));
    let (name, policy, warnings) = network_policy(&object);
    assert_eq!(name, ObjectName::new("shop", "p"));
    (policy, warnings.iter().map(Warning::to_string).collect())
}

fn sound(spec: &str) -> NetworkPolicy {
    let (policy, warnings) = parsed(spec);
    assert_eq!(warnings, [""; 0], "{spec}");
    policy.expect("it is sound")
}

fn is(key: &str, value: &str) -> Selector {
    [Requirement { key: key.into(), operator: Operator::In([value.into()].into()) }].into_iter().collect()
}

/// The only rule of a policy for ingress with this rule, and the warnings.
fn ingress_rule(rule: &str) -> (PolicyRule, Vec<String>) {
    let (policy, warnings) = parsed(&format!("{{ingress: [{rule}]}}"));
    let rules = policy.expect("the policy itself is sound").ingress.expect("it is for ingress");
    assert_eq!(rules.len(), 1, "{rule}: {warnings:?}");
    (rules[0].clone(), warnings)
}

fn peers(list: &str) -> (Peers, Vec<String>) {
    let (rule, warnings) = ingress_rule(&format!("{{from: {list}}}"));
    (rule.peers, warnings)
}

fn ports(list: &str) -> (Ports, Vec<String>) {
    let (rule, warnings) = ingress_rule(&format!("{{ports: {list}}}"));
    (rule.ports, warnings)
}

const NOBODY: fn() -> Peers = || Peers::Of(Box::new([]));
const NO_PORT: fn() -> Ports = || Ports::Of(Box::new([]));

fn nothing() -> PolicyRule {
    PolicyRule { peers: NOBODY(), ports: NO_PORT() }
}

#[test]
fn without_policy_types_a_policy_is_for_ingress_and_with_egress_rules_for_egress_too() {
    for (spec, ingress, egress) in [
        ("{}", true, false),
        ("{policyTypes: []}", true, false),
        ("{policyTypes: , egress: []}", true, false),
        ("{egress: [{}]}", true, true),
        ("{egress: [{}], policyTypes: []}", true, true),
        ("{policyTypes: [Ingress], egress: [{}]}", true, false),
        ("{policyTypes: [Egress], ingress: [{}]}", false, true),
        ("{policyTypes: [Egress]}", false, true),
        ("{policyTypes: [Egress, Ingress]}", true, true),
    ] {
        let policy = sound(spec);
        assert_eq!((policy.ingress.is_some(), policy.egress.is_some()), (ingress, egress), "{spec}");
    }
}

#[test]
fn without_a_selector_or_a_spec_every_pod_of_the_namespace_is_selected() {
    for spec in ["{}", "", "{podSelector: }", "{podSelector: {}}", "{podSelector: {matchLabels: {}}}"] {
        let policy = sound(spec);
        assert_eq!(policy.pods, Selector::everything(), "{spec}");
        assert_eq!((policy.ingress, policy.egress), (Some(Box::default()), None), "{spec}");
    }
    assert_eq!(sound("{podSelector: {matchLabels: {app: web}}}").pods, is("app", "web"));
}

#[test]
fn missing_and_empty_lists_mean_what_the_api_says() {
    for spec in ["{policyTypes: [Ingress]}", "{policyTypes: [Ingress], ingress: }", "{ingress: []}"] {
        assert_eq!(sound(spec).ingress, Some(Box::default()), "nothing is allowed: {spec}");
    }
    for rule in ["{}", "{from: []}", "{ports: []}", "{from: , ports: }"] {
        let everything = PolicyRule { peers: Peers::Any, ports: Ports::Any };
        assert_eq!(ingress_rule(rule), (everything, vec![]), "{rule}");
    }
}

#[test]
fn json_of_the_api_and_yaml_of_a_manifest_give_the_same_policy() {
    let json = r#"{"apiVersion":"networking.k8s.io/v1","kind":"NetworkPolicy","metadata":{"name":"p","namespace":"shop",
        "generation":2,"managedFields":[{"manager":"x","fieldsV1":{"f:spec":{}}}],
        "annotations":{"kubectl.kubernetes.io/last-applied-configuration":"{}"}},
        "spec":{"podSelector":{"matchLabels":{"app":"web"}},"policyTypes":["Ingress","Egress"],
        "ingress":[{"from":[{"podSelector":{"matchLabels":{"app":"front"}}},
        {"namespaceSelector":{},"podSelector":{"matchExpressions":[{"key":"app","operator":"Exists"}]}},
        {"namespaceSelector":{"matchLabels":{"team":"blue"}}},
        {"ipBlock":{"cidr":"10.0.0.0/8","except":["10.1.0.0/16"]}}],
        "ports":[{"protocol":"TCP","port":"http"},{"protocol":"UDP","port":53},{"port":30000,"endPort":32767}]}],
        "egress":[{"to":[{"podSelector":{}}]},{"ports":[{"protocol":"SCTP"}]}]},"status":{}}"#;
    let from_json: NetworkPolicyObject = serde_json::from_str(json).expect("the test's JSON is sound");
    let from_yaml: NetworkPolicyObject = serde_saphyr::from_str(json).expect("JSON is YAML");
    let (_, value, warnings) = network_policy(&from_json);
    assert_eq!((&value, warnings), (&network_policy(&from_yaml).1, vec![]));
    let port = |protocol, number| PolicyPort { protocol, number };
    let exists = [Requirement { key: "app".into(), operator: Operator::Exists }].into_iter().collect();
    let ingress = PolicyRule {
        peers: Peers::Of(Box::new([
            Peer::Pods { namespaces: Namespaces::Own, pods: is("app", "front") },
            Peer::Pods { namespaces: Namespaces::Selected(Selector::everything()), pods: exists },
            Peer::Pods { namespaces: Namespaces::Selected(is("team", "blue")), pods: Selector::everything() },
            Peer::Block {
                cidr: "10.0.0.0/8".parse().expect("sound"),
                except: ["10.1.0.0/16".parse().expect("sound")].into(),
            },
        ])),
        ports: Ports::Of(Box::new([
            port(Protocol::Tcp, PortMatch::Named("http".into())),
            port(Protocol::Udp, PortMatch::Range { first: 53, last: 53 }),
            port(Protocol::Tcp, PortMatch::Range { first: 30000, last: 32767 }),
        ])),
    };
    let own = Peer::Pods { namespaces: Namespaces::Own, pods: Selector::everything() };
    let to_own = PolicyRule { peers: Peers::Of([own].into()), ports: Ports::Any };
    let sctp = PolicyRule { peers: Peers::Any, ports: Ports::Of([port(Protocol::Sctp, PortMatch::Any)].into()) };
    let expected =
        NetworkPolicy { pods: is("app", "web"), ingress: Some([ingress].into()), egress: Some([to_own, sctp].into()) };
    assert_eq!(value, Some(expected));
}

#[test]
fn a_peer_that_makes_no_sense_is_nobody_and_the_others_stay() {
    for (peer, field, why) in [
        ("null", "", "is empty"),
        ("{}", "", "has neither an ipBlock nor a selector"),
        ("{podSelector: }", "", "has neither an ipBlock nor a selector"),
        (
            "{ipBlock: {cidr: 10.0.0.0/8}, podSelector: {}}",
            "",
            "has an ipBlock and a selector, which exclude each other",
        ),
        (
            "{ipBlock: {cidr: 10.0.0.0/8}, namespaceSelector: {}}",
            "",
            "has an ipBlock and a selector, which exclude each other",
        ),
        ("{ipBlock: {}}", ".ipBlock.cidr", "\"\" is not a range"),
        ("{ipBlock: {cidr: 10.0.0.0}}", ".ipBlock.cidr", "\"10.0.0.0\" is not a range"),
        ("{ipBlock: {cidr: 10.0.0.0/33}}", ".ipBlock.cidr", "\"10.0.0.0/33\" is not a range"),
        ("{ipBlock: {cidr: 10.0.0.0/8, except: [10.1.0.0]}}", ".ipBlock.except", "\"10.1.0.0\" is not a range"),
        ("{ipBlock: {cidr: 10.0.0.0/8, except: [null]}}", ".ipBlock.except", "\"\" is not a range"),
        ("{ipBlock: {cidr: 10.0.0.0/8, expect: []}}", ".ipBlock.expect", "is not a field of an ipBlock"),
        (
            "{podSelector: {matchExpressions: [{key: a, operator: Like}]}}",
            ".podSelector.matchExpressions[0]",
            "has the operator \"Like\", which is not known",
        ),
        (
            "{podSelector: {}, namespaceSelector: {matchExpressions: [{key: a, operator: In}]}}",
            ".namespaceSelector.matchExpressions[0]",
            "has the operator In and no values",
        ),
        ("{podSelector: {matchLabel: {a: b}}}", ".podSelector.matchLabel", "is not a field of a selector"),
        ("{podSelector: {}, serviceAccounts: [a]}", ".serviceAccounts", "is not a field of a peer"),
    ] {
        let expected = format!("spec.ingress[0].from[0]{field}: {why}; this peer matches nothing");
        let (alone, warnings) = peers(&format!("[{peer}]"));
        assert_eq!(alone, NOBODY(), "an empty list of peers is everybody, but this one was not empty: {peer}");
        assert_eq!(warnings, [expected], "{peer}");
        let (with_another, _) = peers(&format!("[{peer}, {{podSelector: {{}}}}]"));
        let other = Peer::Pods { namespaces: Namespaces::Own, pods: Selector::everything() };
        assert_eq!(with_another, Peers::Of([other].into()), "{peer}");
    }
}

#[test]
fn a_hole_is_a_part_of_its_block() {
    for (block, cidr, except, odd) in [
        ("cidr: 10.0.0.0/8, except: [10.2.0.0/16, 10.1.0.0/16]", "10.0.0.0/8", &["10.1.0.0/16", "10.2.0.0/16"][..], 0),
        ("cidr: 10.0.0.7/8, except: [10.1.2.3/16, 10.1.0.0/16]", "10.0.0.0/8", &["10.1.0.0/16"], 0),
        ("cidr: 0.0.0.0/0, except: [10.0.0.0/8]", "0.0.0.0/0", &["10.0.0.0/8"], 0),
        ("cidr: '::/0', except: ['fd00::/8']", "::/0", &["fd00::/8"], 0),
        ("cidr: 10.0.0.0/8, except: [192.0.2.0/24]", "10.0.0.0/8", &[], 1),
        ("cidr: '::/0', except: [10.0.0.0/8]", "::/0", &[], 1),
        ("cidr: 10.0.0.0/8, except: [10.0.0.0/8]", "10.0.0.0/8", &["10.0.0.0/8"], 1),
        ("cidr: 10.1.0.0/16, except: [10.0.0.0/8, 10.1.1.0/24]", "10.1.0.0/16", &["10.1.0.0/16", "10.1.1.0/24"], 1),
    ] {
        let (found, warnings) = peers(&format!("[{{ipBlock: {{{block}}}}}]"));
        let except = except.iter().map(|text| text.parse().expect("sound")).collect();
        let expected = Peer::Block { cidr: cidr.parse().expect("sound"), except };
        assert_eq!((found, warnings.len()), (Peers::Of([expected].into()), odd), "{block}");
    }
    let (_, warnings) = peers("[{ipBlock: {cidr: 10.0.0.0/8, except: [192.0.2.0/24]}}]");
    assert_eq!(
        warnings,
        ["spec.ingress[0].from[0].ipBlock.except: 192.0.2.0/24 lies outside of 10.0.0.0/8; it is ignored"]
    );
}

#[test]
fn ports_are_numbers_ranges_names_or_a_whole_protocol() {
    use PortMatch::{Any, Named, Range};
    for (port, protocol, number) in [
        ("{}", Protocol::Tcp, Any),
        ("{protocol: UDP}", Protocol::Udp, Any),
        ("{protocol: '', port: 80}", Protocol::Tcp, Range { first: 80, last: 80 }),
        ("{port: 80, endPort: 80}", Protocol::Tcp, Range { first: 80, last: 80 }),
        ("{port: 1, endPort: 65535, protocol: SCTP}", Protocol::Sctp, Range { first: 1, last: 65535 }),
        ("{port: http}", Protocol::Tcp, Named("http".into())),
        ("{port: 8080-tls}", Protocol::Tcp, Named("8080-tls".into())),
        ("{port: , endPort: }", Protocol::Tcp, Any),
    ] {
        let expected = Ports::Of([PolicyPort { protocol, number }].into());
        assert_eq!(ports(&format!("[{port}]")), (expected, vec![]), "{port}");
    }
}

#[test]
fn a_port_that_makes_no_sense_is_none_and_the_others_stay() {
    for (port, why) in [
        ("null", "is empty"),
        ("{port: 0}", "has 0 for a port"),
        ("{port: 65536}", "has 65536 for a port"),
        ("{port: -1}", "has -1 for a port"),
        ("{port: '80'}", "has \"80\" for a port"),
        ("{port: ''}", "has \"\" for a port"),
        ("{port: 8.5}", "has \"8.5\" for a port"),
        ("{port: a-name-that-is-too-long}", "has \"a-name-that-is-too-long\" for a port"),
        ("{protocol: tcp}", "has the protocol \"tcp\", which is not known"),
        ("{protocol: ICMP, port: 80}", "has the protocol \"ICMP\", which is not known"),
        ("{endPort: 90}", "has an endPort without a port"),
        ("{port: http, endPort: 90}", "has an endPort although its port is a name, \"http\""),
        ("{port: 80, endPort: 79}", "has an endPort, 79, below its port, 80"),
        ("{port: 80, endPort: 70000}", "has 70000 for an endPort"),
        ("{port: 80, endPort: 0}", "has 0 for an endPort"),
        ("{port: 80, endPort: https}", "has \"https\" for an endPort"),
        ("{port: 80, endport: 90}", "has a field endport, which is not known"),
    ] {
        let (alone, warnings) = ports(&format!("[{port}]"));
        assert_eq!(alone, NO_PORT(), "an empty list of ports is every port, but this one was not empty: {port}");
        assert_eq!(warnings, [format!("spec.ingress[0].ports[0]: {why}; this port matches nothing")], "{port}");
        let (with_another, _) = ports(&format!("[{{port: 443}}, {port}]"));
        let other = PolicyPort { protocol: Protocol::Tcp, number: PortMatch::Range { first: 443, last: 443 } };
        assert_eq!(with_another, Ports::Of([other].into()), "{port}");
    }
}

#[test]
fn a_rule_that_may_be_narrower_than_it_reads_allows_nothing() {
    for (rule, warning) in [
        ("null", "spec.ingress[0]: is empty; it allows nothing. A rule that allows everything is written {}"),
        ("{form: [{podSelector: {}}]}", "spec.ingress[0].form: is not a field of this rule; the rule allows nothing"),
        ("{to: [{podSelector: {}}]}", "spec.ingress[0].to: is not a field of this rule; the rule allows nothing"),
    ] {
        let (policy, warnings) = parsed(&format!("{{ingress: [{rule}, {{}}]}}"));
        let everything = PolicyRule { peers: Peers::Any, ports: Ports::Any };
        let expected = [nothing(), everything];
        assert_eq!(policy.expect("the rest stays").ingress, Some(expected.into()), "{rule}");
        assert_eq!(warnings, [warning], "{rule}");
    }
    let (policy, warnings) = parsed("{policyTypes: [Egress], egress: [{from: [{podSelector: {}}]}]}");
    assert_eq!(policy.expect("the rest stays").egress, Some([nothing()].into()));
    assert_eq!(warnings, ["spec.egress[0].from: is not a field of this rule; the rule allows nothing"]);
}

#[test]
fn a_policy_that_cannot_say_whom_it_concerns_is_unreadable() {
    for (spec, warning) in [
        (
            "{podSelector: {matchExpressions: [{key: a, operator: Like}]}}",
            "spec.podSelector.matchExpressions[0]: has the operator \"Like\", which is not known",
        ),
        ("{podSelector: {matchlabels: {a: b}}}", "spec.podSelector.matchlabels: is not a field of a selector"),
        ("{policyTypes: [Ingress, Egres]}", "spec.policyTypes: \"Egres\" is not known"),
        ("{policyTypes: [null]}", "spec.policyTypes: \"\" is not known"),
    ] {
        let (policy, warnings) = parsed(spec);
        assert_eq!(policy, None, "{spec}");
        assert_eq!(warnings, [format!("{warning}; {UNREADABLE}")]);
    }
}

#[test]
fn a_field_that_is_not_known_may_be_new_or_a_misspelling() {
    let (policy, warnings) = parsed("{podSelector: {matchLabels: {app: web}}, policyTypes: [Ingress], priority: 5}");
    assert_eq!(policy.expect("a later API has it beside the known ones").pods, is("app", "web"));
    assert_eq!(warnings, ["spec.priority: is not known; it has no effect"]);
    for spec in
        ["{podselector: {matchLabels: {app: web}}, policyTypes: [Ingress]}", "{podSelector: {}, types: [Egress]}"]
    {
        let (policy, warnings) = parsed(spec);
        assert_eq!((policy, warnings.len()), (None, 1), "{spec}");
    }
}

/// Every way to spoil one place of a value: a value of the wrong kind, a senseless word, or a misspelt key.
fn spoilt(sound: &Value) -> Vec<Value> {
    let mut all: Vec<Value> = [json!({"odd": 1}), json!([["odd"]]), json!("§"), json!(-7), json!(70000)].into();
    match sound {
        Value::Object(fields) => {
            for (key, value) in fields {
                let with = |key: &str, value: Value| {
                    let mut fields = fields.clone();
                    fields.insert(key.to_owned(), value);
                    Value::Object(fields)
                };
                let without: serde_json::Map<_, _> = fields
                    .iter()
                    .filter(|(other, _)| *other != key)
                    .map(|(key, value)| (key.clone(), value.clone()))
                    .collect();
                let mut misspelt = without;
                misspelt.insert(format!("{key}x"), value.clone());
                // The words of a selector are free: another one is another policy, and no mistake that could be seen.
                if !["matchLabels", "key", "values"].contains(&key.as_str()) {
                    all.extend(spoilt(value).into_iter().map(|value| with(key, value)));
                }
                all.push(Value::Object(misspelt));
            }
        }
        Value::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                all.extend(spoilt(item).into_iter().map(|item| {
                    let mut items = items.clone();
                    items[index] = item;
                    Value::Array(items)
                }));
            }
        }
        _ => {}
    }
    all
}

/// Returns whether these rules allow nothing that those do not.
fn within(new: &[PolicyRule], old: &[PolicyRule]) -> bool {
    let peers = |new: &Peers, old: &Peers| match (new, old) {
        (_, Peers::Any) => true,
        (Peers::Any, Peers::Of(_)) => false,
        (Peers::Of(new), Peers::Of(old)) => new.iter().all(|peer| old.contains(peer)),
    };
    let ports = |new: &Ports, old: &Ports| match (new, old) {
        (_, Ports::Any) => true,
        (Ports::Any, Ports::Of(_)) => false,
        (Ports::Of(new), Ports::Of(old)) => new.iter().all(|port| old.contains(port)),
    };
    new.iter().all(|new| old.iter().any(|old| peers(&new.peers, &old.peers) && ports(&new.ports, &old.ports)))
}

#[test]
fn no_single_mistake_allows_more() {
    let sound = json!({"podSelector": {"matchExpressions": [{"key": "app", "operator": "In", "values": ["web"]}]},
        "policyTypes": ["Ingress", "Egress"],
        "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": "a"}}, "namespaceSelector": {"matchExpressions":
                [{"key": "team", "operator": "NotIn", "values": ["red"]}]}},
            {"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.1.0.0/16", "10.2.0.0/16"]}}],
            "ports": [{"protocol": "UDP", "port": 53, "endPort": 60}, {"port": "http"}]}],
        "egress": [{"to": [{"namespaceSelector": {"matchLabels": {"team": "blue"}}}]}, {"ports": [{"protocol": "SCTP"}]}]});
    let read = |spec: &Value| {
        let object = json!({"metadata": {"name": "p"}, "spec": spec});
        // An object of the wrong type is a broken document, whose last version stays in force.
        serde_json::from_value::<NetworkPolicyObject>(object).ok().and_then(|object| network_policy(&object).1)
    };
    let old = read(&sound).expect("it is sound");
    let direction = |new: &Option<Box<[PolicyRule]>>, old: &Option<Box<[PolicyRule]>>| match (new, old) {
        (Some(new), Some(old)) => within(new, old),
        _ => false,
    };
    let all = spoilt(&sound);
    let mut in_force = 0;
    for spec in &all {
        let Some(new) = read(spec) else { continue };
        in_force += 1;
        assert_eq!(new.pods, old.pods, "{spec}");
        assert!(direction(&new.ingress, &old.ingress) && direction(&new.egress, &old.egress), "{spec}\n{new:?}");
    }
    assert!(all.len() > 200 && in_force > 50, "{} mistakes, {in_force} in force", all.len());
}
