//! The shared values of all objects of one source: each in memory once.

use std::sync::Arc;

use crate::model::{EndpointPort, Hints, Interner, Labels, NamedPort, NamespaceName, ObjectName, ServicePort, Shared};

/// The shared values of all objects that are parsed with it.
#[derive(Default, Debug)]
pub struct Pool {
    namespaces: Interner<NamespaceName>,
    nodes: Interner<Shared<str>>,
    labels: Interner<Labels>,
    ports: Interner<Shared<[NamedPort]>>,
    service_ports: Interner<Shared<[ServicePort]>>,
    endpoint_ports: Interner<Shared<[EndpointPort]>>,
    hints: Interner<Arc<Hints>>,
}

impl Pool {
    /// This name, with the one copy of its namespace's.
    pub fn object(&mut self, name: ObjectName) -> ObjectName {
        ObjectName::of(self.namespaces.intern(name.namespace.as_str()), &name.name)
    }

    /// The one copy of a node's name.
    pub fn node(&mut self, name: &str) -> Shared<str> {
        self.nodes.intern(name)
    }

    /// The one copy of these labels.
    pub fn labels(&mut self, labels: Labels) -> Labels {
        self.labels.intern_owned(labels)
    }

    /// The one copy of these hints.
    pub fn hints(&mut self, hints: Hints) -> Arc<Hints> {
        self.hints.intern_owned(Arc::new(hints))
    }

    /// The one copy of a Service's ports.
    pub fn service_ports(&mut self, ports: Shared<[ServicePort]>) -> Shared<[ServicePort]> {
        self.service_ports.intern_owned(ports)
    }

    /// The one copy of the ports of a slice.
    pub fn endpoint_ports(&mut self, ports: Vec<EndpointPort>) -> Shared<[EndpointPort]> {
        self.endpoint_ports.intern_owned(ports.into())
    }

    /// The one copy of a pod's ports.
    pub fn ports(&mut self, ports: &[NamedPort]) -> Shared<[NamedPort]> {
        self.ports.intern(ports)
    }
}
