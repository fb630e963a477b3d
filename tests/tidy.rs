//! The rules that hold the code together and that no compiler checks: who may import whom, where effects are
//! allowed, what a file must begin with and how long it may be, which names are not used, and that the texts beside the
//! code say what the code says.
//!
//! Every rule here is written down in `docs/architecture.md`. A failure lists all offences, not only the first.

#![allow(clippy::indexing_slicing, reason = "a test that panics has failed, which is how a test says so")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Who may use whom, by the first part of the path below `src`; a directory or a file below it may have a line of its own. A module may
/// always use itself.
const IMPORTS: [(&str, &[&str]); 31] = [
    ("net", &[]),
    ("distribution", &[]),
    ("packed", &["net"]),
    ("observe", &[]),
    ("model", &["net", "packed"]),
    ("config", &["net"]),
    ("status", &["model", "observe"]),
    // What a report of a problem gets of the program, and asks for.
    ("bundle", &["k8s", "model", "observe"]),
    ("ask", &["bundle", "config", "k8s", "kernel", "observe", "status"]),
    ("cni", &["ask", "firewall", "model", "observe", "pod_tunnels", "source_guard"]),
    ("bfd", &["net"]),
    ("bfd/driver", &["net", "bfd", "kernel"]),
    ("link_neighbours", &["net"]),
    ("link_neighbours/driver", &["net", "link_neighbours", "kernel"]),
    ("bgp", &["net", "packed", "bfd"]),
    // Sockets and the clock of the speaker; everything else of it is pure.
    ("bgp/driver", &["bgp", "bfd", "net", "kernel", "reconcile", "observe"]),
    ("container_runtime", &[]),
    ("pod_tunnels", &["net", "model", "kernel", "reconcile", "observe", "container_runtime"]),
    ("reconcile", &["observe", "packed"]),
    ("kernel", &["net", "distribution", "reconcile"]),
    ("k8s", &["net", "model", "observe"]),
    // The loop that service proxy, firewall, source guard and router share.
    ("subsystem", &["model", "kernel", "reconcile", "observe"]),
    ("proxy", &["net", "packed", "model", "config", "kernel", "reconcile", "observe", "subsystem"]),
    ("firewall", &["net", "packed", "model", "config", "kernel", "reconcile", "observe", "subsystem"]),
    (
        "router",
        &[
            "net",
            "packed",
            "model",
            "config",
            "kernel",
            "reconcile",
            "observe",
            "subsystem",
            "bgp",
            "bfd",
            "link_neighbours",
        ],
    ),
    ("source_guard", &["net", "model", "kernel", "reconcile", "observe", "subsystem"]),
    ("gobgp", &["net", "bfd", "bgp", "observe"]),
    // Its effects are requests to the API.
    ("load_balancer", &["net", "model", "config", "k8s", "observe"]),
    // Its effects are requests to AWS.
    ("aws", &["model", "k8s", "observe"]),
    ("world", &["net", "model", "k8s", "kernel", "observe"]),
    // Asks what the subsystems would, before they run.
    (
        "preflight",
        &[
            "net",
            "model",
            "config",
            "distribution",
            "kernel",
            "k8s",
            "observe",
            "bfd",
            "proxy",
            "firewall",
            "router",
            "container_runtime",
            "app",
        ],
    ),
];

/// Directories whose parts must not use each other in a circle: each part can be read behind those that it uses.
const WITHOUT_CIRCLES: [&str; 4] = ["k8s", "k8s/parse", "config", "bgp/message"];

/// These use everything.
const ROOTS: [&str; 4] = ["app", "cleanup", "main", "lib"];

