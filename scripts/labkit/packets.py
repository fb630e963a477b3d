"""Single packets instead of connections: how large they may be, and whether every one of a stream arrives.

The servers of `traffic` send every UDP message back that begins with `ECHO`.
"""
import collections
import errno
import itertools
import json
import os
import random
import selectors
import signal
import socket
import time

from .net import Inside, enter
from .traffic import ECHO, connect, connect_from, word

# Linux, in.h and in6.h; Python names only some of them.
IP_MTU_DISCOVER, IP_MTU, IPV6_MTU_DISCOVER, IPV6_MTU, ALWAYS = 10, 14, 23, 24, 2
# Of datagrams: nothing else takes these by number, and IPVS remembers each for five minutes.
FLOW_PORTS = range(33000, 60000)
HEADERS = {socket.AF_INET: 28, socket.AF_INET6: 48}


def largest(namespace, address, port):
    """The size, with its headers, of the largest packet that goes there and comes back in one piece.

    No packet may be cut on its way: the first is as large as the link, and whoever cannot pass it on has to say so.
    """
    with Inside(namespace), connect(address, port, "udp", 3.0) as sock:
        level, discover, mtu = (socket.IPPROTO_IP, IP_MTU_DISCOVER, IP_MTU) if sock.family == socket.AF_INET else (
            socket.IPPROTO_IPV6, IPV6_MTU_DISCOVER, IPV6_MTU)
        sock.setsockopt(level, discover, ALWAYS)
        for _ in range(5):
            size = sock.getsockopt(level, mtu)
            message = ECHO.ljust(size - HEADERS[sock.family], b".")
            try:
                sock.send(message)
                if sock.recv(1 << 16) == message:
                    return size
            except TimeoutError:
                # The first packet waits for whoever resolves addresses, and any one for a busy processor. It is sent again.
                continue
            except OSError as error:
                if error.errno != errno.EMSGSIZE and sock.getsockopt(level, mtu) == size:
                    raise OSError(f"a packet of {size} bytes from {namespace} to {address}: {word(error)}") from None
        raise OSError(f"from {namespace} to {address}: no size is found that passes, the last one was {size} bytes")


def bulk(namespace, address, port, size=100_000):
    """Sends so many bytes over TCP, and returns when the other end has read them all."""
    with Inside(namespace), connect(address, port) as sock:
        sock.sendall(b"." * size)
        sock.shutdown(socket.SHUT_WR)
        while sock.recv(4096):
            pass


class Stream:
    """A process in a namespace that sends every target a numbered packet each `pause` seconds, one target after the other in that time, until `stop`.

    Each packet `anew` comes from a source port of its own, and so is the first one of a connection to what translates it. What `stop` returns says how many were sent,
    and which of them never came back.
    """

    def __init__(self, namespace, targets, pause=0.05, anew=False):
        result, report = os.pipe()
        self.pid = os.fork()
        if self.pid:
            os.close(report)
            self.result = result
            return
        try:
            os.close(result)
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            enter(namespace)
            outcome = flow(targets, pause, anew)
        except BaseException as error:
            outcome = {"sent": 0, "lost": 1, "lost_to": {}, "which": [], "errors": {f"{type(error).__name__}: {error}": 1}}
        with os.fdopen(report, "w") as handle:
            json.dump(outcome, handle)
        os._exit(0)

    def stop(self):
        os.kill(self.pid, signal.SIGTERM)
        with os.fdopen(self.result) as handle:
            text = handle.read()
        os.waitpid(self.pid, 0)
        return json.loads(text)


def flow(targets, pause, anew):
    stopping = []
    signal.signal(signal.SIGTERM, lambda *_: stopping.append(True))
    selector, errors, sent = selectors.DefaultSelector(), collections.Counter(), 0
    missing = {}  # (address, number): when it was sent
    first = random.choice(FLOW_PORTS)
    ports = itertools.cycle([*range(first, FLOW_PORTS.stop), *range(FLOW_PORTS.start, first)]) if anew else None
    lasting = [] if anew else [opened(selector, *target) for target in targets]
    began = due = time.monotonic()
    for target in itertools.cycle(range(len(targets))):
        if stopping:
            break
        sock, address = opened(selector, *targets[target], ports) if anew else lasting[target]
        sent += 1
        missing[address, sent] = time.monotonic() - began
        attempt(lambda: sock.send(ECHO + b" %d" % sent), address, errors)
        due = max(due + pause / len(targets), time.monotonic())
        while not stopping and (left := due - time.monotonic()) > 0:
            collect(selector, left, missing, errors, anew)
    last = time.monotonic() + 5
    while missing and time.monotonic() < last:
        collect(selector, 0.2, missing, errors, anew)
    lost = [f"{address} after {at:.2f} s" for (address, _), at in missing.items()]
    lost_to = collections.Counter(address for address, _ in missing)
    return {"sent": sent, "lost": len(lost), "lost_to": dict(lost_to), "which": lost[:6] + lost[-2:], "errors": dict(errors)}


def opened(selector, address, port, ports=None):
    """A socket to a target, from the next of these ports that is free, and the address."""
    sock = connect_from(ports, address, port, "udp", shared=False) if ports else connect(address, port, "udp")
    sock.setblocking(False)
    selector.register(sock, selectors.EVENT_READ, address)
    return sock, address


def collect(selector, seconds, missing, errors, anew):
    """Takes what comes within so many seconds; a socket of one packet has done its work then."""
    for key, _ in selector.select(seconds):
        answer = attempt(lambda: key.fileobj.recv(1 << 16), key.data, errors)
        if answer and answer.startswith(ECHO):
            missing.pop((key.data, int(answer[len(ECHO):])), None)
        if anew:
            selector.unregister(key.fileobj)
            key.fileobj.close()


def attempt(act, address, errors):
    try:
        return act()
    except OSError as error:
        errors[f"{address}: {word(error)}"] += 1
        return None
