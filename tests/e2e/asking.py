"""`sluice svc`, `sluice audit` and `sluice status`: what a Service has on a node, what differs from the kernel, and how the node stands, said by the
agent that runs there, with real IPVS."""
import json
import subprocess

import expect
from expect import PODS
from labkit import kernel, net, own, traffic
from labkit.agent import FLAGS, family_flags
from labkit.objects import Port


SOCKET = f"--socket={net.RUN}/n1/sluice.sock"


def _asked(bed):
    """Restarts the agent of node 1 with a socket of its own: those of the other nodes would have the same."""
    agent = bed.agents[1]
    if SOCKET not in agent.extra:
        agent.stop()
        agent.extra = [*bed.flags_of(1), SOCKET]
        agent.start()
        bed.ready(1)
    return agent.binary


def _said(bed, *words):
    """What the agent of node 1 answers, as JSON."""
    return json.loads(net.node(1, _asked(bed), *words, "-o", "json", SOCKET))


def _place(answer, address, port=80):
    """One address of the only Service in an answer."""
    found = [a for a in answer["services"][0]["addresses"] if (a["address"], a["port"], a["protocol"]) == (address, port, "tcp")]
    expect.that(len(found) == 1, "not one place but", answer)
    return found[0]


def a_service_is_explained_with_its_endpoints_and_connections_in_both_families(bed):
    _asked(bed)
    with expect.service(bed, "asked") as s:
        with net.Inside("n1p2"):
            held = [traffic.connect(s.address(), 80) for _ in range(3)]
            answer = _said(bed, "svc", f"default/{s.name}")
            for sock in held:
                sock.close()
        expect.that(answer["known"] == "complete", answer)
        for family in s.families:
            place = _place(answer, s.address(family))["virtualService"]
            expect.that(place["kernel"] == "inPlace", place)
            found = {e["address"]: e["state"] for e in place["endpoints"]}
            expect.that(found == {expect.pod(name, family): "serving" for name in PODS}, found)
        active = sum(e["connections"]["active"] for e in _place(answer, s.address())["virtualService"]["endpoints"])
        expect.that(active >= 3, "connections are not counted:", answer)
        by_address = _said(bed, "svc", f"[{s.address('6')}]:80")
        expect.that([a["address"] for a in by_address["services"][0]["addresses"]] == [s.address("6")], by_address)
        table = net.node(1, _asked(bed), "svc", SOCKET)
        expect.that(any(line.startswith(f"default/{s.name} ") for line in table.splitlines()), table)


def _states(bed, s, family):
    """{pod: state} at the cluster address, as node 1 says; nothing while it does not know the Service, or not this address."""
    try:
        endpoints = _place(_said(bed, "svc", f"default/{s.name}"), s.address(family))["virtualService"]["endpoints"]
    except (own.LabError, AssertionError, IndexError, TypeError):
        return {}
    names = {expect.pod(name, family): name for name in bed.plan.pod_names()}
    return {names[e["address"]]: e["state"] for e in endpoints}


def _say(bed, s, family, wanted):
    found = []

    def are():
        found[:] = [_states(bed, s, family)]
        return found == [wanted]
    expect.that(own.wait(are, 60, 0.2), f"over IPv{family} not {wanted} but", found)


def each_endpoint_says_why_it_is_in_or_out(bed):
    _asked(bed)
    with expect.service(bed, "why", ["n1p1", "n2p1", "n3p1"]) as s:
        bed.put(s.name, ["n1p1", "n2p1"], leaving=["n3p1"], unready=["n3p2"])
        for family in s.families:
            wanted = {"n1p1": "serving", "n2p1": "serving", "n3p1": "draining", "n3p2": "notReady"}
            _say(bed, s, family, wanted)
    with expect.service(bed, "why-not-local", PODS, settle=False, internal_policy="Local") as s:
        for family in s.families:
            _say(bed, s, family, {"n1p1": "serving", "n2p1": "notLocal", "n3p1": "notLocal"})
    with expect.service(bed, "why-far", PODS, settle=False, near="Zone") as s:
        for family in s.families:
            _say(bed, s, family, {"n1p1": "serving", "n2p1": "hinted", "n3p1": "hinted"})
    refused = "203.0.113.79"
    with expect.service(bed, "why-refused", external_ips=[refused]) as s:
        place = _place(_said(bed, "svc", f"default/{s.name}"), refused)
        expect.that(place["standing"] == "refused" and "--service-external-ip-range" in place["reason"], place)


def rates_are_those_that_ipvs_counts(bed):
    _asked(bed)
    with expect.service(bed, "counted") as s, expect.load(("n1p2", s.address(), 80), ("n1p3", s.address("6"), 80)):
        def rates(family):
            stats = _place(_said(bed, "svc", f"default/{s.name}"), s.address(family))["virtualService"]["stats"]
            return [stats[f"{what}PerSecond"] for what in ("connections", "packetsIn", "bytesIn")]
        # The kernel calculates them every two seconds.
        for family in s.families:
            expect.soon(lambda: all(rate > 0 for rate in rates(family)), 30, f"over IPv{family} nothing is counted:", rates(family))


