"""Writes many objects to an API server, over several connections and at a pace: what the keeper of a cluster does for those whose processor would not do.

An order is {"waves": [[[method, path, body, content type]]], "every": seconds, "seconds": seconds}. A wave begins when the one before is done, and not
before its time; without `seconds` each wave is written once, else all of them again and again until so much time is over.
"""
import collections
import concurrent.futures
import http.client
import itertools
import json
import threading
import time

from .api import Api, ApiError

CONNECTIONS = 8


def write(facts, order):
    """How many writes were made in which time, and how many were refused, by status."""
    kept = threading.local()

    def one(task):
        if not hasattr(kept, "api"):
            kept.api = Api(facts)
        try:
            kept.api.request(*task)
            return "written"
        except ApiError as error:
            return str(error.status)
        except (OSError, http.client.HTTPException) as error:
            return type(error).__name__

    seconds = order.get("seconds")
    waves = itertools.cycle(order["waves"]) if seconds else order["waves"]
    counts, began = collections.Counter(), time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(CONNECTIONS) as pool:
        for number, wave in enumerate(waves):
            time.sleep(max(0.0, began + number * order.get("every", 0) - time.monotonic()))
            if seconds and time.monotonic() > began + seconds:
                break
            counts.update(pool.map(one, wave))
    return {"writes": counts.pop("written", 0), "seconds": time.monotonic() - began, "refused": dict(counts)}


def obey(facts, text):
    """The answer to an order in words, as one line."""
    try:
        return json.dumps(write(facts, json.loads(text)))
    except Exception as error:  # whoever ordered it waits for an answer
        return json.dumps({"writes": 0, "seconds": 0, "refused": {f"{type(error).__name__}: {error}": 1}})
