//! How often the judge of a canary is wrong, and how long it takes to be right: simulated, with a fixed seed.
//!
//! Each run is one canary under one kind of traffic, looked at up to 1,000 times. Beside the judge a plain test is asked: the
//! two-proportion z-test at the same α, which is meant for one look. `docs/CANARY.md` has the tables and the picture.

use std::time::{Duration, Instant};

use longshore::histogram::{BUCKETS, Histogram, bucket_of};
use longshore::rollout::judge::{Judge, Settings, Verdict, Window};
use rand::SeedableRng;
use rand::rngs::Xoshiro256PlusPlus as Rng;
use rand_distr::{Binomial, Distribution, LogNormal};

mod picture;

use super::figure::{Figure, Target};

const SEED: u64 = 7;
/// Canaries of each kind.
pub const RUNS: usize = 300;
/// Looks at each.
pub const LOOKS: usize = 1_000;
/// Shares of errors that the stable instances answer with.
const BASES: [f64; 4] = [0.0, 0.001, 0.01, 0.05];
/// Requests between two looks.
const REQUESTS: [u64; 3] = [10, 100, 1_000];
/// Of so many requests the canary gets one.
const ONE_IN: [u64; 2] = [3, 10];
/// What is exceeded by chance in one look with a probability of 1 % (one-sided).
const ONE_PERCENT: f64 = 2.326;

/// What a canary is like, beside the stable instances.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Kind {
    stable_errors: f64,
    canary_errors: f64,
    /// So many times as slow.
    slower: f64,
}

/// The requests that come.
#[derive(Debug, Clone, Copy)]
struct Traffic {
    requests: u64,
    one_in: u64,
}

/// How one run went: at which look, and after how many requests to the canary.
#[derive(Debug, Clone, Copy, Default)]
struct Run {
    aborted: Option<(usize, u64)>,
    promoted: Option<(usize, u64)>,
    /// When the plain test, asked at each look, would have aborted.
    plain: Option<usize>,
}

/// All runs of one kind under one traffic.
struct Cell {
    kind: Kind,
    traffic: Traffic,
    runs: Vec<Run>,
}

