//! Warnings about Services and their endpoint slices, as problems of the Services that they concern.
//!
//! Memory is bounded: beyond a number of invalid objects the rest is not kept.

use std::collections::BTreeMap;

use crate::k8s::{Kind, Object, ObjectId, Warning};
use crate::model::{Cause, ObjectName, ServiceProblem, ServiceProblems, put_problems};

/// The warnings that stand.
#[derive(Default)]
pub struct ServiceWarnings {
    all: ServiceProblems,
    /// By Service and the object that they are about.
    of: BTreeMap<(ObjectName, Kind, ObjectName), Warned>,
    /// The Service of each slice that has any.
    slices: BTreeMap<ObjectName, ObjectName>,
    /// The number of listings that have begun.
    listings: u64,
}

/// The warnings of one object.
struct Warned {
    problems: Vec<ServiceProblem>,
    /// The listing that named it last.
    listing: u64,
}

const OBJECTS: usize = 1000;

impl ServiceWarnings {
    pub fn all(&self) -> &ServiceProblems {
        &self.all
    }

    /// Notes that a listing begins: what it does not name is gone.
    pub fn begin_listing(&mut self) {
        self.listings += 1;
    }

    /// Forgets the objects of a kind that its listing, which is over, has not named. Returns whether the problems of a Service have changed.
    pub fn end_listing(&mut self, kind: Kind, begun: u64) -> bool {
        let is_gone =
            |(key, warned): &(&(ObjectName, Kind, ObjectName), &Warned)| key.1 == kind && warned.listing < begun;
        let gone: Vec<_> = self.of.iter().filter(is_gone).map(|(key, _)| key.clone()).collect();
        let mut changed = false;
        for (service, kind, name) in gone {
            if kind == Kind::EndpointSlice {
                self.slices.remove(&name);
            }
            changed |= self.set(service, &ObjectId { kind, name }, Vec::new());
        }
        changed
    }

    /// The listing that has begun last.
    pub fn listing(&self) -> u64 {
        self.listings
    }

    /// Replaces the warnings of an object. Returns whether the problems of a Service have changed.
    pub fn put(&mut self, object: &Object, warnings: &[Warning]) -> bool {
        if warnings.is_empty() && self.of.is_empty() {
            return false;
        }
        let id = object.id();
        let service = match (object, id.kind) {
            (_, Kind::Service) => id.name.clone(),
            (Object::EndpointSlice(name, Some(slice)), _) => ObjectName::new(&name.namespace, &slice.service),
            // One that is gone or unreadable does not say whose it was.
            (_, Kind::EndpointSlice) => match self.slices.get(&id.name) {
                Some(service) => service.clone(),
                None => return false,
            },
            _ => return false,
        };
        let created = match object {
            Object::Service(_, Some(service)) => service.created,
            _ => 0,
        };
        let mut changed = false;
        let before = self.slices.get(&id.name).filter(|before| id.kind == Kind::EndpointSlice && **before != service);
        if let Some(before) = before.cloned() {
            changed = self.set(before, &id, Vec::new());
        }
        let problems = warnings.iter().map(|warning| problem(&id, warning).of(created)).collect();
        changed |= self.set(service.clone(), &id, problems);
        if id.kind == Kind::EndpointSlice {
            let key = (service, id.kind, id.name);
            match self.of.contains_key(&key) {
                true => self.slices.insert(key.2, key.0),
                false => self.slices.remove(&key.2),
            };
        }
        changed
    }

    fn set(&mut self, service: ObjectName, id: &ObjectId, problems: Vec<ServiceProblem>) -> bool {
        let key = (service.clone(), id.kind, id.name.clone());
        if problems.is_empty() {
            if self.of.remove(&key).is_none() {
                return false;
            }
        } else if self.of.len() < OBJECTS || self.of.contains_key(&key) {
            self.of.insert(key, Warned { problems, listing: self.listings });
        }
        let first = (service.clone(), Kind::Service, ObjectName::new("", ""));
        let of_service = self.of.range(first..).take_while(|((of, ..), _)| *of == service);
        let problems = of_service.flat_map(|(_, warned)| warned.problems.iter().cloned()).collect();
        put_problems(&mut self.all, &service, problems)
    }
}

