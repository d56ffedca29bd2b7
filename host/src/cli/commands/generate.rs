//! `tollgate completions` and `tollgate man`: files that are generated from the command line itself,
//! so that they name the commands and options that this binary has.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use clap::Command;
use clap_complete::{Shell, generate};
use clap_mangen::Man;
use clap_mangen::roff::{Roff, roman};

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
    let mut command = command.disable_help_subcommand(true);
    command.build();
    fs::create_dir_all(folder)
        .and_then(|()| write_pages(&command, &[], folder))
        .map_err(|error| failure(folder, &error))?;
    print(&format!("{}: pages written", folder.display()))
}

/// Writes the pages of `command` and of its visible subcommands. `above` names the pages of the
/// commands that it belongs to, the outermost first.
fn write_pages(command: &Command, above: &[String], folder: &Path) -> io::Result<()> {
    let name = command
        .get_display_name()
        .unwrap_or_else(|| command.get_name());
    fs::write(folder.join(format!("{name}.1")), page(command, above)?)?;
    let mut above = above.to_vec();
    above.push(format!("{name}(1)"));
    for part in command.get_subcommands().filter(|part| !part.is_hide_set()) {
        write_pages(part, &above, folder)?;
    }
    Ok(())
}

fn page(command: &Command, above: &[String]) -> io::Result<Vec<u8>> {
    let mut page = Vec::new();
    Man::new(without_hint(command))
        // Not empty: an empty argument is left out, and the ones after it would take its place.
        .date(" ")
        .source(concat!("tollgate ", env!("CARGO_PKG_VERSION")))
        .render(&mut page)?;
    if !above.is_empty() {
        let mut see_also = Roff::new();
        see_also.control("SH", ["SEE ALSO"]);
        see_also.text([roman(above.join(", "))]);
        page.extend(see_also.to_roff().into_bytes());
    }
    Ok(page)
}

/// Returns `command` with a `--help` that does not mention `-h`: a page has both texts.
fn without_hint(command: &Command) -> Command {
    command.clone().mut_args(|argument| {
        if argument.get_id().as_str() == "help" {
            argument.long_help("Print help")
        } else {
            argument
        }
    })
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
