//! Watches the files of policies and their shadows, and sends a command when one may have changed.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use tokio::sync::{Notify, mpsc};
use tokio::task::AbortHandle;

use super::commands::{CommandSender, SupervisorCommand};
use crate::config::{PolicyConfig, PolicySource};
use crate::watch::FileWatcher;

/// The files that are watched, by the tag of their policy.
pub(crate) struct PolicyFiles {
    watcher: FileWatcher,
    /// Weak: watching must not keep the supervisor's queue open.
    commands: mpsc::WeakSender<SupervisorCommand>,
    watched: HashMap<String, WatchedPolicy>,
}

struct WatchedPolicy {
    config: PolicyConfig,
    _tasks: Vec<AbortOnDrop>,
}

struct AbortOnDrop(AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl PolicyFiles {
    pub(crate) fn new(watcher: &FileWatcher, commands: &CommandSender) -> Self {
        Self {
            watcher: watcher.clone(),
            commands: commands.downgrade(),
            watched: HashMap::new(),
        }
    }

    /// Watches the files of `policies` from now on, and no others.
    pub(crate) fn watch_only(&mut self, policies: &[PolicyConfig]) {
        self.watched.retain(|tag, watched| {
            policies
                .iter()
                .any(|policy| policy.tag == *tag && policy.is_equivalent(&watched.config))
        });
        for policy in policies {
            if !self.watched.contains_key(&policy.tag) {
                let watched = self.watch(policy);
                self.watched.insert(policy.tag.clone(), watched);
            }
        }
    }

    fn watch(&self, policy: &PolicyConfig) -> WatchedPolicy {
        let mut tasks = Vec::new();
        if let PolicySource::File(path) = &policy.source {
            let tag = policy.tag.clone();
            tasks.push(
                self.send_on_change(path, move || SupervisorCommand::PolicyFileChanged {
                    tag: tag.clone(),
                }),
            );
        }
        if let Some(path) = &policy.shadow {
            let tag = policy.tag.clone();
            tasks.push(
                self.send_on_change(path, move || SupervisorCommand::ShadowFileChanged {
                    tag: tag.clone(),
                }),
            );
        }
        WatchedPolicy {
            config: policy.clone(),
            _tasks: tasks,
        }
    }

    fn send_on_change(
        &self,
        path: &Path,
        command: impl Fn() -> SupervisorCommand + Send + 'static,
    ) -> AbortOnDrop {
        let changed = Arc::new(Notify::new());
        self.watcher.watch(path, &changed);
        let commands = self.commands.clone();
        let task = tokio::spawn(async move {
            loop {
                changed.notified().await;
                let Some(commands) = commands.upgrade() else {
                    return;
                };
                if commands.send(command()).await.is_err() {
                    return;
                }
            }
        });
        AbortOnDrop(task.abort_handle())
    }
}
