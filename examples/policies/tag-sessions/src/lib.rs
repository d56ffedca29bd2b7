//! An example rewriter: admits only the clients that the operator lists, and adds the user's name
//! to each request.
use schemars::JsonSchema;
use serde::Deserialize;
use tollgate_policy::{Edit, Headers, Refusal, Request, Rewriter};

/// The configuration of `tag-sessions`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Config {
    /// The accepted values of the `originator` field, such as `codex_exec`. An empty list accepts
    /// all.
    #[serde(default)]
    originators: Vec<String>,
}

struct TagSessions {
    originators: Vec<String>,
}

const USER: usize = 0;

impl Rewriter for TagSessions {
    type Config = Config;

    const STRINGS: &'static [&'static str] = &["user"];
    const REQUEST_HEADERS: &'static [&'static str] = &["originator", "user-agent", "session-id"];

    fn new(config: Config) -> Result<Self, String> {
        Ok(Self {
            originators: config.originators,
        })
    }

    fn request(&self, request: &Request, headers: &Headers) -> Result<Vec<Edit>, Refusal> {
        let originator = headers.first("originator").unwrap_or_default();
        if !self.originators.is_empty() && !self.originators.iter().any(|known| known == originator)
        {
            return Err(Refusal {
                status: 403,
                message: format!("client {originator:?} is not allowed by this gateway"),
            });
        }
        Ok(vec![Edit::set_to("x-team-user", request.string(USER))])
    }
}

tollgate_policy::export_rewriter!(TagSessions);

#[cfg(test)]
mod tests {
    use tollgate_policy::{Header, testing::request};

    use super::*;

    fn edits(originators: &[&str], originator: &str) -> Result<usize, u32> {
        let originators = originators.iter().map(|text| (*text).to_owned()).collect();
        let policy = TagSessions::new(Config { originators }).expect("any list is accepted");
        let headers = Headers::new(vec![Header {
            name: "originator".to_owned(),
            value: originator.to_owned(),
        }]);
        policy
            .request(&request().with_strings(["alice"]), &headers)
            .map(|edits| edits.len())
            .map_err(|refusal| refusal.status)
    }

    #[test]
    fn only_listed_clients_are_admitted() {
        assert_eq!(edits(&[], "anything"), Ok(1));
        assert_eq!(edits(&["codex_exec"], "codex_exec"), Ok(1));
        assert_eq!(edits(&["codex_exec"], "curl"), Err(403));
    }
}
