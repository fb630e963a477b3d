//! The proxy for the API server in the environment: `HTTPS_PROXY`, `HTTP_PROXY` and `NO_PROXY`, also in lower case.
//!
//! The rules are those of Go's HTTP client (`golang.org/x/net/http/httpproxy`), which every other client of the API
//! follows: the variable for the server's own scheme counts; `NO_PROXY` lists addresses, CIDRs and domains, each but a
//! CIDR with a port if it has to be that one; `example.com` means the name and all below it, `.example.com` only those below
//! it; `*` means no proxy at all; `localhost` and loopback addresses never have one.
//!
//! Limits: all requests go through a tunnel (`CONNECT`), also those to a server that speaks plain HTTP. Names are
//! compared as they are written, without punycode.

use std::net::IpAddr;

use http::Uri;
use ipnet::IpNet;

/// The variables, each empty where it is not set.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct ProxyEnvironment {
    pub https: String,
    pub http: String,
    pub without: String,
}

/// One entry of `NO_PROXY`.
enum Exception {
    Everything,
    Network(IpNet),
    Address(IpAddr, Option<u16>),
    /// The name with a point in front of it.
    Domain {
        below: String,
        itself: bool,
        port: Option<u16>,
    },
}

impl ProxyEnvironment {
    /// The variables of this process.
    pub fn of_process() -> ProxyEnvironment {
        let first = |names: [&str; 2]| {
            let mut values = names.into_iter().filter_map(|name| std::env::var(name).ok());
            values.find(|value| !value.is_empty()).unwrap_or_default()
        };
        ProxyEnvironment {
            https: first(["HTTPS_PROXY", "https_proxy"]),
            http: first(["HTTP_PROXY", "http_proxy"]),
            without: first(["NO_PROXY", "no_proxy"]),
        }
    }

    /// Returns the proxy for this server; `None` for a direct connection.
    ///
    /// # Errors
    /// The variable names none that can be used; the sentence holds no credentials.
    pub fn proxy(&self, server: &Uri) -> Result<Option<Uri>, String> {
        let (variable, value, usual_port) = match server.scheme_str() {
            Some("https") => ("HTTPS_PROXY", &self.https, 443),
            Some("http") => ("HTTP_PROXY", &self.http, 80),
            _ => return Ok(None),
        };
        let host = server.host().unwrap_or_default();
        if value.is_empty() || self.is_excepted(host, server.port_u16().unwrap_or(usual_port)) {
            return Ok(None);
        }
        proxy_url(value).map(Some).map_err(|reason| format!("{variable}: {reason}"))
    }

    fn is_excepted(&self, host: &str, port: u16) -> bool {
        let host = without_brackets(host.trim()).to_lowercase();
        let address: Option<IpAddr> = host.parse().ok().map(|address: IpAddr| address.to_canonical());
        if host == "localhost" || address.is_some_and(|address| address.is_loopback()) {
            return true;
        }
        self.without.split(',').filter_map(exception).any(|exception| match exception {
            Exception::Everything => true,
            Exception::Network(network) => address.is_some_and(|address| network.contains(&address)),
            Exception::Address(only, on) => address == Some(only) && on.is_none_or(|on| on == port),
            Exception::Domain { below, itself, port: on } => {
                let is_it = itself && below.strip_prefix('.') == Some(&host);
                (is_it || host.ends_with(&below)) && on.is_none_or(|on| on == port)
            }
        })
    }
}

const SOCKS_PORT: u16 = 1080;

/// A proxy's URL; without a scheme it is one of HTTP, and SOCKS without a port means its usual one.
///
/// # Errors
/// It is none, or its scheme is not supported; the sentence holds no credentials.
pub fn proxy_url(text: &str) -> Result<Uri, String> {
    let with_scheme = if text.contains("://") { text.to_owned() } else { format!("http://{text}") };
    // Go resolves names at the proxy in both cases, and so does our client.
    let with_scheme = match with_scheme.strip_prefix("socks5h://") {
        Some(rest) => format!("socks5://{rest}"),
        None => with_scheme,
    };
    let uri: Uri = with_scheme.parse().map_err(|_| "it is not the URL of a proxy".to_owned())?;
    match uri.scheme_str() {
        Some("socks5") if uri.authority().is_some_and(|authority| authority.as_str().contains('@')) => {
            Err("credentials for a SOCKS proxy are not supported; use an HTTP proxy, or one without credentials"
                .to_owned())
        }
        Some("socks5") if uri.port().is_none() && uri.host().is_some_and(|host| !host.is_empty()) => {
            // The port that SOCKS has by convention (RFC 1928); the client library would take that of HTTP.
            let host = uri.host().unwrap_or_default();
            format!("socks5://{host}:{SOCKS_PORT}").parse().map_err(|_| "it is not the URL of a proxy".to_owned())
        }
        Some("http" | "https" | "socks5") if uri.host().is_some_and(|host| !host.is_empty()) => Ok(uri),
        Some("http" | "https" | "socks5") => Err("it names no host".to_owned()),
        scheme => Err(format!("{:?} is no kind of proxy that is known here", scheme.unwrap_or_default())),
    }
}

