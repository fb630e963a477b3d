//! From the words of the command line to flags, in the order and with the exit codes users know.
//!
//! The rules are those of Go's flag package, which the flags were made for:
//! - `--x` switches on, `--x=false` off; `--x false` is a switch and a stray word, and stray words are an error;
//! - other flags take `--x=value` or `--x value`, and the next word is the value whatever it looks like;
//! - `-v 2`, `-v=2` and `-v2` are the same;
//! - of a flag given twice the last counts, except that lists add up.
//!
//! Order: parse, verbosity, stray words, help, version. A flag that is unknown or has a bad value ends with
//! exit code 2, one sentence and where to look, every later mistake with 1.

use std::any::TypeId;
use std::ffi::{OsStr, OsString};
use std::path::Path;

use clap::builder::ValueParser;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Arg, ArgAction, Command, CommandFactory, FromArgMatches};

use super::ask::{self, Ask, Output};
use super::completion::{self, Printed};
use super::flags::Flags;
use super::refusal::Refusal;
use super::usage::{PREFLIGHT, PREFLIGHT_USAGE, type_name, usage};
use super::value::{switch, unsigned};

/// The request on the command line.
#[derive(Debug)]
pub enum Request {
    /// Run with these flags at this verbosity (0 and higher; negative numbers count as 0).
    Run { flags: Box<Flags>, verbosity: u8 },
    /// Say what an agent with these flags would lack and meet on this host, and end.
    Preflight { flags: Box<Flags>, verbosity: u8, output: Output },
    /// Query the program that runs already, print the answer and end.
    Ask(Ask),
    /// Print this text and end with exit code 0.
    Print(String),
    /// The same on standard output: a text for another program.
    Write(String),
}

/// Reads a command line. `words` begins with the name of the program.
///
/// # Errors
/// A flag is unknown or cannot be read, or a word belongs to no flag: what to print, and the exit code.
pub fn request(words: &[OsString]) -> Result<Request, Refusal> {
    let words = without_entry_point(words);
    if let Some(usage) = ask::usage(words) {
        let asked = ask::ask(words, usage)?;
        return Ok(asked.map_or_else(|| Request::Print(usage.to_owned()), Request::Ask));
    }
    let program = words.first().map_or_else(|| "sluice".to_owned(), |word| word.to_string_lossy().into_owned());
    if words.get(1).is_some_and(|asked| asked == PREFLIGHT) {
        return preflight(&program, words);
    }
    let name = NAMES.into_iter().find(|name| Path::new(&program).ends_with(name)).unwrap_or("sluice");
    if let Some(printed) = completion::printed(words, name, VERSION) {
        return Ok(match printed? {
            Printed::Text(text) => Request::Write(text),
            Printed::Usage(usage) => Request::Print(usage.to_owned()),
        });
    }
    let matches = command().try_get_matches_from(words).map_err(|error| flag_refusal(&error, &program))?;
    let flags = Flags::from_arg_matches(&matches).map_err(|error| flag_refusal(&error, &program))?;
    let verbosity = verbosity(&flags.verbosity)?;
    if let Some(word) = flags.words.first() {
        let text = format!(
            "{} belongs to no flag: write --flag=value with the = sign, as in --run-router=false, and nothing else.",
            stray(word, words)
        );
        return Err(Refusal { text, exit_code: 1 });
    }
    if flags.help {
        return Ok(Request::Print(usage(&program)));
    }
    if flags.version {
        return Ok(Request::Print(version(&program)));
    }
    Ok(Request::Run { flags: Box::new(flags), verbosity })
}

