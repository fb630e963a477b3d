//! A daemon of somebody else, as it runs on a host: what all of them can be asked and told.

use std::collections::BTreeSet;
use std::process::Child;

use crate::cell::{Cell, Daemon};
use crate::ground::{Host, look};
use crate::route::{Route, ours_of};
use crate::{bird, frr, gobgp};

pub struct Other<'a> {
    pub cell: Cell,
    pub host: &'a Host,
    /// The hosts with speakers of ours that it speaks with.
    pub peers: Vec<&'a Host>,
    running: Option<Child>,
}

/// The file that a daemon's log goes to.
const LOG: &str = "log";

impl<'a> Other<'a> {
    pub fn start(cell: &Cell, host: &'a Host, peers: Vec<&'a Host>) -> Other<'a> {
        let mut other = Other { cell: cell.clone(), host, peers, running: None };
        other.run(false);
        other
    }

    /// Starts it, or starts it again: then it knows that it ran before.
    pub fn run(&mut self, again: bool) {
        let (file, text, command) = match self.cell.daemon {
            Daemon::Gobgp | Daemon::Gobgp4 => ("gobgpd.toml", gobgp::config(self), gobgp::command(self, again)),
            Daemon::Bird => ("bird.conf", bird::config(self), bird::command(again)),
            Daemon::Frr => ("bgpd.conf", frr::config(self), frr::command(self.host)),
        };
        std::fs::write(self.host.file(file), text).expect("a file of configuration");
        let command: Vec<&str> = command.iter().map(String::as_str).collect();
        self.running = Some(self.host.start(&command, LOG));
        assert!(look(|| self.answers().then_some(())).is_some(), "it does not answer");
        if self.cell.daemon.is_gobgp() {
            gobgp::announce(self);
        }
    }

    /// Ends it as a crash would.
    pub fn kill(&mut self) {
        if let Some(mut running) = self.running.take() {
            running.kill().expect("it can be killed");
            running.wait().expect("it ends");
        }
    }

    fn answers(&self) -> bool {
        match self.cell.daemon {
            Daemon::Gobgp | Daemon::Gobgp4 => gobgp::ask(self, &["global"]).is_some_and(|text| text.contains("AS:")),
            Daemon::Bird => self.host.ask(&["birdc", "-s", "bird.ctl", "show", "status"]).is_some(),
            Daemon::Frr => frr::ask(self.host, "show bgp summary json").is_some(),
        }
    }

    /// The best routes that it has of us, in lines.
    pub fn table(&self) -> BTreeSet<String> {
        ours_of(self.routes())
    }

    pub fn routes(&self) -> Vec<Route> {
        match self.cell.daemon {
            Daemon::Gobgp | Daemon::Gobgp4 => gobgp::routes(self),
            Daemon::Bird => bird::routes(self.host),
            Daemon::Frr => frr::routes(self.host),
        }
    }

    /// Everything that it has logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.host.file(LOG)).unwrap_or_default()
    }

    /// Asks us for our routes again.
    pub fn ask_again(&self) {
        match self.cell.daemon {
            Daemon::Gobgp | Daemon::Gobgp4 => {
                drop(gobgp::ask(self, &["neighbor", &self.us(), "softresetin"]).expect("it asks"));
            }
            Daemon::Bird => bird::tell(self.host, "reload in to_1"),
            Daemon::Frr => drop(frr::ask(self.host, &format!("clear bgp {} soft in", self.us())).expect("it asks")),
        }
    }

    /// Ends the session, with a text for us.
    pub fn shut_down(&self, text: &str) {
        match self.cell.daemon {
            Daemon::Gobgp | Daemon::Gobgp4 => {
                let reason = format!("--reason={text}");
                gobgp::ask(self, &["neighbor", &self.us(), "shutdown", &reason]).expect("it ends the session");
            }
            Daemon::Bird => bird::tell(self.host, &format!("disable to_1 \"{text}\"")),
            Daemon::Frr => frr::configure(
                self.host,
                &[
                    &format!("router bgp {}", self.cell.asns[1]),
                    &format!("neighbor {} shutdown message {text}", self.us()),
                ],
            ),
        }
    }

    fn us(&self) -> String {
        self.peers[0].address(self.cell.over).to_string()
    }
}

impl Drop for Other<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- what {:?} says\n{}", self.cell.daemon, self.log());
        }
        self.kill();
    }
}
