//! Answers questions for the difference, each on a thread of its own: at 50,000 pods the rule set takes its time.
//!
//! One comparison runs at a time, because it needs about as much memory as the rule set. The firewall's own thread only hands over the World, whose
//! copy is cheap.

use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::{Arc, Weak};

use tracing::warn;

use crate::config::FirewallConfig;
use crate::model::{Policies, World};
use crate::net::Family;
use crate::observe::local::{Answer, AnswerFormat, Question};

use super::super::explain::circumstances;
use super::super::flows::{Flows, verdict_on};
use super::super::oversized::Bound;
use super::{BOUNDS, Bounds, CONNECTIONS, Candidates, Compared, Refused, RefusedConnection, json, text};

/// Reads the policies in the text of a manifest file; an error is a sentence without its end.
pub type PolicyReader = fn(&str) -> Result<Policies, String>;

/// Starts comparisons.
#[derive(Default)]
pub struct Comparisons {
    /// Held by the thread that compares, until it has its answer.
    running: Weak<()>,
}

/// Inputs of a comparison.
pub struct Comparing {
    pub world: World,
    pub config: Arc<FirewallConfig>,
    /// The text of the file with the policies.
    pub file: String,
    pub read: PolicyReader,
    /// The policies would be deleted, not applied.
    pub deleted: bool,
    pub flows: Arc<dyn Flows>,
}

impl Comparisons {
    /// Compares and answers, on another thread.
    pub fn start(&mut self, inputs: Comparing, question: Question) {
        // The requester may have gone away.
        let refuse = |question: Question, why: &str| drop(question.answer.send(Err(why.to_owned())));
        if self.running.strong_count() > 0 {
            return refuse(question, "another comparison is running; ask again when it has ended");
        }
        let token = Arc::new(());
        self.running = Arc::downgrade(&token);
        let work = move || {
            let answer = answer(&inputs, question.form);
            drop(token);
            let _ = question.answer.send(answer);
        };
        if let Err(error) = std::thread::Builder::new().name("policy-diff".to_owned()).spawn(work) {
            warn!(%error, "Starting the thread of a policy comparison failed");
        }
    }
}

fn answer(inputs: &Comparing, form: AnswerFormat) -> Answer {
    let candidates = Candidates { policies: (inputs.read)(&inputs.file)?, deleted: inputs.deleted };
    let bounds = Bounds { blocks: Bound::of(inputs.config.backend), ..BOUNDS };
    let compared = Compared::of(&inputs.world, &candidates, bounds)?;
    let connections = refused(inputs, &compared);
    let difference = compared.into_difference(connections);
    let authority = inputs.world.authority.firewall;
    Ok(match form {
        AnswerFormat::Text => text(&difference) + &circumstances::doubt_line(authority).unwrap_or_default(),
        AnswerFormat::Json => {
            let mut answer = json(&difference);
            if let Some(fields) = answer.as_object_mut() {
                fields.insert("cluster".to_owned(), circumstances::word(authority).into());
            }
            format!("{answer:#}\n")
        }
    })
}

/// Returns the connections of the pods of this node that pass now and would be refused.
fn refused(inputs: &Comparing, compared: &Compared) -> Result<Refused, String> {
    let Comparing { world, config, flows, .. } = inputs;
    let here: HashSet<IpAddr> = compared.after.pods.values().flat_map(|pod| pod.addresses.iter().copied()).collect();
    let mut refused = Refused::default();
    for family in Family::BOTH {
        // Judged while they are listed: a node may track a million.
        let listed = flows.connections(family, None, &mut |connection, _| {
            if !here.contains(&connection.source) && !here.contains(&connection.replier) {
                return false;
            }
            let [before, after] =
                [&compared.before, &compared.after].map(|rules| verdict_on(rules, world, config, connection));
            let Some(decision) = Compared::newly_refused(before, after) else { return false };
            refused.all += 1;
            if refused.first.len() < CONNECTIONS {
                let [from, to] =
                    [connection.source, connection.replier].map(|address| compared.names.at(address).cloned());
                refused.first.push(RefusedConnection { connection: *connection, from, to, decision });
            }
            false
        });
        // A kernel without a family has no connections of it, and says so in its own way.
        listed.map_err(|error| error.to_string())?;
    }
    Ok(refused)
}