fn preflight(program: &str, all: &[OsString]) -> Result<Request, Refusal> {
    let output =
        Arg::new("output").short('o').long("output").value_parser(clap::value_parser!(Output)).default_value("text");
    let words = std::iter::once(OsString::from(program)).chain(all.iter().skip(2).cloned());
    let matches = command().arg(output).try_get_matches_from(words).map_err(|error| flag_refusal(&error, program))?;
    let flags = Flags::from_arg_matches(&matches).map_err(|error| flag_refusal(&error, program))?;
    if let Some(word) = flags.words.first() {
        let text = format!("{} belongs to no flag.\n{PREFLIGHT_USAGE}", stray(word, all));
        return Err(Refusal { text, exit_code: 2 });
    }
    if flags.help {
        return Ok(Request::Print(PREFLIGHT_USAGE.to_owned()));
    }
    let output = matches.get_one("output").copied().unwrap_or(Output::Text);
    let verbosity = verbosity(&flags.verbosity)?;
    Ok(Request::Preflight { flags: Box::new(flags), verbosity, output })
}

/// The flag whose value is shown nowhere, without its dashes, which somebody may have left out or an editor replaced.
const PASSWORDS: &str = "peer-router-passwords";

/// Names a word that belongs to no flag. Where passwords are given it may be one of them, written apart from the others, and what is said ends up in a log: its place
/// is named then. `all` begins with the name of the program.
fn stray(word: &str, all: &[OsString]) -> String {
    let takes_passwords = |word: &OsString| word.to_string_lossy().contains(PASSWORDS);
    if !all.iter().any(takes_passwords) {
        return format!("{word:?}");
    }
    let place = all.iter().rposition(|it| *it == *word).unwrap_or_default();
    format!("Argument {place}, of {} characters,", word.chars().count())
}

/// The program's names, in a container image and elsewhere.
const NAMES: [&str; 2] = ["kube-router", "sluice"];

/// The words without an image's entry point, where the next one names the program again: commands for `docker run` and `ctr run` that are
/// written down for kube-router put its path first, although its image starts it anyway.
fn without_entry_point(words: &[OsString]) -> &[OsString] {
    match words {
        [_, rest @ ..] if rest.first().is_some_and(|word| is_program(word)) => rest,
        _ => words,
    }
}

fn is_program(word: &OsStr) -> bool {
    Path::new(word).file_name().is_some_and(|name| NAMES.iter().any(|known| name == *known))
}

/// `-v`: any whole number. What is below 0 says as little as 0 does, what is above 255 as much as 255.
fn verbosity(typed: &str) -> Result<u8, Refusal> {
    let number = typed.parse::<i64>().map_err(|_| Refusal {
        text: format!("-v must be a whole number, for example -v 2; it is {typed:?}."),
        exit_code: 1,
    })?;
    Ok(u8::try_from(number.max(0)).unwrap_or(u8::MAX))
}

fn version(program: &str) -> String {
    let date = option_env!("SLUICE_BUILD_DATE").unwrap_or("an unknown date");
    match option_env!("SLUICE_VERSION") {
        Some(version) => format!("{program} version {version}, built on {date}, {TOOLCHAIN}"),
        None => format!("{program} {PACKAGE_VERSION}{date}, {TOOLCHAIN}"),
    }
}

/// The words of `--version` about the package's version, as one text of the program: there `scripts/release` finds them, also in a program for another processor.
const PACKAGE_VERSION: &str = concat!("version ", env!("CARGO_PKG_VERSION"), ", built on ");

/// The version of this build: the variable `SLUICE_VERSION` of the build, else the package's. Its date is in
/// `SLUICE_BUILD_DATE`; a build that sets neither is the same at any time.
pub const VERSION: &str = match option_env!("SLUICE_VERSION") {
    Some(version) => version,
    None => env!("CARGO_PKG_VERSION"),
};

/// The toolchain it was built with, in place of the Go version that dashboards show.
pub const TOOLCHAIN: &str = concat!("rust", env!("CARGO_PKG_RUST_VERSION"));

fn command() -> Command {
    Flags::command().mut_args(go_rules)
}

