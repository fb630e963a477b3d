//! Durations as they are written in flags: `1m30s`, `1.5h`, `300ms`, `-1s`, `0`.
//!
//! The grammar is that of Go's `time.ParseDuration`, because manifests in the field are written for it: an
//! optional sign, then one or more numbers, each with an optional fraction and always with a unit. There are
//! no days, no spaces, and no number without a unit except `0`. The libraries for this all differ from it
//! somewhere (`1M` as a month, `90` as seconds, no negative values), so it is written out here.
//!
//! A value holds at most about 292 years either way, in whole nanoseconds; smaller fractions are cut off.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// A duration with a sign, in nanoseconds, as typed. Whether a negative one makes sense is for `Config` to say.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct GoDuration(i64);

impl GoDuration {
    /// The same length of time for the rest of the program; `None` when it is negative.
    pub fn positive_or_zero(self) -> Option<Duration> {
        u64::try_from(self.0).ok().map(Duration::from_nanos)
    }
}

impl From<Duration> for GoDuration {
    /// The nearest value that can be held: anything beyond 292 years becomes 292 years.
    fn from(duration: Duration) -> GoDuration {
        GoDuration(i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX))
    }
}

impl FromStr for GoDuration {
    type Err = String;

    fn from_str(text: &str) -> Result<GoDuration, String> {
        let (negative, magnitude) = match text.strip_prefix('-') {
            Some(rest) => (true, rest),
            None => (false, text.strip_prefix('+').unwrap_or(text)),
        };
        if magnitude == "0" {
            return Ok(GoDuration(0));
        }
        let mut nanoseconds: i128 = 0;
        let mut rest = magnitude;
        loop {
            let (part, after) = first_part(rest)?;
            nanoseconds += part;
            if nanoseconds > i128::from(i64::MAX) + 1 {
                return Err(TOO_LONG.to_owned());
            }
            if after.is_empty() {
                break;
            }
            rest = after;
        }
        let signed = if negative { -nanoseconds } else { nanoseconds };
        i64::try_from(signed).map(GoDuration).map_err(|_| TOO_LONG.to_owned())
    }
}

const TOO_LONG: &str = "a duration is at most about 292 years";
const GRAMMAR: &str = "a duration is written like 300ms, 90s, 5m or 1h30m";

/// The first number with its unit, in nanoseconds, and the text behind it.
fn first_part(text: &str) -> Result<(i128, &str), String> {
    let (whole, behind_whole) = digits(text);
    let (fraction, behind_number) = match behind_whole.strip_prefix('.') {
        Some(rest) => digits(rest),
        None => ("", behind_whole),
    };
    if whole.is_empty() && fraction.is_empty() {
        return Err(GRAMMAR.to_owned());
    }
    let unit_end = behind_number.find(|c: char| c == '.' || c.is_ascii_digit()).unwrap_or(behind_number.len());
    let (unit, rest) = behind_number.split_at(unit_end);
    let unit = match unit {
        "" => return Err("a duration needs a unit, for example 90s or 5m".to_owned()),
        // The micro sign and the Greek letter look alike, and both are typed.
        "us" | "\u{b5}s" | "\u{3bc}s" => 1_000,
        "ns" => 1,
        "ms" => 1_000_000,
        "s" => SECOND,
        "m" => 60 * SECOND,
        "h" => 3600 * SECOND,
        other => return Err(format!("a duration has the units h, m, s, ms, us and ns, not {other:?}")),
    };
    let whole: i128 = match whole {
        "" => 0,
        digits => digits.parse::<i64>().map_err(|_| TOO_LONG.to_owned())?.into(),
    };
    Ok((whole * unit + fraction_of(fraction, unit), rest))
}

const SECOND: i128 = 1_000_000_000;

/// The leading decimal digits and what follows them.
fn digits(text: &str) -> (&str, &str) {
    text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()))
}

/// `unit` times `0.<digits>`, cut to whole nanoseconds.
fn fraction_of(digits: &str, unit: i128) -> i128 {
    // Below 10⁻¹⁵ of an hour there is less than a nanosecond, so later digits cannot matter.
    let (value, scale) = digits
        .bytes()
        .take(15)
        .fold((0_i128, 1_i128), |(value, scale), digit| (value * 10 + i128::from(digit - b'0'), scale * 10));
    value * unit / scale
}

