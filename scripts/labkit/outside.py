"""The machine's own loopback, seen from where the nodes are: the API server listens there.

In a guest it is 10.0.2.2; beside the nodes on this machine it is 127.0.0.1 in the network namespace that we came from.
Nodes themselves reach none of it: for them `relay` answers on an address of the underlay. The API server's way to them is `tunnel`, and from outside of a guest, which
nobody reaches, `meeting` and `waiting`.
"""
import json
import os
import queue
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
    return beside(listeners, lambda client: carry_both(client, port))


def tunnel(path, namespace="n1"):
    """Starts a process that connects who asks at a socket of this machine (`path`) with an address that a node reaches, as if he ran on that node: HTTP's CONNECT,
    as the API server speaks with what leads to its kubelets, and to pods and Services that it is asked to be a proxy for; its number."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(path)
    listener.listen(64)
    return beside([listener], lambda client: connected(client, namespace))


def meeting(path):
    """Starts threads that join who asks at a socket of this machine (`path`) with a connection that `waiting` has made; the port where those come in."""
    idle = queue.Queue()
    asked, offered = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM), socket.create_server(("127.0.0.1", 0), backlog=64)
    asked.bind(path)
    asked.listen(64)
    for listener, served in ((asked, lambda client: between(client, idle.get())), (offered, idle.put)):
        threading.Thread(target=accept, args=(listener, served), daemon=True).start()
    return offered.getsockname()[1]


def waiting(port, count=16, namespace="n1"):
    """Starts a process that keeps this many connections to a port of the machine (`meeting`) until somebody asks by them what `tunnel` is asked; its number."""
    def wait(_):
        while True:
            client = connect(port)
            client.settimeout(None)
            client.recv(1, socket.MSG_PEEK)
            threading.Thread(target=connected, args=(client, namespace), daemon=True).start()
    return apart([(wait, None)] * count)


def beside(listeners, served):
    """Starts a process that serves each client of the listeners in a thread of its own; its number."""
    pid = apart([(lambda listener: accept(listener, served), listener) for listener in listeners])
    for listener in listeners:
        listener.close()
    return pid


def apart(works):
    """Starts a process that does each of these, a function and its argument, in a thread of its own; its number."""
    pid = os.fork()
    if pid:
        return pid
    os.setsid()
    # Who reads what our parent prints reads to the end, which would not come before ours.
    null = os.open(os.devnull, os.O_RDWR)
    for stream in range(3):
        os.dup2(null, stream)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threads = [threading.Thread(target=work, args=(of,)) for work, of in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    os._exit(0)


def accept(listener, served):
    while True:
        client, _ = listener.accept()
        threading.Thread(target=served, args=(client,), daemon=True).start()


def connected(client, namespace):
    """Reads one request (`CONNECT address:port`), connects, answers, and carries until both have ended."""
    asked = b""
    while b"\r\n\r\n" not in asked and len(asked) < 4096:
        chunk = client.recv(4096)
        if not chunk:
            break
        asked += chunk
    head, _, early = asked.partition(b"\r\n\r\n")
    words = head.split(b"\r\n")[0].decode(errors="replace").split()
    try:
        if len(words) != 3 or words[0] != "CONNECT":
            raise OSError("this is no CONNECT")
        address, _, port = words[1].rpartition(":")
        with net.Inside(namespace):
            server = socket.create_connection((address.strip("[]"), int(port)), 10)
    except (OSError, ValueError) as error:
        client.sendall(f"HTTP/1.1 502 {error}\r\n\r\n".encode())
        client.close()
        return
    client.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
    server.sendall(early)
    between(client, server)


def carry_both(client, port):
    try:
        server = connect(port, 10)
    except OSError:
        # The server is not there: the client must see a reset, as from the server's own machine.
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        client.close()
        return
    between(client, server)


def between(client, server):
    """Carries what each sends to the other, until both have ended."""
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
