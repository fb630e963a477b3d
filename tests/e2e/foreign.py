"""What is not ours is never touched: not at the start, while running, at the stop or by --cleanup-config."""
import expect
from expect import PODS
from labkit import kernel, net
from labkit.agent import FLAGS, family_flags


def _plant(i):
    """Things of somebody else, as close to ours as they can be. Node 2 has legacy rules."""
    flavour = "legacy" if i == 2 else "nft"
    net.ip(f"n{i}", "link add foreign0 type dummy", "link set foreign0 up", "addr add 10.96.77.1/32 dev foreign0",
           "addr add fd00:10:96::7:1/128 dev foreign0 nodad", "addr add 192.0.2.201/32 dev eth0",
           "route add 198.18.0.0/24 dev foreign0", "rule add pref 4321 from 198.18.0.0/24 lookup main")
    net.node(i, "ipvsadm", "-R", text_in="-A -t 10.96.77.1:80 -s wlc -p 77\n-a -t 10.96.77.1:80 -r 10.244.1.2:8080 -m -w 7\n"
             "-A -u [fd00:10:96::7:1]:53 -s sh\n-A -f 4242 -s rr\n-A -t 192.0.2.201:30099 -s lc\n")
    net.node(i, "ipset", "restore", text_in="create foreign-set hash:ip family inet\nadd foreign-set 10.96.77.1\n"
             "create kube-router-like hash:net family inet6\n")
    for tool, source in (("iptables", "198.18.0.0/24"), ("ip6tables", "2001:db8:77::/48")):
        net.node(i, f"{tool}-{flavour}-restore", "-w", "--noflush", text_in=
                 f"*filter\n:FOREIGN - [0:0]\n-A FOREIGN -s {source} -j DROP\n-A INPUT -s {source} -j FOREIGN\nCOMMIT\n"
                 f"*nat\n:KUBE-ROUTER-FOREIGN - [0:0]\n-A POSTROUTING -s {source} -j MASQUERADE\nCOMMIT\n")


def _dig_up(i):
    flavour = "legacy" if i == 2 else "nft"
    net.ip(f"n{i}", "link del foreign0", "addr del 192.0.2.201/32 dev eth0", "rule del pref 4321")
    net.node(i, "ipvsadm", "-C")
    net.node(i, "ipset", "destroy", "foreign-set")
    net.node(i, "ipset", "destroy", "kube-router-like")
    for tool, source in (("iptables", "198.18.0.0/24"), ("ip6tables", "2001:db8:77::/48")):
        for words in (["-D", "INPUT", "-s", source, "-j", "FOREIGN"], ["-F", "FOREIGN"], ["-X", "FOREIGN"],
                      ["-t", "nat", "-D", "POSTROUTING", "-s", source, "-j", "MASQUERADE"], ["-t", "nat", "-X", "KUBE-ROUTER-FOREIGN"]):
            net.node(i, f"{tool}-{flavour}", "-w", *words)


def _intact(i, before, when):
    now = kernel.snapshot(i)
    for part, lines in before.items():
        missing = [line for line in lines if line not in now[part]]
        expect.that(not missing, f"node {i}, {when}: of {part} there is missing", missing)


def _clean(bed, i):
    status, text = bed.agents[i].once(*FLAGS, *family_flags(), "--cleanup-config")
    expect.that(status == 0, f"--cleanup-config ended with {status}:", text)


def foreign_objects_are_identical_after_start_run_stop_and_cleanup(bed):
    for i in (2, 3):
        bed.agents[i].stop()
        _clean(bed, i)
        _plant(i)
        before = kernel.snapshot(i)
        try:
            bed.agents[i].start()
            bed.ready(i)
            _intact(i, before, "after the start")
            with expect.service(bed, f"beside-{i}", external_ips=["198.51.100.60"]) as s:
                _intact(i, before, "with a Service")
                expect.share(f"n{i}p2", s.address(), 80, PODS)
                bed.put(s.name, PODS[:1])
                bed.settle(s)
            _intact(i, before, "after the Service")
            bed.agents[i].stop()
            _intact(i, before, "after the stop")
            _clean(bed, i)
            after = kernel.snapshot(i)
            expect.that(after == before, f"node {i} after cleanup:", kernel.difference(before, after))
        finally:
            if bed.agents[i].is_alive():
                bed.agents[i].stop()
            _clean(bed, i)
            _dig_up(i)
            bed.agents[i].start()


def cleanup_leaves_nothing_of_ours(bed):
    with expect.service(bed, "cleaned"):
        for i in bed.agents:
            bed.agents[i].stop()
            _clean(bed, i)
            left = kernel.snapshot(i)
            expect.that(left["ipvs"] == [] and left["sets"] == [], f"node {i}:", left["ipvs"], left["sets"])
            expect.that("kube-dummy-if" not in left["links"], f"node {i}:", left["links"])
            text = repr(left)
            expect.that(not any(word in text for word in ("KUBE-ROUTER", "kube-router", "sluice_")), f"node {i}:", text)
            _clean(bed, i)  # and once more, with nothing there
            bed.agents[i].start()
