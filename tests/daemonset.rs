//! The manifests of `daemonset/`: what they give to the agent, and what their init container does to a node's folder of CNI files; and that they and the base for
//! kustomize are of the chart as it is.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that panics has failed")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

/// A file with the agent.
struct Manifest {
    name: String,
    objects: Vec<Value>,
}

impl Manifest {
    /// The object of this kind.
    fn object(&self, kind: &str) -> &Value {
        self.objects.iter().find(|object| object["kind"] == kind).unwrap_or(&Value::Null)
    }

    fn pod(&self) -> &Value {
        &self.object("DaemonSet")["spec"]["template"]["spec"]
    }

    /// The agent's container.
    fn agent(&self) -> &Value {
        &self.pod()["containers"][0]
    }

    fn has_flag(&self, flag: &str) -> bool {
        list(&self.agent()["args"]).iter().any(|argument| argument == flag)
    }

    /// The containers, the init containers before the agent's.
    fn containers(&self) -> Vec<&Value> {
        list(&self.pod()["initContainers"]).iter().chain(list(&self.pod()["containers"])).collect()
    }

    /// The script of the init container for CNI.
    fn cni_script(&self) -> Option<&str> {
        let containers = list(&self.pod()["initContainers"]);
        let found = containers.iter().find(|container| container["name"] == "install-cni")?;
        found["command"][2].as_str()
    }
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("daemonset")
}

/// The objects of a file.
fn objects(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap();
    let objects = text.split("\n---\n").map(serde_saphyr::from_str);
    objects.collect::<Result<_, _>>().unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// All files with an agent.
fn manifests() -> Vec<Manifest> {
    let mut paths: Vec<PathBuf> = fs::read_dir(folder()).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    let read = |path: &PathBuf| Manifest { name: path.display().to_string(), objects: objects(path) };
    let manifests: Vec<Manifest> = paths.iter().map(read).filter(|file| !file.object("DaemonSet").is_null()).collect();
    assert!(manifests.len() >= 8, "there are manifests");
    manifests
}

/// The path on the host that a container sees at this path of its own.
fn mounted<'a>(of: &'a Manifest, container: &Value, at: &str) -> Option<&'a str> {
    let mount = list(&container["volumeMounts"]).iter().find(|mount| mount["mountPath"] == at)?;
    let volume = list(&of.pod()["volumes"]).iter().find(|volume| volume["name"] == mount["name"])?;
    volume["hostPath"]["path"].as_str()
}

/// The files below a directory of the project, as paths from its top.
fn files_below(directory: &str) -> Vec<String> {
    let top = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (mut found, mut waiting) = (Vec::new(), vec![top.join(directory)]);
    while let Some(directory) = waiting.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                waiting.push(path);
            } else {
                found.push(path.strip_prefix(top).unwrap().display().to_string());
            }
        }
    }
    found
}

/// The file of digests says from which state of the chart the others were made; `scripts/test charts` makes them again and compares.
#[test]
fn manifests_and_the_base_for_kustomize_are_of_the_chart_as_it_is() {
    let top = Path::new(env!("CARGO_MANIFEST_DIR"));
    let listed = fs::read_to_string(top.join("charts/rendered.sha256")).unwrap();
    let listed: BTreeMap<&str, &str> =
        listed.lines().map(|line| line.split_once("  ").unwrap()).map(|(d, p)| (p, d)).collect();
    let written_by_hand = |path: &String| path.ends_with("kustomization.yaml") || path == "charts/rendered.sha256";
    let directories = ["charts", "daemonset", "kustomize"];
    let there: Vec<String> =
        directories.into_iter().flat_map(files_below).filter(|path| !written_by_hand(path)).collect();
    assert!(there.len() >= 30, "{there:?}");
    let digest = |path: &str| -> String {
        let bytes = fs::read(top.join(path)).unwrap_or_default();
        let digest = ring::digest::digest(&ring::digest::SHA256, &bytes);
        digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
    };
    let other = there.iter().filter(|path| listed.get(path.as_str()) != Some(&digest(path).as_str()));
    let gone = listed.keys().filter(|path| !top.join(path).exists());
    let other: Vec<&str> = other.map(String::as_str).chain(gone.copied()).collect();
    assert_eq!(other, [""; 0], "changed since the files were made of the chart: run scripts/manifests");
}

