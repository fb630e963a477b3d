//! The values of flags other than durations: switches, numbers and lists, by the rules of Go's flag package.
//!
//! - A switch is `1 t T TRUE true True 0 f F FALSE false False`.
//! - A number may have a base prefix (`0x`, `0o`, `0b`, or a leading `0` for octal) and `_` between digits.
//!   The numbers of a list may not: they are decimal.
//! - A list is one line of comma-separated values; a value with a comma or a quote in it stands in double
//!   quotes, a quote inside is doubled. Each use of a list flag adds to the uses before it.

use std::net::IpAddr;
use std::str::FromStr;

use ipnet::IpNet;

use crate::net::go::{self, number};

/// Reads the value of a switch.
///
/// # Errors
/// The text is no truth value of Go's flags; the sentence says what it must be.
pub fn switch(text: &str) -> Result<bool, String> {
    go::switch(text).ok_or_else(|| "it must be true or false".to_owned())
}

/// Reads an unsigned number up to the largest that `T` holds.
///
/// # Errors
/// The text is no number, or too large; the sentence names the largest.
pub fn unsigned<T: TryFrom<u64>>(text: &str) -> Result<T, String> {
    let largest = match size_of::<T>() {
        1 => u64::from(u8::MAX),
        2 => u64::from(u16::MAX),
        4 => u64::from(u32::MAX),
        _ => u64::MAX,
    };
    number(text)
        .and_then(|number| T::try_from(number).ok())
        .ok_or_else(|| format!("it must be a whole number from 0 to {largest}"))
}

/// Reads a range of addresses as a network: host bits are cut off. `None` for anything else.
///
/// An octet with a leading zero is refused, because half of the world reads it as octal.
pub fn prefix(text: &str) -> Option<IpNet> {
    let (address, length) = text.trim().split_once('/')?;
    let length = length.bytes().all(|byte| byte.is_ascii_digit()).then(|| length.parse().ok())??;
    IpNet::new(address.parse().ok()?, length).ok().map(|prefix| prefix.trunc())
}

/// One use of a list of texts.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Strings(pub Vec<String>);

impl FromStr for Strings {
    type Err = String;

    fn from_str(text: &str) -> Result<Strings, String> {
        comma_separated(text).map(Strings)
    }
}

/// One use of a list of unsigned numbers.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Uints(pub Vec<u64>);

impl FromStr for Uints {
    type Err = String;

    fn from_str(text: &str) -> Result<Uints, String> {
        let number = |part: &str| match part.bytes().all(|byte| byte.is_ascii_digit()) {
            true => part.parse().ok(),
            false => None,
        };
        let numbers = text.split(',').map(number).collect::<Option<Vec<u64>>>();
        numbers.map(Uints).ok_or_else(|| "it must be decimal numbers with commas between them".to_owned())
    }
}

/// One use of a list of IP addresses. An IPv4 address written as IPv6 (`::ffff:192.0.2.1`) becomes IPv4.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Addresses(pub Vec<IpAddr>);

impl FromStr for Addresses {
    type Err = String;

    fn from_str(text: &str) -> Result<Addresses, String> {
        let unquoted = text.replace(['"', '\'', '`'], "");
        if unquoted.is_empty() {
            return Ok(Addresses(Vec::new()));
        }
        let address = |part: &str| match part.trim().parse::<IpAddr>() {
            Ok(address) => Ok(address.to_canonical()),
            Err(_) => Err(format!("{part:?} is not an IP address")),
        };
        unquoted.split(',').map(address).collect::<Result<_, _>>().map(Addresses)
    }
}

/// The values of one comma-separated line (RFC 4180); an empty line has none.
fn comma_separated(text: &str) -> Result<Vec<String>, String> {
    let text = text.trim_end_matches(['\r', '\n']);
    let mut values = Vec::new();
    if text.is_empty() {
        return Ok(values);
    }
    let mut rest = text;
    loop {
        let (value, behind) = match rest.strip_prefix('"') {
            Some(quoted) => quoted_value(quoted)?,
            None => plain_value(rest)?,
        };
        values.push(value);
        match behind.strip_prefix(',') {
            Some(next) => rest = next,
            None if behind.is_empty() => return Ok(values),
            None => return Err("a closing quote must be followed by a comma".to_owned()),
        }
    }
}

/// A value without quotes, and the text from its comma on.
fn plain_value(text: &str) -> Result<(String, &str), String> {
    let (value, behind) = text.split_at(text.find(',').unwrap_or(text.len()));
    if value.contains('"') {
        return Err("a value with a quote in it must stand in quotes, and the quote must be doubled".to_owned());
    }
    if value.contains('\n') {
        return Err("it must be one line".to_owned());
    }
    Ok((value.to_owned(), behind))
}

