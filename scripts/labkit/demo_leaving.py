"""Nodes that leave: one whose link is cut, which BFD notices, and one that is drained, which the router outside is told before."""
import time

from . import net, own, packets, traffic
from .demo_outside import BIRD, PREFIX, at_router, birdc, configure, eventually
from .demo_report import hold, say, show, title
from .objects import Port

LABEL = "node.kubernetes.io/exclude-from-external-load-balancers"
INTERVAL, MISSED = 500, 3  # milliseconds between packets of BFD, and how many may be missing
DELAY = 5  # seconds of --drain-delay
SOON = 15  # seconds, many times those of BFD: the nodes live in an emulator
FLOWS = 32  # of each family: a router spreads them over three nodes by hash, and of 8 none goes by a certain one once in 26 times


def run(bed, peering, write_bird):
    """`peering(i, bfd)`: the annotations by which node i finds the router outside; `write_bird(bfd)`: writes the router's configuration."""
    title("A link is cut, and a node is drained, with packets from outside all the time")
    pods = ["n1p1", "n2p1"]
    service = bed.put("edge", pods, ports=[Port(80), Port(53, "UDP")])
    bed.settle(service)
    net.sysctl("rtr", net.BY_FLOW)
    of = {family: f"{service.address(family)}/{PREFIX[family]}" for family in "46"}
    on_all = {family: sorted(bed.plan.addresses(i)[f] for i in bed.agents) for f, family in enumerate("46")}
    others = {family: [bed.plan.addresses(i)[f] for i in (1, 2)] for f, family in enumerate("46")}
    watched(bed, of, on_all, peering, write_bird)
    link_is_cut(bed, service, of, on_all, others)
    node_is_drained(bed, service, of, on_all, others, peering)
    bed.delete(service)


def watched(bed, of, on_all, peering, write_bird):
    write_bird(True)
    configure()
    bed.source.nodes(bed.plan, annotations={i: peering(i, True) for i in bed.agents})

    def up():
        return sum("Up" in line for line in birdc("show", "bfd", "sessions").splitlines()[3:])
    eventually(f"BFD watches the ways between the nodes and the router outside: {MISSED} packets of {INTERVAL} ms may be missing",
               len(bed.agents), up)
    show("router$ birdc show bfd sessions", birdc("show", "bfd", "sessions"))
    # The sessions began anew with what was changed.
    for family in "46":
        eventually(f"IPv{family}: the router outside has the Service from all nodes", on_all[family], lambda: at_router(family, of[family]))


def streams(service):
    return {family: packets.Stream("ext", [(service.address(family), 53)] * FLOWS, pause=0.4) for family in "46"}


def by_node_3(service, family):
    """How many packets for the Service node 3 has seen."""
    at = service.address(family) if family == "4" else f"[{service.address(family)}]"
    return int(net.node(3, "ipvsadm", "-Ln", "--stats", "--exact", "-u", f"{at}:53").splitlines()[3].split()[3])


def told(began, all_streams):
    """What became of the packets of both families."""
    outcomes = {family: stream.stop() for family, stream in all_streams.items()}
    for family, o in outcomes.items():
        print(f"  IPv{family}: {o['sent']} packets sent from outside in {time.monotonic() - began:.0f} s, {o['lost']} lost", flush=True)
    return outcomes


def is_answered(service, family):
    outcome = traffic.many("ext", service.address(family), 80, count=12)
    return not outcome["failed"] and sum(outcome["answers"].values()) == 12, outcome


def link_is_cut(bed, service, of, on_all, others):
    say("the link of node 3 is cut")
    running, began = streams(service), time.monotonic()
    time.sleep(1)
    net.ip("fabric", "link set n3-near down")
    cut = time.monotonic()
    own.wait(lambda: all(at_router(family, of[family]) == sorted(others[family]) for family in "46"), SOON, 0.02)
    print(f"  the router outside sends nothing to node 3 any more after {time.monotonic() - cut:.1f} s; without BFD it would after 90 s", flush=True)
    for family in "46":
        found = at_router(family, of[family])
        hold(f"IPv{family}: the router outside has noticed it by BFD", found == sorted(others[family]), found)
        hold(f"IPv{family}: the client outside is answered by way of the other nodes", *is_answered(service, family))
    told(began, running)
    net.ip("fabric", "link set n3-near up")
    for family in "46":
        eventually(f"IPv{family}: the link is there again, and so are the routes", on_all[family], lambda: at_router(family, of[family]))


def node_is_drained(bed, service, of, on_all, others, peering):
    notes = {i: peering(i, True) for i in bed.agents}
    pods = {family: bed.plan.pod_ranges(3)[f] for f, family in enumerate("46")}
    say(f"node 3 gets the label {LABEL}")
    before = {family: by_node_3(service, family) for family in "46"}
    running, began = streams(service), time.monotonic()
    for family in "46":
        eventually(f"IPv{family}: some of the {FLOWS} flows of the client outside go by node 3", True, lambda: by_node_3(service, family) > before[family])
    bed.source.nodes(bed.plan, annotations=notes, labels={3: {LABEL: ""}})
    leaving = "(65535,0)"
    eventually("the router outside is told first that the addresses are about to leave: GRACEFUL_SHUTDOWN", True,
               lambda: leaving in birdc("show", "route", "for", service.address("4"), "all"))
    for family in "46":
        eventually(f"IPv{family}: and then they are withdrawn", sorted(others[family]), lambda: at_router(family, of[family]))
        kept = at_router(family, pods[family])
        hold(f"IPv{family}: the route to the pods of node 3 stays", kept == [bed.plan.addresses(3)["46".index(family)]], kept)
    def status():
        # Its exit status is for scripts.
        return net.node(3, "sh", "-c", f"{bed.binary} status --socket={net.RUN}/n3/sluice.sock || true")
    eventually("`sluice status` says that service addresses are withdrawn", True,
               lambda: "this node drains: service addresses are withdrawn from routers outside" in status())
    show("node 3$ sluice status", status())
    time.sleep(1)
    for family, outcome in told(began, running).items():
        hold(f"IPv{family}: no packet of the client outside was lost by it", outcome["lost"] == 0 and not outcome["errors"] and outcome["sent"] > 50, outcome)
    bed.source.nodes(bed.plan, annotations=notes)
    for family in "46":
        eventually(f"IPv{family}: without the label they are announced again", on_all[family], lambda: at_router(family, of[family]))
        hold(f"IPv{family}: and the client outside is answered", *is_answered(service, family))