#[test]
fn the_chart_is_of_this_version() {
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("charts/sluice/Chart.yaml")).unwrap();
    for field in ["version", "appVersion"] {
        assert!(text.lines().any(|line| line == format!("{field}: {}", env!("CARGO_PKG_VERSION"))), "{field}");
    }
}

/// A flag that no file of `daemonset/` has is in the chart's template alone.
#[test]
fn every_flag_that_the_chart_and_kustomize_may_give_is_one_of_the_agents() {
    let usage = sluice::config::usage("sluice");
    let mut seen = BTreeSet::new();
    for path in ["charts/sluice/templates/daemonset.yaml", "kustomize/all-features/kustomization.yaml"] {
        let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap();
        let flags = text.lines().filter_map(|line| {
            let words = line.trim_start().trim_start_matches("value: ").trim_start_matches("- ");
            // One with a value is in quotes, whatever the value is.
            words.trim_start_matches("{{ printf \"").strip_prefix("--")
        });
        seen.extend(flags.map(|flag| flag.split('=').next().unwrap().to_owned()));
    }
    assert!(seen.len() > 25, "{seen:?}");
    for flag in seen {
        assert!(usage.contains(&format!("--{flag} ")), "--{flag}");
    }
}

#[test]
fn every_image_has_the_tag_of_this_version_and_is_not_fetched_again() {
    let image = format!("sluice:{}", env!("CARGO_PKG_VERSION"));
    for of in manifests() {
        for container in of.containers() {
            assert_eq!(container["image"], image, "{}", of.name);
            assert_eq!(container["imagePullPolicy"], "IfNotPresent", "{}", of.name);
        }
    }
}

#[test]
fn agents_run_on_nodes_with_linux_alone() {
    for of in manifests() {
        assert_eq!(of.pod()["nodeSelector"]["kubernetes.io/os"], "linux", "{}", of.name);
    }
}

#[test]
fn the_last_known_state_is_kept_on_the_host() {
    for of in manifests() {
        assert_eq!(mounted(&of, of.agent(), "/var/lib/sluice"), Some("/var/lib/sluice"), "{}", of.name);
    }
}

#[test]
fn the_status_of_nodes_may_be_written_only_where_somebody_asked_for_it() {
    let may_write = |objects: &[Value]| {
        let rules = objects.iter().flat_map(|object| list(&object["rules"]));
        rules.flat_map(|rule| list(&rule["resources"])).any(|resource| resource == "nodes/status")
    };
    for of in manifests() {
        assert!(!may_write(&of.objects), "{}", of.name);
    }
    let asked = objects(&folder().join("kube-router-node-status.yaml"));
    assert!(may_write(&asked));
    let binding = &asked[1];
    assert_eq!(binding["roleRef"]["name"], asked[0]["metadata"]["name"]);
    for of in manifests() {
        assert_eq!(binding["subjects"][0]["name"], of.pod()["serviceAccountName"], "{}", of.name);
    }
}

#[test]
fn nodes_may_be_written_only_where_somebody_asked_for_it() {
    let may_write = |objects: &[Value]| {
        let rules = objects.iter().flat_map(|object| list(&object["rules"]));
        let writes = |rule: &&Value| {
            list(&rule["verbs"]).iter().any(|verb| !["get", "list", "watch"].contains(&verb.as_str().unwrap()))
        };
        rules.filter(writes).flat_map(|rule| list(&rule["resources"])).any(|resource| resource == "nodes")
    };
    for of in manifests() {
        assert!(!may_write(&of.objects), "{}", of.name);
    }
    let asked = objects(&folder().join("kube-router-node-annotations.yaml"));
    assert!(may_write(&asked));
    assert_eq!(asked[1]["roleRef"]["name"], asked[0]["metadata"]["name"]);
    for of in manifests() {
        assert_eq!(asked[1]["subjects"][0]["name"], of.pod()["serviceAccountName"], "{}", of.name);
    }
}

#[test]
fn every_agent_may_follow_the_ranges_of_cluster_ips() {
    for of in manifests() {
        let rules = list(&of.object("ClusterRole")["rules"]);
        let names = |rule: &&Value, field: &str, word: &str| list(&rule[field]).iter().any(|it| it == word);
        let found = rules.iter().find(|rule| names(rule, "resources", "servicecidrs"));
        let rule = found.unwrap_or_else(|| panic!("{}: servicecidrs may not be read", of.name));
        assert!(names(&rule, "apiGroups", "networking.k8s.io"), "{}", of.name);
        assert!(["list", "watch"].iter().all(|verb| names(&rule, "verbs", verb)), "{}", of.name);
    }
}

