#!/usr/bin/python3
"""The part of scripts/demo that runs where the nodes are: shows the main jobs and says at the end what held."""
import json
import os
import signal
import subprocess
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.realpath(__file__))))
from labkit import demo_cluster, demo_dsr, demo_services, kernel, net, objects, own, traffic  # noqa: E402
from labkit.demo_report import hold, logs, say, show, summary, title  # noqa: E402
from labkit.objects import Port  # noqa: E402
from labkit.testbed import Testbed  # noqa: E402

SCHEDULER = "kube-router.io/service.scheduler"
ALL = ["n1p1", "n2p1", "n3p1"]
EXTERNAL = ("198.51.100.10", "2001:db8:51::10")


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
    title("Under load: one endpoint becomes unready, the agent of node 1 killed (-9) and restarted, the endpoint back")
    rr, port = made["rr"], made["node-port"]
    load = {
        "pod -> cluster IP, IPv4": traffic.Load("n1p2", rr.address("4"), 80, pause=0.02),
        "pod -> cluster IP, IPv6": traffic.Load("n1p3", rr.address("6"), 80, pause=0.02),
        "outside -> NodePort, IPv4": traffic.Load("ext", bed.plan.addresses(1)[0], 30080, pause=0.02),
        "outside -> external IP, IPv6": traffic.Load("ext", EXTERNAL[1], 80, pause=0.02),
    }
    time.sleep(2)
    say("n3p1 of round-robin and node-port is no longer ready")
    bed.put(rr.name, ALL[:2], unready=ALL[2:])
    bed.put(port.name, ALL[:2], unready=ALL[2:])
    bed.settle(rr, port)
    say("no node sends it new connections; long-lived connections to it go on")
    outcome = traffic.many("n1p2", rr.address(), 80, count=20)
    hold("an endpoint that is not ready gets no new connection", set(outcome["answers"]) == set(ALL[:2]) and not outcome["failed"], outcome)
    time.sleep(1)
    say("kill -9 of the agent of node 1")
    bed.agents[1].kill()
    time.sleep(2)
    say("while it is dead, n3p1 comes back")
    bed.put(rr.name, ALL, unready=[])
    bed.put(port.name, ALL, unready=[])
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


def policies(bed):
    title("A network policy: n3p1 accepts TCP from n1p2, and nothing else")
    pods = ("n1p2", "n2p2", "n3p1")
    made = [{**objects.pod(name, []), "status": objects.pod_status(name)} for name in pods]
    for pod in made:
        pod["metadata"]["labels"] = {"app": pod["metadata"]["name"]}
    bed.source.apply("pods", made)
    who_reaches(bed, {("n1p2", "tcp"), ("n1p2", "udp"), ("n2p2", "tcp"), ("n2p2", "udp")}, "without a policy everybody reaches n3p1")
    rule = {"from": [{"podSelector": {"matchLabels": {"app": "n1p2"}}}], "ports": [{"protocol": "TCP", "port": objects.TARGET}]}
    policy = {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": "only-n1p2", "namespace": objects.NAMESPACE},
              "spec": {"podSelector": {"matchLabels": {"app": "n3p1"}}, "policyTypes": ["Ingress"], "ingress": [rule]}}
    foreseen(bed, policy)
    drops = question(3, bed, "drops", "-f")
    # Rules log ten packets at once, and then one in six seconds: those ten shall not come before somebody reads them.
    own.wait(lambda: " 100 " in f" {net.node(3, 'cat', '/proc/net/netfilter/nfnetlink_log')}", 20, 0.1)
    bed.source.apply("policy", [policy])
    say("applied NetworkPolicy only-n1p2")
    who_reaches(bed, {("n1p2", "tcp")}, "with it only n1p2 does, by TCP")
    refused(drops)
    table = net.node(3, "nft", "list", "map", "inet", "sluice_policy", "ingress4")
    show("node 3$ nft list map inet sluice_policy ingress4", table)
    hold("nftables judges the pod by its address", net.pod_addresses("n3p1")[0] in table and "only-n1p2" in table, table)
    for client, verdict in (("n1p2", "allowed by default/only-n1p2"), ("n2p2", "isolated by default/only-n1p2")):
        asked = ["--from", f"default/{client}", "--to", f"default/n3p1:{objects.TARGET}"]
        said = net.node(3, bed.binary, "policy", "explain", f"--socket={net.RUN}/n3/sluice.sock", *asked)
        show(f"node 3$ sluice policy explain {' '.join(asked)}", said)
        hold(f"`policy explain` says why {client} is {verdict.split()[0]}", verdict in said and said.count("kernel: has these rules") == 2, said)
    bed.source.withdraw("policy")
    say("removed it")
    who_reaches(bed, {(client, protocol) for client in pods[:2] for protocol in ("tcp", "udp")}, "without it everybody reaches n3p1 again")
    bed.source.withdraw("pods")


