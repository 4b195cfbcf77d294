//! Which part of a file a request wants, or whether it has it already (RFC 9110 §13 and §14), and in which coding (§12.5.3). Pure.

use std::ops::Range;

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;

/// What a request says of the file that it asks for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Asked {
    /// `If-Match`
    pub if_match: Option<String>,
    /// `If-Unmodified-Since`
    pub unmodified_since: Option<String>,
    /// `If-None-Match`
    pub none_match: Option<String>,
    /// `If-Modified-Since`
    pub modified_since: Option<String>,
    /// `If-Range`
    pub if_range: Option<String>,
    /// `Range`; of a GET alone.
    pub range: Option<String>,
}

/// What there is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Version {
    /// A strong `ETag`, with its quotes.
    pub etag: String,
    /// When it was changed, to the second.
    pub modified: Timestamp,
    /// Bytes.
    pub size: u64,
}

/// What is to be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    /// All of it.
    Whole,
    /// These bytes.
    Bytes(Range<u64>),
    /// Nothing: the client has it (304).
    Unchanged,
    /// Nothing: it has no such bytes (416).
    OutOfRange,
    /// Nothing: it is not the version that the client meant (412).
    Another,
}

impl Version {
    /// `Last-Modified`
    pub fn last_modified(&self) -> String {
        self.modified.strftime(DATE).to_string()
    }

    /// Whether it could have changed once more without its date showing it (RFC 9110 §8.8.2.2).
    fn has_strong_date(&self, now: Timestamp) -> bool {
        self.modified.as_second() < now.as_second()
    }
}

impl Asked {
    /// What to send of this version, in the order in which conditions count (RFC 9110 §13.2.2).
    pub fn part_of(&self, version: &Version, now: Timestamp) -> Part {
        let is_meant = match (&self.if_match, &self.unmodified_since) {
            // With it the date does not count. A weak tag is not enough (§13.1.1).
            (Some(tags), _) => tags.trim() == "*" || tags.split(',').any(|tag| tag.trim() == version.etag),
            // What is no date does not count either (§13.1.4).
            (None, Some(date)) => http_date(date).is_none_or(|date| version.modified <= date),
            (None, None) => true,
        };
        if !is_meant {
            return Part::Another;
        }
        let last_modified = version.last_modified();
        let unchanged = match (&self.none_match, &self.modified_since) {
            // With it the date does not count.
            (Some(tags), _) => tags.trim() == "*" || tags.split(',').any(|tag| weak(tag) == version.etag),
            // Equal, not later: after a rollback the file is an older one.
            (None, Some(date)) => *date == last_modified,
            (None, None) => false,
        };
        if unchanged {
            return Part::Unchanged;
        }
        let is_same = self
            .if_range
            .as_ref()
            .is_none_or(|known| *known == version.etag || (*known == last_modified && version.has_strong_date(now)));
        match &self.range {
            Some(range) if is_same => one_range(range, version.size),
            _ => Part::Whole,
        }
    }
}

/// As `Last-Modified` has it.
const DATE: &str = "%a, %d %b %Y %H:%M:%S GMT";

/// In any of the three forms that there are (RFC 9110 §5.6.7).
fn http_date(text: &str) -> Option<Timestamp> {
    let forms = [DATE, "%A, %d-%b-%y %H:%M:%S GMT", "%a %b %e %H:%M:%S %Y"];
    let date = forms.iter().find_map(|form| DateTime::strptime(form, text.trim()).ok())?;
    TimeZone::UTC.to_timestamp(date).ok()
}

/// A tag for the weak comparison (RFC 9110 §8.8.3.2).
fn weak(tag: &str) -> &str {
    let tag = tag.trim();
    tag.strip_prefix("W/").unwrap_or(tag)
}

