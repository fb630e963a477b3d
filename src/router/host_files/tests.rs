use std::fs::File;
use std::os::unix::fs::symlink;
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

/// Makes an empty file of this age.
fn make(path: &Path, age: Duration) {
    let made = File::create(path).expect("writable");
    made.set_modified(SystemTime::now() - age).expect("a time");
}

/// Names of all files in a directory.
fn names_in(directory: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(directory).expect("readable").flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
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
        ("00-multus.conf", r#"{"name":"m","type":"multus","clusterNetwork":"/etc/cni/net.d/10-kuberouter.conflist"}"#),
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
    symlink("../managed/cni.conflist", &link).expect("writable");
    let mut files = files(&link);
    let mut write = || {
        files.mark(true);
        files.write(Some(&conf()), Authority::Complete, Instant::now())
    };
    let trouble = write().expect("it may be there for runtimes of the host");
    assert!(trouble.contains("it is a link to ../managed/cni.conflist"), "{trouble}");
    assert!(link.is_symlink() && !path("managed/cni.conflist").exists());
    let kept =
        r#"{"cniVersion":"0.4.0","name":"n","plugins":[{"type":"bridge","bridge":"kube-bridge","hairpinMode":true}]}"#;
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
    // Without the older one runtimes would find no network at all.
    fs::write(path("10-kuberouter.conflist"), "no JSON").expect("writable");
    files.mark(true);
    assert!(files.write(Some(&conf()), Authority::Complete, Instant::now()).is_some(), "it is left as it is");
    let text = files.problem().expect("runtimes use the older one").text;
    assert!(text.ends_with("so leave it"), "{text}");
    fs::remove_file(path("10-kuberouter.conflist")).expect("it is there");
    files.mark(true);
    files.write(Some(&conf()), Authority::Complete, Instant::now());
    assert_eq!(files.problem(), None);
}

#[test]
fn the_file_of_an_older_release_is_to_be_removed_by_hand_where_ours_is_there_and_it_stays() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = |name: &str| directory.path().join(name);
    let (older, list) = (path("10-kuberouter.conf"), path("10-kuberouter.conflist"));
    let single = r#"{"name":"mynet","type":"bridge","bridge":"kube-bridge","ipam":{"type":"host-local"}}"#;
    let of_list = |ipam: &str| {
        format!(r#"{{"plugins":[{{"type":"bridge","bridge":"kube-bridge","ipam":{{"type":"{ipam}"}}}}]}}"#)
    };
    fs::write(&older, single).expect("writable");
    fs::write(&list, of_list("whereabouts")).expect("writable");
    let mut files = files(&list);
    let trouble =
        files.write(Some(&conf()), Authority::Complete, Instant::now()).expect("its ranges are left as they are");
    assert!(trouble.contains("whereabouts") && older.exists(), "{trouble}");
    let text = files.problem().expect("runtimes use the older one").text;
    assert!(text.contains("10-kuberouter.conf sorts before it") && text.ends_with("remove it, or rename it"), "{text}");
    // Nothing keeps ours from being written, and the older one is there because it cannot be removed.
    fs::write(&list, of_list("host-local")).expect("writable");
    let text = in_place_of_ours(&older, &list);
    assert!(text.ends_with("remove it, or rename it"), "{text}");
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
    assert_eq!(fs::read_dir(path.parent().expect("a directory")).expect("readable").count(), 1, "nothing else stays");
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
    let make = |name: &str, age: Duration| make(&directory.path().join(name), age);
    let names = || names_in(directory.path());
    let foreign = [".10-kuberouter.conflist.new", ".10-kuberouter.conflist.12.x.new", ".notes.txt.1.2.new", ".1.2.new"];
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

#[test]
fn files_that_a_killed_agent_did_not_finish_behind_a_link_go_and_others_there_stay() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = |name: &str| directory.path().join(name);
    ["net.d", "managed"].iter().for_each(|name| fs::create_dir(path(name)).expect("writable"));
    let link = path("net.d/10-kuberouter.conflist");
    symlink("current", &link).expect("writable");
    symlink("../managed/cni.json", path("net.d/current")).expect("writable");
    // The entry of our plugin is taken out of others' files, too, whatever the name is that they have behind the link.
    symlink("../managed/other", path("net.d/20-other.conflist")).expect("writable");
    let theirs = ["cni.json", ".cni.json.1.x.new", ".cni.json.new", ".third.conflist.1.1764493200123456789.new"];
    let young = ".cni.json.32.1764493200123456790.new";
    for name in theirs.into_iter().chain([".cni.json.31.1764493200123456789.new", ".other.1.1764493200123456789.new"]) {
        make(&path("managed").join(name), WRITING * 2);
    }
    make(&path("managed").join(young), Duration::ZERO);
    let mut written = files(&link);
    assert_eq!(written.write(Some(&conf()), Authority::Complete, Instant::now()), None);
    let expected = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>();
    assert_eq!(names_in(&path("managed")), expected(&[&theirs[..], &[young]].concat()));
    let removed = BTreeSet::from_iter(remove_cni(&link).expect("removed"));
    assert_eq!(removed, BTreeSet::from([link, path("net.d/../managed").join(young)]));
    assert_eq!(names_in(&path("managed")), expected(&theirs));
}
