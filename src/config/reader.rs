//! Walking the TOML tree: every key is asked for once, what nobody asked for is unknown, and nothing stops at the
//! first problem.
//!
//! A [`Field`] that does not fit reports its problem and reads as `None`. Since one problem is enough for the whole
//! file to be refused, the caller may go on with any stand-in value.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::absent::{Absent, Kept, Secret};
use super::field::Field;
use super::problem::{Place, Places, Problem};
use super::secret_ref::Environment;
use super::suggest::did_you_mean;
use crate::model::shorten;

/// Where problems and warnings are gathered, and what the outside offers to a file being read.
pub(super) struct Reader<'r> {
    places: Places<'r>,
    problems: RefCell<Vec<Problem>>,
    warnings: RefCell<Vec<Problem>>,
    absent: RefCell<Vec<Absent>>,
    /// What was read before, for what cannot be read any more.
    before: &'r Kept,
    kept: RefCell<Kept>,
    files: RefCell<BTreeMap<String, Place>>,
    pub environment: &'r Environment<'r>,
    /// What relative paths are relative to.
    pub dir: &'r Path,
}

impl<'r> Reader<'r> {
    pub(super) fn new(text: &'r str, dir: &'r Path, environment: &'r Environment<'r>, before: &'r Kept) -> Self {
        Self {
            places: Places::new(text),
            problems: RefCell::default(),
            warnings: RefCell::default(),
            absent: RefCell::default(),
            before,
            kept: RefCell::default(),
            files: RefCell::default(),
            environment,
            dir,
        }
    }

    pub(super) fn problem(&self, span: &Range<usize>, what: impl Into<String>, hint: impl Into<String>) {
        self.problems.borrow_mut().push(self.places.problem(span, what.into(), Some(hint.into())));
    }

    pub(super) fn problem_of_file(&self, what: impl Into<String>, hint: impl Into<String>) {
        self.problems.borrow_mut().push(Problem::of_file(what, hint));
    }

    pub(super) fn warning(&self, span: &Range<usize>, what: impl Into<String>, hint: impl Into<String>) {
        self.warnings.borrow_mut().push(self.places.problem(span, what.into(), Some(hint.into())));
    }

    /// A secret that is named and cannot be had.
    pub(super) fn absent(&self, span: &Range<usize>, key: &str, why: &str, hint: impl Into<String>) -> Absent {
        let problem = self.places.problem(span, format!("{key}{why}"), Some(hint.into()));
        let absent = Absent { key: key.to_owned(), problem, in_use: false };
        self.absent.borrow_mut().push(absent.clone());
        absent
    }

    /// A secret as it was read, or as it was before: one that has gone since stays in use, and is told all the same.
    pub(super) fn kept(&self, key: &str, read: Secret) -> Secret {
        let secret = match (read, self.before.get(key)) {
            (Err(_), Some(before)) => {
                let mut absent = self.absent.borrow_mut();
                absent.iter_mut().filter(|absent| absent.key == key).for_each(|absent| absent.in_use = true);
                before.clone()
            }
            (read, _) => read?,
        };
        self.kept.borrow_mut().insert(key.to_owned(), secret.clone());
        Ok(secret)
    }

    /// Remembers where the path of a file is written.
    pub(super) fn file(&self, key: &str, span: &Range<usize>) {
        let (line, column) = self.places.of(span.start);
        self.files.borrow_mut().insert(key.to_owned(), Place { line, column });
    }

    /// Where the paths of files are written, by their dotted keys.
    pub(super) fn take_files(&self) -> BTreeMap<String, Place> {
        self.files.take()
    }

    /// The line of a place, for a problem that names two of them.
    pub(super) fn line_of(&self, span: &Range<usize>) -> usize {
        self.places.of(span.start).0
    }

    /// All that there is to say of the file.
    pub(super) fn into_findings(self) -> Findings {
        let (mut problems, mut warnings) = (self.problems.into_inner(), self.warnings.into_inner());
        let mut absent = self.absent.into_inner();
        let place = |problem: &Problem| (problem.line, problem.column);
        problems.sort_by_key(place);
        warnings.sort_by_key(place);
        absent.sort_by_key(|absent| place(&absent.problem));
        Findings { problems, warnings, absent, kept: self.kept.into_inner() }
    }
}

