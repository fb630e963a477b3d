//! Loading kernel modules, by `modprobe`: the only program beside `iptables-restore` and `iptables-save` that is ever started.
//!
//! Most modules come by themselves when the kernel is asked for what they do. This is for those that do not,
//! and for telling beforehand whether something, a scheduler for example, is there at all.
//!
//! Kernel: what is loaded has a directory in `/sys/module`; what is compiled in is listed in
//! `/lib/modules/RELEASE/modules.builtin`, and some of it has a directory too.

pub mod forbidden;

use std::collections::BTreeSet;
use std::panic::resume_unwind;
use std::path::Path;
use std::thread;
use std::time::Duration;

use rustix::io::Errno;

use super::program::{Call, is_program, run};
use super::{Cause, Error};
use crate::distribution::RunningKernel;

/// A module loads within milliseconds; one whose initialisation hangs would block us for ever.
const LIMIT: Duration = Duration::from_secs(20);

/// Loads those of the modules that are not there yet. Returns an error for each that cannot be loaded; the
/// others are there. In a container this needs the host's `/lib/modules`.
pub fn load(names: &[&str]) -> Vec<Error> {
    names.iter().filter(|name| !is_present(name)).filter_map(|name| load_one(name).err()).collect()
}

/// Like [`load`], while `other` runs. Returns the result of both.
pub fn load_beside<T>(names: &[&str], other: impl FnOnce() -> T) -> (Vec<Error>, T) {
    thread::scope(|scope| {
        let loading = thread::Builder::new().name("modprobe".to_owned()).spawn_scoped(scope, || load(names));
        let done = other();
        let errors = match loading {
            Ok(loading) => loading.join().unwrap_or_else(|panic| resume_unwind(panic)),
            // No thread can be had.
            Err(_) => load(names),
        };
        (errors, done)
    })
}

/// Returns whether the kernel has this module, loaded or compiled in. A module that could be loaded is not present.
pub fn is_present(name: &str) -> bool {
    let name = name.replace('-', "_");
    is_loaded(&name, Path::exists) || is_builtin(&name, &builtin_list())
}

/// Returns whether the kernel shows a module, by its directory or by settings of its own. `exists`: whether there is something at a path.
fn is_loaded(name: &str, exists: impl Fn(&Path) -> bool) -> bool {
    exists(&Path::new("/sys/module").join(name)) || settings_of(name).is_some_and(|path| exists(Path::new(path)))
}

fn settings_of(name: &str) -> Option<&'static str> {
    SETTINGS_OF.iter().find(|(module, _)| *module == name).map(|(_, path)| *path)
}

/// Modules that this host has, read once: loading one of them is not tried.
#[derive(Clone, Default, Debug)]
pub struct Modules {
    builtin: BTreeSet<String>,
    /// Those that `modprobe` finds; `None` where there is no list of them.
    on_disk: Option<BTreeSet<String>>,
    /// Modules can be loaded at all.
    is_supported: bool,
}

/// How far a module is from being there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ModuleState {
    /// Loaded or compiled in.
    Present,
    /// Not loaded; `modprobe` would find it.
    OnDisk,
    Missing,
    /// It is not loaded as a module, and nothing says whether it is compiled in.
    Unknown,
}

/// Settings that a module brings, wherever it is: where they are missing, so is the module.
const SETTINGS_OF: [(&str, &str); 2] = [("br_netfilter", "/proc/sys/net/bridge"), ("ip_vs", "/proc/sys/net/ipv4/vs")];

impl Modules {
    /// Reads which modules the host has for the running kernel.
    pub fn of_host() -> Modules {
        let on_disk = read_list("modules.dep").map(|list| names_in(&list).collect());
        let is_supported = Path::new("/proc/modules").exists();
        Modules { builtin: names_in(&builtin_list()).collect(), on_disk, is_supported }
    }

    /// Returns the state of one of them now.
    pub fn state(&self, name: &str) -> ModuleState {
        let name = name.replace('-', "_");
        self.state_of(&name, is_loaded(&name, Path::exists), settings_of(&name).is_some())
    }

    /// `tells`: one that is compiled in would have been seen as loaded.
    fn state_of(&self, name: &str, is_loaded: bool, tells: bool) -> ModuleState {
        match &self.on_disk {
            _ if is_loaded || self.builtin.contains(name) => ModuleState::Present,
            Some(found) if found.contains(name) => ModuleState::OnDisk,
            Some(_) if !self.builtin.is_empty() => ModuleState::Missing,
            _ if tells && !self.is_supported => ModuleState::Missing,
            _ => ModuleState::Unknown,
        }
    }

