//! Asks the metadata service and EC2, one attempt after the other, and tells what came of it.
//!
//! One task of the runtime of the API's watches. Cancelled, it leaves nothing half done: the request is one, and repeating it changes nothing.

use std::time::{Duration, Instant};

use bytes::Bytes;
use compact_str::CompactString;
use http::{Method, Request, StatusCode, Uri};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use k8s_openapi::jiff::Timestamp;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::timeout;
use tracing::{debug, info, warn};

use super::ec2::{self, Signed};
use super::failure::Failure;
use super::metadata::{self, Place, Question};
use super::task::{Notice, Task};
use crate::k8s::events::{About, Events, Name, NewEvent};
use crate::k8s::proxy_environment::ProxyEnvironment;
use crate::model::{Authority, World};
use crate::observe::health::Note;

/// Inputs and outputs of the task.
pub struct Inputs {
    pub world: watch::Receiver<World>,
    pub endpoints: Endpoints,
    pub note: Note,
    /// `None` where nobody takes Events, as with manifests.
    pub events: Option<Events>,
}

/// Places of the services, as the tools of AWS take them from the environment; `None` for the usual ones.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Endpoints {
    /// URLs of the metadata service; the first that answers is used. `AWS_EC2_METADATA_SERVICE_ENDPOINT`, or the usual one that
    /// `AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE` names, or both: an instance whose subnet has IPv6 alone has no way to the one of IPv4.
    pub metadata: Vec<String>,
    /// `AWS_EC2_METADATA_DISABLED` is `true`.
    pub metadata_disabled: bool,
    /// `AWS_ENDPOINT_URL_EC2`, or else `AWS_ENDPOINT_URL`.
    pub ec2: Option<String>,
    /// `AWS_USE_DUALSTACK_ENDPOINT`: EC2 is asked at the endpoint with both families, or is not. Where it says neither, that one is asked when the usual one, which has IPv4
    /// alone, does not answer: a node may have IPv6 alone, whichever family the metadata service was reached by.
    pub dual_stack: Option<bool>,
}

const METADATA_VARIABLE: &str = "AWS_EC2_METADATA_SERVICE_ENDPOINT";
const EC2_VARIABLE: &str = "AWS_ENDPOINT_URL_EC2";
const DUAL_STACK_VARIABLE: &str = "AWS_USE_DUALSTACK_ENDPOINT";

/// Time limits of an answer of the metadata service, which is on this machine, and of EC2.
const NEAR: Duration = Duration::from_secs(3);
const FAR: Duration = Duration::from_secs(20);
/// The longest answer, in bytes.
const LONGEST: usize = 64 << 10;
const REASON: &str = "SourceDestCheck";

impl Endpoints {
    /// The environment of this process.
    pub fn of_process() -> Endpoints {
        let text = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        Endpoints::of(text)
    }

    /// Reads variables, of which those without a value are `None`.
    fn of(text: impl Fn(&str) -> Option<String>) -> Endpoints {
        let is = |name: &str, word: &str| text(name).is_some_and(|value| value.eq_ignore_ascii_case(word));
        let mode = "AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE";
        let usual: &[&str] = match (is(mode, "ipv6"), is(mode, "ipv4")) {
            (true, _) => &[metadata::ENDPOINT_V6],
            (false, true) => &[metadata::ENDPOINT],
            (false, false) => &[metadata::ENDPOINT, metadata::ENDPOINT_V6],
        };
        let usual = || usual.iter().map(|url| (*url).to_owned()).collect();
        Endpoints {
            metadata: text(METADATA_VARIABLE).map_or_else(usual, |url| vec![url]),
            metadata_disabled: is("AWS_EC2_METADATA_DISABLED", "true"),
            ec2: text(EC2_VARIABLE).or_else(|| text("AWS_ENDPOINT_URL")),
            dual_stack: match (is(DUAL_STACK_VARIABLE, "true"), is(DUAL_STACK_VARIABLE, "false")) {
                (true, _) => Some(true),
                (false, true) => Some(false),
                (false, false) => None,
            },
        }
    }

    /// Returns the URLs of EC2, the first of which is asked first.
    fn ec2(&self, place: &Place) -> Vec<String> {
        if let Some(url) = &self.ec2 {
            return vec![url.clone()];
        }
        let usual = || ec2::endpoint(place);
        match (self.dual_stack, ec2::dual_stack_endpoint(place)) {
            (Some(true), Some(both)) => vec![both],
            (None, Some(both)) => vec![usual(), both],
            (Some(_), _) | (None, None) => vec![usual()],
        }
    }

    /// Asks the places of the metadata service for a token, one after the other, until one answers. When none does, the first one's failure is told.
    async fn metadata(&self) -> Result<Metadata, Failure> {
        let mut first = None;
        for url in &self.metadata {
            let mut service = Metadata { service: Service::parse_metadata(url)?, token: String::new() };
            match service.take_token().await {
                Ok(()) => return Ok(service),
                Err(failure @ Failure::NoMetadata { .. }) => drop(first.get_or_insert(failure)),
                Err(failure) => return Err(failure),
            }
        }
        Err(first.unwrap_or(Failure::MetadataDisabled))
    }
}