/// What is not understood, and several ranges at once, may be answered with the whole (RFC 9110 §14.2).
fn one_range(header: &str, size: u64) -> Part {
    let number = |text: &str| {
        let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        // Beyond every file.
        is_number.then(|| text.parse().unwrap_or(u64::MAX))
    };
    let Some((unit, set)) = header.split_once('=') else { return Part::Whole };
    let Some((first, last)) = set.trim().split_once('-').filter(|_| unit.trim().eq_ignore_ascii_case("bytes")) else {
        return Part::Whole;
    };
    let (start, end) = match (number(first), number(last)) {
        (Some(first), Some(last)) if first <= last => (first, last.saturating_add(1).min(size)),
        (Some(first), None) if last.is_empty() => (first, size),
        // The last so many.
        (None, Some(count)) if first.is_empty() => (size.saturating_sub(count), if count == 0 { 0 } else { size }),
        _ => return Part::Whole,
    };
    if start < end { Part::Bytes(start..end) } else { Part::OutOfRange }
}

/// Codings in which a file may lie beside itself, with its name's ending; the first is preferred.
pub const CODINGS: [(&str, &str); 3] = [("br", "br"), ("zstd", "zst"), ("gzip", "gz")];

/// Which of [`CODINGS`] an `Accept-Encoding` takes, the best first. What is preferred less than the file as it is, is not
/// among them.
pub fn accepted(header: &str) -> Vec<(&'static str, &'static str)> {
    let weight = |coding: &str| {
        header.split(',').find_map(|element| {
            let (name, parameters) = element.split_once(';').unwrap_or((element, ""));
            let q = parameters.trim().strip_prefix("q=").map_or(Some(1.0), |q| q.trim().parse().ok());
            name.trim().eq_ignore_ascii_case(coding).then_some(q.unwrap_or(0.0))
        })
    };
    let plain: f32 = weight("identity").unwrap_or(0.0);
    let mut taken: Vec<(f32, (&str, &str))> = CODINGS
        .into_iter()
        .filter_map(|coding| Some((weight(coding.0).or_else(|| weight("*"))?, coding)))
        .filter(|(weight, _)| *weight > 0.0 && *weight >= plain)
        .collect();
    // Stable: equals stay in our order.
    taken.sort_by(|(a, _), (b, _)| b.total_cmp(a));
    taken.into_iter().map(|(_, coding)| coding).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn version() -> Version {
        Version { etag: "\"a1\"".to_owned(), modified: "2026-11-21T08:00:00Z".parse().unwrap(), size: 100 }
    }

    fn part_of(asked: &Asked) -> Part {
        asked.part_of(&version(), "2026-11-21T08:00:01Z".parse().unwrap())
    }

    fn part(range: &str) -> Part {
        part_of(&Asked { range: Some(range.to_owned()), ..Asked::default() })
    }

    #[test]
    fn ranges_are_those_of_the_rfc() {
        for (range, expected) in [
            ("bytes=0-9", Part::Bytes(0..10)),
            ("bytes=90-", Part::Bytes(90..100)),
            ("bytes=-10", Part::Bytes(90..100)),
            ("bytes=-500", Part::Bytes(0..100)),
            ("bytes=95-500", Part::Bytes(95..100)),
            ("Bytes=99-99", Part::Bytes(99..100)),
            ("bytes=0-99999999999999999999999", Part::Bytes(0..100)),
            ("bytes=100-", Part::OutOfRange),
            ("bytes=-0", Part::OutOfRange),
            ("bytes=99999999999999999999999-", Part::OutOfRange),
            ("bytes=9-0", Part::Whole),
            ("bytes=0-1,5-6", Part::Whole),
            ("bytes=a-b", Part::Whole),
            ("bytes=-", Part::Whole),
            ("lines=0-9", Part::Whole),
            ("bytes", Part::Whole),
        ] {
            assert_eq!(part(range), expected, "{range}");
        }
    }

    #[test]
    fn what_a_client_has_is_not_sent_again() {
        let text = |text: &str| Some(text.to_owned());
        let modified = version().last_modified();
        assert_eq!(modified, "Sat, 21 Nov 2026 08:00:00 GMT");
        for (none_match, modified_since, unchanged) in [
            (text("\"a1\""), None, true),
            (text("\"x\", W/\"a1\""), None, true),
            (text("*"), None, true),
            (text("\"b2\""), text(&modified), false),
            (None, text(&modified), true),
            (None, text("Sun, 22 Nov 2026 08:00:00 GMT"), false),
            (None, None, false),
        ] {
            let asked = Asked { none_match, modified_since, ..Asked::default() };
            assert_eq!(part_of(&asked) == Part::Unchanged, unchanged, "{asked:?}");
        }
        for (if_range, expected) in [
            (text("\"a1\""), Part::Bytes(0..1)),
            (text(&modified), Part::Bytes(0..1)),
            (text("W/\"a1\""), Part::Whole),
            (text("\"b2\""), Part::Whole),
        ] {
            let asked = Asked { if_range, range: text("bytes=0-0"), ..Asked::default() };
            assert_eq!(part_of(&asked), expected, "{asked:?}");
        }
    }

    #[test]
    fn a_date_of_this_very_second_does_not_vouch_for_the_rest() {
        let (range, if_range) = (Some("bytes=0-0".to_owned()), Some(version().last_modified()));
        let asked = Asked { range, if_range, ..Asked::default() };
        for (now, expected) in [
            ("2026-11-21T08:00:00.9Z", Part::Whole),
            ("2026-11-21T07:00:00Z", Part::Whole),
            ("2026-11-21T08:00:01Z", Part::Bytes(0..1)),
        ] {
            assert_eq!(asked.part_of(&version(), now.parse().unwrap()), expected, "{now}");
        }
        let by_tag = Asked { if_range: Some(version().etag), ..asked };
        assert_eq!(by_tag.part_of(&version(), version().modified), Part::Bytes(0..1));
    }

    #[test]
    fn a_client_that_means_another_version_gets_none() {
        let text = |text: &str| Some(text.to_owned());
        for (if_match, unmodified_since, is_meant) in [
            (text("\"a1\""), None, true),
            (text("\"x\", \"a1\""), None, true),
            (text("*"), None, true),
            (text("\"b2\""), None, false),
            (text("W/\"a1\""), None, false),
            (text("\"b2\""), text("Sun, 22 Nov 2026 08:00:00 GMT"), false),
            (text("\"a1\""), text("Fri, 20 Nov 2026 08:00:00 GMT"), true),
            (None, text("Sat, 21 Nov 2026 08:00:00 GMT"), true),
            (None, text("Sun, 22 Nov 2026 08:00:00 GMT"), true),
            (None, text("Sat, 21 Nov 2026 07:59:59 GMT"), false),
            (None, text("Saturday, 21-Nov-26 07:59:59 GMT"), false),
            (None, text("Saturday, 21-Nov-26 08:00:00 GMT"), true),
            (None, text("Sun Nov  1 08:00:00 2026"), false),
            (None, text("Sat Nov 21 08:00:00 2026"), true),
            (None, text("yesterday"), true),
        ] {
            let asked = Asked { if_match, unmodified_since, ..Asked::default() };
            assert_eq!(part_of(&asked), if is_meant { Part::Whole } else { Part::Another }, "{asked:?}");
        }
        // They count before all others.
        let all = Asked {
            if_match: text("\"b2\""),
            none_match: text("\"a1\""),
            range: text("bytes=500-"),
            ..Asked::default()
        };
        assert_eq!(part_of(&all), Part::Another);
        assert_eq!(part_of(&Asked { if_match: text("\"a1\""), ..all }), Part::Unchanged);
    }

    #[test]
    fn the_best_coding_is_taken() {
        let names = |header: &str| accepted(header).into_iter().map(|(name, _)| name).collect::<Vec<_>>();
        assert_eq!(names("gzip, deflate, br, zstd"), ["br", "zstd", "gzip"]);
        assert_eq!(names("br;q=0.5, GZIP"), ["gzip", "br"]);
        assert_eq!(names("gzip;q=0, *"), ["br", "zstd"]);
        assert_eq!(names("identity, gzip;q=0.5"), Vec::<&str>::new());
        assert_eq!(names(""), Vec::<&str>::new());
        assert_eq!(names("gzip;q=x"), Vec::<&str>::new());
    }

    proptest! {
        #[test]
        fn a_part_lies_in_the_file(range in "bytes=[0-9]{0,3}-?[0-9]{0,22}", size in 0_u64..300) {
            if let Part::Bytes(part) = one_range(&range, size) {
                prop_assert!(part.start < part.end && part.end <= size);
            }
        }
    }
}
