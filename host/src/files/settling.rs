//! When a changed file counts as completely written.
//!
//! Owns how often, how far apart and for how long a file that cannot be used is read again: another
//! process may still be writing it. It does not read files and does not wait; the caller does both,
//! in async code or on a thread. Invariant: a file that stays the same is settled after [`READS`]
//! reads, a file that keeps changing after [`UNSETTLED_MAX`].

use std::time::{Duration, Instant};

/// The pause before a file is read again.
const REREAD_PAUSE: Duration = Duration::from_millis(125);

/// Reads that find the same unusable content before the file counts as it is.
const READS: u32 = 5;

/// The longest wait for a file that keeps changing.
const UNSETTLED_MAX: Duration = Duration::from_secs(60);

/// Follows one changed file until it can be used or has settled.
///
/// `V` tells the versions of the file apart, for example a digest. `()` stands for "not known":
/// reads are counted alone.
#[derive(Debug)]
pub(crate) struct FileSettling<V> {
    started: Instant,
    last: Option<V>,
    same_reads: u32,
}

impl<V: PartialEq> FileSettling<V> {
    /// Starts with the file's change.
    pub(crate) fn new() -> Self {
        Self {
            started: Instant::now(),
            last: None,
            same_reads: 0,
        }
    }

    /// Returns the pause after which the file should be read again, or `None` if it has settled.
    ///
    /// The caller has just read `version` of the file and cannot use it.
    pub(crate) fn pause_after(&mut self, version: V) -> Option<Duration> {
        let is_same = self.last.as_ref() == Some(&version);
        self.same_reads = if is_same { self.same_reads + 1 } else { 1 };
        self.last = Some(version);
        let is_settled = self.same_reads >= READS || self.started.elapsed() >= UNSETTLED_MAX;
        (!is_settled).then_some(REREAD_PAUSE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_stays_the_same_settles() {
        let mut settling = FileSettling::new();
        let pauses: Vec<_> = (0..READS).map(|_| settling.pause_after("half")).collect();
        assert_eq!(pauses[..4], [Some(REREAD_PAUSE); 4]);
        assert_eq!(pauses[4], None);
    }

    #[test]
    fn a_file_that_changes_is_read_again() {
        let mut settling = FileSettling::new();
        for length in 0..100 {
            assert_eq!(settling.pause_after(length), Some(REREAD_PAUSE), "{length}");
        }
    }

    #[test]
    fn a_file_that_keeps_changing_settles_in_the_end() {
        let mut settling = FileSettling::new();
        settling.started -= UNSETTLED_MAX;
        assert_eq!(settling.pause_after("changing"), None);
    }
}
