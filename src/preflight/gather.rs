//! Reads the facts of this host and of its cluster, and changes nothing.
//!
//! What the kernel would load a module for is not asked for where that module is not there: sockets of netfilter, tables of nf_tables. Failures
//! are facts, too. The API server has ten seconds for each answer and thirty for all of them; where it does not give the first, no other is asked for.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{Access as Mode, access};

use super::facts::{
    ApiFacts, AskedRight, ClusterFacts, Directory, Facts, FileFacts, FoundRoute, FoundSetting, KernelFacts,
    NetworkFacts, PacketFilterFacts, Passwords, ProcessFacts, Purpose, Trial,
};
use super::judge::{addresses, cluster, modules, packet_filter, settings};
use crate::config::{Config, RouterConfig, Source, Variant};
use crate::container_runtime;
use crate::k8s::access::{self as api, Allowed, Questions, Unknown};
use crate::k8s::client::{Access, client};
use crate::k8s::manifests::bundle;
use crate::kernel::file_system::passing;
use crate::kernel::iptables::{self, Flavour};
use crate::kernel::link::LinkKind;
use crate::kernel::listening_port::listening_ports;
use crate::kernel::module::forbidden::Forbidden;
use crate::kernel::module::{ModuleState, Modules, may_change_network, may_enter_namespaces};
use crate::kernel::nftables::{self, foreign::DroppingChains, probe};
use crate::kernel::route::{Ownership, Routes, sources_to};
use crate::kernel::sysctl::{self, Setting, Settings, WantedSetting};
use crate::kernel::{address, is_program, link, vxlan};
use crate::model::Node;
use crate::net::{AddressDetection, Family, PerFamily};
use crate::observe::local_socket;
use crate::router::host_files::{is_older_form, link_to_nothing, preferred};
use crate::router::linux::learned_routes;
use crate::router::names::PROTOCOL;
use crate::router::neighbour_limit;

/// Reads everything, in the network namespace of the calling thread.
pub fn gather(config: &Config, answers: Duration) -> Facts {
    let found = Modules::of_host();
    let kernel = kernel(&found);
    let packet_filter = packet_filter(&kernel, config);
    let network = network(config);
    let facts = Facts {
        kernel,
        process: process(config),
        packet_filter,
        files: files(config),
        cluster: cluster(config, &network, answers),
        network,
    };
    with_settings(facts, config)
}

fn kernel(found: &Modules) -> KernelFacts {
    let names = rustix::system::uname();
    // Some kernels tell their distribution by the compiler alone.
    let version = fs::read_to_string("/proc/version").ok();
    KernelFacts {
        release: names.release().to_string_lossy().into_owned(),
        version: version.unwrap_or_else(|| names.version().to_string_lossy().into_owned()),
        modules: modules::all().map(|name| (name, found.state(name))).collect(),
        cannot_load: found.obstacle(),
        is_sealed: has_no_modules()
            || fs::read_to_string("/proc/sys/kernel/modules_disabled").is_ok_and(|value| value.trim() == "1"),
        forbidden: Forbidden::of_host(),
        settings: BTreeMap::new(),
        replaced_for_devices: BTreeSet::new(),
    }
}

/// Returns whether the kernel was built without modules, and so loads none.
fn has_no_modules() -> bool {
    !Path::new("/proc/modules").exists()
}

/// Which settings there are to ask for depends on the links that carry the node's addresses.
fn with_settings(mut facts: Facts, config: &Config) -> Facts {
    let links = addresses::links_of_node(&facts, config);
    let written = settings::written(config, &facts.kernel.release, links.clone());
    let asked = settings::asked(config, &facts.kernel.release, links);
    facts.kernel.settings =
        asked.into_iter().filter_map(|setting| Some((setting.clone(), found_setting(&setting)?))).collect();
    facts.kernel.replaced_for_devices = replaced_for_devices(written);
    facts
}

/// Returns those of the settings of all devices that the agent would give a value, for what they have or for what a device has.
fn replaced_for_devices(written: BTreeMap<Setting, WantedSetting>) -> BTreeSet<Setting> {
    let of_devices = written.into_iter().filter(|(_, wanted)| matches!(wanted, WantedSetting::InsteadOfAny { .. }));
    Settings::new(of_devices).wanted().into_keys().collect()
}

fn found_setting(setting: &Setting) -> Option<FoundSetting> {
    let value = sysctl::value(setting)?.into_string();
    let unwritable = access(sysctl::root().join(&*setting.0), Mode::WRITE_OK).err().map(|errno| errno.to_string());
    Some(FoundSetting { value, unwritable })
}

