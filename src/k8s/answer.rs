//! Answers of the API server, from bytes to objects, in both of the API's encodings.
//!
//! Kubernetes: "API concepts", sections *Resource encoding* and *Kubernetes Protobuf encoding*;
//! `k8s.io/apimachinery` `pkg/runtime/generated.proto` and `pkg/apis/meta/v1/generated.proto`.
//!
//! Protocol buffers are requested and JSON is understood: the answer's `Content-Type` names the encoding. In
//! protocol buffers an object is half as long, and reading it takes a fraction of the work on both sides, which counts
//! where every node of a large cluster requests the same objects.
//!
//! A watch is a stream of events. In JSON each is a line. In protocol buffers each is preceded by its length (four
//! bytes, big-endian), and the object within an event has the magic bytes and the envelope of one that stands alone.

use std::fmt;

use bytes::Bytes;
use kube::core::WatchEvent;
use prost::Message;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::parse::ApiObject;
use super::parse::protobuf::ObjectMeta;
use crate::model::ObjectName;

/// Encoding of an answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Encoding {
    Json,
    Protobuf,
}

impl Encoding {
    /// The encoding for this value of `Content-Type`. An unknown one is read as JSON, and fails if it is none.
    pub fn of(content_type: Option<&str>) -> Encoding {
        let media_type = content_type.unwrap_or_default().split(';').next().unwrap_or_default();
        match media_type.trim().eq_ignore_ascii_case("application/vnd.kubernetes.protobuf") {
            true => Encoding::Protobuf,
            false => Encoding::Json,
        }
    }
}

/// The value of `Accept` for a list and for a watch of objects `K`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Accept {
    pub list: &'static str,
    pub watch: &'static str,
}

impl Accept {
    pub const fn of<K: ApiObject>() -> Accept {
        match K::FROM_PROTOBUF {
            Some(_) => Accept {
                list: "application/vnd.kubernetes.protobuf, application/json",
                watch: "application/vnd.kubernetes.protobuf;stream=watch, application/json",
            },
            None => Accept { list: "application/json", watch: "application/json" },
        }
    }
}

/// The content of a watch event.
#[derive(Debug)]
pub enum Change<K> {
    /// The object is new or has changed.
    Is(K),
    Gone(K),
    /// A bookmark. `ends_list`: the initial events are complete.
    Bookmark {
        version: Option<String>,
        ends_list: bool,
    },
    Refused(Refusal),
}

/// An object or event that cannot be decoded.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Unread {
    /// The object's name, where that much can be read.
    pub name: Option<ObjectName>,
    /// The event is `DELETED`, for which the object's name is enough.
    pub is_gone: bool,
    /// Reason, for a log.
    pub reason: String,
}

/// A `Status` of the API that reports a failure.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Refusal {
    /// As in HTTP.
    pub code: u16,
    pub message: String,
}

/// A page of a list.
#[derive(Debug)]
pub struct Page<K> {
    /// The objects, or why one cannot be decoded.
    pub items: Vec<Result<K, Unread>>,
    /// Of the whole list.
    pub version: Option<String>,
    /// The `continue` token of the next page; `None` behind the last one.
    pub next: Option<String>,
}

impl Refusal {
    /// Returns whether the requested resourceVersion is newer than any that the server has, as after its store was
    /// set back. The API has these words for it (`k8s.io/apiserver` `storage.NewTooLargeResourceVersionError`).
    pub fn is_too_new(&self) -> bool {
        self.message.contains("Too large resource version")
    }
}

impl Unread {
    fn nameless(reason: impl fmt::Display) -> Unread {
        Unread { name: None, is_gone: false, reason: reason.to_string() }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.message, self.code)
    }
}

/// Cuts the bytes of a watch into its events.
#[derive(Debug)]
pub struct Events {
    encoding: Encoding,
    bytes: Vec<u8>,
    /// Bytes that belong to events that have been handed out.
    taken: usize,
    /// Bytes that contain no end of an event.
    searched: usize,
}

/// An event longer than this is none. The API server takes no object beyond a few megabytes.
const LONGEST: usize = 64 << 20;

/// An event is longer than any object can be.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("an event of the watch is longer than {LONGEST} bytes")]
pub struct TooLong;

impl Events {
    pub fn new(encoding: Encoding) -> Events {
        Events { encoding, bytes: Vec::new(), taken: 0, searched: 0 }
    }

