//! Each app's part of the table, and how they become one table. Pure.

use std::collections::{BTreeMap, BTreeSet};

use super::files;
use crate::config::Fraction;
use crate::model::{AppName, InstanceId};
use crate::proxy::table::{Member, Route, Table};
use crate::rollout::shares::beside;

/// The group of a permanent canary's members in the route of its production: between groups shares are exact.
const CANARY: u8 = 2;

/// An app that gets a share of another one's requests for as long as it is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Permanent {
    /// Whose requests.
    pub production: AppName,
    /// How much of them.
    pub share: Fraction,
}

/// What of a permanent canary is in the table.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Beside {
    /// How many of its instances could be given requests.
    pub ready: usize,
    /// All instances that share requests now, and whether each is the canary's; empty while it gets none.
    pub sides: BTreeMap<InstanceId, bool>,
}

#[derive(Default)]
pub(super) struct Parts {
    /// Of apps that have no driver: from the table that the proxy keeps, not observed yet in this life of the agent;
    /// and of those that are no longer configured.
    kept: BTreeMap<AppName, Vec<Route>>,
    set: BTreeMap<AppName, Vec<Route>>,
    /// The members of canaries that were beside an app in the table that the proxy keeps. That table may be older than their
    /// ends, so they come back only when their own app has set them.
    kept_canaries: BTreeMap<AppName, BTreeSet<InstanceId>>,
    canaries: BTreeMap<AppName, Permanent>,
    /// These are no longer configured, or were not when they last set something: whoever is answers for their hosts.
    departed: BTreeSet<AppName>,
    /// Those of them that were canaries. What they set are the hosts of another app.
    departed_canaries: BTreeSet<AppName>,
    /// These canaries get nothing.
    pub suspended: BTreeSet<AppName>,
}

impl Parts {
    pub fn of(table: Table) -> Self {
        let mut parts = Self::default();
        for mut route in table.routes {
            let (canaries, own) = route.members.into_iter().partition(|member| member.group == CANARY);
            let canaries = Vec::into_iter(canaries).map(|member: Member| member.instance);
            parts.kept_canaries.entry(route.app.clone()).or_default().extend(canaries);
            route.members = own;
            parts.kept.entry(route.app.clone()).or_default().push(route);
        }
        parts
    }

    /// Each host and path once: for what an app has set rather than for what is kept, or set by one that is no longer configured. But an app of which nothing runs takes no
    /// host from one that answers, such as from its former name until its own first release is live. A canary has no routes
    /// of its own: its members are joined to those of its production.
    pub fn joined(&self) -> Vec<Route> {
        let all = || {
            let configured = self.set.iter().filter(|(app, _)| !self.departed.contains(*app));
            let departed = self.set.iter().filter(|(app, _)| self.departed.contains(*app));
            let own = |app: &AppName| !self.canaries.contains_key(app) && !self.departed_canaries.contains(app);
            configured.chain(departed).chain(&self.kept).filter(move |(app, _)| own(app)).flat_map(|(_, routes)| routes)
        };
        let answers = |route: &&Route| !route.members.is_empty();
        let mut claimed = BTreeSet::new();
        let claims = all().filter(answers).chain(all().filter(|route| !answers(route))).map(|route| {
            let hosts = route.hosts.iter().filter(|host| claimed.insert((*host, &route.path))).cloned().collect();
            Route { hosts, ..route.clone() }
        });
        let mut routes: Vec<Route> = claims.filter(|route| !route.hosts.is_empty()).collect();
        for (app, canary) in self.canaries.iter().filter(|(app, _)| !self.suspended.contains(*app)) {
            for own in self.set.get(app).into_iter().flatten() {
                let fits = |route: &&mut Route| canary.shares(route, own);
                if let Some(route) = routes.iter_mut().find(fits) {
                    join(route, &own.members, canary.share);
                    files::join(route, own);
                }
            }
        }
        routes
    }

    /// Takes instances out of an app's routes; which of them were in.
    pub fn take_out(&mut self, app: &AppName, leaving: &[InstanceId]) -> Vec<InstanceId> {
        let parts = self.kept.get_mut(app).into_iter().chain(self.set.get_mut(app)).flatten();
        let mut taken = Vec::new();
        for route in parts {
            let (out, stay) = route.members.drain(..).partition(|member| leaving.contains(&member.instance));
            route.members = stay;
            taken.extend(Vec::into_iter(out).map(|member: Member| member.instance));
        }
        if let Some(canary) = self.canaries.get(app)
            && let Some(kept) = self.kept_canaries.get_mut(&canary.production)
        {
            taken.extend(leaving.iter().filter(|id| kept.remove(*id)).cloned());
        }
        taken
    }

