"""A node that boots again, with what its disks have and nothing else."""
import newcomer
from joining import agent_of
from newcomer import ready_nodes, ready_pods, that

from labkit import own

OUTCOMES, ASKING = "/run/near", "/run/near-asking"  # on a node


def containers(pod):
    """What tells one run of a pod's containers from another."""
    return sorted((one["containerID"], one["restartCount"]) for one in pod["status"]["containerStatuses"])


def everything_of(bed, node):
    """The pods of a node, with what tells whether they were started anew."""
    return {pod["metadata"]["name"]: containers(pod) for pod in bed.get("pods", "-A")["items"] if pod["spec"]["nodeName"] == node and pod["status"].get("containerStatuses")}


def pods_that_stay(bed):
    """The address of a pod on each node that does not boot, where one is there; the first node has one."""
    found = {int(pod["spec"]["nodeName"].removeprefix("node")): pod["status"]["podIP"] for pod in ready_pods(bed, "-l", "app=web")}
    found.pop(bed.nodes, None)
    that(1 in found, "no pod on the first node, but on", sorted(found))
    return found


def start_asking_those_that_stay(bed, pods):
    """Requests of every node that stays to every pod of such a node, one after the other."""
    for i in range(1, bed.nodes):
        # The seconds of each, behind what came of it; an answer that takes too long is told from none.
        asks = "; ".join(f"took=$(curl -s -f -m 20 -o /dev/null -w %{{time_total}} http://{address}:8080/name) && echo ok:$took || echo failed:node{j}" for j, address in sorted(pods.items()))
        # What has not called setsid yet when the command ends is killed with it.
        begun = f"until [ -e {OUTCOMES} ]; do sleep 0.1; done"
        bed.on(i, f"rm -f {OUTCOMES}; touch {ASKING}; setsid sh -c 'while [ -e {ASKING} ]; do {asks}; sleep 0.5; done > {OUTCOMES}' < /dev/null > /dev/null 2>&1 & {begun}")


def no_node_that_stays_has_noticed(bed, pods):
    for i in range(1, bed.nodes):
        bed.on(i, f"rm -f {ASKING}")
        said = [one.partition(":") for one in bed.on(i, f"cat {OUTCOMES}").split()]
        wrong = [f"{word}:{of}" for word, _, of in said if word != "ok" or float(of) > newcomer.LATEST[bed.kind]]
        that(len(said) >= len(pods) and not wrong, f"of {len(said)} requests of node {i} to pods of nodes that stayed these failed, or were answered after more than {newcomer.LATEST[bed.kind]} s:", wrong)
        own.say(f"  {len(said)} requests of node {i} to pods of {', '.join(f'node{j}' for j in sorted(pods))}, none failed, the slowest {max(float(of) for *_, of in said):.2f} s")


def a_node_comes_back_from_a_reboot(bed):
    """Its agent starts with nothing in the kernel, its pods get their network again, and Services, the node port and policies work as before. Nodes that stay and their pods
    notice nothing but that the pods of the node are away."""
    that(bed.nodes > 1, "nobody would be there to ask")
    node, other = f"node{bed.nodes}", "node1"
    newcomer.client(bed)
    agent = containers(agent_of(bed, node))
    before = {pod["metadata"]["name"]: containers(pod) for pod in ready_pods(bed, "-l", "app=web") if pod["spec"]["nodeName"] == node}
    that(before, "no pod on", node)
    near, others = pods_that_stay(bed), everything_of(bed, other)
    start_asking_those_that_stay(bed, near)
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
    meanwhile = newcomer.outcomes(bed)[asked:]
    # The Service sends some of them to pods of the node that is away until the cluster has noticed, and nothing tells which: how many fail has no bound. Others are answered.
    that("ok" in meanwhile, "the Service has answered nothing of", len(meanwhile), "requests while", node, "was away")
    own.say(f"  a client on {other} asked for all pods while {node} was away: {len(meanwhile)} requests, {meanwhile.count('failed')} failed, {meanwhile.count('late')} were answered late")
    no_node_that_stays_has_noticed(bed, near)
    newcomer.a_policy_closes_the_pods(bed)
    now = everything_of(bed, other)
    that(all(now.get(name) == was for name, was in others.items()), "started anew on", other, {name: (was, now.get(name)) for name, was in others.items() if now.get(name) != was})
