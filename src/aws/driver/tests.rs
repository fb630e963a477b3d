//! The task against stand-ins of both services on loopback, which judge each request by their own reading of what AWS has written down.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::sync::{Arc, Mutex};
use std::thread;

use ring::digest::{SHA256, digest};
use ring::hmac::{HMAC_SHA256, Key, sign};

use super::*;
use crate::model::{Host, Node};
use crate::observe::health::Health;

const INSTANCE: &str = "i-0123456789abcdef0";
const SECRET: &str = "hidden/secret+key";
const TOKEN: &str = "session-token-hidden==";

/// A request as it came.
#[derive(Clone, Debug)]
struct Came {
    line: String,
    /// Names in lower case.
    headers: BTreeMap<String, String>,
    body: String,
}

/// A service on loopback that answers by a function, and what it was asked.
struct StandIn {
    url: String,
    came: Arc<Mutex<Vec<Came>>>,
}

impl StandIn {
    /// `answer`: the status and the body for a request, by its number from 0 on.
    fn new(answer: impl Fn(usize, &Came) -> (u16, String) + Send + 'static) -> StandIn {
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has a free port");
        let url = format!("http://{}", listener.local_addr().expect("it is bound"));
        let came = Arc::new(Mutex::new(Vec::new()));
        let all = came.clone();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let Some(request) = read(&mut BufReader::new(&stream)) else { continue };
                let number = {
                    let mut all = all.lock().expect("nobody panicked");
                    all.push(request.clone());
                    all.len() - 1
                };
                let (status, body) = answer(number, &request);
                let length = body.len();
                let head = format!("HTTP/1.1 {status} X\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n");
                // Who asked may have gone.
                let _ = (&stream).write_all((head + &body).as_bytes());
            }
        });
        StandIn { url, came }
    }

    fn came(&self) -> Vec<Came> {
        self.came.lock().expect("nobody panicked").clone()
    }

    fn lines(&self) -> Vec<String> {
        self.came().into_iter().map(|came| came.line).collect()
    }
}

