//! Signature Version 4, with which AWS knows who sends a request.
//!
//! AWS: "Create a signed AWS API request". A canonical text of the request is hashed; that hash, the time and the scope (day, region, service) are the text
//! to be signed; the key is derived from the secret by the same scope, so that it is good for that day, region and service alone.
//!
//! Limits: the path is signed as it is given, and the query has to be encoded and in the order of its names already, as the one request
//! of this program has none.

use std::fmt;

use ring::digest::{SHA256, digest};
use ring::hmac::{HMAC_SHA256, Key, Tag, sign};

/// Credentials of a role, for a while.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    pub access_key: String,
    pub secret_key: String,
    /// Of temporary credentials, which those of roles are.
    pub session_token: Option<String>,
}

/// Nothing of them is printed.
impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credentials(…)")
    }
}

/// Scope of a signature, and its time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Scope<'a> {
    /// `20150830T123600Z`: UTC.
    pub time: &'a str,
    pub region: &'a str,
    pub service: &'a str,
}

/// A request that is to be signed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Unsigned<'a> {
    pub method: &'a str,
    /// Encoded.
    pub path: &'a str,
    /// Encoded, in the order of names; empty for none.
    pub query: &'a str,
    /// Names in lower case. `host` and `x-amz-date` have to be among them; order does not count.
    pub headers: Vec<(&'a str, &'a str)>,
    pub body: &'a [u8],
}

const ALGORITHM: &str = "AWS4-HMAC-SHA256";

/// Returns the value of the header `Authorization` of a request.
pub fn authorization(request: &Unsigned<'_>, credentials: &Credentials, scope: Scope<'_>) -> String {
    let Scope { time, region, service } = scope;
    let day = time.get(..8).unwrap_or(time);
    let mut headers: Vec<(&str, String)> = request
        .headers
        .iter()
        .map(|(name, value)| (*name, value.split_whitespace().collect::<Vec<_>>().join(" ")))
        .collect();
    headers.sort();
    let names = headers.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(";");
    let lines: String = headers.iter().map(|(name, value)| format!("{name}:{value}\n")).collect();
    let (path, query) = (if request.path.is_empty() { "/" } else { request.path }, request.query);
    let canonical = format!("{}\n{path}\n{query}\n{lines}\n{names}\n{}", request.method, hashed(request.body));
    let within = format!("{day}/{region}/{service}/aws4_request");
    let to_sign = format!("{ALGORITHM}\n{time}\n{within}\n{}", hashed(canonical.as_bytes()));
    let key = [day, region, service, "aws4_request"]
        .into_iter()
        .fold(format!("AWS4{}", credentials.secret_key).into_bytes(), |key, part| mac(&key, part).as_ref().to_vec());
    let signature = hex(mac(&key, &to_sign).as_ref());
    let key_of = &credentials.access_key;
    format!("{ALGORITHM} Credential={key_of}/{within}, SignedHeaders={names}, Signature={signature}")
}

fn mac(key: &[u8], text: &str) -> Tag {
    sign(&Key::new(HMAC_SHA256, key), text.as_bytes())
}

fn hashed(bytes: &[u8]) -> String {
    hex(digest(&SHA256, bytes).as_ref())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The credentials, scope and host of the test suite that AWS publishes for this signature.
    fn check(method: &str, query: &str, more: &[(&str, &str)], body: &str, (names, expected): (&str, &str)) {
        let credentials = Credentials {
            access_key: "AKIDEXAMPLE".to_owned(),
            secret_key: "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY".to_owned(),
            session_token: None,
        };
        let time = "20150830T123600Z";
        let own = [("host", "example.amazonaws.com"), ("x-amz-date", time)];
        // Whatever their order.
        let headers = more.iter().copied().chain(own).collect();
        let request = Unsigned { method, path: "/", query, headers, body: body.as_bytes() };
        let signed = authorization(&request, &credentials, Scope { time, region: "us-east-1", service: "service" });
        let scope = "20150830/us-east-1/service/aws4_request";
        assert_eq!(
            signed,
            format!("AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/{scope}, SignedHeaders={names}, Signature={expected}")
        );
    }

    #[test]
    fn requests_of_the_published_test_suite_have_the_published_signatures() {
        // get-vanilla, post-vanilla, get-vanilla-query-order-key-case, post-x-www-form-urlencoded, post-sts-header-before, get-header-value-trim.
        let plain = "host;x-amz-date";
        check("GET", "", &[], "", (plain, "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31"));
        check("POST", "", &[], "", (plain, "5da7c1a2acd57cee7505fc6676e4e544621c30862966e37dddb68e92efbe5d6b"));
        let query = "Param1=value1&Param2=value2";
        check("GET", query, &[], "", (plain, "b97d918cfa904a5beff61c982a1b6f458b799221646efd99d3219ec94cdf2500"));
        let form = [("content-type", "application/x-www-form-urlencoded")];
        let expected = "ff11897932ad3f4e8b18135d722051e5ac45fc38421b1da7b9d196a0fe09473a";
        check("POST", "", &form, "Param1=value1", ("content-type;host;x-amz-date", expected));
        let token = "AQoDYXdzEPT//////////wEXAMPLEtc764bNrC9SAPBSM22wDOk4x4HIZ8j4FZTwdQWLWsKWHGBuFqwAeMicRXmxfpSPfIeoIYRqTflfKD8YUuwthAx7mSEI/qkPpKPi/kMcGdQrmGdeehM4IC1NtBmUpp2wUE8phUZampKsburEDy0KPkyQDYwT7WZ0wq5VSXDvp75YU9HFvlRd8Tx6q6fE8YQcHNVXAkiY9q6d+xo0rKwT38xVqr7ZD0u0iPPkUL64lIZbqBAz+scqKmlzm8FDrypNC9Yjc8fPOLn9FX9KSYvKTr4rvx3iSIlTJabIQwj2ICCR/oLxBA==";
        let expected = "85d96828115b5dc0cfc3bd16ad9e210dd772bbebba041836c64533a82be05ead";
        check("POST", "", &[("x-amz-security-token", token)], "", ("host;x-amz-date;x-amz-security-token", expected));
        let trimmed = [("my-header1", "  value1"), ("my-header2", "  \"a   b   c\"")];
        let expected = "acc3ed3afb60bb290fc8d2dd0098b9911fcaa05412b367055dee359757a9c736";
        check("GET", "", &trimmed, "", ("host;my-header1;my-header2;x-amz-date", expected));
    }

    #[test]
    fn the_example_of_the_documentation_has_its_signature() {
        let credentials = Credentials {
            access_key: "AKIDEXAMPLE".to_owned(),
            secret_key: "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY".to_owned(),
            session_token: None,
        };
        let time = "20150830T123600Z";
        let request = Unsigned {
            method: "GET",
            path: "/",
            query: "Action=ListUsers&Version=2010-05-08",
            headers: vec![
                ("content-type", "application/x-www-form-urlencoded; charset=utf-8"),
                ("host", "iam.amazonaws.com"),
                ("x-amz-date", time),
            ],
            body: b"",
        };
        let signed = authorization(&request, &credentials, Scope { time, region: "us-east-1", service: "iam" });
        assert!(signed.ends_with("=5d672d79c15b13162d9279b0855cfba6789a8edb4c82c400e06b5924a6f2b5d7"), "{signed}");
    }

    #[test]
    fn credentials_are_not_printed() {
        let secret = || "secret".to_owned();
        let credentials = Credentials { access_key: secret(), secret_key: secret(), session_token: Some(secret()) };
        assert!(!format!("{credentials:?}").contains("secret"));
    }
}
