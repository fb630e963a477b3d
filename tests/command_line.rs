//! The program from the outside: what it prints where, and its exit codes.
//!
//! Nothing here gets as far as running: each command line ends at a check, so no test touches the kernel.

use std::os::unix::process::CommandExt;
use std::process::{Command, Output};

const PROGRAM: &str = env!("CARGO_BIN_EXE_sluice");

/// Runs the program with these words and without a node name in its environment.
fn run(words: &[&str]) -> Output {
    Command::new(PROGRAM).args(words).env_remove("NODE_NAME").output().expect("the program starts")
}

/// Checks the exit code and gives what was printed on standard error. Standard output is for nothing.
fn said(output: &Output, exit_code: i32) -> String {
    let text = String::from_utf8(output.stderr.clone()).expect("the program prints UTF-8");
    assert_eq!(output.status.code(), Some(exit_code), "{text}");
    assert!(output.stdout.is_empty(), "everything is said on standard error");
    text
}

#[test]
fn help_and_version_are_said_on_standard_error_and_end_well() {
    let help = said(&run(&["--help"]), 0);
    assert!(help.starts_with(&format!("Usage of {PROGRAM}:\n")) && help.contains("\n      --run-router "), "{help}");
    let version = said(&run(&["--version"]), 0);
    assert!(version.starts_with(&format!("{PROGRAM} version ")) && version.lines().count() == 1, "{version}");
}

#[test]
fn an_unreadable_flag_ends_with_2_and_one_sentence_and_where_to_look() {
    let text = said(&run(&["--health-port=many"]), 2);
    let sentence = "--health-port cannot be \"many\": it must be a whole number from 0 to 65535.";
    assert_eq!(text, format!("{sentence}\n{PROGRAM} --help lists all flags.\n"));
}

#[test]
fn a_question_without_its_words_ends_with_2_and_the_words_that_it_takes() {
    for words in [&["policy"][..], &["policy", "explain"], &["policy", "explain", "--from=shop/web", "--too=x"]] {
        let text = said(&run(words), 2);
        assert!(text.contains("Usage: sluice policy explain --from WHO --to WHERE"), "{words:?}: {text}");
    }
    for words in [&["policy", "diff"][..], &["policy", "diff", "--deleted", "-f", "-"]] {
        let text = said(&run(words), 2);
        assert!(text.contains("sluice policy diff -f FILE"), "{words:?}: {text}");
    }
    for words in [&["svc", "--output=yaml"][..], &["svc", "shop/web", "shop/db"]] {
        let text = said(&run(words), 2);
        assert!(text.contains("Usage: sluice svc [NAMESPACE/NAME"), "{words:?}: {text}");
    }
    for words in [&["bgp"][..], &["bgp", "routes", "--whys"], &["bgp", "peers", "192.0.2.2"]] {
        let text = said(&run(words), 2);
        assert!(text.contains("Usage: sluice bgp peers [-o text|json]"), "{words:?}: {text}");
    }
    let text = said(&run(&["bgp", "routes", "--help"]), 0);
    assert!(text.contains("sluice bgp routes [PREFIX | ADDRESS] [--why]"), "{text}");
    let text = said(&run(&["bgp", "routes", "--socket=/nowhere/sluice.sock"]), 1);
    assert!(text.contains("/nowhere/sluice.sock"), "{text}");
    for words in [&["route"][..], &["route", "shop/web", "shop/db"], &["route", "--why", "192.0.2.7"]] {
        let text = said(&run(words), 2);
        assert!(text.contains("Usage: sluice route NAMESPACE/POD | ADDRESS"), "{words:?}: {text}");
    }
    let text = said(&run(&["route", "--help"]), 0);
    assert!(text.starts_with("Usage: sluice route") && text.contains("Exit status"), "{text}");
    let text = said(&run(&["route", "192.0.2.7", "--socket=/nowhere/sluice.sock"]), 1);
    assert!(text.contains("/nowhere/sluice.sock"), "{text}");
    let text = said(&run(&["audit", "--help"]), 0);
    assert!(text.starts_with("Usage: sluice audit [--repair]") && text.contains("Exit status"), "{text}");
    let text = said(&run(&["audit", "--socket=/nowhere/sluice.sock"]), 2);
    assert!(text.contains("/nowhere/sluice.sock"), "what could not be asked may differ: {text}");
    let text = said(&run(&["status", "--socket=/nowhere/sluice.sock", "--wait=1"]), 2);
    assert!(text.contains("/nowhere/sluice.sock"), "who cannot be asked may be ready: {text}");
    for words in [&["bundle", "now"][..], &["bundle", "-f"]] {
        let text = said(&run(words), 2);
        assert!(text.contains("Usage: sluice bundle [-f FILE]"), "{words:?}: {text}");
    }
    let text = said(&run(&["bundle", "-f", "/nowhere/bundle.tar", "--socket=/nowhere/sluice.sock"]), 2);
    assert!(text.contains("/nowhere/bundle.tar"), "{text}");
    for words in [&["status", "--wait=soon"][..], &["status", "--wait", "1", "node-1"]] {
        let text = said(&run(words), 2);
        assert!(text.contains("Usage: sluice status [--wait[=SECONDS]]"), "{words:?}: {text}");
    }
    // Nobody listens there; without a scheme the client library panics.
    let text = said(&run(&["status", "--all", "--master=127.0.0.1:1"]), 2);
    assert!(text.starts_with("/api/v1/nodes: "), "{text}");
    let text = said(&run(&["svc", "--help"]), 0);
    assert!(text.starts_with("Usage: sluice svc [NAMESPACE/NAME"), "{text}");
    for words in [&["policy", "--help"][..], &["policy", "explain", "--help"]] {
        let text = said(&run(words), 0);
        assert!(text.starts_with("Usage: sluice policy explain"), "{words:?}: {text}");
    }
}

