//! The one request to EC2, and what its answers mean.
//!
//! AWS: `ModifyInstanceAttribute` with `SourceDestCheck.Value=false`, in the query protocol of EC2: a form by POST, an answer in XML.

use super::failure::Failure;
use super::metadata::Place;
use super::sigv4::{Credentials, Scope, Unsigned, authorization};

const SERVICE: &str = "ec2";
const CONTENT_TYPE: &str = "application/x-www-form-urlencoded; charset=utf-8";
/// Longest part of a message that is told on: those about missing rights go on with a long encoded text.
const MESSAGE: usize = 200;

/// A signed request.
#[derive(Clone, PartialEq, Eq)]
pub struct Signed {
    /// Names in lower case. Some values are secret.
    pub headers: Vec<(&'static str, String)>,
    pub body: String,
}

/// Domains of AWS, and those beside them whose names have IPv6 addresses too.
const DUAL_STACK: [(&str, &str); 2] =
    [("amazonaws.com", "api.aws"), ("amazonaws.com.cn", "api.amazonwebservices.com.cn")];

/// Returns the URL of EC2 in a region.
pub fn endpoint(place: &Place) -> String {
    format!("https://ec2.{}.{}", place.region, place.domain)
}

/// Returns the URL of EC2 with IPv4 and IPv6; `None` where the partition of AWS is not known to have one. Not every region has.
pub fn dual_stack_endpoint(place: &Place) -> Option<String> {
    let (_, domain) = DUAL_STACK.iter().find(|(domain, _)| *domain == place.domain)?;
    Some(format!("https://ec2.{}.{domain}", place.region))
}

/// Returns the request that switches the check off for an instance. `host`: of the URL, with its port where that is not the usual one; `time` as
/// in [`Scope`].
pub fn switch_off(instance: &str, host: &str, place: &Place, credentials: &Credentials, time: &str) -> Signed {
    let body =
        format!("Action=ModifyInstanceAttribute&InstanceId={instance}&SourceDestCheck.Value=false&Version=2016-11-15");
    let mut headers =
        vec![("content-type", CONTENT_TYPE.to_owned()), ("host", host.to_owned()), ("x-amz-date", time.to_owned())];
    headers.extend(credentials.session_token.iter().map(|token| ("x-amz-security-token", token.clone())));
    let unsigned = Unsigned {
        method: "POST",
        path: "/",
        query: "",
        headers: headers.iter().map(|(name, value)| (*name, value.as_str())).collect(),
        body: body.as_bytes(),
    };
    let signed = authorization(&unsigned, credentials, Scope { time, region: &place.region, service: SERVICE });
    headers.push(("authorization", signed));
    Signed { headers, body }
}

/// Judges an answer.
///
/// # Errors
/// The request was refused, or the answer says something else.
pub fn judged(status: u16, body: &str, instance: &str, role: &str) -> Result<(), Failure> {
    if status == 200 && between(body, "return") == Some("true") {
        return Ok(());
    }
    let text = |name: &str| between(body, name).unwrap_or_default().trim();
    let code: String = text("Code").chars().filter(|c| c.is_ascii_alphanumeric() || *c == '.').take(64).collect();
    let (instance, role) = (instance.to_owned(), role.to_owned());
    let message = text("Message").split("Encoded authorization failure message").next().unwrap_or_default();
    Err(match code.as_str() {
        "UnauthorizedOperation" | "AccessDenied" | "AccessDeniedException" => {
            Failure::Unauthorized { role, instance, code }
        }
        _ if message.contains("multiple interfaces") => Failure::SeveralInterfaces { instance },
        _ => {
            let code = if code.is_empty() { "without a reason".to_owned() } else { code };
            let message = message.chars().filter(|c| !c.is_control()).take(MESSAGE).collect();
            Failure::Refused { status, code, message }
        }
    })
}

/// Returns the text of the first element of this name.
fn between<'a>(xml: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = xml.split_once(&format!("<{name}>"))?;
    rest.split_once(&format!("</{name}>")).map(|(text, _)| text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn credentials() -> Credentials {
        let text = |text: &str| text.to_owned();
        Credentials { access_key: text("AKID"), secret_key: text("hidden"), session_token: Some(text("token")) }
    }

    #[test]
    fn the_request_names_the_instance_and_signs_host_time_and_token() {
        let place = Place { region: "cn-north-1".to_owned(), domain: "amazonaws.com.cn".to_owned() };
        assert_eq!(endpoint(&place), "https://ec2.cn-north-1.amazonaws.com.cn");
        let host = "ec2.cn-north-1.amazonaws.com.cn";
        let signed = switch_off("i-0123", host, &place, &credentials(), "20260102T030405Z");
        let expected =
            "Action=ModifyInstanceAttribute&InstanceId=i-0123&SourceDestCheck.Value=false&Version=2016-11-15";
        assert_eq!(signed.body, expected);
        let (_, authorization) = signed.headers.last().expect("it is signed");
        let scope = "AWS4-HMAC-SHA256 Credential=AKID/20260102/cn-north-1/ec2/aws4_request, \
                     SignedHeaders=content-type;host;x-amz-date;x-amz-security-token, Signature=";
        assert!(authorization.starts_with(scope), "{authorization}");
        assert!(!signed.headers.iter().any(|(_, value)| value.contains("hidden")));
    }

    #[test]
    fn the_endpoint_with_ipv6_is_in_another_domain_where_that_is_known() {
        for (domain, expected) in [
            ("amazonaws.com", Some("https://ec2.eu-central-1.api.aws")),
            ("amazonaws.com.cn", Some("https://ec2.eu-central-1.api.amazonwebservices.com.cn")),
            ("c2s.ic.gov", None),
        ] {
            let place = Place { region: "eu-central-1".to_owned(), domain: domain.to_owned() };
            assert_eq!(dual_stack_endpoint(&place).as_deref(), expected);
        }
    }

    #[test]
    fn answers_are_judged_by_their_code_and_odd_ones_are_told() {
        let of = |status, body: &str| judged(status, body, "i-0123", "node");
        let done = "<?xml version=\"1.0\"?><ModifyInstanceAttributeResponse><requestId>x</requestId><return>true</return></ModifyInstanceAttributeResponse>";
        assert_eq!(of(200, done), Ok(()));
        let error = |code: &str, message: &str| {
            format!(
                "<Response><Errors><Error><Code>{code}</Code><Message>{message}</Message></Error></Errors></Response>"
            )
        };
        let denied = "You are not authorized to perform this operation. Encoded authorization failure message: AbCdEf";
        let text = of(403, &error("UnauthorizedOperation", denied)).expect_err("it is refused").to_string();
        assert!(
            text.starts_with("the role node may not ec2:ModifyInstanceAttribute of i-0123 (UnauthorizedOperation)"),
            "{text}"
        );
        assert!(!text.contains("AbCdEf"), "{text}");
        let several = "There are multiple interfaces attached to instance 'i-0123'. Please specify an interface ID";
        let failure = of(400, &error("InvalidInstanceID", several));
        assert_eq!(failure, Err(Failure::SeveralInterfaces { instance: "i-0123".to_owned() }));
        let throttled = of(503, &error("RequestLimitExceeded", "Request limit exceeded.")).expect_err("it is refused");
        assert_eq!(throttled.to_string(), "EC2 answers 503 RequestLimitExceeded: Request limit exceeded.");
        for (status, odd) in
            [(200, ""), (502, "<html>"), (200, "<return>false</return>"), (500, "<Code>"), (403, "\u{1}")]
        {
            assert!(matches!(of(status, odd), Err(Failure::Refused { .. })), "{odd}");
        }
    }
}
