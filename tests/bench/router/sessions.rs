//! Many sessions on one thread: each sends prepared bytes and reads what comes. One wait for all sockets and for commands.

use std::collections::{BTreeSet, VecDeque};
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::time::{Duration, Instant};

use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, connect, listen, socket_with, sockopt};

use crate::wire::{self, Hello, Message, Update};

/// All neighbours of the daemon that is measured.
pub struct Network {
    epoll: OwnedFd,
    to: SocketAddr,
    neighbours: Vec<Neighbour>,
    listener: Option<TcpListener>,
    /// When each neighbour has something to do: to dial again, or to say that it is alive.
    timers: BTreeSet<(Instant, usize)>,
    dialling: bool,
    buffer: Vec<u8>,
    events: Vec<(usize, Event)>,
}

/// Event of one neighbour.
#[derive(Debug)]
pub enum Event {
    /// Its session stands.
    Up,
    Update(Update),
    /// All that it had to send has gone.
    Sent,
    Down,
}

/// Results of one turn of the loop.
#[derive(Default, Debug)]
pub struct Turn {
    pub events: Vec<(usize, Event)>,
    /// Somebody has written on standard input.
    pub commanded: bool,
}

struct Neighbour {
    hello: Hello,
    stream: Option<TcpStream>,
    stage: Stage,
    incoming: Vec<u8>,
    outgoing: VecDeque<Rc<[u8]>>,
    /// How much of the first piece has gone.
    gone: usize,
    /// It is told that what follows has gone.
    reporting: bool,
    away: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    None,
    Dialling,
    Opened,
    Confirmed,
    Up,
}

const LISTENER: u64 = u64::MAX;
const COMMANDS: u64 = u64::MAX - 1;
const AGAIN: Duration = Duration::from_millis(20);
const ALIVE: Duration = Duration::from_secs(wire::HOLD_TIME as u64 / 4);
/// How long a turn waits.
const AT_LONGEST: Duration = Duration::from_secs(1);
const BACKLOG: i32 = 4096;

impl Network {
    /// Nobody is dialled yet. `to`: the daemon that is measured.
    pub fn new(to: Ipv4Addr, hellos: impl Iterator<Item = Hello>) -> Network {
        let epoll = epoll::create(CreateFlags::CLOEXEC).expect("something to wait with");
        epoll::add(&epoll, std::io::stdin(), EventData::new_u64(COMMANDS), EventFlags::IN).expect("a pipe");
        Network {
            epoll,
            to: SocketAddr::new(to.into(), 179),
            neighbours: hellos.map(Neighbour::new).collect(),
            listener: None,
            timers: BTreeSet::new(),
            dialling: false,
            buffer: vec![0; 256 << 10],
            events: Vec::new(),
        }
    }

    /// Dials for all neighbours, and again whenever a session has ended.
    pub fn dial(&mut self, which: impl Iterator<Item = usize>) {
        self.dialling = true;
        which.for_each(|number| self.dial_one(number));
    }

