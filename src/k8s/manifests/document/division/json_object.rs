//! The end of an object of JSON, and its version and kind, by its brackets and strings alone.
//!
//! A parser of JSON that skips a value takes several times as many instructions for each byte, and each object of a file is parsed as a whole anyway: what is
//! wrong inside of its brackets is found then.

use super::Named;

/// Returns where the object ends that a text begins with, behind blanks, and its version and kind. These are `None` where only a parser can tell them: a key
/// with an escape in it, one that comes twice, or a value that is no word. `None` where the text begins otherwise, or the object has no end.
pub(super) fn json_object(text: &str) -> Option<(usize, Option<Named<'_>>)> {
    let bytes = text.as_bytes();
    let mut at = bytes.iter().position(|byte| !matches!(byte, b' ' | b'\n' | b'\r' | b'\t'))?;
    if bytes.get(at) != Some(&b'{') {
        return None;
    }
    let mut names = Names::default();
    let mut depth = 0_usize;
    loop {
        match bytes.get(at)? {
            b'"' => {
                let first = at + 1;
                let has_escapes;
                (at, has_escapes) = string_end(bytes, first)?;
                if depth == 1 {
                    names.string(text.get(first..at)?, has_escapes);
                }
            }
            b'{' | b'[' => {
                if depth == 1 {
                    names.odd_value();
                }
                depth += 1;
            }
            b'}' | b']' => {
                depth = depth.checked_sub(1)?;
                if depth == 0 {
                    return Some((at + 1, names.named()));
                }
            }
            b',' if depth == 1 => names.key = None,
            b'n' if depth == 1 => names.value(None),
            b't' | b'f' | b'-' | b'0'..=b'9' if depth == 1 => names.odd_value(),
            _ => {}
        }
        at += 1;
    }
}

/// Returns the place of the quotation mark that ends a string, and whether there is an escape before it.
fn string_end(bytes: &[u8], first: usize) -> Option<(usize, bool)> {
    let mut at = first;
    let mut has_escapes = false;
    loop {
        at += quotation_mark_or_escape(bytes.get(at..)?)?;
        if bytes.get(at) == Some(&b'"') {
            return Some((at, has_escapes));
        }
        has_escapes = true;
        at += 2;
    }
}

/// Returns the place of the first of the two, looking at eight bytes at a time.
fn quotation_mark_or_escape(bytes: &[u8]) -> Option<usize> {
    let (words, rest) = bytes.as_chunks::<8>();
    let of = |byte: u8| u64::from_le_bytes([byte; 8]);
    // The highest bit of each byte that is zero; above the first of them also of some that are not.
    let zeroes = |word: u64| word.wrapping_sub(of(1)) & !word & of(0x80);
    for (index, word) in words.iter().enumerate() {
        let word = u64::from_le_bytes(*word);
        let found = zeroes(word ^ of(b'"')) | zeroes(word ^ of(b'\\'));
        if found != 0 {
            return Some(8 * index + found.trailing_zeros() as usize / 8);
        }
    }
    let place = rest.iter().position(|byte| matches!(byte, b'"' | b'\\'))?;
    Some(8 * words.len() + place)
}

/// The version and the kind of an object, as its own keys and values pass by.
#[derive(Default)]
struct Names<'a> {
    /// The key whose value is to come; `None` where a key is.
    key: Option<&'a str>,
    api_version: Option<Option<&'a str>>,
    kind: Option<Option<&'a str>>,
    is_odd: bool,
}

impl<'a> Names<'a> {
    fn string(&mut self, text: &'a str, has_escapes: bool) {
        match self.key {
            None => {
                self.is_odd |= has_escapes;
                self.key = Some(text);
            }
            Some(_) if has_escapes => self.odd_value(),
            Some(_) => self.value(Some(text)),
        }
    }

    /// Takes a word, or `null`.
    fn value(&mut self, word: Option<&'a str>) {
        if let Some(place) = self.place() {
            let is_second = place.replace(word).is_some();
            self.is_odd |= is_second;
        }
    }

    /// Takes a value that is no word.
    fn odd_value(&mut self) {
        self.is_odd |= self.place().is_some();
    }

    /// Returns where the value belongs that is to come, if it is one of the two.
    fn place(&mut self) -> Option<&mut Option<Option<&'a str>>> {
        match self.key? {
            "apiVersion" => Some(&mut self.api_version),
            "kind" => Some(&mut self.kind),
            _ => None,
        }
    }

    fn named(&self) -> Option<Named<'a>> {
        let named = Named { api_version: self.api_version.flatten(), kind: self.kind.flatten() };
        (!self.is_odd).then_some(named)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Map, Value};

    use super::*;

    fn text() -> impl Strategy<Value = String> {
        prop_oneof![Just("kind".to_owned()), Just("apiVersion".to_owned()), "[a-z{}\\[\\]\":,\\\\ \n\u{e4}]{0,6}",]
    }

    fn value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i32>().prop_map(Value::from),
            text().prop_map(Value::from),
        ];
        leaf.prop_recursive(3, 24, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::vec((text(), inner), 0..4).prop_map(|all| Value::Object(all.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn objects_end_where_a_parser_says_and_their_version_and_kind_are_the_parsers(
            fields in prop::collection::vec((text(), value()), 0..5),
            is_wide in any::<bool>(),
            after in "[ \n{}\"a]{0,4}",
        ) {
            let object: Map<String, Value> = fields.into_iter().collect();
            let written = if is_wide { serde_json::to_string_pretty(&object) } else { serde_json::to_string(&object) };
            let written = written.expect("an object can be written");
            let whole = format!("\n {written}{after}");
            let (end, named) = json_object(&whole).expect("it is an object");
            prop_assert_eq!(end, 2 + written.len());
            let of = |key: &str| object.get(key).unwrap_or(&Value::Null);
            let is_plain = |value: &Value| value.is_null() || value.as_str().is_some_and(|text| !text.contains(['"', '\\', '\n']));
            let keys_are_plain = object.keys().all(|key| !key.contains(['"', '\\', '\n']));
            let should = (keys_are_plain && is_plain(of("apiVersion")) && is_plain(of("kind")))
                .then(|| Named { api_version: of("apiVersion").as_str(), kind: of("kind").as_str() });
            prop_assert_eq!(named, should);
        }

        #[test]
        fn no_text_is_too_odd(text in "[{}\\[\\]\":,\\\\nt0 a]{0,24}") {
            if let Some((end, _)) = json_object(&text) {
                let is_closed = text.get(..end).is_some_and(|object| object.ends_with(['}', ']']));
                prop_assert!(is_closed);
            }
        }
    }
}