fn problem(id: &ObjectId, warning: &Warning) -> ServiceProblem {
    let text = warning.to_string();
    match id.kind {
        Kind::EndpointSlice => {
            let slice = &id.name.name;
            let subject = format!("{slice} {text}");
            ServiceProblem::new(Cause::Endpoints, &subject, format!("EndpointSlice {slice}: {text}"))
        }
        _ => ServiceProblem::new(Cause::Field, &text.clone(), text),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::k8s::SliceOf;
    use crate::model::EndpointSlice;
    use crate::net::Family;

    fn name(name: &str) -> ObjectName {
        ObjectName::new("shop", name)
    }

    fn warning(text: &str) -> Warning {
        Warning { field: "spec.x".into(), text: text.to_owned() }
    }

    fn slice(of: &str) -> Object {
        let slice = EndpointSlice { family: Family::V4, ports: Default::default(), endpoints: Default::default() };
        Object::EndpointSlice(name("web-abc"), Some(Box::new(SliceOf { service: of.into(), slice: Arc::new(slice) })))
    }

    fn said(warnings: &ServiceWarnings) -> Vec<String> {
        let of = warnings.all.iter().flat_map(|(name, all)| all.iter().map(move |it| format!("{name}: {it}")));
        of.collect()
    }

    #[test]
    fn warnings_of_a_service_and_its_slices_are_its_problems_until_they_are_gone() {
        let mut warnings = ServiceWarnings::default();
        let service = Object::Service(name("web"), None);
        assert!(!warnings.put(&service, &[]));
        assert!(warnings.put(&service, &[warning("odd")]));
        assert!(!warnings.put(&service, &[warning("odd")]), "nothing new");
        assert!(warnings.put(&slice("web"), &[warning("left out")]));
        let slices = "shop/web: EndpointSlice web-abc: spec.x: left out";
        assert_eq!(said(&warnings), ["shop/web: spec.x: odd", slices]);
        assert!(warnings.put(&service, &[]));
        assert_eq!(said(&warnings), [slices]);
        assert!(warnings.put(&slice("other"), &[warning("left out")]), "the slice is another Service's now");
        assert_eq!(said(&warnings), ["shop/other: EndpointSlice web-abc: spec.x: left out"]);
        let gone = Object::EndpointSlice(name("web-abc"), None);
        assert!(warnings.put(&gone, &[]));
        assert!(said(&warnings).is_empty() && warnings.of.is_empty() && warnings.slices.is_empty());
        assert!(!warnings.put(&gone, &[]));
    }

    #[test]
    fn what_a_listing_does_not_name_is_gone() {
        let mut warnings = ServiceWarnings::default();
        let of = |of: &str| Object::Service(name(of), None);
        warnings.put(&of("web"), &[warning("odd")]);
        warnings.put(&of("gone"), &[warning("odd")]);
        warnings.put(&slice("gone"), &[warning("left out")]);
        warnings.begin_listing();
        let begun = warnings.listing();
        // A listing of another kind begins meanwhile.
        warnings.begin_listing();
        assert!(!warnings.put(&of("web"), &[warning("odd")]));
        assert!(warnings.end_listing(Kind::Service, begun));
        let slices = "shop/gone: EndpointSlice web-abc: spec.x: left out";
        assert_eq!(said(&warnings), [slices, "shop/web: spec.x: odd"]);
        let begun = warnings.listing();
        assert!(warnings.end_listing(Kind::EndpointSlice, begun));
        assert_eq!(said(&warnings), ["shop/web: spec.x: odd"]);
        assert!(warnings.slices.is_empty());
    }

    #[test]
    fn memory_is_bounded() {
        let mut warnings = ServiceWarnings::default();
        for number in 0..OBJECTS + 10 {
            warnings.put(&Object::Service(name(&number.to_string()), None), &[warning("odd")]);
        }
        assert_eq!((warnings.all.len(), warnings.of.len()), (OBJECTS, OBJECTS));
    }
}
