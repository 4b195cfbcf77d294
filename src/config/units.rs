//! Durations (`"30s"`) and sizes (`"512MiB"`): one number and one unit, nothing guessed.

use std::time::Duration;

use super::problem::Fault;
use crate::model::shorten;

const SECOND: u64 = 1_000;
const MINUTE: u64 = 60 * SECOND;
const HOUR: u64 = 60 * MINUTE;
const DAY: u64 = 24 * HOUR;

/// The longest duration that any key takes.
const LONGEST: u64 = 730 * DAY;

/// Units of time in milliseconds, the largest first.
const TIME_UNITS: [(&str, u64); 5] = [("d", DAY), ("h", HOUR), ("m", MINUTE), ("s", SECOND), ("ms", 1)];

/// Units of size in bytes.
const SIZE_UNITS: [(&str, u64); 9] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("TB", 1_000_000_000_000),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("KB", 1_000),
    ("B", 1),
];

/// The largest size that any key takes: 64 TiB.
const LARGEST: u64 = 64 << 40;

/// Reads `"500ms"`, `"30s"`, `"5m"`, `"2h"`, `"1d"`.
pub(super) fn duration(text: &str) -> Result<Duration, Fault> {
    let fault = |why: &str, hint: String| Fault::new(format!(" {why}, got {:?}", shorten(text, 40)), hint);
    if text.trim_start().starts_with('-') {
        return Err(fault("cannot be negative", "write a duration such as \"500ms\", \"30s\" or \"5m\"".to_owned()));
    }
    let (number, unit) = split(text);
    let whole = !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit());
    let factor = TIME_UNITS.iter().find(|(name, _)| *name == unit).map(|(_, factor)| *factor);
    match (whole, factor) {
        (true, Some(factor)) => match number.parse::<u64>().ok().and_then(|n| n.checked_mul(factor)) {
            Some(millis) if millis <= LONGEST => Ok(Duration::from_millis(millis)),
            _ => Err(fault("must be at most 730d", "write a duration such as \"500ms\", \"30s\" or \"5m\"".to_owned())),
        },
        (true, None) if unit.is_empty() => Err(fault(
            "is a duration and needs a unit",
            format!("write \"{0}s\" for {0} seconds or \"{0}m\" for {0} minutes", shorten(number, 20)),
        )),
        (true, None) => {
            let meant = time_unit_meant(unit).map(|meant| format!("write \"{}{meant}\"", shorten(number, 20)));
            let hint = meant.unwrap_or_else(|| "the units are ms, s, m, h and d, as in \"30s\"".to_owned());
            Err(fault("is not a duration", hint))
        }
        (false, _) => {
            Err(fault("is not a duration", "write one whole number and one unit, such as \"90s\"".to_owned()))
        }
    }
}

/// The shortest exact way to write a duration: `90s`, `1d`, `500ms`.
pub(super) fn show_duration(duration: Duration) -> String {
    let millis = duration.as_millis();
    if millis == 0 {
        return "0s".to_owned();
    }
    let exact = TIME_UNITS.iter().find(|(_, factor)| millis.is_multiple_of(u128::from(*factor)));
    let (unit, factor) = exact.copied().unwrap_or(("ms", 1));
    format!("{}{unit}", millis / u128::from(factor))
}

/// Reads `"512MiB"`, `"1.5GiB"`, `"500MB"` into bytes.
pub(super) fn size(text: &str) -> Result<u64, Fault> {
    let fault = |why: &str, hint: String| Fault::new(format!(" {why}, got {:?}", shorten(text, 40)), hint);
    let (number, unit) = split(text);
    let Some(thousandths) = thousandths(number) else {
        return Err(fault("is not a size", "write a number and a unit, such as \"512MiB\"".to_owned()));
    };
    let Some((_, factor)) = SIZE_UNITS.iter().find(|(name, _)| *name == unit) else {
        if unit.is_empty() {
            let hint = format!("write \"{0}MiB\" for {0} mebibytes", shorten(number, 20));
            return Err(fault("is a size and needs a unit", hint));
        }
        let meant = size_unit_meant(unit).map(|meant| format!("write \"{}{meant}\"", shorten(number, 20)));
        return Err(fault(
            "is not a size",
            meant.unwrap_or_else(|| "the units are KiB, MiB, GiB, TiB, KB, MB, GB and TB".to_owned()),
        ));
    };
    match thousandths.checked_mul(u128::from(*factor)).map(|n| n / 1_000) {
        Some(bytes) if bytes <= u128::from(LARGEST) => Ok(u64::try_from(bytes).unwrap_or(LARGEST)),
        _ => Err(fault("must be at most 64TiB", "write a size such as \"512MiB\"".to_owned())),
    }
}