impl fmt::Display for GoDuration {
    /// As Go prints it: `1h30m0s`, `1.5s`, `300ms`, `0s`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 < 0 {
            f.write_str("-")?;
        }
        let nanoseconds = self.0.unsigned_abs();
        match nanoseconds {
            0 => return f.write_str("0s"),
            1..1_000 => return write!(f, "{nanoseconds}ns"),
            1_000..1_000_000 => return write!(f, "{}µs", decimal(nanoseconds, 1_000)),
            1_000_000..1_000_000_000 => return write!(f, "{}ms", decimal(nanoseconds, 1_000_000)),
            _ => {}
        }
        let minutes = nanoseconds / 60_000_000_000;
        let seconds = decimal(nanoseconds % 60_000_000_000, 1_000_000_000);
        match (minutes / 60, minutes % 60) {
            (0, 0) => write!(f, "{seconds}s"),
            (0, minutes) => write!(f, "{minutes}m{seconds}s"),
            (hours, minutes) => write!(f, "{hours}h{minutes}m{seconds}s"),
        }
    }
}

/// `value / unit` in decimal notation, without trailing zeros. `unit` is a power of ten.
fn decimal(value: u64, unit: u64) -> String {
    let width = unit.ilog10() as usize;
    let fraction = format!("{:0width$}", value % unit);
    format!("{}.{fraction}", value / unit).trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_go_reads_is_read_the_same_way() {
        let cases = [
            ("0", "0s"),
            ("+0", "0s"),
            ("-0", "0s"),
            ("0s", "0s"),
            ("1m30s", "1m30s"),
            ("1.5h", "1h30m0s"),
            (".5s", "500ms"),
            ("1.s", "1s"),
            ("-5s", "-5s"),
            ("+5s", "5s"),
            ("1\u{b5}s", "1µs"),
            ("1\u{3bc}s", "1µs"),
            ("1us", "1µs"),
            ("300ms", "300ms"),
            ("2h45m", "2h45m0s"),
            ("5m", "5m0s"),
            ("5m0s", "5m0s"),
            ("90s", "1m30s"),
            ("30s1h", "1h0m30s"),
            ("1ns", "1ns"),
            ("-1.5h", "-1h30m0s"),
            ("0.0000000009s", "0s"),
            ("1.000000001s", "1.000000001s"),
            ("3000000h", "error"),
            ("9223372036854775807ns", "2562047h47m16.854775807s"),
            ("9223372036854775808ns", "error"),
            ("-2562047h47m16.854775808s", "-2562047h47m16.854775808s"),
            ("", "error"),
            ("-", "error"),
            (".s", "error"),
            ("s", "error"),
            ("90", "error"),
            ("1d", "error"),
            ("1 m", "error"),
            ("1m ", "error"),
            (" 1m", "error"),
            ("5min", "error"),
            ("1M", "error"),
            ("1S", "error"),
            ("1m30", "error"),
            ("--1s", "error"),
            ("1,5s", "error"),
            ("1e3s", "error"),
            ("٣s", "error"),
        ];
        for (typed, meant) in cases {
            let read = typed.parse::<GoDuration>().map_or("error".to_owned(), |duration| duration.to_string());
            assert_eq!(read, meant, "--x={typed}");
        }
    }

    #[test]
    fn a_number_without_a_unit_is_told_what_it_lacks() {
        assert_eq!("90".parse::<GoDuration>(), Err("a duration needs a unit, for example 90s or 5m".to_owned()));
        assert_eq!(
            "1d".parse::<GoDuration>(),
            Err("a duration has the units h, m, s, ms, us and ns, not \"d\"".to_owned())
        );
    }

    #[test]
    fn only_a_negative_one_has_no_length() {
        assert_eq!(GoDuration(-1).positive_or_zero(), None);
        assert_eq!(GoDuration(0).positive_or_zero(), Some(Duration::ZERO));
        assert_eq!(GoDuration(1_500_000_000).positive_or_zero(), Some(Duration::from_millis(1500)));
    }

    proptest::proptest! {
        #[test]
        fn what_is_printed_reads_back_as_the_same_value(nanoseconds: i64) {
            let duration = GoDuration(nanoseconds);
            proptest::prop_assert_eq!(duration.to_string().parse(), Ok(duration));
        }

        #[test]
        fn no_text_breaks_the_reader(text in "[-+0-9.a-zµ ]{0,12}") {
            let _ = text.parse::<GoDuration>();
        }
    }
}
