"""Nodes that leave, as a client outside and the nodes see it: one whose link is cut, which BFD notices, and one that is drained. The router outside is
BIRD, which knows pods and service addresses from the nodes alone."""
import contextlib
import json
import socket
import struct
import time

import expect
from expect import FAMILIES
from labkit import kernel, net, objects, own, packets, traffic
from labkit.demo_cluster import NODES, bird, configured, peering
from labkit.demo_leaving import INTERVAL, LABEL, by_node_3
from labkit.demo_leaving import FLOWS as MANY_FLOWS
from labkit.demo_outside import PREFIX, at_router, birdc, configure
from labkit.objects import Port
from router import learned

DELAY = 5  # seconds of --drain-delay
TAINT = "example.com/leaving"
FLAGS = ["--advertise-cluster-ip", f"--cluster-asn={NODES}", f"--drain-delay={DELAY}s", f"--drain-taints={TAINT}", "--enable-bfd-mesh",
         f"--bfd-desired-min-tx-interval={INTERVAL}", f"--bfd-required-min-rx-interval={INTERVAL}"]
SWITCHED = 15  # seconds: ten times those of BFD, as nodes live in an emulator; without BFD it would be 90
AGAIN = 240  # seconds in which the cut of a link may be tried again; one takes a minute, and three where the processor is shared
STANDSTILL = 1.0  # seconds, less than BFD waits
# So many packets a second, however many flows: four times as many keep an emulated processor so busy that those of BFD and of ARP wait for seconds.
RATE = 160
FLOWS = 8  # of each family: some of them go by way of the node that leaves
PODS = ["n1p1", "n2p1"]
NODE_PORT = 30097
NONE_LEFT = "IPVS has no connection of a client outside of the cluster any more"


@contextlib.contextmanager
def _outside(bed):
    """Nodes that BFD watches, and a router outside that sends what is for a Service to all of them; the Service."""
    static = [f"{r} via {bed.plan.addresses(1)[f]}" for ranges in (net.SERVICE_RANGES, net.EXTERNAL_RANGES) for f, r in enumerate(ranges)]
    net.sysctl("rtr", net.BY_FLOW)
    net.ip("rtr", *[f"route del {route}" for route in static])
    try:
        with bird(bed.plan):
            configured(bed.plan, bfd=True)
            configure()
            bed.source.nodes(bed.plan, annotations=_notes(bed))
            since = {}
            for i, agent in bed.agents.items():
                agent.stop()
                since[i] = agent.position()
                agent.extra = [*bed.flags_of(i), *FLAGS, f"--socket={net.RUN}/n{i}/sluice.sock"]
                agent.start()
            bed.ready()
            with expect.service(bed, "edge", PODS, kind="NodePort", ports=[Port(80, node_port=NODE_PORT), Port(53, "UDP")]) as service:
                _comes_to(bed, service, bed.agents)
                # A kprobe that begins has the emulator stand still for longer than BFD waits, where it has half a processor.
                for i in bed.agents:
                    expect.logged(bed, i, since[i], "IPVS commands of other programs are", seconds=60)
                _settled(bed, service)
                yield service
    finally:
        net.ip("rtr", *[f"route add {route}" for route in static])
        bed.source.nodes(bed.plan)


def _settled(bed, service):
    """Waits until BFD watches all neighbours, all nodes have the ways to each other's pods, and the router outside sends to all of them."""
    for i in bed.agents:  # with the other nodes and the router outside
        expect.soon(lambda: kernel.metric(i, "sluice_router_bfd_session_up") == len(bed.agents), 60, f"BFD of node {i} is not up")
        others = [bed.plan.pod_ranges(j) for j in bed.agents if j != i]
        for f, family in enumerate(FAMILIES):
            expect.soon(lambda: all(ranges[f] in learned(i, family) for ranges in others), 60, f"node {i} has no route to pods of another one:", learned(i, family))
    _comes_to(bed, service, bed.agents)


def _notes(bed):
    return {i: peering(bed.plan, i, bfd=True) for i in bed.agents}


def _ways(service, family):
    """Through which nodes the router outside sends what is for the Service."""
    return at_router(family, f"{service.address(family)}/{PREFIX[family]}")


def _comes_to(bed, service, nodes, seconds=60):
    for f, family in enumerate(FAMILIES):
        wanted = sorted(bed.plan.addresses(i)[f] for i in nodes)
        expect.soon(lambda: _ways(service, family) == wanted, seconds, "the router outside sends to", _ways(service, family), "and not to", wanted)


@contextlib.contextmanager
def _flowing(service, number=FLOWS):
    """Packets from outside, of so many flows of each family; behind it, what became of them."""
    stream = packets.Stream("ext", [(service.address(family), 53) for family in FAMILIES] * number, pause=len(FAMILIES) * number / RATE)
    outcome = {}
    try:
        yield outcome
    finally:
        outcome.update(stream.stop())


