//! The files of this host that the router reads and writes: the CNI file and the password file.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tracing::{info, warn};

use crate::config::RouterConfig;
use crate::model::Authority;
use crate::net::{ExternalPeer, Password};

use super::cni::{CniFileForm, Conf, Other, is_conf, is_ours, text};
use super::password_files::list::PasswordList;
use super::password_files::read::text as text_of_passwords;
use super::problem::{About, Problem};

mod replaced;

use self::replaced::unfinished;
pub(super) use self::replaced::{remove_unfinished, replace};

/// State of these files when last handled.
pub struct HostFiles {
    cni: Option<PathBuf>,
    /// The CNI file has to be checked.
    stale: bool,
    retry_at: Option<Instant>,
    trouble: Option<String>,
    /// Why container runtimes use another file in place of ours, as a sentence.
    preferred: Option<String>,
    passwords: Option<PathBuf>,
    /// The passwords of that file.
    list: PasswordList,
    /// Why it cannot be read now.
    unread: Option<String>,
}

/// Longest text of the password file: as much as a few hundred routers with the longest password need.
const LONGEST: u64 = 64 << 10;
const RETRY: Duration = Duration::from_secs(5);

impl HostFiles {
    pub fn new(config: &RouterConfig) -> HostFiles {
        HostFiles {
            cni: config.cni_file.clone(),
            stale: true,
            retry_at: None,
            trouble: None,
            preferred: None,
            passwords: config.passwords_file.clone(),
            list: PasswordList::default(),
            unread: None,
        }
    }

    /// Notes whether the desired CNI file, or the file itself, may have changed.
    pub fn mark(&mut self, changed: bool) {
        self.stale |= changed;
    }

    /// Writes the desired CNI file. Returns the reason if it is not as desired. A remembered cluster changes no file.
    pub fn write(&mut self, wanted: Option<&Conf>, authority: Authority, now: Instant) -> Option<String> {
        let is_due = self.stale || self.retry_at.is_some_and(|at| at <= now);
        let (Some(path), Some(wanted), true) = (&self.cni, wanted, is_due && authority > Authority::Remembered) else {
            return self.trouble.clone();
        };
        (self.stale, self.retry_at) = (false, None);
        self.trouble = match brought_about(path, wanted) {
            Ok(unusable) => unusable,
            Err(error) => {
                self.retry_at = Some(now + RETRY);
                Some(format!("{}: {error}", path.display()))
            }
        };
        self.preferred = preferred(path).map(|other| in_place_of_ours(&other, path));
        path.parent().into_iter().for_each(remove_unfinished);
        self.trouble.clone()
    }

    /// Returns the problem of another file that container runtimes use in place of ours.
    pub fn problem(&self) -> Option<Problem> {
        Some(Problem::new(About::CniFile, self.preferred.clone()?))
    }

    /// Returns our problems together with these.
    pub fn problems<'a>(&self, others: &'a BTreeSet<Problem>) -> Cow<'a, BTreeSet<Problem>> {
        match self.problem() {
            None => Cow::Borrowed(others),
            Some(problem) => Cow::Owned(others.iter().cloned().chain([problem]).collect()),
        }
    }

    /// Returns the passwords of the password file for these peers, if they have changed.
    pub fn passwords(&mut self, peers: &[ExternalPeer]) -> Option<Vec<Password>> {
        let path = self.passwords.as_ref()?;
        // Each time, as its modification time may be the same although somebody has gone on writing.
        let text = match text_of_passwords(path, LONGEST) {
            Ok(text) => text,
            Err(error) => {
                let error = Some(error.to_string());
                if self.unread != error {
                    warn!(path = %path.display(), error, "Reading the peer passwords file failed; the last known passwords stay in force");
                    self.unread = error;
                }
                return None;
            }
        };
        if self.unread.take().is_some() {
            info!(path = %path.display(), "Reading the peer passwords file recovered");
        }
        let (passwords, sentences) = self.list.look(&text, peers);
        for sentence in sentences {
            warn!(path = %path.display(), reason = sentence, "Peer passwords file is invalid");
        }
        passwords
    }
}