/// Where effects are allowed: below these directories, in these files, and in files of these names.
const EFFECTS: [&str; 68] = [
    "app.rs",
    "app/addresses_in_memory.rs",
    "app/packet_filter.rs",
    "app/pod_tunnels.rs",
    "app/pod_tunnels/awaited.rs",
    "app/questions.rs",
    "app/signals.rs",
    "app/subsystems.rs",
    "ask.rs",
    "ask/bundle.rs",
    "ask/bundle/archive.rs",
    "ask/bundle/host.rs",
    "bgp/driver/admission.rs",
    "bgp/driver/liveness.rs",
    "bgp/driver/mod.rs",
    "bgp/driver/passwords.rs",
    "cleanup.rs",
    "cleanup/kube_proxy.rs",
    "cni/plugin.rs",
    "container_runtime/client.rs",
    "container_runtime/hosts.rs",
    "firewall/driver/refusals.rs",
    "firewall/frames/linux.rs",
    "firewall/judging.rs",
    "firewall/oversized_policies.rs",
    "firewall/starting_pod.rs",
    "firewall/iptables/linux.rs",
    "firewall/iptables/mod.rs",
    "firewall/nftables/linux.rs",
    "firewall/nftables/mod.rs",
    "gobgp/service.rs",
    "gobgp/stubs.rs",
    "gobgp/watch.rs",
    "k8s/",
    "kernel/",
    "main.rs",
    "observe/",
    "pod_tunnels/search.rs",
    "preflight/gather.rs",
    "proxy/driver/told.rs",
    "proxy/linux.rs",
    "reconcile/",
    "router/driver/answers.rs",
    "router/driver/cut_off.rs",
    "router/driver/draining.rs",
    "router/driver/keys.rs",
    "router/driver/links.rs",
    "router/driver/passwords.rs",
    "router/driver/pods.rs",
    "router/driver/rotation.rs",
    "router/driver/services.rs",
    "router/driver/speaker.rs",
    "router/host_files.rs",
    "router/host_files/replaced.rs",
    "router/password_files/read.rs",
    "router/plugin_entry.rs",
    "router/linux.rs",
    "router/linux/key_files.rs",
    "router/linux/keyring.rs",
    "router/linux/learned.rs",
    "router/linux/wireguard.rs",
    "router/sessions.rs",
    "router/told.rs",
    "subsystem/mod.rs",
    "world.rs",
    "world/host.rs",
    "world/last_known/mod.rs",
    "world/remembered.rs",
];
const EFFECT_NAMES: [&str; 3] = ["apply.rs", "serve.rs", "driver.rs"];

/// Words by which an effect is recognised in code.
const EFFECT_WORDS: [&str; 16] = [
    "async ",
    ".await",
    "Instant::now",
    "SystemTime::now",
    ".elapsed()",
    "tracing::",
    "tokio::",
    "std::fs",
    "fs::read",
    "fs::write",
    "File::",
    "std::process",
    "std::thread",
    "std::env",
    "println!",
    "RandomState",
];

/// A docstring that begins so hides what it is about.
const FORBIDDEN_DOCSTRINGS: [&str; 2] = ["What ", "Takes in "];

const FORBIDDEN_FILES: [&str; 9] =
    ["util", "utils", "common", "manager", "helper", "helpers", "misc", "types", "shared"];
const FORBIDDEN_ENDS: [&str; 6] = ["Manager", "Helper", "Handler", "Controller", "Info", "Util"];

const LINES_OF_A_FILE: usize = 500;
const LINES_OF_A_FUNCTION: usize = 70;
const ARGUMENTS: usize = 5;

/// One file of the sources.
struct Source {
    /// Below the project's top.
    path: String,
    text: String,
    /// Without comments, and without the tests at its end.
    code: Vec<String>,
}

#[test]
fn modules_use_only_those_they_may() {
    let allowed: BTreeMap<&str, &[&str]> = IMPORTS.into_iter().collect();
    let mut offences = Vec::new();
    for source in sources("src") {
        let module = module_of(&source.path);
        let below = source.path.strip_prefix("src/").unwrap_or(&source.path);
        if ROOTS.contains(&module) {
            continue;
        }
        let directory = below.rsplit_once('/').map_or("", |(directory, _)| directory);
        let lines = [below.trim_end_matches(".rs"), directory, module];
        let Some(allowed) = lines.iter().find_map(|line| allowed.get(line)) else {
            offences.push(format!("{}: module {module} has no line in the table of imports", source.path));
            continue;
        };
        for (number, line) in numbered(&source.code) {
            for used in names_after("crate::", line).into_iter().chain(names_after("sluice::", line)) {
                if used != module && !allowed.contains(&used.as_str()) {
                    offences.push(format!("{}:{number}: {module} may not use {used}", source.path));
                }
            }
        }
    }
    none(offences);
}

#[test]
fn the_parts_of_a_directory_do_not_use_each_other_in_circles() {
    let mut offences = Vec::new();
    for directory in WITHOUT_CIRCLES {
        let uses = uses_of_parts(directory, &sources(&format!("src/{directory}")));
        assert!(uses.values().map(BTreeSet::len).sum::<usize>() > 3, "{directory}: what its parts use is not found");
        offences.extend(circle(&uses).map(|parts| format!("src/{directory}: {}", parts.join(" uses "))));
    }
    none(offences);
}

