"""`healthCheckNodePort` of a Service: kube-proxy's while it runs, the agent's from its end on, and kube-proxy's again when the agents have gone."""
from newcomer import that

from labkit import net, own

NAME, PORT = "checked", 30100
SERVICE = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": NAME}, "spec": {
    "type": "LoadBalancer", "externalTrafficPolicy": "Local", "healthCheckNodePort": PORT, "selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8080}]}}
LOG = "/var/lib/kubelet/health-checks"
# For how many seconds nobody may listen between kube-proxy and the agent, which tries each second; all have one emulated processor.
MOST = 10
STARTS = 300  # seconds in which kube-proxy, which begins, has the port
# Begins connections, each some time behind the one before, until a file is there; writes down when each began, and whether somebody listened.
CONNECTS = """
import os, socket, sys, time
where, log = (sys.argv[1], int(sys.argv[2])), sys.argv[3]
with open(log, "w", buffering=1) as out:
    while not os.path.exists(log + ".end"):
        began = time.time()
        try:
            socket.create_connection(where, 5).close()
            said = "listens"
        except OSError as error:
            said = "refused" if isinstance(error, ConnectionRefusedError) else "silent"
        out.write(f"{began:.3f} {said}\\n")
        time.sleep(0.05)
"""


def owner(bed, i):
    """The name of the program that listens there."""
    _, _, rest = bed.on(i, f"ss -Hltnp sport = :{PORT}; true").partition('users:(("')
    return rest.partition('"')[0]


def put(bed):
    bed.apply(SERVICE)


def are_kube_proxys(bed):
    for i in range(1, bed.nodes + 1):
        bed.wait(f"kube-proxy of node {i} says how many endpoints it has", lambda i=i: owner(bed, i) == "kube-proxy" and '"localEndpoints"' in asked(bed, i), STARTS)


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
    """On each node, on and on (`CONNECTS`)."""
    for i in range(1, bed.nodes + 1):
        address = net.Plan(bed.nodes, 0, 1, True).addresses(i)[0]
        bed.put(i, f"{LOG}.py", CONNECTS)
        bed.on(i, f"rm -f {LOG} {LOG}.end; setsid {own.PYTHON} {LOG}.py {address} {PORT} {LOG} > /dev/null 2>&1 < /dev/null & until test -s {LOG}; do sleep 0.1; done")


def are_the_agents(bed):
    """From now on; says for how long nobody was there."""
    for i in range(1, bed.nodes + 1):
        bed.wait(f"the agent of node {i} has the port", lambda i=i: owner(bed, i) not in ("", "kube-proxy"), 60)
        that('"localEndpoints"' in asked(bed, i), "it says", asked(bed, i))
    for i in range(1, bed.nodes + 1):
        lines = [line.split() for line in bed.on(i, f"sleep 1; : > {LOG}.end; cat {LOG}").splitlines()]
        times, said = [float(at) for at, _ in lines], [word for _, word in lines]
        apart = max(later - before for before, later in zip(times, times[1:]))
        without = [n for n, word in enumerate(said) if word != "listens"]
        that(said[0] == said[-1] == "listens", "before or behind it nobody listens:", said[:3], said[-3:])
        # From the last one before that was let in to the first one behind.
        gap = times[without[-1] + 1] - times[without[0] - 1] if without else 0
        own.say(f"  node {i}: of {len(said)} connections to the port, {apart:.2f} s apart at most, {len(without)} found nobody, within {gap:.2f} s")
        that(gap <= MOST and apart <= MOST, "nobody listens for seconds, or nobody has asked:", gap, apart)
