"""What the kernel of a node holds, read without starting a program where that is possible."""
import collections
import http.client
import ipaddress
import json
import re
import shutil
import socket
import time

from . import net, own


PROTOCOLS = {"-t": "TCP", "-u": "UDP", "--sctp-service": "SCTP", "-f": "FWM"}


def ipvs(i):
    """The virtual services of node i: {(protocol, address, port): {scheduler, options, destinations}}.

    `destinations` is {"address:port": weight}; `options` are the words after the scheduler (`-p 600`). Asked from
    ipvsadm, because /proc/net/ip_vs loses entries beyond 4 KiB when several namespaces have some.
    """
    with net.Inside(f"n{i}"):
        lines = own.run("/usr/sbin/ipvsadm", "-Sn").splitlines()
    services = {}
    for line in lines:
        words = line.split()
        key = (PROTOCOLS[words[1]], *endpoint(words[2]))
        if words[0] == "-A":
            at = words.index("-s")
            services[key] = {"scheduler": words[at + 1], "options": " ".join(words[at + 2:]), "destinations": {}}
        else:
            address, port = endpoint(words[words.index("-r") + 1])
            services[key]["destinations"][f"{address}:{port}"] = int(words[words.index("-w") + 1])
    return services


def is_local(i, address):
    """Whether node i has a local route to it alone, by which the kernel takes packets for it."""
    with net.Inside(f"n{i}"):
        if ":" in address:
            with open("/proc/thread-self/net/ipv6_route", encoding="ascii") as handle:
                return f"{ipaddress.ip_address(address).packed.hex()} 80 " in handle.read()
        with open("/proc/thread-self/net/fib_trie", encoding="ascii") as handle:
            return f"-- {address}\n" in handle.read()


def endpoint(text):
    """`10.96.0.1:80` or `[fd00:10:96::1]:80` as (address, port); a firewall mark as (mark, 0)."""
    if ":" not in text:
        return text, 0
    host, port = text.rsplit(":", 1)
    return str(ipaddress.ip_address(host.strip("[]"))), int(port)


def destinations(i, protocol, address, port):
    """{pod address: weight} of one virtual service; None when there is no such service."""
    found = ipvs(i).get((protocol.upper(), address, port))
    return None if found is None else {d.rsplit(":", 1)[0]: w for d, w in found["destinations"].items()}


def snapshot(i):
    """Everything of node i that an agent could change, as text that two moments can be compared by."""
    rules = {}
    for flavour in ("legacy", "nft"):
        for tool in ("iptables", "ip6tables"):
            text = saved(i, f"{tool}-{flavour}-save") if shutil.which(f"{tool}-{flavour}-save") else ""
            # A built-in chain is there or not depending on who looked last; what somebody wrote into it counts.
            rules[f"{tool}-{flavour}"] = [line for line in without_counts(text) if not re.match(r":[A-Z]+ (ACCEPT|DROP)$", line)]
    addresses = json.loads(own.run("/sbin/ip", "-n", f"n{i}", "-j", "addr", "show"))
    return {
        "ipvs": sorted(net.node(i, "ipvsadm", "-Sn").splitlines()),
        "sets": sorted(without_counts(net.node(i, "ipset", "save") if shutil.which("ipset") else "")),
        **rules,
        "tables": tables(i),
        "addresses": sorted(f"{link['ifname']} {a['local']}/{a['prefixlen']}" for link in addresses for a in link["addr_info"]
                            if not a["local"].startswith("fe80:")),
        "routes": sorted(line for f in ("-4", "-6") for line in own.run(
            "/sbin/ip", "-n", f"n{i}", f, "route", "show", "table", "all").splitlines() if "fe80" not in line and "multicast" not in line),
        "policy": sorted(line for f in ("-4", "-6") for line in own.run("/sbin/ip", "-n", f"n{i}", f, "rule", "show").splitlines()),
        "links": sorted(link["ifname"] for link in addresses),
    }


def saved(i, program):
    """What the program saves. It reads rules first and the names of their ipsets later: where an agent deletes both in between it fails, and reads again."""
    for _ in range(9):
        try:
            return net.node(i, program)
        except own.LabError as error:
            if "doesn't exist" not in str(error):
                raise
            time.sleep(0.1)
    return net.node(i, program)


def tables(i):
    """The tables of nf_tables of both families, as sorted text without counters, handles and who owns a table.

    Of a table that outlived its owner nft 1.0.6 writes no JSON that can be read; its text is taken then.
    """
    lines, rules = [], collections.Counter()
    try:
        listed = json.loads(net.node(i, "nft", "-j", "-s", "list", "ruleset", "inet") or '{"nftables": []}')["nftables"]
    except json.JSONDecodeError:
        text = net.node(i, "nft", "-s", "list", "ruleset", "inet")
        return sorted(line.strip() for line in text.splitlines() if line.strip() and not line.strip().startswith("flags"))
    for entry in listed:
        ((kind, found),) = entry.items()
        if kind == "metainfo":
            continue
        place = f"{kind} {found.get('table', '')} {found.get('chain', '')} {found.get('name', '')}"
        if kind == "rule":  # the order of these counts
            rules[place] += 1
            place += f"{rules[place]:04}"
        elements = found.pop("elem", [])
        kept = {key: value for key, value in found.items() if key not in ("handle", "flags", "packets", "bytes")}
        lines.append(f"{place} {json.dumps(kept, sort_keys=True)}")
        lines += [f"{place} {json.dumps(element, sort_keys=True)}" for element in elements]
    return sorted(lines)


def without_counts(text):
    """Lines of a dump without comments, counters, and what changes from one dump to the next."""
    lines = [re.sub(r"\[\d+:\d+\]|(initval|bucketsize|hashsize) \S+ ?", "", line).strip() for line in text.splitlines()]
    return [line for line in lines if line and not line.startswith(("#", "*", "COMMIT"))]


def difference(before, after):
    """What two snapshots differ in, as text."""
    lines = []
    for part in before:
        lines += [f"- {part}: {line}" for line in before[part] if line not in after[part]]
        lines += [f"+ {part}: {line}" for line in after[part] if line not in before[part]]
    return "\n".join(lines) or "only the order of lines"


def connections(i):
    """How many connections every virtual service of node i has scheduled since it was made."""
    with net.Inside(f"n{i}"):
        lines = own.run("/usr/sbin/ipvsadm", "-Ln", "--stats", "--exact").splitlines()
    words = [line.split() for line in lines]
    return {(w[0], w[1]): int(w[2]) for w in words if w and w[0] in ("TCP", "UDP", "SCTP", "FWM")}


def metric(i, name, port=20241):
    """The sum of a metric of the agent over its labels; None when it has none of that name."""
    status, text = http_get(i, "/metrics", port)
    values = [float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if re.match(rf"{name}(\{{| )", line)]
    return sum(values) if status == 200 and values else None


def http_get(i, path, port=20244, patience=5.0):
    """(status, body) of the agent's own HTTP port, asked from its node; (0, reason) when it does not answer."""
    with net.Inside(f"n{i}"):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=patience)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read().decode(errors="replace")
        except (OSError, http.client.HTTPException, socket.timeout) as error:
            return 0, str(error)
        finally:
            connection.close()