/// Returns which parts of a directory use which: files and directories in it, and names that its `mod.rs`, or the file of its name, exports for them.
fn uses_of_parts(directory: &str, sources: &[Source]) -> BTreeMap<String, BTreeSet<String>> {
    let inside = format!("src/{directory}/");
    let part_of = |path: &str| -> Option<String> {
        let below = path.strip_prefix(&inside)?.trim_end_matches(".rs");
        Some(below.split('/').next().unwrap_or(below).to_owned()).filter(|part| part != "mod")
    };
    let parts: BTreeSet<String> = sources.iter().filter_map(|source| part_of(&source.path)).collect();
    let on_one_line = |source: &Source| source.code.iter().map(|line| line.trim()).collect::<Vec<_>>().join(" ");
    let mut exported: BTreeMap<String, String> = BTreeMap::new();
    for source in sources.iter().filter(|source| part_of(&source.path).is_none()) {
        let text = on_one_line(source);
        for statement in text.split("pub use ").skip(1).filter_map(|rest| rest.split_once(';')) {
            let path = statement.0.trim_start_matches("self::");
            let Some((part, names)) = path.split_once("::").filter(|(part, _)| parts.contains(*part)) else { continue };
            let names = names.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|name| !name.is_empty());
            exported.extend(names.map(|name| (name.to_owned(), part.to_owned())));
        }
    }
    let mut uses: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for source in sources.iter().filter(|source| !is_test(&source.path)) {
        let Some(part) = part_of(&source.path) else { continue };
        let depth = source.path.matches('/').count() - inside.matches('/').count() + 1;
        let depth = if source.path.ends_with("/mod.rs") { depth - 1 } else { depth };
        let (text, above) = (on_one_line(source), "super::".repeat(depth));
        let absolute = format!("crate::{}::", directory.replace('/', "::"));
        let named = [above, absolute].into_iter().flat_map(|prefix| firsts_after(&prefix, &text));
        let used = named.map(|name| exported.get(&name).cloned().unwrap_or(name));
        let used: BTreeSet<String> = used.filter(|name| parts.contains(name) && *name != part).collect();
        uses.entry(part).or_default().extend(used);
    }
    uses
}

/// The first parts of all paths in a text that begin with `prefix`, also of those of a list in braces.
fn firsts_after(prefix: &str, text: &str) -> Vec<String> {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let mut names = Vec::new();
    for (at, _) in text.match_indices(prefix) {
        if text[..at].ends_with(|c| is_word(c) || c == ':') {
            continue;
        }
        let (mut depth, mut is_first) = (0, true);
        let mut name = String::new();
        for c in text[at + prefix.len()..].chars() {
            match c {
                c if is_word(c) && is_first => name.push(c),
                '{' => (depth, is_first) = (depth + 1, depth == 0),
                '}' => (depth, is_first) = (depth - 1, false),
                ',' if depth == 1 => is_first = true,
                ' ' if name.is_empty() => {}
                _ => is_first = false,
            }
            if !is_first && !name.is_empty() {
                names.push(std::mem::take(&mut name));
            }
            if depth == 0 && !is_first {
                break;
            }
        }
        names.push(name);
    }
    names
}

/// Returns the parts of a circle, the first one again at its end.
fn circle(uses: &BTreeMap<String, BTreeSet<String>>) -> Option<Vec<String>> {
    let mut left: BTreeMap<&String, BTreeSet<&String>> =
        uses.iter().map(|(part, used)| (part, used.iter().collect())).collect();
    // What uses nothing that is left is in no circle.
    while let Some(part) = left.iter().find(|(_, used)| used.is_empty()).map(|(part, _)| *part) {
        left.remove(part);
        for used in left.values_mut() {
            used.remove(part);
        }
    }
    let mut path = vec![*left.keys().next()?];
    loop {
        let last = *path.last()?;
        let next = *left.get(last)?.first()?;
        if let Some(begin) = path.iter().position(|part| *part == next) {
            return Some(path[begin..].iter().chain([&next]).map(|part| (*part).clone()).collect());
        }
        path.push(next);
    }
}

/// A backend is one folder, and who knows policies sees it through `backend.rs` alone.
#[test]
fn policies_know_no_backend() {
    let mut offences = Vec::new();
    let iptables = ["kernel::iptables", "kernel::ipset", "super::iptables", "firewall::iptables"];
    let nftables = ["kernel::nftables", "super::nftables", "firewall::nftables"];
    for source in sources("src/firewall") {
        let path = source.path.strip_prefix("src/firewall/").unwrap_or(&source.path);
        let words: Vec<&str> = match path.split_once('/').map(|(folder, _)| folder) {
            // They remove what the other backend left.
            Some("iptables" | "nftables") if path.ends_with("/linux.rs") => Vec::new(),
            // A table for frames is the same with both.
            Some("frames") => iptables.to_vec(),
            Some("iptables") => nftables.to_vec(),
            Some("nftables") => iptables.to_vec(),
            _ => iptables.into_iter().chain(nftables).collect(),
        };
        for (number, line) in numbered(&source.code) {
            let used = words.iter().filter(|word| line.contains(**word));
            offences.extend(used.map(|word| format!("{}:{number}: {word} is for backends", source.path)));
        }
    }
    none(offences);
}

