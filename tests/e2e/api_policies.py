"""Network policies from a real API server, on nodes in two subnets; node 2 has legacy iptables."""
import contextlib
import os
import time

import expect
from expect import FAMILIES
from labkit import kernel, net, objects, own, traffic

PODS = ("n1p1", "n2p1", "n3p1", "n3p2")
POLICIES = f"/apis/networking.k8s.io/v1/namespaces/{objects.NAMESPACE}/networkpolicies"
OF_PODS = f"/api/v1/namespaces/{objects.NAMESPACE}/pods"


def policies_hold_through_an_outage_of_the_api_server_with_restarts_in_it_and_changes_follow_afterwards(bed):
    with _firewall(bed):
        only = {"from": [{"podSelector": {"matchLabels": {"app": "n1p1"}}}], "ports": [{"protocol": "TCP", "port": objects.TARGET}]}
        bed.source.api.put(POLICIES, _policy("only-n1p1", {"app": "n3p1"}, [only]))
        _becomes({"n1p1"}, "a policy from the API:")
        # What is known is written down half a minute after its first change, the policy with the rest.
        expect.soon(lambda: all(_remembers(bed, i, "only-n1p1") for i in (1, 3)), 90, "the policy is in no file of what was known")
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


def _remembers(bed, i, word):
    path = f"{bed.agents[i].state}/last-known"
    if not os.path.exists(path):
        return False
    with open(path, "rb") as handle:
        return word.encode() in handle.read()


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


def _becomes(expected, wrong):
    expect.soon(lambda: _reaching() == expected, 60, wrong, _reaching)


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


@contextlib.contextmanager
def _firewall(bed):
    """Agents with the firewall, and pods, for the time of one test."""
    api = bed.source.api
    for name in PODS:
        pod = objects.pod(name, [])
        pod["metadata"]["labels"] = {"app": name}
        api.put(OF_PODS, pod)
        api.patch(f"{OF_PODS}/{name}/status", {"status": objects.pod_status(name)})
    for i, agent in bed.agents.items():
        agent.stop()
        agent.extra = [*bed.flags_of(i), "--run-firewall=true", f"--socket={net.RUN}/n{i}/sluice.sock"]
        agent.start()
    try:
        bed.ready()
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
        for i, agent in bed.agents.items():
            agent.stop()
            status, text = agent.once("--cleanup-config")
            expect.that(status == 0, f"--cleanup-config of node {i} ended with {status}:", text)
            agent.extra = bed.flags_of(i)
            agent.start()
        bed.ready()
