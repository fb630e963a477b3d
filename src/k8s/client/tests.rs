use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{RootCertStore, ServerConfig};

use super::*;

fn kubeconfig(user: &str) -> (tempfile::TempDir, Access) {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("config");
    let text = format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: c\n\
         contexts: [{{name: c, context: {{cluster: k, user: u}}}}]\n\
         clusters: [{{name: k, cluster: {{server: 'https://192.0.2.10:6443', insecure-skip-tls-verify: true}}}}]\n\
         users: [{{name: u, user: {user}}}]\n"
    );
    std::fs::write(&path, text).expect("writable");
    (directory, Access { kubeconfig: Some(path), master: None })
}

const NOWHERE: &str = "/nonexistent";

fn made_of(access: &Access, service_account: &Path) -> Result<Config, AccessError> {
    config(access, service_account, &ProxyEnvironment::default()).map(|(config, _)| config)
}

#[tokio::test]
async fn a_kubeconfig_names_server_and_token_and_master_overrides_the_server() {
    let (_directory, mut access) = kubeconfig("{token: secret}");
    let plain = made_of(&access, Path::new(NOWHERE)).expect("the kubeconfig is sound");
    assert_eq!(plain.cluster_url, "https://192.0.2.10:6443/");
    assert!(plain.accept_invalid_certs && plain.auth_info.token.is_some());
    access.master = Some("https://192.0.2.11:6443".parse().expect("sound"));
    let overridden = made_of(&access, Path::new(NOWHERE)).expect("the kubeconfig is sound");
    assert_eq!(overridden.cluster_url, "https://192.0.2.11:6443/");
    assert!(overridden.auth_info.token.is_some());
    client(&access).await.expect("one provider of cryptography is installed");
}

#[test]
fn credentials_from_another_program_are_refused() {
    let exec = "{exec: {apiVersion: client.authentication.k8s.io/v1, command: /nonexistent/login}}";
    let (_directory, access) = kubeconfig(exec);
    let error = made_of(&access, Path::new(NOWHERE)).expect_err("it names a program");
    assert!(error.to_string().ends_with("use a token or a client certificate"), "{error}");
}

#[tokio::test]
async fn a_user_that_is_not_in_the_kubeconfig_is_a_mistake_and_takes_no_credentials_away() {
    let (directory, access) = kubeconfig("{token: secret}");
    let made = client(&access).await.expect("the kubeconfig is sound");
    let path = directory.path().join("config");
    let text = std::fs::read_to_string(&path).expect("readable");
    std::fs::write(&path, text.replace("name: u, user: {token", "name: v, user: {token")).expect("writable");
    let error = made_of(&access, Path::new(NOWHERE)).expect_err("nobody has these credentials");
    assert!(error.to_string().ends_with("it has no user \"u\", which its context names"), "{error}");
    made.made().looked_at = Instant::now() - 2 * LOOK;
    made.current().await;
    let refused = made.made().refused.clone();
    assert!(refused.is_some_and(|reason| reason.contains("no user")), "the former client stays");
    std::fs::write(&path, text.replace(", user: u}", "}")).expect("writable");
    let nobody = made_of(&access, Path::new(NOWHERE)).expect("a context may name nobody");
    assert!(nobody.auth_info.token.is_none());
}

#[test]
fn a_kubeconfig_that_cannot_be_read_shows_nothing_of_what_stands_in_it() {
    let (directory, access) = kubeconfig("{}");
    for text in [
        "users:\n- name: u\n  user:\n    token: hush\n   password: [hush\n",
        "users: hush",
        "users: [{name: u, user: hush}]",
    ] {
        std::fs::write(directory.path().join("config"), text).expect("writable");
        let error = made_of(&access, Path::new(NOWHERE)).expect_err("it makes no sense");
        assert!(!chain(&error).contains("hush"), "{error}");
    }
}

