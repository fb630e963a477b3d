"""Only with --long: ten minutes of everything at once. Nothing fails, nothing is left, memory does not grow."""
import os
import random
import time

import expect
from expect import PODS
from labkit import kernel

CLIENTS = ["n1p2", "n2p2", "n3p2"]
SERVING = ["n2p1", "n3p1", "n2p3"]
SECONDS = int(os.environ.get("SLUICE_SOAK", "600"))
MOST_GROWTH = 2048  # KiB of its own memory, from the end of the first quarter to the end; pages of the program come and go


def _memory(bed, i):
    with open(f"/proc/{bed.agents[i].process.pid}/status") as handle:
        return next(int(line.split()[1]) for line in handle if line.startswith("RssAnon:"))


def ten_minutes_of_churn_fail_no_connection_and_leak_nothing(bed):
    seed = random.randrange(1 << 32)
    print(f"       seed {seed}, {SECONDS} s", flush=True)
    dice = random.Random(seed)
    counts = {i: len(kernel.ipvs(i)) for i in bed.agents}
    with expect.service(bed, "steady") as s, expect.load(
            *((client, s.address(family), 80) for client, family in zip(CLIENTS, "464")), pause=0.2):
        began, first, others, turns = time.monotonic(), {}, [], 0
        while time.monotonic() < began + SECONDS:
            turns += 1
            ready = dice.sample(SERVING, dice.randrange(1, 4))
            bed.put(s.name, ["n1p1", *ready], unready=[pod for pod in SERVING if pod not in ready])
            if len(others) < 6 and dice.random() < 0.6:
                others.append(bed.put(f"churn-{turns}", dice.sample(PODS, 2)))
            elif others:
                bed.delete(others.pop(dice.randrange(len(others))))
            if dice.random() < 0.1:
                # Node 3 keeps its process for the whole time: its memory is what is looked at.
                i = dice.choice((1, 2))
                bed.agents[i].kill() if dice.random() < 0.5 else bed.agents[i].stop()
                time.sleep(dice.random())
                bed.agents[i].start()
            time.sleep(dice.random())
            if not first and time.monotonic() > began + SECONDS / 4:
                first = _memory(bed, 3)
        bed.ready()
        last = _memory(bed, 3)
        for other in others:
            bed.delete(other)
        bed.settle(s)
    print(f"       {turns} turns; own memory of one process {first} KiB after a quarter, {last} KiB at the end", flush=True)
    expect.that(last < first + MOST_GROWTH, f"memory grew from {first} to {last} KiB")
    for i in bed.agents:
        expect.soon(lambda: len(kernel.ipvs(i)) == counts[i], 150, f"node {i} has {len(kernel.ipvs(i))} virtual services, not {counts[i]}")


ten_minutes_of_churn_fail_no_connection_and_leak_nothing.long = True
