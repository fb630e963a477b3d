//! The CNI configuration file: the pod CIDRs from which pods get their addresses, and their MTU.
//!
//! CNI specification 1.0 (network configuration, lists of plugins), the plugins `bridge` and `host-local`. The file is
//! shared with whoever installed it: its content stays, except for the `mtu` of the bridge plugin and the ranges of its
//! `ipam`. A file whose name ends in `.conflist` is a list of plugins, any other is one plugin. If there is no file,
//! one is created with the plugins `bridge`, `host-local` and `portmap`.
//!
//! The ranges become exactly those of the node: an older one belongs to another node by now. An existing range set
//! keeps its other fields (`rangeStart`, `gateway`). Ranges are compared by value, not by spelling. While the node has
//! no ranges nothing is changed, and any `ipam` other than `host-local` is left alone.
//!
//! With `--netpol-cni` the list ends with our own plugin. What its entry says besides our socket stays; without the flag an
//! agent with the firewall takes it out of every list in the directory, whoever wrote it ([`without_plugin`]), because pods would not start
//! without it being answered. To one without the firewall it is another agent's, and stays.
//!
//! The text is compact, its keys are sorted, and it has no trailing line break, as kube-router writes it.

mod others;

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};

use crate::config::RouterConfig;
use crate::model::{CNI_VERSIONS, DEFAULT_CNI_SOCKET};

use super::names::BRIDGE;

pub use self::others::Other;

/// Desired fields of the file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Conf {
    /// The pod CIDRs of this node, IPv4 first.
    pub ranges: Vec<IpNet>,
    /// The MTU of pods, in bytes; `None` leaves it unchanged.
    pub mtu: Option<u32>,
    /// The socket of the plugin that waits for the rules of pods ([`PLUGIN`]), which is the last of the list; `None` leaves it as it is.
    pub plugin: Option<PathBuf>,
}

/// The plugin of `--netpol-cni`, which is this program under another name (`cni`).
pub const PLUGIN: &str = "sluice-cni";

/// The two forms of a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CniFileForm {
    /// One plugin.
    Single,
    /// A list of plugins.
    List,
}

/// Reason why a file is left unchanged, as a sentence.
#[derive(thiserror::Error, Clone, PartialEq, Eq, Debug)]
pub enum Unusable {
    #[error("it is not JSON: {0}; it is left as it is, so that pods may lack addresses")]
    NotJson(String),
    #[error("it has no plugin of type bridge; it is left as it is")]
    NoBridge,
    #[error(
        "it has no plugin of type bridge; it is left as it is, so that --netpol-cni holds back no pod: add the entry \
         {{\"type\": \"{PLUGIN}\", \"socket\": {0:?}}} at the end of its plugins"
    )]
    NoBridgeForPlugin(PathBuf),
    #[error(
        "its cniVersion is {0:?}, in which {PLUGIN} cannot be called, so that --netpol-cni holds back no pod: set cniVersion to one \
         of {spoken}", spoken = CNI_VERSIONS.join(", ")
    )]
    OtherVersion(String),
    #[error("its ipam is of type {0:?} and not host-local, so that its ranges are left as they are")]
    OtherIpam(String),
}

impl Conf {
    /// Returns what the file of a node with these pod CIDRs and this MTU of pods has to say.
    pub fn new(ranges: Vec<IpNet>, mtu: Option<u32>, config: &RouterConfig) -> Conf {
        Conf { ranges, mtu, plugin: config.cni_plugin.clone() }
    }
}

impl CniFileForm {
    /// Returns the form of the file with this name.
    pub fn of(path: &Path) -> CniFileForm {
        let is_list = path.extension().is_some_and(|end| end.eq_ignore_ascii_case("conflist"));
        if is_list { CniFileForm::List } else { CniFileForm::Single }
    }
}

