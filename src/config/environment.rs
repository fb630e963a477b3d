//! The process's surroundings, as far as the configuration depends on them.

use std::path::PathBuf;

/// The environment of the process, as far as the configuration needs it.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Environment {
    /// The variable `NODE_NAME`; `None` when it is not set.
    pub node_name: Option<String>,
    /// The name the kernel has for this host.
    pub host_name: String,
    /// The variable `KUBE_ROUTER_CNI_CONF_FILE`; `None` when it is not set.
    pub cni_file: Option<PathBuf>,
    /// Our own list of plugins that is on this host in place of the default file ([`super::DEFAULT_CNI_FILE`]), if there is one.
    pub cni_list: Option<PathBuf>,
    /// The variable `HOST_BIN_PATH`, as `cni-install` has it; `None` when it is not set.
    pub host_bin_path: Option<PathBuf>,
    /// The variable `POD_NAMESPACE`, or else the namespace of the pod's service account; `None` outside of a pod.
    pub pod_namespace: Option<String>,
    /// The variable `POD_NAME`; `None` when it is not set.
    pub pod_name: Option<String>,
}