/// `kernel/` knows the order of jumps, and not who owns the chains: a chain that is renamed would have no place any more, and its jump be refused.
#[test]
fn the_order_of_jumps_names_chains_by_the_names_that_their_owners_have() {
    let order = read("src/kernel/iptables/slots.rs");
    let order = order.split("const ORDER").nth(1).and_then(|rest| rest.split("];").next()).expect("the order of jumps");
    let of_order: Vec<&str> = order.split('"').filter(|word| word.starts_with("KUBE-")).collect();
    assert!(of_order.len() > 15, "too few to be all of them: {of_order:?}");
    let owners = ["src/proxy/names.rs", "src/router/names.rs", "src/firewall/iptables/names.rs"].map(read).join("\n");
    let is_owned = |chain: &str| owners.contains(&format!("&str = \"{chain}\";"));
    // Ours have no such chain: kube-router's is left in its place until it goes.
    let is_known = |chain: &&&str| **chain != "KUBE-ROUTER-HAIRPIN" && !is_owned(chain);
    none(of_order.iter().filter(is_known).map(|chain| format!("{chain} is nobody's name of a chain")).collect());
    // The router jumps to each of its chains from one of the kernel's, and a jump without a place is not written.
    let names = read("src/router/names.rs");
    let of_router = names.lines().filter(|line| line.starts_with("pub const CHAIN_"));
    let chains: Vec<&str> = of_router.filter_map(|line| line.split('"').nth(1)).collect();
    assert!(chains.len() > 6, "too few to be all of them: {chains:?}");
    none(
        chains.iter().filter(|chain| !of_order.contains(chain)).map(|chain| format!("{chain} has no place")).collect(),
    );
}

#[test]
fn effects_happen_only_where_they_are_expected() {
    let mut offences = Vec::new();
    for source in sources("src").iter().filter(|source| !may_act(&source.path)) {
        for (number, line) in numbered(&source.code) {
            for word in EFFECT_WORDS.iter().filter(|word| line.contains(**word)) {
                offences.push(format!("{}:{number}: {word:?} in a file that is to be pure", source.path));
            }
        }
    }
    none(offences);
}

/// A place that needs no effects any more loses its admission.
#[test]
fn places_that_are_admitted_have_effects() {
    let acts = |source: &Source| {
        source.code.iter().any(|line| EFFECT_WORDS.iter().any(|word| !is_comment(line) && line.contains(word)))
    };
    let acting: Vec<String> =
        sources("src").iter().filter(|source| acts(source)).map(|source| source.path.replacen("src/", "", 1)).collect();
    let is_there =
        |place: &str| acting.iter().any(|path| path == place || place.ends_with('/') && path.starts_with(place));
    let idle = EFFECTS.iter().filter(|place| !is_there(place));
    none(idle.map(|place| format!("{place}: no effect there")).collect());
}

/// Files that open sockets of netfilter. Closing one takes the kernel tens of milliseconds, for which its thread waits: one that opens such a socket
/// keeps it, or does so once at a start or an end.
const OPEN_NETFILTER: [&str; 16] = [
    // They keep it.
    "firewall/flows.rs",
    "kernel/conntrack.rs",
    "kernel/ipset/acts.rs",
    "kernel/nflog.rs",
    "kernel/nftables/counters.rs",
    "kernel/nftables/listener.rs",
    "kernel/nftables/passages.rs",
    "kernel/nftables/table.rs",
    // Keeps one, and opens others to look for tables when a subsystem starts.
    "kernel/nftables/foreign.rs",
    // At the start.
    "app/packet_filter.rs",
    "kernel/nftables/probe.rs",
    // Before a start.
    "kernel/nftables/chain_names.rs",
    // With iptables, whose programs close one each, when what an earlier run left is removed.
    "firewall/iptables/linux.rs",
    // They keep one of ipset.
    "kernel/ipset/elements.rs",
    "kernel/ipset/sets.rs",
    "kernel/iptables/abandoned.rs",
];

#[test]
fn nobody_opens_a_socket_of_netfilter_in_passing() {
    let opens = |source: &Source| {
        let code: String = without_tests(&source.text).collect::<Vec<_>>().join(" ");
        ["open(Bus::Netfilter", "Ipset::open("].iter().any(|word| code.contains(word))
    };
    let found = sources("src").into_iter().filter(|source| !is_test(&source.path) && opens(source));
    let below = |source: Source| source.path.strip_prefix("src/").unwrap_or(&source.path).to_owned();
    let found: BTreeSet<String> = found.map(below).collect();
    assert_eq!(found, OPEN_NETFILTER.map(str::to_owned).into());
}

