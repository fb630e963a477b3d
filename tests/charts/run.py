#!/usr/bin/python3
"""The chart and the base for kustomize, by Helm and kubectl themselves: run.py [WORD...]; those tests whose names have one of the words in them.

Helm and kubectl are built once from their Go modules; nothing else is needed, no cluster either.
"""
import os
import subprocess
import sys
import time
import traceback

TREE = os.path.dirname(os.path.dirname(os.path.dirname(os.path.realpath(__file__))))
sys.path.insert(0, os.path.join(TREE, "scripts"))
sys.dont_write_bytecode = True
from labkit import charts, cluster, own, packages  # noqa: E402

PROXY = ["serviceProxy.enabled=true", "apiServer.url=https://192.0.2.9:6443"]
# Values, a flag or a line of the DaemonSet that they bring, and one that they take away.
CHANGES = [
    (["netfilter=iptables"], "        - --netfilter=iptables", None),
    (["ipv6=true"], "        - --enable-ipv6=true", None),
    (["ipv4=false", "ipv6=true"], "        - --enable-ipv4=false", None),
    (["serviceClusterIPRanges={10.43.0.0/16,2001:db8:43::/112}"], '        - "--service-cluster-ip-range=10.43.0.0/16,2001:db8:43::/112"', None),
    (["serviceExternalIPRanges={192.0.2.0/25,2001:db8:7::/64}", "ipv6=true"], '        - "--service-external-ip-range=192.0.2.0/25,2001:db8:7::/64"', None),
    (["serviceNodePortRange=20000-22767"], '        - "--service-node-port-range=20000-22767"', None),
    (["image.repository=registry.example/sluice", "image.tag=v9.1"], '        image: "registry.example/sluice:v9.1"', '        image: "sluice:0.1.0"'),
    (["image.pullPolicy=Always"], "        imagePullPolicy: Always", "        imagePullPolicy: IfNotPresent"),
    (["metrics.port=8080"], "        - --metrics-port=8080", None),
    (["metrics.port=8080", "metrics.address=127.0.0.1"], '        - "--metrics-addr=127.0.0.1"', None),
    (["metrics.port=8080", "metrics.address=::"], '        - "--metrics-addr=::"', None),
    (["metrics.port=20244", "metrics.address=192.0.2.1", "healthAddress=127.0.0.1"], "        - --metrics-port=20244", None),
    (["healthAddress=127.0.0.1"], '        - "--health-addr=127.0.0.1"', None),
    (["healthAddress=::1"], '            host: "::1"', None),
    (["healthPort=20299"], "        - --health-port=20299", "            port: 20244"),
    (["router.clusterASN=4200000001"], '        - "--cluster-asn=4200000001"', None),
    (["router.peers[0].address=192.0.2.1", "router.peers[0].asn=4200000002", "router.peers[1].address=2001:db8::1", "router.peers[1].asn=65001"],
     '        - "--peer-router-asns=4200000002,65001"', None),
    (["router.peers[0].address=192.0.2.1", "router.peers[0].asn=65001", "router.peers[1].address=2001:db8::1", "router.peers[1].asn=65001"],
     '        - "--peer-router-ips=192.0.2.1,2001:db8::1"', None),
    ([r"router.nodeIPAutodetect=interface=^eth1$\,^bond", "nodeAnnotations.enabled=true"], '        - "--node-ip-autodetect=interface=^eth1$,^bond"', None),
    (["router.gracefulRestart=false"], "        - --run-router=true", "        - --bgp-graceful-restart=true"),
    (["router.podNetwork=false"], "        - --enable-cni=false", "      initContainers:"),
    (["firewall.holdPods=true"], "        - --netpol-cni=true", None),
    (["firewall.holdPods=true", "router.podNetwork=false"], "      initContainers:", "        - name: KUBE_ROUTER_CNI_CONF_FILE"),
    (["firewall.holdPods=true", "router.enabled=false"], "      - name: cni-bin-dir", "        - name: KUBE_ROUTER_CNI_CONF_FILE"),
    (["cni.securityContext.seLinuxOptions.type=container_t"], "            type: container_t", "            type: spc_t"),
    (["cni.securityContext.readOnlyRootFilesystem=true"], "          readOnlyRootFilesystem: true", None),
    (["firewall.enabled=false"], "        - --run-firewall=false", "  resources: [clusternetworkpolicies]"),
    (["router.enabled=false"], "        - --run-router=false", "        - name: KUBE_ROUTER_CNI_CONF_FILE"),
    (["serviceProxy.enabled=true", "apiServer.url=https://192.0.2.9:6443"], '        - "--master=https://192.0.2.9:6443"', None),
    (["serviceProxy.enabled=true", "apiServer.kubeconfig.configMap=kube-proxy"], '          name: "kube-proxy"', None),
    (["loadBalancer.enabled=true", "loadBalancer.ranges={192.0.2.128/25}"], '        - "--loadbalancer-ip-range=192.0.2.128/25"', None),
    (["loadBalancer.enabled=true", "loadBalancer.ranges={192.0.2.128/25}"], "  resources: [services/status]", None),
    ([*PROXY, "directServerReturn.enabled=true"], "        - --enable-direct-server-return=true", None),
    ([*PROXY, "directServerReturn.enabled=true"], '        - "--runtime-endpoint=unix:///run/containerd/containerd.sock"', None),
    ([*PROXY, "directServerReturn.enabled=true"], "          mountPath: /run/netns", None),
    ([*PROXY, "directServerReturn.enabled=true", "directServerReturn.runtimeSocket=/var/run/crio/crio.sock"], '          path: "/var/run/crio"', None),
    # Another allocator gives the addresses.
    (["loadBalancer.ranges={192.0.2.128/25,2001:db8:8::/64}", "ipv6=true"], '        - "--loadbalancer-ip-range=192.0.2.128/25,2001:db8:8::/64"', None),
    (["nodeStatus.enabled=true"], "  resources: [nodes/status]", None),
    (["nodeAnnotations.enabled=true"], "  name: kube-router-node-annotations", None),
    (["cni.confDirectory=/var/lib/rancher/k3s/agent/etc/cni/net.d"], '          path: "/var/lib/rancher/k3s/agent/etc/cni/net.d"', '          path: "/etc/cni/net.d"'),
    (["cni.binDirectory=/usr/lib/cni"], '          path: "/usr/lib/cni"', '          path: "/opt/cni/bin"'),
    (["cni.installPlugins=false"], "        - name: cni-conf-dir", "      initContainers:"),
    (["extraArgs={--netpol-default-deny=true}"], "        - \"--netpol-default-deny=true\"", None),
    (["extraArgs={--netpol-cni=false}"], '        - "--netpol-cni=false"', None),
    # Whoever has no init container installs the plugin by other means.
    (["extraArgs={--netpol-cni=true}", "cni.installPlugins=false"], '        - "--netpol-cni=true"', "        - name: HOLD_PODS"),
    (["firewall.holdPods=true"], '          value: "true"', '          value: "false"'),
    (["resources.limits.memory=1Gi"], "            memory: 1Gi", None),
    (["securityContext.readOnlyRootFilesystem=true"], "          readOnlyRootFilesystem: true", None),
    (["securityContext.privileged=false", "securityContext.capabilities.add={NET_ADMIN}"], "            - NET_ADMIN", "          privileged: true"),
    (["hostPID=true"], "      hostPID: true", None),
    (["tolerations[0].key=dedicated", "tolerations[0].operator=Exists"], "      - key: dedicated", "      - effect: NoSchedule"),
    (["nodeSelector.pool=edge"], "        pool: edge", None),
    (["updateStrategy.rollingUpdate.maxUnavailable=1"], "      maxUnavailable: 1", None),
    (["labels.tier=null"], "      k8s-app: kube-router", "      tier: node"),
]
# Values, and of which of them the notes say that they announce nothing.
EXTERNAL, BALANCED = "router.advertise.externalIP", "router.advertise.loadBalancerIP"
ANNOUNCED = [
    ([f"{EXTERNAL}=true"], [EXTERNAL]),
    ([f"{BALANCED}=true"], [BALANCED]),
    ([f"{EXTERNAL}=true", f"{BALANCED}=true"], [EXTERNAL, BALANCED]),
    ([f"{EXTERNAL}=true", "loadBalancer.ranges={192.0.2.128/25}"], [EXTERNAL]),
    ([f"{EXTERNAL}=true", "serviceExternalIPRanges={192.0.2.0/25}"], []),
    ([f"{EXTERNAL}=true", "extraArgs={--service-external-ip-range=192.0.2.0/25}"], []),
    ([f"{BALANCED}=true", "serviceExternalIPRanges={192.0.2.0/25}"], [BALANCED]),
    ([f"{BALANCED}=true", "loadBalancer.ranges={192.0.2.128/25}"], []),
    ([f"{BALANCED}=true", "extraArgs={--loadbalancer-ip-range=192.0.2.128/25}"], []),
    ([f"{EXTERNAL}=true", f"{BALANCED}=true", "extraArgs={--strict-external-ip-validation=false}"], []),
    ([f"{EXTERNAL}=true", "extraArgs={--strict-external-ip-validation=true}"], [EXTERNAL]),
    ([f"{EXTERNAL}=true", "router.enabled=false"], []),
    (["router.advertise.clusterIP=true"], []),
]
# Values that make no sense, and a word of what Helm says of them.
WRONG = [
    (["netfilter=ebtables"], "netfilter"),
    (["serviceproxy.enabled=true"], "serviceproxy"),
    (["router.enabled=yes"], "router/enabled"),
    (["serviceClusterIPRanges={10.43.0.0}"], "serviceClusterIPRanges"),
    (["serviceClusterIPRanges={10.0.0.0/16,10.1.0.0/16,10.2.0.0/16}"], "serviceClusterIPRanges"),
    (["serviceExternalIPRanges={192.0.2.7}"], "serviceExternalIPRanges"),
    (["serviceExternalIPRanges={192.0.2.0/33}"], "serviceExternalIPRanges"),
    (["serviceExternalIPRanges={2001:db8::/64}"], "ipv6 is false"),
    (["loadBalancer.ranges={192.0.2.0/24}", "ipv4=false", "ipv6=true"], "ipv4 is false"),
    (["router.peers[0].address=router-1", "router.peers[0].asn=65001"], "router/peers/0/address"),
    (["router.peers[0].address=192.0.2.1"], "asn"),
    (["router.clusterASN=4294967296"], "router/clusterASN"),
    (["metrics.port=70000"], "metrics/port"),
    (["image.pullPolicy=Sometimes"], "image/pullPolicy"),
    (["apiServer.url=192.0.2.9:6443"], "apiServer/url"),
    (["extraArgs={netpol-cni}"], "extraArgs"),
    (["cni.binDirectory=opt/cni/bin"], "cni/binDirectory"),
    (["serviceProxy.enabled=true"], "apiServer.url"),
    (["loadBalancer.enabled=true"], "loadBalancer.ranges"),
    (["directServerReturn.enabled=true"], "serviceProxy.enabled"),
    ([*PROXY, "directServerReturn.enabled=true", "directServerReturn.runtimeSocket=unix:///run/containerd/containerd.sock"], "directServerReturn/runtimeSocket"),
    (["router.nodeIPAutodetect=cidr=2001:db8:1::/64"], "nodeAnnotations.enabled"),
    (["router.nodeIPAutodetect=eth1", "nodeAnnotations.enabled=true"], "router/nodeIPAutodetect"),
    (["firewall.enabled=false", "firewall.holdPods=true"], "firewall.holdPods"),
    (["firewall.holdPods=true", "cni.installPlugins=false"], "firewall.holdPods"),
    (["metrics.port=8080", "metrics.address=node-1"], "metrics/address"),
    (["firewall.enabled=false", "router.enabled=false"], "nothing is enabled"),
    (["ipv4=false"], "ipv4"),
    (["metrics.port=20244"], "metrics.port"),
    (["metrics.port=20244", "healthAddress=127.0.0.1"], "metrics.port"),
    (["metrics.port=20244", "healthAddress=127.0.0.1", "metrics.address=localhost"], "metrics.port"),
    (["metrics.port=20244", "healthAddress=::1", "metrics.address=[::1]"], "metrics.port"),
    (["metrics.port=20244", "healthAddress=127.0.0.1", "metrics.address=0.0.0.0"], "metrics.port"),
    (["extraArgs={--health-addr=127.0.0.1}"], "healthAddress"),
    (["extraArgs={--health-port=20299}"], "healthPort"),
    (["extraArgs={--netpol-cni=true}"], "firewall.holdPods"),
    (["extraArgs={--netpol-cni}"], "firewall.holdPods"),
    (["extraArgs={--netpol-default-deny=true,--netpol-cni=1}"], "firewall.holdPods"),
    (["extraArgs={--netpol-cni=true}", "router.podNetwork=false"], "firewall.holdPods"),
    (["healthAddress=localhost"], "healthAddress"),
    (["healthAddress=0.0.0.0"], "healthAddress"),
    (["healthAddress=[::1]"], "healthAddress"),
    (["metrics.port=8080", "healthPort=8080", "metrics.address=127.0.0.1"], "metrics.port"),
    (["metrics.port=8080", "metrics.address=127.0.0.256"], "metrics/address"),
    (["serviceNodePortRange=1-99999"], "serviceNodePortRange"),
    (["serviceNodePortRange=32767-30000"], "serviceNodePortRange"),
    (["serviceNodePortRange=30000"], "serviceNodePortRange"),
    (["serviceClusterIPRanges={10.256.0.0/16}"], "serviceClusterIPRanges"),
    (["loadBalancer.enabled=true", "loadBalancer.ranges={192.0.2.300/32}"], "loadBalancer/ranges"),
    (["router.peers[0].address=999.1.1.1", "router.peers[0].asn=65001"], "router/peers/0/address"),
    (["router.peers[0].address=2001:db8::1::2", "router.peers[0].asn=65001"], "router/peers/0/address"),
    (["router.peers[0].address=fe80::1", "router.peers[0].asn=65001"], "router/peers/0/address"),
    (["router.peers[0].address=192.0.2.1", "router.peers[0].asn=0"], "router/peers/0/asn"),
    (["router.peers[0].address=192.0.2.1", "router.peers[0].asn=65535"], "router/peers/0/asn"),
    (["router.clusterASN=65000000"], "router/clusterASN"),
    (["securityContext.privileged=false"], "securityContext"),
    (["securityContext.privileged=false", "securityContext.capabilities.add={NET_RAW}"], "securityContext"),
]


