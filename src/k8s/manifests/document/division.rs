//! Division of a file into documents, before anything is parsed: at lines that begin with `---` in YAML, and between values in JSON.

mod json_object;

use serde::de::IgnoredAny;

use self::json_object::json_object;

/// Format of a file; decided by the end of its name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Format {
    Yaml,
    Json,
}

/// A piece of a file that is one document.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Document<'a> {
    pub format: Format,
    /// The line of the file on which the document begins, counted from 1.
    pub line: usize,
    pub text: &'a str,
    /// Its version and kind, where dividing the file has found them.
    pub named: Option<Named<'a>>,
    /// All that is left of a file of too many documents, undivided.
    pub is_rest: bool,
}

/// The version and the kind of an object, as they stand in the text.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Named<'a> {
    pub api_version: Option<&'a str>,
    pub kind: Option<&'a str>,
}

impl Format {
    /// The format of a file with this name; `None` for a file that is no manifest. Hidden files are none:
    /// editors keep their temporary copies under such names, and ConfigMap mounts their links.
    pub fn of_file(name: &str) -> Option<Format> {
        if name.starts_with('.') {
            return None;
        }
        match name.rsplit_once('.')?.1 {
            "yaml" | "yml" => Some(Format::Yaml),
            "json" => Some(Format::Json),
            _ => None,
        }
    }
}

/// Most documents of a file, and most items of a list. It is more than the objects of a cluster of 5,000 nodes; of a file with nothing but `{}` in it each byte
/// would take tens in memory.
pub const MOST_DOCUMENTS: usize = 500_000;

/// Cuts a file into its documents. Empty documents are left out.
pub fn documents(format: Format, text: &str) -> Vec<Document<'_>> {
    documents_up_to(MOST_DOCUMENTS, format, text)
}

/// Cuts so many documents off a file; another one is all that is left.
fn documents_up_to(most: usize, format: Format, text: &str) -> Vec<Document<'_>> {
    match format {
        Format::Yaml => yaml_documents(most, text),
        Format::Json => json_documents(most, text),
    }
}

fn yaml_documents(most: usize, text: &str) -> Vec<Document<'_>> {
    let mut documents = Vec::new();
    let mut add = |first: usize, text, is_rest| {
        if !is_empty_yaml(text) {
            documents.push(Document { format: Format::Yaml, line: first + 1, text, named: None, is_rest });
        }
        documents.len()
    };
    let (mut start, mut first, mut at, mut count) = (0, 0, 0, 0);
    for (index, line) in text.split_inclusive('\n').enumerate() {
        let marks_a_start =
            line.strip_prefix("---").is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']));
        if marks_a_start {
            count = add(first, text.get(start..at).unwrap_or_default(), false);
            (start, first) = (at, index);
        }
        if count == most {
            break;
        }
        at += line.len();
    }
    add(first, text.get(start..).unwrap_or_default(), count == most);
    documents
}

fn is_empty_yaml(text: &str) -> bool {
    text.lines().all(|line| {
        let line = line.strip_prefix("---").unwrap_or(line).trim();
        line.is_empty() || line.starts_with('#') || line == "..." || line == "\u{feff}"
    })
}

fn json_documents(most: usize, text: &str) -> Vec<Document<'_>> {
    let mut documents = Vec::new();
    let (mut rest, mut line) = (text, 1);
    while let Some((end, named)) = json_value(rest) {
        let is_rest = documents.len() == most;
        let end = if is_rest { rest.len() } else { end };
        let (piece, after) = rest.split_at_checked(end).unwrap_or((rest, ""));
        let body = piece.trim_start();
        let blank = piece.len() - body.len();
        line += newlines(piece.get(..blank).unwrap_or_default());
        if !body.trim_end().is_empty() {
            documents.push(Document { format: Format::Json, line, text: body, named, is_rest });
        }
        line += newlines(body);
        rest = after;
    }
    documents
}

/// Returns where the first value of a text ends, and the version and kind of an object, so that nobody looks through it for these again. `None` where no
/// value is left.
fn json_value(text: &str) -> Option<(usize, Option<Named<'_>>)> {
    if let Some(object) = json_object(text) {
        return Some(object);
    }
    // No object, or one without an end.
    let mut values = serde_json::Deserializer::from_str(text).into_iter::<IgnoredAny>();
    let value = values.next()?;
    // A value that does not parse is a document too: the last one, and its own parser reports the error.
    Some((if value.is_ok() { values.byte_offset() } else { text.len() }, None))
}

