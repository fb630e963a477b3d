"""trafficDistribution: endpoints near the client, by the hints of the control plane. Node 1 is in zone-a, nodes 2 and 3 are in zone-b."""
import expect
from expect import PODS
from labkit import objects, traffic

ZONE = "topology.kubernetes.io/zone"


def _serves(client, s, pods):
    """Each family of the Service, until nobody else answers."""
    for family in s.families:
        answered = lambda: set(traffic.many(client, s.address(family), 80, count=6)["answers"])  # noqa: E731
        expect.soon(lambda: answered() == set(pods), 30, f"{client} over IPv{family} is not served by {pods}")


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
    with expect.service(bed, "moved-zone", near="Zone", settle=False) as s:
        _serves("n2p2", s, ["n2p1", "n3p1"])
        with expect.held("n2p2", s.address(), 80) as by_four, expect.held("n2p2", s.address("6"), 80) as by_six:
            _label(bed, 2, "zone-a")
            try:
                _serves("n2p2", s, ["n1p1"])
                _serves("n1p2", s, ["n1p1"])
                expect.go_on([*by_four, *by_six])
            finally:
                _label(bed, 2, "zone-b")
            _serves("n2p2", s, ["n2p1", "n3p1"])
            expect.go_on([*by_four, *by_six])


# An API server's controller gives the pods of that node other hints as soon as it has a reason to look at the Service: then a second pod is right.
a_zone_label_that_changes_is_followed_and_connections_stay.bed = "manifests"


def _label(bed, i, zone):
    """Moves a Node to a zone; the hints of its pods stay."""
    items = [objects.node(bed.plan, n) for n in bed.agents]
    items[i - 1]["metadata"]["labels"][ZONE] = zone
    bed.source.write("nodes", items)
