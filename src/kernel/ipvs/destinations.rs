//! The destinations of one virtual service.
//!
//! Those of most Services differ in their addresses alone: port, weight and forwarding are in memory once then, and an IPv4 address takes
//! 4 bytes in place of the 40 of a [`Destination`]. Copies share everything.

use std::cmp::Ordering;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use super::{Destination, Forwarding};

/// Destinations, sorted by address, each address and port once.
#[derive(Clone, PartialEq, Eq)]
pub struct Destinations(Arc<ListForm>);

/// One list has one form, so that equal lists are equal forms.
#[derive(PartialEq, Eq)]
enum ListForm {
    V4(Alike, Box<[Ipv4Addr]>),
    V6(Alike, Box<[Ipv6Addr]>),
    /// None at all, and those that differ in more than their addresses.
    Mixed(Box<[Destination]>),
}

/// Fields that all destinations of one family have in common.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Alike {
    port: u16,
    forwarding: Forwarding,
    weight: u32,
}

impl Destinations {
    pub fn len(&self) -> usize {
        match &*self.0 {
            ListForm::V4(_, addresses) => addresses.len(),
            ListForm::V6(_, addresses) => addresses.len(),
            ListForm::Mixed(all) => all.len(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub fn iter(&self) -> impl Iterator<Item = Destination> {
        (0..self.len()).filter_map(|index| self.at(index))
    }

    pub fn to_vec(&self) -> Vec<Destination> {
        // The iterator does not know its length, and a list that grows is copied again and again.
        let mut all = Vec::with_capacity(self.len());
        all.extend(self.iter());
        all
    }

    /// Returns whether all are of IPv4.
    pub fn are_ipv4(&self) -> bool {
        match &*self.0 {
            ListForm::V4(..) => true,
            ListForm::V6(..) => false,
            ListForm::Mixed(all) => all.iter().all(|one| one.address.is_ipv4()),
        }
    }

    /// Returns whether packets go to all of them by this method.
    pub fn are_all(&self, forwarding: Forwarding) -> bool {
        match &*self.0 {
            ListForm::V4(alike, _) | ListForm::V6(alike, _) => alike.forwarding == forwarding,
            ListForm::Mixed(all) => all.iter().all(|one| one.forwarding == forwarding),
        }
    }

    /// Returns the number of this destination, by which [`at`](Destinations::at) knows it; `None` unless it is there exactly so.
    pub fn place_of(&self, wanted: &Destination) -> Option<usize> {
        let index = self.index_of(wanted.address)?;
        (self.at(index) == Some(*wanted)).then_some(index)
    }

    /// Returns the destination with this address and port.
    pub fn find(&self, address: SocketAddr) -> Option<Destination> {
        self.at(self.index_of(address)?)
    }

    fn index_of(&self, address: SocketAddr) -> Option<usize> {
        match (&*self.0, address) {
            (ListForm::V4(alike, all), SocketAddr::V4(address)) if alike.port == address.port() => {
                all.binary_search(address.ip()).ok()
            }
            (ListForm::V6(..), _) | (ListForm::Mixed(_), _) => self.place(address),
            (ListForm::V4(..), _) => None,
        }
    }

    /// Returns all of them, the one with this number first, and those before it last.
    pub fn iter_from(&self, first: usize) -> impl Iterator<Item = Destination> {
        (first..self.len()).chain(0..first).filter_map(|index| self.at(index))
    }

    /// Returns these and the wanted ones; of an address that both have, as wanted.
    pub fn joined_with(&self, wanted: &Destinations) -> Destinations {
        if let (ListForm::V4(alike, here), ListForm::V4(alike_too, wanted)) = (&*self.0, &*wanted.0)
            && alike == alike_too
        {
            return Destinations(Arc::new(ListForm::V4(*alike, joined(here, wanted))));
        }
        let mut all = Vec::with_capacity(self.len() + wanted.len());
        let mut here = self.iter().peekable();
        for destination in wanted.iter() {
            while let Some(smaller) = here.next_if(|it| it.address < destination.address) {
                all.push(smaller);
            }
            here.next_if(|it| it.address == destination.address);
            all.push(destination);
        }
        all.extend(here);
        all.into()
    }

    fn place(&self, address: SocketAddr) -> Option<usize> {
        let (mut first, mut end) = (0, self.len());
        while first < end {
            let middle = first + (end - first) / 2;
            match self.at(middle)?.address.cmp(&address) {
                Ordering::Less => first = middle + 1,
                Ordering::Equal => return Some(middle),
                Ordering::Greater => end = middle,
            }
        }
        None
    }

    /// Returns the destination with this number.
    pub fn at(&self, index: usize) -> Option<Destination> {
        match &*self.0 {
            ListForm::V4(alike, addresses) => addresses.get(index).map(|address| alike.with((*address).into())),
            ListForm::V6(alike, addresses) => addresses.get(index).map(|address| alike.with((*address).into())),
            ListForm::Mixed(all) => all.get(index).copied(),
        }
    }
}

/// Returns the elements of two sorted lists, sorted, each once.
fn joined<T: Copy + Ord>(one: &[T], other: &[T]) -> Box<[T]> {
    let mut all = Vec::with_capacity(one.len() + other.len());
    let mut one = one.iter().copied().peekable();
    for element in other {
        while let Some(smaller) = one.next_if(|it| it < element) {
            all.push(smaller);
        }
        one.next_if(|it| it == element);
        all.push(*element);
    }
    all.extend(one);
    all.into()
}

impl Alike {
    fn of(destination: &Destination) -> Alike {
        let Destination { address, weight, forwarding } = *destination;
        Alike { port: address.port(), forwarding, weight }
    }

    fn with(self, address: IpAddr) -> Destination {
        let Alike { port, forwarding, weight } = self;
        Destination { address: SocketAddr::new(address, port), weight, forwarding }
    }
}

/// Returns the form of destinations that differ in their addresses of one family alone.
fn alike(all: &[Destination]) -> Option<ListForm> {
    let alike = Alike::of(all.first()?);
    if !all.iter().all(|destination| alike.with(destination.address.ip()) == *destination) {
        return None;
    }
    let addresses = || all.iter().map(|destination| destination.address.ip());
    if let Some(addresses) =
        addresses().map(|address| if let IpAddr::V4(it) = address { Some(it) } else { None }).collect()
    {
        return Some(ListForm::V4(alike, addresses));
    }
    let of_v6 = addresses().map(|address| if let IpAddr::V6(it) = address { Some(it) } else { None });
    of_v6.collect::<Option<_>>().map(|addresses| ListForm::V6(alike, addresses))
}

impl Default for Destinations {
    fn default() -> Self {
        Destinations::from([])
    }
}

impl From<Vec<Destination>> for Destinations {
    fn from(all: Vec<Destination>) -> Self {
        Destinations(Arc::new(alike(&all).unwrap_or_else(|| ListForm::Mixed(all.into()))))
    }
}

impl<const N: usize> From<[Destination; N]> for Destinations {
    fn from(all: [Destination; N]) -> Self {
        Vec::from(all).into()
    }
}

impl FromIterator<Destination> for Destinations {
    fn from_iter<I: IntoIterator<Item = Destination>>(all: I) -> Self {
        all.into_iter().collect::<Vec<Destination>>().into()
    }
}

impl fmt::Debug for Destinations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddrV6;

    use super::*;

    fn nat(address: &str, weight: u32) -> Destination {
        let address = address.parse().expect("an address and a port");
        Destination { address, weight, forwarding: Forwarding::Nat }
    }

    #[test]
    fn whatever_is_put_in_comes_out_and_equal_lists_are_equal() {
        let (one, two) = (nat("10.244.1.1:80", 1), nat("10.244.1.2:80", 1));
        let (six, seven) = (nat("[fd00::6]:80", 1), nat("[fd00::7]:80", 1));
        let scoped = SocketAddrV6::new("fe80::1".parse().expect("an address"), 80, 0, 3).into();
        let lists = [
            vec![],
            vec![one],
            vec![one, two],
            vec![six, seven],
            vec![one, nat("10.244.1.2:80", 0)],
            vec![one, nat("10.244.1.2:81", 1)],
            vec![one, Destination { forwarding: Forwarding::Tunnel, ..two }],
            vec![one, six],
            vec![Destination { address: scoped, ..six }],
            vec![nat("[fe80::1]:80", 1)],
        ];
        for (place, list) in lists.iter().enumerate() {
            let kept = Destinations::from(list.clone());
            assert_eq!((kept.to_vec(), kept.len(), kept.is_empty()), (list.clone(), list.len(), list.is_empty()));
            for (other_place, other) in lists.iter().enumerate() {
                assert_eq!(kept == Destinations::from(other.clone()), place == other_place, "{list:?} {other:?}");
            }
        }
    }

    #[test]
    fn a_destination_is_found_by_its_address_and_port_in_lists_of_all_forms() {
        let (one, two, three) = (nat("10.244.1.1:80", 1), nat("10.244.1.2:80", 1), nat("10.244.1.2:81", 0));
        let (six, seven) = (nat("[fd00::6]:80", 1), nat("[fd00::7]:80", 1));
        let all = [one, two, three, six, seven];
        for list in [&[][..], &[one], &[one, two], &[six], &[six, seven], &[one, two, three], &[two, seven]] {
            let kept = Destinations::from(list.to_vec());
            for asked in all {
                let expected = list.iter().find(|it| it.address == asked.address).copied();
                assert_eq!(kept.find(asked.address), expected, "{asked:?} in {list:?}");
            }
            for first in 0..=list.len() {
                let turned: Vec<Destination> = kept.iter_from(first).collect();
                assert_eq!(turned, [&list[first..], &list[..first]].concat());
            }
        }
    }

    #[test]
    fn joined_lists_have_each_address_once_as_it_is_wanted_and_are_sorted() {
        let text = |list: &Destinations| {
            list.iter().map(|it| format!("{}={}", it.address, it.weight)).collect::<Vec<_>>().join(" ")
        };
        let joined = |here: &[(&str, u32)], wanted: &[(&str, u32)]| {
            let list =
                |of: &[(&str, u32)]| of.iter().map(|(address, weight)| nat(address, *weight)).collect::<Destinations>();
            text(&list(here).joined_with(&list(wanted)))
        };
        let (one, two, three) = ("10.0.0.1:80", "10.0.0.2:80", "[fd00::3]:80");
        assert_eq!(joined(&[], &[]), "");
        assert_eq!(joined(&[(one, 1)], &[]), "10.0.0.1:80=1");
        assert_eq!(joined(&[], &[(one, 1)]), "10.0.0.1:80=1");
        assert_eq!(joined(&[(one, 1), (three, 1)], &[(two, 1)]), "10.0.0.1:80=1 10.0.0.2:80=1 [fd00::3]:80=1");
        assert_eq!(
            joined(&[(one, 1), (two, 1)], &[(two, 0), (three, 1)]),
            "10.0.0.1:80=1 10.0.0.2:80=0 [fd00::3]:80=1"
        );
        assert_eq!(joined(&[(two, 1), (three, 1)], &[(one, 1)]), "10.0.0.1:80=1 10.0.0.2:80=1 [fd00::3]:80=1");
    }

    #[test]
    fn destinations_that_differ_in_their_addresses_alone_take_a_few_bytes_each() {
        let alike: Destinations = (1..=10).map(|host| nat(&format!("10.244.1.{host}:80"), 1)).collect();
        assert!(matches!(&*alike.0, ListForm::V4(_, addresses) if size_of_val(&**addresses) == 40));
        let alike: Destinations = (1..=10).map(|host| nat(&format!("[fd00::{host}]:80"), 1)).collect();
        assert!(matches!(&*alike.0, ListForm::V6(_, addresses) if size_of_val(&**addresses) == 160));
    }
}