/// What there is to say of a file, each in its order.
pub(super) struct Findings {
    pub problems: Vec<Problem>,
    pub warnings: Vec<Problem>,
    /// Problems that a start puts up with.
    pub absent: Vec<Absent>,
    /// The secrets in use, by their dotted keys.
    pub kept: Kept,
}

impl Findings {
    /// Everything that is wrong, when nothing is put up with.
    pub(super) fn into_problems(self) -> Vec<Problem> {
        let mut problems = self.problems;
        problems.extend(self.absent.into_iter().map(|absent| absent.problem));
        problems.sort_by_key(|problem| (problem.line, problem.column));
        problems
    }
}

/// A table of the file, and which of its keys have been asked for.
pub(super) struct Section<'s> {
    pub reader: &'s Reader<'s>,
    /// Dotted, as in `apps.shop.health`; empty for the file itself.
    pub path: String,
    /// Where its own key stands.
    pub span: Range<usize>,
    table: &'s DeTable<'s>,
    known: RefCell<Vec<&'static str>>,
    unsupported: RefCell<Vec<&'static str>>,
}

impl<'s> Section<'s> {
    pub(super) fn new(reader: &'s Reader<'s>, path: String, span: Range<usize>, table: &'s DeTable<'s>) -> Self {
        Self { reader, path, span, table, known: RefCell::default(), unsupported: RefCell::default() }
    }

    /// The value of a key, which is known from now on.
    pub(super) fn take(&self, key: &'static str) -> Option<Field<'s>> {
        self.known.borrow_mut().push(key);
        self.table.get_key_value(key).map(|(key, value)| self.field(key.get_ref(), key.span(), value))
    }

    /// A key that must be there.
    pub(super) fn require(&self, key: &'static str, hint: &str) -> Option<Field<'s>> {
        let field = self.take(key);
        if field.is_none() {
            self.problem(format!("{} needs {key}", self.path), hint);
        }
        field
    }

    /// A key of which a later version may know what to do; silently ignoring it would do harm.
    pub(super) fn unsupported(&self, key: &'static str, hint: &str) {
        if let Some(field) = self.table.get_key_value(key).map(|(key, _)| key) {
            let what = format!("{} is not supported by this version", self.name_of(key));
            self.reader.problem(&field.span(), what, hint);
        }
        self.unsupported.borrow_mut().push(key);
    }

    /// Whether a key is written, without asking for its value.
    pub(super) fn has(&self, key: &str) -> bool {
        self.table.contains_key(key)
    }

    /// All entries of a table whose keys are names that the operator gives.
    pub(super) fn entries(&self) -> impl Iterator<Item = (&'s str, Field<'s>)> {
        self.table.iter().map(|(key, value)| {
            let name: &'s str = key.get_ref();
            (name, self.field(name, key.span(), value))
        })
    }

    /// A problem at this section's own key.
    pub(super) fn problem(&self, what: impl Into<String>, hint: impl Into<String>) {
        self.reader.problem(&self.span, what, hint);
    }

    /// Reports what nobody asked for.
    pub(super) fn finish(self) {
        let (known, unsupported) = (self.known.borrow(), self.unsupported.borrow());
        let is_known = |key: &str| known.contains(&key) || unsupported.contains(&key);
        for key in self.table.keys().filter(|key| !is_known(key.get_ref())) {
            let name = shorten(key.get_ref(), 60);
            let what = match did_you_mean(&name, known.iter().copied()) {
                Some(meant) => format!("unknown key {name:?}, did you mean {meant:?}?"),
                None => format!("unknown key {name:?}"),
            };
            let place = if self.path.is_empty() { "the file".to_owned() } else { self.path.clone() };
            self.reader.problem(&key.span(), what, format!("{place} takes: {}", known.join(", ")));
        }
    }

    fn name_of(&self, key: &str) -> String {
        let bare = |key: &str| key.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
        let key = if bare(key) && !key.is_empty() { key.to_owned() } else { format!("{:?}", shorten(key, 60)) };
        if self.path.is_empty() { key } else { format!("{}.{key}", self.path) }
    }

    fn field(&self, key: &str, key_span: Range<usize>, value: &'s Spanned<DeValue<'s>>) -> Field<'s> {
        Field { reader: self.reader, path: self.name_of(key), key_span, value }
    }
}