    /// Appends the next bytes.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.taken > 0 {
            self.bytes.drain(..self.taken);
            self.taken = 0;
        }
        self.bytes.extend_from_slice(bytes);
    }

    /// The next whole event, encoded; `None` where more bytes are needed.
    ///
    /// # Errors
    /// The event is too long: nothing behind it can be understood.
    pub fn cut(&mut self) -> Result<Option<&[u8]>, TooLong> {
        match self.encoding {
            Encoding::Json => self.line(),
            Encoding::Protobuf => self.measured(),
        }
    }

    fn line(&mut self) -> Result<Option<&[u8]>, TooLong> {
        loop {
            let rest = self.bytes.get(self.taken..).unwrap_or_default();
            let unread = rest.get(self.searched..).unwrap_or_default();
            let Some(end) = unread.iter().position(|byte| *byte == b'\n') else {
                self.searched = rest.len();
                return if rest.len() > LONGEST { Err(TooLong) } else { Ok(None) };
            };
            let begin = self.taken;
            let end = begin + std::mem::take(&mut self.searched) + end;
            self.taken = end + 1;
            let is_blank = self.bytes.get(begin..end).is_some_and(|line| line.trim_ascii().is_empty());
            if !is_blank {
                return Ok(self.bytes.get(begin..end));
            }
        }
    }

    fn measured(&mut self) -> Result<Option<&[u8]>, TooLong> {
        let rest = self.bytes.get(self.taken..).unwrap_or_default();
        let Some((length, rest)) = rest.split_first_chunk() else { return Ok(None) };
        let length = usize::try_from(u32::from_be_bytes(*length)).unwrap_or(usize::MAX);
        if length > LONGEST {
            return Err(TooLong);
        }
        if rest.len() < length {
            return Ok(None);
        }
        let begin = self.taken + size_of::<u32>();
        self.taken = begin + length;
        Ok(self.bytes.get(begin..self.taken))
    }
}

/// Reads an event of a watch.
///
/// # Errors
/// Why the event cannot be decoded.
pub fn event<K: ApiObject>(encoding: Encoding, bytes: &[u8]) -> Result<Change<K>, Unread> {
    let (Encoding::Protobuf, Some(object)) = (encoding, K::FROM_PROTOBUF) else { return json_event(bytes) };
    let event = WatchEventMessage::decode(bytes).map_err(Unread::nameless)?;
    let raw = event.object.unwrap_or_default().raw;
    let inner = within(&raw).map_err(Unread::nameless)?;
    let read = || object(&inner).map_err(|error| Unread { is_gone: event.kind == "DELETED", ..named(&inner, &error) });
    match event.kind.as_str() {
        "ADDED" | "MODIFIED" => read().map(Change::Is),
        "DELETED" => read().map(Change::Gone),
        "BOOKMARK" => {
            let mark = Marked::decode(inner).map_err(Unread::nameless)?;
            let metadata = mark.metadata.unwrap_or_default();
            let ends_list = metadata.annotations.contains_key(ENDS_LIST);
            Ok(Change::Bookmark { version: some(metadata.resource_version.unwrap_or_default()), ends_list })
        }
        "ERROR" => {
            StatusMessage::decode(inner).map(|status| Change::Refused(status.refusal())).map_err(Unread::nameless)
        }
        other => Err(Unread::nameless(format!("an event of the kind {other:?}"))),
    }
}

/// Describes a decoding error with the object's name: `metadata` is the first field of every object.
fn named(object: &Bytes, error: &dyn fmt::Display) -> Unread {
    let mut marked = Marked::default();
    // Fields before the fault have been read when it is met.
    let _ = marked.merge(object.clone());
    let metadata = marked.metadata.unwrap_or_default();
    Unread { name: object_name(metadata.namespace, metadata.name), is_gone: false, reason: error.to_string() }
}

fn named_in_json(object: &str, error: &dyn fmt::Display) -> Unread {
    let metadata = serde_json::from_str::<JsonNamed>(object).map(|object| object.metadata).unwrap_or_default();
    Unread { name: object_name(metadata.namespace, metadata.name), is_gone: false, reason: error.to_string() }
}

fn object_name(namespace: Option<String>, name: Option<String>) -> Option<ObjectName> {
    let name = name.and_then(some)?;
    Some(ObjectName::new(&namespace.unwrap_or_default(), &name))
}

/// The annotation of the bookmark that ends the initial events of a streaming list.
const ENDS_LIST: &str = "k8s.io/initial-events-end";

fn json_event<K: ApiObject>(bytes: &[u8]) -> Result<Change<K>, Unread> {
    let event: WatchEvent<K> = match serde_json::from_slice(bytes) {
        Ok(event) => event,
        Err(error) => {
            let Ok(event) = serde_json::from_slice::<JsonEvent>(bytes) else { return Err(Unread::nameless(error)) };
            return Err(Unread { is_gone: event.kind == "DELETED", ..named_in_json(event.object.get(), &error) });
        }
    };
    Ok(match event {
        WatchEvent::Added(object) | WatchEvent::Modified(object) => Change::Is(object),
        WatchEvent::Deleted(object) => Change::Gone(object),
        WatchEvent::Bookmark(mark) => Change::Bookmark {
            ends_list: mark.metadata.annotations.contains_key(ENDS_LIST),
            version: some(mark.metadata.resource_version),
        },
        WatchEvent::Error(status) => Change::Refused(Refusal { code: status.code, message: status.message }),
    })
}

