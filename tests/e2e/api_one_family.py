"""A cluster of one family whose API server gives addresses of that alone."""
import api
import expect


def problems_of_a_service_become_events(bed):
    more = {"kind": "LoadBalancer", "external_policy": "Local", "health_port": 30157, "annotations": {"kube-router.io/service.scheduler": "fastest"}}
    refused = expect.of_family(bed, ["203.0.113.78", "2001:db8:71::78"])
    with api._taken(bed, 2, 30157), expect.service(bed, "told", external_ips=[refused], **more) as s:
        def reasons():
            return [reason for reason, _, _ in api._service_events(bed, s.name)]
        wanted = ["ExternalAddressRefused", "HealthCheckPortInUse", "InvalidServiceField"]
        expect.soon(lambda: reasons() == wanted, 60, "not these Events:", reasons())
