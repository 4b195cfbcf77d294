//! The fields of a head. hyper reads them into a map and wants a map; where it has no part in a message, they stay the
//! lines that they came as, because a map of six fields costs as much as all else that is done with them.

use bytes::Bytes;
use either::Either;
use httparse::Header;
use hyper::header::{HeaderMap, HeaderName, HeaderValue};
use smallvec::SmallVec;

/// Lines that most heads have at the most: kept where the head is.
const USUAL: usize = 16;
/// Fields that the proxy puts into most heads, at the most.
const ADDED: usize = 4;

/// The fields of a head. Names are the same in any case, as they are in HTTP.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "heads are boxed")]
pub enum Fields {
    /// As hyper has them, each name in lower case.
    Map(HeaderMap),
    /// As they came.
    Lines(Lines),
}

/// Lines of a head that was read by [`super::http1`].
#[derive(Debug)]
pub struct Lines {
    /// The whole head.
    head: Bytes,
    /// Those of its lines that are still meant.
    lines: SmallVec<[Line; USUAL]>,
    /// What was put in since.
    added: SmallVec<[(HeaderName, HeaderValue); ADDED]>,
    lengths: Lengths,
}

/// How long names are, at least of all that are there: most that are asked for are told to be none of them.
#[derive(Debug, Default, Clone, Copy)]
struct Lengths(u64);

impl Lengths {
    fn note(&mut self, name: &[u8]) {
        self.0 |= 1 << name.len().min(63);
    }

    fn may_have(self, name: &str) -> bool {
        self.0 & 1 << name.len().min(63) != 0
    }
}

/// Where the fields of a head stand in it.
#[derive(Debug)]
pub struct Found(SmallVec<[Line; USUAL]>, Lengths);

impl Found {
    /// As httparse found them in `head`, but for those that are `taken`. `None` when one is too long. Who looks at each as it
    /// comes need not ask for any later.
    pub fn new<'a>(head: &[u8], parsed: &[Header<'a>], mut taken: impl FnMut(&[u8], &'a [u8]) -> bool) -> Option<Self> {
        let (mut lines, mut lengths) = (SmallVec::new(), Lengths::default());
        for field in parsed {
            if !taken(field.name.as_bytes(), field.value) {
                lines.push(Line::new(head, field)?);
                lengths.note(field.name.as_bytes());
            }
        }
        Some(Self(lines, lengths))
    }
}

/// Where a line's parts stand in its head.
#[derive(Debug, Clone, Copy)]
struct Line {
    name: u32,
    name_length: u16,
    value: u32,
    value_length: u32,
}

impl From<HeaderMap> for Fields {
    fn from(map: HeaderMap) -> Self {
        Self::Map(map)
    }
}

