//! A rewriter that fails in the way its configuration selects. Calls of the self-test, whose
//! request names no service, succeed.

use schemars::JsonSchema;
use serde::Deserialize;
use tollgate_policy::{Edit, Headers, Level, Refusal, Request, Rewriter, log};

/// The fault to commit.
#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
enum Fault {
    Panic,
    Reserved,
    NewLine,
    Huge,
    Many,
    Refuse,
    RefuseWith200,
    Response,
    Spy,
    ApiKey,
    AuthToken,
    HopByHop,
    LogFlood,
    StdoutFlood,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Config {
    fault: Fault,
}

struct FaultyRewriter(Fault);

impl Rewriter for FaultyRewriter {
    type Config = Config;

    const STRINGS: &'static [&'static str] = &["service"];

    const REQUEST_HEADERS: &'static [&'static str] = &["*"];
    const RESPONSE_HEADERS: &'static [&'static str] = &["*"];

    fn new(config: Config) -> Result<Self, String> {
        Ok(Self(config.fault))
    }

    fn request(&self, request: &Request, headers: &Headers) -> Result<Vec<Edit>, Refusal> {
        if request.string(0).is_empty() {
            return Ok(Vec::new());
        }
        match self.0 {
            Fault::Panic => panic!("the guest's panic message"),
            // The first edit is valid: the host must apply none of them.
            Fault::Reserved => Ok(vec![
                Edit::set_to("x-good", "1"),
                Edit::set_to("authorization", "Bearer mine"),
            ]),
            Fault::NewLine => Ok(vec![Edit::set_to("x-split", "a\r\nb: c")]),
            Fault::Huge => Ok(vec![Edit::set_to("x-huge", "x".repeat(100_000))]),
            Fault::Many => Ok((0..1000)
                .map(|number| Edit::set_to(format!("x-{number}"), "1"))
                .collect()),
            Fault::Refuse => Err(Refusal {
                status: 418,
                message: "refused by the guest".to_owned(),
            }),
            Fault::RefuseWith200 => Err(Refusal {
                status: 200,
                message: "fine".to_owned(),
            }),
            Fault::ApiKey => Ok(vec![
                Edit::set_to("x-good", "1"),
                Edit::set_to("x-api-key", "mine"),
            ]),
            Fault::AuthToken => Ok(vec![
                Edit::set_to("x-good", "1"),
                Edit::set_to("my-auth-token", "mine"),
            ]),
            Fault::HopByHop => Ok(vec![
                Edit::set_to("x-good", "1"),
                Edit::set_to("transfer-encoding", "chunked"),
            ]),
            Fault::LogFlood => {
                for number in 0..100 {
                    log(Level::Warn, &format!("flood {number} {}", "x".repeat(2000)));
                }
                Ok(Vec::new())
            }
            Fault::StdoutFlood => {
                for number in 0..1000 {
                    println!("flood {number}");
                }
                Ok(Vec::new())
            }
            Fault::Response => Ok(Vec::new()),
            // Reports every field that it receives, for the test to inspect.
            Fault::Spy => {
                let seen: Vec<String> = headers
                    .iter()
                    .map(|(name, value)| format!("{name}={value}"))
                    .collect();
                Ok(vec![Edit::set_to("x-seen", seen.join(";"))])
            }
        }
    }

    fn response(&self, _: &Request, _: u16, headers: &Headers) -> Result<Vec<Edit>, String> {
        match self.0 {
            Fault::Response => Ok(vec![Edit::drop("content-length")]),
            Fault::Spy => {
                let seen: Vec<&str> = headers.iter().map(|(name, _)| name).collect();
                Ok(vec![Edit::set_to("x-seen", seen.join(";"))])
            }
            _ => Ok(Vec::new()),
        }
    }
}

tollgate_policy::export_rewriter!(FaultyRewriter);