#[test]
fn every_file_says_what_it_is() {
    let files = sources("src").into_iter().chain(sources("tests"));
    let silent = |source: &Source| !source.text.starts_with("//! ") && !source.path.ends_with("/tests.rs");
    none(files.filter(silent).map(|source| source.path).collect());
}

#[test]
fn files_and_functions_are_of_a_size_that_can_be_read() {
    let mut offences = Vec::new();
    for source in sources("src").iter().filter(|source| !is_test(&source.path)) {
        let lines = without_tests(&source.text).count();
        if lines > LINES_OF_A_FILE {
            offences.push(format!("{}: {lines} lines", source.path));
        }
        offences.extend(functions(&source.code).into_iter().filter_map(|function| {
            let Function { name, line, lines, arguments } = function;
            let too_much = lines > LINES_OF_A_FUNCTION || arguments > ARGUMENTS;
            too_much.then(|| format!("{}:{line}: {name} has {lines} lines and {arguments} arguments", source.path))
        }));
    }
    none(offences);
}

#[test]
fn names_say_something() {
    let mut offences = Vec::new();
    for source in sources("src").into_iter().chain(sources("tests")) {
        let parts = Path::new(&source.path).with_extension("");
        for part in parts.iter().filter_map(|part| part.to_str()).filter(|part| FORBIDDEN_FILES.contains(part)) {
            offences.push(format!("{}: {part} says nothing", source.path));
        }
        for (number, line) in numbered(&source.code) {
            let words: Vec<&str> = line.split(|c: char| !c.is_alphanumeric() && c != '_').collect();
            for pair in words.windows(2) {
                let [kind, name] = pair else { continue };
                let is_type = ["struct", "enum", "trait"].contains(kind);
                if is_type && FORBIDDEN_ENDS.iter().any(|end| name.len() > end.len() && name.ends_with(end)) {
                    offences.push(format!("{}:{number}: {name} says nothing with its last word", source.path));
                }
                // The procedures of the gobgp client's API have the names that its clients call.
                let is_called_so = source.path == "src/gobgp/stubs.rs";
                if *kind == "fn" && name.starts_with("get_") && !is_called_so {
                    offences.push(format!("{}:{number}: {name}: a function is named by its result", source.path));
                }
            }
        }
    }
    none(offences);
}

#[test]
fn docstrings_begin_with_what_they_are_about() {
    let mut offences = Vec::new();
    for source in sources("src").into_iter().chain(sources("tests")) {
        let begins_badly = |text: &str| FORBIDDEN_DOCSTRINGS.iter().any(|word| text.starts_with(word));
        let head = source.text.lines().next().and_then(|line| line.strip_prefix("//! "));
        let of_items = docstrings(&source.text).into_iter().filter(|_| source.path.starts_with("src/"));
        let found = head.map(|words| (1, words)).into_iter().chain(of_items).filter(|(_, text)| begins_badly(text));
        offences.extend(found.map(|(number, text)| format!("{}:{number}: {text}", source.path)));
    }
    none(offences);
}

/// The first line of each docstring of an item, with its number.
fn docstrings(text: &str) -> Vec<(usize, &str)> {
    let (mut found, mut is_inside) = (Vec::new(), false);
    for (index, line) in text.lines().enumerate() {
        let words = line.trim_start().strip_prefix("///").map(str::trim);
        found.extend(words.filter(|_| !is_inside).map(|words| (index + 1, words)));
        is_inside = words.is_some();
    }
    found
}

#[test]
fn every_file_belongs_to_the_program_or_to_a_test() {
    let mut reached = BTreeSet::new();
    let mut roots: Vec<PathBuf> = vec![top().join("src/lib.rs"), top().join("src/main.rs")];
    let tests = fs::read_dir(top().join("tests")).expect("the tests are in a directory");
    roots.extend(tests.map(|entry| entry.expect("a directory can be listed").path()).filter(|path| is_rust(path)));
    // Programs that Cargo.toml names by their path.
    let manifest = read("Cargo.toml");
    let named = manifest.lines().filter_map(|line| line.strip_prefix("path = \"")?.strip_suffix('"'));
    roots.extend(named.map(|path| top().join(path)));
    for root in roots {
        reach(&root, true, &mut reached);
    }
    let exists = |source: &Source| !reached.contains(&top().join(&source.path));
    let files = sources("src").into_iter().chain(sources("tests"));
    none(files.filter(exists).map(|source| format!("{}: no `mod` leads here", source.path)).collect());
}