def the_status_says_that_the_node_is_ready_and_how_many_services_it_keeps(bed):
    _asked(bed)
    with expect.service(bed, "asked-status"):
        status = _said(bed, "status", "--wait")
    expect.that(status["ready"] and status["node"] == "node1", status)
    proxy = next(part for part in status["components"] if part["component"] == "service proxy")
    figures = {figure["name"]: figure["value"] for figure in proxy["figures"]}
    expect.that(not proxy["reasons"] and figures["IPVS services"] >= 2, proxy)
    text = net.node(1, _asked(bed), "status", SOCKET)
    expect.that(text.startswith("node1: ready; sluice "), text)


def a_bundle_of_one_node_brings_the_services_up_on_another(bed):
    """A node that has nothing in the kernel serves what the bundle of another node says of the cluster, and clients are answered."""
    _asked(bed)
    path, agent = f"{net.RUN}/n1/bundle.tar", bed.agents[3]
    with expect.service(bed, "bundled", ports=[Port(80, node_port=30177), Port(53, "UDP")], kind="NodePort") as s:
        net.node(1, _asked(bed), "bundle", "-f", path, SOCKET)
        before = kernel.ipvs(3)
        agent.stop()
        status, text = agent.once(*FLAGS, *family_flags(), "--cleanup-config", f"--socket={net.RUN}/n3/sluice.sock")
        expect.that(status == 0 and not kernel.ipvs(3), f"--cleanup-config ended with {status}:", text)
        source, agent.source = agent.source, _Bundle(path)
        try:
            agent.start()
            expect.soon(lambda: kernel.ipvs(3) == before, 60, "other virtual services than by manifests:", before, kernel.ipvs(3), bed.tail(3))
            for family in s.families:
                expect.share("n3p1", s.address(family), 80, PODS)
                expect.share("n3p2", s.address(family), 53, PODS, "udp")
        finally:
            agent.stop()
            agent.source = source
            agent.start()
            bed.ready(3)


class _Bundle:
    """Where an agent reads the cluster's objects: a bundle."""

    def __init__(self, path):
        self.path = path

    def flags(self, _):
        return [f"--manifests={self.path}"]


def what_somebody_deleted_is_said_to_be_missing_until_the_agent_finds_it(bed):
    _asked(bed)
    with expect.service(bed, "asked-hurt") as s:
        for _ in range(5):
            net.node(1, "ipvsadm", "-D", "-t", f"{s.address()}:80")
            place = _place(_said(bed, "svc", f"{s.address()}:80"), s.address())["virtualService"]
            if place["kernel"] == "missing":
                break
            # The agent found it just then.
            expect.that(place["kernel"] == "inPlace", place)
            expect.soon(lambda: f"{s.address()}:80" in net.node(1, "ipvsadm", "-Ln"), 30, "it does not come back")
        expect.that(place["kernel"] == "missing", place)


def _audit(bed, *words):
    """What `sluice audit` prints on node 1, and its exit status."""
    done = subprocess.run(net.node_command(1, _asked(bed), "audit", *words, SOCKET), capture_output=True, text=True, timeout=60)
    return done.stdout, done.returncode


def _differs(bed, s):
    """A virtual service that somebody deletes is a difference by the exit status and for programs, which stays without a repair."""
    at = f"{s.address()}:80"
    for _ in range(5):  # the agent may find it just then
        net.node(1, "ipvsadm", "-D", "-t", at)
        said, status = _audit(bed, "-o", "json")
        found = [(one["object"], one["state"]) for part in json.loads(said)["subsystems"] for kind in part["kinds"] for one in kind["differences"]]
        if found:
            break
        expect.soon(lambda: at in net.node(1, "ipvsadm", "-Ln"), 30, "it does not come back")
    expect.that((f"tcp {at}", "missing") in found and status == 1, status, said)
    _audit(bed, "--repair")


def _repairs(bed, s, family):
    """A virtual service that somebody deletes is said to be missing, and put back."""
    at = f"{s.address()}:80" if family == "4" else f"[{s.address('6')}]:80"
    for _ in range(5):  # the agent may find it just then
        net.node(1, "ipvsadm", "-D", "-t", at)
        said, status = _audit(bed, "--repair")
        if said:
            break
        expect.soon(lambda: at in net.node(1, "ipvsadm", "-Ln"), 30, "it does not come back")
    expect.that(f"proxy: virtual services: tcp {at}: missing; repaired" in said and status == 0, status, said)
    expect.that(at in net.node(1, "ipvsadm", "-Ln"), "it is not back")
    expect.share("n1p2", s.address(family), 80, PODS)


def an_audit_says_what_differs_and_a_repair_puts_it_back(bed):
    _asked(bed)
    with expect.service(bed, "audited") as s:
        expect.soon(lambda: _audit(bed) == ("", 0), 30, "something differs:", _audit(bed))
        _differs(bed, s)
        for family in s.families:
            _repairs(bed, s, family)
        expect.that(_audit(bed) == ("", 0), "something differs:", _audit(bed))
    nowhere = subprocess.run(net.node_command(1, _asked(bed), "audit", "--socket=/nowhere/sluice.sock"), capture_output=True, text=True, timeout=60)
    expect.that(nowhere.returncode == 2, nowhere)