/// Direct server return asks Pods whose addresses are whose; without the flag nobody lists them.
#[test]
fn every_agent_with_the_service_proxy_may_follow_pods() {
    let proxies: Vec<Manifest> =
        manifests().into_iter().filter(|of| !of.has_flag("--run-service-proxy=false")).collect();
    assert!(proxies.iter().any(|of| of.has_flag("--run-firewall=false")), "one without the firewall is among them");
    for of in proxies {
        let rules = list(&of.object("ClusterRole")["rules"]);
        let names = |rule: &&Value, field: &str, word: &str| list(&rule[field]).iter().any(|it| it == word);
        let may =
            |verb: &str| rules.iter().any(|rule| names(&rule, "resources", "pods") && names(&rule, "verbs", verb));
        assert!(["list", "watch"].into_iter().all(may), "{}: pods may not be read", of.name);
    }
}

#[test]
fn every_agent_may_create_events_of_what_it_finds_wrong() {
    for of in manifests() {
        let rules = list(&of.object("ClusterRole")["rules"]);
        let names = |rule: &&Value, field: &str, word: &str| list(&rule[field]).iter().any(|it| it == word);
        let may = rules.iter().any(|rule| names(&rule, "resources", "events") && names(&rule, "verbs", "create"));
        assert!(may, "{}", of.name);
    }
}

#[test]
fn the_status_of_services_may_be_written_only_where_the_allocator_of_addresses_runs() {
    let resources = |objects: &[Value]| -> Vec<Value> {
        let rules = objects.iter().flat_map(|object| list(&object["rules"]));
        rules.flat_map(|rule| list(&rule["resources"])).cloned().collect()
    };
    for of in manifests() {
        let named = resources(&of.objects);
        assert!(!named.iter().any(|it| it == "services/status" || it == "leases" || it == "configmaps"), "{}", of.name);
        assert!(!of.has_flag("--run-loadbalancer=true"), "{}", of.name);
    }
    let asked = objects(&folder().join("kube-router-load-balancer.yaml"));
    let named = resources(&asked);
    for resource in ["services", "services/status", "events", "leases", "configmaps"] {
        assert!(named.iter().any(|it| it == resource), "{resource}");
    }
    for binding in asked.iter().filter(|object| object["subjects"].is_array()) {
        for of in manifests() {
            assert_eq!(binding["subjects"][0]["name"], of.pod()["serviceAccountName"], "{}", of.name);
        }
    }
}

#[test]
fn a_firewall_alone_is_told_the_range_of_services() {
    for of in manifests().iter().filter(|of| of.has_flag("--run-firewall=true") && !of.has_flag("--run-router=true")) {
        let named = |argument: &Value| argument.as_str().unwrap().starts_with("--service-cluster-ip-range=");
        assert_eq!(list(&of.agent()["args"]).iter().filter(|it| named(it)).count(), 1, "{}", of.name);
    }
}

#[test]
fn cni_is_installed_only_where_the_router_gives_pods_their_network() {
    for of in manifests() {
        assert!(gives_network(&of) || of.cni_script().is_none(), "{}", of.name);
        let directory = mounted(&of, of.agent(), "/etc/cni/net.d");
        assert!(!gives_network(&of) || directory == Some("/etc/cni/net.d"), "{}", of.name);
    }
}

fn gives_network(of: &Manifest) -> bool {
    of.has_flag("--run-router=true") && !of.has_flag("--enable-cni=false")
}

/// An entry of the plugin that nobody answers any more keeps all pods of the node from starting.
#[test]
fn an_agent_that_may_have_been_named_in_a_cni_file_finds_the_hosts_files() {
    for of in manifests() {
        let sees_files = mounted(&of, of.agent(), "/etc/cni/net.d") == Some("/etc/cni/net.d");
        assert_eq!(sees_files, gives_network(&of) || of.has_flag("--run-firewall=true"), "{}", of.name);
    }
}

