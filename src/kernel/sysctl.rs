//! Kernel settings under `/proc/sys`, written only where they differ.
//!
//! Settings are never reset: nobody knows their former values. So this kind of objects only grows,
//! and there is nothing to call `shrink` for.
//!
//! A setting whose file does not exist (its module is not loaded, its device is not there) is absent, which is
//! not a failure. It is reported once and looked for again whenever the settings are read.
//!
//! Settings that a module brings and that have to be there ([`WantedSetting::OfModule`]) are looked for with the module loaded,
//! and where they do not exist even then, that is a failure.
//!
//! Some settings are corrected only where they have one certain value ([`WantedSetting::InsteadOf`]). They are ours
//! only while they have the old or the new value; with any other they are the administrator's and are neither
//! returned nor touched. Of those that the kernel has for all devices and for each, one device may count ([`WantedSetting::InsteadOfAny`]). The desired state therefore depends on what was found: call [`Settings::wanted`] before a
//! round and after every audit.
//!
//! In a container without privileges `/proc/sys` is read-only, and what the host's `/proc/sys/net` is mounted at is not ([`root`]).
//!
//! Kernel: Documentation/admin-guide/sysctl. The files below `/proc/sys/net` show the network namespace of the
//! thread that opens them, wherever they are mounted.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs::OpenOptions;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use compact_str::CompactString;
use rustix::fs::{Access, access};
use rustix::io::Errno;
use tracing::{debug, warn};

use super::{Cause, Error, module};
use crate::reconcile::{Failure, Growth, Mirror, Moment, Phase, Reflection, Step, Target};

/// Name of this kind of kernel objects, in health, log and metrics.
pub const KIND: &str = "settings";

/// Directories that settings may lie below. The second one is where a manifest without `privileged` mounts the host's `/proc/sys/net`, which a container runtime allows nowhere
/// below `/proc`.
const ROOTS: [&str; 2] = ["/proc/sys", "/host/proc/sys"];

/// Returns the directory that settings are read and written below: the first that can be written, else `/proc/sys`. Only settings of the network are below each.
pub fn root() -> &'static Path {
    static ROOT: OnceLock<&Path> = OnceLock::new();
    ROOT.get_or_init(|| first_writable(ROOTS.map(Path::new)))
}

fn first_writable(roots: [&Path; 2]) -> &Path {
    // Every network namespace has it.
    let is_writable = |root: &&Path| access(root.join("net/ipv4/ip_forward"), Access::WRITE_OK).is_ok();
    roots.into_iter().find(is_writable).unwrap_or(roots[0])
}

/// Returns the value of a setting of this thread's network namespace, with one space between its words; `None` where it cannot be read.
pub fn value(setting: &Setting) -> Option<CompactString> {
    value_of(&root().join(&*setting.0)).ok()
}

/// The settings that their owner decides, as a kind of kernel objects. A value is written as the kernel prints
/// it, with one space between its words.
#[derive(Debug)]
pub struct Settings {
    rules: BTreeMap<Setting, WantedSetting>,
    root: PathBuf,
    /// Absent settings that were reported.
    reported: BTreeSet<Setting>,
}

/// A setting, as its path below `/proc/sys`: `net/ipv4/vs/conntrack`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Setting(pub CompactString);

impl Setting {
    /// Returns the network device that the setting comes and goes with; `None` for one of the kernel, also that of all devices.
    fn device(&self) -> Option<&str> {
        let parts: Vec<&str> = self.0.split('/').collect();
        match parts.as_slice() {
            ["net", "ipv4" | "ipv6", "conf" | "neigh", "all" | "default", ..] => None,
            ["net", "ipv4" | "ipv6", "conf" | "neigh", device, _] => Some(device),
            _ => None,
        }
    }
}

/// Desired value of a setting.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum WantedSetting {
    /// This value, whatever it was.
    Always(CompactString),
    /// This value, whatever it was, and the setting has to exist: this module brings it.
    OfModule { value: CompactString, module: &'static str },
    /// The value `new` where it is exactly `old`; any third value is left alone.
    InsteadOf { old: CompactString, new: CompactString },
    /// Of a setting of all devices, `net/ipv4/conf/all/…`, beside which each has its own and the larger number counts: the value `new` where it is `old`, and also where it is 0
    /// and any device, or the default of devices to come, has `old`. So it counts for these too.
    InsteadOfAny { old: CompactString, new: CompactString },
}

