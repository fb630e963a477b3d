"""Network policies from a real API server, on nodes in two subnets; node 2 has legacy iptables."""
import contextlib
import re
import time

import expect
from expect import FAMILIES
from labkit import kernel, net, objects, own, traffic
from labkit.api import ApiError
from network_policies import FIREWALL, _agents_get_the_firewall

PODS = ("n1p1", "n2p1", "n3p1", "n3p2")
POLICIES = f"/apis/networking.k8s.io/v1/namespaces/{objects.NAMESPACE}/networkpolicies"
OF_PODS = f"/api/v1/namespaces/{objects.NAMESPACE}/pods"


# Minutes. Each day Services outlast an outage with restarts in it (`api`), and policies do beside this machine's own kernel (`native::first_packet`) and in histories made by
# chance (`tests/firewall/walk.rs`).
@expect.whole
def policies_hold_through_an_outage_of_the_api_server_with_restarts_in_it_and_changes_follow_afterwards(bed):
    with _pods_are_known(bed):
        only = {"from": [{"podSelector": {"matchLabels": {"app": "n1p1"}}}], "ports": [{"protocol": "TCP", "port": objects.TARGET}]}
        bed.source.api.put(POLICIES, _policy("only-n1p1", {"app": "n3p1"}, [only]))
        _becomes({"n1p1"}, "a policy from the API:")
        # What is known is written down half a minute after its first change, the policy with the rest.
        expect.soon(lambda: all(bed.agents[i].remembers("only-n1p1") for i in (1, 3)), 90, "the policy is in no file of what was known")
        bed.source.stop_server()
        try:
            time.sleep(2)
            before = {i: _rules(i) for i in (1, 3)}
            bed.agents[3].kill()
            _is({"n1p1"}, "without the server and without an agent:")
            bed.agents[3].start()
            bed.agents[1].stop()
            bed.agents[1].start()
            # Also while the agent finds out that there is nobody to ask, and when it uses what it remembers.
            for _ in range(10):
                _is({"n1p1"}, "without the server, while an agent starts:")
                time.sleep(1)
            for i in (1, 3):
                expect.that(_rules(i) == before[i], f"node {i} was changed without the server:", kernel.difference(before[i], _rules(i)))
            said = net.node(3, bed.binary, "policy", "explain", f"--socket={net.RUN}/n3/sluice.sock", "--from", f"{objects.NAMESPACE}/n2p1",
                            "--to", f"{objects.NAMESPACE}/n3p1:{objects.TARGET}")
            expect.that("denied" in said and "only-n1p1" in said, "nobody can be asked without the server:", said)
        finally:
            bed.source.start_server()
        bed.source.api.patch(f"{OF_PODS}/n2p1", {"metadata": {"labels": {"app": "n1p1"}}})
        _becomes({"n1p1", "n2p1"}, "a label that changed after the outage:")
        bed.source.api.delete(f"{POLICIES}/only-n1p1")
        _becomes({"n1p1", "n2p1", "n3p2"}, "after the policy has gone:")


CRDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
CLUSTER_POLICIES = "clusternetworkpolicies.policy.networking.k8s.io"


