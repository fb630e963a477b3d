//! The cluster: whether it answers, what it says of this node, and which rights the credentials lack.

use super::addresses::{is_of_host, service_ranges};
use crate::app::wanted;
use crate::config::{Config, RouterConfig, Source};
use crate::k8s::Wanted;
use crate::k8s::access::{Allowed, Right, Unknown};
use crate::k8s::allocation::LEASE;
use crate::k8s::parse::address_pools::POOLS;
use crate::model::Node;
use crate::net::Family;
use crate::preflight::facts::{ApiFacts, AskedRight, ClusterFacts, Facts};
use crate::preflight::{Finding, Level};

const SUBJECT: &str = "API server";

/// A right that a subsystem needs.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NeededRight {
    pub right: Right,
    /// How bad it is to lack it; ok where it is a matter of taste.
    pub level: Level,
    pub why: String,
    /// The kind is one that a server may not have.
    pub may_be_absent: Option<crate::k8s::Kind>,
}

/// Returns the rights that these subsystems need; some depend on what the own Node has in its status.
pub fn rights(config: &Config, node: Option<&Node>) -> Vec<NeededRight> {
    if !matches!(config.source, Source::Api { .. }) {
        return Vec::new();
    }
    let mut needed: Vec<NeededRight> = wanted(config).iter().flat_map(|wanted| followed(wanted, config)).collect();
    let mut need =
        |right, level, why: &str| needed.push(NeededRight { right, level, why: why.to_owned(), may_be_absent: None });
    if config.router.is_some() && node.is_some_and(|node| node.network_unavailable) {
        let why = "the Node's condition NetworkUnavailable, which a cloud has set, stays, and no pod is scheduled here";
        need(Right::new("get", "", "nodes"), Level::Degraded, why);
        need(Right::new("patch", "", "nodes/status"), Level::Degraded, why);
    }
    if config.router.as_ref().is_some_and(|router| router.key_file.is_some()) {
        let why = "the key of this node does not come into the annotation of its Node, so other nodes send nothing to its pods (--overlay-encap=wireguard)";
        need(Right::new("patch", "", "nodes"), Level::Degraded, why);
    }
    if config.node_address.is_some() {
        let why = "the addresses of this node do not come into the annotation of its Node, so other nodes route to its InternalIP (--node-ip-autodetect)";
        need(Right::new("patch", "", "nodes"), Level::Degraded, why);
    }
    if let Some(balancer) = &config.load_balancer {
        let why = "no address is given to Services of type LoadBalancer";
        let leases = |verb| Right::new(verb, "coordination.k8s.io", "leases").in_namespace(&balancer.namespace);
        // A name of what is to be made is not known to who grants the right to make it.
        need(leases("create"), Level::Fatal, why);
        for verb in ["get", "update"] {
            need(leases(verb).named(LEASE), Level::Fatal, why);
        }
        for (verb, resource) in
            [("get", "services"), ("list", "services"), ("watch", "services"), ("update", "services/status")]
        {
            need(Right::new(verb, "", resource), Level::Fatal, why);
        }
        let why = "no pools of addresses are read, only --loadbalancer-ip-range";
        for verb in ["list", "watch"] {
            let right = Right::new(verb, "", "configmaps").in_namespace(&balancer.namespace).named(POOLS);
            need(right, Level::Degraded, why);
        }
    }
    if config.router.is_some() || config.proxy.is_some() || config.firewall.is_some() || config.load_balancer.is_some()
    {
        let why = "problems are not told as Events, only in the log and in /readyz";
        need(Right::new("create", "", "events"), Level::Ok, why);
    }
    let mut unique: Vec<NeededRight> = Vec::new();
    for one in needed {
        match unique.iter_mut().find(|known| known.right == one.right) {
            Some(known) if known.level < one.level => *known = one,
            Some(_) => {}
            None => unique.push(one),
        }
    }
    unique
}

