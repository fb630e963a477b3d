#!/usr/bin/python3
"""How others run kube-router: the DaemonSets, rights and host files of its own releases and of its integrators, rendered in words of our own from what they pass, mount,
grant, probe and run first (snapshots of 2026: kube-router 2.11, k0s, kops, kubespray, the enix chart 1.10, k3s' policies alone; kubeasz as it was with kube-router). `integrators.py` prints all as JSON.

Only the image is another, as for a user who changes its name and nothing else, and `Always` is not asked for, where nothing can be pulled (`theirs.py` applies kube-router's own files with both, and moves them).
Nobody of them mounts /var/lib/sluice or /run/sluice, asks /readyz, or gives the rights to create Events, to patch a Node's status, or to read ServiceCIDRs and
ClusterNetworkPolicies. Values that a user writes for their cluster are those of the bed (`labkit.net`).
"""
import json
import sys
from dataclasses import dataclass, field

NAME, NAMESPACE = "kube-router", "kube-system"
API, SERVICES, PODS = "https://192.0.2.100:6443", "10.96.0.0/12", "10.244.0.0/16"
PEER = ("192.0.2.1", "65001")
CONFLIST = "/etc/cni/net.d/10-kuberouter.conflist"
CONF = "/etc/cni/net.d/10-kuberouter.conf"
KUBECONFIG = "/var/lib/kube-router/kubeconfig"
ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"
CONTAINERD = "unix:///run/containerd/containerd.sock"


@dataclass
class Rendering:
    objects: list
    # What the integrator puts on each node before: texts by paths. `%RANGE%` is the node's own, `%AUTHORITY%`, `%CERTIFICATE%` and `%KEY%` PEM in base64.
    files: dict = field(default_factory=dict)
    # The host brings the CNI plugins; elsewhere an init step installs them.
    has_plugins: bool = False
    # Pods get their network from somebody else.
    network_of_others: bool = False
    # The CNI file, where there is no such network.
    conf: str = CONFLIST
    # A CNI file that makes the node Ready at first, and that the integrator deletes when the DaemonSet has its pods.
    first_conf: str = ""

    def daemonset(self):
        return next(item for item in self.objects if item["kind"] == "DaemonSet")

    def flags(self):
        return self.daemonset()["spec"]["template"]["spec"]["containers"][0]["args"]

    def serves_services(self):
        return any(flag.lower() == "--run-service-proxy=true" for flag in self.flags())


# ------------------------------------------------------------------ parts that several have

READ = ["get", "list", "watch"]
CORE = {"apiGroups": [""], "resources": ["namespaces", "pods", "services", "nodes", "endpoints"], "verbs": READ}
POLICIES = [{"apiGroups": [group], "resources": ["networkpolicies"], "verbs": READ} for group in ("networking.k8s.io", "extensions")]
SLICES = {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": READ}
ALLOCATOR = [{"apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "verbs": ["get", "create", "update"]},
             {"apiGroups": [""], "resources": ["services/status"], "verbs": ["update"]}]
RULES = [CORE, *POLICIES, *ALLOCATOR, SLICES]


def rights(rules, user=None):
    """The account, its role, and who has it."""
    subjects = [{"kind": "ServiceAccount", "name": NAME, "namespace": NAMESPACE}]
    if user:
        subjects.append({"kind": "User", "name": user, "apiGroup": "rbac.authorization.k8s.io"})
    return [{"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": NAME, "namespace": NAMESPACE}},
            {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": NAME}, "rules": rules},
            {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": {"name": NAME},
             "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": NAME}, "subjects": subjects}]


def conflist(hairpin=False, portmap=False, ipam=None, **more):
    """The CNI list as they give it: without ranges, which the router adds."""
    bridge = {"name": "kubernetes", "type": "bridge", "bridge": "kube-bridge", "isDefaultGateway": True, **({"hairpinMode": True} if hairpin else {}), **more,
              "ipam": {"type": "host-local", **(ipam or {})}}
    ports = [{"type": "portmap", "capabilities": {"snat": True, "portMappings": True}}] if portmap else []
    return json.dumps({"cniVersion": "0.3.0", "name": "mynet", "plugins": [bridge, *ports]})


def config_map(cni, **more):
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "kube-router-cfg", "namespace": NAMESPACE, "labels": {"tier": "node", "k8s-app": NAME}},
            "data": {"cni-conf.json": cni, **more}}