def cluster_network_policies_are_in_force_from_the_moment_their_kind_is_installed_through_another_version_of_it_until_it_is_removed(bed):
    def of_kind(version):
        return f"/apis/policy.networking.k8s.io/{version}/clusternetworkpolicies"
    def install(*versions):
        made = bed.source.api.put(CRDS, _crd(*versions))
        expect.that(made["metadata"]["name"] == CLUSTER_POLICIES, "not made:", made)
        expect.soon(lambda: _is_served(bed.source.api, of_kind(versions[0])), 60, "the API server does not serve the kind")
    everybody = {"n1p1", "n2p1", "n3p2"}
    with _pods_are_known(bed):
        try:
            for i, agent in bed.agents.items():
                expect.soon(lambda: re.search("does not have this kind.*kind=ClusterNetworkPolicy", agent.text()), 90, f"the agent of node {i} does not say that the kind is not there")
            bed.ready()
            install("v1alpha2")
            denies = _cluster_policy("v1alpha2", "guard", "Admin", [_rule("Deny", "n1p1")])
            bed.source.api.put(of_kind("v1alpha2"), denies)
            _becomes({"n2p1", "n3p2"}, "an Admin tier that denies, of a kind that came while the agents run:", 150)
            said = net.node(3, bed.binary, "policy", "explain", f"--socket={net.RUN}/n3/sluice.sock", "--from", f"{objects.NAMESPACE}/n1p1",
                            "--to", f"{objects.NAMESPACE}/n3p1:{objects.TARGET}")
            expect.that("denied" in said and "guard" in said, "who denies it is not said:", said)
            bed.agents[3].kill()
            _is({"n2p1", "n3p2"}, "without the agent:")
            bed.agents[3].start()
            bed.ready(3)
            _is({"n2p1", "n3p2"}, "after a crash:")

            install("v1beta1", "v1alpha2")
            # What passes the tier is the NetworkPolicies' to decide, and nobody's where there are none.
            passes = _cluster_policy("v1beta1", "guard", "Admin", [_rule("Pass", "n1p1"), _rule("Deny")])
            bed.source.api.put(of_kind("v1beta1"), passes)
            _becomes({"n1p1"}, "a rule that passes packets on, by the newer version:", 150)
            from_n2p1 = {"from": [{"podSelector": {"matchLabels": {"app": "n2p1"}}}]}
            bed.source.api.put(POLICIES, _policy("only-n2p1", {"app": "n3p1"}, [from_n2p1]))
            _becomes(set(), "one is denied by the NetworkPolicy behind the tier, the others by the tier:")
            bed.source.api.put(of_kind("v1beta1"), _cluster_policy("v1beta1", "floor", "Baseline", [_rule("Deny", "n3p2")]))
            bed.source.api.delete(f"{of_kind('v1beta1')}/guard")
            _becomes({"n2p1"}, "a pod that a NetworkPolicy isolates is not the Baseline tier's:")
            bed.source.api.delete(f"{POLICIES}/only-n2p1")
            _becomes({"n1p1", "n2p1"}, "the Baseline tier alone:")
            bed.source.api.delete(f"{CRDS}/{CLUSTER_POLICIES}")
            _becomes(everybody, "after the kind has gone with its objects:")
            bed.ready()
        finally:
            if any(item["metadata"]["name"] == CLUSTER_POLICIES for item in bed.source.api.get(CRDS)["items"]):
                bed.source.api.delete(f"{CRDS}/{CLUSTER_POLICIES}")


def _is_served(api, path):
    try:
        return api.get(path)
    except ApiError:
        return None


def _cluster_policy(version, name, tier, rules):
    """For the pod n3p1."""
    subject = {"pods": {"namespaceSelector": {}, "podSelector": {"matchLabels": {"app": "n3p1"}}}}
    return {"apiVersion": f"policy.networking.k8s.io/{version}", "kind": "ClusterNetworkPolicy", "metadata": {"name": name},
            "spec": {"tier": tier, "priority": 10, "subject": subject, "ingress": rules}}


def _rule(action, app=None):
    """For what comes from the pods of this app, or of all."""
    pods = {"matchLabels": {"app": app}} if app else {}
    return {"name": action.lower(), "action": action, "from": [{"pods": {"namespaceSelector": {}, "podSelector": pods}}]}


def _crd(*versions):
    """The definition of the kind ClusterNetworkPolicy with the fields that are used here; the first version is that of the store. The one version
    that was served before another one came is none any more."""
    def fields(**properties):
        return {"type": "object", "properties": properties}
    def some(items):
        return {"type": "array", "maxItems": 25, "items": items}
    text = {"type": "string"}
    requirement = fields(key=text, operator=text, values={"type": "array", "items": text})
    selector = fields(matchLabels={"type": "object", "additionalProperties": text}, matchExpressions={"type": "array", "items": requirement})
    peer = fields(namespaces=selector, pods=fields(namespaceSelector=selector, podSelector=selector))
    rule = fields(**{"name": text, "action": {"type": "string", "enum": ["Accept", "Deny", "Pass"]}, "from": some(peer), "to": some(peer)})
    spec = fields(tier={"type": "string", "enum": ["Admin", "Baseline"]}, priority={"type": "integer", "minimum": 0, "maximum": 1000},
                  subject=peer, ingress=some(rule), egress=some(rule))
    schema = {"openAPIV3Schema": fields(apiVersion=text, kind=text, metadata={"type": "object"}, spec=spec)}
    def version(name):
        return {"name": name, "served": name == versions[0], "storage": name == versions[0], "schema": schema}
    return {"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
            "metadata": {"name": CLUSTER_POLICIES, "annotations": {"api-approved.kubernetes.io": "unapproved, written for a test"}},
            "spec": {"group": "policy.networking.k8s.io", "scope": "Cluster",
                     "names": {"kind": "ClusterNetworkPolicy", "listKind": "ClusterNetworkPolicyList", "plural": "clusternetworkpolicies",
                               "singular": "clusternetworkpolicy", "shortNames": ["cnp"]},
                     "versions": [version(name) for name in versions]}}


