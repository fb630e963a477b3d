//! The way to an address or a pod, put together from the answers of those who decide: the service proxy, the router and the firewall.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::config::Output;

/// Paths of the questions: which Services are at the address, which way a packet takes, and who judges it.
pub const SERVICE: &str = "/route/service";
pub const WAY: &str = "/route";
pub const ISOLATION: &str = "/policy/isolation";

/// Most endpoints of Services to which the way is asked for.
pub const MOST_BACKENDS: usize = 8;

/// The answer of one of them: `None` where it does not run, or the sentence why it has none.
pub type Part = Result<Option<Value>, String>;

/// All answers to one question.
#[derive(Debug)]
pub struct Parts {
    pub what: String,
    /// The Services at the address.
    pub service: Part,
    pub way: Part,
    /// The ways to endpoints of Services that are served at the address.
    pub backends: Vec<Value>,
    /// The number of endpoints to which the way was not asked for.
    pub backends_left_off: usize,
    pub isolation: Part,
}

/// Returns whether this node serves a Service at the address.
pub fn is_served(service: &Part) -> bool {
    places(service).any(|(_, place)| word(place, "standing") == "served")
}

/// Returns the addresses of the endpoints that take new connections.
pub fn backends(service: &Part) -> BTreeSet<String> {
    let endpoints = places(service).flat_map(|(_, place)| list(inside(place, "/virtualService/endpoints")));
    endpoints.filter(|endpoint| takes_new(endpoint)).map(|endpoint| word(endpoint, "address").to_owned()).collect()
}

fn takes_new(endpoint: &Value) -> bool {
    matches!(word(endpoint, "state"), "serving" | "servingWhileTerminating")
}

/// Formats the answers.
pub fn printed(parts: &Parts, output: Output) -> String {
    if output == Output::Json {
        let part = |part: &Part| match part {
            Ok(Some(answer)) => answer.clone(),
            Ok(None) => Value::Null,
            Err(why) => json!({ "error": why }),
        };
        let answer = json!({
            "question": parts.what,
            "service": part(&parts.service),
            "way": part(&parts.way),
            "backends": parts.backends,
            "backendsLeftOff": parts.backends_left_off,
            "policy": part(&parts.isolation),
        });
        return format!("{answer:#}\n");
    }
    let mut text = String::new();
    text.extend(of_service(&parts.service).into_iter().map(|line| line + "\n"));
    match &parts.way {
        Ok(Some(way)) => text.push_str(&of_way(way, "")),
        Ok(None) => text.push_str("route: the sluice on this host runs no router (--run-router): others decide about it; ip route get tells\n"),
        Err(why) => text.push_str(&format!("route: no answer: {why}\n")),
    }
    if !parts.backends.is_empty() {
        text.push_str("the way to each endpoint that takes new connections:\n");
        text.extend(parts.backends.iter().map(|way| of_way(way, "  ")));
    }
    if parts.backends_left_off > 0 {
        text.push_str(&format!("  and to {} more endpoints (sluice svc names them)\n", parts.backends_left_off));
    }
    match &parts.isolation {
        Ok(Some(policy)) => {
            text.push_str(&format!("policies, for {}:\n", word(policy, "party")));
            text.extend(lines(&policy["text"]).map(|line| format!("  {line}\n")));
        }
        Ok(None) => {}
        Err(why) => text.push_str(&format!("policies: no answer: {why}\n")),
    }
    text
}

/// Formats the ways of one answer of the router.
fn of_way(answer: &Value, indent: &str) -> String {
    let mut text: String = lines(&answer["heading"]).map(|line| format!("{indent}{line}\n")).collect();
    for way in list(&answer["ways"]) {
        text.push_str(&format!("{indent}{}: {}\n", word(way, "address"), word(way, "whose")));
        text.extend(lines(&way["text"]).map(|line| format!("{indent}  {line}\n")));
    }
    text
}

