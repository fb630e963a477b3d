#!/usr/bin/python3
"""Asks a Service on and on: asks.py ADDRESS LOG PAUSE. Each line in LOG begins with when its round began. Behind it stands `ok` for an answered request and after how many seconds, or why it failed.
One connection to the port that sends back what it gets is kept all the while, `kept` and the seconds for each answer. It ends when the file LOG.end is there.
"""
import http.client
import os
import socket
import sys
import time
import urllib.request

WEB, ECHO = 80, 9000  # ports of the Service
PATIENCE = 20  # seconds; longer than any answer may take, so that a late one says how late it was
CLOSED = "the connection that was kept was closed"


def now():
    """As `date +%FT%T` has it: a later one sorts behind."""
    return time.strftime("%Y-%m-%dT%H:%M:%S")


def main(address, path, pause):
    kept = None
    with open(path, "a", buffering=1) as log:
        while not os.path.exists(f"{path}.end"):
            began, since = now(), time.monotonic()
            try:
                with urllib.request.urlopen(f"http://{address}:{WEB}/name", timeout=PATIENCE) as answer:
                    answer.read()
                log.write(f"{began} ok {time.monotonic() - since:.3f}\n")
            except (OSError, http.client.HTTPException) as error:
                log.write(f"{began} {error}\n")
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
