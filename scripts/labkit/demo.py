#!/usr/bin/python3
"""The part of scripts/demo that runs where the nodes are: shows the main job and says at the end what held."""
import json
import os
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.realpath(__file__))))
from labkit import kernel, net, own, traffic  # noqa: E402
from labkit.objects import Port  # noqa: E402
from labkit.testbed import Testbed  # noqa: E402

SCHEDULER = "kube-router.io/service.scheduler"
ALL = ["n1p1", "n2p1", "n3p1"]
EXTERNAL = ("198.51.100.10", "2001:db8:51::10")
BEGAN = time.monotonic()
results = []


def title(text):
    print(f"\n\033[1m{text}\033[0m" if sys.stdout.isatty() else f"\n== {text}", flush=True)


def say(text):
    print(f"  [{time.monotonic() - BEGAN:5.1f} s] {text}", flush=True)


def hold(what, true, why=""):
    """Notes one thing that must hold, and says at once when it does not."""
    results.append((what, bool(true)))
    if not true:
        print(f"  NOT SO: {what}  {why}", flush=True)


def row(source, target, outcome, what, true):
    answers = "  ".join(f"{who} {count}" for who, count in outcome["answers"].items()) or "nobody"
    print(f"  {source:<22} {target:<36} {answers}" + (f"   FAILED {outcome['errors']}" if outcome["failed"] else ""), flush=True)
    hold(what, true and not outcome["failed"], outcome)


def shown(address, port, protocol="tcp"):
    return (f"[{address}]:{port}" if ":" in address else f"{address}:{port}") + ("" if protocol == "tcp" else f" {protocol}")


def services(bed):
    """The Services of the demo, by what they show."""
    web = [Port(80), Port(53, "UDP"), Port(36412, "SCTP")]
    made = {
        "rr": bed.put("round-robin", ALL, ports=web),
        "lc": bed.put("least-connections", ALL, annotations={SCHEDULER: "lc"}),
        "sh": bed.put("source-hash", ALL, annotations={SCHEDULER: "sh"}),
        "dh": bed.put("destination-hash", ALL, annotations={SCHEDULER: "dh"}),
        "affinity": bed.put("affinity", ALL, affinity=600),
        "node-port": bed.put("node-port", ALL, kind="NodePort", ports=[Port(80, node_port=30080)]),
        "external": bed.put("external", ALL, external_ips=list(EXTERNAL)),
    }
    bed.settle()
    return made


def spread(outcome, count):
    """Whether every pod answered equally often."""
    return outcome["answers"] == {pod: count for pod in ALL}


def one(outcome):
    return len(outcome["answers"]) == 1


def from_pods(made):
    title("From a pod on node 1: who answered how often")
    for family, name in (("4", "IPv4"), ("6", "IPv6")):
        for key, count, good, what in (
                ("rr", 30, lambda o: spread(o, 10), "round robin gives every pod the same share"),
                ("lc", 30, lambda o: len(o["answers"]) == 3, "least connections uses all pods"),
                ("sh", 12, one, "source hashing keeps a client on one pod"),
                ("dh", 12, one, "destination hashing keeps an address on one pod"),
                ("affinity", 12, one, "ClientIP affinity keeps a client on one pod")):
            address = made[key].address(family)
            outcome = traffic.many("n1p2", address, 80, count=count)
            row(f"{made[key].name}", shown(address, 80), outcome, f"{name}: {what}", good(outcome))
        for protocol, port in (("udp", 53), ("sctp", 36412)):
            address = made["rr"].address(family)
            outcome = traffic.many("n1p2", address, port, protocol, count=12)
            row("round-robin", shown(address, port, protocol), outcome, f"{name}: round robin over {protocol.upper()}", spread(outcome, 4))


def least_connections(made):
    """With one connection held open at each pod but one, the next must go to the one that has none."""
    address = made["lc"].address()
    with net.Inside("n2p2"):
        held = [traffic.connect(address, 80) for _ in range(3)]
        busy = sorted(traffic.exchange(sock)[0] for sock in held)
        for sock in held:
            sock.close()
    hold("least connections spreads connections that stay open", busy == ALL, busy)


