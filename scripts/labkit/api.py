"""A small client of the API server for the lab itself: JSON over one TLS connection, with a token."""
import http.client
import json
import ssl

from . import outside


class ApiError(Exception):
    def __init__(self, status, text):
        super().__init__(f"the API server answered {status}: {text[:400]}")
        self.status = status


class Connection(http.client.HTTPSConnection):
    def connect(self):
        self.sock = self._context.wrap_socket(outside.connect(self.port), server_hostname="127.0.0.1")


class Api:
    def __init__(self, facts, token=None):
        self.port, self.token = facts["port"], token or facts["token"]
        self.context = ssl.create_default_context(cadata=facts["authority"])
        self.connection = None

    def request(self, method, path, body=None, kind="application/json"):
        headers = {"Authorization": f"Bearer {self.token}", "Content-Type": kind, "Accept": "application/json"}
        text = None if body is None else json.dumps(body)
        for attempt in (1, 2):
            if self.connection is None:
                self.connection = Connection("127.0.0.1", self.port, timeout=60, context=self.context)
            try:
                self.connection.request(method, path, text, headers)
                answer = self.connection.getresponse()
                content = answer.read()
                break
            except (OSError, http.client.HTTPException):
                self.connection.close()
                self.connection = None  # a kept connection may have been closed meanwhile
                if attempt == 2:
                    raise
        if answer.status >= 300:
            raise ApiError(answer.status, content.decode(errors="replace"))
        try:
            return json.loads(content)
        except ValueError:
            return content.decode(errors="replace")

    def get(self, path):
        return self.request("GET", path)

    def patch(self, path, body):
        return self.request("PATCH", path, body, "application/merge-patch+json")

    def delete(self, path):
        return self.request("DELETE", path)

    def put(self, collection, item):
        """Creates the object, or replaces the one of its name.

        Asked first: a Service created a second time is refused for its address, before anybody looks at its name.
        """
        path = f"{collection}/{item['metadata']['name']}"
        try:
            version = self.get(path)["metadata"]["resourceVersion"]
        except ApiError as error:
            if error.status != 404:
                raise
            return self.request("POST", collection, item)
        return self.request("PUT", path, {**item, "metadata": {**item["metadata"], "resourceVersion": version}})

    def is_ready(self):
        try:
            return self.get("/readyz") == "ok"
        except (OSError, ApiError, http.client.HTTPException):
            return False
