//! Findings about the cluster: its source, the Node, ranges, and rights.

use super::*;

#[test]
fn a_source_that_cannot_be_read_is_told_by_how_the_agent_takes_it() {
    let source = |cluster| move |facts: &mut Facts| facts.cluster = cluster;
    check(
        &[],
        source(ClusterFacts::NoAccess("no cluster is named".to_owned())),
        Level::Fatal,
        &["no cluster is named", "ends at its start"],
    );
    let unreachable = ClusterFacts::Unanswered(Unknown::Unreachable("connection refused".to_owned()));
    check(&[], source(unreachable), Level::Degraded, &["connection refused", "waits for it"]);
    let refused = ClusterFacts::Unanswered(Unknown::Refused("Unauthorized (401)".to_owned()));
    check(&[], source(refused), Level::Fatal, &["Unauthorized (401)"]);
    check(
        &[],
        source(ClusterFacts::Manifests(Err("it is not there".to_owned()))),
        Level::Fatal,
        &["correct --manifests"],
    );
    check_ok(&[], source(ClusterFacts::Manifests(Ok("/srv/cluster".into()))), "manifests in /srv/cluster");
}

#[test]
fn the_node_is_looked_for_by_its_name_and_its_address() {
    check(
        &[],
        |facts| api(facts).node = Err(Unknown::Absent),
        Level::Fatal,
        &["no Node of this name", "--hostname-override"],
    );
    let refused = |facts: &mut Facts| api(facts).node = Err(Unknown::Forbidden("forbidden (403)".to_owned()));
    check(&[], refused, Level::Degraded, &["forbidden (403)"]);
    check(
        &[],
        |facts| api(facts).node.as_mut().expect("known").pod_cidrs.clear(),
        Level::Fatal,
        &["--allocate-node-cidrs"],
    );
    let elsewhere = |facts: &mut Facts| facts.network.addresses = vec![host_address("eth0", "192.0.2.77/24")];
    check(&[], elsewhere, Level::Degraded, &["192.0.2.1, which no device here has"]);
    let nameless = |facts: &mut Facts| api(facts).node.as_mut().expect("known").addresses.clear();
    check(&[], nameless, Level::Degraded, &["it has no IPv4 address", "--node-ip"]);
}

#[test]
fn the_range_of_services_is_compared_with_the_api_servers_own_service() {
    let k3s = |facts: &mut Facts| api(facts).own_cluster_ips = Ok(vec!["10.43.0.1".parse().expect("an address")]);
    check(&[], k3s, Level::Degraded, &["10.43.0.1, which is not in 10.96.0.0/12", "--service-cluster-ip-range"]);
    check_ok(&FIREWALL, k3s, "it answers");
    let named = |facts: &mut Facts| {
        k3s(facts);
        api(facts).service_ranges = Ok(vec!["10.43.0.0/16".parse().expect("a range")]);
    };
    check_ok(&[], named, "it answers");
    let slow = || Unknown::Unreachable("no answer within 10 s".to_owned());
    let unsaid =
        ["API server does not say which there are: no answer", "--service-cluster-ip-range count alone", "ask again"];
    check(&[], |facts| api(facts).service_ranges = Err(slow()), Level::Degraded, &unsaid);
    let uncompared = ["does not say what its own Service has: no answer", "is not known here", "ask again"];
    check(&[], |facts| api(facts).own_cluster_ips = Err(slow()), Level::Degraded, &uncompared);
    check_ok(&[], |facts| api(facts).service_ranges = Err(Unknown::Absent), "it answers");
}

/// Facts without these rights on a resource, which the server has or not.
fn without(
    group: &'static str,
    resource: &'static str,
    verbs: &'static [&'static str],
    is_served: bool,
) -> impl Fn(&mut Facts) {
    move |facts| {
        let lacking = |one: &&mut AskedRight| {
            one.right.group == group && one.right.resource == resource && verbs.contains(&one.right.verb)
        };
        let mut count = 0;
        for one in api(facts).rights.iter_mut().filter(lacking) {
            (one.allowed, one.is_served) = (Allowed::No, is_served);
            count += 1;
        }
        assert_eq!(count, verbs.len(), "rights on {resource} that are asked for");
    }
}

