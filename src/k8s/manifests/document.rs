//! The documents of one file, and the objects in a document.
//!
//! A file is cut into documents before anything is parsed: at lines that begin with `---` in YAML, and
//! between values in JSON. So one document that does not parse leaves its neighbours alone, and a document
//! whose text did not change need not be parsed again.
//!
//! Aliases of YAML are followed up to a bound, and documents, items and remarks have one, so a small file cannot grow into a large one in memory.

mod division;
mod piece;

use std::collections::BTreeSet;

use serde::de::DeserializeSeed;
use serde_saphyr::with_deserializer_from_str_with_options;

use crate::k8s::parse::{
    Pool, cluster_network_policy_object, endpoint_slice_object, namespace_object, network_policy_object, node_object,
    pod_object, service_cidr_object, service_object,
};
use crate::k8s::{Kind, Object, Warning};
use crate::observe::printable::shortened;

pub(super) use self::division::newlines;
pub use self::division::{Document, Format, MOST_DOCUMENTS, documents};
pub use self::piece::{Head, Piece};
use self::piece::{Items, List, json_remark, scanned_head, yaml_options, yaml_remark};

/// State for reading all documents.
#[derive(Debug)]
pub struct Reader {
    /// Documents of other kinds are not even parsed: nobody needs them, and so they cannot be broken either.
    pub kinds: BTreeSet<Kind>,
    pub pool: Pool,
}

/// The content of a document.
#[derive(Clone, PartialEq, Default, Debug)]
pub struct Content {
    pub objects: Vec<(Object, Vec<Warning>)>,
    /// Parts that could not be read. Objects that stood there are not in `objects`, so their absence means nothing.
    pub broken: Vec<Remark>,
    /// Parts that were read and skipped, for a reason worth a log message.
    pub skipped: Vec<Remark>,
    /// Number of further parts of either sort: of each the first [`MOST_REMARKS`] are told.
    pub untold: usize,
}

/// Number of remarks about one text that are worth reading, and characters of one.
pub const MOST_REMARKS: usize = 20;
const LONGEST_REMARK: usize = 500;
/// Most bytes of a name or a namespace, which the API server allows (DNS subdomains).
pub const LONGEST_NAME: usize = 253;

/// A line of a document, counted from 0 within it, and a message about it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Remark {
    pub line: usize,
    pub text: String,
}

impl Document<'_> {
    /// The objects of this document.
    pub fn content(&self, reader: &mut Reader) -> Content {
        let mut content = Content::default();
        if let Err(remark) = self.pieces(&mut |piece, head| content.add(piece, head, reader)) {
            // The items that the broken text stands for cannot be known.
            content.objects.clear();
            content.breaks(remark);
        }
        content
    }

    /// Calls `each` with the object that this document is, or with each item of a list, undecoded.
    ///
    /// # Errors
    /// The document cannot be parsed: where, and why. Some items may have come before.
    pub fn pieces(&self, each: &mut dyn FnMut(&Piece<'_>, &Head)) -> Result<(), Remark> {
        let whole = Piece::Whole(self);
        if self.is_rest {
            let text = format!("more than {MOST_DOCUMENTS} documents stand in the file; none from here on is read");
            return Err(whole.remark(text));
        }
        let head = scanned_head(self).map_or_else(|| whole.read::<Head>(), Ok)?;
        let Some(of_kind) = head.kind.as_deref().unwrap_or_default().strip_suffix("List") else {
            each(&whole, &head);
            return Ok(());
        };
        let list = List(Items { of_kind, each });
        match self.format {
            Format::Yaml => {
                with_deserializer_from_str_with_options(self.text, yaml_options(), |yaml| list.deserialize(yaml))
                    .map_err(yaml_remark)
            }
            Format::Json => list.deserialize(&mut serde_json::Deserializer::from_str(self.text)).map_err(json_remark),
        }
    }
}

impl Default for Reader {
    /// Reads every kind.
    fn default() -> Reader {
        Reader { kinds: Kind::ALL.into(), pool: Pool::default() }
    }
}

