//! Loading kernel modules, by `modprobe`: the only program beside `iptables-restore` and `iptables-save` that is ever started.
//!
//! Most modules come by themselves when the kernel is asked for what they do. This is for those that do not,
//! and for telling beforehand whether something, a scheduler for example, is there at all.
//!
//! Kernel: what is loaded has a directory in `/sys/module`; what is compiled in is listed in
//! `/lib/modules/RELEASE/modules.builtin`, and some of it has a directory too.

use std::panic::resume_unwind;
use std::path::Path;
use std::thread;
use std::time::Duration;

use super::Error;
use super::program::{Call, run};

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
    Path::new("/sys/module").join(&name).exists() || is_builtin(&name, &builtin_list())
}

fn load_one(name: &str) -> Result<(), Error> {
    let call = Call { program: "modprobe", arguments: &["--", name], input: b"", limit: LIMIT };
    match run(call) {
        Ok(_) => Ok(()),
        // Several of us may load it at the same moment, and some kernels have it without saying so.
        Err(_) if is_present(name) => Ok(()),
        Err(fault) => Err(fault.of("load kernel module", name, "modprobe")),
    }
}

/// Empty where the list is not there: then only what has a directory is known to be present.
fn builtin_list() -> String {
    let release = rustix::system::uname();
    let release = release.release().to_string_lossy();
    std::fs::read_to_string(Path::new("/lib/modules").join(&*release).join("modules.builtin")).unwrap_or_default()
}

/// The list names files: `kernel/net/netfilter/ipvs/ip_vs_rr.ko`. Dashes and underscores mean the same.
fn is_builtin(name: &str, list: &str) -> bool {
    list.lines()
        .filter_map(|line| line.rsplit('/').next()?.strip_suffix(".ko"))
        .any(|found| found.replace('-', "_") == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_compiled_in_is_found_in_the_list_by_its_file() {
        let list = "kernel/net/netfilter/nf_conntrack.ko\nkernel/net/sched/sch-fq.ko\nnonsense\n\n/\n";
        assert!(is_builtin("nf_conntrack", list));
        assert!(is_builtin("sch_fq", list));
        assert!(!is_builtin("conntrack", list));
        assert!(!is_builtin("", list));
    }

    #[test]
    fn every_module_that_cannot_be_loaded_has_its_own_error() {
        let errors = load(&["there_is_no_such_module", "nor-this-one"]);
        let texts: Vec<String> = errors.iter().map(Error::to_string).collect();
        assert_eq!(texts.len(), 2, "{texts:?}");
        assert!(texts.iter().all(|text| text.starts_with("load kernel module ")), "{texts:?}");
    }

    #[test]
    fn a_module_with_a_directory_is_present() {
        // Every kernel with modules or parameters at all has this one.
        assert!(is_present("kernel"));
        assert!(!is_present("there_is_no_such_module"));
    }
}
