//! Kernel modules: which the subsystems that run need, and how far each is from being there.

use super::Chosen;
use crate::config::{Backend, Config, Variant};
use crate::distribution::RunningKernel;
use crate::firewall;
use crate::kernel::module::ModuleState;
use crate::kernel::nftables::probe;
use crate::kernel::pod_tunnel;
use crate::net::PerFamily;
use crate::preflight::facts::Facts;
use crate::preflight::{Finding, Level};
use crate::proxy;
use crate::proxy::settings::kernel_version;
use crate::router;

/// A module that is needed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Need {
    pub module: &'static str,
    /// How bad it is where it is missing.
    pub level: Level,
    /// Consequence of that.
    pub why: &'static str,
}

const NO_SERVICES: &str = "the service proxy makes virtual services of IPVS: without it no Service is served";
const NO_DEVICE: &str = "service addresses are routes of the device kube-dummy-if: without it no Service is served";
const UNSEEN: &str = "packets between pods of one bridge meet no rule without it: no policy holds between them, and they do not reach Services";
const NO_BRIDGE: &str = "pods are attached to kube-bridge: without it no pod has a network";
const NO_PAIRS: &str = "pods are attached by veth pairs: without it no pod has a network";
const NO_TUNNELS: &str = "pods of nodes in other subnets are reached through tunnels of this kind";
const NO_POD_TUNNELS: &str = "direct server return ends in tunnels of this kind inside pods";
const NO_TABLES: &str = "rules for services and policies are in nf_tables and need it: the kernel refuses them without";
const NO_RULES: &str = "rules that iptables writes for services and policies need it: the kernel refuses them without";

/// Returns the modules that these subsystems need, whatever the packet filter is.
pub fn needs(config: &Config) -> Vec<Need> {
    let mut needs = Vec::new();
    let mut need = |level, why, modules: &[&'static str]| {
        needs.extend(modules.iter().map(|module| Need { module, level, why }));
    };
    if config.proxy.is_some() {
        need(Level::Fatal, NO_SERVICES, &["ip_vs", "ip_vs_rr"]);
        need(Level::Fatal, NO_DEVICE, &["dummy"]);
    }
    if config.proxy.is_some() || config.firewall.is_some() || config.router.is_some() {
        need(Level::Degraded, UNSEEN, &["br_netfilter"]);
    }
    if let Some(router) = &config.router {
        need(Level::Fatal, NO_BRIDGE, &["bridge"]);
        need(Level::Degraded, NO_PAIRS, &["veth"]);
        if let Some(overlay) = router.overlay {
            for (family, _) in config.families.iter().filter(|(_, is_on)| **is_on) {
                for kind in overlay.kinds() {
                    need(Level::Degraded, NO_TUNNELS, kind.modules(family));
                }
            }
        }
    }
    if config.serves_through_tunnels() && config.proxy.is_some() {
        need(Level::Degraded, NO_POD_TUNNELS, &["ipip", "ip6_tunnel"]);
    }
    needs
}

/// Modules that rules of ours need with either variant of iptables.
const OF_IPTABLES: [&str; 9] = [
    "ip_set",
    "ip_set_hash_ip",
    "ip_set_hash_net",
    "ip_set_hash_ipport",
    "xt_set",
    "xt_comment",
    "xt_conntrack",
    "xt_mark",
    "xt_addrtype",
];
/// Modules of legacy iptables, which has programs of its own for each address family.
const OF_LEGACY: PerFamily<[&str; 4]> = PerFamily {
    v4: ["ip_tables", "iptable_filter", "iptable_nat", "iptable_mangle"],
    v6: ["ip6_tables", "ip6table_filter", "ip6table_nat", "ip6table_mangle"],
};