/// URL of a service.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Service {
    text: String,
    uri: Uri,
    /// With the port where it is not the usual one of the scheme, as it is signed and as the client sends it (RFC 9110 7.2).
    host: String,
}

impl Service {
    fn parse(variable: &'static str, text: &str) -> Result<Service, Failure> {
        let text = text.trim_end_matches('/').to_owned();
        // What stands before an @ may be a password.
        let shown = text.rsplit_once('@').map_or_else(|| text.clone(), |(_, host)| format!("…@{host}"));
        let bad = || Failure::BadEndpoint { variable, value: shown.clone() };
        let uri: Uri = text.parse().map_err(|_| bad())?;
        let is_web = matches!(uri.scheme_str(), Some("http" | "https"));
        let authority = uri.authority().filter(|authority| is_web && !authority.as_str().contains('@'));
        let authority = authority.ok_or_else(bad)?;
        let usual = usual_port(&uri);
        let host = match authority.port_u16() {
            Some(port) if port != usual => format!("{}:{port}", authority.host()),
            _ => authority.host().to_owned(),
        };
        if uri.path() != "/" && !uri.path().is_empty() {
            return Err(bad());
        }
        Ok(Service { text, uri, host })
    }

    /// Parses the URL of a metadata service. It is on the instance's own link and speaks no TLS.
    fn parse_metadata(text: &str) -> Result<Service, Failure> {
        let service = Service::parse(METADATA_VARIABLE, text)?;
        let is_plain = service.uri.scheme_str() == Some("http");
        let bad = || Failure::BadEndpoint { variable: METADATA_VARIABLE, value: service.text.clone() };
        if is_plain { Ok(service) } else { Err(bad()) }
    }

    /// Host and port to connect to.
    fn address(&self) -> (String, u16) {
        let host = self.uri.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
        (host, self.uri.port_u16().unwrap_or_else(|| usual_port(&self.uri)))
    }
}

fn usual_port(uri: &Uri) -> u16 {
    if uri.scheme_str() == Some("https") { 443 } else { 80 }
}

