//! Metrics of the allocator. Those of pools and Services are the holder's of the Lease alone.

use prometheus::core::Collector;
use prometheus::proto::LabelPair;
use prometheus::{GaugeVec, IntCounterVec, IntGauge, Opts};

use super::pools::PoolUse;
use crate::observe::metrics::Registry;

/// Metrics of the allocator.
#[derive(Clone)]
pub struct Metrics {
    size: GaugeVec,
    used: GaugeVec,
    /// Services that lack an address.
    pub wanting: IntGauge,
    /// 1 on the agent that gives addresses.
    pub leads: IntGauge,
    /// Writes of statuses, by outcome.
    pub writes: IntCounterVec,
}

impl Metrics {
    /// Creates and registers the metrics.
    ///
    /// # Errors
    /// If a name is already registered.
    pub fn register(registry: &Registry) -> Result<Metrics, prometheus::Error> {
        let of_pool = |name: &str, help: &str| GaugeVec::new(Opts::new(name, help), &["pool", "family"]);
        let writes = Opts::new("sluice_load_balancer_writes_total", "Writes of load balancer addresses, by outcome");
        let metrics = Metrics {
            size: of_pool("sluice_load_balancer_pool_addresses", "Addresses that a pool has for Services")?,
            used: of_pool("sluice_load_balancer_pool_addresses_used", "Addresses of a pool that are in use")?,
            wanting: IntGauge::new(
                "sluice_load_balancer_services_wanting",
                "Services that lack a load balancer address",
            )?,
            leads: IntGauge::new(
                "sluice_load_balancer_leader",
                "1 on the agent that gives load balancer addresses, 0 on the others",
            )?,
            writes: IntCounterVec::new(writes, &["outcome"])?,
        };
        registry.register(Box::new(metrics.size.clone()))?;
        registry.register(Box::new(metrics.used.clone()))?;
        registry.register(Box::new(metrics.wanting.clone()))?;
        registry.register(Box::new(metrics.leads.clone()))?;
        registry.register(Box::new(metrics.writes.clone()))?;
        Ok(metrics)
    }

    /// Sets the use of the pools; those that are not named are gone. A request for metrics that comes meanwhile finds the others all the same.
    pub fn set_pools(&self, pools: &[PoolUse]) {
        let stays = |pool: &str, family: &str| {
            pools.iter().any(|one| one.pool.as_str() == pool && one.family.to_string() == family)
        };
        for gauge in [&self.size, &self.used] {
            for metric in gauge.collect().iter().flat_map(|family| family.get_metric()) {
                // Labels stand in the order of their names.
                let values: Vec<&str> = metric.get_label().iter().map(LabelPair::value).collect();
                if let [family, pool] = values[..]
                    && !stays(pool, family)
                {
                    // It was there a moment ago, and this is its only writer.
                    let _ = gauge.remove_label_values(&[pool, family]);
                }
            }
        }
        for PoolUse { pool, family, size, used } in pools {
            let family = family.to_string();
            let labels = [pool.as_str(), family.as_str()];
            self.size.with_label_values(&labels).set(*size);
            self.used.with_label_values(&labels).set(*used as f64);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::Family;

    #[test]
    fn a_pool_that_is_gone_has_no_series_left() {
        let registry = Registry::new("test", "test");
        let metrics = Metrics::register(&registry).expect("names are registered once");
        let of = |pool: &str, family, used| PoolUse { pool: pool.into(), family, size: 256.0, used };
        metrics.set_pools(&[of("inner", Family::V4, 3), of("inner", Family::V6, 0), of("outer", Family::V4, 1)]);
        let series = |pool: &str| registry.text().lines().filter(|line| line.contains(&format!("\"{pool}\""))).count();
        assert_eq!((series("inner"), series("outer")), (4, 2));
        metrics.set_pools(&[of("outer", Family::V4, 1)]);
        assert_eq!((series("inner"), series("outer")), (0, 2));
        metrics.set_pools(&[]);
        assert_eq!(series("outer"), 0, "another agent gives addresses now");
    }
}