/// Returns the desired text, given the present one. An error comes with the changes that were possible, if any.
pub fn text(present: Option<&str>, form: CniFileForm, wanted: &Conf) -> (Option<String>, Option<Unusable>) {
    let mut conf = match present.filter(|text| !text.trim().is_empty()).map(serde_json::from_str::<Value>) {
        None if wanted.ranges.is_empty() => return (None, None),
        None => fresh(form),
        Some(Ok(conf)) => conf,
        Some(Err(error)) => return (None, Some(Unusable::NotJson(error.to_string()))),
    };
    let Some(plugin) = bridge_plugin(&mut conf, form) else {
        let lacks_plugin = wanted.plugin.clone().filter(|_| form == CniFileForm::List && !has_plugin(&conf));
        return (None, Some(lacks_plugin.map_or(Unusable::NoBridge, Unusable::NoBridgeForPlugin)));
    };
    if let Some(mtu) = wanted.mtu {
        plugin.insert("mtu".to_owned(), mtu.into());
    }
    let mut unusable = None;
    if !wanted.ranges.is_empty() {
        unusable = set_ranges(plugin, &wanted.ranges).err();
    }
    let other_version = wanted.plugin.as_ref().and_then(|_| other_version(&conf));
    if let Some(socket) = &wanted.plugin {
        set_plugin(&mut conf, Some(&**socket).filter(|_| other_version.is_none()));
    }
    (Some(conf.to_string()), unusable.or(other_version.map(Unusable::OtherVersion)))
}

/// Returns the version of a list in which our plugin cannot be called. A list that names none is of the earliest version.
fn other_version(conf: &Value) -> Option<String> {
    let several = conf.get("cniVersions").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let one = conf.get("cniVersion").and_then(Value::as_str);
    let mut named = several.iter().filter_map(Value::as_str).chain(one);
    let is_spoken = named.any(|version| CNI_VERSIONS.contains(&version));
    (conf.get("plugins").is_some() && !is_spoken).then(|| one.unwrap_or_default().to_owned())
}

fn is_plugin(entry: &Value) -> bool {
    entry.get("type").and_then(Value::as_str) == Some(PLUGIN)
}

fn has_plugin(conf: &Value) -> bool {
    conf.get("plugins").and_then(Value::as_array).is_some_and(|plugins| plugins.iter().any(is_plugin))
}

/// Puts the entry of our plugin behind all others, or removes it.
fn set_plugin(conf: &mut Value, socket: Option<&Path>) {
    let Some(plugins) = conf.get_mut("plugins").and_then(Value::as_array_mut) else { return };
    let present = plugins.iter().find(|entry| is_plugin(entry)).cloned();
    plugins.retain(|entry| !is_plugin(entry));
    let Some(socket) = socket else { return };
    let mut entry = present.unwrap_or_else(|| json!({"type": PLUGIN}));
    if let Some(fields) = entry.as_object_mut() {
        fields.insert("socket".to_owned(), socket.display().to_string().into());
    }
    plugins.push(entry);
}

/// Returns a list of plugins without the entries of ours and otherwise as it is written, byte by byte; `None` where it has none.
pub fn without_plugin(text: &str) -> Option<String> {
    #[derive(Deserialize)]
    struct List<'a> {
        #[serde(borrow)]
        plugins: Vec<&'a RawValue>,
    }
    #[derive(Deserialize)]
    struct Entry<'a> {
        #[serde(rename = "type", borrow)]
        kind: Cow<'a, str>,
    }
    let is_plugin = |entry: &RawValue| serde_json::from_str::<Entry<'_>>(entry.get()).is_ok_and(|e| e.kind == PLUGIN);
    let plugins = serde_json::from_str::<List<'_>>(text).ok()?.plugins;
    if !plugins.iter().any(|entry| is_plugin(entry)) {
        return None;
    }
    // Each entry borrows from the text, so that its address tells its place.
    let place = |entry: &RawValue| {
        let begin = (entry.get().as_ptr() as usize).checked_sub(text.as_ptr() as usize)?;
        Some((begin, begin + entry.get().len()))
    };
    let mut kept = text.get(..place(plugins.first()?)?.0)?.to_owned();
    let (mut end, mut has_kept) = (kept.len(), false);
    for entry in plugins {
        let (begin, own_end) = place(entry)?;
        if !is_plugin(entry) {
            kept.push_str(text.get(end..begin).filter(|_| has_kept).unwrap_or_default());
            kept.push_str(entry.get());
            has_kept = true;
        }
        end = own_end;
    }
    kept.push_str(text.get(end..)?);
    Some(kept)
}

/// Returns the sockets on which the entries of our plugin in a list are answered, as they name them.
pub fn plugin_sockets(text: &str) -> Vec<PathBuf> {
    let list: Value = serde_json::from_str(text).unwrap_or_default();
    let plugins = list.get("plugins").and_then(|plugins| plugins.as_array()).into_iter().flatten();
    let ours = plugins.filter(|entry| entry.get("type").is_some_and(|kind| kind == PLUGIN));
    let named = |entry: &Value| entry.get("socket").and_then(|socket| socket.as_str()).map(PathBuf::from);
    ours.map(|entry| named(entry).unwrap_or_else(|| DEFAULT_CNI_SOCKET.into())).collect()
}