/// Returns the modules that iptables and ipset need for rules of ours.
pub fn of_iptables(config: &Config, variant: Option<Variant>) -> Vec<Need> {
    let mut modules = OF_IPTABLES.to_vec();
    modules.extend(config.proxy.is_some().then_some("xt_ipvs"));
    match variant {
        Some(Variant::Legacy) => {
            let families = config.families.iter().filter(|(_, is_on)| **is_on);
            modules.extend(families.flat_map(|(family, _)| *OF_LEGACY.of(family)));
        }
        Some(Variant::NfTables) | None => modules.extend(["nf_tables", "nft_compat"]),
    }
    let level = level_of_filter(config);
    modules.into_iter().map(|module| Need { module, level, why: NO_RULES }).collect()
}

/// Returns the modules that nf_tables needs for rules of ours.
fn of_nftables(config: &Config) -> Vec<Need> {
    let level = level_of_filter(config);
    probe::MODULES.into_iter().map(|module| Need { module, level, why: NO_TABLES }).collect()
}

/// How bad it is where rules cannot be written.
fn level_of_filter(config: &Config) -> Level {
    if config.proxy.is_some() || config.firewall.is_some() { Level::Fatal } else { Level::Degraded }
}

/// Modules that a trial of nf_tables loads where they are not part of `nf_tables` itself, and the version of the kernel since which they are.
pub const FOLDED: [(&str, (u32, u32)); 2] = [("nft_counter", (5, 17)), ("nft_objref", (6, 2))];

/// Returns whether nothing would be loaded for one of these. Distributions fold them into earlier kernels, too: one that this kernel does not have as a
/// module it has in another way or not at all.
pub fn is_loaded_or_folded(state: Option<ModuleState>, release: &str, since: (u32, u32)) -> bool {
    match state {
        Some(ModuleState::Present | ModuleState::Missing) => true,
        Some(ModuleState::OnDisk) => false,
        Some(ModuleState::Unknown) | None => kernel_version(release).is_some_and(|version| version >= since),
    }
}

/// All modules whose state may be asked for.
pub fn all() -> impl Iterator<Item = &'static str> {
    let fixed = [
        "ip_vs",
        "ip_vs_rr",
        "dummy",
        "br_netfilter",
        "bridge",
        "veth",
        "ipip",
        "ip6_tunnel",
        "fou",
        "fou6",
        "vxlan",
        "wireguard",
        "xt_ipvs",
        "nft_compat",
        "nfnetlink_log",
    ];
    fixed
        .into_iter()
        .chain(OF_IPTABLES)
        .chain(OF_LEGACY.v4)
        .chain(OF_LEGACY.v6)
        .chain(probe::MODULES)
        .chain(FOLDED.map(|(name, _)| name))
}

