//! Kernel modules: which the subsystems that run need, and how far each is from being there.

use super::{Chosen, packet_filter};
use crate::config::{Backend, Config, Variant};
use crate::distribution::RunningKernel;
use crate::firewall;
use crate::kernel::module::ModuleState;
use crate::kernel::module::forbidden::Rule;
use crate::kernel::nftables::probe;
use crate::kernel::pod_tunnel;
use crate::net::{Family, PerFamily};
use crate::preflight::facts::{Facts, KernelFacts};
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
const NO_RULES: &str = "rules that iptables writes for services and policies need it: the kernel refuses them without";
const NO_RULES_OF_ROUTER: &str =
    "rules that iptables writes for traffic between pods and the outside need it: the kernel refuses them without";
const NO_MASQUERADING: &str =
    "rules by which packets leave with this node's address need it: the kernel refuses them without";
const NO_RULES_OF_TUNNELS: &str =
    "rules that iptables writes for direct server return need it: the kernel refuses them without";
const UNLOGGED: &str = "rules by which refused packets are logged need it: policies hold without, and nothing says which packets they refuse";

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

/// Modules that rules of every subsystem need with either variant of iptables.
const OF_IPTABLES: [&str; 4] = ["ip_set", "ip_set_hash_ip", "xt_set", "xt_comment"];
const OF_PROXY: [&str; 6] =
    ["ip_set_hash_ipport", "ip_set_hash_ipportnet", "xt_addrtype", "xt_conntrack", "xt_ipvs", "xt_nat"];
const OF_FIREWALL: [&str; 6] =
    ["ip_set_hash_ipport", "ip_set_hash_net", "xt_addrtype", "xt_conntrack", "xt_mark", "xt_multiport"];
const OF_ROUTER: [&str; 2] = ["ip_set_hash_net", "xt_conntrack"];
/// Of packets for endpoints in tunnel mode.
const OF_TUNNELS: [&str; 3] = ["xt_TCPMSS", "xt_mark", "xt_multiport"];
const OF_LOG: [&str; 2] = ["xt_NFLOG", "xt_limit"];
const REJECTION: PerFamily<&str> = PerFamily { v4: "ipt_REJECT", v6: "ip6t_REJECT" };
const CONNECTION_MARK: &str = "xt_connmark";
const MASQUERADING: &str = "xt_MASQUERADE";
/// Modules that had another name in earlier kernels, or whose work programs of the variant nft give to one of nf_tables, by their release: with that name.
const OTHER_NAMES: [(&str, &str); 4] = [
    (MASQUERADING, "ipt_MASQUERADE"),
    (MASQUERADING, "ip6t_MASQUERADE"),
    ("xt_NFLOG", "nft_log"),
    ("xt_limit", "nft_limit"),
];
/// The modules that nobody loads but the agent: the kernel is never asked for them by name, as it is for families of netlink and kinds of devices.
const AGENTS_ALONE: [&str; 1] = ["br_netfilter"];
/// The module of either variant of iptables with which its programs print and take an empty table.
const NF_TABLES: [&str; 1] = ["nf_tables"];
const LEGACY_TABLE: PerFamily<[&str; 2]> =
    PerFamily { v4: ["ip_tables", "iptable_filter"], v6: ["ip6_tables", "ip6table_filter"] };
/// Modules of legacy iptables, which has programs of its own for each address family.
const OF_LEGACY: PerFamily<[&str; 4]> = PerFamily {
    v4: ["ip_tables", "iptable_filter", "iptable_nat", "iptable_mangle"],
    v6: ["ip6_tables", "ip6table_filter", "ip6table_nat", "ip6table_mangle"],
};

