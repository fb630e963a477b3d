"""The last part of the demo: a small cluster on Sluice alone, and a router outside that learns from it.

Three nodes, the second of them in another subnet, have no route to any pod but those that agents make. The router between
the subnets and the outside is BIRD: it speaks BGP with every node, and all that it knows of pods and services it has from
them. Where the nodes find it stands in an annotation of theirs.
"""
import contextlib
import json
import os
import subprocess
import time

from . import demo_addresses, demo_leaving, kernel, net, objects, own, packets, traffic
from .demo_outside import BIRD, PREFIX, asked, at_router, birdc, eventually, routes_at_router
from .demo_report import hold, logs, say, show, title
from .testbed import Testbed

NODES, OUTSIDE = 64512, 64600  # numbers of their autonomous systems
LOCAL = ("198.51.100.20", "2001:db8:51::20")
FLAGS = ["--run-router=true", "--run-firewall=true", "--advertise-cluster-ip", "--advertise-external-ip",
         f"--cluster-asn={NODES}", "--bgp-graceful-restart", f"--drain-delay={demo_leaving.DELAY}s",
         "--run-loadbalancer", "--advertise-loadbalancer-ip", f"--socket={net.RUN}/n{{i}}/sluice.sock"]
PODS = ["n1p1", "n2p1", "n3p1"]


def run(binary, facts):
    title("A small cluster on Sluice alone: proxy, firewall and router on three nodes in two subnets, BIRD as the router outside")
    bed = Testbed(binary, facts, pods=2, subnets=2, routed=True, flags=FLAGS).up()
    try:
        ranges = [*net.SERVICE_RANGES, *net.EXTERNAL_RANGES]
        net.ip("rtr", *[f"route del {r}" for r in ranges])  # it shall know them from nobody but the nodes
        net.ip("ext", *[f"route add {r} via {'2001:db8:113::fe' if ':' in r else '203.0.113.254'}" for r in net.POD_RANGES])
        bed.source.nodes(bed.plan, annotations={i: peering(bed.plan, i) for i in range(1, bed.plan.nodes + 1)})
        with bird(bed.plan):
            bed.start_agents()
            bed.ready()
            say("every node is ready, and its pods were attached by the CNI plugins with the file that its agent wrote")
            made = {"web": bed.put("web", PODS),
                    "local": bed.put("local", ["n3p1"], external_ips=list(LOCAL), external_policy="Local")}
            bed.settle()
            pods_reach_each_other(bed)
            outside_learns(bed, made)
            client_reaches(bed, made)
            tables(bed, made)
            service_moves(bed, made["local"])
            demo_addresses.run(bed)
            crash_loses_nothing(bed, made["web"])
            first_packets(bed)
            demo_leaving.run(bed, lambda i, bfd: peering(bed.plan, i, bfd), lambda bfd: configured(bed.plan, bfd))
            for i, agent in bed.agents.items():
                hold(f"the agent of node {i} of the small cluster is alive and healthy", agent.is_alive() and agent.healthy(),
                     kernel.http_get(i, "/healthz"))
        logs(bed)
    finally:
        bed.down()


def peering(plan, i, bfd=False):
    """The annotations by which a node finds the router outside."""
    router = net.FAR_ROUTER if plan.far(i) else net.ROUTER
    peer = {"remoteip": router[0], "remoteasn": OUTSIDE}
    if bfd:
        peer["bfd"] = {"enabled": True, "desired_min_tx_interval": demo_leaving.INTERVAL, "required_min_rx_interval": demo_leaving.INTERVAL,
                       "detection_multiplier": demo_leaving.MISSED}
    return {"kube-router.io/peers": json.dumps([peer])}


def configured(plan, bfd=False):
    """Writes BIRD's configuration: sessions with every node, whose routes go to its kernel, those with GRACEFUL_SHUTDOWN behind all others."""
    watch = "bfd on; " if bfd else ""
    sessions = "".join(
        f"protocol bgp node{i} {{ local as {OUTSIDE}; neighbor {plan.addresses(i)[0]} as {NODES}; direct; {watch}"
        "connect retry time 2; error wait time 1, 4; graceful restart on; ipv4 { import filter leaving; export none; }; ipv6 { import filter leaving; export none; }; }\n"
        for i in range(1, plan.nodes + 1))
    interval = f"min rx interval {demo_leaving.INTERVAL} ms; min tx interval {demo_leaving.INTERVAL} ms; multiplier {demo_leaving.MISSED};"
    own.write(f"{BIRD}.conf", f"router id {net.ROUTER[0]};\nprotocol device {{ }}\n"
              + (f'protocol bfd {{ interface "*" {{ {interval} }}; }}\n' if bfd else "")
              + "filter leaving { if (65535, 0) ~ bgp_community then bgp_local_pref = 0; accept; }\n" + "".join(
                  f"protocol kernel {{ ipv{f} {{ export where source = RTS_BGP; }}; merge paths on; }}\n" for f in "46") + sessions)


