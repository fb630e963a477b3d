#!/usr/bin/python3
"""Runs the end-to-end tests where the nodes are (a guest, or this machine's namespaces); `scripts/test` calls it.

  run.py [--list] BINARY [--bed manifests|routing|routing-flat|forwarding|api|manifests-ipv4|manifests-ipv6|api-ipv4|api-ipv6] [--netfilter nftables|iptables] [--only WORD] [--leave-out WORD] [--of-each COUNT] [--whole | --long]

A test is a function whose name is a sentence, in one of the modules below; it gets the testbed of its module and says
by an exception what does not hold. Each test makes the Services it needs and takes them away again. One with the attribute `whole` runs with
--whole and --long, and when it is asked for by --only; one with the attribute `long` with --long alone. A module may have the agents run with more flags for all of its tests (`with_agents`).
"""
import argparse
import contextlib
import importlib
import itertools
import json
import os
import signal
import sys
import time
import traceback

TREE = os.path.dirname(os.path.dirname(os.path.dirname(os.path.realpath(__file__))))
sys.path[:0] = [os.path.join(TREE, "scripts"), os.path.join(TREE, "tests", "e2e")]
from labkit import net, own  # noqa: E402
from labkit.testbed import Testbed  # noqa: E402

BEDS = {
    "manifests": ["schedulers", "affinity", "exposure", "protocols", "policies", "guard", "masquerade", "source_ranges", "hairpin", "host_input",
                  "restart", "draining", "near", "health_checks", "service_cidrs", "under_load", "repair", "asking", "bad_input", "one_family", "foreign", "network_policies", "seeing", "backends", "rest", "soak"],
    "routing": ["routing", "routing_changes"],
    "routing-flat": ["routing_flat"],
    "forwarding": ["forwarding", "withdrawal", "leaving", "backends_routed", "going_back", "ways", "rest"],
    "api": ["api", "api_annotations", "api_policies", "addresses", "addresses_walk", "direct_server_return", "service_cidrs", "under_load", "near", "health_checks", "draining", "hairpin", "source_ranges", "policies", "asking", "rest"],
    # Clusters of one family, whose objects come from manifests or from an API server.
    **{f"manifests-ipv{family}": ["one_family_cluster", "service_cidrs", "under_load"] for family in "46"},
    **{f"api-ipv{family}": ["one_family_cluster", "api_one_family", "service_cidrs", "under_load"] for family in "46"},
}
ONE_FAMILY = ("-ipv4", "-ipv6")
# With an API server only with --long: every Service takes its way through two controllers there, and manifests show the same each day. The walk of allocators with a bad way to the server goes on for a minute and more.
# So many Services a second keep the server busy with both processors of a small machine, and the streams of that test, which may not wait for packets that are sent again, have waited too often then.
# Pods that hand over one after the other wait for the controllers each time.
LONG_WITH_API = ["draining", "hairpin", "source_ranges", "policies", "asking", "addresses_walk", "two_hundred_services_are_made_and_two_hundred_removed_a_second",
                 "all_endpoints_are_replaced_one_after_the_other", "the_pods_of_a_node_that_is_drained_hand_over", "the_only_pod_serves_while_it_terminates_until_another_is_ready"]
ROUTER = ["--run-router=true", "--run-service-proxy=false"]
WITH_ROUTER = {"subnets": 2, "routed": True, "flags": ["--run-router=true"]}
# How the beds differ from three nodes with three pods each on one subnet.
SHAPES = {
    "routing": {"pods": 1, "subnets": 2, "routed": True, "flags": ROUTER},
    "routing-flat": {"pods": 1, "routed": True, "flags": ROUTER},
    "forwarding": WITH_ROUTER | {"pods": 1},  # and the service proxy
    **{f"api{of}": WITH_ROUTER for of in ("", *ONE_FAMILY)},
    **{f"manifests{of}": WITH_ROUTER | {"families": of[-1]} for of in ONE_FAMILY},
}
BOUND, LONG_BOUND = 600, 2400  # seconds for one test, and with --long
LEGACY_NODE = 2  # whose iptables rules must be written by the legacy tools; the others' by nf_tables
# Agents take nftables where nothing is said, so every bed runs all of its tests with it. With iptables a bed runs without --long what has rules of
# its own there: these modules and tests.
WITH_IPTABLES = ["exposure", "host_input", "refused_packets_are_named_with_their_pods_and_the_policy_or_the_cluster_wide_one_that_refuses_them", "guard", "masquerade", "hairpin", "source_ranges",
                 "clients_are_served_from_their_own_zone", "each_node_says_how_many_endpoints_it_has_and_clients_of_those_it_names_are_answered",
                 "policies_change_and_change_back", "a_service_is_explained_with_its_endpoints_and_connections_in_both_families",
                 "policies_say_who_reaches_whom_over_every_protocol_and_family",
                 "cleanup_leaves_nothing_of_ours"]


def tests_of(bed, netfilter, only, extent):
    every, long = bool(only) or extent != "daily", extent == "long"
    source = "api" if bed.startswith("api") else "manifests"
    chosen = BEDS[bed] if every or netfilter == "nftables" else WITH_IPTABLES
    for name in BEDS[bed]:
        module = importlib.import_module(name)
        for function in vars(module).values():
            if not callable(function) or getattr(function, "__module__", "") != name or function.__name__.startswith("_"):
                continue
            if isinstance(function, type) or (getattr(function, "long", False) and not long) or (getattr(function, "whole", False) and not every):
                continue
            if bed == "api" and {name, function.__name__} & set(LONG_WITH_API) and not every:
                continue
            if getattr(function, "source", source) != source or getattr(function, "netfilter", netfilter) != netfilter or not {name, function.__name__} & set(chosen):
                continue
            if not only or name in only or any(word in function.__name__ for word in only):
                yield function