/// Reads a page of a list.
///
/// # Errors
/// Why the page as a whole cannot be decoded, for a log.
pub fn page<K: ApiObject>(encoding: Encoding, bytes: &Bytes) -> Result<Page<K>, String> {
    let (Encoding::Protobuf, Some(object)) = (encoding, K::FROM_PROTOBUF) else { return json_page(bytes) };
    let list = ListMessage::decode(within(bytes)?).map_err(|error| error.to_string())?;
    let items = list.items.iter().map(|item| object(item).map_err(|error| named(item, &error))).collect();
    let metadata = list.metadata.unwrap_or_default();
    Ok(Page { items, version: some(metadata.resource_version), next: some(metadata.next) })
}

fn json_page<K: ApiObject>(bytes: &[u8]) -> Result<Page<K>, String> {
    let list: JsonList = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    let read = |item: &RawValue| serde_json::from_str(item.get()).map_err(|error| named_in_json(item.get(), &error));
    let items = list.items.unwrap_or_default().into_iter().map(read).collect();
    let metadata = list.metadata.unwrap_or_default();
    let text = |text: Option<String>| text.and_then(some);
    Ok(Page { items, version: text(metadata.resource_version), next: text(metadata.next) })
}

/// Reads the `Status` of an answer whose HTTP status is an error.
pub fn refusal(encoding: Encoding, code: u16, bytes: &Bytes) -> Refusal {
    let read = match encoding {
        Encoding::Json => serde_json::from_slice::<JsonStatus>(bytes).ok().and_then(|status| status.message),
        Encoding::Protobuf => {
            let status = within(bytes).ok().and_then(|inner| StatusMessage::decode(inner).ok());
            status.map(|status| status.message)
        }
    };
    // A proxy in between answers in its own words.
    let first_line = || String::from_utf8_lossy(bytes).lines().next().unwrap_or_default().chars().take(200).collect();
    let message = read.and_then(some).unwrap_or_else(first_line);
    Refusal { code, message: some(message).unwrap_or_else(|| "no reason given".to_owned()) }
}

/// Returns the content of the envelope of an object that stands alone.
fn within(bytes: &Bytes) -> Result<Bytes, String> {
    if !bytes.starts_with(MAGIC) {
        return Err("no object in the encoding that the answer names".to_owned());
    }
    Envelope::decode(bytes.slice(MAGIC.len()..)).map(|envelope| envelope.raw).map_err(|error| error.to_string())
}

/// Stands in front of each object, so that nobody takes another encoding for this one.
const MAGIC: &[u8] = b"k8s\0";

fn some(text: String) -> Option<String> {
    Some(text).filter(|text| !text.is_empty())
}

/// `runtime.Unknown`.
#[derive(Clone, PartialEq, Message)]
struct Envelope {
    #[prost(bytes = "bytes", tag = "2")]
    raw: Bytes,
}

/// `meta.v1.WatchEvent`.
#[derive(Clone, PartialEq, Message)]
struct WatchEventMessage {
    #[prost(string, tag = "1")]
    kind: String,
    #[prost(message, optional, tag = "2")]
    object: Option<RawExtension>,
}

/// `runtime.RawExtension`.
#[derive(Clone, PartialEq, Message)]
struct RawExtension {
    #[prost(bytes = "bytes", tag = "1")]
    raw: Bytes,
}

/// Any object, of which only the metadata is read.
#[derive(Clone, PartialEq, Message)]
struct Marked {
    #[prost(message, optional, tag = "1")]
    metadata: Option<ObjectMeta>,
}

/// A list of any kind.
#[derive(Clone, PartialEq, Message)]
struct ListMessage {
    #[prost(message, optional, tag = "1")]
    metadata: Option<ListMeta>,
    #[prost(bytes = "bytes", repeated, tag = "2")]
    items: Vec<Bytes>,
}

/// `meta.v1.ListMeta`.
#[derive(Clone, PartialEq, Message)]
struct ListMeta {
    #[prost(string, tag = "2")]
    resource_version: String,
    #[prost(string, tag = "3")]
    next: String,
}

/// `meta.v1.Status`.
#[derive(Clone, PartialEq, Message)]
struct StatusMessage {
    #[prost(string, tag = "3")]
    message: String,
    #[prost(int32, tag = "6")]
    code: i32,
}

impl StatusMessage {
    fn refusal(self) -> Refusal {
        Refusal { code: u16::try_from(self.code).unwrap_or(0), message: self.message }
    }
}

#[derive(Deserialize)]
struct JsonList<'a> {
    metadata: Option<JsonListMeta>,
    #[serde(borrow)]
    items: Option<Vec<&'a RawValue>>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase")]
struct JsonListMeta {
    resource_version: Option<String>,
    #[serde(rename = "continue")]
    next: Option<String>,
}

/// An event whose object is not read yet.
#[derive(Deserialize)]
struct JsonEvent<'a> {
    #[serde(rename = "type")]
    kind: String,
    #[serde(borrow)]
    object: &'a RawValue,
}

/// An object of which only the name is read.
#[derive(Deserialize)]
struct JsonNamed {
    #[serde(default)]
    metadata: JsonName,
}

#[derive(Deserialize, Default)]
struct JsonName {
    name: Option<String>,
    namespace: Option<String>,
}

#[derive(Deserialize)]
struct JsonStatus {
    message: Option<String>,
}

#[cfg(test)]
mod tests;