    /// Returns why no module can be loaded here, as a sentence without its end; `None` where nothing speaks against it.
    pub fn obstacle(&self) -> Option<String> {
        let setting = |path| std::fs::read_to_string(path).unwrap_or_default();
        let status = setting("/proc/self/status");
        if !self.is_supported {
            return Some("this kernel was built without loadable modules".to_owned());
        }
        if setting("/proc/sys/kernel/modules_disabled").trim() == "1" {
            return Some("loading modules was switched off until the next boot (kernel.modules_disabled)".to_owned());
        }
        if !has_capability(&status, CAP_SYS_MODULE) {
            return Some("this process may not load modules (CAP_SYS_MODULE)".to_owned());
        }
        if self.on_disk.is_none() {
            let release = rustix::system::uname();
            let release = release.release().to_string_lossy();
            return Some(format!("there is no /lib/modules/{release}: mount the host's /lib/modules"));
        }
        (!is_program("modprobe")).then(|| "the program modprobe (package kmod) is not installed".to_owned())
    }
}

/// Numbers of capabilities (include/uapi/linux/capability.h).
const CAP_SYS_MODULE: u32 = 16;
const CAP_NET_ADMIN: u32 = 12;
const CAP_SYS_ADMIN: u32 = 21;

/// Returns whether this process may change the network of its namespace (`CAP_NET_ADMIN`).
pub fn may_change_network() -> bool {
    has_capability(&std::fs::read_to_string("/proc/self/status").unwrap_or_default(), CAP_NET_ADMIN)
}

/// Returns whether this process may enter network namespaces of others (`CAP_SYS_ADMIN`, setns(2)).
pub fn may_enter_namespaces() -> bool {
    has_capability(&std::fs::read_to_string("/proc/self/status").unwrap_or_default(), CAP_SYS_ADMIN)
}

/// Returns whether `/proc/PID/status` has a capability among the effective ones.
fn has_capability(status: &str, capability: u32) -> bool {
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    effective.and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok()).is_some_and(|bits| bits >> capability & 1 == 1)
}

fn load_one(name: &str) -> Result<(), Error> {
    let call = Call { program: "modprobe", arguments: &["--", name], input: b"", limit: LIMIT };
    match run(call) {
        Ok(_) => Ok(()),
        // Several of us may load it at the same moment, and some kernels have it without saying so.
        Err(_) if is_present(name) => Ok(()),
        Err(fault) => {
            let failed = fault.of("load kernel module", name, "modprobe");
            let words = match failed.cause {
                Cause::Program(words) => words,
                _ => failed.to_string(),
            };
            Err(Error::new(failed.operation, name, Cause::Program(format!("{words}; {}", remedy(name)))))
        }
    }
}

/// Returns how this host gets a module that is not there, for the end of a sentence: the package of its distribution, or how it is loaded.
pub fn remedy(name: &str) -> String {
    let modules = Modules::of_host();
    let kernel = rustix::system::uname();
    // The compiler, by which some distributions are told, is named there alone.
    let version =
        std::fs::read_to_string("/proc/version").unwrap_or_else(|_| kernel.version().to_string_lossy().into_owned());
    let kernel = RunningKernel::new(&kernel.release().to_string_lossy(), &version);
    match modules.state(name) {
        ModuleState::OnDisk => kernel.way_to_load(name),
        // Where the host's list is not mounted, the package may be there.
        ModuleState::Unknown => modules.obstacle().map_or_else(
            || kernel.source_of_module(name),
            |why| format!("{why}; or {}", kernel.source_of_module(name)),
        ),
        ModuleState::Present | ModuleState::Missing => kernel.source_of_module(name),
    }
}

/// Adds the module, and where this host gets it, to the error of a device whose kind the kernel does not know (rtnetlink(7)): it loads modules of
/// kinds by itself, so that nobody has tried to load it before.
pub fn named_in(mut error: Error, kind: &'static str) -> Error {
    const UNKNOWN: &str = "Unknown device type";
    let module = if kind == "ip6tnl" { "ip6_tunnel" } else { kind };
    let is_made = ["add ", "replace "].iter().any(|word| error.operation.starts_with(word));
    let Cause::Errno(Errno::OPNOTSUPP, text) = &mut error.cause else { return error };
    // Older kernels say nothing.
    if is_made && text.as_deref().is_none_or(|text| text == UNKNOWN) && !is_present(module) {
        *text = Some(format!(
            "the kernel does not know devices of the type {kind}, of module {module}; {}",
            remedy(module)
        ));
    }
    error
}

/// Empty where the list is not there: then only what has a directory is known to be present.
fn builtin_list() -> String {
    read_list("modules.builtin").unwrap_or_default()
}

fn read_list(file: &str) -> Option<String> {
    let release = rustix::system::uname();
    let release = release.release().to_string_lossy();
    std::fs::read_to_string(Path::new("/lib/modules").join(&*release).join(file)).ok()
}

/// The modules of a list of files, one a line, with what they depend on behind a colon: `kernel/net/netfilter/ipvs/ip_vs_rr.ko.zst: …`.
fn names_in(list: &str) -> impl Iterator<Item = String> {
    let files = list.lines().filter_map(|line| line.split(':').next()?.rsplit('/').next());
    files.filter_map(|file| Some(file.split_once(".ko")?.0.replace('-', "_")))
}

