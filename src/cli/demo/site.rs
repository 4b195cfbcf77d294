//! The site that the demo deploys: this very binary, in an image of its own.

use std::net::SocketAddr;
use std::path::Path;

use anyhow::{Context, Result};
use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Html;
use axum::routing::get;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

/// What a version of the site is like; read from `/site.conf` in its image.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Site {
    /// Shown on its page.
    pub version: String,
    /// The page's colour.
    pub colour: String,
    /// Its health check never passes.
    pub broken: bool,
}

impl Site {
    /// The text of `/site.conf`.
    pub fn to_conf(&self) -> String {
        format!("version={}\ncolour={}\nbroken={}\n", self.version, self.colour, self.broken)
    }

    fn from_conf(text: &str) -> Self {
        let value = |key: &str| text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        Self {
            version: value("version").unwrap_or("?").to_owned(),
            colour: value("colour").unwrap_or("gray").to_owned(),
            broken: value("broken") == Some("true"),
        }
    }
}

/// Serves the site on port 8000 until SIGTERM.
pub async fn serve(conf: &Path) -> Result<()> {
    let text = std::fs::read_to_string(conf).with_context(|| format!("cannot read {}", conf.display()))?;
    let site = Site::from_conf(&text);
    let listener = TcpListener::bind(SocketAddr::from(([0, 0, 0, 0], 8000))).await?;
    println!("site {} is up", site.version);
    let router = Router::new().route("/", get(page)).route("/healthz", get(health)).with_state(site);
    let mut terminate = signal(SignalKind::terminate())?;
    axum::serve(listener, router)
        .with_graceful_shutdown(async move {
            terminate.recv().await;
        })
        .await?;
    Ok(())
}

async fn page(State(site): State<Site>) -> Html<String> {
    // The instance's name is its host name.
    let instance = std::fs::read_to_string("/etc/hostname").unwrap_or_default();
    Html(format!(
        "<!doctype html><title>longshore demo</title>\
         <body style=\"font:2rem system-ui;text-align:center;padding:4rem;color:white;background:{}\">\
         <h1>This is {}</h1><p>served by {}</p></body>\n",
        site.colour,
        site.version,
        instance.trim()
    ))
}

async fn health(State(site): State<Site>) -> (StatusCode, &'static str) {
    if site.broken { (StatusCode::SERVICE_UNAVAILABLE, "not well\n") } else { (StatusCode::OK, "well\n") }
}