/// Removes the CNI file in both of its forms (`.conf`, `.conflist`), if it uses our bridge: a container runtime that
/// reads it would go on attaching pods to an unmanaged bridge. Then all unfinished files beside it. Returns what was removed.
///
/// # Errors
/// If a file is ours and cannot be removed, the first of several; the others go all the same.
pub fn remove_cni(path: &Path) -> io::Result<Vec<PathBuf>> {
    let forms = BTreeSet::from([path.to_owned(), path.with_extension("conf"), path.with_extension("conflist")]);
    let ours = forms.into_iter().filter(|path| is_own_file(path));
    let unfinished = path.parent().map(unfinished).unwrap_or_default();
    let (mut removed, mut failed) = (Vec::new(), None);
    for path in ours.chain(unfinished) {
        match fs::remove_file(&path) {
            Ok(()) => removed.push(path),
            // It has been finished meanwhile, or somebody else removed it.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => drop(failed.get_or_insert(error)),
        }
    }
    failed.map_or(Ok(removed), Err)
}

/// Returns the list of plugins (`.conflist`) of this name where it is ours and the only form there that describes a network: an agent that
/// nobody named a file goes on with it. A `.conf` beside it would take its place, without the other plugins of the list.
pub fn list_in_place_of(path: &Path) -> Option<PathBuf> {
    let list = path.with_extension("conflist");
    let is_used = fs::read_to_string(path).is_ok_and(|text| Other::of(&text) == Other::Network);
    (!is_used && is_own_file(&list)).then_some(list)
}

/// Returns the file that runtimes use in place of ours: the first by name that describes a network. It is another program's, or the other form of our own.
pub fn preferred(path: &Path) -> Option<PathBuf> {
    let name = path.file_name()?;
    let entries = fs::read_dir(path.parent()?).ok()?.flatten().map(|entry| entry.path());
    let before = entries.filter(|one| one.file_name().is_some_and(|other| other < name));
    let before: BTreeSet<PathBuf> = before.filter(|one| is_conf(one)).collect();
    let takes_pods = |text: &str| Other::of(text) == Other::Network;
    before.into_iter().find(|one| fs::read_to_string(one).is_ok_and(|text| takes_pods(&text)))
}

/// Says that container runtimes use another file in place of ours, and what to do. That of an older release is what pods start by until ours is there.
fn in_place_of_ours(other: &Path, path: &Path) -> String {
    let (name, todo) = (
        other.display(),
        if is_older_form(other, path) {
            "it is of an older release and goes when ours is written, so leave it"
        } else {
            "remove it, or rename it"
        },
    );
    format!("{name} sorts before it, so that container runtimes use that one: {todo}")
}

/// Returns whether a file is the other form of ours, as an older release wrote it: it goes when ours is written.
pub fn is_older_form(other: &Path, path: &Path) -> bool {
    other == other_form(path) && is_own_file(other)
}

/// Writes the desired file. Returns what keeps a part of it from being written.
fn brought_about(path: &Path, wanted: &Conf) -> io::Result<Option<String>> {
    let present = match fs::read_to_string(path) {
        Ok(text) => Some(text),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(error),
    };
    let (new, unusable) = text(present.as_deref(), CniFileForm::of(path), wanted);
    if let Some(new) = new.filter(|new| present.as_ref() != Some(new)) {
        replace(path, present.as_deref().map(str::as_bytes), &new)?;
        info!(path = %path.display(), ranges = ?wanted.ranges, mtu = wanted.mtu, "CNI configuration written");
    }
    if unusable.is_none() && !wanted.ranges.is_empty() {
        remove_other_form(path)?;
    }
    Ok(unusable.map(|why| format!("{}: {why}", path.display())))
}

/// Removes the file of the same name in the other form (`.conf`, `.conflist`), if it uses our bridge, as that of an older
/// release does. Only behind our own: pods get their network by one of them at any time, and runtimes take the `.conf` first.
fn remove_other_form(path: &Path) -> io::Result<()> {
    let other = other_form(path);
    if is_own_file(&other) {
        fs::remove_file(&other).map_err(|error| {
            let name = other.display();
            io::Error::new(
                error.kind(),
                format!("{name}, of an older release, cannot be removed, and runtimes may use it: {error}"),
            )
        })?;
        info!(path = %other.display(), "CNI configuration of an older release removed");
    }
    Ok(())
}

/// Returns the path of the other form of a file.
fn other_form(path: &Path) -> PathBuf {
    path.with_extension(match CniFileForm::of(path) {
        CniFileForm::List => "conf",
        CniFileForm::Single => "conflist",
    })
}

