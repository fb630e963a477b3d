//! `--disable-source-dest-check` by the whole program: EC2 is asked over TLS, and only a server whose certificate an authority of the host has signed gets a request.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::namespace::{in_new, own_run, run, shell};
use crate::running::Running;

/// Longer than a few tries take on a machine that others keep busy.
const PATIENCE: Duration = Duration::from_secs(300);
const INSTANCE: &str = "i-0123456789abcdef0";
const SECRET: &str = "hidden/secret+key";

/// An authority, and the certificate of a server `localhost` that it has signed.
fn certify(directory: &Path, authority: &str) {
    let place = directory.display();
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
    shell(&format!(
        "cd {place} && exec 2>&1
         openssl req -x509 {key} -days 2 -subj '/CN={authority}' -keyout {authority}.key -out {authority}.pem
         openssl req {key} -subj /CN=localhost -keyout server-{authority}.key -out server.csr
         echo 'subjectAltName=DNS:localhost' > extensions
         openssl x509 -req -in server.csr -CA {authority}.pem -CAkey {authority}.key -CAcreateserial -days 2 -extfile extensions -out server-{authority}.pem"
    ));
}

/// The metadata service of an instance with a role; its URL.
fn metadata_service() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has a free port");
    let url = format!("http://{}", listener.local_addr().expect("it is bound"));
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let mut lines = BufReader::new(&stream).lines().map_while(Result::ok).take_while(|line| !line.is_empty());
            let Some(first) = lines.next() else { continue };
            lines.for_each(drop);
            let path = first.split(' ').nth(1).unwrap_or_default().to_owned();
            let body = match path.trim_start_matches("/latest/") {
                "api/token" => "token".to_owned(),
                "meta-data/instance-id" => INSTANCE.to_owned(),
                "meta-data/placement/region" => "eu-central-1".to_owned(),
                "meta-data/services/domain" => "amazonaws.com".to_owned(),
                "meta-data/iam/security-credentials/" => "node-role".to_owned(),
                _ => serde_json::json!({
                    "Code": "Success", "AccessKeyId": "ASIAEXAMPLE", "SecretAccessKey": SECRET, "Token": "session",
                })
                .to_string(),
            };
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
            let _ = (&stream).write_all((head + &body).as_bytes());
        }
    });
    url
}

/// What EC2 was asked, and how many handshakes failed.
#[derive(Default)]
struct Heard {
    requests: Vec<String>,
    refused: usize,
}

/// EC2 with this certificate; its URL and what it hears.
fn ec2_service(directory: &Path, authority: &str) -> (String, Arc<Mutex<Heard>>) {
    let read = |name: String| fs::read(directory.join(name)).expect("it was made");
    let certificate = CertificateDer::from_pem_slice(&read(format!("server-{authority}.pem"))).expect("it is in PEM");
    let key = PrivateKeyDer::from_pem_slice(&read(format!("server-{authority}.key"))).expect("it is in PEM");
    let config = ServerConfig::builder().with_no_client_auth().with_single_cert(vec![certificate], key);
    let acceptor = TlsAcceptor::from(Arc::new(config.expect("the key is that of the certificate")));
    let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has a free port");
    let url = format!("https://localhost:{}", listener.local_addr().expect("it is bound").port());
    let heard = Arc::new(Mutex::new(Heard::default()));
    let told = heard.clone();
    thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async move {
            listener.set_nonblocking(true).expect("a socket");
            let listener = tokio::net::TcpListener::from_std(listener).expect("a socket");
            while let Ok((stream, _)) = listener.accept().await {
                let Ok(mut stream) = acceptor.accept(stream).await else {
                    told.lock().expect("nobody panicked").refused += 1;
                    continue;
                };
                let mut bytes = Vec::new();
                // Head and body may come apart.
                while !String::from_utf8_lossy(&bytes).contains(INSTANCE)
                    && stream.read_buf(&mut bytes).await.is_ok_and(|read| read > 0)
                {}
                told.lock().expect("nobody panicked").requests.push(String::from_utf8_lossy(&bytes).into());
                let body = "<ModifyInstanceAttributeResponse><return>true</return></ModifyInstanceAttributeResponse>";
                let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
                let _ = stream.write_all((head + body).as_bytes()).await;
                let _ = stream.shutdown().await;
            }
        });
    });
    (url, heard)
}

