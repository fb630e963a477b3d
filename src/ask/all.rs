//! How the nodes of the cluster stand, at a glance: `sluice status --all`.

use std::collections::BTreeMap;

use serde::Serialize;

use super::Answered;
use crate::config::Output;
use crate::k8s::agents::{Agents, Answer};

/// A line for a node, or for each agent of a node that has several, as while one is replaced.
#[derive(Serialize)]
struct Row<'a> {
    node: &'a str,
    /// `NAMESPACE/NAME` of the agent; `None` where the node has none.
    pod: Option<&'a str>,
    /// `ready`, `not ready`, `no answer`, `not asked` or `no agent`.
    state: &'static str,
    /// Reasons and notes.
    lines: Vec<&'a str>,
}

/// Returns what there is to print of the agents of each node. The exit code is 0 where every node has an agent and all are ready, and 1 elsewhere.
pub fn answered(nodes: &BTreeMap<String, Agents>, output: Output) -> Answered {
    let rows: Vec<Row> = nodes.iter().flat_map(|(node, agents)| rows(node, agents)).collect();
    let ready = rows.iter().filter(|row| row.state == READY).count();
    let text = match output {
        Output::Text => text(&rows, ready, nodes.len()),
        Output::Json => format!("{}\n", serde_json::json!(rows)),
    };
    Answered { text, exit_code: u8::from(ready < rows.len() || rows.is_empty()) }
}

const READY: &str = "ready";

fn rows<'a>(node: &'a str, agents: &'a Agents) -> Vec<Row<'a>> {
    if agents.is_empty() {
        return vec![Row { node, pod: None, state: "no agent", lines: Vec::new() }];
    }
    let row = |(pod, answer): (&'a String, &'a Answer)| {
        let (state, lines) = match answer {
            Answer::Ready(notes) => (READY, notes.iter().map(String::as_str).collect()),
            Answer::NotReady(lines) => ("not ready", lines.iter().map(String::as_str).collect()),
            Answer::Silent(why) => ("no answer", vec![why.as_str()]),
            Answer::NotAsked => ("not asked", vec!["the time for all agents was over before"]),
        };
        Row { node, pod: Some(pod), state, lines }
    };
    agents.iter().map(row).collect()
}

fn text(rows: &[Row], ready: usize, nodes: usize) -> String {
    let mut text = String::new();
    for Row { node, pod, state, lines } in rows {
        let pod = pod.map(|pod| format!(" ({pod})")).unwrap_or_default();
        text.push_str(&format!("{node}: {state}{pod}\n"));
        lines.iter().for_each(|line| text.push_str(&format!("  {line}\n")));
    }
    text.push_str(&format!(
        "{ready} of {} agents are ready, on {nodes} nodes\n",
        rows.iter().filter(|row| row.pod.is_some()).count()
    ));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nodes() -> BTreeMap<String, Agents> {
        let agent = |pod: &str, answer| (format!("kube-system/{pod}"), answer);
        let of = |node: &str, agents: Vec<(String, Answer)>| (node.to_owned(), agents.into_iter().collect());
        BTreeMap::from([
            of("node-1", vec![agent("a", Answer::Ready(vec!["API server: slow".to_owned()]))]),
            of(
                "node-2",
                vec![
                    agent("b", Answer::NotReady(vec!["router: no route".to_owned()])),
                    agent("c", Answer::Ready(Vec::new())),
                ],
            ),
            of("node-3", vec![agent("d", Answer::Silent("connection refused (503)".to_owned()))]),
            of("node-4", Vec::new()),
            of("node-5", vec![agent("e", Answer::NotAsked)]),
        ])
    }

    #[test]
    fn a_person_reads_a_line_for_each_agent_with_its_reasons_below() {
        let expected = "\
node-1: ready (kube-system/a)
  API server: slow
node-2: not ready (kube-system/b)
  router: no route
node-2: ready (kube-system/c)
node-3: no answer (kube-system/d)
  connection refused (503)
node-4: no agent
node-5: not asked (kube-system/e)
  the time for all agents was over before
2 of 5 agents are ready, on 5 nodes
";
        let answered = answered(&nodes(), Output::Text);
        assert_eq!((answered.text.as_str(), answered.exit_code), (expected, 1));
    }

    #[test]
    fn a_program_reads_the_same_and_the_exit_code_is_0_where_all_are_ready() {
        let mut nodes = nodes();
        let answer = answered(&nodes, Output::Json);
        let rows: serde_json::Value = serde_json::from_str(&answer.text).expect("JSON");
        assert_eq!(
            rows[1],
            serde_json::json!({"node": "node-2", "pod": "kube-system/b", "state": "not ready", "lines": ["router: no route"]})
        );
        assert_eq!(rows[4]["pod"], serde_json::Value::Null);
        nodes.retain(|node, _| node == "node-1");
        assert_eq!(answered(&nodes, Output::Json).exit_code, 0);
        assert_eq!(answered(&BTreeMap::new(), Output::Text).exit_code, 1, "a cluster without nodes is not ready");
    }
}
