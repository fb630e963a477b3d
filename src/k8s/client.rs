//! Address of the API server and credentials for it.
//!
//! - A kubeconfig file holds both; `--master` overrides the server that it names.
//! - Without one, the pod's service account: its token and certificate authority, and the server that the
//!   environment names. `--master` overrides the server, and outside a pod, where there is no token, it is
//!   asked without one.
//! - Through the proxy that the kubeconfig names (`proxy-url`), or else the environment (`proxy_environment`).
//! - A server without a scheme gets one (`uses_tls`), as from every client of the API.
//!
//! All files behind this are checked before a request (kubeconfig, certificates, keys, tokens): where one
//! has changed, a new client is made, and the next request goes through it. Watches in progress end by themselves
//! within minutes. Where the files are inconsistent meanwhile, because only one of a pair has been written, the client
//! stays as it was.
//!
//! A kubeconfig that gets its credentials from another program is refused: this program starts none.

use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use http::Uri;
use kube::config::{AuthInfo, Cluster, Context, Kubeconfig, KubeconfigError};
use kube::{Client, Config};
use tokio::task::spawn_blocking;
use tracing::{info, warn};

use super::asked_at::AskedAt;
use super::proxy_environment::{ProxyEnvironment, proxy_url};
use crate::net::{base64, server_url};

/// Address of the API server, as given on the command line.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Access {
    /// `--kubeconfig`.
    pub kubeconfig: Option<PathBuf>,
    /// `--master`. It may lack the scheme.
    pub master: Option<Uri>,
}

impl Access {
    /// The file, or the directory of the service account, that the credentials come from.
    fn origin(&self) -> &Path {
        self.kubeconfig.as_deref().unwrap_or(Path::new(SERVICE_ACCOUNT))
    }
}

/// Why no client can be made. Each is a sentence that names the flag or file to mend.
#[derive(thiserror::Error, Debug)]
pub enum AccessError {
    #[error("--kubeconfig {path}: {reason}", path = path.display())]
    Kubeconfig { path: PathBuf, reason: String },
    #[error("--master {shown}: {reason}")]
    Master { shown: String, reason: String },
    #[error(
        "no cluster is named: give --kubeconfig, --master or --manifests, or run in a pod with a service account ({0})"
    )]
    NoCluster(String),
    #[error("{file}: {reason}", file = file.display())]
    ServiceAccount { file: PathBuf, reason: String },
    #[error("the credentials cannot be used: {0}")]
    Credentials(String),
    #[error("the proxy of the API server cannot be used: {0}")]
    Proxy(String),
}

/// A client that follows the files that it is made of. Clones are the same.
#[derive(Clone)]
pub struct ApiClient {
    access: Arc<Access>,
    made: Arc<Mutex<Made>>,
    asked_at: Arc<AskedAt>,
}

/// The client, and its origin.
struct Made {
    client: Client,
    files: Files,
    looked_at: Instant,
    /// Why the present files cannot be used; already logged.
    refused: Option<String>,
}

/// Files, and hashes of their contents; `None` for one that could not be read.
type Files = Vec<(PathBuf, Option<u64>)>;

const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// Time limit for connecting, after which the server counts as unreachable.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Least interval between two looks at the files.
const LOOK: Duration = Duration::from_secs(1);

/// A client. Nothing is connected yet: a server that cannot be reached is no error here.
///
/// Must be called within a runtime, to which the client's own task belongs.
///
/// # Errors
/// Files that are missing or invalid.
pub async fn client(access: &Access) -> Result<ApiClient, AccessError> {
    let (config, files) = config(access, Path::new(SERVICE_ACCOUNT), &ProxyEnvironment::of_process())?;
    let asked_at = Arc::new(AskedAt::new(far_end(&config)));
    let client = of_config(config)?;
    let made = Made { client, files, looked_at: Instant::now(), refused: None };
    Ok(ApiClient { access: Arc::new(access.clone()), made: Arc::new(Mutex::new(made)), asked_at })
}

/// Returns whom connections are made to: the server, or the proxy on the way.
fn far_end(config: &Config) -> &Uri {
    config.proxy_url.as_ref().unwrap_or(&config.cluster_url)
}