@contextlib.contextmanager
def _new_connections(service):
    """New connections of TCP from outside, one after the other: when the router outside moves its flows, as a node leaves and when it comes back, one may be under way, which is
    reset then. The streams of datagrams beside them tell of packets that are lost."""
    running = {family: traffic.Load("ext", service.address(family), 80, lasting=0, pause=0.5) for family in FAMILIES}
    outcomes = {}
    try:
        yield
    finally:
        outcomes.update({family: load.stop() for family, load in running.items()})
    for family, outcome in outcomes.items():
        print(f"       {outcome['fresh']} new connections over IPv{family}, {outcome['failed']} failed: {outcome['errors']}", flush=True)
        expect.that(outcome["failed"] <= 2 and set(outcome["errors"]) <= {"ECONNRESET"} and outcome["fresh"] > 10, f"connections over IPv{family}:", outcome)


def _silence(outcome):
    """Seconds from the first to the last packet that was lost."""
    times = [float(one.split(" after ")[1].split()[0]) for one in outcome["which"]]
    return max(times, default=0) - min(times, default=0)


def _all_are_answered(service):
    for family in FAMILIES:
        expect.many("ext", service.address(family), 80)


def _without_mesh(bed):
    """Rules of nft that keep sessions of BGP from node 3 and the others, and leave it the router outside."""
    rules = [f"add rule inet no_mesh input {ip} saddr {bed.plan.addresses(i)[f]} tcp {port} 179 drop"
             for f, ip in enumerate(("ip", "ip6")) for i in (1, 2) for port in ("sport", "dport")]
    return "\n".join(["add table inet no_mesh", "add chain inet no_mesh input { type filter hook input priority 0; }", *rules]) + "\n"


def a_link_that_is_cut_is_noticed_by_bfd_and_packets_from_outside_take_other_nodes(bed):
    with _outside(bed) as service:
        last = time.monotonic() + AGAIN
        while failure := _failure_of_a_cut(bed, service, time.monotonic() < last):
            print(f"the link is cut once more: {failure}", flush=True)
            _settled(bed, service)
        for family in FAMILIES:
            who, _ = traffic.ask("n1p1", expect.pod("n3p1", family), objects.TARGET)
            expect.that(who == "n3p1", "answered by", who)


def _failure_of_a_cut(bed, service, may_be_excused):
    """Cuts the link of node 3 and joins it. What did not hold is an error, but where it may be excused and connections that pass nothing of ours were late for longer than
    `STANDSTILL`: the emulator stood still, sessions of nodes whose links are whole end then, and what is lost says nothing. Then it is returned."""
    failure = None
    with expect.clock() as still:
        try:
            with expect.stream({"n1p1": ["n2p1"]}):
                _link_is_cut(bed, service)
                _link_comes_back(bed, service)
        except AssertionError as error:
            failure = error
        finally:
            net.ip("fabric", "link set n3-near up")
    longest = max((seconds for _, seconds in still), default=0)
    if failure and not (may_be_excused and longest > STANDSTILL):
        raise failure
    return failure and f"beside it others were late for {longest:.1f} s, and {failure}"


def _link_is_cut(bed, service):
    """Cuts the link of node 3, which stays so: the others notice it, and packets from outside take their way by them."""
    ranges = bed.plan.pod_ranges(3)
    with _flowing(service) as outcome:
        time.sleep(2)
        net.ip("fabric", "link set n3-near down")
        cut = time.monotonic()
        own.wait(lambda: not any(ranges[f] in learned(1, family) for f, family in enumerate(FAMILIES)), SWITCHED, 0.02)
        noticed = time.monotonic() - cut
        _comes_to(bed, service, [1, 2], SWITCHED)
        switched = time.monotonic() - cut
        time.sleep(1)
    print(f"the link was cut: node 1 has no route to the pods behind it after {noticed:.1f} s, the router outside none to the node after"
          f" {switched:.1f} s; {outcome['lost']} of {outcome['sent']} packets from outside were lost, within {_silence(outcome):.1f} s", flush=True)
    expect.that(noticed < SWITCHED, f"node 1 has a route to the pods behind the cut after {noticed:.1f} s")
    expect.that(_silence(outcome) < SWITCHED, "packets were lost for long:", outcome)
    _all_are_answered(service)


def _link_comes_back(bed, service):
    """The router outside is the first one to have a session with node 3 again, and the endpoints are on the other nodes: no packet from outside is lost."""
    ranges = bed.plan.pod_ranges(3)
    with _flowing(service, MANY_FLOWS) as outcome:
        net.node(3, "nft", "-f", "-", text_in=_without_mesh(bed))
        try:
            net.ip("fabric", "link set n3-near up")
            expect.soon(lambda: all(at_router(family, ranges[f]) for f, family in enumerate(FAMILIES)), 60, "the router outside has no session with node 3 again")
            held = _ways(service, "4")
        finally:
            net.node(3, "nft", "delete table inet no_mesh")
        expect.that(bed.plan.addresses(3)[0] not in held, "the router outside sends to node 3 before that has the routes of other nodes:", held)
        for f, family in enumerate(FAMILIES):
            expect.soon(lambda: ranges[f] in learned(1, family), 60, "the link is there again, and the route is not:", learned(1, family))
        _comes_to(bed, service, bed.agents)
        time.sleep(1)
    print(f"the link came back: {outcome['lost']} of {outcome['sent']} packets from outside were lost", flush=True)
    expect.that(outcome["lost"] == 0 and not outcome["errors"] and outcome["sent"] > 100, "packets from outside when the link came back:", outcome)


