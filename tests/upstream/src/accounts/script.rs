//! Scripted replies: the queued ones first, then the standing one. Knows nothing of their content.
//! Invariant: a queued reply is used once.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};

#[derive(Debug)]
pub(crate) struct Script<Line> {
    lines: Mutex<Lines<Line>>,
}

#[derive(Debug)]
struct Lines<Line> {
    queue: VecDeque<Arc<Line>>,
    always: Option<Arc<Line>>,
}

impl<Line> Script<Line> {
    pub(crate) fn push(&self, line: Line) {
        self.lines().queue.push_back(Arc::new(line));
    }

    pub(crate) fn set_always(&self, line: Line) {
        self.lines().always = Some(Arc::new(line));
    }

    pub(crate) fn clear(&self) {
        *self.lines() = Lines::default();
    }

    pub(crate) fn next(&self) -> Option<Arc<Line>> {
        let mut lines = self.lines();
        lines.queue.pop_front().or_else(|| lines.always.clone())
    }

    fn lines(&self) -> MutexGuard<'_, Lines<Line>> {
        self.lines.lock().expect("no holder of the script panics")
    }
}

// Not derived: deriving would require `Default` of the reply.
impl<Line> Default for Script<Line> {
    fn default() -> Self {
        Script {
            lines: Mutex::default(),
        }
    }
}

impl<Line> Default for Lines<Line> {
    fn default() -> Self {
        Lines {
            queue: VecDeque::new(),
            always: None,
        }
    }
}
