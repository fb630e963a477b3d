"""A restart, a crash and an upgrade are no events: nobody's traffic notices."""
import signal
import time

import expect
from expect import FAMILIES, PODS
from labkit import kernel
from labkit.objects import Port


def _targets(bed, s):
    """Every way in, on node 1 (nf_tables) and node 2 (legacy iptables)."""
    return [("n1p2", s.address(), 80), ("n1p3", s.address("6"), 80), ("n2p2", s.address(), 80),
            ("n1p2", s.address(), 53, "udp"), ("n1p3", s.address(), 99, "sctp"),
            ("ext", bed.plan.addresses(1)[0], 30090), ("ext", bed.plan.addresses(2)[1], 30090),
            ("ext", "198.51.100.50", 80)]


def _busy(bed):
    return expect.service(bed, "busy", kind="NodePort", external_ips=["198.51.100.50"],
                          ports=[Port(80, node_port=30090), Port(53, "UDP"), Port(99, "SCTP")])


def kill_minus_nine_and_restart_fail_no_connection(bed):
    with _busy(bed) as s, expect.load(*_targets(bed, s), pause=0.1):
        for _ in range(2):
            time.sleep(1)
            for i in (1, 2):
                bed.agents[i].kill()
            time.sleep(2)
            for i in (1, 2):
                bed.agents[i].start()
            bed.ready(1, 2)


def an_orderly_restart_and_another_binary_fail_no_connection(bed):
    with _busy(bed) as s, expect.load(*_targets(bed, s), pause=0.1):
        for i in (1, 2):
            status = bed.agents[i].stop(signal.SIGTERM)
            expect.that(status == 0, f"exit status {status} after SIGTERM")
            bed.agents[i].start()
        bed.ready(1, 2)
        for i in (1, 2):
            bed.agents[i].replace()
        bed.ready(1, 2)


def what_changed_while_the_agent_was_dead_is_made_good(bed):
    with expect.service(bed, "meanwhile") as s, expect.service(bed, "gone-meanwhile") as gone:
        bed.agents[1].kill()
        bed.put(s.name, PODS[:2])
        held = gone.address()
        bed.source.delete(gone)
        bed.agents[1].start()
        bed.settle(s)
        expect.soon(lambda: not [k for k in kernel.ipvs(1) if k[1] == held], 30, "a Service deleted meanwhile is still there")
        bed.source.put(gone)  # for whoever takes it away below
        bed.settle(gone)


def a_restart_with_everything_in_place_changes_nothing(bed):
    with _busy(bed) as s:
        for family in FAMILIES:
            expect.share("n1p2", s.address(family), 80, PODS)
        for i in (1, 2):
            before = kernel.snapshot(i)
            counted = kernel.connections(i)
            bed.agents[i].stop()
            bed.agents[i].start()
            bed.ready(i)
            after = kernel.snapshot(i)
            expect.that(after == before, f"node {i}:", kernel.difference(before, after))
            later = kernel.connections(i)
            expect.that(all(later.get(k, -1) >= n for k, n in counted.items()), "a virtual service was made anew:", counted, later)
            steps = kernel.metric(i, "sluice_proxy_steps")
            expect.that(steps == 0, f"node {i} says that it made {steps} changes")


def _long(function):
    function.long = True
    return function


@_long
def twenty_crashes_at_random_moments_fail_no_connection(bed):
    import random
    seed = random.randrange(1 << 32)
    print(f"       seed {seed}", flush=True)
    dice = random.Random(seed)
    with _busy(bed) as s, expect.load(*_targets(bed, s), pause=0.1):
        for _ in range(20):
            ready = dice.sample(PODS, 2)
            # No pod is a client: none reaches itself through its own Service.
            bed.put(s.name, [*ready, "n3p2"], unready=[pod for pod in PODS if pod not in ready])
            time.sleep(dice.random())
            bed.agents[1].kill()
            time.sleep(dice.random())
            bed.agents[1].start()
            time.sleep(dice.random() * 2)
        bed.ready(1)
        bed.put(s.name, PODS, unready=["n3p2"])
        bed.settle(s)
