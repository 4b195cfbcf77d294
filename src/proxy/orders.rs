//! The proxy's side of the control socket.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use anyhow::Context;
use tokio::io::BufReader;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::broadcast::error::RecvError;
use tokio::task::JoinSet;

use super::control::{LineBuffer, Order, Report, SOCKET_NAME, read_message, write_message};
use super::drain;
use super::server::Proxy;
use super::table::Table;

/// `proxy.sock`, for this user alone; removed when dropped.
#[derive(Debug)]
pub struct Control {
    listener: UnixListener,
    path: PathBuf,
}

impl Control {
    /// In the data directory, whose lock the caller holds: a socket that lies there is a dead proxy's.
    pub fn bind(data_dir: &Path) -> anyhow::Result<Self> {
        let path = data_dir.join(SOCKET_NAME);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("cannot remove the old {}", path.display()));
            }
            _ => {}
        }
        let listener = UnixListener::bind(&path).with_context(|| format!("cannot listen on {}", path.display()))?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))
            .with_context(|| format!("cannot protect {}", path.display()))?;
        Ok(Self { listener, path })
    }

    /// Serves agents for ever.
    pub async fn serve(&self, proxy: &Arc<Proxy>) {
        let mut number = 0;
        // Agents are cut off when this ends.
        let mut agents = JoinSet::new();
        loop {
            let accepted = tokio::select! {
                accepted = self.listener.accept() => accepted,
                Some(_) = agents.join_next() => continue,
            };
            match accepted {
                Ok((stream, _)) => {
                    number += 1;
                    let proxy = Arc::clone(proxy);
                    agents.spawn(async move {
                        if let Err(error) = (Agent { proxy, number }).serve(stream).await {
                            tracing::error!(agent = number, %error, "control connection closed");
                        }
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept an agent");
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            }
        }
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// One control connection.
struct Agent {
    proxy: Arc<Proxy>,
    number: u64,
}

impl Agent {
    async fn serve(&self, stream: UnixStream) -> io::Result<()> {
        let (read, write) = stream.into_split();
        // From here on nothing told to all is missed.
        let reports = self.proxy.reports.subscribe();
        self.talk(BufReader::new(read), write, reports).await
    }

    async fn talk(
        &self,
        mut read: BufReader<OwnedReadHalf>,
        mut write: OwnedWriteHalf,
        mut reports: tokio::sync::broadcast::Receiver<Report>,
    ) -> io::Result<()> {
        write_message(&mut write, &self.hello()).await?;
        let mut line = LineBuffer::default();
        loop {
            tokio::select! {
                order = read_message(&mut read, &mut line) => {
                    let Some(order) = order? else { return Ok(()) };
                    if let Some(reply) = self.obey(order).await {
                        write_message(&mut write, &reply).await?;
                    }
                }
                report = reports.recv() => match report {
                    Ok(report) => write_message(&mut write, &report).await?,
                    Err(RecvError::Closed) => return Ok(()),
                    // It connects again and asks again for what it waits for.
                    Err(RecvError::Lagged(missed)) => {
                        return Err(io::Error::other(format!("the agent does not read: {missed} reports behind")));
                    }
                },
            }
        }
    }

    fn hello(&self) -> Report {
        Report::Hello {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            boot: self.proxy.boot.clone(),
            generation: self.proxy.routing.generation(),
            listeners: self.proxy.listeners.clone(),
        }
    }

    /// Whether a newer agent has given orders: this one is being replaced. Who only asks for counts replaces nobody.
    fn is_outdated(&self) -> bool {
        self.proxy.newest_agent.fetch_max(self.number, SeqCst) > self.number
    }

    async fn obey(&self, order: Order) -> Option<Report> {
        match order {
            Order::Count => {
                Some(Report::Counts { apps: self.proxy.routing.counts(), in_flight: self.proxy.routing.in_flight() })
            }
            Order::Apply(table) => {
                let generation = table.generation;
                if self.is_outdated() {
                    let why = "a newer agent is connected; only its orders count".to_owned();
                    return Some(Report::Refused { generation, why });
                }
                Some(match apply(&self.proxy, table).await {
                    Ok(()) => Report::Applied { generation },
                    Err(why) => {
                        tracing::error!(generation, why, "table refused");
                        Report::Refused { generation, why }
                    }
                })
            }
            Order::Drain { .. } | Order::Shutdown { .. } if self.is_outdated() => {
                tracing::warn!(agent = self.number, "order of an outdated agent ignored");
                None
            }
            Order::Drain { instance, limits } => {
                drain::begin(&self.proxy, &instance, limits);
                None
            }
            Order::Shutdown { grace_ms } => {
                self.proxy.shut_down(Duration::from_millis(grace_ms));
                None
            }
        }
    }
}

/// Checks a table, puts it on disk, then in force. The error is the reason to refuse it; the old one stays.
pub async fn apply(proxy: &Arc<Proxy>, table: Table) -> Result<(), String> {
    let _one_at_a_time = proxy.applying.lock().await;
    let current = proxy.routing.generation();
    if table.generation <= current {
        return Err(format!("generation {} is not newer than {current}, which is in force", table.generation));
    }
    table.validate().map_err(|error| error.to_string())?;
    let saved = proxy.saved.clone();
    let written = tokio::task::spawn_blocking(move || saved.save(&table).map(|()| table)).await;
    match written {
        Ok(Ok(table)) => {
            proxy.routing.replace(&table);
            proxy.drains.forget(&table);
            tracing::info!(generation = table.generation, routes = table.routes.len(), "route table in force");
            Ok(())
        }
        Ok(Err(error)) => Err(format!("the table cannot be kept on disk: {error}")),
        Err(error) => Err(format!("writing the table failed: {error}")),
    }
}
