"""A move from kube-router to Sluice and back, as docs/migration.md and the guide (Going back to kube-router) have it, while requests go on and one client is refused all the while.

There is no kube-router here: nodes have what its version 2.11 leaves in kernel and files with routing, policies by iptables and Services by IPVS, and nobody looks after that.
"""
import json

from labkit import net, own

import asks
import moves
import newcomer
from newcomer import AGENTS, ready_nodes, ready_pods, that
from theirs import PLUGINS

# What it takes, of what is in nf_tables by programs of iptables.
POD_CHAIN, POLICY_CHAIN = "KUBE-POD-FW-CQ4BS6KVJJ6G{:04d}", "KUBE-NWPLCY-VUOBX2QE27PMHWR4"
SOURCES, TARGETS = "KUBE-SRC-ZH7PMEL32QCTUMHX", "KUBE-DST-JEB2RTBKBRKVDVXX"
SETS = (("kube-router-pod-subnets", "hash:net"), ("kube-router-node-ips", "hash:ip"), ("kube-router-local-ips", "hash:ip"), ("kube-router-svip", "hash:ip"),
        ("kube-router-svip-prt", "hash:ip,port"), (SOURCES, "hash:ip"), (TARGETS, "hash:ip"))
SETTINGS = ("net/ipv4/vs/conntrack=1", "net/ipv4/vs/expire_nodest_conn=1", "net/ipv4/vs/expire_quiescent_template=1", "net/ipv4/vs/conn_reuse_mode=0",
            "net/ipv4/conf/all/arp_ignore=1", "net/ipv4/conf/all/arp_announce=2", "net/bridge/bridge-nf-call-iptables=1", "net/ipv4/ip_forward=1")
TABLES = "nft list tables | grep sluice; true"


def admitted(lines):
    """Of what a client has written (`asks.py`) that which the Service has let in, on either port: a late answer was one, and a connection that a server closes."""
    return [line for line in lines if line in ("ok", "kept") or asks.LATE in line or asks.FOREIGN in line or line.endswith(asks.CLOSED)]


