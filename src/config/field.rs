//! One value of the file: read as what the caller wants, or reported and read as `None`.

use std::ops::{Range, RangeInclusive};
use std::path::PathBuf;
use std::time::Duration;

use secrecy::ExposeSecret;
use toml::Spanned;
use toml::de::DeValue;

use super::absent::{Absent, Secret};
use super::problem::Fault;
use super::reader::{Reader, Section};
use super::suggest::did_you_mean;
use super::{SecretRef, units};
use crate::model::shorten;

/// A key's value and where it stands.
#[derive(Clone)]
pub(super) struct Field<'s> {
    pub reader: &'s Reader<'s>,
    /// Dotted, as in `apps.shop.health.path`.
    pub path: String,
    pub key_span: Range<usize>,
    pub value: &'s Spanned<DeValue<'s>>,
}

impl<'s> Field<'s> {
    /// Where the value stands.
    pub(super) fn span(&self) -> Range<usize> {
        match self.value.get_ref() {
            // A table's own span is that of a header, which may be anywhere below the first mention of its key.
            DeValue::Table(_) => self.key_span.clone(),
            _ => self.value.span(),
        }
    }

    /// A problem at the value; `what` continues the key's path.
    pub(super) fn problem(&self, what: impl AsRef<str>, hint: impl Into<String>) {
        self.reader.problem(&self.span(), format!("{}{}", self.path, what.as_ref()), hint);
    }

    pub(super) fn warning(&self, what: impl AsRef<str>, hint: impl Into<String>) {
        self.reader.warning(&self.key_span, format!("{}{}", self.path, what.as_ref()), hint);
    }

    fn fault(&self, fault: Fault) {
        self.problem(fault.what, fault.hint.unwrap_or_default());
    }

    fn wrong_kind(&self, wanted: &str, hint: &str) {
        self.problem(format!(" must be {wanted}, got {}", shown(self.value.get_ref())), hint);
    }

    pub(super) fn is_table(&self) -> bool {
        self.value.get_ref().is_table()
    }

