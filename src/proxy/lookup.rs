//! Which route a request takes: the exact host before a wildcard, the longest path first. Pure.

// Only the agent puts in what is looked up: nobody can choose hosts that collide.
use foldhash::{HashMap, HashMapExt};

use super::path_prefix::PathPrefix;
use super::table::Route;

/// Hosts to the routes that share them.
#[derive(Debug, Default)]
pub struct Lookup {
    /// `*.example.com` stands under its own spelling: no request can name it.
    hosts: HashMap<String, Vec<Way>>,
}

#[derive(Debug)]
struct Way {
    path: PathPrefix,
    /// Position among the table's routes.
    route: usize,
}

/// Why a request has no route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoRoute {
    /// No route has the host.
    Host,
    /// Routes have the host, and none of them the path.
    Path,
}

impl Lookup {
    /// Of a table's routes.
    pub fn new<'a>(routes: impl IntoIterator<Item = &'a Route>) -> Self {
        let routes = routes.into_iter();
        let mut hosts: HashMap<String, Vec<Way>> = HashMap::with_capacity(routes.size_hint().0);
        for (position, route) in routes.enumerate() {
            for host in &route.hosts {
                hosts.entry(host.clone()).or_default().push(Way { path: route.path.clone(), route: position });
            }
        }
        for ways in hosts.values_mut() {
            ways.sort_by_key(|way| std::cmp::Reverse(way.path.as_str().len()));
        }
        Self { hosts }
    }

    /// The name under which some route has the host: its own, or the wildcard that stands for it.
    pub fn name_of(&self, host: &str) -> Option<&str> {
        self.entry(host).map(|(name, _)| name)
    }

    fn entry(&self, host: &str) -> Option<(&str, &[Way])> {
        let exact = self.hosts.get_key_value(host);
        let found = exact.or_else(|| {
            let (_, parent) = host.split_once('.')?;
            self.hosts.get_key_value(format!("*.{parent}").as_str())
        });
        found.map(|(name, ways)| (name.as_str(), ways.as_slice()))
    }

    /// The position of the route for a host, as [`super::table::lookup_host`] spells it, and a path.
    pub fn find(&self, host: &str, path: &str) -> Result<usize, NoRoute> {
        let (_, ways) = self.entry(host).ok_or(NoRoute::Host)?;
        ways.iter().find(|way| way.path.covers(path)).map(|way| way.route).ok_or(NoRoute::Path)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn routes(all: &[(&str, &str)]) -> Vec<Route> {
        let route = |&(host, path): &(&str, &str)| Route {
            path: PathPrefix::parse(path).unwrap(),
            ..Route::new("shop".parse().unwrap(), "web".parse().unwrap(), vec![host.to_owned()], vec![])
        };
        all.iter().map(route).collect()
    }

    #[test]
    fn the_exact_host_and_the_longest_path_win() {
        let lookup = Lookup::new(&routes(&[
            ("shop.test", "/"),
            ("shop.test", "/api"),
            ("shop.test", "/api/v2"),
            ("*.shop.test", "/"),
            ("api.shop.test", "/only"),
        ]));
        for (host, path, expected) in [
            ("shop.test", "/", Ok(0)),
            ("shop.test", "/apix", Ok(0)),
            ("shop.test", "/api/v1", Ok(1)),
            ("shop.test", "/api/v2/x", Ok(2)),
            ("blog.shop.test", "/", Ok(3)),
            ("a.blog.shop.test", "/", Err(NoRoute::Host)),
            ("api.shop.test", "/only/x", Ok(4)),
            ("api.shop.test", "/", Err(NoRoute::Path)),
            ("other.test", "/", Err(NoRoute::Host)),
            ("localhost", "/", Err(NoRoute::Host)),
        ] {
            assert_eq!(lookup.find(host, path), expected, "{host}{path}");
        }
        assert_eq!(lookup.name_of("blog.shop.test"), Some("*.shop.test"));
        assert_eq!(lookup.name_of("api.shop.test"), Some("api.shop.test"));
        assert_eq!(lookup.name_of("other.test"), None);
    }

    proptest! {
        /// As slowly as one would look it up by hand.
        #[test]
        fn it_finds_what_looking_at_every_route_finds(
            paths in proptest::collection::btree_set("(/[ab]{1,2}){0,3}", 0..8),
            asked in "(/[ab]{1,2}){1,4}/?",
        ) {
            let all: Vec<(&str, String)> = paths.iter().map(|path| ("shop.test", format!("{path}/"))).collect();
            let all: Vec<(&str, &str)> = all.iter().map(|(host, path)| (*host, path.as_str())).collect();
            let routes = routes(&all);
            let covering = routes.iter().enumerate().filter(|(_, route)| route.path.covers(&asked));
            let longest = covering.max_by_key(|(_, route)| route.path.as_str().len()).map(|(position, _)| position);
            let expected = longest.ok_or(if routes.is_empty() { NoRoute::Host } else { NoRoute::Path });
            prop_assert_eq!(Lookup::new(&routes).find("shop.test", &asked), expected);
        }
    }
}
