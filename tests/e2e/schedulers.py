"""Schedulers by annotation, seen in who answers and in the kernel's own words."""
import expect
from expect import FAMILIES, PODS
from labkit import kernel, net, traffic

ANNOTATION = "kube-router.io/service.scheduler"
FLAGS = "kube-router.io/service.schedflags"
ALL = ["rr", "wrr", "lc", "wlc", "sh", "dh", "mh", "sed", "nq", "lblc", "lblcr", "fo", "ovf"]


def round_robin_gives_every_endpoint_the_same_share(bed):
    with expect.service(bed, "rr") as s:
        for family in FAMILIES:
            for client in ("n1p2", "n2p2", "n3p2"):
                expect.share(client, s.address(family), 80, PODS)


def least_connections_chooses_the_endpoint_with_the_fewest_open_connections(bed):
    with expect.service(bed, "lc", annotations={ANNOTATION: "lc"}) as s:
        for family in FAMILIES:
            with net.Inside("n1p2"):
                held = [traffic.connect(s.address(family), 80) for _ in range(3)]
                by = {traffic.exchange(sock)[0]: sock for sock in held}
                expect.that(sorted(by) == PODS, "three open connections are not on three endpoints:", sorted(by))
                extra = [traffic.connect(s.address(family), 80) for _ in range(3)]
                more = sorted(traffic.exchange(sock)[0] for sock in extra)
                for sock in held + extra:
                    sock.close()
            expect.that(more == PODS, "the next three are not spread either:", more)


def source_hashing_keeps_every_client_on_one_endpoint(bed):
    with expect.service(bed, "sh", annotations={ANNOTATION: "sh"}) as s:
        for family in FAMILIES:
            chosen = {client: expect.one(client, s.address(family), 80) for client in ("n1p2", "n1p3", "n1")}
            expect.that(len(set(chosen.values())) > 1, "all clients share one endpoint:", chosen)


def destination_hashing_sends_all_clients_to_one_endpoint(bed):
    with expect.service(bed, "dh", annotations={ANNOTATION: "dh"}) as s:
        for family in FAMILIES:
            chosen = {expect.one(client, s.address(family), 80) for client in ("n1p2", "n1p3", "n1")}
            expect.that(len(chosen) == 1, "more than one endpoint:", chosen)


def maglev_hashing_takes_its_flags(bed):
    with expect.service(bed, "mh", annotations={ANNOTATION: "mh", FLAGS: "flag-1,flag-2"}) as s:
        for family in FAMILIES:
            found = kernel.ipvs(1)[("TCP", s.address(family), 80)]
            expect.that(found["scheduler"] == "mh", found)
            expect.that("mh-fallback" in found["options"] and "mh-port" in found["options"], found)
            expect.many("n1p2", s.address(family), 80)


def every_scheduler_of_the_kernel_can_be_chosen(bed):
    made = [bed.put(f"scheduler-{name}", PODS[:2], annotations={ANNOTATION: name}) for name in ALL]
    try:
        bed.settle(*made)
        present = kernel.ipvs(1)
        for name, s in zip(ALL, made):
            for family in FAMILIES:
                expect.that(present[("TCP", s.address(family), 80)]["scheduler"] == name, name, present[("TCP", s.address(family), 80)])
    finally:
        for s in made:
            bed.delete(s)


def a_changed_scheduler_reaches_the_kernel_and_breaks_no_connection(bed):
    # New connections may be refused for the moment in which the kernel has taken the old scheduler off and not yet
    # put the new one on (ip_vs_edit_service waits for a grace period between the two); open ones must not notice.
    with expect.service(bed, "changing") as s:
        with net.Inside("n1p2"):
            held = [traffic.connect(s.address(), 80) for _ in range(6)]
            names = [traffic.exchange(sock)[0] for sock in held]
        for name in ("sh", "lc", "rr"):
            bed.put(s.name, PODS, annotations={ANNOTATION: name})
            expect.soon(lambda: kernel.ipvs(1)[("TCP", s.address(), 80)]["scheduler"] == name, 30, "no", name)
            expect.that([traffic.exchange(sock)[0] for sock in held] == names, "connections moved with scheduler", name)
        for sock in held:
            sock.close()
        expect.share("n1p2", s.address(), 80, PODS)
