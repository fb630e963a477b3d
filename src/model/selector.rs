//! Labels, and the selectors that match them.
//!
//! Kubernetes: `metadata.labels` and `LabelSelector`. All requirements of a selector hold together; one without
//! requirements selects everything. A selector that could not be read never becomes a value: whoever parses it
//! decides what its absence means (`k8s::parse`).

use compact_str::CompactString;

use super::interner::Counted;
use super::shared_value::Shared;

/// The labels of one object, sorted by key. Pods of one template share the memory.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
pub struct Labels(Shared<[(CompactString, CompactString)]>);

/// `LabelSelector`: `matchLabels` and `matchExpressions` in one form, sorted, so that selectors that mean the same
/// in the same words are equal.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
pub struct Selector {
    pub requirements: Box<[Requirement]>,
}

/// One condition on one label.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Requirement {
    pub key: CompactString,
    pub operator: Operator,
}

/// The condition on the label. Values are sorted and without duplicates.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Operator {
    /// The label is there and has one of these values; `matchLabels` is this with one value.
    In(Box<[CompactString]>),
    /// The label is not there, or has none of these values.
    NotIn(Box<[CompactString]>),
    Exists,
    DoesNotExist,
}

impl Labels {
    pub fn value(&self, key: &str) -> Option<&str> {
        let place = self.0.binary_search_by(|(other, _)| other.as_str().cmp(key)).ok()?;
        self.0.get(place).map(|(_, value)| value.as_str())
    }

    /// Returns whether somebody else holds the same memory.
    pub fn is_shared(&self) -> bool {
        self.0.is_shared()
    }

    /// Returns whether both are the same memory: equal labels may not be.
    pub fn is_same(&self, other: &Labels) -> bool {
        std::ptr::eq(&*self.0, &*other.0)
    }

    /// Keys and values, sorted by key.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(key, value)| (key.as_str(), value.as_str()))
    }
}

impl<K: Into<CompactString>, V: Into<CompactString>> FromIterator<(K, V)> for Labels {
    /// Of several values for one key the last stays, as in a JSON object.
    fn from_iter<I: IntoIterator<Item = (K, V)>>(pairs: I) -> Labels {
        let mut sorted: Vec<(CompactString, CompactString)> = Vec::new();
        for (key, value) in pairs {
            let (key, value) = (key.into(), value.into());
            match sorted.binary_search_by(|(other, _)| other.cmp(&key)) {
                Ok(place) => sorted.splice(place..=place, [(key, value)]).for_each(drop),
                Err(place) => sorted.insert(place, (key, value)),
            }
        }
        Labels(sorted.into())
    }
}

impl Selector {
    /// The selector that selects everything.
    pub fn everything() -> Selector {
        Selector::default()
    }

    pub fn selects(&self, labels: &Labels) -> bool {
        self.requirements.iter().all(|requirement| requirement.holds(labels))
    }
}

impl FromIterator<Requirement> for Selector {
    fn from_iter<I: IntoIterator<Item = Requirement>>(requirements: I) -> Selector {
        let mut requirements: Vec<Requirement> = requirements.into_iter().collect();
        requirements.sort();
        requirements.dedup();
        Selector { requirements: requirements.into() }
    }
}

impl Requirement {
    pub fn holds(&self, labels: &Labels) -> bool {
        let value = labels.value(&self.key);
        let among = |values: &[CompactString]| value.is_some_and(|value| values.iter().any(|other| other == value));
        match &self.operator {
            Operator::In(values) => among(values),
            Operator::NotIn(values) => !among(values),
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn requirement(key: &str, operator: Operator) -> Selector {
        [Requirement { key: key.into(), operator }].into_iter().collect()
    }

    #[test]
    fn a_label_that_is_not_there_is_not_in_any_list() {
        let labels: Labels = [("app", "web")].into_iter().collect();
        let values: Box<[CompactString]> = Box::new(["front".into()]);
        assert!(requirement("tier", Operator::NotIn(values.clone())).selects(&labels));
        assert!(!requirement("tier", Operator::In(values)).selects(&labels));
        assert!(requirement("tier", Operator::DoesNotExist).selects(&labels));
        assert!(!requirement("tier", Operator::Exists).selects(&labels));
    }

    #[test]
    fn all_requirements_hold_together_and_none_selects_everything() {
        let labels: Labels = [("app", "web"), ("tier", "front")].into_iter().collect();
        let is =
            |key: &str, value: &str| Requirement { key: key.into(), operator: Operator::In(Box::new([value.into()])) };
        let both: Selector = [is("app", "web"), is("tier", "front")].into_iter().collect();
        let one_wrong: Selector = [is("app", "web"), is("tier", "back")].into_iter().collect();
        assert!(both.selects(&labels));
        assert!(!one_wrong.selects(&labels));
        assert!(Selector::everything().selects(&Labels::default()));
    }

    #[test]
    fn the_last_of_two_values_for_one_key_stays() {
        let labels: Labels = [("b", "1"), ("a", "2"), ("b", "3")].into_iter().collect();
        assert_eq!(labels.iter().collect::<Vec<_>>(), [("a", "2"), ("b", "3")]);
    }
}
