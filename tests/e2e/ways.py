"""`sluice route` where service proxy, router and firewall run on each node: what it says is what packets do."""
import contextlib
import json

import expect
from expect import FAMILIES
from labkit import kernel, net, objects, own, packets, traffic
from labkit.agent import FLAGS, family_flags
from network_policies import _apply, _pods, _policy, _put_pods, _start_with_firewall

SERVER = 8080  # outside of the cluster


@contextlib.contextmanager
def _asked(bed):
    """All subsystems on all nodes, each with a socket of its own, and a policy that lets nobody but n3p1 into n1p1."""
    _put_pods(bed)
    _apply(bed, "policies", [_policy("closed", {"pod": "n1p1"}, policyTypes=["Ingress"], ingress=[{"from": [_pods(pod="n3p1")]}])])
    _start_with_firewall(bed)
    try:
        bed.ready()
        # A connection of IPVS that is left of a test before would translate answers of pods.
        left = {i: kernel.ipvs(i) for i in bed.agents}
        expect.that(not any(left.values()), "virtual services are left of tests before:", left)
        yield
    finally:
        for name in ("pods", "policies"):
            _apply(bed, name, None)
        # Of the firewall nothing is left for the tests that have none.
        for agent in bed.agents.values():
            agent.stop()
            status, text = agent.once(*FLAGS, *family_flags(), "--run-router=true", "--run-firewall=true", "--cleanup-config")
            expect.that(status == 0, f"--cleanup-config ended with {status}:", text)


def _said(bed, i, what):
    return json.loads(net.node(i, bed.binary, "route", what, "-o", "json", f"--socket={net.RUN}/n{i}/sluice.sock"))


def _answer(bed, client, address, back):
    """Who answers a client in or on node 1, and the source it saw; where nobody does, what IPVS remembers of that client, /readyz, and what node j says of
    the way `back` to that source."""
    j, source = back
    try:
        return traffic.ask(client, address, objects.TARGET)
    except TimeoutError as error:
        ready = {i: kernel.http_get(i, "/readyz") for i in bed.agents}
        again = expect.is_answered(client, address, objects.TARGET)
        remembered = [line for line in net.node(1, "ipvsadm", "-Lcn").splitlines() if f"{source}:" in line]
        raise AssertionError(f"{error}; a second one is {'answered' if again else 'not either'}; connections of IPVS: {remembered}; ready: {ready}; "
                             f"the way back of node {j}: {_said(bed, j, source)}") from None


def _fits(way):
    """The largest packet of a pod on a way."""
    return (way["mtuOfPods"] or way["mtu"])["bytes"]


def packets_to_pods_of_other_nodes_go_as_it_says_and_their_policies_are_left_to_these(bed):
    with _asked(bed):
        for j, family in ((j, family) for j in (2, 3) for family in FAMILIES):
            name, address = f"n{j}p1", expect.pod(f"n{j}p1", family)
            said = _said(bed, 1, address)
            (way,) = said["way"]["ways"]
            expect.that((way["owner"], way["differences"]) == ("podsOfNode", []), said)
            tunnel = way["route"]["nextHops"][0]["tunnel"]
            expect.that((tunnel is not None) == bed.plan.far(j), f"a tunnel to node {j}:", said)
            for client, source in (("n1p1", expect.pod("n1p1", family)), ("n1", way["kernel"]["ofNode"]["source"])):
                who, seen = _answer(bed, client, address, (j, source))
                expect.that((who, seen) == (name, source), f"{client} is answered by {who}, which saw {seen}:", said)
            expect.that(not way["masqueraded"]["fromPods"], said)
            # What a pod has once heard of a way it believes for minutes.
            own.run("/sbin/ip", "-n", "n1p1", f"-{family}", "route", "flush", "cache")
            largest = packets.largest("n1p1", address, objects.TARGET)
            expect.that(_fits(way) == largest, f"the largest packet has {largest} bytes:", said)
            expect.that("its own node" in " ".join(said["policy"]["text"]), said)
        by_name = _said(bed, 1, f"{objects.NAMESPACE}/n3p1")
        expect.that([way["address"] for way in by_name["way"]["ways"]] == [expect.pod("n3p1", family) for family in FAMILIES], by_name)


@expect.whole
def what_leaves_the_cluster_has_the_source_that_it_says(bed):
    with _asked(bed), expect.server("ext", [("tcp", SERVER)]):
        for f, _ in enumerate(FAMILIES):
            said = _said(bed, 1, net.CLIENT[f])
            (way,) = said["way"]["ways"]
            expect.that((way["owner"], way["masqueraded"]["fromPods"]) == ("other", True), said)
            for client in ("n1", "n1p1"):
                who, seen = traffic.ask(client, net.CLIENT[f], SERVER)
                expect.that((who, seen) == ("ext", bed.plan.addresses(1)[f]), f"{client} is answered by {who}, which saw {seen}:", said)


@expect.whole
def a_pod_of_this_node_is_isolated_by_the_policy_that_it_names(bed):
    with _asked(bed):
        for family in FAMILIES:
            address = expect.pod("n1p1", family)
            said = _said(bed, 1, address)
            expect.that(said["way"]["ways"][0]["owner"] == "ownPods", said)
            of = {one["direction"]: (one["isolated"], one["policies"]) for one in said["policy"]["isolation"]}
            expect.that(of == {"ingress": (True, [f"{objects.NAMESPACE}/closed"]), "egress": (False, [])}, said)
            expect.that(traffic.ask("n3p1", address, objects.TARGET)[0] == "n1p1", "the pod that the policy lets in is refused")
            expect.silent("n2p1", address, objects.TARGET)


@expect.whole
def a_service_is_told_with_the_way_to_each_endpoint_and_an_address_without_one_is_refused(bed):
    pods = ["n2p1", "n3p1"]
    with _asked(bed), expect.service(bed, "told", pods) as service:
        for family in FAMILIES:
            said = _said(bed, 1, service.address(family))
            (explained,) = said["service"]["explained"]["services"]
            expect.that(explained["name"] == service.name, said)
            place = next(p for p in explained["addresses"] if (p["address"], p["port"]) == (service.address(family), 80))
            expect.that((place["standing"], place["virtualService"]["kernel"]) == ("served", "inPlace"), said)
            ways = {way["address"]: way for backend in said["backends"] for way in backend["ways"]}
            expect.that(sorted(ways) == sorted(expect.pod(name, family) for name in pods), said)
            expect.that(all(way["owner"] == "podsOfNode" and not way["differences"] for way in ways.values()), said)
            expect.share("n1p1", service.address(family), 80, pods)
            unknown = _unserved(service.address(family))
            said = _said(bed, 1, unknown)
            expect.that(said["service"]["explained"] is None and said["service"]["clusterIPRange"]["refused"], said)
            expect.silent("n1p1", unknown, 80)


def _unserved(address):
    """Another one of the range of cluster IPs, at which there is no Service."""
    head, separator, _ = address.rpartition("." if "." in address else ":")
    return f"{head}{separator}{250 if separator == '.' else 'ffea'}"
