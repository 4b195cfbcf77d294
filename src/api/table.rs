//! Every route with what it takes to call it. A route cannot be written down without its access.

use axum::handler::Handler;
use axum::routing::{self, MethodRouter};

use super::{
    ApiState, apps, backup, canary, deployments, events, instances, openapi, probes, releases, services, tokens,
};
use crate::store::Scope;

/// What a caller must show.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    /// Nothing.
    Open,
    /// A token with at least this scope, or the agent's own socket.
    Needs(Scope),
}

/// One method on one path.
pub(super) struct Route {
    /// For the log and for whoever walks the table.
    pub method: &'static str,
    pub path: &'static str,
    pub access: Access,
    pub handler: MethodRouter<ApiState>,
}

const OPEN: Access = Access::Open;
const READ: Access = Access::Needs(Scope::Read);
const DEPLOY: Access = Access::Needs(Scope::Deploy);
const ADMIN: Access = Access::Needs(Scope::Admin);

/// The whole API.
#[rustfmt::skip]
pub(super) fn routes() -> Vec<Route> {
    vec![
        get("/livez", OPEN, probes::live),
        get("/readyz", OPEN, probes::ready),
        get("/api/v1/openapi.json", OPEN, openapi::document),

        get("/api/v1/apps", READ, apps::list),
        get("/api/v1/apps/{app}", READ, apps::show),

        get("/api/v1/apps/{app}/deployments", READ, deployments::list),
        post("/api/v1/apps/{app}/deployments", DEPLOY, deployments::create),
        get("/api/v1/deployments/{id}", READ, deployments::show),
        get("/api/v1/deployments/{id}/log", READ, deployments::log),
        post("/api/v1/deployments/{id}/cancel", DEPLOY, deployments::cancel),

        get("/api/v1/apps/{app}/releases", READ, releases::list),
        get("/api/v1/apps/{app}/drift", READ, apps::drift),
        post("/api/v1/apps/{app}/rollback", DEPLOY, releases::rollback),

        put("/api/v1/apps/{app}/services/{service}/scale", DEPLOY, services::scale),
        post("/api/v1/apps/{app}/restart", DEPLOY, services::restart),
        post("/api/v1/apps/{app}/canary", DEPLOY, canary::act),

        get("/api/v1/instances/{id}/logs", READ, instances::logs),
        get("/api/v1/events", READ, events::stream),

        get("/api/v1/tokens", ADMIN, tokens::list),
        post("/api/v1/tokens", ADMIN, tokens::create),
        delete("/api/v1/tokens/{id}", ADMIN, tokens::revoke),

        post("/api/v1/backup", ADMIN, backup::create),
    ]
}

fn get<H: Handler<T, ApiState>, T: 'static>(path: &'static str, access: Access, handler: H) -> Route {
    Route { method: "GET", path, access, handler: routing::get(handler) }
}

fn post<H: Handler<T, ApiState>, T: 'static>(path: &'static str, access: Access, handler: H) -> Route {
    Route { method: "POST", path, access, handler: routing::post(handler) }
}

fn put<H: Handler<T, ApiState>, T: 'static>(path: &'static str, access: Access, handler: H) -> Route {
    Route { method: "PUT", path, access, handler: routing::put(handler) }
}

fn delete<H: Handler<T, ApiState>, T: 'static>(path: &'static str, access: Access, handler: H) -> Route {
    Route { method: "DELETE", path, access, handler: routing::delete(handler) }
}
