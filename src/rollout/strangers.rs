//! What carries our labels and is no instance that a deployment on record has started: left alone, and told of once. Pure.

use std::collections::BTreeSet;

use crate::model::InstanceId;
use crate::runtime::{Observed, Unknown};

/// One of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stranger {
    /// The runtime's own name for it.
    pub container: String,
    /// Which instance it says that it is, if it does.
    pub instance: Option<InstanceId>,
    /// What is told of it, in words that go on after the instance's name.
    pub what: String,
}

impl Stranger {
    /// Its labels are whole, but name a deployment that is not on record.
    pub fn of_no_deployment(observed: &Observed) -> Self {
        let what = format!(
            "is a container ({}) with this agent's labels, but no deployment on record started it; it is left alone and \
             gets no requests",
            short(&observed.container)
        );
        Self { container: observed.container.clone(), instance: Some(observed.id.clone()), what }
    }

    /// It carries our labels and is no instance.
    pub fn of_no_instance(unknown: &Unknown) -> Self {
        let what = format!(
            "has a container that is none of its instances, {} ({}): it carries this agent's labels, but {}; it is \
             left alone and gets no requests",
            unknown.name,
            short(&unknown.container),
            unknown.wrong
        );
        Self { container: unknown.container.clone(), instance: None, what }
    }
}

/// As the engine's own tools show it.
fn short(container: &str) -> &str {
    container.get(..12).unwrap_or(container)
}

/// Which of those that are there have not been `told` of, and which of those are gone: there may be another one of the same
/// name one day.
pub fn news(
    told: &BTreeSet<String>,
    strangers: Vec<Stranger>,
    there: &BTreeSet<String>,
) -> (Vec<Stranger>, Vec<String>) {
    let new = strangers.into_iter().filter(|stranger| !told.contains(&stranger.container)).collect();
    (new, told.difference(there).cloned().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stranger(container: &str) -> Stranger {
        let wrong = "longshore.instance is missing".into();
        Stranger::of_no_instance(&Unknown { container: container.into(), name: "odd".into(), wrong })
    }

    fn set(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn each_is_told_once_and_forgotten_when_it_is_gone() {
        let (new, gone) = news(&set(&[]), vec![stranger("a"), stranger("b")], &set(&["a", "b", "mine"]));
        assert_eq!((new, gone), (vec![stranger("a"), stranger("b")], vec![]));
        let (new, gone) = news(&set(&["a", "b"]), vec![stranger("b"), stranger("c")], &set(&["b", "c", "mine"]));
        assert_eq!((new, gone), (vec![stranger("c")], vec!["a".to_owned()]));
    }

    #[test]
    fn what_is_told_names_the_container_and_what_is_wrong() {
        let told = stranger("0123456789abcdef").what;
        assert!(told.contains("odd (0123456789ab)") && told.contains("longshore.instance is missing"), "{told}");
    }
}
