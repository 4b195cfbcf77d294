//! All apps' routes as the one table that the proxy knows.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use tokio::sync::Mutex;

use crate::model::{AppName, InstanceId};
use crate::proxy::client::{ApplyError, ProxyClient};
use crate::proxy::table::{Member, Route, Table};

/// Every app's part of the route table. Setting one app's part sends the whole.
pub struct Routes {
    proxy: ProxyClient,
    parts: Mutex<Parts>,
}

struct Parts {
    /// Of apps that have no driver: from the table that the proxy keeps, not observed yet in this life of the agent;
    /// and of those that are no longer configured.
    kept: BTreeMap<AppName, Vec<Route>>,
    set: BTreeMap<AppName, Vec<Route>>,
}

impl Parts {
    /// Each host and path once: for what an app has set rather than for what is kept. But an app of which nothing runs takes no
    /// host from one that answers, such as from its former name until its own first release is live.
    fn joined(&self) -> Vec<Route> {
        let all = || self.set.values().chain(self.kept.values()).flatten();
        let answers = |route: &&Route| !route.members.is_empty();
        let mut claimed = BTreeSet::new();
        let claims = all().filter(answers).chain(all().filter(|route| !answers(route))).map(|route| {
            let hosts = route.hosts.iter().filter(|host| claimed.insert((*host, &route.path))).cloned().collect();
            Route { hosts, ..route.clone() }
        });
        claims.filter(|route| !route.hosts.is_empty()).collect()
    }

    /// Takes instances out of an app's routes; which of them were in.
    fn take_out(&mut self, app: &AppName, leaving: &[InstanceId]) -> Vec<InstanceId> {
        let parts = self.kept.get_mut(app).into_iter().chain(self.set.get_mut(app)).flatten();
        let mut taken = Vec::new();
        for route in parts {
            let (out, stay) = route.members.drain(..).partition(|member| leaving.contains(&member.instance));
            route.members = stay;
            taken.extend(Vec::into_iter(out).map(|member: Member| member.instance));
        }
        taken
    }
}

impl Routes {
    /// Starts from the table that the proxy keeps on disk, so that traffic goes on unchanged until each app's
    /// instances have been observed again.
    pub fn new(proxy: ProxyClient, table: Table) -> Self {
        let mut kept: BTreeMap<AppName, Vec<Route>> = BTreeMap::new();
        for route in table.routes {
            kept.entry(route.app.clone()).or_default().push(route);
        }
        Self { proxy, parts: Mutex::new(Parts { kept, set: BTreeMap::new() }) }
    }

    /// The table that the proxy keeps; empty when there is none or it cannot be read.
    pub fn read_kept(path: &Path) -> Table {
        let text = std::fs::read(path).unwrap_or_default();
        serde_json::from_slice(&text).unwrap_or_default()
    }

    /// Whether an instance is in the table as it is now.
    pub async fn holds(&self, app: &AppName, instance: &InstanceId) -> bool {
        let parts = self.parts.lock().await;
        let routes = parts.set.get(app).or_else(|| parts.kept.get(app));
        routes.into_iter().flatten().flat_map(|route| &route.members).any(|member| member.instance == *instance)
    }

    /// Replaces an app's routes and returns once the proxy has acknowledged them.
    pub async fn set(&self, app: &AppName, mut routes: Vec<Route>) -> Result<(), ApplyError> {
        // Held until the answer: tables reach the proxy in the order of the changes.
        let mut parts = self.parts.lock().await;
        let before = parts.set.get(app).or_else(|| parts.kept.get(app));
        remember_files(&mut routes, before.map_or(&[], Vec::as_slice));
        parts.kept.remove(app);
        parts.set.insert(app.clone(), routes);
        self.proxy.apply(parts.joined()).await.map(drop)
    }

    /// Takes instances that are to end out of an app's routes. Returns those that were in, once the proxy has
    /// acknowledged that it gives them no request any more.
    pub async fn take_out(&self, app: &AppName, leaving: &[InstanceId]) -> Result<Vec<InstanceId>, ApplyError> {
        let mut parts = self.parts.lock().await;
        let taken = parts.take_out(app, leaving);
        if !taken.is_empty() {
            self.proxy.apply(parts.joined()).await?;
        }
        Ok(taken)
    }

    /// The app is no longer configured: its routes stay as they are, until another app answers for its hosts.
    pub async fn let_go(&self, app: &AppName) {
        let mut parts = self.parts.lock().await;
        if let Some(routes) = parts.set.remove(app) {
            parts.kept.insert(app.clone(), routes);
        }
    }

    /// The proxy itself.
    pub fn proxy(&self) -> &ProxyClient {
        &self.proxy
    }
}

