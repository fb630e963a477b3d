"""What agents write into their own Nodes at a real API server, and others read: the addresses that they find, and their public keys."""
import base64
import contextlib

import expect
from expect import FAMILIES
from labkit import own
from router import everyone, learned, sizes

ADDRESS, KEY = "kube-router.io/node-address", "kube-router.io/wireguard-public-key"
OF_NODES = "--node-ip-autodetect=cidr=192.0.2.0/24,2001:db8:2::/48"


@contextlib.contextmanager
def _agents_with(bed, *flags):
    for agent in bed.agents.values():
        agent.stop()
    for i, agent in bed.agents.items():
        agent.extra = [*bed.flags_of(i), *flags]
        agent.start()
    try:
        yield
    finally:
        bed.restore()


def _written(bed, key):
    """{number of a node: value of an annotation of its Node}."""
    def of(i):
        return bed.source.api.get(f"/api/v1/nodes/node{i}")["metadata"].get("annotations", {}).get(key)
    return {i: of(i) for i in bed.agents}


def _goes(bed, key):
    expect.soon(lambda: not any(_written(bed, key).values()), 60, "the annotation stays without the flag:", _written(bed, key))


@expect.whole
def each_agent_writes_the_addresses_that_it_finds_and_others_route_to_them(bed):
    with _agents_with(bed, OF_NODES):
        wanted = {i: set(bed.plan.addresses(i)) for i in bed.agents}
        expect.soon(lambda: {i: set((text or "").split(",")) for i, text in _written(bed, ADDRESS).items()} == wanted, 60,
                    "Nodes have", _written(bed, ADDRESS), "and not", wanted)
        bed.ready()
        everyone(bed, sizes=sizes("subnet"))
        for i in bed.agents:
            for family in FAMILIES:
                expect.that(len(learned(i, family)) == 2, f"node {i} has", learned(i, family))
    _goes(bed, ADDRESS)


@expect.whole
def each_agent_writes_its_public_key_and_pods_reach_each_other_encrypted(bed):
    with _agents_with(bed, "--overlay-encap=wireguard"):
        expect.soon(lambda: all(_written(bed, KEY).values()), 60, "an agent has not written its key:", _written(bed, KEY))
        keys = _written(bed, KEY)
        expect.that(len(set(keys.values())) == len(keys), "two nodes have one key:", keys)
        expect.that(all(len(base64.b64decode(key)) == 32 for key in keys.values()), "these are no keys:", keys)
        bed.ready()
        for i in bed.agents:
            said = own.run("/sbin/ip", "-n", f"n{i}", "-d", "link", "show", "sluice-wg0")
            expect.that("wireguard" in said, f"node {i} has no device of WireGuard:", said)
        everyone(bed, sizes=sizes("wireguard"))
    _goes(bed, KEY)
