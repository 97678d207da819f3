//! `files`: the files that rows name: their states, and why one is not in the cloud.

use std::process::ExitCode;

use clap::{Args, Subcommand, ValueEnum};
use serde::Serialize;

use super::{Context, SiteFlags, output};
use crate::control::Pause;
use crate::error::{Error, Result};
use crate::replicator::connect;
use crate::source::file_list::{self, FileRecord, UploadStatus};
use crate::source::file_state::FileState;
use crate::source::{install, pauses};

const EXAMPLES: &str = "\
Examples:
  cloud-sync files list
  cloud-sync files list --state missing --state failing
  cloud-sync files list --state uploaded --json
  cloud-sync files why leave_slips/2026/a.jpg

Exit code: 1 if a listed file is missing, fails or is refused.";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct FilesArgs {
    #[command(subcommand)]
    pub(super) action: FilesAction,
    #[command(flatten)]
    pub(super) site: SiteFlags,
}

#[derive(Debug, Subcommand)]
pub(super) enum FilesAction {
    /// The files that are not in the cloud, each with the reason
    List {
        /// Only files in this state; several times for several states [default: all but uploaded]
        #[arg(long, value_name = "STATE")]
        state: Vec<FileStateName>,
        /// At most this many, by path
        #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..))]
        limit: u32,
        /// Only files whose paths come after this one, to go on with a long list
        #[arg(long, value_name = "PATH", default_value = "", hide_default_value = true)]
        after: String,
    },
    /// Why one file is not in the cloud, or since when it is there, and which rows name it
    Why {
        /// Its path, as the row names it or below the media root
        path: String,
    },
}

/// A file's state on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum FileStateName {
    /// To be uploaded
    Waiting,
    /// Not taken by the cloud, or not readable; tried again less and less often
    Failing,
    /// Named by a row, and not in the media root
    Missing,
    /// Never opened: outside the media root, or no regular file
    Refused,
    /// Confirmed by the cloud
    Uploaded,
}

impl From<FileStateName> for FileState {
    fn from(name: FileStateName) -> Self {
        match name {
            FileStateName::Waiting => Self::Waiting,
            FileStateName::Failing => Self::Failing,
            FileStateName::Missing => Self::Missing,
            FileStateName::Refused => Self::Refused,
            FileStateName::Uploaded => Self::Uploaded,
        }
    }
}

/// A file and the rows that name it.
#[derive(Serialize)]
struct FileReport {
    #[serde(flatten)]
    file: FileRecord,
    rows: Vec<NamingRow>,
    /// Why no file goes now; null if files go.
    paused: Option<Pause>,
}

#[derive(Serialize)]
struct NamingRow {
    entity: String,
    key: String,
}

pub(super) async fn execute(context: &Context, args: FilesArgs) -> Result<ExitCode> {
    let session = connect(context.settings(), "files").await?;
    let client = session.client();
    if !install::installed(client).await? {
        return Err(install::not_installed());
    }
    match args.action {
        FilesAction::List { state, limit, after } => {
            let states: Vec<FileState> = if state.is_empty() {
                let not_there = FileState::ALL.into_iter();
                not_there.filter(|state| *state != FileState::Uploaded).collect()
            } else {
                state.into_iter().map(FileState::from).collect()
            };
            let files = file_list::list(client, &states, &after, i64::from(limit)).await?;
            let is_full = files.len() == limit as usize;
            output::print(context.json, &files, |files| describe_list(files, is_full))?;
            Ok(exit_code(&files))
        }
        FilesAction::Why { path } => {
            let root = &context.settings().media.root;
            let recorded = crate::media::recorded(root, &path);
            let found = match file_list::find(client, &recorded).await? {
                Some(file) => file,
                None => file_list::find(client, &path).await?.ok_or_else(|| {
                    Error::config(
                        format!("look for the file {path}"),
                        "no row that was sent names it",
                    )
                    .remedy(
                        "write the path as the row has it; `cloud-sync files list` shows what is not in the \
                         cloud. A file of a row that still waits is known once that row is sent",
                    )
                })?,
            };
            let rows = file_list::naming_rows(client, &found.path).await?;
            let rows = rows.into_iter().map(|(entity, key)| NamingRow { entity, key });
            let report = FileReport {
                rows: rows.collect(),
                paused: pauses::read(client).await?.of_files().cloned(),
                file: found,
            };
            output::print(context.json, &report, describe)?;
            Ok(exit_code(std::slice::from_ref(&report.file)))
        }
    }
}

