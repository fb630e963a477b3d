//! The firewall: NetworkPolicies become rules and sets.
//!
//! Kubernetes: NetworkPolicy (`networking.k8s.io/v1`), Pod, Namespace. A pod that no policy selects accepts and sends
//! everything; one that policies select accepts (ingress) or sends (egress) only what one of them allows. This module
//! decides what that means for the pods of this node.
//!
//! Reading order: [`rules`] is the compiled form, which knows no backend; [`compile`] makes the rules of one policy, with
//! one file for each feature that decides about them: [`selection`] (pods and namespaces by labels), [`ip_block`]
//! (address ranges with holes), [`port_number`], [`named_port`].

pub mod rules;
pub mod compile;
pub mod selection;
pub mod ip_block;
pub mod port_number;
pub mod named_port;
