//! CNI configuration files of other programs, so far as they matter for ours: which of them container runtimes take.

use serde_json::Value;

/// Another program's file, so far as it matters for ours.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Other {
    /// It describes no network: runtimes try the next file.
    Nothing,
    /// It describes the network of pods.
    Network,
    /// It leaves the network of pods to other files, as Multus does, which sorts first on purpose: it names the networks that
    /// it delegates to, or takes the first other file.
    Delegate,
}

impl Other {
    /// Reads a text; one that is not JSON describes nothing.
    pub fn of(text: &str) -> Other {
        let conf = serde_json::from_str::<Value>(text).unwrap_or_default();
        let listed = conf.get("plugins").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        if listed.is_empty() && !conf.get("type").is_some_and(Value::is_string) {
            return Other::Nothing;
        }
        let delegates = |plugin: &Value| {
            let kind = plugin.get("type").and_then(Value::as_str).unwrap_or_default();
            let names = ["delegates", "clusterNetwork", "defaultNetworks"];
            kind.starts_with("multus") || names.iter().any(|name| plugin.get(*name).is_some())
        };
        if listed.iter().chain([&conf]).any(delegates) { Other::Delegate } else { Other::Network }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_others_is_no_network_one_or_leaves_pods_to_other_files() {
        for (text, other) in [
            ("", Other::Nothing),
            ("{", Other::Nothing),
            ("[]", Other::Nothing),
            (r#"{"plugins":[]}"#, Other::Nothing),
            (r#"{"type":7}"#, Other::Nothing),
            (r#"{"delegates":[]}"#, Other::Nothing),
            (r#"{"type":"calico"}"#, Other::Network),
            (r#"{"plugins":[{"type":"calico"},{"type":"portmap"}]}"#, Other::Network),
            (r#"{"type":"multus","clusterNetwork":"x"}"#, Other::Delegate),
            (r#"{"type":"multus-shim"}"#, Other::Delegate),
            (r#"{"plugins":[{"type":"other","delegates":[{"type":"bridge"}]}]}"#, Other::Delegate),
        ] {
            assert_eq!(Other::of(text), other, "{text}");
        }
    }
}