impl ApiClient {
    /// Returns the client for the next request, a new one where a file has changed.
    pub async fn current(&self) -> Client {
        let (client, files) = {
            let mut made = self.made();
            if made.looked_at.elapsed() < LOOK {
                return made.client.clone();
            }
            made.looked_at = Instant::now();
            (made.client.clone(), made.files.clone())
        };
        let access = self.access.clone();
        let anew = move || {
            let paths = files.iter().map(|(path, _)| path.clone()).collect();
            let changed = fingerprint(paths) != files;
            changed.then(|| config(&access, Path::new(SERVICE_ACCOUNT), &ProxyEnvironment::of_process()))
        };
        let made_anew = match spawn_blocking(anew).await {
            Ok(Some(Ok((config, files)))) => {
                self.asked_at.note_url(far_end(&config));
                of_config(config).map(|client| (client, files))
            }
            Ok(Some(Err(error))) => Err(error),
            Ok(None) | Err(_) => return client,
        };
        let mut made = self.made();
        match made_anew {
            Ok((client, files)) => {
                info!(file = %self.access.origin().display(), "API credentials changed; using the new ones");
                (made.client, made.files, made.refused) = (client, files, None);
            }
            Err(error) => {
                let reason = error.to_string();
                if made.refused.as_ref() != Some(&reason) {
                    let file = self.access.origin();
                    warn!(file = %file.display(), reason, "Reading changed API credentials failed; the former stay in use");
                    made.refused = Some(reason);
                }
            }
        }
        made.client.clone()
    }

    /// Returns the addresses at which the server is asked.
    pub(super) fn asked_at(&self) -> &AskedAt {
        &self.asked_at
    }

