//! Reading server-sent events, by the rules of the HTML standard, section 9.2.6.

/// An event.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Event {
    /// `message` is sent without a name.
    pub name: String,
    pub data: String,
    pub id: Option<String>,
}

/// Longer than any line of ours; a server that sends more is none.
const LONGEST: usize = 16 << 20;

/// Collects chunks into events.
#[derive(Debug, Default)]
pub(super) struct Parser {
    buffer: Vec<u8>,
    event: Event,
    has_data: bool,
    /// The last line ended with CR: a LF that follows belongs to it.
    after_cr: bool,
}

impl Parser {
    /// Takes a chunk; the events that it completes.
    pub fn push(&mut self, chunk: &[u8]) -> Result<Vec<Event>, String> {
        let mut events = Vec::new();
        for &byte in chunk {
            let swallow = byte == b'\n' && self.after_cr;
            self.after_cr = byte == b'\r';
            match byte {
                b'\n' if swallow => {}
                b'\r' | b'\n' => {
                    let line = std::mem::take(&mut self.buffer);
                    events.extend(self.line(&String::from_utf8_lossy(&line)));
                }
                _ if self.buffer.len() + self.event.data.len() >= LONGEST => {
                    return Err("an event is longer than 16 MiB".into());
                }
                byte => self.buffer.push(byte),
            }
        }
        Ok(events)
    }

    fn line(&mut self, line: &str) -> Option<Event> {
        if line.is_empty() {
            let event = std::mem::take(&mut self.event);
            return std::mem::take(&mut self.has_data).then_some(event);
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "event" => self.event.name = value.to_owned(),
            "id" => self.event.id = Some(value.to_owned()),
            "data" => {
                if std::mem::replace(&mut self.has_data, true) {
                    self.event.data.push('\n');
                }
                self.event.data.push_str(value);
            }
            // Comments (keep-alives) and fields of later versions.
            _ => {}
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Whatever text is sent, in whatever chunks it arrives, the same events come out.
        #[test]
        fn what_is_sent_is_read(texts in prop::collection::vec("[ a-zä:\n]{0,12}", 0..6), step in 1usize..7, ending in prop::sample::select(vec!["\n", "\r\n", "\r"])) {
            let mut wire = String::new();
            for (id, text) in texts.iter().enumerate() {
                wire.push_str(&format!(": ping{ending}event: log{ending}"));
                for line in text.split('\n') {
                    wire.push_str(&format!("data: {line}{ending}"));
                }
                wire.push_str(&format!("id: {id}{ending}{ending}"));
            }
            let mut parser = Parser::default();
            let mut events = Vec::new();
            for chunk in wire.as_bytes().chunks(step) {
                events.extend(parser.push(chunk).unwrap());
            }
            let expected: Vec<Event> = texts
                .iter()
                .enumerate()
                .map(|(id, text)| Event { name: "log".into(), data: text.clone(), id: Some(id.to_string()) })
                .collect();
            prop_assert_eq!(events, expected);
        }
    }
}
