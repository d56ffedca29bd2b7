//! The tour itself: each step, its expected result, and its output.
//! Invariant: nothing is printed that was not checked.

use scripted_upstream::Reply;

use crate::gateway::Gateway;
use crate::ledger::Ledger;
use crate::outcome::Outcome;
use crate::scene::{Credential, Scene, USERS};
use crate::table;
use crate::visitor::{Session, Turn, Visitor};

const SESSIONS_PER_USER: usize = 3;
const MODELS: [&str; 2] = ["gpt-5.3-codex", "gpt-5.4"];
const NANOUSD_PER_USD: f64 = 1e9;

/// A session, and the credential that answered each of its turns.
struct Visit {
    session: Session,
    served_by: Vec<&'static str>,
}

/// Runs the whole tour.
pub(crate) async fn guide(scene: &Scene, gateway: &Gateway) -> Outcome<()> {
    println!(
        "Tollgate demo: one gateway, three accounts, two users. Nothing leaves this machine.\n"
    );
    println!("   gateway    {}", gateway.url);
    println!("   upstream   {} (scripted)\n", scene.upstream.api_url());
    show_accounts(scene);
    let visitor = Visitor::new(&gateway.url);
    let visits = show_sessions(scene, &visitor).await?;
    let turns_after_limit = show_limit(scene, &visitor, &visits).await?;
    let turns = visits
        .iter()
        .map(|visit| visit.served_by.len())
        .sum::<usize>()
        + turns_after_limit;
    show_usage(scene, gateway, turns).await
}

/// The lines that point Codex at the gateway.
pub(crate) fn tell_how_to_join(gateway: &Gateway) {
    let user = USERS[0];
    println!(
        "The gateway stays up. To use it as {}, put this into Codex's config.toml:\n",
        user.name
    );
    println!("model_provider = \"tollgate\"\n");
    println!("[model_providers.tollgate]");
    println!("name = \"Tollgate\"");
    println!("base_url = \"{}/v1\"", gateway.url);
    println!("wire_api = \"responses\"");
    println!("supports_websockets = true");
    println!("experimental_bearer_token = \"{}\"\n", user.token);
    println!("Upstream is scripted, so the model only ever says \"tick\". Ctrl-C ends the demo.");
}

fn show_accounts(scene: &Scene) {
    println!("1. Three accounts of different standing, one pool (least_used)\n");
    let rows = scene.credentials.iter().map(|credential| {
        let standing = credential.account.standing();
        let used = |percent: f64| format!("{percent:>3} % used");
        let windows = [
            used(standing.five_hour.used_percent),
            used(standing.weekly.used_percent),
        ];
        [
            vec![credential.tag.to_owned(), standing.plan],
            windows.to_vec(),
        ]
        .concat()
    });
    table::print(
        &["credential", "plan", "5-hour window", "weekly window"],
        &rows.collect::<Vec<_>>(),
    );
}

