//! Errors in the form of the CNI specification 1.1, section 5 (error).

use serde_json::{Value, json};

/// An error in the specification's form.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Failure {
    pub code: Code,
    pub text: String,
}

/// Error codes of the specification.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Code {
    IncompatibleVersion = 1,
    InvalidEnvironment = 4,
    NotDecodable = 6,
    InvalidConfiguration = 7,
    TryAgainLater = 11,
}

impl Failure {
    /// Returns the text for standard output.
    pub fn object(&self, version: &str) -> Value {
        json!({"cniVersion": version, "code": self.code as u32, "msg": self.code.title(), "details": self.text})
    }
}

impl Code {
    fn title(self) -> &'static str {
        match self {
            Code::IncompatibleVersion => "sluice-cni: incompatible CNI version",
            Code::InvalidEnvironment => "sluice-cni: invalid environment variables",
            Code::NotDecodable => "sluice-cni: the configuration is not readable",
            Code::InvalidConfiguration => "sluice-cni: invalid network configuration",
            Code::TryAgainLater => "sluice-cni: network policies of the pod are not in force yet, try again later",
        }
    }
}

/// Returns a failure with this code.
pub fn failure(code: Code, text: impl Into<String>) -> Failure {
    Failure { code, text: text.into() }
}
