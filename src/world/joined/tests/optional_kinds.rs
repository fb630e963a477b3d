//! Kinds that a cluster may lack, or may not let us read: ClusterNetworkPolicies and ServiceCIDRs.

use super::*;

#[test]
fn nobody_waits_for_a_kind_that_may_not_be_read_and_what_was_known_of_it_stays() {
    let kind = Kind::ClusterNetworkPolicy;
    let wanted = [Wanted::Pods, Wanted::Namespaces, Wanted::NetworkPolicies, Wanted::ClusterNetworkPolicies];
    let mut earlier = known(&[Wanted::ClusterNetworkPolicies]);
    list(&mut earlier, kind, vec![cluster_policy("guard")]);
    let mut joined = Joined::new(&wanted);
    joined.remember(Known { cluster: earlier.cluster, kinds: Kind::ALL.to_vec(), all_nodes: true });
    for kind in [Kind::Pod, Kind::Namespace, Kind::NetworkPolicy] {
        list(&mut joined, kind, vec![]);
    }
    assert_eq!(joined.authority().firewall, Authority::Remembered);
    joined.withhold(kind);
    assert_eq!(joined.authority().firewall, Authority::Complete);
    assert_eq!(joined.names(kind).len(), 1);
    // The right is there again, or the kind is gone.
    list(&mut joined, kind, vec![]);
    assert_eq!(joined.names(kind).len(), 0);
}

#[test]
fn the_firewall_waits_until_cluster_policies_are_listed_or_known_to_be_none() {
    let mut joined = Joined::new(&[Wanted::Pods, Wanted::ClusterNetworkPolicies]);
    list(&mut joined, Kind::Pod, vec![]);
    assert_eq!(joined.authority().firewall, Authority::Nothing);
    list(&mut joined, Kind::ClusterNetworkPolicy, vec![]);
    assert_eq!(joined.authority().firewall, Authority::Complete);
}

/// Tables at a start: all other kinds are listed and empty.
fn without_cluster_policies() -> Joined {
    let mut joined = Joined::new(&FIREWALL);
    for kind in [Kind::Pod, Kind::Namespace, Kind::NetworkPolicy] {
        list(&mut joined, kind, vec![]);
    }
    joined
}

#[test]
fn a_cluster_policy_that_was_never_understood_leaves_the_rest_complete_and_is_named() {
    let kind = Kind::ClusterNetworkPolicy;
    let mut joined = without_cluster_policies();
    let typo = Object::Unreadable(cluster_policy("typo").id());
    list(&mut joined, kind, vec![typo.clone(), cluster_policy("guard")]);
    assert_eq!(firewall(&mut joined), Authority::Complete);
    assert_eq!(joined.unread(), UnreadPolicies::Named(Arc::new([CompactString::from("typo")].into())));
    assert_eq!(joined.policies_not_in_force(), ["ClusterNetworkPolicy typo".to_owned()].into());
    joined.take_unpublished();
    joined.put(cluster_policy("typo"));
    assert_eq!((joined.unread(), joined.policies_not_in_force().len()), (UnreadPolicies::None, 0));
    // One that is known keeps its last good version.
    joined.put(typo);
    assert_eq!((joined.unread(), joined.names(kind).len()), (UnreadPolicies::None, 2));
    let nameless = Object::Unreadable(ObjectId { kind, name: ObjectName::new("", "") });
    joined.put(nameless);
    assert_eq!(joined.unread(), UnreadPolicies::Any);
}

#[test]
fn cluster_policies_that_nobody_waits_for_are_unknown_until_they_are_listed_or_remembered() {
    let kind = Kind::ClusterNetworkPolicy;
    let mut joined = without_cluster_policies();
    joined.withhold(kind);
    assert_eq!((firewall(&mut joined), joined.unread()), (Authority::Complete, UnreadPolicies::Any));
    assert!(!joined.may_be_kept(), "the file may know them");
    joined.take_unpublished();
    list(&mut joined, kind, vec![]);
    assert!(joined.take_unpublished() && joined.may_be_kept());
    assert_eq!(joined.unread(), UnreadPolicies::None);
    joined.withhold(kind);
    assert_eq!(joined.unread(), UnreadPolicies::None, "what was listed is known");

    let mut earlier = known(&[Wanted::ClusterNetworkPolicies]);
    list(&mut earlier, kind, vec![cluster_policy("guard")]);
    let mut joined = without_cluster_policies();
    joined.withhold(kind);
    joined.remember(Known { cluster: earlier.cluster, kinds: vec![kind], all_nodes: true });
    assert_eq!((joined.unread(), joined.names(kind).len()), (UnreadPolicies::None, 1));
}

#[test]
fn ranges_of_cluster_ips_are_waited_for_by_all_who_need_them_and_make_no_part_of_their_own() {
    let mut joined = Joined::new(&[Wanted::Services, Wanted::EndpointSlices, Wanted::ServiceCidrs]);
    list(&mut joined, Kind::Service, vec![]);
    list(&mut joined, Kind::EndpointSlice, vec![]);
    assert_eq!(joined.authority(), Authorities::default(), "an external address may lie in one of them");
    list(&mut joined, Kind::ServiceCidr, vec![service_cidr("kubernetes", &["10.96.0.0/12", "fd00:10:96::/108"])]);
    assert_eq!(joined.authority(), Authorities { proxy: Authority::Complete, ..Authorities::default() });
    assert_eq!(service_ranges(&joined), ["10.96.0.0/12", "fd00:10:96::/108"]);
    assert!(joined.put(service_cidr("more", &["10.0.0.0/16"])), "that is news");
    assert!(!joined.put(service_cidr("more", &["10.0.0.0/16"])));
    assert!(joined.put(gone(&service_cidr("more", &[]))));
    assert_eq!(service_ranges(&joined).len(), 2);
}

#[test]
fn ranges_that_may_not_be_read_hold_nobody_up_and_those_of_the_last_known_state_count() {
    let wanted = [Wanted::Pods, Wanted::ServiceCidrs];
    let mut earlier = known(&[Wanted::ServiceCidrs]);
    list(&mut earlier, Kind::ServiceCidr, vec![service_cidr("kubernetes", &["10.0.0.0/16"])]);
    let mut joined = Joined::new(&wanted);
    list(&mut joined, Kind::Pod, vec![]);
    joined.withhold(Kind::ServiceCidr);
    assert_eq!(joined.authority().firewall, Authority::Complete);
    assert!(service_ranges(&joined).is_empty() && !joined.may_be_kept(), "the file may know more");
    assert!(joined.may_remember());
    joined.remember(Known { cluster: earlier.cluster, kinds: Kind::ALL.to_vec(), all_nodes: true });
    assert!(service_ranges(&joined) == ["10.0.0.0/16"] && joined.may_be_kept());
    joined.put(Object::Unreadable(service_cidr("other", &[]).id()));
    assert_eq!(joined.authority().firewall, Authority::Complete, "others need not wait for one that cannot be read");
}
