//! Configurations that a generation of sing-box's OCM service accepts. `tollgate check` accepts each of
//! them, with a warning for what has no effect, except a few that it rejects for a reason.
//!
//! `tests/cases/drop_in.json` lists them: the fields of a service (or a whole configuration), a part
//! of each expected warning, and the reason of a rejection. The warnings of a case without any are
//! about its files alone.

use std::fs;
use std::path::Path;
use std::sync::Mutex;
use std::thread;

use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::config::{CheckOutput, check_text, is_quoted};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DropInCase {
    name: String,
    /// The fields of the only service.
    service: Option<Map<String, Value>>,
    /// The whole file, instead of a service.
    config: Option<Value>,
    /// A part of each warning.
    #[serde(default)]
    warnings: Vec<String>,
    /// A part of the reason why it is rejected.
    refused: Option<String>,
}

impl DropInCase {
    fn text(&self) -> String {
        match (&self.config, &self.service) {
            (Some(config), _) => config.to_string(),
            (None, service) => {
                let mut service = service.clone().unwrap_or_default();
                service.insert("type".to_owned(), json!("ocm"));
                json!({ "services": [service] }).to_string()
            }
        }
    }

    /// Returns what is wrong with the output, if anything is.
    fn failure(&self, output: &CheckOutput) -> Option<String> {
        if is_quoted(&output.stderr) {
            return Some("a secret is quoted".to_owned());
        }
        if let Some(reason) = &self.refused {
            let is_refused = output.code == Some(1) && output.stderr.contains(reason.as_str());
            return (!is_refused).then(|| format!("expected a rejection with {reason:?}"));
        }
        if output.code != Some(0) {
            return Some("expected it to be accepted".to_owned());
        }
        let warnings: Vec<&str> = output
            .stderr
            .lines()
            .filter(|line| !line.contains("cannot read "))
            .collect();
        let missing = self
            .warnings
            .iter()
            .find(|part| !warnings.iter().any(|line| line.contains(part.as_str())));
        if let Some(part) = missing {
            return Some(format!("no warning contains {part:?}"));
        }
        (warnings.len() > self.warnings.len()).then(|| "it has other warnings, too".to_owned())
    }
}

#[test]
fn every_option_of_sing_box_is_accepted_except_for_a_reason() {
    let place = Path::new(env!("CARGO_MANIFEST_DIR")).join("cases/drop_in.json");
    let text = fs::read_to_string(place).expect("the cases can be read");
    let cases: Vec<DropInCase> = serde_json::from_str(&text).expect("the cases are JSON");
    assert!(cases.len() >= 88, "{} cases", cases.len());
    let left = Mutex::new(cases.iter());
    let failures = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                loop {
                    let Some(case) = left.lock().expect("no test panics here").next() else {
                        return;
                    };
                    let output = check_text(case.text());
                    if let Some(failure) = case.failure(&output) {
                        failures
                            .lock()
                            .expect("no test panics here")
                            .push(format!("{}: {failure}\n{}", case.name, output.stderr));
                    }
                }
            });
        }
    });
    let mut failures = failures.into_inner().expect("no test panics here");
    failures.sort();
    assert!(
        failures.is_empty(),
        "{} of {} cases\n\n{}",
        failures.len(),
        cases.len(),
        failures.join("\n")
    );
}