/// The value up to its closing quote, and the text behind that. `text` begins after the opening quote.
fn quoted_value(text: &str) -> Result<(String, &str), String> {
    let mut value = String::new();
    let mut rest = text;
    loop {
        let (before, behind) = rest.split_once('"').ok_or("a quoted value has no closing quote")?;
        value.push_str(before);
        match behind.strip_prefix('"') {
            Some(after) => {
                value.push('"');
                rest = after;
            }
            None => return Ok((value, behind)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn switches_have_gos_twelve_spellings_and_no_other() {
        for text in ["1", "t", "T", "TRUE", "true", "True"] {
            assert_eq!(switch(text), Ok(true), "{text}");
        }
        for text in ["0", "f", "F", "FALSE", "false", "False"] {
            assert_eq!(switch(text), Ok(false), "{text}");
        }
        for text in ["", "yes", "no", "on", "off", "tRUE", "2", " true", "y"] {
            assert!(switch(text).is_err(), "{text}");
        }
    }

    #[test]
    fn numbers_may_have_a_base_prefix() {
        let cases = [
            ("0", Some(0)),
            ("64512", Some(64512)),
            ("0x1F", Some(31)),
            ("0X1f", Some(31)),
            ("0o17", Some(15)),
            ("0b101", Some(5)),
            ("017", Some(15)),
            ("00", Some(0)),
            ("1_000", Some(1000)),
            ("0x_ff", Some(255)),
            ("0_7", Some(7)),
            ("18446744073709551615", Some(u64::MAX)),
            ("18446744073709551616", None),
            ("", None),
            ("_1", None),
            ("1_", None),
            ("1__0", None),
            ("0x", None),
            ("0b2", None),
            ("08", None),
            ("+1", None),
            ("-1", None),
            (" 1", None),
            ("1.0", None),
            ("1e3", None),
        ];
        for (text, number) in cases {
            assert_eq!(unsigned::<u64>(text).ok(), number, "{text:?}");
        }
    }

    #[test]
    fn a_number_must_fit_the_width_of_its_flag() {
        assert_eq!(unsigned::<u16>("65535"), Ok(65535));
        assert_eq!(unsigned::<u16>("65536"), Err("it must be a whole number from 0 to 65535".to_owned()));
        assert_eq!(unsigned::<u8>("256"), Err("it must be a whole number from 0 to 255".to_owned()));
        assert_eq!(unsigned::<u32>("4294967295"), Ok(u32::MAX));
        assert!(unsigned::<u32>("4294967296").is_err());
    }

    #[test]
    fn a_list_is_one_line_of_comma_separated_values_with_quotes() {
        let cases: [(&str, Option<&[&str]>); 14] = [
            ("", Some(&[])),
            ("a", Some(&["a"])),
            ("a,b", Some(&["a", "b"])),
            ("a,,b", Some(&["a", "", "b"])),
            (",", Some(&["", ""])),
            (" a, b", Some(&[" a", " b"])),
            ("\"a,b\",c", Some(&["a,b", "c"])),
            ("\"a\"\"b\"", Some(&["a\"b"])),
            ("\"\"", Some(&[""])),
            ("a,b\n", Some(&["a", "b"])),
            ("a\"b", None),
            ("\"a", None),
            ("\"a\"b", None),
            ("a\nb", None),
        ];
        for (text, values) in cases {
            let read = text.parse::<Strings>().ok().map(|list| list.0);
            assert_eq!(read, values.map(|values| values.iter().map(|value| (*value).to_owned()).collect()), "{text:?}");
        }
    }

    #[test]
    fn the_numbers_of_a_list_are_decimal_and_never_absent() {
        assert_eq!("64512,64513".parse(), Ok(Uints(vec![64512, 64513])));
        assert_eq!("007".parse(), Ok(Uints(vec![7])));
        for text in ["", "1,", "1, 2", "0x10", "-1", "+1", "a", "18446744073709551616"] {
            assert!(text.parse::<Uints>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn addresses_may_be_quoted_and_spaced_and_there_may_be_none() {
        let list = |text: &str| text.parse::<Addresses>().map(|list| list.0.iter().map(ToString::to_string).collect());
        assert_eq!(list(""), Ok(Vec::new()));
        assert_eq!(list("192.0.2.1, 2001:db8::1"), Ok(vec!["192.0.2.1".to_owned(), "2001:db8::1".to_owned()]));
        assert_eq!(list("\"192.0.2.1\",'192.0.2.2'"), Ok(vec!["192.0.2.1".to_owned(), "192.0.2.2".to_owned()]));
        assert_eq!(list("::ffff:192.0.2.1"), Ok(vec!["192.0.2.1".to_owned()]));
        assert_eq!(list("192.0.2.1,"), Err("\"\" is not an IP address".to_owned()));
        assert_eq!(list("192.0.2.256"), Err("\"192.0.2.256\" is not an IP address".to_owned()));
    }
}
