"""--ipvs-graceful-termination: an endpoint that goes keeps its connections and gets no new ones."""
import expect
from expect import PODS
from labkit import kernel, net, traffic


def a_removed_endpoint_keeps_its_connections_and_gets_no_new_ones(bed):
    with expect.service(bed, "drained") as s:
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
    with expect.service(bed, "returning") as s:
        bed.put(s.name, PODS[:2])
        bed.settle(s)
        bed.put(s.name, PODS)
        bed.settle(s)
        expect.share("n1p2", s.address(), 80, PODS)


def an_endpoint_without_connections_goes_before_its_time(bed):
    with expect.service(bed, "idle") as s, net.Inside("n1p2"):
        held = [traffic.connect(s.address(), 80) for _ in range(3)]
        bed.put(s.name, PODS[:2])
        bed.settle(s)
        gone = {f: expect.pod("n3p1", f) for f in s.families}
        expect.soon(lambda: gone["6"] not in kernel.destinations(1, "TCP", s.address("6"), 80), 30,
                    "the destination that nobody is connected to stays for its whole period")
        expect.that(kernel.destinations(1, "TCP", s.address(), 80).get(gone["4"]) == 0, "the one with a connection is gone")
        for sock in held:
            sock.close()