fn read(reader: &mut impl BufRead) -> Option<Came> {
    let mut line = String::new();
    reader.read_line(&mut line).ok().filter(|read| *read > 0)?;
    let mut headers = BTreeMap::new();
    loop {
        let mut header = String::new();
        reader.read_line(&mut header).ok()?;
        let Some((name, value)) = header.trim_end().split_once(':') else { break };
        headers.insert(name.to_lowercase(), value.trim().to_owned());
    }
    let length = headers.get("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    Some(Came { line: line.trim_end().to_owned(), headers, body: String::from_utf8_lossy(&body).into_owned() })
}

/// The metadata service of an instance with a role: refuses whoever does not show the newest token.
fn metadata_service(expires: bool) -> StandIn {
    StandIn::new(move |number, came| {
        let header = |name: &str| came.headers.get(name).map(String::as_str);
        let renewed = number > 2;
        let token = if expires && renewed { "token-2" } else { "token-1" };
        match came.line.as_str() {
            "PUT /latest/api/token HTTP/1.1" if header("x-aws-ec2-metadata-token-ttl-seconds") == Some("300") => {
                (200, token.to_owned())
            }
            // Between the first question and the second the token expires, once.
            _ if expires && number == 2 => (401, String::new()),
            _ if header("x-aws-ec2-metadata-token") != Some(token) => (401, String::new()),
            "GET /latest/meta-data/instance-id HTTP/1.1" => (200, INSTANCE.to_owned()),
            "GET /latest/meta-data/placement/region HTTP/1.1" => (200, "eu-central-1".to_owned()),
            "GET /latest/meta-data/services/domain HTTP/1.1" => (200, "amazonaws.com".to_owned()),
            "GET /latest/meta-data/iam/security-credentials/ HTTP/1.1" => (200, "node-role\n".to_owned()),
            "GET /latest/meta-data/iam/security-credentials/node-role HTTP/1.1" => {
                let answer = serde_json::json!({
                    "Code": "Success", "AccessKeyId": "ASIAEXAMPLE", "SecretAccessKey": SECRET, "Token": TOKEN,
                });
                (200, answer.to_string())
            }
            _ => (404, String::new()),
        }
    })
}

const DONE: &str = "<ModifyInstanceAttributeResponse><return>true</return></ModifyInstanceAttributeResponse>";

fn error(code: &str, message: &str) -> String {
    format!("<Response><Errors><Error><Code>{code}</Code><Message>{message}</Message></Error></Errors></Response>")
}

/// EC2: answers only a request with the right signature, with the `answers` in their order, the last one for ever.
fn ec2_service(answers: &'static [(u16, &'static str, &'static str)]) -> StandIn {
    StandIn::new(move |number, came| {
        if let Err(why) = verify(came) {
            return (403, error("SignatureDoesNotMatch", &why));
        }
        match answers.get(number).or(answers.last()) {
            None => (200, DONE.to_owned()),
            Some((200, ..)) => (200, DONE.to_owned()),
            Some((status, code, message)) => (*status, error(code, message)),
        }
    })
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Checks the signature from the request alone, as the service does, with its own copy of the secret.
fn verify(came: &Came) -> Result<(), String> {
    let header = |name: &str| came.headers.get(name).cloned().ok_or_else(|| format!("no {name}"));
    let authorization = header("authorization")?;
    let part = |name: &str| {
        let from = authorization.split_once(&format!("{name}=")).ok_or_else(|| format!("no {name}"))?.1;
        Ok::<String, String>(from.split(',').next().unwrap_or_default().trim().to_owned())
    };
    let (credential, names, signature) = (part("Credential")?, part("SignedHeaders")?, part("Signature")?);
    let time = header("x-amz-date")?;
    let scope: Vec<&str> = credential.split('/').collect();
    let &[key, day, region, service, last] = scope.as_slice() else { return Err("no scope".to_owned()) };
    if (key, region, service, last) != ("ASIAEXAMPLE", "eu-central-1", "ec2", "aws4_request") || !time.starts_with(day)
    {
        return Err(format!("scope {credential}"));
    }
    if header("x-amz-security-token")? != TOKEN
        || !["host", "x-amz-security-token"].iter().all(|name| names.contains(name))
    {
        return Err("what has to be signed is not".to_owned());
    }
    let mut canonical = "POST\n/\n\n".to_owned();
    for name in names.split(';') {
        canonical += &format!("{name}:{}\n", header(name)?);
    }
    canonical += &format!("\n{names}\n{}", hex(digest(&SHA256, came.body.as_bytes()).as_ref()));
    let hashed = hex(digest(&SHA256, canonical.as_bytes()).as_ref());
    let to_sign = format!("AWS4-HMAC-SHA256\n{time}\n{day}/{region}/{service}/{last}\n{hashed}");
    let mut secret = format!("AWS4{SECRET}").into_bytes();
    for step in [day, region, service, last, &to_sign] {
        secret = sign(&Key::new(HMAC_SHA256, &secret), step.as_bytes()).as_ref().to_vec();
    }
    if hex(&secret) == signature { Ok(()) } else { Err("another signature".to_owned()) }
}

/// The own Node, of this provider ID's instance, as an API server tells of it.
fn world(instance: Option<&str>) -> World {
    let mut world = World::empty();
    world.authority.router = Authority::Complete;
    world.host = Arc::new(Host { node_name: "node-1".into(), ..Host::default() });
    let node = Node { ec2_instance: instance.map(Into::into), ..Node::default() };
    world.cluster.nodes.insert("node-1".into(), node);
    world
}

/// Runs the task until something is so of its notes, and a moment longer.
fn notes_of(endpoints: Endpoints, world: World, is_so: impl Fn(&[String]) -> bool) -> Vec<String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let health = Health::default();
        let (_world, watched) = watch::channel(world);
        let inputs = Inputs { world: watched, endpoints, note: health.note("AWS"), events: None };
        let running = tokio::spawn(run(inputs));
        let begun = Instant::now();
        let notes = || health.notes().iter().map(ToString::to_string).collect::<Vec<String>>();
        while !is_so(&notes()) {
            assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", notes());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
        running.abort();
        notes()
    })
}

fn endpoints(metadata: &StandIn, ec2: &StandIn) -> Endpoints {
    Endpoints { metadata: vec![metadata.url.clone()], ec2: Some(ec2.url.clone()), ..Endpoints::default() }
}

#[test]
fn the_check_is_switched_off_once_with_a_signature_that_the_service_accepts() {
    for expires in [false, true] {
        let (metadata, ec2) = (metadata_service(expires), ec2_service(&[]));
        let asked = || ec2.came().len();
        let notes = notes_of(endpoints(&metadata, &ec2), world(Some(INSTANCE)), |_| asked() > 0);
        assert_eq!((notes, asked()), (Vec::new(), 1));
        let came = ec2.came().remove(0);
        let body = format!(
            "Action=ModifyInstanceAttribute&InstanceId={INSTANCE}&SourceDestCheck.Value=false&Version=2016-11-15"
        );
        assert_eq!((came.line.as_str(), came.body), ("POST / HTTP/1.1", body));
        assert_eq!(verify(&ec2.came()[0]), Ok(()));
        let tokens = metadata.lines().iter().filter(|line| line.starts_with("PUT")).count();
        assert_eq!(tokens, if expires { 2 } else { 1 }, "{:?}", metadata.lines());
    }
}

