"""The router on three nodes of which the second is in another subnet: no route to a pod is there but those that agents make.

Pods are attached by the CNI plugins, with the file that the agent wrote. Node 2 has legacy iptables. What is on one link
is in `routing_flat.py`.
"""
import itertools

import expect
from expect import FAMILIES
from labkit import kernel, net, objects, own, packets, traffic
from labkit.agent import FLAGS, family_flags
from router import OVERLAY, everyone, everything, is_full, known_way, learned, receive_ports, run_encrypted, run_overlay, run_with, sizes, tunnels

# What each family alone goes through each day; the rest of `OVERLAY` with --whole.
DAILY = ["none", "subnet", "full"]


def pods_of_all_nodes_reach_each_other(bed):
    everyone(bed, sizes=sizes("subnet"))
    for i in bed.agents:
        for family in FAMILIES:
            expect.that(len(learned(i, family)) == 2, f"node {i} has learned", learned(i, family))
        # Two of the nodes are on one link, so that only what leads to or comes from the other one has tunnels.
        expect.that(len(tunnels(i)) == (4 if bed.plan.far(i) else 2), f"node {i} has", tunnels(i))
        with open(net.cni_file(i)) as handle:
            text = handle.read()
        expect.that(all(r in text for r in bed.plan.pod_ranges(i)) and '"mtu":1500' in text, "the CNI file says", text)


def outside_a_pod_has_the_nodes_address_and_inside_its_own(bed):
    with expect.server("ext", [("tcp", 8080), ("udp", 8080)]), expect.host_server(2, "host", [("tcp", 8081)]):
        for i in bed.agents:
            for f, family in enumerate(FAMILIES):
                for protocol in ("tcp", "udp"):
                    seen = traffic.ask(f"n{i}p1", net.CLIENT[f], 8080, protocol)
                    expect.that(seen == ("ext", bed.plan.addresses(i)[f]), f"a pod of node {i} is seen outside as", seen)
                seen = traffic.ask(f"n{i}p1", bed.plan.addresses(2)[f], 8081)
                expect.that(seen == ("host", expect.pod(f"n{i}p1", family)), f"a pod of node {i} is seen by a node as", seen)


def a_crash_and_a_restart_lose_no_packet_and_change_nothing(bed):
    before = {i: everything(i) for i in (1, 2)}
    with expect.stream({"n1p1": ["n2p1", "n3p1"], "n2p1": ["n3p1"]}):
        for end in ("kill", "stop"):
            for i in (1, 2):
                getattr(bed.agents[i], end)()
            for i in (1, 2):
                bed.agents[i].start()
            bed.ready()
            for i in (1, 2):
                after = everything(i)
                expect.that(after == before[i], f"node {i} after {end}:", kernel.difference(before[i], after))
                steps = kernel.metric(i, "sluice_router_steps")
                expect.that(steps == 0, f"node {i} says that it made {steps} changes after {end}")


def all_agents_together_restart_without_a_lost_packet(bed):
    with expect.stream({"n1p1": ["n2p1", "n3p1"]}):
        for agent in bed.agents.values():
            agent.kill()
        for agent in bed.agents.values():
            agent.start()
        bed.ready()


def what_somebody_deletes_comes_back(bed):
    before = {i: kernel.snapshot(i) for i in (1, 2)}
    for i in before:
        net.ip(f"n{i}", f"link del {next(iter(tunnels(i)))}", f"rule del from {bed.plan.pod_ranges(i)[0]} lookup 77")
        for family in FAMILIES:
            net.node(i, "ip", f"-{family}", "route", "flush", "proto", "17")
    _is_as(before)
    for verb in ("flush", "delete") if bed.netfilter == "nftables" else ():
        for i in before:
            damage = ("nft", verb, "table", "inet", "sluice_router")
            if not expect.kept_from_others(i, *damage):
                net.node(i, *damage)
        _is_as(before)
    everyone(bed, sizes=sizes("subnet"))


def _is_as(before):
    for i in before:
        own.wait(lambda: kernel.snapshot(i) == before[i], 30, 0.5)
        after = kernel.snapshot(i)
        expect.that(after == before[i], f"node {i} is not repaired:", kernel.difference(before[i], after))


def a_link_that_goes_and_comes_has_its_routes_again(bed):
    i = 3
    routes = {family: learned(i, family) for family in FAMILIES}
    # The lab plays the network's own configuration: what the kernel drops with the link comes back by it.
    lines = [line for f in FAMILIES for line in own.run("/sbin/ip", "-n", f"n{i}", f"-{f}", "route", "show", "dev", "eth0").splitlines()]
    static = [line for line in lines if " via " in line and "proto 17" not in line and "mrouted" not in line]
    net.ip(f"n{i}", "link set eth0 down")
    net.ip(f"n{i}", "link set eth0 up", f"addr replace {bed.plan.addresses(i)[1]}/64 dev eth0 nodad",
           *[f"route replace {line} dev eth0" for line in static])
    expect.soon(lambda: {f: learned(i, f) for f in FAMILIES} == routes, 60, f"node {i} lacks routes")
    bed.ready()
    everyone(bed, sizes=sizes("subnet"))