    /// What is written, when it is text; reports nothing.
    pub(super) fn as_text(&self) -> Option<&'s str> {
        self.value.get_ref().as_str()
    }

    /// Text in quotes.
    pub(super) fn text(&self) -> Option<&'s str> {
        let text = self.as_text();
        if text.is_none() {
            self.wrong_kind("text in quotes", "put quotes around it");
        }
        text
    }

    /// Text with a rule of its own; a [`Fault`] continues the key's path.
    pub(super) fn parsed<T>(&self, rule: impl FnOnce(&'s str) -> Result<T, Fault>) -> Option<T> {
        rule(self.text()?).map_err(|fault| self.fault(fault)).ok()
    }

    /// One of a few words.
    pub(super) fn word<T: Copy>(&self, words: &[(&str, T)]) -> Option<T> {
        let text = self.text()?;
        let found = words.iter().find(|(word, _)| *word == text).map(|(_, value)| *value);
        if found.is_none() {
            let all: Vec<String> = words.iter().map(|(word, _)| format!("{word:?}")).collect();
            let all = if all.len() > 2 { format!("one of {}", all.join(", ")) } else { all.join(" or ") };
            let hint = match did_you_mean(text, words.iter().map(|(word, _)| *word)) {
                Some(meant) => format!("did you mean {meant:?}?"),
                None => format!("write {all}"),
            };
            self.problem(format!(" must be {all}, got {:?}", shorten(text, 60)), hint);
        }
        found
    }

    pub(super) fn boolean(&self) -> Option<bool> {
        let value = self.value.get_ref().as_bool();
        if value.is_none() {
            self.wrong_kind("true or false", &format!("write {} = true or {0} = false, without quotes", self.key()));
        }
        value
    }

    /// A whole number within bounds; `range_words` says them to the reader.
    pub(super) fn number(&self, range: RangeInclusive<u32>, range_words: &str) -> Option<u32> {
        let DeValue::Integer(integer) = self.value.get_ref() else {
            self.wrong_kind(range_words, &format!("write a whole number without quotes, as in {} = 3", self.key()));
            return None;
        };
        let number = i128::from_str_radix(integer.as_str(), integer.radix()).ok();
        match number.and_then(|number| u32::try_from(number).ok()).filter(|number| range.contains(number)) {
            Some(number) => Some(number),
            None => {
                self.wrong_kind(
                    range_words,
                    &format!("write {} = {} or another number in that range", self.key(), { (*range.start()).max(1) }),
                );
                None
            }
        }
    }

    /// A positive decimal number in thousandths.
    pub(super) fn thousandths(&self, range: RangeInclusive<u64>, range_words: &str) -> Option<u64> {
        let number: Option<f64> = match self.value.get_ref() {
            DeValue::Integer(integer) => i64::from_str_radix(integer.as_str(), integer.radix()).ok().map(|n| n as f64),
            DeValue::Float(float) => float.as_str().parse().ok(),
            _ => None,
        };
        // The cast of a float saturates, and what is not a number becomes 0.
        let thousandths = number.map(|number| (number * 1_000.0).round() as u64).filter(|n| range.contains(n));
        if thousandths.is_none() {
            self.wrong_kind(range_words, &format!("write a number without quotes, as in {} = 0.5", self.key()));
        }
        thousandths
    }

    /// A duration within bounds.
    pub(super) fn duration(&self, range: RangeInclusive<Duration>) -> Option<Duration> {
        self.duration_where(|duration| range.contains(&duration), &between(&range))
    }

    /// A duration within bounds, or `"0s"`, which stands for none.
    pub(super) fn duration_or_zero(&self, range: RangeInclusive<Duration>) -> Option<Duration> {
        let words = format!("0s, or {}", between(&range));
        self.duration_where(|duration| duration.is_zero() || range.contains(&duration), &words)
    }

    fn duration_where(&self, allowed: impl Fn(Duration) -> bool, words: &str) -> Option<Duration> {
        if let DeValue::Integer(number) = self.value.get_ref() {
            let number = shorten(&number.to_string(), 20);
            self.problem(
                format!(" is a duration and needs quotes and a unit, got {number}"),
                format!("write {} = \"{number}s\" for {number} seconds; it must be {words}", self.key()),
            );
            return None;
        }
        let duration = self.parsed(|text| {
            units::duration(text).map_err(|fault| {
                let hint = fault.hint.map(|hint| format!("{hint}; it must be {words}"));
                Fault { hint, ..fault }
            })
        })?;
        if !allowed(duration) {
            let got = self.as_text().unwrap_or_default();
            self.problem(format!(" must be {words}, got {:?}", shorten(got, 40)), "write a duration in that range");
            return None;
        }
        Some(duration)
    }

    /// A size in bytes.
    pub(super) fn size(&self, least: u64, least_words: &str) -> Option<u64> {
        if let DeValue::Integer(number) = self.value.get_ref() {
            let number = shorten(&number.to_string(), 20);
            self.problem(
                format!(" is a size and needs quotes and a unit, got {number}"),
                format!("write {} = \"512MiB\"; the minimum is {least_words}", self.key()),
            );
            return None;
        }
        let size = self.parsed(units::size)?;
        if size < least {
            let got = self.as_text().unwrap_or_default();
            self.problem(format!(" must be at least {least_words}, got {got:?}"), "write a larger size");
            return None;
        }
        Some(size)
    }

    /// A size in bytes that has a bound above as well.
    pub(super) fn size_within(&self, range: RangeInclusive<u64>, least_words: &str, most_words: &str) -> Option<u64> {
        let size = self.size(*range.start(), least_words)?;
        if size > *range.end() {
            let got = self.as_text().unwrap_or_default();
            self.problem(format!(" must be at most {most_words}, got {got:?}"), "write a smaller size");
            return None;
        }
        Some(size)
    }

    /// A list; its elements keep their places.
    pub(super) fn list(&self, hint: &str) -> Option<Vec<Field<'s>>> {
        let DeValue::Array(array) = self.value.get_ref() else {
            self.problem(format!(" must be a list, got {}", kind(self.value.get_ref())), hint);
            return None;
        };
        let element = |(index, value): (usize, &'s Spanned<DeValue<'s>>)| Field {
            reader: self.reader,
            path: format!("{}[{index}]", self.path),
            key_span: value.span(),
            value,
        };
        Some(array.iter().enumerate().map(element).collect())
    }

    /// A command as the list of its arguments; there is no shell that would split a line.
    pub(super) fn argv(&self) -> Option<Vec<String>> {
        let hint = format!("write {} = [\"program\", \"argument\"]; there is no shell that would split it", self.key());
        if let DeValue::String(_) = self.value.get_ref() {
            self.problem(" must be a list of arguments, got one text", hint);
            return None;
        }
        let elements = self.list(&hint)?;
        let argv: Option<Vec<String>> = elements
            .iter()
            .map(|element| match element.text() {
                Some(text) if text.contains('\0') => {
                    element.problem(" holds a NUL character", "remove it");
                    None
                }
                text => text.map(str::to_owned),
            })
            // Every element is looked at before the first problem counts.
            .collect::<Vec<_>>()
            .into_iter()
            .collect();
        match argv {
            Some(argv) if argv.first().is_none_or(String::is_empty) => {
                self.problem(" names no program", hint);
                None
            }
            argv => argv,
        }
    }

    /// A table of known keys.
    pub(super) fn section(&self, hint: &str) -> Option<Section<'s>> {
        let DeValue::Table(table) = self.value.get_ref() else {
            self.problem(format!(" must be a table, got {}", kind(self.value.get_ref())), hint);
            return None;
        };
        Some(Section::new(self.reader, self.path.clone(), self.key_span.clone(), table))
    }

    /// A path, relative to the file's directory.
    pub(super) fn file_path(&self) -> Option<PathBuf> {
        match self.text()? {
            "" => {
                self.problem(" is empty", "write the file's path");
                None
            }
            text if text.contains('\0') => {
                self.problem(" holds a NUL character", "remove it");
                None
            }
            text if text.starts_with('~') => {
                self.problem(": ~ is not expanded", "write the absolute path");
                None
            }
            text => {
                self.reader.file(&self.path, &self.span());
                Some(self.reader.dir.join(text))
            }
        }
    }

    /// A reference to a secret, never a literal. No message shows what is written in its place.
    pub(super) fn secret_ref(&self) -> Option<SecretRef> {
        const FORMS: &str = "write { env = \"NAME\" } or { file = \"PATH\" }";
        if !self.is_table() {
            self.problem(": a secret is never written in the file itself (the value is not shown here)", FORMS);
            return None;
        }
        let section = self.section(FORMS)?;
        section.unsupported("secret", FORMS);
        let stored = section.has("secret");
        let (env, file) = (section.take("env"), section.take("file"));
        section.finish();
        match (env, file) {
            (Some(env), None) if !stored => {
                let name = env.parsed(|name| match env_name(name) {
                    Ok(()) => Ok(name.to_owned()),
                    // It may be the secret itself.
                    Err(_) => Err(Fault::new(
                        " must be the name of an environment variable (what is written is not shown here)",
                        FORMS,
                    )),
                });
                name.map(SecretRef::Env)
            }
            (None, Some(file)) if !stored => file.file_path().map(SecretRef::File),
            (None, None) if stored => None,
            _ => {
                self.problem(" must name exactly one place for the secret", FORMS);
                None
            }
        }
    }

    /// A reference whose secret is read when it is needed. That it cannot be read now is told.
    pub(super) fn later_secret(&self) -> Option<SecretRef> {
        let reference = self.secret_ref()?;
        // Only whether it is there counts here.
        let _ = self.read(&reference, |_| Ok(()));
        Some(reference)
    }

    /// A reference's secret, read now. One that `rule` has something against is no more use than none; its fault
    /// continues the reference in words.
    pub(super) fn secret(&self, rule: impl FnOnce(&str) -> Result<(), Fault>) -> Option<Secret> {
        let reference = self.secret_ref()?;
        let read = self.read(&reference, rule);
        Some(self.reader.kept(&self.path, read))
    }

    fn read(&self, reference: &SecretRef, rule: impl FnOnce(&str) -> Result<(), Fault>) -> Secret {
        let told = |Fault { what, hint }: Fault| self.absent(format!(": {what}"), hint.unwrap_or_default());
        let secret = reference.resolve_in(self.reader.environment).map_err(told)?;
        let described = |fault: Fault| Fault { what: format!("{} {}", reference.describe(), fault.what), ..fault };
        rule(secret.expose_secret()).map_err(|fault| told(described(fault)))?;
        Ok(secret)
    }

    /// A secret, or a page, that is named here and cannot be had; `why` continues the key's path.
    pub(super) fn absent(&self, why: impl AsRef<str>, hint: impl Into<String>) -> Absent {
        self.reader.absent(&self.span(), &self.path, why.as_ref(), hint)
    }

    /// The last part of the path, as it is written in the file.
    fn key(&self) -> &str {
        self.path.rsplit('.').next().unwrap_or(&self.path)
    }
}

/// The rule for names of environment variables: `[A-Za-z_][A-Za-z0-9_]*`.
pub(super) fn env_name(name: &str) -> Result<(), Fault> {
    let plain = name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
    if plain && !name.is_empty() && !name.starts_with(|c: char| c.is_ascii_digit()) {
        return Ok(());
    }
    Err(Fault::new(
        format!(": {:?} is no name of an environment variable", shorten(name, 60)),
        "letters, digits and _ make a name, with no digit first",
    ))
}

fn between(range: &RangeInclusive<Duration>) -> String {
    format!("{} to {}", units::show_duration(*range.start()), units::show_duration(*range.end()))
}

/// A value as messages show it. Not for values that may be secret.
fn shown(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(text) => format!("the text {:?}", shorten(text, 60)),
        DeValue::Integer(number) => shorten(&number.to_string(), 40),
        DeValue::Float(number) => shorten(&number.to_string(), 40),
        DeValue::Boolean(truth) => truth.to_string(),
        other => kind(other).to_owned(),
    }
}

/// What sort of value it is, without the value.
fn kind(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "text",
        DeValue::Integer(_) | DeValue::Float(_) => "a number",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}