/// Returns whether container runtimes read a file of this name (libcni: `.conf`, `.conflist`, `.json`).
pub fn is_conf(path: &Path) -> bool {
    path.extension().is_some_and(|end| ["conf", "conflist", "json"].iter().any(|one| end == *one))
}

/// Returns whether a file uses our bridge, so that without us it gives pods no network.
pub fn is_ours(text: &str, form: CniFileForm) -> bool {
    let mut conf = serde_json::from_str::<Value>(text).unwrap_or_default();
    let plugin = bridge_plugin(&mut conf, form);
    plugin.is_some_and(|plugin| plugin.get("bridge").and_then(Value::as_str) == Some(BRIDGE))
}

/// Returns the bridge to which a file attaches pods; the plugin `bridge` has `cni0` where the file names none.
pub fn bridge(text: &str, form: CniFileForm) -> Option<String> {
    let mut conf = serde_json::from_str::<Value>(text).ok()?;
    let plugin = bridge_plugin(&mut conf, form)?;
    let of = |field| plugin.get(field).and_then(Value::as_str);
    (of("type") == Some("bridge")).then(|| of("bridge").unwrap_or("cni0").to_owned())
}

/// Returns the file for a node that has none.
fn fresh(form: CniFileForm) -> Value {
    let bridge = json!({
        "type": "bridge",
        "bridge": BRIDGE,
        "isDefaultGateway": true,
        "hairpinMode": true,
        "ipam": {"type": "host-local"},
    });
    match form {
        CniFileForm::Single => {
            let mut single = bridge;
            if let Some(fields) = single.as_object_mut() {
                fields.insert("cniVersion".to_owned(), "0.3.0".into());
                fields.insert("name".to_owned(), "mynet".into());
            }
            single
        }
        CniFileForm::List => {
            let portmap = json!({"type": "portmap", "capabilities": {"snat": true, "portMappings": true}});
            json!({"cniVersion": "0.3.0", "name": "mynet", "plugins": [bridge, portmap]})
        }
    }
}

/// Returns the plugin whose ranges and MTU are ours to set. A single plugin counts, whatever its type.
fn bridge_plugin(conf: &mut Value, form: CniFileForm) -> Option<&mut Map<String, Value>> {
    match form {
        CniFileForm::Single => conf.as_object_mut().filter(|plugin| plugin.contains_key("type")),
        CniFileForm::List => {
            let plugins = conf.get_mut("plugins")?.as_array_mut()?;
            let is_bridge = |plugin: &&mut Value| plugin.get("type").and_then(Value::as_str) == Some("bridge");
            plugins.iter_mut().find(is_bridge)?.as_object_mut()
        }
    }
}

fn set_ranges(plugin: &mut Map<String, Value>, ranges: &[IpNet]) -> Result<(), Unusable> {
    if !plugin.get("ipam").is_some_and(Value::is_object) {
        plugin.insert("ipam".to_owned(), json!({"type": "host-local"}));
    }
    let Some(ipam) = plugin.get_mut("ipam").and_then(Value::as_object_mut) else { return Ok(()) };
    match ipam.get("type").and_then(Value::as_str) {
        Some("host-local") => {}
        None => drop(ipam.insert("type".to_owned(), "host-local".into())),
        Some(other) => return Err(Unusable::OtherIpam(other.to_owned())),
    }
    // The older form, a single range outside the list.
    ipam.remove("subnet");
    let present = ipam.get("ranges").and_then(Value::as_array).cloned().unwrap_or_default();
    let set_of = |range: &IpNet| {
        let same = |set: &&Value| subnet(set) == Some(*range);
        present.iter().find(same).cloned().unwrap_or_else(|| json!([{"subnet": range.to_string()}]))
    };
    let sets: Vec<Value> = ranges.iter().map(set_of).collect();
    ipam.insert("ranges".to_owned(), sets.into());
    Ok(())
}

