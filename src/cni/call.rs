//! A call of the container runtime: environment and standard input in, what is asked for out.
//!
//! CNI specification 1.1, sections 2 (parameters, operations) and 5 (results). All versions from 0.3.0 on are spoken: since then
//! plugins of a list are given the result of those before them.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use compact_str::CompactString;
use ipnet::IpNet;
use serde::Deserialize;
use serde_json::{Value, json};

use super::failure::{Code, Failure, failure};
use crate::model::{
    Attachment, AttachmentId, CNI_VERSIONS, DEFAULT_CNI_SOCKET, LinkAddress, ObjectName, PodLink, PodUid,
};

/// A call of the container runtime.
#[derive(Clone, PartialEq, Debug)]
pub enum Call {
    Add {
        attachment: Attachment,
        /// By which the pod sends; `None` where the plugins before us do not tell.
        link: Option<PodLink>,
        /// Where the pod's network namespace is; `None` where that is not told.
        namespace: Option<PathBuf>,
        /// `prevResult`, to be passed on.
        result: Value,
    },
    Check(Attachment),
    Delete(AttachmentId),
    /// Garbage collection: all attachments of a network that exist.
    Collect {
        network: CompactString,
        ids: BTreeSet<AttachmentId>,
    },
    /// The network gives this pod no address, so no policy concerns it: the result is passed on.
    Pass(Value),
    Status,
    Version,
}

/// The entry of the plugin in the CNI file.
#[derive(Clone, PartialEq, Debug)]
pub struct Entry {
    /// `cniVersion` of the list.
    pub version: String,
    /// `socket`: where the agent listens.
    pub socket: PathBuf,
    /// `timeoutMs`: how long ADD waits at most; 2 s.
    pub timeout: Duration,
    /// `whenUnreachable`: whether pods start where no agent answers; "deny" or "allow".
    pub opens_unreachable: bool,
}

/// The parameters in the environment, by their names.
#[derive(Clone, Default, Debug)]
pub struct Parameters {
    /// `CNI_COMMAND`.
    pub command: String,
    /// `CNI_CONTAINERID`.
    pub container: String,
    /// `CNI_IFNAME`.
    pub interface: String,
    /// `CNI_ARGS`.
    pub arguments: String,
    /// `CNI_NETNS`.
    pub namespace: String,
}

const DEFAULT_TIMEOUT: u64 = 2000;
/// Shorter than a connection to the agent may last.
const LONGEST_TIMEOUT: u64 = 25_000;

/// The standard input, so far as it is read.
#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase")]
struct Input {
    cni_version: Option<String>,
    name: Option<String>,
    // Judged where they are needed: a mistake in them must not keep a sandbox from being taken down.
    socket: Option<Value>,
    timeout_ms: Option<Value>,
    when_unreachable: Option<Value>,
    prev_result: Option<Value>,
    #[serde(rename = "cni.dev/valid-attachments")]
    valid: Option<Vec<Valid>>,
}

#[derive(Deserialize)]
struct Valid {
    #[serde(rename = "containerID")]
    container: String,
    #[serde(rename = "ifname")]
    interface: String,
}

/// Reads a call.
///
/// # Errors
/// A parameter is missing or makes no sense; with the version that the answer is to have.
pub fn read(parameters: &Parameters, input: &[u8]) -> Result<(Call, Entry), (Failure, String)> {
    let newest = CNI_VERSIONS.last().copied().unwrap_or_default().to_owned();
    // VERSION needs none by the earliest versions of the specification.
    let input = if parameters.command == "VERSION" && input.trim_ascii().is_empty() { b"{}" } else { input };
    let input: Input = serde_json::from_slice(input).map_err(|error| {
        (failure(Code::NotDecodable, format!("the configuration cannot be read: {error}")), newest.clone())
    })?;
    let version = input.cni_version.clone().unwrap_or(newest);
    let entry = match entry(&input, &version) {
        Err(failure) if starts_pods(&parameters.command) => return Err((failure, version)),
        entry => entry.unwrap_or_else(|_| default_entry(&version)),
    };
    let call = call(parameters, input, &version).map_err(|failure| (failure, version))?;
    Ok((call, entry))
}

/// Returns the answer to VERSION.
pub fn versions(version: &str) -> Value {
    json!({"cniVersion": version, "supportedVersions": CNI_VERSIONS})
}

