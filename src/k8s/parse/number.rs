//! A number that may not be one.
//!
//! The API server only serves numbers where its schema wants them, but a manifest holds what somebody
//! typed. A port that reads `http` makes that port unusable, not the whole document.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, Visitor};

/// A number, or the text in its place.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Number {
    Is(i64),
    IsNot(String),
}

impl Number {
    /// The port number; `None` for 0 and for whatever is not a port.
    pub fn port(&self) -> Option<u16> {
        match self {
            Number::Is(number) => u16::try_from(*number).ok().filter(|port| *port != 0),
            Number::IsNot(_) => None,
        }
    }

    /// Returns whether it is 0, which the API uses for "not set".
    pub fn is_zero(&self) -> bool {
        *self == Number::Is(0)
    }
}

impl fmt::Display for Number {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Number::Is(number) => write!(f, "{number}"),
            Number::IsNot(text) => write!(f, "{text:?}"),
        }
    }
}

impl<'de> Deserialize<'de> for Number {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Number, D::Error> {
        deserializer.deserialize_any(NumberVisitor)
    }
}

struct NumberVisitor;

impl Visitor<'_> for NumberVisitor {
    type Value = Number;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a number")
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<Number, E> {
        Ok(Number::Is(number))
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<Number, E> {
        Ok(i64::try_from(number).map_or_else(|_| Number::IsNot(number.to_string()), Number::Is))
    }

    fn visit_f64<E: Error>(self, number: f64) -> Result<Number, E> {
        Ok(Number::IsNot(number.to_string()))
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Number, E> {
        Ok(Number::IsNot(value.to_string()))
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Number, E> {
        Ok(Number::IsNot(text.chars().take(64).collect()))
    }

    fn visit_unit<E: Error>(self) -> Result<Number, E> {
        Ok(Number::Is(0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn anything_that_stands_for_a_number_is_read_and_only_ports_are_ports() {
        for (text, port) in [
            ("80", Some(80)),
            ("65535", Some(65535)),
            ("65536", None),
            ("0", None),
            ("-1", None),
            ("8.5", None),
            ("\"80\"", None),
            ("true", None),
            ("18446744073709551615", None),
            ("null", None),
        ] {
            let from_json: Number = serde_json::from_str(text).expect("every scalar is read");
            let from_yaml: Number = serde_saphyr::from_str(text).expect("every scalar is read");
            assert_eq!(from_json.port(), port, "{text}");
            assert_eq!(from_yaml.port(), port, "{text}");
        }
    }
}
