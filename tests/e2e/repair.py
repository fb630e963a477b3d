"""Somebody deletes what is ours: it comes back, and the log says what was missing. Node 1: nf_tables, node 2: legacy.

The kernel tells nobody of changes to virtual services and to sets of ipset. Those are found by looks (docs/benchmarks.md, "Looking for
drift"), which is seen where no audit can help: the next one is an hour away.
"""
import time

import expect
from expect import FAMILIES, PODS
from labkit import kernel, net
from network_policies import _apply, _firewall, _policy, _reaches

AUDIT = ("--ipvs-sync-period=5s",)
NO_AUDIT = ("--ipvs-sync-period=1h",)
# Seconds until a look has found what the kernel tells nobody, and it is put back. Looks take a thousandth of a processor at most, so on an emulated
# one, where each takes many times as long, they come as much more rarely.
EMULATED = "QEMU TCG" in open("/proc/cpuinfo").read()
LOOKS = 150 if EMULATED else 15
# The same where the kernel counts the commands that others give to IPVS.
COUNTED = 30 if EMULATED else 15


def _with(bed, i, flags):
    """Where the log of the agent of node i goes on, which has these flags from now on."""
    if bed.agents[i].extra != list(flags):
        bed.agents[i].stop()
        bed.agents[i].extra = list(flags)
        bed.agents[i].start()
        bed.ready(i)
    return bed.agents[i].position()


def _repaired(bed, i, damage, what):
    """Does the damage, and waits until the node holds again what it held before, and has said so."""
    _comes_back(bed, i, _with(bed, i, AUDIT), damage, what, 60)


def _found_by_looks(bed, i, damage, what):
    """As `_repaired`, without an audit."""
    _comes_back(bed, i, _with(bed, i, NO_AUDIT), damage, what, LOOKS)


def _found_by_count(bed, i, damage, what):
    """As `_found_by_looks`, where the agent says that the kernel counts others' commands."""
    since = 0 if bed.agents[i].extra == list(NO_AUDIT) else bed.agents[i].position()
    _with(bed, i, NO_AUDIT)
    expect.logged(bed, i, since, "IPVS commands of other programs are counted", seconds=60)
    _comes_back(bed, i, bed.agents[i].position(), damage, what, COUNTED)


def _comes_back(bed, i, since, damage, what, seconds):
    before = kernel.snapshot(i)
    end = time.monotonic() + seconds
    damage()
    expect.logged(bed, i, since, "repair", seconds=seconds)  # that it did damage shows in the word about it
    expect.soon(lambda: kernel.snapshot(i) == before, max(end - time.monotonic(), 1), f"node {i}: {what} not repaired:",
                kernel.difference(before, kernel.snapshot(i)))


def a_deleted_virtual_service_comes_back(bed):
    with expect.service(bed, "hurt-service") as s:
        for i in (1, 2):
            _found_by_looks(bed, i, lambda: net.node(i, "ipvsadm", "-D", "-t", f"{s.address()}:80"), "the virtual service")
            expect.share(f"n{i}p2", s.address(), 80, PODS)


def a_deleted_destination_comes_back(bed):
    with expect.service(bed, "hurt-destination") as s:
        for family in FAMILIES:
            service, pod = (_at(a, port) for a, port in ((s.address(family), 80), (expect.pod("n2p1", family), 8080)))
            _found_by_looks(bed, 1, lambda: net.node(1, "ipvsadm", "-d", "-t", service, "-r", pod), f"the destination {pod}")
            expect.share("n1p2", s.address(family), 80, PODS)


def another_weight_of_a_destination_is_taken_back(bed):
    with expect.service(bed, "hurt-weight") as s:
        for family in FAMILIES:
            service, pod = (_at(a, port) for a, port in ((s.address(family), 80), (expect.pod("n2p1", family), 8080)))
            _found_by_count(bed, 1, lambda: net.node(1, "ipvsadm", "-e", "-t", service, "-r", pod, "-m", "-w", "7"), f"the weight of {pod}")
            expect.share("n1p2", s.address(family), 80, PODS)


def _at(address, port):
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def a_cleared_table_of_virtual_services_comes_back(bed):
    with expect.service(bed, "hurt-table") as s:
        for i in (1, 2):
            _found_by_looks(bed, i, lambda: net.node(i, "ipvsadm", "-C"), "the virtual services")
            for family in FAMILIES:
                expect.share(f"n{i}p2", s.address(family), 80, PODS)