/// The whole agent on such an instance, whose host trusts one authority. What it logs until a line has these words: what takes too long is tried again.
fn log_of_an_agent(directory: &Path, trusted: &str, endpoints: [&str; 2], words: [&str; 2]) -> String {
    own_run();
    for command in [
        "link add eth0 type veth peer name wire",
        "link set wire up",
        "link set eth0 up",
        "address add 192.0.2.1/24 dev eth0",
    ] {
        run(&format!("ip {command}"));
    }
    let path = |name: &str| directory.join(name);
    let node = serde_json::json!({
        "apiVersion": "v1", "kind": "Node", "metadata": {"name": "node1"},
        "spec": {"podCIDRs": ["10.244.1.0/24"], "providerID": format!("aws:///eu-central-1a/{INSTANCE}")},
        "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.1"}]},
    });
    fs::create_dir_all(path("manifests")).expect("a directory");
    fs::write(path("manifests/node.json"), node.to_string()).expect("a file");
    let [metadata, ec2] = endpoints;
    let agent = Command::new(env!("CARGO_BIN_EXE_sluice"))
        .args([
            "--run-service-proxy=false",
            "--run-firewall=false",
            "--netfilter=nftables",
            "--disable-source-dest-check",
        ])
        .args(["--enable-overlay=false", "--health-port=0", "--gobgp-admin-port=0", "--hostname-override=node1"])
        .arg(format!("--manifests={}", path("manifests").display()))
        .arg(format!("--state-dir={}", path("state").display()))
        .arg(format!("--socket={}", path("sluice.sock").display()))
        .env("KUBE_ROUTER_CNI_CONF_FILE", path("net.d/10-kuberouter.conflist"))
        .env("SSL_CERT_FILE", path(&format!("{trusted}.pem")))
        .env_remove("SSL_CERT_DIR")
        .env("AWS_EC2_METADATA_SERVICE_ENDPOINT", metadata)
        .env("AWS_ENDPOINT_URL_EC2", ec2)
        .stdin(Stdio::null())
        .stderr(File::create(path("log")).expect("a file"))
        .spawn()
        .expect("the program starts");
    let _running = Running(agent);
    let begun = Instant::now();
    loop {
        let log = fs::read_to_string(path("log")).unwrap_or_default();
        if log.lines().any(|line| words.iter().all(|words| line.to_lowercase().contains(&words.to_lowercase()))) {
            return log;
        }
        assert!(begun.elapsed() < PATIENCE, "{log}");
        thread::sleep(Duration::from_millis(50));
    }
}

const DONE: &str = "Source/destination check of EC2 switched off for this instance";
const FAILED: &str = "Switching off the source/destination check of EC2 failed";

#[test]
fn ec2_is_asked_over_tls_by_a_signed_request() {
    in_new(|| {
        let directory = tempfile::tempdir().expect("a directory");
        certify(directory.path(), "ours");
        let (metadata, (url, heard)) = (metadata_service(), ec2_service(directory.path(), "ours"));
        let log = log_of_an_agent(directory.path(), "ours", [&metadata, &url], [DONE, INSTANCE]);
        let heard = heard.lock().expect("nobody panicked");
        let request = heard.requests.last().expect("it was asked");
        let head = request.to_lowercase();
        let host = url.trim_start_matches("https://");
        assert!(head.starts_with("post / http/1.1\r\n") && head.contains(&format!("host: {host}\r\n")), "{request}");
        assert!(head.contains("authorization: aws4-hmac-sha256 credential=asiaexample/"), "{request}");
        assert!(request.contains("ModifyInstanceAttribute") && request.contains(INSTANCE), "{request}");
        assert!(!log.contains(SECRET) && !request.contains(SECRET));
    });
}

#[test]
fn a_server_whose_certificate_nobody_here_has_signed_gets_no_request() {
    in_new(|| {
        let directory = tempfile::tempdir().expect("a directory");
        ["ours", "others"].into_iter().for_each(|authority| certify(directory.path(), authority));
        let (metadata, (url, heard)) = (metadata_service(), ec2_service(directory.path(), "others"));
        let log = log_of_an_agent(directory.path(), "ours", [&metadata, &url], [FAILED, "certificate"]);
        assert!(log.contains(&url) && !log.contains(DONE), "{log}");
        let begun = Instant::now();
        while heard.lock().expect("nobody panicked").refused == 0 {
            assert!(begun.elapsed() < PATIENCE, "nobody has ended a handshake");
            thread::sleep(Duration::from_millis(10));
        }
        let requests = &heard.lock().expect("nobody panicked").requests;
        assert!(requests.is_empty(), "{requests:?}");
    });
}