/// Static files outlive what brought them: those of the release before are still found behind those of the live one, as pages
/// that were loaded before the switch ask for them; and where nothing serves, they stay as they were.
fn remember_files(routes: &mut [Route], before: &[Route]) {
    for route in routes {
        let Some(before) = before.iter().find(|other| (&other.path, &other.hosts) == (&route.path, &route.hosts))
        else {
            continue;
        };
        if route.members.is_empty() && route.files.is_empty() {
            route.files.clone_from(&before.files);
        }
        for files in &mut route.files {
            let Some(known) = before.files.iter().find(|known| known.prefix == files.prefix) else { continue };
            let earlier = known.roots.iter().find(|root| !files.roots.contains(root)).cloned();
            files.roots.extend(earlier);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(app: &str, hosts: &[&str], instances: u32) -> Route {
        let member = |number: u32| Member {
            instance: InstanceId::parse(&format!("d1-{app}-{number}")).unwrap(),
            address: ([127, 0, 0, 1], 80).into(),
            weight: 1,
            group: 0,
        };
        let hosts = hosts.iter().map(|&host| host.to_owned()).collect();
        Route::new(app.parse().unwrap(), "web".parse().unwrap(), hosts, (1..=instances).map(member).collect())
    }

    fn parts(kept: &[Route], set: &[Route]) -> Parts {
        let by_app = |routes: &[Route]| routes.iter().map(|route| (route.app.clone(), vec![route.clone()])).collect();
        Parts { kept: by_app(kept), set: by_app(set) }
    }

    #[test]
    fn what_an_app_has_set_goes_before_what_is_kept() {
        let kept = [route("shop", &["shop.test", "old.test"], 2), route("blog", &["blog.test"], 1)];
        let set = [route("store", &["shop.test"], 1)];
        let joined = parts(&kept, &set).joined();
        let rest = Route { hosts: vec!["old.test".into()], ..kept[0].clone() };
        assert_eq!(joined, [set[0].clone(), kept[1].clone(), rest]);
    }

    #[test]
    fn what_is_to_end_is_taken_out_of_its_own_routes() {
        let mut parts = parts(&[route("shop", &["shop.test"], 3), route("blog", &["blog.test"], 2)], &[]);
        let leaving = ["d1-shop-2", "d1-shop-9", "d1-blog-1"].map(|id| InstanceId::parse(id).unwrap());
        assert_eq!(parts.take_out(&"shop".parse().unwrap(), &leaving), [leaving[0].clone()]);
        let left: Vec<_> = parts.joined().iter().map(|route| route.members.len()).collect();
        assert_eq!(left, [2, 2], "blog, shop");
    }

    #[test]
    fn files_of_the_release_before_stay_behind_those_of_the_live_one() {
        use crate::proxy::PathPrefix;
        use crate::proxy::table::{FileRoot, StaticFiles};

        let serving = |roots: &[&str], instances: u32| {
            let roots = roots.iter().map(|dir| FileRoot { dir: dir.into(), below: String::new() }).collect();
            let files = vec![StaticFiles { prefix: PathPrefix::parse("/static").unwrap(), roots }];
            vec![Route { files, ..route("shop", &["shop.test"], instances) }]
        };
        let nothing = || vec![route("shop", &["shop.test"], 0)];
        let mut table = nothing();
        for (next, expected) in [
            (serving(&["v1"], 1), &["v1"][..]),
            (serving(&["v1", "v2"], 2), &["v1", "v2"]),
            (serving(&["v2"], 1), &["v2", "v1"]),
            (serving(&["v2"], 1), &["v2", "v1"]),
            (serving(&["v2", "v3"], 2), &["v2", "v3", "v1"]),
            // Undone: pages of the version that was tried are still open.
            (serving(&["v2"], 1), &["v2", "v3"]),
            (nothing(), &["v2", "v3"]),
            (serving(&["v2", "v4"], 2), &["v2", "v4", "v3"]),
            (serving(&["v4"], 1), &["v4", "v2"]),
        ] {
            let mut routes = next;
            remember_files(&mut routes, &table);
            let roots: Vec<_> = routes[0].files[0].roots.iter().map(|root| root.dir.to_str().unwrap()).collect();
            assert_eq!(roots, expected);
            table = routes;
        }
        let mut without = vec![route("shop", &["shop.test"], 1)];
        remember_files(&mut without, &table);
        assert_eq!(without[0].files, [], "the live release has none");
    }

    #[test]
    fn an_app_of_which_nothing_runs_takes_no_host_from_one_that_answers() {
        let kept = [route("shop", &["shop.test"], 2)];
        let set = [route("store", &["shop.test", "store.test"], 0)];
        let own = Route { hosts: vec!["store.test".into()], ..set[0].clone() };
        assert_eq!(parts(&kept, &set).joined(), [kept[0].clone(), own]);
        assert_eq!(parts(&[], &set).joined(), set);
    }
}