/// The list names files: `kernel/net/netfilter/ipvs/ip_vs_rr.ko`. Dashes and underscores mean the same.
fn is_builtin(name: &str, list: &str) -> bool {
    names_in(list).any(|found| found == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_whose_kind_the_kernel_does_not_know_names_its_module_and_where_to_get_it() {
        let failed = |operation, errno, text: Option<&str>| {
            let cause = Cause::Errno(errno, text.map(str::to_owned));
            named_in(Error::new(operation, "sluice-tun", cause), "nosuchkind").to_string()
        };
        for (operation, said) in
            [("add tunnel", Some("Unknown device type")), ("add tunnel", None), ("replace tunnel", None)]
        {
            let text = failed(operation, Errno::OPNOTSUPP, said);
            assert!(text.contains("devices of the type nosuchkind, of module nosuchkind; "), "{text}");
            assert!(
                text.len() > text.find("module nosuchkind; ").expect("it is there") + 40,
                "where to get it: {text}"
            );
        }
        for (operation, errno, said) in [
            ("change tunnel", Errno::OPNOTSUPP, None),
            ("add tunnel", Errno::OPNOTSUPP, Some("no such option")),
            ("add tunnel", Errno::EXIST, None),
        ] {
            let text = failed(operation, errno, said);
            assert!(!text.contains("module"), "{text}");
        }
    }

    #[test]
    fn what_is_compiled_in_is_found_in_the_list_by_its_file() {
        let list = "kernel/net/netfilter/nf_conntrack.ko\nkernel/net/sched/sch-fq.ko\nnonsense\n\n/\n";
        assert!(is_builtin("nf_conntrack", list));
        assert!(is_builtin("sch_fq", list));
        assert!(!is_builtin("conntrack", list));
        assert!(!is_builtin("", list));
    }

    #[test]
    fn what_modprobe_would_find_is_in_its_list_whatever_its_file_is_compressed_with() {
        let list = "kernel/net/netfilter/ipvs/ip_vs.ko.zst: kernel/net/netfilter/nf_conntrack.ko.zst\n\
                    kernel/net/netfilter/xt-set.ko.xz:\nkernel/net/bridge/br_netfilter.ko: kernel/net/bridge/bridge.ko\n";
        let modules = |builtin: &str, on_disk: Option<&str>, is_supported| Modules {
            builtin: names_in(builtin).collect(),
            on_disk: on_disk.map(|list| names_in(list).collect()),
            is_supported,
        };
        let whole = modules("kernel/net/ipv4/ipip.ko\n", Some(list), true);
        for (name, is_loaded, expected) in [
            ("ip_vs", false, ModuleState::OnDisk),
            ("ip_vs", true, ModuleState::Present),
            ("xt_set", false, ModuleState::OnDisk),
            ("ipip", false, ModuleState::Present),
            ("bridge", false, ModuleState::Missing),
        ] {
            assert_eq!(whole.state_of(name, is_loaded, false), expected, "{name}");
        }
        let unmounted = modules("", None, true);
        assert_eq!(unmounted.state_of("ip_vs", false, true), ModuleState::Unknown, "it may be on the host's disk");
        let fixed = modules("", None, false);
        assert_eq!(
            fixed.state_of("ip_vs", false, true),
            ModuleState::Missing,
            "compiled in it would have its settings"
        );
        assert_eq!(fixed.state_of("dummy", false, false), ModuleState::Unknown);
    }

    #[test]
    fn capabilities_are_read_from_the_status_of_a_process() {
        let status = "Name:\tsluice\nCapInh:\t0000000000000000\nCapEff:\t0000000000011000\n";
        assert!(has_capability(status, CAP_SYS_MODULE) && has_capability(status, CAP_NET_ADMIN));
        assert!(!has_capability(status, 21) && !has_capability("", CAP_NET_ADMIN));
    }

    #[test]
    fn every_module_that_cannot_be_loaded_has_its_own_error() {
        let errors = load(&["there_is_no_such_module", "nor-this-one"]);
        let texts: Vec<String> = errors.iter().map(Error::to_string).collect();
        assert_eq!(texts.len(), 2, "{texts:?}");
        assert!(texts.iter().all(|text| text.starts_with("load kernel module ")), "{texts:?}");
        assert!(texts[1].ends_with(&remedy("nor-this-one")), "the package is named: {texts:?}");
    }

    /// A kernel that has it compiled in may come without any list and without a directory for it.
    #[test]
    fn a_module_with_settings_of_its_own_is_there_without_a_directory() {
        let with = |path: &'static str| move |it: &Path| it == Path::new(path);
        assert!(is_loaded("br_netfilter", with("/proc/sys/net/bridge")));
        assert!(is_loaded("br_netfilter", with("/sys/module/br_netfilter")));
        assert!(!is_loaded("ip_vs", with("/proc/sys/net/bridge")) && !is_loaded("ipip", with("/sys/module/bridge")));
    }

    #[test]
    fn a_module_with_a_directory_is_present() {
        // Every kernel with modules or parameters at all has this one.
        assert!(is_present("kernel"));
        assert!(!is_present("there_is_no_such_module"));
    }
}
