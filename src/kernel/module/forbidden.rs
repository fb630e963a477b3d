//! Modules that a host forbids: `install NAME /bin/false` in the files of modprobe.d(5).
//!
//! `blacklist` is not looked for: it hides a module from names that devices have, and not from its own, by which the agent and the kernel ask.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Folders of these files, below the root. A file takes the place of those of its name in later ones.
const FOLDERS: [&str; 5] =
    ["etc/modprobe.d", "run/modprobe.d", "usr/local/lib/modprobe.d", "usr/lib/modprobe.d", "lib/modprobe.d"];
/// The root of the host, where its processes are seen; otherwise the one that this process has itself.
const HOST: &str = "/proc/1/root";

/// How a host forbids a module.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Forbidden {
    /// Path on the host.
    pub file: PathBuf,
    pub line: String,
    /// The agent's own modprobe heeds it: the agent would have the host's files, and not those of an image.
    pub is_ours: bool,
}

/// Reads which modules the host forbids, by their names with `_` in place of `-`. What cannot be read forbids nothing.
pub fn of_host() -> BTreeMap<String, Forbidden> {
    let root = |path| fs::metadata(path).map(|found| (found.dev(), found.ino())).ok();
    let ours = root("/");
    let is_ours = root(HOST).is_none_or(|host| Some(host) == ours);
    of_root(Path::new(if is_ours { "/" } else { HOST }), is_ours)
}

fn of_root(root: &Path, is_ours: bool) -> BTreeMap<String, Forbidden> {
    let mut files = BTreeMap::new();
    for folder in FOLDERS {
        for entry in fs::read_dir(root.join(folder)).into_iter().flatten().flatten() {
            if entry.path().extension().is_some_and(|end| end == "conf") {
                files.entry(entry.file_name()).or_insert_with(|| Path::new(folder).join(entry.file_name()));
            }
        }
    }
    let mut all = BTreeMap::new();
    for path in files.into_values() {
        let Ok(bytes) = fs::read(root.join(&path)) else { continue };
        for (module, line) in lines(&String::from_utf8_lossy(&bytes)) {
            all.insert(module, Forbidden { file: Path::new("/").join(&path), line, is_ours });
        }
    }
    all
}

/// The modules of such a file in place of which a command runs that loads none, and the line of each.
fn lines(text: &str) -> Vec<(String, String)> {
    let text = text.replace("\\\n", " ");
    let forbidding = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let ["install", module, command @ ..] = &words[..] else { return None };
        let loads = command.iter().any(|word| word.contains("modprobe") || word.contains("insmod"));
        (!loads && !command.is_empty()).then(|| (module.replace('-', "_"), words.join(" ")))
    };
    text.lines().filter_map(forbidding).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_that_loads_nothing_in_place_of_a_module_forbids_it() {
        let text = "# install ip_vs /bin/false\ninstall  dummy\t/bin/true\ninstall br-netfilter \\\n  /bin/false\n\
                    install bridge /sbin/modprobe --ignore-install bridge && true\ninstall veth\nblacklist ipip\noptions ip_vs conn_tab_bits=14\n\
                    alias net-pf-10 off\n";
        let found = lines(text);
        let expected = [("dummy", "install dummy /bin/true"), ("br_netfilter", "install br-netfilter /bin/false")];
        assert_eq!(found, expected.map(|(module, line)| (module.to_owned(), line.to_owned())));
    }

    #[test]
    fn a_file_takes_the_place_of_one_of_its_name_in_a_later_folder() {
        let root = tempfile::tempdir().expect("a folder");
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().expect("it has one")).expect("a folder");
            fs::write(path, text).expect("a file");
        };
        write("etc/modprobe.d/hard.conf", "install dummy /bin/false\n");
        write("lib/modprobe.d/hard.conf", "install ip_vs /bin/false\n");
        write("usr/lib/modprobe.d/net.conf", "install fou /bin/false\n");
        write("etc/modprobe.d/notes.txt", "install ipip /bin/false\n");
        let found = of_root(root.path(), false);
        let files: Vec<_> = found.iter().map(|(module, it)| (module.as_str(), it.file.to_str())).collect();
        assert_eq!(
            files,
            [("dummy", Some("/etc/modprobe.d/hard.conf")), ("fou", Some("/usr/lib/modprobe.d/net.conf"))]
        );
    }
}