def a_deleted_service_address_comes_back(bed):
    with expect.service(bed, "hurt-address") as s:
        for family in FAMILIES:
            flag = f"-{family}"
            _repaired(bed, 1, lambda: net.node(1, "ip", flag, "route", "del", "local", s.address(family), "dev", "kube-dummy-if", "table", "local"),
                      "the local route")
            expect.share("n1p2", s.address(family), 80, PODS)


def flushed_chains_come_back(bed):
    with expect.service(bed, "hurt-rules") as s:
        for i in (1, 2):
            for damage in _damages(bed, i):
                if bed.netfilter == "nftables" and expect.kept_from_others(i, *damage):
                    continue
                _repaired(bed, i, lambda: net.node(i, *damage), " ".join(damage))
            expect.refused(f"n{i}p2", s.address(), 81)


def _damages(bed, i):
    """Commands that take rules of ours away from node i."""
    if bed.netfilter == "nftables":
        table = ("inet", "sluice_proxy")
        return [("nft", "flush", "chain", *table, "service_guard"), ("nft", "flush", "chain", *table, "service_snat"), ("nft", "delete", "table", *table)]
    program = f"{{}}-{expect.flavour(bed, i)}"
    return [(program.format(tool), "-w", "-t", table, "-F", chain) for tool, chain, table in
            (("iptables", "KUBE-ROUTER-SERVICES", "filter"), ("ip6tables", "KUBE-ROUTER-SERVICES", "filter"), ("iptables", "POSTROUTING", "nat"))]


def elements_taken_out_of_a_set_come_back(bed):
    with expect.service(bed, "hurt-set") as s:
        flush = {"iptables": ("ipset", "flush", "kube-router-svip-prt"), "nftables": ("nft", "flush", "set", "inet", "sluice_proxy", "ports4")}[bed.netfilter]
        address, port = s.address(), 80
        delete = {"iptables": ("ipset", "del", "kube-router-svip-prt", f"{address},tcp:{port}"),
                  "nftables": ("nft", "delete", "element", "inet", "sluice_proxy", "ports4", f"{{ {address} . tcp . {port} }}")}[bed.netfilter]
        for damage in (flush, delete):
            if bed.netfilter == "nftables" and expect.kept_from_others(1, *damage):
                continue
            _found_by_looks(bed, 1, lambda: net.node(1, *damage), " ".join(damage))
            expect.share("n1p2", address, port, PODS)


def what_policies_refuse_is_refused_again_when_somebody_deletes_their_rules(bed):
    """Where the kernel knows no owners of tables anybody may change them; else it refuses that, and they refuse packets all the same."""
    address = expect.pod("n3p1", "4")
    with _firewall(bed, *NO_AUDIT):
        _apply(bed, "policies", [_policy("nobody", {"pod": "n3p1"}, policyTypes=["Ingress"], ingress=[])])
        expect.soon(lambda: not _reaches("n2p1", address, "tcp"), 30, "the policy refuses nobody")
        before = kernel.snapshot(3)
        table = ("inet", "sluice_policy")
        for damage in (("flush", "chain", *table, "forward_ingress"), ("flush", "map", *table, "ingress4"), ("flush", "table", *table), ("delete", "table", *table)):
            since = bed.agents[3].position()
            if not expect.kept_from_others(3, "nft", *damage):
                net.node(3, "nft", *damage)
                expect.logged(bed, 3, since, "repair", seconds=60)
                expect.soon(lambda: kernel.snapshot(3) == before, 60, f"nft {' '.join(damage)} is not repaired:", kernel.difference(before, kernel.snapshot(3)))
            expect.that(not _reaches("n2p1", address, "tcp"), f"after nft {' '.join(damage)} the policy refuses nobody")


what_policies_refuse_is_refused_again_when_somebody_deletes_their_rules.netfilter = "nftables"


def a_deleted_dummy_device_comes_back(bed):
    with expect.service(bed, "hurt-device") as s:
        _repaired(bed, 1, lambda: net.node(1, "ip", "link", "del", "kube-dummy-if"), "the device")
        for family in FAMILIES:
            expect.share("n1p2", s.address(family), 80, PODS)


# A cleared table and a deleted destination show the same each day, in both courses of looks.
a_deleted_virtual_service_comes_back.long = another_weight_of_a_destination_is_taken_back.long = True
