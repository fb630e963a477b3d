"""The machine's own loopback, seen from where the nodes are: the API server listens there.

In a guest it is 10.0.2.2; beside the nodes on this machine it is 127.0.0.1 in the network namespace that we came from.
Nodes themselves reach none of it: for them `relay` answers on an address of the underlay.
"""
import json
import os
import signal
import socket
import threading

from . import net, own
from .place import OUTSIDE


def connect(port, patience=60):
    """A TCP connection to a port of the machine's loopback."""
    if OUTSIDE in os.environ:
        with net.Inside(int(os.environ[OUTSIDE])):
            return socket.create_connection(("127.0.0.1", port), patience)
    in_guest = os.path.exists("/run/lab/token")
    return socket.create_connection(("10.0.2.2" if in_guest else "127.0.0.1", port), patience)


def relay(port, addresses=net.CONTROL, at=6443, namespace="cp"):
    """Starts a process that carries connections from the underlay to a port of the machine; its number."""
    listeners = []
    with net.Inside(namespace):
        for address in addresses:
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            listeners.append(socket.create_server((address, at), family=family, backlog=64))
    pid = os.fork()
    if pid:
        for listener in listeners:
            listener.close()
        return pid
    os.setsid()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threads = [threading.Thread(target=accept, args=(listener, port)) for listener in listeners]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    os._exit(0)


def accept(listener, port):
    while True:
        client, _ = listener.accept()
        threading.Thread(target=carry_both, args=(client, port), daemon=True).start()


def carry_both(client, port):
    try:
        server = connect(port, 10)
    except OSError:
        # The server is not there: the client must see a reset, as from the server's own machine.
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        client.close()
        return
    server.settimeout(None)
    back = threading.Thread(target=carry, args=(server, client), daemon=True)
    back.start()
    carry(client, server)
    back.join()
    client.close()
    server.close()


def carry(source, target):
    try:
        while chunk := source.recv(1 << 16):
            target.sendall(chunk)
    except OSError:
        pass
    for sock in (source, target):
        try:
            sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass


def control(port, token, word):
    """Tells the keeper of the cluster on the machine to stop or start the API server."""
    with connect(port) as keeper:
        keeper.settimeout(120)
        keeper.sendall(f"{token} {word}\n".encode())
        answer = keeper.makefile().readline().strip()
    if answer != "done":
        raise own.LabError(f"the keeper of the cluster says: {answer or 'nothing'}")


def order(port, token, order):
    """Has the keeper of the cluster write objects (`writer`), and returns what it says of it."""
    with connect(port) as keeper:
        keeper.settimeout(1800)
        keeper.sendall(f"{token} write\n{json.dumps(order)}\n".encode())
        answer = keeper.makefile().readline()
    if not answer.strip():
        raise own.LabError("the keeper of the cluster says nothing")
    return json.loads(answer)
