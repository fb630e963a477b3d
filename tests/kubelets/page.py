"""Commands of docs/migration.md, as they are written there: what is run is what an administrator reads."""
import os
import re

from labkit import own


def found(pattern, flags=0):
    """The one place of the page that the pattern is found at."""
    with open(os.path.join(own.TREE, "docs", "migration.md")) as handle:
        places = re.findall(pattern, handle.read(), flags=re.M | flags)
    if len(places) != 1:
        raise AssertionError(f"docs/migration.md has {len(places)} places with {pattern}")
    return places[0]


def on_node(command, name):
    if "=NODE" not in command:
        raise AssertionError(f"it names no node: {command}")
    return command.replace("NODE", name)


def making_anew(node):
    """Deletes the pods which a drain leaves on a node and which have a network of their own (`ANEW`)."""
    return on_node(found(r"^    (kubectl delete pods -A .*)$"), node)


def making_anew_with_an_old_server(node):
    """The same with API servers that do not select by that."""
    return on_node(found(r"^    (kubectl get pods -A .*)$"), node)


def taken():
    """Asks the agent of each node how its service proxy stands (`TAKEN`)."""
    return found(r"^    (for pod in .*?^    done)$", re.S)


def own_kubeconfig():
    """Gives the agents a ConfigMap of their own."""
    return found(r"^    (kubectl -n kube-system get configmap kube-proxy -o jsonpath=.*?\| kubectl apply -f -)$", re.S)


def patching(has_init):
    """Puts our image in the place of kube-router's, in a DaemonSet with or without an init container."""
    init = '"initContainers"' if has_init else '"containers"'
    return found(r"`(kubectl -n kube-system patch ds kube-router --patch '\{\"spec\":\{\"template\":\{\"spec\":\{" + init + r"[^']+')`")


def setting_image():
    """The same by names of images, in a cluster of kops; nodes have ours without a registry."""
    command = found(r"`(kubectl -n kube-system set image ds/kube-router [^`]+)`")
    if command.count("REGISTRY/sluice:") != 2:
        raise AssertionError(f"it names no registry: {command}")
    return command.replace("REGISTRY/", "")


def leaving_out(name):
    """Has a DaemonSet of another network leave out the nodes that have the label: the patch, and the command that waits for it."""
    return found(rf"`(kubectl -n \S+ patch ds {name} --patch '[^']+')`, and `(kubectl -n \S+ rollout status ds {name})`")


def labelling(node):
    """Gives a node the label by which flannel's DaemonSet leaves it out."""
    return found(r"^\| 4 \| `(kubectl label node NODE sluice=yes)`; when flannel's pod").replace("NODE", node)


def taking_labels(name):
    """Takes a label from all nodes when they have gone back."""
    return found(rf"^\| 7 \| .*`(kubectl label nodes --all {name}-)`")


def loosening_the_filter_of_sources():
    """Where sources of packets are filtered strictly."""
    return found(r"also before step 1, on all nodes: `(sysctl -w [^`]+)`")


def external_addresses():
    """Lists the addresses of Services that want a flag."""
    return found(r"^    (kubectl get services -A -o 'custom-columns=.*)$")


def leftovers_of_flannel():
    """Takes away what flannel's programs leave on a node (`LEFT`)."""
    return found(r"^    (ip link delete flannel\.1 .*?flannel-ipv6 2>/dev/null; true)$", re.S)


def ranges_of_nodes():
    """Lists them, those by annotation too."""
    return found(r"`(kubectl get nodes -o 'custom-columns=[^`]*)`")


def giving_a_range(node, cidr):
    """Gives a node a range in place of that of its spec."""
    command = found(r"`(kubectl annotate node NODE kube-router\.io/pod-cidrs=RANGE)`")
    return command.replace("NODE", node).replace("RANGE", cidr)


def widening(cidr):
    """Gives kube-proxy another range of pods, in kubeadm's ConfigMap; behind that it has to be started anew."""
    command = found(r"^    (kubectl -n kube-system get configmap kube-proxy -o yaml \| sed .*?clusterCIDR.*)$")
    if command.count("WIDER") != 1:
        raise AssertionError(f"it names no range: {command}")
    return command.replace("WIDER", cidr)


def rights_of_the_allocator():
    """Gives agents the rights of `--run-loadbalancer`."""
    return found(r"`(kubectl apply -f daemonset/kube-router-load-balancer\.yaml)`")


def removal(ctr, with_tunnels=False):
    """`REMOVE`, by the program `ctr` at this path. `with_tunnels`: as where agents had direct server return."""
    command = found(r"^    (mkdir -p /etc/cni/net\.d .*?--cleanup-config)$", re.S)
    if with_tunnels:
        mounts = found(r"^Where agents had `--enable-direct-server-return`[^\n]*:\n\n((?:      --mount [^\n]*\n)+)")
        last = mounts.splitlines(keepends=True)[0]
        if command.count(last) != 1:
            raise AssertionError(f"no mount of the removal is in the place of {last}")
        command = command.replace(last, mounts)
    making, running = command.split("\n    ctr ")
    return f"{making}\n{ctr} {running} < /dev/null"


def handing_routes(cidr):
    """Puts routes of nobody's in the place of the agents' to this range (`HANDED`)."""
    command = found(r"^    (ip route show root RANGE proto 17 type unicast .*)$")
    return command.replace("RANGE", cidr)


def leading_to_gateways(cidr):
    """Lets flannel put routes of IPv6 by its device in the place of the agents' to this range (`LED`)."""
    command = found(r"^    (ip -6 route show root RANGE proto 17 type unicast .*)$")
    return command.replace("RANGE", cidr)


def leading_no_more_to_gateways(cidr):
    """Takes away what that has added."""
    return found(r"`(ip -6 route flush root RANGE [^`]+)`").replace("RANGE", cidr)


def leaving_tunnels():
    """Has pods send to nodes past the agents' tunnels again, before these go."""
    return found(r"`(while ip rule del table 77 [^`]+)`")


def ending_pods_by_the_runtime():
    """Ends all pods of a node that have a network of their own, and takes flannel's away: what stands between the end of the kubelet and its start."""
    return found(r"^    systemctl stop kubelet\n(.*?)^    systemctl start kubelet$", re.S)


def mounts_of_removal():
    """The folders and files which `REMOVE` mounts: (path, "ro" or "rw") each."""
    return tuple(re.findall(r"src=([^,]+),\S*rbind:(r[ow])", removal("ctr")))
