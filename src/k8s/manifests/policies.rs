//! The NetworkPolicies and ClusterNetworkPolicies in the text of one file, for a question about them.
//!
//! Stricter than the directory: what is left out with a warning there is a mistake here, because the answer would be about another
//! policy than the one that is meant. Objects of other kinds are passed over.

use serde::de::IgnoredAny;

use super::document::{Format, Reader, documents};
use crate::k8s::{Kind, LAST_GOOD_STAYS, Object};
use crate::model::Policies;

/// Reads the policies of a file, YAML or JSON.
///
/// # Errors
/// The first mistake, or that there is no policy, as a sentence without its end.
pub fn policies(text: &str) -> Result<Policies, String> {
    let format = if is_json(text) { Format::Json } else { Format::Yaml };
    let kinds = [Kind::NetworkPolicy, Kind::ClusterNetworkPolicy].into();
    let mut reader = Reader { kinds, ..Reader::default() };
    let mut policies = Policies::default();
    for document in documents(format, text) {
        let content = document.content(&mut reader);
        if let Some(remark) = content.broken.iter().chain(&content.skipped).next() {
            return Err(format!("line {} of the file: {}", document.line + remark.line, remark.text));
        }
        for (object, warnings) in content.objects {
            let id = object.id();
            let name = match id.kind {
                Kind::ClusterNetworkPolicy => format!("ClusterNetworkPolicy {}", id.name.name),
                kind => format!("{kind} {}", id.name),
            };
            if let Some(warning) = warnings.first() {
                let warning = warning.to_string();
                // True of an object of the cluster, and of no file.
                let mistake = warning.strip_suffix(LAST_GOOD_STAYS).unwrap_or(&warning);
                return Err(format!("{name} of the file: {mistake}"));
            }
            let is_new = match object {
                Object::NetworkPolicy(name, Some(policy)) => policies.policies.insert(name, policy).is_none(),
                Object::ClusterNetworkPolicy(name, Some(policy)) => {
                    policies.cluster_policies.insert(name, policy).is_none()
                }
                _ => return Err(format!("{name} of the file cannot be read")),
            };
            if !is_new {
                return Err(format!("{name} stands twice in the file"));
            }
        }
    }
    if policies == Policies::default() {
        return Err("there is no NetworkPolicy and no ClusterNetworkPolicy in the file".to_owned());
    }
    Ok(policies)
}

/// Returns whether a text is JSON. Braces alone say nothing: YAML may begin with one.
fn is_json(text: &str) -> bool {
    text.trim_start().starts_with('{')
        && serde_json::Deserializer::from_str(text).into_iter::<IgnoredAny>().all(|value| value.is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    const DENY: &str = "\
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: { name: deny, namespace: shop }
spec: { podSelector: {}, policyTypes: [Ingress] }
";

    fn names(text: &str) -> Result<Vec<String>, String> {
        let named = |found: Policies| {
            let cluster = found.cluster_policies.keys().map(ToString::to_string);
            found.policies.keys().map(ToString::to_string).chain(cluster).collect()
        };
        policies(text).map(named)
    }

    #[test]
    fn policies_of_all_documents_are_read_and_other_kinds_passed_over() {
        let other = DENY.replace("{ name: deny, namespace: shop }", "{ name: other }");
        let text = format!("{DENY}---\napiVersion: v1\nkind: Service\nmetadata: {{}}\n---\n{other}");
        assert_eq!(names(&text), Ok(vec!["default/other".to_owned(), "shop/deny".to_owned()]));
        let json = r#"{"apiVersion":"v1","kind":"List","items":[{"apiVersion":"networking.k8s.io/v1","kind":"NetworkPolicy",
            "metadata":{"name":"deny","namespace":"shop"},"spec":{"podSelector":{}}}]}"#;
        assert_eq!(names(json), Ok(vec!["shop/deny".to_owned()]));
        let flow =
            "{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: deny}, spec: {podSelector: {}}}";
        assert_eq!(names(flow), Ok(vec!["default/deny".to_owned()]));
    }

    #[test]
    fn cluster_policies_are_read_beside_those_of_namespaces() {
        let guard = "\
apiVersion: policy.networking.k8s.io/v1beta1
kind: ClusterNetworkPolicy
metadata: { name: guard }
spec: { tier: Admin, priority: 7, subject: { namespaces: {} }, ingress: [{ action: Deny, from: [{ namespaces: {} }] }] }
";
        assert_eq!(names(&format!("{DENY}---\n{guard}")), Ok(vec!["shop/deny".to_owned(), "guard".to_owned()]));
        let twice = names(&format!("{guard}---\n{guard}"));
        assert_eq!(twice, Err("ClusterNetworkPolicy guard stands twice in the file".to_owned()));
        let wrong = names(&guard.replace("Deny", "Refuse")).expect_err("no action of the API");
        assert!(wrong.starts_with("ClusterNetworkPolicy guard of the file: "), "{wrong}");
    }

    #[test]
    fn a_mistake_is_one_sentence_that_says_where() {
        for (text, expected) in [
            ("", "there is no NetworkPolicy and no ClusterNetworkPolicy in the file"),
            ("kind: Service", "there is no NetworkPolicy and no ClusterNetworkPolicy in the file"),
            (&format!("{DENY}---\n{DENY}"), "NetworkPolicy shop/deny stands twice in the file"),
        ] {
            assert_eq!(names(text), Err(expected.to_owned()));
        }
        for (from, to, expected) in [
            ("[Ingress]", "[Inward]", "NetworkPolicy shop/deny of the file: spec.policyTypes: \"Inward\" is not known"),
            (
                "podSelector: {}",
                "podSelecter: {}",
                "NetworkPolicy shop/deny of the file: spec.podSelecter: is not known",
            ),
            ("networking.k8s.io/v1", "networking.k8s.io/v2", "line 1 of the file: a NetworkPolicy of apiVersion"),
            ("name: deny, ", "", "line 1 of the file: a NetworkPolicy without metadata.name"),
            ("spec: {", "spec: [", "line "),
        ] {
            let refused = names(&DENY.replace(from, to)).expect_err(to);
            assert!(refused.starts_with(expected) && refused.lines().count() == 1, "{to}: {refused}");
        }
    }
}
