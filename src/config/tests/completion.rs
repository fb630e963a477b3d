//! The command line as it is described to shells and in man pages.

use super::{Request, ask, usage};
use crate::config::completion::CHOICES;
use crate::config::{Config, Environment};

/// The text that such a command writes on standard output.
fn written(words: &[&str]) -> String {
    match ask(words) {
        Ok(Request::Write(text)) => text,
        other => panic!("{words:?}: {other:?}"),
    }
}

/// The long names of the usage text's flags.
fn names() -> Vec<String> {
    let flags = usage("sluice");
    flags.lines().skip(1).filter_map(super::flag_name).collect()
}

#[test]
fn every_shell_is_told_every_flag_and_every_command() {
    for shell in ["bash", "zsh", "fish"] {
        let script = written(&["completion", shell]);
        for name in names() {
            // bash and zsh see flags as they are typed, fish by their name alone.
            let typed = if shell == "fish" { format!("-l {name} ") } else { format!("--{name}") };
            assert!(script.contains(&typed), "{shell}: {name}");
        }
        for word in ["preflight", "policy", "explain", "drops", "svc", "routes", "status", "audit", "completion", "man"]
        {
            assert!(script.contains(word), "{shell}: {word}");
        }
    }
}

#[test]
fn the_words_that_shells_are_told_for_a_flag_are_those_that_it_takes() {
    let environment = Environment { host_name: "node-1".to_owned(), ..Environment::default() };
    for (name, words) in CHOICES {
        let taken = |word: &str| match ask(&[&format!("--{name}={word}")]) {
            Ok(Request::Run { flags, verbosity }) => Config::from_flags(&flags, verbosity, &environment).is_ok(),
            _ => false,
        };
        assert!(words.iter().all(|word| taken(word)), "--{name}: {words:?}");
        assert!(!taken("else"), "--{name} takes more than these words");
    }
}

#[test]
fn the_man_page_of_the_agent_has_every_flag_in_its_group() {
    let page = written(&["man"]);
    assert!(page.contains("\n.TH sluice 8 \"\" \"sluice "), "{page}");
    for name in names() {
        assert!(page.contains(&name.replace('-', "\\-")), "{name}");
    }
    assert!(page.contains(".SH \"ROUTER: BGP\"") && page.contains("(default 20244)"), "{page}");
}

#[test]
fn a_command_has_a_man_page_of_its_own() {
    let page = written(&["man", "policy", "explain"]);
    assert!(page.contains("\n.TH sluice-policy-explain 8 ") && page.contains("\\-\\-from"), "{page}");
    assert!(written(&["man", "preflight"]).contains("Exit status"));
}