/// One entry of `NO_PROXY`; `None` for one that stands for nothing.
fn exception(entry: &str) -> Option<Exception> {
    let entry = entry.trim().to_lowercase();
    if entry == "*" {
        return Some(Exception::Everything);
    }
    if let Ok(network) = entry.parse::<IpNet>() {
        return Some(Exception::Network(network));
    }
    let (host, port) = host_and_port(&entry);
    if host.is_empty() {
        return None;
    }
    if let Ok(address) = host.parse::<IpAddr>() {
        return Some(Exception::Address(address.to_canonical(), port));
    }
    let host = host.strip_prefix('*').filter(|rest| rest.starts_with('.')).unwrap_or(host);
    let itself = !host.starts_with('.');
    let below = if itself { format!(".{host}") } else { host.to_owned() };
    Some(Exception::Domain { below, itself, port })
}

/// Splits a port off, where there is one. An IPv6 address has one only behind brackets.
fn host_and_port(entry: &str) -> (&str, Option<u16>) {
    match entry.rsplit_once(':') {
        Some((host, port)) if !host.contains(':') || host.ends_with(']') => match port.parse() {
            Ok(port) => (without_brackets(host), Some(port)),
            Err(_) => (entry, None),
        },
        _ => (entry, None),
    }
}

fn without_brackets(host: &str) -> &str {
    host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(without: &str) -> ProxyEnvironment {
        ProxyEnvironment {
            https: "http://proxy.example.com:3128".to_owned(),
            http: "plain.example.com:8080".to_owned(),
            without: without.to_owned(),
        }
    }

    fn proxied(without: &str, server: &str) -> bool {
        let server = server.parse().expect("a URL");
        environment(without).proxy(&server).expect("the proxies are sound").is_some()
    }

    #[test]
    fn the_variable_of_the_servers_scheme_counts() {
        let proxy = |server: &str| {
            let server: Uri = server.parse().expect("a URL");
            environment("").proxy(&server).expect("sound").map(|proxy| proxy.to_string())
        };
        assert_eq!(proxy("https://192.0.2.10:6443"), Some("http://proxy.example.com:3128/".to_owned()));
        assert_eq!(proxy("http://192.0.2.10:8080"), Some("http://plain.example.com:8080/".to_owned()));
        let none = ProxyEnvironment { without: "x".to_owned(), ..ProxyEnvironment::default() };
        assert_eq!(none.proxy(&"https://192.0.2.10".parse().expect("a URL")), Ok(None));
    }

    #[test]
    fn what_stands_in_no_proxy_is_asked_directly() {
        for (without, server, is_proxied) in [
            ("", "https://api.example.com", true),
            ("*", "https://api.example.com", false),
            ("other.com, *", "https://192.0.2.10", false),
            ("example.com", "https://api.example.com", false),
            ("example.com", "https://example.com", false),
            ("example.com", "https://badexample.com", true),
            (".example.com", "https://api.example.com", false),
            (".example.com", "https://example.com", true),
            ("*.example.com", "https://api.example.com", false),
            ("*.example.com", "https://example.com", true),
            ("EXAMPLE.com", "https://API.Example.COM", false),
            ("api.example.com:6443", "https://api.example.com:6443", false),
            ("api.example.com:6443", "https://api.example.com", true),
            ("api.example.com:443", "https://api.example.com", false),
            ("192.0.2.10", "https://192.0.2.10:6443", false),
            ("192.0.2.10:6443", "https://192.0.2.10:6443", false),
            ("192.0.2.10:443", "https://192.0.2.10:6443", true),
            ("192.0.2.0/24", "https://192.0.2.10:6443", false),
            ("192.0.2.0/24", "https://192.0.3.10:6443", true),
            ("192.0.2.0/24", "https://api.example.com", true),
            ("2001:db8::/32", "https://[2001:db8::1]:6443", false),
            ("2001:db8::1", "https://[2001:db8::1]:6443", false),
            ("[2001:db8::1]:6443", "https://[2001:db8::1]:6443", false),
            ("[2001:db8::1]:443", "https://[2001:db8::1]:6443", true),
            ("2001:db8::2", "https://[2001:db8::1]:6443", true),
            ("a.com,, 192.0.2.10 ,", "https://192.0.2.10:6443", false),
            (", ,", "https://192.0.2.10:6443", true),
        ] {
            assert_eq!(proxied(without, server), is_proxied, "NO_PROXY={without} {server}");
        }
    }

    #[test]
    fn loopback_has_no_proxy() {
        for server in ["https://localhost:6443", "https://127.0.0.1:6443", "https://127.1.2.3", "https://[::1]:6443"] {
            assert!(!proxied("", server), "{server}");
        }
        assert!(proxied("", "https://localhost.example.com"));
    }

    #[test]
    fn a_proxy_without_a_scheme_speaks_http_and_one_of_no_known_kind_is_refused_without_its_password() {
        let text = |url: &str| proxy_url(url).map(|url| url.to_string());
        assert_eq!(text("192.0.2.1:3128"), Ok("http://192.0.2.1:3128/".to_owned()));
        assert_eq!(text("socks5h://192.0.2.1:1080"), Ok("socks5://192.0.2.1:1080/".to_owned()));
        assert_eq!(text("socks5://192.0.2.1"), Ok("socks5://192.0.2.1:1080/".to_owned()), "as Go has it");
        assert_eq!(text("socks5h://[2001:db8::1]"), Ok("socks5://[2001:db8::1]:1080/".to_owned()));
        assert_eq!(text("http://u:secret@192.0.2.1"), Ok("http://u:secret@192.0.2.1/".to_owned()));
        for odd in
            ["socks5://u:secret@192.0.2.1:1080", "ftp://u:secret@192.0.2.1", "http://u:secret@ 192.0.2.1", "http://"]
        {
            let reason = text(odd).expect_err("it is no proxy");
            assert!(!reason.contains("secret"), "{reason}");
        }
    }
}
