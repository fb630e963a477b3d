"""A router outside hears that a service address is withdrawn before its node closes it: seen on the wire and in the kernel."""
import contextlib
import select
import socket
import struct
import threading
import time

import expect
from expect import PODS
from labkit import kernel, net
from router import run_with

ADDRESS = "198.51.100.30"
FLAGS = [f"--peer-router-ips={net.CONTROL[0]}", "--peer-router-asns=65001", "--advertise-external-ip=true"]
WAIT = 0.3  # of the service proxy for the router, in seconds
MARKER = b"\xff" * 16
OPEN, UPDATE, NOTIFICATION, KEEPALIVE = 1, 2, 3, 4
DECONFIGURED = (6, 3)
ROUTES_V4, DELETE_ROUTE = 0x40, 25  # RTMGRP_IPV4_ROUTE, RTM_DELROUTE
ALL_PROTOCOLS = socket.htons(3)


class Neighbour(threading.Thread):
    """As much of BGP as a neighbour needs that only listens: the IPv4 routes of whoever dials."""

    def __init__(self):
        super().__init__(daemon=True)
        self.routes = set()
        self.notified = []
        self.ended = 0
        with net.Inside("cp"):
            self.listener = socket.create_server((net.CONTROL[0], 179))
        self.listener.settimeout(0.2)
        self.ends = False
        self.start()

    def run(self):
        while not self.ends:
            with contextlib.suppress(OSError):
                connection, (address, _) = self.listener.accept()
                # Only node 1 is talked to; what the others say is none of this test's business.
                with connection:
                    if address == "192.0.2.11":
                        connection.settimeout(0.2)
                        self.talk(connection)
                        self.ended += 1
        self.listener.close()

    def talk(self, connection):
        self.routes = set()
        body = struct.pack("!BHH4sB", 4, 65001, 90, socket.inet_aton(net.CONTROL[0]), 0)
        connection.sendall(_message(OPEN, body) + _message(KEEPALIVE))
        read = b""
        while not self.ends:
            try:
                more = connection.recv(65536)
            except TimeoutError:
                continue
            if not more:
                return
            read += more
            while len(read) >= 19 and len(read) >= (length := struct.unpack("!H", read[16:18])[0]):
                kind, body, read = read[18], read[19:length], read[length:]
                if kind == KEEPALIVE:
                    connection.sendall(_message(KEEPALIVE))
                elif kind == NOTIFICATION:
                    self.notified.append((body[0], body[1]))
                elif kind == UPDATE:
                    withdrawn, announced = _prefixes(body)
                    self.routes = (self.routes - withdrawn) | announced

    def end(self):
        self.ends = True
        self.join()


def _message(kind, body=b""):
    return MARKER + struct.pack("!HB", 19 + len(body), kind) + body


def _prefixes(body):
    """What an UPDATE withdraws and announces."""
    withdrawn = struct.unpack("!H", body[:2])[0]
    attributes = struct.unpack("!H", body[2 + withdrawn:4 + withdrawn])[0]
    return _listed(body[2:2 + withdrawn]), _listed(body[4 + withdrawn + attributes:])


def _listed(data):
    found = set()
    while data:
        size = (data[0] + 7) // 8
        found.add(f"{socket.inet_ntoa(data[1:1 + size].ljust(4, bytes(1)))}/{data[0]}")
        data = data[1 + size:]
    return found