def that(true, *words):
    if not true:
        raise AssertionError(" ".join(str(word) for word in words))


def chosen(values):
    return [word for value in values for word in ("--set", value)]


def every_file_is_as_the_chart_makes_it():
    that(not charts.differing(), "run scripts/manifests for", charts.differing())
    manifests = {name.removesuffix(".yaml") for name in os.listdir(cluster.INSTALLED)}
    that(manifests == set(charts.names()), "values without a file, or the other way round:", manifests ^ set(charts.names()))


def helm_finds_nothing_to_complain_of():
    for name in charts.names():
        said = charts.helm("lint", "--strict", charts.CHART, "--namespace", charts.NAMESPACE, "-f", charts.values(name))
        that("0 chart(s) failed" in said and "[WARNING]" not in said and "[ERROR]" not in said, name, said)


def each_value_says_what_it_is_for():
    plain = charts.rendered()
    for values, brought, taken in CHANGES:
        lines = charts.rendered(*chosen(values)).splitlines()
        that(brought in lines, values, "do not bring", brought)
        that(taken not in lines, values, "do not take away", taken)
        that(lines != plain.splitlines(), values, "change nothing")
        that(taken is None or taken in plain.splitlines(), taken, "was never there")


def what_announces_nothing_for_want_of_a_range_is_in_the_notes():
    for values, expected in ANNOUNCED:
        said = charts.helm("install", "kube-router", charts.CHART, "--namespace", charts.NAMESPACE, "--dry-run=client", *chosen(values))
        notes = said.split("\nNOTES:\n")[1]
        found = [name for name in (EXTERNAL, BALANCED) if f"\n{name} announces nothing" in notes]
        that(found == expected, values, notes)


