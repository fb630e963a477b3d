#!/usr/bin/python3
"""Asks a Service on and on: asks.py ADDRESS LOG PAUSE. Each answered request is a line `ok` in LOG, and each that failed says why. One connection to the port that sends back what it gets
is kept all the while, a line `kept` for each answer. It ends when the file LOG.end is there.
"""
import http.client
import os
import socket
import sys
import time
import urllib.request

WEB, ECHO = 80, 9000  # ports of the Service
PATIENCE = 20  # seconds


def main(address, path, pause):
    kept = None
    with open(path, "a", buffering=1) as log:
        while not os.path.exists(f"{path}.end"):
            try:
                with urllib.request.urlopen(f"http://{address}:{WEB}/name", timeout=PATIENCE) as answer:
                    answer.read()
                log.write("ok\n")
            except (OSError, http.client.HTTPException) as error:
                log.write(f"{time.strftime('%T')} {error}\n")
            try:
                kept = kept or socket.create_connection((address, ECHO), PATIENCE)
                kept.sendall(b"?")
                log.write("kept\n" if kept.recv(1) == b"?" else "the connection that was kept was closed\n")
            except OSError as error:
                log.write(f"{time.strftime('%T')} the connection that was kept: {error}\n")
                kept = None
            time.sleep(float(pause))


if __name__ == "__main__":
    main(*sys.argv[1:])