impl WantedSetting {
    /// Returns the desired value of a setting whose value is `found`; `None` where it is not ours to decide. Of one of all devices: whatever these have.
    pub fn given(&self, found: &str) -> Option<&CompactString> {
        self.given_beside(found, |_| false)
    }

    /// The same where `has`, which is asked only where it matters, says whether any device has a value of the setting.
    pub fn given_beside(&self, found: &str, has: impl FnOnce(&str) -> bool) -> Option<&CompactString> {
        match self {
            WantedSetting::Always(value) | WantedSetting::OfModule { value, .. } => Some(value),
            WantedSetting::InsteadOf { old, new } => (found == old || found == new).then_some(new),
            WantedSetting::InsteadOfAny { old, new } => {
                (found == old || found == new || found == "0" && has(old)).then_some(new)
            }
        }
    }
}

impl Settings {
    pub fn new(rules: impl IntoIterator<Item = (Setting, WantedSetting)>) -> Settings {
        Settings { rules: rules.into_iter().collect(), root: root().to_owned(), reported: BTreeSet::new() }
    }

    /// Replaces the desired values.
    pub fn set_rules(&mut self, rules: BTreeMap<Setting, WantedSetting>) {
        self.rules = rules;
    }

    /// Returns the desired values of the settings that exist, or have to, and are ours to decide. One that cannot be
    /// read is among them where its value does not matter, so that its step fails visibly.
    pub fn wanted(&mut self) -> BTreeMap<Setting, CompactString> {
        let mut wanted = BTreeMap::new();
        for (setting, rule) in self.rules.clone() {
            let value = match (self.look(&setting), &rule) {
                (Some(Ok(found)), rule) => self.given(&setting, rule, &found),
                (Some(Err(_)), WantedSetting::Always(value))
                | (None | Some(Err(_)), WantedSetting::OfModule { value, .. }) => Some(value),
                _ => None,
            };
            wanted.extend(value.map(|value| (setting, value.clone())));
        }
        wanted
    }

    /// Returns the desired value of a setting that has this one.
    fn given<'a>(&self, setting: &Setting, rule: &'a WantedSetting, found: &str) -> Option<&'a CompactString> {
        rule.given_beside(found, |value| self.any_device_has(setting, value))
    }

    /// Returns whether any device has this value of a setting of all devices.
    fn any_device_has(&self, setting: &Setting, value: &str) -> bool {
        let path = self.path(setting);
        let Some((all, name)) = path.parent().zip(path.file_name()) else { return false };
        let devices = all.parent().and_then(|devices| std::fs::read_dir(devices).ok()).into_iter().flatten().flatten();
        let mut others = devices.map(|device| device.path()).filter(|device| device != all);
        others.any(|device| value_of(&device.join(name)).is_ok_and(|found| found == value))
    }

    /// Reads a setting; `None`, reported once, where the kernel does not have it.
    fn look(&mut self, setting: &Setting) -> Option<Result<CompactString, Error>> {
        match value_of(&self.path(setting)) {
            Ok(value) => {
                self.reported.remove(setting);
                Some(Ok(value))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                // A device that is made later, as the bridge of pods on a new node, is nothing to warn of.
                match (self.reported.insert(setting.clone()), setting.device()) {
                    (true, Some(device)) => debug!(%setting, device, "Sysctl of a device that is not there yet"),
                    (true, None) => warn!(%setting, "Sysctl does not exist in this kernel"),
                    (false, _) => {}
                }
                None
            }
            Err(error) => Some(Err(failed("read setting", setting, &error))),
        }
    }

    /// Reads a setting that was missing with its module, which may have been unloaded, or not be there.
    fn look_with(&mut self, module: &str, setting: &Setting) -> Result<CompactString, Error> {
        let cause = module::load(&[module]).pop().map(|error| error.cause);
        self.look(setting).unwrap_or_else(|| {
            let cause = cause.unwrap_or(Cause::Errno(Errno::NOENT, None));
            Err(Error::new("write setting", format!("{setting} of kernel module {module}"), cause))
        })
    }

    fn path(&self, setting: &Setting) -> PathBuf {
        self.root.join(&*setting.0)
    }

    fn write(&mut self, setting: &Setting, value: &str) -> Result<(), Error> {
        let found = match (self.look(setting), self.rules.get(setting)) {
            (Some(found), _) => found?,
            (None, Some(WantedSetting::OfModule { module, .. })) => self.look_with(module, setting)?,
            (None, _) => return Ok(()),
        };
        // It may have become the administrator's since it was compared.
        let ours = self.rules.get(setting).is_none_or(|rule| self.given(setting, rule, &found).is_some());
        if !ours || found == value {
            return Ok(());
        }
        let opened = OpenOptions::new().write(true).open(self.path(setting));
        opened
            .and_then(|mut file| file.write_all(value.as_bytes()))
            .map_err(|error| failed("write setting", setting, &error))
    }
}