def kubeconfig(user, authority, **more):
    return json.dumps({"apiVersion": "v1", "kind": "Config", **more, "clusters": [{"name": "cluster", "cluster": {"server": API, **authority}}],
                       "users": [{"name": "user", "user": user}], "contexts": [{"name": "context", "context": {"cluster": "cluster", "user": "user"}}],
                       "current-context": "context"})


def with_token(**more):
    """The pod's own account at another address than its environment names."""
    return kubeconfig({"tokenFile": f"{ACCOUNT}/token"}, {"certificate-authority": f"{ACCOUNT}/ca.crt"}, **more)


def with_certificate():
    return kubeconfig({"client-certificate-data": "%CERTIFICATE%", "client-key-data": "%KEY%"}, {"certificate-authority-data": "%AUTHORITY%"})


USER = "system:kube-router"  # whom the certificate names

COPY_LIST = f"""set -e -x;
if [ ! -f {CONFLIST} ]; then
  if [ -f /etc/cni/net.d/*.conf ]; then
    rm -f /etc/cni/net.d/*.conf;
  fi;
  TMP=/etc/cni/net.d/.tmp-kuberouter-cfg;
  cp /etc/kube-router/cni-conf.json ${{TMP}};
  mv ${{TMP}} {CONFLIST};
fi;
"""
COPY_KUBECONFIG = f"""if [ ! -f {KUBECONFIG} ]; then
  TMP=/var/lib/kube-router/.tmp-kubeconfig;
  cp /etc/kube-router/kubeconfig ${{TMP}};
  mv ${{TMP}} {KUBECONFIG};
fi;
"""
INSTALL = "if [ -x /usr/local/bin/cni-install ]; then /usr/local/bin/cni-install; fi;\n"


class Mounts:
    """Volumes of a pod, and where its containers see them."""

    def __init__(self):
        self.volumes = {}

    def host(self, name, path, at=None, kind=None, read_only=False):
        self.volumes[name] = {"name": name, "hostPath": {"path": path, **({"type": kind} if kind else {})}}
        return {"name": name, "mountPath": at or path, **({"readOnly": True} if read_only else {})}

    def config_map(self, name, of, at, items=None, read_only=False):
        self.volumes[name] = {"name": name, "configMap": {"name": of, **({"items": items} if items else {})}}
        return {"name": name, "mountPath": at, **({"readOnly": True} if read_only else {})}


def without_cni(mounts):
    """What an agent sees of the host that gives no pod its network."""
    return [mounts.host("lib-modules", "/lib/modules", read_only=True), mounts.host("xtables-lock", "/run/xtables.lock", kind="FileOrCreate")]


def common(mounts):
    """What every other one sees."""
    return [*without_cni(mounts), mounts.host("cni-conf-dir", "/etc/cni/net.d")]


def list_step(image, mounts, script, *more):
    """The init container that makes the CNI list, with its ConfigMap."""
    return {"name": "install-cni", "image": image, "imagePullPolicy": "IfNotPresent", "command": ["/bin/sh", "-c", script],
            "volumeMounts": [mounts.host("cni-conf-dir", "/etc/cni/net.d"), mounts.config_map("kube-router-cfg", "kube-router-cfg", "/etc/kube-router"), *more]}