/// Returns the result of ADD: that of the plugins before us, with the version that the runtime asked for.
pub fn result(mut result: Value, version: &str) -> Value {
    if let Some(fields) = result.as_object_mut() {
        fields.entry("cniVersion").or_insert_with(|| version.into());
    }
    result
}

/// Returns whether a command decides whether a pod starts or goes on. All others are obeyed whatever the entry says: a DEL that
/// fails keeps the pod in `Terminating`.
fn starts_pods(command: &str) -> bool {
    matches!(command, "ADD" | "CHECK")
}

fn default_entry(version: &str) -> Entry {
    Entry {
        version: version.to_owned(),
        socket: DEFAULT_CNI_SOCKET.into(),
        timeout: Duration::from_millis(DEFAULT_TIMEOUT),
        opens_unreachable: false,
    }
}

fn entry(input: &Input, version: &str) -> Result<Entry, Failure> {
    let mistake = |text: String| failure(Code::InvalidConfiguration, text);
    let mut entry = default_entry(version);
    if let Some(value) = &input.when_unreachable {
        entry.opens_unreachable = match value.as_str() {
            Some("deny") => false,
            Some("allow") => true,
            _ => return Err(mistake(format!("whenUnreachable must be deny or allow; it is {value}"))),
        };
    }
    if let Some(value) = &input.timeout_ms {
        let milliseconds = value.as_u64().filter(|number| (1..=LONGEST_TIMEOUT).contains(number));
        let text = || mistake(format!("timeoutMs must be from 1 to {LONGEST_TIMEOUT}; it is {value}"));
        entry.timeout = Duration::from_millis(milliseconds.ok_or_else(text)?);
    }
    if let Some(value) = &input.socket {
        let path = value.as_str().ok_or_else(|| mistake(format!("socket must be a path; it is {value}")))?;
        entry.socket = path.into();
    }
    Ok(entry)
}

fn call(parameters: &Parameters, input: Input, version: &str) -> Result<Call, Failure> {
    let command = parameters.command.as_str();
    if command == "VERSION" {
        return Ok(Call::Version);
    }
    if starts_pods(command) && !CNI_VERSIONS.contains(&version) {
        let text = format!("cniVersion is {version:?}; spoken are {}", CNI_VERSIONS.join(", "));
        return Err(failure(Code::IncompatibleVersion, text));
    }
    let network = input.name.map(CompactString::from).unwrap_or_default();
    match command {
        "ADD" | "CHECK" => {
            let Some(result) = input.prev_result else {
                let text =
                    "there is no prevResult: sluice-cni must stand in a list, behind the plugin that gives addresses";
                return Err(failure(Code::InvalidConfiguration, text));
            };
            let attachment = Attachment {
                id: id(parameters)?,
                network,
                pod: pod(&parameters.arguments)?,
                uid: argument(&parameters.arguments, "K8S_POD_UID").and_then(PodUid::of),
                addresses: addresses(&result)?,
            };
            Ok(match command {
                _ if attachment.addresses.is_empty() => Call::Pass(result),
                "ADD" => {
                    let link = link(&result, &attachment.id.interface);
                    Call::Add { link, namespace: namespace(&parameters.namespace), attachment, result }
                }
                _ => Call::Check(attachment),
            })
        }
        "DEL" => Ok(Call::Delete(id(parameters)?)),
        "GC" => {
            let id = |Valid { container, interface }| AttachmentId {
                container: container.into(),
                interface: interface.into(),
            };
            let Some(valid) = input.valid else {
                return Err(failure(Code::InvalidConfiguration, "GC needs cni.dev/valid-attachments"));
            };
            Ok(Call::Collect { network, ids: valid.into_iter().map(id).collect() })
        }
        "STATUS" => Ok(Call::Status),
        other => Err(failure(Code::InvalidEnvironment, format!("CNI_COMMAND is {other:?}"))),
    }
}

fn id(parameters: &Parameters) -> Result<AttachmentId, Failure> {
    let (container, interface) = (parameters.container.as_str(), parameters.interface.as_str());
    for (name, value) in [("CNI_CONTAINERID", container), ("CNI_IFNAME", interface)] {
        // Both are one word on the socket.
        if value.is_empty() || value.contains(|c: char| c.is_whitespace() || c == '/') {
            return Err(failure(Code::InvalidEnvironment, format!("{name} is {value:?}")));
        }
    }
    Ok(AttachmentId { container: container.into(), interface: interface.into() })
}

