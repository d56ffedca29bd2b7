//! The scripted upstream as a program: for benchmarks, for the checks with real clients, and for
//! trying the gateway by hand.

mod control;

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use clap::Parser;
use scripted_upstream::{Options, Remember, Reply, SocketReply, Standing, Upstream};
use tokio::signal::unix::{SignalKind, signal};

use control::{Control, SteeredAccount, SteeredLogin};

/// A scripted stand-in for the OpenAI backend, on 127.0.0.1.
#[derive(Debug, Parser)]
struct Arguments {
    /// Port to listen on; 0 takes a free one.
    #[arg(long, default_value_t = 0)]
    port: u16,
    /// Write the port to this file once it listens.
    #[arg(long, value_name = "FILE")]
    port_file: Option<PathBuf>,
    /// An account: TOKEN:ACCOUNT_ID:FIVE_HOUR:WEEKLY[:PLAN], use in percent. May be repeated.
    #[arg(long = "account", value_name = "ACCOUNT")]
    accounts: Vec<NamedAccount>,
    /// An API key and a name for it: KEY:NAME. Its responses have no rate-limit headers. May be
    /// repeated.
    #[arg(long = "api-key", value_name = "API_KEY")]
    api_keys: Vec<NamedKey>,
    /// A login, for an account of this id with nothing used. The control listener scripts it. May
    /// be repeated.
    #[arg(
        long = "login",
        value_name = "ACCOUNT_ID",
        requires = "control_port_file"
    )]
    logins: Vec<String>,
    /// Start the control listener (see `control.rs`), record every request, and write the
    /// listener's port to this file.
    #[arg(long, value_name = "FILE")]
    control_port_file: Option<PathBuf>,
    /// Wait this long between events.
    #[arg(long, value_name = "MS", default_value_t = 0)]
    delay_per_delta: u64,
    /// Deltas in an answer.
    #[arg(long, value_name = "N", default_value_t = 3)]
    deltas: usize,
    /// Bytes of text in a delta.
    #[arg(long, value_name = "N", default_value_t = 5)]
    delta_bytes: usize,
}

#[derive(Clone, Debug)]
struct NamedAccount {
    token: String,
    id: String,
    standing: Standing,
}

impl FromStr for NamedAccount {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let fields: Vec<&str> = text.split(':').collect();
        let (token, id, five_hour, weekly, plan) = match fields[..] {
            [token, id, five_hour, weekly] => (token, id, five_hour, weekly, "plus"),
            [token, id, five_hour, weekly, plan] => (token, id, five_hour, weekly, plan),
            _ => return Err("expected TOKEN:ACCOUNT_ID:FIVE_HOUR:WEEKLY[:PLAN]".to_owned()),
        };
        let standing = Standing::new(plan)
            .five_hour_used(percent(five_hour)?)
            .weekly_used(percent(weekly)?);
        Ok(NamedAccount {
            token: token.to_owned(),
            id: id.to_owned(),
            standing,
        })
    }
}

#[derive(Clone, Debug)]
struct NamedKey {
    key: String,
    name: String,
}

impl FromStr for NamedKey {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (key, name) = text.split_once(':').ok_or("expected KEY:NAME")?;
        Ok(NamedKey {
            key: key.to_owned(),
            name: name.to_owned(),
        })
    }
}

fn percent(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(percent) if (0.0..=100.0).contains(&percent) => Ok(percent),
        Ok(_) | Err(_) => Err(format!("{text:?}: expected a percentage from 0 to 100")),
    }
}

/// Sets what every account answers: events of this number, length and delay.
fn script(upstream: &Upstream, arguments: &Arguments) {
    let mut reply = Reply::ok()
        .deltas(arguments.deltas)
        .delta_bytes(arguments.delta_bytes);
    let mut socket_reply = SocketReply::ok()
        .deltas(arguments.deltas)
        .delta_bytes(arguments.delta_bytes);
    if arguments.delay_per_delta > 0 {
        let delay = Duration::from_millis(arguments.delay_per_delta);
        reply = reply.pause_between(delay);
        socket_reply = socket_reply.pause_between(delay);
    }
    upstream.always(reply);
    upstream.always_socket(socket_reply);
}

/// Creates the accounts, keys and logins of the arguments. Returns them by name, for the control
/// listener.
fn steered(
    upstream: &Upstream,
    arguments: &mut Arguments,
) -> (
    HashMap<String, SteeredAccount>,
    HashMap<String, SteeredLogin>,
) {
    let mut accounts = HashMap::new();
    for NamedAccount {
        token,
        id,
        standing,
    } in arguments.accounts.drain(..)
    {
        let account = upstream.account(&token, &id);
        account.set_standing(standing);
        accounts.insert(id, SteeredAccount::new(account));
    }
    for NamedKey { key, name } in arguments.api_keys.drain(..) {
        let account = upstream.api_key(&key, &name);
        accounts.insert(name, SteeredAccount::new(account));
    }
    let mut logins = HashMap::new();
    for id in arguments.logins.drain(..) {
        let login = upstream.login(&id);
        logins.insert(id, SteeredLogin::new(login));
    }
    (accounts, logins)
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> io::Result<()> {
    let mut arguments = Arguments::parse();
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let remember = if arguments.control_port_file.is_some() {
        Remember::Everything
    } else {
        Remember::Counts
    };
    let upstream = Upstream::start_with(Options {
        port: arguments.port,
        remember,
        tls: None,
    })
    .await?;
    script(&upstream, &arguments);
    let (accounts, logins) = steered(&upstream, &mut arguments);
    if let Some(file) = &arguments.control_port_file {
        write_port(
            file,
            Control {
                upstream: upstream.clone(),
                accounts,
                logins,
            }
            .start()
            .await?,
        )?;
    }
    if let Some(file) = &arguments.port_file {
        write_port(file, upstream.address().port())?;
    }
    // After the port file, so that a reader of these lines finds it written.
    println!("chatgpt {}", upstream.chatgpt_url());
    println!("api     {}", upstream.api_url());
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    upstream.stop().await;
    Ok(())
}

/// Writes by rename, so that a reader sees the whole number or no file.
fn write_port(file: &Path, port: u16) -> io::Result<()> {
    let mut partial = file.as_os_str().to_owned();
    partial.push(".partial");
    std::fs::write(&partial, format!("{port}\n"))?;
    std::fs::rename(&partial, file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_account_is_read_with_and_without_its_plan() {
        let account: NamedAccount = "at:acct:12:30.5:pro".parse().expect("an account");
        assert_eq!(
            (
                account.standing.plan.as_str(),
                account.standing.weekly.used_percent
            ),
            ("pro", 30.5)
        );
        let account: NamedAccount = "at:acct:12:30".parse().expect("an account");
        assert_eq!(account.standing.plan, "plus");
        assert!("at:acct:12:101".parse::<NamedAccount>().is_err());
        assert!("at:acct".parse::<NamedAccount>().is_err());
    }
}