@contextlib.contextmanager
def bird(plan):
    """BIRD in the router's namespace, which speaks with every node and gives what it learns to its kernel."""
    configured(plan)
    with open(f"{BIRD}.log", "wb") as log:
        process = subprocess.Popen(["ip", "netns", "exec", "rtr", "bird", "-f", "-c", f"{BIRD}.conf", "-s", f"{BIRD}.ctl"],
                                   stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    own.wait(lambda: process.poll() is not None or os.path.exists(f"{BIRD}.ctl"), 20, 0.1)
    if process.poll() is not None:
        with open(f"{BIRD}.log") as log:
            raise own.LabError(f"BIRD does not run: {log.read()}")
    try:
        yield
    finally:
        process.terminate()
        process.wait()


def pods_reach_each_other(bed):
    for family in "46":
        seen = {(a, b): asked(a, net.pod_addresses(b)[family == "6"]) for a in PODS for b in PODS if a != b}
        good = {(a, b): (b, net.pod_addresses(a)[family == "6"]) for a, b in seen}
        hold(f"IPv{family}: pods of all nodes reach each other, and are seen with their own addresses", seen == good, seen)


def outside_learns(bed, made):
    plan = bed.plan
    numbers = range(1, plan.nodes + 1)
    for f, family in enumerate("46"):
        for i in numbers:
            prefix = plan.pod_ranges(i)[f]
            eventually(f"the router outside has {prefix} from node {i}", [plan.addresses(i)[f]], lambda: at_router(family, prefix))
        web = f"{made['web'].address(family)}/{PREFIX[family]}"
        eventually(f"the router outside has the Service {web} from all nodes", sorted(plan.addresses(i)[f] for i in numbers),
                   lambda: at_router(family, web))
        eventually(f"and {LOCAL[f]}, which wants local pods, from node 3 alone", [plan.addresses(3)[f]],
                   lambda: at_router(family, f"{LOCAL[f]}/{PREFIX[family]}"))
    show("router$ birdc show route", birdc("show", "route"))


def client_reaches(bed, made):
    for f, family in enumerate("46"):
        answers = {pod: asked("ext", net.pod_addresses(pod)[f]) for pod in PODS}
        hold(f"IPv{family}: the client outside reaches pods by their own addresses",
             all(a == (pod, net.CLIENT[f]) for pod, a in answers.items()), answers)
        outcome = traffic.many("ext", made["web"].address(family), 80, count=9)
        hold(f"IPv{family}: and the Service, answered by pods", not outcome["failed"] and set(outcome["answers"]) <= set(PODS), outcome)
        seen = asked("ext", LOCAL[f], 80)
        hold(f"IPv{family}: and the Service with local pods, which see its own address", seen == ("n3p1", net.CLIENT[f]), seen)


def tables(bed, made):
    """What the client of GoBGP says on node 1."""
    plan = bed.plan
    for words, wanted in (
            ("neighbor", [net.ROUTER[0], *[plan.addresses(i)[0] for i in (2, 3)]]),
            ("global", [str(NODES)]),
            ("global rib", [*[plan.pod_ranges(i)[0] for i in (1, 2, 3)], made["web"].address("4")]),
            ("global rib -a ipv6", [*[plan.pod_ranges(i)[1] for i in (1, 2, 3)], made["web"].address("6")])):
        said = net.node(1, "gobgp", *words.split())
        show(f"node 1$ gobgp {words}", said)
        hold(f"`gobgp {words}` shows what there is", all(part in said for part in wanted), said)
    said = net.node(1, "gobgp", "neighbor", net.ROUTER[0], "adj-out")
    hold("`gobgp neighbor ADDRESS adj-out` shows what the router outside is told",
         plan.pod_ranges(1)[0] in said and plan.pod_ranges(3)[0] not in said, said)


def service_moves(bed, service):
    say("the Service that wants local pods moves from node 3 to node 1")
    bed.put(service.name, ["n1p1"])
    for f, family in enumerate("46"):
        eventually(f"IPv{family}: the router outside follows", [bed.plan.addresses(1)[f]],
                   lambda: at_router(family, f"{LOCAL[f]}/{PREFIX[family]}"))
        seen = asked("ext", LOCAL[f], 80)
        hold(f"IPv{family}: the pod on node 1 answers the client outside", seen == ("n1p1", net.CLIENT[f]), seen)


def crash_loses_nothing(bed, service):
    say("packets between pods, and between the client outside and pods; the agents of nodes 1 and 2 killed (-9) and restarted")
    before = {f: routes_at_router(f) for f in "46"}
    targets = {client: [(address, objects.TARGET) for pod in PODS if pod != client for address in net.pod_addresses(pod)]
               for client in ("n1p1", "n2p1", "ext")}
    streams = {client: packets.Stream(client, to) for client, to in targets.items()}
    load = traffic.Load("ext", service.address("4"), 80, pause=0.05)
    time.sleep(1)
    for i in (1, 2):
        bed.agents[i].kill()
    time.sleep(1)
    for i in (1, 2):
        bed.agents[i].start()
    bed.ready()
    time.sleep(2)
    for client, stream in streams.items():
        outcome = stream.stop()
        print(f"  from {client:<5} {outcome['sent']:>6} packets sent, {outcome['lost']} lost", flush=True)
        hold(f"no packet from {client} was lost", outcome["lost"] == 0 and not outcome["errors"] and outcome["sent"] > 50, outcome)
    o = load.stop()
    print(f"  ext to the Service: {o['fresh']} connections, {o['failed']} failed; {o['lasting']} long-lived, {o['broken']} broken", flush=True)
    hold("no connection from outside to the Service failed or broke", o["failed"] == o["broken"] == 0 and o["fresh"] > 10, o)
    after = {f: routes_at_router(f) for f in "46"}
    hold("the router outside has the routes that it had", after == before, kernel.difference(before, after))


def first_packets(bed):
    """Pods that may not send anything and send from their first moment on: without the CNI plugin of the agent, and with it."""
    say("a policy that denies jobs on node 1 to send; they send from their first moment on")
    bed.source.apply("deny-jobs", [{
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": "deny-jobs", "namespace": objects.NAMESPACE},
        "spec": {"podSelector": {"matchLabels": {"app": "job"}}, "policyTypes": ["Ingress", "Egress"]}}])
    answered = job(bed, "n1p7")
    print(f"  without --netpol-cni: {answered[0]} packets over IPv4 and {answered[1]} over IPv6 were answered", flush=True)
    agent = bed.agents[1]
    agent.stop()
    agent.extra = [*agent.extra, "--netpol-cni"]
    agent.start()
    bed.ready(1)
    types = [plugin["type"] for plugin in own.read_json(net.cni_file(1))["plugins"]]
    show("node 1$ jq -c '[.plugins[].type]' /etc/cni/net.d/10-kuberouter.conflist", json.dumps(types))
    hold("with --netpol-cni the agent adds its plugin to the CNI file", types[-1] == "sluice-cni", types)
    answered = job(bed, "n1p8")
    print(f"  with --netpol-cni:    {answered[0]} packets over IPv4 and {answered[1]} over IPv6 were answered", flush=True)
    hold("a pod that starts with --netpol-cni gets no packet past its policies, from the first one on", answered == [0, 0], answered)
    bed.source.withdraw("deny-jobs")


def job(bed, name):
    """Starts a pod that sends packets at once; how many of each family were answered. Its status comes behind its start, as a kubelet writes it."""
    made = {**objects.pod(name, []), "metadata": {"name": name, "namespace": objects.NAMESPACE, "labels": {"app": "job"}}}
    bed.source.apply(name, [made])
    net.pod_add(net.node_of(name), name)
    streams = [packets.Stream(name, [(address, objects.TARGET)], pause=0.005) for address in net.pod_addresses("n2p1")]
    bed.source.apply(name, [{**made, "status": objects.pod_status(name)}])
    time.sleep(2)
    outcomes = [stream.stop() for stream in streams]
    hold(f"{name} sent packets of both families", all(o["sent"] > 10 for o in outcomes), outcomes)
    answered = [o["sent"] - o["lost"] for o in outcomes]
    bed.source.withdraw(name)
    net.pod_delete(net.node_of(name), name)
    return answered
