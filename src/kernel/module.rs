//! Loading kernel modules, by `modprobe`: the only program beside `iptables-restore` and `iptables-save` that is ever started.
