"""Nodes, pods, an underlay and a client outside, all of them network namespaces of this place.

Address plan (i is the number of a node, p of a pod on it):
  node ni      192.0.2.1i    2001:db8:2::1i     pods 10.244.i.0/24, fd00:10:244:i::/64 on kube-bridge
  pod  nip<p>  given by the CNI plugin host-local: 10.244.i.2, fd00:10:244:i::2 for the first one
  cp           192.0.2.100   2001:db8:2::100    where the nodes reach the API server
  rtr          192.0.2.1     2001:db8:2::1      router to the outside, knows service addresses by way of n1
  ext          203.0.113.10  2001:db8:113::10   the client outside
  services     10.96.0.0/12, fd00:10:96::/108; external and load balancer addresses 198.51.100.0/24, 2001:db8:51::/64
With two subnets (of half the size) the even nodes are 192.0.2.13i, 2001:db8:2:1::1i behind rtr (.129, ::1 there), which then routes pod
addresses too. Nobody has a default route: what is not in this plan is unreachable.
A plan with `routed` has no route to any pod: agents route, and pods come with the CNI file that the agent of their node has written.
"""
import contextlib
import ctypes
import glob
import json
import os
import shutil
import signal

from . import own

RUN = "/run/lab"
CNI = "/usr/lib/cni"
AGENT_CNI = f"{RUN}/bin"  # the plugin that comes with the agent
CLONE_NEWNET = 0x40000000
LIBC = ctypes.CDLL(None, use_errno=True)

POD_RANGES = ("10.244.0.0/16", "fd00:10:244::/56")
SERVICE_RANGES = ("10.96.0.0/12", "fd00:10:96::/108")
EXTERNAL_RANGES = ("198.51.100.0/24", "2001:db8:51::/64")
CONTROL = ("192.0.2.100", "2001:db8:2::100")
# Settings with which a flow, and not a client, has one of several ways.
BY_FLOW = {"net.ipv4.fib_multipath_hash_policy": 1, "net.ipv6.fib_multipath_hash_policy": 1}
CLIENT = ("203.0.113.10", "2001:db8:113::10")
ROUTER = ("192.0.2.1", "2001:db8:2::1")
FAR_ROUTER = ("192.0.2.129", "2001:db8:2:1::1")

# What a node has before a network agent comes: what container runtimes ask for, nothing about services.
NODE_SYSCTLS = {
    "net.ipv4.ip_forward": 1, "net.ipv6.conf.all.forwarding": 1,
    "net.bridge.bridge-nf-call-iptables": 1, "net.bridge.bridge-nf-call-ip6tables": 1,
}
# Addresses must be usable at once: no wait for duplicates anywhere.
EVERY_SYSCTL = {
    "net.ipv6.conf.all.accept_dad": 0, "net.ipv6.conf.default.accept_dad": 0,
    "net.ipv6.conf.default.router_solicitations": 0,
}


