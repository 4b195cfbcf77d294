//! A measured figure, what it is compared with and what it should be; the table of all.

use std::fmt;

/// What a figure should be.
#[derive(Debug, Clone, Copy)]
pub enum Target {
    /// At most so many times what it is compared with.
    RatioAtMost(f64),
    /// At least so many times what it is compared with.
    RatioAtLeast(f64),
    /// At most this, in the figure's unit.
    AtMost(f64),
}

/// One line of the table.
#[derive(Debug, Clone)]
pub struct Figure {
    what: String,
    unit: &'static str,
    ours: f64,
    peer: Option<(&'static str, f64)>,
    target: Option<Target>,
}

impl Figure {
    /// A figure that stands for itself.
    pub fn new(what: impl Into<String>, ours: f64, unit: &'static str) -> Self {
        Self { what: what.into(), unit, ours, peer: None, target: None }
    }

    /// Compared with what somebody else reached in the same run.
    pub fn against(mut self, peer: &'static str, theirs: f64) -> Self {
        self.peer = Some((peer, theirs));
        self
    }

    /// What it should be.
    pub fn target(mut self, target: Target) -> Self {
        self.target = Some(target);
        self
    }

    /// To the hundredth that is shown: the medians of the same program differ by more.
    fn ratio(&self) -> Option<f64> {
        self.peer.map(|(_, theirs)| (self.ours / theirs * 100.0).round() / 100.0)
    }

    /// Whether it is as it should be; `None` without a target.
    pub fn is_met(&self) -> Option<bool> {
        Some(match self.target? {
            Target::AtMost(most) => self.ours <= most,
            Target::RatioAtMost(most) => self.ratio()? <= most,
            Target::RatioAtLeast(least) => self.ratio()? >= least,
        })
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::RatioAtMost(most) => write!(f, "≤ {most} ×"),
            Self::RatioAtLeast(least) => write!(f, "≥ {least} ×"),
            Self::AtMost(most) => write!(f, "≤ {}", number(*most)),
        }
    }
}

/// All figures, in Markdown.
pub fn table(figures: &[Figure]) -> String {
    let mut text = String::from("| what | longshore | compared with | ratio | target | |\n|---|---|---|---|---|---|");
    for figure in figures {
        let ours = format!("{} {}", number(figure.ours), figure.unit);
        let peer = figure.peer.map(|(peer, theirs)| format!("{} {}, {peer}", number(theirs), figure.unit));
        let ratio = figure.ratio().map(|ratio| format!("{ratio:.2}"));
        let target = figure.target.map(|target| target.to_string());
        let met = figure.is_met().map(|met| if met { "met" } else { "**missed**" });
        let cells = [peer, ratio, target].map(Option::unwrap_or_default);
        text += &format!("\n| {} | {ours} | {} | {} |", figure.what, cells.join(" | "), met.unwrap_or_default());
    }
    text
}

/// Three digits that mean something.
fn number(value: f64) -> String {
    match value.abs() {
        large if large >= 1000.0 => {
            let whole = format!("{value:.0}");
            let (head, tail) = whole.split_at(whole.len() - 3);
            format!("{head},{tail}")
        }
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}").trim_end_matches('0').trim_end_matches('.').to_owned(),
    }
}
