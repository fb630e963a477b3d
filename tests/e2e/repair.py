"""Somebody deletes what is ours: it comes back, and the log says what was missing. Node 1: nf_tables, node 2: legacy."""
import expect
from expect import FAMILIES, PODS
from labkit import kernel, net

AUDIT = ("--ipvs-sync-period=5s",)


def _audited(bed, i):
    """Restarts the agent of node i with a quick audit, and returns where its log goes on."""
    bed.agents[i].stop()
    bed.agents[i].extra = list(AUDIT)
    bed.agents[i].start()
    bed.ready(i)
    return bed.agents[i].position()


def _repaired(bed, i, damage, what):
    """Does the damage, and waits until the node holds again what it held before, and has said so."""
    before = kernel.snapshot(i)
    since = _audited(bed, i)
    damage()
    expect.logged(bed, i, since, "repair", seconds=60)  # that it did damage shows in the word about it
    expect.soon(lambda: kernel.snapshot(i) == before, 60, f"node {i}: {what} not repaired:", kernel.difference(before, kernel.snapshot(i)))


def a_deleted_virtual_service_comes_back(bed):
    with expect.service(bed, "hurt-service") as s:
        for i in (1, 2):
            _repaired(bed, i, lambda: net.node(i, "ipvsadm", "-D", "-t", f"{s.address()}:80"), "the virtual service")
            expect.share(f"n{i}p2", s.address(), 80, PODS)


def a_deleted_destination_comes_back(bed):
    with expect.service(bed, "hurt-destination") as s:
        address = expect.pod("n2p1", "6")
        _repaired(bed, 1, lambda: net.node(1, "ipvsadm", "-d", "-t", f"[{s.address('6')}]:80", "-r", f"[{address}]:8080"), "the destination")
        expect.share("n1p2", s.address("6"), 80, PODS)


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
        _repaired(bed, 1, lambda: net.node(1, *flush), "the set")
        expect.share("n1p2", s.address(), 80, PODS)


def a_deleted_dummy_device_comes_back(bed):
    with expect.service(bed, "hurt-device") as s:
        _repaired(bed, 1, lambda: net.node(1, "ip", "link", "del", "kube-dummy-if"), "the device")
        for family in FAMILIES:
            expect.share("n1p2", s.address(family), 80, PODS)
