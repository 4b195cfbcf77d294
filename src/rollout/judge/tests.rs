use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

/// Requests that took `ms` each, some of which failed.
fn window(requests: u64, errors: u64, ms: u64) -> Window {
    let mut latency = Histogram::default();
    (0..requests).for_each(|_| latency.add(Duration::from_millis(ms)));
    Window { requests, errors, latency }
}

/// Looks again and again, each time with so much more on both sides, and stops with the first decision.
fn judged(stable: Window, canary: Window, looks: u64) -> (u64, Verdict) {
    let mut judge = Judge::new(Settings::default());
    let (mut all_stable, mut all_canary) = (Window::default(), Window::default());
    for look in 1..=looks {
        all_stable += stable;
        all_canary += canary;
        match judge.look(&all_stable, &all_canary) {
            Verdict::Wait(_) => {}
            decided => return (look, decided),
        }
    }
    let waiting = judge.look(&all_stable, &all_canary);
    (looks, waiting)
}

#[test]
fn a_canary_that_fails_is_aborted_with_the_numbers() {
    let (look, verdict) = judged(window(90, 0, 20), window(10, 3, 20), 100);
    let Verdict::Abort { why, .. } = verdict else { panic!("{verdict:?}") };
    assert!(look <= 4, "it took {look} looks");
    assert_eq!(
        why,
        format!(
            "30.0 % of {} requests to the canary were answered with an error, 0.0 % of {} to the stable instances in \
             the same time",
            10 * look,
            90 * look
        )
    );
}

#[test]
fn a_canary_that_takes_twice_as_long_is_aborted() {
    let (look, verdict) = judged(window(90, 0, 20), window(10, 0, 40), 100);
    let Verdict::Abort { why, .. } = verdict else { panic!("{verdict:?}") };
    assert!(look <= 10, "it took {look} looks");
    assert!(why.contains("to the canary took longer than 20 ms, 0.0 % of"), "{why}");
}

#[test]
fn a_good_canary_is_promoted_and_one_that_is_worse_by_a_hair_is_not_aborted() {
    assert!(matches!(judged(window(90, 0, 20), window(10, 0, 20), 200), (_, Verdict::Promote(_))));
    // 2.0 % and 2.5 %: less than the least difference.
    let (_, hair) = judged(window(1800, 36, 20), window(200, 5, 20), 1000);
    assert!(!matches!(hair, Verdict::Abort { .. }), "{hair:?}");
    // Cold: from 3 ms to 5 ms, which nobody notices.
    let (_, cold) = judged(window(90, 0, 3), window(10, 0, 5), 1000);
    assert!(matches!(cold, Verdict::Promote(_)), "{cold:?}");
}

#[test]
fn nothing_is_decided_by_a_handful() {
    let mut judge = Judge::new(Settings::default());
    for requests in 1..20 {
        let verdict = judge.look(&window(100 * requests, 0, 20), &window(requests, requests, 20));
        assert!(matches!(verdict, Verdict::Wait(_)), "{verdict:?}");
    }
    let verdict = judge.look(&window(2000, 0, 20), &window(20, 20, 20));
    assert!(matches!(verdict, Verdict::Abort { .. }), "{verdict:?}");
    // What was seen is not taken back by what comes later.
    let later = judge.look(&window(1_002_000, 0, 20), &window(1_000_020, 20, 20));
    assert!(matches!(later, Verdict::Abort { .. }), "{later:?}");
}

#[test]
fn without_any_answer_of_one_side_nothing_is_known() {
    assert!(matches!(judged(window(0, 0, 0), window(100, 50, 20), 100), (_, Verdict::Wait(_))));
    assert!(matches!(judged(window(100, 0, 20), window(0, 0, 0), 100), (_, Verdict::Wait(_))));
}

#[test]
fn where_nobody_times_answers_errors_decide() {
    let untimed = |requests| Window { requests, ..Window::default() };
    let (_, verdict) = judged(untimed(90), untimed(10), 200);
    let Verdict::Promote(figures) = verdict else { panic!("{verdict:?}") };
    assert_eq!(figures.slow, None);
}

#[test]
fn a_process_that_counts_anew_is_no_evidence() {
    let mut judge = Judge::new(Settings::default());
    let before = judge.look(&window(900, 0, 20), &window(100, 1, 20));
    let after = judge.look(&window(50, 0, 20), &window(40, 40, 20));
    let (Verdict::Wait(before), Verdict::Wait(after)) = (before, after) else { panic!("decided") };
    assert_eq!(after.errors.worse, before.errors.worse);
}

#[test]
fn settings_beyond_reason_do_not_break_it() {
    for wrong in [0.0, 1.0, 7.0, -1.0, f64::NAN, f64::INFINITY] {
        let mut judge = Judge::new(Settings { alpha: wrong, least_difference: wrong, least_requests: 0 });
        for look in 1..5 {
            let _ = judge.look(&window(90 * look, 9 * look, 20), &window(10 * look, 10 * look, 40));
        }
    }
}

/// What one look may bring: requests and errors of each side, latencies in milliseconds.
fn block() -> impl Strategy<Value = (Window, Window)> {
    let side = || (0_u64..300, 0_u64..=100, 1_u64..200).prop_map(|(of, bad, ms)| window(of, of * bad / 100, ms));
    (side(), side())
}

