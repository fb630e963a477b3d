//! `sluice audit` of the firewall, asked of its loop: what it names, and what it puts back.

use serde_json::Value;

use super::*;

impl Running {
    /// The answer to `sluice audit`, or to `sluice audit --repair`.
    async fn asked(&self, repair: bool) -> Value {
        let about = BTreeMap::from([("repair".to_owned(), repair.to_string())]);
        let (answer, answered) = oneshot::channel();
        let question = Question { path: "/audit/firewall", about, form: AnswerFormat::Json, answer };
        let asking = self.auditing.borrow().clone().expect("the loop runs");
        asking.send(question).await.expect("the loop runs");
        let text = answered.await.expect("the loop answers").expect("something is known");
        serde_json::from_str(&text).expect("JSON")
    }

    /// The differences that an audit finds, as `KIND OBJECT STATE`.
    async fn audited(&self) -> Vec<String> {
        let answer = self.asked(false).await;
        assert_eq!(answer["known"], "complete", "{answer}");
        let kinds = answer["kinds"].as_array().into_iter().flatten();
        let of_kind = |kind: &Value| {
            let word = |value: &Value| value.as_str().expect("a word").to_owned();
            let differences = kind["differences"].as_array().into_iter().flatten();
            differences
                .map(|it| format!("{} {} {}", word(&kind["kind"]), word(&it["object"]), word(&it["state"])))
                .collect::<Vec<_>>()
        };
        kinds.flat_map(of_kind).collect()
    }
}

#[test]
fn an_audit_of_the_firewall_names_what_is_missing_and_puts_it_back_only_when_asked_for() {
    with_each(false, async |running| {
        running.settles(&shop()).await;
        running.until_ready().await;
        assert_eq!(running.audited().await, Vec::<String>::new());
        let (whole, elements) = (running.in_force(), running.kernel.state().elements);
        let gone = running.damage();
        let damaged = (running.in_force(), running.kernel.state().elements);
        let found = running.audited().await;
        for object in &gone {
            let named = found.iter().filter(|line| line.contains(object) && line.ends_with(" missing"));
            assert_eq!(named.count(), 1, "{object}: {found:?}");
        }
        assert_eq!((running.in_force(), running.kernel.state().elements), damaged, "a question changes nothing");
        assert_eq!(running.asked(true).await["found"], 2);
        let is_back = || running.in_force() == whole && running.kernel.state().elements == elements;
        running.until("all of it is back", is_back).await;
        assert_eq!(running.audited().await, Vec::<String>::new());
    });
}

#[test]
fn what_the_kernel_refuses_is_named_by_an_audit_and_tried_again_at_once_by_a_repair() {
    with_each(false, async |running| {
        running.refuses(true);
        running.world.send_replace(shop());
        running.until_unready("network policies", "refused: ").await;
        // By then the next try by itself is seconds away.
        tokio::time::sleep(Duration::from_secs(4)).await;
        for repair in [false, true] {
            if repair {
                running.asked(true).await;
            }
            let found = running.audited().await;
            assert!(
                !found.is_empty() && found.iter().all(|line| line.starts_with("rules ") && line.ends_with(" failed")),
                "{found:?}"
            );
        }
        running.refuses(false);
        running.asked(true).await;
        assert_eq!(running.audited().await, Vec::<String>::new());
        running.until_ready().await;
    });
}