def both_probes_ask_where_health_is_served():
    """A kubelet asks the node's address where a probe names none."""
    for values, host in ((["healthAddress=127.0.0.1"], "127.0.0.1"), (["healthAddress=::1"], "::1"), ([], None)):
        agent = objects(charts.rendered(*chosen(values)))["DaemonSet", "kube-router"]["spec"]["template"]["spec"]["containers"][0]
        asked = [agent[probe]["httpGet"] for probe in ("livenessProbe", "readinessProbe")]
        that([one.get("host") for one in asked] == [host] * 2, values, asked)
        that([word for word in agent["args"] if word.startswith("--health-addr")] == [f"--health-addr={host}"] * (host is not None), agent["args"])


def where_pods_are_held_back_the_plugin_has_to_be_there_whatever_cni_files_name():
    """No CNI file need name it yet: the agent is about to write it into one. One script serves both, and a variable tells it."""
    scripts = set()
    for values, looks in ((["firewall.holdPods=true"], False), ([], True)):
        init = objects(charts.rendered(*chosen(values)))["DaemonSet", "kube-router"]["spec"]["template"]["spec"]["initContainers"][0]
        that(init["env"] == [{"name": "HOLD_PODS", "value": "false" if looks else "true"}], values, init["env"])
        scripts.add(init["command"][2])
        seen = {mount["mountPath"]: mount.get("readOnly", False) for mount in init["volumeMounts"]}
        that(seen == {"/opt/cni/bin": False, **({"/etc/cni/net.d": True} if looks else {})}, values, seen)
    that(len(scripts) == 1, *scripts)