#[test]
fn unsafe_code_stands_only_next_to_the_kernel() {
    let mut offences = Vec::new();
    for source in sources("src") {
        let announced =
            source.text.lines().any(|line| line.starts_with("#![") && line.contains("expect(unsafe_code, reason = "));
        let uses = source.code.iter().any(|line| line.contains("unsafe {") || line.contains("unsafe fn"));
        if uses && !(announced && source.path.starts_with("src/kernel/")) {
            offences.push(format!("{}: unsafe code, without a reason or outside of kernel", source.path));
        }
    }
    none(offences);
}

#[test]
fn every_dependency_has_its_reason() {
    let manifest = read("Cargo.toml");
    let mut declared: BTreeSet<(String, String)> = BTreeSet::new();
    let mut section = String::new();
    for line in manifest.lines() {
        if let Some(name) = line.strip_prefix('[') {
            section = name.trim_end_matches(']').to_owned();
        } else if section.ends_with("dependencies")
            && let Some((name, _)) = line.split_once('=')
        {
            declared.insert((section.clone(), name.trim().to_owned()));
        }
    }
    let mut explained = BTreeSet::new();
    let mut heading = "";
    let text = read("docs/dependencies.md");
    for line in text.lines() {
        match line {
            "## In the program" => heading = "dependencies",
            "## When the program is built" => heading = "build-dependencies",
            "## In tests only" => heading = "dev-dependencies",
            _ if line.starts_with("## ") => heading = "",
            _ => {}
        }
        let mut cells = line.split('|').map(str::trim).skip(1);
        let (name, reason) = (cells.next().unwrap_or_default(), cells.next().unwrap_or_default());
        if let Some(name) =
            name.strip_prefix('`').and_then(|name| name.strip_suffix('`')).filter(|_| !heading.is_empty())
        {
            assert!(reason.len() > 20, "{name} has no reason in docs/dependencies.md");
            explained.insert((heading.to_owned(), name.to_owned()));
        }
    }
    assert!(!declared.is_empty());
    assert_eq!(declared, explained, "left: Cargo.toml, right: docs/dependencies.md");
}

#[test]
fn texts_speak_of_the_project_alone() {
    // Written in pieces, so that this file does not offend.
    let words = [["/ro", "ot/"], ["/wo", "rk/"], ["/fa", "rm/"], ["clau", "de"], ["anthro", "pic"], ["chat", "gpt"]];
    let words: Vec<String> = words.iter().map(|pieces| pieces.concat()).collect();
    let mut offences = Vec::new();
    for path in every_text() {
        let text = read(&path);
        for (number, line) in text.lines().enumerate() {
            let lower = line.to_lowercase();
            let starts_a_path = |word: &str| {
                lower.match_indices(word).any(|(at, _)| {
                    let before = lower.get(..at).and_then(|before| before.chars().next_back());
                    !word.starts_with('/') || before.is_none_or(|c| !c.is_alphanumeric() && c != '}' && c != '_')
                })
            };
            offences.extend(
                words.iter().filter(|word| starts_a_path(word)).map(|word| format!("{path}:{}: {word}", number + 1)),
            );
        }
    }
    none(offences);
}

#[test]
fn no_text_holds_two_sides_of_a_merge() {
    let marks = ["<", "|", ">"].map(|sign| format!("{} ", sign.repeat(7)));
    let mut offences = Vec::new();
    for path in every_text() {
        let text = read(&path);
        let left = text.lines().enumerate().filter(|(_, line)| marks.iter().any(|mark| line.starts_with(mark)));
        offences.extend(left.map(|(number, _)| format!("{path}:{}", number + 1)));
    }
    none(offences);
}

#[test]
fn no_limit_is_lifted_without_a_reason() {
    let mut offences = Vec::new();
    for source in sources("src").into_iter().chain(sources("tests")) {
        for (number, line) in numbered(&source.code) {
            if line.contains("[allow(") && !line.contains("reason") {
                offences.push(format!("{}:{number}: {}", source.path, line.trim()));
            }
        }
    }
    none(offences);
}

/// Follows `mod` from file to file.
fn reach(file: &Path, is_root: bool, reached: &mut BTreeSet<PathBuf>) {
    let Ok(text) = fs::read_to_string(file) else {
        panic!("{} is named by a `mod` and does not exist", file.display())
    };
    if !reached.insert(file.to_owned()) {
        return;
    }
    let directory = file.parent().expect("a file is in a directory");
    let stem = file.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
    let own = if is_root || stem == "mod" { directory.to_owned() } else { directory.join(stem) };
    let mut path = None;
    for line in text.lines().map(str::trim) {
        if let Some(given) = line.strip_prefix("#[path = \"").and_then(|rest| rest.strip_suffix("\"]")) {
            path = Some(directory.join(given));
            continue;
        }
        let declared = line.strip_suffix(';').and_then(|line| line.rsplit_once("mod "));
        let Some((before, name)) = declared.filter(|(before, _)| before.is_empty() || before.starts_with("pub")) else {
            if !line.starts_with("#[") {
                path = None;
            }
            continue;
        };
        assert!(before.is_empty() || before.ends_with(' '), "{line}");
        let flat = own.join(format!("{name}.rs"));
        let child = path.take().unwrap_or_else(|| if flat.exists() { flat } else { own.join(name).join("mod.rs") });
        reach(&child.canonicalize().unwrap_or(child), false, reached);
    }
}

