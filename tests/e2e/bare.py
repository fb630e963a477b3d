#!/usr/bin/python3
"""The agent on kernels and hosts that lack a part: bare.py no-ipvs|no-ipv6|no-filter|no-iptables BINARY [--whole | --long], in a guest that was booted without it."""
import glob
import os
import re
import subprocess
import sys

TREE = os.path.dirname(os.path.dirname(os.path.dirname(os.path.realpath(__file__))))
sys.path.insert(0, os.path.join(TREE, "scripts"))
from labkit import net, objects, own  # noqa: E402
from labkit.source import Manifests  # noqa: E402

LOG = "/run/lab/agent.log"


def node():
    """A Node with one IPv4 Service in manifests, and its address on a link; where they lie."""
    os.makedirs(net.RUN, exist_ok=True)
    own.write(f"{net.RUN}/n1p1.json", '["10.244.1.2", "fd00:10:244:1::2"]')
    net.ip(None, "link add under type dummy", "link set under up", "addr add 192.0.2.11/24 dev under")
    source = Manifests()
    item = objects.node(net.Plan(1, 1, 1), 1)
    item["spec"] = {"podCIDR": "10.244.1.0/24", "podCIDRs": ["10.244.1.0/24"]}
    item["status"]["addresses"] = [{"type": "InternalIP", "address": "192.0.2.11"}]
    service = objects.Service("bare", 10, ["n1p1"], families="4")
    source.write("all", [item, objects.service(service), *objects.slices(service)])
    return source


def start(binary, source, *flags):
    """The agent in the guest's own namespaces."""
    command = [binary, "--run-router=false", "--run-firewall=false", "--hostname-override=node1", "--state-dir=/run/lab/state",
               *source.flags(1), *flags]
    with open(LOG, "wb") as log:
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)


def said(word):
    with open(LOG, errors="replace") as handle:
        return [line for line in handle if word in line]


def readyz():
    return subprocess.run(["curl", "-s", "http://127.0.0.1:20244/readyz"], capture_output=True, text=True).stdout


def nothing_loads():
    """From now on the kernel has no modules but those that are loaded. Returns what ends that."""
    with open("/proc/sys/kernel/modprobe") as handle:
        program = handle.read()
    set_loader("/bin/false\n")
    own.run("mount", "-t", "tmpfs", "tmpfs", "/lib/modules")
    return lambda: (own.run("umount", "/lib/modules"), set_loader(program))


def set_loader(program):
    with open("/proc/sys/kernel/modprobe", "w") as handle:
        handle.write(program)


def no_ipvs(binary):
    """A kernel without ip_vs is named in one clear sentence, by the log and by /readyz, with how to get it, and the agent goes on."""
    source = node()
    nothing_loads()
    agent = start(binary, source)
    # The guest's own list of modules is hidden from it.
    sentence = re.compile(r"the kernel has no netlink family IPVS, of module ip_vs; .*linux-image")
    own.wait(lambda: sentence.search(readyz()) or agent.poll() is not None, 60, 0.2)
    lines, ready, runs = said("ip_vs"), readyz(), agent.poll() is None
    agent.kill()
    return runs and 0 < len(lines) <= 3 and any(sentence.search(line) for line in lines) and sentence.search(ready) and not said("panicked"), [lines, ready]


def no_filter(binary):
    """With the programs of iptables and ipset on a kernel with no packet filter nothing starts, one sentence of the log and of /readyz names modules and packages, a signal ends the agent, and it serves once modules can be loaded."""
    source = node()
    loads_again = nothing_loads()
    words = ["packet filter: ", "nf_tables of this kernel lacks", "ipset: ", "nft_masq", "xt_set", "kernel-modules-extra", "linux-modules-extra"]
    agent = start(binary, source)
    own.wait(lambda: words[0] in readyz() or agent.poll() is not None, 60, 0.2)
    agent.terminate()
    own.wait(lambda: agent.poll() is not None, 10, 0.2)
    ended = agent.poll()
    agent.kill()
    agent = start(binary, source)
    own.wait(lambda: words[0] in readyz() or agent.poll() is not None, 60, 0.2)
    lines, ready, waits = said("nf_tables"), readyz(), agent.poll() is None
    links = own.run("ip", "-o", "link", "show", "type", "dummy")
    loads_again()
    serves = own.wait(lambda: "10.96.1.10:80" in own.run("ipvsadm", "-Sn") and not readyz().startswith("packet filter"), 120, 0.5)
    agent.kill()
    source.close()
    named = len(lines) == 1 and all(word in lines[0] for word in words[1:]) and all(word in ready for word in words)
    return ended == 0 and waits and named and "kube-dummy-if" not in links and serves and not said("panicked"), [ended, waits, lines, ready, links, serves]


