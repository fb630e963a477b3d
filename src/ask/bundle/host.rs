//! Facts of this host for a bundle, read without the agent: what runs, and links, addresses and routes, of whomever.
//!
//! Named one by one. Of files that may hold credentials (CNI files, kubeconfigs) the names are told and never the content.

use std::fmt::Display;
use std::fs;
use std::io::{self, ErrorKind, Read};
use std::path::{Path, PathBuf};

use crate::kernel::file_system::is_of_container;
use crate::kernel::route::{Ownership, Protocol, Routes, TABLE_MAIN};
use crate::kernel::{address, link};

/// Environment variables that decide something (`config::Environment`).
const VARIABLES: [&str; 5] = ["NODE_NAME", "POD_NAME", "POD_NAMESPACE", "KUBE_ROUTER_CNI_CONF_FILE", "HOST_BIN_PATH"];

const OS_RELEASE: &str = "os-release";

/// Files and the parts that they become.
const FILES: [(&str, &str); 12] = [
    (OS_RELEASE, "/etc/os-release"),
    ("kernel", "/proc/version"),
    ("modules", "/proc/modules"),
    ("memory", "/proc/meminfo"),
    ("load", "/proc/loadavg"),
    ("network-devices", "/proc/net/dev"),
    ("network-counters", "/proc/net/snmp"),
    ("network-counters-more", "/proc/net/netstat"),
    ("ipvs-counters", "/proc/net/ip_vs_stats"),
    ("connections-count", "/proc/sys/net/netfilter/nf_conntrack_count"),
    ("connections-most", "/proc/sys/net/netfilter/nf_conntrack_max"),
    ("forwarding", "/proc/sys/net/ipv4/ip_forward"),
];

/// Most bytes of a file, and most objects of the kernel.
const LARGEST: u64 = 1 << 20;
const MOST: usize = 20_000;

/// The usual directory of CNI files.
const CNI: &str = "/etc/cni/net.d";

/// Returns the name of this host.
pub fn name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// A part's name, and its text or why there is none.
type Part = (String, Result<String, String>);

pub fn parts() -> Vec<Part> {
    let in_container = is_of_container(Path::new("/"));
    let named = |name: &str| match name {
        // In a container it is the image's.
        OS_RELEASE if in_container => format!("image-{name}"),
        name => name.to_owned(),
    };
    let mut parts: Vec<Part> = FILES.iter().filter_map(|(name, path)| part_of_file(&named(name), path)).collect();
    let variables = VARIABLES.iter().filter_map(|name| Some(format!("{name}={}\n", std::env::var(name).ok()?)));
    parts.push(("environment.txt".to_owned(), Ok(variables.collect())));
    let cni = cni_directory();
    parts.push(("cni-files.txt".to_owned(), cni_files(&cni, !is_of_container(&cni))));
    parts.push((
        "links.txt".to_owned(),
        link::all().map(|all| lines(all.iter().map(|it| format!("{it:?}")))).map_err(text),
    ));
    let addresses = address::host_addresses().map(|all| lines(all.iter().map(|it| format!("{it:?}"))));
    parts.push(("addresses.txt".to_owned(), addresses.map_err(text)));
    // No route has this origin, so all of the main table are others' to a process that only looks.
    let nobody = Protocol { table: TABLE_MAIN, protocol: libc::RTPROT_UNSPEC };
    let routes = Routes::open(Ownership::Protocols(vec![nobody])).and_then(|mut routes| routes.read_beside(&|_| true));
    parts.push(("routes.txt".to_owned(), routes.map(|(_, all)| lines(all.iter())).map_err(text)));
    parts
}

/// The directory of this host's CNI files.
fn cni_directory() -> PathBuf {
    let file = std::env::var("KUBE_ROUTER_CNI_CONF_FILE").ok();
    file.as_deref().and_then(|file| Path::new(file).parent()).unwrap_or(Path::new(CNI)).to_owned()
}

/// The names of the CNI files in a directory; one sentence where it is not the host's, or where there is none, which is no failure: an agent without a router needs
/// no such directory.
///
/// # Errors
/// It is there and cannot be read.
fn cni_files(directory: &Path, is_hosts: bool) -> Result<String, String> {
    if !is_hosts {
        return Ok(format!("the host's {} is not mounted\n", directory.display()));
    }
    match names_in(directory) {
        Ok(names) => Ok(names),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(format!("there is no {}\n", directory.display())),
        Err(error) => Err(format!("{}: {error}", directory.display())),
    }
}

/// The part that a file becomes; none where the kernel has no such file.
fn part_of_file(name: &str, path: &str) -> Option<Part> {
    let file = match fs::File::open(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return None,
        Err(error) => return Some((format!("{name}.txt"), Err(format!("{path}: {error}")))),
        Ok(file) => file,
    };
    let mut bytes = Vec::new();
    let read = file.take(LARGEST).read_to_end(&mut bytes).map_err(|error| format!("{path}: {error}"));
    Some((format!("{name}.txt"), read.map(|_| String::from_utf8_lossy(&bytes).into_owned())))
}

fn names_in(directory: &Path) -> io::Result<String> {
    let name = |entry: io::Result<fs::DirEntry>| entry.map(|entry| entry.file_name().to_string_lossy().into_owned());
    let mut names = fs::read_dir(directory)?.map(name).collect::<io::Result<Vec<String>>>()?;
    names.sort();
    Ok(lines(names.iter()))
}

fn lines<T: Display>(all: impl ExactSizeIterator<Item = T>) -> String {
    let count = all.len();
    let mut text: String = all.take(MOST).map(|one| format!("{one}\n")).collect();
    if count > MOST {
        text.push_str(&format!("({} more)\n", count - MOST));
    }
    text
}

fn text(error: impl Display) -> String {
    error.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_of_cni_files_that_is_the_images_is_said_to_be_no_hosts() {
        let directory = tempfile::tempdir().expect("a directory");
        fs::write(directory.path().join("10-other.conflist"), "{}").expect("writable");
        assert_eq!(cni_files(directory.path(), true), Ok("10-other.conflist\n".to_owned()));
        let not_mounted = format!("the host's {} is not mounted\n", directory.path().display());
        assert_eq!(cni_files(directory.path(), false), Ok(not_mounted));
    }

    #[test]
    fn a_directory_of_cni_files_that_cannot_be_read_is_not_an_empty_one() {
        let directory = tempfile::tempdir().expect("a directory");
        let absent = directory.path().join("net.d");
        assert_eq!(cni_files(&absent, true), Ok(format!("there is no {}\n", absent.display())));
        fs::write(&absent, "a file where a directory should be").expect("writable");
        let why = cni_files(&absent, true).expect_err("it cannot be listed");
        assert!(why.starts_with(&format!("{}: ", absent.display())), "{why}");
    }
}