def _sessions_ended(bed, i):
    """How many sessions of BGP the agent of node i has lost since its start. Its exit status is for scripts."""
    said = net.node(i, "sh", "-c", f"{bed.binary} bgp peers -o json --socket={net.RUN}/n{i}/sluice.sock || true")
    return [neighbour["sessionsEnded"] for neighbour in json.loads(said)["neighbours"]]


@expect.whole
def a_drained_node_loses_no_packet_from_outside_and_keeps_its_sessions(bed):
    _drained_without_loss(bed, lambda node: node["metadata"]["labels"].update({LABEL: ""}))


@expect.whole
def a_node_with_a_taint_that_a_flag_names_loses_no_packet_from_outside_and_keeps_its_sessions(bed):
    _drained_without_loss(bed, lambda node: node["spec"].update(taints=[{"key": TAINT, "effect": "NoSchedule"}]))


@expect.whole
def a_node_whose_host_shuts_down_loses_no_packet_from_outside_and_keeps_its_sessions(bed):
    """As long as it still runs; then the shutdown is cancelled."""
    condition = {"type": "Ready", "status": "False", "reason": "KubeletNotReady", "message": "node is shutting down"}
    _drained_without_loss(bed, lambda node: node["status"].update(conditions=[condition]))


def _drained_without_loss(bed, leave):
    """Node 3 is drained by a change of its Node object, and comes back."""
    pods = {family: bed.plan.pod_ranges(3)[f] for f, family in enumerate(FAMILIES)}
    with _outside(bed) as service, expect.held("ext", bed.plan.addresses(3)[0], NODE_PORT) as held, _new_connections(service):
        before = {family: by_node_3(service, family) for family in FAMILIES}
        ended = _sessions_ended(bed, 3)
        with _flowing(service, MANY_FLOWS) as outcome:
            for family in FAMILIES:
                expect.soon(lambda: by_node_3(service, family) > before[family], 20, f"no flow of IPv{family} goes by node 3")
            bed.source.nodes(bed.plan, annotations=_notes(bed), changes={3: leave})
            began = time.monotonic()
            expect.soon(lambda: _is_leaving(service), DELAY, "the router outside is not told of GRACEFUL_SHUTDOWN first")
            expect.that(all(len(_told(service, family)) == len(bed.agents) for family in FAMILIES), "withdrawn at once")
            _comes_to(bed, service, [1, 2], 30)
            expect.soon(lambda: all(len(_told(service, family)) == 2 for family in FAMILIES), 30, "it is never withdrawn")
            print(f"the addresses were withdrawn {time.monotonic() - began:.1f} s after the Node changed", flush=True)
            for f, family in enumerate(FAMILIES):
                expect.that(at_router(family, pods[family]) == [bed.plan.addresses(3)[f]], "the route to pods of the node is gone")
            expect.go_on(held)
            time.sleep(1)
            bed.source.nodes(bed.plan, annotations=_notes(bed))
            _comes_to(bed, service, bed.agents, 30)
            expect.that(not _is_leaving(service), "the community stays")
            time.sleep(1)
            expect.go_on(held)
        print(f"{outcome['sent']} packets from outside, {outcome['lost']} lost", flush=True)
        expect.that(_sessions_ended(bed, 3) == ended, "sessions have ended:", _sessions_ended(bed, 3), "and before", ended)
        expect.that(outcome["lost"] == 0 and not outcome["errors"] and outcome["sent"] > 100, "packets from outside:", outcome)
        _all_are_answered(service)


@expect.whole
def a_drained_node_says_when_ipvs_has_no_connection_from_outside_any_more(bed):
    with _outside(bed) as service, expect.held("ext", bed.plan.addresses(3)[0], NODE_PORT, count=1) as held:
        since = bed.agents[3].position()
        bed.source.nodes(bed.plan, annotations=_notes(bed), labels={3: {LABEL: ""}})
        _comes_to(bed, service, [1, 2], 30)
        time.sleep(10)
        expect.that(NONE_LEFT not in bed.agents[3].text(since), "there is a connection:", bed.agents[3].text(since)[-1000:])
        for sock, _ in held:
            # By a reset, behind which IPVS remembers the connection for ten seconds, in place of two minutes.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            sock.close()
        expect.logged(bed, 3, since, NONE_LEFT, seconds=60)


def _told(service, family):
    """The nodes from which BIRD has the Service's address."""
    said = birdc("show", "route", "for", service.address(family), "all")
    return [line for line in said.splitlines() if "BGP.next_hop" in line]


def _is_leaving(service):
    return any("(65535,0)" in birdc("show", "route", "for", service.address(family), "all") for family in FAMILIES)