async fn show_sessions(scene: &Scene, visitor: &Visitor) -> Outcome<Vec<Visit>> {
    println!("2. Six sessions of two turns each, over SSE as Codex sends them\n");
    let mut visits: Vec<Visit> = sessions()
        .map(|session| Visit {
            session,
            served_by: Vec::new(),
        })
        .collect();
    let mut tokens = vec![(0, 0); visits.len()];
    for says in ["What does this crate do?", "And where does it begin?"] {
        for (visit, (input, output)) in visits.iter_mut().zip(&mut tokens) {
            let turn = visitor.send(&visit.session, says).await?;
            visit.served_by.push(the_one_server(scene, &visit.session)?);
            *input += turn.input_tokens;
            *output += turn.output_tokens;
        }
    }
    if let Some(strayed) = visits
        .iter()
        .find(|visit| visit.served_by[0] != visit.served_by[1])
    {
        let (name, [first, second]) = (
            &strayed.session.name,
            [strayed.served_by[0], strayed.served_by[1]],
        );
        return Err(format!(
            "session {name}: expected its second turn on {first:?}, found {second:?}"
        ));
    }
    let rows = visits.iter().zip(&tokens).map(|(visit, (input, output))| {
        let session = &visit.session;
        let who = [session.user.name, session.name.as_str(), session.model].map(str::to_owned);
        let what = [
            visit.served_by[0].to_owned(),
            visit.served_by[1].to_owned(),
            input.to_string(),
            output.to_string(),
        ];
        [who.to_vec(), what.to_vec()].concat()
    });
    table::print(
        &[
            "user", "session", "model", "turn 1", "turn 2", "input", "output",
        ],
        &rows.collect::<Vec<_>>(),
    );
    println!("   Every session stayed on the credential that it began with. Upstream now says:\n");
    let rows = scene.credentials.iter().map(|credential| {
        let served = visits
            .iter()
            .filter(|visit| visit.served_by[0] == credential.tag)
            .count();
        let weekly = credential.account.standing().weekly.used_percent;
        vec![
            credential.tag.to_owned(),
            served.to_string(),
            format!("{weekly:>3} % used"),
        ]
    });
    table::print(
        &["credential", "sessions", "weekly window"],
        &rows.collect::<Vec<_>>(),
    );
    Ok(visits)
}

/// Returns how many turns it sent.
async fn show_limit(scene: &Scene, visitor: &Visitor, visits: &[Visit]) -> Outcome<usize> {
    let (session, holder) = the_limited(scene, visits)?;
    let (tag, name) = (holder.tag, &session.name);
    println!("3. {tag} runs out in the middle of session {name}\n");
    use_up(holder);
    let before = servers(scene, session)?.len();
    let moved = visitor.send(session, "Go on.").await?;
    let path = servers(scene, session)?.split_off(before);
    let [first, .., last] = path[..] else {
        return Err(format!(
            "session {name}: expected upstream to see two attempts after the limit, found {path:?}"
        ));
    };
    if first != tag || last == tag {
        return Err(format!(
            "session {name}: expected it to move from {tag:?} to another, found {path:?}"
        ));
    }
    let next = visitor.send(session, "Thanks.").await?;
    let path_of_next = servers(scene, session)?.split_off(before + path.len());
    if path_of_next.is_empty() || path_of_next.contains(&tag) {
        return Err(format!(
            "session {name}: expected {tag:?} to receive no more requests, found {path_of_next:?}"
        ));
    }
    println!("   {tag:<9} 429 usage_limit_reached");
    println!("   {last:<9} 200, for the same request sent again");
    println!("   {:<9} saw 200 and a whole stream\n", session.user.name);
    println!("   The ledger has:\n");
    let rows = [
        row(scene, "turn 3", &moved, &path)?,
        row(scene, "turn 4", &next, &path_of_next)?,
    ];
    table::print(
        &[
            "session",
            "turn",
            "upstream saw",
            "served by",
            "status",
            "end",
            "attempts",
        ],
        &rows.map(|row| [vec![name.clone()], row].concat()),
    );
    Ok(2)
}

/// Makes the account report that its 5-hour window is used up, in headers and by a 429.
fn use_up(holder: &Credential) {
    let standing = holder.account.standing().five_hour_used(100.0);
    let resets_at = standing.five_hour.resets_at;
    holder.account.set_standing(standing);
    holder
        .account
        .always(Reply::usage_limit_reached().resets_at(resets_at));
}

/// Returns a session and its credential: the one nearly used up, if it has a session.
fn the_limited<'a>(
    scene: &'a Scene,
    visits: &'a [Visit],
) -> Outcome<(&'a Session, &'a Credential)> {
    let used = |credential: &Credential| credential.account.standing().five_hour.used_percent;
    let mut credentials: Vec<&Credential> = scene.credentials.iter().collect();
    credentials.sort_by(|a, b| used(b).total_cmp(&used(a)));
    let held = credentials.into_iter().find_map(|credential| {
        let visit = visits
            .iter()
            .find(|visit| visit.served_by.last() == Some(&credential.tag))?;
        Some((&visit.session, credential))
    });
    held.ok_or_else(|| "expected a session on some credential, found none".to_owned())
}

