//! The terminal: lines, or one block that is drawn again and again.

use std::io::{self, IsTerminal, Write};

/// Where a command writes.
pub(super) struct Term {
    out: Box<dyn Write + Send>,
    /// Somebody looks at it: blocks may be redrawn.
    live: bool,
    colour: bool,
    /// Lines of the block that stands at the end of the screen.
    block: usize,
}

/// Looks of a piece of text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Look {
    Good,
    Bad,
    Busy,
    Faint,
    Strong,
}

/// Colours, or none (`NO_COLOR`, a pipe, a dumb terminal).
#[derive(Debug, Clone, Copy)]
pub(super) struct Paint(pub bool);

impl Paint {
    /// `text` in its looks. `text` must be clean.
    pub fn paint(self, look: Look, text: &str) -> String {
        if !self.0 {
            return text.to_owned();
        }
        let code = match look {
            Look::Good => "32",
            Look::Bad => "31",
            Look::Busy => "33",
            Look::Faint => "2",
            Look::Strong => "1",
        };
        format!("\u{1b}[{code}m{text}\u{1b}[0m")
    }
}

impl Term {
    /// The process' own output.
    pub fn stdout() -> Self {
        let set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        let dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
        let live = io::stdout().is_terminal() && !dumb;
        Self { out: Box::new(io::stdout()), live, colour: live && !set("NO_COLOR"), block: 0 }
    }

    /// Whether somebody looks at it.
    pub fn is_live(&self) -> bool {
        self.live
    }

    /// Colours or none.
    pub fn paint(&self) -> Paint {
        Paint(self.colour)
    }

    /// Writes text above the block, if there is one, which then must be drawn again.
    pub fn print(&mut self, text: &str) -> io::Result<()> {
        let erase = self.erase();
        let line_end = if text.is_empty() || text.ends_with('\n') { "" } else { "\n" };
        write!(self.out, "{erase}{text}{line_end}")?;
        self.out.flush()
    }

    /// Draws the block in place of the last one. Line wrap is off meanwhile: a line that is too long for the screen
    /// is cut by the terminal, so that the block is as high as it has lines.
    pub fn draw(&mut self, lines: &[String]) -> io::Result<()> {
        let erase = self.erase();
        write!(self.out, "\u{1b}[?7l{erase}{}\n\u{1b}[?7h", lines.join("\n"))?;
        self.block = lines.len();
        self.out.flush()
    }

    fn erase(&mut self) -> String {
        match std::mem::take(&mut self.block) {
            0 => String::new(),
            lines => format!("\u{1b}[{lines}F\u{1b}[J"),
        }
    }
}
