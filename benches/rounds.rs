//! Rounds and their medians.

use std::time::Duration;

/// How often each side is measured.
pub const ROUNDS: usize = 5;

/// The middle of the values (of an even number, the mean of the two in the middle).
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    if sorted.len() % 2 == 1 { sorted[middle] } else { (sorted[middle - 1] + sorted[middle]) / 2.0 }
}

/// The value that `share` of all are at or below.
pub fn percentile(values: &[f64], share: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted[rank.clamp(1, sorted.len()) - 1]
}

/// Measures two sides in turn, the first one changing every round; both medians. Every value is shown on stderr.
pub async fn in_turn(mut ours: impl AsyncFnMut(usize) -> f64, mut theirs: impl AsyncFnMut(usize) -> f64) -> (f64, f64) {
    let (mut our_values, mut their_values) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        if round % 2 == 0 {
            our_values.push(ours(round).await);
            their_values.push(theirs(round).await);
        } else {
            their_values.push(theirs(round).await);
            our_values.push(ours(round).await);
        }
    }
    show("longshore", &our_values);
    show("compared with", &their_values);
    (median(&our_values), median(&their_values))
}

/// Shows the values behind a median.
pub fn show(what: &str, values: &[f64]) {
    let values: Vec<String> = values.iter().map(|value| format!("{value:.1}")).collect();
    eprintln!("  {what}: {}", values.join("  "));
}

/// In milliseconds.
pub fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}
