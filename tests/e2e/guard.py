"""Only what a Service has answers on a service address. Node 1 has nf_tables rules, node 2 those of legacy iptables."""
import expect
from expect import FAMILIES, PODS
from labkit import kernel


def an_unknown_port_of_a_service_address_is_refused(bed):
    with expect.service(bed, "guarded", external_ips=["198.51.100.40", "2001:db8:51::40"]) as s:
        for f, family in enumerate(FAMILIES):
            for client in ("n1p2", "n2p2", "n1", "n2"):
                expect.refused(client, s.address(family), 81)
                expect.refused(client, s.address(family), 81, "udp")
            expect.refused("ext", ["198.51.100.40", "2001:db8:51::40"][f], 81)
            expect.share("n2p2", s.address(family), 80, PODS)


def a_port_of_the_host_cannot_be_reached_through_a_service_address(bed):
    with expect.service(bed, "not-the-host") as s:
        for i in (1, 2):
            with expect.host_server(i, f"host{i}", [("tcp", 7777), ("udp", 7777)]):
                for f, family in enumerate(FAMILIES):
                    for protocol in ("tcp", "udp"):
                        expect.refused(f"n{i}p2", s.address(family), 7777, protocol)
                        expect.refused(f"n{i}", s.address(family), 7777, protocol)
                    expect.share(f"n{i}p2", bed.plan.addresses(i)[f], 7777, [f"host{i}"])


def a_cluster_ip_that_no_service_has_is_refused(bed):
    with expect.service(bed, "beside-free-ones") as s, expect.default_route_to_nobody(1, 2):
        for client in ("n1p2", "n2p2", "n1", "n2", "ext"):  # packets of the client outside come to node 1
            for free in ("10.96.200.7", "fd00:10:96::9:7"):
                for protocol in ("tcp", "udp") if "p" in client else ("tcp",):  # sending a datagram is an error of its own on a node
                    expect.that(expect.is_connection_refused(client, free, 80, protocol), f"{client} to {free} {protocol}: not refused")
            expect.share(client, s.address(), 80, PODS)
        expect.silent("n1p2", "100.64.9.9", 80)


def rules_are_written_for_the_packet_filter_that_the_node_uses_and_for_no_other(bed):
    with expect.service(bed, "flavour"):
        for i, used, other in ((1, "nft", "legacy"), (2, "legacy", "nft")):
            state = kernel.snapshot(i)
            expect.that(("sluice_proxy" in repr(state["tables"])) == (bed.netfilter == "nftables"), f"node {i} has the tables", state["tables"])
            if bed.netfilter == "nftables":
                rules = [line for part, lines in state.items() if "tables" in part or part == "sets" for line in lines]
                expect.that("KUBE-ROUTER" not in repr(rules) and "kube-router" not in repr(rules), f"node {i} has", rules)
                continue
            for tool in ("iptables", "ip6tables"):
                expect.that(any("KUBE-ROUTER-SERVICES" in rule for rule in state[f"{tool}-{used}"]), f"node {i} lacks {tool}-{used} rules")
                expect.that(not any("KUBE-ROUTER" in rule for rule in state[f"{tool}-{other}"]), f"node {i} has {tool}-{other} rules")