impl Fields {
    /// The first value with this name.
    pub fn get<'a>(&'a self, name: &HeaderName) -> Option<&'a [u8]> {
        match self {
            Self::Map(map) => map.get(name).map(HeaderValue::as_bytes),
            Self::Lines(lines) => match lines.line(name.as_str()) {
                Some(line) => Some(line.value(&lines.head)),
                None => lines.addition(name).map(HeaderValue::as_bytes),
            },
        }
    }

    /// All values with this name, in their order.
    pub fn get_all<'a>(&'a self, name: &'a HeaderName) -> impl Iterator<Item = &'a [u8]> {
        match self {
            Self::Map(map) => Either::Left(map.get_all(name).iter().map(HeaderValue::as_bytes)),
            Self::Lines(lines) => {
                let name = name.as_str();
                Either::Right(lines.iter().filter(move |(other, _)| same(other, name)).map(|(_, value)| value))
            }
        }
    }

    /// The first value with this name, to be kept.
    pub fn value(&self, name: &HeaderName) -> Option<HeaderValue> {
        match self {
            Self::Map(map) => map.get(name).cloned(),
            Self::Lines(lines) => match lines.line(name.as_str()) {
                Some(line) => HeaderValue::from_maybe_shared(lines.head.slice_ref(line.value(&lines.head))).ok(),
                None => lines.addition(name).cloned(),
            },
        }
    }

    /// Whether there is one with this name.
    pub fn contains(&self, name: &HeaderName) -> bool {
        match self {
            Self::Map(map) => map.contains_key(name),
            Self::Lines(_) => self.get(name).is_some(),
        }
    }

    /// Names, in whichever case they came, and values.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        match self {
            Self::Map(map) => {
                Either::Left(map.iter().map(|(name, value)| (name.as_str().as_bytes(), value.as_bytes())))
            }
            Self::Lines(lines) => Either::Right(lines.iter()),
        }
    }

    /// Whether one of the names is `wanted`.
    pub fn any_name(&self, wanted: impl Fn(&[u8]) -> bool) -> bool {
        match self {
            Self::Map(map) => map.keys().any(|name| wanted(name.as_str().as_bytes())),
            Self::Lines(Lines { head, lines, added, .. }) => {
                let is_added = |(name, _): &(HeaderName, _)| wanted(name.as_str().as_bytes());
                lines.iter().any(|line| wanted(line.name(head))) || added.iter().any(is_added)
            }
        }
    }

    /// Takes out those whose name is `unwanted`.
    pub fn remove_where(&mut self, unwanted: impl Fn(&[u8]) -> bool) {
        match self {
            Self::Map(map) => {
                while let Some(name) = map.keys().find(|name| unwanted(name.as_str().as_bytes())).cloned() {
                    map.remove(name);
                }
            }
            Self::Lines(Lines { head, lines, added, .. }) => {
                lines.retain(|line| !unwanted(line.name(head)));
                added.retain(|(name, _)| !unwanted(name.as_str().as_bytes()));
            }
        }
    }

    /// Takes out all with this name.
    pub fn remove(&mut self, name: &HeaderName) {
        match self {
            Self::Map(map) => drop(map.remove(name)),
            Self::Lines(_) if !self.contains(name) => {}
            Self::Lines(_) => self.remove_where(|other| is(other, name)),
        }
    }

    /// Puts one in, in place of all with its name.
    pub fn insert(&mut self, name: &HeaderName, value: HeaderValue) {
        match self {
            Self::Map(map) => drop(map.insert(name, value)),
            Self::Lines(_) => {
                self.remove(name);
                self.append(name.clone(), value);
            }
        }
    }

    /// Puts one more in.
    pub fn append(&mut self, name: HeaderName, value: HeaderValue) {
        match self {
            Self::Map(map) => drop(map.append(name, value)),
            Self::Lines(lines) => {
                lines.lengths.note(name.as_str().as_bytes());
                lines.added.push((name, value));
            }
        }
    }

    /// As hyper wants them.
    pub fn into_map(self) -> HeaderMap {
        match self {
            Self::Map(map) => map,
            Self::Lines(lines) => lines.into_map(),
        }
    }

    /// Writes each as `name: value` and the end of the line.
    pub fn write(&self, into: &mut Vec<u8>) {
        match self {
            Self::Map(map) => {
                for (name, value) in map {
                    write_field(name.as_str().as_bytes(), value.as_bytes(), into);
                }
            }
            Self::Lines(lines) => lines.write(into),
        }
    }
}

impl Lines {
    /// Those that were found in this head.
    pub fn new(head: Bytes, found: Found) -> Self {
        let Found(lines, lengths) = found;
        Self { head, lines, added: SmallVec::new(), lengths }
    }

    /// The first of those that came with this name.
    fn line(&self, name: &str) -> Option<&Line> {
        if !self.lengths.may_have(name) {
            return None;
        }
        let is_it = |line: &&Line| usize::from(line.name_length) == name.len() && same(line.name(&self.head), name);
        self.lines.iter().find(is_it)
    }

    /// The first of those that were put in with this name.
    fn addition(&self, name: &HeaderName) -> Option<&HeaderValue> {
        self.added.iter().find(|(other, _)| other == name).map(|(_, value)| value)
    }

    fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        let came = self.lines.iter().map(|line| (line.name(&self.head), line.value(&self.head)));
        came.chain(self.added.iter().map(|(name, value)| (name.as_str().as_bytes(), value.as_bytes())))
    }

    /// As hyper wants them.
    pub fn into_map(self) -> HeaderMap {
        let mut map = HeaderMap::with_capacity(self.lines.len() + self.added.len());
        for line in &self.lines {
            let value = self.head.slice_ref(line.value(&self.head));
            // What httparse takes for a field, these take too.
            if let (Ok(name), Ok(value)) =
                (HeaderName::from_bytes(line.name(&self.head)), HeaderValue::from_maybe_shared(value))
            {
                map.append(name, value);
            }
        }
        map.extend(self.added.into_iter().map(|(name, value)| (Some(name), value)));
        map
    }

    /// Lines that follow each other and are as we would write them are written in one piece.
    fn write(&self, into: &mut Vec<u8>) {
        let mut piece = 0..0;
        for line in &self.lines {
            let Some(whole) = line.as_written(&self.head) else {
                into.extend_from_slice(&self.head[std::mem::take(&mut piece)]);
                write_field(line.name(&self.head), line.value(&self.head), into);
                continue;
            };
            if piece.end == whole.start {
                piece.end = whole.end;
            } else {
                into.extend_from_slice(&self.head[std::mem::replace(&mut piece, whole)]);
            }
        }
        into.extend_from_slice(&self.head[piece]);
        for (name, value) in &self.added {
            write_field(name.as_str().as_bytes(), value.as_bytes(), into);
        }
    }
}

impl Line {
    fn new(head: &[u8], field: &Header<'_>) -> Option<Self> {
        let start = |part: *const u8| u32::try_from(part.addr().checked_sub(head.as_ptr().addr())?).ok();
        Some(Self {
            name: start(field.name.as_ptr())?,
            name_length: field.name.len().try_into().ok()?,
            value: start(field.value.as_ptr())?,
            value_length: field.value.len().try_into().ok()?,
        })
    }

    fn name<'a>(&self, head: &'a [u8]) -> &'a [u8] {
        let start = self.name as usize;
        &head[start..start + usize::from(self.name_length)]
    }

    fn value<'a>(&self, head: &'a [u8]) -> &'a [u8] {
        let start = self.value as usize;
        &head[start..start + self.value_length as usize]
    }

    /// The whole line, if it is as [`write_field`] would write it.
    fn as_written(&self, head: &[u8]) -> Option<std::ops::Range<usize>> {
        let (name_end, value) = (self.name as usize + usize::from(self.name_length), self.value as usize);
        let end = value + self.value_length as usize;
        let is_so = head.get(name_end..value) == Some(b": ") && head.get(end..end + 2) == Some(b"\r\n");
        is_so.then_some(self.name as usize..end + 2)
    }
}

/// Whether it is this name, in whichever case.
pub fn is(name: &[u8], wanted: &HeaderName) -> bool {
    same(name, wanted.as_str())
}

/// Most names differ in their lengths already.
#[inline]
pub fn same(name: &[u8], wanted: &str) -> bool {
    name.len() == wanted.len() && name.eq_ignore_ascii_case(wanted.as_bytes())
}

/// Writes `name: value` and the end of the line.
pub fn write_field(name: &[u8], value: &[u8], into: &mut Vec<u8>) {
    let start = into.len();
    let (name_end, value_end) = (start + name.len(), start + name.len() + 2 + value.len());
    // Grown once, not with each part.
    into.resize(value_end + 2, 0);
    into[start..name_end].copy_from_slice(name);
    into[name_end..name_end + 2].copy_from_slice(b": ");
    into[name_end + 2..value_end].copy_from_slice(value);
    into[value_end..].copy_from_slice(b"\r\n");
}

#[cfg(test)]
mod tests {
    use hyper::header::{ACCEPT, CONTENT_TYPE, HOST};
    use proptest::prelude::*;

    use super::*;

    fn lines(head: &str) -> Fields {
        let head = Bytes::from(head.to_owned());
        let mut parsed = [httparse::EMPTY_HEADER; 32];
        let (_, parsed) = httparse::parse_headers(&head, &mut parsed).unwrap().unwrap();
        let found = Found::new(&head, parsed, |_, _| false).unwrap();
        Fields::Lines(Lines::new(head.clone(), found))
    }

    fn written(fields: &Fields) -> String {
        let mut bytes = Vec::new();
        fields.write(&mut bytes);
        String::from_utf8(bytes).unwrap()
    }

    /// As a list whose names are in lower case, those of one name together.
    fn listed(fields: &Fields) -> Vec<(String, Vec<u8>)> {
        let list = fields.iter().map(|(name, value)| (String::from_utf8_lossy(name).to_lowercase(), value.to_vec()));
        let mut list: Vec<_> = list.collect();
        list.sort_by(|a, b| a.0.cmp(&b.0));
        list
    }