/// Returns the modules that iptables and ipset need for rules of ours.
pub fn of_iptables(config: &Config, variant: Option<Variant>) -> Vec<Need> {
    let mut needs = Vec::new();
    let mut need = |level, why, modules: &[&'static str]| {
        needs.extend(modules.iter().map(|module| Need { module, level, why }));
    };
    let families = families(config);
    let rejections: Vec<&'static str> = families.iter().map(|family| *REJECTION.of(*family)).collect();
    let level = level_of_filter(config);
    let why = if level == Level::Fatal { NO_RULES } else { NO_RULES_OF_ROUTER };
    need(level, why, &OF_IPTABLES);
    match variant {
        Some(Variant::Legacy) => families.iter().for_each(|family| need(level, why, OF_LEGACY.of(*family))),
        Some(Variant::NfTables) | None => need(level, why, &["nf_tables", "nft_compat"]),
    }
    if let Some(proxy) = &config.proxy {
        need(Level::Fatal, NO_RULES, &OF_PROXY);
        if proxy.guard {
            need(Level::Fatal, NO_RULES, &rejections);
        }
        // For as long as no address of the Node is known to be one of this host.
        need(Level::Degraded, NO_MASQUERADING, &[MASQUERADING]);
        if config.serves_through_tunnels() {
            need(Level::Degraded, NO_RULES_OF_TUNNELS, &OF_TUNNELS);
        }
    }
    if let Some(firewall) = &config.firewall {
        need(Level::Fatal, NO_RULES, &OF_FIREWALL);
        need(Level::Fatal, NO_RULES, &rejections);
        if firewall.flush_established {
            need(Level::Fatal, NO_RULES, &[CONNECTION_MARK]);
        }
        need(Level::Degraded, UNLOGGED, &OF_LOG);
    }
    if let Some(router) = &config.router {
        need(Level::Degraded, NO_RULES_OF_ROUTER, &OF_ROUTER);
        if router.pod_egress {
            need(Level::Degraded, NO_MASQUERADING, &[MASQUERADING]);
        }
    }
    needs
}

/// Returns whether the programs of a variant print and take a table on this kernel, which is all that the agent tries of them: with legacy iptables, those of a family that is on.
///
/// # Errors
/// They do not; which modules do not come and why, for the middle of a sentence.
pub fn has_table(variant: Variant, found: &KernelFacts, config: &Config) -> Result<(), String> {
    match variant {
        Variant::NfTables => come(NF_TABLES, found, config),
        Variant::Legacy => {
            let tried = families(config).into_iter().map(|family| come(*LEGACY_TABLE.of(family), found, config));
            tried.reduce(Result::or).unwrap_or(Ok(()))
        }
    }
}

/// The families that are on.
fn families(config: &Config) -> Vec<Family> {
    config.families.iter().filter(|(_, is_on)| **is_on).map(|(family, _)| family).collect()
}

/// How bad it is where rules cannot be written.
pub fn level_of_filter(config: &Config) -> Level {
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
        "nft_compat",
        "nfnetlink_log",
        CONNECTION_MARK,
        REJECTION.v4,
        REJECTION.v6,
    ];
    fixed
        .into_iter()
        .chain(OF_IPTABLES)
        .chain(OF_PROXY)
        .chain(OF_FIREWALL)
        .chain(OF_ROUTER)
        .chain(OF_TUNNELS)
        .chain(OF_LOG)
        .chain(OTHER_NAMES.into_iter().flat_map(|(name, other)| [name, other]))
        .chain(OF_LEGACY.v4)
        .chain(OF_LEGACY.v6)
        .chain(probe::MODULES)
        .chain(FOLDED.map(|(name, _)| name))
}

/// Why a module does not come to be there, however often it is asked for.
#[derive(Clone, Copy)]
enum Obstacle<'a> {
    /// The kernel has it in no form.
    Missing,
    /// Nobody can load any.
    Sealed,
    /// This line of the host keeps everybody who would load it from doing so.
    Forbidden(&'a Rule),
    /// The agent has to load it, and cannot for this reason.
    Unloadable(&'a str),
}

/// Returns why a module does not come to be there; `None` for one that is there or comes, or of which nothing is known.
///
/// Most come when the kernel is asked for what they do, by the host's own modprobe, and what the host forbids is not loaded then. The agent of an image, which
/// loads some itself, has a modprobe that does not know what the host forbids.
fn obstacle<'a>(module: &str, found: &'a KernelFacts, config: &Config) -> Option<Obstacle<'a>> {
    match state(found, module) {
        ModuleState::Present | ModuleState::Unknown => return None,
        ModuleState::Missing => return Some(Obstacle::Missing),
        ModuleState::OnDisk if found.is_sealed => return Some(Obstacle::Sealed),
        ModuleState::OnDisk => {}
    }
    match (found.forbidden.of(module), &found.cannot_load) {
        (Some(_), None) if loaded_at_start(config).contains(&module) && !found.forbidden.is_ours => None,
        (Some(rule), _) => Some(Obstacle::Forbidden(rule)),
        (None, Some(reason)) if AGENTS_ALONE.contains(&module) => Some(Obstacle::Unloadable(reason)),
        (None, _) => None,
    }
}