/// Returns a line of the table of attempts, checked against the ledger's row.
fn row(scene: &Scene, name: &str, turn: &Turn, path: &[&str]) -> Outcome<Vec<String>> {
    let row = Ledger::open(&scene.ledger_path())?.row_of(&turn.response_id)?;
    let expected = (
        path.last().copied().unwrap_or_default(),
        200,
        "complete",
        path.len() as u64,
    );
    let found = (
        row.credential.as_str(),
        row.status,
        row.end.as_str(),
        row.attempts,
    );
    if found != expected {
        return Err(format!(
            "ledger: {name}: expected (credential, status, end, attempts) {expected:?}, found {found:?}"
        ));
    }
    Ok(vec![
        name.to_owned(),
        path.join(", then "),
        row.credential,
        row.status.to_string(),
        row.end,
        row.attempts.to_string(),
    ])
}

async fn show_usage(scene: &Scene, gateway: &Gateway, turns: usize) -> Outcome<()> {
    println!("4. Tokens and cost\n");
    let served = scene
        .credentials
        .iter()
        .filter(|credential| has_served(scene, credential))
        .map(|found| found.tag);
    for (by, names) in [
        ("user", USERS.map(|user| user.name).to_vec()),
        ("credential", served.collect()),
    ] {
        println!("   $ tollgate usage --by {by}\n");
        let printed = gateway.usage(&scene.config_path(), by).await?;
        if let Some(missing) = names.iter().find(|name| !printed.contains(**name)) {
            return Err(format!(
                "tollgate usage --by {by}: expected a line for {missing:?}, found:\n{printed}"
            ));
        }
        table::print_quoted(&printed);
    }
    let totals = Ledger::open(&scene.ledger_path())?.totals()?;
    if (usize::try_from(totals.rows), totals.unpriced) != (Ok(turns), 0) || totals.cost_nanousd <= 0
    {
        let (rows, unpriced, cost) = (totals.rows, totals.unpriced, totals.cost_nanousd);
        return Err(format!(
            "ledger: expected {turns} rows, all priced, found {rows} of which {unpriced} unpriced, {cost} nano-dollars"
        ));
    }
    let usd = totals.cost_nanousd as f64 / NANOUSD_PER_USD;
    println!(
        "   {turns} turns, {} rows in the ledger, {usd:.6} USD in all.\n",
        totals.rows
    );
    Ok(())
}

/// Returns `true` if it has a row in the ledger. The used-up one has, too: a session used it
/// before.
fn has_served(scene: &Scene, credential: &Credential) -> bool {
    scene
        .upstream
        .turns()
        .iter()
        .any(|turn| turn.account.as_deref() == Some(credential.account.id()))
}

fn sessions() -> impl Iterator<Item = Session> {
    let turns = (0..SESSIONS_PER_USER).flat_map(|round| USERS.map(|user| (round, user)));
    turns.enumerate().map(|(index, (round, user))| Session {
        user,
        name: format!("{}-{}", user.name, round + 1),
        id: format!("0198c0de-0000-7000-8000-{:012x}", index + 1),
        model: MODELS[index % MODELS.len()],
    })
}

/// Returns the credentials with which upstream saw this session's requests, in order.
fn servers(scene: &Scene, session: &Session) -> Outcome<Vec<&'static str>> {
    let turns = scene.upstream.turns();
    let own = turns
        .iter()
        .filter(|turn| turn.header("session-id") == Some(session.id.as_str()));
    own.map(|turn| {
        let account = turn.account.as_deref();
        account
            .and_then(|id| scene.tag_of(id))
            .ok_or_else(|| format!("upstream saw a request of account {account:?}"))
    })
    .collect()
}

/// Returns the credential of the session's latest request.
fn the_one_server(scene: &Scene, session: &Session) -> Outcome<&'static str> {
    let servers = servers(scene, session)?;
    servers
        .last()
        .copied()
        .ok_or_else(|| format!("session {}: upstream saw no request of it", session.name))
}
