//! The buffer that a head is written into before it is sent. Most sends are done at once, so one for each thread nearly
//! always suffices, and connections hold none while they wait.

use std::cell::Cell;
use std::ops::{Deref, DerefMut};

/// More is not kept.
const MOST: usize = 64 << 10;

thread_local! {
    static SPARE: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// A buffer, empty at first. Dropped, it is there for the next one who asks on that thread.
#[derive(Debug)]
pub struct Spare(Vec<u8>);

impl Spare {
    /// The one of this thread, or a new one where that is in use.
    pub fn take() -> Self {
        Self(SPARE.take())
    }
}

impl Drop for Spare {
    fn drop(&mut self) {
        let mut buffer = std::mem::take(&mut self.0);
        if buffer.capacity() <= MOST {
            buffer.clear();
            // A thread that ends has none any more.
            let _ = SPARE.try_with(|spare| spare.set(buffer));
        }
    }
}

impl Deref for Spare {
    type Target = Vec<u8>;

    fn deref(&self) -> &Vec<u8> {
        &self.0
    }
}

impl DerefMut for Spare {
    fn deref_mut(&mut self) -> &mut Vec<u8> {
        &mut self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_is_empty_and_nobody_elses() {
        let mut first = Spare::take();
        first.extend_from_slice(b"first");
        let mut second = Spare::take();
        assert!(second.is_empty());
        second.extend_from_slice(b"second");
        assert_eq!(*first, b"first");
        let kept = first.capacity();
        drop(second);
        drop(first);
        let again = Spare::take();
        assert!(again.is_empty() && again.capacity() == kept, "the last one that was given back");
        drop(again);
        let mut large = Spare::take();
        large.reserve(MOST + 1);
        drop(large);
        assert_eq!(Spare::take().capacity(), 0);
    }
}
