//! Flags about neighbours: AS numbers, routers outside, lists of equal length, passwords.

use super::*;

#[test]
fn as_numbers_are_of_the_right_kind() {
    for accepted in [0, 64512, 65535, 4_200_000_000, 4_294_967_294_u64] {
        check_mistakes(&[&format!("--cluster-asn={accepted}")], &[]);
    }
    for refused in [1, 64511, 65536, 4_199_999_999, 4_294_967_295_u64, u64::MAX] {
        let sentence = format!(
            "--cluster-asn must be a private AS number, 64512-65535 or 4200000000-4294967294, or 0; it is {refused}."
        );
        check_mistakes(&[&format!("--cluster-asn={refused}")], &[&sentence]);
    }
    let peer = "--peer-router-ips=203.0.113.1";
    for accepted in [1, 23455, 23457, 63999, 64512, 65534, 131_072, 4_294_967_294_u64] {
        check_mistakes(&[peer, &format!("--peer-router-asns={accepted}")], &[]);
    }
    for refused in [0, 23456, 64000, 64511, 65535, 131_071, 4_294_967_295_u64] {
        let sentence = format!(
            "--peer-router-asns must be in 1-23455, 23457-63999, 64512-65534 or 131072-4294967294; {refused} is not."
        );
        check_mistakes(&[peer, &format!("--peer-router-asns={refused}")], &[&sentence]);
    }
}

#[test]
fn a_router_by_address_has_one_that_means_something_without_a_link() {
    for (address, sentence) in [
        (
            "fe80::1",
            "--peer-router-ips must not have fe80::1, which means nothing without a link; name that by --peer-router-interfaces.",
        ),
        ("0.0.0.0", "--peer-router-ips must be addresses of routers; 0.0.0.0 is none."),
        ("ff02::1", "--peer-router-ips must be addresses of routers; ff02::1 is none."),
    ] {
        check_mistakes(&[&format!("--peer-router-ips={address}"), "--peer-router-asns=64512"], &[sentence]);
    }
}

#[test]
fn the_lists_about_peers_have_the_same_length() {
    let peers = ["--peer-router-ips=203.0.113.1,203.0.113.2", "--peer-router-asns=64512,64513"];
    let with = |more: &str, sentences: &[&str]| check_mistakes(&[peers[0], peers[1], more], sentences);
    with("--peer-router-ports=179,1179", &[]);
    with("--peer-router-passwords=cGFzcw==,", &[]);
    with("--peer-router-passwords=,", &[]);
    with(
        "--peer-router-asns=64514",
        &["--peer-router-asns must have one AS number for each of the 2 addresses of --peer-router-ips; it has 3."],
    );
    with(
        "--peer-router-ports=179",
        &[
            "--peer-router-ports must be empty or have one value for each of the 2 addresses of --peer-router-ips; it has 1.",
        ],
    );
    with(
        "--peer-router-ports=0,65536",
        &[
            "--peer-router-ports must be a number from 1 to 65535; it is 0.",
            "--peer-router-ports must be a number from 1 to 65535; it is 65536.",
        ],
    );
    with(
        "--peer-router-passwords=cGFzcw==",
        &[
            "--peer-router-passwords must be empty or have one value for each of the 2 addresses of --peer-router-ips; it has 1.",
        ],
    );
}

#[test]
fn a_bad_password_is_named_without_being_told() {
    let words = |password: &str| format!("--peer-router-passwords={password}");
    let peer = ["--peer-router-ips=203.0.113.1", "--peer-router-asns=64512"];
    for accepted in ["cGFzcw==", "cGFzc3c=", "cGFzc3dv", "+/+/", "\"\""] {
        check_mistakes(&[peer[0], peer[1], &words(accepted)], &[]);
    }
    for refused in ["secret", "cGFzcw", "====", "cG=z", "cGFz cw==", "cGF-"] {
        let sentence =
            format!("--peer-router-passwords must be base64; number 1, of length {}, is not.", refused.len());
        check_mistakes(&[peer[0], peer[1], &words(refused)], &[&sentence]);
    }
}
