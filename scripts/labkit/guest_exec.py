#!/usr/bin/python3
"""Runs commands in the guest for `lab exec`: one TCP connection, one command.

The machine reaches this port only through its own loopback, and every request carries the guest's secret. A client
sends one line of JSON {token, argv, env, cwd}, then frames (kind, length, bytes): `i` input, `e` its end, `s` a
signal's number. It gets frames back: `o` output, `r` errors, `q` the exit status as JSON, which is the last one. When
the client goes away, the command's process group is killed; what called setsid stays.
"""
import json
import os
import select
import signal
import socket
import struct
import subprocess
import threading

FRAME = struct.Struct("!cI")
PORT = 1022
MUCH = 1 << 16


def main():
    with open("/run/lab/token") as handle:
        token = handle.read().strip()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    server = socket.create_server(("10.0.2.15", PORT), backlog=64)
    while True:
        client, _ = server.accept()
        if os.fork() == 0:
            server.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            try:
                serve(client, token)
            except OSError:
                pass
            os._exit(0)
        client.close()


def send(client, kind, payload):
    client.sendall(FRAME.pack(kind, len(payload)) + payload)


def serve(client, token):
    client.settimeout(60)
    line = client.makefile("rb", buffering=0).readline(1 << 20)
    request = json.loads(line)
    if request.get("token") != token:
        return
    client.settimeout(None)
    cwd = request.get("cwd") or "/"
    if not os.path.isdir(cwd):
        cwd = "/"  # the caller's own folder may be one that the guest does not see
    try:
        command = subprocess.Popen(
            request["argv"], env=request["env"], cwd=cwd, start_new_session=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    except OSError as error:
        send(client, b"q", json.dumps({"status": 127, "error": str(error)}).encode())
        return
    threading.Thread(target=take_input, args=(client, command), daemon=True).start()
    send(client, b"q", json.dumps({"status": give_output(client, command)}).encode())


def kill_group(command, number):
    try:
        os.killpg(command.pid, number)
    except ProcessLookupError:
        pass


def take_input(client, command):
    """Feeds the command from the client's frames; a thread of its own, because a command may read slowly."""
    stream = client.makefile("rb")
    while header := stream.read(FRAME.size):
        kind, length = FRAME.unpack(header)
        payload = stream.read(length)
        try:
            if kind == b"i":
                command.stdin.write(payload)
                command.stdin.flush()
            elif kind == b"e":
                command.stdin.close()
            elif kind == b"s":
                kill_group(command, int(payload))
        except (BrokenPipeError, ValueError):
            pass  # the command no longer reads its input
    kill_group(command, signal.SIGKILL)


def give_output(client, command):
    """Carries the output until the command has ended and nothing more comes; its exit status."""
    kinds = {command.stdout.fileno(): b"o", command.stderr.fileno(): b"r"}
    ended = os.pidfd_open(command.pid)
    over = False
    while kinds or not over:
        # A daemon left behind may hold the output open for good: a short silence after the end is enough.
        ready, _, _ = select.select([*kinds] + ([] if over else [ended]), [], [], 0.2 if over else None)
        if over and not ready:
            break
        for fd in ready:
            if fd == ended:
                over = True
            elif chunk := os.read(fd, MUCH):
                send(client, kinds[fd], chunk)
            else:
                del kinds[fd]
    status = command.wait()
    return status if status >= 0 else 128 - status


if __name__ == "__main__":
    main()
