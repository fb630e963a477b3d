//! A ServiceCIDR, from the API's form to ours.
//!
//! Kubernetes: networking.k8s.io/v1 ServiceCIDR, `spec.cidrs`. An object with `metadata.deletionTimestamp` exists until the API server
//! has no Service with an address in its ranges any more, so it counts like any other; `status` says nothing more.

mod protobuf;

use compact_str::CompactString;
use ipnet::IpNet;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Deserialize;

use super::metadata::object_meta;
use crate::k8s::warning::{Warning, Warnings};
use crate::model::ServiceCidr;

/// Parses a ServiceCIDR.
pub fn service_cidr(object: &ServiceCidrObject) -> (CompactString, Option<ServiceCidr>, Vec<Warning>) {
    let mut warnings = Warnings::default();
    let name = CompactString::from(object.metadata.name.as_deref().unwrap_or_default());
    if name.is_empty() {
        warnings.odd("metadata.name", "absent; the object is left out");
        return (name, None, warnings.take());
    }
    let written = object.spec.iter().flat_map(|spec| &spec.cidrs);
    let ranges = written.filter_map(|text| match text.parse::<IpNet>() {
        Ok(range) => Some(range.trunc()),
        Err(_) => {
            warnings.odd("spec.cidrs", format!("{text:?} is not a range; it is left out"));
            None
        }
    });
    let ranges = ranges.collect();
    (name, Some(ServiceCidr { ranges }), warnings.take())
}

/// The fields of a ServiceCIDR that are read.
#[derive(Deserialize, Clone, Debug)]
pub struct ServiceCidrObject {
    #[serde(deserialize_with = "object_meta")]
    pub metadata: ObjectMeta,
    pub spec: Option<Spec>,
}

#[derive(Deserialize, Clone, Debug)]
pub struct Spec {
    #[serde(default)]
    pub cidrs: Vec<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(yaml: &str) -> (Option<Vec<String>>, Vec<String>) {
        let object: ServiceCidrObject = serde_saphyr::from_str(yaml).expect("the test's YAML is sound");
        let (_, ranges, warnings) = service_cidr(&object);
        let texts = |of: ServiceCidr| of.ranges.iter().map(ToString::to_string).collect();
        (ranges.map(texts), warnings.iter().map(Warning::to_string).collect())
    }

    #[test]
    fn the_ranges_of_both_families_are_read_also_while_the_object_is_being_deleted() {
        for more in
            ["", ", deletionTimestamp: '2026-01-01T00:00:00Z', finalizers: [networking.k8s.io/service-cidr-finalizer]"]
        {
            let yaml = format!(
                "{{metadata: {{name: kubernetes{more}}}, spec: {{cidrs: [10.96.0.0/12, 'fd00:10:96::/108']}}}}"
            );
            let both = ["10.96.0.0/12", "fd00:10:96::/108"].map(ToOwned::to_owned).to_vec();
            assert_eq!(parsed(&yaml), (Some(both), Vec::new()), "{more}");
        }
    }

    #[test]
    fn what_is_no_range_is_left_out_with_a_warning_and_the_rest_counts() {
        let (ranges, warnings) = parsed("{metadata: {name: a}, spec: {cidrs: [10.96.0.0/33, 10.1.2.3/16]}}");
        assert_eq!(ranges, Some(vec!["10.1.0.0/16".to_owned()]));
        assert_eq!(warnings, ["spec.cidrs: \"10.96.0.0/33\" is not a range; it is left out"]);
        assert_eq!(parsed("{metadata: {name: a}}"), (Some(Vec::new()), Vec::new()));
        assert_eq!(parsed("{metadata: {}}").0, None);
    }
}