/// One function as the formatter leaves it.
struct Function {
    name: String,
    line: usize,
    lines: usize,
    arguments: usize,
}

/// The functions of formatted code: each ends with a brace at the depth at which it began.
fn functions(code: &[String]) -> Vec<Function> {
    let mut functions = Vec::new();
    for (index, line) in code.iter().enumerate() {
        let head = line.trim_start();
        let Some(at) = head.find("fn ").filter(|at| head[..*at].split(' ').all(is_qualifier)) else { continue };
        let name: String = head[at + 3..].chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
        let end = format!("{}}}", &line[..line.len() - head.len()]);
        let body = code[index..].iter().position(|line| *line == end || line.ends_with(';') && !line.contains('{'));
        let lines = body.map_or(1, |last| last + 1);
        let text = code[index..(index + lines).min(code.len())].join(" ");
        functions.push(Function { name, line: index + 1, lines, arguments: arguments(&text) });
    }
    functions
}

fn is_qualifier(word: &str) -> bool {
    word.is_empty() || word.starts_with("pub") || word.ends_with(')') || ["const", "async", "unsafe"].contains(&word)
}

/// How many arguments a function takes, itself not counted.
fn arguments(text: &str) -> usize {
    let after_name = text.split_once("fn ").map_or("", |(_, rest)| rest);
    let (mut depth, mut angles, mut count, mut inside) = (0_i32, 0_i32, 0, String::new());
    let mut previous = ' ';
    for c in after_name.chars() {
        match c {
            '<' => angles += 1,
            '>' if previous != '-' && previous != '=' => angles -= 1,
            '(' | '[' | '{' => depth += 1,
            ')' | ']' | '}' => depth -= 1,
            _ => {}
        }
        previous = c;
        let ends = depth == 0 && angles == 0 && c == ')';
        if ends || (depth == 1 && angles == 0 && c == ',') {
            let name = inside.trim_matches(|c: char| c.is_whitespace() || c == '(' || c == ',');
            if !name.is_empty() && !name.ends_with("self") {
                count += 1;
            }
            inside.clear();
        } else if depth >= 1 {
            inside.push(c);
        }
        if ends {
            break;
        }
    }
    count
}

fn sources(below: &str) -> Vec<Source> {
    let mut files = Vec::new();
    collect(&top().join(below), &mut files);
    let sources = files.into_iter().filter(|path| is_rust(path)).map(|path| {
        let text = fs::read_to_string(&path).expect("a source file is text");
        let code = without_tests(&text).map(|line| if is_comment(line) { String::new() } else { line.to_owned() });
        Source { path: relative(&path), code: code.collect(), text }
    });
    let sources: Vec<Source> = sources.collect();
    assert!(!sources.is_empty(), "there are sources in {below}");
    sources
}

/// All texts of the project.
fn every_text() -> Vec<String> {
    let mut files = Vec::new();
    for directory in
        ["src", "tests", "docs", "scripts", "daemonset", "charts", "kustomize", "cni", "image", "proto", ".ci"]
    {
        collect(&top().join(directory), &mut files);
    }
    let others = ["Cargo.toml", "CHANGELOG.md", "README.md", "SECURITY.md", "build.rs", "clippy.toml", "deny.toml"];
    files.extend(others.into_iter().chain(["rustfmt.toml", "rust-toolchain.toml"]).map(|name| top().join(name)));
    let readable = files.into_iter().filter(|path| fs::read_to_string(path).is_ok());
    readable.map(|path| relative(&path)).collect()
}

fn collect(directory: &Path, files: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(directory) else { return };
    for entry in entries {
        let path = entry.expect("a directory can be listed").path();
        match path.is_dir() {
            true if path.file_name().is_some_and(|name| name == "__pycache__") => {}
            true => collect(&path, files),
            false => files.push(path),
        }
    }
    files.sort();
}

/// The lines before the tests at the end of a file.
fn without_tests(text: &str) -> impl Iterator<Item = &str> {
    let mut lines = text.lines().peekable();
    std::iter::from_fn(move || {
        let line = lines.next()?;
        let tests_follow = lines.peek().is_some_and(|next| next.starts_with("mod tests {"));
        (!(line == "#[cfg(test)]" && tests_follow)).then_some(line)
    })
}

