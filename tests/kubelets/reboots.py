"""A node that boots again, with what its disks have and nothing else, and one that joins."""
from newcomer import AGENTS, a_service_answers_on_every_node_and_its_node_port, condition, ready_nodes, ready_pods, that


def agent_of(bed, node):
    return next((pod for pod in ready_pods(bed, *AGENTS) if pod["spec"]["nodeName"] == node), None)


def a_node_comes_back_from_a_reboot(bed):
    """Its agent starts with no kernel state and an API server that is there; its pods get their network again, and Services reach them."""
    node = f"node{bed.nodes}"
    container = agent_of(bed, node)["status"]["containerStatuses"][0]["containerID"]
    pods = {pod["metadata"]["name"] for pod in ready_pods(bed, "-l", "app=web") if pod["spec"]["nodeName"] == node}
    that(pods, "no pod on", node)
    bed.reboot(bed.nodes)

    def new_agent():
        agent = agent_of(bed, node)
        return agent is not None and agent["status"]["containerStatuses"][0]["containerID"] != container
    bed.wait("the agent is ready again", new_agent)
    bed.wait("the node is ready", lambda: node in ready_nodes(bed))
    bed.wait("its pods are ready", lambda: {pod["metadata"]["name"] for pod in ready_pods(bed, "-l", "app=web")} >= pods)
    a_service_answers_on_every_node_and_its_node_port(bed)


def a_node_joins(bed):
    """Nobody does anything on it: the DaemonSet brings the agent, and pods that come there are reached from everywhere."""
    if not bed.joining:
        return
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