impl Content {
    fn add(&mut self, piece: &Piece<'_>, head: &Head, reader: &mut Reader) {
        let Some(name) = head.kind.as_deref() else {
            self.skips(piece.remark("no `kind`, so it is not an object of Kubernetes"));
            return;
        };
        let Some(kind) = Kind::from_name(name).filter(|kind| reader.kinds.contains(kind)) else { return };
        let version = head.api_version.as_deref().unwrap_or_default();
        if !kind.is_read_as(version) {
            let text = format!("a {kind} of apiVersion {version:?} is not read, only of {:?}", kind.api_version());
            self.skips(piece.remark(text));
            return;
        }
        match object(kind, piece, &mut reader.pool) {
            Ok(found) => match bad_name(&found.0) {
                Some(text) => self.breaks(piece.remark(text)),
                None => self.objects.push(found),
            },
            Err(remark) => self.breaks(remark),
        }
    }

    fn breaks(&mut self, remark: Remark) {
        self.untold += untold(&mut self.broken, remark);
    }

    fn skips(&mut self, remark: Remark) {
        self.untold += untold(&mut self.skipped, remark);
    }
}

/// Adds a remark to others; returns how many have no place there.
fn untold(remarks: &mut Vec<Remark>, remark: Remark) -> usize {
    if remarks.len() == MOST_REMARKS {
        return 1;
    }
    // It may quote what stands in the file.
    remarks.push(Remark { text: shortened(&remark.text, LONGEST_REMARK), ..remark });
    0
}

/// Returns why no object can have its name. No API server has checked it, and terminals obey control characters.
fn bad_name(object: &Object) -> Option<String> {
    let (kind, namespace, name) = object.key();
    if name.is_empty() {
        return Some(format!("a {kind} without metadata.name"));
    }
    if namespace.len().max(name.len()) > LONGEST_NAME {
        return Some(format!("a {kind} whose name has more than {LONGEST_NAME} characters"));
    }
    is_odd(namespace, name).then(|| format!("a {kind} with control characters in its name, {namespace:?}/{name:?}"))
}

/// Returns whether a name has what none of the API has.
pub(super) fn is_odd(namespace: &str, name: &str) -> bool {
    namespace.len().max(name.len()) > LONGEST_NAME || namespace.chars().chain(name.chars()).any(char::is_control)
}

