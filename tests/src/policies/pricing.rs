//! A gateway whose pricer is a file that the test changes: `own.wasm` in the rig's folder, under
//! the tag `own`.

use std::fs;

use serde_json::{Value, json};

use crate::clients::client::Client;
use crate::gateway::Rig;
use crate::policies::conduct::{Conduct, marked_pricer};

/// The tag of the scenarios' own pricer.
pub const OWN: &str = "own";

impl Rig {
    /// Returns the configuration of a team on one account, whose pricer is the component in
    /// `own.wasm`.
    pub fn priced(&self) -> Value {
        let mut config = self.team(&["a"], json!({}));
        config["services"][0]["pricer"] = json!(OWN);
        config["policies"] =
            json!([{ "tag": OWN, "kind": "pricer", "path": self.path("own.wasm") }]);
        config
    }

    /// Starts that gateway in this process with these limits and a pricer for which everything
    /// costs 1. Returns a client of `alice`.
    pub async fn start_priced(&mut self, limits: Value) -> Client {
        self.write("own.wasm", marked_pricer(1, Conduct::Fine));
        let mut config = self.priced();
        config["limits"] = limits;
        self.start(config).await.token("token-alice")
    }

    /// Replaces `own.wasm` in one step.
    pub fn replace_own(&self, component: &[u8]) {
        self.write("next.wasm", component);
        fs::rename(self.path("next.wasm"), self.path("own.wasm")).expect("a file can be renamed");
    }
}
