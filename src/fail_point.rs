//! Points at which a test has something go wrong: compiled in only with the feature `fail-points`.
//!
//! `LONGSHORE_FAIL_POINT=journal:17=crash` ends the process as `kill -9` would when the point `journal` is reached for
//! the 17th time since the start. `hang` stops the thread that reached it, `error` has the act fail there.

#[cfg(not(feature = "fail-points"))]
use std::time::Duration;

/// Why an act failed that a test wants to fail.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the fail point {0} was reached")]
pub struct Struck(pub &'static str);

/// A point that may be told to fail.
#[cfg(not(feature = "fail-points"))]
#[inline(always)]
pub fn reach(_point: &'static str) -> Result<(), Struck> {
    Ok(())
}

/// A deadline, which a test that waits for it may shorten to a twentieth with `LONGSHORE_HURRY=1`.
#[cfg(not(feature = "fail-points"))]
#[inline(always)]
pub fn hurried(deadline: Duration) -> Duration {
    deadline
}

#[cfg(feature = "fail-points")]
pub use armed::{hurried, reach};

#[cfg(feature = "fail-points")]
mod armed {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use std::time::Duration;

    use super::Struck;

    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    enum Fault {
        Crash,
        Hang,
        Error,
    }

    struct Armed {
        point: String,
        at: usize,
        fault: Fault,
        reached: AtomicUsize,
    }

    /// A point that may be told to fail.
    pub fn reach(point: &'static str) -> Result<(), Struck> {
        static ARMED: OnceLock<Option<Armed>> = OnceLock::new();
        let wanted = ARMED.get_or_init(|| parse(&std::env::var("LONGSHORE_FAIL_POINT").unwrap_or_default()));
        let Some(armed) = wanted.as_ref().filter(|armed| armed.point == point) else { return Ok(()) };
        if armed.reached.fetch_add(1, Ordering::SeqCst) + 1 != armed.at {
            return Ok(());
        }
        // Before it strikes, for the test that waits for it: a crash leaves no time afterwards.
        eprintln!("fail point {point}:{} struck", armed.at);
        match armed.fault {
            Fault::Crash => std::process::abort(),
            Fault::Hang => loop {
                std::thread::park();
            },
            Fault::Error => Err(Struck(point)),
        }
    }

    /// A deadline, which a test that waits for it may shorten to a twentieth with `LONGSHORE_HURRY=1`.
    pub fn hurried(deadline: Duration) -> Duration {
        static HURRY: OnceLock<bool> = OnceLock::new();
        let hurry = *HURRY.get_or_init(|| std::env::var_os("LONGSHORE_HURRY").is_some());
        if hurry { deadline / 20 } else { deadline }
    }

    fn parse(text: &str) -> Option<Armed> {
        let (point, rest) = text.split_once(':')?;
        let (at, fault) = rest.split_once('=')?;
        let fault = match fault {
            "crash" => Fault::Crash,
            "hang" => Fault::Hang,
            "error" => Fault::Error,
            _ => return None,
        };
        Some(Armed { point: point.to_owned(), at: at.parse().ok()?, fault, reached: AtomicUsize::new(0) })
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn a_point_is_armed_by_its_name_count_and_fault() {
            let armed = parse("journal:17=hang").unwrap();
            assert_eq!((armed.point.as_str(), armed.at, armed.fault), ("journal", 17, Fault::Hang));
            assert!(["", "journal", "journal:x=crash", "journal:1=explode"].iter().all(|text| parse(text).is_none()));
        }
    }
}
