"""A node that boots again, with what its disks have and nothing else."""
import newcomer
from joining import agent_of
from newcomer import ready_nodes, ready_pods, that

from labkit import own

OUTCOMES, ASKING = "/run/near", "/run/near-asking"  # on the first node


def containers(pod):
    """What tells one run of a pod's containers from another."""
    return sorted((one["containerID"], one["restartCount"]) for one in pod["status"]["containerStatuses"])


def everything_of(bed, node):
    """The pods of a node, with what tells whether they were started anew."""
    return {pod["metadata"]["name"]: containers(pod) for pod in bed.get("pods", "-A")["items"] if pod["spec"]["nodeName"] == node and pod["status"].get("containerStatuses")}


def a_node_comes_back_from_a_reboot(bed):
    """Its agent starts with nothing in the kernel, its pods get their network again, and Services, the node port and policies work as before. Pods of another node notice
    nothing but that those of the node are away."""
    that(bed.nodes > 1, "nobody would be there to ask")
    node, other = f"node{bed.nodes}", "node1"
    newcomer.client(bed)
    agent = containers(agent_of(bed, node))
    before = {pod["metadata"]["name"]: containers(pod) for pod in ready_pods(bed, "-l", "app=web") if pod["spec"]["nodeName"] == node}
    near = next((pod["status"]["podIP"] for pod in ready_pods(bed, "-l", "app=web") if pod["spec"]["nodeName"] == other), None)
    that(before and near, "no pod on", node, "or none on", other)
    others = everything_of(bed, other)
    ask = f"curl -s -m 20 http://{near}:8080/name > /dev/null && echo ok || echo failed"
    # What has not called setsid yet when the command ends is killed with it.
    begun = f"until [ -e {OUTCOMES} ]; do sleep 0.1; done"
    bed.on(1, f"rm -f {OUTCOMES}; touch {ASKING}; setsid sh -c 'while [ -e {ASKING} ]; do {ask}; sleep 0.5; done > {OUTCOMES}' < /dev/null > /dev/null 2>&1 & {begun}")
    asked = len(newcomer.outcomes(bed))
    bed.reboot(bed.nodes)

    def has_new_agent():
        found = agent_of(bed, node)
        return found is not None and containers(found) != agent
    bed.wait("the agent is ready again", has_new_agent)
    bed.wait("the node is ready", lambda: node in ready_nodes(bed))

    def have_new_containers():
        now = {pod["metadata"]["name"]: containers(pod) for pod in ready_pods(bed, "-l", "app=web")}
        return all(name in now and now[name] != was for name, was in before.items())
    bed.wait("its pods are ready, in new containers", have_new_containers)
    newcomer.a_service_answers_on_every_node_and_its_node_port(bed)
    since = len(newcomer.outcomes(bed))
    newcomer.a_policy_closes_the_pods(bed)
    meanwhile = newcomer.outcomes(bed)[asked:since]
    own.say(f"  a client on {other} asked for all pods while {node} was away: {len(meanwhile)} requests, {meanwhile.count('failed')} failed")
    bed.on(1, f"rm -f {ASKING}")
    closed = bed.on(1, f"cat {OUTCOMES}").split()
    that(closed and set(closed) == {"ok"}, f"of {len(closed)} requests of {other} to a pod there {closed.count('failed')} failed")
    own.say(f"  {len(closed)} requests on {other} itself, none failed")
    now = everything_of(bed, other)
    that(all(now.get(name) == was for name, was in others.items()), "started anew on", other, {name: (was, now.get(name)) for name, was in others.items() if now.get(name) != was})