fn followed(wanted: &Wanted, config: &Config) -> [NeededRight; 2] {
    let kind = wanted.kind();
    let may_be_absent = Some(kind).filter(|kind| kind.may_be_absent());
    let (level, why) = match wanted {
        Wanted::ClusterNetworkPolicies => (Level::Degraded, "ClusterNetworkPolicies are not enforced".to_owned()),
        Wanted::ServiceCidrs => {
            (Level::Degraded, "the ranges of Services are those of --service-cluster-ip-range alone".to_owned())
        }
        // A router begins its sessions without them, and policies do not wait for them.
        Wanted::Services | Wanted::EndpointSlices if config.proxy.is_none() => {
            (Level::Degraded, "no addresses of Services are announced".to_owned())
        }
        // Without the firewall they are listed for direct server return.
        Wanted::Pods if config.firewall.is_none() => {
            (Level::Degraded, "no pod of this node gets service addresses (--enable-direct-server-return)".to_owned())
        }
        _ => (Level::Fatal, format!("{kind} objects are not known, and what follows from them is never in force")),
    };
    Right::to_follow(wanted).map(|right| NeededRight { right, level, why: why.clone(), may_be_absent })
}

/// Judges the source of the cluster.
pub fn judge(facts: &Facts, config: &Config) -> Vec<Finding> {
    match &facts.cluster {
        ClusterFacts::Manifests(Ok(path)) => vec![Finding::ok("cluster", format!("manifests in {}", path.display()))],
        ClusterFacts::Manifests(Err(reason)) => {
            let why = "the agent ends at its start".to_owned();
            vec![Finding::bad(Level::Fatal, "cluster", [reason.clone(), why, "correct --manifests".to_owned()])]
        }
        ClusterFacts::NoAccess(sentence) => {
            let why = "the agent ends at its start".to_owned();
            let todo = "correct --kubeconfig and --master, or the service account of the pod".to_owned();
            vec![Finding::bad(Level::Fatal, SUBJECT, [sentence.clone(), why, todo])]
        }
        ClusterFacts::Unanswered(Unknown::Refused(reason)) => {
            let why = "nothing of the cluster is known, and nothing is put into the kernel".to_owned();
            let what = format!("it does not accept the credentials: {reason}");
            vec![Finding::bad(
                Level::Fatal,
                SUBJECT,
                [what, why, "renew the credentials of --kubeconfig or of the service account".to_owned()],
            )]
        }
        ClusterFacts::Unanswered(unknown) => {
            let what = format!("it does not answer: {}", unknown.reason());
            let why = "the agent waits for it; until then the last known state is in force, if there is one. Rights and ranges of this node are not \
                known here".to_owned();
            let todo = "name an address that works without Services, by --master or --kubeconfig: the Service kubernetes is served by the agent \
                itself".to_owned();
            vec![Finding::bad(Level::Degraded, SUBJECT, [what, why, todo])]
        }
        ClusterFacts::Answered(api) => answered(api, facts, config),
    }
}

fn answered(api: &ApiFacts, facts: &Facts, config: &Config) -> Vec<Finding> {
    let version =
        api.version.as_ref().map_or("its version may not be read".to_owned(), |version| format!("version {version}"));
    let mut findings = vec![Finding::ok(SUBJECT, format!("it answers, {version}"))];
    findings.extend(node(api, facts, config));
    findings.extend(lacking(&api.rights, &rights(config, api.node.as_ref().ok())));
    findings.extend(ranges_of_services(api, facts, config));
    findings
}

/// Judges whether the ranges of cluster IPs that the agent will know are the server's.
fn ranges_of_services(api: &ApiFacts, facts: &Facts, config: &Config) -> Option<Finding> {
    config.proxy.as_ref()?;
    let finding = |sentences| Finding::bad(Level::Degraded, "ranges of Services", sentences);
    // What lacks a right is a finding of its own, and an older server has no such objects.
    if let Err(unknown @ Unknown::Unreachable(reason)) = &api.service_ranges {
        let what = format!("the API server does not say which there are: {reason}");
        let why = "here those of --service-cluster-ip-range count alone, for conflicts of ranges too".to_owned();
        return Some(finding([what, why, to_be_told(unknown, "")]));
    }
    if let Err(unknown @ Unknown::Unreachable(reason)) = &api.own_cluster_ips {
        let what = format!("the API server does not say what its own Service has: {reason}");
        let why = "whether --service-cluster-ip-range is that of the API server is not known here".to_owned();
        return Some(finding([what, why, to_be_told(unknown, "")]));
    }
    let ranges = service_ranges(facts, config);
    let outside = api.own_cluster_ips.iter().flatten().find(|ip| {
        let mut of_family = ranges.iter().filter(|range| Family::from(**range) == Family::from(**ip)).peekable();
        of_family.peek().is_some() && !of_family.any(|range| range.contains(*ip))
    })?;
    let named = ranges.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let what = format!("the API server's own Service has {outside}, which is not in {named}");
    let why = "external addresses in the cluster's own range may be served, and free addresses of it are not refused";
    let todo = "set --service-cluster-ip-range to that of the API server".to_owned();
    Some(finding([what, why.to_owned(), todo]))
}