impl Obstacle<'_> {
    /// State of such a module, as a sentence without its end.
    fn what(self, found: &KernelFacts) -> String {
        match self {
            Obstacle::Missing => {
                format!("this kernel, {}, has it neither compiled in nor as a module", found.release)
            }
            Obstacle::Sealed => format!("it is on the disk and not loaded, and nobody can load it: {}", sealed(found)),
            Obstacle::Forbidden(rule) => forbidden_by(rule),
            Obstacle::Unloadable(reason) => {
                format!("it is on the disk and not loaded, and the agent, which has to load it, cannot: {reason}")
            }
        }
    }

    /// Remedy.
    fn todo(self, module: &str, kernel: &RunningKernel) -> String {
        match self {
            Obstacle::Missing => kernel.source_of_module(module),
            Obstacle::Sealed => kernel.way_to_load_at_boot(module),
            Obstacle::Forbidden(_) => "take that line away".to_owned(),
            Obstacle::Unloadable(_) => kernel.way_to_load(module),
        }
    }
}

fn sealed(found: &KernelFacts) -> &str {
    found.cannot_load.as_deref().unwrap_or("loading modules is switched off")
}

fn forbidden_by(rule: &Rule) -> String {
    format!("it is not loaded, and {} forbids it ({})", rule.file.display(), rule.line)
}

fn state(found: &KernelFacts, module: &str) -> ModuleState {
    found.modules.get(module).copied().unwrap_or(ModuleState::Unknown)
}

/// Returns whether all of these modules are there, or come when they are asked for. Of one of which nothing is known it is assumed.
///
/// # Errors
/// Some do not; which and why, for the middle of a sentence.
pub fn come(names: impl IntoIterator<Item = &'static str>, found: &KernelFacts, config: &Config) -> Result<(), String> {
    let (mut missing, mut on_disk, mut others) = (Vec::new(), Vec::new(), Vec::new());
    for name in names {
        match obstacle(name, found, config) {
            None => {}
            Some(Obstacle::Missing) => missing.push(name),
            Some(Obstacle::Sealed) => on_disk.push(name),
            Some(Obstacle::Forbidden(rule)) => {
                others.push(format!("{} forbids {name} ({})", rule.file.display(), rule.line));
            }
            Some(Obstacle::Unloadable(reason)) => others.push(format!("the agent cannot load {name}: {reason}")),
        }
    }
    let missing = (!missing.is_empty()).then(|| format!("it lacks the modules {}", missing.join(", ")));
    let on_disk =
        (!on_disk.is_empty()).then(|| format!("nobody can load the modules {}: {}", on_disk.join(", "), sealed(found)));
    let reasons: Vec<String> = missing.into_iter().chain(on_disk).chain(others).collect();
    if reasons.is_empty() { Ok(()) } else { Err(reasons.join("; ")) }
}

/// Returns how the first of these modules comes that the host has and that does not come by itself; `None` where there is no such one.
pub fn way(
    names: impl IntoIterator<Item = &'static str>,
    found: &KernelFacts,
    config: &Config,
    kernel: &RunningKernel,
) -> Option<String> {
    names.into_iter().find_map(|name| match obstacle(name, found, config)? {
        Obstacle::Missing => None,
        other => Some(format!("{name}: {}", other.todo(name, kernel))),
    })
}

