"""`healthCheckNodePort` of a Service: kube-proxy's while it runs, the agent's from its end on, and kube-proxy's again when the agents have gone."""
import datetime

from newcomer import that

from labkit import net, own

NAME, PORT = "checked", 30100
SERVICE = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": NAME}, "spec": {
    "type": "LoadBalancer", "externalTrafficPolicy": "Local", "healthCheckNodePort": PORT, "selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8080}]}}
LOG = "/var/lib/kubelet/health-checks"
# For how many seconds nobody may listen between kube-proxy and the agent, which tries each second; who asks takes a while to begin where all have one emulated processor.
MOST = 10
# kube-proxy tries again with each sync of its rules, which are half a minute apart where nothing changes.
RETRIED = 90


def owner(bed, i):
    """The name of the program that listens there."""
    _, _, rest = bed.on(i, f"ss -Hltnp sport = :{PORT}; true").partition('users:(("')
    return rest.partition('"')[0]


def put(bed):
    bed.apply(SERVICE)


def are_kube_proxys(bed):
    for i in range(1, bed.nodes + 1):
        bed.wait(f"kube-proxy of node {i} says how many endpoints it has", lambda i=i: owner(bed, i) == "kube-proxy" and '"localEndpoints"' in asked(bed, i), RETRIED)


def where(bed, i):
    """Agents serve it where they serve node ports, kube-proxy also elsewhere."""
    return f"http://{net.Plan(bed.nodes, 0, 1, True).addresses(i)[0]}:{PORT}/"


def asked(bed, i):
    return bed.on(i, f"curl -s -m 5 {where(bed, i)}; true")


def agents_say_that_it_is_in_use(bed):
    for i in range(1, bed.nodes + 1):
        bed.wait(f"the agent of node {i} says that the port is in use", lambda i=i: str(PORT) in bed.on(i, "curl -s -m 5 http://127.0.0.1:20244/readyz; true"), 60)

    def told():
        events = bed.get("events", "-n", "default", "--field-selector", f"involvedObject.name={NAME}")["items"]
        return [event for event in events if event["reason"] == "HealthCheckPortInUse"]
    bed.wait("an Event says so", told, 120)
    own.say(f"  {told()[0]['message']}")


def begin_asking(bed):
    """On each node, again and again until LOG.end is there; a line has when it was and the status that was answered, 000 where nobody was there."""
    for i in range(1, bed.nodes + 1):
        loop = f"while ! test -e {LOG}.end; do echo $(date +%FT%T.%N | cut -c1-23) $(curl -s -m 2 -o /dev/null -w %{{http_code}} {where(bed, i)}); sleep 0.05; done"
        bed.on(i, f"rm -f {LOG} {LOG}.end; setsid sh -c '{loop}' > {LOG} 2> /dev/null < /dev/null & until test -s {LOG}; do sleep 0.1; done")


def are_the_agents(bed):
    """From now on; says for how long nobody was there."""
    for i in range(1, bed.nodes + 1):
        bed.wait(f"the agent of node {i} has the port", lambda i=i: owner(bed, i) not in ("", "kube-proxy"), 60)
        that('"localEndpoints"' in asked(bed, i), "it says", asked(bed, i))
    for i in range(1, bed.nodes + 1):
        lines = [line.split() for line in bed.on(i, f": > {LOG}.end; sleep 1; cat {LOG}").splitlines()]
        times = [datetime.datetime.fromisoformat(at) for at, _ in lines]
        refused = [n for n, (_, status) in enumerate(lines) if status == "000"]
        # From the last answer before to the first one behind, each by when it was asked for.
        gap = (times[refused[-1] + 1] - times[refused[0] - 1]).total_seconds() if refused else 0
        own.say(f"  node {i}: of {len(lines)} health checks {len(refused)} had no answer, within {gap:.2f} s")
        that({status for _, status in lines} <= {"000", "200", "503"} and gap <= MOST, "health checks:", lines)