    /// Whether an instance is in the table, as far as is known of it.
    pub fn holds(&self, app: &AppName, instance: &InstanceId) -> bool {
        let own = self.set.get(app).or_else(|| self.kept.get(app)).into_iter().flatten();
        let is_kept = |canary: &Permanent| self.kept_canaries.get(&canary.production)?.get(instance);
        own.flat_map(|route| &route.members).any(|member| member.instance == *instance)
            || !self.set.contains_key(app) && self.canaries.get(app).and_then(is_kept).is_some()
    }

    pub fn set(&mut self, app: &AppName, mut routes: Vec<Route>) {
        let before = self.set.get(app).or_else(|| self.kept.get(app));
        files::remember(&mut routes, before.map_or(&[], Vec::as_slice));
        self.kept.remove(app);
        self.set.insert(app.clone(), routes);
    }

    /// The app is no longer configured: what it sets from now on holds until another app answers for its hosts. A canary's
    /// share ends, as the hosts were never its own.
    pub fn depart(&mut self, app: &AppName) {
        self.departed.insert(app.clone());
        if self.canaries.remove(app).is_some() {
            self.departed_canaries.insert(app.clone());
        }
    }

    /// The same, and it sets nothing any more: its routes stay as they are.
    pub fn let_go(&mut self, app: &AppName) {
        self.depart(app);
        if let Some(routes) = self.set.remove(app)
            && !self.departed_canaries.contains(app)
        {
            self.kept.insert(app.clone(), routes);
        }
    }

    /// The app is configured again.
    pub fn take_on(&mut self, app: &AppName) {
        self.departed.remove(app);
        self.departed_canaries.remove(app);
    }

    /// What the table that the proxy keeps has of an app that has set nothing yet.
    pub fn kept(&self, app: &AppName) -> &[Route] {
        self.kept.get(app).map_or(&[], Vec::as_slice)
    }

    /// Which apps are canaries from now on. What one of them had set that is none any more were the hosts of another app.
    pub fn set_canaries(&mut self, canaries: BTreeMap<AppName, Permanent>) {
        for former in self.canaries.keys().filter(|app| !canaries.contains_key(*app)) {
            self.set.remove(former);
            self.suspended.remove(former);
        }
        self.canaries = canaries;
    }

    pub fn suspend(&mut self, canary: &AppName, suspended: bool) {
        match suspended {
            true => self.suspended.insert(canary.clone()),
            false => self.suspended.remove(canary),
        };
    }

    pub fn canary_of(&self, production: &AppName) -> BTreeSet<InstanceId> {
        let canary = self.canaries.iter().find(|(_, canary)| canary.production == *production);
        canary.map(|(app, _)| self.instances(app).cloned().collect()).unwrap_or_default()
    }

    fn instances(&self, app: &AppName) -> impl Iterator<Item = &InstanceId> {
        self.set.get(app).into_iter().flatten().flat_map(instances)
    }

    pub fn beside(&self, canary: &AppName) -> Beside {
        let own: BTreeSet<&InstanceId> = self.instances(canary).collect();
        let joined = self.joined();
        let shared = joined.iter().filter(|route| instances(route).any(|id| own.contains(id)));
        let sides = shared.flat_map(instances).map(|id| (id.clone(), own.contains(id))).collect();
        Beside { ready: own.len(), sides }
    }
}

impl Permanent {
    /// Whether the requests of a route are those that the canary's `own` says it shares.
    fn shares(&self, route: &Route, own: &Route) -> bool {
        route.app == self.production
            && route.path == own.path
            && route.hosts.iter().any(|host| own.hosts.contains(host))
            && route.members.iter().all(|member| member.group != CANARY)
    }
}

fn join(route: &mut Route, canary: &[Member], share: Fraction) {
    let weights: Vec<u32> = route.members.iter().map(|member| member.weight).collect();
    // Production goes on as it is before anything is shared out wrongly.
    let Some((weights, each)) = beside(&weights, canary.len(), share) else { return };
    for (member, weight) in route.members.iter_mut().zip(weights) {
        member.weight = weight;
    }
    route.members.extend(canary.iter().map(|member| Member { weight: each, group: CANARY, ..member.clone() }));
}

