//! A configuration as a user would type it.

use std::ffi::OsString;
use std::sync::Arc;

use sluice::config::{Config, Environment, Mistakes, ProxyConfig, Request, request};
use sluice::net::PerFamily;

/// Arguments in front of those of every test: the service proxy runs alone.
const ALONE: [&str; 3] = ["sluice", "--run-router=false", "--run-firewall=false"];

/// The checked configuration that these words mean on a host called `node1`.
pub fn config(words: &[&str]) -> Config {
    let words: Vec<&str> = ALONE.iter().chain(words).copied().collect();
    meant(&words)
}

/// Configuration by these arguments, whether or not this build has all features that they name; the first one is the program's name.
pub fn meant(words: &[&str]) -> Config {
    let words: Vec<OsString> = words.iter().map(OsString::from).collect();
    let asked = request(&words).unwrap_or_else(|refusal| panic!("{}", refusal.text));
    let Request::Run { flags, verbosity } = asked else { panic!("these words ask for a text, not for a run") };
    let environment =
        Environment { node_name: Some("node1".to_owned()), host_name: "node1".to_owned(), ..Environment::default() };
    let mut mistakes = Mistakes::default();
    let config = Config::meant(&flags, verbosity, &environment, &mut mistakes);
    assert!(mistakes.is_empty(), "{mistakes}");
    config
}

/// The service proxy's part of it, and the families that are on.
pub fn proxy(words: &[&str]) -> (Arc<ProxyConfig>, PerFamily<bool>) {
    let config = config(words);
    (Arc::new(config.proxy.expect("the service proxy is not switched off")), config.families)
}
