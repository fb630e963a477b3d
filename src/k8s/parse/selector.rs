//! A label selector, from the API's form to ours.
//!
//! Kubernetes: meta/v1 LabelSelector, `matchLabels` and `matchExpressions`, all of which hold together.
//!
//! A selector is understood as a whole or not at all: one condition that is left out makes it select more. The caller
//! decides what follows from a selector that is not understood. One with an unknown field is not understood
//! either, because `matchLabel: {app: web}` would otherwise select everything.

use std::collections::BTreeMap;

use compact_str::CompactString;
use serde::Deserialize;
use serde::de::IgnoredAny;

use crate::model::{Operator, Requirement, Selector};

/// Parses a selector.
///
/// # Errors
/// An operator, a key or the number of values is not one that the API allows.
pub fn selector(object: &SelectorObject) -> Result<Selector, Incomprehensible> {
    if let Some(name) = object.unknown.keys().next() {
        return Err(Incomprehensible { field: format!(".{name}"), why: "is not a field of a selector".to_owned() });
    }
    let mut requirements = Vec::new();
    for (key, value) in object.match_labels.iter().flatten() {
        let values = Box::new([value.clone().unwrap_or_default()]);
        requirements.push(Requirement { key: key.clone(), operator: Operator::In(values) });
    }
    for (index, expression) in object.match_expressions.iter().flatten().enumerate() {
        let requirement = expression.as_ref().ok_or_else(|| "is empty".to_owned()).and_then(requirement);
        let wrong = |why| Incomprehensible { field: format!(".matchExpressions[{index}]"), why };
        requirements.push(requirement.map_err(wrong)?);
    }
    Ok(requirements.into_iter().collect())
}

/// Why a selector is not understood.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Incomprehensible {
    /// Below the selector's own field, beginning with a dot.
    pub field: String,
    /// Continues the sentence behind the name of the field.
    pub why: String,
}

/// The fields of a LabelSelector.
#[derive(Deserialize, Default, Clone, Debug)]
#[serde(rename_all = "camelCase")]
pub struct SelectorObject {
    match_labels: Option<BTreeMap<CompactString, Option<CompactString>>>,
    match_expressions: Option<Vec<Option<Expression>>>,
    #[serde(flatten)]
    unknown: BTreeMap<String, IgnoredAny>,
}

#[derive(Deserialize, Clone, Debug)]
struct Expression {
    key: Option<CompactString>,
    operator: Option<CompactString>,
    values: Option<Vec<Option<CompactString>>>,
    #[serde(flatten)]
    unknown: BTreeMap<String, IgnoredAny>,
}

fn requirement(expression: &Expression) -> Result<Requirement, String> {
    if let Some(name) = expression.unknown.keys().next() {
        return Err(format!("has a field {name}, which is not known"));
    }
    let key = expression.key.clone().filter(|key| !key.is_empty()).ok_or("has no key")?;
    let mut values: Vec<CompactString> =
        expression.values.iter().flatten().map(|value| value.clone().unwrap_or_default()).collect();
    values.sort();
    values.dedup();
    let operator = match (expression.operator.as_deref().unwrap_or_default(), values.is_empty()) {
        ("In", false) => Operator::In(values.into()),
        ("NotIn", false) => Operator::NotIn(values.into()),
        ("Exists", true) => Operator::Exists,
        ("DoesNotExist", true) => Operator::DoesNotExist,
        (operator @ ("In" | "NotIn"), true) => return Err(format!("has the operator {operator} and no values")),
        (operator @ ("Exists" | "DoesNotExist"), false) => {
            return Err(format!("has the operator {operator}, which takes no values"));
        }
        (operator, _) => return Err(format!("has the operator {operator:?}, which is not known")),
    };
    Ok(Requirement { key, operator })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Labels;

    fn parsed(yaml: &str) -> Result<Selector, String> {
        let object: SelectorObject = serde_saphyr::from_str(yaml).expect("the test's YAML is sound");
        selector(&object).map_err(|wrong| format!("{} {}", wrong.field, wrong.why))
    }

    fn selects(yaml: &str, labels: &[(&str, &str)]) -> bool {
        parsed(yaml).expect("the test's selector is sound").selects(&labels.iter().copied().collect::<Labels>())
    }

    #[test]
    fn without_conditions_everything_is_selected() {
        for yaml in ["{}", "{matchLabels: }", "{matchLabels: {}, matchExpressions: []}", "{matchExpressions: null}"] {
            assert_eq!(parsed(yaml), Ok(Selector::everything()), "{yaml}");
        }
    }

    #[test]
    fn labels_and_expressions_hold_together() {
        let yaml = "{matchLabels: {app: web, tier: }, matchExpressions: [{key: zone, operator: In, values: [a, b]}, \
                    {key: zone, operator: NotIn, values: [b]}, {key: app, operator: Exists}, \
                    {key: old, operator: DoesNotExist, values: []}]}";
        assert!(selects(yaml, &[("app", "web"), ("tier", ""), ("zone", "a")]));
        for wrong in [
            &[("app", "web"), ("tier", ""), ("zone", "b")][..],
            &[("app", "web"), ("tier", "front"), ("zone", "a")],
            &[("app", "web"), ("tier", ""), ("zone", "a"), ("old", "1")],
            &[("app", "web"), ("zone", "a")],
            &[],
        ] {
            assert!(!selects(yaml, wrong), "{wrong:?}");
        }
    }

    #[test]
    fn the_same_words_in_another_order_are_the_same_selector() {
        assert_eq!(
            parsed("{matchExpressions: [{key: b, operator: In, values: [y, x, y]}, {key: a, operator: Exists}]}"),
            parsed("{matchExpressions: [{key: a, operator: Exists}, {key: b, operator: In, values: [x, y]}]}")
        );
        assert_eq!(
            parsed("{matchLabels: {app: web}}"),
            parsed("{matchExpressions: [{key: app, operator: In, values: [web]}]}")
        );
    }

    #[test]
    fn a_selector_is_understood_as_a_whole_or_not_at_all() {
        for (yaml, why) in [
            (
                "{matchLabels: {a: b}, matchExpressions: [{key: a, operator: In}]}",
                ".matchExpressions[0] has the operator In and no values",
            ),
            (
                "{matchExpressions: [{key: a, operator: Exists}, {key: a, operator: NotIn, values: []}]}",
                ".matchExpressions[1] has the operator NotIn and no values",
            ),
            (
                "{matchExpressions: [{key: a, operator: Exists, values: [b]}]}",
                ".matchExpressions[0] has the operator Exists, which takes no values",
            ),
            (
                "{matchExpressions: [{key: a, operator: exists}]}",
                ".matchExpressions[0] has the operator \"exists\", which is not known",
            ),
            ("{matchExpressions: [{key: a}]}", ".matchExpressions[0] has the operator \"\", which is not known"),
            ("{matchExpressions: [{operator: Exists}]}", ".matchExpressions[0] has no key"),
            ("{matchExpressions: [null]}", ".matchExpressions[0] is empty"),
            (
                "{matchExpressions: [{key: a, operator: In, value: [b]}]}",
                ".matchExpressions[0] has a field value, which is not known",
            ),
            ("{matchLabel: {app: web}}", ".matchLabel is not a field of a selector"),
        ] {
            assert_eq!(parsed(yaml), Err(why.to_owned()), "{yaml}");
        }
    }
}
