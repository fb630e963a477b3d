//! How the API server is reached, and as whom.
//!
//! - A kubeconfig file says both; `--master` overrides the server that it names.
//! - Without one, the pod's service account: its token and certificate authority, and the server that the
//!   environment names. `--master` overrides the server, and outside a pod, where there is no token, it is
//!   asked without one.
//!
//! A service account's token is read again when it is renewed on disk. A kubeconfig that gets its credentials
//! from another program is refused: this program starts none.

use std::path::{Path, PathBuf};
use std::time::Duration;

use http::Uri;
use kube::config::{AuthInfo, KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};

/// Where the API server is, as the command line says it.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Access {
    /// `--kubeconfig`.
    pub kubeconfig: Option<PathBuf>,
    /// `--master`.
    pub master: Option<Uri>,
}

/// Why no client can be made. Each is a sentence that names the flag or file to mend.
#[derive(thiserror::Error, Debug)]
pub enum AccessError {
    #[error("--kubeconfig {path}: {reason}", path = path.display())]
    Kubeconfig { path: PathBuf, reason: String },
    #[error(
        "no cluster is named: give --kubeconfig, --master or --manifests, or run in a pod with a service account ({0})"
    )]
    NoCluster(String),
    #[error("{file}: {reason}", file = file.display())]
    ServiceAccount { file: PathBuf, reason: String },
    #[error("the credentials cannot be used: {0}")]
    Credentials(String),
}

const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// How long connecting may take before the server counts as unreachable.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// A client. Nothing is connected yet: a server that cannot be reached is no error here.
///
/// Must be called within a runtime, to which the client's own task belongs.
///
/// # Errors
/// Files that are missing or make no sense.
pub async fn client(access: &Access) -> Result<Client, AccessError> {
    let config = config(access, Path::new(SERVICE_ACCOUNT)).await?;
    Client::try_from(config).map_err(|error| AccessError::Credentials(chain(&error)))
}

async fn config(access: &Access, service_account: &Path) -> Result<Config, AccessError> {
    let mut config = match (&access.kubeconfig, &access.master) {
        (Some(path), _) => from_kubeconfig(path).await?,
        (None, Some(master)) => from_service_account(master, service_account)?,
        (None, None) => Config::incluster().map_err(|error| AccessError::NoCluster(chain(&error)))?,
    };
    if let Some(master) = &access.master {
        config.cluster_url = master.clone();
    }
    config.connect_timeout = Some(CONNECT_TIMEOUT);
    // The watch has its own back-off; a second one below it would only hide outages.
    config.default_retry = false;
    Ok(config)
}

async fn from_kubeconfig(path: &Path) -> Result<Config, AccessError> {
    let wrong = |reason: String| AccessError::Kubeconfig { path: path.to_owned(), reason };
    let kubeconfig = Kubeconfig::read_from(path).map_err(|error| wrong(chain(&error)))?;
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
        .await
        .map_err(|error| wrong(chain(&error)))?;
    if config.auth_info.exec.is_some() || config.auth_info.auth_provider.is_some() {
        let reason = "credentials from another program are not supported; use a token or a client certificate";
        return Err(wrong(reason.to_owned()));
    }
    Ok(config)
}

/// `--master` alone: the service account's credentials where there are any.
fn from_service_account(master: &Uri, directory: &Path) -> Result<Config, AccessError> {
    let mut config = Config::new(master.clone());
    let token = directory.join("token");
    if token.exists() {
        config.auth_info = AuthInfo { token_file: Some(token.display().to_string()), ..AuthInfo::default() };
    }
    let authority = directory.join("ca.crt");
    if authority.exists() {
        let unreadable =
            |error: std::io::Error| AccessError::ServiceAccount { file: authority.clone(), reason: error.to_string() };
        std::fs::read(&authority).map_err(unreadable)?;
        config.root_cert_file = Some(authority);
    }
    Ok(config)
}

/// An error with all its causes: the outermost alone rarely says what to do.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let inner_text = inner.to_string();
        if !text.contains(&inner_text) {
            text.push_str(": ");
            text.push_str(&inner_text);
        }
        cause = inner.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kubeconfig(user: &str) -> (tempfile::TempDir, Access) {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("config");
        let text = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: c\n\
             contexts: [{{name: c, context: {{cluster: k, user: u}}}}]\n\
             clusters: [{{name: k, cluster: {{server: 'https://192.0.2.10:6443', insecure-skip-tls-verify: true}}}}]\n\
             users: [{{name: u, user: {user}}}]\n"
        );
        std::fs::write(&path, text).expect("writable");
        (directory, Access { kubeconfig: Some(path), master: None })
    }

    const NOWHERE: &str = "/nonexistent";

    #[tokio::test]
    async fn a_kubeconfig_names_server_and_token_and_master_overrides_the_server() {
        let (_directory, mut access) = kubeconfig("{token: secret}");
        let plain = config(&access, Path::new(NOWHERE)).await.expect("the kubeconfig is sound");
        assert_eq!(plain.cluster_url, "https://192.0.2.10:6443/");
        assert!(plain.accept_invalid_certs && plain.auth_info.token.is_some());
        access.master = Some("https://192.0.2.11:6443".parse().expect("sound"));
        let overridden = config(&access, Path::new(NOWHERE)).await.expect("the kubeconfig is sound");
        assert_eq!(overridden.cluster_url, "https://192.0.2.11:6443/");
        assert!(overridden.auth_info.token.is_some());
        client(&access).await.expect("one provider of cryptography is installed");
    }

    #[tokio::test]
    async fn credentials_from_another_program_are_refused() {
        let exec = "{exec: {apiVersion: client.authentication.k8s.io/v1, command: /nonexistent/login}}";
        let (_directory, access) = kubeconfig(exec);
        let error = config(&access, Path::new(NOWHERE)).await.expect_err("it names a program");
        assert!(error.to_string().ends_with("use a token or a client certificate"), "{error}");
    }

    #[tokio::test]
    async fn a_kubeconfig_that_is_missing_or_makes_no_sense_is_named() {
        let access = Access { kubeconfig: Some("/nonexistent/config".into()), master: None };
        let error = config(&access, Path::new(NOWHERE)).await.expect_err("there is none");
        assert!(error.to_string().starts_with("--kubeconfig /nonexistent/config: "), "{error}");
        let (directory, access) = kubeconfig("{}");
        std::fs::write(directory.path().join("config"), "clusters: 5").expect("writable");
        assert!(config(&access, Path::new(NOWHERE)).await.is_err());
    }

    #[tokio::test]
    async fn master_alone_uses_the_service_account_where_there_is_one() {
        let access = Access { kubeconfig: None, master: Some("http://127.0.0.1:8080".parse().expect("sound")) };
        let anonymous = config(&access, Path::new(NOWHERE)).await.expect("nothing is needed");
        assert!(anonymous.auth_info.token_file.is_none() && anonymous.root_cert_file.is_none());
        let directory = tempfile::tempdir().expect("a temporary directory");
        std::fs::write(directory.path().join("token"), "secret").expect("writable");
        let with_token = config(&access, directory.path()).await.expect("the token is there");
        assert!(with_token.auth_info.token_file.is_some());
        assert_eq!(with_token.cluster_url, "http://127.0.0.1:8080/");
    }
}
