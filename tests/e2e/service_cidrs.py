"""ServiceCIDR objects that come and go while agents run, from manifests and from an API server, of the families that the cluster has."""
import contextlib

import expect
from expect import PODS
from labkit import kernel, net, objects, own, traffic
from labkit.api import ApiError


@contextlib.contextmanager
def _service_cidr(bed, name, pair):
    """An object with the ranges of this pair that are of the cluster's families. An API server has one of its flag's ranges besides; beside manifests it comes and goes
    with this one, so that the agents take the ranges of their own flag before and behind it."""
    def of(name, pair):
        return {"apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR", "metadata": {"name": name}, "spec": {"cidrs": net.of_families(pair, bed.families)}}
    usual = [of("kubernetes", net.SERVICE_RANGES)] if bed.source.name == "manifests" else []
    bed.source.apply(name, [*usual, of(name, pair)])
    try:
        yield
    finally:
        bed.source.withdraw(name)


@contextlib.contextmanager
def _twin(bed, service, addresses):
    """A second Service over the pods of a Service, with these cluster IPs. An API server gives them out when it has taken their range into use."""
    made, name = objects.service(service), "of-the-new-range"
    made["metadata"]["name"] = name
    made["spec"] |= {"clusterIP": addresses[0], "clusterIPs": addresses}
    items = [made]
    if bed.source.name == "manifests":
        items += objects.slices(service)
        for item in items[1:]:
            item["metadata"] |= {"name": f"{name}-{item['metadata']['name']}"}
            item["metadata"]["labels"] |= {"kubernetes.io/service-name": name}

    def accepted():
        try:
            bed.source.apply(name, items)
        except ApiError:
            return False
        return True
    expect.soon(accepted, 60, "the API server does not give addresses of the range")
    try:
        yield
    finally:
        bed.source.withdraw(name)


def addresses_of_a_service_cidr_that_comes_later_are_guarded_and_served_and_those_of_one_that_goes_are_not(bed):
    """Outside of the range of the flag."""
    ours, unused = (net.of_families(pair, bed.families) for pair in (("10.112.0.9", "fd00:10:97::9"), ("10.112.0.77", "fd00:10:97::77")))
    with expect.service(bed, "ranged") as s:
        with expect.default_route_to_nobody(1):
            for free in unused:
                expect.that(not expect.is_connection_refused("n1p2", free, 80), free, "is refused, and in no range")
        with _service_cidr(bed, "more", ("10.112.0.0/24", "fd00:10:97::/112")), _twin(bed, s, ours):
            for address, free in zip(ours, unused):
                expect.soon(lambda: set(traffic.many("n1p2", address, 80, count=6)["answers"]) == set(PODS), 30, address, "is not served")
                expect.share("n2p2", address, 80, PODS)
                expect.refused("n1p2", address, 81)
                with expect.default_route_to_nobody(1):
                    expect.soon(lambda: expect.is_connection_refused("n1p2", free, 80), 30, free, "is not refused")
        for i in bed.agents:
            expect.soon(lambda: not [k for k in kernel.ipvs(i) if k[1] in ours], 30, f"node {i} still serves it")
        with expect.default_route_to_nobody(1):
            for free in unused:
                expect.soon(lambda: not expect.is_connection_refused("n1p2", free, 80), 60, free, "is still refused, although its range is gone")


def external_addresses_inside_a_service_cidr_are_served_before_it_comes_and_after_it_went_and_not_between(bed):
    inside, beside = (net.of_families(pair, bed.families) for pair in (("198.51.100.91", "2001:db8:51::8b"), ("198.51.100.100", "2001:db8:51::a0")))
    with expect.service(bed, "strict", external_ips=inside + beside) as s:
        def served(address):
            return [i for i in bed.agents if ("TCP", address, 80) in kernel.ipvs(i)]

        def is_answered(client, address):
            outcome = traffic.many(client, address, 80, count=3)
            return not outcome["failed"]
        for address in inside + beside:
            expect.soon(lambda: served(address) == list(bed.agents), 30, address, "is not served:", served(address))
            expect.share("n1p2", address, 80, PODS)
        with _service_cidr(bed, "around", ("198.51.100.88/29", "2001:db8:51::88/125")):
            for address in inside:
                expect.soon(lambda: not served(address), 30, address, "is a cluster IP now, and still served:", served(address))
                expect.that(not is_answered("n1p2", address), address, "is a cluster IP now, and answers")
            for address in beside:
                expect.that(served(address) == list(bed.agents), address, "is in no such range:", served(address))
                expect.share("n1p2", address, 80, PODS)
            for family in bed.families:
                expect.share("n1p2", s.address(family), 80, PODS)
        for address in inside:
            expect.soon(lambda: served(address) == list(bed.agents), 60, address, "is not served again:", served(address))
            expect.that(own.wait(lambda: is_answered("n1p2", address), 30), address, "does not answer again")
            expect.share("n1p2", address, 80, PODS)
