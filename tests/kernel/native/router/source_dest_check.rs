//! `--disable-source-dest-check` by a whole agent, with stand-ins of both services of AWS on the nodes' network: it asks once where its Node is an
//! instance, and nobody where it is not, or where the flag is off.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use super::{Cluster, node};
use crate::namespace::{in_new, run};

const INSTANCE: &str = "i-0123456789abcdef0";
const OUTSIDE: &str = "192.0.2.200";

/// Both services at one address: answers everything well, and keeps the first line of each request, with the body.
fn stand_in() -> (String, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind((OUTSIDE, 0)).expect("a free port");
    let url = format!("http://{}", listener.local_addr().expect("it is bound"));
    let came = Arc::new(Mutex::new(Vec::new()));
    let all = came.clone();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let mut reader = BufReader::new(&stream);
            let (mut line, mut length) = (String::new(), 0);
            let _ = reader.read_line(&mut line);
            loop {
                let mut header = String::new();
                let _ = reader.read_line(&mut header);
                let Some((name, value)) = header.trim_end().split_once(':') else { break };
                if name.eq_ignore_ascii_case("content-length") {
                    length = value.trim().parse().unwrap_or(0);
                }
            }
            let mut body = vec![0; length];
            let _ = reader.read_exact(&mut body);
            let path = line.split(' ').nth(1).unwrap_or_default().to_owned();
            all.lock().expect("nobody panicked").push(format!(
                "{} {}",
                line.trim_end(),
                String::from_utf8_lossy(&body)
            ));
            let answer = match path.as_str() {
                "/latest/api/token" => "token",
                "/latest/meta-data/instance-id" => INSTANCE,
                "/latest/meta-data/placement/region" => "eu-central-1",
                "/latest/meta-data/services/domain" => "amazonaws.com",
                "/latest/meta-data/iam/security-credentials/" => "node-role",
                "/latest/meta-data/iam/security-credentials/node-role" => {
                    r#"{"Code":"Success","AccessKeyId":"ASIAEXAMPLE","SecretAccessKey":"hidden-key","Token":"hidden-token"}"#
                }
                _ => "<ModifyInstanceAttributeResponse><return>true</return></ModifyInstanceAttributeResponse>",
            };
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", answer.len());
            // Who asked may have gone.
            let _ = (&stream).write_all((head + answer).as_bytes());
        }
    });
    (url, came)
}

#[test]
fn an_agent_switches_the_check_off_for_its_own_instance_and_asks_nobody_elsewhere_or_without_the_flag() {
    in_new(|| {
        let mut cluster = Cluster::new(1);
        run(&format!("ip address add {OUTSIDE}/24 dev wire"));
        let (url, came) = stand_in();
        cluster.environment = vec![
            ("AWS_EC2_METADATA_SERVICE_ENDPOINT".to_owned(), url.clone()),
            ("AWS_ENDPOINT_URL_EC2".to_owned(), url),
            ("NO_PROXY".to_owned(), "*".to_owned()),
        ];
        let requests = || came.lock().expect("nobody panicked").clone();
        let of_provider = |provider: &str| node(1).replace("spec: {", &format!("spec: {{providerID: '{provider}', "));
        let synced = "First sync of the router finished";
        for (number, (provider, flag)) in [
            ("gce://project/zone/node-1".to_owned(), "--disable-source-dest-check"),
            (format!("aws:///eu-central-1a/{INSTANCE}"), "--disable-source-dest-check=false"),
        ]
        .into_iter()
        .enumerate()
        {
            cluster.write(&[of_provider(&provider)]);
            cluster.flags.insert(1, vec![flag.to_owned()]);
            cluster.start(1);
            cluster.until_said(1, synced, number + 1);
            thread::sleep(Duration::from_millis(500));
            cluster.terminate(1);
            assert_eq!(requests(), Vec::<String>::new(), "{provider} {flag}");
        }
        cluster.flags.remove(&1);
        cluster.start(1);
        cluster.until_said(1, "Source/destination check of EC2 switched off for this instance", 1);
        thread::sleep(Duration::from_millis(500));
        let posts: Vec<String> = requests().into_iter().filter(|line| line.starts_with("POST")).collect();
        let body = format!(
            "Action=ModifyInstanceAttribute&InstanceId={INSTANCE}&SourceDestCheck.Value=false&Version=2016-11-15"
        );
        assert_eq!(posts, [format!("POST / HTTP/1.1 {body}")], "once for each start");
        assert!(!cluster.log(1).contains("hidden-"), "{}", cluster.log(1));
    });
}
