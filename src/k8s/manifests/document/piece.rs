//! The objects in a document, undecoded: which kind each is of, the items of a list, and what a parser says of the text.

use std::fmt;

use serde::de::{DeserializeOwned, DeserializeSeed, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use super::{Document, Format, MOST_DOCUMENTS, Remark};
use crate::k8s::Kind;

/// Input for decoding objects: a whole document, or one item of a list in it.
pub enum Piece<'a> {
    Whole(&'a Document<'a>),
    Item(usize, &'a Value),
}

/// The version and the kind that an object names.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Head {
    pub api_version: Option<String>,
    pub kind: Option<String>,
}

/// The items of a `List`, or of a list of one kind (`ServiceList`), whose items may leave their kind out; decoded one after the other: all of them at once would be many times as large as the text.
pub(super) struct Items<'a> {
    /// The kind of items without a kind of their own.
    pub(super) of_kind: &'a str,
    pub(super) each: &'a mut dyn FnMut(&Piece<'_>, &Head),
}

/// The list itself.
pub(super) struct List<'a>(pub(super) Items<'a>);

impl Piece<'_> {
    /// Decodes the object.
    ///
    /// # Errors
    /// It is none of this type: where, and why.
    pub fn read<T: DeserializeOwned>(&self) -> Result<T, Remark> {
        match self {
            Piece::Whole(Document { format: Format::Yaml, text, .. }) => yaml(text),
            Piece::Whole(Document { format: Format::Json, text, .. }) => {
                serde_json::from_str(text).map_err(json_remark)
            }
            Piece::Item(_, value) => T::deserialize(*value).map_err(|error| self.remark(error.to_string())),
        }
    }

    pub(super) fn remark(&self, text: impl Into<String>) -> Remark {
        match self {
            Piece::Whole(_) => Remark { line: 0, text: text.into() },
            Piece::Item(index, _) => Remark { line: 0, text: format!("items[{index}]: {}", text.into()) },
        }
    }
}

impl<'de> DeserializeSeed<'de> for List<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for List<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of objects")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let Items { of_kind, each } = self.0;
        while let Some(key) = map.next_key::<String>()? {
            match key.as_str() {
                "items" => map.next_value_seed(Items { of_kind, each: &mut *each })?,
                _ => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(())
    }
}

impl<'de> DeserializeSeed<'de> for Items<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_option(self)
    }
}

impl<'de> Visitor<'de> for Items<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a sequence of objects")
    }

    fn visit_none<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_seq(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        let word = |item: &Value, key: &str| item.get(key).and_then(|text| text.as_str()).map(str::to_owned);
        let mut index = 0;
        while let Some(item) = items.next_element::<Value>()? {
            if index == MOST_DOCUMENTS {
                return Err(A::Error::custom(format_args!("a list of more than {MOST_DOCUMENTS} items")));
            }
            let mut head = Head { api_version: word(&item, "apiVersion"), kind: word(&item, "kind") };
            if let (None, Some(kind)) = (&head.kind, Kind::from_name(self.of_kind)) {
                head.kind = Some(kind.name().to_owned());
                head.api_version.get_or_insert_with(|| kind.api_version().to_owned());
            }
            (self.each)(&Piece::Item(index, &item), &head);
            index += 1;
        }
        Ok(())
    }
}

/// `apiVersion` and `kind`, as dividing JSON has found them; in YAML where they stand at the beginning of a line, as they do in every manifest written
/// in block style: a key of the outermost mapping is the only thing that can. It spares parsing twice.
pub(super) fn scanned_head(document: &Document<'_>) -> Option<Head> {
    if document.format == Format::Json {
        // A comma that is missing before one of the two hides it: only a parser tells that from an object without it.
        let named = document.named?;
        return Some(Head { api_version: Some(named.api_version?.to_owned()), kind: Some(named.kind?.to_owned()) });
    }
    let value = |key: &str| {
        let mut lines = document.text.lines().filter_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
        let value = lines.next()?.trim();
        let plain = value.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'/' | b'-'));
        (lines.next().is_none() && plain && !value.is_empty()).then(|| value.to_owned())
    };
    Some(Head { api_version: Some(value("apiVersion")?), kind: Some(value("kind")?) })
}

fn yaml<T: DeserializeOwned>(text: &str) -> Result<T, Remark> {
    serde_saphyr::from_str_with_options(text, yaml_options()).map_err(yaml_remark)
}

/// The size of a file is bounded where it is read; the bound here is on the expansion of aliases.
pub(super) fn yaml_options() -> serde_saphyr::Options {
    serde_saphyr::options! {
        with_snippet: false,
        emit_comments: false,
        budget: serde_saphyr::budget! {
            max_events: 40_000_000,
            max_nodes: 20_000_000,
            max_total_scalar_bytes: 256 << 20,
        },
        alias_limits: serde_saphyr::alias_limits! { max_total_replayed_events: 100_000 },
    }
}

pub(super) fn yaml_remark(error: serde_saphyr::Error) -> Remark {
    let full = error.to_string();
    let Some(place) = error.location() else { return Remark { line: 0, text: full } };
    let suffix = format!(" at line {}, column {}", place.line(), place.column());
    let text = full.strip_suffix(&suffix).unwrap_or(&full).to_owned();
    Remark { line: usize::try_from(place.line()).unwrap_or(1).saturating_sub(1), text }
}

pub(super) fn json_remark(error: serde_json::Error) -> Remark {
    let full = error.to_string();
    let suffix = format!(" at line {} column {}", error.line(), error.column());
    let text = full.strip_suffix(&suffix).unwrap_or(&full).to_owned();
    Remark { line: error.line().saturating_sub(1), text }
}
