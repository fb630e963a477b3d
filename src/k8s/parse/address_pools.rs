//! The ConfigMap `kube-router-lb-pools`, from the API's form to pools of addresses.
//!
//! Each key of `data` is the name of a pool, and its value is YAML:
//!
//! ```yaml
//! addresses: [203.0.113.0/28, 203.0.113.64-203.0.113.80, "2001:db8:1::/112"]
//! namespaces: [shop]
//! serviceSelector: {matchLabels: {tier: front}}
//! loadBalancerClass: kube-router/front
//! autoAssign: true
//! ```
//!
//! A pool is understood as a whole or not at all: one with a misspelt field would be for other Services than was meant. It then stays
//! as it last was, and the mistake is named with its field.

use std::collections::BTreeMap;

use compact_str::CompactString;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Deserialize;
use serde::de::IgnoredAny;

use super::metadata::labelled_meta;
use super::protobuf::{ApiObject, FromProtobuf};
use super::selector::{SelectorObject, selector};
use crate::model::{AddressPool, AddressPools, Selector};
use crate::net::AddressRange;

/// The fields of a ConfigMap that are read.
#[derive(Deserialize, Clone, Debug)]
pub struct ConfigMapObject {
    #[serde(deserialize_with = "labelled_meta")]
    pub metadata: ObjectMeta,
    data: Option<BTreeMap<CompactString, Option<String>>>,
}

impl ApiObject for ConfigMapObject {
    const FROM_PROTOBUF: Option<FromProtobuf<Self>> = None;

    fn metadata(&self) -> &ObjectMeta {
        &self.metadata
    }
}

/// One value of `data`.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct PoolObject {
    addresses: Option<Vec<String>>,
    namespaces: Option<Vec<CompactString>>,
    service_selector: Option<SelectorObject>,
    load_balancer_class: Option<CompactString>,
    auto_assign: Option<bool>,
    #[serde(flatten)]
    unknown: BTreeMap<String, IgnoredAny>,
}

/// The ConfigMap of the pools.
pub const POOLS: &str = "kube-router-lb-pools";
/// The prefix of the classes for which there may be pools.
pub const CLASS_PREFIX: &str = "kube-router/";
/// The pool of `--loadbalancer-ip-range`.
pub const DEFAULT_POOL: &str = "default";

/// Parses all pools.
pub fn address_pools(object: &ConfigMapObject) -> AddressPools {
    let mut all = AddressPools::default();
    for (name, text) in object.data.iter().flatten() {
        match pool(name, text.as_deref().unwrap_or_default()) {
            Ok(pool) => drop(all.pools.insert(name.clone(), pool)),
            Err(mistake) => drop(all.unreadable.insert(name.clone(), mistake)),
        }
    }
    all
}

fn pool(name: &CompactString, text: &str) -> Result<AddressPool, String> {
    if name == DEFAULT_POOL {
        return Err("default is the name of the pool of --loadbalancer-ip-range; another one is needed".to_owned());
    }
    // Empty, a condition would hold for everybody.
    let fields: serde_json::Value = serde_saphyr::from_str(text).unwrap_or_default();
    if let Some(field) = without_value(&fields) {
        return Err(format!("{field}: it has no value; leave the field out, or name what it is to be"));
    }
    let object: PoolObject = serde_saphyr::from_str(text).map_err(|error| error.to_string())?;
    if let Some(field) = object.unknown.keys().next() {
        return Err(format!(
            "{field} is not a field of a pool, which are addresses, namespaces, serviceSelector, loadBalancerClass and autoAssign"
        ));
    }
    let mut ranges = Vec::new();
    for text in object.addresses.iter().flatten() {
        ranges.push(AddressRange::parse(text).map_err(|why| format!("addresses: {text:?} {why}"))?);
    }
    if ranges.is_empty() {
        return Err("addresses: no address is named".to_owned());
    }
    if object.namespaces.as_ref().is_some_and(Vec::is_empty) {
        return Err("namespaces: none is named; without the field a pool is for all".to_owned());
    }
    if let Some(class) = object.load_balancer_class.as_ref().filter(|class| !class.starts_with(CLASS_PREFIX)) {
        return Err(format!("loadBalancerClass: {class:?} does not begin with {CLASS_PREFIX}"));
    }
    let selector = match &object.service_selector {
        None => Selector::everything(),
        Some(written) => selector(written).map_err(|wrong| format!("serviceSelector{} {}", wrong.field, wrong.why))?,
    };
    Ok(AddressPool {
        name: name.clone(),
        ranges,
        namespaces: object.namespaces.unwrap_or_default(),
        selector,
        class: object.load_balancer_class,
        is_automatic: object.auto_assign.unwrap_or(true),
    })
}

