#!/usr/bin/python3
"""Asks a Service on and on: asks.py ADDRESS LOG PAUSE [kept]. Each line in LOG begins with when its round began. Behind it stands `ok` for an answered request and after how many seconds, or why it failed.
With `kept` one connection to the port that sends back what it gets is kept all the while, `kept` and the seconds for each answer. It ends when the file LOG.end is there.

No connection begins from a port that another one has had a while ago. The kernel keeps a connection that is closed among those that are tracked for 120 s (`nf_conntrack_tcp_timeout_time_wait`), and a client may take its port
again after 60: such a one may be sent to the endpoint of the former one, whoever serves Services by NAT, also where that endpoint is gone since (seen with kube-proxy's nftables).
"""
import errno
import http.client
import itertools
import os
import re
import socket
import sys
import time

WEB, ECHO = 80, 9000  # ports of the Service
PATIENCE = 20  # seconds; longer than any answer may take, so that a late one says how late it was
CLOSED = "the connection that was kept was closed"
FIRST_PORT, PORTS = 40000, 20000  # that connections begin from, one after the other
FASTEST = 20  # connections in a second, more than anybody begins
SERVERS = (b"web-", b"late")  # how the names of those begin that may answer
FOREIGN = "somebody else answered"
LATE = "answered after"  # in the place of an answer that came too late


def judged(line, latest):
    """What stands behind when the round of a line of a log began: `ok` or `kept` of an answer within so many seconds, else the time and what went wrong; and after how many seconds it came,
    where one did."""
    began, _, said = line.partition(" ")
    if not (found := re.fullmatch(r"(ok|kept) (\d+\.\d+)", said)):
        return line, None
    word, seconds = found[1], float(found[2])
    return (word if seconds <= latest else f"{began} {word}: {LATE} {seconds:.2f} s"), seconds


def slowest(outcomes):
    """After how many seconds the last answer of these (`judged`) came; nothing where none did."""
    return max((seconds for _, seconds in outcomes if seconds is not None), default=None)


def now():
    """As `date +%FT%T` has it: a later one sorts behind."""
    return time.strftime("%Y-%m-%dT%H:%M:%S")


def asked(address, ports):
    """The name of who answers, by a connection from the next port that is free."""
    while True:
        connection = http.client.HTTPConnection(address, WEB, timeout=PATIENCE, source_address=("", next(ports)))
        try:
            connection.request("GET", "/name")
            return connection.getresponse().read()
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
        finally:
            connection.close()


def one_answer(address, ports):
    """What is to be written down of a request by a connection of its own."""
    since = time.monotonic()
    try:
        name = asked(address, ports)
    except (OSError, http.client.HTTPException) as error:
        return str(error)
    return f"ok {time.monotonic() - since:.3f}" if name.startswith(SERVERS) else f"{FOREIGN}: {name[:80]}"


def main(address, path, pause, keeps=""):
    # Another one that asks begins elsewhere, as time goes on faster than ports do.
    first = int(time.time() * FASTEST) % PORTS
    kept, ports = None, (FIRST_PORT + (first + n) % PORTS for n in itertools.count())
    with open(path, "a", buffering=1) as log:
        while not os.path.exists(f"{path}.end"):
            began = now()
            log.write(f"{began} {one_answer(address, ports)}\n")
            if not keeps:
                time.sleep(float(pause))
                continue
            since = time.monotonic()
            try:
                kept = kept or socket.create_connection((address, ECHO), PATIENCE)
                kept.sendall(b"?")
                is_kept = kept.recv(1) == b"?"
                log.write(f"{began} kept {time.monotonic() - since:.3f}\n" if is_kept else f"{began} {CLOSED}\n")
                kept = kept if is_kept else None
            except OSError as error:
                log.write(f"{began} the connection that was kept: {error}\n")
                kept = None
            time.sleep(float(pause))


if __name__ == "__main__":
    main(*sys.argv[1:])