fn process(config: &Config) -> ProcessFacts {
    ProcessFacts {
        is_root: rustix::process::geteuid().is_root(),
        may_change_network: may_change_network(),
        may_enter_namespaces: may_enter_namespaces(),
        programs: packet_filter::PROGRAMS.into_iter().filter(|name| is_program(name)).collect(),
        agent_answers: config.socket.as_deref().is_some_and(local_socket::is_listened_on),
    }
}

fn packet_filter(kernel: &KernelFacts, config: &Config) -> PacketFilterFacts {
    let is_there = |name: &str| kernel.modules.get(name) == Some(&ModuleState::Present);
    let is_fixed = has_no_modules();
    let has_tables = is_fixed || is_there("nf_tables");
    let may_be_tried = || {
        let folded = modules::FOLDED.into_iter().all(|(name, since)| {
            modules::is_loaded_or_folded(kernel.modules.get(name).copied(), &kernel.release, since)
        });
        folded && probe::MODULES.into_iter().chain(["nfnetlink_log"]).all(is_there)
    };
    let nftables = match is_fixed || may_be_tried() {
        true => probe::check().map_or_else(|missing| Trial::Refused(missing.to_string()), |()| Trial::Works),
        false => Trial::NotTried,
    };
    let nf_tables = match modules::has_table(Variant::NfTables, kernel, config) {
        _ if has_tables => ModuleState::Present,
        Ok(()) => ModuleState::OnDisk,
        Err(_) => ModuleState::Missing,
    };
    let variant = iptables::used_without_loading(nf_tables).map(|flavour| match flavour {
        Flavour::NfTables => Variant::NfTables,
        Flavour::Legacy => Variant::Legacy,
    });
    let mut facts = PacketFilterFacts {
        nftables,
        variant,
        has_unreadable_tables: iptables::has_unreadable_tables(),
        dropping: Vec::new(),
        tables: BTreeSet::new(),
        chains: iptables::legacy_chains(),
        unread: None,
    };
    // Without nf_tables there are no chains in them.
    if has_tables {
        match (DroppingChains::default().read(), nftables::chain_names()) {
            (Ok(dropping), Ok(names)) => {
                facts.dropping = dropping;
                facts.tables = names.tables;
                facts.chains.extend(names.chains);
            }
            (Err(error), _) | (_, Err(error)) => facts.unread = Some(error.to_string()),
        }
    }
    facts
}

fn network(config: &Config) -> NetworkFacts {
    let mut unread = Vec::new();
    let mut facts = NetworkFacts::default();
    match address::host_addresses() {
        Ok(addresses) => facts.addresses = addresses,
        Err(error) => unread.push(error.to_string()),
    }
    let targets = config.node_address.as_ref().map(AddressDetection::targets).unwrap_or_default();
    match sources_to(targets, PROTOCOL) {
        Ok(sources) => facts.sources = sources,
        Err(error) => unread.push(error.to_string()),
    }
    match link::all() {
        Ok(devices) => {
            let is_pair = |device: &&link::Device| device.kind == LinkKind::Other("veth".into());
            facts.pairs = devices.iter().filter(is_pair).map(|device| device.name.0.to_string()).collect();
            facts.links = devices.into_iter().map(|device| device.name.0.to_string()).collect();
        }
        Err(error) => unread.push(error.to_string()),
    }
    match vxlan::all() {
        Ok(devices) => facts.vxlan = devices.into_iter().map(|(name, device)| (name.0.to_string(), device)).collect(),
        Err(error) => unread.push(error.to_string()),
    }
    let routes = Routes::open(Ownership::Protocols(learned_routes().to_vec()));
    match routes.and_then(|mut routes| routes.read_beside(&|to| to.prefix_len() > 0)) {
        Ok((_, foreign)) => {
            let of_others = foreign
                .into_iter()
                .filter(|route| !route.next_hops.iter().any(|hop| addresses::is_own_link(&hop.link.0)));
            let found = of_others.map(|route| FoundRoute {
                to: route.key.destination,
                links: route.next_hops.iter().map(|hop| hop.link.0.to_string()).collect(),
                text: route.to_string(),
            });
            facts.routes = found.collect();
        }
        Err(error) => unread.push(error.to_string()),
    }
    let listening = listening_ports();
    let sockets = config.socket.as_deref().map(local_socket::sockets_of_listener).unwrap_or_default();
    let of_agent = listening.iter().filter(|one| sockets.contains(&one.inode));
    facts.of_agent = (!sockets.is_empty()).then(|| of_agent.map(|one| (one.transport, one.at)).collect());
    facts.listening = listening.into_iter().map(|one| (one.transport, one.at)).collect();
    facts.binds_elsewhere = PerFamily::from_fn(|family| {
        let name = match family {
            Family::V4 => "net/ipv4/ip_nonlocal_bind",
            Family::V6 => "net/ipv6/ip_nonlocal_bind",
        };
        fs::read_to_string(sysctl::root().join(name)).is_ok_and(|value| value.trim() == "1")
    });
    let listed = fs::read_to_string("/proc/thread-self/net/ip_vs").unwrap_or_default();
    let is_service = |line: &&str| ["TCP ", "UDP ", "SCTP ", "FWM "].iter().any(|begin| line.starts_with(begin));
    facts.virtual_services = listed.lines().filter(is_service).count();
    facts.processes = processes();
    facts.unread = unread;
    facts
}

