"""Direct server return with a real API server: its controllers make the endpoints, Pod objects say whose the pods are, and it may be away."""
import contextlib
import os
import socket

import expect
from labkit import demo_dsr, net, own, traffic
from labkit.objects import TARGET, Port


@contextlib.contextmanager
def _tunnels(bed):
    """Agents that serve through tunnels; without the flags again at the end. Nobody listens at the runtime's socket: pods are found in /run/netns, of which each node has one of its own."""
    runtime = socket.socket(socket.AF_UNIX)
    runtime.bind(demo_dsr.RUNTIME)
    for i, agent in bed.agents.items():
        demo_dsr.name_pods(bed, i)
        agent.stop()
        agent.extra = [*agent.extra, "--enable-direct-server-return", f"--runtime-endpoint=unix://{demo_dsr.RUNTIME}"]
        agent.start()
    try:
        bed.ready()
        yield
    finally:
        runtime.close()
        os.unlink(demo_dsr.RUNTIME)
        bed.restore()
        for i in bed.agents:
            net.node(i, "sh", "-ec", "umount --recursive --lazy /run/netns")


def _see(address, clients):
    """Whether all pods answer, and see these clients."""
    outcome = traffic.many("ext", address, TARGET, count=10, patience=2)
    return set(outcome["answers"]) == set(demo_dsr.PODS) and set(outcome["seen"]) == clients and not outcome["failed"]


def the_annotation_has_pods_answer_the_client_themselves_also_while_the_api_server_is_away_and_agents_start(bed):
    ways = list(zip(demo_dsr.ADDRESSES, net.CLIENT))
    with _tunnels(bed), expect.service(bed, "direct", demo_dsr.PODS, ports=[Port(TARGET)], external_ips=list(demo_dsr.ADDRESSES)) as s:
        for address, client in ways:
            expect.that(not _see(address, {client}), address, "is not served with NAT before the annotation")
        bed.put(s.name, demo_dsr.PODS, annotations=demo_dsr.ANNOTATION)
        for address, client in ways:
            expect.soon(lambda: _see(address, {client}), 60, address, "is not served through tunnels")
        bed.source.stop_server()
        try:
            for agent in bed.agents.values():
                agent.kill()
                for address, client in ways:
                    expect.that(_see(address, {client}), address, "is not served while an agent is away")
                agent.start()
            for _ in range(5):
                for address, client in ways:
                    expect.soon(lambda: _see(address, {client}), 20, address, "is not served through tunnels after a start without an API server")
        finally:
            bed.source.start_server()
        bed.ready()
        for address, client in ways:
            expect.that(_see(address, {client}), address, "is not served through tunnels when the API server is back")
        bed.put(s.name, demo_dsr.PODS, annotations={})
        for address, client in ways:
            expect.soon(lambda: traffic.many("ext", address, TARGET, count=4, patience=2)["seen"] and not _see(address, {client}), 60, address, "does not have NAT again")
        gone = lambda: not any("kube-tunnel" in own.run("/sbin/ip", "-n", pod, "link") for pod in demo_dsr.PODS)
        expect.soon(gone, 30, "tunnels stay in pods")


the_annotation_has_pods_answer_the_client_themselves_also_while_the_api_server_is_away_and_agents_start.long = True
