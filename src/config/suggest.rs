//! What somebody probably meant.

/// Words that other tools use for ours.
const SYNONYMS: [(&str, &str); 17] = [
    ("replica", "instances"),
    ("replicas", "instances"),
    ("scale", "instances"),
    ("count", "instances"),
    ("cmd", "command"),
    ("entrypoint", "command"),
    ("healthcheck", "health"),
    ("health_check", "health"),
    ("repository", "repo"),
    ("git", "repo"),
    ("mem", "memory"),
    ("cpu", "cpus"),
    ("host", "domains"),
    ("hosts", "domains"),
    ("environment", "env"),
    ("mounts", "volumes"),
    ("retries", "failures"),
];

/// The candidate that is closest to what was written, when one is close enough to be worth asking about.
pub(super) fn did_you_mean<'c>(written: &str, candidates: impl IntoIterator<Item = &'c str>) -> Option<&'c str> {
    // A longer text is no slip of the keyboard, and comparing it would take long.
    if written.len() > 64 {
        return None;
    }
    let lower = written.to_lowercase().replace('-', "_");
    let synonym = SYNONYMS.iter().find(|(word, _)| *word == lower).map(|(_, ours)| *ours);
    candidates
        .into_iter()
        .map(|candidate| {
            let begins = candidate.len() >= 4 && (lower.starts_with(candidate) || candidate.starts_with(&lower));
            let distance = match synonym == Some(candidate) || (begins && lower.len() >= 4) {
                true => 0,
                false => strsim::damerau_levenshtein(&lower, &candidate.to_lowercase()),
            };
            (distance, candidate)
        })
        .filter(|(distance, candidate)| *distance <= 1 + candidate.len() / 5 && *distance < candidate.len())
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// A valid name for an app or a service that looks like what was written.
pub(super) fn valid_name(written: &str) -> Option<String> {
    let mut name = String::new();
    for c in written.chars().flat_map(char::to_lowercase) {
        if c.is_ascii_alphanumeric() {
            name.push(c);
        } else if !name.is_empty() && !name.ends_with('-') {
            name.push('-');
        }
    }
    name.truncate(40);
    let name = name.trim_end_matches('-');
    (!name.is_empty()).then(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::AppName;

    #[test]
    fn near_words_are_suggested_and_far_ones_are_not() {
        let keys = ["instances", "command", "port", "env", "domains", "health"];
        for (written, expected) in [
            ("instance", Some("instances")),
            ("replica", Some("instances")),
            ("comand", Some("command")),
            ("Port", Some("port")),
            ("prot", Some("port")),
            ("domain", Some("domains")),
            ("health-check", Some("health")),
            ("domains_list", Some("domains")),
            ("colour", None),
            ("x", None),
        ] {
            assert_eq!(did_you_mean(written, keys), expected, "{written}");
        }
    }

    proptest! {
        #[test]
        fn a_suggested_name_is_valid(text in "\\PC{0,80}") {
            if let Some(name) = valid_name(&text) {
                prop_assert!(name.parse::<AppName>().is_ok(), "{}", name);
            }
        }
    }
}
