"""The lab: Kubernetes-like nodes on one machine, for the demo and the tests. `scripts/lab --help` is the way in."""