/// `CNI_NETNS` is a path where the namespace is a file.
fn namespace(text: &str) -> Option<PathBuf> {
    (text.starts_with('/') && !text.contains('\0')).then(|| PathBuf::from(text))
}

/// The pod in `CNI_ARGS`: `K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web`.
fn pod(arguments: &str) -> Result<ObjectName, Failure> {
    let value = |name: &str| {
        argument(arguments, name).ok_or_else(|| {
            failure(Code::InvalidEnvironment, format!("CNI_ARGS has no {name}: this is no pod's network"))
        })
    };
    Ok(ObjectName::new(value("K8S_POD_NAMESPACE")?, value("K8S_POD_NAME")?))
}

fn argument<'a>(arguments: &'a str, name: &str) -> Option<&'a str> {
    let mut pairs = arguments.split(';').filter_map(|pair| pair.split_once('='));
    pairs.find(|(key, value)| *key == name && !value.is_empty()).map(|(_, value)| value)
}

/// The addresses of `ips[]`, without duplicates.
fn addresses(result: &Value) -> Result<Box<[IpAddr]>, Failure> {
    let mut addresses = Vec::new();
    for ip in result.get("ips").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default() {
        let text = ip.get("address").and_then(Value::as_str).unwrap_or_default();
        let parsed = text.parse::<IpNet>().map(|net| net.addr()).or_else(|_| text.parse::<IpAddr>());
        let address = parsed.map_err(|_| failure(Code::NotDecodable, format!("prevResult: {text:?} is no address")))?;
        let address = address.to_canonical();
        if !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    Ok(addresses.into())
}

/// The pod's link in `interfaces[]`: its own end is in a sandbox, those of the host are not.
fn link(result: &Value, interface: &str) -> Option<PodLink> {
    let interfaces = result.get("interfaces").and_then(Value::as_array)?;
    let text = |one: &Value, field: &str| one.get(field).and_then(Value::as_str).unwrap_or_default().to_owned();
    let is_own = |one: &&Value| !text(one, "sandbox").is_empty() && text(one, "name") == interface;
    let address = LinkAddress::parse(&text(interfaces.iter().find(is_own)?, "mac"))?;
    let of_host = interfaces.iter().filter(|one| text(one, "sandbox").is_empty()).map(|one| text(one, "name"));
    // One word each on the socket.
    let is_name = |name: &String| !name.is_empty() && !name.contains(char::is_whitespace);
    let of_host: Box<[CompactString]> = of_host.filter(is_name).map(CompactString::from).collect();
    (!of_host.is_empty()).then_some(PodLink { of_host, address })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_is_a_file_or_not_told() {
        let paths = ["/var/run/netns/cni-1", "", "isolated", "netns/x"].map(namespace);
        assert_eq!(paths, [Some("/var/run/netns/cni-1".into()), None, None, None]);
    }

    const ARGUMENTS: &str = "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-0;K8S_POD_INFRA_CONTAINER_ID=c1;\
         K8S_POD_UID=1f0a3a52-55c4-4d3e-9b0a-0242ac120002";

    fn parameters(command: &str) -> Parameters {
        Parameters {
            command: command.to_owned(),
            container: "c1".to_owned(),
            interface: "eth0".to_owned(),
            arguments: ARGUMENTS.to_owned(),
            namespace: "/var/run/netns/cni-1".to_owned(),
        }
    }

    /// As `bridge` and `portmap` of this version hand it on.
    fn previous(version: &str) -> Value {
        let kind = |number: &str| if version < "1" { json!({"version": number}) } else { json!({}) };
        let ip = |number: &str, address: &str| {
            let mut ip = kind(number);
            ip["address"] = address.into();
            ip["interface"] = 2.into();
            ip
        };
        json!({
            "cniVersion": version,
            "interfaces": [{"name": "kube-bridge"}, {"name": "veth1"}, {"name": "eth0", "sandbox": "/run/netns/x"}],
            "ips": [ip("4", "10.244.1.7/24"), ip("6", "fd00:10:244:1::7/64")],
            "dns": {},
            "more": {"number": 18_446_744_073_709_551_615_u64},
        })
    }

    fn read_one(command: &str, input: &Value) -> Result<(Call, Entry), Failure> {
        read(&parameters(command), input.to_string().as_bytes()).map_err(|(failure, _)| failure)
    }

    fn attachment() -> Attachment {
        Attachment {
            id: AttachmentId { container: "c1".into(), interface: "eth0".into() },
            network: "mynet".into(),
            pod: ObjectName::new("shop", "web-0"),
            uid: PodUid::of("1f0a3a52-55c4-4d3e-9b0a-0242ac120002"),
            addresses: ["10.244.1.7", "fd00:10:244:1::7"]
                .iter()
                .map(|text| text.parse().expect("an address"))
                .collect(),
        }
    }

    #[test]
    fn add_names_the_pod_and_all_its_addresses_and_hands_on_the_result_in_every_version() {
        for version in CNI_VERSIONS {
            let input =
                json!({"cniVersion": version, "name": "mynet", "type": "sluice-cni", "prevResult": previous(version)});
            let (call, entry) = read_one("ADD", &input).expect("a sound call");
            let link = None;
            let namespace = Some("/var/run/netns/cni-1".into());
            let expected = Call::Add { attachment: attachment(), link, namespace, result: previous(version) };
            assert_eq!(call, expected, "{version}");
            assert_eq!(result(previous(version), version), previous(version));
            let expected = Entry {
                version: version.to_owned(),
                socket: "/run/sluice/cni.sock".into(),
                timeout: Duration::from_secs(2),
                opens_unreachable: false,
            };
            assert_eq!(entry, expected);
            assert_eq!(read_one("CHECK", &input).expect("a sound call").0, Call::Check(attachment()));
        }
    }

    #[test]
    fn add_names_the_links_of_the_host_and_the_address_of_the_pods_own_end() {
        let links_of = |interfaces: Value| link(&json!({"interfaces": interfaces}), "eth0");
        let mac = "0a:58:0A:f4:01:07";
        let whole = json!([
            {"name": "kube-bridge", "mac": "02:00:00:00:00:01"},
            {"name": "veth1", "mac": "02:00:00:00:00:02"},
            {"name": "net1", "mac": "02:00:00:00:00:03", "sandbox": "/run/netns/x"},
            {"name": "eth0", "mac": mac, "sandbox": "/run/netns/x"},
        ]);
        let expected = PodLink {
            of_host: ["kube-bridge".into(), "veth1".into()].into(),
            address: LinkAddress([0x0a, 0x58, 0x0a, 0xf4, 1, 7]),
        };
        assert_eq!(links_of(whole), Some(expected));
        for odd in [
            json!([]),
            json!("veth1"),
            json!([{"name": "veth1"}, {"name": "eth0", "sandbox": "/run/netns/x"}]),
            json!([{"name": "veth1"}, {"name": "eth0", "mac": "0a:58", "sandbox": "/run/netns/x"}]),
            json!([{"name": "eth0", "mac": mac, "sandbox": "/run/netns/x"}]),
            json!([{"name": 7}, {"name": "eth0", "mac": mac, "sandbox": "/run/netns/x"}]),
        ] {
            assert_eq!(links_of(odd.clone()), None, "{odd}");
        }
    }

    #[test]
    fn the_entry_says_where_the_agent_is_how_long_to_wait_and_what_to_do_without_it() {
        let input = |more: Value| {
            let mut input = json!({"cniVersion": "1.0.0"});
            input.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
            let previous = json!({"prevResult": previous("1.0.0")});
            input.as_object_mut().expect("an object").extend(previous.as_object().expect("an object").clone());
            read_one("ADD", &input).map(|(_, entry)| entry)
        };
        let entry =
            input(json!({"socket": "/x/cni.sock", "timeoutMs": 500, "whenUnreachable": "allow"})).expect("sound");
        assert_eq!(
            (entry.socket, entry.timeout, entry.opens_unreachable),
            ("/x/cni.sock".into(), Duration::from_millis(500), true)
        );
        for wrong in [
            json!({"timeoutMs": 0}),
            json!({"timeoutMs": 25_001}),
            json!({"timeoutMs": "soon"}),
            json!({"whenUnreachable": "open"}),
            json!({"socket": 7}),
        ] {
            assert_eq!(input(wrong).expect_err("a mistake").code, Code::InvalidConfiguration);
        }
    }

    #[test]
    fn a_mistake_in_the_entry_keeps_no_sandbox_from_being_taken_down() {
        for wrong in [
            json!({"cniVersion": "1.0.0", "timeoutMs": "soon"}),
            json!({"cniVersion": "1.0.0", "timeoutMs": 0}),
            json!({"cniVersion": "1.0.0", "whenUnreachable": "open"}),
            json!({"cniVersion": "1.0.0", "socket": 7}),
            json!({"cniVersion": "0.2.0"}),
        ] {
            let id = AttachmentId { container: "c1".into(), interface: "eth0".into() };
            let call = |command: &str| read_one(command, &wrong).map(|(call, _)| call);
            assert_eq!(call("DEL"), Ok(Call::Delete(id)), "{wrong}");
            assert_eq!(call("STATUS"), Ok(Call::Status), "{wrong}");
            assert!(call("ADD").is_err(), "{wrong}");
        }
    }

    #[test]
    fn del_needs_the_sandbox_alone_and_gc_and_status_not_even_that() {
        let bare = json!({"cniVersion": "1.1.0"});
        let id = AttachmentId { container: "c1".into(), interface: "eth0".into() };
        let without_pod = Parameters { arguments: String::new(), ..parameters("DEL") };
        let (call, _) = read(&without_pod, bare.to_string().as_bytes()).expect("a sound call");
        assert_eq!(call, Call::Delete(id.clone()));
        let nothing = |command: &str| Parameters { command: command.to_owned(), ..Parameters::default() };
        let valid = json!({"cniVersion": "1.1.0", "name": "mynet", "cni.dev/valid-attachments": [{"containerID": "c1", "ifname": "eth0"}]});
        let (call, _) = read(&nothing("GC"), valid.to_string().as_bytes()).expect("a sound call");
        assert_eq!(call, Call::Collect { network: "mynet".into(), ids: [id].into() });
        assert_eq!(read(&nothing("STATUS"), bare.to_string().as_bytes()).expect("a sound call").0, Call::Status);
        let refused = read(&nothing("GC"), bare.to_string().as_bytes()).expect_err("it would remove all");
        assert_eq!(refused.0.code, Code::InvalidConfiguration);
    }

    #[test]
    fn version_is_answered_whatever_comes_with_it() {
        for input in ["", "{}", r#"{"cniVersion":"9.9.9"}"#] {
            let (call, entry) = read(&parameters("VERSION"), input.as_bytes()).expect("a sound call");
            assert_eq!(call, Call::Version);
            let answer = versions(&entry.version);
            assert_eq!(answer["supportedVersions"], json!(["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"]));
        }
    }

    #[test]
    fn what_makes_no_sense_has_the_code_of_the_specification() {
        let whole = json!({"cniVersion": "1.0.0", "prevResult": previous("1.0.0")});
        let without = |change: fn(&mut Parameters)| {
            let mut parameters = parameters("ADD");
            change(&mut parameters);
            read(&parameters, whole.to_string().as_bytes()).expect_err("a mistake").0.code
        };
        for change in [
            (|parameters| parameters.command = "UPDATE".to_owned()) as fn(&mut Parameters),
            |parameters| parameters.command = String::new(),
            |parameters| parameters.container = String::new(),
            |parameters| parameters.container = "a/b".to_owned(),
            |parameters| parameters.interface = "a b".to_owned(),
            |parameters| parameters.arguments = "K8S_POD_NAMESPACE=shop".to_owned(),
            |parameters| parameters.arguments = "K8S_POD_NAMESPACE=;K8S_POD_NAME=web".to_owned(),
        ] {
            assert_eq!(without(change), Code::InvalidEnvironment);
        }
        let code = |input: Value| read_one("ADD", &input).expect_err("a mistake").code;
        assert_eq!(code(json!({"cniVersion": "0.2.0", "prevResult": {}})), Code::IncompatibleVersion);
        assert_eq!(code(json!({"cniVersion": "1.0.0"})), Code::InvalidConfiguration);
        assert_eq!(
            code(json!({"cniVersion": "1.0.0", "prevResult": {"ips": [{"address": "no"}]}})),
            Code::NotDecodable
        );
        let (refused, version) = read(&parameters("ADD"), b"{").expect_err("a mistake");
        let object = refused.object(&version);
        assert_eq!((&object["code"], &object["cniVersion"]), (&json!(6), &json!("1.1.0")));
    }

    #[test]
    fn a_network_without_addresses_is_passed_on() {
        for previous in [json!({}), json!({"ips": []}), json!({"interfaces": []})] {
            let (call, _) =
                read_one("ADD", &json!({"cniVersion": "1.0.0", "prevResult": previous})).expect("a sound call");
            assert_eq!(call, Call::Pass(previous.clone()));
            assert_eq!(result(previous, "1.0.0")["cniVersion"], "1.0.0");
        }
    }
}
