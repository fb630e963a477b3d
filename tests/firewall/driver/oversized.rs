//! A policy with more blocks than the kernel is given: what is in force, and what log, metrics, Events and answers say of it.

use sluice::firewall::explain::EXPLAIN;
use sluice::kernel::nftables::{Chain, Content, Key, Match, Name, Rule};
use sluice::model::{ObjectName, Peer};

use super::super::cases::block;
use super::super::table_walk::Contents;
use super::*;

/// Everything without so many single addresses, far apart: more than 100 prefixes for each.
fn everything_but(holes: u128) -> Peer {
    let hole = |number: u128| {
        format!("{}/128", std::net::Ipv6Addr::from(number << 96 | 1 << 48)).parse().expect("it is well-formed")
    };
    Peer::Block { cidr: "::/0".parse().expect("it is well-formed"), except: (1..=holes).map(hole).collect() }
}

fn with_blocks(peer: Peer) -> World {
    Case(shop()).policy("shop/db", "app=db", [Some(&[rule(&[peer], &[])]), None]).0
}

async fn explained(running: &Running) -> String {
    let (answer, answered) = oneshot::channel();
    let words = [("from", "2001:db8::1"), ("to", "shop/db:80")];
    let about = words.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
    let question = Question { path: EXPLAIN, about, form: AnswerFormat::Text, answer };
    let asking = running.asking.borrow().clone().expect("the loop runs");
    asking.send(question).await.expect("the loop runs");
    answered.await.expect("the loop answers").expect("it is a question")
}

#[test]
fn with_iptables_a_policy_of_too_many_prefixes_matches_nothing_and_is_told_once() {
    with(Backend::Iptables, async |running| {
        running.settles(&with_blocks(everything_but(6000))).await;
        running.until_told(|text| text.contains("sluice_firewall_oversized_policies 1")).await;
        running.beats(5).await;
        let words = "NetworkPolicy has more address ranges than the kernel is given";
        assert_eq!(running.log.lines(words).len(), 1, "{}", running.log.text());
        let problems = running.oversized.borrow().clone();
        let texts: Vec<String> = problems.iter().flat_map(|(_, all)| all.iter()).map(ToString::to_string).collect();
        assert_eq!(problems.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>(), [ObjectName::new("shop", "db")]);
        assert!(
            texts[0].contains("more than 524288 prefixes") && texts[0].ends_with("these match nothing"),
            "{texts:?}"
        );
        let answer = explained(running).await;
        assert!(answer.contains(&format!("policy: NetworkPolicy shop/db: {}", texts[0])), "{answer}");
        assert!(running.kernel.state().elements.len() < 100, "none of it is in the kernel");
        running.settles(&shop()).await;
        running.until_told(|text| text.contains("sluice_firewall_oversized_policies 0")).await;
        assert_eq!(running.log.lines("NetworkPolicy no longer has more address ranges").len(), 1);
        assert_eq!(running.oversized.borrow().iter().count(), 0);
    });
}

#[test]
fn with_nftables_the_same_policy_is_in_force_with_one_element_for_each_hole() {
    with(Backend::Nftables, async |running| {
        running.settles(&with_blocks(everything_but(6000))).await;
        running.until_ready().await;
        running.until_told(|text| text.contains("sluice_firewall_oversized_policies 0")).await;
        let table = running.table.contents();
        let is_range =
            |object: &&Object| matches!(object, Object::Element(set, _) if set.as_str().starts_with("ranges_"));
        assert_eq!(table.keys().filter(is_range).count(), 6001);
        let answer = explained(running).await;
        assert!(!answer.contains("policy:"), "{answer}");
    });
}

/// The table as versions wrote it that had prefixes for all blocks, in sets of one kind of name.
fn of_an_earlier_version(table: &Contents) -> Contents {
    let renamed = |name: &Name| Name::from(name.as_str().replacen("ranges_", "blocks_", 1));
    let mut earlier = Contents::default();
    for (object, content) in table.iter().map(|(object, content)| (object.clone(), content.clone())) {
        match (object, content) {
            (Object::Set(name), content) => drop(earlier.insert(Object::Set(renamed(&name)), content)),
            (Object::Element(set, Key::Range(ends)), content) => {
                let (std::net::IpAddr::V4(first), std::net::IpAddr::V4(last)) = *ends else { panic!("{ends:?}") };
                for prefix in ipnet::Ipv4Subnets::new(first, last, 0) {
                    earlier.insert(Object::Element(renamed(&set), Key::prefix(prefix.into())), content.clone());
                }
            }
            (Object::Element(set, key), content) => drop(earlier.insert(Object::Element(renamed(&set), key), content)),
            (chain, Content::Chain(content)) => {
                let rules = content.rules.iter().map(|rule| match (rule.matches(), rule.verdict()) {
                    ([Match::InSet { lookup, set, negated }], Some(verdict)) if set.as_str().starts_with("ranges_") => {
                        let one = Match::InSet { lookup: *lookup, set: renamed(set), negated: *negated };
                        Rule::new([one], verdict.clone())
                    }
                    _ => rule.clone(),
                });
                let content = Chain { base: content.base, rules: rules.collect() };
                earlier.insert(chain, Content::Chain(content.into()));
            }
            (object, content) => drop(earlier.insert(object, content)),
        }
    }
    earlier
}

#[test]
fn what_an_earlier_version_wrote_as_prefixes_is_replaced_and_never_emptied_also_where_the_cluster_is_known_in_part() {
    for authority in [Authority::Partial, Authority::Complete] {
        with(Backend::Nftables, async |running| {
            let peers = [block("203.0.113.0/24", &["203.0.113.8/32"]), block("2001:db8::/32", &[])];
            let world = Case(shop()).policy("shop/db", "app=db", [Some(&[rule(&peers, &[])]), None]).0;
            let InForce::Table(desired) = running.desired(&world) else { panic!("a table") };
            let earlier = of_an_earlier_version(&desired);
            running.table.change(|table| *table = earlier.clone());
            let authorities = Authorities { firewall: authority, ..Authorities::default() };
            running.world.send_replace(World { authority: authorities, ..world });
            let is_whole = || {
                let now = running.table.contents();
                desired.iter().all(|(object, content)| now.get(object) == Some(content))
            };
            running.until("all that is desired is there", is_whole).await;
            running.beats(3).await;
            assert!(!running.log.text().contains("rejected"), "{}", running.log.text());
            let now = running.table.contents();
            let old: Vec<&Object> = earlier.keys().filter(|object| !desired.contains_key(object)).collect();
            assert!(old.len() > 5, "the set and its prefixes: {old:?}");
            let stays = authority == Authority::Partial;
            assert!(old.iter().all(|object| now.contains_key(object) == stays), "as a whole or not at all: {old:?}");
            assert_eq!(running.table.transactions(), 2, "the new set, and what looks it up");
        });
    }
}
