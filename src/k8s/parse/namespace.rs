//! A Namespace, from the API's form to ours.
//!
//! Kubernetes: core/v1 Namespace, `metadata.labels` and one annotation ([`annotations::isolates`]).
//!
//! The API server gives every Namespace the label `kubernetes.io/metadata.name` with its own name, and refuses another
//! value. A manifest comes without it, so it is set here: the selectors of policies rely on it.

mod protobuf;

use compact_str::CompactString;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Deserialize;

use super::metadata::object_meta;
use super::pool::Pool;
use crate::k8s::annotations;
use crate::k8s::warning::{Warning, Warnings};
use crate::model::Namespace;

/// Parses a Namespace.
pub fn namespace(object: &NamespaceObject, pool: &mut Pool) -> (CompactString, Option<Namespace>, Vec<Warning>) {
    let mut warnings = Warnings::default();
    let meta = &object.metadata;
    let name = CompactString::from(meta.name.as_deref().unwrap_or_default());
    if name.is_empty() {
        warnings.odd("metadata.name", "absent; the object is left out");
        return (name, None, warnings.take());
    }
    let written = meta.labels.iter().flatten().map(|(key, value)| (key.as_str(), value.as_str()));
    let labels = pool.labels(written.chain([(NAME_LABEL, name.as_str())]).collect());
    let isolated = meta.annotations.as_ref().is_some_and(|all| annotations::isolates(all, &mut warnings));
    (name, Some(Namespace { labels, isolated }), warnings.take())
}

/// The label that every Namespace has.
const NAME_LABEL: &str = "kubernetes.io/metadata.name";

/// The fields of a Namespace that are read.
#[derive(Deserialize, Clone, Debug)]
pub struct NamespaceObject {
    #[serde(deserialize_with = "object_meta")]
    pub metadata: ObjectMeta,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(yaml: &str) -> (Option<Namespace>, Vec<String>) {
        let object: NamespaceObject = serde_saphyr::from_str(yaml).expect("the test's YAML is sound");
        let (_, namespace, warnings) = namespace(&object, &mut Pool::default());
        (namespace, warnings.iter().map(Warning::to_string).collect())
    }

    #[test]
    fn every_namespace_is_labelled_with_its_own_name() {
        for labels in ["", ", labels: {}", ", labels: {kubernetes.io/metadata.name: another}"] {
            let (namespace, warnings) = parsed(&format!("{{metadata: {{name: shop{labels}}}}}"));
            let namespace = namespace.expect("it has a name");
            let all: Vec<_> = namespace.labels.iter().collect();
            assert_eq!((all, namespace.isolated), (vec![(NAME_LABEL, "shop")], false), "{labels}");
            assert_eq!(warnings, [""; 0]);
        }
        let (namespace, _) = parsed("{metadata: {name: shop, labels: {team: blue, empty: }}}");
        let labels = namespace.expect("it has a name").labels;
        assert_eq!((labels.value("team"), labels.value("empty")), (Some("blue"), Some("")));
    }

    #[test]
    fn the_old_annotation_isolates_and_a_broken_one_speaks() {
        let with = |value: &str| {
            parsed(&format!(
                "{{metadata: {{name: shop, annotations: {{net.beta.kubernetes.io/network-policy: '{value}'}}}}}}"
            ))
        };
        let (namespace, warnings) = with("{\"ingress\": {\"isolation\": \"DefaultDeny\"}}");
        assert!(namespace.expect("it has a name").isolated && warnings.is_empty());
        let (namespace, warnings) = with("{\"ingress\":");
        assert!(namespace.expect("it has a name").isolated, "a mistake opens nothing");
        assert!(warnings[0].starts_with("net.beta.kubernetes.io/network-policy: EOF while parsing"), "{warnings:?}");
        let (namespace, warnings) = with("{\"ingress\": {\"isolation\": \"DefaultDney\"}}");
        assert!(namespace.expect("it has a name").isolated && warnings[0].contains("DefaultDney"), "{warnings:?}");
        let (namespace, warnings) = with("{}");
        assert!(!namespace.expect("it has a name").isolated && warnings.is_empty());
    }

    #[test]
    fn a_namespace_without_a_name_is_absent() {
        assert_eq!(parsed("{metadata: {}}"), (None, vec!["metadata.name: absent; the object is left out".to_owned()]));
    }
}
