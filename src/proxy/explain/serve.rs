//! Answers questions about Services, between two turns of the proxy's loop.
//!
//! One Service's virtual services are read from the kernel for the answer, with their counters: a few system calls each. For all
//! Services nothing is read: the answer says what was last seen, which looks every few seconds keep true, and is formatted while the
//! loop goes on; so is one about a Service with source ranges, with the packets that these have dropped.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use serde_json::json;

use crate::kernel::ipvs::ServiceKey;
use crate::model::{ObjectName, ServiceProblems};
use crate::observe::health::Health;
use crate::observe::local::{self, ASK_AGAIN, AnswerFormat};

use super::super::apply::{Kernel, Mirrors, Refused};
use super::super::desired::Desired;
use super::super::plan::Plan;
use super::super::source_ranges::serve::OutsideSources;
use super::{Explanation, KernelState, Question, ServiceState, Unanswerable, explanation, json, text};

/// The questions that the service proxy answers, by their paths on the local socket: all about Services, and which of them are at an address
/// (`sluice route`).
pub const SERVICES: &str = "/svc";
pub const AT: &str = "/route/service";

/// The components whose notes say how old what is known of the cluster may be.
const SOURCES: [&str; 3] = ["API server", "manifests", "last known state"];

/// Sources of answers, besides the kernel.
pub struct Sources<'a> {
    pub plan: &'a Plan,
    pub health: &'a Health,
    /// The problems of Services, from all who find some.
    pub problems: Vec<ServiceProblems>,
    /// The Services whose health checks say that they are not in place.
    pub pending: &'a BTreeSet<ObjectName>,
    /// The packets that source ranges have dropped.
    pub outside: &'a OutsideSources,
}

/// The answers that are being formatted.
#[derive(Default)]
pub struct Formatting(Arc<AtomicBool>);

impl Formatting {
    /// Answers one question. What takes long is formatted on a thread of its own, from a copy of what is known now, one at a time.
    pub fn answer<K: Kernel>(&mut self, question: local::Question, sources: &Sources<'_>, mirrors: &mut Mirrors<K>) {
        let local::Question { path, about, form, answer, .. } = question;
        let word = about.get("what").map_or("", String::as_str);
        if path == AT {
            // The requester may have gone away, here and below.
            let _ = answer.send(at(word, sources, mirrors));
            return;
        }
        let asked = Question::parse(word);
        let is_busy = self.0.load(Ordering::Relaxed);
        let explained = match asked {
            Ok(Question::All) if is_busy => Err(format!("{BUSY}{ASK_AGAIN}")),
            Ok(asked) => match explained(&asked, sources, mirrors) {
                Ok(explanation) => Ok((explanation, asked)),
                Err(why) => Err(why.to_string()),
            },
            Err(why) => Err(why.to_string()),
        };
        let (mut explanation, asked) = match explained {
            Ok(explained) => explained,
            Err(why) => {
                let _ = answer.send(Err(why));
                return;
            }
        };
        let is_long = asked == Question::All;
        let busy = self.0.clone();
        let is_ranged = explanation.services.iter().any(ServiceState::has_source_ranges);
        let outside = is_ranged.then(|| sources.outside.clone());
        let format = move || {
            explanation.outside = outside.map(|outside| outside.packets().map_err(|error| error.to_string()));
            let text = match form {
                AnswerFormat::Text => text(&explanation, &asked),
                AnswerFormat::Json => json(&explanation),
            };
            // Whoever has the answer may ask again at once.
            if is_long {
                busy.store(false, Ordering::Relaxed);
            }
            let _ = answer.send(Ok(text));
        };
        // Reading counters waits for the kernel, and with iptables for a program; the socket bounds how many ask at a time.
        if !is_long && !is_ranged {
            return format();
        }
        if is_long {
            self.0.store(true, Ordering::Relaxed);
        }
        // Without a thread the answer is dropped, which tells the requester that there is none.
        if thread::Builder::new().name("svc-answer".to_owned()).spawn(format).is_err() && is_long {
            self.0.store(false, Ordering::Relaxed);
        }
    }
}

/// Why there is no answer at this moment.
const BUSY: &str = "an answer about all Services is being made for somebody else";