/// On a host whose /run is a private mount a container with such a mount does not start, and this version needs none.
#[test]
fn no_agent_asks_for_mounts_that_follow_the_hosts() {
    for of in manifests() {
        let mounts = list(&of.agent()["volumeMounts"]);
        assert!(mounts.iter().all(|mount| mount["mountPropagation"].is_null()), "{}", of.name);
    }
}

/// Runs the script on folders of the test in the place of the container's; programs in the node's folder `tools` are found first. `hold_pods` is what the
/// container's variable says.
fn output(of: &Manifest, node: &Path, hold_pods: &str) -> Output {
    let folder = |name: &str| node.join(name).display().to_string();
    let places = [
        ("/etc/cni/net.d", folder("net.d")),
        ("/usr/local/bin", folder("bin")),
        ("/opt/cni/bin", folder("opt/cni/bin")),
    ];
    let script = of.cni_script().unwrap().to_owned();
    let script = places.iter().fold(script, |script, (there, here)| script.replace(there, here));
    let programs = format!("{}:{}", folder("tools"), std::env::var("PATH").unwrap());
    let mut shell = Command::new("/bin/sh");
    shell.args(["-ec", &script]).env("PATH", programs).env("HOLD_PODS", hold_pods).output().unwrap()
}

/// Runs the script as the file has it, which has to succeed.
fn run(of: &Manifest, node: &Path) {
    let done = output(of, node, "false");
    assert!(done.status.success(), "{}: {}", of.name, String::from_utf8_lossy(&done.stderr));
}

fn with_cni() -> Vec<Manifest> {
    let found: Vec<Manifest> = manifests().into_iter().filter(|of| of.cni_script().is_some()).collect();
    assert!(found.len() >= 4, "most manifests have it");
    found
}

/// The files of the folder, with what is in them.
fn files(node: &Path) -> Vec<(String, String)> {
    let entries = fs::read_dir(node.join("net.d")).unwrap().map(Result::unwrap);
    let mut files: Vec<_> = entries
        .map(|entry| (entry.file_name().into_string().unwrap(), fs::read_to_string(entry.path()).unwrap()))
        .collect();
    files.sort();
    files
}

fn node(there: &[(&str, &str)]) -> tempfile::TempDir {
    let node = tempfile::tempdir().unwrap();
    fs::create_dir(node.path().join("net.d")).unwrap();
    for (name, text) in there {
        fs::write(node.path().join("net.d").join(name), text).unwrap();
    }
    node
}

#[test]
fn the_cni_files_of_a_node_are_left_to_the_agent() {
    for of in &with_cni() {
        for there in [
            &[][..],
            // Pods get their network by it until the agent, which knows the node's ranges, has written its own.
            &[("10-kuberouter.conf", "of an older release"), ("99-loopback.conf", "of somebody else")],
        ] {
            let node = node(there);
            run(of, node.path());
            let expected: Vec<_> = there.iter().map(|(name, text)| (name.to_string(), text.to_string())).collect();
            assert_eq!(files(node.path()), expected, "{}", of.name);
        }
    }
}

#[test]
fn every_agent_with_pod_networking_writes_the_same_cni_file() {
    for of in manifests().iter().filter(|of| gives_network(of)) {
        let file = list(&of.agent()["env"]).iter().find(|it| it["name"] == "KUBE_ROUTER_CNI_CONF_FILE").unwrap();
        assert_eq!(file["value"], "/etc/cni/net.d/10-kuberouter.conflist", "{}", of.name);
    }
}

#[test]
fn a_later_start_leaves_what_the_agent_wrote() {
    for of in &with_cni() {
        let there = [("10-kuberouter.conflist", "with the ranges of this node")];
        let node = node(&there);
        run(of, node.path());
        assert_eq!(files(node.path()), there.map(|(name, text)| (name.to_owned(), text.to_owned())), "{}", of.name);
    }
}

#[test]
fn plugins_are_installed_where_the_image_brings_them() {
    use std::os::unix::fs::PermissionsExt;
    for of in &with_cni() {
        let node = node(&[]);
        fs::create_dir(node.path().join("bin")).unwrap();
        let program = node.path().join("bin/cni-install");
        fs::write(&program, format!("#!/bin/sh\ntouch {}\n", node.path().join("installed").display())).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        run(of, node.path());
        assert!(node.path().join("installed").exists(), "{}", of.name);
    }
}

