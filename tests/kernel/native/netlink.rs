//! The wire itself, by means of rtnetlink's plainest messages.

use sluice::kernel::netlink::{Bus, Fault, GenericSocket, Listener, Messages, Socket, flag, in_namespace};

use crate::namespace::{self, in_new, run};

const NEW_LINK: u16 = 16;
const GET_LINK: u16 = 18;
const NEW_ROUTE: u16 = 24;
const GET_ROUTE: u16 = 26;

/// `ip route add blackhole 10.96.(n / 256).(n % 256)/32`
fn blackhole(messages: &mut Messages, n: u16) {
    let [high, low] = n.to_be_bytes();
    // Family, destination length, source length, TOS, table, protocol, scope, type (6: blackhole), flags.
    let header = [2, 32, 0, 0, 254, 4, 0, 6, 0, 0, 0, 0];
    messages.begin(NEW_ROUTE, flag::CREATE | flag::EXCLUSIVE).header(&header).attribute(1, &[10, 96, high, low]);
}

fn routes(socket: &mut Socket) -> usize {
    let mut message = Messages::new();
    message.begin(GET_ROUTE, 0).header(&[2, 0, 0, 0, 254, 0, 0, 0, 0, 0, 0, 0]);
    socket.dump(&mut message, |answer| (answer.kind == NEW_ROUTE).then_some(())).expect("routes are listed").len()
}

#[test]
fn a_refused_message_is_named_and_the_others_are_done() {
    in_new(|| {
        let mut socket = Socket::open(Bus::Route).expect("a socket");
        let mut messages = Messages::new();
        for n in [1, 2, 2, 3, 3, 4] {
            blackhole(&mut messages, n);
        }
        let refusals = socket.batch(&mut messages).expect("the batch is answered");
        assert_eq!(refusals.iter().map(|r| (r.message, r.errno)).collect::<Vec<_>>(), [(2, 17), (4, 17)]);
        assert_eq!(routes(&mut socket), 4);
        assert_eq!(run("ip route").lines().count(), 4);
    });
}

#[test]
fn ten_thousand_refusals_are_all_heard() {
    in_new(|| {
        let mut socket = Socket::open(Bus::Route).expect("a socket");
        let mut messages = Messages::new();
        for n in 0..10_000 {
            blackhole(&mut messages, n);
        }
        assert_eq!(socket.batch(&mut messages).expect("the batch is answered"), []);
        assert_eq!(routes(&mut socket), 10_000);
        assert_eq!(routes(&mut Socket::open(Bus::Route).expect("a socket").with_short_dumps()), 10_000);
        let refusals = socket.batch(&mut messages).expect("the batch is answered");
        assert_eq!(refusals.iter().map(|r| r.message).collect::<Vec<_>>(), (0..10_000).collect::<Vec<_>>());
    });
}

#[test]
fn a_request_returns_its_answer_or_the_kernels_words() {
    in_new(|| {
        let mut socket = Socket::open(Bus::Route).expect("a socket");
        let name = |answer: &sluice::kernel::netlink::Answer<'_>| {
            assert_eq!(answer.kind, NEW_LINK);
            Some(answer.attributes(16).get(3)?.text()?.to_owned())
        };
        let mut message = Messages::new();
        message.begin(GET_LINK, 0).header(&[0; 16]).text(3, "lo");
        assert_eq!(socket.request(&mut message, name).expect("lo exists"), ["lo"]);
        message.clear();
        message.begin(GET_LINK, 0).header(&[0; 16]).text(3, "absent");
        let Err(Fault::Refused(refusal)) = socket.request(&mut message, name) else { panic!("no such device") };
        assert_eq!(refusal.errno, 19);
        // No address length fits: the kernel explains itself.
        message.clear();
        message.begin(NEW_ROUTE, flag::CREATE).header(&[2, 77, 0, 0, 254, 4, 0, 6, 0, 0, 0, 0]);
        let Err(Fault::Refused(refusal)) = socket.request(&mut message, name) else { panic!("no such length") };
        assert!(refusal.text.is_some(), "{refusal:?}");
    });
}

#[test]
fn a_dump_that_was_given_up_does_not_stand_in_the_way() {
    in_new(|| {
        let mut socket = Socket::open(Bus::Route).expect("a socket");
        let mut messages = Messages::new();
        for n in 0..3_000 {
            blackhole(&mut messages, n);
        }
        assert_eq!(socket.batch(&mut messages).expect("the batch is answered"), []);
        let mut message = Messages::new();
        message.begin(GET_ROUTE, 0).header(&[2, 0, 0, 0, 254, 0, 0, 0, 0, 0, 0, 0]);
        let panicking = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            socket.dump::<()>(&mut message, |_| panic!("given up at the first answer"))
        }));
        assert!(panicking.is_err());
        assert_eq!(routes(&mut socket), 3_000);
    });
}

#[test]
fn a_missing_generic_family_is_named() {
    in_new(|| {
        let mut socket = GenericSocket::open("SLUICE-NONE").expect("a socket");
        let mut message = Messages::new();
        message.begin_generic(1, 1, 0);
        let fault = socket.request(&mut message, |_| Some(())).expect_err("no such family");
        let error = sluice::kernel::Error::new("list services", "", fault.into());
        assert!(error.is_absent());
        assert!(error.to_string().contains("no netlink family SLUICE-NONE"), "{error}");
    });
}

#[test]
fn a_generic_family_is_found_by_its_name() {
    in_new(|| {
        let mut socket = GenericSocket::open("nlctrl").expect("a socket");
        let mut message = Messages::new();
        message.begin_generic(3, 2, 0);
        let names = socket
            .dump(&mut message, |answer| Some(answer.attributes(4).get(2)?.text()?.to_owned()))
            .expect("families are listed");
        assert!(names.iter().any(|name| name == "nlctrl"), "{names:?}");
    });
}

#[test]
fn a_socket_stays_in_the_namespace_in_which_it_was_opened() {
    in_new(|| {
        let inner = namespace::path();
        let mut socket = std::thread::scope(|scope| {
            let outside = scope.spawn(|| in_namespace(&inner, || Socket::open(Bus::Route)));
            outside.join().expect("no panic").expect("the namespace exists").expect("a socket")
        });
        let mut messages = Messages::new();
        blackhole(&mut messages, 1);
        assert_eq!(socket.batch(&mut messages).expect("the batch is answered"), []);
        assert!(run("ip route").contains("blackhole 10.96.0.1"));
    });
}

#[test]
fn a_listener_hears_changes_and_says_when_it_missed_some() {
    in_new(|| {
        const IPV4_ROUTES: u32 = 7;
        let mut listener = Listener::open(Bus::Route, &[IPV4_ROUTES]).expect("a listener");
        let mut socket = Socket::open(Bus::Route).expect("a socket");
        let mut messages = Messages::new();
        blackhole(&mut messages, 1);
        socket.batch(&mut messages).expect("the batch is answered");
        let mut heard = Vec::new();
        listener.receive(|answer| heard.push(answer.kind)).expect("nothing was missed");
        assert_eq!(heard, [NEW_ROUTE]);
        messages.clear();
        for n in 2..60_000 {
            blackhole(&mut messages, n);
        }
        socket.batch(&mut messages).expect("the batch is answered");
        assert_eq!(listener.receive(|_| {}), Err(Fault::Lost));
        listener.receive(|_| {}).expect("what is left can be read");
    });
}