#[test]
fn a_server_that_cannot_be_read_is_named_without_the_credentials_ahead_of_it() {
    let (directory, access) = kubeconfig("{token: secret}");
    let path = directory.path().join("config");
    let text = std::fs::read_to_string(&path).expect("readable");
    std::fs::write(&path, text.replace("https://192", "https://admin:pass@w ord@192")).expect("writable");
    let error = made_of(&access, Path::new(NOWHERE)).expect_err("a space is in it").to_string();
    assert!(error.contains("the server \"192.0.2.10:6443\" of its cluster"), "{error}");
    assert!(["admin", "pass", "ord@"].iter().all(|secret| !error.contains(secret)), "{error}");
}

#[tokio::test]
async fn a_server_without_a_scheme_gets_one_and_is_asked_without_a_panic() {
    let (directory, mut access) = kubeconfig("{token: secret}");
    let path = directory.path().join("config");
    let text = std::fs::read_to_string(&path).expect("readable");
    for (server, more, user, expected) in [
        ("192.0.2.10:6443", ", insecure-skip-tls-verify: true", "{}", Ok("https://192.0.2.10:6443/")),
        ("[2001:db8::1]:6443", "", "{token: secret}", Ok("https://[2001:db8::1]:6443/")),
        ("192.0.2.10:6443", "", "{client-certificate: node.crt, client-key: node.key}", Ok("https://192.0.2.10:6443/")),
        ("127.0.0.1:8080/prefix", "", "{}", Ok("http://127.0.0.1:8080/prefix")),
        ("ftp://192.0.2.10", "", "{}", Err("the server \"ftp://192.0.2.10\" of its cluster: its scheme is neither")),
    ] {
        let cluster = format!("server: '{server}'{more}");
        let text = text.replace("server: 'https://192.0.2.10:6443', insecure-skip-tls-verify: true", &cluster);
        std::fs::write(&path, text.replace("{token: secret}", user)).expect("writable");
        match (made_of(&access, Path::new(NOWHERE)), expected) {
            (Ok(config), Ok(expected)) => assert_eq!(config.cluster_url, expected),
            (Err(error), Err(expected)) => assert!(error.to_string().contains(expected), "{error}"),
            (made, _) => panic!("{server}: {:?}", made.map(|config| config.cluster_url)),
        }
    }
    std::fs::write(&path, &text).expect("writable");
    access.master = Some("192.0.2.11:6443".parse().expect("an authority is a URL to the library"));
    let overridden = made_of(&access, Path::new(NOWHERE)).expect("the kubeconfig is sound");
    assert_eq!(overridden.cluster_url, "https://192.0.2.11:6443/");
    access.master = Some("ftp://u:secret@192.0.2.11".parse().expect("a URL"));
    let refused = made_of(&access, Path::new(NOWHERE)).map(drop).expect_err("nobody asks so").to_string();
    assert!(refused.starts_with("--master 192.0.2.11/: its scheme") && !refused.contains("secret"), "{refused}");

    // As for kubectl proxy: nothing listens, and that is all that is wrong.
    let alone = Access { kubeconfig: None, master: Some("127.0.0.1:1".parse().expect("an authority")) };
    let plain = made_of(&alone, Path::new(NOWHERE)).expect("nothing is needed");
    assert_eq!(plain.cluster_url, "http://127.0.0.1:1/");
    let asked = client(&alone).await.expect("nothing is needed").current().await.apiserver_version().await;
    assert!(asked.is_err());
}

#[test]
fn a_kubeconfig_that_is_missing_or_makes_no_sense_is_named() {
    let access = Access { kubeconfig: Some("/nonexistent/config".into()), master: None };
    let error = made_of(&access, Path::new(NOWHERE)).expect_err("there is none");
    assert!(error.to_string().starts_with("--kubeconfig /nonexistent/config: "), "{error}");
    let (directory, access) = kubeconfig("{}");
    std::fs::write(directory.path().join("config"), "clusters: 5").expect("writable");
    assert!(made_of(&access, Path::new(NOWHERE)).is_err());
}

#[test]
fn master_alone_uses_the_service_account_where_there_is_one() {
    let access = Access { kubeconfig: None, master: Some("http://127.0.0.1:8080".parse().expect("sound")) };
    let anonymous = made_of(&access, Path::new(NOWHERE)).expect("nothing is needed");
    assert!(anonymous.auth_info.token_file.is_none() && anonymous.root_cert_file.is_none());
    let directory = tempfile::tempdir().expect("a temporary directory");
    std::fs::write(directory.path().join("token"), "secret").expect("writable");
    let with_token = made_of(&access, directory.path()).expect("the token is there");
    assert!(with_token.auth_info.token_file.is_some());
    assert_eq!(with_token.cluster_url, "http://127.0.0.1:8080/");
}