/// Puts a program that does nothing but say which it is into the image.
fn put_program(node: &Path, name: &str, text: &str) {
    put_script(&node.join("bin").join(name), &format!("# {text}"));
}

fn put_script(path: &Path, text: &str) {
    use std::os::unix::fs::PermissionsExt;
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, format!("#!/bin/sh\n{text}\n")).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

/// Has every copy end with a part of the file, as on a full disk.
fn fill_disk(node: &Path) {
    put_script(
        &node.join("tools/cp"),
        "for last; do :; done; echo part >\"$last\"; echo 'cp: no space left' >&2; exit 1",
    );
}

#[test]
fn the_agents_own_plugin_is_the_one_of_this_release_also_while_it_runs() {
    for of in &with_cni() {
        let node = node(&[]);
        let plugins = node.path().join("opt/cni/bin");
        fs::create_dir_all(&plugins).unwrap();
        // What a copy that was ended has left, and the copy of another DaemonSet's container, which has just begun.
        let (old, young) = (plugins.join(".sluice-cni.q3Rt5z"), plugins.join(".sluice-cni.Ab12Cd"));
        [&old, &young].iter().for_each(|part| fs::write(part, "a part").unwrap());
        let hour = std::time::Duration::from_secs(3600);
        let made = fs::File::options().write(true).open(&old).unwrap();
        made.set_modified(std::time::SystemTime::now() - hour).unwrap();
        for release in ["one release", "the next"] {
            put_program(node.path(), "sluice", release);
            let before = fs::File::open(node.path().join("opt/cni/bin/sluice-cni"));
            run(of, node.path());
            let installed = node.path().join("opt/cni/bin/sluice-cni");
            assert!(fs::read_to_string(&installed).unwrap().contains(release), "{}", of.name);
            assert!(Command::new(&installed).status().unwrap().success(), "{}", of.name);
            if let Ok(before) = before {
                let text = std::io::read_to_string(before).unwrap();
                assert!(text.contains("one release"), "{}: a runtime that runs it now is not disturbed", of.name);
            }
        }
        assert!(young.exists() && !old.exists(), "{}", of.name);
        assert_eq!(fs::read_dir(plugins).unwrap().count(), 2, "{}", of.name);
    }
}

#[test]
fn a_plugin_that_is_there_already_is_not_copied_again() {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    for of in &with_cni() {
        let node = node(&[]);
        put_program(node.path(), "sluice", "this release");
        run(of, node.path());
        let installed = node.path().join("opt/cni/bin/sluice-cni");
        let before = fs::metadata(&installed).unwrap();
        run(of, node.path());
        assert_eq!(fs::metadata(&installed).unwrap().ino(), before.ino(), "{}", of.name);
        // One that no runtime can start is as good as none.
        fs::set_permissions(&installed, fs::Permissions::from_mode(0o644)).unwrap();
        run(of, node.path());
        assert_eq!(fs::metadata(&installed).unwrap().mode() & 0o777, 0o755, "{}", of.name);
    }
}

#[test]
fn a_plugin_that_cannot_be_copied_keeps_the_agent_from_nodes_alone_whose_pods_wait_for_it() {
    let names_it = r#"{"plugins": [{"type": "bridge"}, {"type": "sluice-cni"}]}"#;
    let others = r#"{"plugins": [{"type": "bridge"}]}"#;
    for of in &with_cni() {
        let init = of.containers()[0];
        let mounts = list(&init["volumeMounts"]);
        let seen = mounts.iter().find(|mount| mount["mountPath"] == "/etc/cni/net.d").unwrap();
        assert_eq!(seen["readOnly"], true, "{}", of.name);
        assert_eq!(mounted(of, init, "/etc/cni/net.d"), Some("/etc/cni/net.d"), "{}", of.name);
        for (file, older, code, sentence) in [
            (names_it, true, 0, "sluice-cni cannot be replaced"),
            (others, false, 0, "sluice-cni cannot be installed; no CNI file names it"),
            (names_it, false, 1, "sluice-cni cannot be installed, and no pod starts without it"),
        ] {
            let node = node(&[("10-kuberouter.conflist", file)]);
            put_program(node.path(), "sluice", "this release");
            let plugins = node.path().join("opt/cni/bin");
            fs::create_dir_all(&plugins).unwrap();
            if older {
                put_script(&plugins.join("sluice-cni"), "# an older release");
            }
            fill_disk(node.path());
            let done = output(of, node.path(), "false");
            let said = String::from_utf8_lossy(&done.stderr).into_owned();
            assert_eq!(done.status.code(), Some(code), "{}: {said}", of.name);
            assert!(said.contains(sentence), "{}: {said}", of.name);
            let left: Vec<_> = fs::read_dir(&plugins).unwrap().map(|entry| entry.unwrap().file_name()).collect();
            assert_eq!(left, if older { vec!["sluice-cni"] } else { Vec::new() }, "{}", of.name);
        }
    }
}