/// Simulates everything, prints the tables, draws the picture.
pub fn run() -> Vec<Figure> {
    let began = Instant::now();
    let good: Vec<Kind> = BASES.map(|base| Kind { stable_errors: base, canary_errors: base, slower: 1.0 }).into();
    let tolerated = Settings::default().least_difference;
    let on_the_edge = Kind { canary_errors: 0.01 + tolerated, ..good[2] };
    let failing = Kind { canary_errors: 0.05, ..good[1] };
    let slow = Kind { slower: 2.0, ..good[1] };
    let kinds: Vec<Kind> = good.iter().copied().chain([on_the_edge, failing, slow]).collect();
    let cells = simulate(&kinds);
    let of = |kind: Kind| cells.iter().filter(move |cell| cell.kind == kind);

    println!("False alarms among {RUNS} canaries as good as the stable instances, in {LOOKS} looks:\n");
    println!(
        "| requests a look | canary gets | none fail | 0.1 % | 1 % | 5 % | plain test, 1 % |\n|---|---|---|---|---|---|---|"
    );
    for traffic in traffics() {
        let cell = |kind: &Kind| find(&cells, *kind, traffic);
        let alarms: Vec<String> =
            good.iter().map(|kind| percent(cell(kind).share(|run| run.aborted.is_some()))).collect();
        let plain = percent(cell(&good[2]).share(|run| run.plain.is_some()));
        println!("| {} | 1 in {} | {} | {plain} |", traffic.requests, traffic.one_in, alarms.join(" | "));
    }
    for (kind, name) in [(failing, "5 % errors against 0.1 %"), (slow, "twice as slow")] {
        println!(
            "\n{name}:\n\n| requests a look | canary gets | missed | looks, median (90 %) | requests to the canary |\n|---|---|---|---|---|"
        );
        for traffic in traffics() {
            let cell = find(&cells, kind, traffic);
            let missed = percent(cell.share(|run| run.aborted.is_none()));
            let (looks, requests) =
                (cell.times(|run| run.aborted.map(|at| at.0 as u64)), cell.times(|run| run.aborted.map(|at| at.1)));
            println!("| {} | 1 in {} | {missed} | {looks} | {requests} |", traffic.requests, traffic.one_in);
        }
    }
    println!("\nGood canaries promoted by evidence, requests to the canary until then, median (90 %):\n");
    println!("| requests a look | canary gets | none fail | 0.1 % | 1 % | 5 % |\n|---|---|---|---|---|---|");
    for traffic in traffics() {
        let told = good.iter().map(|kind| {
            let cell = find(&cells, *kind, traffic);
            let share = cell.share(|run| run.promoted.is_some());
            format!("{}: {}", percent(share), cell.times(|run| run.promoted.map(|at| at.1)))
        });
        println!("| {} | 1 in {} | {} |", traffic.requests, traffic.one_in, told.collect::<Vec<_>>().join(" | "));
    }
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/canary.svg");
    let drawn = picture::draw(
        &find(&cells, good[2], MIDDLE).runs,
        &find(&cells, failing, MIDDLE).runs,
        &find(&cells, slow, MIDDLE).runs,
    );
    std::fs::write(path, drawn).unwrap_or_else(|error| panic!("cannot write {path}: {error}"));
    eprintln!("drawn to docs/canary.svg; {:.1} s", began.elapsed().as_secs_f64());

    // Of 300 runs alone a rate below 1 % is not measured: those of one kind count together.
    let share = |kind: Kind, which: fn(&Run) -> bool| of(kind).map(|cell| cell.share(which)).sum::<f64>() / 6.0 * 100.0;
    let alpha = Settings::default().alpha * 100.0;
    let alarms = good.iter().map(|kind| share(*kind, |run| run.aborted.is_some())).fold(0.0, f64::max);
    let shares = |text: &str, value| Figure::new(text, value, "%");
    vec![
        shares("good canaries aborted, at the worst of 4 shares of errors", alarms).target(Target::AtMost(alpha)),
        shares("worse by exactly what is tolerated, aborted", share(on_the_edge, |run| run.aborted.is_some()))
            .target(Target::AtMost(alpha)),
        shares("worse by exactly what is tolerated, promoted", share(on_the_edge, |run| run.promoted.is_some()))
            .target(Target::AtMost(alpha)),
        shares("5 % errors, missed", share(failing, |run| run.aborted.is_none())).target(Target::AtMost(1.0)),
        shares("twice as slow, missed", share(slow, |run| run.aborted.is_none())).target(Target::AtMost(1.0)),
    ]
}

/// The traffic that is drawn.
const MIDDLE: Traffic = Traffic { requests: 100, one_in: 10 };

fn traffics() -> impl Iterator<Item = Traffic> {
    REQUESTS.into_iter().flat_map(|requests| ONE_IN.map(|one_in| Traffic { requests, one_in }))
}

fn find(cells: &[Cell], kind: Kind, traffic: Traffic) -> &Cell {
    let is_it = |cell: &&Cell| {
        cell.kind == kind && (cell.traffic.requests, cell.traffic.one_in) == (traffic.requests, traffic.one_in)
    };
    cells.iter().find(is_it).expect("every kind is simulated under every traffic")
}

/// On all processors; what each cell draws does not depend on who draws it.
fn simulate(kinds: &[Kind]) -> Vec<Cell> {
    let wanted: Vec<(Kind, Traffic)> =
        kinds.iter().flat_map(|&kind| traffics().map(move |traffic| (kind, traffic))).collect();
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let mut cells: Vec<(usize, Cell)> = std::thread::scope(|scope| {
        let work = |first: usize| {
            let wanted = &wanted;
            move || {
                let mine = wanted.iter().enumerate().skip(first).step_by(threads);
                mine.map(|(at, &(kind, traffic))| (at, cell(kind, traffic, SEED + at as u64))).collect::<Vec<_>>()
            }
        };
        let workers: Vec<_> = (0..threads).map(|first| scope.spawn(work(first))).collect();
        workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect()
    });
    cells.sort_by_key(|(at, _)| *at);
    cells.into_iter().map(|(_, cell)| cell).collect()
}