class Move(moves.Move):
    def __init__(self):
        super().__init__("kube-router", serves=True)

    def tests(self):
        every = [self.nodes_have_kube_router, self.requests_go_on, self.kube_router_serves_and_refuses, self.agents_take_over, self.pods_come_and_go, self.kube_router_takes_over]
        return [(f"{self.kind}: {test.__name__}", test) for test in every]

    # ------------------------------------------------------------------ kube-router

    def nodes_have_kube_router(self, bed):
        """Pod networking, before any pod is there."""
        newcomer.nodes_wait_for_a_network(bed)
        newcomer.put_what_kubeadm_leaves(bed)
        self.ranges = {int(node["metadata"]["name"].removeprefix("node")): node["spec"]["podCIDRs"][0] for node in bed.get("nodes")["items"]}
        plan = net.Plan(bed.nodes, 0, 1, True)
        self.addresses = {i: plan.addresses(i)[0] for i in self.nodes(bed)}
        conf = {"cniVersion": "0.3.0", "name": "mynet", "plugins": [
            {"name": "kubernetes", "type": "bridge", "bridge": "kube-bridge", "isDefaultGateway": True, "hairpinMode": True, "mtu": 1500, "ipam": {"type": "host-local"}},
            {"type": "portmap", "capabilities": {"snat": True, "portMappings": True}}]}
        for i in self.nodes(bed):
            conf["plugins"][0]["ipam"]["ranges"] = [[{"subnet": self.ranges[i]}]]
            bed.on(i, f"mkdir -p /opt/cni/bin; cd {net.CNI}; cp {PLUGINS} /opt/cni/bin/; ip route replace default via {net.ROUTER[0]}")
            routes = [f"ip route replace {self.ranges[j]} via {self.addresses[j]} proto 17" for j in self.nodes(bed) if j != i]
            settings = [f"echo {setting.partition('=')[2]} > /proc/sys/{setting.partition('=')[0]}" for setting in SETTINGS]
            bed.on(i, "\n".join(["set -e", "modprobe -a br_netfilter ip_vs ip_vs_rr xt_ipvs", "ip link add kube-bridge type bridge", "ip link set kube-bridge up mtu 1500", *routes, *settings]))
            self.put_sets(bed, i)
            self.put_rules(bed, i)
            bed.put(i, moves.OURS, json.dumps(conf))
        bed.wait("nodes are ready", lambda: len(ready_nodes(bed)) == bed.nodes)

    def put_sets(self, bed, i, elements=()):
        lines = [f"create -exist {name} {kind} family inet timeout 0" for name, kind in SETS]
        lines += [f"add -exist kube-router-pod-subnets {one} timeout 0" for one in self.ranges.values()]
        lines += [f"add -exist kube-router-node-ips {one} timeout 0" for one in self.addresses.values()]
        lines += [f"add -exist kube-router-local-ips {one} timeout 0" for one in (self.addresses[i], "127.0.0.1")]
        lines += [f"add -exist {name} {element} timeout 0" for name, element in elements]
        bed.on(i, "ipset restore <<'END'\n" + "\n".join(lines) + "\nEND")

    def put_rules(self, bed, i, pods=()):
        """Those of routing and of Services, and of policies for these pods of the node: (address, whether the policy selects it)."""
        chains = ["KUBE-ROUTER-SERVICES", "KUBE-ROUTER-INPUT", "KUBE-ROUTER-FORWARD", "KUBE-ROUTER-OUTPUT", "KUBE-NWPLCY-DEFAULT", "KUBE-NWPLCY-COMMON", "KUBE-NWPLCY-TAIL", POLICY_CHAIN]
        chains += [POD_CHAIN.format(n) for n in range(len(pods))]
        allowed = "0x10000/0x10000"
        host = [
            ("FORWARD", '-m comment --comment "allow outbound node port traffic on node interface with which node ip is associated" -o eth0 -j ACCEPT'),
            ("FORWARD", '-m comment --comment "allow inbound traffic to pods" -o kube-bridge -j ACCEPT'), ("FORWARD", '-m comment --comment "allow outbound traffic from pods" -i kube-bridge -j ACCEPT'),
            ("INPUT", '-m comment --comment "handle traffic to IPVS service IPs in custom chain" -m set --match-set kube-router-svip dst -j KUBE-ROUTER-SERVICES'),
            ("INPUT", '-m comment --comment "kube-router netpol - 4IA2OSFRMVNDXBVV" -j KUBE-ROUTER-INPUT'), ("FORWARD", '-m comment --comment "kube-router netpol - TEMCG2JMHZYE7H7T" -j KUBE-ROUTER-FORWARD'),
            ("OUTPUT", '-m comment --comment "kube-router netpol - VEAAIY32XVBHCSCY" -j KUBE-ROUTER-OUTPUT')]
        rules = [
            '-A KUBE-ROUTER-SERVICES -p icmp -m comment --comment "allow icmp echo requests" -m icmp --icmp-type 8 -j ACCEPT',
            '-A KUBE-ROUTER-SERVICES -m comment --comment "allow input traffic to ipvs services" -m set --match-set kube-router-svip-prt dst,dst -j ACCEPT',
            '-A KUBE-ROUTER-SERVICES -m comment --comment "reject all unexpected traffic to service IPs" -m set ! --match-set kube-router-local-ips dst -j REJECT --reject-with icmp-port-unreachable',
            '-A KUBE-NWPLCY-DEFAULT -m comment --comment "rule to mark traffic matching a network policy" -j MARK --set-xmark 0x10000/0x10000',
            '-A KUBE-NWPLCY-COMMON -m conntrack --ctstate INVALID -j DROP', '-A KUBE-NWPLCY-COMMON -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT',
            f"-A {POLICY_CHAIN} -m set --match-set {SOURCES} src -m set --match-set {TARGETS} dst -j MARK --set-xmark {allowed}",
            f"-A {POLICY_CHAIN} -m set --match-set {SOURCES} src -m set --match-set {TARGETS} dst -m mark --mark {allowed} -j RETURN",
            '-A KUBE-ROUTER-INPUT -d 10.96.0.0/12 -m comment --comment "allow traffic to primary/secondary cluster IP range - BVHX2PIHDXXEO43X" -j RETURN',
            '-A KUBE-ROUTER-INPUT -p tcp -m comment --comment "allow LOCAL TCP traffic to node ports - LR7XO7NXDBGQJD2M" -m addrtype --dst-type LOCAL -m multiport --dports 30000:32767 -j RETURN']
        for n, (address, is_selected) in enumerate(pods):
            chain = POD_CHAIN.format(n)
            rules += [f"-A {chain} -j KUBE-NWPLCY-COMMON", f"-A {chain} -d {address} -m addrtype --src-type LOCAL -j ACCEPT", f"-A {chain} -s {address} -j KUBE-NWPLCY-DEFAULT",
                      f"-A {chain} -d {address} -j {POLICY_CHAIN if is_selected else 'KUBE-NWPLCY-DEFAULT'}", f"-A {chain} -m mark ! --mark {allowed} -j REJECT --reject-with icmp-port-unreachable",
                      f"-A {chain} -j MARK --set-xmark 0x0/0x10000", f"-A {chain} -j MARK --set-xmark 0x20000/0x20000"]
            rules += [f"-A KUBE-ROUTER-FORWARD {bridged}{side} {address} -j {chain}" for side in ("-d", "-s") for bridged in ("", "-m physdev --physdev-is-bridged ")]
            rules += [f"-A KUBE-ROUTER-OUTPUT {side} {address} -j {chain}" for side in ("-d", "-s")] + [f"-A KUBE-ROUTER-INPUT -s {address} -j {chain}"]
        for chain in ("INPUT", "FORWARD", "OUTPUT"):
            rules += [f'-A KUBE-ROUTER-{chain} -m comment --comment "rule to explicitly handle traffic for network policies ACCEPT/REJECT decision" -j KUBE-NWPLCY-TAIL',
                      f'-A KUBE-ROUTER-{chain} -m mark --mark 0x20000/0x20000 -m comment --comment "rule to explicitly ACCEPT traffic that comply to network policies" -j ACCEPT']
        mine = self.ranges[i]
        nat = [f'-m ipvs --ipvs --vdir ORIGINAL --vmethod MASQ -m comment --comment "" ! -s {mine} ! -d {mine} -j SNAT --to-source {self.addresses[i]} --random-fully',
               "-m set --match-set kube-router-pod-subnets src -m set ! --match-set kube-router-pod-subnets dst -m set ! --match-set kube-router-node-ips dst -j MASQUERADE --random-fully"]
        # Its rules in chains of the host are there once, however often it syncs.
        theirs = [("filter", chain, rule) for chain, rule in host] + [("nat", "POSTROUTING", rule) for rule in nat]
        undo = "".join(f"while iptables -t {table} -D {chain} {rule} 2>/dev/null; do :; done\n" for table, chain, rule in theirs)
        filters = "".join([f":{chain} - [0:0]\n" for chain in chains] + [f"{rule}\n" for rule in rules] + [f"-I {chain} 1 {rule}\n" for chain, rule in host])
        bed.on(i, f"{undo}iptables-restore --noflush <<'END'\n*filter\n{filters}COMMIT\n*nat\n{''.join(f'-A POSTROUTING {rule}' + chr(10) for rule in nat)}COMMIT\nEND")

    def sync(self, bed):
        """What it makes of Services, pods and the policy as they are now."""
        services = {one["metadata"]["name"]: one for one in bed.get("services")["items"]}
        pods = [pod for pod in bed.get("pods")["items"] if pod["status"].get("podIP")]
        at = {pod["metadata"]["name"]: pod["status"]["podIP"] for pod in pods}
        is_web = {pod["metadata"]["name"]: pod["metadata"]["labels"].get("app") == "web" for pod in pods}
        ready = [pod["status"]["podIP"] for pod in ready_pods(bed, "-l", "app=web")]
        servers = [f"{net.CONTROL[0]}:{bed.cluster['port']}"]
        for i in self.nodes(bed):
            virtual = {}
            for name, service in services.items():
                for port in service["spec"]["ports"]:
                    behind = servers if name == "kubernetes" else [f"{one}:{port['targetPort']}" for one in ready]
                    virtual[service["spec"]["clusterIP"], port["port"]] = behind
                    if port.get("nodePort"):
                        virtual[self.addresses[i], port["nodePort"]] = behind
            lines = ["set -e", "ip link show kube-dummy-if > /dev/null 2>&1 || ip link add kube-dummy-if type dummy", "ip link set kube-dummy-if up"]
            for (address, port), behind in virtual.items():
                if address != self.addresses[i]:
                    lines += [f"ip addr replace {address}/32 dev kube-dummy-if scope link",
                              f"ip route replace local {address} dev kube-dummy-if table local proto kernel scope host src {self.addresses[i]}"]
                lines += [f"ipvsadm -A -t {address}:{port} -s rr 2>/dev/null || true", *(f"ipvsadm -a -t {address}:{port} -r {one} -m -w 1 2>/dev/null || true" for one in behind)]
            bed.on(i, "\n".join(lines))
            elements = [("kube-router-svip", address) for address, _ in virtual] + [("kube-router-svip-prt", f"{address},tcp:{port}") for address, port in virtual]
            elements += [(SOURCES, address) for name, address in at.items() if is_web[name] or name.startswith("friend")] + [(SOURCES, address) for address in self.addresses.values()] + [(TARGETS, address) for name, address in at.items() if is_web[name]]
            self.put_sets(bed, i, elements)
            self.put_rules(bed, i, [(at[pod["metadata"]["name"]], is_web[pod["metadata"]["name"]]) for pod in pods if pod["spec"]["nodeName"] == f"node{i}"])

    # ------------------------------------------------------------------ traffic

    def all_reach_all(self, bed, bridges):
        """As far as the first test of pods needs it: there is a policy here."""
        self.pods_are_ready(bed)
        self.sync(bed)

    def clients(self, bed):
        """A client on each node that the policy lets in, and one that it does not."""
        for i in self.nodes(bed):
            bed.apply(*({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": f"{name}{i}", "labels": {"app": name}}, "spec": {
                "nodeName": f"node{i}", "terminationGracePeriodSeconds": 1, "automountServiceAccountToken": False, "containers": [newcomer.container("client", "exec sleep 1000000")]}}
                for name in ("friend", "stranger")))
        bed.apply({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": "web"}, "spec": {"podSelector": {"matchLabels": {"app": "web"}}, "policyTypes": ["Ingress"], "ingress": [
            {"from": [{"podSelector": {"matchExpressions": [{"key": "app", "operator": "In", "values": ["web", "friend"]}]}}, *({"ipBlock": {"cidr": f"{one}/32"}} for one in self.addresses.values())]}]}})
        bed.wait("clients are ready", lambda: all(len(ready_pods(bed, "-l", f"app={name}")) == bed.nodes for name in ("friend", "stranger")))

    def start_asking(self, bed):
        """From a client of each kind on each node."""
        self.asking, self.spaces = {}, {}
        at = {pod["metadata"]["name"]: pod["status"]["podIP"] for pod in bed.get("pods")["items"]}
        for i in self.nodes(bed):
            for who in ("friend", "stranger"):
                space = newcomer.space_of(bed, i, at[f"{who}{i}"])
                self.ask(bed, i, who, space)
                self.spaces[i, who] = space
        self.asked(bed)

    def end_asking(self, bed):
        """Who may ask was answered each time, on a connection that is kept too, and who may not was never."""
        for (i, who), lines in self.asked_until_now(bed).items():
            own.say(f"  node {i}, {who}: {len(admitted(lines))} of {len(lines)} were answered")
            wrong = [line for line in lines if line not in ("ok", "kept")] if who == "friend" else admitted(lines)
            that(not wrong, "node", i, who, wrong[:10])
        self.strangers_have_a_network(bed)

    def strangers_have_a_network(self, bed):
        """They reach the pods that no policy selects, by the same port and on every node, so it is the policy that refuses them."""
        addresses = [pod["status"]["podIP"] for pod in newcomer.pods_of_each_node(bed)]
        that(len(addresses) == bed.nodes, "pods that no policy selects are at", addresses)
        asking = "; ".join(f"curl -s -f -m {moves.PACE[bed.kind]['patience']} -o /dev/null http://{one}:8080/name || echo {one}" for one in addresses)
        for i in self.nodes(bed):
            silent = bed.on(i, f"nsenter --net=/run/netns/{self.spaces[i, 'stranger']} sh -c '{asking}'; true").split()
            that(not silent, "node", i, "its stranger does not reach", silent)

    # ------------------------------------------------------------------ the steps

    def kube_router_serves_and_refuses(self, bed):
        self.clients(bed)
        self.sync(bed)
        self.start_asking(bed)
        self.end_asking(bed)
        self.no_request_failed(bed)

    def agents_take_over(self, bed):
        self.start_asking(bed)
        before = {i: bed.on(i, "ipvsadm -Ln | grep -E '^(TCP|UDP|SCTP|FWM)' | sort") for i in self.nodes(bed)}
        bed.kubectl("apply", "--validate=strict", "-f", bed.manifest())
        bed.wait("agents are ready", lambda: len(ready_pods(bed, *AGENTS)) == bed.nodes)
        self.end_asking(bed)
        self.no_request_failed(bed)
        for i in self.nodes(bed):
            self.agent(bed, i, "sluice", "audit")  # ends with 1 where anything differs
            after = bed.on(i, "ipvsadm -Ln | grep -E '^(TCP|UDP|SCTP|FWM)' | sort")
            that(set(before[i].splitlines()) <= set(after.splitlines()), "virtual services went:", before[i], after)
            left = bed.on(i, "iptables-save | grep -E 'KUBE-(ROUTER|NWPLCY|POD-FW)|kube-router-'; ipset list -n | grep -E 'kube-router-|KUBE-(SRC|DST)-'; true").split("\n")
            that(not any(left), f"of kube-router's rules is left on node {i}, where ours are in nftables:", left)

    def pods_come_and_go(self, bed):
        """Agents follow what kube-router left."""
        self.start_asking(bed)
        former = {pod["metadata"]["name"] for pod in ready_pods(bed, "-l", "app=web")}
        bed.kubectl("rollout", "restart", "deployment", "web")

        def replaced():
            names = {pod["metadata"]["name"] for pod in bed.get("pods", "-l", "app=web")["items"]}
            return not names & former and len(ready_pods(bed, "-l", "app=web")) == self.pods == len(names)
        bed.wait("pods are replaced", replaced)
        for (i, who), lines in self.asked_until_now(bed).items():
            # A connection that is kept ends with its pod, and its successor is answered.
            failed = [line for line in lines if line != "ok" and ("kept" not in line or asks.LATE in line)]
            wrong = [*failed, *([] if "kept" in lines else ["no connection was kept"])] if who == "friend" else admitted(lines)
            that(not wrong, "node", i, who, wrong[:10])
        self.strangers_have_a_network(bed)
        self.no_request_failed(bed)

    def kube_router_takes_over(self, bed):
        """The way back: agents end, kube-router syncs, and our tables go last."""
        self.start_asking(bed)
        bed.kubectl("delete", "-f", bed.manifest())
        bed.wait("agents are gone", lambda: not bed.get("pods", *AGENTS)["items"])
        self.sync(bed)
        for i in self.nodes(bed):
            bed.on(i, bed.once("--cleanup-nftables"))
            that(not bed.on(i, TABLES).strip(), "tables of ours are left on node", i, bed.on(i, TABLES))
        self.end_asking(bed)
        self.no_request_failed(bed)
