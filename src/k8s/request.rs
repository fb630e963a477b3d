//! Requests to the API server for the objects of one kind, and their answers as they arrive.

use std::borrow::Cow;
use std::future::Future;
use std::marker::PhantomData;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::header::{ACCEPT, CONTENT_TYPE, HeaderValue};
use http_body_util::BodyExt;
use kube::client::Body;
use kube::core::params::{ListParams, WatchParams};
use kube::core::request::Request;
use serde::Deserialize;

use tokio::time::timeout;

use super::Kind;
use super::answer::{self, Accept, Change, Encoding, Events, Page, Refusal, Unread};
use super::client::{ApiClient, chain};
use super::parse::ApiObject;

/// Requests for the objects of one kind.
pub struct Asking<K> {
    client: ApiClient,
    /// The API path of each version of the kind, newest first, and which of them is in use.
    paths: Vec<Cow<'static, str>>,
    used: usize,
    /// Number of versions that were found not to be there, one after the other.
    missing: usize,
    is_cluster_wide: bool,
    patience: Patience,
    objects: PhantomData<fn() -> K>,
}

/// Time limits of an answer. There is no bound for the whole of one: a long list over a slow line ends too.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// For its beginning. The API server itself gives up what takes longer than a minute.
    pub beginning: Duration,
    /// For each next piece of it.
    pub piece: Duration,
}

/// Why there is no answer.
pub enum Failure {
    /// The server refuses.
    Refused(Refusal),
    /// The connection, or what came over it.
    Broken(String),
}

/// Why the next event of a watch is missing.
pub enum Stumble {
    /// One event cannot be decoded; the next one may be sound.
    Unreadable(Unread),
    /// The watch is broken.
    Broken(String),
}

/// A watch in progress.
pub struct Watch<K> {
    body: Body,
    encoding: Encoding,
    events: Events,
    objects: PhantomData<fn() -> K>,
}

/// Selects one object at most: the API server's own Service and its slice have this name.
const ONE_NAME: &str = "metadata.name=kubernetes";
/// Largest size in bytes of a page of a list, and of a refusal.
const PAGE_BYTES: usize = 1 << 30;
const REFUSAL_BYTES: usize = 64 << 10;
/// Largest size in bytes of the list of resources in one version of a group.
const DISCOVERY_BYTES: usize = 1 << 20;

/// The resources of one version of a group (`APIResourceList`).
#[derive(Deserialize)]
struct Served {
    #[serde(default)]
    resources: Vec<Resource>,
}

#[derive(Deserialize)]
struct Resource {
    #[serde(default)]
    name: String,
}

impl<K: ApiObject> Asking<K> {
    pub fn new(client: ApiClient, kind: Kind, patience: Patience) -> Asking<K> {
        let paths = [kind.path()].into_iter().chain(kind.earlier().map(|(_, path)| path)).map(Cow::Borrowed).collect();
        let is_cluster_wide = kind.is_cluster_wide();
        Asking { client, paths, used: 0, missing: 0, is_cluster_wide, patience, objects: PhantomData }
    }

    /// Requests for the objects at one API path, which is of one namespace.
    pub fn at(client: ApiClient, path: String, patience: Patience) -> Asking<K> {
        let paths = vec![Cow::Owned(path)];
        Asking { client, paths, used: 0, missing: 0, is_cluster_wide: false, patience, objects: PhantomData }
    }

    fn path(&self) -> &str {
        self.paths.get(self.used).map_or("", AsRef::as_ref)
    }

    fn request(&self) -> Request {
        Request::new(self.path())
    }

    /// Turns to another version of the kind, because the server does not have this one. Returns whether there is one that was
    /// not found missing before.
    pub fn try_other_version(&mut self) -> bool {
        self.used = (self.used + 1) % self.paths.len();
        self.missing += 1;
        let is_left = self.missing < self.paths.len();
        if !is_left {
            self.missing = 0;
        }
        is_left
    }

    /// Records that the server has the version in use.
    pub fn note_version(&mut self) {
        self.missing = 0;
    }

    /// A page of a list.
    ///
    /// # Errors
    /// The server refuses, cannot be reached or is silent for too long, or its answer is no list.
    pub async fn list(&self, params: &ListParams) -> Result<Page<K>, Failure> {
        self.page(self.request().list(params).map_err(|error| broken(&error))?).await
    }

    async fn page(&self, request: http::Request<Vec<u8>>) -> Result<Page<K>, Failure> {
        let (encoding, body) = self.send(request, Accept::of::<K>().list).await?;
        let bytes = self.whole(body, PAGE_BYTES).await.map_err(Failure::Broken)?;
        answer::page(encoding, &bytes).map_err(Failure::Broken)
    }