def env(pod_name=False):
    def of(name, path):
        return {"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}}
    return [of("NODE_NAME", "spec.nodeName"), *([of("POD_NAME", "metadata.name")] if pod_name else []), {"name": "KUBE_ROUTER_CNI_CONF_FILE", "value": CONFLIST}]


def probe(path="/healthz", **more):
    return {"httpGet": {"path": path, "port": 20244}, **more}


LIVENESS = probe(initialDelaySeconds=10, periodSeconds=3)  # with the defaults: within 1 s, three times
TOLERATIONS = [{"effect": "NoSchedule", "operator": "Exists"}, {"key": "CriticalAddonsOnly", "operator": "Exists"}, {"effect": "NoExecute", "operator": "Exists"}]
K8S_APP = {"k8s-app": NAME, "tier": "node"}


def daemonset(image, args, mounts, seen, *, init=(), labels=None, account=NAME, liveness=LIVENESS, readiness=None, variables=None, update=None, pod=None,
              tolerations=TOLERATIONS, **spec):
    labels = labels or K8S_APP
    container = {"name": NAME, "image": image, "imagePullPolicy": "IfNotPresent", "args": args, "env": variables or env(), "livenessProbe": liveness,
                 **({"readinessProbe": readiness} if readiness else {}), "resources": {"requests": {"cpu": "250m", "memory": "250Mi"}},
                 "securityContext": {"privileged": True}, "volumeMounts": seen}
    return {"apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": {"name": NAME, "namespace": NAMESPACE, "labels": labels}, "spec": {
        "selector": {"matchLabels": labels}, **({"updateStrategy": update} if update else {}), **spec, "template": {"metadata": {"labels": labels}, "spec": {
            "priorityClassName": "system-node-critical", **({"serviceAccountName": account} if account else {}), "hostNetwork": True, **(pod or {}),
            "tolerations": tolerations, "initContainers": list(init), "containers": [container], "volumes": list(mounts.volumes.values())}}}}


def subsystems(router, firewall, proxy):
    return [f"--run-router={router}", f"--run-firewall={firewall}", f"--run-service-proxy={proxy}"]


T, F, TRUE, FALSE = "true", "false", "True", "False"
RESTART = "--bgp-graceful-restart=true"
AS_FILE = f"--kubeconfig={KUBECONFIG}"


# ------------------------------------------------------------------ the integrators


def k0s(image):
    mounts = Mounts()
    # Its own image installs the plugins; the step here runs the like of it from ours.
    plugins = {"name": "install-cni-bins", "image": image, "imagePullPolicy": "IfNotPresent",
               "command": ["/bin/sh", "-c", "install -m 0755 /usr/libexec/cni/* /host/opt/cni/bin/"],
               "volumeMounts": [mounts.host("cni-bin", "/opt/cni/bin", at="/host/opt/cni/bin", kind="DirectoryOrCreate")]}
    args = [*subsystems(T, T, F), RESTART, "--enable-ipv4=true", "--enable-ipv6=false", "--auto-mtu=true", "--hairpin-mode=true", "--metrics-port=8080",
            f"--service-cluster-ip-range={SERVICES}", "--router-id=generate"]
    agent = daemonset(image, args, mounts, common(mounts), init=[plugins, list_step(image, mounts, COPY_LIST)], variables=env(pod_name=True),
                      pod={"hostPID": True}, liveness=probe(initialDelaySeconds=300, periodSeconds=10, timeoutSeconds=10, failureThreshold=6),
                      readiness=probe(periodSeconds=3, timeoutSeconds=3, failureThreshold=3, successThreshold=3))
    return Rendering([*rights(RULES), config_map(conflist(hairpin=True, portmap=True, ipMasq=False)), agent])


def kops(image):
    mounts = Mounts()
    seen = [*common(mounts), mounts.host("kubeconfig", KUBECONFIG, read_only=True), mounts.host("rt-tables", "/usr/share/iproute2/rt_tables"),
            mounts.host("containerd-sock", "/run/containerd/containerd.sock", read_only=True)]
    args = [*subsystems(T, T, T), RESTART, AS_FILE, "--hairpin-mode=true", "--strict-external-ip-validation=false", "--metrics-port=12013",
            f"--runtime-endpoint={CONTAINERD}", f'--service-cluster-ip-range="{SERVICES}"', "--use-nftables-for-netpol=true"]
    agent = daemonset(image, args, mounts, seen, init=[list_step(image, mounts, COPY_LIST)], variables=env(pod_name=True), pod={"hostPID": True},
                      tolerations=[{"operator": "Exists"}])
    files = {KUBECONFIG: with_certificate(), "/usr/share/iproute2/rt_tables": "255\tlocal\n254\tmain\n253\tdefault\n0\tunspec\n"}
    return Rendering([*rights(RULES, USER), config_map(conflist(hairpin=True, portmap=True)), agent], files, has_plugins=True)


def kubespray(image):
    mounts = Mounts()
    seen = [*common(mounts), mounts.host("kubeconfig", "/var/lib/kube-router", read_only=True)]
    args = [*subsystems(TRUE, TRUE, FALSE), AS_FILE, "--bgp-graceful-restart=True", "--advertise-cluster-ip=False", "--advertise-external-ip=False",
            "--advertise-loadbalancer-ip=False", "--metrics-path=/metrics", "--metrics-port=9255", f"--runtime-endpoint={CONTAINERD}", f"--runtime-endpoint={CONTAINERD}"]
    agent = daemonset(image, args, mounts, seen, update={"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 1}}, minReadySeconds=3)
    files = {KUBECONFIG: with_token(clusterCIDR=PODS), CONFLIST: conflist(hairpin=True, portmap=True, ipam={"subnet": "%RANGE%"})}
    return Rendering([*rights([CORE, *POLICIES, SLICES]), agent], files, has_plugins=True)


# Every line behind the head must say Establ.
ENIX_READY = ("/usr/local/bin/gobgp neighbor >/dev/null || exit 1; [ $(/usr/local/bin/gobgp neighbor | tail -n +2 | wc -l) -eq "
              "$(/usr/local/bin/gobgp neighbor | tail -n +2 | grep Establ | wc -l) ]")


def enix(image):
    """A chart; without its option that fetches plugins from outside."""
    mounts = Mounts()
    labels = {"app.kubernetes.io/name": NAME, "app.kubernetes.io/instance": NAME}
    readiness = {"exec": {"command": ["sh", "-c", ENIX_READY]}, "initialDelaySeconds": 5, "periodSeconds": 10, "timeoutSeconds": 5}
    agent = daemonset(image, subsystems(T, T, F), mounts, common(mounts), init=[list_step(image, mounts, COPY_LIST)], labels=labels, readiness=readiness,
                      update={"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 1}})
    return Rendering([*rights([CORE, *POLICIES]), config_map(conflist(hairpin=True, portmap=True)), agent], has_plugins=True)


# A single plugin, not a list, and without a version.
COPY_PLUGIN = f"""set -e -x;
if [ ! -f {CONF} ]; then
  TMP=/etc/cni/net.d/.tmp-kuberouter-cfg;
  cp /etc/kube-router/cni-conf.json ${{TMP}};
  mv ${{TMP}} {CONF};
fi;
"""


def kubeasz(image):
    """An old file: neither the lock of iptables nor a name of the CNI file is told to the agent, which takes kube-router's usual one. Its pods do not tolerate a node
    that is not ready, and need not: nodes come with a network of their own, which goes when kube-router's pods are there."""
    mounts = Mounts()
    seen = [mounts.host("lib-modules", "/lib/modules", read_only=True), mounts.host("cni-conf-dir", "/etc/cni/net.d")]
    plugin = json.dumps({"name": "kubernetes", "type": "bridge", "bridge": "kube-bridge", "isDefaultGateway": True, "ipam": {"type": "host-local"}})
    agent = daemonset(image, subsystems(T, T, F), mounts, seen, init=[list_step(image, mounts, COPY_PLUGIN)], variables=env()[:1],
                      tolerations=[{"key": "CriticalAddonsOnly", "operator": "Exists"},
                                   {"effect": "NoSchedule", "key": "node-role.kubernetes.io/master", "operator": "Exists"}])
    default = {"cniVersion": "0.3.1", "name": "mynet", "type": "bridge", "bridge": "mynet0", "isDefaultGateway": True, "ipMasq": True, "hairpinMode": True,
               "ipam": {"type": "host-local", "subnet": PODS}}
    return Rendering([*rights([CORE, *POLICIES]), config_map(plugin), agent], {"/etc/cni/net.d/10-default.conf": json.dumps(default)}, has_plugins=True, conf=CONF,
                     first_conf="/etc/cni/net.d/10-default.conf")


def k3s(image):
    """Policies alone, beside flannel and k3s' own proxy; k3s has them in its program, and whoever puts them outside writes this."""
    mounts = Mounts()
    rules = [{"apiGroups": [""], "resources": ["namespaces", "pods", "nodes"], "verbs": READ}, POLICIES[0]]
    agent = daemonset(image, [*subsystems(F, T, F), f"--service-cluster-ip-range={SERVICES}"], mounts, without_cni(mounts), variables=env()[:1])
    return Rendering([*rights(rules), agent], network_of_others=True)


# ------------------------------------------------------------------ upstream's files, by their names


def upstream(router, firewall, proxy, *more, api="pod", hairpin=False, portmap=False, peer=False, dsr=False):
    """`api`: how the server is found: `pod` by the environment, `cm` by kubeadm's ConfigMap, `copied` by a file that an init step copies."""
    def rendered(image):
        mounts = Mounts()
        args = [*subsystems(router, firewall, proxy), *([RESTART] if router == T else []), *more]
        seen = common(mounts)
        init = [list_step(image, mounts, COPY_LIST + (COPY_KUBECONFIG if api == "copied" else "") + INSTALL, mounts.host("host-opt", "/opt"))]
        if api == "pod":  # mounted, and not used
            seen.append(mounts.host("kubeconfig", "/var/lib/kube-router", read_only=True))
        else:
            args.append(AS_FILE)
        if api == "cm":
            items = [{"key": "kubeconfig.conf", "path": "kubeconfig"}]
            seen.append(mounts.config_map("kubeconfig", "kube-proxy", "/var/lib/kube-router", items, read_only=True))
        if api == "copied":
            seen.append(mounts.host("kubeconfig", "/var/lib/kube-router", read_only=True))
            init[0]["volumeMounts"].append({"name": "kubeconfig", "mountPath": "/var/lib/kube-router"})
        if peer:
            args += [f"--peer-router-ips={PEER[0]}", f"--peer-router-asns={PEER[1]}", "--cluster-asn=64512", "--advertise-cluster-ip=true"]
        pod = {"hostPID": True}
        if dsr:
            args.append("--runtime-endpoint=unix:///var/run/containerd/containerd.sock")
            seen += [mounts.host("containerd", "/var/run/containerd", read_only=True), mounts.host("rt-tables", "/etc/iproute2/rt_tables")]
            pod["hostIPC"] = True
        agent = daemonset(image, args, mounts, seen, init=init, variables=env(pod_name=True), pod=pod)
        extra = {"kubeconfig": with_token(clusterCIDR=PODS)} if api == "copied" else {}
        return Rendering([*rights(RULES), config_map(conflist(hairpin, portmap), **extra), agent])
    return rendered


def only_advertise(image):
    """Routes alone, for pods and Services of others."""
    mounts = Mounts()
    args = [*subsystems(T, F, F), RESTART, "--enable-cni=false", "--enable-ibgp=false", "--enable-overlay=false", f"--peer-router-ips={PEER[0]}",
            f"--peer-router-asns={PEER[1]}", "--cluster-asn=64512", "--advertise-cluster-ip=true", "--advertise-external-ip=true",
            "--advertise-loadbalancer-ip=true"]
    agent = daemonset(image, args, mounts, without_cni(mounts), variables=env(pod_name=True)[:2], pod={"hostPID": True})
    return Rendering([*rights(RULES), agent], network_of_others=True)


def of_old(router, firewall, proxy, peer=False):
    """The files without rights: an administrator puts a kubeconfig on each host, and gives its user what the others give their account."""
    def rendered(image):
        mounts = Mounts()
        seen = [*common(mounts), mounts.host("kubeconfig", "/var/lib/kube-router", read_only=True)]
        args = [*subsystems(router, firewall, proxy), AS_FILE, *([RESTART] if router == T else [])]
        if peer:
            args += [f"--peer-router-ips={PEER[0]}", f"--peer-router-asns={PEER[1]}", "--cluster-asn=64512", "--advertise-cluster-ip=true"]
        init = [list_step(image, mounts, COPY_LIST + INSTALL, mounts.host("host-opt", "/opt"))]
        agent = daemonset(image, args, mounts, seen, init=init, labels={"k8s-app": NAME}, account=None, pod={"hostPID": True})
        return Rendering([*rights(RULES, USER), config_map(conflist()), agent], {KUBECONFIG: with_certificate()}, network_of_others=router == F)
    return rendered


RENDERINGS = {
    "k0s": k0s, "kops": kops, "kubespray": kubespray, "enix": enix, "kubeasz": kubeasz, "k3s": k3s,
    "upstream-kubeadm-kuberouter": upstream(T, T, F),
    "upstream-kubeadm-kuberouter-all-features": upstream(T, T, T, api="cm", hairpin=True),
    "upstream-kubeadm-kuberouter-all-features-dsr": upstream(T, T, T, api="cm", hairpin=True, dsr=True),
    "upstream-kubeadm-kuberouter-all-features-hostport": upstream(T, T, T, api="cm", hairpin=True, portmap=True),
    "upstream-generic-kuberouter": upstream(T, T, F),
    "upstream-generic-kuberouter-all-features": upstream(T, T, T, api="copied", hairpin=True),
    "upstream-generic-kuberouter-all-features-advertise-routes": upstream(T, T, T, api="copied", hairpin=True, peer=True),
    "upstream-generic-kuberouter-only-advertise-routes": only_advertise,
    "upstream-kube-router-all-service-daemonset": of_old(T, T, T),
    "upstream-kube-router-all-service-daemonset-advertise-routes": of_old(T, T, T, peer=True),
    "upstream-kube-router-firewall-daemonset": of_old(F, T, F),
    "upstream-kube-router-proxy-daemonset": of_old(F, F, T),
}


def main():
    made = {name: make("sluice:lab") for name, make in RENDERINGS.items()}
    json.dump({name: {"objects": it.objects, "files": it.files} for name, it in made.items()}, sys.stdout, indent=1)


if __name__ == "__main__":
    main()
