"""What the tests of the router say about pods, routes and tunnels."""
import itertools
import json
import os
import re

import expect
from expect import FAMILIES
from labkit import kernel, net, objects, own, packets, traffic

OVERLAY = {"none": ["--enable-overlay=false"], "subnet": [], "full": ["--overlay-type=full"], "fou": ["--overlay-encap=fou"], "vxlan": ["--overlay-encap=vxlan"],
           "wireguard": ["--overlay-encap=wireguard"],
           **{f"{kind}, full": [f"--overlay-encap={kind}", "--overlay-type=full"] for kind in ("fou", "vxlan", "wireguard")}}
# What an encapsulation adds to a packet, outside of IPv4 and of IPv6.
ADDED = {"none": (0, 0), "ipip": (20, 40), "fou": (32, 52), "vxlan": (50, 70), "wireguard": (60, 80)}


def is_full(overlay):
    return overlay.endswith("full")


def sizes(overlay, families="46"):
    """The largest packet by family on a way through a tunnel of this overlay, between nodes of these families."""
    kind = overlay.split(",")[0]
    added = dict(zip("46", ADDED[kind if kind in ADDED else "ipip"]))
    # Where every packet takes a tunnel pods have one MTU for both families, and the one device of WireGuard has one in any case.
    shared = max(added[f] for f in families) if is_full(overlay) or kind == "wireguard" else 0
    return {f: 1500 - max(added[f], shared) for f in families}


def everyone(bed, families=FAMILIES, numbers=None, sizes=None, everywhere=False):
    """All pods of all nodes reach each other and are seen with their own addresses, with packets of every size.

    `sizes` is what the largest packet shall have on a way that leaves its subnet, or `everywhere`, by family.
    """
    pods = [f"n{i}p1" for i in numbers or bed.agents]
    for pod, family in itertools.product(pods, families):
        # What a pod has once heard of a way it believes for minutes.
        own.run("/sbin/ip", "-n", pod, f"-{family}", "route", "flush", "cache")
    for client, server in itertools.permutations(pods, 2):
        for family in families:
            address, where = expect.pod(server, family), f"{client} to {server} by IPv{family}:"
            who, seen = traffic.ask(client, address, objects.TARGET)
            expect.that((who, seen) == (server, expect.pod(client, family)), where, "answered by", who, "which saw", seen)
            packets.bulk(client, address, objects.TARGET)
            largest = packets.largest(client, address, objects.TARGET)
            leaves = bed.plan.far(net.node_of(client)) != bed.plan.far(net.node_of(server))
            wanted = sizes[family] if sizes and (leaves or everywhere or bed.plan.subnets == 1) else 1500
            expect.that(largest == wanted, where, f"the largest packet has {largest} bytes, not {wanted}")


def run_with(bed, *flags, families="46", numbers=None, attach=False):
    """Agents with these flags and Nodes of these families, until all of them say that they are done."""
    for agent in bed.agents.values():
        agent.stop()
    bed.source.nodes(bed.plan, numbers, families)
    for i in numbers or bed.agents:
        bed.agents[i].extra, bed.agents[i].families = [*bed.flags, *flags], families
        bed.agents[i].start()
    bed.ready(*(numbers or bed.agents))
    if attach:
        reattach(bed)


def run_overlay(bed, overlay, families="46"):
    """The same with one of `OVERLAY`."""
    if "wireguard" in overlay:
        run_encrypted(bed, *OVERLAY[overlay][1:], families=families)
    else:
        run_with(bed, *OVERLAY[overlay], families=families)


def run_encrypted(bed, *flags, families="46"):
    """The same with `--overlay-encap=wireguard`: each agent says its key, and who writes the Nodes puts it there."""
    for agent in bed.agents.values():
        agent.stop()
    bed.source.nodes(bed.plan, families=families)
    since = {i: agent.position() for i, agent in bed.agents.items()}
    for agent in bed.agents.values():
        agent.extra, agent.families = [*bed.flags, *OVERLAY["wireguard"], *flags], families
        agent.start()
    expect.soon(lambda: all(encryption_keys(bed, since).values()), 60, "an agent has not said its key")
    notes = {i: {"kube-router.io/wireguard-public-key": key} for i, key in encryption_keys(bed, since).items()}
    bed.source.nodes(bed.plan, families=families, annotations=notes)
    # An agent that has not yet read them is ready, and its note names the keys that are missing: to these nodes nothing is sent.
    judged = ("Routes to pods of other nodes programmed", "pods of other nodes cannot be reached")
    has_all = lambda i: any(word in bed.agents[i].text(since[i]) for word in judged) and "wireguard-public-key" not in str(kernel.http_get(i, "/readyz"))  # noqa: E731
    expect.soon(lambda: all(has_all(i) for i in bed.agents), 60, "an agent lacks keys")
    bed.ready()


def encryption_keys(bed, since):
    found = {i: re.findall(r"Public key of this node for WireGuard.*?key=\"?([A-Za-z0-9+/]{43}=)", agent.text(since[i])) for i, agent in bed.agents.items()}
    return {i: keys[-1] if keys else None for i, keys in found.items()}


def reattach(bed):
    """The pods anew, so that they have what the CNI file says now."""
    bed.detach()
    for i in bed.agents:
        bed.attach(i)
    bed.serve()


def learned(i, family="4"):
    """The learned routes of node i: {prefix: route, as `ip -j` shows it}."""
    return {route["dst"]: route for route in show(i, family, "route", "show", "proto", "17")}


def show(i, family, *words):
    return json.loads(own.run("/sbin/ip", "-n", f"n{i}", f"-{family}", "-j", "-d", *words) or "[]")


def tunnels(i):
    """{name: what `ip -d` says of it, with its number in the kernel} of the tunnels of node i that are ours."""
    return {link["ifname"]: (link["ifindex"], link["mtu"], link["linkinfo"])
            for link in show(i, "0", "link", "show") if link["ifname"].startswith("tun-") and link["ifname"] != "tun-foreign"}


def everything(i):
    """A snapshot, with the numbers of devices, by which a device that was made anew is seen."""
    numbers = [f"{link['ifindex']} {link['ifname']}" for link in show(i, "0", "link", "show")]
    return {**kernel.snapshot(i), "devices": sorted(numbers), "fou": receive_ports(i)}


def receive_ports(i):
    """The ports of node i that receive packets of tunnels inside UDP."""
    return net.node(i, "ip", "fou", "show").splitlines() if os.path.exists("/sys/module/fou") else []


def known_way(bed, verb):
    """The network's own routes to pods: by the router between the subnets."""
    for i in bed.agents:
        gateway = net.FAR_ROUTER if bed.plan.far(i) else net.ROUTER
        net.ip(f"n{i}", *[f"route {verb} {r} via {gateway[f]} proto static" for f, r in enumerate(net.POD_RANGES)])
        net.ip("rtr", *[f"route {verb} {r} via {bed.plan.addresses(i)[f]}" for f, r in enumerate(bed.plan.pod_ranges(i))])
