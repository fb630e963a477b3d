"""A living cluster whose agents get other flags node by node, as a rolling update of a DaemonSet gives them, while pods of all nodes talk.

The nodes are those of `routing.py`: three, of which the second is in another subnet.
"""
import contextlib
import itertools
import subprocess
import time

import expect
from expect import FAMILIES
from labkit import kernel, net, objects, packets
from router import OVERLAY, encryption_keys, everyone, everything, reattach, run_encrypted, run_with, show, sizes, tunnels

ON_ONE_LINK, BETWEEN_SUBNETS = {"n1p1": ["n3p1"]}, {"n1p1": ["n2p1"], "n2p1": ["n3p1"]}
DEVICES = {"ipip": "tun-", "fou": "tun-", "vxlan": "sluice-vxlan", "wireguard": "sluice-wg0"}


@expect.whole
def from_ipip_to_fou_between_subnets_each_end_of_a_tunnel_loses_one_packet_by_ipv6_at_most(bed):
    _change(bed, "ipip", "fou")


@expect.whole
def from_fou_to_vxlan_between_subnets_no_packet_is_lost(bed):
    _change(bed, "fou", "vxlan")


@expect.whole
def from_vxlan_to_wireguard_between_subnets_no_packet_is_lost(bed):
    _change(bed, "vxlan", "wireguard")


@expect.whole
def from_wireguard_to_ipip_between_subnets_no_packet_is_lost(bed):
    _change(bed, "wireguard", "ipip")


@expect.whole
def from_ipip_to_fou_between_all_nodes_each_end_of_a_tunnel_loses_one_packet_by_ipv6_at_most(bed):
    _change(bed, "ipip", "fou", is_full=True)


@expect.whole
def from_fou_to_vxlan_between_all_nodes_no_packet_is_lost(bed):
    _change(bed, "fou", "vxlan", is_full=True)


@expect.whole
def from_vxlan_to_wireguard_between_all_nodes_no_packet_is_lost(bed):
    _change(bed, "vxlan", "wireguard", is_full=True)


@expect.whole
def from_wireguard_to_ipip_between_all_nodes_no_packet_is_lost(bed):
    _change(bed, "wireguard", "ipip", is_full=True)


def _change(bed, former, latter, is_full=False):
    """The three rollouts of the guide, while pods run on with the MTU that they have."""
    flags = OVERLAY["full"] if is_full else []
    if former == "wireguard":
        run_encrypted(bed, *flags)
    else:
        run_with(bed, f"--overlay-encap={former}", *flags)
    if is_full:
        reattach(bed)
    # A device of `ipip` becomes one of `fou` in place, and the kernel (`ip6_tnl_update`) takes nothing by one for IPv6 for the milliseconds that it needs.
    # So each end of a tunnel may lose what would have arrived then: one packet of a stream, which has one in 50 ms.
    bearable = 2 if {former, latter} == {"ipip", "fou"} else 0
    with _strict_filtering(bed), _conversations(bed, bearable, bearable if is_full else 0) as step:
        for sent, received in ((former, latter), (latter, former), (latter, None)):
            named = [f"--overlay-encap={sent}", *([f"--overlay-encap-receive={received}"] if received else [])]
            since = {i: agent.position() for i, agent in bed.agents.items()}
            for i in bed.agents:
                before = _numbers(i)
                step(f"node {i} {' '.join(named)}")
                _turn(bed, i, *flags, *named)
                anew = [name for name, number in _numbers(i).items() if before.get(name, number) != number]
                expect.that(not anew, f"{named}: node {i} has made anew", anew)
            if received == "wireguard":
                _tell_keys(bed, since)
            for i in bed.agents:
                _sends_by(bed, i, sent, is_full)
            for client, server in itertools.permutations([f"n{i}p1" for i in bed.agents], 2):
                for family in FAMILIES:
                    packets.bulk(client, expect.pod(server, family), objects.TARGET)
    # With tunnels between all nodes pods have the MTU that the former kind leaves, and the bridge what the latter one does.
    ends = [sizes(f"{kind}, full") for kind in (former, latter)] if is_full else [sizes(latter)]
    everyone(bed, sizes={f: min(end[f] for end in ends) for f in FAMILIES}, everywhere=is_full)
    run_with(bed, attach=is_full)


@expect.whole
def without_receiving_the_other_kind_nodes_on_one_link_lose_nothing_and_nodes_of_different_kinds_lose_what_takes_a_tunnel(bed):
    """This also shows that packets which are lost between two rollouts are noticed by all tests here."""
    lost = {}
    with expect.stream({"n1p1": ["n3p1"]}):
        for i in bed.agents:
            with _counted("n1p1", "n2p1") as between_1_and_2, _counted("n2p1", "n3p1") as between_2_and_3:
                _turn(bed, i, "--overlay-encap=vxlan")
                time.sleep(1)
            lost[i] = [between_1_and_2, between_2_and_3]
    cut_off = {i: [count["lost"] > 10 for count in counts] for i, counts in lost.items()}
    # From the change of node 1 to that of node 2, and from that of node 2 to that of node 3.
    expect.that(cut_off[1] == [True, False] and cut_off[2][1] and not cut_off[3][0], "lost:", lost)
    everyone(bed, sizes=sizes("vxlan"))


@contextlib.contextmanager
def _counted(client, server):
    """Packets as those of `expect.stream`; what is given has their outcome in the end."""
    running, outcome = packets.Stream(client, [(expect.pod(server, family), objects.TARGET) for family in FAMILIES]), {}
    try:
        yield outcome
    finally:
        outcome.update(running.stop())


