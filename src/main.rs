//! The program: from the command line to a running node agent.
//!
//! Order: flags, help and version, configuration, log, root. Nothing is bound or written before all of these.
//! Under the name `sluice-cni` it is a CNI plugin instead (`cni`).
//! Exit codes: 0 done, 1 refused or failed, 2 a flag that cannot be read. `sluice audit`: 0 nothing differs, 1 something does, 2 not known;
//! `sluice bundle`: 0 everything is in it, 1 something is not, 2 there is none; `sluice status`: 0 ready, 1 not ready, 2 not known. `sluice preflight`: 0 everything is there, 1 something is degraded, 2 something is fatal.

use std::ffi::OsString;
use std::io::{ErrorKind, Write};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use sluice::cni::plugin;
use sluice::config::{self, Config, Environment, Flags, LogFormat, Output, Refusal, Request, Source};
use sluice::k8s::manifests::bundle;
use sluice::kernel::memory;
use sluice::observe::logging::{self, LineFormat};
use sluice::preflight::{self, Report};
use sluice::router::host_files;
use tracing::{info, warn};

fn main() -> ExitCode {
    let words: Vec<OsString> = std::env::args_os().collect();
    if plugin::is_named(&words) {
        return plugin::run();
    }
    match start(&words) {
        Ok(exit_code) => exit_code,
        Err(refusal) => {
            // Where nobody reads it, the exit code says it.
            let _ = writeln!(std::io::stderr(), "{}", refusal.text);
            ExitCode::from(refusal.exit_code)
        }
    }
}

/// Writes to standard output. Whoever has read enough and closes it takes nothing from the exit code; a disk that is full does.
fn print(text: &str, exit_code: u8, failed: u8) -> Result<ExitCode, Refusal> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(Refusal { text: format!("Standard output cannot be written: {error}."), exit_code: failed })
        }
        _ => Ok(ExitCode::from(exit_code)),
    }
}

fn start(words: &[OsString]) -> Result<ExitCode, Refusal> {
    let (flags, verbosity) = match config::request(words)? {
        Request::Run { flags, verbosity } => (flags, verbosity),
        Request::Ask(ask) => {
            let refused = |error| Refusal { text: format!("{error:#}"), exit_code: ask.unanswered() };
            let answered = sluice::ask::run(&ask).map_err(refused)?;
            return print(&answered.text, answered.exit_code, ask.unanswered());
        }
        Request::Preflight { flags, verbosity, output } => return preflight(&flags, verbosity, output),
        Request::Print(text) => {
            let _ = writeln!(std::io::stderr(), "{text}");
            return Ok(ExitCode::SUCCESS);
        }
        Request::Write(text) => return print(&text, 0, 1),
    };
    memory::keep_little();
    memory::use_small_pages();
    let environment = environment();
    let config = Config::from_flags(&flags, verbosity, &environment).map_err(refused)?;
    manifests_can_be_read(&config)?;
    let form = match config.log_format {
        LogFormat::Text => LineFormat::Text,
        LogFormat::Json => LineFormat::Json,
    };
    let recent = logging::start(form, config.verbosity);
    if !rustix::process::geteuid().is_root() {
        return Err(refused("sluice must run as root, because it changes the network of this host."));
    }
    info!(version = config::VERSION, toolchain = config::TOOLCHAIN, node = config.node_name, "Starting");
    if let (Some(path), None, Some(_)) = (&environment.cni_list, &environment.cni_file, &config.router) {
        info!(path = %path.display(), "KUBE_ROUTER_CNI_CONF_FILE is not set; the CNI configuration of an earlier run is kept");
    }
    for notice in &config.notices {
        warn!(notice, "Flag has no effect");
    }
    if config.runs_nothing() {
        info!("No subsystem is switched on; nothing to do");
        return Ok(ExitCode::SUCCESS);
    }
    sluice::app::run(config, recent).map_err(|error| refused(format!("{error:#}")))?;
    Ok(ExitCode::SUCCESS)
}

/// Says what an agent with these flags would lack and meet here.
fn preflight(flags: &Flags, verbosity: u8, output: Output) -> Result<ExitCode, Refusal> {
    let environment = environment();
    let report = match Config::from_flags(flags, verbosity, &environment) {
        Ok(config) => preflight::report(&config, ANSWERS),
        Err(mistakes) => Report::of_mistakes(&environment.host_name, config::VERSION, &mistakes),
    };
    print(&if output == Output::Json { report.json() } else { report.text() }, report.exit_code(), 2)
}

/// Time that `sluice preflight` gives the API server for all its answers.
const ANSWERS: Duration = Duration::from_secs(30);

/// A directory that is not there now, or a file that is no bundle, is a mistake in the flags; a directory that goes away later is waited for
/// (`k8s::manifests`).
fn manifests_can_be_read(config: &Config) -> Result<(), Refusal> {
    let Source::Manifests(directory) = &config.source else { return Ok(()) };
    if config.cleanup.is_some() {
        return Ok(());
    }
    let path = directory.display();
    if directory.is_file() {
        let about = bundle::about(directory).map(drop);
        return about.map_err(|why| refused(format!("--manifests must be a directory, or a bundle; {path} {why}.")));
    }
    let found = std::fs::read_dir(directory).map(drop);
    found.map_err(|error| refused(format!("--manifests must be a directory that can be read; {path} cannot: {error}.")))
}

/// Where a pod finds the namespace that it is in.
const SERVICE_ACCOUNT_NAMESPACE: &str = "/var/run/secrets/kubernetes.io/serviceaccount/namespace";

fn environment() -> Environment {
    Environment {
        node_name: std::env::var_os("NODE_NAME").map(|name| name.to_string_lossy().into_owned()),
        host_name: rustix::system::uname().nodename().to_string_lossy().into_owned(),
        cni_file: std::env::var_os("KUBE_ROUTER_CNI_CONF_FILE").filter(|path| !path.is_empty()).map(Into::into),
        cni_list: host_files::list_in_place_of(Path::new(config::DEFAULT_CNI_FILE)),
        host_bin_path: std::env::var_os("HOST_BIN_PATH").filter(|path| !path.is_empty()).map(Into::into),
        pod_namespace: std::env::var("POD_NAMESPACE")
            .or_else(|_| std::fs::read_to_string(SERVICE_ACCOUNT_NAMESPACE))
            .ok(),
        pod_name: std::env::var("POD_NAME").ok(),
    }
}

fn refused(sentence: impl ToString) -> Refusal {
    Refusal { text: sentence.to_string(), exit_code: 1 }
}
