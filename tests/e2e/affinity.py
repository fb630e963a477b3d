"""sessionAffinity: ClientIP."""
import expect
from expect import FAMILIES, PODS
from labkit import kernel


def affinity_keeps_every_client_on_one_endpoint(bed):
    with expect.service(bed, "affine", affinity=600) as s:
        for family in FAMILIES:
            chosen = [expect.one(client, s.address(family), 80) for client in ("n1p2", "n1p3", "n1")]
            expect.that(len(set(chosen)) == 3, "round robin gives three clients three endpoints:", chosen)


def the_timeout_of_the_service_is_the_kernels(bed):
    with expect.service(bed, "timeout", affinity=1234) as s:
        for i in bed.agents:
            for family in FAMILIES:
                options = kernel.ipvs(i)[("TCP", s.address(family), 80)]["options"].split()
                expect.that(options[:2] == ["-p", "1234"], options)


def affinity_can_be_switched_on_and_off_without_breaking_a_connection(bed):
    with expect.service(bed, "switched") as s, expect.load(("n1p2", s.address(), 80), ("n1p3", s.address("6"), 80)):
        for seconds in (300, 0):
            bed.put(s.name, PODS, affinity=seconds)
            expect.soon(lambda: ("-p 300" in kernel.ipvs(1)[("TCP", s.address(), 80)]["options"]) == bool(seconds), 30, "affinity", seconds)
