"""What the end-to-end tests say about traffic and kernels."""
import contextlib
import itertools
import shutil
import time

from labkit import kernel, net, objects, own, packets, traffic

PODS = ["n1p1", "n2p1", "n3p1"]
FAMILIES = ("4", "6")
LEAST_LOAD = 4  # seconds that a stream lasts at least: a change is often in the kernel before ten connections were made


def has_iptables():
    return shutil.which("iptables") is not None


def host_lets_nothing_through(bed, i, chain, *allowed):
    """Sets the policy of a chain of node i's own, `FORWARD` or `INPUT`, to drop, behind rules that accept: of iptables where its programs are, else
    of nft. Each rule is (family or None, words for iptables, words for nft)."""
    for family, tool, table in (("4", "iptables", "ip"), ("6", "ip6tables", "ip6")):
        rules = [rule for rule in allowed if rule[0] in (None, family)]
        if has_iptables():
            program = f"{tool}-{flavour(bed, i)}"
            for _, words, _ in rules:
                net.node(i, program, "-w", "-A", chain, *words.split(), "-j", "ACCEPT")
            net.node(i, program, "-w", "-P", chain, "DROP")
            continue
        made = [f"add table {table} filter", f"add chain {table} filter {chain} {{ type filter hook {chain.lower()} priority 0; policy drop; }}"]
        net.node(i, "nft", "; ".join(made + [f"add rule {table} filter {chain} {words} accept" for _, _, words in rules]))


def host_lets_everything_through(bed, i, chain, *allowed):
    """Takes back what `host_lets_nothing_through` did."""
    for family, tool, table in (("4", "iptables", "ip"), ("6", "ip6tables", "ip6")):
        if has_iptables():
            program = f"{tool}-{flavour(bed, i)}"
            net.node(i, program, "-w", "-P", chain, "ACCEPT")
            for _, words, _ in [rule for rule in allowed if rule[0] in (None, family)]:
                net.node(i, program, "-w", "-D", chain, *words.split(), "-j", "ACCEPT")
        else:
            net.node(i, "nft", f"delete table {table} filter")


def flavour(bed, i):
    """Whose rules node i has where they are those of iptables, and where somebody else writes some: node 2 is the one with legacy tables."""
    return "legacy" if i == 2 and bed.netfilter == "iptables" else "nft"


def whole(function):
    """A test that does not run each day, but with --whole, with --long and by its name."""
    function.whole = True
    return function


def family(bed, wanted):
    """This family, or the only one of a cluster that has not both."""
    return wanted if wanted in bed.families else bed.families


def of_family(bed, pair, wanted="4"):
    """The one of two things, the first of IPv4 and the second of IPv6, that is of this family, or of the cluster's only one."""
    [one] = net.of_families(pair, family(bed, wanted))
    return one


def that(true, *words):
    if not true:
        raise AssertionError(" ".join(str(w) for w in words))


def soon(condition, seconds, *words):
    that(own.wait(condition, seconds, 0.2), *words, f"(waited {seconds} s)")


def kept_from_others(i, *command):
    """Whether the kernel of node i keeps the table that this command of nft would change (`nft VERB KIND FAMILY TABLE ...`) from others. Then the
    command is tried: it must be refused, and the table must stay as it is. Else nothing is done."""
    family, table = command[3:5]
    if "flags owner" not in net.node(i, "nft", "list", "table", family, table):
        return False
    before = kernel.tables(i)
    try:
        net.node(i, *command)
    except own.LabError as error:
        that("Operation not permitted" in str(error), "another refusal:", error)
    else:
        raise AssertionError(f"{' '.join(command)} is done, though the table has an owner")
    that(kernel.tables(i) == before, f"{' '.join(command)} is refused, and done")
    return True


def many(namespace, address, port, protocol="tcp", count=12):
    """Connections of which none may fail: who answered how often, and which addresses the servers saw."""
    outcome = traffic.many(namespace, address, port, protocol, count)
    that(outcome["failed"] == 0, f"{outcome['failed']} of {count} from {namespace} to {address} {port} {protocol}:", outcome)
    return outcome


def share(namespace, address, port, pods, protocol="tcp", each=3):
    """Every one of the pods answers equally often."""
    outcome = many(namespace, address, port, protocol, each * len(pods))
    that(outcome["answers"] == {p: each for p in pods}, f"not {each} each from {namespace} to {address} {port} {protocol}:", outcome)
    return outcome


def one(namespace, address, port, protocol="tcp", count=8):
    """One and the same pod answers always; its name."""
    outcome = many(namespace, address, port, protocol, count)
    that(len(outcome["answers"]) == 1, "more than one answered:", outcome)
    return next(iter(outcome["answers"]))


