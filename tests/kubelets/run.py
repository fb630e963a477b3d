#!/usr/bin/python3
"""Real kubelets: run.py BINARY [--nodes 1] [--joining 0] [--manifest NAME...] [--set VALUE...] [--without TEST...] [--short] [--move KIND] [--services] [--proxy-mode MODE] [--keep] [--go-on]. Root. One test after the other, each on what the one before has left; the first failure ends it.

NAME is a file of daemonset/ without its end, which is installed as a newcomer does; or of what others apply (integrators.py), of which several may be named:
one after the other on the same nodes. `integrators` are all that are not kube-router's own files, `upstream` are these and they. Where a file has no service proxy, kube-proxy runs beside it. KIND is another network that two nodes on
this machine leave and get back (moves.py), beside kube-proxy in its MODE; with --services, in the guest, they leave that too and get it back. kube-router and calico are two of them, in the guest, with all that they do.
"""
import argparse
import os
import signal
import sys
import time
import traceback

TREE = os.path.dirname(os.path.dirname(os.path.dirname(os.path.realpath(__file__))))
sys.path[:0] = [os.path.join(TREE, "scripts"), os.path.dirname(os.path.realpath(__file__))]
sys.dont_write_bytecode = True
from labkit import cluster, own  # noqa: E402
from bed import MANIFEST, Bed  # noqa: E402
import calico  # noqa: E402
import dns  # noqa: E402
import flannel  # noqa: E402
import integrators  # noqa: E402
import joining  # noqa: E402
import kube_router  # noqa: E402
import moves  # noqa: E402
import newcomer  # noqa: E402
import reboots  # noqa: E402
import theirs  # noqa: E402
import tunnels  # noqa: E402

NEWCOMER = [
    newcomer.nodes_wait_for_a_network, newcomer.a_host_is_asked_before_an_agent_starts, newcomer.the_manifest_makes_the_nodes_ready, newcomer.pods_get_addresses_and_pass_their_probes,
    newcomer.agents_have_nothing_to_complain_of, newcomer.a_service_answers_on_every_node_and_its_node_port, newcomer.a_pod_answers_on_a_port_of_its_node,
    dns.names_of_services_are_found, newcomer.a_policy_closes_the_pods, joining.a_node_joins, newcomer.an_update_of_the_agents_fails_no_request_and_loses_no_packet,
    newcomer.all_nodes_say_how_they_stand_and_one_makes_a_bundle,
    newcomer.pods_leave_a_node_that_is_drained_and_services_go_on, reboots.a_node_comes_back_from_a_reboot,
    newcomer.the_removal_leaves_nothing]

# What one node shows within minutes.
SHORT = [
    newcomer.nodes_wait_for_a_network, newcomer.a_host_is_asked_before_an_agent_starts, newcomer.the_manifest_makes_the_nodes_ready, newcomer.pods_get_addresses_and_pass_their_probes,
    newcomer.agents_have_nothing_to_complain_of, newcomer.a_service_answers_on_every_node_and_its_node_port, newcomer.a_policy_closes_the_pods,
    newcomer.the_removal_leaves_nothing]

# The same with direct server return.
WITH_TUNNELS = [*SHORT[:-1], tunnels.a_pod_gets_a_tunnel, tunnels.the_removal_takes_the_tunnel_out_of_the_pod]

OF_SEVERAL = [newcomer.pods_leave_a_node_that_is_drained_and_services_go_on, reboots.a_node_comes_back_from_a_reboot]

KUBE_ROUTER = "kube-router"  # of --move
HOST_SECONDS = 900  # of the life of a cluster, for what another applies to one node
MOVE_SECONDS = 4 * 3600  # the same for a move, which takes two hours beside a second guest and compilers

GROUPS = {"integrators": [name for name in integrators.RENDERINGS if not name.startswith("upstream-")], "upstream": list(integrators.RENDERINGS)}


