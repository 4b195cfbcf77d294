//! Listening, and saying plainly why it does not work.

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;

use anyhow::{Context, anyhow};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::socket::{setsockopt, sockopt};
use socket2::SockRef;
use tokio::net::{TcpListener, TcpSocket};

use super::http1::MOST_PIPES;

/// Connections the kernel holds while all are busy.
const BACKLOG: u32 = 4096;
/// A silent connection is asked for a sign of life after this; after nine unanswered ones 75 s apart it is gone.
const KEEP_ALIVE_IDLE_SECONDS: u32 = 60;
/// Bytes that the kernel takes of an answer beyond what it has sent (`TCP_NOTSENT_LOWAT`, tcp(7)). Without a limit its buffer
/// grows to megabytes, and it has room again only when a third of that is free: a slow client would seem to take nothing.
const UNSENT: u32 = 128 << 10;

/// A listener of the proxy.
#[derive(Debug)]
pub struct Listener {
    /// Where.
    pub socket: TcpListener,
    /// What comes in speaks TLS.
    pub secure: bool,
}

/// Where to listen.
#[derive(Debug, Clone, Copy)]
pub struct Wanted {
    /// Without TLS.
    pub http: SocketAddr,
    /// With TLS.
    pub https: Option<SocketAddr>,
}

/// Listeners that were opened elsewhere: by a service manager, or by the proxy before this one.
#[derive(Debug, Default)]
pub struct Inherited {
    /// Without TLS.
    pub http: Vec<std::net::TcpListener>,
    /// With TLS.
    pub https: Vec<std::net::TcpListener>,
}

impl Inherited {
    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.http.is_empty() && self.https.is_empty()
    }
}

/// All listeners, plain ones first. Of each kind those that a service manager gave are taken; else those of the proxy
/// before that are where one is wanted; else one is opened.
pub fn all(wanted: Wanted, given: Inherited, handed: Inherited) -> anyhow::Result<Vec<Listener>> {
    let of_kind = |address: SocketAddr, given: Vec<std::net::TcpListener>, handed: Vec<std::net::TcpListener>| {
        let is_wanted = |listener: &std::net::TcpListener| {
            address.port() == 0 || listener.local_addr().is_ok_and(|its_own| its_own == address)
        };
        let same: Vec<_> = handed.into_iter().filter(is_wanted).collect();
        match (given.is_empty(), same.is_empty()) {
            (false, _) => inherit(given),
            (true, false) => inherit(same),
            (true, true) => Ok(vec![bind(address)?]),
        }
    };
    let listener = |secure| move |socket| Listener { socket, secure };
    let plain = of_kind(wanted.http, given.http, handed.http)?;
    let mut listeners: Vec<Listener> = plain.into_iter().map(listener(false)).collect();
    if let Some(https) = wanted.https {
        listeners.extend(of_kind(https, given.https, handed.https)?.into_iter().map(listener(true)));
    }
    Ok(listeners)
}

/// Binds a listener; the error names the cause and, where it can be found, who holds the port.
pub fn bind(address: SocketAddr) -> anyhow::Result<TcpListener> {
    try_bind(address).map_err(|error| explain(address, &error))
}

fn inherit(listeners: Vec<std::net::TcpListener>) -> anyhow::Result<Vec<TcpListener>> {
    let taken = listeners.into_iter().map(|listener| {
        listener.set_nonblocking(true)?;
        set_up(&listener)?;
        TcpListener::from_std(listener)
    });
    taken.collect::<io::Result<_>>().context("cannot use a socket that was handed to this process")
}

/// Accepted connections inherit this (Linux): clients that vanished without a word do not keep a tunnel for ever, and one that
/// takes its answer slowly is seen to take it.
fn set_up(socket: &impl AsFd) -> io::Result<()> {
    setsockopt(socket, sockopt::KeepAlive, &true)?;
    setsockopt(socket, sockopt::TcpKeepIdle, &KEEP_ALIVE_IDLE_SECONDS)?;
    SockRef::from(socket).set_tcp_notsent_lowat(UNSENT)
}

fn try_bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    set_up(&socket)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

