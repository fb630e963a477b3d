"""Direct server return: pods answer a client outside themselves, past the node that it comes to."""
import re
import socket
import time

from . import net, objects, own, traffic
from .demo_report import hold, say, show, title
from .objects import TARGET, Port

ADDRESSES = ("198.51.100.40", "2001:db8:51::40")
FAMILIES = ("IPv4", "IPv6")
PODS = ["n2p1", "n3p1"]
ANNOTATION = {"kube-router.io/service.dsr": "tunnel"}
# Nobody listens there: without a runtime the agents know pods by their Pod objects, and by who has their addresses in /run/netns.
RUNTIME = f"{net.RUN}/runtime.sock"


def run(bed):
    title("Direct server return: pods on nodes 2 and 3 answer the client outside past node 1, which it comes to")
    runtime = socket.socket(socket.AF_UNIX)
    runtime.bind(RUNTIME)
    for i, agent in bed.agents.items():
        name_pods(bed, i)
        agent.stop()
        agent.extra = [*agent.extra, "--enable-direct-server-return", f"--runtime-endpoint=unix://{RUNTIME}"]
        agent.start()
    bed.ready()
    # A Service has pods of its own namespace alone, which these objects say.
    bed.source.apply("direct-pods", [{**objects.pod(pod, ["direct"]), "status": objects.pod_status(pod)} for pod in PODS])
    service = bed.put("direct", PODS, ports=[Port(TARGET)], external_ips=list(ADDRESSES))
    bed.settle(service)
    for what, annotations, of_clients in (("NAT", {}, False), ("tunnel", ANNOTATION, True), ("NAT again", {}, False)):
        bed.put(service.name, PODS, annotations=annotations)
        say(f"kube-router.io/service.dsr: {annotations.get('kube-router.io/service.dsr', '(none)')}")
        for address, client, name in zip(ADDRESSES, net.CLIENT, FAMILIES):
            own.wait(lambda: (seen(address) == {client}) == of_clients, 60, 0.2)
            outcome = traffic.many("ext", address, TARGET, count=10)
            print(f"  {name}, {what}: {outcome['answers']}, which saw the client as {', '.join(outcome['seen'])}", flush=True)
            hold(f"{name}, {what}: all pods answer and see {'the client itself' if of_clients else 'node 1'}",
                 set(outcome["answers"]) == set(PODS) and (set(outcome["seen"]) == {client}) == of_clients and not outcome["failed"], outcome)
        if of_clients:
            counted()
    bed.delete(service)
    gone = own.wait(lambda: not any("kube-tunnel" in own.run("/sbin/ip", "-n", pod, "link") for pod in PODS), 30, 0.2)
    hold("the tunnels in the pods are gone with the Service", gone)
    bed.source.withdraw("direct-pods")
    bed.restore()
    runtime.close()


def name_pods(bed, i):
    """Gives a node a /run/netns of its own, with its pods alone, as if it were a machine."""
    pods = [(pod, pid) for pod, pid in zip(bed.plan.pod_names(), bed.servers) if net.node_of(pod) == i]
    lines = ["mount -t tmpfs pods /run/netns"] + [
        f"touch /run/netns/{pod} && mount --bind /proc/{pid}/ns/net /run/netns/{pod}" for pod, pid in pods]
    net.node(i, "sh", "-ec", "\n".join(lines))


def seen(address):
    """By which addresses pods saw the client."""
    return set(traffic.many("ext", address, TARGET, count=4, patience=2)["seen"])


def counted():
    """What node 1 counts of its virtual services for marks while the client asks: packets come in, and no answer goes out."""
    before, _ = counts()
    for address in ADDRESSES:
        traffic.many("ext", address, TARGET, count=10)
    after, lines = counts()
    show("node 1$ ipvsadm -Ln --stats | grep -E 'Prot|FWM'", "\n".join(lines))
    # Before the pods had their tunnels the kernel may have passed on that they had none.
    grown = [[int(late) - int(early) for early, late in zip(*both)] for both in zip(before, after)]
    hold("node 1 passes the client's packets on and none of the answers",
         len(grown) == 2 and all(came > 0 and went == 0 for _, came, went in grown), (grown, lines))


def counts():
    """Connections, packets in and packets out of each virtual service for a mark, and the lines that say so."""
    time.sleep(4)  # the kernel adds them up every two seconds
    text = net.node(1, "ipvsadm", "-Ln", "--stats", "--exact")
    lines = [line for line in text.splitlines() if re.match(r"Prot|FWM", line)]
    return [line.split()[-5:-2] for line in lines if line.startswith("FWM")], lines
