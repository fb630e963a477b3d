//! Configuration of a drain: which taints and which Nodes with the label of load balancers start one, and how long service addresses stay announced.

use std::time::Duration;

use super::flags::Flags;
use super::mistakes::Mistakes;

/// `--drain-taints`, `--drain-label` and `--drain-delay`.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct DrainConfig {
    /// Taints of the own Node that withdraw service addresses, besides the label of load balancers.
    pub taints: Vec<TaintPattern>,
    /// Whether that label counts.
    pub label: DrainLabel,
    /// Time between the announcement with GRACEFUL_SHUTDOWN and the withdrawal.
    pub delay: Duration,
}

/// `--drain-label`: where the label `node.kubernetes.io/exclude-from-external-load-balancers` starts a drain.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum DrainLabel {
    /// On every Node but those of the control plane, on which kubeadm and Talos put it for good.
    #[default]
    Auto,
    Always,
    Never,
}

/// Taints, written as `key`, `key=value`, `key:Effect` or `key=value:Effect`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TaintPattern {
    key: String,
    /// `None` for any.
    value: Option<String>,
    /// `None` for any.
    effect: Option<String>,
}

const EFFECTS: [&str; 3] = ["NoSchedule", "PreferNoSchedule", "NoExecute"];
const LONGEST: Duration = Duration::from_secs(3600);

impl TaintPattern {
    /// Parses a pattern; `None` where the text is none.
    pub fn parse(text: &str) -> Option<TaintPattern> {
        let (words, effect) = text.split_once(':').map_or((text, None), |(words, effect)| (words, Some(effect)));
        let (key, value) = words.split_once('=').map_or((words, None), |(key, value)| (key, Some(value)));
        let is_sound = !key.is_empty() && !key.contains(char::is_whitespace);
        let is_effect = effect.is_none_or(|effect| EFFECTS.contains(&effect));
        (is_sound && is_effect).then(|| TaintPattern {
            key: key.to_owned(),
            value: value.map(str::to_owned),
            effect: effect.map(str::to_owned),
        })
    }

    /// Returns whether this names the taint with this key, value and effect.
    pub fn names(&self, key: &str, value: &str, effect: &str) -> bool {
        let fits = |wanted: &Option<String>, given: &str| wanted.as_deref().is_none_or(|wanted| wanted == given);
        self.key == key && fits(&self.value, value) && fits(&self.effect, effect)
    }
}

impl DrainConfig {
    pub(super) fn from_flags(flags: &Flags, mistakes: &mut Mistakes) -> DrainConfig {
        mistakes.duration_within("drain-delay", flags.drain_delay, Duration::ZERO..=LONGEST);
        let mut taints = Vec::new();
        for text in flags.drain_taints.iter().flat_map(|list| &list.0).map(|text| text.trim()) {
            match TaintPattern::parse(text) {
                Some(pattern) => taints.push(pattern),
                None => mistakes.add(format!(
                    "--drain-taints must be taints like example.com/leaving, example.com/leaving=now or example.com/leaving:NoExecute \
                     with commas between them; {text:?} is none."
                )),
            }
        }
        let label = match flags.drain_label.as_str() {
            "auto" => DrainLabel::Auto,
            "always" => DrainLabel::Always,
            "never" => DrainLabel::Never,
            other => {
                mistakes.add(format!("--drain-label must be auto, always or never; it is {other:?}."));
                DrainLabel::Auto
            }
        };
        DrainConfig { taints, label, delay: flags.drain_delay.positive_or_zero().unwrap_or_default() }
    }
}
