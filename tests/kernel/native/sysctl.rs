//! Settings of the real kernel: written where they differ, and left to the administrator where they are his.

use std::collections::BTreeMap;

use sluice::kernel::sysctl::{Setting, Settings, WantedSetting};
use sluice::reconcile::{Growth, Mirror, Reflection};

use super::moment;
use crate::namespace::{in_new, run};

fn setting(name: &str) -> Setting {
    Setting(name.into())
}

fn value(name: &str) -> String {
    run(&format!("sysctl -n {name}")).trim().to_owned()
}

fn settings() -> Settings {
    let two_instead_of_one = WantedSetting::InsteadOf { old: "1".into(), new: "2".into() };
    Settings::new([
        (setting("net/ipv4/conf/all/arp_ignore"), WantedSetting::Always("1".into())),
        (setting("net/ipv4/conf/all/rp_filter"), two_instead_of_one.clone()),
        (setting("net/ipv4/conf/lo/rp_filter"), two_instead_of_one.clone()),
        (setting("net/ipv4/conf/there-is-none/rp_filter"), two_instead_of_one),
    ])
}

#[test]
fn settings_are_written_where_they_differ_and_only_in_this_namespace() {
    let outside = value("net.ipv4.conf.all.arp_ignore");
    in_new(|| {
        run("sysctl -qw net.ipv4.conf.all.arp_ignore=0");
        run("sysctl -qw net.ipv4.conf.all.rp_filter=1");
        run("sysctl -qw net.ipv4.conf.lo.rp_filter=0");
        let mut settings = settings();
        let want = settings.wanted();
        let expected = [("net/ipv4/conf/all/arp_ignore", "1"), ("net/ipv4/conf/all/rp_filter", "2")];
        assert_eq!(want, BTreeMap::from(expected.map(|(name, value)| (setting(name), value.into()))));
        let mut mirror = Mirror::new(settings);
        mirror.grow(&want, Growth::Full, moment());
        assert!(mirror.is_settled(), "{:?}", mirror.trouble());
        assert_eq!(mirror.steps_done(), 2);
        assert_eq!(value("net.ipv4.conf.all.arp_ignore"), "1");
        assert_eq!(value("net.ipv4.conf.all.rp_filter"), "2");
        assert_eq!(value("net.ipv4.conf.lo.rp_filter"), "0");
    });
    assert_eq!(value("net.ipv4.conf.all.arp_ignore"), outside);
}

#[test]
fn a_restart_with_everything_in_place_writes_nothing_and_an_audit_finds_what_was_changed() {
    in_new(|| {
        run("sysctl -qw net.ipv4.conf.all.arp_ignore=1");
        let mut settings = settings();
        let want = settings.wanted();
        let mut mirror = Mirror::new(settings);
        mirror.grow(&want, Growth::Full, moment());
        assert!(mirror.is_settled());
        assert_eq!(mirror.steps_done(), 0);
        run("sysctl -qw net.ipv4.conf.all.arp_ignore=0");
        let audited = mirror.audit(moment());
        assert_eq!(audited.drift.len(), 1, "{:?}", audited.drift);
        mirror.grow(&want, Growth::Full, moment());
        assert_eq!(value("net.ipv4.conf.all.arp_ignore"), "1");
    });
}