def question(i, bed, *words, text_in=None):
    """A question about policies to the agent of node i that goes on by itself."""
    return subprocess.Popen(net.node_command(i, bed.binary, "policy", *words, f"--socket={net.RUN}/n{i}/sluice.sock"),
                            stdin=subprocess.DEVNULL if text_in is None else subprocess.PIPE,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def foreseen(bed, policy):
    """What the policy would change, before it is there, and that the question changes nothing."""
    said = question(3, bed, "diff", "-f", "-", text_in=True).communicate(json.dumps(policy))[0]
    show("node 3$ sluice policy diff -f only-n1p2.json", said)
    hold("`policy diff` says what the policy would do before it is there",
         all(part in said for part in ("default/only-n1p2: new", "become isolated: 1", "Closes:", "default/n2p2")), said)
    hold("the question changes nothing", reaches("n2p2", net.pod_addresses("n3p1")[0], "tcp"))


def refused(process):
    """What `policy drops -f` printed meanwhile: who was refused, and by which policy."""
    process.send_signal(signal.SIGINT)
    lines = process.communicate()[0].splitlines()
    show("node 3$ sluice policy drops -f", "\n".join(lines[:6]))
    for family, client in enumerate(net.pod_addresses("n2p2")):
        hold(f"`policy drops` names the packets from {client} that were refused, and the policy", any(
            client in line and "default/n3p1" in line and "default/only-n1p2" in line for line in lines), lines)


def who_reaches(bed, wanted, what):
    """Waits until exactly these reach n3p1, in both families, and shows it."""
    def reaching():
        return {(client, protocol): [reaches(client, address, protocol) for address in net.pod_addresses("n3p1")]
                for client in ("n1p2", "n2p2") for protocol in ("tcp", "udp")}
    own.wait(lambda: reaching() == {key: [key in wanted] * 2 for key in reaching()}, 30, 0.1)
    found = reaching()
    for (client, protocol), answers in found.items():
        print(f"  {client:<6} {protocol:<4} n3p1   " + "  ".join(f"{name} {'answered' if a else 'cut off'}" for name, a in zip(("IPv4", "IPv6"), answers)), flush=True)
    hold(what, found == {key: [key in wanted] * 2 for key in found}, found)


def reaches(client, address, protocol):
    try:
        return traffic.ask(client, address, objects.TARGET, protocol, patience=1) is not None
    except OSError:
        return False


def main(binary, facts):
    title("Three nodes with three pods each, an agent on every node")
    bed = Testbed(binary, facts, flags=["--run-firewall=true", f"--socket={net.RUN}/n{{i}}/sluice.sock"]).up()
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
        demo_services.run(bed)
        demo_dsr.run(bed)
        under_load(bed, made)
        policies(bed)
        for i, agent in bed.agents.items():
            hold(f"the agent of node {i} is alive and healthy", agent.is_alive() and agent.healthy(), kernel.http_get(i, "/healthz"))
        logs(bed)
    finally:
        bed.down()
    demo_cluster.run(binary, facts)
    summary()


if __name__ == "__main__":
    try:
        main(sys.argv[1], json.loads(os.environ.get("SLUICE_LAB_CLUSTER", "null")))
    except own.LabError as error:
        own.say(f"demo: {error}")
        sys.exit(1)