def newcomers(nodes, joining_nodes):
    """The tests for so many nodes, and those that join later; says which want more."""
    without = [*([] if joining_nodes else [joining.a_node_joins]), *(OF_SEVERAL if nodes + joining_nodes == 1 else [])]
    for test in without:
        own.say(f"left out, for want of nodes: {test.__name__}")
    return [test for test in NEWCOMER if test not in without]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("binary")
    parser.add_argument("--nodes", type=int, default=1)
    parser.add_argument("--joining", type=int, default=0, help="how many nodes more join later")
    parser.add_argument("--manifest", action="append", help=f"of daemonset/, or some of: {', '.join([*GROUPS, *integrators.RENDERINGS])}")
    parser.add_argument("--set", action="append", default=[], dest="values", help=f"a value of the chart: netfilter=iptables, ipv6=true, firewall.holdPods=true; {tunnels.VALUE} with --short")
    parser.add_argument("--helm", action="store_true", help="the chart is installed by Helm, with the values of that file, in its place")
    parser.add_argument("--without", action="append", default=[], help="a test that is left out, by a part of its name")
    parser.add_argument("--short", action="store_true", help="of a newcomer's way what one node shows within minutes")
    parser.add_argument("--move", choices=(*flannel.KINDS, KUBE_ROUTER, calico.NAME))
    parser.add_argument("--services", action="store_true", help="move Services from kube-proxy and back, too")
    parser.add_argument("--proxy-mode", choices=("iptables", "nftables", "ipvs"), default="nftables", help="of kube-proxy beside a move")
    parser.add_argument("--keep", action="store_true", help="leave cluster and guest up after a failure, until a key is pressed")
    parser.add_argument("--go-on", action="store_true", help="go on after a failure")
    known = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started is ended
    if known.services and known.move not in flannel.KINDS:
        parser.error("--services is about a move from flannel")
    if known.move in (KUBE_ROUTER, calico.NAME) and known.manifest:
        parser.error("this move installs what it is about")
    names = [name for one in known.manifest or [MANIFEST] for name in GROUPS.get(one, [one])]
    if known.short and (known.move or known.joining or known.nodes > 1 or any(name in integrators.RENDERINGS for name in names)):
        parser.error("--short is a newcomer's way on one node")
    if known.helm and not known.short:
        parser.error("--helm is a newcomer's way on one node: --short")
    if known.move == calico.NAME:
        bed, tests = Bed(known.binary, max(2, known.nodes), calico.MANIFEST, [*calico.VALUES, *known.values], seconds=MOVE_SECONDS), calico.FromCalico().tests()
    elif known.move:
        is_whole = known.services or known.move == KUBE_ROUTER
        place = {"name": MANIFEST} if is_whole else {"name": "kubeadm-kuberouter", "kind": "native"}
        bed, tests = Bed(known.binary, max(2, known.nodes), values=known.values, proxy_mode=known.proxy_mode, seconds=MOVE_SECONDS, **place), (kube_router.Move() if known.move == KUBE_ROUTER else moves.Move(known.move, known.services)).tests()
    elif any(name in integrators.RENDERINGS for name in names):
        bed, tests = Bed(known.binary, known.nodes, seconds=max(cluster.SECONDS, HOST_SECONDS * known.nodes * len(names))), theirs.tests(names, known.nodes)
    elif len(names) == 1:
        has_tunnels = known.short and tunnels.VALUE in known.values
        bed = Bed(known.binary, known.nodes, names[0], [*known.values, *([tunnels.WITH_RANGE] if has_tunnels else [])], known.joining, is_updated=not known.short)
        tests = [(test.__name__, test) for test in (newcomers(known.nodes, known.joining) if not known.short else WITH_TUNNELS if has_tunnels else SHORT)]
    else:
        raise own.LabError("one file of daemonset/ at a time")
    tests = [(name, test) for name, test in tests if not any(part in name for part in known.without)]
    passed, failed = 0, 0
    bed.by_helm = known.helm
    try:
        began = time.monotonic()
        bed.up()
        own.say(f"up in {time.monotonic() - began:.0f} s")
        for name, test in tests:
            began, word = time.monotonic(), "ok"
            try:
                test(bed)
                passed += 1
            except Exception:
                traceback.print_exc(file=sys.stdout)
                failed, word = failed + 1, "FAILED"
            print(f"{word:<7}{name} ({time.monotonic() - began:.0f} s)", flush=True)
            if failed and not known.go_on:
                break
        if failed and known.keep:
            print("kept; SIGTERM ends it", flush=True)
            signal.pause()
    finally:
        bed.down()
    print(f"kubelets: {passed} passed, {len(tests) - passed} failed", flush=True)
    return 0 if passed == len(tests) else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except own.LabError as error:
        own.say(f"kubelets: {error}")
        print("kubelets: 0 passed, 1 failed")
        sys.exit(1)