/// Names of the processes that are seen, without this one's, which in the image is kube-router's.
fn processes() -> BTreeSet<String> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let own = std::process::id().to_string();
    let is_other = |name: &str| name.starts_with(|c: char| c.is_ascii_digit()) && name != own;
    let running = entries.filter(|entry| is_other(&entry.file_name().to_string_lossy()));
    running
        .filter_map(|entry| Some(fs::read_to_string(entry.path().join("comm")).ok()?.trim_end().to_owned()))
        .collect()
}

fn files(config: &Config) -> FileFacts {
    let cni_file = config.router.as_ref().and_then(|router| router.cni_file.as_deref());
    let sockets = config.socket.as_deref().and_then(Path::parent);
    let directories = [
        (Purpose::State, config.state_dir.as_deref()),
        (Purpose::Sockets, sockets),
        (Purpose::Cni, cni_file.and_then(Path::parent)),
    ];
    let of = |(purpose, path): (Purpose, Option<&Path>)| {
        let path = path?;
        Some(Directory { purpose, path: path.to_owned(), obstacle: obstacle(path), passing: passing(path) })
    };
    let preferred_cni_file = cni_file.and_then(preferred);
    let is_socket = |path: &Path| fs::metadata(path).is_ok_and(|found| found.file_type().is_socket());
    FileFacts {
        directories: directories.into_iter().filter_map(of).collect(),
        cni_text: cni_file.and_then(cni_text),
        is_older_form: cni_file
            .zip(preferred_cni_file.as_deref())
            .is_some_and(|(ours, other)| is_older_form(other, ours)),
        preferred_cni_file,
        has_runtime_socket: container_runtime::sockets(config.runtime_endpoint.as_ref())
            .iter()
            .any(|path| is_socket(path)),
        unread_passwords: config.router.as_ref().map(unread_passwords).unwrap_or_default(),
    }
}