/// Returns the Services that ask for an address, and whether it is a cluster IP that none has, for programs.
///
/// # Errors
/// The word is no address, or nothing is known.
fn at<K: Kernel>(word: &str, sources: &Sources<'_>, mirrors: &mut Mirrors<K>) -> local::Answer {
    let address = match Question::parse(word) {
        Ok(Question::Address(address, _)) => address,
        _ => return Err(Unanswerable::Unreadable(word.to_owned()).to_string()),
    };
    let services = match explained(&Question::Address(address, None), sources, mirrors) {
        Ok(explanation) => json(&explanation),
        Err(Unanswerable::NobodyAt(..)) => "null".to_owned(),
        Err(why) => return Err(why.to_string()),
    };
    let range = sources.plan.cluster_ip_range(address).map(|(range, left_out)| {
        let in_kernel = mirrors.refuses_unallocated(sources.plan.desired());
        json!({ "range": range.to_string(), "refused": left_out.is_none() && in_kernel, "leftOut": left_out })
    });
    let range = range.unwrap_or_default();
    Ok(format!("{{\n\"clusterIPRange\": {range},\n\"explained\": {services}}}\n"))
}

/// Returns the answer with what the kernel has.
///
/// # Errors
/// Why there is no answer.
fn explained<K: Kernel>(
    asked: &Question,
    sources: &Sources<'_>,
    mirrors: &mut Mirrors<K>,
) -> Result<Explanation, Unanswerable> {
    let notes = sources.health.notes().into_iter().filter(|note| SOURCES.contains(&note.component));
    let notes = notes.map(|note| note.to_string()).collect();
    let mut explanation = explanation(sources.plan, asked, notes)?;
    let desired = sources.plan.desired();
    let refused: BTreeMap<ServiceKey, &Refused> = mirrors.refused_parts(desired).collect();
    for (key, served) in explanation.served_mut() {
        if let Some(refused) = refused.get(&key) {
            served.leave_out(refused);
        }
    }
    match asked {
        Question::All => compare(&mut explanation, desired, mirrors),
        Question::Service(_) | Question::Address(..) => observe(&mut explanation, desired, mirrors),
    }
    // Of all Services only those are looked at of which something may be missing.
    let unsettled = if *asked == Question::All { mirrors.unsettled_virtuals(desired) } else { None };
    let unsettled: Option<BTreeSet<ServiceKey>> = unsettled.map(|keys| keys.into_iter().collect());
    for (key, served) in explanation.served_mut() {
        let may_differ = |keys: &BTreeSet<ServiceKey>| keys.contains(&key) || mirrors.waits_for_its_turn(desired, &key);
        if unsettled.as_ref().is_none_or(may_differ) {
            served.beside = mirrors.beside(desired, &key, &served.clients);
        }
    }
    for service in &mut explanation.services {
        service.note_problems(sources.problems.iter());
        if let Some(check) = &mut service.health_check {
            check.is_pending = sources.pending.contains(&service.name);
        }
    }
    Ok(explanation)
}

/// Compares all virtual services with what was last seen of the kernel.
fn compare<K: Kernel>(explanation: &mut Explanation, desired: &Desired, mirrors: &Mirrors<K>) {
    let doubtful = mirrors.doubtful_virtuals();
    for (key, served) in explanation.served_mut() {
        let key = desired.kernel_key(&key);
        match mirrors.seen_virtuals().map(|seen| seen.get(&key)) {
            None => served.kernel = KernelState::Unread("it cannot be read".to_owned()),
            // The kernel may have it all the same.
            Some(None) if doubtful.contains(&key) => {
                served.kernel = KernelState::Unread("its last change failed".to_owned());
            }
            Some(seen) => served.compare(seen),
        }
    }
}

/// Reads the kernel.
fn observe<K: Kernel>(explanation: &mut Explanation, desired: &Desired, mirrors: &mut Mirrors<K>) {
    for (key, served) in explanation.served_mut() {
        match mirrors.observe(&desired.kernel_key(&key)) {
            Ok(observed) => served.observe(observed),
            Err(error) => served.kernel = KernelState::Unread(error.to_string()),
        }
    }
}