/// Judges the modules that are needed. Those that are there share one finding, and so do those of which nothing is known.
pub fn judge(facts: &Facts, config: &Config, backend: Chosen, kernel: &RunningKernel) -> Vec<Finding> {
    let mut needs = needs(config);
    if backend == Some(Backend::Iptables) && super::filters(config) {
        needs.extend(of_iptables(config, facts.packet_filter.variant));
    }
    let mut by_name: Vec<Need> = Vec::new();
    for need in needs {
        match by_name.iter_mut().find(|known| known.module == need.module) {
            Some(known) if known.level < need.level => *known = need,
            Some(_) => {}
            None => by_name.push(need),
        }
    }
    let state = |need: &Need| facts.kernel.modules.get(need.module).copied().unwrap_or(ModuleState::Unknown);
    let of = |wanted| by_name.iter().filter(move |need| state(need) == wanted);
    let mut findings: Vec<Finding> = of(ModuleState::Missing).map(|need| missing(need, facts, kernel)).collect();
    findings.extend(of(ModuleState::OnDisk).filter_map(|need| unloadable(need, facts, kernel)));
    if facts.kernel.cannot_load.is_none() {
        let nftables = if backend == Some(Backend::Nftables) { of_nftables(config) } else { Vec::new() };
        let on_disk = by_name.iter().chain(&nftables).filter(|need| state(need) == ModuleState::OnDisk);
        findings.extend(on_disk.filter_map(|need| forbidden(need, facts, config)));
    }
    let names = |needs: Vec<&Need>| needs.iter().map(|need| need.module).collect::<Vec<_>>().join(", ");
    let unknown: Vec<&Need> = of(ModuleState::Unknown).collect();
    if !unknown.is_empty() {
        let what = format!("nothing says whether this kernel has {}", names(unknown));
        let why =
            facts.kernel.cannot_load.clone().unwrap_or_else(|| "the list of what is compiled in is missing".to_owned());
        let todo =
            "mount the host's /lib/modules, as the manifests do; on a kernel without modules see /proc/config.gz"
                .to_owned();
        findings.push(Finding::bad(Level::Degraded, "kernel modules", [what, why, todo]));
    }
    let loaded: Vec<&Need> = of(ModuleState::Present).collect();
    let is_loadable =
        |need: &&Need| facts.kernel.cannot_load.is_none() && facts.kernel.forbidden.of(need.module).is_none();
    let on_disk: Vec<&Need> = of(ModuleState::OnDisk).filter(is_loadable).collect();
    let there =
        [(loaded, "loaded or compiled in"), (on_disk, "not loaded; modprobe finds them, and the agent loads them")];
    for (needs, words) in there.into_iter().filter(|(needs, _)| !needs.is_empty()) {
        findings.push(Finding::ok("kernel modules", format!("{words}: {}", names(needs))));
    }
    findings
}

fn missing(need: &Need, facts: &Facts, kernel: &RunningKernel) -> Finding {
    let what = format!("this kernel, {}, has it neither compiled in nor as a module", facts.kernel.release);
    let subject = format!("kernel module {}", need.module);
    Finding::bad(need.level, subject, [what, need.why.to_owned(), kernel.source_of_module(need.module)])
}

/// A module that lies on the disk and cannot be loaded by the agent. The kernel itself may load it, by the host's own modprobe, when it
/// is asked for what it does, so it is never worse than degraded.
fn unloadable(need: &Need, facts: &Facts, kernel: &RunningKernel) -> Option<Finding> {
    let cannot = facts.kernel.cannot_load.as_ref()?;
    let what = format!("it is on the disk and not loaded, and the agent cannot load it: {cannot}");
    let subject = format!("kernel module {}", need.module);
    Some(Finding::bad(Level::Degraded, subject, [what, need.why.to_owned(), kernel.way_to_load(need.module)]))
}

/// A module that lies on the disk, is not loaded, and is forbidden by the host. The agent of an image has a modprobe that does not know of that;
/// where the kernel itself asks for the module, as for most, the host's modprobe answers.
fn forbidden(need: &Need, facts: &Facts, config: &Config) -> Option<Finding> {
    let rule = facts.kernel.forbidden.of(need.module)?;
    let subject = format!("kernel module {}", need.module);
    let what = format!("it is not loaded, and {} forbids it ({})", rule.file.display(), rule.line);
    if !facts.kernel.forbidden.is_ours && loaded_at_start(config).contains(&need.module) {
        return Some(Finding::ok(subject, format!("{what}; the agent loads it all the same")));
    }
    let todo = "take that line away".to_owned();
    Some(Finding::bad(need.level, subject, [what, need.why.to_owned(), todo]))
}

/// The modules that the agent loads itself. All others come when the kernel is asked for what they do.
fn loaded_at_start(config: &Config) -> Vec<&'static str> {
    let mut modules = Vec::new();
    modules.extend(config.proxy.iter().flat_map(|_| proxy::linux::MODULES));
    modules.extend(config.firewall.iter().flat_map(|_| firewall::settings::MODULES));
    modules.extend(config.router.iter().flat_map(|router| router::settings::modules(router, config.families)));
    modules.extend(config.serves_through_tunnels().then_some(pod_tunnel::MODULES).into_iter().flatten());
    modules
}