fn instances(route: &Route) -> impl Iterator<Item = &InstanceId> {
    route.members.iter().map(|member| &member.instance)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn route(app: &str, hosts: &[&str], instances: u32) -> Route {
        let member = |number: u32| Member {
            instance: id(app, number),
            address: ([127, 0, 0, 1], 80).into(),
            weight: 1,
            group: 0,
        };
        let hosts = hosts.iter().map(|&host| host.to_owned()).collect();
        Route::new(app.parse().unwrap(), "web".parse().unwrap(), hosts, (1..=instances).map(member).collect())
    }

    fn id(app: &str, number: u32) -> InstanceId {
        InstanceId::parse(&format!("d1-{app}-{number}")).unwrap()
    }

    fn name(app: &str) -> AppName {
        app.parse().unwrap()
    }

    fn parts(kept: &[Route], set: &[Route]) -> Parts {
        let by_app = |routes: &[Route]| routes.iter().map(|route| (route.app.clone(), vec![route.clone()])).collect();
        Parts { kept: by_app(kept), set: by_app(set), ..Parts::default() }
    }

    /// `next` is the canary of `shop`.
    fn canary(mut parts: Parts, part: u32, of: u32) -> Parts {
        let share = Fraction { part, of };
        parts.set_canaries(BTreeMap::from([(name("next"), Permanent { production: name("shop"), share })]));
        parts
    }

    fn weights(routes: &[Route]) -> Vec<(&str, u32, u8)> {
        let members = routes.iter().flat_map(|route| &route.members);
        members.map(|member| (member.instance.as_str(), member.weight, member.group)).collect()
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
    fn one_that_is_not_configured_any_more_takes_no_host_from_one_that_is() {
        let (shop, store) = (route("shop", &["shop.test"], 2), route("store", &["shop.test"], 1));
        let mut parts = parts(&[], &[shop.clone(), store.clone()]);
        parts.depart(&name("shop"));
        assert_eq!(parts.joined(), std::slice::from_ref(&store));
        parts.set(&name("store"), vec![route("store", &["shop.test"], 0)]);
        assert_eq!(parts.joined(), std::slice::from_ref(&shop), "of which nothing runs");
        parts.set(&name("store"), vec![store.clone()]);
        // Also what it had under way as it was let go.
        parts.let_go(&name("shop"));
        parts.set(&name("shop"), vec![shop.clone()]);
        assert_eq!(parts.joined(), std::slice::from_ref(&store));
        parts.take_on(&name("shop"));
        parts.set(&name("shop"), vec![shop.clone()]);
        assert_eq!(parts.joined(), [shop], "by name, as ever");
    }

    #[test]
    fn what_is_to_end_is_taken_out_of_its_own_routes() {
        let mut parts = parts(&[route("shop", &["shop.test"], 3), route("blog", &["blog.test"], 2)], &[]);
        let leaving = [id("shop", 2), id("shop", 9), id("blog", 1)];
        assert_eq!(parts.take_out(&name("shop"), &leaving), [leaving[0].clone()]);
        let left: Vec<_> = parts.joined().iter().map(|route| route.members.len()).collect();
        assert_eq!(left, [2, 2], "blog, shop");
    }

    #[test]
    fn an_app_of_which_nothing_runs_takes_no_host_from_one_that_answers() {
        let kept = [route("shop", &["shop.test"], 2)];
        let set = [route("store", &["shop.test", "store.test"], 0)];
        let own = Route { hosts: vec!["store.test".into()], ..set[0].clone() };
        assert_eq!(parts(&kept, &set).joined(), [kept[0].clone(), own]);
        assert_eq!(parts(&[], &set).joined(), set);
    }

    #[test]
    fn a_canary_answers_its_share_of_its_productions_requests() {
        let (shop, next) = (route("shop", &["shop.test"], 2), route("next", &["shop.test"], 1));
        let mut both = canary(parts(&[], &[shop.clone(), next.clone()]), 1, 3);
        let joined = both.joined();
        assert_eq!(joined.len(), 1, "one route for one host: {joined:?}");
        assert_eq!(weights(&joined), [("d1-shop-1", 1, 0), ("d1-shop-2", 1, 0), ("d1-next-1", 1, 2)]);
        assert_eq!(joined[0].app, name("shop"), "requests are counted as production's");
        assert_eq!(both.canary_of(&name("shop")), BTreeSet::from([id("next", 1)]));
        let seen = both.beside(&name("next"));
        assert_eq!((seen.ready, seen.sides.len(), seen.sides[&id("next", 1)]), (1, 3, true));

        both.suspended.insert(name("next"));
        assert_eq!(both.joined(), std::slice::from_ref(&shop));
        assert_eq!(both.beside(&name("next")), Beside { ready: 1, sides: BTreeMap::new() });

        let without = canary(parts(&[], &[shop.clone(), route("next", &["shop.test"], 0)]), 1, 3);
        assert_eq!(without.joined(), [shop]);
        let alone = canary(parts(&[], &[route("shop", &["shop.test"], 0), next.clone()]), 1, 3);
        assert_eq!(weights(&alone.joined()), [("d1-next-1", 1, 2)], "rather than nobody");
        assert_eq!(canary(parts(&[], &[next]), 1, 3).joined(), [], "it has no hosts of its own");
    }

    #[test]
    fn a_canary_is_joined_by_host_and_path() {
        let api = |route: Route| Route { path: crate::proxy::PathPrefix::parse("/api").unwrap(), ..route };
        let (shop, next) = (route("shop", &["shop.test"], 1), route("next", &["shop.test"], 1));
        let other_path = canary(parts(&[], &[shop.clone(), api(next.clone())]), 1, 3);
        assert_eq!(other_path.joined(), std::slice::from_ref(&shop));
        let other_host = canary(parts(&[], &[shop.clone(), route("next", &["else.test"], 1)]), 1, 3);
        assert_eq!(other_host.joined(), [shop]);
        let same = canary(
            parts(&[], &[api(route("shop", &["a.test", "b.test"], 1)), api(route("next", &["b.test"], 1))]),
            1,
            2,
        );
        assert_eq!(weights(&same.joined()).len(), 2);
    }

    #[test]
    fn an_agent_that_starts_again_knows_whom_the_kept_table_had() {
        let table = canary(parts(&[], &[route("shop", &["shop.test"], 2), route("next", &["shop.test"], 2)]), 1, 3);
        let routes = table.joined();
        let mut again = canary(Parts::of(Table { generation: 1, routes }), 1, 3);
        assert_eq!(weights(&again.joined()), [("d1-shop-1", 2, 0), ("d1-shop-2", 2, 0)], "it may have ended since");
        assert!(again.holds(&name("next"), &id("next", 1)) && !again.holds(&name("shop"), &id("next", 1)));
        assert_eq!(again.take_out(&name("next"), &[id("next", 1), id("shop", 1)]), [id("next", 1)]);
        assert!(!again.holds(&name("next"), &id("next", 1)));
        again.set(&name("next"), vec![route("next", &["shop.test"], 1)]);
        assert_eq!(weights(&again.joined()), [("d1-shop-1", 1, 0), ("d1-shop-2", 1, 0), ("d1-next-1", 1, 2)]);
        assert!(!again.holds(&name("next"), &id("next", 2)), "its own word counts");
    }

    #[test]
    fn one_that_is_a_canary_no_more_takes_no_host_with_it() {
        let shop = route("shop", &["shop.test"], 2);
        let both = || canary(parts(&[], &[shop.clone(), route("next", &["shop.test"], 1)]), 1, 3);
        let mut gone = both();
        gone.depart(&name("next"));
        assert_eq!(gone.joined(), std::slice::from_ref(&shop));
        gone.let_go(&name("next"));
        gone.set(&name("next"), vec![route("next", &["shop.test"], 1)]);
        assert_eq!(gone.joined(), std::slice::from_ref(&shop), "late");
        let mut own = both();
        own.set_canaries(BTreeMap::new());
        assert_eq!(own.joined(), [shop]);
    }

    proptest! {
        /// Whatever is kept, set, taken out and suspended: the table is valid, and who is in it was set by its own app.
        #[test]
        fn the_table_is_valid_and_a_canarys_share_exact(
            production in 0u32..5, canaries in 0u32..5, is_suspended: bool, is_kept: bool,
            (part, of) in (2u32..=100).prop_flat_map(|of| (1..of, Just(of))),
        ) {
            let (shop, next) = (route("shop", &["shop.test"], production), route("next", &["shop.test"], canaries));
            let mut parts = match is_kept {
                true => canary(parts(&[shop], &[next]), part, of),
                false => canary(parts(&[], &[shop, next]), part, of),
            };
            if is_suspended {
                parts.suspended.insert(name("next"));
            }
            let routes = parts.joined();
            let of_group = |canary: bool| -> u32 {
                let members = routes.iter().flat_map(|route| &route.members);
                members.filter(|member| (member.group == CANARY) == canary).map(|member| member.weight).sum()
            };
            let (stable, new) = (of_group(false), of_group(true));
            match (production, canaries, is_suspended) {
                (_, 0, _) | (_, _, true) => prop_assert_eq!((stable, new), (production, 0)),
                (0, ..) => prop_assert_eq!((stable, new), (0, canaries)),
                _ => prop_assert_eq!(new * of, (stable + new) * part),
            }
            prop_assert_eq!(Table { generation: 1, routes }.validate(), Ok(()));
        }
    }
}
