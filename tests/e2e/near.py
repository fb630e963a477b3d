"""trafficDistribution: endpoints near the client, by the hints of the control plane. Node 1 is in zone-a, nodes 2 and 3 are in zone-b."""
import contextlib
import time

import expect
from expect import PODS
from labkit import traffic

ZONE = "topology.kubernetes.io/zone"


def _serves(client, s, pods, perhaps=()):
    """Each family of the Service, until all of these answer, and nobody but those that may."""
    for family in s.families:
        answered = lambda: set(traffic.many(client, s.address(family), 80, count=6)["answers"])  # noqa: E731
        expect.soon(lambda: set(pods) <= answered() <= {*pods, *perhaps}, 30, f"{client} over IPv{family} is not served by {pods}")


def clients_are_served_from_their_own_zone(bed):
    with expect.service(bed, "zoned", near="Zone", settle=False) as s:
        _serves("n1p2", s, ["n1p1"])
        _serves("n2p2", s, ["n2p1", "n3p1"])
        # Nobody is left in zone-a: the hints are written anew, or do not count.
        bed.put(s.name, PODS[1:])
        _serves("n1p2", s, ["n2p1", "n3p1"])
        bed.put(s.name, PODS)
        _serves("n1p2", s, ["n1p1"])


def clients_are_served_from_their_own_node_and_without_an_endpoint_there_from_their_zone(bed):
    with expect.service(bed, "noded", near="Node", settle=False) as s:
        for client, pod in (("n1p2", "n1p1"), ("n2p2", "n2p1"), ("n3p2", "n3p1")):
            _serves(client, s, [pod])
        bed.put(s.name, PODS[:2])
        _serves("n3p2", s, ["n2p1"])
        _serves("n1p2", s, ["n1p1"])


def a_zone_label_that_changes_is_followed_and_connections_stay(bed):
    # An API server's controller gives the pod of that node the hint of the new zone as soon as it has a reason to look at the Service.
    perhaps = ["n2p1"] if bed.source.name == "api" else []
    with expect.service(bed, "moved-zone", near="Zone", settle=False) as s:
        _serves("n2p2", s, ["n2p1", "n3p1"])
        with contextlib.ExitStack() as stack:
            held = [one for family in s.families for one in stack.enter_context(expect.held("n2p2", s.address(family), 80))]
            _label(bed, 2, "zone-a")
            try:
                _serves("n2p2", s, ["n1p1"], perhaps)
                _serves("n1p2", s, ["n1p1"], perhaps)
                expect.go_on(held)
            finally:
                _label(bed, 2, "zone-b")
            # A change of the Service, where that pod may have the hint of the zone that was: else the controller has no reason to look at it. It watches
            # Nodes apart, so the first change may come before the label does.
            for turn in range(3):
                bed.put(s.name, PODS, annotations={"lab/moved": f"back-{turn}"})
                time.sleep(1)
            _serves("n2p2", s, ["n2p1", "n3p1"])
            expect.go_on(held)


def _label(bed, i, zone):
    """Moves a Node to a zone; with manifests the hints of its pods stay."""
    bed.source.nodes(bed.plan, labels={i: {ZONE: zone}})
