"""New connections in a second through the proxy, beside IPVS that somebody has set up by hand, and beside no proxy at all.

Two nodes in one kernel, with two pods each. On the first one runs the product, and serves all Services of the size; on the second one there is one virtual
service for the same ports, made with ipvsadm, its address on a local route, and the settings of IPVS that the product has made. The ways take
turns; what stands there is the median.
"""
import json
import os
import statistics
import subprocess

from . import net, own, traffic
from .bench import FLAGS, Agent
from .bench_objects import NAMESPACE

ADDRESS, BY_HAND = "10.96.0.200", "10.96.0.201"
PORTS = {"connections": 8080, "bytes": 9090}  # those of the program between the pods
TURNS, SECONDS = 7, 1.0
SETTINGS = "/proc/sys/net/ipv4/vs"


def objects():
    meta = {"namespace": NAMESPACE, "creationTimestamp": "2026-01-01T00:00:00Z"}
    ports = [{"name": name, "protocol": "TCP", "port": port} for name, port in PORTS.items()]
    service = {"apiVersion": "v1", "kind": "Service", "metadata": {**meta, "name": "connections"}, "spec": {
        "type": "ClusterIP", "clusterIP": ADDRESS, "clusterIPs": [ADDRESS], "ipFamilies": ["IPv4"], "ipFamilyPolicy": "SingleStack",
        "ports": [{**port, "targetPort": port["port"]} for port in ports]}}
    slices = {"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
              "metadata": {**meta, "name": "connections-a", "labels": {"kubernetes.io/service-name": "connections"}}, "ports": ports,
              "endpoints": [{"addresses": [net.pod_addresses("n1p2")[0]], "nodeName": "node1", "conditions": {"ready": True}}]}
    return [service, slices]


def by_hand():
    """On the second node."""
    pod = net.pod_addresses("n2p2")[0]
    net.ip("n2", "link add kube-dummy-if type dummy", "link set kube-dummy-if up",
           f"route add local {BY_HAND} dev kube-dummy-if table local proto kernel scope host")
    lines = [line for port in PORTS.values() for line in (f"-A -t {BY_HAND}:{port} -s rr", f"-a -t {BY_HAND}:{port} -r {pod}:{port} -m -w 1")]
    with net.Inside("n1"):
        settings = {name: setting(name) for name in os.listdir(SETTINGS)}
    net.node(2, "ipvsadm", "-R", text_in="\n".join(lines) + "\n")
    with net.Inside("n2"):
        for name, value in settings.items():
            if setting(name) != value:
                with open(f"{SETTINGS}/{name}", "w") as handle:
                    handle.write(value)


def setting(name):
    try:
        with open(f"{SETTINGS}/{name}") as handle:
            return handle.read()
    except OSError:
        return None  # one that can only be written


def connections(plan, source, say):
    source.apply("connections", objects())
    try:
        with Agent(plan["binary"], source.flags, flags=FLAGS) as agent:
            agent.synced()
            by_hand()
            servers = [subprocess.Popen(inside(f"n{node}p2", plan, "serve")) for node in (1, 2)]
            try:
                measure(plan, say)
            finally:
                for server in servers:
                    server.kill()
                    server.wait()
    finally:
        source.withdraw("connections")


def measure(plan, say):
    ways = {"the proxy": ("n1p1", ADDRESS), "IPVS by hand": ("n2p1", BY_HAND),
            "the pod itself, node of the proxy": ("n1p1", net.pod_addresses("n1p2")[0]),
            "the pod itself, node by hand": ("n2p1", net.pod_addresses("n2p2")[0])}
    for client, address in ways.values():
        for port in PORTS.values():
            if not own.wait(lambda: opens(client, address, port), 30, 0.2):
                raise own.LabError(f"nobody answers {client} at {address}:{port}")
    taken = {way: [] for way in ways}
    for turn in range(TURNS + 1):
        for way, (client, address) in ways.items():
            found = json.loads(own.run(*inside(client, plan, "measure", address, str(SECONDS))))
            if turn:  # the first one is for the caches
                taken[way].append(found)
    middle = {way: {what: statistics.median(one[what] for one in found) for what in PORTS} for way, found in taken.items()}
    by, through = middle["IPVS by hand"], middle["the proxy"]
    say("connections a second", f"{through['connections']:,.0f} through the proxy, {by['connections']:,.0f} through IPVS by hand: {through['connections'] / by['connections']:.2f} "
                                f"({least_and_most(taken)})")
    say("  one connection, MB/s", f"{through['bytes'] / 1e6:,.0f} through the proxy, {by['bytes'] / 1e6:,.0f} through IPVS by hand: {through['bytes'] / by['bytes']:.2f}")
    for way in list(ways)[2:]:
        say("", f"{way}: {middle[way]['connections']:,.0f} connections a second, {middle[way]['bytes'] / 1e6:,.0f} MB/s")


def least_and_most(taken):
    """Of each turn's ratio: how far the figure can be trusted."""
    ratios = sorted(ours["connections"] / theirs["connections"] for ours, theirs in zip(taken["the proxy"], taken["IPVS by hand"]))
    return f"{ratios[0]:.2f} to {ratios[-1]:.2f} in {TURNS} turns"


def opens(client, address, port):
    with net.Inside(client):
        try:
            traffic.connect(address, port, patience=1.0).close()
            return True
        except OSError:
            return False


def inside(pod, plan, *words):
    return ["nsenter", f"--net=/run/netns/{pod}", "--", plan["packets"], *words]
