"""The firewall together with the service proxy: who reaches whom over TCP, UDP and SCTP, in both families, on three nodes.

Pods, policies and Services come from manifests; node 2 has legacy iptables. A pod of the lab has the labels `pod` (its
name) and `node`.
"""
import concurrent.futures
import contextlib
import json
import os
import time

import expect
from expect import FAMILIES
from labkit import kernel, net, objects, traffic
from labkit.agent import FLAGS, family_flags
from labkit.objects import Port

PROTOCOLS = ("tcp", "udp", "sctp")


def _pod(name):
    made = {**objects.pod(name, []), "status": objects.pod_status(name)}
    made["metadata"]["labels"] = {"pod": name, "node": objects.node_of(name)}
    made["spec"]["containers"][0]["ports"] = [{"name": "main", "containerPort": objects.TARGET}]
    return made


def _policy(name, selected, **spec):
    return {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": name, "namespace": objects.NAMESPACE},
            "spec": {"podSelector": {"matchLabels": selected}, **spec}}


def _pods(**labels):
    return {"podSelector": {"matchLabels": labels}}


def _put_pods(bed):
    """The pods of the lab as objects, in their namespace."""
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": objects.NAMESPACE}}
    bed.source.write("pods", [namespace, *[_pod(p) for p in bed.plan.pod_names()]])


SOCKET = f"--socket={net.RUN}/n{{i}}/sluice.sock"
FIREWALL = ["--run-firewall=true", SOCKET]


def _start_with_firewall(bed, *flags):
    """Agents that run the firewall beside what they usually run, each with a socket of its own."""
    for i, agent in bed.agents.items():
        agent.stop()
        agent.extra = [*bed.flags_of(i), *(flag.replace("{i}", str(i)) for flag in FIREWALL), *flags]
        agent.start()


@contextlib.contextmanager
def _firewall(bed, *flags):
    """Agents with the firewall, for the time of one test; afterwards nothing of it is left on any node."""
    _put_pods(bed)
    _start_with_firewall(bed, *flags)
    try:
        bed.ready()
        yield
    finally:
        _take_objects(bed)
        _take_firewall(bed)


def _take_objects(bed):
    for name in ("pods", "policies"):
        _apply(bed, name, None)


def _take_firewall(bed):
    """Agents without the firewall, behind a cleanup that leaves nothing of it on any node."""
    for i, agent in bed.agents.items():
        agent.stop()
        status, text = agent.once(*FLAGS, *family_flags(), "--cleanup-config")
        left = [line for line in text.splitlines() if "could not be removed" in line]
        expect.that(status == 0 and not left, f"--cleanup-config of node {i} ended with {status}:", text)
        rules = [line for table in kernel.snapshot(i).values() for line in table if any(of_ours in line for of_ours in ("NWPLCY", "KUBE-POD-FW", "sluice_"))]
        expect.that(not rules, f"node {i} has kept", rules)
        agent.extra = bed.flags_of(i)
        agent.start()
    bed.ready()


def _agents_get_the_firewall(bed):
    bed.flags += FIREWALL
    bed.restore()


def _a_cleanup_leaves_nothing_of_the_firewall(bed):
    """Of one that isolates pods of every node until it is stopped."""
    _put_pods(bed)
    _apply(bed, "policies", [_policy("nobody", {}, policyTypes=["Ingress"], ingress=[])])
    for pod, client in (("n1p1", "n2p1"), ("n2p1", "n3p1"), ("n3p1", "n1p1")):
        expect.soon(lambda: not _reaches(client, expect.pod(pod, "4"), "tcp"), 40, f"{pod} is not isolated")
    bed.flags = [flag for flag in bed.flags if flag not in FIREWALL]
    try:
        _take_firewall(bed)
    finally:
        _take_objects(bed)


# Three agents that start and are cleaned up cost a minute in the emulator, so all tests here share them.
_begin, _end = _agents_get_the_firewall, _a_cleanup_leaves_nothing_of_the_firewall


@contextlib.contextmanager
def _pods_are_known(bed):
    """The pods of the lab as objects, for the time of one test; afterwards no policy is left either."""
    _put_pods(bed)
    try:
        yield
    finally:
        _take_objects(bed)


def _apply(bed, name, items):
    """Puts objects in place of those of that name, or takes them away."""
    if items is not None:
        bed.source.write(name, items)
    else:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{bed.source.folder}/{name}.json")


def _reaches(client, address, protocol):
    return expect.is_answered(client, address, objects.TARGET, protocol, patience=1.5)


