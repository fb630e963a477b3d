//! A program that reads lines of any length and answers each with its own name and how long it was, and connections to it.

use std::io::{BufRead, BufReader, ErrorKind};
use std::os::fd::OwnedFd;

use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, connect, socket_with};

use super::*;

/// The program. It ends with its value, and ends its connections at once: whoever waits for a client keeps the namespaces of the test.
pub struct Lines {
    ends: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Lines {
    /// Listens at all addresses of the pod in this namespace.
    pub fn start(place: &Path, name: &'static str) -> Lines {
        let pod = File::open(place).expect("the pod's namespace");
        let listener = inside(&pod, || TcpListener::bind((Ipv6Addr::UNSPECIFIED, PORT)).expect("the port is free"));
        listener.set_nonblocking(true).expect("a listener need not wait");
        let ends = Arc::new(AtomicBool::new(false));
        let is_over = ends.clone();
        let thread = std::thread::spawn(move || {
            let mut answering = Vec::new();
            while !is_over.load(Ordering::Relaxed) {
                match listener.accept() {
                    Ok((stream, _)) => {
                        let is_over = is_over.clone();
                        answering.push(std::thread::spawn(move || answer(stream, name, &is_over)));
                    }
                    Err(_) => sleep(Duration::from_millis(5)),
                }
            }
            answering.into_iter().for_each(|thread| thread.join().expect("it ends"));
        });
        Lines { ends, thread: Some(thread) }
    }
}

impl Drop for Lines {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Relaxed);
        self.thread.take().expect("it was started").join().expect("it ends");
    }
}

fn answer(mut stream: TcpStream, name: &str, is_over: &AtomicBool) {
    stream.set_read_timeout(Some(Duration::from_millis(100))).expect("a time");
    stream.set_write_timeout(Some(MORE_PATIENCE)).expect("a time");
    let (mut bytes, mut length) = ([0; 65_536], 0);
    while !is_over.load(Ordering::Relaxed) {
        match stream.read(&mut bytes) {
            Ok(0) => break,
            Ok(count) => {
                length += count;
                if bytes[count - 1] == b'\n' {
                    let text = format!("{name} {length}\n");
                    length = 0;
                    if stream.write_all(text.as_bytes()).is_err() {
                        break;
                    }
                }
            }
            Err(error) if [ErrorKind::WouldBlock, ErrorKind::TimedOut].contains(&error.kind()) => {}
            Err(_) => break,
        }
    }
    let _ = sockopt::set_socket_linger(&stream, Some(Duration::ZERO));
}

/// A connection from one address of the client outside.
pub fn connected(from: IpAddr, to: SocketAddr) -> Result<Asking, String> {
    let failed = |what: &str, why: &dyn std::fmt::Display| format!("{what} from {from} to {to}: {why}");
    let made: Result<OwnedFd, rustix::io::Errno> = inside(&there("client"), || {
        let family = if from.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        let socket = socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
        bind(&socket, &SocketAddr::new(from, 0))?;
        sockopt::set_socket_timeout(&socket, sockopt::Timeout::Send, Some(MORE_PATIENCE))?;
        connect(&socket, &to)?;
        Ok(socket)
    });
    let stream = TcpStream::from(made.map_err(|error| failed("connecting", &error))?);
    stream.set_read_timeout(Some(MORE_PATIENCE)).expect("a time");
    stream.set_write_timeout(Some(MORE_PATIENCE)).expect("a time");
    let reader = BufReader::new(stream.try_clone().map_err(|error| failed("a descriptor", &error))?);
    Ok(Asking { stream, reader, is_from: from })
}

pub struct Asking {
    stream: TcpStream,
    reader: BufReader<TcpStream>,
    pub is_from: IpAddr,
}

impl Asking {
    /// Sends a line of this many bytes; returns what the program says.
    pub fn ask(&mut self, length: usize) -> Result<String, String> {
        let mut line = vec![b'x'; length - 1];
        line.push(b'\n');
        self.stream.write_all(&line).map_err(|error| format!("sending from {}: {error}", self.is_from))?;
        let mut answer = String::new();
        self.reader.read_line(&mut answer).map_err(|error| format!("reading at {}: {error}", self.is_from))?;
        Ok(answer.trim().to_owned())
    }
}