pub fn newlines(text: &str) -> usize {
    // Counted in bytes, which takes an eighth of the instructions of counting each in a word.
    let of = |bytes: &[u8]| usize::from(bytes.iter().map(|byte| u8::from(*byte == b'\n')).sum::<u8>());
    text.as_bytes().chunks(usize::from(u8::MAX)).map(of).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_begin_at_their_markers_and_empty_ones_are_left_out() {
        let text = "# a comment\n---\n---\na: 1\n--- # two\nb: 2\n---not a marker: 3\n...\n---\n";
        let found: Vec<(usize, &str)> = documents(Format::Yaml, text).iter().map(|d| (d.line, d.text)).collect();
        assert_eq!(found, [(3, "---\na: 1\n"), (5, "--- # two\nb: 2\n---not a marker: 3\n...\n")]);
    }

    #[test]
    fn json_values_that_follow_each_other_are_documents() {
        let text = "\n{\"a\": 1}\n\n{\"b\":\n 2} [3] oops\n{}";
        let found: Vec<(usize, &str)> = documents(Format::Json, text).iter().map(|d| (d.line, d.text)).collect();
        assert_eq!(found, [(2, "{\"a\": 1}"), (4, "{\"b\":\n 2}"), (5, "[3]"), (5, "oops\n{}")]);
    }

    #[test]
    fn an_object_of_json_that_does_not_parse_leaves_those_behind_it_alone() {
        let text = "{\"a\": }\n{\"b\": 2}\n{\"c\": ";
        let found: Vec<(usize, &str)> = documents(Format::Json, text).iter().map(|d| (d.line, d.text)).collect();
        assert_eq!(found, [(1, "{\"a\": }"), (2, "{\"b\": 2}"), (3, "{\"c\": ")]);
    }

    #[test]
    fn behind_the_most_documents_of_a_file_the_rest_is_one() {
        let found = |format, text| -> Vec<(usize, String, bool)> {
            let all = documents_up_to(2, format, text);
            all.iter().map(|it| (it.line, it.text.to_owned(), it.is_rest)).collect()
        };
        let document = |line, text: &str, is_rest| (line, text.to_owned(), is_rest);
        let both = [document(1, "{}", false), document(1, "{}", false)];
        assert_eq!(found(Format::Json, "{}{} \n"), both);
        let rest = [document(2, "{} {}\n[", true)];
        assert_eq!(found(Format::Json, "{}{}\n{} {}\n["), [&both[..], &rest].concat());
        let both = [document(1, "a: 1\n", false), document(2, "---\nb: 2\n", false)];
        assert_eq!(found(Format::Yaml, "a: 1\n---\nb: 2\n"), both);
        assert_eq!(found(Format::Yaml, "a: 1\n---\nb: 2\n---\n"), both);
        let rest = [document(4, "---\nc: 3\n---\nd: 4\n", true)];
        assert_eq!(found(Format::Yaml, "a: 1\n---\nb: 2\n---\nc: 3\n---\nd: 4\n"), [&both[..], &rest].concat());
    }

    #[test]
    fn lines_are_counted_in_texts_of_any_length() {
        for length in [0, 1, 254, 255, 256, 511, 2_000] {
            assert_eq!((newlines(&"\n".repeat(length)), newlines(&"a\n".repeat(length))), (length, length));
        }
    }

    #[test]
    fn a_json_document_is_known_by_its_version_and_kind_where_these_are_plain_words() {
        fn named(text: &str) -> Vec<Option<(Option<&str>, Option<&str>)>> {
            documents(Format::Json, text).iter().map(|it| it.named.map(|it| (it.api_version, it.kind))).collect()
        }
        let service = Some((Some("v1"), Some("Service")));
        let text = "{\"spec\": {\"kind\": 3}, \"kind\": \"Service\", \"apiVersion\": \"v1\"}";
        assert_eq!(named(text), [service]);
        assert_eq!(named(&format!("{text}\n{text}")), [service; 2]);
        assert_eq!(named("{\"kind\": null} {}"), [Some((None, None)); 2]);
        // A kind that is no word, or has an escape in it, or comes twice, is for the parser of the whole to judge; what follows is found all the same.
        for odd in [
            "{\"kind\": 3}",
            "{\"kind\": \"Serv\\u0069ce\"}",
            "{\"kind\": \"A\", \"kind\": \"B\"}",
            "[1e999]",
            "\"v1\"",
            "7",
        ] {
            assert_eq!(named(&format!("{odd} {text}")), [None, service], "{odd}");
        }
    }

    #[test]
    fn files_are_known_by_the_end_of_their_names() {
        for (name, format) in [
            ("a.yaml", Some(Format::Yaml)),
            ("a.b.yml", Some(Format::Yaml)),
            ("a.json", Some(Format::Json)),
            ("a.yaml~", None),
            (".a.yaml", None),
            (".#a.yaml", None),
            ("yaml", None),
            ("..data", None),
        ] {
            assert_eq!(Format::of_file(name), format, "{name}");
        }
    }
}
