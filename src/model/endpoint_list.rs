//! The endpoints of one slice.
//!
//! A slice is of one family, and few endpoints have hints. Without hints an IPv4 endpoint takes 16 bytes and an IPv6 one 32, in place of
//! the 40 of an [`Endpoint`].

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use super::endpoint::{Conditions, Endpoint, Hints};
use super::shared_value::Shared;

/// Endpoints, in the order of their slice.
#[derive(Clone, PartialEq, Eq)]
pub struct EndpointList(ListForm);

/// One list has one form, so that equal lists are equal forms.
#[derive(Clone, PartialEq, Eq)]
enum ListForm {
    V4(Box<[Plain<Ipv4Addr>]>),
    V6(Box<[Plain<Ipv6Addr>]>),
    /// None at all, and those of which any has hints.
    Whole(Box<[Endpoint]>),
}

/// An endpoint without hints.
#[derive(Clone, PartialEq, Eq)]
struct Plain<A> {
    address: A,
    conditions: Conditions,
    node: Option<Shared<str>>,
}

/// An endpoint as it stands in its list.
#[derive(Clone, Copy, Debug)]
pub struct Listed<'a> {
    pub address: IpAddr,
    pub node: Option<&'a Shared<str>>,
    pub conditions: Conditions,
    pub hints: Option<&'a Arc<Hints>>,
}

impl<'a> Listed<'a> {
    /// Returns the name of the node that the endpoint is on, where its slice says so.
    pub fn node_name(self) -> Option<&'a str> {
        self.node.map(|name| &**name)
    }
}

/// Endpoints one after the other, as values of their own.
#[derive(Clone)]
pub struct Iter<'a> {
    list: &'a EndpointList,
    next: usize,
}

impl EndpointList {
    pub fn len(&self) -> usize {
        match &self.0 {
            ListForm::V4(all) => all.len(),
            ListForm::V6(all) => all.len(),
            ListForm::Whole(all) => all.len(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub fn iter(&self) -> Iter<'_> {
        Iter { list: self, next: 0 }
    }

    pub fn to_vec(&self) -> Vec<Endpoint> {
        self.iter().collect()
    }

    /// Returns the endpoints without copies of what they refer to.
    pub fn listed(&self) -> impl Iterator<Item = Listed<'_>> {
        (0..self.len()).filter_map(|index| self.at(index))
    }

    fn at(&self, index: usize) -> Option<Listed<'_>> {
        match &self.0 {
            ListForm::V4(all) => all.get(index).map(Plain::listed),
            ListForm::V6(all) => all.get(index).map(Plain::listed),
            ListForm::Whole(all) => all.get(index).map(|Endpoint { address, node, conditions, hints }| Listed {
                address: *address,
                node: node.as_ref(),
                conditions: *conditions,
                hints: hints.as_ref(),
            }),
        }
    }
}

impl<A: Copy + Into<IpAddr>> Plain<A> {
    /// Returns all endpoints without their hints, if all have addresses of this kind.
    fn of(all: &[Endpoint], address: impl Fn(IpAddr) -> Option<A>) -> Option<Box<[Plain<A>]>> {
        let plain = |endpoint: &Endpoint| {
            let Endpoint { conditions, node, .. } = endpoint.clone();
            Some(Plain { address: address(endpoint.address)?, conditions, node })
        };
        all.iter().map(plain).collect()
    }

    fn listed(&self) -> Listed<'_> {
        Listed { address: self.address.into(), node: self.node.as_ref(), conditions: self.conditions, hints: None }
    }
}

impl Iterator for Iter<'_> {
    type Item = Endpoint;

    fn next(&mut self) -> Option<Endpoint> {
        let Listed { address, node, conditions, hints } = self.list.at(self.next)?;
        self.next += 1;
        Some(Endpoint { address, node: node.cloned(), conditions, hints: hints.cloned() })
    }
}

impl Default for EndpointList {
    fn default() -> Self {
        EndpointList(ListForm::Whole(Box::default()))
    }
}

impl From<Vec<Endpoint>> for EndpointList {
    fn from(all: Vec<Endpoint>) -> Self {
        if all.is_empty() || all.iter().any(|endpoint| endpoint.hints.is_some()) {
            return EndpointList(ListForm::Whole(all.into()));
        }
        let v4 = Plain::of(&all, |address| if let IpAddr::V4(address) = address { Some(address) } else { None });
        let v6 = || Plain::of(&all, |address| if let IpAddr::V6(address) = address { Some(address) } else { None });
        let form = v4.map(ListForm::V4).or_else(|| v6().map(ListForm::V6));
        EndpointList(form.unwrap_or_else(|| ListForm::Whole(all.into())))
    }
}

impl<const N: usize> From<[Endpoint; N]> for EndpointList {
    fn from(all: [Endpoint; N]) -> Self {
        Vec::from(all).into()
    }
}

impl FromIterator<Endpoint> for EndpointList {
    fn from_iter<I: IntoIterator<Item = Endpoint>>(all: I) -> Self {
        all.into_iter().collect::<Vec<Endpoint>>().into()
    }
}

impl fmt::Debug for EndpointList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(address: &str, node: Option<&str>) -> Endpoint {
        let address = address.parse().expect("an address");
        Endpoint { address, node: node.map(Shared::from), conditions: Conditions::READY, hints: None }
    }

    #[test]
    fn whatever_is_put_in_comes_out_and_equal_lists_are_equal() {
        let (one, two) = (endpoint("10.244.1.1", Some("node1")), endpoint("10.244.1.2", None));
        let (six, seven) = (endpoint("fd00::6", None), endpoint("fd00::7", Some("node1")));
        let hints = Some(Arc::new(Hints { zones: ["east".into()].into(), nodes: [].into() }));
        let leaving = Conditions { ready: false, serving: true, terminating: true };
        let lists = [
            vec![],
            vec![one.clone()],
            vec![one.clone(), two.clone()],
            vec![two.clone(), one.clone()],
            vec![six.clone(), seven],
            vec![one.clone(), six],
            vec![Endpoint { hints, ..one.clone() }, two],
            vec![Endpoint { conditions: leaving, ..one }],
        ];
        for (place, list) in lists.iter().enumerate() {
            let kept = EndpointList::from(list.clone());
            assert_eq!((&kept.to_vec(), kept.len(), kept.is_empty()), (list, list.len(), list.is_empty()));
            for (other_place, other) in lists.iter().enumerate() {
                assert_eq!(kept == EndpointList::from(other.clone()), place == other_place, "{list:?} {other:?}");
            }
        }
    }

    #[test]
    fn an_endpoint_without_hints_takes_16_or_32_bytes() {
        assert_eq!((size_of::<Plain<Ipv4Addr>>(), size_of::<Plain<Ipv6Addr>>()), (16, 32));
        let list = EndpointList::from([endpoint("10.244.1.1", Some("node1")), endpoint("10.244.1.2", None)]);
        assert!(matches!(list.0, ListForm::V4(_)));
        let list = EndpointList::from([endpoint("fd00::1", Some("node1")), endpoint("fd00::2", None)]);
        assert!(matches!(list.0, ListForm::V6(_)));
    }
}