/// Gives a flag the parsing rules of its type.
fn go_rules(arg: Arg) -> Arg {
    if arg.is_positional() {
        return arg;
    }
    let value = arg.get_value_parser().type_id();
    if value == TypeId::of::<bool>() {
        let default = arg.get_default_values().first().cloned().unwrap_or_else(|| "false".into());
        return arg
            .action(ArgAction::Set)
            .num_args(0..=1)
            .require_equals(true)
            .default_value(default)
            .default_missing_value("true")
            .value_parser(ValueParser::new(switch));
    }
    let name = type_name(&arg);
    let arg = arg.allow_hyphen_values(true).value_name(name);
    if value == TypeId::of::<u8>() {
        arg.value_parser(unsigned::<u8>)
    } else if value == TypeId::of::<u16>() {
        arg.value_parser(unsigned::<u16>)
    } else if value == TypeId::of::<u32>() {
        arg.value_parser(unsigned::<u32>)
    } else if value == TypeId::of::<u64>() {
        arg.value_parser(unsigned::<u64>)
    } else {
        arg
    }
}

/// One sentence, and where all flags are listed.
fn flag_refusal(error: &clap::Error, program: &str) -> Refusal {
    Refusal { text: format!("{}\n{program} --help lists all flags.", flag_mistake(error)), exit_code: 2 }
}

/// The flags of a command line that names none.
pub(super) fn defaults() -> Flags {
    let matches = command().try_get_matches_from(["sluice"]).expect("a line without flags can be read");
    Flags::from_arg_matches(&matches).expect("the defaults of flags can be read")
}

/// Describes the mistake in a flag, in one sentence.
fn flag_mistake(error: &clap::Error) -> String {
    let said = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.as_str()),
        _ => None,
    };
    // clap names an argument with its values, as in `--bgp-port <uint32>`.
    let name = said(ContextKind::InvalidArg).map_or("a flag", |arg| arg.split([' ', '[', '=']).next().unwrap_or(arg));
    let value = said(ContextKind::InvalidValue).unwrap_or_default();
    match error.kind() {
        ErrorKind::UnknownArgument => match said(ContextKind::SuggestedArg) {
            Some(similar) => format!("{name} is not a flag of this program; {similar} is."),
            None => format!("{name} is not a flag of this program."),
        },
        ErrorKind::InvalidUtf8 => "a flag has a value that is not UTF-8.".to_owned(),
        ErrorKind::ValueValidation => {
            let reason = std::error::Error::source(error).map(ToString::to_string).unwrap_or_default();
            // The sentence may end up in a log.
            if name.contains(PASSWORDS) {
                return format!("{name} cannot be read: {reason}.");
            }
            format!("{name} cannot be {value:?}: {reason}.")
        }
        ErrorKind::InvalidValue if value.is_empty() => format!("{name} needs a value."),
        _ => format!("{name} cannot be read: {}.", error.kind()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(words: &[&str]) -> String {
        let words: Vec<OsString> = ["sluice"].iter().chain(words).map(OsString::from).collect();
        request(&words).expect_err("a word belongs to no flag").text
    }

    #[test]
    fn a_word_that_may_be_a_password_is_named_by_its_place_alone() {
        for words in [
            &["--peer-router-passwords", "YQ==", "YmI="][..],
            &["--run-router", "--peer-router-passwords=YQ==", "YmI="],
            &["preflight", "--peer-router-passwords=YQ==", "YmI="],
        ] {
            let text = refused(words);
            assert!(text.starts_with("Argument 3, of 4 characters, belongs to no flag"), "{text}");
            assert!(!text.contains("YmI") && !text.contains("YQ"), "{text}");
        }
        for word in ["peer-router-passwords=YQ==", "\u{2013}peer-router-passwords=YQ=="] {
            assert!(!refused(&[word]).contains("YQ"), "{word}");
        }
        assert!(refused(&["--run-router", "false"]).starts_with("\"false\" belongs to no flag: "));
        assert!(refused(&["preflight", "now"]).starts_with("\"now\" belongs to no flag.\n"));
    }
}