fn object(kind: Kind, piece: &Piece<'_>, pool: &mut Pool) -> Result<(Object, Vec<Warning>), Remark> {
    Ok(match kind {
        Kind::Service => service_object(&piece.read()?, pool),
        Kind::EndpointSlice => endpoint_slice_object(&piece.read()?, pool),
        Kind::Node => node_object(&piece.read()?, pool),
        Kind::Pod => pod_object(&piece.read()?, pool),
        Kind::Namespace => namespace_object(&piece.read()?, pool),
        Kind::NetworkPolicy => network_policy_object(&piece.read()?, pool),
        Kind::ClusterNetworkPolicy => cluster_network_policy_object(&piece.read()?, pool),
        Kind::ServiceCidr => service_cidr_object(&piece.read()?, pool),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SERVICE: &str = "apiVersion: v1\nkind: Service\nmetadata:\n  name: web\nspec:\n  clusterIP: 10.96.0.1\n";

    fn all(format: Format, text: &str) -> Vec<(usize, Content)> {
        let mut reader = Reader::default();
        documents(format, text).iter().map(|document| (document.line, document.content(&mut reader))).collect()
    }

    fn names(content: &Content) -> Vec<String> {
        content.objects.iter().map(|(object, _)| object.id().to_string()).collect()
    }

    #[test]
    fn a_broken_document_leaves_its_neighbours_alone_and_names_its_line() {
        let text = format!("{SERVICE}---\n{SERVICE}  ports:\n  - {{port: [}}\n---\n{SERVICE}");
        let found = all(Format::Yaml, &text);
        let broken: Vec<usize> = found.iter().map(|(_, content)| content.broken.len()).collect();
        assert_eq!(broken, [0, 1, 0]);
        let (line, content) = &found[1];
        assert_eq!(line + content.broken[0].line, 15, "{:?}", content.broken);
        assert!(!content.broken[0].text.contains("line"), "{:?}", content.broken);
    }

    #[test]
    fn the_head_is_found_in_every_style() {
        for (format, text) in [
            (Format::Yaml, SERVICE.to_owned()),
            (Format::Yaml, SERVICE.replace("kind: Service", "\"kind\": 'Service' # the kind")),
            (Format::Yaml, SERVICE.replace("apiVersion: v1\n", "") + "apiVersion: \"v1\"\n"),
            (Format::Yaml, "{apiVersion: v1, kind: Service, metadata: {name: web}, spec: {}}".to_owned()),
            (
                Format::Json,
                "{\"spec\": {}, \"metadata\": {\"name\": \"web\"}, \"kind\": \"Service\", \"apiVersion\": \"v1\"}"
                    .to_owned(),
            ),
        ] {
            assert_eq!(names(&all(format, &text)[0].1), ["Service default/web"], "{text}");
        }
    }

    #[test]
    fn json_whose_brackets_match_and_that_is_none_is_broken_and_not_of_no_kind() {
        for text in [
            r#"{"apiVersion": "v1", "items": [] "kind": "List", "metadata": {}}"#,
            r#"{"metadata": {} "kind": "Service", "apiVersion": "v1"}"#,
            r#"{"metadata": {} "apiVersion": "v1", "kind": "Service"}"#,
            r#"{"apiVersion": "v1", kind: "Service"}"#,
            r#"{"apiVersion": "v1", 'kind': 'Service'}"#,
            r#"{"apiVersion": "v1", "kind", "Service"}"#,
            r#"{"apiVersion": "v1", "kind": Service}"#,
        ] {
            let (_, content) = all(Format::Json, text).remove(0);
            assert_eq!((content.broken.len(), content.skipped.len()), (1, 0), "{text}");
        }
    }

    #[test]
    fn other_kinds_are_ignored_and_other_versions_are_remarked_upon() {
        let mut reader = Reader::default();
        let mut content = |text| documents(Format::Yaml, text)[0].content(&mut reader);
        let deployment = content("apiVersion: apps/v1\nkind: Deployment\nspec: {replicas: x}\n");
        assert_eq!((deployment.objects.len(), deployment.broken.len(), deployment.skipped.len()), (0, 0, 0));
        let knative = content("apiVersion: serving.knative.dev/v1\nkind: Service\nmetadata: {name: a}\n");
        assert_eq!((knative.objects.len(), knative.broken.len(), knative.skipped.len()), (0, 0, 1));
        let values = content("image: nginx\n");
        assert_eq!((values.broken.len(), values.skipped.len()), (0, 1));
        let nameless = content("apiVersion: v1\nkind: Service\nmetadata: {}\n");
        assert_eq!((nameless.broken.len(), nameless.skipped.len()), (1, 0));
    }

    #[test]
    fn a_name_with_control_characters_and_one_that_is_too_long_are_nobodys() {
        let long = "x".repeat(LONGEST_NAME + 1);
        let odd =
            [("shop", "web\\u001b[2J"), ("shop\\u009b", "web"), ("shop", "web\\n"), ("shop", &long), (&long, "web")];
        for (namespace, name) in odd {
            let text = format!(
                "{{\"apiVersion\": \"v1\", \"kind\": \"Service\", \"metadata\": {{\"name\": \"{name}\", \"namespace\": \"{namespace}\"}}}}"
            );
            let (_, content) = all(Format::Json, &text).remove(0);
            assert_eq!((content.objects.len(), content.broken.len()), (0, 1), "{text}");
            assert!(!content.broken[0].text.contains(char::is_control), "{:?}", content.broken);
        }
    }

    #[test]
    fn of_many_parts_that_cannot_be_read_some_are_told_and_the_others_counted() {
        let items = "{},{\"kind\": \"Service\", \"apiVersion\": \"v1\"},".repeat(MOST_REMARKS + 5);
        let list = format!("{{\"kind\": \"List\", \"apiVersion\": \"v1\", \"items\": [{items}{{}}]}}");
        let (_, content) = all(Format::Json, &list).remove(0);
        assert_eq!((content.broken.len(), content.skipped.len(), content.untold), (MOST_REMARKS, MOST_REMARKS, 11));
        let long = format!("apiVersion: {}\nkind: Service\n", "v".repeat(10 * LONGEST_REMARK));
        let (_, content) = all(Format::Yaml, &long).remove(0);
        assert_eq!(content.skipped[0].text.chars().count(), LONGEST_REMARK + 1);
    }

    #[test]
    fn what_is_left_of_a_file_of_too_many_documents_is_broken() {
        let text = SERVICE.repeat(2);
        let rest = Document { format: Format::Yaml, line: 7, text: &text, named: None, is_rest: true };
        let content = rest.content(&mut Reader::default());
        assert_eq!((content.objects.len(), content.broken.len()), (0, 1));
        assert!(content.broken[0].text.contains("none from here on is read"), "{:?}", content.broken);
    }

    #[test]
    fn a_kind_that_nobody_needs_cannot_be_broken() {
        let pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {containers: all}\n";
        let list =
            "{\"kind\":\"PodList\",\"apiVersion\":\"v1\",\"items\":[{\"metadata\":{\"name\":\"a\"},\"spec\":5}]}";
        for text in [pod, list] {
            let mut reader = Reader::default();
            let document = documents(Format::Yaml, text)[0];
            assert_eq!(document.content(&mut reader).broken.len(), 1, "{text}");
            reader.kinds.remove(&Kind::Pod);
            let content = document.content(&mut reader);
            assert_eq!((content.objects.len(), content.broken.len(), content.skipped.len()), (0, 0, 0), "{text}");
        }
    }

    #[test]
    fn what_the_firewall_reads_is_read_from_manifests_too() {
        let text = "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n---\n\
                    apiVersion: v1\nkind: Pod\nmetadata: {name: web, namespace: shop}\nstatus: {podIP: 10.244.1.5}\n---\n\
                    apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p, namespace: shop}\n\
                    spec: {podSelector: {}}\n---\n\
                    apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: q, namespace: shop}\n\
                    spec: {policyTypes: [Both]}\n---\n\
                    apiVersion: crd.projectcalico.org/v1\nkind: NetworkPolicy\nmetadata: {name: other}\n";
        let found = all(Format::Yaml, text);
        let names: Vec<String> = found.iter().flat_map(|(_, content)| names(content)).collect();
        assert_eq!(names, ["Namespace shop", "Pod shop/web", "NetworkPolicy shop/p", "NetworkPolicy shop/q"]);
        assert!(matches!(found[3].1.objects[0].0, Object::Unreadable(_)));
        assert_eq!(found[4].1.skipped.len(), 1);
    }

    #[test]
    fn a_list_that_breaks_off_tells_of_none_of_its_items() {
        let item = "{\"kind\": \"Service\", \"apiVersion\": \"v1\", \"metadata\": {\"name\": \"web\"}, \"spec\": {}}";
        let whole = format!("{{\"kind\": \"List\", \"apiVersion\": \"v1\", \"items\": [{item}, {item}]}}");
        for (format, text, broken) in [
            (Format::Json, whole.clone(), 0),
            (Format::Yaml, whole.clone(), 0),
            (Format::Json, whole.replacen("}]}", "}, 5:]}", 1), 1),
            (Format::Yaml, whole.replacen("}]}", "}, [}", 1), 1),
        ] {
            let found = all(format, &text);
            let content = &found[0].1;
            assert_eq!((content.broken.len(), content.objects.len()), (broken, 2 - 2 * broken), "{format:?} {text}");
        }
    }

    #[test]
    fn items_of_a_list_stand_for_themselves() {
        let text = "apiVersion: v1\nkind: List\nitems:\n\
                    - {apiVersion: v1, kind: Service, metadata: {name: a}, spec: {clusterIP: 10.96.0.1}}\n\
                    - {apiVersion: v1, kind: Service, metadata: {name: b}, spec: {ports: 5}}\n\
                    - {apiVersion: apps/v1, kind: Deployment, metadata: {name: c}}\n\
                    - {apiVersion: v1, kind: Node, metadata: {name: d}}\n";
        let content = &all(Format::Yaml, text)[0].1;
        assert_eq!(names(content), ["Service default/a", "Node d"]);
        assert!(content.broken[0].text.starts_with("items[1]: "), "{:?}", content.broken);
        let typed = "{\"kind\":\"ServiceList\",\"apiVersion\":\"v1\",\"items\":[{\"metadata\":{\"name\":\"e\"}}]}";
        assert_eq!(names(&all(Format::Json, typed)[0].1), ["Service default/e"]);
        assert_eq!(all(Format::Yaml, "kind: List\napiVersion: v1\nitems:\n")[0].1.broken, []);
    }

    #[test]
    fn aliases_cannot_grow_without_bound() {
        let mut text = "apiVersion: v1\nkind: Service\nmetadata: {name: a}\na: &a [x,x,x,x,x,x,x,x,x,x]\n".to_owned();
        for (of, name) in ["a", "b", "c", "d", "e", "f", "g", "h"].iter().zip(["b", "c", "d", "e", "f", "g", "h", "i"])
        {
            text.push_str(&format!("{name}: &{name} [*{of},*{of},*{of},*{of},*{of},*{of},*{of},*{of},*{of},*{of}]\n"));
        }
        let content = &all(Format::Yaml, &text)[0].1;
        assert_eq!((content.objects.len(), content.broken.len()), (0, 1), "{:?}", content.broken);
    }
}
