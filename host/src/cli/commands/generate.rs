//! `tollgate completions` and `tollgate man`: files that are generated from the command line itself,
//! so that they name the commands and options that this binary has.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use clap::Command;
use clap_complete::{Shell, generate};

use crate::cli::error::CommandFailure;
use crate::cli::output::print;
use crate::files::io_reason;

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct CompletionsArgs {
    /// The shell that is to complete commands.
    shell: Shell,
}

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct ManArgs {
    /// The folder to write the pages to, such as /usr/local/share/man/man1. It is created if it
    /// does not exist.
    folder: PathBuf,
}

pub(in crate::cli) fn completions(
    args: &CompletionsArgs,
    command: Command,
) -> Result<(), CommandFailure> {
    let name = command.get_name().to_owned();
    let mut command = without_hidden(&command);
    let mut script = Vec::new();
    generate(args.shell, &mut command, name, &mut script);
    print(String::from_utf8_lossy(&script).trim_end())
}

pub(in crate::cli) fn man(args: &ManArgs, command: Command) -> Result<(), CommandFailure> {
    let folder = &args.folder;
    fs::create_dir_all(folder)
        .and_then(|()| clap_mangen::generate_to(command, folder))
        .map_err(|error| failure(folder, &error))?;
    print(&format!("{}: pages written", folder.display()))
}

/// Returns a command with the visible subcommands of `command`: some shells would complete the
/// hidden ones, too.
fn without_hidden(command: &Command) -> Command {
    let visible = command.get_subcommands().filter(|part| !part.is_hide_set());
    Command::new(env!("CARGO_PKG_NAME"))
        .version(env!("CARGO_PKG_VERSION"))
        .args(command.get_arguments().cloned())
        .subcommands(visible.cloned())
}

fn failure(folder: &Path, error: &io::Error) -> CommandFailure {
    format!("cannot write to {}: {}", folder.display(), io_reason(error)).into()
}
