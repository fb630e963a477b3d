//! Tells what others changed in the kernel, by netlink notifications.