def every_value_is_tried():
    """A value that no test changes may do nothing."""
    tried = {value.split("=")[0].split("[")[0] for values, _, _ in CHANGES for value in values}
    for name in charts.names():
        with open(charts.values(name)) as handle:
            tried |= set(leaves(yaml().safe_load(handle)))
    with open(f"{charts.CHART}/values.yaml") as handle:
        every = set(leaves(yaml().safe_load(handle)))
    # Maps and lists that go into the DaemonSet as they are.
    passed = {"imagePullSecrets", "extraEnv", "extraVolumes", "extraVolumeMounts", "affinity", "podAnnotations", "priorityClassName",
              "securityContext.privileged", "labels.k8s-app", "metrics.path", "apiServer.kubeconfig.key"}
    missing = {path for path in every if not any(path == it or it.startswith(f"{path}.") for it in tried | passed)}
    that(not missing, "no test changes", missing)


def leaves(values, above=""):
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, f"{above}{key}.")
        else:
            yield f"{above}{key}"


def values_that_make_no_sense_are_named():
    for values, word in WRONG:
        try:
            charts.rendered(*chosen(values))
        except own.LabError as error:
            said = str(error).split("exit status", 1)[1]
            that(word in said, values, "are refused without", word, "in:", said)
        else:
            raise AssertionError(f"{values} are accepted")


