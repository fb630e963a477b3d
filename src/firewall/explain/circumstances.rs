//! Circumstances on which an answer depends besides policies: how far the cluster is known, and what of this host stands against policies.

use serde_json::json;

use crate::model::Authority;
use crate::observe::local::AnswerFormat;

use super::{Explanation, json, text};

/// The circumstances of an answer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Circumstances {
    pub authority: Authority,
    /// Warnings about the policies that select the pods of the question: sentences without their ends.
    pub policies: Vec<String>,
    /// Sentences without their ends.
    pub notes: Vec<String>,
}

impl Circumstances {
    /// Formats the answers together with their circumstances.
    pub fn answer(&self, explanation: &Explanation, form: AnswerFormat) -> String {
        match form {
            AnswerFormat::Text => {
                let known = doubt_line(self.authority);
                let of_policies = self.policies.iter().map(|odd| format!("policy: {odd}\n"));
                let of_host = self.notes.iter().map(|note| format!("host: {note}\n"));
                [text(explanation)].into_iter().chain(known).chain(of_policies).chain(of_host).collect()
            }
            AnswerFormat::Json => {
                let mut answer = json(explanation);
                if let Some(fields) = answer.as_object_mut() {
                    fields.insert("cluster".to_owned(), json!(word(self.authority)));
                    fields.insert("policies".to_owned(), json!(self.policies));
                    fields.insert("host".to_owned(), json!(self.notes));
                }
                format!("{answer:#}\n")
            }
        }
    }
}

/// Returns why an answer may be out of date, as a line of text.
pub fn doubt_line(authority: Authority) -> Option<String> {
    doubt(authority).map(|doubt| format!("cluster: {doubt}\n"))
}

/// Returns why an answer may be out of date, as a sentence without its end.
pub fn doubt(authority: Authority) -> Option<&'static str> {
    match authority {
        Authority::Nothing => Some("nothing is known of it"),
        Authority::Remembered => {
            Some("this is as an earlier run remembered it; the API server has not answered since the start")
        }
        Authority::Partial => {
            Some("some objects could not be read since the start, so what an earlier run left may be in force as well")
        }
        Authority::Complete => None,
    }
}

/// Returns the word for how far the cluster is known, for programs.
pub fn word(authority: Authority) -> &'static str {
    match authority {
        Authority::Nothing => "unknown",
        Authority::Remembered => "remembered",
        Authority::Partial => "partial",
        Authority::Complete => "complete",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_says_how_far_the_cluster_is_known_and_what_of_the_host_stands_against_it() {
        let explanation = Explanation { served: None, answers: Vec::new() };
        let answer = |authority, notes: &[&str], form| {
            let notes = notes.iter().map(|note| (*note).to_owned()).collect();
            let policies = vec!["ClusterNetworkPolicy guard: spec.tier: odd".to_owned()];
            let policies = if authority == Authority::Complete { Vec::new() } else { policies };
            Circumstances { authority, policies, notes }.answer(&explanation, form)
        };
        assert_eq!(answer(Authority::Complete, &[], AnswerFormat::Text), "");
        let text = answer(Authority::Remembered, &["chain FORWARD drops"], AnswerFormat::Text);
        assert!(text.starts_with("cluster: this is as an earlier run remembered it"), "{text}");
        let ends = "\npolicy: ClusterNetworkPolicy guard: spec.tier: odd\nhost: chain FORWARD drops\n";
        assert!(text.ends_with(ends), "{text}");
        let json: serde_json::Value =
            serde_json::from_str(&answer(Authority::Partial, &["x"], AnswerFormat::Json)).expect("JSON");
        assert_eq!((&json["cluster"], &json["host"], &json["answers"]), (&json!("partial"), &json!(["x"]), &json!([])));
    }
}