    pub fn listen(&mut self) {
        let socket = socket_with(AddressFamily::INET, SocketType::STREAM, flags(), None).expect("a socket");
        sockopt::set_socket_reuseaddr(&socket, true).expect("an option of sockets");
        bind(&socket, &SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 179)).expect("the port is free");
        listen(&socket, BACKLOG).expect("it may listen");
        epoll::add(&self.epoll, &socket, EventData::new_u64(LISTENER), EventFlags::IN).expect("a socket");
        self.listener = Some(TcpListener::from(socket));
    }

    /// This neighbour does not come back when its session has ended.
    pub fn leave(&mut self, number: usize) {
        self.neighbours[number].away = true;
    }

    /// Sends bytes that were made before; [`Event::Sent`] says when they have gone.
    pub fn send(&mut self, number: usize, bytes: Rc<[u8]>) {
        let neighbour = &mut self.neighbours[number];
        neighbour.outgoing.push_back(bytes);
        neighbour.reporting = true;
        self.write(number);
    }

    /// Waits, and takes in what has happened.
    pub fn turn(&mut self) -> Turn {
        let now = Instant::now();
        let mut due = self.timers.first().map_or(AT_LONGEST, |(at, _)| at.saturating_duration_since(now));
        if !self.events.is_empty() {
            // Messages sent since the last turn left at once, which is reported without waiting for another event.
            due = Duration::ZERO;
        }
        let wait = due.min(AT_LONGEST).try_into().expect("it is short");
        let mut ready = Vec::with_capacity(256);
        match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut ready), Some(&wait)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => panic!("cannot wait: {error}"),
        }
        let mut commanded = false;
        for one in ready {
            let flags = one.flags;
            match one.data.u64() {
                COMMANDS => commanded = true,
                LISTENER => self.accept(),
                number => self.ready(number as usize, flags),
            }
        }
        self.expire(Instant::now());
        Turn { events: std::mem::take(&mut self.events), commanded }
    }

    fn ready(&mut self, number: usize, flags: EventFlags) {
        if self.neighbours[number].stage == Stage::Dialling {
            let connected = self.neighbours[number].stream.as_ref().map(|stream| stream.take_error());
            match connected {
                Some(Ok(None)) => self.hello(number),
                _ => return self.down(number),
            }
        }
        if flags.intersects(EventFlags::IN | EventFlags::HUP | EventFlags::ERR) {
            self.read(number);
        }
        if flags.contains(EventFlags::OUT) {
            self.write(number);
        }
    }

    fn expire(&mut self, now: Instant) {
        while let Some((at, number)) = self.timers.first().copied()
            && at <= now
        {
            self.timers.remove(&(at, number));
            match self.neighbours[number].stage {
                Stage::None => self.dial_one(number),
                Stage::Up => {
                    self.neighbours[number].outgoing.push_back(wire::keepalive().into());
                    self.write(number);
                    self.timers.insert((now + ALIVE, number));
                }
                Stage::Dialling | Stage::Opened | Stage::Confirmed => {}
            }
        }
    }

    fn dial_one(&mut self, number: usize) {
        let neighbour = &mut self.neighbours[number];
        if neighbour.stage != Stage::None || neighbour.away {
            return;
        }
        let socket = socket_with(AddressFamily::INET, SocketType::STREAM, flags(), None).expect("a socket");
        sockopt::set_socket_reuseaddr(&socket, true).expect("an option of sockets");
        bind(&socket, &SocketAddr::new(neighbour.hello.identifier.into(), 0)).expect("an address of this host");
        match connect(&socket, &self.to) {
            Ok(()) | Err(rustix::io::Errno::INPROGRESS) => {}
            Err(_) => {
                self.timers.insert((Instant::now() + AGAIN, number));
                return;
            }
        }
        neighbour.stage = Stage::Dialling;
        self.watch(number, TcpStream::from(socket));
    }

    fn accept(&mut self) {
        while let Some(Ok((stream, _))) = self.listener.as_ref().map(TcpListener::accept) {
            let local = stream.local_addr().expect("it has an address").ip();
            let own = |neighbour: &Neighbour| IpAddr::from(neighbour.hello.identifier) == local;
            let number = self.neighbours.iter().position(own).expect("it comes to one of these neighbours");
            if self.neighbours[number].stage == Stage::None && !self.neighbours[number].away {
                stream.set_nonblocking(true).expect("a setting of sockets");
                self.watch(number, stream);
                self.hello(number);
            }
        }
    }

    fn watch(&mut self, number: usize, stream: TcpStream) {
        let events = EventFlags::IN | EventFlags::OUT | EventFlags::ET;
        epoll::add(&self.epoll, stream.as_fd(), EventData::new_u64(number as u64), events).expect("a socket");
        self.neighbours[number].stream = Some(stream);
    }

    fn hello(&mut self, number: usize) {
        let neighbour = &mut self.neighbours[number];
        if let Some(stream) = &neighbour.stream {
            stream.set_nodelay(true).expect("a setting of sockets");
        }
        neighbour.stage = Stage::Opened;
        neighbour.outgoing.push_back(wire::open(neighbour.hello).into());
        self.write(number);
    }

    /// Reads until there is nothing more: the wait tells of new bytes only.
    fn read(&mut self, number: usize) {
        loop {
            let neighbour = &mut self.neighbours[number];
            let Some(stream) = &mut neighbour.stream else { return };
            match stream.read(&mut self.buffer) {
                Ok(0) => return self.down(number),
                Ok(bytes) => {
                    neighbour.incoming.extend(&self.buffer[..bytes]);
                    self.take(number);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(_) => return self.down(number),
            }
        }
    }

    fn take(&mut self, number: usize) {
        let incoming = std::mem::take(&mut self.neighbours[number].incoming);
        let mut at = 0;
        while let Some(length) = wire::whole(&incoming[at..]) {
            let message = wire::read(&incoming[at..at + length]);
            at += length;
            let neighbour = &mut self.neighbours[number];
            match (message, neighbour.stage) {
                (Message::Open, Stage::Opened) => {
                    neighbour.stage = Stage::Confirmed;
                    neighbour.outgoing.push_back(wire::keepalive().into());
                    self.write(number);
                }
                (Message::Keepalive, Stage::Confirmed) => {
                    neighbour.stage = Stage::Up;
                    self.timers.insert((Instant::now() + ALIVE, number));
                    self.events.push((number, Event::Up));
                }
                (Message::Update(update), Stage::Up) => self.events.push((number, Event::Update(update))),
                (Message::Notification(said), _) => eprintln!("neighbour {number} is told {said:?}"),
                _ => {}
            }
        }
        self.neighbours[number].incoming = incoming[at..].to_vec();
    }

    fn write(&mut self, number: usize) {
        let neighbour = &mut self.neighbours[number];
        let Some(stream) = &mut neighbour.stream else { return };
        while let Some(piece) = neighbour.outgoing.front() {
            match stream.write(&piece[neighbour.gone..]) {
                Ok(bytes) if neighbour.gone + bytes == piece.len() => {
                    neighbour.gone = 0;
                    neighbour.outgoing.pop_front();
                }
                Ok(bytes) => neighbour.gone += bytes,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                // The error that ends the connection shows when it is read.
                Err(_) => return neighbour.outgoing.clear(),
            }
        }
        if std::mem::take(&mut neighbour.reporting) {
            self.events.push((number, Event::Sent));
        }
    }

    fn down(&mut self, number: usize) {
        let neighbour = &mut self.neighbours[number];
        if neighbour.stage == Stage::Up {
            self.events.push((number, Event::Down));
        }
        *neighbour = Neighbour { away: neighbour.away, ..Neighbour::new(neighbour.hello) };
        self.timers.retain(|(_, other)| *other != number);
        if self.dialling {
            self.timers.insert((Instant::now() + AGAIN, number));
        }
    }
}

impl Neighbour {
    fn new(hello: Hello) -> Neighbour {
        Neighbour {
            hello,
            stream: None,
            stage: Stage::None,
            incoming: Vec::new(),
            outgoing: VecDeque::new(),
            gone: 0,
            reporting: false,
            away: false,
        }
    }
}

fn flags() -> SocketFlags {
    SocketFlags::NONBLOCK | SocketFlags::CLOEXEC
}