def with_agents(tests):
    """The tests, and before and behind neighbouring ones of modules with the same `_begin` that and its `_end`: what gives the agents the flags that
    all of them need, and takes these away. Both count as tests."""
    for begin, some in itertools.groupby(tests, lambda test: getattr(sys.modules[test.__module__], "_begin", None)):
        some = list(some)
        yield from [begin, *some, sys.modules[some[0].__module__]._end] if begin else some


def chosen(tests, leave_out, of_each):
    """Those of the tests that are not left out, so many of each module at most, in their order."""
    kept, count = [], {}
    for test in tests:
        module = test.__module__
        if module in leave_out or any(word in test.__name__ for word in leave_out) or of_each and count.get(module, 0) == of_each:
            continue
        count[module] = count.get(module, 0) + 1
        kept.append(test)
    return kept


def make(bed, netfilter, binary):
    facts = json.loads(os.environ.get("SLUICE_LAB_CLUSTER", "null"))
    served = bed.startswith("api")
    if served and not facts:
        raise own.LabError("the tests with an API server were asked for, and there is none")
    made = Testbed(binary, facts if served else None, netfilter=netfilter, **SHAPES.get(bed, {})).up()
    for tool in ("iptables", "ip6tables") if netfilter == "iptables" else ():  # what a kubelet leaves where legacy is in use
        net.node(LEGACY_NODE, f"{tool}-legacy", "-w", "-t", "mangle", "-N", "KUBE-IPTABLES-HINT")
    made.start_agents()
    made.ready()
    return made


def main():
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("binary", nargs="?")
    parser.add_argument("--list", action="store_true", help="print the names of the tests that would run, and run none")
    parser.add_argument("--bed", action="append", choices=list(BEDS))
    parser.add_argument("--netfilter", action="append", choices=["nftables", "iptables"], help="of all agents; both unless given")
    parser.add_argument("--only", action="append", help="tests with this in their name, or of this module")
    parser.add_argument("--leave-out", action="append", default=[], help="no test with this in its name, or of this module")
    parser.add_argument("--of-each", type=int, help="so many tests of each module at most")
    extent = parser.add_mutually_exclusive_group()
    extent.add_argument("--whole", dest="extent", action="store_const", const="whole", default="daily", help="also what runs each day with one packet filter or without an API server")
    extent.add_argument("--long", dest="extent", action="store_const", const="long", help="and what takes minutes")
    known = parser.parse_args()
    if not known.binary and not known.list:
        parser.error("which program?")
    long = known.extent == "long"
    passed, failed, asked = 0, [], bool(known.only)
    for bed, netfilter in itertools.product(known.bed or [bed for bed in BEDS if not bed.endswith(ONE_FAMILY)], known.netfilter or ("nftables", "iptables")):
        tests = list(with_agents(chosen(tests_of(bed, netfilter, known.only, known.extent), known.leave_out, known.of_each)))
        if not tests:
            continue
        asked = True
        if known.list:
            print("\n".join(f"{bed}, {netfilter}: {test.__name__}" for test in tests))
            continue
        print(f"-- {bed}, {netfilter}: {len(tests)} tests", flush=True)
        with bounded(long):
            here = make(bed, netfilter, known.binary)
        try:
            for test in tests:
                if run(test, here, long):
                    passed += 1
                else:
                    failed.append(f"{bed}, {netfilter}: {test.__name__.lstrip('_')}")
        finally:
            here.down()
    if known.list:
        return 0
    for name in failed:
        print(f"FAILED {name}", flush=True)
    print(f"e2e: {passed} passed, {len(failed)} failed", flush=True)
    # With iptables alone a bed may have no test of each day.
    return 1 if failed or asked and not passed else 0


@contextlib.contextmanager
def bounded(long):
    """What takes longer than any test has ended badly: a test that waits for ever would take the others with it."""
    bound = LONG_BOUND if long else BOUND

    def late(*_):
        raise TimeoutError(f"not done after {bound} s")

    signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, bound, 20)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def run(test, bed, long):
    began = time.monotonic()
    try:
        with bounded(long):
            test(bed)
        wrong = ""
    except Exception:  # whatever went wrong, the other tests still run
        wrong = traceback.format_exc()
    print(f"{'FAILED' if wrong else 'ok    '} {test.__name__.lstrip('_')} ({time.monotonic() - began:.1f} s)", flush=True)
    if wrong:
        print(wrong, flush=True)
        for i in bed.agents:
            print(f"log of the agent of node {i}:\n{bed.tail(i)}", flush=True)
    try:
        with bounded(long):
            bed.restore()
    except Exception:
        print(f"FAILED {test.__name__.lstrip('_')} (and the agents are not what they were)", flush=True)
        traceback.print_exc(file=sys.stdout)
        wrong = wrong or "not restored"
    return not wrong


if __name__ == "__main__":
    try:
        sys.exit(main())
    except own.LabError as error:
        own.say(f"e2e: {error}")
        sys.exit(1)