#[test]
fn the_proxy_of_the_kubeconfig_counts_more_than_that_of_the_environment() {
    let (directory, mut access) = kubeconfig("{token: secret}");
    let environment = |without: &str| ProxyEnvironment {
        https: "http://192.0.2.1:3128".to_owned(),
        http: String::new(),
        without: without.to_owned(),
    };
    let proxy = |access: &Access, without: &str| {
        let (config, _) = config(access, Path::new(NOWHERE), &environment(without)).expect("all is sound");
        config.proxy_url.map(|url| url.to_string())
    };
    assert_eq!(proxy(&access, ""), Some("http://192.0.2.1:3128/".to_owned()));
    assert_eq!(proxy(&access, "192.0.2.0/24,"), None, "also with a comma too many");
    access.master = Some("https://198.51.100.1:6443".parse().expect("sound"));
    assert_eq!(proxy(&access, "192.0.2.0/24"), Some("http://192.0.2.1:3128/".to_owned()), "the server in fact");
    access.master = None;
    let path = directory.path().join("config");
    let text =
        std::fs::read_to_string(&path).expect("readable").replace("{server:", "{proxy-url: 'socks5://h:1', server:");
    std::fs::write(&path, text).expect("writable");
    assert_eq!(proxy(&access, "*"), Some("socks5://h:1/".to_owned()));
}

#[tokio::test]
async fn a_server_is_reached_through_the_proxy_that_the_environment_names() {
    for scheme in ["http", "socks5"] {
        let proxy = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.expect("a loopback socket");
        let address = proxy.local_addr().expect("it is bound");
        let (_directory, access) = kubeconfig("{token: secret}");
        let https = format!("{scheme}://{address}");
        let environment = ProxyEnvironment { https, ..ProxyEnvironment::default() };
        let (config, _) = config(&access, Path::new(NOWHERE), &environment).expect("all is sound");
        let client = of_config(config).expect("this kind of proxy is known");
        let asked = tokio::spawn(async move { client.apiserver_version().await });
        let (mut stream, _) = proxy.accept().await.expect("the proxy is asked");
        let mut first = [0; 7];
        let length = if scheme == "http" { 7 } else { 2 };
        tokio::io::AsyncReadExt::read_exact(&mut stream, &mut first[..length]).await.expect("it says what for");
        match scheme {
            "http" => assert_eq!(&first, b"CONNECT"),
            _ => assert_eq!(first[0], 5, "the version of SOCKS"),
        }
        asked.abort();
    }
}

/// Two authorities, and a server and a client certified by each, valid from 2020 to 2120.
fn pem(name: &str) -> &'static str {
    match name {
        "authority-a.crt" => include_str!("../../../tests/support/tls/authority-a.crt"),
        "authority-b.crt" => include_str!("../../../tests/support/tls/authority-b.crt"),
        "client-a.crt" => include_str!("../../../tests/support/tls/client-a.crt"),
        "client-a.key" => include_str!("../../../tests/support/tls/client-a.key"),
        "client-b.crt" => include_str!("../../../tests/support/tls/client-b.crt"),
        "client-b.key" => include_str!("../../../tests/support/tls/client-b.key"),
        "server-a.crt" => include_str!("../../../tests/support/tls/server-a.crt"),
        "server-a.key" => include_str!("../../../tests/support/tls/server-a.key"),
        "server-b.crt" => include_str!("../../../tests/support/tls/server-b.crt"),
        "server-b.key" => include_str!("../../../tests/support/tls/server-b.key"),
        other => panic!("there is no {other}"),
    }
}