/// Returns the text of a CNI file, `None` where there is none, or why it cannot be read. The agent makes one where there is none, but not
/// where a link leads to none.
fn cni_text(path: &Path) -> Option<Result<String, String>> {
    let error = match fs::read_to_string(path) {
        Ok(text) => return Some(Ok(text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => link_to_nothing(path, &error)?,
        Err(error) => error,
    };
    Some(Err(error.to_string()))
}

fn unread_passwords(config: &RouterConfig) -> Vec<(Passwords, String)> {
    let file = |path: &PathBuf| fs::read(path).map(drop).err();
    let directory = |path: &PathBuf| fs::read_dir(path).map(drop).err();
    let errors = [
        (Passwords::Peers, config.passwords_file.as_ref().and_then(file)),
        (Passwords::PeersInDirectory, config.passwords_dir.as_ref().and_then(directory)),
        (Passwords::Nodes, config.mesh_password_file.as_ref().and_then(file)),
    ];
    errors.into_iter().filter_map(|(which, error)| Some((which, error?.to_string()))).collect()
}

/// Returns why a directory cannot be written, or made where it does not exist.
fn obstacle(path: &Path) -> Option<String> {
    match fs::metadata(path) {
        Ok(found) if !found.is_dir() => Some(format!("{} is no directory", path.display())),
        Ok(_) => access(path, Mode::WRITE_OK | Mode::EXEC_OK).err().map(|errno| errno.to_string()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => obstacle(path.parent()?),
        Err(error) => Some(error.to_string()),
    }
}

fn cluster(config: &Config, network: &NetworkFacts, answers: Duration) -> ClusterFacts {
    let (kubeconfig, master) = match &config.source {
        Source::Manifests(path) => {
            let cannot =
                |error| format!("--manifests must be a directory that can be read; {} cannot: {error}", path.display());
            let found = match path.is_file() {
                true => bundle::about(path).map(drop),
                false => fs::read_dir(path).map(drop).map_err(cannot),
            };
            return ClusterFacts::Manifests(found.map(|()| path.clone()));
        }
        Source::Api { kubeconfig, master } => (kubeconfig.clone(), master.clone()),
    };
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return ClusterFacts::NoAccess(error.to_string()),
    };
    let facts = runtime.block_on(async {
        let client = match client(&Access { kubeconfig, master }).await {
            Ok(client) => client,
            Err(error) => return ClusterFacts::NoAccess(error.to_string()),
        };
        let asked = Questions::new(client, answers);
        match api::version(&asked).await {
            Ok(version) => ClusterFacts::Answered(Box::new(of_api(&asked, Some(version), config, network).await)),
            // The agent does not read it; who may read nothing at all has no credentials.
            Err(Unknown::Forbidden(reason)) => match of_api(&asked, None, config, network).await {
                api if api.tells_nothing() => ClusterFacts::Unanswered(Unknown::Refused(reason)),
                api => ClusterFacts::Answered(Box::new(api)),
            },
            Err(unknown) => ClusterFacts::Unanswered(unknown),
        }
    });
    // A name that is still being looked up is not waited for.
    runtime.shutdown_background();
    facts
}

async fn of_api(client: &Questions, version: Option<String>, config: &Config, network: &NetworkFacts) -> ApiFacts {
    let said = api::node_named(client, &config.node_name).await;
    let believed = |node: &Node| Arc::new(node.clone()).as_believed(&config.node_name, &config.node_annotations);
    let node = said.as_ref().map(|node| Arc::unwrap_or_clone(believed(node))).map_err(Clone::clone);
    let unbelieved = match (said, &node) {
        (Ok(said), Ok(believed)) => said.pod_cidrs_beyond(believed),
        _ => Vec::new(),
    };
    let needed = cluster::rights(config, node.as_ref().ok());
    let rights: Vec<api::Right> = needed.iter().map(|need| need.right.clone()).collect();
    let answers = api::review(client, &rights).await;
    let mut asked = Vec::with_capacity(rights.len());
    for ((right, allowed), need) in rights.into_iter().zip(answers).zip(needed) {
        let is_served = match need.may_be_absent {
            Some(kind) if allowed == Allowed::No => api::has(client, kind).await,
            _ => true,
        };
        asked.push(AskedRight { right, allowed, is_served });
    }
    let limits = neighbour_limit::limits();
    let limits = PerFamily::from_fn(|family| limits.of(family).filter(|_| *config.families.of(family)));
    let may_be_crowded = |node: &Node| addresses::may_be_crowded(network, node, limits);
    let asks_for_nodes = config.router.is_some() && node.as_ref().is_ok_and(may_be_crowded);
    ApiFacts {
        version,
        node,
        unbelieved,
        rights: asked,
        own_cluster_ips: api::own_cluster_ips(client).await,
        service_ranges: api::service_ranges(client).await,
        // Last, because it may take long.
        nodes: match asks_for_nodes {
            true => api::node_addresses(client).await,
            false => Ok(Vec::new()),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_setting_of_all_devices_counts_for_what_any_device_has() {
        let setting = |device: &str| Setting(format!("net/ipv4/conf/{device}/rp_filter").into());
        let value = |device: &str| sysctl::value(&setting(device)).map(|value| value.to_string());
        let devices = fs::read_dir(sysctl::root().join("net/ipv4/conf")).expect("settings of devices");
        let names = devices.map(|device| device.expect("a device").file_name().to_string_lossy().into_owned());
        let of_devices: Vec<String> = names.filter(|name| name != "all").filter_map(|name| value(&name)).collect();
        let of_all = value("all").expect("every kernel has it");
        for old in ["0", "1", "2"] {
            let rule = WantedSetting::InsteadOfAny { old: old.into(), new: "none has this".into() };
            let expected = of_all == old || of_all == "0" && of_devices.iter().any(|found| found == old);
            let found = replaced_for_devices(BTreeMap::from([(setting("all"), rule)]));
            assert_eq!(found.contains(&setting("all")), expected, "{old}: {of_all}, {of_devices:?}");
        }
        let of_one = WantedSetting::Always("1".into());
        assert!(replaced_for_devices(BTreeMap::from([(setting("all"), of_one)])).is_empty());
    }

    #[test]
    fn a_directory_that_is_not_there_is_as_good_as_the_one_above_it() {
        let directory = tempfile::tempdir().expect("a directory");
        assert_eq!(obstacle(&directory.path().join("run/sluice")), None);
        fs::write(directory.path().join("file"), "").expect("writable");
        assert!(obstacle(&directory.path().join("file/sluice")).is_some());
    }

    #[test]
    fn a_cni_file_that_is_a_link_to_nothing_cannot_be_read_where_one_that_is_not_there_is_none() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("10-kuberouter.conflist");
        assert_eq!(cni_text(&path), None);
        std::os::unix::fs::symlink("managed/cni.json", &path).expect("writable");
        let reason = cni_text(&path).expect("a link is there").expect_err("its target is not");
        let told = "it is a link to managed/cni.json, which is not there, or not mounted here";
        assert!(reason.starts_with(told), "{reason}");
        fs::create_dir(directory.path().join("managed")).expect("writable");
        fs::write(directory.path().join("managed/cni.json"), "{}").expect("writable");
        assert_eq!(cni_text(&path), Some(Ok("{}".to_owned())));
    }
}