def _becomes(expected, wrong):
    """Until the truth table is as expected: {(client, address, protocol): whether it gets an answer}."""
    def differs():
        found = _asked(expected)
        return {key: found[key] for key, wanted in expected.items() if found[key] != wanted}
    expect.soon(lambda: not differs(), 40, wrong, differs)


def _asked(keys, reaches=_reaches):
    """{key: whether it gets an answer}. All are asked at the same time: who gets none waits for it."""
    with concurrent.futures.ThreadPoolExecutor(len(keys)) as pool:
        return dict(zip(keys, pool.map(lambda key: reaches(*key), keys)))


def _table(clients, target, allowed):
    """The truth table of some clients to one pod, of which those in `allowed` (client, protocol) get an answer."""
    return {(client, expect.pod(target, family), protocol): (client, protocol) in allowed
            for client in clients for family in FAMILIES for protocol in PROTOCOLS}


def _explain(bed, i, source, target, *more):
    return net.node(i, bed.binary, "policy", "explain", f"--socket={net.RUN}/n{i}/sluice.sock", "--from", source, "--to", target, *more)


def policies_say_who_reaches_whom_over_every_protocol_and_family(bed):
    clients = ("n1p1", "n2p1", "n3p2")
    every = {(c, p) for c in clients for p in PROTOCOLS}
    with _pods_are_known(bed):
        _becomes(_table(clients, "n3p1", every), "without a policy somebody is cut off:")
        _apply(bed, "policies", [_policy("only-n1p1", {"pod": "n3p1"}, policyTypes=["Ingress"], ingress=[
            {"from": [_pods(pod="n1p1")], "ports": [{"protocol": "TCP", "port": "main"}, {"protocol": "SCTP", "port": objects.TARGET}]}])])
        _becomes(_table(clients, "n3p1", {("n1p1", "tcp"), ("n1p1", "sctp")}), "one policy for ingress:")
        expect.that(_reaches("n3", expect.pod("n3p1", "4"), "tcp"), "the node does not reach its own pod")
        said = _explain(bed, 3, "default/n2p1", f"default/n3p1:{objects.TARGET}")
        expect.that("denied" in said and "default/only-n1p1" in said and "kernel: has these rules" in said, said)
        said = json.loads(_explain(bed, 3, "default/n1p1", f"default/n3p1:{objects.TARGET}", "-o", "json"))
        expect.that([a["allowed"] and a["inKernel"] for a in said["answers"]] == [True, True], said)
        # The same policy through a Service: what counts is the pod behind it.
        with expect.service(bed, "guarded", ["n3p1"], kind="NodePort", ports=[Port(80, node_port=30120)]) as s:
            for family in FAMILIES:
                expect.many("n1p1", s.address(family), 80)
                for client in ("n2p1", "n3p2"):
                    expect.silent(client, s.address(family), 80)
        # Another pod gets the rights when it gets the label, and only then.
        made = [_pod(p) for p in bed.plan.pod_names()]
        next(p for p in made if p["metadata"]["name"] == "n2p1")["metadata"]["labels"]["pod"] = "n1p1"
        _apply(bed, "pods", [{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": objects.NAMESPACE}}, *made])
        _becomes(_table(clients, "n3p1", {(c, p) for c in ("n1p1", "n2p1") for p in ("tcp", "sctp")}), "a label that changed:")
        _apply(bed, "policies", None)
        _becomes(_table(clients, "n3p1", every), "after the policy has gone:")


def a_namespace_with_other_labels_and_a_pod_at_anothers_address_have_the_rights_of_what_they_are_now(bed):
    clients = ("n1p1", "n2p1", "n3p2")
    every = {(c, p) for c in clients for p in PROTOCOLS}

    def objects_are(labels, **others):
        """`others`: labels of pods that stand in the place of those of that name, at the same addresses."""
        made = [_pod(p) for p in bed.plan.pod_names()]
        for pod in made:
            if label := others.get(pod["metadata"]["name"]):
                pod["metadata"]["name"] += "-again"
                pod["metadata"]["labels"]["pod"] = label
        _apply(bed, "pods", [{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": objects.NAMESPACE, "labels": labels}}, *made])

    with _pods_are_known(bed):
        _apply(bed, "policies", [_policy("of-blue", {"pod": "n3p1"}, policyTypes=["Ingress"], ingress=[
            {"from": [{"namespaceSelector": {"matchLabels": {"color": "blue"}}}]}])])
        _becomes(_table(clients, "n3p1", set()), "a namespace without the label:")
        objects_are({"color": "blue"})
        _becomes(_table(clients, "n3p1", every), "a namespace that got the label:")
        objects_are({"color": "red"})
        _becomes(_table(clients, "n3p1", set()), "a namespace with another label:")
        _apply(bed, "policies", [_policy("of-n1p1", {"pod": "n3p1"}, policyTypes=["Ingress"], ingress=[{"from": [_pods(pod="n1p1")]}])])
        first = {("n1p1", p) for p in PROTOCOLS}
        _becomes(_table(clients, "n3p1", first), "before anybody is replaced:")
        objects_are({}, n1p1="other", n2p1="n1p1")
        _becomes(_table(clients, "n3p1", {("n2p1", p) for p in PROTOCOLS}), "pods that stand at the addresses of others:")
        objects_are({}, n3p1="free")
        _becomes(_table(clients, "n3p1", every), "a pod that no policy selects at the address of one that was selected:")
        objects_are({})
        _becomes(_table(clients, "n3p1", first), "all as it was:")


def egress_is_apart_from_ingress_and_an_agent_that_starts_again_keeps_everything(bed):
    with _pods_are_known(bed):
        _apply(bed, "policies", [_policy("out", {"node": "node1"}, policyTypes=["Egress"], egress=[{"to": [_pods(pod="n2p1")]}])])
        allowed = {("n1p1", p) for p in PROTOCOLS}
        _becomes(_table(["n1p1"], "n2p1", allowed) | _table(["n1p1"], "n3p1", set()), "a policy for egress:")
        expect.that(_reaches("n3p1", expect.pod("n1p1", "4"), "tcp"), "egress rules stop what comes in")
        with expect.load(("n1p1", expect.pod("n2p1", "4"), objects.TARGET), ("n1p1", expect.pod("n2p1", "6"), objects.TARGET), pause=0.1):
            for end in (bed.agents[1].kill, bed.agents[1].stop):
                before = kernel.snapshot(1)
                end()
                expect.that(not _reaches("n1p1", expect.pod("n3p1", "4"), "tcp"), "without an agent the policy is not enforced")
                bed.agents[1].start()
                bed.ready(1)
                after = kernel.snapshot(1)
                expect.that(after == before, "a start changed something:", kernel.difference(before, after))
        expect.that(not _reaches("n1p1", expect.pod("n3p1", "6"), "tcp"), "the policy is not enforced any more")


@contextlib.contextmanager
def _host_service(bed, name, nodes, port, node_port, target):
    """A Service whose endpoints are in the host network of nodes, for the time of one test: gives its addresses, and a function that
    puts its endpoints on other nodes."""
    made = objects.Service(name, bed.free_number(), [], kind="NodePort",
                           ports=[Port(port, node_port=node_port, target=target)])

    def on(nodes):
        slices = objects.slices(made)
        for f, one in enumerate(slices):
            one["endpoints"] = [{"addresses": [bed.plan.addresses(i)[f]], "nodeName": f"node{i}",
                                 "conditions": {"ready": True, "serving": True, "terminating": False}} for i in nodes]
        _apply(bed, name, [objects.service(made), *slices])
    on(nodes)
    try:
        yield [made.address(family) for family in FAMILIES], on
    finally:
        _apply(bed, name, None)


def a_service_whose_endpoint_is_on_the_clients_own_node_is_judged_by_that_endpoint(bed):
    port, node_port, target = 80, 30130, 7443
    clients = ("n1p1", "n2p1", "n3p1", "n1")
    nodes = [bed.plan.addresses(i) for i in (1, 2, 3)]

    def reaches(client, address, at, protocol):
        return expect.is_answered(client, address, at, protocol, patience=1.5)

    def becomes(denied, wrong):
        """All clients reach the service addresses, and the node ports of their own nodes, but for these clients."""
        wanted = {}
        for client in clients:
            own = nodes[int(client[1]) - 1]
            for f in range(len(FAMILIES)):
                wanted[client, services[f], port, "tcp"] = client not in denied
                wanted[client, own[f], node_port, "tcp"] = client not in denied

        def differs():
            # A Service of which every third connection is refused is one that is reached at times.
            times = [_asked(wanted, reaches) for _ in range(3)]
            return {key: open for key, open in wanted.items() if any(found[key] != open for found in times)}
        until = time.monotonic() + 120
        while found := differs():
            expect.that(time.monotonic() < until, wrong, found)

    def out(*allowed):
        blocks = [{"ipBlock": {"cidr": f"{a}/{128 if ':' in a else 32}"}} for addresses in allowed for a in addresses]
        rules = [{"to": blocks}] if blocks else []
        _apply(bed, "policies", [_policy("out", {"node": "node1"}, policyTypes=["Egress"], egress=rules)])

    # Not over UDP: a server on all addresses of its host answers a pod there from the pods' gateway, which IPVS does not know.
    servers = [("tcp", target)]
    with _pods_are_known(bed), expect.host_server(1, "host1", servers), expect.host_server(2, "host2", servers), \
            _host_service(bed, "hosts", [1, 2], port, node_port, target) as (services, put_endpoints_on):
        becomes((), "without a policy somebody is cut off:")
        out()
        becomes(("n1p1",), "egress is denied altogether:")
        said = _explain(bed, 1, "default/n1p1", f"{services[0]}:{port}")
        expect.that("denied" in said and "on this node itself" in said and "kernel: has these rules" in said, said)
        for end in (bed.agents[1].kill, bed.agents[1].stop):
            before = kernel.snapshot(1)
            end()
            expect.that(not reaches("n1p1", services[0], port, "tcp"), "without an agent the policy is not enforced")
            bed.agents[1].start()
            bed.ready(1)
            after = kernel.snapshot(1)
            expect.that(after == before, "a start changed something:", kernel.difference(before, after))
        out(nodes[1])
        becomes(("n1p1",), "the other endpoint alone is allowed:")
        out(nodes[0], nodes[1])
        becomes((), "both endpoints are allowed:")
        out(nodes[1])
        becomes(("n1p1",), "its own node's endpoint is not allowed any more:")
        put_endpoints_on([2])
        becomes((), "the endpoint that is not allowed has gone:")
        put_endpoints_on([1])
        becomes(("n1p1",), "the only endpoint is not allowed:")
        # Legacy iptables, and a node whose pods are judged for the first time.
        _apply(bed, "policies", [_policy("out", {"node": "node2"}, policyTypes=["Egress"], egress=[])])
        put_endpoints_on([2])
        becomes(("n2p1",), "on the other node:")


def a_policy_judges_who_comes_through_a_node_port_by_the_address_that_the_pod_sees(bed):
    def from_block(name, pod, block, *holes):
        return _policy(name, {"pod": pod}, policyTypes=["Ingress"], ingress=[
            {"from": [{"ipBlock": {"cidr": block, "except": list(holes)}}], "ports": [{"protocol": "TCP", "port": objects.TARGET}]}])

    def answers(address, port):
        try:
            return traffic.ask("ext", address, port, patience=1.5)[1]
        except OSError:
            return None

    local, far = [Port(80, node_port=30121)], [Port(80, node_port=30122)]
    with _pods_are_known(bed), expect.service(bed, "kept", ["n1p1"], kind="NodePort", external_policy="Local", ports=local), \
            expect.service(bed, "hidden", ["n2p1"], kind="NodePort", ports=far):
        for address, client in zip(bed.plan.addresses(1), net.CLIENT):
            expect.that(answers(address, 30121) == client, "without a policy the pod does not see the client itself:", answers(address, 30121))
        # With `Local` the pod sees the client: its address is what the policy is about.
        _apply(bed, "policies", [from_block("v4", "n1p1", f"{net.CLIENT[0]}/32"), from_block("v6", "n1p1", f"{net.CLIENT[1]}/128")])
        for address, client in zip(bed.plan.addresses(1), net.CLIENT):
            expect.soon(lambda: answers(address, 30121) == client, 30, "a policy for the client's address does not let it in")
        expect.soon(lambda: not _reaches("n2p1", expect.pod("n1p1", "4"), "tcp"), 30, "it lets others in")
        _apply(bed, "policies", [from_block("v4", "n1p1", "203.0.113.0/24", f"{net.CLIENT[0]}/32"),
                                 from_block("v6", "n1p1", "2001:db8:113::/64", f"{net.CLIENT[1]}/128")])
        for address in bed.plan.addresses(1):
            expect.soon(lambda: answers(address, 30121) is None, 30, "a policy with a hole for the client lets it in")
        # With `Cluster` the pod of another node sees the first node.
        _apply(bed, "policies", [from_block("v4", "n2p1", f"{net.CLIENT[0]}/32"), from_block("v6", "n2p1", f"{net.CLIENT[1]}/128")])
        for address in bed.plan.addresses(1):
            expect.soon(lambda: answers(address, 30122) is None, 30, "the client's address counts although the pod does not see it")
        _apply(bed, "policies", [from_block("v4", "n2p1", f"{bed.plan.addresses(1)[0]}/32"), from_block("v6", "n2p1", f"{bed.plan.addresses(1)[1]}/128")])
        for address in bed.plan.addresses(1):
            expect.soon(lambda: answers(address, 30122) == address, 30, "a policy for the node's address does not let in what comes through it")