def from_outside(bed, made):
    title("From a client outside the cluster (203.0.113.10, 2001:db8:113::10)")
    for i in range(1, bed.plan.nodes + 1):
        for address in bed.plan.addresses(i):
            outcome = traffic.many("ext", address, 30080, count=9)
            row(f"node-port at node {i}", shown(address, 30080), outcome, f"NodePort at {address} reaches all pods", spread(outcome, 3))
    for address in EXTERNAL:
        outcome = traffic.many("ext", address, 80, count=9)
        row("external", shown(address, 80), outcome, f"external address {address} reaches all pods", spread(outcome, 3))
    try:
        traffic.ask("ext", EXTERNAL[0], 81, patience=3)
        hold("a port that no Service has is refused", False)
    except OSError as error:
        hold("a port that no Service has is refused", traffic.word(error) == "ECONNREFUSED", traffic.word(error))


def under_load(bed, made):
    title("Under load: one endpoint removed, the agent of node 1 killed (-9) and restarted, the endpoint back")
    rr, port = made["rr"], made["node-port"]
    load = {
        "pod -> cluster IP, IPv4": traffic.Load("n1p2", rr.address("4"), 80, pause=0.02),
        "pod -> cluster IP, IPv6": traffic.Load("n1p3", rr.address("6"), 80, pause=0.02),
        "outside -> NodePort, IPv4": traffic.Load("ext", bed.plan.addresses(1)[0], 30080, pause=0.02),
        "outside -> external IP, IPv6": traffic.Load("ext", EXTERNAL[1], 80, pause=0.02),
    }
    time.sleep(2)
    say("removing n3p1 from round-robin and node-port")
    bed.put(rr.name, ALL[:2])
    bed.put(port.name, ALL[:2])
    bed.settle(rr, port)
    say("gone from the kernel of every node; long-lived connections to it go on")
    outcome = traffic.many("n1p2", rr.address(), 80, count=20)
    hold("a removed endpoint gets no new connection", set(outcome["answers"]) == set(ALL[:2]) and not outcome["failed"], outcome)
    time.sleep(1)
    say("kill -9 of the agent of node 1")
    bed.agents[1].kill()
    time.sleep(2)
    say("while it is dead, n3p1 comes back")
    bed.put(rr.name, ALL)
    bed.put(port.name, ALL)
    bed.agents[1].start()
    say("agent started again")
    bed.settle(rr, port)
    say("the kernel of every node has all three again")
    time.sleep(2)
    print(f"  {'':<30}{'new':>7}{'failed':>8}{'long-lived':>12}{'messages':>10}{'broken':>8}{'slowest':>9}", flush=True)
    for name, process in load.items():
        o = process.stop()
        print(f"  {name:<30}{o['fresh']:>7}{o['failed']:>8}{o['lasting']:>12}{o['messages']:>10}{o['broken']:>8}{o['slowest_ms']:>6} ms", flush=True)
        hold(f"no request failed and no connection broke: {name}",
             o["failed"] == 0 and o["broken"] == 0 and o["fresh"] > 20 and o["messages"] > 20, o)


def main(binary, facts):
    title("Three nodes with three pods each, an agent on every node")
    bed = Testbed(binary, facts).up()
    say("nodes, pods and the client outside are there")
    bed.start_agents()
    try:
        made = services(bed)
        say(f"7 Services from {'the API server' if facts else 'manifests'} are in the kernel of every node")
        from_pods(made)
        least_connections(made)
        from_outside(bed, made)
        title("Node 1: ipvsadm -Ln")
        print(net.node(1, "ipvsadm", "-Ln"), flush=True)
        under_load(bed, made)
        for i, agent in bed.agents.items():
            hold(f"the agent of node {i} is alive and healthy", agent.is_alive() and agent.healthy(), kernel.http_get(i, "/healthz"))
        if not all(true for _, true in results):
            for i in bed.agents:
                print(f"\nlog of the agent of node {i}:\n{bed.tail(i)}", flush=True)
    finally:
        bed.down()
    summary()


def summary():
    title("Summary")
    for what, true in results:
        print(f"  {'ok ' if true else 'NOT'}  {what}", flush=True)
    bad = sum(not true for _, true in results)
    print(f"\n{len(results) - bad} of {len(results)} held, {time.monotonic() - BEGAN:.0f} s inside.", flush=True)
    sys.exit(1 if bad or not results else 0)


if __name__ == "__main__":
    try:
        main(sys.argv[1], json.loads(os.environ.get("SLUICE_LAB_CLUSTER", "null")))
    except own.LabError as error:
        own.say(f"demo: {error}")
        sys.exit(1)
