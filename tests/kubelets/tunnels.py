"""Direct server return on a kubelet: the agent finds the pod by its container runtime and gives it a tunnel, and the removal, which the page has with two mounts more, takes it away from a
pod that lives on."""
import newcomer
import page
from newcomer import condition, container, that

VALUE = "directServerReturn.enabled=true"  # of the chart
ADDRESS, RANGE = "198.51.100.7", "198.51.100.0/24"
WITH_RANGE = f"extraArgs[0]=--service-external-ip-range={RANGE}"
NAMESPACE = "tunnels"  # its pod is there when all others are gone
MARKED = "ipvsadm -Ln | grep -A 2 ^FWM; true"


def in_pods(bed):
    """What pods of the first node have of tunnels."""
    return bed.on(1, "for n in $(ls /run/netns); do ip -n $n -br addr show dev kube-tunnel-if 2>/dev/null; done; true")


def a_pod_gets_a_tunnel(bed):
    bed.apply(
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}},
        {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "tunnel", "namespace": NAMESPACE, "labels": {"app": "tunnel"}}, "spec": {
            "nodeName": "node1", "terminationGracePeriodSeconds": 1, "automountServiceAccountToken": False, "containers": [container("web", "exec httpd -f -p 8080 -h /www")]}},
        {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "tunnel", "namespace": NAMESPACE, "annotations": {"kube-router.io/service.dsr": "tunnel"}},
         "spec": {"selector": {"app": "tunnel"}, "externalIPs": [ADDRESS], "ports": [{"port": 8080, "targetPort": 8080}]}})
    bed.wait("the pod is ready", lambda: condition(bed.get("pod", "tunnel", "-n", NAMESPACE), "Ready"))
    bed.wait("it has the address on a tunnel", lambda: has_tunnel(bed), 300)
    bed.wait("it is sent packets through it", lambda: "Tunnel" in bed.on(1, MARKED), 300)


def has_tunnel(bed):
    return f"{ADDRESS}/32" in in_pods(bed)


def the_removal_takes_the_tunnel_out_of_the_pod(bed):
    """And nothing else of it; without the mounts the tunnel would stay. The bridge that the pod is on stays, as long as it is there."""
    newcomer.the_removal_leaves_nothing(bed, True, lambda: that(has_tunnel(bed), "the end of the agents has taken the tunnel away:", in_pods(bed)), stays=r"\bkube-bridge\b")
    that(not in_pods(bed), "a pod has", in_pods(bed))
    that(condition(bed.get("pod", "tunnel", "-n", NAMESPACE), "Ready"), "the pod does not run any more")