fn cell(kind: Kind, traffic: Traffic, seed: u64) -> Cell {
    let mut rng = Rng::seed_from_u64(seed);
    let (stable, canary) = (latencies(1.0), latencies(kind.slower));
    let runs = (0..RUNS).map(|_| one(kind, traffic, &stable, &canary, &mut rng)).collect();
    Cell { kind, traffic, runs }
}

fn one(kind: Kind, traffic: Traffic, fast: &[f64], slow: &[f64], rng: &mut Rng) -> Run {
    let mut judge = Judge::new(Settings::default());
    let (mut stable, mut canary) = (Window::default(), Window::default());
    let mut run = Run::default();
    for look in 1..=LOOKS {
        let to_canary = draw(traffic.requests, 1.0 / traffic.one_in as f64, rng);
        stable += answers(traffic.requests - to_canary, kind.stable_errors, fast, rng);
        canary += answers(to_canary, kind.canary_errors, slow, rng);
        run.plain = run.plain.or_else(|| plain_test_alarms(&stable, &canary).then_some(look));
        match judge.look(&stable, &canary) {
            Verdict::Abort { .. } => {
                run.aborted = Some((look, canary.requests));
                // What the plain test says afterwards is asked of good canaries only, which are hardly ever aborted.
                return run;
            }
            Verdict::Promote(_) => run.promoted = run.promoted.or(Some((look, canary.requests))),
            Verdict::Wait(_) => {}
        }
    }
    run
}

/// The z-test for two proportions, of errors alone, from the same number of requests on as the judge.
fn plain_test_alarms(stable: &Window, canary: &Window) -> bool {
    let (ns, nc) = (stable.requests as f64, canary.requests as f64);
    if canary.requests < Settings::default().least_requests || stable.requests == 0 {
        return false;
    }
    let both = (stable.errors + canary.errors) as f64 / (ns + nc);
    let difference = canary.errors as f64 / nc - stable.errors as f64 / ns;
    difference > ONE_PERCENT * (both * (1.0 - both) * (1.0 / ns + 1.0 / nc)).sqrt()
}

fn answers(of: u64, errors: f64, latencies: &[f64], rng: &mut Rng) -> Window {
    let mut counts = [0; BUCKETS];
    let (mut left, mut share_left) = (of, 1.0);
    for (count, share) in counts.iter_mut().zip(latencies) {
        if left == 0 {
            break;
        }
        *count = draw(left, (share / share_left).min(1.0), rng);
        left -= *count;
        share_left = (share_left - share).max(1e-12);
    }
    counts[BUCKETS - 1] += left;
    Window { requests: of, errors: draw(of, errors, rng), latency: Histogram::of(counts) }
}

fn draw(of: u64, share: f64, rng: &mut Rng) -> u64 {
    match share {
        none if none <= 0.0 => 0,
        all if all >= 1.0 => of,
        share => Binomial::new(of, share).unwrap().sample(rng),
    }
}

/// Which share of answers is in each bucket: half of them take less than 40 ms, one in twenty more than 107 ms.
fn latencies(slower: f64) -> Vec<f64> {
    let distribution = LogNormal::new((0.040 * slower).ln(), 0.6).unwrap();
    let mut rng = Rng::seed_from_u64(SEED);
    let samples = 200_000;
    let mut shares = vec![0.0; BUCKETS];
    for took in distribution.sample_iter(&mut rng).take(samples) {
        shares[bucket_of(Duration::from_secs_f64(took))] += 1.0 / samples as f64;
    }
    shares
}

impl Cell {
    fn share(&self, which: impl Fn(&Run) -> bool) -> f64 {
        self.runs.iter().filter(|run| which(run)).count() as f64 / self.runs.len() as f64
    }

    /// The median and the ninth tenth of those that have it.
    fn times(&self, which: impl Fn(&Run) -> Option<u64>) -> String {
        let mut times: Vec<u64> = self.runs.iter().filter_map(which).collect();
        times.sort_unstable();
        let at = |share: f64| times.get(((times.len() as f64 * share) as usize).min(times.len().saturating_sub(1)));
        match (at(0.5), at(0.9)) {
            (Some(median), Some(most)) => format!("{median} ({most})"),
            _ => "–".to_owned(),
        }
    }
}

fn percent(share: f64) -> String {
    format!("{:.1} %", share * 100.0)
}
