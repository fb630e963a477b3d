#!/usr/bin/python3
"""Asks a Service on and on: asks.py ADDRESS LOG PAUSE. Each answered request is a line `ok` in LOG, and each that failed says when its round began, and why. One connection to the port that sends back
what it gets is kept all the while, a line `kept` for each answer. It ends when the file LOG.end is there.
"""
import http.client
import os
import socket
import sys
import time
import urllib.request

WEB, ECHO = 80, 9000  # ports of the Service
PATIENCE = 20  # seconds
CLOSED = "the connection that was kept was closed"


def now():
    """As `date +%FT%T` has it: a later one sorts behind."""
    return time.strftime("%Y-%m-%dT%H:%M:%S")


def main(address, path, pause):
    kept = None
    with open(path, "a", buffering=1) as log:
        while not os.path.exists(f"{path}.end"):
            began = now()
            try:
                with urllib.request.urlopen(f"http://{address}:{WEB}/name", timeout=PATIENCE) as answer:
                    answer.read()
                log.write("ok\n")
            except (OSError, http.client.HTTPException) as error:
                log.write(f"{began} {error}\n")
            try:
                kept = kept or socket.create_connection((address, ECHO), PATIENCE)
                kept.sendall(b"?")
                is_kept = kept.recv(1) == b"?"
                log.write("kept\n" if is_kept else f"{began} {CLOSED}\n")
                kept = kept if is_kept else None
            except OSError as error:
                log.write(f"{began} the connection that was kept: {error}\n")
                kept = None
            time.sleep(float(pause))


if __name__ == "__main__":
    main(*sys.argv[1:])