class Witness:
    """What leaves node 1, and which of its routes are deleted."""

    def __init__(self):
        with net.Inside("n1"):
            self.wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, ALL_PROTOCOLS)
            self.kernel = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
        self.wire.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        self.kernel.bind((0, ROUTES_V4))
        for one in (self.wire, self.kernel):
            one.setblocking(False)

    def forget(self):
        self._packets()
        with contextlib.suppress(BlockingIOError):
            while self.kernel.recv(65536):
                pass

    def has_been_told_when_it_closes(self, address):
        """Waits until the local route to the address is deleted. Whether its withdrawal had left before."""
        wanted = socket.inet_aton(address)
        while select.select([self.kernel], [], [], 30)[0]:
            message = self.kernel.recv(65536)
            packets = self._packets()
            if struct.unpack("=H", message[4:6])[0] == DELETE_ROUTE and wanted in message:
                return any(_withdraws(packet, wanted) for packet in packets)
            self.before = packets
        raise AssertionError(f"{address} is never closed")

    def _packets(self):
        packets = getattr(self, "before", [])
        self.before = []
        with contextlib.suppress(BlockingIOError):
            while True:
                packets.append(self.wire.recv(65536))
        return packets


def _withdraws(packet, address):
    at = packet.find(MARKER)
    while at >= 0:
        # What precedes the message may end with the same byte, as a timestamp of TCP does once in 256 times; no message is so long.
        while packet[at + 16] == MARKER[0]:
            at += 1
        length, kind = struct.unpack("!HB", packet[at + 16:at + 19])
        if kind == UPDATE and f"{socket.inet_ntoa(address)}/32" in _prefixes(packet[at + 19:at + length])[0]:
            return True
        at = packet.find(MARKER, at + length)
    return False


def _is_local():
    return kernel.is_local(1, ADDRESS)


def the_withdrawal_leaves_before_the_address_is_closed(bed):
    neighbour = Neighbour()
    try:
        run_with(bed, *FLAGS)
        with expect.service(bed, "leaving", external_ips=[ADDRESS], external_policy="Local"):
            late = 0
            for turn in range(16):
                bed.put("leaving", PODS, external_ips=[ADDRESS])
                expect.soon(lambda: f"{ADDRESS}/32" in neighbour.routes and _is_local(), 60, "not announced:", neighbour.routes)
                witness = Witness()
                witness.forget()
                # The address, with its last pod here or alone.
                begun = time.monotonic()
                bed.put("leaving", ["n2p1"] if turn % 2 else PODS, external_ips=[])
                told = witness.has_been_told_when_it_closes(ADDRESS)
                took = time.monotonic() - begun
                expect.that(told or took >= WAIT, f"in turn {turn} the address was closed after {took:.3f} s, before its withdrawal had left")
                late += not told
                expect.soon(lambda: f"{ADDRESS}/32" not in neighbour.routes, 30, "the neighbour still has", neighbour.routes)
            # The wait is bounded by real time, and in a guest beside others neither is as fast as on a machine.
            expect.that(late < 16, "in each of 16 turns the address was closed before its withdrawal had left")
    finally:
        neighbour.end()


def without_a_neighbour_an_address_is_closed_all_the_same(bed):
    run_with(bed, *FLAGS)
    with expect.service(bed, "unheard", external_ips=[ADDRESS]):
        expect.soon(_is_local, 60, "the address is not served")
        bed.put("unheard", PODS, external_ips=[])
        expect.soon(lambda: not _is_local(), 30, "the address is never closed")


def the_end_of_the_program_is_said_to_neighbours_that_would_keep_nothing_and_to_no_others(bed):
    """As kube-router has it: without graceful restart sessions are closed with a word, with it they end without one."""
    neighbour = Neighbour()
    try:
        for flags, said in ((FLAGS, [DECONFIGURED]), ([*FLAGS, "--bgp-graceful-restart=true"], [])):
            run_with(bed, *flags)
            expect.soon(lambda: f"{bed.plan.pod_ranges(1)[0]}" in neighbour.routes, 60, "no session:", neighbour.routes)
            neighbour.notified, ended = [], neighbour.ended
            bed.agents[1].stop()
            expect.soon(lambda: neighbour.ended > ended, 30, "the session does not end")
            expect.that(neighbour.notified == said, f"with {flags} the neighbour was told {neighbour.notified}, not {said}")
            bed.agents[1].start()
    finally:
        neighbour.end()