def refused(namespace, address, port, protocol="tcp"):
    """The attempt is turned down by somebody, not lost."""
    try:
        who = traffic.ask(namespace, address, port, protocol)
    except OSError as error:
        that(traffic.word(error) in ("ECONNREFUSED", "EHOSTUNREACH", "ENETUNREACH", "EACCES"),
             f"{namespace} to {address} {port} {protocol}: not refused but", traffic.word(error))
        return
    raise AssertionError(f"{namespace} to {address} {port} {protocol}: answered by {who}")


def is_connection_refused(namespace, address, port, protocol="tcp"):
    try:
        traffic.ask(namespace, address, port, protocol)
    except OSError as error:
        return traffic.word(error) == "ECONNREFUSED"
    return False


@contextlib.contextmanager
def default_route_to_nobody(*nodes):
    """What these nodes have no other route for goes where nobody answers, as it does with a router that does not know the address."""
    for i in nodes:
        net.ip(f"n{i}", "link add nobody type dummy", "link set nobody up", "route add 0.0.0.0/0 dev nobody metric 9999",
               "route add ::/0 dev nobody metric 9999")
    try:
        yield
    finally:
        for i in nodes:
            net.ip(f"n{i}", "link del nobody")


def silent(namespace, address, port, protocol="tcp"):
    """Nobody answers, in whatever way."""
    try:
        who = traffic.ask(namespace, address, port, protocol, patience=2.0)
    except OSError:
        return
    raise AssertionError(f"{namespace} to {address} {port} {protocol}: answered by {who}")


def is_answered(namespace, address, port, protocol="tcp", patience=2.0):
    try:
        return bool(traffic.ask(namespace, address, port, protocol, patience=patience))
    except OSError:
        return False


@contextlib.contextmanager
def service(bed, name, pods=None, settle=True, **more):
    """A Service for the time of one test, served by every node before the test goes on."""
    made = bed.put(name, PODS if pods is None else pods, **more)
    try:
        if settle:
            bed.settle(made)
        yield made
    finally:
        bed.delete(made)


@contextlib.contextmanager
def graceful(bed):
    """Agents that give the connections of endpoints which have left their slices some time: all others end them then."""
    for agent in bed.agents.values():
        agent.stop()
        agent.extra = [*agent.extra, "--ipvs-graceful-termination", "--ipvs-graceful-period=120s"]
        agent.start()
    bed.ready()
    try:
        yield
    finally:
        bed.restore()


@contextlib.contextmanager
def held(inside, address, port, count=6):
    """Connections that last: [(socket, the pod that answers)]."""
    with net.Inside(inside):
        socks = [traffic.connect(address, port) for _ in range(count)]
    try:
        yield [(sock, traffic.exchange(sock)[0]) for sock in socks]
    finally:
        for sock in socks:
            sock.close()


def go_on(held_ones):
    """Each of these connections still leads to its pod."""
    for sock, pod in held_ones:
        that(traffic.exchange(sock)[0] == pod, "a connection moved away from", pod)


STANDSTILLS = 3
CLOCKS = itertools.count(8100)  # ports of what is asked beside a load


@contextlib.contextmanager
def clock():
    """Connections inside of one namespace, which pass nothing of ours; behind it, when and for how many seconds they were late, as [(since, seconds)]."""
    port, still = next(CLOCKS), []
    with server("ext", [("tcp", port)]):
        running = traffic.Load("ext", "127.0.0.1", port, lasting=0, pause=0.2, patience=traffic.ENDURANCE)
        try:
            yield still
        finally:
            outcome = running.stop()
            still += outcome["late"]
    that(outcome["failed"] == 0 and outcome["fresh"] > 2, "of connections beside all that is ours:", outcome)