def _policy(name, selected, rules):
    return {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": name, "namespace": objects.NAMESPACE},
            "spec": {"podSelector": {"matchLabels": selected}, "policyTypes": ["Ingress"], "ingress": rules}}


def _reaching():
    """Which pods get an answer from n3p1, in both families; a pod that does in one only stands there as that."""
    reaching = set()
    for client in ("n1p1", "n2p1", "n3p2"):
        families = [f for f in FAMILIES if _answers(client, expect.pod("n3p1", f))]
        if families:
            reaching.add(client if len(families) == 2 else f"{client} by IPv{families[0]}")
    return reaching


def _answers(client, address):
    try:
        return traffic.ask(client, address, objects.TARGET, patience=1.5) is not None
    except OSError:
        return False


def _becomes(expected, wrong, seconds=60):
    expect.soon(lambda: _reaching() == expected, seconds, wrong, _reaching)


def _is(expected, wrong):
    found = _reaching()
    expect.that(found == expected, wrong, found)


def _rules(i):
    """What the firewall has in the kernel of a node."""
    found = kernel.snapshot(i)
    ours = {key: [line for line in found[key] if "NWPLCY" in line or "KUBE-POD-FW" in line] for key in found if key.startswith("ip")}
    ours["tables"] = [line for line in found["tables"] if "sluice_policy" in line]
    return {**ours, "sets": [line for line in found["sets"] if "KUBE-" in line or "kube-router-local-pods" in line]}


def _refusals(i, agent):
    """What an agent was refused, and is refused still where it is about reading: an API server that starts refuses everybody until it has read its
    own roles."""
    said = [line for line in agent.text().splitlines() if "forbidden" in line.lower() or "(403)" in line]
    lasting = "(403)" in kernel.http_get(i, "/readyz")[1]
    return [line for line in said if lasting or "Kubernetes API watch failed" not in line]


def _a_cleanup_ends_well(bed):
    bed.flags = [flag for flag in bed.flags if flag not in FIREWALL]
    for i, agent in bed.agents.items():
        agent.stop()
        status, text = agent.once("--cleanup-config")
        expect.that(status == 0, f"--cleanup-config of node {i} ended with {status}:", text)
    bed.restore()


_begin, _end = _agents_get_the_firewall, _a_cleanup_ends_well


@contextlib.contextmanager
def _pods_are_known(bed):
    """Pods as objects, for the time of one test; at its end no agent may have been refused anything."""
    api = bed.source.api
    for name in PODS:
        pod = objects.pod(name, [])
        pod["metadata"]["labels"] = {"app": name}
        api.put(OF_PODS, pod)
        api.patch(f"{OF_PODS}/{name}/status", {"status": objects.pod_status(name)})
    try:
        _becomes({"n1p1", "n2p1", "n3p2"}, "without a policy somebody is cut off:")
        yield
        for i, agent in bed.agents.items():
            own.wait(lambda: not _refusals(i, agent), 90, 1)
            expect.that(not _refusals(i, agent), f"the rights in the daemonset files are not enough on node {i}:", _refusals(i, agent))
    finally:
        api.delete(POLICIES)
        for name in PODS:
            api.delete(f"{OF_PODS}/{name}?gracePeriodSeconds=0")
            bed.source.services_of.pop(name, None)  # a Service that comes later makes the pod anew