/// Says which Services are at the address, and how each of its ports stands here.
fn of_service(service: &Part) -> Vec<String> {
    let answer = match service {
        Ok(Some(answer)) => answer,
        Ok(None) => return Vec::new(),
        Err(why) => return vec![format!("Services: no answer: {why}")],
    };
    let mut text: Vec<String> = Vec::new();
    let mut last = String::new();
    for (name, place) in places(service) {
        if last != name {
            text.push(format!("Service {name}"));
            last = name;
        }
        text.push(format!("  {}", of_place(place)));
    }
    let range = &answer["clusterIPRange"];
    if text.is_empty() && !range.is_null() {
        let about = format!(
            "no Service that this program serves has this address of the range of cluster IPs {}",
            word(range, "range")
        );
        text.push(match (range["refused"] == true, range["leftOut"].as_str()) {
            (true, _) => format!("{about}: new connections to it are refused on this node"),
            (false, Some(why)) => format!("{about}; it is not refused here: {why}"),
            (false, None) => format!("{about}; it is refused as soon as all Services are known and in place"),
        });
    }
    text
}

fn of_place(place: &Value) -> String {
    let number = |value: &Value| value.as_u64().unwrap_or_default();
    let at = format!(
        "{} port {} ({})",
        word(place, "protocol").to_lowercase(),
        number(&place["port"]),
        word(place, "field")
    );
    let served = &place["virtualService"];
    if served.is_null() {
        return format!("{at}: not served on this node: {}", word(place, "reason"));
    }
    let taking = list(&served["endpoints"]).filter(|endpoint| takes_new(endpoint)).count();
    let mut text = match taking {
        0 => format!("{at}: no endpoint takes new connections: they are refused"),
        1 => format!("{at}: 1 endpoint takes new connections"),
        many => format!("{at}: {many} endpoints take new connections"),
    };
    match word(served, "kernel") {
        "inPlace" => {}
        "missing" => text.push_str("; missing in the kernel"),
        "different" => text.push_str("; different in the kernel"),
        _ => text.push_str("; the kernel was not read"),
    }
    if served["insideOnly"] == true {
        text.push_str("; closed to clients outside of the cluster: the traffic policy is Local, and no usable endpoint is on this node");
    }
    let sources: Vec<&str> = list(&served["sources"]).filter_map(Value::as_str).collect();
    if !served["sources"].is_null() {
        text.push_str(&format!("; closed to all others than {} (source ranges)", sources.join(", ")));
    }
    text
}

/// Returns the addresses of Services, each with the name of its Service.
fn places(service: &Part) -> impl Iterator<Item = (String, &Value)> {
    let answer = service.as_ref().ok().and_then(Option::as_ref);
    let services = answer.into_iter().flat_map(|answer| list(inside(answer, "/explained/services")));
    services.flat_map(|service| {
        let name = format!("{}/{}", word(service, "namespace"), word(service, "name"));
        list(&service["addresses"]).map(move |place| (name.clone(), place))
    })
}

fn inside<'a>(value: &'a Value, pointer: &str) -> &'a Value {
    value.pointer(pointer).unwrap_or(&Value::Null)
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn lines(value: &Value) -> impl Iterator<Item = &str> {
    list(value).filter_map(Value::as_str)
}

