//! Tests that any Linux with namespaces runs.

mod netlink;