def enter(namespace):
    """Moves this thread into a network namespace, given by name, path or open file."""
    if isinstance(namespace, int):
        fd = namespace
    else:
        fd = os.open(namespace if "/" in namespace else f"/run/netns/{namespace}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        if LIBC.setns(fd, CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"cannot enter {namespace}")
    finally:
        if not isinstance(namespace, int):
            os.close(fd)


class Inside:
    """`with Inside("n1"):` this thread is in that network namespace; files of /proc/net and sockets are its own."""

    def __init__(self, namespace):
        self.namespace = namespace

    def __enter__(self):
        self.home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        enter(self.namespace)

    def __exit__(self, *_):
        enter(self.home)
        os.close(self.home)


def ip(namespace, *lines):
    """Several `ip` commands in one process."""
    where = [] if namespace is None else ["-n", namespace]
    return own.run("/sbin/ip", *where, "-batch", "-", text_in="\n".join(lines) + "\n")


def sysctl(namespace, values):
    with Inside(namespace):
        for key, value in values.items():
            with open("/proc/sys/" + key.replace(".", "/"), "w") as handle:
                handle.write(str(value))


class Plan:
    def __init__(self, nodes, pods, subnets, routed=False):
        self.nodes, self.pods, self.subnets, self.routed = nodes, pods, subnets, routed

    def far(self, i):
        return self.subnets == 2 and i % 2 == 0

    def addresses(self, i):
        return (f"192.0.2.{130 + i}", f"2001:db8:2:1::{10 + i}") if self.far(i) else (f"192.0.2.{10 + i}", f"2001:db8:2::{10 + i}")

    def prefixes(self):
        return (25, 64) if self.subnets == 2 else (24, 64)

    def pod_ranges(self, i):
        return f"10.244.{i}.0/24", f"fd00:10:244:{i}::/64"

    def next_hop(self, i, j):
        """How node i reaches the pods of node j."""
        same = self.far(i) == self.far(j)
        return self.addresses(j) if same else (FAR_ROUTER if self.far(i) else ROUTER)

    def pod_names(self):
        return [f"n{i}p{p}" for i in range(1, self.nodes + 1) for p in range(1, self.pods + 1)]


def load():
    facts = own.read_json(f"{RUN}/plan.json")
    if not facts:
        raise own.LabError("there are no nodes here yet: nodes up")
    return Plan(**facts)


def up(nodes=3, pods=3, subnets=1, routed=False):
    """Makes it all. Where agents route, pods are added later: `pod_add`, when the CNI file is there."""
    plan = Plan(nodes, pods, subnets, routed)
    os.makedirs(RUN, exist_ok=True)
    own.run("mount", "--bind", RUN, RUN)  # files of namespaces can be bound on a private mount only
    own.run("mount", "--make-private", RUN)
    os.makedirs("/run/netns", exist_ok=True)
    node_names = [f"n{i}" for i in range(1, nodes + 1)]
    names = ["fabric", "rtr", "ext", "cp", *node_names]
    ip(None, *[f"netns add {name}" for name in names])
    for name in names:
        sysctl(name, EVERY_SYSCTL)
        ip(name, "link set lo up")
    segments = ["near", "out"] + (["far"] if subnets == 2 else [])
    ip("fabric", *[line for s in segments for line in (f"link add {s} type bridge mcast_snooping 0", f"link set {s} up")])
    sysctl("fabric", {"net.bridge.bridge-nf-call-iptables": 0, "net.bridge.bridge-nf-call-ip6tables": 0})
    four, six = plan.prefixes()
    attach("ext", "out", "eth0", CLIENT, (24, 64))
    attach("rtr", "out", "out", ("203.0.113.254", "2001:db8:113::fe"), (24, 64))
    attach("rtr", "near", "near", ROUTER, (four, six))
    attach("cp", "near", "eth0", CONTROL, (four, six))
    if subnets == 2:
        attach("rtr", "far", "far", FAR_ROUTER, (four, six))
    sysctl("rtr", {"net.ipv4.ip_forward": 1, "net.ipv6.conf.all.forwarding": 1})
    for i in range(1, nodes + 1):
        attach_node(plan, i)
        keep_namespaces(i)
    routes(plan)
    own.write(f"{RUN}/plan.json", json.dumps(vars(plan)))
    if not routed:
        for name in plan.pod_names():
            pod_add(node_of(name), name)
    return plan


def attach_node(plan, i):
    attach(f"n{i}", "far" if plan.far(i) else "near", "eth0", plan.addresses(i), plan.prefixes())
    sysctl(f"n{i}", NODE_SYSCTLS)


def renew_node(i):
    """A new network namespace in the place of a node's, as after a reboot. What still holds the old one has no way to others any more."""
    plan = load()
    ip("fabric", f"link del n{i}-{'far' if plan.far(i) else 'near'}")
    ip(None, f"netns del n{i}", f"netns add n{i}")
    sysctl(f"n{i}", EVERY_SYSCTL)
    ip(f"n{i}", "link set lo up")
    attach_node(plan, i)
    ip(f"n{i}", *routes_of(plan, i))


def node_of(pod):
    """The number of the node that a pod of this name is on."""
    return int(pod[1:].split("p")[0])


def attach(name, segment, interface, addresses, prefixes):
    ip("fabric", f"link add {name}-{segment} type veth peer name {interface} netns {name}",
       f"link set {name}-{segment} master {segment} up")
    ip(name, f"addr add {addresses[0]}/{prefixes[0]} dev {interface}",
       f"addr add {addresses[1]}/{prefixes[1]} dev {interface} nodad", f"link set {interface} up")


def routes(plan):
    """The static routes of everybody; an agent that routes would add those between nodes itself."""
    near = [i for i in range(1, plan.nodes + 1) if not plan.far(i)]
    first = plan.addresses(1)
    at_router = [f"route add {r} via {first[f]}" for ranges in (SERVICE_RANGES, EXTERNAL_RANGES) for f, r in enumerate(ranges)]
    for i in range(1, plan.nodes + 1):
        if plan.subnets == 2 and not plan.routed:
            at_router += [f"route add {r} via {plan.addresses(i)[f]}" for f, r in enumerate(plan.pod_ranges(i))]
        ip(f"n{i}", *routes_of(plan, i))
    assert near, "the first node is always in the near subnet"
    ip("rtr", *at_router)
    beyond = ["192.0.2.0/24", *SERVICE_RANGES, *EXTERNAL_RANGES, "2001:db8:2::/48"]
    ip("ext", *[f"route add {r} via {'2001:db8:113::fe' if ':' in r else '203.0.113.254'}" for r in beyond])
    far = ["192.0.2.128/25", "2001:db8:2:1::/64"] if plan.subnets == 2 else []
    ip("cp", *[f"route add {r} via {ROUTER[':' in r]}" for r in ["203.0.113.0/24", "2001:db8:113::/64", *far]])


def routes_of(plan, i):
    """The static routes of a node."""
    gateway = FAR_ROUTER if plan.far(i) else ROUTER
    lines = [f"route add 203.0.113.0/24 via {gateway[0]}", f"route add 2001:db8:113::/64 via {gateway[1]}"]
    # External addresses that this node does not serve itself lie outside.
    lines += [f"route add {r} via {gateway[f]}" for f, r in enumerate(EXTERNAL_RANGES)]
    if plan.subnets == 2:
        other = ("192.0.2.0/25", "2001:db8:2::/64") if plan.far(i) else ("192.0.2.128/25", "2001:db8:2:1::/64")
        lines += [f"route add {r} via {gateway[f]}" for f, r in enumerate(other)]
    for j in range(1, plan.nodes + 1):
        if i != j and not plan.routed:
            lines += [f"route add {r} via {plan.next_hop(i, j)[f]}" for f, r in enumerate(plan.pod_ranges(j))]
    return lines


def keep_namespaces(i):
    """The node's own /sys, lock of iptables, CNI folders, folder of the agent's sockets and host name, in namespaces that a bound file keeps."""
    folder = f"{RUN}/n{i}"
    for kept in ("cni", "networks", "sockets"):
        os.makedirs(f"{folder}/{kept}", exist_ok=True)
    for path in (f"{folder}/mnt", f"{folder}/uts", f"{folder}/xtables.lock", "/run/xtables.lock"):
        with open(path, "a"):
            pass
    os.makedirs("/etc/cni/net.d", exist_ok=True)
    os.makedirs("/var/lib/cni", exist_ok=True)
    os.makedirs("/run/sluice", exist_ok=True)
    processors = sorted(os.sched_getaffinity(0))
    for patience in reversed(range(40)):
        try:
            # Numbers of namespaces come from a stock of each processor's, and a kernel of 6.15 or later binds only one that has a greater number than ours.
            own.run("nsenter", f"--net=/run/netns/n{i}", "taskset", "-c", str(processors[patience % len(processors)]),
                    "unshare", f"--mount={folder}/mnt", f"--uts={folder}/uts", "--propagation", "slave", "sh", "-ec",
                    f"hostname node{i}; mount -t sysfs sysfs /sys; mount -t cgroup2 cgroup2 /sys/fs/cgroup; "
                    f"mount --bind {folder}/xtables.lock /run/xtables.lock; mount --bind {folder}/cni /etc/cni/net.d; "
                    f"mount --bind {folder}/networks /var/lib/cni; mount --bind {folder}/sockets /run/sluice")
            return
        except own.LabError as error:
            if "Invalid argument" not in str(error) or not patience:
                raise


def node_command(i, *command):
    """The command line that runs `command` in a node."""
    return ["nsenter", f"--net=/run/netns/n{i}", f"--mount={RUN}/n{i}/mnt", f"--uts={RUN}/n{i}/uts", "--", *command]


def node(i, *command, text_in=None):
    return own.run(*node_command(i, *command), text_in=text_in)


def cni_file(i):
    """Where the agent of node i keeps the CNI file, seen from outside of its namespaces."""
    return f"{RUN}/n{i}/cni/10-kuberouter.conflist"


def cni(i, verb, pod):
    """Asks the CNI plugins, as a container runtime does, to add a pod to its node or to take it away; what they answer."""
    plan = load()
    if plan.routed:
        conf = own.read_json(cni_file(i))
        if not conf:
            raise own.LabError(f"the agent of node {i} has written no CNI file")
    else:
        conf = {"cniVersion": "0.4.0", "name": "lab", "plugins": [{
            "type": "bridge", "bridge": "kube-bridge", "isDefaultGateway": True, "mtu": 1500,
            "ipam": {"type": "host-local", "ranges": [[{"subnet": r}] for r in plan.pod_ranges(i)]}}]}
    env = {"CNI_COMMAND": verb, "CNI_CONTAINERID": pod, "CNI_NETNS": f"/run/netns/{pod}", "CNI_IFNAME": "eth0",
           "CNI_ARGS": f"IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME={pod}",
           "CNI_PATH": f"{CNI}:{AGENT_CNI}", "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
    answer = None
    for plugin in conf["plugins"] if verb == "ADD" else reversed(conf["plugins"]):
        # What CNI's specification has a runtime do: each plugin gets the list's name and version, and the answer of the one before.
        asked = {"cniVersion": conf["cniVersion"], "name": conf["name"], **plugin, **({"prevResult": answer} if answer else {})}
        program = shutil.which(plugin["type"], path=env["CNI_PATH"])
        said = own.run(*node_command(i, program), text_in=json.dumps(asked), env=env)
        answer = json.loads(said) if said.strip() else None
    return answer


def pod_add(i, name):
    ip(None, f"netns add {name}")
    sysctl(name, EVERY_SYSCTL)
    ip(name, "link set lo up")
    for patience in reversed(range(10)):
        try:
            answer = cni(i, "ADD", name)
            break
        except own.LabError as error:
            # What a kubelet does when a plugin says "try again later" (code 11).
            if '"code":11' not in str(error).replace(" ", "") or not patience:
                raise
            cni(i, "DEL", name)
    given = [a["address"].split("/")[0] for a in answer["ips"]]
    addresses = sorted(given, key=lambda a: ":" in a)
    own.write(f"{RUN}/{name}.json", json.dumps(addresses))
    return addresses


def pod_delete(i, name):
    cni(i, "DEL", name)
    ip(None, f"netns del {name}")
    os.unlink(f"{RUN}/{name}.json")


def pod_addresses(name):
    """(IPv4, IPv6) of a pod; one of them where the cluster has one family alone."""
    return own.read_json(f"{RUN}/{name}.json")


def pod_address(name, family):
    """Of a pod, in this family."""
    [address] = [address for address in pod_addresses(name) if (":" in address) == (family == "6")]
    return address


def of_families(pair, families):
    """Those of two things, the first of IPv4 and the second of IPv6, that are of these families."""
    return [one for family, one in zip("46", pair) if family in families]


def down():
    """Ends every process in our namespaces, then takes the namespaces away."""
    names = [line.split()[0] for line in own.run("/sbin/ip", "netns", "list").splitlines() if line]
    for name in names:
        for pid in own.run("/sbin/ip", "netns", "pids", name).split():
            with contextlib.suppress(ProcessLookupError):  # it has ended by itself
                os.kill(int(pid), signal.SIGKILL)
    ip(None, *[f"netns del {name}" for name in names])
    with open("/proc/self/mounts") as handle:
        mounts = [line.split()[1] for line in handle if line.split()[1].startswith(RUN + "/n") or line.split()[1] == RUN]
    for path in reversed(mounts):
        own.run("umount", path)
    # With what a node kept (the addresses that the CNI plugins gave away, say) goes also what is known of its pods.
    for path in glob.glob(f"{RUN}/n[0-9]*"):
        shutil.rmtree(path) if os.path.isdir(path) else os.unlink(path)
    if os.path.exists(f"{RUN}/plan.json"):
        os.unlink(f"{RUN}/plan.json")
