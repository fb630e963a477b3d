"""What users of Services ask for beside being served: a pod that reaches itself, clients by address, and what the agent says of it."""
import http.client
import json

from . import net, own, traffic
from .demo_report import hold, say, show, title
from .objects import Port

ALL = ["n1p1", "n2p1", "n3p1"]
BALANCER = ("198.51.100.30", "2001:db8:51::30")
FAMILIES = ("IPv4", "IPv6")


def run(bed):
    itself(bed)
    clients(bed)
    near(bed)
    watched(bed)
    asked(bed)


def itself(bed):
    title("A pod that is the only endpoint of a Service connects to that Service")
    service = bed.put("itself", ["n1p1"])
    bed.settle(service)
    for family, name in zip("46", FAMILIES):
        outcome = traffic.many("n1p1", service.address(family), 80, count=3)
        print(f"  n1p1 -> {service.address(family)}: answered by " + ", ".join(outcome["answers"]), flush=True)
        hold(f"a pod reaches itself through its own Service, {name}", outcome["answers"] == {"n1p1": 3} and not outcome["failed"], outcome)
    bed.delete(service)


def clients(bed):
    title("loadBalancerSourceRanges: the client outside may come, and then may not")
    own_address = [f"{address}/{length}" for address, length in zip(net.CLIENT, (32, 128))]
    service = bed.put("clients", ALL, kind="LoadBalancer", balancer_ips=list(BALANCER), source_ranges=own_address, ports=[Port(80, node_port=30095)])
    bed.settle(service)
    wanted_of = {"with the client's address in spec.loadBalancerSourceRanges": True, "with a range of others there": False}
    for what, wanted in wanted_of.items():
        if not wanted:
            bed.put(service.name, ALL, source_ranges=["192.0.2.128/25", "2001:db8:2::8000/113"])
        for address, name in zip(BALANCER, FAMILIES):
            own.wait(lambda: reaches("ext", address) == wanted, 30, 0.2)
            found = {client: reaches(client, address) for client in ("ext", "n1p2")}
            print(f"  {name}, {what}: " + ", ".join(f"{client} {'answered' if answered else 'dropped'}" for client, answered in found.items()), flush=True)
            hold(f"load balancer address, {name}: the client outside is {'let in' if wanted else 'dropped'} {what}, a pod is not in it",
                 found == {"ext": wanted, "n1p2": False}, found)
    bed.delete(service)


def near(bed):
    title("trafficDistribution PreferSameZone: node 1 is zone-a, nodes 2 and 3 are zone-b")
    service = bed.put("near", ALL, near="Zone")
    for family, name in zip("46", FAMILIES):
        for client, wanted in (("n1p2", {"n1p1"}), ("n2p2", {"n2p1", "n3p1"})):
            answered = lambda: set(traffic.many(client, service.address(family), 80, count=6)["answers"])  # noqa: E731
            own.wait(lambda: answered() == wanted, 30, 0.2)
            found = answered()
            print(f"  {name}: {client} is answered by {', '.join(sorted(found))}", flush=True)
            hold(f"{client} is served from its own zone, {name}", found == wanted, found)
    bed.delete(service)


def watched(bed):
    title("healthCheckNodePort: which node has an endpoint of a Service with externalTrafficPolicy Local")
    service = bed.put("watched", ["n1p1"], kind="LoadBalancer", balancer_ips=list(BALANCER), external_policy="Local", health_port=30777,
                      ports=[Port(80, node_port=30096)])
    for i, wanted in ((1, (200, 1)), (2, (503, 0))):
        for address in bed.plan.addresses(i):
            own.wait(lambda: healthy(address) == wanted, 30, 0.2)
            found = healthy(address)
            print(f"  http://{f'[{address}]' if ':' in address else address}:30777 -> {found}", flush=True)
            hold(f"the health check port of node {i} at {address} answers {wanted[0]} with {wanted[1]} local endpoints", found == wanted, found)
    bed.delete(service)


def healthy(address, port=30777):
    """(HTTP status, local endpoints) of a node's health check port, seen from outside."""
    try:
        with net.Inside("ext"):
            connection = http.client.HTTPConnection(address, port, timeout=2)
            connection.request("GET", "/healthz")
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())["localEndpoints"]
    except (OSError, ValueError, KeyError) as error:
        return str(error)


def asked(bed):
    title("sluice svc: what a Service has on a node")
    service = bed.put("asked", ALL)
    bed.settle(service)
    words = ["svc", f"default/{service.name}", f"--socket={net.RUN}/n1/sluice.sock"]
    text = net.node(1, bed.binary, *words)
    show(f"node 1$ sluice svc default/{service.name}", text)
    answer = json.loads(net.node(1, bed.binary, *words, "-o", "json"))
    states = [place["virtualService"]["kernel"] for place in answer["services"][0]["addresses"]]
    hold("`sluice svc` reads the Service of both families in the kernel", states == ["inPlace", "inPlace"], states)
    net.node(1, "ipvsadm", "-D", "-t", f"{service.address()}:80")
    say("deleted its IPv4 virtual service with ipvsadm")
    text = net.node(1, bed.binary, *words)
    if "missing in the kernel" in text:
        show(f"node 1$ sluice svc default/{service.name} | grep missing", "\n".join(line for line in text.splitlines() if "missing in the kernel" in line))
    hold("the agent puts it back by itself", own.wait(lambda: net.node(1, bed.binary, *words).count("in place") == 2, 30, 0.2))
    bed.delete(service)


def reaches(client, address):
    try:
        return traffic.ask(client, address, 80, patience=1.5) is not None
    except OSError:
        return False
