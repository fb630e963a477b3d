"""Traffic without a process per connection: servers that answer their name, and clients that count.

A server answers every message with `NAME ADDRESS`: who it is and by which address it saw the sender. It keeps a
connection open, so that the same port serves short and long-lived connections. After SIGUSR1 it is like a program
that ends gracefully: it takes no new connections, and those that it has stay. After SIGUSR2 it answers no datagrams.

Clients: `ask` makes one connection, `many` makes a number of them and counts who answered, `Load` keeps making new
connections and keeps long-lived ones talking until it is stopped, and reports every one that failed or broke.
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
import sys
import time

from .net import Inside, enter

KINDS = {"tcp": (socket.SOCK_STREAM, socket.IPPROTO_TCP), "udp": (socket.SOCK_DGRAM, socket.IPPROTO_UDP),
         "sctp": (socket.SOCK_STREAM, 132)}
SO_RCVBUFFORCE = 33  # asm-generic/socket.h; Python does not name it
ECHO = b"ECHO"  # UDP messages that begin so are sent back as they are
GIVE_UP = 3  # so many failures say enough; time-outs are dear
# Source ports of long-lived connections: neither ephemeral ports nor node ports.
OWN_PORTS = range(10000, 30000)
# IPVS sends what comes from a source port of UDP that it remembers to where it sent it before: each of these is used once in five minutes.
NEW_PORTS = itertools.cycle(range(61000, 65536))
LATE = 0.25  # seconds
PATIENCE = 8.0  # seconds; longer than three lost first packets, so that only what is really lost counts
# Of a load by TCP where what it says of its waits is judged: longer than an emulated processor beside others keeps
# a packet waiting (13 s were seen), so that a connection that ends without an answer is one that was lost.
ENDURANCE = 30.0


def open_socket(protocol, address):
    kind, number = KINDS[protocol]
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    sock = socket.socket(family, kind, number)
    if family == socket.AF_INET6:
        # One family for each socket: SCTP tells its peer every address it has, also those of the other family,
        # and what then travels beside the translated path belongs to no connection there.
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    return sock


# ---------------------------------------------------------------- servers


def serve(namespace, ports, name=None):
    """Starts a server process in a namespace on [(protocol, port)], both families; returns its number."""
    ready, tell = os.pipe()
    pid = os.fork()
    if pid:
        os.close(tell)
        with os.fdopen(ready) as handle:
            word = handle.read()
        if word != "ready":
            raise OSError(f"server in {namespace}: {word}")
        return pid
    try:
        os.close(ready)
        enter(namespace)
        os.setsid()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        selector = listen(ports)
        signal.signal(signal.SIGUSR1, lambda *_: close_doors(selector, "connections"))
        signal.signal(signal.SIGUSR2, lambda *_: close_doors(selector, "messages"))
        os.write(tell, b"ready")
        os.close(tell)
        quiet = os.open("/dev/null", os.O_RDWR)
        for fd in (0, 1, 2):
            os.dup2(quiet, fd)
        answer_forever(selector, name or namespace)
    except BaseException as error:  # the parent must hear of it, whatever it is
        os.write(tell, f"{type(error).__name__}: {error}".encode())
    finally:
        os._exit(1)


def listen(ports):
    selector = selectors.DefaultSelector()
    for (protocol, port), anywhere in itertools.product(ports, ("0.0.0.0", "::")):
        sock = open_socket(protocol, anywhere)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((anywhere, port))
        if protocol == "udp":
            # What comes while an emulated processor has no time for the server waits: the usual 200 kB are less than a second of a stream.
            sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 8 << 20)
        else:
            sock.listen(512)
        sock.setblocking(False)
        selector.register(sock, selectors.EVENT_READ, "messages" if protocol == "udp" else "connections")
    return selector


def close_doors(selector, kind):
    """What is new of this kind is refused from now on."""
    for key in [key for key in selector.get_map().values() if key.data == kind]:
        selector.unregister(key.fileobj)
        key.fileobj.close()


def answer_forever(selector, name):
    def words(address):
        return f"{name} {address[0]}\n".encode()

    while True:
        for key, _ in selector.select():
            sock = key.fileobj
            try:
                if key.data == "messages":
                    message, sender = sock.recvfrom(1 << 16)
                    sock.sendto(message if message.startswith(ECHO) else words(sender), sender)
                elif key.data == "connections":
                    client, sender = sock.accept()
                    client.setblocking(False)
                    selector.register(client, selectors.EVENT_READ, words(sender))
                elif sock.recv(4096):
                    sock.sendall(key.data)
                else:
                    selector.unregister(sock)
                    sock.close()
            except BlockingIOError:
                pass
            except OSError:
                if isinstance(key.data, bytes):
                    selector.unregister(sock)
                    sock.close()


# ---------------------------------------------------------------- clients


def exchange(sock):
    """One message and its answer: (who answered, the address it saw)."""
    sock.sendall(b"hello\n")
    words = sock.recv(4096).decode().split()
    if len(words) != 2:
        raise ConnectionResetError(errno.ECONNRESET, "closed without an answer")
    return words[0], words[1]


def exchange_again(sock):
    """The same, by a client that sends again what is not answered."""
    sock.settimeout(PATIENCE / 4)
    try:
        return exchange(sock)
    except TimeoutError:
        sock.settimeout(PATIENCE)
        return exchange(sock)


def connect(address, port, protocol="tcp", patience=PATIENCE, source_port=None, shared=True):
    sock = open_socket(protocol, address)
    sock.settimeout(patience)
    try:
        if source_port is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, shared)
            sock.bind(("", source_port))
        sock.connect((address, port))
    except BaseException:
        sock.close()
        raise
    return sock


def connect_for_long(address, port, protocol, patience=PATIENCE):
    """A connection from a source port that no later connection of the same client gets by itself.

    IPVS finds the connection of an answer by endpoint, client and client's port. A client that uses one source port for two virtual
    services with the same endpoint has its answers translated to the address of the younger connection, and the older one stalls.
    """
    chance = random.SystemRandom()  # the processes that load are copies of one
    return connect_from(iter(lambda: chance.choice(OWN_PORTS), None), address, port, protocol, patience=patience)


def connect_from(ports, address, port, protocol, shared=True, patience=PATIENCE):
    """A connection from the next of these source ports that is free."""
    for source_port in ports:
        try:
            return connect(address, port, protocol, patience, source_port, shared)
        except OSError as error:
            if error.errno not in (errno.EADDRINUSE, errno.EADDRNOTAVAIL):
                raise
    raise OSError(errno.EADDRINUSE, "no source port is free")


def ask(namespace, address, port, protocol="tcp", patience=PATIENCE, source_port=None):
    """(who answered, the address it saw) for one connection from a namespace; OSError when there was none."""
    waits_for = "connection"
    try:
        with Inside(namespace), connect(address, port, protocol, patience, source_port) as sock:
            waits_for = "answer"
            return exchange(sock)
    except TimeoutError:
        raise TimeoutError(f"{namespace} has no {waits_for} after {patience:g} s from {address} port {port} over {protocol}") from None


def resent(sock):
    """How many packets of this connection its TCP has sent more than once (`tcpi_total_retrans` of linux/tcp.h)."""
    return int.from_bytes(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)[100:104], sys.byteorder)


def word(error):
    """An error as one word, for counting."""
    if isinstance(error, TimeoutError) or getattr(error, "errno", None) == errno.ETIMEDOUT:
        return "timeout"
    return errno.errorcode.get(getattr(error, "errno", None) or 0, type(error).__name__)


def many(namespace, address, port, protocol="tcp", count=100, patience=PATIENCE):
    """Makes up to `count` connections one after the other and counts: who answered, what they saw, what failed."""
    answers, seen, errors = (collections.Counter() for _ in range(3))
    slowest = 0.0
    began = time.monotonic()
    with Inside(namespace):
        for _ in range(count):
            at = time.monotonic()
            try:
                with connect(address, port, protocol, patience, next(NEW_PORTS) if protocol == "udp" else None) as sock:
                    who, source = exchange(sock)
                answers[who] += 1
                seen[source] += 1
            except OSError as error:
                errors[word(error)] += 1
            slowest = max(slowest, time.monotonic() - at)
            if sum(errors.values()) == GIVE_UP:
                break
    return {"answers": dict(sorted(answers.items())), "seen": dict(seen), "failed": sum(errors.values()),
            "errors": dict(errors), "seconds": round(time.monotonic() - began, 2), "slowest_ms": round(slowest * 1000)}


class Load:
    """A process in a namespace that loads one address until `stop`, which returns what it counted.

    `fresh` connections go one after the other, each a new one with one message, at most one in `pause` seconds.
    `lasting` connections stay open and exchange a message every `pause` seconds, each in turn. With `resends` those of UDP
    send a message once again, as such clients do: an endpoint that goes may take an answer with it. `waits` are new connections, and messages of lasting ones, that took more than a second because TCP sent a
    packet again, lost or late, or more than `PATIENCE` for whatever reason: since when by the monotonic clock, for how many seconds, from which port, how often, and who answered. `late` are times in which the next
    connection began, or a connection and its answer came about, later than it should by more than `LATE`.
    """

    def __init__(self, namespace, address, port, protocol="tcp", lasting=4, pause=0.005, resends=False, patience=PATIENCE):
        self.order = (address, port, protocol, lasting, pause, resends, patience)
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
            outcome = work(*self.order)
        except BaseException as error:
            outcome = {"failed": 1, "errors": {f"{type(error).__name__}: {error}": 1}, "fresh": 0, "broken": 0, "answers": {}}
        with os.fdopen(report, "w") as handle:
            json.dump(outcome, handle)
        os._exit(0)

    def stop(self):
        os.kill(self.pid, signal.SIGTERM)
        with os.fdopen(self.result) as handle:
            text = handle.read()
        os.waitpid(self.pid, 0)
        if not text:
            raise OSError("a load process died without a word")
        return json.loads(text)


def work(address, port, protocol, lasting, pause, resends, patience):
    stopping = []
    signal.signal(signal.SIGTERM, lambda *_: stopping.append(True))
    answers, errors, breaks = (collections.Counter() for _ in range(3))
    messages = slowest = 0
    held, waits, late = [], [], []
    again = resent if protocol == "tcp" else lambda sock: 0

    def note_wait(sock, since, packets, who):
        """What waited for a packet that was sent again, or for longer than any may."""
        took = time.monotonic() - since
        if packets and took > 1 or took > PATIENCE:
            waits.append((since, took, sock.getsockname()[1], packets, who))

    for _ in range(lasting):
        since = time.monotonic()
        try:
            held.append((connect_for_long(address, port, protocol, patience), None))
            note_wait(held[-1][0], since, again(held[-1][0]), None)
        except OSError as error:
            breaks[word(error)] += 1
    while not stopping:
        at = time.monotonic()
        try:
            with connect(address, port, protocol, patience) as sock:
                who, _ = exchange(sock)
                answers[who] += 1
                note_wait(sock, at, again(sock), who)
        except OSError as error:
            errors[word(error)] += 1
        slowest = max(slowest, time.monotonic() - at)
        if held:
            sock, before = held.pop(0)
            asked, sent = time.monotonic(), again(sock)
            try:
                who = (exchange_again if resends and protocol == "udp" else exchange)(sock)[0]
                messages += 1
                note_wait(sock, asked, again(sock) - sent, who)
                if before not in (None, who) and protocol != "udp":
                    breaks[f"moved from {before} to {who}"] += 1
                held.append((sock, who))
            except OSError as error:
                breaks[word(error)] += 1
        time.sleep(max(0.0, pause - (time.monotonic() - at)))
        if (took := time.monotonic() - at) > pause + LATE:
            late.append((at, took))
    return {"fresh": sum(answers.values()) + sum(errors.values()), "failed": sum(errors.values()), "errors": dict(errors),
            "answers": dict(sorted(answers.items())), "lasting": lasting, "messages": messages,
            "broken": sum(breaks.values()), "breaks": dict(breaks), "waits": waits, "late": late, "slowest_ms": round(slowest * 1000)}


if __name__ == "__main__":
    sys.exit("traffic: this is a part of scripts/lab")