/// On a new node no CNI file names the plugin: the agent writes it, and init containers do not run again.
#[test]
fn where_pods_are_held_back_a_new_node_without_the_plugin_gets_no_agent() {
    for of in &with_cni() {
        let variables = list(&of.containers()[0]["env"]);
        let found: Vec<_> = variables.iter().filter(|variable| variable["name"] == "HOLD_PODS").collect();
        assert!(matches!(found[..], [one] if one["value"] == "false"), "{}: whoever wants it says so", of.name);
        for (hold_pods, code) in [("true", 1), ("yes", 1), ("false", 0), ("", 0)] {
            let node = node(&[]);
            put_program(node.path(), "sluice", "this release");
            fill_disk(node.path());
            let done = output(of, node.path(), hold_pods);
            let said = String::from_utf8_lossy(&done.stderr).into_owned();
            assert_eq!(done.status.code(), Some(code), "{} with {hold_pods:?}: {said}", of.name);
            assert_eq!(said.contains("no pod starts without it"), code == 1, "{}: {said}", of.name);
        }
    }
}

#[test]
fn where_pods_are_held_back_the_plugin_of_another_release_is_enough() {
    for of in &with_cni() {
        let node = node(&[]);
        put_program(node.path(), "sluice", "this release");
        put_script(&node.path().join("opt/cni/bin/sluice-cni"), "# an older release");
        fill_disk(node.path());
        let done = output(of, node.path(), "true");
        let said = String::from_utf8_lossy(&done.stderr).into_owned();
        assert!(done.status.success() && said.contains("sluice-cni cannot be replaced"), "{}: {said}", of.name);
    }
}

/// Where its target is seen by the container: beyond a mount that it lacks only the variable helps.
#[test]
fn a_cni_file_that_is_a_link_names_the_plugin_like_any_other() {
    for of in &with_cni() {
        let node = node(&[]);
        let target = node.path().join("elsewhere.conflist");
        fs::write(&target, r#"{"plugins": [{"type": "bridge"}, {"type": "sluice-cni"}]}"#).unwrap();
        std::os::unix::fs::symlink(&target, node.path().join("net.d/10-kuberouter.conflist")).unwrap();
        put_program(node.path(), "sluice", "this release");
        fill_disk(node.path());
        let done = output(of, node.path(), "false");
        let said = String::from_utf8_lossy(&done.stderr).into_owned();
        assert_eq!(done.status.code(), Some(1), "{}: {said}", of.name);
        assert!(said.contains("no pod starts without it"), "{}: {said}", of.name);
    }
}

/// An apply between files of two selectors narrows the rights of the agents that run, and then fails.
#[test]
fn each_file_with_a_selector_of_its_own_says_what_goes_before_it() {
    let of_most = |of: &Manifest| !of.object("DaemonSet")["spec"]["selector"]["matchLabels"]["tier"].is_null();
    let (most, others): (Vec<Manifest>, Vec<Manifest>) = manifests().into_iter().partition(of_most);
    assert!(most.len() >= 5 && others.len() >= 3);
    for of in others {
        let text = fs::read_to_string(&of.name).unwrap();
        let command = "#     kubectl -n kube-system delete ds kube-router --cascade=foreground";
        assert!(text.lines().take_while(|line| line.starts_with('#')).any(|line| line == command), "{}", of.name);
    }
}

#[test]
fn the_plugin_finds_the_agent_and_what_it_announced_outlives_the_agents_container() {
    let enforces = |of: &Manifest| of.has_flag("--run-firewall=true");
    for of in manifests().into_iter().filter(enforces) {
        assert_eq!(mounted(&of, of.agent(), "/run/sluice"), Some("/run/sluice"), "{}", of.name);
        assert!(!of.has_flag("--netpol-cni=true"), "{}: whoever wants it says so", of.name);
    }
}
