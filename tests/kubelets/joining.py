"""A node that joins a cluster that runs."""
from newcomer import AGENTS, a_service_answers_on_every_node_and_its_node_port, condition, ready_nodes, ready_pods, that


def agent_of(bed, node):
    return next((pod for pod in ready_pods(bed, *AGENTS) if pod["spec"]["nodeName"] == node), None)


def a_node_joins(bed):
    """Nobody does anything on it: the DaemonSet brings the agent, and pods that come there are reached from everywhere."""
    before = bed.nodes
    node = f"node{bed.join()}"
    bed.wait("its agent is ready", lambda: agent_of(bed, node) is not None)
    bed.wait("the node is ready", lambda: node in ready_nodes(bed))
    for name in range(1, before + 1):
        bed.kubectl("cordon", f"node{name}")
    bed.kubectl("scale", "deployment", "web", f"--replicas={bed.nodes + 1}")
    bed.wait("a pod runs there", lambda: any(pod["spec"]["nodeName"] == node for pod in ready_pods(bed, "-l", "app=web")))
    for name in range(1, before + 1):
        bed.kubectl("uncordon", f"node{name}")
    bed.wait("all pods are ready", lambda: len(ready_pods(bed, "-l", "app=web")) == bed.nodes + 1)
    that(all(condition(pod, "Ready") for pod in bed.get("pods", *AGENTS)["items"]), "an agent is not ready")
    a_service_answers_on_every_node_and_its_node_port(bed)
