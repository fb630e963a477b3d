"""What an operator sees of policies while packets pass: refused packets, what a policy would change, and connections that it ends."""
import contextlib
import json
import signal
import subprocess
import time

import expect
from labkit import net, objects, traffic
from network_policies import _apply, _begin, _end, _pods, _pods_are_known, _policy  # noqa: F401

CLUSTER_POLICY = {
    "apiVersion": "policy.networking.k8s.io/v1beta1", "kind": "ClusterNetworkPolicy", "metadata": {"name": "keep-out"},
    "spec": {"tier": "Admin", "priority": 7, "subject": {"namespaces": {}},
             "ingress": [{"name": "no-n2p2", "action": "Deny", "from": [{"pods": {"podSelector": {"matchLabels": {"pod": "n2p2"}}}}]}]}}


def _question(bed, i, *words, text_in=None):
    return subprocess.Popen(net.node_command(i, bed.binary, "policy", *words, f"--socket={net.RUN}/n{i}/sluice.sock"),
                            stdin=subprocess.DEVNULL if text_in is None else subprocess.PIPE,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@contextlib.contextmanager
def _followed(bed, i):
    """What `policy drops -f -o json` says meanwhile, a list of objects that is filled at the end."""
    def is_read():
        return " 100 " in f" {net.node(i, 'cat', '/proc/net/netfilter/nfnetlink_log')}"
    # Rules log ten packets at once, and then one in six seconds: those ten shall not come before this one reads them. An agent reads on for five seconds
    # after the last question.
    expect.soon(lambda: not is_read(), 30, "somebody reads refused packets already")
    process, said = _question(bed, i, "drops", "-f", "-o", "json"), []
    expect.soon(is_read, 30, "nobody reads refused packets")
    try:
        yield said
    finally:
        process.send_signal(signal.SIGINT)
        text = process.communicate()[0]
        said += [json.loads(line) for line in text.splitlines() if line.startswith("{")]


def refused_packets_are_named_with_their_pods_and_the_policy_or_the_cluster_wide_one_that_refuses_them(bed):
    for name, item, reason in (("policies", _policy("only-n1p1", {"pod": "n3p1"}, policyTypes=["Ingress"], ingress=[{"from": [_pods(pod="n1p1")]}]),
                                "default/only-n1p1"), ("policies", CLUSTER_POLICY, "keep-out")):
        with _pods_are_known(bed):
            for family in expect.FAMILIES:  # the one before is not in force any more
                expect.soon(lambda: _answers("n2p2", expect.pod("n3p1", family)), 30, "without a policy somebody is refused")
            with _followed(bed, 3) as said:
                _apply(bed, name, [item])
                for family in expect.FAMILIES:
                    expect.soon(lambda: not _answers("n2p2", expect.pod("n3p1", family)), 30, f"{reason} refuses nothing")
                time.sleep(1)
        for family in expect.FAMILIES:
            source, target = expect.pod("n2p2", family), expect.pod("n3p1", family)
            found = [one for one in said if one["from"]["address"] == source and one["to"]["address"] == target]
            expect.that(found, f"{reason}: of packets from {source} to {target} nothing is said:", said)
            for one in found:
                expect.that((one["from"]["pod"], one["to"]["pod"], one["to"]["port"], one["protocol"], one["direction"])
                            == ("default/n2p2", "default/n3p1", objects.TARGET, "tcp", "ingress"), one)
                expect.that(reason in (one["reason"] or ""), f"not for {reason}:", one)


def a_connection_that_a_policy_would_refuse_is_foreseen_and_ends_when_it_is_applied(bed):
    policy = _policy("nobody", {"pod": "n3p1"}, policyTypes=["Ingress"], ingress=[])
    with _pods_are_known(bed):
        bed.agents[3].stop()
        bed.agents[3].extra.append("--netpol-flush-established")
        bed.agents[3].start()
        bed.ready(3)
        for family in expect.FAMILIES:
            with net.Inside("n2p2"):
                sock = traffic.connect(expect.pod("n3p1", family), objects.TARGET)
            try:
                expect.that(traffic.exchange(sock)[0] == "n3p1", "another pod answers")
                said = _question(bed, 3, "diff", "-f", "-", "-o", "json", text_in=True).communicate(json.dumps(policy))[0]
                connections = json.loads(said)["connections"]
                own_port = sock.getsockname()[1]
                found = [one for one in connections["first"] if one["from"]["port"] == own_port]
                expect.that(len(found) == 1 and (found[0]["from"]["pod"], found[0]["to"]["pod"], found[0]["to"]["port"])
                            == ("default/n2p2", "default/n3p1", objects.TARGET), f"the connection from port {own_port} is not foreseen:", said)
                expect.that(traffic.exchange_again(sock) is not None, "the question ended the connection")
                _apply(bed, "policies", [policy])
                expect.soon(lambda: not _goes_on(sock), 30, "the connection goes on although a policy refuses it")
            finally:
                sock.close()
                _apply(bed, "policies", None)
            expect.soon(lambda: _answers("n2p2", expect.pod("n3p1", family)), 30, "nobody is answered although the policy has gone")


def _answers(client, address):
    try:
        return traffic.ask(client, address, objects.TARGET, patience=1.5) is not None
    except OSError:
        return False


def _goes_on(sock):
    sock.settimeout(2)
    try:
        return traffic.exchange(sock) is not None
    except OSError:
        return False
