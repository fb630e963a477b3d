"""An endpoint that is no longer chosen keeps its connections and gets no new ones; one that goes, with --ipvs-graceful-termination."""
import time

import expect
from expect import FAMILIES, PODS
from labkit import kernel, net, traffic
from labkit.objects import Port


def an_endpoint_whose_readiness_comes_and_goes_keeps_its_connections_and_gets_no_new_ones(bed):
    """With no flag, as with kube-proxy; and when it has left its slices they end."""
    with expect.service(bed, "flapping", kind="NodePort", ports=[Port(80, node_port=30121)]) as s:
        outside = bed.plan.addresses(1)[0]
        with expect.held("n1p2", s.address(), 80) as four, expect.held("n2p2", s.address("6"), 80) as six, expect.held("ext", outside, 30121) as port:
            every = [*four, *six, *port]
            expect.that({"n3p1"} < {pod for _, pod in every}, every)
            for _ in range(3):
                bed.put(s.name, PODS[:2], unready=["n3p1"])
                bed.settle(s)
                expect.that(set(expect.many("n1p3", s.address(), 80, count=9)["answers"]) == set(PODS[:2]), "a new connection went to it")
                time.sleep(6)  # longer than until connections are counted
                expect.go_on(every)
                bed.put(s.name, PODS, unready=[])
                bed.settle(s)
                expect.go_on(every)
            bed.put(s.name, PODS[:2], unready=["n3p1"])
            bed.settle(s)
            bed.put(s.name, PODS[:2], unready=[])
            gone = {f: expect.pod("n3p1", f) for f in s.families}
            for f in s.families:
                expect.soon(lambda: gone[f] not in kernel.destinations(1, "TCP", s.address(f), 80), 60, "it has left its slices, and stays")
            expect.go_on([(sock, pod) for sock, pod in every if pod != "n3p1"])


def connections_of_clients_outside_last_when_the_last_pod_of_a_node_is_unready_although_the_policy_is_local(bed):
    """And clients that come then are sent to no other node."""
    with expect.service(bed, "unready-local", ["n1p1", "n2p1"], kind="NodePort", external_policy="Local",
                        ports=[Port(80, node_port=30122), Port(53, "UDP", node_port=30123)]) as s:
        four, six = bed.plan.addresses(1)
        with expect.held("ext", four, 30122, 2) as by_four, expect.held("ext", six, 30122, 2) as by_six, expect.held("n1p2", four, 30122, 2) as inside:
            every = [*by_four, *by_six, *inside]
            expect.that({pod for _, pod in every} == {"n1p1"}, every)
            bed.put(s.name, ["n2p1"], unready=["n1p1"])
            bed.settle(s)
            for address in (four, six):
                expect.soon(lambda: not traffic.many("ext", address, 30122, count=2, patience=1)["answers"], 20, "a client outside is let in")
            time.sleep(6)
            expect.go_on(every)
            expect.that(set(expect.many("n1p3", four, 30122, count=4)["answers"]) == {"n2p1"}, "pods of the node are not served")
            for address in (four, six):
                expect.silent("ext", address, 30122)
                expect.silent("ext", address, 30123, "udp")
            bed.put(s.name, ["n1p1", "n2p1"], unready=[])
            bed.settle(s)
            expect.go_on(every)
            for address in (four, six):
                expect.soon(lambda: set(traffic.many("ext", address, 30122, count=4)["answers"]) == {"n1p1"}, 20, "the pod is ready again")


def a_terminating_endpoint_that_serves_keeps_its_flows_of_udp(bed):
    """Of clients that send each message once: a flow that moved, or that nobody answered for a moment, would be seen."""
    with expect.service(bed, "leaving-udp", ports=[Port(53, "UDP")]) as s:
        with net.Inside("n1p2"):
            held = [traffic.connect(s.address(family), 53, "udp") for family in FAMILIES for _ in range(6)]
        try:
            names = [traffic.exchange(sock)[0] for sock in held]
            expect.that(names.count("n3p1") == 4, names)
            bed.put(s.name, PODS[:2], leaving=["n3p1"])
            bed.settle(s)
            for _ in range(8):
                expect.that([traffic.exchange(sock)[0] for sock in held] == names, "a flow left the endpoint that terminates:", names)
                time.sleep(1)
            expect.that(set(expect.many("n1p3", s.address(), 53, "udp", count=6)["answers"]) == set(PODS[:2]), "a new flow went to it")
        finally:
            for sock in held:
                sock.close()


def a_removed_endpoint_keeps_its_connections_and_gets_no_new_ones(bed):
    with expect.graceful(bed), expect.service(bed, "drained") as s:
        with net.Inside("n1p2"):
            held = [traffic.connect(s.address(), 80) for _ in range(6)]
            names = [traffic.exchange(sock)[0] for sock in held]
        expect.that(names.count("n3p1") == 2, names)
        with expect.load(("n1p3", s.address(), 80), ("n2p3", s.address("6"), 80)):
            bed.put(s.name, PODS[:2])
            bed.settle(s)
            expect.that(kernel.destinations(1, "TCP", s.address(), 80).get(expect.pod("n3p1", "4")) == 0, kernel.ipvs(1))
            # Others are asking too, so the shares need not be equal.
            expect.that(set(expect.many("n1p2", s.address(), 80)["answers"]) == set(PODS[:2]), "a new connection went to it")
            again = [traffic.exchange(sock)[0] for sock in held]
        for sock in held:
            sock.close()
        expect.that(again == names, "connections moved:", names, again)


def an_endpoint_that_comes_back_while_it_drains_is_served_again(bed):
    with expect.graceful(bed), expect.service(bed, "returning") as s:
        bed.put(s.name, PODS[:2])
        bed.settle(s)
        bed.put(s.name, PODS)
        bed.settle(s)
        expect.share("n1p2", s.address(), 80, PODS)


def an_endpoint_without_connections_goes_before_its_time(bed):
    with expect.graceful(bed), expect.service(bed, "idle") as s, net.Inside("n1p2"):
        held = [traffic.connect(s.address(), 80) for _ in range(3)]
        bed.put(s.name, PODS[:2])
        bed.settle(s)
        gone = {f: expect.pod("n3p1", f) for f in s.families}
        expect.soon(lambda: gone["6"] not in kernel.destinations(1, "TCP", s.address("6"), 80), 30,
                    "the destination that nobody is connected to stays for its whole period")
        expect.that(kernel.destinations(1, "TCP", s.address(), 80).get(gone["4"]) == 0, "the one with a connection is gone")
        for sock in held:
            sock.close()