#[test]
fn nothing_is_asked_where_the_node_is_no_instance_or_is_only_remembered() {
    let (metadata, ec2) = (metadata_service(false), ec2_service(&[]));
    let mut remembered = world(Some(INSTANCE));
    remembered.authority.router = Authority::Remembered;
    for world in [world(None), remembered, World::empty()] {
        assert_eq!(notes_of(endpoints(&metadata, &ec2), world, |_| true), Vec::<String>::new());
    }
    assert_eq!((metadata.came().len(), ec2.came().len()), (0, 0));
}

#[test]
fn throttling_is_told_and_tried_again_until_it_is_done() {
    static ANSWERS: [(u16, &str, &str); 2] = [(503, "RequestLimitExceeded", "Request limit exceeded."), (200, "", "")];
    let (metadata, ec2) = (metadata_service(false), ec2_service(&ANSWERS));
    let told = Mutex::new(Vec::new());
    let notes = notes_of(endpoints(&metadata, &ec2), world(Some(INSTANCE)), |notes| {
        told.lock().expect("nobody panicked").extend(notes.iter().cloned());
        ec2.came().len() == 2
    });
    assert_eq!(notes, Vec::<String>::new(), "it is done");
    let told = told.into_inner().expect("nobody panicked");
    let expected = "EC2 answers 503 RequestLimitExceeded: Request limit exceeded.";
    assert!(told.first().is_some_and(|note| note.contains(expected)), "{told:?}");
}

#[test]
fn each_failure_is_a_note_that_says_what_to_do_and_holds_no_secret() {
    static DENIED: [(u16, &str, &str); 1] =
        [(403, "UnauthorizedOperation", "You are not authorized. Encoded authorization failure message: AbC")];
    let refusing = |status: u16| StandIn::new(move |_, _| (status, String::new()));
    let without_role = StandIn::new(|_, came| match came.line.split(' ').nth(1) {
        Some("/latest/api/token") => (200, "token".to_owned()),
        Some("/latest/meta-data/iam/security-credentials/") => (404, String::new()),
        Some("/latest/meta-data/instance-id") => (200, INSTANCE.to_owned()),
        _ => (200, "word".to_owned()),
    });
    let silent = {
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has a free port");
        format!("http://{}", listener.local_addr().expect("it is bound"))
    };
    let (good, denying, done) = (metadata_service(false), ec2_service(&DENIED), ec2_service(&[]));
    let off = Endpoints { metadata_disabled: true, ..endpoints(&good, &done) };
    let nobody = Endpoints { metadata: vec![silent.clone()], ..endpoints(&good, &done) };
    let far_nobody = Endpoints { ec2: Some(silent), ..endpoints(&good, &done) };
    let odd = Endpoints { ec2: Some("ec2 of my region".to_owned()), ..endpoints(&good, &done) };
    let other = "i-0fedcba9876543210";
    for (endpoints, instance, expected) in [
        (
            endpoints(&good, &denying),
            INSTANCE,
            "the role node-role may not ec2:ModifyInstanceAttribute of i-0123456789abcdef0 (UnauthorizedOperation): allow it",
        ),
        (endpoints(&without_role, &done), INSTANCE, "this instance has no role: give it an instance profile"),
        (
            endpoints(&good, &done),
            other,
            "tells of i-0123456789abcdef0, and spec.providerID of this Node of i-0fedcba9876543210: nothing is changed",
        ),
        (
            nobody,
            INSTANCE,
            "does not answer: Connection refused (os error 111); to an agent that is not on the host network",
        ),
        (endpoints(&refusing(403), &done), INSTANCE, "refuses to answer (403): it is switched off for this instance"),
        (
            endpoints(&refusing(500), &done),
            INSTANCE,
            "the instance metadata service answers 500 to the question for a token",
        ),
        (endpoints(&refusing(200), &done), INSTANCE, "the instance metadata service gives something else than a token"),
        (off, INSTANCE, "AWS_EC2_METADATA_DISABLED is true"),
        (far_nobody, INSTANCE, "does not answer: "),
        (odd, INSTANCE, "AWS_ENDPOINT_URL_EC2 is no URL of a service: \"ec2 of my region\""),
    ] {
        let notes = notes_of(endpoints, world(Some(instance)), |notes| !notes.is_empty());
        let note = notes.join("\n");
        assert!(note.contains("could not be switched off: ") && note.contains(expected), "{note}\nnot {expected}");
        for hidden in [SECRET, TOKEN, "AbC", "ASIAEXAMPLE"] {
            assert!(!note.contains(hidden), "{note}");
        }
    }
    assert_eq!(done.came().len(), 0, "nothing was changed for another instance, and without a role");
}

