//! The socket by which this host's root may query the program: why a packet is dropped, say.
//!
//! HTTP/1 on a unix socket that only its owner may open (mode 0600): `POST` of a JSON object to a path, answered with
//! text, or with JSON where `Accept` asks for it. Who answers a path is handed in; the answer is made between two turns
//! of that subsystem's loop, so it is of one piece, and asking holds up nothing but the asker.
//!
//! A start takes the socket's name over from whoever had it: a socket that an earlier run left behind answers nobody. Whose name is lost takes it
//! back as soon as nobody answers under it ([`Name`]), because those who ask whether an agent runs here ask by this name.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ::http::header::{ACCEPT, CONTENT_TYPE, HeaderValue};
use ::http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tracing::{debug, info, warn};

use super::local_socket;

/// A query.
#[derive(Debug)]
pub struct Question {
    /// The path that was asked: what the question is for.
    pub path: &'static str,
    /// The members of the JSON object.
    pub about: BTreeMap<String, String>,
    pub form: AnswerFormat,
    /// Receiver of the answer. Dropping it means that there is none.
    pub answer: oneshot::Sender<Answer>,
}

/// Format of the answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AnswerFormat {
    Text,
    Json,
}

/// The text of the answer, in the form asked for, or a sentence on why there is none.
pub type Answer = Result<String, String>;

/// The end of a sentence on why there is no answer at this very moment: who asks once more half a second later has a chance.
pub const ASK_AGAIN: &str = "; ask again in a moment";

/// The answering subsystems, by path.
pub type Answerers = BTreeMap<&'static str, mpsc::Sender<Question>>;

/// Opens the socket; its directory is made where it is missing.
///
/// # Errors
/// The directory cannot be made or written to.
pub fn bind(path: &Path) -> io::Result<UnixListener> {
    bind_named(path).map(|(listener, _)| listener)
}

/// Like [`bind`]; with the name, which others may take.
///
/// # Errors
/// As there.
pub fn bind_named(path: &Path) -> io::Result<(UnixListener, Name)> {
    if let Some(directory) = path.parent() {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    }
    local_socket::remove_left_asides(path);
    // Made aside, so that the name never stands for a socket that others may open or that nobody listens on.
    let aside = local_socket::aside(path);
    let listener = UnixListener::bind(&aside).map_err(|error| told(error, path))?;
    std::fs::set_permissions(&aside, std::fs::Permissions::from_mode(0o600))?;
    // Before others can take the name, whose socket it would be taken for.
    let bound = file_at(&aside);
    std::fs::rename(&aside, path)?;
    let bound = bound.filter(|_| file_at(path) == bound);
    Ok((listener, Name { path: path.to_owned(), bound }))
}

/// Says of a directory that was deleted where it is mounted from what mends it: it is never there again in this mount.
fn told(error: io::Error, path: &Path) -> io::Error {
    let is_deleted =
        path.parent().and_then(|directory| std::fs::metadata(directory).ok()).is_some_and(|found| found.nlink() == 0);
    if !is_deleted {
        return error;
    }
    let why = format!(
        "{error}: the directory was deleted on the host while it is mounted here; end this pod, so that it is mounted anew"
    );
    io::Error::new(error.kind(), why)
}

/// The name of a socket that somebody listens on.
pub struct Name {
    path: PathBuf,
    /// `None` where another program took the name at once, or files have other identities under other names: then whoever listens there has it.
    bound: Option<File>,
}

/// A file that a path leads to: device, inode, and the time at which it was made, because inodes are used again.
type File = (u64, u64, (i64, i64));