def objects(text):
    return {(item["kind"], item["metadata"]["name"]): item for item in yaml().safe_load_all(text)}


def yaml():
    import yaml  # Debian's, installed by `main`
    return yaml


def built(folder):
    return objects(own.run(cluster.program("kubectl"), "kustomize", folder))


def file(name):
    with open(os.path.join(cluster.INSTALLED, f"{name}.yaml")) as handle:
        return objects(handle.read())


def kustomize_builds_the_base_as_the_file_is():
    base = built(f"{TREE}/kustomize/base")
    that(base == file("generic-kuberouter"), "the base differs from the file")


def components_add_their_rights_to_the_base():
    folder = own.fresh(f"{own.cache()}/kustomize-{os.getpid()}")
    try:
        subprocess.run(["cp", "-r", f"{TREE}/kustomize", folder], check=True)
        for of, name in (("node-status", "kube-router-node-status"), ("load-balancer", "kube-router-load-balancer"), ("node-annotations", "kube-router-node-annotations")):
            os.makedirs(f"{folder}/kustomize/mine-{of}")
            own.write(f"{folder}/kustomize/mine-{of}/kustomization.yaml", f"resources: [../base]\ncomponents: [../components/{of}]\nimages:\n"
                      "- {name: sluice, newName: registry.example/sluice, newTag: v9}\n")
            found = built(f"{folder}/kustomize/mine-{of}")
            that({key: found[key] for key in file(name)} == file(name), of, "adds other rights")
            pod = found["DaemonSet", "kube-router"]["spec"]["template"]["spec"]
            images = [it["image"] for it in pod["initContainers"] + pod["containers"]]
            that(images == ["registry.example/sluice:v9"] * 2, images)
    finally:
        subprocess.run(["rm", "-r", folder])


def flags(items):
    """What the agent is told; of a flag that is given twice the last one counts."""
    container = items["DaemonSet", "kube-router"]["spec"]["template"]["spec"]["containers"][0]
    return dict(word.split("=", 1) for word in container.pop("args"))


def the_example_of_kustomize_makes_all_features():
    found, expected = built(f"{TREE}/kustomize/all-features"), file("generic-kuberouter-all-features")
    that(flags(found) == flags(expected), "other flags")
    that(found == expected, "they differ in more than flags")


ALL = [every_file_is_as_the_chart_makes_it, helm_finds_nothing_to_complain_of, each_value_says_what_it_is_for,
       what_announces_nothing_for_want_of_a_range_is_in_the_notes, both_probes_ask_where_health_is_served,
       where_pods_are_held_back_the_plugin_has_to_be_there_whatever_cni_files_name, every_value_is_tried,
       values_that_make_no_sense_are_named, kustomize_builds_the_base_as_the_file_is, components_add_their_rights_to_the_base,
       the_example_of_kustomize_makes_all_features]


def main():
    packages.install(packages.YAML)
    passed, failed = 0, 0
    for test in ALL:
        if sys.argv[1:] and not any(word in test.__name__ for word in sys.argv[1:]):
            continue
        began, word = time.monotonic(), "ok"
        try:
            test()
            passed += 1
        except Exception:
            traceback.print_exc(file=sys.stdout)
            failed, word = failed + 1, "FAILED"
        print(f"{word:<7}{test.__name__} ({time.monotonic() - began:.1f} s)", flush=True)
    print(f"charts: {passed} passed, {failed} failed", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
