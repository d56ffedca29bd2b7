//! nginx as a plain reverse proxy: one worker, connections kept alive on both sides, no buffering
//! of answers, no access log; WebSockets as its documentation recommends. The measurement includes
//! its master process.

use std::{
    fs, io,
    net::{SocketAddr, TcpStream},
    path::Path,
    process::Command,
    time::Instant,
};

use super::site::{Forwarder, Running, Site, StartError, free_port};
use crate::process::{Process, ProcessError};

/// nginx allocates all of its connections at the start; more than this would only cost memory.
pub(super) const CONNECTIONS_MAX: usize = 65_536;
/// How often another free port is tried if the first one was taken meanwhile.
const STARTS_MAX: usize = 3;

const NAME: &str = "nginx";

pub(super) async fn start(site: &Site, upstream: SocketAddr) -> Result<Running, StartError> {
    let mut starts = 1;
    loop {
        match start_once(site, upstream).await {
            Err(StartError::Process(ProcessError::EndedEarly { last_words, .. }))
                if last_words.contains("Address already in use") && starts < STARTS_MAX =>
            {
                starts += 1;
            }
            outcome => return outcome,
        }
    }
}

async fn start_once(site: &Site, upstream: SocketAddr) -> Result<Running, StartError> {
    let files = |cause| StartError::Files { name: NAME, cause };
    let program = site
        .nginx
        .as_deref()
        .ok_or_else(|| files(io::ErrorKind::NotFound.into()))?;
    let folder = site.files_of(Forwarder::Nginx.name())?;
    let config = folder.join("nginx.conf");
    let address = free_port().map_err(files)?;
    let plan = NginxPlan {
        folder: &folder,
        address,
        upstream,
        connections: site.connections_max,
    };
    fs::write(
        &config,
        plan.config(&build_options(program).map_err(files)?),
    )
    .map_err(files)?;
    let mut command = Command::new(program);
    // Errors go to standard error, which is kept. `-e` applies to errors before the config is read.
    command
        .arg("-e")
        .arg("stderr")
        .arg("-p")
        .arg(&folder)
        .arg("-c")
        .arg(&config);
    let begun = Instant::now();
    let mut process = Process::start(NAME, command, &folder)?;
    process.ready(|| TcpStream::connect(address).ok()).await?;
    Ok(Running {
        address,
        process,
        ready_after: begun.elapsed(),
    })
}

/// Returns the build options, which `nginx -V` prints.
fn build_options(program: &Path) -> io::Result<String> {
    let output = Command::new(program).arg("-V").output()?;
    Ok(String::from_utf8_lossy(&output.stderr).into_owned())
}

struct NginxPlan<'a> {
    folder: &'a Path,
    address: SocketAddr,
    upstream: SocketAddr,
    connections: usize,
}

impl NginxPlan<'_> {
    fn config(&self, build_options: &str) -> String {
        let Self {
            address,
            upstream,
            connections,
            ..
        } = self;
        let folder = self.folder.display();
        let temporary = self.temporary_folders(build_options);
        let user = user_line();
        format!(
            "{user}daemon off;
worker_processes 1;
worker_rlimit_nofile {connections};
pid {folder}/nginx.pid;
error_log stderr warn;
events {{ worker_connections {connections}; }}
http {{
    access_log off;
    map $http_upgrade $connection_field {{
        default upgrade;
        \"\" \"\";
    }}
{temporary}    keepalive_timeout 600s;
    keepalive_requests 100000000;
    upstream bench {{
        server {upstream};
        keepalive 64;
        keepalive_requests 100000000;
        keepalive_timeout 600s;
    }}
    server {{
        listen {address} backlog=1024;
        location / {{
            proxy_pass http://bench;
            proxy_http_version 1.1;
            proxy_set_header Upgrade $http_upgrade;
            proxy_set_header Connection $connection_field;
            proxy_buffering off;
            proxy_read_timeout 600s;
        }}
    }}
}}
"
        )
    }

    /// nginx creates the folder of every module, used or not; on Debian they belong to root.
    fn temporary_folders(&self, build_options: &str) -> String {
        ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .into_iter()
            .filter(|module| !build_options.contains(&format!("--without-http_{module}_module")))
            .map(|module| {
                format!(
                    "    {module}_temp_path {}/{module};\n",
                    self.folder.display()
                )
            })
            .collect()
    }
}

/// As root, a worker would become `www-data` and could not read the folder of the run.
fn user_line() -> &'static str {
    // SAFETY: geteuid() only reads and cannot fail.
    match unsafe { libc::geteuid() } {
        0 => "user root;\n",
        _ => "",
    }
}