/// Returns whether there is a file that can be read and uses our bridge.
fn is_own_file(path: &Path) -> bool {
    fs::read_to_string(path).is_ok_and(|text| is_ours(&text, CniFileForm::of(path)))
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::time::SystemTime;

    use super::replaced::WRITING;
    use super::*;

    fn conf() -> Conf {
        Conf { ranges: vec!["10.244.1.0/24".parse().expect("a range")], mtu: Some(1480), plugin: None }
    }

    fn files(cni: &Path) -> HostFiles {
        HostFiles {
            cni: Some(cni.to_owned()),
            stale: true,
            retry_at: None,
            trouble: None,
            preferred: None,
            passwords: None,
            list: PasswordList::default(),
            unread: None,
        }
    }

    #[test]
    fn a_file_of_somebody_else_that_sorts_first_is_a_problem_for_as_long_as_it_is_there() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = |name: &str| directory.path().join(name);
        let mut files = files(&path("10-kuberouter.conflist"));
        let mut look = || {
            files.mark(true);
            assert_eq!(files.write(Some(&conf()), Authority::Complete, Instant::now()), None);
            files.problem().map(|problem| problem.text)
        };
        for (name, text) in [
            ("00-empty.conflist", ""),
            ("01-nothing.conflist", "{}"),
            ("02-notes.txt", r#"{"name":"x","type":"bridge"}"#),
            ("20-later.conflist", r#"{"name":"x","plugins":[{"type":"bridge"}]}"#),
            (
                "00-multus.conf",
                r#"{"name":"m","type":"multus","clusterNetwork":"/etc/cni/net.d/10-kuberouter.conflist"}"#,
            ),
            ("00-meta.conflist", r#"{"name":"m","plugins":[{"type":"meta","delegates":[]}]}"#),
        ] {
            fs::write(path(name), text).expect("writable");
        }
        assert_eq!(look(), None);
        fs::write(path("05-flannel.conflist"), r#"{"name":"cbr0","plugins":[{"type":"flannel"}]}"#).expect("writable");
        let problem = look().expect("runtimes take that one");
        assert!(problem.contains("05-flannel.conflist sorts before it"), "{problem}");
        fs::remove_file(path("05-flannel.conflist")).expect("it is there");
        assert_eq!(look(), None);
    }

    #[test]
    fn a_link_stays_one_and_where_it_leads_nowhere_nothing_takes_its_place() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = |name: &str| directory.path().join(name);
        ["net.d", "managed"].iter().for_each(|name| fs::create_dir(path(name)).expect("writable"));
        let link = path("net.d/10-kuberouter.conflist");
        std::os::unix::fs::symlink("../managed/cni.conflist", &link).expect("writable");
        let mut files = files(&link);
        let mut write = || {
            files.mark(true);
            files.write(Some(&conf()), Authority::Complete, Instant::now())
        };
        let trouble = write().expect("it may be there for runtimes of the host");
        assert!(trouble.contains("it is a link to ../managed/cni.conflist"), "{trouble}");
        assert!(link.is_symlink() && !path("managed/cni.conflist").exists());
        let kept = r#"{"cniVersion":"0.4.0","name":"n","plugins":[{"type":"bridge","bridge":"kube-bridge","hairpinMode":true}]}"#;
        fs::write(path("managed/cni.conflist"), kept).expect("writable");
        assert_eq!(write(), None);
        let text = fs::read_to_string(path("managed/cni.conflist")).expect("it is there");
        assert!(link.is_symlink() && text.contains("0.4.0") && text.contains("10.244.1.0/24"), "{text}");
        let count = |name: &str| fs::read_dir(path(name)).expect("readable").count();
        assert_eq!((count("net.d"), count("managed")), (1, 1));
    }

    #[test]
    fn the_file_of_an_older_release_that_pods_start_by_is_not_to_be_removed_by_hand() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = |name: &str| directory.path().join(name);
        let older = r#"{"name":"mynet","type":"bridge","bridge":"kube-bridge","ipam":{"type":"host-local"}}"#;
        fs::write(path("10-kuberouter.conf"), older).expect("writable");
        let mut files = files(&path("10-kuberouter.conflist"));
        let without_ranges = Conf { ranges: Vec::new(), ..conf() };
        files.write(Some(&without_ranges), Authority::Complete, Instant::now());
        let text = files.problem().expect("runtimes use the older one").text;
        assert!(text.contains("10-kuberouter.conf sorts before it") && text.ends_with("so leave it"), "{text}");
        files.mark(true);
        files.write(Some(&conf()), Authority::Complete, Instant::now());
        assert_eq!(files.problem(), None);
    }

    #[test]
    fn the_cni_file_is_made_kept_and_put_right() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("net.d/10-kuberouter.conflist");
        let mut files = files(&path);
        let now = Instant::now();
        assert_eq!(files.write(Some(&conf()), Authority::Remembered, now), None);
        assert!(!path.exists(), "what is only remembered changes no file");
        assert_eq!(files.write(Some(&conf()), Authority::Complete, now), None);
        let written = fs::read_to_string(&path).expect("it is there");
        assert!(written.contains("10.244.1.0/24") && written.contains("1480"), "{written}");
        let stamp = || fs::metadata(&path).and_then(|of| of.modified()).expect("it is there");
        let before = stamp();
        files.mark(true);
        assert_eq!(files.write(Some(&conf()), Authority::Complete, now), None);
        assert_eq!(stamp(), before, "what is right is not written again");
        fs::write(&path, written.replace("1480", "9000")).expect("writable");
        files.mark(true);
        assert_eq!(files.write(Some(&conf()), Authority::Complete, now), None);
        assert_eq!(fs::read_to_string(&path).expect("it is there"), written);
        assert_eq!(
            fs::read_dir(path.parent().expect("a directory")).expect("readable").count(),
            1,
            "nothing else stays"
        );
    }

    #[test]
    fn the_file_of_an_older_release_goes_when_ours_is_there_and_not_before() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = |name: &str| directory.path().join(name);
        let older = r#"{"name":"mynet","type":"bridge","bridge":"kube-bridge","ipam":{"type":"host-local"}}"#;
        let foreign = r#"{"name":"other","type":"ptp"}"#;
        fs::write(path("10-kuberouter.conf"), older).expect("writable");
        let mut files = files(&path("10-kuberouter.conflist"));
        let now = Instant::now();
        let mut write = |conf: &Conf, authority| {
            files.mark(true);
            files.write(Some(conf), authority, now)
        };
        let without_ranges = Conf { ranges: Vec::new(), ..conf() };
        for (conf, authority) in [(&conf(), Authority::Remembered), (&without_ranges, Authority::Complete)] {
            assert_eq!(write(conf, authority), None);
            assert!(path("10-kuberouter.conf").exists(), "pods get their network by it");
        }
        assert_eq!(write(&conf(), Authority::Complete), None);
        assert!(path("10-kuberouter.conflist").exists() && !path("10-kuberouter.conf").exists());
        fs::write(path("10-kuberouter.conf"), foreign).expect("writable");
        assert_eq!(write(&conf(), Authority::Complete), None);
        assert!(path("10-kuberouter.conf").exists(), "it is somebody else's");
    }

    #[test]
    fn cleaning_up_removes_the_cni_file_in_both_forms_and_leaves_those_of_others() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = |name: &str| directory.path().join(name);
        let mut written = files(&path("10-kuberouter.conflist"));
        assert_eq!(written.write(Some(&conf()), Authority::Complete, Instant::now()), None);
        let ours = fs::read_to_string(path("10-kuberouter.conflist")).expect("it is there");
        fs::write(path("10-kuberouter.conf"), r#"{"type":"bridge","bridge":"cni0"}"#).expect("writable");
        fs::write(path("20-other.conflist"), ours).expect("writable");
        assert_eq!(remove_cni(&path("10-kuberouter.conf")).expect("removed"), [path("10-kuberouter.conflist")]);
        assert_eq!(remove_cni(&path("10-kuberouter.conf")).expect("nothing is left"), Vec::<PathBuf>::new());
        assert!(path("10-kuberouter.conf").exists() && path("20-other.conflist").exists());
    }

    #[test]
    fn a_file_that_cannot_be_written_is_trouble_and_is_tried_again() {
        let directory = tempfile::tempdir().expect("a directory");
        fs::write(directory.path().join("net.d"), "a file in the way").expect("writable");
        let path = directory.path().join("net.d/10-kuberouter.conf");
        let mut files = files(&path);
        let now = Instant::now();
        let trouble = files.write(Some(&conf()), Authority::Complete, now).expect("it cannot be written");
        assert!(trouble.contains("10-kuberouter.conf"), "{trouble}");
        fs::remove_file(directory.path().join("net.d")).expect("it is there");
        assert!(files.write(Some(&conf()), Authority::Complete, now).is_some(), "not yet");
        assert_eq!(files.write(Some(&conf()), Authority::Complete, now + RETRY), None);
        assert!(path.exists());
    }

    #[test]
    fn the_other_form_of_our_file_is_a_problem_only_where_it_stays() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = |name: &str| directory.path().join(name);
        let (older, list) = (path("10-kuberouter.conf"), path("10-kuberouter.conflist"));
        let text = r#"{"name":"mynet","type":"bridge","bridge":"kube-bridge","ipam":{"type":"host-local"}}"#;
        fs::write(&older, text).expect("writable");
        assert_eq!(preferred(&list), Some(older.clone()));
        assert!(is_older_form(&older, &list));
        let mut files = files(&list);
        let mut look = |conf: &Conf| {
            files.mark(true);
            files.write(Some(conf), Authority::Complete, Instant::now());
            files.problem().map(|problem| problem.text)
        };
        let without_ranges = Conf { ranges: Vec::new(), ..conf() };
        assert!(look(&without_ranges).is_some_and(|text| text.contains("10-kuberouter.conf sorts before it")));
        fs::write(&list, "no JSON").expect("writable");
        assert!(look(&conf()).is_some_and(|text| text.contains("10-kuberouter.conf sorts before it")));
        fs::remove_file(&list).expect("it is there");
        assert_eq!(look(&conf()), None);
        assert!(list.exists() && !older.exists());
        fs::write(&older, text.replace("kube-bridge", "cni0")).expect("writable");
        assert!(!is_older_form(&older, &list));
        assert!(look(&conf()).is_some(), "it is another program's");
    }

    #[test]
    fn an_agent_without_a_named_file_goes_on_with_the_list_that_is_there() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = |name: &str| directory.path().join(name);
        let (single, list) = (path("10-kuberouter.conf"), path("10-kuberouter.conflist"));
        assert_eq!(list_in_place_of(&single), None, "there is none");
        fs::write(&list, r#"{"name":"x","plugins":[{"type":"bridge","bridge":"cni0"}]}"#).expect("writable");
        assert_eq!(list_in_place_of(&single), None, "it is somebody else's");
        let mut written = files(&list);
        fs::remove_file(&list).expect("it is there");
        assert_eq!(written.write(Some(&conf()), Authority::Complete, Instant::now()), None);
        assert_eq!(list_in_place_of(&single), Some(list.clone()));
        for broken in ["", "{}"] {
            fs::write(&single, broken).expect("writable");
            assert_eq!(list_in_place_of(&single), Some(list.clone()), "runtimes use the list");
        }
        fs::write(&single, r#"{"name":"mynet","type":"bridge","bridge":"kube-bridge"}"#).expect("writable");
        assert_eq!(list_in_place_of(&single), None, "the one that it writes by default is there");
    }

    #[test]
    fn files_that_a_killed_agent_did_not_finish_go() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("10-kuberouter.conflist");
        let make = |name: &str, age: Duration| {
            let made = File::create(directory.path().join(name)).expect("writable");
            made.set_modified(SystemTime::now() - age).expect("a time");
        };
        let names = || {
            let entries = fs::read_dir(directory.path()).expect("readable").flatten();
            entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect::<BTreeSet<_>>()
        };
        let foreign =
            [".10-kuberouter.conflist.new", ".10-kuberouter.conflist.12.x.new", ".notes.txt.1.2.new", ".1.2.new"];
        for name in foreign {
            make(name, WRITING * 2);
        }
        make(".10-kuberouter.conflist.31.1764493200123456789.new", Duration::ZERO);
        make(".10-kuberouter.conflist.32.1764493200123456790.new", Duration::ZERO);
        let mut written = files(&path);
        assert_eq!(written.write(Some(&conf()), Authority::Complete, Instant::now()), None);
        assert_eq!(names().len(), foreign.len() + 3, "another agent may write them still");
        // They are there for long, and the file is as it should be.
        make(".10-kuberouter.conflist.31.1764493200123456789.new", WRITING * 2);
        make(".10-kuberouter.conf.1.1764493200123456789.new", WRITING * 2);
        make(".10-flannel.conflist.1.1764493200123456789.new", WRITING * 2);
        written.mark(true);
        assert_eq!(written.write(Some(&conf()), Authority::Complete, Instant::now()), None);
        let young = ".10-kuberouter.conflist.32.1764493200123456790.new";
        let expected = [&foreign[..], &["10-kuberouter.conflist", young]].concat();
        assert_eq!(names(), expected.iter().map(|name| (*name).to_owned()).collect());
        let removed = remove_cni(&path).expect("removed");
        assert_eq!(BTreeSet::from_iter(removed), BTreeSet::from([path.clone(), directory.path().join(young)]));
        assert_eq!(names(), foreign.iter().map(|name| (*name).to_owned()).collect());
    }
}