/// Returns what it means for this router that its Node has no range of a family; `None` for one that keeps no CNI file and announces no pods.
fn without_range(router: &RouterConfig, family: Family) -> Option<(Level, String)> {
    match router.cni_file {
        Some(_) => Some((Level::Fatal, format!("its pods get no {family} address, and it announces none"))),
        None if router.advertise.pod_cidrs => {
            Some((Level::Degraded, format!("no {family} addresses of its pods are announced (--advertise-pod-cidr)")))
        }
        None => None,
    }
}

fn node(api: &ApiFacts, facts: &Facts, config: &Config) -> Vec<Finding> {
    let name = &config.node_name;
    let subject = format!("Node {name}");
    let node = match &api.node {
        Ok(node) => node,
        Err(Unknown::Absent) => {
            let why = "the agent does not find its addresses and pod ranges, and router and firewall do nothing for this host".to_owned();
            let todo = "set NODE_NAME from spec.nodeName, or --hostname-override".to_owned();
            return vec![Finding::bad(
                Level::Fatal,
                subject,
                ["the cluster has no Node of this name".to_owned(), why, todo],
            )];
        }
        Err(unknown) => {
            let what = format!("it cannot be read: {}", unknown.reason());
            let why = "its addresses and pod ranges are not known here; the agent reads it by a list".to_owned();
            let todo = to_be_told(unknown, "allow get on nodes");
            return vec![Finding::bad(Level::Degraded, subject, [what, why, todo])];
        }
    };
    let mut findings = Vec::new();
    for (family, _) in config.families.iter().filter(|(_, is_on)| **is_on) {
        match node.address(family) {
            Some(address) if !is_of_host(facts, address) => {
                let what = format!("its {family} address is {address}, which no device here has");
                let why = "this is another host's Node, or a cloud translates its address: node ports and masquerading use another address then".to_owned();
                let todo = "check --hostname-override and NODE_NAME, or give the kubelet --node-ip".to_owned();
                findings.push(Finding::bad(Level::Degraded, subject.clone(), [what, why, todo]));
            }
            Some(_) => {}
            None => {
                let what = format!("it has no {family} address");
                let why = format!("sessions, node ports and tunnels of {family} use the node's address");
                let todo = "give the kubelet --node-ip with an address of each family".to_owned();
                findings.push(Finding::bad(Level::Degraded, subject.clone(), [what, why, todo]));
            }
        }
        let lacks = !node.pod_cidrs.iter().any(|range| Family::from(*range) == family);
        if let Some((level, why)) =
            config.router.as_ref().filter(|_| lacks).and_then(|router| without_range(router, family))
        {
            let what = format!("it has no {family} range for pods");
            let allocate = "start kube-controller-manager with --allocate-node-cidrs=true and --cluster-cidr, or ";
            let annotate = match config.node_annotations.pod_cidrs {
                true => "set the annotation kube-router.io/pod-cidrs",
                false => "set the annotation kube-router.io/pod-cidrs, and leave --node-pod-cidr-annotations=false out",
            };
            let todo = format!("{allocate}{annotate}");
            findings.push(Finding::bad(level, subject.clone(), [what, why, todo]));
        }
    }
    findings.extend(ranges_that_are_not_believed(api, &subject));
    if findings.is_empty() {
        findings.push(Finding::ok(subject, "it has the addresses and ranges that are needed"));
    }
    findings
}

