//! Messages of the plugin to the agent, as string members of a JSON object (`observe::local`).

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use compact_str::CompactString;

use crate::model::{Attachment, AttachmentId, LinkAddress, ObjectName, PodLink, PodUid};

/// The path on the agent's socket.
pub const PATH: &str = "/cni";

/// A message of the plugin.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Message {
    /// May this pod start? The answer may take `wait`.
    Add {
        attachment: Attachment,
        /// By which the pod sends; `None` where that is not known.
        link: Option<PodLink>,
        /// Where its network namespace is; `None` where that is not known.
        namespace: Option<PathBuf>,
        wait: Duration,
    },
    /// Are its policies in force?
    Check {
        attachment: Attachment,
        wait: Duration,
    },
    Delete(AttachmentId),
    /// These attachments of a network exist and no others of it.
    Retain {
        network: CompactString,
        ids: BTreeSet<AttachmentId>,
    },
}

/// The longest time for which an answer is waited for: connections last longer (`observe::local`).
const LONGEST: Duration = Duration::from_secs(25);

impl Message {
    /// The words of this message.
    pub fn words(&self) -> BTreeMap<String, String> {
        let words: Vec<(&str, String)> = match self {
            Message::Add { attachment, link, namespace, wait } => {
                let mut words = words_of("add", attachment, *wait);
                // A path that is no text is one that no runtime gives.
                words.extend(namespace.as_deref().and_then(Path::to_str).map(|path| ("netns", path.to_owned())));
                if let Some(PodLink { of_host, address }) = link {
                    words.push(("links", joined(of_host.iter().map(ToString::to_string))));
                    words.push(("link_address", address.to_string()));
                }
                words
            }
            Message::Check { attachment, wait } => words_of("check", attachment, *wait),
            Message::Delete(id) => vec![("do", "delete".to_owned()), ("attachment", id_word(id))],
            Message::Retain { network, ids } => vec![
                ("do", "retain".to_owned()),
                ("network", network.to_string()),
                ("attachments", joined(ids.iter().map(id_word))),
            ],
        };
        words.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
    }

    /// Reads the words of a message.
    ///
    /// # Errors
    /// The word that makes no sense, as a sentence.
    pub fn read(words: &BTreeMap<String, String>) -> Result<Message, String> {
        let word = |key: &str| words.get(key).map(String::as_str).ok_or_else(|| format!("{key} is missing"));
        // A plugin of an earlier release does not say them.
        let network = || words.get("network").map(CompactString::from).unwrap_or_default();
        let uid = || words.get("uid").and_then(|word| word.parse().ok()).and_then(PodUid::from_number);
        let attachment = || -> Result<(Attachment, Duration), String> {
            let addresses = word("addresses")?
                .split_whitespace()
                .map(|text| text.parse::<IpAddr>().map_err(|_| format!("addresses: {text:?} is none")));
            let addresses: Vec<IpAddr> = addresses.collect::<Result<_, _>>()?;
            let pod = ObjectName::new(word("namespace")?, word("pod")?);
            let id = read_id(word("attachment")?)?;
            let wait = word("wait_ms")?.parse::<u64>().map_err(|_| "wait_ms is no number".to_owned())?;
            let wait = Duration::from_millis(wait).min(LONGEST);
            Ok((Attachment { id, network: network(), pod, uid: uid(), addresses: addresses.into() }, wait))
        };
        match word("do")? {
            "add" => attachment().map(|(attachment, wait)| {
                // A plugin of an earlier release does not name it.
                let namespace = words.get("netns").filter(|path| path.starts_with('/')).map(PathBuf::from);
                Message::Add { attachment, link: link(words), namespace, wait }
            }),
            "check" => attachment().map(|(attachment, wait)| Message::Check { attachment, wait }),
            "delete" => read_id(word("attachment")?).map(Message::Delete),
            "retain" => {
                let ids = word("attachments")?.split_whitespace().map(read_id).collect::<Result<_, _>>()?;
                Ok(Message::Retain { network: network(), ids })
            }
            other => Err(format!("do: {other:?} is unknown")),
        }
    }
}

