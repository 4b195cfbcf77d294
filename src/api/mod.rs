//! The HTTP API: one file per resource, one table of routes, one place that authorises.
//!
//! A request passes, from the outside in: `respond` (request id, problem bodies), `origin` (DNS rebinding and
//! cross-site calls), then the route's own guard in `auth`, then its handler. Handlers are thin: they read the
//! request, ask the agent, and turn the answer into the shapes of [`views`].

use std::sync::Arc;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::middleware::{from_fn, from_fn_with_state};

use crate::agent::Agent;

mod apps;
mod auth;
mod backup;
mod body;
mod canary;
mod deployments;
mod events;
mod instances;
pub mod last_word;
mod limit;
mod openapi;
mod origin;
mod params;
mod probes;
pub mod problem;
mod releases;
mod respond;
mod serve;
mod services;
pub mod sse;
pub mod static_files;
mod table;
mod tokens;
pub mod traffic;
pub mod views;

pub use auth::LocalPeer;
pub use serve::{serve_tcp, serve_unix};

/// Bodies of API calls are a handful of short fields.
const BODY_LIMIT: usize = 64 * 1024;

/// What every handler gets.
#[derive(Clone)]
struct ApiState {
    agent: Arc<Agent>,
    failures: Arc<limit::FailureLimit>,
}

/// The API's routes, with 404 and 405 answers for everything else. Routers without a fallback of their own (the
/// hooks) can be merged into it; they are then outside of its guards.
pub fn routes(agent: Arc<Agent>) -> Router {
    let state = ApiState { agent, failures: Arc::default() };
    let mut router = Router::new();
    for route in table::routes() {
        tracing::trace!(method = route.method, path = route.path, access = ?route.access, "route");
        let guard = from_fn_with_state((state.clone(), route.access), auth::authorize);
        router = router.route(route.path, route.handler.route_layer(guard));
    }
    router
        .fallback(respond::not_found)
        .method_not_allowed_fallback(respond::method_not_allowed)
        .layer(DefaultBodyLimit::max(BODY_LIMIT))
        .layer(from_fn_with_state(state.clone(), origin::check))
        .layer(from_fn(respond::finish))
        .with_state(state)
}

#[cfg(test)]
mod tests;
