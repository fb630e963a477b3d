//! The URL of a server of the Kubernetes API, as people and kubeconfigs write it: also without a scheme, which every client of the API supplies then.

use http::Uri;
use http::uri::InvalidUri;

/// Reads the URL of a server. Without a scheme it is one of `https`, or of `http` where nothing speaks for TLS (`is_secure`).
///
/// # Errors
/// It is no URL of a server. Continues a sentence, and shows nothing of what was typed.
pub fn completed(typed: &str, is_secure: bool) -> Result<Uri, String> {
    let url = if has_scheme(typed) {
        typed.to_owned()
    } else {
        format!("{}://{typed}", if is_secure { "https" } else { "http" })
    };
    let url: Uri = url.parse().map_err(|error: InvalidUri| error.to_string())?;
    if !matches!(url.scheme_str(), Some("http" | "https")) {
        return Err("its scheme is neither http nor https".to_owned());
    }
    if url.host().is_none_or(str::is_empty) {
        return Err("it names no host".to_owned());
    }
    // As in `https//user:password@host`, whose host would be `https`.
    if !has_scheme(typed) && url.path().contains('@') {
        return Err("there is an @ in its path, and no scheme".to_owned());
    }
    Ok(url)
}

/// Reads the URL of a server for whom the scheme is supplied later ([`completed`]), where there is none.
///
/// # Errors
/// As there.
pub fn typed(typed: &str) -> Result<Uri, String> {
    let complete = completed(typed, true)?;
    if has_scheme(typed) {
        return Ok(complete);
    }
    let bare = typed.trim_end_matches('/').parse();
    bare.map_err(|_| "with a path it needs a scheme, http or https".to_owned())
}

/// Returns what may be shown of a URL that was typed: ahead of its host, and in its query, there may be credentials.
pub fn shown(typed: &str) -> &str {
    let behind = typed.rsplit_once('@').map_or(typed, |(_, host)| host);
    behind.split_once('?').map_or(behind, |(server, _)| server)
}

fn has_scheme(typed: &str) -> bool {
    typed.contains("://")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(url: Result<Uri, String>) -> Result<String, String> {
        url.map(|url| url.to_string())
    }

    #[test]
    fn a_scheme_is_supplied_and_only_one_that_is_known_is_taken() {
        for (typed, expected) in [
            ("192.0.2.10:6443", "https://192.0.2.10:6443/"),
            ("[2001:db8::1]:6443", "https://[2001:db8::1]:6443/"),
            ("api.example", "https://api.example/"),
            ("api.example:6443/prefix", "https://api.example:6443/prefix"),
            ("HTTP://192.0.2.10", "http://192.0.2.10/"),
            ("http://127.0.0.1:8001/prefix", "http://127.0.0.1:8001/prefix"),
            ("https://gateway.example/clusters/alice@corp", "https://gateway.example/clusters/alice@corp"),
        ] {
            assert_eq!(text(completed(typed, true)), Ok(expected.to_owned()), "{typed}");
        }
        assert_eq!(text(completed("127.0.0.1:8001", false)), Ok("http://127.0.0.1:8001/".to_owned()));
        for typed in ["", "/path", "https://", ":6443", "a b", "ftp://192.0.2.10", "unix:///run/api", "https//u:p@host"]
        {
            assert!(completed(typed, true).is_err() && super::typed(typed).is_err(), "{typed}");
        }
    }

    #[test]
    fn a_url_without_a_scheme_stays_without_one_until_it_is_known() {
        for (typed, expected) in [
            ("127.0.0.1:8001", "127.0.0.1:8001"),
            ("127.0.0.1:8001/", "127.0.0.1:8001"),
            ("[2001:db8::1]:6443", "[2001:db8::1]:6443"),
            ("http://127.0.0.1:8001", "http://127.0.0.1:8001/"),
        ] {
            assert_eq!(text(super::typed(typed)), Ok(expected.to_owned()), "{typed}");
        }
        assert!(super::typed("127.0.0.1:8001/prefix").expect_err("there is no such form").contains("scheme"));
    }

    #[test]
    fn neither_credentials_nor_a_query_are_shown() {
        for (typed, expected) in [
            ("ftp://user:p@ss@192.0.2.10/path?token=hush", "192.0.2.10/path"),
            ("https//user:why?@host", "host"),
            ("https://a b", "https://a b"),
        ] {
            assert_eq!(shown(typed), expected);
        }
    }
}