fn word<'a>(value: &'a Value, name: &str) -> &'a str {
    value[name].as_str().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(place: &Value) -> Part {
        let service = json!({ "namespace": "shop", "name": "web", "addresses": [place] });
        Ok(Some(json!({ "clusterIPRange": null, "explained": { "services": [service] } })))
    }

    fn place(standing: &str, served: Option<Value>) -> Value {
        json!({
            "address": "10.96.0.9", "protocol": "TCP", "port": 80, "field": "clusterIP", "standing": standing,
            "reason": (standing != "served").then_some("the reason"), "virtualService": served,
        })
    }

    fn served(states: &[&str]) -> Value {
        let endpoint =
            |(number, state): (usize, &&str)| json!({ "address": format!("10.244.2.{number}"), "state": state });
        let endpoints: Vec<Value> = states.iter().enumerate().map(endpoint).collect();
        json!({ "kernel": "inPlace", "insideOnly": false, "sources": null, "endpoints": endpoints })
    }

    fn parts(service: Part) -> Parts {
        let what = "10.96.0.9".to_owned();
        Parts { what, service, way: Ok(None), backends: Vec::new(), backends_left_off: 0, isolation: Ok(None) }
    }

    const NO_ROUTER: &str =
        "route: the sluice on this host runs no router (--run-router): others decide about it; ip route get tells\n";

    #[test]
    fn each_port_of_a_service_says_whether_new_connections_are_taken() {
        for (place, expected) in [
            (
                place("served", Some(served(&["serving", "notReady", "servingWhileTerminating"]))),
                "2 endpoints take new connections",
            ),
            (place("served", Some(served(&["serving", "draining"]))), "1 endpoint takes new connections"),
            (place("served", Some(served(&[]))), "no endpoint takes new connections: they are refused"),
            (place("noLocalEndpoint", None), "not served on this node: the reason"),
        ] {
            let text = printed(&parts(service(&place)), Output::Text);
            assert_eq!(text, format!("Service shop/web\n  tcp port 80 (clusterIP): {expected}\n{NO_ROUTER}"));
        }
        let mut closed = served(&["serving"]);
        closed["sources"] = json!(["192.0.2.0/24"]);
        closed["insideOnly"] = json!(true);
        closed["kernel"] = json!("missing");
        let text = printed(&parts(service(&place("served", Some(closed)))), Output::Text);
        for part in ["missing in the kernel", "closed to clients outside", "than 192.0.2.0/24 (source ranges)"] {
            assert!(text.contains(part), "{text}");
        }
    }

    #[test]
    fn endpoints_that_take_connections_are_asked_for_and_no_others() {
        let answer = service(&place("served", Some(served(&["serving", "notLocal", "draining", "serving"]))));
        assert!(is_served(&answer));
        assert_eq!(backends(&answer).into_iter().collect::<Vec<_>>(), ["10.244.2.0", "10.244.2.3"]);
        assert!(!is_served(&service(&place("refused", None))));
        assert!(!is_served(&Err("busy".to_owned())) && backends(&Ok(None)).is_empty());
    }

    #[test]
    fn a_free_cluster_ip_is_refused_or_says_why_not() {
        for (refused, left_out, expected) in [
            (true, None, ": new connections to it are refused on this node"),
            (false, Some("eth0 is on it"), "; it is not refused here: eth0 is on it"),
            (false, None, "; it is refused as soon as all Services are known and in place"),
        ] {
            let range = json!({ "range": "10.96.0.0/12", "refused": refused, "leftOut": left_out });
            let answer = Ok(Some(json!({ "clusterIPRange": range, "explained": null })));
            let text = printed(&parts(answer), Output::Text);
            let about = "no Service that this program serves has this address of the range of cluster IPs 10.96.0.0/12";
            assert_eq!(text, format!("{about}{expected}\n{NO_ROUTER}"));
        }
    }

    #[test]
    fn ways_and_policies_are_printed_as_they_were_answered_and_silence_is_named() {
        let way = json!({
            "heading": ["Pod shop/web on Node node-2"],
            "ways": [{ "address": "10.244.2.7", "whose": "pods of Node node-2", "text": ["route: none"] }],
        });
        let mut parts = parts(Err("it is busy".to_owned()));
        parts.way = Ok(Some(way.clone()));
        parts.backends = vec![way];
        parts.backends_left_off = 3;
        parts.isolation = Ok(Some(json!({ "party": "shop/web (10.244.2.7)", "text": ["not isolated for ingress"] })));
        let expected = "\
Services: no answer: it is busy
Pod shop/web on Node node-2
10.244.2.7: pods of Node node-2
  route: none
the way to each endpoint that takes new connections:
  Pod shop/web on Node node-2
  10.244.2.7: pods of Node node-2
    route: none
  and to 3 more endpoints (sluice svc names them)
policies, for shop/web (10.244.2.7):
  not isolated for ingress
";
        assert_eq!(printed(&parts, Output::Text), expected);
        let json: Value = serde_json::from_str(&printed(&parts, Output::Json)).expect("JSON");
        assert_eq!((&json["service"]["error"], &json["backendsLeftOff"]), (&json!("it is busy"), &json!(3)));
        assert_eq!(json["way"]["ways"][0]["address"], "10.244.2.7");
    }

    #[test]
    fn an_answer_of_another_form_is_no_panic() {
        for odd in [json!(null), json!(7), json!([]), json!({ "ways": 3, "explained": { "services": [1] } })] {
            let mut parts = parts(Ok(Some(odd.clone())));
            (parts.way, parts.isolation) = (Ok(Some(odd.clone())), Ok(Some(odd)));
            let _ = printed(&parts, Output::Text);
        }
    }
}