#[test]
fn rights_that_lack_are_named_as_a_role_has_them() {
    let slices = without("discovery.k8s.io", "endpointslices", &["list", "watch"], true);
    check(
        &[],
        slices,
        Level::Fatal,
        &[
            "EndpointSlice objects are not known",
            "apiGroups [\"discovery.k8s.io\"], resources [endpointslices], verbs [list, watch]",
        ],
    );
    check(&[], without("", "nodes", &["watch"], true), Level::Fatal, &["no right to watch"]);
    for words in [&[][..], &FIREWALL, &PROXY, &ROUTER] {
        check_ok(words, without("", "events", &["create"], true), "only in the log");
    }
    let cluster_policies = ("policy.networking.k8s.io", "clusternetworkpolicies");
    check(&[], without(cluster_policies.0, cluster_policies.1, &["list"], true), Level::Degraded, &["not enforced"]);
    check_ok(
        &[],
        without(cluster_policies.0, cluster_policies.1, &["list", "watch"], false),
        "the credentials have all",
    );
    let balancer = [&PROXY[..], &["--run-loadbalancer", "--loadbalancer-ip-range=203.0.113.0/24"]].concat();
    let leases = without("coordination.k8s.io", "leases", &["get", "update"], true);
    check(
        &balancer,
        leases,
        Level::Fatal,
        &["resources [leases], resourceNames [kube-router-lballoc], verbs [get, update] in the namespace kube-system"],
    );
    let leases = without("coordination.k8s.io", "leases", &["create"], true);
    check(&balancer, leases, Level::Fatal, &["resources [leases], verbs [create] in the namespace kube-system"]);
    let pools = without("", "configmaps", &["list", "watch"], true);
    check(&balancer, pools, Level::Degraded, &["resourceNames [kube-router-lb-pools], verbs [list, watch]"]);
    let silent = |facts: &mut Facts| {
        api(facts).rights[0].allowed = Allowed::NotSaid(Unknown::Forbidden("forbidden (403)".to_owned()))
    };
    check(&[], silent, Level::Degraded, &["does not say of all of them: forbidden (403)", "selfsubjectaccessreviews"]);
    let late = Unknown::Unreachable("it took too long".to_owned());
    let slow = |facts: &mut Facts| api(facts).rights[0].allowed = Allowed::NotSaid(late.clone());
    check(&[], slow, Level::Degraded, &["does not say of all of them: it took too long", "ask again when"]);
    let slow = |facts: &mut Facts| api(facts).node = Err(late.clone());
    check(&[], slow, Level::Degraded, &["it cannot be read: it took too long", "ask again when"]);
}

#[test]
fn a_right_without_which_a_subsystem_works_is_not_fatal() {
    // A router begins without them, and an allocator does not; nor does the service proxy wait for Pods.
    let announced = ["no addresses of Services are announced", "verbs [list, watch]"];
    check(
        &ROUTER,
        without("discovery.k8s.io", "endpointslices", &["list", "watch"], true),
        Level::Degraded,
        &announced,
    );
    let without_proxy = ["--run-service-proxy=false"];
    check(&without_proxy, without("", "services", &["list", "watch"], true), Level::Degraded, &announced);
    check(&PROXY, without("", "services", &["list", "watch"], true), Level::Fatal, &["Service objects are not known"]);
    let allocator = [&ROUTER[..], &["--run-loadbalancer", "--loadbalancer-ip-range=203.0.113.0/24"]].concat();
    check(&allocator, without("", "services", &["list"], true), Level::Fatal, &["no address is given to Services"]);
    let tunnels = [&PROXY[..], &["--enable-direct-server-return"]].concat();
    let pods = without("", "pods", &["list", "watch"], true);
    check(&tunnels, pods, Level::Degraded, &["no pod of this node gets service addresses"]);
    check(&FIREWALL, without("", "pods", &["list"], true), Level::Fatal, &["Pod objects are not known"]);
}

#[test]
fn the_condition_of_a_node_is_to_be_written_where_a_cloud_has_set_it() {
    let asked = |words: &[&str], network_unavailable| {
        let node = Node { network_unavailable, ..Node::default() };
        let needed = cluster::rights(&config(words), Some(&node));
        needed.into_iter().find(|need| need.right.resource == "nodes/status")
    };
    assert_eq!(asked(&ROUTER, false), None);
    assert_eq!(asked(&PROXY, true), None);
    assert_eq!(asked(&ROUTER, true).map(|need| (need.right.verb, need.level)), Some(("patch", Level::Degraded)));
    let denied = |facts: &mut Facts| {
        let node = api(facts).node.as_mut().expect("it is known");
        node.network_unavailable = true;
        let right = crate::k8s::access::Right::new("patch", "", "nodes/status");
        api(facts).rights.push(AskedRight { right, allowed: Allowed::No, is_served: true });
    };
    check(&[], denied, Level::Degraded, &["NetworkUnavailable", "resources [nodes/status], verbs [patch]"]);
}

#[test]
fn the_key_of_wireguard_and_detected_addresses_are_to_be_written_to_the_node() {
    let asked = |words: &[&str]| {
        let needed = cluster::rights(&config(words), None);
        needed.into_iter().any(|need| (need.right.verb, need.right.resource.as_str()) == ("patch", "nodes"))
    };
    assert!(asked(&["--overlay-encap=wireguard"]));
    assert!(asked(&["--node-ip-autodetect=interface=eth1"]));
    for words in [&[][..], &["--overlay-encap=vxlan"], &["--overlay-encap=wireguard", "--manifests=/srv/cluster"]] {
        assert!(!asked(words), "{words:?}");
    }
}

#[test]
fn nothing_is_asked_for_that_no_subsystem_needs() {
    let resources = |words: &[&str]| {
        let mut found: Vec<String> =
            cluster::rights(&config(words), None).into_iter().map(|need| need.right.resource).collect();
        found.dedup();
        found
    };
    assert_eq!(
        resources(&FIREWALL),
        ["nodes", "pods", "namespaces", "networkpolicies", "clusternetworkpolicies", "servicecidrs", "events"]
    );
    assert!(!resources(&PROXY).contains(&"pods".to_owned()));
    // Whose pods get service addresses is to be known, also by the proxy alone.
    assert!(resources(&[&PROXY[..], &["--enable-direct-server-return"]].concat()).contains(&"pods".to_owned()));
    assert!(!resources(&[&ROUTER[..], &["--enable-direct-server-return"]].concat()).contains(&"pods".to_owned()));
    assert_eq!(resources(&["--manifests=/srv/cluster"]), [""; 0]);
}
