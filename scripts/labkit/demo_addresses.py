"""Addresses for Services of type LoadBalancer: given, served, announced to the router outside, and healthy where local pods are."""
import json

from . import net, own
from .demo_outside import PREFIX, asked, at_router, eventually
from .demo_report import hold, say, show, title
from .demo_services import healthy
from .objects import Port

HEALTH = 30778
FAMILIES = ("IPv4", "IPv6")


def run(bed):
    title("Addresses for LoadBalancer Services: given, served, announced to the router outside, healthy where local pods are")
    service = bed.put("given", ["n1p1", "n3p1"], kind="LoadBalancer", external_policy="Local", health_port=HEALTH, ports=[Port(80, node_port=30097)])
    say("a Service with externalTrafficPolicy Local, with pods on nodes 1 and 3, and no address in its manifest")
    addresses = on_all_nodes(bed, service.name)
    logged(bed, service.name)
    words = ["svc", f"default/{service.name}"]
    show(f"node 1$ sluice {' '.join(words)}", net.node(1, bed.binary, *words, f"--socket={net.RUN}/n1/sluice.sock"))
    chain(bed, addresses, {1: "n1p1", 3: "n3p1"})
    say("its pods are now on node 2 alone")
    bed.put(service.name, ["n2p1"])
    chain(bed, addresses, {2: "n2p1"})
    hold("it has kept its addresses", balanced(bed, 1, service.name) == addresses, balanced(bed, 1, service.name))
    say("it asks for another address: metallb.io/loadBalancerIPs")
    wanted = ["198.51.100.77", "2001:db8:51::77"]
    bed.put(service.name, ["n2p1"], annotations={"metallb.io/loadBalancerIPs": ",".join(wanted)})
    own.wait(lambda: all(balanced(bed, i, service.name) == wanted for i in bed.agents), 60, 0.3)
    hold("it has the addresses that it asks for", all(balanced(bed, i, service.name) == wanted for i in bed.agents))
    chain(bed, wanted, {2: "n2p1"})
    for family, address in zip("46", addresses):
        eventually(f"the router outside has {address} no more", [], lambda: at_router(family, f"{address}/{PREFIX[family]}"))
    bed.delete(service)
    for family, address in zip("46", wanted):
        eventually(f"and {address} is gone with the Service", [], lambda: at_router(family, f"{address}/{PREFIX[family]}"))


def balanced(bed, i, name):
    """The load balancer addresses that node i serves, IPv4 first."""
    text = net.node(i, bed.binary, "svc", f"default/{name}", f"--socket={net.RUN}/n{i}/sluice.sock", "-o", "json")
    services = json.loads(text)["services"]
    places = services[0]["addresses"] if services else []
    found = {place["address"] for place in places if place["field"] == "loadBalancer"}
    return sorted(found, key=lambda address: (":" in address, address))


def on_all_nodes(bed, name):
    def told():
        return [balanced(bed, i, name) for i in bed.agents]

    def agree(found):
        return all(len(addresses) == 2 and addresses == found[0] for addresses in found)
    own.wait(lambda: agree(told()), 60, 0.3)
    found = told()
    hold("an address of each family is given, and all nodes know the same", agree(found), found)
    say(f"all nodes serve {' and '.join(found[0])}")
    return found[0]


def logged(bed, name):
    """What the log says of it: with an API server that of the one agent that gives addresses."""
    lines = {i: [line for line in agent.text().splitlines() if "oad balancer address given" in line and f"default/{name}" in line]
             for i, agent in bed.agents.items()}
    i = min((i for i in lines if lines[i]), default=1)
    show(f"node {i}$ grep 'oad balancer address given' agent.log", "\n".join(lines[i]))
    hold("the log says which address is given, and of which pool", any("of pool default" in line for line in lines[i]), lines)


def chain(bed, addresses, pods):
    """Announced by the nodes with local pods alone, answered by these pods, which see the client, and healthy there alone. `pods`: by node."""
    for f, (family, address) in enumerate(zip("46", addresses)):
        eventually(f"the router outside has {address} from node{'s' if len(pods) > 1 else ''} {' and '.join(map(str, pods))} alone",
                   sorted(bed.plan.addresses(i)[f] for i in pods), lambda: at_router(family, f"{address}/{PREFIX[family]}"))
        wanted = {(pod, net.CLIENT[f]) for pod in pods.values()}
        own.wait(lambda: asked("ext", address, 80) in wanted, 30, 0.2)
        found = asked("ext", address, 80)
        hold(f"{FAMILIES[f]}: the client outside is answered at {address} by a local pod, which sees its own address", found in wanted, found)
    for i in bed.agents:
        node, health = bed.plan.addresses(i)[0], (200, 1) if i in pods else (503, 0)
        own.wait(lambda: healthy(node, HEALTH) == health, 30, 0.2)
        found = healthy(node, HEALTH)
        print(f"  http://{node}:{HEALTH} (node {i}) -> {found}", flush=True)
        hold(f"the health check of node {i} answers {health[0]}", found == health, found)
