//! Pods that cannot be set up: problems of their Services, and tunnels that are lacking.

use super::*;

#[test]
fn a_pod_that_cannot_be_set_up_is_a_problem_of_its_services() {
    let mut joined = joined();
    joined.wanted(&with_pod(), &Wanted::default());
    let left_out = |pod: &str| LeftOut {
        pod: at(pod),
        services: [at("203.0.113.7")].into(),
        reason: "no container runtime answers".to_owned(),
    };
    let standing = Standing { left_out: vec![left_out("10.244.1.5"), left_out("10.244.1.9")], ..Standing::default() };
    let problems = joined.problems(&standing);
    let problem = &problems.get(&web()).expect("it is named")[0];
    assert_eq!(
        problem.text,
        "pod 10.244.1.5 does not answer for 203.0.113.7 (direct server return), and what other nodes send it through tunnels is lost: no container runtime answers"
    );
    assert_eq!((problem.cause.reason(), &*problem.subject, problem.created), ("PodTunnelMissing", "pod 10.244.1.5", 7));
    assert!(joined.problems(&Standing::default()).is_empty());
}

#[tokio::test(start_paused = true)]
async fn what_is_wanted_and_what_cannot_be_set_up_go_both_ways() {
    let (world_out, world_in) = watch::channel(World::empty());
    let (wanted, mut wanted_in) = watch::channel(Arc::default());
    let (standing, standing_in) = watch::channel(Arc::default());
    let (problems, mut problems_in) = watch::channel(ServiceProblems::default());
    let (tunnel_ends, mut ends) = watch::channel(Arc::<TunnelEnds>::default());
    let note = Health::default().note(PODS);
    let out = Out { wanted, problems, tunnel_ends, note };
    let following = tokio::spawn(follow(joined(), world_in, standing_in, out));
    world_out.send_replace(with_pod());
    wanted_in.changed().await.expect("it is told");
    assert_eq!(wanted_in.borrow().tunnels.len(), 1);
    let left_out = LeftOut { pod: at("10.244.1.5"), services: Default::default(), reason: "why".to_owned() };
    standing.send_replace(Arc::new(Standing { left_out: vec![left_out], ..Standing::default() }));
    problems_in.changed().await.expect("it is told");
    assert_eq!(problems_in.borrow_and_update().len(), 1);
    let (begun, it) = (Instant::now(), Untunnelled::from([(web(), [at("10.244.1.5")].into())]));
    let proven = |is: bool| Some(if is { Untunnelled::new() } else { it.clone() });
    ends.wait_for(|ends| ends.unproven == proven(false)).await.expect("it is told at once");
    ends.wait_for(|ends| ends.lacking == it).await.expect("it is told");
    assert_eq!(begun.elapsed().as_secs(), 5, "a short failure takes nobody out");
    let set_up = [(at("10.244.1.5"), [at("203.0.113.7")].into())].into();
    standing.send_replace(Arc::new(Standing { set_up, ..Standing::default() }));
    ends.wait_for(|ends| ends.lacking.is_empty() && ends.unproven == proven(true)).await.expect("it is told at once");
    assert_eq!(begun.elapsed().as_secs(), 5);
    problems_in.changed().await.expect("it is told");
    assert!(problems_in.borrow_and_update().is_empty());
    // The thread of the pods ends before the World does.
    drop(standing);
    tokio::time::sleep(Duration::from_secs(1)).await;
    world_out.send_replace(world(false));
    wanted_in.changed().await.expect("it is told");
    drop(world_out);
    following.await.expect("it ends");
}
