use proptest::prelude::*;

use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn seen(deployment: i64, ready: bool, fails: bool) -> Seen {
    let live = Some(DeploymentId(deployment));
    Seen { live, newest: live, ready, fails: fails.then(|| "5 % errors".to_owned()) }
}

/// Shows it the same once a second, from `from` until before `to`; how it stood at each change.
fn show(watch: &mut Watch, from: u32, to: u32, what: &Seen) -> Vec<(u32, Standing)> {
    let mut stood = vec![(from, watch.standing())];
    for second in from..to {
        watch.see(what.clone(), SECOND * second);
        if stood.last().is_some_and(|(_, before)| *before != watch.standing()) {
            stood.push((second, watch.standing()));
        }
    }
    stood.split_off(1)
}

#[test]
fn one_without_a_ready_instance_is_down_after_a_while_and_back_as_soon() {
    let mut watch = Watch::default();
    assert_eq!(show(&mut watch, 0, 10, &seen(1, true, false)), []);
    assert_eq!(show(&mut watch, 10, 12, &seen(1, false, false)), [], "a restart");
    assert_eq!(show(&mut watch, 12, 20, &seen(1, true, false)), []);
    assert_eq!(show(&mut watch, 20, 40, &seen(1, false, false)), [(23, Standing::Down)]);
    assert_eq!(watch.alarm(), Some(Alarm::Down));
    assert_eq!(show(&mut watch, 40, 50, &seen(1, true, false)), [(43, Standing::Serving)]);
    assert_eq!(watch.alarm(), None);
}

#[test]
fn one_that_fails_is_tried_again_after_longer_and_longer() {
    let mut watch = Watch::default();
    let mut now = 0;
    let mut lasted = Vec::new();
    for _ in 0..8 {
        watch.see(seen(1, true, true), SECOND * now);
        assert_eq!(watch.standing(), Standing::Suspended);
        let mut at = now;
        while watch.standing() == Standing::Suspended {
            at += 1;
            watch.see(seen(1, true, false), SECOND * at);
        }
        assert_eq!(watch.standing(), Standing::Serving);
        lasted.push((at - now) / 60);
        // Fails again five minutes after.
        show(&mut watch, at, at + 300, &seen(1, true, false));
        assert_eq!(watch.alarm(), Some(Alarm::Suspended { times: lasted.len() as u32 }), "not past it");
        now = at + 300;
    }
    assert_eq!(lasted, [1, 2, 4, 8, 16, 30, 30, 30]);
    show(&mut watch, now, now + 301, &seen(1, true, false));
    assert_eq!((watch.alarm(), watch.why()), (None, None), "ten good minutes");
    watch.see(seen(1, true, true), SECOND * (now + 400));
    assert_eq!(watch.alarm(), Some(Alarm::Suspended { times: 1 }), "it is forgotten");
}

#[test]
fn a_new_deployment_is_tried_at_once() {
    let mut watch = Watch::default();
    watch.see(seen(1, true, true), SECOND);
    assert_eq!((watch.standing(), watch.why()), (Standing::Suspended, Some("5 % errors")));
    watch.see(seen(2, true, false), SECOND * 2);
    assert_eq!((watch.standing(), watch.alarm(), watch.why()), (Standing::Serving, None, None));
}

#[test]
fn one_that_failed_before_it_was_live_is_not_tried_for_going_live() {
    let mut watch = Watch::default();
    watch.see(Seen { newest: Some(DeploymentId(2)), ..seen(1, true, true) }, SECOND);
    watch.see(seen(2, true, false), SECOND * 2);
    assert_eq!((watch.standing(), watch.failed()), (Standing::Suspended, Some(DeploymentId(2))));
    watch.see(seen(3, true, false), SECOND * 3);
    assert_eq!((watch.standing(), watch.failed()), (Standing::Serving, None));
}

#[test]
fn a_restart_of_the_agent_forgets_no_suspension() {
    let recalled = |alarm, age: u64| {
        let (live, age) = (Some(DeploymentId(1)), Duration::from_secs(age));
        Watch::recalled(alarm, live, "5 % errors".into(), age, SECOND * 100)
    };
    let mut watch = recalled(Alarm::Suspended { times: 2 }, 90);
    assert_eq!(watch.standing(), Standing::Suspended);
    assert_eq!(show(&mut watch, 100, 200, &seen(1, true, false)), [(130, Standing::Serving)]);
    assert_eq!(watch.alarm(), Some(Alarm::Suspended { times: 2 }), "on trial");
    assert_eq!(recalled(Alarm::Suspended { times: 2 }, 150).standing(), Standing::Serving);
    let mut newer = recalled(Alarm::Suspended { times: 2 }, 0);
    newer.see(seen(2, true, false), SECOND * 100);
    assert_eq!(newer.alarm(), None, "another deployment went live meanwhile");
    assert_eq!(recalled(Alarm::Down, 5).alarm(), Some(Alarm::Down));
}

#[test]
fn of_one_that_is_not_live_nothing_is_expected() {
    let mut watch = Watch::default();
    let nothing = Seen { live: None, newest: None, ready: false, fails: None };
    assert_eq!(show(&mut watch, 0, 60, &nothing), []);
    watch.see(seen(1, true, true), SECOND * 60);
    watch.see(nothing, SECOND * 61);
    assert_eq!((watch.alarm(), watch.failed()), (None, None));
}

proptest! {
    /// Against a simple account of what has been seen so far, whatever that was.
    #[test]
    fn no_alarm_without_a_cause_and_no_cause_without_an_alarm(
        steps in proptest::collection::vec((0i64..2, any::<bool>(), prop::bool::weighted(0.1), 1u32..400), 1..60),
    ) {
        let mut watch = Watch::default();
        let (mut now, mut deployment, mut live) = (0, 1, None);
        let (mut ready_since, mut unready_since) = (None, None);
        let mut suspended_since: Option<u32> = None;
        for (newer, ready, fails, seconds) in steps {
            deployment += newer;
            for second in 0..seconds {
                let before = watch.standing();
                let fails = fails && second == seconds - 1;
                watch.see(seen(deployment, ready, fails), SECOND * now);
                (ready_since, unready_since) = match ready {
                    true => (ready_since.or(Some(now)), None),
                    false => (None, unready_since.or(Some(now))),
                };
                let is_new = live.replace(deployment).is_some_and(|before| before != deployment);
                let for_long = |since: Option<u32>| since.is_some_and(|since| now - since >= 3);
                let standing = watch.standing();
                suspended_since = match (before, standing) {
                    (Standing::Suspended, Standing::Suspended) if !is_new => suspended_since,
                    (_, Standing::Suspended) => Some(now),
                    _ => None,
                };
                if is_new && !fails {
                    prop_assert_ne!(standing, Standing::Suspended, "it was another version that failed");
                }
                match standing {
                    Standing::Serving => prop_assert!(!for_long(unready_since), "nobody knows that it is down"),
                    Standing::Down => prop_assert!(!for_long(ready_since), "it is back"),
                    Standing::Suspended => {
                        prop_assert!(before == Standing::Suspended || fails, "it did not fail");
                        prop_assert!(now - suspended_since.unwrap() < 30 * 60, "it is never tried again");
                    }
                }
                prop_assert!(standing == Standing::Serving || watch.alarm().is_some(), "nobody is told");
                now += 1;
            }
        }
    }
}
