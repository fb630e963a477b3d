"""TCP, UDP and SCTP, several ports, one family or both."""
import expect
from expect import FAMILIES, PODS
from labkit import kernel
from labkit.objects import Port


def one_service_serves_several_ports_and_protocols(bed):
    ports = [Port(80), Port(443, target=8080), Port(53, "UDP"), Port(53, name="dns-tcp"), Port(36412, "SCTP")]
    with expect.service(bed, "several", ports=ports) as s:
        for family in FAMILIES:
            for port in ports:
                expect.share("n1p2", s.address(family), port.port, PODS, port.protocol.lower())


def a_service_of_one_family_has_nothing_in_the_other(bed):
    for family, other in (("4", "6"), ("6", "4")):
        with expect.service(bed, f"single-{family}", families=family) as s:
            expect.share("n2p2", s.address(family), 80, PODS)
            expect.that(("TCP", s.address(other), 80) not in kernel.ipvs(2), "the other family is there too")


def the_host_itself_reaches_services(bed):
    with expect.service(bed, "from-host", ports=[Port(80), Port(53, "UDP")]) as s:
        for family in FAMILIES:
            for protocol, port in (("tcp", 80), ("udp", 53)):
                seen = expect.share("n1", s.address(family), port, PODS, protocol)["seen"]
                expect.that(set(seen) <= {*bed.plan.addresses(1)}, "the host comes by another address than its own:", seen)


def a_service_without_endpoints_refuses(bed):
    with expect.service(bed, "empty", pods=[]) as s:
        for family in FAMILIES:
            expect.refused("n1p2", s.address(family), 80)
        bed.put(s.name, PODS)
        bed.settle(s)
        expect.share("n1p2", s.address(), 80, PODS)


def a_deleted_service_leaves_nothing_behind(bed):
    with expect.service(bed, "deleted", kind="NodePort", ports=[Port(80, node_port=30085)], external_ips=["198.51.100.30"]) as s:
        held = {s.address(), s.address("6"), "198.51.100.30"}
    for i in bed.agents:
        expect.soon(lambda: not {a for _, a, p in kernel.ipvs(i) if a in held or p == 30085}, 30, f"node {i} still has it")
        after = kernel.snapshot(i)
        for part in ("routes", "addresses", "sets"):
            left = [line for line in after[part] for address in held if address in line.replace("/", " ").replace(",", " ").split()]
            expect.that(not left, f"node {i} still has {part}:", left)
