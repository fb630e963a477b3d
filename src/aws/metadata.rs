//! Questions to the instance metadata service, and their answers.
//!
//! AWS: IMDSv2. A token is asked for first (`PUT /latest/api/token`), and every question has it. The service is at a link-local address of the instance's own
//! network, which no proxy leads to, and its packets have a hop limit of 1 unless the instance is set otherwise.
//!
//! The domain comes from the service too: `amazonaws.com`, in China `amazonaws.com.cn`, and others in partitions of their own.

use serde::Deserialize;

use super::failure::Failure;
use super::sigv4::Credentials;

/// The addresses of the service: usual, and where `AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE` says IPv6.
pub const ENDPOINT: &str = "http://169.254.169.254";
pub const ENDPOINT_V6: &str = "http://[fd00:ec2::254]";

pub const TOKEN: &str = "/latest/api/token";
pub const TOKEN_HEADER: &str = "x-aws-ec2-metadata-token";
pub const TOKEN_SECONDS_HEADER: &str = "x-aws-ec2-metadata-token-ttl-seconds";
/// Longer than one attempt.
pub const TOKEN_SECONDS: &str = "300";

const ROLE: &str = "/latest/meta-data/iam/security-credentials/";

/// A question.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Question {
    /// Its name in sentences.
    pub what: &'static str,
    pub path: String,
}

/// Facts of the instance.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Place {
    pub region: String,
    pub domain: String,
}

fn question(what: &'static str, path: &str) -> Question {
    Question { what, path: path.to_owned() }
}

pub fn instance() -> Question {
    question("the instance's ID", "/latest/meta-data/instance-id")
}

pub fn region() -> Question {
    question("the region", "/latest/meta-data/placement/region")
}

pub fn domain() -> Question {
    question("the domain of AWS", "/latest/meta-data/services/domain")
}

pub fn role() -> Question {
    question("the role", ROLE)
}

/// Asks for the credentials of a role.
pub fn credentials(role: &str) -> Question {
    question("the role's credentials", &format!("{ROLE}{role}"))
}

/// Returns the one word of an answer.
///
/// # Errors
/// It is none, or has other characters than names of instances, regions, domains and roles have.
pub fn word(question: &Question, answer: &str) -> Result<String, Failure> {
    let word = answer.lines().next().unwrap_or_default().trim();
    let is_name = |c: char| c.is_ascii_alphanumeric() || "-._+=,@".contains(c);
    let is_word = !word.is_empty() && word.len() <= 128 && word.chars().all(is_name);
    if is_word { Ok(word.to_owned()) } else { Err(Failure::OddAnswer { what: question.what }) }
}

/// Returns the credentials of an answer.
///
/// # Errors
/// The service says why there are none, or says something else.
pub fn parsed(role: &str, answer: &str) -> Result<Credentials, Failure> {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Answer {
        #[serde(default)]
        code: String,
        #[serde(default)]
        access_key_id: String,
        #[serde(default)]
        secret_access_key: String,
        token: Option<String>,
    }
    // The parser's own words would quote the answer.
    let what = "the role's credentials";
    let answer: Answer = serde_json::from_str(answer).map_err(|_| Failure::OddAnswer { what })?;
    let is_header = |text: &str| text.bytes().all(|byte| byte.is_ascii_graphic());
    if answer.code != "Success" {
        let code = answer.code.chars().filter(char::is_ascii_alphanumeric).take(64).collect();
        return Err(Failure::NoCredentials { role: role.to_owned(), code });
    }
    let texts = [&answer.access_key_id, &answer.secret_access_key];
    if texts.iter().any(|text| text.is_empty() || !is_header(text)) || !answer.token.iter().all(|text| is_header(text))
    {
        return Err(Failure::OddAnswer { what });
    }
    Ok(Credentials {
        access_key: answer.access_key_id,
        secret_key: answer.secret_access_key,
        session_token: answer.token,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_is_the_first_line_and_nothing_that_could_be_more_than_a_name() {
        let question = role();
        for (answer, expected) in
            [("node-role\n", Some("node-role")), ("a.b_c+d=e,f@g", Some("a.b_c+d=e,f@g")), ("one\ntwo", Some("one"))]
        {
            assert_eq!(word(&question, answer).ok().as_deref(), expected);
        }
        let long = "x".repeat(129);
        for odd in ["", "\n", "a b", "../x", "a/b", "<html>", "a\r\nHost: x", &long] {
            let odd = odd.replace("\r\n", "%");
            assert_eq!(word(&question, &odd), Err(Failure::OddAnswer { what: "the role" }), "{odd:?}");
        }
    }

    #[test]
    fn credentials_are_taken_whole_or_not_at_all_and_no_sentence_has_any_of_them() {
        let good = r#"{"Code":"Success","Type":"AWS-HMAC","AccessKeyId":"ASIAX","SecretAccessKey":"hidden","Token":"hidden2","Expiration":"2030-01-01T00:00:00Z"}"#;
        let found = parsed("node", good).expect("credentials");
        assert_eq!((found.access_key.as_str(), found.session_token.as_deref()), ("ASIAX", Some("hidden2")));
        for odd in [
            r#"{"Code":"Success","AccessKeyId":"","SecretAccessKey":"hidden"}"#,
            r#"{"Code":"Success","AccessKeyId":"A","SecretAccessKey":"hid den"}"#,
            r#"{"Code":"Success","AccessKeyId":"A","SecretAccessKey":"hidden","Token":"hidden\r\nX: y"}"#,
            r#"{"Code":"Success","AccessKeyId":"hidden""#,
            "[]",
            "hidden",
        ] {
            let failure = parsed("node", odd).expect_err(odd);
            assert_eq!(failure, Failure::OddAnswer { what: "the role's credentials" });
            assert!(!format!("{failure} {failure:?}").contains("hid"));
        }
        let failed = parsed("node", r#"{"Code":"AssumeRoleUnauthorizedAccess","Message":"x"}"#);
        let failed = failed.expect_err("there are none").to_string();
        assert_eq!(failed, "the credentials of the role node are not to be had: AssumeRoleUnauthorizedAccess");
    }
}