    /// Returns the server's newest resourceVersion, which is that of its whole store (KEP-5504), by a list of one key. The server
    /// reads no other where a name is selected, in one namespace; whether such an object exists does not matter. Of version 0
    /// it would be a list from its cache. `fields`: a selector of one name, where only that may be read.
    ///
    /// # Errors
    /// As for [`list`](Asking::list).
    pub async fn newest(&self, fields: Option<&str>) -> Result<Option<String>, Failure> {
        let params = ListParams::default().fields(fields.unwrap_or(ONE_NAME)).limit(1);
        let in_default = match self.path().rsplit_once('/') {
            Some((group, plural)) if !self.is_cluster_wide => {
                Request::new(format!("{group}/namespaces/default/{plural}"))
            }
            _ => self.request(),
        };
        let request = in_default.list(&params).map_err(|error| broken(&error))?;
        Ok(self.page(request).await?.version)
    }

    /// Returns whether the server has this kind in any of its versions, which everybody may ask (*API discovery*).
    ///
    /// # Errors
    /// As for [`list`](Asking::list).
    pub async fn is_served(&self) -> Result<bool, Failure> {
        for path in &self.paths {
            if self.is_served_at(path).await? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    async fn is_served_at(&self, path: &str) -> Result<bool, Failure> {
        let Some((group, plural)) = path.rsplit_once('/') else { return Ok(true) };
        let request = http::Request::get(group).body(Vec::new()).map_err(|error| broken(&error))?;
        let body = match self.send(request, "application/json").await {
            Ok((_, body)) => body,
            Err(Failure::Refused(refusal)) if refusal.code == 404 => return Ok(false),
            Err(failure) => return Err(failure),
        };
        let bytes = self.whole(body, DISCOVERY_BYTES).await.map_err(Failure::Broken)?;
        let served: Served = serde_json::from_slice(&bytes).map_err(|error| broken(&error))?;
        Ok(served.resources.iter().any(|resource| resource.name == plural))
    }

    /// Starts a watch from this resourceVersion.
    ///
    /// # Errors
    /// The server refuses, cannot be reached or is silent for too long.
    pub async fn watch(&self, params: &WatchParams, version: &str) -> Result<Watch<K>, Failure> {
        let request = self.request().watch(params, version).map_err(|error| broken(&error))?;
        let (encoding, body) = self.send(request, Accept::of::<K>().watch).await?;
        Ok(Watch { body, encoding, events: Events::new(encoding), objects: PhantomData })
    }

    async fn send(&self, request: http::Request<Vec<u8>>, accept: &'static str) -> Result<(Encoding, Body), Failure> {
        let mut request = request.map(Body::from);
        request.headers_mut().insert(ACCEPT, HeaderValue::from_static(accept));
        let client = self.client.current().await;
        let response = within(self.patience.beginning, client.send(request)).await.map_err(Failure::Broken)?;
        let response = response.map_err(|error| broken(&error))?;
        let (head, body) = response.into_parts();
        self.client.asked_at().note_answer(&head);
        let encoding = Encoding::of(head.headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()));
        if head.status.is_success() {
            return Ok((encoding, body));
        }
        let bytes = self.whole(body, REFUSAL_BYTES).await.unwrap_or_default();
        Err(Failure::Refused(answer::refusal(encoding, head.status.as_u16(), &bytes)))
    }

    /// Returns the whole body, as long as one piece follows the other in time.
    async fn whole(&self, mut body: Body, most: usize) -> Result<Bytes, String> {
        let mut all = BytesMut::new();
        while let Some(frame) = within(self.patience.piece, body.frame()).await? {
            let frame = frame.map_err(|error| chain(&error))?;
            let Ok(piece) = frame.into_data() else { continue };
            if all.len() + piece.len() > most {
                return Err(format!("the answer is longer than {most} bytes"));
            }
            all.extend_from_slice(&piece);
        }
        Ok(all.freeze())
    }
}

impl<K: ApiObject> Watch<K> {
    /// Returns the next event; `None` at the end of the watch. Nothing is lost when this is cancelled.
    ///
    /// # Errors
    /// An event cannot be decoded, after which the next one may be asked for; or the watch is broken.
    pub async fn next(&mut self) -> Result<Option<Change<K>>, Stumble> {
        loop {
            let event = self.events.cut().map_err(|error| Stumble::Broken(error.to_string()))?;
            if let Some(bytes) = event {
                return answer::event(self.encoding, bytes).map(Some).map_err(Stumble::Unreadable);
            }
            let Some(frame) = self.body.frame().await else { return Ok(None) };
            let frame = frame.map_err(|error| Stumble::Broken(chain(&error)))?;
            if let Some(bytes) = frame.data_ref() {
                self.events.push(bytes);
            }
        }
    }
}

async fn within<T>(patience: Duration, answer: impl Future<Output = T>) -> Result<T, String> {
    timeout(patience, answer).await.map_err(|_| "no answer in time".to_owned())
}

fn broken(error: &(dyn std::error::Error + 'static)) -> Failure {
    Failure::Broken(chain(error))
}