impl Target for Settings {
    type Key = Setting;
    type Value = CompactString;
    type Error = Error;

    fn name(&self) -> &'static str {
        KIND
    }

    fn read(&mut self) -> Result<BTreeMap<Setting, CompactString>, Error> {
        let mut found = BTreeMap::new();
        for (setting, rule) in self.rules.clone() {
            // One that cannot be read does not hide the others.
            let Some(Ok(value)) = self.look(&setting) else { continue };
            if self.given(&setting, &rule, &value).is_some() {
                found.insert(setting, value);
            }
        }
        Ok(found)
    }

    /// An administrator has given it a third value.
    fn is_of_others(&mut self, setting: &Setting) -> bool {
        let rule = self.rules.get(setting).cloned();
        let found = self.look(setting).and_then(Result::ok);
        rule.zip(found).is_some_and(|(rule, found)| self.given(setting, &rule, &found).is_none())
    }

    fn apply(&mut self, phase: Phase, steps: &[Step<'_, Setting, CompactString>]) -> Vec<Failure<Error>> {
        if phase == Phase::Shrink {
            return Vec::new();
        }
        let mut failures = Vec::new();
        for (step, Step { key, want, .. }) in steps.iter().enumerate() {
            let Some(want) = want else { continue };
            if let Err(error) = self.write(key, want) {
                failures.push(Failure { step, error });
            }
        }
        failures
    }
}

impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Settings whose desired state depends on what is found.
pub trait Ruled: Target<Key = Setting, Value = CompactString> {
    /// Returns the desired values of those of the settings that exist and are ours to decide.
    fn wanted(&mut self, rules: &BTreeMap<Setting, WantedSetting>) -> BTreeMap<Setting, CompactString>;
}

impl Ruled for Settings {
    fn wanted(&mut self, rules: &BTreeMap<Setting, WantedSetting>) -> BTreeMap<Setting, CompactString> {
        self.set_rules(rules.clone());
        Settings::wanted(self)
    }
}

/// Writes settings that differ from these rules. They do not depend on how well the cluster is known.
pub fn keep<T: Ruled>(settings: &mut Mirror<T>, rules: &BTreeMap<Setting, WantedSetting>, at: Moment) {
    if settings.is_settled() {
        return;
    }
    let wanted = settings.target().wanted(rules);
    settings.grow(&wanted, Growth::Full, at);
}

/// The words of the file with one space between them: the kernel writes tabs between several numbers.
fn value_of(path: &Path) -> io::Result<CompactString> {
    let text = std::fs::read_to_string(path)?;
    Ok(CompactString::from(text.split_whitespace().collect::<Vec<_>>().join(" ")))
}

