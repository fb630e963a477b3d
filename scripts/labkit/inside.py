#!/usr/bin/python3
"""The part of scripts/lab that runs where the nodes are: nodes, node, pod, traffic."""
import argparse
import json
import os
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.realpath(__file__))))
from labkit import net, own, traffic  # noqa: E402


def nodes(argv):
    parser = argparse.ArgumentParser(prog="scripts/lab nodes")
    parser.add_argument("action", choices=("up", "down"))
    parser.add_argument("--nodes", type=int, default=3)
    parser.add_argument("--pods", type=int, default=3)
    parser.add_argument("--subnets", type=int, default=1, choices=(1, 2))
    known = parser.parse_args(argv)
    began = time.monotonic()
    if known.action == "down":
        net.down()
        return
    plan = net.up(known.nodes, known.pods, known.subnets)
    for pod in plan.pod_names():
        traffic.serve(pod, [("tcp", 8080), ("udp", 8080), ("sctp", 8080)])
    print(f"{plan.nodes} nodes with {plan.pods} pods each, all of them answering on port 8080: {time.monotonic() - began:.1f} s")


def ask(argv):
    parser = argparse.ArgumentParser(prog="scripts/lab traffic")
    parser.add_argument("namespace")
    parser.add_argument("address")
    parser.add_argument("port", type=int)
    parser.add_argument("--protocol", default="tcp", choices=list(traffic.KINDS))
    parser.add_argument("--count", type=int, default=100)
    known = parser.parse_args(argv)
    outcome = traffic.many(known.namespace, known.address, known.port, known.protocol, known.count)
    print(json.dumps(outcome))
    return 1 if outcome["failed"] else 0


def main(argv):
    verb, argv, command = argv[0], argv[1:], []
    if "--" in argv:
        argv, command = argv[:argv.index("--")], argv[argv.index("--") + 1:]
    if verb == "nodes":
        return nodes(argv)
    if verb == "traffic":
        return ask(argv)
    if verb == "node":
        command = net.node_command(int(argv[0]), *command)
    else:
        command = ["nsenter", f"--net=/run/netns/{argv[0]}", "--", *command]
    os.execvp(command[0], command)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except own.LabError as error:
        own.say(f"lab: {error}")
        sys.exit(125)
