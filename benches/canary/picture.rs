//! The picture of `docs/CANARY.md`: false alarms over the looks, and how soon a bad canary is seen.

use super::{LOOKS, Run};

const WIDTH: f64 = 300.0;
const HEIGHT: f64 = 170.0;
const LEFT: [f64; 2] = [60.0, 450.0];
const TOP: f64 = 60.0;

/// One curve: when each run came to its end, if it did.
struct Curve<'a> {
    ends: Vec<Option<f64>>,
    class: &'a str,
    label: &'a str,
    /// Of the label's middle, in shares of the panel.
    at: (f64, f64),
}

/// Of good canaries, of failing ones and of slow ones.
pub fn draw(good: &[Run], failing: &[Run], slow: &[Run]) -> String {
    let looks = |runs: &[Run], which: fn(&Run) -> Option<usize>| {
        runs.iter().map(|run| which(run).map(|at| at as f64)).collect()
    };
    let requests = |runs: &[Run]| runs.iter().map(|run| run.aborted.map(|at| at.1 as f64)).collect();
    let alarms = [
        Curve { ends: looks(good, |run| run.plain), class: "plain", label: "plain test at 1 %", at: (0.55, 0.70) },
        Curve {
            ends: looks(good, |run| run.aborted.map(|at| at.0)),
            class: "judge",
            label: "the judge",
            at: (0.85, 0.07),
        },
    ];
    let seen = [
        Curve { ends: requests(failing), class: "judge", label: "5 % errors", at: (0.84, 0.40) },
        Curve { ends: requests(slow), class: "slow", label: "twice as slow", at: (0.20, 0.70) },
    ];
    let mut svg = String::from(HEAD);
    svg += &panel(LEFT[0], "good canaries aborted by then", "looks", &[1.0, 10.0, 100.0, LOOKS as f64], 0.3, &alarms);
    svg +=
        &panel(LEFT[1], "bad canaries aborted by then", "requests to the canary", &[10.0, 100.0, 1000.0], 1.0, &seen);
    svg + "</svg>\n"
}

/// Logarithmic to the right, from 0 to `most` upwards.
fn panel(left: f64, title: &str, below: &str, ticks: &[f64], most: f64, curves: &[Curve<'_>]) -> String {
    let (first, last) = (ticks[0].ln(), ticks[ticks.len() - 1].ln());
    let x = |value: f64| left + WIDTH * ((value.ln() - first) / (last - first)).clamp(0.0, 1.0);
    let y = |share: f64| TOP + HEIGHT * (1.0 - (share / most).min(1.0));
    let mut text = format!("<text class=\"head\" x=\"{left}\" y=\"{}\">{title}</text>\n", TOP - 22.0);
    for share in [0.0, most / 2.0, most] {
        let at = y(share);
        text += &format!("<path class=\"grid\" d=\"M{left} {at:.0}h{WIDTH}\"/>");
        text += &format!(
            "<text x=\"{}\" y=\"{:.0}\" text-anchor=\"end\">{:.0} %</text>\n",
            left - 8.0,
            at + 4.0,
            share * 100.0
        );
    }
    for tick in ticks {
        text += &format!(
            "<text x=\"{:.0}\" y=\"{}\" text-anchor=\"middle\">{tick}</text>\n",
            x(*tick),
            TOP + HEIGHT + 18.0
        );
    }
    let middle = left + WIDTH / 2.0;
    text += &format!("<text x=\"{middle}\" y=\"{}\" text-anchor=\"middle\">{below}</text>\n", TOP + HEIGHT + 38.0);
    for curve in curves {
        let mut ends: Vec<f64> = curve.ends.iter().flatten().copied().collect();
        ends.sort_by(f64::total_cmp);
        let mut path = format!("M{left} {:.1}", y(0.0));
        let mut drawn = left;
        for (number, end) in ends.iter().enumerate() {
            // One point a pixel is enough.
            if x(*end) >= drawn + 1.0 {
                drawn = x(*end);
                path += &format!("L{drawn:.0} {:.1}", y(number as f64 / curve.ends.len() as f64));
            }
        }
        path += &format!("L{:.0} {:.1}", left + WIDTH, y(ends.len() as f64 / curve.ends.len() as f64));
        let (label_x, label_y) = (left + WIDTH * curve.at.0, TOP + HEIGHT * (1.0 - curve.at.1));
        text += &format!("<path class=\"{}\" d=\"{path}\"/>\n", curve.class);
        text += &format!(
            "<text class=\"{}\" x=\"{label_x:.0}\" y=\"{label_y:.0}\" text-anchor=\"middle\">{}</text>\n",
            curve.class, curve.label
        );
    }
    text
}

const HEAD: &str = r##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 790 290" width="790" height="290" role="img"
     aria-labelledby="title" font-family="ui-sans-serif, system-ui, 'Segoe UI', 'DejaVu Sans', sans-serif">
<title id="title">Left: false alarms of a plain test grow with each look, those of the judge stay below one percent. Right: how
many requests it takes until a bad canary is aborted.</title>
<style>
text { fill: #57606a; font-size: 12.5px; }
.head { fill: #1f2328; font-size: 15px; font-weight: 600; }
.grid { stroke: #d0d7de; }
path.judge, path.slow, path.plain { fill: none; stroke-width: 2; }
path.judge { stroke: #0969da; } text.judge { fill: #0969da; }
path.slow { stroke: #1a7f37; } text.slow { fill: #1a7f37; }
path.plain { stroke: #bc4c00; } text.plain { fill: #bc4c00; }
</style>
<rect width="790" height="290" fill="#ffffff"/>
"##;