def _numbers(i):
    """{device: its number in the kernel} of node i."""
    return {link["ifname"]: link["ifindex"] for link in show(i, "0", "link", "show")}


def _turn(bed, i, *flags):
    """What a rolling update does with one node: its agent ends, one with other flags comes, and the next node has to wait until that one is ready."""
    agent = bed.agents[i]
    agent.stop()
    agent.extra = [*bed.flags, *flags]
    agent.start()
    bed.ready(i)


def _tell_keys(bed, since):
    """Who writes the Nodes puts there the keys that agents have said; between the first rollout and the second one the guide wants all of them known."""
    expect.soon(lambda: all(encryption_keys(bed, since).values()), 60, "an agent has not said its key")
    notes = {i: {"kube-router.io/wireguard-public-key": key} for i, key in encryption_keys(bed, since).items()}
    bed.source.nodes(bed.plan, annotations=notes)
    expect.soon(lambda: not any("wireguard-public-key" in str(kernel.http_get(i, "/readyz")) for i in bed.agents), 60, "an agent lacks keys")


def _sends_by(bed, i, kind, everywhere):
    """The routes of node i to pods behind tunnels lead through devices of a kind; those behind them that refuse what cannot be encrypted do not count."""
    for f, family in enumerate(FAMILIES):
        ways = {route["dst"]: route["dev"] for route in show(i, family, "route", "show", "proto", "17") if route.get("type") != "unreachable"}
        behind = [bed.plan.pod_ranges(j)[f] for j in bed.agents if j != i and (everywhere or bed.plan.far(i) != bed.plan.far(j))]
        expect.that(all(ways.get(block, "").startswith(DEVICES[kind]) for block in behind), f"node {i} is to send by {kind}, but has", ways)
    if kind in ("ipip", "fou"):
        expect.that(all(("gue" in str(tunnel)) == (kind == "fou") for tunnel in tunnels(i).values()), f"node {i} is to send by {kind}, but has", tunnels(i))


@contextlib.contextmanager
def _strict_filtering(bed):
    """As hosts have it for IPv4: what arrives by another device than a route leads back through is dropped, where the agent does not let it in."""
    def write(value):
        for i in bed.agents:
            net.node(i, "sysctl", "-qw", f"net.ipv4.conf.all.rp_filter={value}")
    write(1)
    try:
        yield
    finally:
        write(0)


@contextlib.contextmanager
def _conversations(bed, bearable=0, bearable_on_one_link=0):
    """Between pods of all nodes, in both families: packets of which every one arrives and comes back, and TCP connections that last.

    Of packets by IPv6 so many as are bearable may be lost from one pod to another. What is given is called with the name of each step: these connections
    go on there, and when packets are lost, or one stands still, the steps are named with their times.
    """
    names, began = [], time.monotonic()
    with contextlib.ExitStack() as stack:
        lasting = [one for pairs in (ON_ONE_LINK, BETWEEN_SUBNETS) for client, servers in pairs.items() for server in servers for family in FAMILIES
                   for one in stack.enter_context(expect.held(client, expect.pod(server, family), objects.TARGET, count=1))]

        def step(name):
            expect.go_on(lasting)
            names.append(f"{time.monotonic() - began:.2f} s: {name}")

        try:
            with expect.stream(BETWEEN_SUBNETS, bearable=bearable), expect.stream(ON_ONE_LINK, bearable=bearable_on_one_link):
                yield step
                step("the end")
        except (AssertionError, OSError) as error:
            raise AssertionError(f"{error}; steps: {names}") from error


def node_routes_change_node_by_node_and_back_without_a_lost_packet_and_without_a_changed_route(bed):
    _change_source_and_back(bed)


@expect.whole
def node_routes_change_slowly(bed):
    """The first node is alone for longer than the 90 s for which nodes keep each other's routes."""
    _change_source_and_back(bed, alone=100)


def _change_source_and_back(bed, alone=0):
    """As a rolling update does it, which waits for each node to be ready."""
    before = {i: everything(i) for i in bed.agents}
    with _conversations(bed) as step, _no_route_to_pods_changes(bed):
        for source in ("api", "bgp"):
            for i in bed.agents:
                step(f"node {i} --node-routes={source}")
                _turn(bed, i, f"--node-routes={source}")
                made = kernel.metric(i, "sluice_router_steps")
                expect.that(made == 0, f"node {i} says that it made {made} changes with {source}")
                time.sleep(alone if i == 1 else 0)
            bed.ready()
            for i in bed.agents:
                after = everything(i)
                expect.that(after == before[i], f"node {i} when all have {source}:", kernel.difference(before[i], after))


@contextlib.contextmanager
def _no_route_to_pods_changes(bed):
    """The kernels of all nodes tell of no change to a route to pods, not even of one that is taken back."""
    paths = {i: f"{net.RUN}/routes-of-{i}.txt" for i in bed.agents}
    watching = {}
    for i, path in paths.items():
        with open(path, "w") as out:
            watching[i] = subprocess.Popen(["/sbin/ip", "-n", f"n{i}", "monitor", "route"], stdout=out)
    try:
        yield
    finally:
        ended = [i for i, process in watching.items() if process.poll() is not None]
        for process in watching.values():
            process.terminate()
            process.wait(30)
    expect.that(not ended, "nobody listened to the routes of nodes", ended)
    told = {}
    for i, path in paths.items():
        with open(path) as lines:
            told[i] = [line for line in lines if "10.244." in line or "fd00:10:244:" in line]
    expect.that(not any(told.values()), "routes to pods changed:", told)
