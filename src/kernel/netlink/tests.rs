use std::net::IpAddr;

use proptest::prelude::*;

use super::*;

/// One message of the kernel's, as bytes.
fn datagram(messages: &Messages) -> Vec<u8> {
    messages.bytes().to_vec()
}

#[test]
fn a_message_reads_back_as_it_was_built() {
    let address: IpAddr = "2001:db8::1".parse().expect("an address");
    let mut messages = Messages::new();
    messages.begin(24, flag::CREATE).header(&[7; 3]).u8(1, 5).u16_be(2, 0x1234).address(3, address);
    messages.nest(4).text(1, "rr").u32(2, 9).nest(3).mark(1).end().end().u64_be(5, 1);
    messages.begin(25, 0);
    let bytes = datagram(&messages);
    let read: Vec<Answer<'_>> = answers(&bytes).collect();
    let [first, second] = read.as_slice() else { panic!("two messages were built, {} read", read.len()) };
    assert_eq!((first.kind, first.flags, second.kind, second.payload.len()), (24, flag::CREATE | 1, 25, 0));
    assert_eq!(first.header::<3>(), Some(&[7; 3]));
    let attributes = first.attributes(3);
    assert_eq!(attributes.clone().count(), 5);
    assert_eq!(attributes.get(1).and_then(|a| a.u8()), Some(5));
    assert_eq!(attributes.get(2).and_then(|a| a.u16_be()), Some(0x1234));
    assert_eq!(attributes.get(3).and_then(|a| a.address()), Some(address));
    assert_eq!(attributes.get(5).and_then(|a| a.u64_be()), Some(1));
    let inside = attributes.get(4).expect("the nest is found without its flag").attributes();
    assert_eq!(inside.get(1).and_then(|a| a.text()), Some("rr"));
    assert_eq!(inside.get(2).and_then(|a| a.u32()), Some(9));
    assert_eq!(inside.get(3).map(|a| a.attributes().count()), Some(1));
}

#[test]
fn batches_are_cut_between_messages_and_a_long_message_goes_alone() {
    let mut messages = Messages::new();
    for size in [10, 10, 10, 500, 10] {
        messages.begin(1, 0).attribute(1, &vec![0; size]);
    }
    // 16 + 4 + 12 bytes each.
    assert_eq!(messages.portion(0, 100), 3);
    assert_eq!(messages.portion(0, 64), 2);
    assert_eq!(messages.portion(3, 100), 4);
    assert_eq!(messages.portion(4, 100), 5);
    assert_eq!(messages.range(3, 4).len(), 16 + 4 + 500);
}

#[test]
fn an_error_speaks_of_its_errno_and_its_text() {
    let text = Messages::new().begin(0, 0).text(1, "no such device").clone();
    let attributes = datagram(&text).split_off(16);
    // An error -19 that carries only the request's header (CAPPED) and attributes.
    let mut payload = (-19_i32).to_ne_bytes().to_vec();
    payload.extend_from_slice(&[99, 0, 0, 0, 24, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
    payload.extend_from_slice(&attributes);
    let answer = Answer { kind: 2, flags: 0x300, sequence: 1, port: 0, payload: &payload };
    let refusal = answer.refusal().expect("an error message");
    assert_eq!((refusal.errno, refusal.text.as_deref()), (19, Some("no such device")));
    let error = crate::kernel::Error::new("add route", "10.0.0.0/8", refusal.into());
    assert!(error.is_absent());
    assert!(error.to_string().ends_with(": no such device"), "{error}");
}

#[test]
fn a_step_fails_once_when_two_of_its_messages_are_refused() {
    let refusal = |message| Refusal { message, errno: 17, text: None, request: Vec::new() };
    let failures = failed_steps(Ok(vec![refusal(1), refusal(2), refusal(4)]), &[0, 3, 3, 4, 5], |step, cause| {
        crate::kernel::Error::new("test", step.to_string(), cause)
    });
    assert_eq!(failures.iter().map(|failure| failure.step).collect::<Vec<_>>(), [3, 5]);
    let all = failed_steps(Err(Fault::Lost), &[0, 3, 3], |_, cause| crate::kernel::Error::new("test", "", cause));
    assert_eq!(all.iter().map(|failure| failure.step).collect::<Vec<_>>(), [0, 3]);
}

/// Reads everything that can be read of some bytes.
fn read_all(bytes: &[u8], depth: usize) {
    for attribute in Attributes::new(bytes) {
        let _ = (attribute.u8(), attribute.u16(), attribute.u16_be(), attribute.u32(), attribute.u32_be());
        let _ = (attribute.u64(), attribute.u64_be(), attribute.text(), attribute.address());
        if depth > 0 {
            read_all(attribute.value, depth - 1);
        }
    }
}

proptest! {
    #[test]
    fn no_bytes_make_the_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        read_all(&bytes, 3);
        for answer in answers(&bytes) {
            let _ = answer.refusal();
            let _ = answer.header::<12>();
            read_all(answer.payload, 3);
            for header in [0, 1, 4, 12, 1000] {
                let _ = answer.attributes(header).count();
            }
        }
    }

    #[test]
    fn no_small_lengths_make_the_reader_loop(lengths in proptest::collection::vec(0_u16..12, 0..64)) {
        let bytes: Vec<u8> = lengths.iter().flat_map(|length| length.to_ne_bytes()).collect();
        prop_assert!(Attributes::new(&bytes).count() <= bytes.len());
        prop_assert!(answers(&bytes).count() <= bytes.len());
    }

    #[test]
    fn whatever_is_built_reads_back(values in proptest::collection::vec((1_u16..100, proptest::collection::vec(any::<u8>(), 0..40)), 0..20)) {
        let mut messages = Messages::new();
        messages.begin(1, 0);
        for (kind, value) in &values {
            messages.attribute(*kind, value);
        }
        let bytes = datagram(&messages);
        let answer = answers(&bytes).next().expect("one message");
        let read: Vec<(u16, Vec<u8>)> = answer.attributes(0).map(|a| (a.kind, a.value.to_vec())).collect();
        prop_assert_eq!(read, values);
    }
}
