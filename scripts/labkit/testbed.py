"""Nodes, pods that answer, a source of objects and an agent on every node: what the demo and the tests play on."""
import contextlib
import itertools
import os
import signal

from . import kernel, net, own, traffic
from .agent import Agent
from .objects import Service
from .outside import relay
from .source import Cluster, Manifests

SERVED = [("tcp", 8080), ("udp", 8080), ("sctp", 8080)]


class Testbed:
    def __init__(self, binary, facts=None, nodes=3, pods=3, subnets=1, flags=(), routed=False, netfilter="auto", families="46"):
        """`facts` are those of a running cluster; without them the objects come from manifests.

        `flags` are those that agents have unless a test asks for others, `{i}` in them the number of the node. With `routed` they are to have the router.
        `netfilter` is the packet filter of all of them. `families` are those of a cluster from manifests.
        """
        self.binary, self.facts, self.netfilter = binary, facts, netfilter
        self.families = facts["families"] if facts else families
        self.shape = (nodes, pods, subnets, routed)
        self.flags = list(flags)
        self.agents, self.processes, self.services = {}, [], {}
        self.numbers = itertools.cycle(range(10, 250))

    def up(self):
        self.plan = net.up(*self.shape)
        os.makedirs(net.AGENT_CNI, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            os.symlink(os.path.abspath(self.binary), f"{net.AGENT_CNI}/sluice-cni")
        if not self.plan.routed:
            self.serve()
        if self.facts:
            self.processes.append(relay(self.facts["port"]))
        self.source = Cluster(self.facts) if self.facts else Manifests(families=self.families)
        self.source.nodes(self.plan)
        return self

    def start_agents(self):
        for i in range(1, self.plan.nodes + 1):
            self.agents[i] = Agent(i, self.binary, self.source, self.flags_of(i), self.netfilter, self.families).start()
        if self.plan.routed:
            for i in self.agents:
                self.attach(i)
            self.serve()

    def flags_of(self, i):
        return [flag.replace("{i}", str(i)) for flag in self.flags]

    def serve(self):
        """A server in every pod."""
        self.servers = [traffic.serve(pod, SERVED) for pod in self.plan.pod_names()]
        self.processes += self.servers

    def attach(self, i):
        """Adds the pods of node i, as soon as its agent has written how."""
        def names_ranges():
            plugins = (own.read_json(net.cni_file(i)) or {}).get("plugins", [])
            return any(plugin.get("ipam", {}).get("ranges") for plugin in plugins)
        if not own.wait(names_ranges, 180, 0.1):
            raise own.LabError(f"the agent of node {i} has put no ranges into the CNI file after 180 s\n{self.tail(i)}")
        for pod in self.plan.pod_names():
            if net.node_of(pod) == i:
                net.pod_add(i, pod)

    def stop_agents(self):
        for agent in self.agents.values():
            agent.stop()
        self.agents.clear()

    def detach(self):
        """Ends all pods."""
        for pid in self.servers:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            self.processes.remove(pid)
        for pod in self.plan.pod_names():
            net.pod_delete(net.node_of(pod), pod)

    def put(self, name, pods, **more):
        """Creates a Service with addresses of its own, or gives one of that name other pods."""
        if name in self.services:
            service = self.services[name]
            service.pods = list(pods)
            for key, value in more.items():
                setattr(service, key, value)
        else:
            service = self.services[name] = Service(name, self.free_number(), list(pods), **{"families": self.families, **more})
        self.source.put(service)
        return service

    def free_number(self):
        """The next one in turn, so that an address rests for as long as possible before another Service gets it."""
        taken = {service.number for service in self.services.values()}
        return next(number for number in self.numbers if number not in taken)

    def delete(self, service):
        self.source.delete(service)
        del self.services[service.name]

    def settle(self, *services, seconds=90, nodes=None):
        """Until the kernel of every node serves exactly the pods of each Service at its cluster addresses."""
        for i in nodes or self.agents:
            for service in services or self.services.values():
                if not own.wait(lambda: not self.missing(i, service), seconds, 0.2):
                    raise own.LabError(f"node {i} does not serve '{service.name}' after {seconds} s: {self.missing(i, service)} ({self.source.told(service)})"
                                       f"\n{self.tail(i)}")

    def missing(self, i, service):
        return self.unserved(i, service, service.pods or service.leaving)

    def unserved(self, i, service, pods):
        """What the kernel of node i lacks, or has too much, when it shall send a Service to these pods."""
        present = kernel.ipvs(i)
        for family in service.families:
            want = {net.pod_address(p, family) for p in pods}
            for port in service.ports:
                key = (port.protocol, service.address(family), port.port)
                if key not in present:
                    return f"no {port.protocol} {key[1]} {key[2]}"
                live = {d.rsplit(":", 1)[0] for d, weight in present[key]["destinations"].items() if weight > 0}
                if live != want:
                    return f"{key[1]} has {sorted(live)}, not {sorted(want)}"
            # That comes last.
            if not kernel.is_local(i, service.address(family)):
                return f"{service.address(family)} is not local"
        return ""

    def ready(self, *nodes, seconds=180):
        """Until the agents say that everything asked for is done."""
        for i in nodes or self.agents:
            if not own.wait(lambda: kernel.http_get(i, "/readyz")[0] == 200, seconds, 0.1):
                raise own.LabError(f"the agent of node {i} is not ready after {seconds} s: {kernel.http_get(i, '/readyz')}\n{self.tail(i)}")

    def restore(self):
        """Brings the agents back to what they were, after a test that changed or ended some."""
        for i, agent in self.agents.items():
            usual = self.flags_of(i), self.binary, self.netfilter
            if agent.is_alive() and (agent.extra, agent.binary, agent.netfilter) == usual:
                continue
            agent.stop()
            agent.extra, agent.binary, agent.netfilter = usual
            agent.start()
        self.ready()

    def tail(self, i, lines=25):
        return "\n".join("  " + line for line in self.agents[i].text().splitlines()[-lines:])

    def down(self):
        for agent in self.agents.values():
            agent.kill()
        for pid in self.processes:
            try:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
            except (ProcessLookupError, ChildProcessError):
                pass
        self.source.close()
        net.down()