fn failed(operation: &'static str, setting: &Setting, error: &io::Error) -> Error {
    Error::errno(operation, setting.0.as_str(), Errno::from_io_error(error).unwrap_or(Errno::IO))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn setting(name: &str) -> Setting {
        Setting(name.into())
    }

    /// Settings over a directory that stands for `/proc/sys`, holding these files.
    fn settings(files: &[(&str, &str)], rules: &[(&str, WantedSetting)]) -> (tempfile::TempDir, Settings) {
        let root = tempfile::tempdir().expect("a directory");
        for (name, value) in files {
            std::fs::write(root.path().join(name), value).expect("a file");
        }
        let mut settings = Settings::new(rules.iter().map(|(name, rule)| (setting(name), rule.clone())));
        settings.root = root.path().to_owned();
        (root, settings)
    }

    #[test]
    fn settings_lie_where_they_can_be_written() {
        let directory = tempfile::tempdir().expect("a directory");
        let [first, second] = ["first", "second"].map(|name| directory.path().join(name));
        let make = |root: &Path| {
            std::fs::create_dir_all(root.join("net/ipv4")).expect("writable");
            std::fs::write(root.join("net/ipv4/ip_forward"), "0").expect("writable");
        };
        assert_eq!(first_writable([&first, &second]), first, "where none is, the kernel's own place is named");
        make(&second);
        assert_eq!(first_writable([&first, &second]), second);
        make(&first);
        assert_eq!(first_writable([&first, &second]), first);
    }

    fn always(value: &str) -> WantedSetting {
        WantedSetting::Always(value.into())
    }

    fn two_instead_of_one() -> WantedSetting {
        WantedSetting::InsteadOf { old: "1".into(), new: "2".into() }
    }

    fn map(pairs: &[(&str, &str)]) -> BTreeMap<Setting, CompactString> {
        pairs.iter().map(|(name, value)| (setting(name), CompactString::from(*value))).collect()
    }

    #[test]
    fn a_setting_of_a_device_comes_and_goes_with_it_and_one_of_all_devices_is_the_kernels() {
        let device = |name| setting(name).device().map(str::to_owned);
        assert_eq!(device("net/ipv4/conf/kube-bridge/rp_filter"), Some("kube-bridge".to_owned()));
        assert_eq!(device("net/ipv6/conf/eth0.100/accept_dad"), Some("eth0.100".to_owned()));
        for name in [
            "net/ipv4/conf/all/rp_filter",
            "net/ipv6/conf/default/forwarding",
            "net/ipv4/vs/conntrack",
            "net/ipv4/ip_forward",
        ] {
            assert_eq!(device(name), None, "{name}");
        }
    }

    #[test]
    fn a_conditional_setting_is_ours_only_with_the_old_or_the_new_value() {
        let rule = two_instead_of_one();
        let given = |found| rule.given(found).map(CompactString::as_str);
        assert_eq!([given("0"), given("1"), given("2"), given("10")], [None, Some("2"), Some("2"), None]);
        assert_eq!(always("1").given("0"), Some(&"1".into()));
    }

    #[test]
    fn a_setting_of_all_devices_counts_for_one_that_is_strict_or_will_be_and_is_left_alone_where_none_is() {
        for (all, default, link, wanted, ours) in [
            ("1", "0", "0", Some("2"), true),
            ("0", "1", "0", Some("2"), true),
            ("0", "0", "1", Some("2"), true),
            ("0", "2", "0", None, false),
            ("2", "1", "1", Some("2"), true),
            ("3", "1", "1", None, false),
        ] {
            let root = tempfile::tempdir().expect("a directory");
            let path = |device: &str| format!("net/ipv4/conf/{device}/rp_filter");
            for (device, value) in [("all", all), ("default", default), ("eth0", link)] {
                let file = root.path().join(path(device));
                std::fs::create_dir_all(file.parent().expect("a directory")).expect("writable");
                std::fs::write(file, format!("{value}\n")).expect("writable");
            }
            let rule = WantedSetting::InsteadOfAny { old: "1".into(), new: "2".into() };
            let mut settings = Settings::new([(setting(&path("all")), rule)]);
            settings.root = root.path().to_owned();
            let expected: Vec<CompactString> = wanted.into_iter().map(CompactString::from).collect();
            let told = format!("all {all}, default {default}, eth0 {link}");
            assert_eq!(settings.wanted().into_values().collect::<Vec<_>>(), expected, "{told}");
            assert_eq!(settings.read().expect("it can be read").len(), usize::from(ours), "{told}");
            assert_eq!(settings.is_of_others(&setting(&path("all"))), !ours, "{told}");
            let (key, want) = (setting(&path("all")), "2".into());
            let failures = settings.apply(Phase::Grow, &[Step { key: &key, have: None, want: Some(&want) }]);
            assert!(failures.is_empty(), "{failures:?}");
            let written = value_of(&root.path().join(path("all"))).expect("a file");
            assert_eq!(written, wanted.unwrap_or(all), "{told}");
            assert_eq!(value_of(&root.path().join(path("eth0"))).expect("a file"), link, "devices keep theirs: {told}");
        }
    }

    #[test]
    fn a_setting_that_an_administrator_gives_a_third_value_is_not_missing_to_an_audit_and_one_that_is_away_is() {
        let rules = [("filter", two_instead_of_one()), ("forward", always("1"))];
        let (root, settings) = settings(&[("filter", "1"), ("forward", "0")], &rules);
        let rules: BTreeMap<Setting, WantedSetting> =
            rules.into_iter().map(|(name, rule)| (setting(name), rule)).collect();
        let mut mirror = Mirror::new(settings);
        keep(&mut mirror, &rules, Moment { now: std::time::Instant::now(), jitter: 0 });
        let room = crate::reconcile::Room::of_differences(10);
        let mut differing = || {
            Reflection::begin_inspection(&mut mirror);
            let found = Reflection::inspect(&mut mirror, room).differences;
            found.iter().map(|one| format!("{} {:?}", one.object, one.state)).collect::<Vec<_>>()
        };
        assert_eq!(differing(), [""; 0]);
        let write = |name: &str, value: &str| std::fs::write(root.path().join(name), value).expect("a file");
        write("filter", "0");
        write("forward", "0");
        assert_eq!(differing(), ["forward Different"]);
        write("filter", "1");
        std::fs::remove_file(root.path().join("forward")).expect("it is there");
        assert_eq!(differing(), ["filter Different", "forward Missing"]);
    }

    #[test]
    fn what_is_missing_is_absent_and_what_is_the_administrators_is_not_returned() {
        let files = [("conntrack", "0\n"), ("range", "4096\t131072\t6291456\n"), ("loose", "0\n"), ("strict", "1\n")];
        let rules = [
            ("conntrack", always("1")),
            ("range", always("1 2 3")),
            ("gone", always("1")),
            ("loose", two_instead_of_one()),
            ("strict", two_instead_of_one()),
        ];
        let (_root, mut settings) = settings(&files, &rules);
        let found = settings.read().expect("all can be read");
        assert_eq!(found, map(&[("conntrack", "0"), ("range", "4096 131072 6291456"), ("strict", "1")]));
        let wanted = settings.wanted();
        assert_eq!(wanted, map(&[("conntrack", "1"), ("range", "1 2 3"), ("strict", "2")]));
        assert_eq!(settings.reported, BTreeSet::from([setting("gone")]));
    }

    #[test]
    fn only_what_still_is_ours_is_written() {
        let files = [("a", "0\n"), ("strict", "1\n"), ("changed", "0\n")];
        let rules = [("a", always("1")), ("strict", two_instead_of_one()), ("changed", two_instead_of_one())];
        let (root, mut settings) = settings(&files, &rules);
        let wanted = map(&[("a", "1"), ("strict", "2"), ("changed", "2"), ("gone", "1")]);
        let steps: Vec<Step<'_, _, _>> =
            wanted.iter().map(|(key, want)| Step { key, have: None, want: Some(want) }).collect();
        let failures = settings.apply(Phase::Grow, &steps);
        assert!(failures.is_empty(), "{failures:?}");
        let now = |name: &str| std::fs::read_to_string(root.path().join(name)).expect("a file").trim().to_owned();
        // A plain file keeps what lies behind the shorter text written over it; /proc does not.
        assert_eq!([now("a"), now("strict"), now("changed")], ["1", "2", "0"]);
        assert!(!root.path().join("gone").exists());
    }

    #[test]
    fn a_setting_that_cannot_be_read_fails_alone() {
        let (root, mut settings) = settings(&[("b", "0\n")], &[("a", always("1")), ("b", always("1"))]);
        std::fs::create_dir(root.path().join("a")).expect("a directory in its place");
        assert_eq!(settings.read().expect("the other can be read"), map(&[("b", "0")]));
        let wanted = settings.wanted();
        assert_eq!(wanted, map(&[("a", "1"), ("b", "1")]));
        let steps: Vec<Step<'_, _, _>> =
            wanted.iter().map(|(key, want)| Step { key, have: None, want: Some(want) }).collect();
        let failures = settings.apply(Phase::Grow, &steps);
        let texts: Vec<String> = failures.iter().map(|failure| failure.error.to_string()).collect();
        assert_eq!(texts.len(), 1);
        assert!(texts.iter().all(|text| text.starts_with("read setting a: ")), "{texts:?}");
    }
}
