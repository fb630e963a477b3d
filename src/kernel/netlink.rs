//! The netlink wire: sockets, messages, attributes, batches, dumps.
