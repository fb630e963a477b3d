#!/usr/bin/python3
"""Real kubelets: run.py BINARY [--nodes 1] [--manifest NAME] [--set VALUE...] [--keep] [--go-on]. Root. One test after the other, each on what the one before has left; the first failure ends it."""
import argparse
import os
import signal
import sys
import time
import traceback

TREE = os.path.dirname(os.path.dirname(os.path.dirname(os.path.realpath(__file__))))
sys.path[:0] = [os.path.join(TREE, "scripts"), os.path.dirname(os.path.realpath(__file__))]
sys.dont_write_bytecode = True
from labkit import own  # noqa: E402
from bed import MANIFEST, Bed  # noqa: E402
import newcomer  # noqa: E402


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("binary")
    parser.add_argument("--nodes", type=int, default=1)
    parser.add_argument("--manifest", default=MANIFEST, help="a file of daemonset/, without its end")
    parser.add_argument("--set", action="append", default=[], dest="values", help="a value of the chart: netfilter=iptables, ipv6=true, firewall.holdPods=true")
    parser.add_argument("--keep", action="store_true", help="leave cluster and guest up after a failure, until a key is pressed")
    parser.add_argument("--go-on", action="store_true", help="go on after a failure")
    known = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started is ended
    bed = Bed(known.binary, known.nodes, known.manifest, known.values)
    passed, failed = 0, 0
    try:
        began = time.monotonic()
        bed.up()
        own.say(f"up in {time.monotonic() - began:.0f} s")
        for test in newcomer.ALL:
            began, word = time.monotonic(), "ok"
            try:
                test(bed)
                passed += 1
            except Exception:
                traceback.print_exc(file=sys.stdout)
                failed, word = failed + 1, "FAILED"
            print(f"{word:<7}{test.__name__} ({time.monotonic() - began:.0f} s)", flush=True)
            if failed and not known.go_on:
                break
        if failed and known.keep:
            print("kept; SIGTERM ends it", flush=True)
            signal.pause()
    finally:
        bed.down()
    print(f"kubelets: {passed} passed, {failed + len(newcomer.ALL) - passed - failed} failed", flush=True)
    return 0 if passed == len(newcomer.ALL) else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except own.LabError as error:
        own.say(f"kubelets: {error}")
        print("kubelets: 0 passed, 1 failed")
        sys.exit(1)
