"""With a real API server and its own controllers, on nodes in two subnets; node 2 has legacy iptables."""
import time

import expect
from expect import FAMILIES, PODS
from labkit import kernel
from labkit.objects import Port


def services_reach_every_node_and_balance(bed):
    with expect.service(bed, "from-api", kind="NodePort", ports=[Port(80, node_port=30100), Port(53, "UDP")]) as s:
        for family in FAMILIES:
            for client in ("n1p2", "n2p2", "n3p2"):
                expect.share(client, s.address(family), 80, PODS)
                expect.share(client, s.address(family), 53, PODS, "udp")
        for i in bed.agents:
            for address in bed.plan.addresses(i):
                expect.share("ext", address, 30100, PODS)


def load_balancer_addresses_come_from_the_status(bed):
    with expect.service(bed, "status", kind="LoadBalancer", balancer_ips=["198.51.100.80"], ports=[Port(80, node_port=30101)]):
        expect.share("ext", "198.51.100.80", 80, PODS)


def an_endpoint_that_goes_and_comes_is_followed_without_a_failed_request(bed):
    with expect.service(bed, "moving") as s, expect.load(("n1p2", s.address(), 80), ("n3p2", s.address("6"), 80), pause=0.1):
        for pods in (PODS[:2], PODS, PODS[1:], PODS):
            bed.put(s.name, pods)
            bed.settle(s)


def the_rights_in_the_daemonset_file_are_enough(bed):
    """The agents run as its service account; the lab has applied the file to the API server with strict validation."""
    for i, agent in bed.agents.items():
        refused = [line for line in agent.text().splitlines() if "forbidden" in line.lower() or "(403)" in line]
        expect.that(not refused, f"the agent of node {i} was refused something:", refused)


def a_deleted_service_disappears(bed):
    with expect.service(bed, "short") as s:
        held = s.address()
    for i in bed.agents:
        expect.soon(lambda: not [k for k in kernel.ipvs(i) if k[1] == held], 30, f"node {i} still has it")


def an_outage_of_the_api_server_with_a_restart_in_it_fails_no_request(bed):
    with expect.service(bed, "outage", kind="NodePort", ports=[Port(80, node_port=30102)]) as s:
        targets = [("n1p2", s.address(), 80), ("n2p2", s.address("6"), 80), ("n3p2", s.address(), 80),
                   ("ext", bed.plan.addresses(1)[0], 30102), ("ext", bed.plan.addresses(2)[1], 30102)]
        with expect.load(*targets, pause=0.1):
            bed.source.stop_server()
            try:
                time.sleep(3)
                before = {i: kernel.snapshot(i) for i in (1, 2)}
                bed.agents[1].kill()
                bed.agents[2].stop()
                time.sleep(1)
                for i in (1, 2):
                    bed.agents[i].start()
                time.sleep(_OUTAGE)
                for i in bed.agents:
                    expect.that(bed.agents[i].is_alive() and bed.agents[i].healthy(), f"the agent of node {i} does not live through it")
                for i in (1, 2):
                    after = kernel.snapshot(i)
                    expect.that(after == before[i], f"node {i}:", kernel.difference(before[i], after))
            finally:
                bed.source.start_server()
            bed.put(s.name, PODS[:2])
            bed.settle(s)
        expect.share("n1p2", s.address(), 80, PODS[:2])
        expect.share("n2p2", s.address("6"), 80, PODS[:2])


_OUTAGE = 15  # seconds that the server stays away after the restarts


def _long(function):
    function.long = True
    return function


@_long
def an_outage_of_minutes_changes_nothing_either(bed):
    global _OUTAGE
    _OUTAGE = 240
    try:
        an_outage_of_the_api_server_with_a_restart_in_it_fails_no_request(bed)
    finally:
        _OUTAGE = 15