@contextlib.contextmanager
def load(*targets, pause=0.03, resends=False):
    """Streams of new and of long-lived connections on [(namespace, address, port, protocol)]: not one may fail, nor more than a few of one stream wait for a lost packet
    to be sent again, and none of these for long. An emulated processor beside others stands still for a second at times, and packets are late then: so are those of connections inside of one namespace, which pass nothing of ours
    and tell these times."""
    running = [(t, traffic.Load(*t, pause=pause, resends=resends, patience=_patience(*t))) for t in targets]
    outcomes, until = [], time.monotonic() + LEAST_LOAD
    with clock() as still:
        try:
            yield outcomes
            time.sleep(max(0, until - time.monotonic()))
        finally:
            outcomes += [(t, process.stop()) for t, process in running]
    for target, outcome in outcomes:
        that(outcome["failed"] == 0 and outcome["broken"] == 0, target, outcome)
        that(outcome["fresh"] > 10 and outcome["messages"] > 10, "hardly any traffic:", target, outcome)
    told = [(target, outcome, *_told_apart(outcome["waits"], still)) for target, outcome in outcomes]
    for target, outcome, late, lost in told:
        if late or lost:
            print(f"       of {outcome['fresh']} connections {len(lost)} waited for a lost packet, {len(late)} for one that was late as others were, the slowest of all {outcome['slowest_ms']} ms: {target}, {lost}", flush=True)
        that(len(late) <= max(8, outcome["fresh"] / 20), "too many were late to be so by chance:", target, outcome, still)
    that(all(len(lost) <= STANDSTILLS and all(wait[1] <= traffic.PATIENCE for wait in lost) for *_, lost in told), "packets were lost:", outcomes, "beside a clock that stood still", still)


def _patience(_namespace, _address, _port, protocol="tcp"):
    """How long a stream waits: as long as it may take where its waits are judged, and TCP sends again what is lost."""
    return traffic.ENDURANCE if protocol == "tcp" else traffic.PATIENCE


def _told_apart(waits, still):
    """Those of these connections that began or ended while connections past everything of ours were late, for half the time where it is one that may not be long, and the others."""
    def is_late(wait):
        begin, seconds = wait[:2]
        late = sum(max(0, min(begin + seconds, since + length) - max(begin, since)) for since, length in still)
        return late > (seconds / 2 if seconds > traffic.PATIENCE else 0)
    return [wait for wait in waits if is_late(wait)], [wait for wait in waits if not is_late(wait)]


@contextlib.contextmanager
def never(*targets, least=10):
    """New connections without end on [(namespace, address, port)]: not one is answered, of more than so many for each."""
    running = [(t, traffic.Load(*t, lasting=0, pause=0.05)) for t in targets]
    outcomes = []
    try:
        yield
    finally:
        outcomes += [(t, process.stop()) for t, process in running]
    for target, outcome in outcomes:
        that(not outcome["answers"], target, "was answered:", outcome)
        that(outcome["fresh"] > least, "hardly any traffic:", target, outcome)


@contextlib.contextmanager
def stream(pairs, families=FAMILIES, bearable=0, pause=0.05):
    """Packets without end from one pod to others, as {pod: [pods]}: every single one arrives and comes back.

    So many as are bearable may be lost of those by IPv6 from one pod to another.
    """
    with _stream([(client, packets.Stream(client, [(pod(server, f), objects.TARGET) for server in servers for f in families], pause))
                  for client, servers in pairs.items()], bearable):
        yield


@contextlib.contextmanager
def new_flows(client, *targets, pause=0.1):
    """Packets without end to [(address, port)], each from a source port of its own: every single one arrives and comes back, however late."""
    with _stream([(client, packets.Stream(client, targets, pause, anew=True))]):
        yield


@contextlib.contextmanager
def _stream(running, bearable=0):
    outcomes = []
    try:
        time.sleep(1)
        yield
        time.sleep(1)
    finally:
        outcomes += [(client, process.stop()) for client, process in running]
    for client, outcome in outcomes:
        too_many = [address for address, count in outcome["lost_to"].items() if count > (bearable if ":" in address else 0)]
        that(not too_many and not outcome["errors"], f"from {client}:", outcome)
        that(outcome["sent"] > 20, "hardly any packets:", client, outcome)


@contextlib.contextmanager
def server(namespace, ports, name=None):
    """A program in a namespace, listening on all its addresses."""
    import os
    import signal
    pid = traffic.serve(namespace, ports, name)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def host_server(i, name, ports):
    """The same on a node itself."""
    return server(f"n{i}", ports, name)


def pod(name, family):
    return net.pod_address(name, family)


def events(bed, kind, name, **fields):
    """The Events about an object of `default` or of the cluster. The API server selects: an Event of another component may be about an object without a name."""
    about = {"involvedObject.kind": kind, "involvedObject.name": name, **fields}
    return bed.source.api.get("/api/v1/namespaces/default/events?fieldSelector=" + ",".join(f"{field}={value}" for field, value in about.items()))["items"]


def logged(bed, i, since, *words, seconds=20):
    """A line of the agent's log since then that has all the words."""
    def there():
        return [line for line in bed.agents[i].text(since).splitlines() if all(w.lower() in line.lower() for w in words)]
    soon(there, seconds, f"node {i} did not log", words, "but:\n" + bed.agents[i].text(since)[-2000:])
    return there()[0]