/// A plugin of an earlier release does not name them.
fn link(words: &BTreeMap<String, String>) -> Option<PodLink> {
    let of_host: Box<[CompactString]> = words.get("links")?.split_whitespace().map(CompactString::from).collect();
    let address = LinkAddress::parse(words.get("link_address")?)?;
    (!of_host.is_empty()).then_some(PodLink { of_host, address })
}

fn words_of(what: &str, attachment: &Attachment, wait: Duration) -> Vec<(&'static str, String)> {
    let Attachment { id, network, pod, uid, addresses } = attachment;
    vec![
        ("do", what.to_owned()),
        ("attachment", id_word(id)),
        ("network", network.to_string()),
        ("uid", uid.map_or(0, PodUid::number).to_string()),
        ("namespace", pod.namespace.to_string()),
        ("pod", pod.name.to_string()),
        ("addresses", joined(addresses.iter().map(ToString::to_string))),
        ("wait_ms", wait.as_millis().to_string()),
    ]
}

fn joined(words: impl Iterator<Item = String>) -> String {
    words.collect::<Vec<_>>().join(" ")
}

fn id_word(id: &AttachmentId) -> String {
    format!("{}/{}", id.container, id.interface)
}

fn read_id(word: &str) -> Result<AttachmentId, String> {
    let parts = word.split_once('/').filter(|(container, interface)| !container.is_empty() && !interface.is_empty());
    let (container, interface) = parts.ok_or_else(|| format!("{word:?} is no attachment"))?;
    Ok(AttachmentId { container: container.into(), interface: interface.into() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_one_side_says_the_other_hears() {
        let id = |container: &str| AttachmentId { container: container.into(), interface: "eth0".into() };
        let attachment = Attachment {
            id: id("c1"),
            network: "mynet".into(),
            pod: ObjectName::new("shop", "web"),
            uid: PodUid::of("1f0a3a52-55c4-4d3e-9b0a-0242ac120002"),
            addresses: ["10.244.1.7", "fd00::7"].iter().map(|text| text.parse().expect("an address")).collect(),
        };
        let wait = Duration::from_millis(1800);
        for message in [
            Message::Add { attachment: attachment.clone(), link: None, namespace: None, wait },
            Message::Add {
                attachment: attachment.clone(),
                link: Some(PodLink {
                    of_host: ["kube-bridge".into(), "veth1".into()].into(),
                    address: LinkAddress([2, 0, 0, 0, 1, 0xff]),
                }),
                namespace: Some("/var/run/netns/cni-1".into()),
                wait,
            },
            Message::Check { attachment: Attachment { uid: None, ..attachment }, wait },
            Message::Delete(id("c1")),
            Message::Retain { network: "mynet".into(), ids: [id("c1"), id("c2")].into() },
            Message::Retain { network: "".into(), ids: BTreeSet::new() },
        ] {
            assert_eq!(Message::read(&message.words()), Ok(message));
        }
    }

    #[test]
    fn words_that_make_no_sense_are_named() {
        let whole = BTreeMap::from(
            [
                ("do", "add"),
                ("attachment", "c1/eth0"),
                ("namespace", "shop"),
                ("pod", "web"),
                ("addresses", "10.244.1.7"),
                ("wait_ms", "1000"),
            ]
            .map(|(key, value)| (key.to_owned(), value.to_owned())),
        );
        assert!(Message::read(&whole).is_ok());
        for (key, value) in [("do", "dance"), ("attachment", "c1"), ("addresses", "10.244.1.7 x"), ("wait_ms", "-1")] {
            let mut words = whole.clone();
            words.insert(key.to_owned(), value.to_owned());
            assert!(Message::read(&words).is_err(), "{key}={value}");
            words.remove(key);
            assert_eq!(Message::read(&words), Err(format!("{key} is missing")));
        }
    }
}