#[test]
fn a_file_that_is_no_bundle_is_no_manifests() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let file = directory.path().join("node.yaml");
    std::fs::write(&file, "kind: Node\n").expect("writable");
    let text = said(&run(&[&format!("--manifests={}", file.display()), "--hostname-override=node-1"]), 1);
    let path = file.display();
    let expected = format!(
        "--manifests must be a directory, or a bundle; {path} is neither a directory nor a bundle of `sluice bundle`.\n"
    );
    assert_eq!(text, expected);
}

#[test]
fn a_bundle_without_an_agent_has_the_host_in_it_and_says_what_it_lacks() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let file = directory.path().join("bundle.tar");
    let name = file.display().to_string();
    let output = run(&["bundle", "-f", &name, "--socket=/nowhere/sluice.sock"]);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(
        said.starts_with(&format!("{name}: ")) && said.contains("agent: nobody answers on /nowhere/sluice.sock"),
        "{said}"
    );
    let output = run(&["bundle", "-f", "-", "--socket=/nowhere/sluice.sock"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(output.stdout.starts_with(b"sluice-bundle/about.json"), "the archive, and nothing else");
    assert!(String::from_utf8_lossy(&output.stderr).contains("agent: nobody answers"));
}

#[test]
fn preflight_takes_the_flags_of_the_agent_and_says_which_of_them_are_wrong() {
    let text = said(&run(&["preflight", "--help"]), 0);
    assert!(text.starts_with("Usage: sluice preflight [-o text|json]") && text.contains("Exit status"), "{text}");
    for words in [&["preflight", "--run-rooter=false"][..], &["preflight", "-o", "yaml"], &["preflight", "now"]] {
        said(&run(words), 2);
    }
    let output = run(&["preflight", "-o=json", "--overlay-type=half", "--ipvs-sync-period=0s"]);
    assert_eq!(output.status.code(), Some(2));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON on standard output");
    let said: Vec<&str> =
        report["findings"].as_array().expect("a list").iter().filter_map(|one| one["what"].as_str()).collect();
    assert_eq!(said.len(), 2, "{said:?}");
    assert!(said.iter().any(|what| what.starts_with("--overlay-type must be subnet or full")), "{said:?}");
}

/// Runs a command that writes a text for another program.
fn written(words: &[&str]) -> String {
    let output = run(words);
    assert_eq!(output.status.code(), Some(0), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("the program prints UTF-8")
}

#[test]
fn bash_completes_commands_flags_and_the_words_of_flags() {
    let script = written(&["completion", "bash"]);
    let completed = |line: &[&str]| {
        let words = line.join(" ");
        let last = line.len() - 1;
        let asked = format!(
            "COMP_WORDS=({words}); COMP_CWORD={last}; _sluice sluice {:?} {:?}; echo \"${{COMPREPLY[*]}}\"",
            line[last],
            line[last - 1]
        );
        let output = Command::new("bash").args(["-c", &format!("{script}\n{asked}")]).output().expect("bash starts");
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    };
    assert_eq!(completed(&["sluice", "pre"]), "preflight");
    assert_eq!(completed(&["sluice", "--run-ser"]), "--run-service-proxy");
    assert_eq!(completed(&["sluice", "--netfilter", "nf"]), "nftables");
    assert_eq!(completed(&["sluice", "policy", "ex"]), "explain");
    assert_eq!(completed(&["sluice", "bgp", "routes", "--w"]), "--why");
    assert_eq!(completed(&["sluice", "rou"]), "route");
    assert_eq!(completed(&["sluice", "preflight", "--run-ser"]), "--run-service-proxy");
}

#[test]
fn an_unknown_shell_or_page_ends_with_2_and_the_words_there_are() {
    for words in [&["completion"][..], &["completion", "tcsh"], &["completion", "bash", "zsh"]] {
        assert!(said(&run(words), 2).starts_with("Usage: sluice completion bash|zsh|fish"), "{words:?}");
    }
    assert!(said(&run(&["man", "polity"]), 2).starts_with("Usage: sluice man [COMMAND...]"));
    assert!(said(&run(&["completion", "--help"]), 0).starts_with("Usage: sluice completion"));
}

#[test]
fn a_manifests_directory_that_is_not_there_ends_with_1_and_one_sentence() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let missing = directory.path().join("cluster");
    // Port 0, so that nothing listens if the program should go on.
    let off = ["--run-router=false", "--run-firewall=false", "--run-service-proxy=false", "--health-port=0"];
    let flag = format!("--manifests={}", missing.display());
    let text = said(&run(&[&off[..], &[&flag]].concat()), 1);
    let start = format!("--manifests must be a directory that can be read; {} cannot: ", missing.display());
    assert!(text.starts_with(&start) && text.lines().count() == 1, "{text}");
}

#[test]
fn flags_that_do_nothing_are_named_once_and_end_nothing() {
    let off = ["--run-router=false", "--run-firewall=false", "--run-service-proxy=false"];
    let idle = [
        "--hairpin-mode",
        "--enable-pprof",
        "--runtime-endpoint=unix:///run/containerd/containerd.sock",
        "--loadbalancer-sync-period=2m",
        "--bfd-port=1234",
    ];
    let text = said(&run(&[&off[..], &idle[..]].concat()), 0);
    for typed in idle {
        let flag = typed.split('=').next().expect("a flag");
        assert_eq!(text.matches(&format!("{flag} has no effect: ")).count(), 1, "{text}");
    }
}

#[test]
fn a_stray_word_ends_with_1_and_one_sentence() {
    let text = said(&run(&["--run-router", "false"]), 1);
    assert!(text.starts_with("\"false\" belongs to no flag") && text.lines().count() == 1, "{text}");
    let text = said(&run(&["--peer-router-passwords", "YQ==", "YmI="]), 1);
    assert!(text.starts_with("Argument 3, of 4 characters, belongs to no flag") && !text.contains("YmI"), "{text}");
}

#[test]
fn all_mistakes_are_said_before_anything_else() {
    let text = said(&run(&["--enable-bfd", "--bfd-port=0", "--ipvs-sync-period=-1s", "--overlay-type=half"]), 1);
    let expected = "\
--ipvs-sync-period must be longer than 0s, for example 5m; it is -1s.
--bfd-port must be a number from 1 to 65535; it is 0.
--overlay-type must be subnet or full; it is \"half\".
";
    assert_eq!(text, expected);
}

#[test]
fn only_root_may_run_it_but_anybody_may_ask_for_help_and_have_flags_checked() {
    // The built program may lie where nobody else can read it.
    let directory = tempfile::tempdir().expect("a temporary directory");
    let program = directory.path().join("sluice");
    std::fs::copy(PROGRAM, &program).expect("the program can be copied");
    let everybody = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(directory.path(), everybody).expect("the directory is ours");
    let as_nobody = |words: &[&str]| {
        let mut command = Command::new(&program);
        command.args(words).current_dir("/");
        if rustix::process::geteuid().is_root() {
            command.uid(65534).gid(65534);
        }
        command.output().expect("the program starts")
    };
    assert!(said(&as_nobody(&["--help"]), 0).starts_with("Usage of "));
    assert!(said(&as_nobody(&["--overlay-type=half"]), 1).contains("--overlay-type must be"));
    let text = said(&as_nobody(&["--run-router=false", "--run-firewall=false"]), 1);
    assert_eq!(text, "sluice must run as root, because it changes the network of this host.\n");
}

#[test]
fn with_nothing_switched_on_there_is_nothing_to_do() {
    if !rustix::process::geteuid().is_root() {
        panic!("this test runs the program beyond its root check: run it as root");
    }
    let off = ["--run-router=false", "--run-firewall=false", "--run-service-proxy=false"];
    let text = said(&run(&off), 0);
    assert!(text.contains("] Starting version=") && text.contains("No subsystem is switched on"), "{text}");
}