    #[test]
    fn lines_are_passed_on_as_they_came_but_for_their_blanks() {
        let fields = lines("Host: a\r\nX-Odd:b\r\nX-Wide:   c  \r\nx-bare: d\nAccept: */*\r\nX-Empty:\r\n\r\n");
        assert_eq!(written(&fields), "Host: a\r\nX-Odd: b\r\nX-Wide: c\r\nx-bare: d\r\nAccept: */*\r\nX-Empty: \r\n");
    }

    #[test]
    fn what_is_taken_out_is_gone_and_what_is_put_in_takes_its_place() {
        let mut fields = lines("Host: a\r\nAccept: b\r\nX-One: 1\r\naccept: c\r\nX-Two: 2\r\n\r\n");
        assert_eq!(fields.get_all(&ACCEPT).collect::<Vec<_>>(), [b"b", b"c"]);
        fields.insert(&ACCEPT, HeaderValue::from_static("d"));
        fields.remove_where(|name| name.eq_ignore_ascii_case(b"x-one"));
        assert_eq!(written(&fields), "Host: a\r\nX-Two: 2\r\naccept: d\r\n");
        fields.insert(&ACCEPT, HeaderValue::from_static("e"));
        fields.append(ACCEPT, HeaderValue::from_static("f"));
        assert_eq!(fields.get(&ACCEPT), Some(&b"e"[..]));
        assert!(fields.contains(&HOST) && !fields.contains(&CONTENT_TYPE));
        fields.remove(&ACCEPT);
        assert_eq!(written(&fields), "Host: a\r\nX-Two: 2\r\n");
    }

    proptest! {
        /// Whatever httparse takes for a field hyper's map takes as well, and the two say the same; also after the same was
        /// done to both.
        #[test]
        fn lines_and_the_map_of_them_are_the_same(
            head in proptest::collection::vec(("[!#$%&'*+.^_`|~0-9A-Za-z-]{1,12}", "[ \t]{0,3}",
                proptest::collection::vec(prop_oneof![Just(b'\t'), 0x20u8..0x7f, 0x80u8..], 0..12), "[ \t]{0,3}\r?\n"), 0..12),
            changes in proptest::collection::vec((0u8..3, "[xyXY]", "[a-z]{0,3}"), 0..6),
        ) {
            let mut bytes = Vec::new();
            for (name, before, value, end) in &head {
                bytes.extend([name.as_bytes(), b":", before.as_bytes(), value, end.as_bytes()].concat());
            }
            bytes.extend(b"\r\n");
            let bytes = Bytes::from(bytes);
            let mut parsed = [httparse::EMPTY_HEADER; 32];
            let (_, parsed) = httparse::parse_headers(&bytes, &mut parsed).unwrap().unwrap();
            prop_assert_eq!(parsed.len(), head.len());
            let found = || Found::new(&bytes, parsed, |_, _| false).unwrap();
            let as_lines = || Fields::Lines(Lines::new(bytes.clone(), found()));
            let mut both = [as_lines(), Fields::Map(as_lines().into_map())];
            prop_assert_eq!(listed(&both[0]), listed(&both[1]));
            for (kind, name, value) in &changes {
                let (name, value) = (HeaderName::try_from(name).unwrap(), HeaderValue::try_from(value).unwrap());
                for fields in &mut both {
                    match kind {
                        0 => fields.insert(&name, value.clone()),
                        1 => fields.append(name.clone(), value.clone()),
                        _ => fields.remove(&name),
                    }
                }
                prop_assert_eq!(listed(&both[0]), listed(&both[1]));
                prop_assert_eq!(both[0].get(&name), both[1].get(&name));
                prop_assert_eq!(both[0].value(&name), both[1].value(&name));
                prop_assert!(both[0].get_all(&name).eq(both[1].get_all(&name)));
                let is_it = |other: &[u8]| is(other, &name);
                prop_assert_eq!(both[0].any_name(is_it), both[1].contains(&name));
            }
            let mut line = Vec::new();
            both[0].write(&mut line);
            line.extend(b"\r\n");
            let mut again = [httparse::EMPTY_HEADER; 32];
            let (_, again) = httparse::parse_headers(&line, &mut again).unwrap().unwrap();
            let said = |fields: &[Header<'_>]| fields.iter().map(|f| (f.name.to_owned(), f.value.to_vec())).collect::<Vec<_>>();
            let expected: Vec<_> =
                both[0].iter().map(|(name, value)| (String::from_utf8_lossy(name).into_owned(), value.to_vec())).collect();
            prop_assert_eq!(said(again), expected);
        }
    }
}
