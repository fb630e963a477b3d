"""A way to the API server on which requests and answers are late, refused, cut off or old, as long as a test wants that."""
import collections
import http.client
import http.server
import json
import socket
import ssl
import threading
import time
import urllib.parse

from labkit import net, outside

PATIENCE = 30  # seconds for an answer of the API server that is no watch
# What is not carried on from one side to the other: it is of one connection, or made anew.
OWN_HEADERS = {"connection", "transfer-encoding", "content-length", "host", "keep-alive"}
REFUSALS = {409: "Conflict", 429: "TooManyRequests", 500: "InternalError", 504: "Timeout"}
# A write reaches the API server so late at most: what keeps two agents apart in time counts on a second (`src/load_balancer/mod.rs`).
LATEST_WRITE = 0.8
LATE = 3.0
# What somebody who gives addresses asks: the list of all Services, a Service's own status, and the Lease.
STEPS = ("list", "status", "lease")


def step_of(method, path):
    if method == "GET" and path == "/api/v1/services":
        return "list"
    if method == "PUT":
        return "status" if path.endswith("/status") else "lease" if "/leases/" in path else None
    return None


class Way:
    """Speaks HTTP without TLS at a port of the underlay, and passes everything on to the API server of these facts.

    It is quiet until somebody says otherwise. `at_step`, if there is one, is called once: (one of `STEPS`, whether before it is carried to the API
    server or behind that, what is called). Nobody gets an answer to that request.
    """

    def __init__(self, facts, dice, port):
        self.facts, self.dice = facts, dice
        self.context = ssl.create_default_context(cadata=facts["authority"])
        self.is_quiet, self.gives_old_lists = True, False
        self.at_step, self.old_list = None, None
        self.done = collections.Counter()
        self.server = _Server(self, port)
        self.server.begin()
        self.url = f"http://{net.CONTROL[0]}:{port}"

    def close(self):
        self.server.shutdown()
        self.server.server_close()

    def chance(self, percent):
        return not self.is_quiet and self.dice.random() * 100 < percent

    def count(self, what):
        self.done[what] += 1

    def wait(self, percent, longest, what):
        if self.chance(percent):
            self.count(what)
            time.sleep(self.dice.random() * longest)

    def is_reached(self, step, is_before):
        """Whether a request is the one that `at_step` waits for, which is called then."""
        waiting = self.at_step
        if waiting is None or waiting[:2] != (step, is_before):
            return False
        self.at_step = None
        waiting[2]()
        return True


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads, block_on_close = True, False

    def __init__(self, way, port):
        self.way = way
        super().__init__((net.CONTROL[0], port), _Carrier, bind_and_activate=False)
        self.socket.close()
        with net.Inside("cp"):
            self.socket = socket.create_server((net.CONTROL[0], port), backlog=64)

    def begin(self):
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def handle_error(self, request, client_address):
        """A client that is killed, or gives up, is what the test is about."""


class _Upstream(http.client.HTTPSConnection):
    def connect(self):
        self.sock = self._context.wrap_socket(outside.connect(self.port), server_hostname="127.0.0.1")


class _Carrier(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *_):
        pass

    def do_GET(self):
        self.carry()

    do_POST = do_PUT = do_PATCH = do_DELETE = do_GET

    def carry(self):
        way = self.server.way
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        url = urllib.parse.urlsplit(self.path)
        query = urllib.parse.parse_qs(url.query)
        is_watch, is_write = query.get("watch", ["0"])[0] in ("1", "true"), self.command != "GET"
        step = None if is_watch else step_of(self.command, url.path)
        if way.is_reached(step, True) or way.chance(6):
            return self.cut("cut off before the API server")
        way.wait(30, LATEST_WRITE if is_write else LATE, "late at the API server")
        if way.chance(10):
            return self.refuse(way.dice.choice([code for code in REFUSALS if is_write or code != 409]))
        upstream = _Upstream("127.0.0.1", way.facts["port"], timeout=PATIENCE, context=way.context)
        try:
            headers = {name: value for name, value in self.headers.items() if name.lower() not in OWN_HEADERS}
            upstream.request(self.command, self.path, body or None, headers)
            answer = upstream.getresponse()
            if is_watch and answer.status == 200:
                return self.stream(answer)
            content = answer.read()
        except (OSError, http.client.HTTPException):
            return self.cut("cut off by the API server")
        finally:
            upstream.close()
        if way.is_reached(step, False) or way.chance(6):
            return self.cut("cut off behind the API server")
        way.wait(30, LATE, "late at the client")
        if is_write and answer.status < 300 and way.chance(3):
            return self.refuse(504)  # as where the store took longer than the API server waits, and was done after all
        kept = [(name, value) for name, value in answer.getheaders() if name.lower() not in OWN_HEADERS]
        if step == "list" and answer.status == 200:
            kept, content = self.list_of(kept, content)
        self.answer(answer.status, kept, content)

    def list_of(self, headers, content):
        """This list, or one that was given before, which nobody who asks for the newest state should get."""
        way = self.server.way
        if way.gives_old_lists and way.old_list and way.chance(50):
            way.count("an old list")
            return way.old_list
        way.old_list = headers, content
        return way.old_list

    def stream(self, answer):
        way = self.server.way
        self.start(answer.status, [(n, v) for n, v in answer.getheaders() if n.lower() not in OWN_HEADERS] + [("Transfer-Encoding", "chunked")])
        while piece := answer.read1(1 << 16):
            way.wait(10, LATE, "late events")
            if way.chance(3):
                return self.cut("a watch cut off")
            self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
        self.wfile.write(b"0\r\n\r\n")

    def answer(self, status, headers, content):
        self.start(status, [*headers, ("Content-Length", str(len(content)))])
        self.wfile.write(content)

    def start(self, status, headers):
        self.send_response_only(status)
        for name, value in headers:
            self.send_header(name, value)
        self.end_headers()

    def refuse(self, code):
        self.server.way.count(f"refused with {code}")
        text = json.dumps({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "code": code,
                           "reason": REFUSALS[code], "message": "refused on the way"}).encode()
        self.answer(code, [("Content-Type", "application/json")], text)

    def cut(self, how):
        self.server.way.count(how)
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self.connection.close()