/// Returns the range of a set, if it has one.
fn subnet(set: &Value) -> Option<IpNet> {
    let [range] = set.as_array()?.as_slice() else { return None };
    range.get("subnet")?.as_str()?.parse::<IpNet>().ok().map(|range| range.trunc())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn conf(ranges: &[&str], mtu: Option<u32>) -> Conf {
        Conf { ranges: ranges.iter().map(|range| range.parse().expect("a range")).collect(), mtu, plugin: None }
    }

    const NODE: [&str; 2] = ["10.244.1.0/24", "fd00:10:244:1::/64"];

    fn list(ipam: &str) -> String {
        format!(
            r#"{{"cniVersion":"0.3.0","name":"mynet","plugins":[{{"bridge":"kube-bridge","ipam":{ipam},"type":"bridge"}}]}}"#
        )
    }

    fn check(present: &str, form: CniFileForm, wanted: &Conf, expected: &str) {
        let (found, unusable) = text(Some(present), form, wanted);
        assert_eq!((found.as_deref(), unusable), (Some(expected), None), "{present}");
        let again = text(Some(expected), form, wanted).0;
        assert_eq!(again.as_deref(), Some(expected), "it is as it should be, and stays so");
    }

    #[test]
    fn the_nodes_ranges_are_put_in_and_what_else_is_there_stays() {
        let expected = list(
            r#"{"ranges":[[{"subnet":"10.244.1.0/24"}],[{"subnet":"fd00:10:244:1::/64"}]],"routes":[{"dst":"0.0.0.0/0"}],"type":"host-local"}"#,
        );
        let present = list(r#"{ "type": "host-local", "routes": [{"dst": "0.0.0.0/0"}] }"#);
        check(&present, CniFileForm::List, &conf(&NODE, None), &expected);
    }

    #[test]
    fn one_plugin_alone_is_edited_whatever_its_type_and_the_mtu_is_set() {
        let present =
            r#"{"name":"mynet","type":"bridge","bridge":"kube-bridge","ipam":{"type":"host-local"},"more":[1]}"#;
        let expected = r#"{"bridge":"kube-bridge","ipam":{"ranges":[[{"subnet":"10.244.1.0/24"}]],"type":"host-local"},"more":[1],"mtu":1480,"name":"mynet","type":"bridge"}"#;
        check(present, CniFileForm::Single, &conf(&NODE[..1], Some(1480)), expected);
    }

    #[test]
    fn ranges_of_an_earlier_life_of_the_node_go() {
        let present = list(
            r#"{"type":"host-local","subnet":"10.244.9.0/24","ranges":[[{"subnet":"10.244.8.0/24"}],[{"subnet":"10.244.1.0/24"}]]}"#,
        );
        let expected = list(r#"{"ranges":[[{"subnet":"10.244.1.0/24"}]],"type":"host-local"}"#);
        check(&present, CniFileForm::List, &conf(&NODE[..1], None), &expected);
    }

    #[test]
    fn a_range_that_is_written_in_another_way_is_the_same_and_keeps_what_it_says() {
        let present = list(
            r#"{"type":"host-local","ranges":[[{"subnet":"fd00:10:244:1:0::/64","gateway":"fd00:10:244:1::1"}],[{"subnet":"10.244.1.7/24"}]]}"#,
        );
        let expected = list(
            r#"{"ranges":[[{"subnet":"10.244.1.7/24"}],[{"gateway":"fd00:10:244:1::1","subnet":"fd00:10:244:1:0::/64"}]],"type":"host-local"}"#,
        );
        check(&present, CniFileForm::List, &conf(&NODE, None), &expected);
    }

    #[test]
    fn our_plugin_is_the_last_of_the_list_where_it_is_wanted_and_keeps_what_its_entry_says() {
        let file = |more: &str| {
            format!(
                r#"{{"cniVersion":"0.3.0","plugins":[{{"bridge":"kube-bridge","ipam":{{"ranges":[[{{"subnet":"10.244.1.0/24"}}]],"type":"host-local"}},"type":"bridge"}},{{"type":"portmap"}}{more}]}}"#
            )
        };
        let wanted = Conf { plugin: Some("/run/sluice/cni.sock".into()), ..conf(&NODE[..1], None) };
        let entry = r#",{"socket":"/run/sluice/cni.sock","type":"sluice-cni"}"#;
        check(&file(""), CniFileForm::List, &wanted, &file(entry));
        check(&file(entry), CniFileForm::List, &conf(&NODE[..1], None), &file(entry));
        let slow = r#",{"socket":"/run/sluice/cni.sock","timeoutMs":5000,"type":"sluice-cni"}"#;
        let elsewhere = r#",{"timeoutMs":5000,"type":"sluice-cni"},{"type":"tuning"},{"type":"sluice-cni"}"#;
        check(&file(elsewhere), CniFileForm::List, &wanted, &file(&format!(r#",{{"type":"tuning"}}{slow}"#)));
        let made = text(None, CniFileForm::List, &wanted).0.expect("a file is made");
        assert!(made.contains(entry) && is_ours(&made, CniFileForm::List), "{made}");
        let single = r#"{"bridge":"kube-bridge","ipam":{"ranges":[[{"subnet":"10.244.1.0/24"}]],"type":"host-local"},"type":"bridge"}"#;
        check(single, CniFileForm::Single, &wanted, single);
    }

    #[test]
    fn our_plugin_is_not_in_a_list_of_a_version_that_it_does_not_speak_and_that_is_told() {
        let wanted = Conf { plugin: Some("/run/sluice/cni.sock".into()), ..conf(&NODE[..1], None) };
        let file = |version: &str| {
            let entry = if version.contains("0.2.0") { r#",{"type":"sluice-cni"}"# } else { "" };
            format!(r#"{{{version}"plugins":[{{"bridge":"kube-bridge","ipam":{{}},"type":"bridge"}}{entry}]}}"#)
        };
        for version in ["", r#""cniVersion":"0.2.0","#, r#""cniVersion":"9.0.0","#] {
            let (found, unusable) = text(Some(&file(version)), CniFileForm::List, &wanted);
            let found = found.expect("ranges are set");
            assert!(found.contains("10.244.1.0/24") && !found.contains(PLUGIN), "{found}");
            let sentence = unusable.expect("it says why").to_string();
            assert!(sentence.contains("--netpol-cni") && sentence.contains("one of 0.3.0, 0.3.1,"), "{sentence}");
        }
        for version in [r#""cniVersion":"1.1.0","#, r#""cniVersion":"0.1.0","cniVersions":["0.1.0","1.0.0"],"#] {
            let (found, unusable) = text(Some(&file(version)), CniFileForm::List, &wanted);
            assert!(found.is_some_and(|found| found.contains(PLUGIN)) && unusable.is_none(), "{version}");
        }
        let without = text(Some(&file("")), CniFileForm::List, &conf(&NODE[..1], None));
        assert_eq!(without.1, None, "without the flag the version does not matter");
    }

    #[test]
    fn a_list_without_a_bridge_that_lacks_our_plugin_is_told_with_the_entry_to_add() {
        let wanted = Conf { plugin: Some("/run/sluice/cni.sock".into()), ..conf(&NODE[..1], None) };
        let list = |more: &str| format!(r#"{{"cniVersion":"1.0.0","plugins":[{{"type":"ptp"}}{more}]}}"#);
        let (found, unusable) = text(Some(&list("")), CniFileForm::List, &wanted);
        assert_eq!(found, None);
        let sentence = unusable.expect("it says why").to_string();
        assert!(sentence.contains("--netpol-cni"), "{sentence}");
        assert!(sentence.contains(r#"{"type": "sluice-cni", "socket": "/run/sluice/cni.sock"}"#), "{sentence}");
        let by_hand = list(r#",{"type":"sluice-cni"}"#);
        assert_eq!(text(Some(&by_hand), CniFileForm::List, &wanted), (None, Some(Unusable::NoBridge)));
    }

    #[test]
    fn our_plugin_leaves_a_list_and_nothing_else_of_its_text_changes() {
        for (present, expected) in [
            (r#"{"plugins":[{"type":"ptp"},{"type":"sluice-cni"}]}"#, r#"{"plugins":[{"type":"ptp"}]}"#),
            (r#"{"plugins":[{"type":"sluice-cni"}]}"#, r#"{"plugins":[]}"#),
            (
                "{ \"z\": 1,\n  \"plugins\": [\n    {\"type\": \"sluice-cni\", \"x\": [1]},\n    {\"type\": \"sluice\\u002dcni\"},\n    {\"type\": \"ptp\"} ,\n    {\"type\": \"sluice-cni\"}\n  ],\n  \"a\": 1.50\n}\n",
                "{ \"z\": 1,\n  \"plugins\": [\n    {\"type\": \"ptp\"}\n  ],\n  \"a\": 1.50\n}\n",
            ),
            (
                r#"{"plugins":[ {"type":"ptp"} , {"type":"sluice-cni"} , {"type":"tuning"}, 7 ]}"#,
                r#"{"plugins":[ {"type":"ptp"} , {"type":"tuning"}, 7 ]}"#,
            ),
        ] {
            assert_eq!(without_plugin(present).as_deref(), Some(expected), "{present}");
            assert_eq!(without_plugin(expected), None, "{expected}");
        }
        for without in ["", "{", "[]", r#"{"type":"sluice-cni"}"#, r#"{"plugins":"sluice-cni"}"#] {
            assert_eq!(without_plugin(without), None, "{without}");
        }
    }

    #[test]
    fn a_missing_ipam_is_made() {
        let present = r#"{"plugins":[{"type":"loopback"},{"type":"bridge"}]}"#;
        let expected = r#"{"plugins":[{"type":"loopback"},{"ipam":{"ranges":[[{"subnet":"10.244.1.0/24"}]],"type":"host-local"},"type":"bridge"}]}"#;
        check(present, CniFileForm::List, &conf(&NODE[..1], None), expected);
    }

    #[test]
    fn a_node_without_a_file_gets_one() {
        for (form, count) in [(CniFileForm::Single, 1), (CniFileForm::List, 2)] {
            let (made, unusable) = text(None, form, &conf(&NODE, Some(1500)));
            let made = made.expect("a file is made");
            assert_eq!(unusable, None);
            assert!(NODE.iter().all(|range| made.contains(range)) && made.contains("\"mtu\":1500"), "{made}");
            assert_eq!(made.matches("\"type\":\"bridge\"").count() + made.matches("portmap").count(), count, "{made}");
            check(&made, form, &conf(&NODE, Some(1500)), &made);
        }
        assert_eq!(text(None, CniFileForm::List, &conf(&[], Some(1500))), (None, None), "while the node has no ranges");
    }

    #[test]
    fn while_the_node_has_no_ranges_those_in_the_file_stay() {
        let present = list(r#"{"ranges":[[{"subnet":"10.244.9.0/24"}]],"type":"host-local"}"#);
        check(&present, CniFileForm::List, &conf(&[], None), &present);
    }

    #[test]
    fn a_file_that_cannot_be_understood_is_left_alone_in_one_sentence() {
        let wanted = conf(&NODE, Some(1500));
        for (present, form, sentence) in [
            ("{", CniFileForm::List, "it is not JSON"),
            ("[]", CniFileForm::Single, "it has no plugin of type bridge; it is left as it is"),
            ("{}", CniFileForm::Single, "it has no plugin of type bridge; it is left as it is"),
            ("{}", CniFileForm::List, "it has no plugin of type bridge; it is left as it is"),
            (
                r#"{"plugins":[{"type":"macvlan"}]}"#,
                CniFileForm::List,
                "it has no plugin of type bridge; it is left as it is",
            ),
        ] {
            let (found, unusable) = text(Some(present), form, &wanted);
            assert_eq!(found, None, "{present}");
            assert!(unusable.expect("it says why").to_string().starts_with(sentence), "{present}");
        }
        let other = list(r#"{"type":"dhcp"}"#);
        let (found, unusable) = text(Some(&other), CniFileForm::List, &wanted);
        assert!(found.expect("the MTU is set").contains(r#""ipam":{"type":"dhcp"},"mtu":1500"#));
        assert_eq!(unusable, Some(Unusable::OtherIpam("dhcp".to_owned())));
    }

    #[test]
    fn a_file_is_ours_where_it_is_about_our_bridge() {
        for form in [CniFileForm::Single, CniFileForm::List] {
            let made = text(None, form, &conf(&NODE, None)).0.expect("a file is made");
            assert!(is_ours(&made, form));
            assert!(!is_ours(&made.replace("kube-bridge", "cni0"), form));
        }
        assert!(
            ["", "{", "[]", "{}", r#"{"plugins":[{"type":"calico"}]}"#]
                .iter()
                .all(|text| !is_ours(text, CniFileForm::List))
        );
    }

    #[test]
    fn the_end_of_its_name_says_which_form_a_file_has() {
        for (path, form) in [
            ("/etc/cni/net.d/10-kuberouter.conf", CniFileForm::Single),
            ("/etc/cni/net.d/10-kuberouter.conflist", CniFileForm::List),
            ("/etc/cni/net.d/10-kuberouter.CONFLIST", CniFileForm::List),
            ("/etc/cni/net.d/10-kuberouter", CniFileForm::Single),
        ] {
            assert_eq!(CniFileForm::of(Path::new(path)), form, "{path}");
        }
    }
}
