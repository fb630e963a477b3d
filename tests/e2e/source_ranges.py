"""Who reaches the load balancer addresses of a Service that has source ranges."""
import expect
from expect import FAMILIES, PODS
from labkit import net, packets, traffic
from labkit.objects import Port

ADDRESSES = ["198.51.100.24", "2001:db8:51::24"]
PORTS = [Port(80, node_port=30090), Port(53, "UDP"), Port(99, "SCTP")]
CLIENT = [f"{address}/{length}" for address, length in zip(net.CLIENT, (32, 128))]


def _reaches(address, *port):
    try:
        return bool(traffic.ask("ext", address, *port, patience=1.0))
    except OSError:
        return False


def only_clients_in_its_source_ranges_reach_a_load_balancer_address(bed):
    with expect.service(bed, "ranged", kind="LoadBalancer", balancer_ips=ADDRESSES, ports=PORTS, source_ranges=CLIENT) as s:
        for f, address in enumerate(ADDRESSES):
            for port in PORTS:
                expect.share("ext", address, port.port, PODS, port.protocol.lower())
            expect.silent("n1p2", address, 80)
            expect.silent("n1", address, 80)
            # Everything else of the Service is open to all.
            expect.share("n1p2", s.address(FAMILIES[f]), 80, PODS)
            expect.share("n1p2", bed.plan.addresses(1)[f], 30090, PODS)


def a_range_that_is_taken_away_ends_connections_and_one_that_comes_lets_others_in(bed):
    with expect.service(bed, "narrowed", kind="LoadBalancer", balancer_ips=ADDRESSES, source_ranges=CLIENT) as s:
        with net.Inside("ext"):
            held = [traffic.connect(address, 80, patience=3.0) for address in ADDRESSES]
            for sock in held:
                traffic.exchange(sock)
        ranges = bed.plan.pod_ranges(1)
        bed.put(s.name, PODS, source_ranges=ranges)
        for address, sock in zip(ADDRESSES, held):
            expect.soon(lambda: not _reaches(address, 80), 20, address, "is still open")
            try:
                traffic.exchange(sock)
                expect.that(False, "a connection to", address, "goes on")
            except OSError:
                pass
            sock.close()
            expect.share("n1p2", address, 80, PODS)
            expect.silent("n2p2", address, 80)
        bed.put(s.name, PODS, source_ranges=[])
        for address in ADDRESSES:
            expect.soon(lambda: _reaches(address, 80), 20, address, "stays closed")


def who_is_in_no_range_gets_no_answer_while_ranges_change(bed):
    """Not between the end of one range and the beginning of another one either, nor with the first endpoint; each packet counts."""
    ranges = [bed.plan.pod_ranges(1), CLIENT, [*bed.plan.pod_ranges(1), *CLIENT]]
    with expect.service(bed, "guarded", PODS, kind="LoadBalancer", balancer_ips=ADDRESSES, ports=PORTS[:2], source_ranges=CLIENT) as s:
        stream = packets.Stream("n2p2", [(address, 53) for address in ADDRESSES], pause=0.01)
        try:
            for turn in range(9):
                bed.put(s.name, PODS[turn % 2:], source_ranges=ranges[turn % 3])
                bed.settle(s)
            bed.put(s.name, [], source_ranges=CLIENT)
            bed.settle(s)
            bed.put(s.name, PODS, source_ranges=CLIENT)
            bed.settle(s)
        finally:
            outcome = stream.stop()
        expect.that(outcome["lost"] == outcome["sent"] > 100, "not each packet was dropped:", outcome)
        for address in ADDRESSES:
            expect.soon(lambda: _reaches(address, 53, "udp"), 20, address, "is not open to whom it names")


def ranges_of_one_family_let_nobody_of_the_other_in(bed):
    with expect.service(bed, "half", kind="LoadBalancer", balancer_ips=ADDRESSES, source_ranges=CLIENT[:1]):
        expect.share("ext", ADDRESSES[0], 80, PODS)
        expect.silent("ext", ADDRESSES[1], 80)


def ranges_of_a_family_that_a_service_has_not_let_nobody_in(bed):
    """Beside those of its own family they mean nothing, and alone they name nobody who could come."""
    for f, family in enumerate(FAMILIES):
        address = ADDRESSES[f]
        with expect.service(bed, f"single-{family}", families=family, kind="LoadBalancer", balancer_ips=[address], source_ranges=CLIENT) as s:
            expect.share("ext", address, 80, PODS)
            expect.silent("n1p2", address, 80)
            bed.put(s.name, PODS, source_ranges=[CLIENT[1 - f]])
            expect.soon(lambda: not _reaches(address, 80), 20, address, "is still open")
            bed.put(s.name, PODS, source_ranges=CLIENT)
            expect.soon(lambda: _reaches(address, 80), 20, address, "stays closed")