fn may_act(path: &str) -> bool {
    let below = path.strip_prefix("src/").unwrap_or(path);
    let name = below.rsplit('/').next().unwrap_or_default();
    is_test(path)
        || EFFECT_NAMES.contains(&name)
        || EFFECTS.iter().any(|place| below == *place || (place.ends_with('/') && below.starts_with(place)))
}

fn is_test(path: &str) -> bool {
    path.ends_with("/tests.rs") || path.contains("/tests/")
}

fn module_of(path: &str) -> &str {
    let below = path.strip_prefix("src/").unwrap_or(path);
    below.split(['/', '.']).next().unwrap_or_default()
}

/// The first parts of the paths in a line that begin with `prefix`; those of a list in braces too.
fn names_after(prefix: &str, line: &str) -> Vec<String> {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let mut names = Vec::new();
    for (at, _) in line.match_indices(prefix) {
        if line[..at].chars().next_back().is_some_and(is_word) {
            continue;
        }
        let rest = &line[at + prefix.len()..];
        match rest.strip_prefix('{') {
            Some(list) => {
                names.extend(list.split(',').map(|one| one.trim().chars().take_while(|c| is_word(*c)).collect()))
            }
            None => names.push(rest.chars().take_while(|c| is_word(*c)).collect()),
        }
    }
    names.retain(|name: &String| name.chars().next().is_some_and(char::is_lowercase));
    names
}

fn is_comment(line: &str) -> bool {
    line.trim_start().starts_with("//")
}

fn numbered(code: &[String]) -> impl Iterator<Item = (usize, &String)> {
    code.iter().enumerate().map(|(index, line)| (index + 1, line))
}

fn none(offences: Vec<String>) {
    assert!(offences.is_empty(), "{} offences:\n  {}", offences.len(), offences.join("\n  "));
}

fn read(path: &str) -> String {
    fs::read_to_string(top().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn top() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn relative(path: &Path) -> String {
    path.strip_prefix(top()).unwrap_or(path).display().to_string()
}

fn is_rust(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "rs")
}

/// The rules are rules only if they can be broken.
mod rules_bite {
    use super::*;

    fn code(text: &str) -> Vec<String> {
        text.lines().map(str::to_owned).collect()
    }

    #[test]
    fn imports_are_found_alone_in_lists_and_in_the_middle_of_a_line() {
        assert_eq!(names_after("crate::", "use crate::kernel::ipvs;"), ["kernel"]);
        assert_eq!(names_after("crate::", "use crate::{net::Family, proxy};"), ["net", "proxy"]);
        assert_eq!(names_after("crate::", "    x: crate::world::World, y: othercrate::z"), ["world"]);
    }

    #[test]
    fn lines_and_arguments_of_functions_are_counted() {
        let found = functions(&code(
            "    pub(super) fn short(&mut self, a: BTreeMap<K, V>, b: impl Fn(&K, u8) -> bool) -> R {\n        x\n    }",
        ));
        assert_eq!(
            found.iter().map(|f| (f.name.as_str(), f.lines, f.arguments)).collect::<Vec<_>>(),
            [("short", 3, 2)]
        );
        let found =
            functions(&code("async fn long(\n    a: u8,\n    b: u8,\n) -> Result<(), E> {\n    x\n}\nstruct S;"));
        assert_eq!(found.iter().map(|f| (f.name.as_str(), f.lines, f.arguments)).collect::<Vec<_>>(), [("long", 6, 2)]);
    }

    #[test]
    fn tests_at_the_end_of_a_file_do_not_count() {
        let text = "//! A\nfn a() {}\n#[cfg(test)]\nmod tests {\n    fn b() {}\n}\n";
        assert_eq!(without_tests(text).count(), 2);
    }

    #[test]
    fn only_the_first_line_of_a_docstring_begins_it() {
        let text =
            "//! What is here.\n/// A thing.\n/// What it does.\nstruct A {\n    /// What b is.\n    b: u8,\n}\n";
        assert_eq!(docstrings(text), [(2, "A thing."), (5, "What b is.")]);
    }

    #[test]
    fn a_pure_file_is_told_from_one_that_acts() {
        for (path, acts) in [
            ("src/proxy/plan.rs", false),
            ("src/proxy/driver.rs", true),
            ("src/proxy/mod.rs", false),
            ("src/subsystem/mod.rs", true),
            ("src/kernel/ipvs/wire.rs", true),
            ("src/world/joined.rs", false),
            ("src/world.rs", true),
        ] {
            assert_eq!(may_act(path), acts, "{path}");
        }
    }
}
