//! Meaning of the allocator's flags.

use super::*;

#[test]
fn without_the_service_proxy_every_external_ip_keeps_its_address_out_of_the_pools() {
    let elsewhere = "198.51.100.1".parse().expect("an address");
    for (proxy, counts) in [("true", false), ("false", true)] {
        let words =
            ["--run-loadbalancer", "--loadbalancer-ip-range=203.0.113.0/24", &format!("--run-service-proxy={proxy}")];
        let mut mistakes = Mistakes::default();
        let environment = Environment { host_name: "node-1".to_owned(), ..Environment::default() };
        let config = Config::meant(&flags(&words), 0, &environment, &mut mistakes);
        assert!(mistakes.is_empty(), "{mistakes}");
        let allocator = config.load_balancer.expect("it is switched on");
        assert_eq!(allocator.served_external_ips.allow_external_ip(elsewhere), counts, "{proxy}");
        assert!(allocator.ranges.strict, "pools stay within the flag's ranges");
    }
}
