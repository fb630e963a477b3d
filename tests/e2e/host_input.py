"""A host that lets nothing in by itself, by programs of iptables where they are on the host, else by nft."""
import os
import signal

import expect
from expect import FAMILIES, PODS
from labkit import net, traffic
from labkit.objects import Port


def ports_of_services_pass_a_host_that_drops_what_comes_in(bed):
    """As ufw leaves a host: what nobody has let in is dropped, and only ports of Services come past that."""
    allowed = [(None, "-i lo", "iifname lo"), ("6", "-p ipv6-icmp", "meta l4proto ipv6-icmp"),
               (None, "-m conntrack --ctstate RELATED,ESTABLISHED", "ct state related,established")]
    with expect.service(bed, "let-in", kind="NodePort", external_ips=["198.51.100.24", "2001:db8:51::24"], ports=[Port(80, node_port=30085)]) as s:
        expect.host_lets_nothing_through(bed, 1, "INPUT", *allowed)
        server = traffic.serve("n1", [("tcp", 8099)])
        try:
            for f, family in enumerate(FAMILIES):
                expect.silent("ext", bed.plan.addresses(1)[f], 8099)
                for address, port in ((bed.plan.addresses(1)[f], 30085), (s.external_ips[f], 80)):
                    expect.soon(lambda: _answers("ext", address, port), 60, f"a host that drops lets nobody reach {address} {port}:",
                                net.node(1, "nft", "list ruleset"), bed.tail(1))
                    expect.share("ext", address, port, PODS)
                expect.share("n1p2", s.address(family), 80, PODS)
        finally:
            os.kill(server, signal.SIGKILL)
            os.waitpid(server, 0)
            expect.host_lets_everything_through(bed, 1, "INPUT", *allowed)
    bed.ready()


def _answers(namespace, address, port):
    try:
        return traffic.ask(namespace, address, port, patience=1.5) is not None
    except OSError:
        return False