/// Judges the modules that are needed. Those that are there share one finding, and so do those of which nothing is known.
pub fn judge(facts: &Facts, config: &Config, backend: Chosen, kernel: &RunningKernel) -> Vec<Finding> {
    let needed = needed(facts, config, backend);
    let found = &facts.kernel;
    let alone = |need: &Need| of_one(need, found, config, kernel);
    let mut findings: Vec<Finding> = needed.iter().filter_map(alone).collect();
    let of = |wanted| needed.iter().filter(move |need| state(found, need.module) == wanted);
    let names = |needs: Vec<&Need>| needs.iter().map(|need| need.module).collect::<Vec<_>>().join(", ");
    let unknown: Vec<&Need> = of(ModuleState::Unknown).collect();
    if !unknown.is_empty() {
        let what = format!("nothing says whether this kernel has {}", names(unknown));
        let why = found.cannot_load.clone().unwrap_or_else(|| "the list of what is compiled in is missing".to_owned());
        let todo =
            "mount the host's /lib/modules, as the manifests do; on a kernel without modules see /proc/config.gz"
                .to_owned();
        findings.push(Finding::bad(Level::Degraded, "kernel modules", [what, why, todo]));
    }
    let loaded: Vec<&Need> = of(ModuleState::Present).collect();
    let on_disk: Vec<&Need> = of(ModuleState::OnDisk).filter(|need| alone(need).is_none()).collect();
    let there =
        [(loaded, "loaded or compiled in"), (on_disk, "not loaded; modprobe finds them, and the agent loads them")];
    for (needs, words) in there.into_iter().filter(|(needs, _)| !needs.is_empty()) {
        findings.push(Finding::ok("kernel modules", format!("{words}: {}", names(needs))));
    }
    findings
}

/// Returns the modules that are needed, each once, as bad as it is for who needs it most.
fn needed(facts: &Facts, config: &Config, backend: Chosen) -> Vec<Need> {
    let mut needs = needs(config);
    if backend == Some(Backend::Iptables) && super::filters(config) {
        needs.extend(of_iptables(config, packet_filter::variant(facts, config)));
    }
    let mut by_name: Vec<Need> = Vec::new();
    for need in needs {
        let need = Need { module: name_in(&facts.kernel, need.module), ..need };
        match by_name.iter_mut().find(|known| known.module == need.module) {
            Some(known) if known.level < need.level => *known = need,
            Some(_) => {}
            None => by_name.push(need),
        }
    }
    by_name
}

/// Returns the name that this kernel has a module by: another one where it has that, and not the usual one.
fn name_in(found: &KernelFacts, module: &'static str) -> &'static str {
    let has = |name: &str| matches!(state(found, name), ModuleState::Present | ModuleState::OnDisk);
    let other = OTHER_NAMES.into_iter().find(|(name, other)| *name == module && !has(name) && has(other));
    other.map_or(module, |(_, other)| other)
}

/// Returns the finding about one module by itself; `None` for one that is there or comes, or of which nothing is known.
fn of_one(need: &Need, found: &KernelFacts, config: &Config, kernel: &RunningKernel) -> Option<Finding> {
    let module = need.module;
    let subject = format!("kernel module {module}");
    if let Some(obstacle) = obstacle(module, found, config) {
        let sentences = [obstacle.what(found), need.why.to_owned(), obstacle.todo(module, kernel)];
        return Some(Finding::bad(need.level, subject, sentences));
    }
    if state(found, module) != ModuleState::OnDisk {
        return None;
    }
    if let Some(rule) = found.forbidden.of(module) {
        return Some(Finding::ok(subject, format!("{}; the agent loads it all the same", forbidden_by(rule))));
    }
    // The kernel itself loads it when it is asked for what it does, where the host's modprobe can: so it is never worse than degraded.
    let cannot = found.cannot_load.as_ref()?;
    let what = format!("it is on the disk and not loaded, and the agent cannot load it: {cannot}");
    Some(Finding::bad(Level::Degraded, subject, [what, need.why.to_owned(), kernel.way_to_load(module)]))
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
