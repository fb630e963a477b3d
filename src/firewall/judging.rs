//! Tells the service proxy up to which World pods are refused what their policies deny them behind Services. Packets that go through a tunnel are judged nowhere
//! else, so new endpoints behind tunnels wait for that (`proxy::unjudged`).

use tokio::sync::watch;

/// The number of the newest World whose refusals are not known to be in the kernel yet, and where it is told when they are.
pub struct Judging {
    told: watch::Sender<u64>,
    next: Option<u64>,
}

impl Judging {
    /// `told`: receives the number of the World (`World::number`).
    pub fn new(told: watch::Sender<u64>) -> Judging {
        Judging { told, next: None }
    }

    /// Notes the World whose rules are about to be brought about.
    pub fn note(&mut self, number: u64) {
        self.next = Some(number);
    }

    /// Tells that World's number, if the kernel holds all refusals that follow from it.
    pub fn tell(&mut self, holds_refusals: bool) {
        if let Some(number) = self.next.take_if(|_| holds_refusals) {
            self.told.send_replace(number);
        }
    }
}
