"""The router outside, BIRD, and the client behind it: what they have learned, and what they reach."""
import json

from . import net, objects, own, traffic
from .demo_report import hold

BIRD = f"{net.RUN}/bird"
PREFIX = {"4": 32, "6": 128}


def birdc(*words):
    return own.run("birdc", "-r", "-s", f"{BIRD}.ctl", *words)


def configure():
    """Has the router read its configuration again."""
    return own.run("birdc", "-s", f"{BIRD}.ctl", "configure")


def at_router(family, prefix):
    """Through which gateways the router outside sends what is for a prefix."""
    said = own.run("/sbin/ip", "-n", "rtr", f"-{family}", "-j", "route", "show", prefix)
    return sorted(hop["gateway"] for route in json.loads(said or "[]") for hop in route.get("nexthops", [route]))


def routes_at_router(family):
    return own.run("/sbin/ip", "-n", "rtr", f"-{family}", "route", "show", "proto", "bird").splitlines()


def eventually(what, wanted, look, seconds=60):
    own.wait(lambda: look() == wanted, seconds, 0.2)
    found = look()
    hold(what, found == wanted, f"{found} and not {wanted}")


def asked(client, address, port=objects.TARGET):
    try:
        return traffic.ask(client, address, port)
    except OSError as error:
        return traffic.word(error)
