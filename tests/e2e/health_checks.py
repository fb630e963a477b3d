"""healthCheckNodePort: what a load balancer outside is told by each node."""
import http.client
import json
import os
import signal
import socket

import expect
from expect import FAMILIES
from labkit import net, own
from labkit.objects import Port

BALANCER = ["198.51.100.70", "2001:db8:51::70"]


def _said(address, port):
    """(HTTP status, local endpoints) as a load balancer sees it; what went wrong where there is no answer."""
    try:
        with net.Inside("ext"):
            connection = http.client.HTTPConnection(address, port, timeout=2)
            connection.request("GET", "/healthz")
            answer = connection.getresponse()
            body = json.loads(answer.read())
            expect.that(body["service"] == {"namespace": "default", "name": body["service"]["name"]}, body)
            return answer.status, body["localEndpoints"]
    except (OSError, http.client.HTTPException, ValueError, KeyError) as error:
        return type(error).__name__


def _say(bed, i, port, wanted):
    for address in bed.plan.addresses(i):
        _say_at(address, port, wanted)


def _say_at(address, port, wanted):
    expect.soon(lambda: _said(address, port) == wanted, 30, f"{address} does not say {wanted} but {_said(address, port)}")


def each_node_says_how_many_endpoints_it_has_and_clients_of_those_it_names_are_answered(bed):
    with expect.service(bed, "checked", ["n1p1", "n1p2", "n2p1"], kind="LoadBalancer", balancer_ips=BALANCER, external_policy="Local",
                        health_port=30131, ports=[Port(80, node_port=30132)]) as s:
        for i, wanted in ((1, (200, 2)), (2, (200, 1)), (3, (503, 0))):
            _say(bed, i, 30131, wanted)
        for f in range(len(FAMILIES)):
            expect.share("ext", bed.plan.addresses(1)[f], 30132, ["n1p1", "n1p2"])
        # What terminates still serves, and is to get no new clients from the balancer.
        bed.put(s.name, ["n1p2"], leaving=["n1p1", "n2p1"])
        for i, wanted in ((1, (200, 1)), (2, (503, 0)), (3, (503, 0))):
            _say(bed, i, 30131, wanted)
        bed.put(s.name, ["n1p2", "n3p1"], leaving=[])
        for i, wanted in ((1, (200, 1)), (2, (503, 0)), (3, (200, 1))):
            _say(bed, i, 30131, wanted)
        # A renamed port is followed as any change of the endpoints is.
        bed.put(s.name, ["n1p2", "n2p1"], ports=[Port(80, node_port=30132, name="renamed")])
        for i, wanted in ((1, (200, 1)), (2, (200, 1)), (3, (503, 0))):
            _say(bed, i, 30131, wanted)
        # The health check goes with the policy, and comes back with it.
        bed.put(s.name, ["n1p2"], external_policy="Cluster", health_port=0)
        expect.soon(lambda: isinstance(_said(bed.plan.addresses(1)[0], 30131), str), 30, "it still answers")
        bed.put(s.name, ["n1p2"], external_policy="Local", health_port=30131)
        _say(bed, 1, 30131, (200, 1))


def a_node_that_loses_its_endpoint_while_a_client_of_the_check_says_nothing_tells_the_others_at_once(bed):
    with expect.service(bed, "silent-clients", ["n1p1", "n2p1"], kind="LoadBalancer", balancer_ips=BALANCER, external_policy="Local",
                        health_port=30133, ports=[Port(80, node_port=30134)]) as s:
        _say(bed, 1, 30133, (200, 1))
        address = bed.plan.addresses(1)[0]
        with net.Inside("ext"):
            silent = [socket.create_connection((address, 30133), timeout=5) for _ in range(100)]
        try:
            bed.put(s.name, ["n2p1"])
            _say(bed, 1, 30133, (503, 0))
        finally:
            for sock in silent:
                sock.close()


def a_health_check_port_that_another_program_has_is_answered_when_it_is_free(bed):
    address = bed.plan.addresses(1)[0]
    pid = _listens_on(1, address, 30135)
    try:
        with expect.service(bed, "port-in-use", ["n1p1", "n2p1"], kind="LoadBalancer", balancer_ips=BALANCER, external_policy="Local",
                            health_port=30135, ports=[Port(80, node_port=30136)]):
            _say(bed, 2, 30135, (200, 1))
            expect.that(isinstance(_said(address, 30135), str), "somebody else has the port, and it is answered")
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            pid = None
            expect.soon(lambda: _said(address, 30135) == (200, 1), 45, "the port is free, and nobody answers")
    finally:
        if pid:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def _listens_on(i, address, port):
    """A program in a node's network that has a port and says nothing; its process."""
    ready, told = os.pipe()
    pid = os.fork()
    if pid == 0:
        with net.Inside(f"n{i}"):
            kept = socket.create_server((address, port), family=socket.AF_INET6 if ":" in address else socket.AF_INET)
            os.write(told, b"x")
            while True:
                signal.pause()
            kept.close()
    os.close(told)
    if os.read(ready, 1) != b"x":
        raise own.LabError(f"{address} {port} could not be taken")
    os.close(ready)
    return pid