    fn made(&self) -> MutexGuard<'_, Made> {
        // Each change is one assignment, so a thread that panicked here has left nothing half done.
        self.made.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn of_config(config: Config) -> Result<Client, AccessError> {
    Client::try_from(config).map_err(|error| AccessError::Credentials(chain(&error)))
}

/// Returns the client's configuration and the files that it comes from. The files are looked at before they are read: a
/// change in between is seen the next time.
fn config(
    access: &Access,
    service_account: &Path,
    environment: &ProxyEnvironment,
) -> Result<(Config, Files), AccessError> {
    let (mut config, files) = match (&access.kubeconfig, &access.master) {
        (Some(path), _) => {
            let before = fingerprint(vec![path.clone()]);
            let (context, cluster, user) = chosen(path)?;
            let files = fingerprint(named_files(&cluster, &user));
            (from_kubeconfig(path, &context, &cluster, user)?, before.into_iter().chain(files).collect())
        }
        (None, master) => {
            let files = fingerprint(["token", "ca.crt"].map(|name| service_account.join(name)).into());
            let config = match master {
                Some(master) => from_service_account(master, service_account)?,
                None => Config::incluster().map_err(|error| AccessError::NoCluster(chain(&error)))?,
            };
            (config, files)
        }
    };
    if let Some(master) = &access.master {
        config.cluster_url =
            completed(&config, &master.to_string()).map_err(|(shown, reason)| AccessError::Master { shown, reason })?;
    }
    if config.proxy_url.is_none() {
        config.proxy_url = environment.proxy(&config.cluster_url).map_err(AccessError::Proxy)?;
    }
    config.connect_timeout = Some(CONNECT_TIMEOUT);
    // The watch has its own back-off; a second one below it would only hide outages.
    config.default_retry = false;
    Ok((config, files))
}

/// Reads the URL of a server for which this is all the rest of the configuration. A client of the library panics on one without a scheme.
///
/// # Errors
/// What may be shown of it, and why it is none.
fn completed(config: &Config, typed: &str) -> Result<Uri, (String, String)> {
    server_url::completed(typed, uses_tls(config)).map_err(|reason| (server_url::shown(typed).to_owned(), reason))
}

/// Returns whether a server without a scheme is asked by TLS: where something of TLS is given, as by every client of the API (`defaultServerUrlFor` in
/// client-go), and also where there is a token or a password, which that would send for everybody to read.
fn uses_tls(config: &Config) -> bool {
    let user = &config.auth_info;
    let is_given = |text: &Option<String>| text.as_ref().is_some_and(|text| !text.is_empty());
    let has_authority = config.root_cert.is_some() || config.root_cert_file.is_some();
    let has_certificate = is_given(&user.client_certificate) || is_given(&user.client_certificate_data);
    let has_secret = is_given(&user.token_file) || user.token.is_some() || user.password.is_some();
    has_authority || config.accept_invalid_certs || has_certificate || has_secret
}

/// The contents of files, by a number that differs where they do.
fn fingerprint(paths: Vec<PathBuf>) -> Files {
    let hasher = BuildHasherDefault::<DefaultHasher>::default();
    let contents = |path: &PathBuf| std::fs::read(path).ok().map(|bytes| hasher.hash_one(bytes));
    paths.into_iter().map(|path| (path.clone(), contents(&path))).collect()
}

/// The files that a cluster and a user of a kubeconfig name.
fn named_files(cluster: &Cluster, user: &AuthInfo) -> Vec<PathBuf> {
    let named = [&cluster.certificate_authority, &user.client_certificate, &user.client_key, &user.token_file];
    named.into_iter().flatten().map(PathBuf::from).collect()
}

/// Why a kubeconfig cannot be read. The parser's own words quote the lines around a mistake, and tokens stand there.
fn unreadable(error: &KubeconfigError) -> String {
    match error {
        KubeconfigError::ReadConfig(cause, _) => cause.to_string(),
        _ => "it is not a kubeconfig in YAML".to_owned(),
    }
}

/// Returns the cluster and the user that a kubeconfig's current context names.
fn chosen(path: &Path) -> Result<(Context, Cluster, AuthInfo), AccessError> {
    let wrong = |reason: String| AccessError::Kubeconfig { path: path.to_owned(), reason };
    let file = Kubeconfig::read_from(path).map_err(|error| wrong(unreadable(&error)))?;
    let name = file.current_context.ok_or_else(|| wrong("it has no current-context".to_owned()))?;
    let context = file.contexts.into_iter().find(|context| context.name == name).and_then(|named| named.context);
    let context = context.ok_or_else(|| wrong(format!("it has no context {name:?}, which is its current one")))?;
    let cluster = file.clusters.into_iter().find(|cluster| cluster.name == context.cluster);
    let cluster = cluster.and_then(|named| named.cluster);
    let cluster =
        cluster.ok_or_else(|| wrong(format!("it has no cluster {:?}, which its context names", context.cluster)))?;
    // A context without a user asks as nobody. One that names a user who is not there is a mistake, or not written to its end.
    let user = match context.user.as_ref().filter(|name| !name.is_empty()) {
        None => AuthInfo::default(),
        Some(name) => {
            let user = file.auth_infos.into_iter().find(|user| user.name == *name);
            let user = user.ok_or_else(|| wrong(format!("it has no user {name:?}, which its context names")))?;
            user.auth_info.unwrap_or_default()
        }
    };
    Ok((context, cluster, user))
}

/// Not by the library's own means, which would take the proxy from the environment in its own way.
fn from_kubeconfig(path: &Path, context: &Context, cluster: &Cluster, user: AuthInfo) -> Result<Config, AccessError> {
    let wrong = |reason: String| AccessError::Kubeconfig { path: path.to_owned(), reason };
    if user.exec.is_some() || user.auth_provider.is_some() {
        let reason = "credentials from another program are not supported; use a token or a client certificate";
        return Err(wrong(reason.to_owned()));
    }
    let server = cluster.server.as_deref().ok_or_else(|| wrong("its cluster has no server".to_owned()))?;
    // Which scheme a server has that was written without one, the rest says.
    let mut config = Config::new(Uri::default());
    config.root_cert = authorities(cluster).map_err(wrong)?;
    config.accept_invalid_certs = cluster.insecure_skip_tls_verify.unwrap_or(false);
    config.tls_server_name = cluster.tls_server_name.clone();
    config.disable_compression = cluster.disable_compression.unwrap_or(false);
    if let Some(namespace) = &context.namespace {
        config.default_namespace = namespace.clone();
    }
    if let Some(proxy) = cluster.proxy_url.as_deref().filter(|proxy| !proxy.is_empty()) {
        config.proxy_url = Some(proxy_url(proxy).map_err(|reason| wrong(format!("proxy-url: {reason}")))?);
    }
    config.auth_info = user;
    config.cluster_url = completed(&config, server)
        .map_err(|(shown, reason)| wrong(format!("the server {shown:?} of its cluster: {reason}")))?;
    Ok(config)
}

/// The certificate authorities of a cluster, each encoded (DER); `None` where it names none.
fn authorities(cluster: &Cluster) -> Result<Option<Vec<Vec<u8>>>, String> {
    let given = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
    let pem = match (given(&cluster.certificate_authority_data), given(&cluster.certificate_authority)) {
        (Some(data), _) => base64::decoded(data.trim()).ok_or("certificate-authority-data is not base64")?,
        (None, Some(path)) => std::fs::read(&path).map_err(|error| format!("certificate-authority {path}: {error}"))?,
        (None, None) => return Ok(None),
    };
    let found = certificates(&String::from_utf8_lossy(&pem));
    match found {
        Some(found) if !found.is_empty() => Ok(Some(found)),
        _ => Err("its certificate authority holds no certificate in the form of PEM".to_owned()),
    }
}

/// The certificates in a text (RFC 7468); `None` where one of them cannot be read.
fn certificates(pem: &str) -> Option<Vec<Vec<u8>>> {
    let begun = pem.split("-----BEGIN CERTIFICATE-----").skip(1);
    let one = |text: &str| {
        let (body, _) = text.split_once("-----END CERTIFICATE-----")?;
        base64::decoded(&body.split_whitespace().collect::<String>())
    };
    begun.map(one).collect()
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

/// Formats an error with all its causes: the outermost alone rarely shows what to do.
pub fn chain(error: &dyn std::error::Error) -> String {
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
mod tests;
