//! OPEN: its fixed part, its optional parameters in both forms, its capabilities.

use super::*;

fn body(text: &str) -> Result<Open, Reason> {
    match read(&message(OPEN, &bytes(text)), None) {
        Ok(Message::Open(open)) => Ok(open),
        Ok(other) => panic!("{other:?} is no OPEN"),
        Err(notification) => Err(notification.reason),
    }
}

/// Version 4, AS 65001, hold time 90, 192.0.2.1.
const FIXED: &str = "04 fde9 005a c0000201";

fn with(parameters: &str) -> Result<Open, Reason> {
    body(&format!("{FIXED}{parameters}"))
}

fn everything() -> Open {
    Open {
        asn: 70000,
        hold_time: 90,
        identifier: "192.0.2.1".parse().unwrap(),
        capabilities: Capabilities {
            families: PerFamily { v4: true, v6: true },
            multiprotocol: true,
            refresh: true,
            enhanced_refresh: true,
            asn: Some(70000),
            restart: Some(GracefulRestart {
                restarting: true,
                notifications: true,
                seconds: 120,
                families: PerFamily { v4: Some(true), v6: Some(false) },
            }),
            long_lived: Some(LongLivedRestart {
                families: PerFamily {
                    v4: Some(LongLivedFamily { forwarding: true, seconds: 3600 }),
                    v6: Some(LongLivedFamily { forwarding: false, seconds: LongLivedFamily::LONGEST }),
                },
            }),
            extended_next_hop: true,
            extended_message: true,
            unknown: vec![],
        },
    }
}

#[test]
fn one_with_everything_is_written_as_the_rfcs_say() {
    let expected = "
        04 5ba0 005a c0000201
        46 02 44
        01 04 00010001   01 04 00020001
        02 00   06 00   46 00
        41 04 00011170
        40 0a c078 00010180 00020100
        47 0e 00010180000e10 00020100ffffff
        05 06 000100010002";
    let mut expected = bytes(expected);
    expected[9] = (expected.len() - 10) as u8;
    expected[11] = (expected.len() - 12) as u8;
    assert_eq!(super::super::open(&everything()), message(OPEN, &expected));
    assert_eq!(read(&message(OPEN, &expected), None), Ok(Message::Open(everything())));
}

#[test]
fn one_without_capabilities_speaks_ipv4() {
    let open = with("00").unwrap();
    assert_eq!((open.asn, open.hold_time), (65001, 90));
    assert_eq!(open.capabilities.spoken(), PerFamily { v4: true, v6: false });
    assert_eq!(super::super::open(&open), message(OPEN, &bytes(&format!("{FIXED}00"))));
}

#[test]
fn one_that_names_only_what_we_do_not_speak_speaks_nothing_with_us() {
    let open = with("08 02 06 01 04 0001 00 80").unwrap();
    assert_eq!(open.capabilities.spoken(), PerFamily { v4: false, v6: false });
}

#[test]
fn capabilities_may_be_spread_over_parameters_and_unknown_ones_are_kept() {
    let open = with("0e 02 02 02 00 02 08 01 04 00020001 49 00").unwrap();
    assert!(open.capabilities.refresh && open.capabilities.families.v6);
    assert_eq!(open.capabilities.unknown, [(0x49, Box::from([]))]);
}

#[test]
fn the_extended_form_is_read_and_is_written_only_when_it_is_needed() {
    let extended = with("ff ff 0005 02 0002 02 00").unwrap();
    assert!(extended.capabilities.refresh);
    // RFC 9072 2: the first length only has to be nonzero.
    assert!(with("05 ff 0005 02 0002 02 00").unwrap().capabilities.refresh);
    let mut long = everything();
    long.capabilities.unknown = vec![(73, Box::from([7; 255]))];
    let written = super::super::open(&long);
    assert_eq!(written[28..30], [255, 255]);
    assert_eq!(read(&written, None), Ok(Message::Open(long)));
}

#[test]
fn what_is_wrong_is_said_with_its_code() {
    assert_eq!(body("03 fde9 005a c0000201 00"), Err(Reason::UNSUPPORTED_VERSION));
    assert_eq!(body("04 0000 005a c0000201 00"), Err(Reason::BAD_PEER_AS), "RFC 7607");
    assert_eq!(with("08 02 06 41 04 00000000"), Err(Reason::BAD_PEER_AS), "RFC 7607");
    assert_eq!(body("04 fde9 005a 00000000 00"), Err(Reason::BAD_IDENTIFIER));
    assert_eq!(body("04 fde9 0001 c0000201 00"), Err(Reason::UNACCEPTABLE_HOLD_TIME));
    assert_eq!(body("04 fde9 0002 c0000201 00"), Err(Reason::UNACCEPTABLE_HOLD_TIME));
    assert!(body("04 fde9 0000 c0000201 00").is_ok(), "a session without keepalives");
    assert_eq!(with("03 01 01 00"), Err(Reason::UNSUPPORTED_PARAMETER), "authentication of old");
    for (parameters, why) in [
        ("01", "shorter than it says"),
        ("00 02", "longer than it says"),
        ("02 02 01", "an end within a parameter"),
        ("03 02 01 01", "an end within a capability"),
        ("07 02 05 01 03 000100", "multiprotocol of three bytes"),
        ("09 02 07 41 05 0000000100", "a number of five bytes"),
        ("05 02 03 40 01 00", "graceful restart of one byte"),
        ("07 02 05 40 03 000000", "graceful restart with a part of a family"),
        ("0a 02 08 47 06 000101800000", "long-lived graceful restart with a part of a time"),
        ("06 02 04 05 02 0001", "a part of an extended next hop"),
        ("05 02 03 02 01 00", "a route refresh with a value"),
        ("ff ff 00", "an end within the extended length"),
        ("ff ff 0002 02 00", "an end within an extended parameter"),
    ] {
        assert_eq!(with(parameters), Err(Reason::OPEN_UNSPECIFIC), "{why}");
    }
}

#[test]
fn the_version_that_we_speak_goes_with_the_refusal() {
    let error = read(&message(OPEN, &bytes("05 fde9 005a c0000201 00")), None).unwrap_err();
    assert_eq!(error.data, [0, 4]);
}
