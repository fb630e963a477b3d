//! Changes by clients: their log text, and the routes that must not be added.

use ipnet::IpNet;

use crate::bgp::message::Attributes;
use crate::bgp::policy::{Outcome, Policy};
use crate::bgp::rib::PeerId;
use crate::bgp::speaker::Order;

/// Formats a change as a client would type it, without passwords.
pub fn text(order: &Order) -> String {
    match order {
        Order::Want(wanted) => {
            let asn = wanted.settings.asn.map_or("any".to_owned(), |asn| asn.to_string());
            format!("neighbor add {} as {asn}", wanted.address)
        }
        Order::Remove(address, _) => format!("neighbor del {address}"),
        Order::Stop(address, _) => format!("neighbor {address} disable"),
        Order::Start(address) => format!("neighbor {address} enable"),
        Order::Restart(address, _) => format!("neighbor {address} reset"),
        Order::AskAgain(address) => format!("neighbor {address} softresetin"),
        Order::TellAgain(address) => format!("neighbor {address} softresetout"),
        Order::Add(prefix, attributes) => format!("global rib add {prefix} nexthop {}", attributes.next_hop),
        Order::Delete(prefix) => format!("global rib del {prefix}"),
        // Not available to clients.
        Order::Originate(..)
        | Order::Retract(_)
        | Order::Policies(_)
        | Order::OwnAddresses(_)
        | Order::Unreachable(_)
        | Order::ExpectMore(_) => "another change".to_owned(),
    }
}

/// Returns whether import policy rejects a route that a client adds: it would have no effect, or divert a node's
/// traffic.
pub fn is_refused(import: &Policy, prefix: IpNet, attributes: &Attributes) -> bool {
    let applicable = import.applicable(Some(PeerId::OPERATOR_ADDRESS));
    import.outcome(&applicable, prefix, attributes, None) == Outcome::Rejected
}