/// Switches the check off for the instance of the own Node, until the World's publisher is gone.
pub async fn run(mut inputs: Inputs) {
    let mut task = Task::default();
    loop {
        let instance = own_instance(&inputs.world.borrow_and_update());
        if task.name(instance.as_ref()) {
            inputs.note.set(Vec::new());
        }
        if let Some(instance) = task.due(Instant::now()).cloned() {
            let outcome = switch_off(&inputs.endpoints, &instance).await;
            let notice = task.outcome(outcome, Instant::now());
            inputs.tell(&instance, notice).await;
        }
        let deadline = task.deadline();
        let due = async {
            match deadline {
                Some(at) => tokio::time::sleep_until(at.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            changed = inputs.world.changed() => if changed.is_err() { return },
            () = due => {}
        }
    }
}

/// Returns the instance that the own Node names, as the cluster has it now.
fn own_instance(world: &World) -> Option<CompactString> {
    let is_read = world.authority.router > Authority::Remembered;
    let node = world.cluster.nodes.get(&world.host.node_name).filter(|_| is_read)?;
    node.ec2_instance.as_deref().map(CompactString::from)
}

impl Inputs {
    async fn tell(&self, instance: &str, notice: Notice) {
        let (message, is_warning) = match notice {
            Notice::Done => {
                info!(instance, "Source/destination check of EC2 switched off for this instance");
                self.note.set(Vec::new());
                (format!("the source/destination check of {instance} is off"), false)
            }
            Notice::Failed(why) => {
                warn!(instance, reason = %why, "Switching off the source/destination check of EC2 failed; retrying");
                let message = format!("the source/destination check of this instance could not be switched off: {why}");
                self.note.set(vec![message.clone()]);
                (message, true)
            }
            Notice::FailedAgain => {
                return debug!(instance, "Switching off the source/destination check of EC2 failed again");
            }
        };
        let Some(events) = self.events.clone() else { return };
        let node = self.world.borrow().host.node_name.clone();
        let event =
            NewEvent { about: About::Node(node), name: Name::Time, is_warning, reason: REASON, message, at: None };
        // A failure is in the log, and nobody waits for it here.
        tokio::spawn(async move { events.tell(event).await });
    }
}

/// Makes one attempt.
async fn switch_off(endpoints: &Endpoints, instance: &str) -> Result<(), Failure> {
    if endpoints.metadata_disabled {
        return Err(Failure::MetadataDisabled);
    }
    let mut near = endpoints.metadata().await?;
    let told = near.word(&metadata::instance()).await?;
    if told != instance {
        return Err(Failure::OtherInstance { told, named: instance.to_owned() });
    }
    let place = Place { region: near.word(&metadata::region()).await?, domain: near.word(&metadata::domain()).await? };
    let role = match near.word(&metadata::role()).await {
        Err(Failure::OddMetadata { status: 404, .. }) => return Err(Failure::NoRole),
        role => role?,
    };
    let credentials = metadata::parsed(&role, &near.ask(&metadata::credentials(&role)).await?)?;
    let mut first = None;
    for url in endpoints.ec2(&place) {
        let far = Service::parse(EC2_VARIABLE, &url)?;
        let time = Timestamp::now().strftime("%Y%m%dT%H%M%SZ").to_string();
        let signed = ec2::switch_off(instance, &far.host, &place, &credentials, &time);
        match send(&far, signed).await {
            Ok((status, body)) => return ec2::judged(status, &body, instance, &role),
            Err(failure) => drop(first.get_or_insert(failure)),
        }
    }
    // There is one URL at least.
    first.map_or(Ok(()), Err)
}

/// The metadata service, with the token for one attempt.
struct Metadata {
    service: Service,
    token: String,
}

impl Metadata {
    /// Takes a token, which may be asked for again when it has expired.
    async fn take_token(&mut self) -> Result<(), Failure> {
        let seconds = [(metadata::TOKEN_SECONDS_HEADER, metadata::TOKEN_SECONDS)];
        let (status, answer) = self.answer(Method::PUT, metadata::TOKEN, seconds).await?;
        let what = "a token";
        let is_token = !answer.is_empty() && answer.bytes().all(|byte| byte.is_ascii_graphic());
        match status {
            200 if is_token => self.token = answer,
            200 => return Err(Failure::OddAnswer { what }),
            403 => return Err(Failure::MetadataRefused { endpoint: self.service.text.clone() }),
            status => return Err(Failure::OddMetadata { what, status }),
        }
        Ok(())
    }

    async fn word(&mut self, question: &Question) -> Result<String, Failure> {
        metadata::word(question, &self.ask(question).await?)
    }

    async fn ask(&mut self, question: &Question) -> Result<String, Failure> {
        let mut has_renewed = false;
        loop {
            let token = [(metadata::TOKEN_HEADER, self.token.as_str())];
            let answer = self.answer(Method::GET, &question.path, token).await?;
            match answer {
                (200, answer) => return Ok(answer),
                // The token has expired.
                (401, _) if !std::mem::replace(&mut has_renewed, true) => self.take_token().await?,
                (status, _) => return Err(Failure::OddMetadata { what: question.what, status }),
            }
        }
    }

    /// One request, on a connection of its own, through no proxy.
    async fn answer(&self, method: Method, path: &str, headers: [(&str, &str); 1]) -> Result<(u16, String), Failure> {
        let failed = |reason: String| Failure::NoMetadata { endpoint: self.service.text.clone(), reason };
        let mut request = Request::builder().method(method).uri(path).header("host", &self.service.host);
        for (name, value) in headers {
            request = request.header(name, value);
        }
        let request = request.body(Full::new(Bytes::new())).map_err(|error| failed(error.to_string()))?;
        match timeout(NEAR, asked(self.service.address(), request)).await {
            Ok(Ok((status, answer))) => Ok((status.as_u16(), answer)),
            Ok(Err(reason)) => Err(failed(reason)),
            Err(_) => Err(failed("no answer in time".to_owned())),
        }
    }
}

async fn asked(address: (String, u16), request: Request<Full<Bytes>>) -> Result<(StatusCode, String), String> {
    let stream = TcpStream::connect(address).await.map_err(|error| error.to_string())?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|error| error.to_string())?;
    let driven = tokio::spawn(connection);
    let response = sender.send_request(request).await.map_err(|error| error.to_string())?;
    let status = response.status();
    let body = Limited::new(response.into_body(), LONGEST).collect().await.map_err(|error| error.to_string());
    driven.abort();
    Ok((status, String::from_utf8_lossy(&body?.to_bytes()).into_owned()))
}

/// Sends a request to EC2, through the proxy that the environment names for it.
async fn send(to: &Service, signed: Signed) -> Result<(u16, String), Failure> {
    let failed = |reason: String| Failure::NoAnswer { endpoint: to.text.clone(), reason };
    let mut config = kube::Config::new(to.uri.clone());
    config.connect_timeout = Some(NEAR * 2);
    config.default_retry = false;
    config.proxy_url = ProxyEnvironment::of_process().proxy(&to.uri).map_err(failed)?;
    let client = kube::Client::try_from(config).map_err(|error| failed(error.to_string()))?;
    let mut request = Request::post("/");
    for (name, value) in signed.headers.iter().filter(|(name, _)| *name != "host") {
        request = request.header(*name, value);
    }
    // Hyper makes the header `Host` of the URL, which is what was signed.
    let request = request.body(kube::client::Body::from(signed.body.into_bytes()));
    let request = request.map_err(|error| failed(error.to_string()))?;
    let answered = async {
        let response = client.send(request).await.map_err(|error| crate::k8s::client::chain(&error))?;
        let status = response.status().as_u16();
        let body = Limited::new(response.into_body(), LONGEST).collect().await.map_err(|error| error.to_string())?;
        Ok::<_, String>((status, String::from_utf8_lossy(&body.to_bytes()).into_owned()))
    };
    match timeout(FAR, answered).await {
        Ok(answer) => answer.map_err(failed),
        Err(_) => Err(failed("no answer in time".to_owned())),
    }
}

#[cfg(test)]
mod tests;