def a_node_that_is_lost_and_comes_back_is_followed_and_the_others_do_not_notice(bed):
    ranges = bed.plan.pod_ranges(2)
    with expect.stream({"n1p1": ["n3p1"]}):
        bed.agents[2].stop()
        bed.source.nodes(bed.plan, [1, 3])
        for i in (1, 3):
            for f, family in enumerate(FAMILIES):
                expect.soon(lambda: ranges[f] not in learned(i, family), 30, f"node {i} still has a route to {ranges[f]}")
            expect.soon(lambda: not tunnels(i), 30, f"node {i} still has", tunnels(i))
            expect.soon(lambda: not _counts_pods(i, ranges[0]), 30, f"node {i} still counts its pods")
        bed.source.nodes(bed.plan)
        bed.agents[2].start()
        bed.ready()
    everyone(bed, sizes=sizes("subnet"))


def _counts_pods(i, block):
    """Whether node i knows a range as one of pods, which reach each other without another address."""
    found, (network, length) = kernel.snapshot(i), block.split("/")
    return any(block in line for line in found["sets"]) or any(network in line and f'"len": {length}' in line for line in found["tables"])


def what_is_not_ours_stays_as_it_is_from_the_start_to_the_cleanup(bed):
    i = 1
    agent = bed.agents[i]
    agent.stop()
    _clean(agent)
    own.run("modprobe", "fou")
    net.ip(f"n{i}", "link add foreign0 type dummy", "link set foreign0 up", "addr add 198.18.0.1/24 dev foreign0",
           "link add tun-foreign type ipip local 192.0.2.11 remote 192.0.2.77", "link set tun-foreign up",
           "link add kube-bridge-2 type bridge", "route add 10.244.77.0/24 dev foreign0 proto static",
           "route add 10.244.78.0/24 dev foreign0 proto 17 table 4321", "route add 198.18.1.0/24 dev foreign0 proto static table 77",
           "rule add pref 4321 from 10.244.1.0/24 lookup 4321", "fou add port 5600 ipproto 4")
    net.node(i, "ipset", "restore", text_in="create kube-router-pod-subnets-2 hash:net family inet\nadd kube-router-pod-subnets-2 10.244.0.0/16\n")
    net.node(i, "iptables-nft-restore", "-w", "--noflush", text_in=
             "*filter\n:KUBE-ROUTER-PODS-2 - [0:0]\n-A FORWARD -i foreign0 -j KUBE-ROUTER-PODS-2\nCOMMIT\n"
             "*nat\n-A POSTROUTING -s 198.18.0.0/24 -o eth0 -j MASQUERADE\nCOMMIT\n")
    before = everything(i)
    try:
        agent.start()
        bed.ready()
        _intact(i, before, "after the start")
        everyone(bed, "4", sizes={"4": 1480})
        agent.stop()
        _intact(i, before, "after the stop")
        _clean(agent)
        after = everything(i)
        # The bridge stays while pods are on it, and with it what the kernel and the CNI plugin have put there.
        for part in before:
            after[part] = [line for line in after[part] if "kube-bridge" not in line or "kube-bridge-2" in line]
            before[part] = [line for line in before[part] if "kube-bridge" not in line or "kube-bridge-2" in line]
        expect.that(after == before, "after cleanup:", kernel.difference(before, after))
    finally:
        if agent.is_alive():
            agent.stop()
        net.ip(f"n{i}", "link del foreign0", "link del tun-foreign", "link del kube-bridge-2", "rule del pref 4321", "fou del port 5600")
        for words in (["filter", "-D", "FORWARD", "-i", "foreign0", "-j", "KUBE-ROUTER-PODS-2"], ["filter", "-X", "KUBE-ROUTER-PODS-2"],
                      ["nat", "-D", "POSTROUTING", "-s", "198.18.0.0/24", "-o", "eth0", "-j", "MASQUERADE"]):
            net.node(i, "iptables-nft", "-w", "-t", *words)
        net.node(i, "ipset", "destroy", "kube-router-pod-subnets-2")
        agent.start()
        bed.ready()


def _intact(i, before, when):
    now = everything(i)
    for part, lines in before.items():
        missing = [line for line in lines if line not in now[part]]
        expect.that(not missing, f"node {i}, {when}: of {part} there is missing", missing)


