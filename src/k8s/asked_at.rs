//! The addresses at which the API server is asked: packets to them must pass whatever is known of the cluster.
//!
//! Source: an address in the URL of the server, or of the proxy on the way to it, which is known from the start; what a name there stands for, which is
//! looked up at the start and each minute; and the far ends of connections over which answers came.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::time::Duration;

use http::Uri;
use hyper_util::client::legacy::connect::HttpInfo;
use tokio::net::lookup_host;
use tokio::sync::mpsc::Sender;
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};

use super::{Event, Message};

/// The addresses found so far; who follows them is told when there are others.
pub struct AskedAt(watch::Sender<Known>);

#[derive(Default)]
struct Known {
    /// In the order in which they were found.
    addresses: VecDeque<IpAddr>,
    /// The name in the URL; `None` where an address stands there.
    name: Option<String>,
}

/// The most addresses that are remembered: a name may stand for another one each day.
const MOST: usize = 16;

/// Interval at which the name is looked up. A connection to an address that is refused by mistake ends with the next look-up.
const LOOK_UP: Duration = Duration::from_secs(60);

impl AskedAt {
    /// Returns what stands in the URL of whom connections are made to.
    pub fn new(url: &Uri) -> AskedAt {
        let asked = AskedAt(watch::Sender::default());
        asked.note_url(url);
        asked
    }

    /// Notes the address or the name in another URL.
    pub fn note_url(&self, url: &Uri) {
        let host = url.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
        let address: Option<IpAddr> = host.parse().ok();
        self.0.send_modify(|known| known.name = address.is_none().then(|| host.to_owned()));
        self.note(address);
    }

    /// Notes where an answer came from.
    pub fn note_answer(&self, head: &http::response::Parts) {
        self.note(head.extensions.get::<HttpInfo>().map(|info| info.remote_addr().ip()));
    }

    /// Returns the addresses, sorted.
    pub fn addresses(&self) -> Vec<IpAddr> {
        let mut addresses: Vec<IpAddr> = self.0.borrow().addresses.iter().copied().collect();
        addresses.sort_unstable();
        addresses
    }

    fn note(&self, found: impl IntoIterator<Item = IpAddr>) {
        let found: Vec<IpAddr> = found.into_iter().map(|address| address.to_canonical()).collect();
        self.0.send_if_modified(|Known { addresses, .. }| {
            let before = addresses.back().copied();
            for address in found {
                if !addresses.contains(&address) {
                    addresses.push_back(address);
                }
            }
            addresses.drain(..addresses.len().saturating_sub(MOST));
            addresses.back().copied() != before
        });
    }

    async fn look_up(&self) {
        let name = self.0.borrow().name.clone();
        if let Some(name) = name
            && let Ok(found) = lookup_host((name, 0)).await
        {
            self.note(found.map(|address| address.ip()));
        }
    }

    /// Sends them to the World, now and whenever there are others, until nobody reads any more.
    pub async fn tell(&self, out: Sender<Message>) {
        let mut known = self.0.subscribe();
        known.mark_changed();
        let mut looks = interval(LOOK_UP);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = out.closed() => return,
                _ = looks.tick() => {
                    self.look_up().await;
                    continue;
                }
                changed = known.changed() => if changed.is_err() {
                    return;
                },
            }
            known.mark_unchanged();
            let message = Message { seen: std::time::Instant::now(), event: Event::AskedAt(self.addresses()) };
            if out.send(message).await.is_err() {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc;

    use super::*;

    fn of(url: &str) -> AskedAt {
        AskedAt::new(&url.parse().expect("a URL"))
    }

    fn known(asked: &AskedAt) -> Vec<String> {
        asked.0.borrow().addresses.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn an_address_in_the_url_is_known_from_the_start_and_a_name_is_not() {
        for (url, expected) in [
            ("https://192.0.2.10:6443", &["192.0.2.10"][..]),
            ("https://[2001:db8::10]:6443", &["2001:db8::10"]),
            ("https://api.example.com", &[]),
        ] {
            assert_eq!(known(&of(url)), expected);
        }
    }

    #[test]
    fn the_addresses_that_were_found_last_are_remembered() {
        let asked = of("https://api.example.com");
        (1..=MOST + 2).for_each(|number| asked.note([[192, 0, 2, u8::try_from(number).expect("few")].into()]));
        asked.note(["::ffff:192.0.2.3".parse().expect("an address")]);
        assert_eq!((known(&asked).len(), known(&asked).first().map(String::as_str)), (MOST, Some("192.0.2.3")));
    }

    #[tokio::test]
    async fn what_a_name_stands_for_is_told_before_anybody_has_answered() {
        let asked = of("https://localhost:6443");
        let (out, mut told) = mpsc::channel(4);
        let telling = tokio::spawn(async move { asked.tell(out).await });
        let loopback = |address: &IpAddr| address.is_loopback();
        loop {
            let Event::AskedAt(addresses) = told.recv().await.expect("it goes on").event else {
                panic!("nothing else")
            };
            if addresses.iter().any(loopback) {
                break;
            }
            assert!(addresses.is_empty(), "{addresses:?}");
        }
        drop(told);
        telling.await.expect("it ends with its reader");
    }
}