proptest! {
    #[test]
    fn equal_canaries_without_errors_are_never_aborted(
        looks in vec((0_u64..2000, 0_u64..2000), 1..60), ms in 1_u64..2000
    ) {
        let mut judge = Judge::new(Settings::default());
        let (mut stable, mut canary) = (Window::default(), Window::default());
        for (more_stable, more_canary) in looks {
            stable += window(more_stable, 0, ms);
            canary += window(more_canary, 0, ms);
            let verdict = judge.look(&stable, &canary);
            prop_assert!(!matches!(verdict, Verdict::Abort { .. }), "{:?}", verdict);
        }
    }

    /// Of the same history, the newest block with more errors, or slower answers, is no milder.
    #[test]
    fn more_errors_are_never_milder(
        history in vec(block(), 0..20), (stable, canary) in block(), more in 0_u64..300, slower in 0_u64..400
    ) {
        let mut judge = Judge::new(Settings::default());
        let (mut all_stable, mut all_canary) = (Window::default(), Window::default());
        for (more_stable, more_canary) in &history {
            all_stable += *more_stable;
            all_canary += *more_canary;
            let _ = judge.look(&all_stable, &all_canary);
        }
        all_stable += stable;
        let mut worse_judge = judge.clone();
        let (mut worse, ms) = (all_canary, canary.latency.quantile(0.5).map_or(1, |took| took.as_millis() as u64));
        all_canary += canary;
        worse += window(canary.requests, (canary.errors + more).min(canary.requests), ms + slower);
        let severity = |verdict: Verdict| match verdict {
            Verdict::Promote(_) => 0,
            Verdict::Wait(_) => 1,
            Verdict::Abort { .. } => 2,
        };
        prop_assert!(severity(judge.look(&all_stable, &all_canary)) <= severity(worse_judge.look(&all_stable, &worse)));
    }

    /// How often one looks without anything new, and whether the agent is started anew in between, changes nothing; in
    /// which order things came changes no figure but the evidence.
    #[test]
    fn looking_itself_changes_nothing(blocks in vec(block(), 1..20)) {
        let [mut once, mut often, mut kept] = [(); 3].map(|()| Judge::new(Settings::default()));
        let (mut stable, mut canary) = (Window::default(), Window::default());
        let mut last = None;
        for (more_stable, more_canary) in &blocks {
            stable += *more_stable;
            canary += *more_canary;
            let verdict = once.look(&stable, &canary);
            for _ in 0..3 {
                prop_assert_eq!(&often.look(&stable, &canary), &verdict);
            }
            // Its text has the numbers to the last digit but one.
            kept = serde_json::from_str(&serde_json::to_string(&kept).unwrap()).unwrap();
            let same = std::mem::discriminant(&kept.look(&stable, &canary)) == std::mem::discriminant(&verdict);
            prop_assert!(same, "{:?} {:?}", kept, verdict);
            last = Some(verdict);
        }
        let mut backwards = Judge::new(Settings::default());
        let (mut stable, mut canary) = (Window::default(), Window::default());
        for (more_stable, more_canary) in blocks.iter().rev() {
            stable += *more_stable;
            canary += *more_canary;
            last = last.filter(|_| more_stable.requests > 0 && more_canary.requests > 0);
            let _ = backwards.look(&stable, &canary);
        }
        if last.is_some() {
            let (one, other) = (once.figures(), backwards.figures());
            prop_assert_eq!((one.errors.stable, one.errors.canary), (other.errors.stable, other.errors.canary));
            prop_assert_eq!(one.slow_bound, other.slow_bound);
        }
    }

    /// The heart of the matter: whatever the shares under the hypothesis, a block's expected factor is at most 1. Summed up
    /// exactly over all outcomes of small blocks.
    #[test]
    fn no_bet_is_expected_to_win(
        usual in (0_u64..200, 0_u64..200), ns in 1_u64..7, nc in 1_u64..7,
        tolerated in 0.0_f64..0.3, share in 0.0_f64..=1.0, less in 0.0_f64..=1.0,
    ) {
        let before = Sample { of: usual.0.max(usual.1), bad: usual.0.min(usual.1) };
        // On the edge of each hypothesis, and inside.
        let edge = (share * (1.0 - tolerated), share * (1.0 - tolerated) + tolerated);
        let milder = (edge.0, edge.1 * less);
        let worse = (edge.0 * less, edge.1);
        for ((s, c), is_worse_tested) in [(edge, true), (milder, true), (edge, false), (worse, false)] {
            let mut expected = 0.0;
            for bad_s in 0..=ns {
                for bad_c in 0..=nc {
                    let mut evidence = Evidence::default();
                    let (stable, canary) = (Sample { of: ns, bad: bad_s }, Sample { of: nc, bad: bad_c });
                    evidence.add(before, tolerated, stable, canary);
                    let wealth = if is_worse_tested { evidence.now_worse() } else { evidence.that_it_is_good() };
                    expected += chance(ns, bad_s, s) * chance(nc, bad_c, c) * wealth;
                }
            }
            prop_assert!(expected <= 1.0 + 1e-9, "expected {} at {} and {}", expected, s, c);
        }
    }
}

/// Of `bad` among `of` when each is with this share.
fn chance(of: u64, bad: u64, share: f64) -> f64 {
    let ways = (0..bad).fold(1.0, |ways, k| ways * (of - k) as f64 / (k + 1) as f64);
    ways * share.powi(bad as i32) * (1.0 - share).powi((of - bad) as i32)
}