/// Returns what becomes of pod ranges that annotations name and a flag leaves out.
fn ranges_that_are_not_believed(api: &ApiFacts, subject: &str) -> Option<Finding> {
    let ranges: Vec<String> = api.unbelieved.iter().map(ToString::to_string).collect();
    let what = format!(
        "its annotation names {} for pods, and --node-pod-cidr-annotations=false leaves that out",
        ranges.join(", ")
    );
    let why = "pods that have addresses of these get no packets any more, and new ones have addresses of spec.podCIDRs"
        .to_owned();
    let todo =
        "leave the flag out, or make the node's pods anew behind the change, and take the annotation away".to_owned();
    (!ranges.is_empty()).then(|| Finding::bad(Level::Degraded, subject.to_owned(), [what, why, todo]))
}

/// Findings on rights; those that lack on one resource for one reason share a finding.
fn lacking(asked: &[AskedRight], needed: &[NeededRight]) -> Vec<Finding> {
    let mut findings: Vec<(String, Level, String, Vec<&'static str>, Right)> = Vec::new();
    let mut not_said = None;
    for AskedRight { right, allowed, is_served } in asked.iter() {
        let Some(need) = needed.iter().find(|need| need.right == *right) else { continue };
        match allowed {
            Allowed::Yes => continue,
            Allowed::NotSaid(unknown) => {
                not_said = Some(unknown);
                continue;
            }
            Allowed::No if !is_served => continue,
            Allowed::No => {}
        }
        match findings.iter_mut().find(|(.., known)| {
            let of = |right: &Right| {
                let Right { group, resource, namespace, .. } = right.clone();
                (group, resource, namespace, resource_name(right).to_owned())
            };
            of(known) == of(right)
        }) {
            Some((_, level, _, verbs, _)) => {
                verbs.push(right.verb);
                *level = need.level.max(*level);
            }
            None => findings.push((
                format!("right on {}", right.resource),
                need.level,
                need.why.clone(),
                vec![right.verb],
                right.clone(),
            )),
        }
    }
    let mut judged: Vec<Finding> = findings
        .into_iter()
        .map(|(subject, level, why, verbs, right)| {
            let verbs = verbs.join(", ");
            let place = if right.namespace.is_empty() {
                String::new()
            } else {
                format!(" in the namespace {}", right.namespace)
            };
            let names = match resource_name(&right) {
                "" => String::new(),
                name => format!(", resourceNames [{name}]"),
            };
            let todo = format!(
                "add to the agent's role: apiGroups [{:?}], resources [{}]{names}, verbs [{verbs}]{place}",
                right.group, right.resource
            );
            let what = format!("the credentials have no right to {verbs}{place}");
            match level {
                Level::Ok => Finding::ok(subject, format!("{what}, and {why}; where they should be: {todo}")),
                level => Finding::bad(level, subject, [what, why, todo]),
            }
        })
        .collect();
    judged.extend(not_said.map(unsaid));
    if judged.iter().all(|finding| finding.level == Level::Ok) && !asked.is_empty() {
        let count = asked.iter().filter(|one| one.allowed == Allowed::Yes).count();
        judged.push(Finding::ok("rights", format!("the credentials have all {count} that are needed")));
    }
    judged
}

fn unsaid(unknown: &Unknown) -> Finding {
    let what = format!("the API server does not say of all of them: {}", unknown.reason());
    let why = "a right that lacks shows in /readyz only after the start".to_owned();
    let todo = to_be_told(unknown, "allow create on selfsubjectaccessreviews, as the role system:basic-user does");
    Finding::bad(Level::Degraded, "rights", [what, why, todo])
}

/// Returns what to do about an answer that did not come: a server that is slow or away has refused nothing.
fn to_be_told(unknown: &Unknown, refused: &str) -> String {
    match unknown {
        Unknown::Unreachable(_) => "ask again when the API server answers in time".to_owned(),
        Unknown::Absent | Unknown::Refused(_) | Unknown::Forbidden(_) => refused.to_owned(),
    }
}

/// Returns the name of the object for which a role grants a right. One role serves all nodes, so it names none of them.
fn resource_name(right: &Right) -> &str {
    if right.resource == "nodes" { "" } else { &right.name }
}
