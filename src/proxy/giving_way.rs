//! Long work that gives way to requests every few steps, on a processor that it shares with them.
//!
//! A thread that a request has woken waits until the scheduler takes the processor from the one that has it, which may be
//! some milliseconds later. Asked by that thread itself, it does so at once; with nobody waiting that is one system call
//! of a third of a microsecond.

use std::fmt;
use std::marker::PhantomData;
use std::thread;

use serde::de::{SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Routes between two pauses: some tens of microseconds.
const AT_ONCE: usize = 32;

/// The same things one after another.
pub fn each<I: IntoIterator>(things: I) -> impl Iterator<Item = I::Item> {
    things.into_iter().enumerate().map(|(place, thing)| {
        if place % AT_ONCE == AT_ONCE - 1 {
            thread::yield_now();
        }
        thing
    })
}

/// For serde's `with`.
pub fn serialize<T: Serialize, S: Serializer>(things: &[T], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(each(things))
}

/// For serde's `with`.
pub fn deserialize<'de, T: Deserialize<'de>, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<T>, D::Error> {
    deserializer.deserialize_seq(Things(PhantomData))
}

struct Things<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for Things<T> {
    type Value = Vec<T>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a sequence")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<Vec<T>, A::Error> {
        each(std::iter::from_fn(|| sequence.next_element().transpose())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_lost_or_moved_by_a_pause() {
        #[derive(Debug, PartialEq, Serialize, Deserialize)]
        struct Numbers(#[serde(with = "super")] Vec<usize>);

        for length in [0, 1, AT_ONCE - 1, AT_ONCE, AT_ONCE + 1, 5 * AT_ONCE] {
            let numbers: Vec<usize> = (0..length).collect();
            assert_eq!(each(&numbers).copied().collect::<Vec<_>>(), numbers);
            let text = serde_json::to_string(&Numbers(numbers.clone())).unwrap();
            assert_eq!(text, serde_json::to_string(&numbers).unwrap());
            assert_eq!(serde_json::from_str::<Numbers>(&text).unwrap().0, numbers);
        }
        let wrong = serde_json::from_str::<Numbers>("[1, true]").unwrap_err().to_string();
        assert!(wrong.contains("invalid type: boolean `true`, expected usize"), "{wrong}");
    }
}