/// Where the number ends and the unit begins.
fn split(text: &str) -> (&str, &str) {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    text.split_at(end)
}

/// A decimal number of at most three places, times 1,000.
fn thousandths(number: &str) -> Option<u128> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    if !digits(whole) || !digits(fraction) || fraction.len() > 3 || whole.len() > 18 {
        return None;
    }
    let whole: u128 = whole.parse().ok()?;
    let fraction: u128 = format!("{fraction:0<3}").parse().ok()?;
    Some(whole * 1_000 + fraction)
}

fn time_unit_meant(unit: &str) -> Option<&'static str> {
    match unit.trim().to_ascii_lowercase().as_str() {
        "ms" | "msec" | "msecs" | "millis" | "millisecond" | "milliseconds" => Some("ms"),
        "s" | "sec" | "secs" | "second" | "seconds" => Some("s"),
        "m" | "min" | "mins" | "minute" | "minutes" => Some("m"),
        "h" | "hr" | "hrs" | "hour" | "hours" => Some("h"),
        "d" | "day" | "days" => Some("d"),
        _ => None,
    }
}

fn size_unit_meant(unit: &str) -> Option<&'static str> {
    match unit.trim().to_ascii_lowercase().as_str() {
        "k" | "ki" | "kb" | "kib" => Some("KiB"),
        "m" | "mi" | "mb" | "mib" => Some("MiB"),
        "g" | "gi" | "gb" | "gib" => Some("GiB"),
        "t" | "ti" | "tb" | "tib" => Some("TiB"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn durations_are_read() {
        let ms = Duration::from_millis;
        for (text, expected) in [("1ms", 1), ("500ms", 500), ("30s", 30_000), ("5m", 300_000), ("2h", 2 * HOUR)] {
            assert_eq!(duration(text), Ok(ms(expected)), "{text}");
        }
        assert_eq!(duration("730d"), Ok(ms(LONGEST)));
        assert_eq!(duration("0s"), Ok(ms(0)));
    }

    #[test]
    fn bad_durations_say_what_to_write() {
        for (text, expected) in [
            ("5", r#" is a duration and needs a unit, got "5" | write "5s" for 5 seconds or "5m" for 5 minutes"#),
            ("5 mins", r#" is not a duration, got "5 mins" | write "5m""#),
            ("5M", r#" is not a duration, got "5M" | write "5m""#),
            ("-1s", r#" cannot be negative, got "-1s" | write a duration such as "500ms", "30s" or "5m""#),
            ("1e9s", r#" is not a duration, got "1e9s" | the units are ms, s, m, h and d, as in "30s""#),
            ("731d", r#" must be at most 730d, got "731d" | write a duration such as "500ms", "30s" or "5m""#),
            ("1.5s", r#" is not a duration, got "1.5s" | write one whole number and one unit, such as "90s""#),
            ("", r#" is not a duration, got "" | write one whole number and one unit, such as "90s""#),
        ] {
            let fault = duration(text).unwrap_err();
            assert_eq!(format!("{} | {}", fault.what, fault.hint.unwrap()), expected);
        }
        assert!(duration("99999999999999999999999s").is_err());
    }

    #[test]
    fn sizes_are_read_or_refused() {
        for (text, expected) in
            [("512MiB", 512 << 20), ("1.5GiB", 1536 << 20), ("10MB", 10_000_000), ("64KiB", 65_536), ("7B", 7)]
        {
            assert_eq!(size(text), Ok(expected), "{text}");
        }
        for (text, expected) in [
            ("512", r#" is a size and needs a unit, got "512" | write "512MiB" for 512 mebibytes"#),
            ("10m", r#" is not a size, got "10m" | write "10MiB""#),
            ("512 MiB", r#" is not a size, got "512 MiB" | write "512MiB""#),
            ("1Gi", r#" is not a size, got "1Gi" | write "1GiB""#),
            ("lots", r#" is not a size, got "lots" | write a number and a unit, such as "512MiB""#),
            ("99999TiB", r#" must be at most 64TiB, got "99999TiB" | write a size such as "512MiB""#),
        ] {
            let fault = size(text).unwrap_err();
            assert_eq!(format!("{} | {}", fault.what, fault.hint.unwrap()), expected);
        }
    }

    proptest! {
        #[test]
        fn a_shown_duration_reads_back(millis in 0..=LONGEST) {
            let shown = show_duration(Duration::from_millis(millis));
            prop_assert_eq!(duration(&shown), Ok(Duration::from_millis(millis)), "{}", shown);
        }

        #[test]
        fn no_text_panics(text in "\\PC{0,30}|[0-9.]{0,40}[a-zA-Z]{0,3}") {
            let _ = duration(&text);
            let _ = size(&text);
        }
    }
}