/// Returns the path of the first field that has no value, in a field or in an element of a list.
fn without_value(value: &serde_json::Value) -> Option<String> {
    let inside = |name: String, value: &serde_json::Value| match value {
        serde_json::Value::Null => Some(name),
        value => Some(without_value(value)?).map(|rest| match rest.starts_with('[') {
            true => name + &rest,
            false => name + "." + &rest,
        }),
    };
    match value {
        serde_json::Value::Object(fields) => fields.iter().find_map(|(name, value)| inside(name.clone(), value)),
        serde_json::Value::Array(values) => {
            values.iter().enumerate().find_map(|(index, value)| inside(format!("[{index}]"), value))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> AddressPools {
        let data = serde_json::json!({"metadata": {"name": "kube-router-lb-pools"}, "data": {"gold": text}});
        address_pools(&serde_json::from_value(data).expect("a ConfigMap"))
    }

    #[test]
    fn a_pool_is_read_with_its_selectors() {
        let all = parsed(
            "addresses: [203.0.113.0/28, '2001:db8::1-2001:db8::9']\nnamespaces: [shop]\n\
             serviceSelector: {matchLabels: {tier: front}}\nloadBalancerClass: kube-router/front\nautoAssign: false\n",
        );
        let pool = all.pools.get("gold").expect("it is sound");
        assert_eq!((pool.ranges.len(), pool.is_automatic), (2, false));
        assert_eq!(pool.class.as_deref(), Some("kube-router/front"));
        assert!(pool.selector.selects(&[("tier", "front")].into_iter().collect()));
        assert!(!pool.selector.selects(&[("tier", "back")].into_iter().collect()));
    }

    #[test]
    fn whatever_makes_no_sense_in_a_pool_is_named_and_the_pool_is_unread() {
        for (text, named) in [
            ("addresses: [203.0.113.0/28]\nnamespace: [shop]", "namespace is not a field of a pool"),
            ("addresses: [203.0.113.0/28]\nserviceSelector: {matchLabel: {a: b}}", "serviceSelector.matchLabel is not"),
            ("addresses: [203.0.113]", "addresses: \"203.0.113\" is neither a prefix"),
            ("addresses: []", "addresses: no address is named"),
            ("", "addresses"),
            ("addresses: [203.0.113.0/28]\nnamespaces: []", "namespaces: none is named"),
            (
                "addresses: [203.0.113.0/28]\nloadBalancerClass: metallb",
                "loadBalancerClass: \"metallb\" does not begin",
            ),
            ("addresses: [203.0.113.0/28]\nnamespaces:", "namespaces: it has no value"),
            ("addresses: [203.0.113.0/28]\nnamespaces: null", "namespaces: it has no value"),
            ("addresses: [203.0.113.0/28]\nserviceSelector: ~", "serviceSelector: it has no value"),
            (
                "addresses: [203.0.113.0/28]\nserviceSelector: {matchLabels: }",
                "serviceSelector.matchLabels: it has no value",
            ),
            (
                "addresses: [203.0.113.0/28]\nserviceSelector: {matchExpressions: [{key: tier, operator: In, values: [~]}]}",
                "serviceSelector.matchExpressions[0].values[0]: it has no value",
            ),
            ("addresses: {", ""),
        ] {
            let all = parsed(text);
            assert!(all.pools.is_empty(), "{text}");
            let mistake = all.unreadable.get("gold").expect("it is named");
            assert!(mistake.contains(named), "{text}: {mistake}");
        }
    }

    #[test]
    fn a_pool_that_cannot_be_read_any_more_stays_as_it_was() {
        let good = parsed("addresses: [203.0.113.0/28]");
        let (now, is_unknown) = parsed("adresses: [203.0.113.0/28]").or_last_good(&good);
        assert_eq!((now.pools, is_unknown), (good.pools, false));
        let (now, is_unknown) = parsed("adresses: [203.0.113.0/28]").or_last_good(&AddressPools::default());
        assert!(now.pools.is_empty() && is_unknown);
    }
}
