//! `sluice preflight`: everything the agent needs, and finds, on this host and in its cluster, before it starts.
//!
//! It takes the agent's flags: which subsystems run decides what is asked. Three steps: [`gather`] reads the [`facts`], which is the only
//! part with effects, and changes nothing on the host; [`judge`] makes findings of facts and configuration; and the [`Report`] of
//! them is printed for a person or as JSON. The exit status is that of the worst finding.
//!
//! Nothing is changed: no module is loaded (their lists say what `modprobe` would find), nf_tables is asked as `nft --check` does, and only
//! where what it needs is loaded, no program is started but `iptables-legacy-save` where there are such tables and `iptables --version`, no port is bound,
//! no file is written. The API server is asked with SelfSubjectAccessReviews, which it stores nowhere.

pub mod facts;
pub mod gather;
pub mod judge;

use std::cmp::Reverse;
use std::fmt::Write as _;
use std::time::Duration;

use serde::Serialize;

use crate::config::{Config, Mistakes, VERSION};

/// How bad a finding is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    Ok,
    /// The agent starts and does its work, but for what the finding says.
    Degraded,
    /// The agent does not start, or a subsystem that was asked for cannot do its work at all.
    Fatal,
}

/// One finding.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Finding {
    pub level: Level,
    /// Its object, in a few words: `kernel module ip_vs`.
    pub subject: String,
    /// State of it, as a sentence without its end.
    pub what: String,
    /// Consequence; empty where all is well.
    pub why: String,
    /// Remedy; empty where all is well.
    pub todo: String,
}

impl Finding {
    pub fn ok(subject: impl Into<String>, what: impl Into<String>) -> Finding {
        Finding {
            level: Level::Ok,
            subject: subject.into(),
            what: what.into(),
            why: String::new(),
            todo: String::new(),
        }
    }

    /// A finding that somebody should see to: what, why it matters, what to do.
    pub fn bad(level: Level, subject: impl Into<String>, [what, why, todo]: [String; 3]) -> Finding {
        Finding { level, subject: subject.into(), what, why, todo }
    }
}

/// All findings about a host.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Report {
    pub node: String,
    /// Of this program.
    pub version: String,
    /// Of the worst finding.
    pub level: Level,
    /// The worst ones first.
    pub findings: Vec<Finding>,
}

impl Report {
    pub fn new(node: &str, version: &str, mut findings: Vec<Finding>) -> Report {
        findings.sort_by_key(|finding| Reverse(finding.level));
        let level = findings.first().map_or(Level::Ok, |worst| worst.level);
        Report { node: node.to_owned(), version: version.to_owned(), level, findings }
    }

    /// The report on flags with which the agent does not start: nothing else is known then.
    pub fn of_mistakes(node: &str, version: &str, mistakes: &Mistakes) -> Report {
        let of = |sentence: &String| {
            let why = "the agent ends at its start, and nothing else was looked at".to_owned();
            let what = sentence.trim_end_matches('.').to_owned();
            Finding::bad(Level::Fatal, "flags", [what, why, "correct the flags".to_owned()])
        };
        Report::new(node, version, mistakes.sentences().iter().map(of).collect())
    }

    /// 0 where all is well, 1 where something is degraded, 2 where something is fatal.
    pub fn exit_code(&self) -> u8 {
        self.level as u8
    }

    /// The report for a person.
    pub fn text(&self) -> String {
        let count = |level| self.findings.iter().filter(|finding| finding.level == level).count();
        let verdict = match self.level {
            Level::Ok => "everything is there",
            Level::Degraded => "it starts, and something is missing",
            Level::Fatal => "it does not work like this",
        };
        let Report { node, version, .. } = self;
        let mut text = format!(
            "{node}: sluice {version}: {verdict}: {} fatal, {} degraded, {} ok\n",
            count(Level::Fatal),
            count(Level::Degraded),
            count(Level::Ok)
        );
        for Finding { level, subject, what, why, todo } in &self.findings {
            let level = match level {
                Level::Ok => "ok      ",
                Level::Degraded => "DEGRADED",
                Level::Fatal => "FATAL   ",
            };
            let _ = writeln!(text, "{level}  {subject}: {}", one_line(what));
            for (word, sentence) in
                [("why", why), ("do", todo)].into_iter().filter(|(_, sentence)| !sentence.is_empty())
            {
                let _ = writeln!(text, "          {word}: {}", one_line(sentence));
            }
        }
        text
    }

    /// The report for a program.
    pub fn json(&self) -> String {
        let mut text = serde_json::to_string_pretty(self).expect("it has no odd keys");
        text.push('\n');
        text
    }
}

/// Gathers the facts of this host and judges them. `answers`: the time that the API server has for all its answers.
pub fn report(config: &Config, answers: Duration) -> Report {
    let facts = gather::gather(config, answers);
    Report::new(&config.node_name, VERSION, judge::judge(&facts, config))
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        let bad = |level, subject: &str| {
            Finding::bad(
                level,
                subject,
                ["is\nmissing".to_owned(), "nothing works".to_owned(), "install it".to_owned()],
            )
        };
        let findings =
            vec![Finding::ok("kernel", "6.12"), bad(Level::Degraded, "br_netfilter"), bad(Level::Fatal, "ip_vs")];
        Report::new("node-1", "0.1.0", findings)
    }

    #[test]
    fn the_worst_comes_first_and_says_how_it_ends() {
        let expected = "\
node-1: sluice 0.1.0: it does not work like this: 1 fatal, 1 degraded, 1 ok
FATAL     ip_vs: is missing
          why: nothing works
          do: install it
DEGRADED  br_netfilter: is missing
          why: nothing works
          do: install it
ok        kernel: 6.12
";
        assert_eq!((report().text().as_str(), report().exit_code()), (expected, 2));
        let ok = Report::new("node-1", "0.1.0", vec![Finding::ok("kernel", "6.12")]);
        assert_eq!((ok.exit_code(), ok.level), (0, Level::Ok));
    }

    #[test]
    fn a_program_reads_level_subject_and_sentences() {
        let value: serde_json::Value = serde_json::from_str(&report().json()).expect("JSON");
        assert_eq!(value["level"], "fatal");
        assert_eq!(value["findings"][1]["level"], "degraded");
        assert_eq!(value["findings"][0]["todo"], "install it");
    }
}