def _clean(agent):
    status, text = agent.once(*FLAGS, *family_flags(), "--run-router=true", "--cleanup-config")
    expect.that(status == 0, f"--cleanup-config ended with {status}:", text)


def tunnels_inside_udp_carry_both_families(bed):
    run_with(bed, *OVERLAY["fou"])
    expect.that("5555" in "".join(receive_ports(1)), "no port receives", receive_ports(1))
    everyone(bed, sizes=sizes("fou"))


@expect.whole
def encrypted_tunnels_carry_both_families_between_subnets_and_between_all(bed):
    for flags, everywhere in ([], False), (["--overlay-type=full", "--node-routes=api"], True):
        run_encrypted(bed, *flags)
        everyone(bed, sizes=sizes("wireguard"), everywhere=everywhere)
    # Without keys nobody sends, also where the network has a way.
    known_way(bed, "add")
    try:
        bed.source.nodes(bed.plan, annotations={i: {} for i in bed.agents})
        for client, server in itertools.permutations([f"n{i}p1" for i in bed.agents], 2):
            for family in FAMILIES:
                expect.soon(lambda: not _is_reached(client, expect.pod(server, family)), 30, f"{client} to {server} by IPv{family}: packets leave unencrypted")
    finally:
        known_way(bed, "del")
    run_with(bed)
    for i in bed.agents:
        expect.soon(lambda: "sluice-wg0" not in own.run("/sbin/ip", "-n", f"n{i}", "link", "show"), 30, f"node {i} still has the device")


def _is_reached(client, address):
    try:
        return bool(traffic.ask(client, address, objects.TARGET, patience=2))
    except OSError:
        return False


def tunnels_between_all_nodes_carry_both_families(bed):
    run_with(bed, *OVERLAY["full"], attach=True)
    for i in bed.agents:
        expect.that(len(tunnels(i)) == 4, f"node {i} has", tunnels(i))
        expect.that(not receive_ports(i), "a port still receives what nobody sends", receive_ports(i))
    for client, server in itertools.permutations([f"n{i}p1" for i in bed.agents], 2):
        for family in FAMILIES:
            size = packets.largest(client, expect.pod(server, family), objects.TARGET)
            expect.that(size == 1460, f"{client} to {server}: the largest packet has {size} bytes, which no tunnel has to refuse")
            packets.bulk(client, expect.pod(server, family), objects.TARGET)
    run_with(bed, attach=True)


def without_tunnels_the_network_carries_what_leaves_a_subnet(bed):
    known_way(bed, "add")
    try:
        run_with(bed, *OVERLAY["none"])
        for i in bed.agents:
            expect.soon(lambda: not tunnels(i), 30, f"node {i} has", tunnels(i))
            on_link = [j for j in bed.agents if j != i and bed.plan.far(j) == bed.plan.far(i)]
            for f, family in enumerate(FAMILIES):
                expect.that(set(learned(i, family)) == {bed.plan.pod_ranges(j)[f] for j in on_link}, f"node {i} has", learned(i, family))
        everyone(bed)
    finally:
        known_way(bed, "del")


@expect.whole
def nodes_with_ipv4_alone_carry_ipv4(bed):
    for overlay in DAILY:
        _carry(bed, "4", overlay)
    run_with(bed)


def nodes_with_ipv6_alone_carry_ipv6(bed):
    for overlay in DAILY:
        _carry(bed, "6", overlay)
    run_with(bed)


def frames_inside_udp_carry_both_families(bed):
    _carry(bed, "46", "vxlan")
    run_with(bed)


@expect.whole
def tunnels_inside_udp_between_all_nodes_carry_both_families(bed):
    for overlay in ("fou, full", "vxlan, full"):
        _carry(bed, "46", overlay)
    run_with(bed)


@expect.whole
def every_encapsulation_inside_udp_carries_ipv4_alone(bed):
    for overlay in [it for it in OVERLAY if it not in DAILY]:
        _carry(bed, "4", overlay)
    run_with(bed)


@expect.whole
def every_encapsulation_inside_udp_carries_ipv6_alone(bed):
    for overlay in [it for it in OVERLAY if it not in DAILY]:
        _carry(bed, "6", overlay)
    run_with(bed)


def _carry(bed, families, overlay):
    """Nodes of these families alone carry them, by an overlay and by no other way."""
    if overlay == "none":
        known_way(bed, "add")
    try:
        run_overlay(bed, overlay, families)
        for i, other in itertools.product(bed.agents, "46"):
            if other not in families:
                expect.soon(lambda: not learned(i, other), 30, f"{overlay}: node {i} has", learned(i, other))
        everyone(bed, families, sizes=sizes(overlay, families), everywhere=is_full(overlay))
    finally:
        if overlay == "none":
            known_way(bed, "del")