fn explain(address: SocketAddr, error: &io::Error) -> anyhow::Error {
    let port = address.port();
    match error.kind() {
        io::ErrorKind::PermissionDenied if port < 1024 => anyhow!(
            "cannot listen on {address}: port {port} needs CAP_NET_BIND_SERVICE; run as root, grant the capability \
             (systemd: AmbientCapabilities=CAP_NET_BIND_SERVICE) or choose a port from 1024 up in [proxy]"
        ),
        io::ErrorKind::AddrInUse => match holder(port) {
            Some(who) => {
                anyhow!("cannot listen on {address}: port {port} is used by {who}; stop it or choose another port")
            }
            None => {
                anyhow!("cannot listen on {address}: port {port} is already used; stop who uses it or choose another")
            }
        },
        io::ErrorKind::AddrNotAvailable => {
            anyhow!("cannot listen on {address}: no interface of this machine has the address {}", address.ip())
        }
        _ => anyhow!("cannot listen on {address}: {error}"),
    }
}

/// `nginx (pid 812)`: who listens on a TCP port, by proc(5). Needs the right to look into that process.
fn holder(port: u16) -> Option<String> {
    let inode = ["/proc/net/tcp", "/proc/net/tcp6"].iter().find_map(|table| {
        let text = std::fs::read_to_string(table).ok()?;
        text.lines().skip(1).find_map(|line| listening_inode(line, port))
    })?;
    let socket = format!("socket:[{inode}]");
    let mut processes = std::fs::read_dir("/proc").ok()?.flatten();
    processes.find_map(|process| {
        let pid: u32 = process.file_name().to_str()?.parse().ok()?;
        let mut files = std::fs::read_dir(process.path().join("fd")).ok()?.flatten();
        files.find(|file| std::fs::read_link(file.path()).is_ok_and(|target| target.as_os_str() == socket.as_str()))?;
        let name = std::fs::read_to_string(process.path().join("comm")).ok()?;
        Some(format!("{} (pid {pid})", name.trim_end()))
    })
}

/// The inode in a line of /proc/net/tcp when it is a listener on `port`. Columns: number, local address, remote
/// address, state (0A = LISTEN), queues, timer, retransmits, uid, timeout, inode.
fn listening_inode(line: &str, port: u16) -> Option<u64> {
    let columns: Vec<&str> = line.split_ascii_whitespace().collect();
    let (_, hex) = columns.get(1)?.rsplit_once(':')?;
    let listens = *columns.get(3)? == "0A" && u16::from_str_radix(hex, 16).ok()? == port;
    if listens { columns.get(9)?.parse().ok() } else { None }
}

/// Raises the number of open files to what is allowed and answers how many clients fit: each may need a connection
/// to an instance as well.
pub fn client_capacity() -> usize {
    const OWN_FILES: u64 = 64 + 2 * MOST_PIPES as u64;
    const MOST: u64 = 50_000;
    let allowed = match getrlimit(Resource::RLIMIT_NOFILE) {
        Ok((soft, hard)) => {
            let wanted = hard.min(2 * MOST + OWN_FILES);
            if soft >= wanted || setrlimit(Resource::RLIMIT_NOFILE, wanted, hard).is_err() { soft } else { wanted }
        }
        Err(_) => 1024,
    };
    let clients = (allowed.saturating_sub(OWN_FILES) / 2).clamp(16, MOST);
    usize::try_from(clients).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_taken_port_names_its_holder() {
        let first = bind(([127, 0, 0, 1], 0).into()).unwrap();
        let address = first.local_addr().unwrap();
        let why = bind(address).unwrap_err().to_string();
        assert!(why.contains(&format!("port {} is used by", address.port())), "{why}");
        assert!(why.contains(&format!("(pid {})", std::process::id())), "{why}");
    }

    #[tokio::test]
    async fn accepted_connections_are_asked_for_signs_of_life() {
        let listener = bind(([127, 0, 0, 1], 0).into()).unwrap();
        let client = tokio::net::TcpStream::connect(listener.local_addr().unwrap());
        let (_client, accepted) = tokio::join!(client, listener.accept());
        let (stream, _) = accepted.unwrap();
        assert!(nix::sys::socket::getsockopt(&stream, sockopt::KeepAlive).unwrap());
        assert_eq!(nix::sys::socket::getsockopt(&stream, sockopt::TcpKeepIdle).unwrap(), KEEP_ALIVE_IDLE_SECONDS);
    }

    #[tokio::test]
    async fn a_foreign_address_is_named() {
        let why = bind(([192, 0, 2, 1], 0).into()).unwrap_err().to_string();
        assert!(why.contains("no interface of this machine has the address 192.0.2.1"), "{why}");
    }
}
