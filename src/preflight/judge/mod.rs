//! Findings, from facts and configuration alone: one file for each group of things that a start depends on.

pub mod addresses;
pub mod cluster;
pub mod files;
pub mod modules;
pub mod others;
pub mod packet_filter;
pub mod ports;
pub mod settings;

#[cfg(test)]
mod tests;

use super::Finding;
use super::facts::Facts;
use crate::config::{Backend, Config};
use crate::distribution::RunningKernel;

/// Returns all findings, in the order in which a start meets them.
pub fn judge(facts: &Facts, config: &Config) -> Vec<Finding> {
    let kernel = RunningKernel::new(&facts.kernel.release, &facts.kernel.version);
    let (backend, chosen) = packet_filter::choice(facts, config, &kernel);
    let mut findings = files::process(facts);
    findings.push(Finding::ok("kernel", format!("{}, {}", facts.kernel.release, kernel.distribution)));
    findings.extend(modules::judge(facts, config, backend, &kernel));
    findings.extend(chosen);
    findings.extend(packet_filter::rules_of_others(facts, config, backend));
    findings.extend(settings::judge(facts, config));
    findings.extend(others::judge(facts, config));
    findings.extend(addresses::judge(facts, config));
    findings.extend(ports::judge(facts, config));
    findings.extend(files::judge(facts, config));
    findings.extend(cluster::judge(facts, config));
    findings
}

/// Returns whether a subsystem with rules in the packet filter runs.
fn filters(config: &Config) -> bool {
    config.proxy.is_some() || config.firewall.is_some() || config.router.is_some()
}

/// The backend of the packet filter; `None` where none can be used.
type Chosen = Option<Backend>;