/// A server that is certified by this authority, and lets nobody in whom the same has not certified.
fn acceptor(authority: &str) -> TlsAcceptor {
    let certificate = |name: String| CertificateDer::from_pem_slice(pem(&name).as_bytes()).expect("it is in PEM");
    let key = PrivateKeyDer::from_pem_slice(pem(&format!("server-{authority}.key")).as_bytes()).expect("it is in PEM");
    let mut roots = RootCertStore::empty();
    roots.add(certificate(format!("authority-{authority}.crt"))).expect("it is an authority");
    let clients = WebPkiClientVerifier::builder(Arc::new(roots)).build().expect("there is an authority");
    let config = ServerConfig::builder().with_client_cert_verifier(clients);
    let config = config.with_single_cert(vec![certificate(format!("server-{authority}.crt"))], key).expect("a pair");
    TlsAcceptor::from(Arc::new(config))
}

/// Answers each request with the token that it was asked with.
async fn serve(listener: TcpListener, acceptor: Arc<Mutex<TlsAcceptor>>) {
    loop {
        let Ok((stream, _)) = listener.accept().await else { return };
        let acceptor = acceptor.lock().expect("nobody panics with it").clone();
        tokio::spawn(async move {
            let Ok(mut stream) = acceptor.accept(stream).await else { return };
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                let Ok(byte) = stream.read_u8().await else { return };
                head.push(byte);
            }
            let head = String::from_utf8_lossy(&head).to_lowercase();
            let token = head.split("bearer ").nth(1).and_then(|rest| rest.lines().next()).unwrap_or_default();
            let text =
                format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{token}", token.len());
            drop(stream.write_all(text.as_bytes()).await);
            drop(stream.shutdown().await);
        });
    }
}

#[tokio::test]
async fn changed_certificates_keys_and_tokens_are_taken_while_the_program_runs() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let put = |name: &str, text: &str| std::fs::write(directory.path().join(name), text).expect("writable");
    let issue = |authority: &str| {
        put("ca.crt", pem(&format!("authority-{authority}.crt")));
        put("node.crt", pem(&format!("client-{authority}.crt")));
        put("node.key", pem(&format!("client-{authority}.key")));
    };
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a loopback socket");
    let address = listener.local_addr().expect("it is bound");
    let served = Arc::new(Mutex::new(acceptor("a")));
    tokio::spawn(serve(listener, served.clone()));
    issue("a");
    let user = "{client-certificate: node.crt, client-key: node.key, token: TOKEN}";
    let text = format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: c\n\
         contexts: [{{name: c, context: {{cluster: k, user: u}}}}]\n\
         clusters: [{{name: k, cluster: {{server: 'https://{address}', certificate-authority: ca.crt}}}}]\n\
         users: [{{name: u, user: {user}}}]\n"
    );
    put("config", &text.replace("TOKEN", "first"));
    let access = Access { kubeconfig: Some(directory.path().join("config")), master: None };
    let api = client(&access).await.expect("the kubeconfig is sound");
    let ask = async || {
        let request = http::Request::get("/version").body(Vec::new()).expect("a request");
        api.current().await.request_text(request).await
    };
    assert_eq!(ask().await.expect("it is let in"), "first");
    // One of a pair alone makes no client: the former one goes on.
    put("node.crt", pem("client-b.crt"));
    tokio::time::sleep(LOOK).await;
    assert_eq!(ask().await.expect("it is let in"), "first");
    issue("b");
    put("config", &text.replace("TOKEN", "second"));
    *served.lock().expect("nobody panics with it") = acceptor("b");
    tokio::time::sleep(LOOK).await;
    assert_eq!(ask().await.expect("it is let in with what is there now"), "second");
}

#[test]
fn a_bundle_of_authorities_is_read_whole_and_one_that_is_none_is_named() {
    let bundle = format!("some words\n{}\n{}", pem("authority-a.crt"), pem("authority-b.crt"));
    assert_eq!(certificates(&bundle).map(|all| all.len()), Some(2));
    assert_eq!(certificates("-----BEGIN CERTIFICATE-----\nMII"), None);
    assert_eq!(certificates("").map(|all| all.len()), Some(0));
    let cluster = Cluster { certificate_authority_data: Some("bm9uZQ==".to_owned()), ..Cluster::default() };
    let reason = authorities(&cluster).expect_err("it holds none");
    assert_eq!(reason, "its certificate authority holds no certificate in the form of PEM");
}
