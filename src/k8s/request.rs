//! Asking the API server for the objects of one kind: requests, and answers as they come.

use std::marker::PhantomData;

use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_TYPE, HeaderValue};
use http_body_util::{BodyExt, Limited};
use kube::Client;
use kube::client::Body;
use kube::core::params::{ListParams, WatchParams};
use kube::core::request::Request;

use super::Kind;
use super::answer::{self, Accept, Change, Encoding, Events, Page, Refusal};
use super::client::chain;
use super::parse::ApiObject;

/// Where the objects of one kind are asked for.
pub struct Asking<K> {
    client: Client,
    request: Request,
    objects: PhantomData<fn() -> K>,
}

/// Why there is no answer.
pub enum Failure {
    /// The server says no.
    Refused(Refusal),
    /// The connection, or what came over it.
    Broken(String),
}

/// Why a watch does not say what comes next.
pub enum Stumble {
    /// One event makes no sense; the next one may.
    Unreadable(String),
    /// Nothing more will come.
    Broken(String),
}

/// A watch that is under way.
pub struct Watch<K> {
    body: Body,
    encoding: Encoding,
    events: Events,
    objects: PhantomData<fn() -> K>,
}

/// What a page of a list may weigh at most, and what a refusal.
const PAGE_BYTES: usize = 1 << 30;
const REFUSAL_BYTES: usize = 64 << 10;

impl<K: ApiObject> Asking<K> {
    pub fn new(client: Client, kind: Kind) -> Asking<K> {
        Asking { client, request: Request::new(kind.path()), objects: PhantomData }
    }

    /// A page of a list.
    pub async fn list(&self, params: &ListParams) -> Result<Page<K>, Failure> {
        let request = self.request.list(params).map_err(|error| broken(&error))?;
        let (encoding, body) = self.send(request, Accept::of::<K>().list).await?;
        let bytes = whole(body, PAGE_BYTES).await.map_err(Failure::Broken)?;
        answer::page(encoding, &bytes).map_err(Failure::Broken)
    }

    /// A watch from this resource version on.
    pub async fn watch(&self, params: &WatchParams, version: &str) -> Result<Watch<K>, Failure> {
        let request = self.request.watch(params, version).map_err(|error| broken(&error))?;
        let (encoding, body) = self.send(request, Accept::of::<K>().watch).await?;
        Ok(Watch { body, encoding, events: Events::new(encoding), objects: PhantomData })
    }

    async fn send(&self, request: http::Request<Vec<u8>>, accept: &'static str) -> Result<(Encoding, Body), Failure> {
        let mut request = request.map(Body::from);
        request.headers_mut().insert(ACCEPT, HeaderValue::from_static(accept));
        let response = self.client.send(request).await.map_err(|error| broken(&error))?;
        let (head, body) = response.into_parts();
        let encoding = Encoding::of(head.headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()));
        if head.status.is_success() {
            return Ok((encoding, body));
        }
        let bytes = whole(body, REFUSAL_BYTES).await.unwrap_or_default();
        Err(Failure::Refused(answer::refusal(encoding, head.status.as_u16(), &bytes)))
    }
}

impl<K: ApiObject> Watch<K> {
    /// What the watch says next; `None` at its end. Nothing is lost when this is cancelled.
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

async fn whole(body: Body, most: usize) -> Result<Bytes, String> {
    let collected = Limited::new(body, most).collect().await;
    collected.map(|all| all.to_bytes()).map_err(|error| chain(error.as_ref()))
}

fn broken(error: &(dyn std::error::Error + 'static)) -> Failure {
    Failure::Broken(chain(error))
}