def no_ipv6(binary):
    """On a kernel without IPv6 the IPv4 Services are served."""
    agent = start(binary, node(), "--enable-ipv6=false")
    served = own.wait(lambda: "10.96.1.10:80" in own.run("ipvsadm", "-Sn"), 60, 0.5)
    alive = agent.poll() is None
    agent.kill()
    return served and alive and not os.path.exists("/proc/net/if_inet6"), own.run("ipvsadm", "-Sn")


# Modules of iptables and ipset, and programs that speak with them.
MODULES = re.compile(r"(x_tables|ip6?_tables|ip6?table_\w+|xt_\w+|ipt_\w+|ip6t_\w+|ip_set\w*|nft_compat|arp_tables|ebtables?\w*)$")
PROGRAMS = ["ip6tables*", "iptables*", "xtables*", "arptables*", "ebtables*", "ipset*"]
# Tests that need these programs: they change the packet filter, or plant what others have in such tables and sets.
NEED_PROGRAMS = ["foreign", "backends", "a_change_of_the_packet_filter", "what_is_not_ours_stays"]
# All others of these beds run with --whole and --long, and each day so many of each module, of which those are left out that wait for looks, for a change of tunnels node by node, or load for long (what is killed and starts again without these programs),
# and those that take most of a minute and run each day where these programs are.
EACH_DAY = {"manifests": 1, "forwarding": 1, "routing-flat": 1, "routing": 1}
SLOW = ["kill_minus_nine_and_restart", "a_deleted_virtual_service", "a_deleted_destination", "another_weight_of_a_destination", "a_cleared_table_of_virtual_services", "routing_changes", "our_tables_go_last_and_alone", "an_orderly_restart_and_another_binary", "addresses_of_a_service_cidr_that_comes_later", "packets_to_pods_of_other_nodes_go_as_it_says"]


def loaded():
    with open("/proc/modules") as handle:
        return [line.split()[0] for line in handle if MODULES.match(line.split()[0])]


def no_iptables(binary, *more):
    """Where nothing of iptables and ipset is, neither modules nor programs, all three subsystems run on nftables."""
    names = {os.path.basename(path).split(".ko")[0] for path in glob.glob(f"/lib/modules/{os.uname().release}/kernel/net/**/*.ko*", recursive=True)}
    own.write("/etc/modprobe.d/bare.conf", "".join(f"install {name} /bin/false\n" for name in sorted(names) if MODULES.match(name)))
    for folder in os.environ["PATH"].split(":"):
        for path in (path for pattern in PROGRAMS for path in glob.glob(f"{folder}/{pattern}")):
            os.unlink(path)
    source = node()
    agent = start(binary, source)
    own.wait(lambda: said("Packet filter chosen") or agent.poll() is not None, 60, 0.2)
    chosen = said("Packet filter chosen")
    agent.kill()
    agent.wait()
    source.close()
    own.run("ip", "link", "del", "under")
    passed = bool(chosen and "Nftables" in chosen[0])
    for bed, of_each in EACH_DAY.items():
        left_out = NEED_PROGRAMS if more else NEED_PROGRAMS + SLOW
        words = [word for name in left_out for word in ("--leave-out", name)] + ([] if more else ["--of-each", str(of_each)])
        done = subprocess.run([own.PYTHON, "-B", f"{TREE}/tests/e2e/run.py", binary, "--bed", bed, "--netfilter", "nftables", *words, *more])
        passed = passed and done.returncode == 0
    return passed and not loaded(), [chosen, loaded()]


if __name__ == "__main__":
    held, seen = {"no-ipvs": no_ipvs, "no-ipv6": no_ipv6, "no-filter": no_filter, "no-iptables": no_iptables}[sys.argv[1]](*sys.argv[2:])
    if not held:
        with open(LOG, errors="replace") as log:
            print(f"FAILED {sys.argv[1]} (0 s)\nError: {seen}\n{log.read()[-3000:]}")
    print(f"e2e: {1 if held else 0} passed, {0 if held else 1} failed", flush=True)
    sys.exit(0 if held else 1)