fn exit_code(files: &[FileRecord]) -> ExitCode {
    let fails = |file: &FileRecord| matches!(file.state, "missing" | "failing" | "refused");
    ExitCode::from(u8::from(files.iter().any(fails)))
}

fn describe_list(files: &[FileRecord], is_full: bool) -> String {
    let Some(last) = files.last() else {
        return "no file is in such a state".to_owned();
    };
    let rows = files.iter().map(|file| {
        vec![
            file.state.to_owned(),
            file.size
                .map_or_else(String::new, |size| output::size(size.unsigned_abs())),
            file.next_attempt_seconds.map_or_else(String::new, in_words),
            // A line feed in a name must not begin a line of the list.
            file.path.escape_debug().to_string(),
            [file.reason.clone(), file.upload.as_ref().map(how_far)]
                .into_iter()
                .flatten()
                .collect::<Vec<_>>()
                .join("; "),
        ]
    });
    let mut text = output::table(&["state", "size", "next attempt", "file", "why"], rows);
    if is_full {
        text.push_str(&format!(
            "\n(there may be more: --after {:?} goes on, --limit shows more)",
            last.path
        ));
    }
    text
}

/// How far an upload has come, as far as it was noted.
fn how_far(upload: &UploadStatus) -> String {
    let mut text = format!(
        "{:.0} % is there, {} of {}",
        upload.percent.floor(),
        output::size(upload.bytes_sent.unsigned_abs()),
        output::size(upload.bytes_total.unsigned_abs())
    );
    if let (Some(rate), Some(left)) = (upload.bytes_per_second, upload.seconds_left) {
        text.push_str(&format!(
            ", {}/s, {} left",
            output::size(rate.unsigned_abs()),
            duration(left)
        ));
    }
    text
}

fn duration(seconds: f64) -> String {
    match seconds.ceil() as u64 {
        seconds @ 0..120 => format!("{seconds} s"),
        seconds @ 120..7200 => format!("{} min", seconds / 60),
        seconds => format!("{} h", seconds / 3600),
    }
}

fn in_words(seconds: f64) -> String {
    if seconds <= 0.0 {
        return "now".to_owned();
    }
    format!("in {}", duration(seconds))
}

fn describe(report: &FileReport) -> String {
    let file = &report.file;
    let mut lines = vec![format!("{}: {}", file.path.escape_debug(), sentence(file))];
    if let Some(pause) = report.paused.as_ref().filter(|_| file.state != "uploaded") {
        lines.push(format!(
            "  paused    no file is sent: files are {pause}; `cloud-sync status` says how to resume"
        ));
    }
    if let Some(size) = file.size {
        lines.push(format!("  size      {}", output::size(size.unsigned_abs())));
    }
    if let Some(upload) = &file.upload {
        lines.push(format!("  upload    {}", how_far(upload)));
    }
    if let Some(url) = &file.url {
        lines.push(format!("  url       {url}"));
    }
    if let Some(at) = file.uploaded_at {
        lines.push(format!("  uploaded  {at:.0}"));
    }
    for row in &report.rows {
        lines.push(format!("  row       {} {}", row.entity, row.key));
    }
    lines.join("\n")
}

/// What is so, and what to do.
fn sentence(file: &FileRecord) -> String {
    let reason = file.reason.as_deref().unwrap_or("it is its turn soon");
    let again = file.next_attempt_seconds.map_or_else(String::new, |seconds| {
        format!(" It is tried again {}.", in_words(seconds))
    });
    match file.state {
        "uploaded" => "the cloud has it, and its rows have its URL or get it now.".to_owned(),
        "waiting" if file.upload.is_some() => {
            "a part of it is there; the upload goes on from where it is.".to_owned()
        }
        "waiting" => format!("it waits: {reason}.{again}"),
        "failing" => format!("it fails ({} attempts): {reason}.{again}", file.attempts),
        "missing" => format!(
            "it is missing: {reason}. It is uploaded without help once it is there; check media.root, and what \
             the row names."
        ),
        _ => format!(
            "it is never sent: {reason}. Correct the path in the row, or put the file below the media root; then \
             run `cloud-sync sync --force`."
        ),
    }
}