#[test]
fn the_metadata_service_is_asked_at_its_second_place_where_the_first_one_cannot_be_reached() {
    let silent = {
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has a free port");
        format!("http://{}", listener.local_addr().expect("it is bound"))
    };
    let (metadata, ec2) = (metadata_service(false), ec2_service(&[]));
    let both = Endpoints { metadata: vec![silent.clone(), metadata.url.clone()], ..endpoints(&metadata, &ec2) };
    let notes = notes_of(both, world(Some(INSTANCE)), |_| !ec2.came().is_empty());
    assert_eq!((notes, ec2.came().len()), (Vec::new(), 1));
    // One that answers and refuses is the service.
    let refusing = StandIn::new(|_, _| (403, String::new()));
    let refused =
        Endpoints { metadata: vec![refusing.url.clone(), metadata.url.clone()], ..endpoints(&metadata, &ec2) };
    let notes = notes_of(refused, world(Some(INSTANCE)), |notes| !notes.is_empty());
    assert!(notes[0].contains("refuses to answer (403)"), "{notes:?}");
}

#[test]
fn the_environment_names_the_places_of_the_services_as_it_does_for_the_tools_of_aws() {
    let (v4, v6) = ("http://169.254.169.254", "http://[fd00:ec2::254]");
    let read = |variables: &[(&str, &str)]| {
        let text =
            |name: &str| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned());
        Endpoints::of(text)
    };
    let mode = "AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE";
    assert_eq!(read(&[]).metadata, [v4, v6]);
    assert_eq!(read(&[(mode, "IPv6")]).metadata, [v6]);
    assert_eq!(read(&[(mode, "IPv4")]).metadata, [v4]);
    assert_eq!(read(&[(mode, "IPv6"), (METADATA_VARIABLE, "http://[::1]:1338")]).metadata, ["http://[::1]:1338"]);
    let named = read(&[("AWS_ENDPOINT_URL", "http://a"), (EC2_VARIABLE, "http://b")]);
    let place = Place { region: "eu-central-1".to_owned(), domain: "amazonaws.com".to_owned() };
    let (usual, both) = ("https://ec2.eu-central-1.amazonaws.com", "https://ec2.eu-central-1.api.aws");
    assert_eq!(named.ec2(&place), ["http://b"]);
    assert_eq!(read(&[]).ec2(&place), [usual, both], "whichever family the node has");
    assert_eq!(read(&[(DUAL_STACK_VARIABLE, "true")]).ec2(&place), [both]);
    assert_eq!(read(&[(DUAL_STACK_VARIABLE, "false")]).ec2(&place), [usual]);
    assert_eq!(read(&[(DUAL_STACK_VARIABLE, "yes")]).ec2(&place), [usual, both]);
    let elsewhere = Place { domain: "c2s.ic.gov".to_owned(), ..place };
    assert_eq!(read(&[(DUAL_STACK_VARIABLE, "true")]).ec2(&elsewhere), ["https://ec2.eu-central-1.c2s.ic.gov"]);
}

#[test]
fn the_host_that_is_signed_has_no_port_where_it_is_the_usual_one() {
    for (url, host) in [
        ("https://vpce-1.ec2.eu-central-1.vpce.amazonaws.com:443", "vpce-1.ec2.eu-central-1.vpce.amazonaws.com"),
        ("http://localhost:80", "localhost"),
        ("https://[2001:db8::1]", "[2001:db8::1]"),
        ("https://[2001:db8::1]:8443/", "[2001:db8::1]:8443"),
        ("http://localhost:443", "localhost:443"),
    ] {
        assert_eq!(Service::parse(EC2_VARIABLE, url).expect(url).host, host);
    }
    assert!(Service::parse_metadata("https://169.254.169.254").is_err(), "nobody speaks TLS there");
}

#[test]
fn a_url_of_a_service_has_a_scheme_and_a_host_and_nothing_else() {
    for (text, address) in [
        ("http://169.254.169.254", ("169.254.169.254", 80)),
        ("http://[fd00:ec2::254]/", ("fd00:ec2::254", 80)),
        ("https://ec2.eu-central-1.amazonaws.com", ("ec2.eu-central-1.amazonaws.com", 443)),
        ("http://localhost:4566", ("localhost", 4566)),
    ] {
        let service = Service::parse(EC2_VARIABLE, text).expect(text);
        assert_eq!(service.address(), (address.0.to_owned(), address.1));
    }
    for odd in
        ["", "169.254.169.254", "ftp://x", "http://", "http://user:password@host", "http://host/path", "http://a b"]
    {
        let failure = Service::parse(EC2_VARIABLE, odd).expect_err(odd);
        assert!(matches!(failure, Failure::BadEndpoint { .. }), "{odd}");
        assert!(!failure.to_string().contains("password"), "{failure}");
    }
}