impl Name {
    /// Waits until the path leads to another file or to none: nobody can reach the socket by it any more.
    pub async fn lost(&self) {
        let is_there = || match self.bound {
            Some(_) => file_at(&self.path) == self.bound,
            None => self.is_taken(),
        };
        tokio::time::sleep(LOOK).await;
        while is_there() {
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Returns whether somebody listens under the name, also who is stuck. Two programs that take it from each other serve nobody.
    pub fn is_taken(&self) -> bool {
        local_socket::is_listened_on(&self.path)
    }
}

/// `None` where there is nothing.
fn file_at(path: &Path) -> Option<File> {
    let found = std::fs::symlink_metadata(path).ok()?;
    Some((found.dev(), found.ino(), (found.mtime(), found.mtime_nsec())))
}

/// Opens the socket of `--socket` and answers for as long as it is polled, and opens it again where its name is lost. A socket that cannot be made
/// is reported once and tried again: that nobody can ask is no reason to leave a node without its network. `connections`: how many may be open at a time.
pub async fn run(path: PathBuf, answerers: Answerers, connections: usize) {
    loop {
        let (listener, name) = opened(&path).await;
        tokio::select! {
            () = serve(listener, answerers.clone(), connections) => return,
            () = name.lost() => {}
        }
        let path = path.display();
        if name.is_taken() {
            warn!(%path, "Another program has taken the name of the local socket; this agent answers nobody until that one ends");
            while name.is_taken() {
                tokio::time::sleep(LOOK).await;
            }
        }
        warn!(%path, "Local socket is gone from its path; opening it again");
    }
}

async fn opened(path: &Path) -> (UnixListener, Name) {
    let mut has_failed = false;
    loop {
        match bind_named(path) {
            Ok(opened) => {
                if has_failed {
                    info!(path = %path.display(), "Local socket opened");
                }
                return opened;
            }
            Err(error) if !std::mem::replace(&mut has_failed, true) => {
                let path = path.display();
                warn!(%path, %error, "Opening the local socket failed; continuing without it and retrying; --socket names another path, or none");
            }
            Err(_) => {}
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// Answers for as long as it is polled, on so many connections at a time; further ones wait to be accepted.
pub async fn serve(listener: UnixListener, answerers: Answerers, connections: usize) {
    let places = Arc::new(Semaphore::new(connections));
    let answerers = Arc::new(answerers);
    loop {
        let place = places.clone().acquire_owned().await.expect("the semaphore is never closed");
        match listener.accept().await {
            Ok((stream, _)) => {
                let answerers = answerers.clone();
                tokio::spawn(async move {
                    connection(stream, answerers).await;
                    drop(place);
                });
            }
            Err(error) => {
                warn!(%error, "Accepting a connection on the local socket failed");
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
    }
}

/// Interval at which a socket that cannot be opened is tried again.
const RETRY: Duration = Duration::from_secs(60);
/// Interval at which it is looked whether the path of a socket still leads to it.
pub const LOOK: Duration = Duration::from_secs(5);
/// Time limit of a connection on which nothing is asked.
const SILENCE: Duration = Duration::from_secs(5);
/// Time limit of a connection.
const PATIENCE: Duration = Duration::from_secs(30);
/// The largest question, in bytes: it may hold a file.
pub const MOST: usize = 4 << 20;

async fn connection(stream: UnixStream, answerers: Arc<Answerers>) {
    let service = service_fn(|request| {
        let answerers = &answerers;
        async move { Ok::<_, Infallible>(response(request, answerers).await) }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(SILENCE)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service);
    match tokio::time::timeout(PATIENCE, served).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => debug!(%error, "Connection on the local socket ended early"),
        Err(_) => debug!("Connection on the local socket took too long"),
    }
}

async fn response(request: Request<Incoming>, answerers: &Answerers) -> Response<Full<Bytes>> {
    let Some((path, answerer)) = answerers.get_key_value(request.uri().path()) else {
        return page(
            StatusCode::NOT_FOUND,
            AnswerFormat::Text,
            "This program does not run what could answer that.\n".to_owned(),
        );
    };
    let wants_json = request.headers().get(ACCEPT).is_some_and(|value| value.as_bytes() == JSON.as_bytes());
    let form = if wants_json { AnswerFormat::Json } else { AnswerFormat::Text };
    let body = match Limited::new(request.into_body(), MOST).collect().await {
        Ok(body) => body.to_bytes(),
        Err(error) => {
            return page(
                StatusCode::BAD_REQUEST,
                AnswerFormat::Text,
                format!("The question cannot be read: {error}.\n"),
            );
        }
    };
    let about = match serde_json::from_slice(&body) {
        Ok(about) => about,
        Err(error) => {
            return page(
                StatusCode::BAD_REQUEST,
                AnswerFormat::Text,
                format!("The question makes no sense: {error}.\n"),
            );
        }
    };
    let (answer, answered) = oneshot::channel();
    let asked = answerer.send(Question { path, about, form, answer }).await.is_ok();
    match answered.await {
        Ok(Ok(text)) => page(StatusCode::OK, form, text),
        Ok(Err(sentence)) => page(StatusCode::UNPROCESSABLE_ENTITY, AnswerFormat::Text, format!("{sentence}\n")),
        Err(_) => {
            debug!(asked, "Question on the local socket not answered");
            page(StatusCode::SERVICE_UNAVAILABLE, AnswerFormat::Text, "There is no answer at the moment.\n".to_owned())
        }
    }
}

/// The media type of JSON, in `Accept` and in answers.
pub const JSON: &str = "application/json";
const TEXT: &str = "text/plain; charset=utf-8";

fn page(status: StatusCode, form: AnswerFormat, text: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    let content_type = match form {
        AnswerFormat::Text => TEXT,
        AnswerFormat::Json => JSON,
    };
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::given::logged;

    #[tokio::test(start_paused = true)]
    async fn a_directory_that_cannot_be_made_is_said_once_and_the_socket_opens_when_it_can_be() {
        let (log, _guard) = logged();
        let place = tempfile::tempdir().expect("a temporary directory");
        let directory = place.path().join("sluice");
        std::fs::write(&directory, "a file where a directory should be").expect("writable");
        let socket = directory.join("sluice.sock");
        let opening = tokio::spawn(run(socket.clone(), Answerers::new(), 1));
        tokio::time::sleep(10 * RETRY).await;
        assert_eq!(log.lines_with("Opening the local socket failed"), 1, "{}", log.text());
        assert!(!opening.is_finished(), "it goes on");
        std::fs::remove_file(&directory).expect("it is there");
        tokio::time::sleep(2 * RETRY).await;
        assert!(UnixStream::connect(&socket).await.is_ok());
        assert_eq!((log.lines_with("Local socket opened"), log.lines_with("socket")), (1, 2), "{}", log.text());
        opening.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn a_name_that_is_lost_is_taken_back_as_soon_as_nobody_answers_under_it() {
        let (log, _guard) = logged();
        let place = tempfile::tempdir().expect("a temporary directory");
        let socket = place.path().join("sluice.sock");
        let ours = tokio::spawn(run(socket.clone(), Answerers::new(), 1));
        tokio::time::sleep(LOOK).await;
        std::fs::remove_file(&socket).expect("it is there");
        tokio::time::sleep(2 * LOOK).await;
        assert!(UnixStream::connect(&socket).await.is_ok(), "whoever empties the folder ends nothing");
        let theirs = bind(&socket).expect("a second program takes the name");
        tokio::time::sleep(10 * LOOK).await;
        assert_eq!(log.lines_with("Another program has taken the name"), 1, "{}", log.text());
        let taken = file_at(&socket);
        assert!(taken.is_some(), "it keeps the name for as long as it listens");
        drop(theirs);
        tokio::time::sleep(2 * LOOK).await;
        assert_ne!(file_at(&socket), taken);
        assert!(UnixStream::connect(&socket).await.is_ok(), "{}", log.text());
        assert_eq!(log.lines_with("opening it again"), 2, "{}", log.text());
        ours.abort();
    }
}
