//! Modules that a host forbids: `install NAME /bin/false` in the files of modprobe.d(5).
//!
//! `blacklist` is not looked for: it hides a module from names that devices have, and not from its own, by which the agent and the kernel ask.
//! What a module depends on may be forbidden, too, and is not looked at.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Folders of these files, below the root. A file takes the place of those of its name in later ones.
const FOLDERS: [&str; 5] =
    ["etc/modprobe.d", "run/modprobe.d", "usr/local/lib/modprobe.d", "usr/lib/modprobe.d", "lib/modprobe.d"];
/// The root of the host, where its processes are seen; otherwise the one that this process has itself.
const HOST: &str = "/proc/1/root";
/// Programs that load nothing.
const IDLE: [&str; 4] = ["false", "true", ":", "exit"];

/// Commands that a host runs in the place of modules, in the order of its files.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct Forbidden {
    /// Names with `_` in place of `-`, which may have `*` and `?`.
    pub rules: Vec<(String, Rule)>,
    /// The agent's own modprobe heeds them: the agent would have the host's files, and not those of an image.
    pub is_ours: bool,
}

/// A line `install`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Rule {
    /// Path on the host.
    pub file: PathBuf,
    pub line: String,
    /// It loads nothing, as far as its first word says.
    pub forbids: bool,
}

impl Forbidden {
    /// Reads what the host forbids. What cannot be read forbids nothing.
    pub fn of_host() -> Forbidden {
        let root = |path| fs::metadata(path).map(|found| (found.dev(), found.ino())).ok();
        let ours = root("/");
        let is_ours = root(HOST).is_none_or(|host| Some(host) == ours);
        Forbidden { rules: of_root(Path::new(if is_ours { "/" } else { HOST })), is_ours }
    }

    /// The line that keeps a module from being loaded: modprobe takes the first one that is about it.
    pub fn of(&self, module: &str) -> Option<&Rule> {
        let (_, rule) = self.rules.iter().find(|(pattern, _)| matches(pattern.as_bytes(), module.as_bytes()))?;
        rule.forbids.then_some(rule)
    }
}

fn of_root(root: &Path) -> Vec<(String, Rule)> {
    let mut files = BTreeMap::new();
    for folder in FOLDERS {
        for entry in fs::read_dir(root.join(folder)).into_iter().flatten().flatten() {
            if entry.path().extension().is_some_and(|end| end == "conf") {
                files.entry(entry.file_name()).or_insert_with(|| Path::new(folder).join(entry.file_name()));
            }
        }
    }
    let mut all = Vec::new();
    for path in files.into_values() {
        let Ok(bytes) = fs::read(root.join(&path)) else { continue };
        all.extend(lines(&String::from_utf8_lossy(&bytes), &Path::new("/").join(&path)));
    }
    all
}

fn lines(text: &str, file: &Path) -> Vec<(String, Rule)> {
    let text = text.replace("\\\n", " ");
    let rule = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let ["install", module, program, ..] = &words[..] else { return None };
        let forbids = program.rsplit('/').next().is_some_and(|name| IDLE.contains(&name.trim_end_matches(';')));
        Some((module.replace('-', "_"), Rule { file: file.to_owned(), line: words.join(" "), forbids }))
    };
    text.lines().filter_map(rule).collect()
}

/// fnmatch(3), without classes of characters.
fn matches(pattern: &[u8], name: &[u8]) -> bool {
    match (pattern, name) {
        ([], []) => true,
        ([b'*', rest @ ..], _) => (0..=name.len()).any(|at| name.get(at..).is_some_and(|name| matches(rest, name))),
        ([b'?', rest @ ..], [_, name @ ..]) => matches(rest, name),
        ([one, rest @ ..], [first, name @ ..]) => one == first && matches(rest, name),
        ([], _) | (_, []) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn forbidden(text: &str) -> Forbidden {
        Forbidden { rules: lines(text, Path::new("/etc/modprobe.d/hard.conf")), is_ours: false }
    }

    #[test]
    fn a_command_that_loads_nothing_in_place_of_a_module_forbids_it() {
        let text = "# install ip_vs /bin/false\ninstall  dummy\t/bin/true\ninstall br-netfilter \\\n  /bin/false\n\
                    install bridge /sbin/modprobe --ignore-install bridge && true\ninstall veth\nblacklist ipip\n\
                    options ip_vs conn_tab_bits=14\ninstall fou /usr/local/bin/load fou\n";
        let found = forbidden(text);
        for (module, line) in [
            ("dummy", Some("install dummy /bin/true")),
            ("br_netfilter", Some("install br-netfilter /bin/false")),
            ("ip_vs", None),
            ("bridge", None),
            ("veth", None),
            ("ipip", None),
            ("fou", None),
        ] {
            assert_eq!(found.of(module).map(|rule| rule.line.as_str()), line, "{module}");
        }
    }

    #[test]
    fn the_first_line_about_a_module_counts_and_names_may_have_wildcards() {
        let found =
            forbidden("install ip_vs_rr /sbin/modprobe -i ip_vs_rr\ninstall ip_vs* /bin/false\ninstall xt_?et true\n");
        assert_eq!(found.of("ip_vs_rr"), None);
        assert!(found.of("ip_vs").is_some() && found.of("ip_vs_sh").is_some() && found.of("xt_set").is_some());
        assert!(found.of("ip_set").is_none() && found.of("xt_et").is_none());
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
        let found = of_root(root.path());
        let files: Vec<_> = found.iter().map(|(module, rule)| (module.as_str(), rule.file.to_str())).collect();
        let expected = [("dummy", Some("/etc/modprobe.d/hard.conf")), ("fou", Some("/usr/lib/modprobe.d/net.conf"))];
        assert_eq!(files, expected);
    }
}
