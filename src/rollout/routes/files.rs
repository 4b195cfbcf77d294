//! Which static files a route has beside those of the live release. Pure.

use crate::proxy::table::Route;

/// Static files outlive what brought them: those of the release before are still found behind those of the live one, as pages
/// that were loaded before the switch ask for them; and where nothing serves, they stay as they were.
pub(super) fn remember(routes: &mut [Route], before: &[Route]) {
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

/// The files of a permanent canary behind those of its production: whichever version made a page, what it asks for is found.
pub(super) fn join(route: &mut Route, canary: &Route) {
    for files in &canary.files {
        match route.files.iter_mut().find(|own| own.prefix == files.prefix) {
            Some(own) => {
                let more = files.roots.iter().filter(|root| !own.roots.contains(root)).cloned();
                own.roots.extend(more.collect::<Vec<_>>());
            }
            None => route.files.push(files.clone()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::InstanceId;
    use crate::proxy::PathPrefix;
    use crate::proxy::table::{FileRoot, Member, StaticFiles};

    fn route(instances: u32) -> Route {
        let member = |number: u32| Member {
            instance: InstanceId::parse(&format!("d1-web-{number}")).unwrap(),
            address: ([127, 0, 0, 1], 80).into(),
            weight: 1,
            group: 0,
        };
        let members = (1..=instances).map(member).collect();
        Route::new("shop".parse().unwrap(), "web".parse().unwrap(), vec!["shop.test".to_owned()], members)
    }

    fn files(prefix: &str, roots: &[&str]) -> StaticFiles {
        let roots = roots.iter().map(|dir| FileRoot { dir: dir.into(), below: String::new() }).collect();
        StaticFiles { prefix: PathPrefix::parse(prefix).unwrap(), roots }
    }

    #[test]
    fn a_canarys_files_are_found_behind_those_of_its_production() {
        let mut production = Route { files: vec![files("/static", &["v1", "v0"])], ..route(1) };
        let canary = Route { files: vec![files("/static", &["v2", "v1"]), files("/media", &["m"])], ..route(1) };
        join(&mut production, &canary);
        assert_eq!(production.files, [files("/static", &["v1", "v0", "v2"]), files("/media", &["m"])]);
    }

    #[test]
    fn files_of_the_release_before_stay_behind_those_of_the_live_one() {
        let serving =
            |roots: &[&str], instances: u32| vec![Route { files: vec![files("/static", roots)], ..route(instances) }];
        let nothing = || vec![route(0)];
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
            remember(&mut routes, &table);
            let roots: Vec<_> = routes[0].files[0].roots.iter().map(|root| root.dir.to_str().unwrap()).collect();
            assert_eq!(roots, expected);
            table = routes;
        }
        let mut without = vec![route(1)];
        remember(&mut without, &table);
        assert_eq!(without[0].files, [], "the live release has none");
    }
}
