"""What flannel makes on nodes, in kernel and files, and its DaemonSet, whose pods do nothing here."""
import json

from labkit import net

from newcomer import container, ready_pods

KINDS = ("flannel-vxlan", "flannel-host-gw")
PODS = ("-n", "kube-flannel", "-l", "app=flannel")
# Of one family each: the command, the range of multicast, and the device of `vxlan`.
FAMILIES = (("iptables", "224.0.0.0/4", "flannel.1"), ("ip6tables", "ff00::/8", "flannel-v6.1"))
MASQUERADE = ["-N FLANNEL-POSTRTG", "-A POSTROUTING -m comment --comment 'flanneld masq' -j FLANNEL-POSTRTG",
              "-A FLANNEL-POSTRTG -m mark --mark 0x4000/0x4000 -j RETURN", "-A FLANNEL-POSTRTG -s {mine} -d {all} -j RETURN", "-A FLANNEL-POSTRTG -s {all} -d {mine} -j RETURN",
              "-A FLANNEL-POSTRTG ! -s {all} -d {mine} -j RETURN", "-A FLANNEL-POSTRTG -s {all} ! -d {multicast} -j MASQUERADE --random-fully",
              "-A FLANNEL-POSTRTG ! -s {all} -d {all} -j MASQUERADE --random-fully"]
FORWARDED = ["-N FLANNEL-FWD", "-A FORWARD -m comment --comment 'flanneld forward' -j FLANNEL-FWD", "-A FLANNEL-FWD -s {all} -m comment --comment 'flanneld forward' -j ACCEPT",
             "-A FLANNEL-FWD -d {all} -m comment --comment 'flanneld forward' -j ACCEPT"]


def daemonset(chosen=None):
    """As its file has it, with pods that do nothing, on nodes with the labels of `chosen`."""
    linux = {"key": "kubernetes.io/os", "operator": "In", "values": ["linux"]}
    pod = {"hostNetwork": True, "terminationGracePeriodSeconds": 1, "automountServiceAccountToken": False, "tolerations": [{"operator": "Exists", "effect": "NoSchedule"}],
           "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [{"matchExpressions": [linux]}]}}},
           "containers": [container("kube-flannel", "exec sleep 1000000")], **({"nodeSelector": chosen} if chosen else {})}
    labels = {"app": "flannel", "tier": "node"}
    return [{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "kube-flannel"}},
            {"apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": {"name": "kube-flannel-ds", "namespace": "kube-flannel"},
             "spec": {"selector": {"matchLabels": {"app": "flannel"}}, "template": {"metadata": {"labels": labels}, "spec": pod}}}]


def nodes_of_pods(bed):
    """The names of the nodes on which its pods are ready."""
    return {pod["spec"]["nodeName"] for pod in ready_pods(bed, *PODS)}


def pod_begins_anew(bed, i):
    """That of a node."""
    pod, = [pod["metadata"]["name"] for pod in ready_pods(bed, *PODS) if pod["spec"]["nodeName"] == f"node{i}"]
    bed.kubectl("-n", "kube-flannel", "delete", "pod", pod)
    bed.wait("flannel's pod of the node runs again", lambda: f"node{i}" in nodes_of_pods(bed), 300)


class Network:
    """`kind`: how nodes reach each other. `ranges`: those of pods of each node, IPv4 first; there are as many families as a node has ranges here."""

    def __init__(self, kind, ranges):
        self.kind, self.ranges = kind, ranges
        self.plan = net.Plan(len(ranges), 0, 1, True)

    def families(self, i):
        """Of each: its words (`FAMILIES`), the range of all nodes, that of this one, and its address."""
        return list(zip(FAMILIES, net.POD_RANGES, self.ranges[i], self.plan.addresses(i)))

    def conf(self, i):
        """Its CNI file."""
        ipam = {"type": "host-local", "dataDir": "/var/lib/cni/flannel", "ranges": [[{"subnet": mine}] for mine in self.ranges[i]],
                "routes": [{"dst": every} for _, every, _, _ in self.families(i)]}
        mtu = 1500 if self.kind == "flannel-host-gw" else 1430 if len(self.ranges[i]) > 1 else 1450
        bridge = {"type": "bridge", "bridge": "cni0", "mtu": mtu, "isDefaultGateway": True, "hairpinMode": True, "ipMasq": False, "ipam": ipam}
        return json.dumps({"cniVersion": "0.3.1", "name": "cbr0", "plugins": [bridge, {"type": "portmap", "capabilities": {"portMappings": True}}]})

    def start(self, i):
        """A script with what its daemon makes when it starts where nothing of it is."""
        # As with `EnableNFTables`, so that what takes such tables away has one to take.
        lines = ["set -e", "nft add table ip6 flannel-ipv6"]
        for (tables, multicast, device), every, mine, address in self.families(i):
            lines += [f"{tables} -t {table} {rule.format(mine=mine, all=every, multicast=multicast)}" for table, rules in (("nat", MASQUERADE), ("filter", FORWARDED)) for rule in rules]
            if self.kind == "flannel-vxlan":
                lines += [f"ip link add {device} type vxlan id 1 local {address} dev eth0 dstport 8472 nolearning", f"ip link set {device} address {mac(i)}",
                          f"ip addr add {gateway(mine)}/{host_length(mine)} dev {device}", f"ip link set {device} up"]
        return "; ".join([*lines, self.routes(i)])

    def routes(self, i):
        """A script with what it looks after, and puts in the place of what others have made when it starts."""
        lines = ["set -e"]
        for j in self.ranges.keys() - {i}:
            for (_, _, device), _, theirs, address in self.families(j):
                if self.kind == "flannel-vxlan":
                    entry, neighbour = f"{mac(j)} dev {device} dst {address}", f"{gateway(theirs)} lladdr {mac(j)} dev {device}"
                    # Of IPv6 the kernel refuses a gateway to which a route by another device leads; flannel tries for a while, takes back what it has made for that node, and goes on.
                    or_not = f" || {{ ip neigh del {neighbour}; bridge fdb del {entry}; }}" if ":" in theirs else ""
                    lines += [f"bridge fdb replace {entry}", f"ip neigh replace {neighbour} nud permanent", f"ip route replace {theirs} via {gateway(theirs)} dev {device} onlink{or_not}"]
                else:
                    lines += [f"ip route replace {theirs} via {address}"]
        return "; ".join(lines)


def mac(i):
    return f"02:00:00:00:01:{i:02x}"


def gateway(cidr):
    return cidr.partition("/")[0]


def host_length(cidr):
    return 128 if ":" in cidr else 32
