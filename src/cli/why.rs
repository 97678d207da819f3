//! `why`: why one row is not in the cloud.

use std::process::ExitCode;

use clap::Args;

use super::{Context, SiteFlags, output};
use crate::control::client::ControlClient;
use crate::control::{InquiryState, RowInquiry};
use crate::error::Result;
use crate::replicator::{inquire, offline_status};

const EXAMPLES: &str = "\
Examples:
  cloud-sync why leaves 42
  cloud-sync why enrolments '{\"student_no\": 7, \"course_code\": \"M1\", \"term\": \"2026\"}'
  cloud-sync why leaves 42 --json
  cloud-sync files why leave_slips/2026/a.jpg      the same of a file

Exit code: 1 if the row waits, is refused, or may have been missed.";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct WhyArgs {
    /// The row's entity
    entity: String,
    /// The row's key: a JSON object, or the value of a key of one column
    key: String,
    #[command(flatten)]
    pub(super) site: SiteFlags,
}

pub(super) async fn execute(context: &Context, args: WhyArgs) -> Result<ExitCode> {
    let settings = context.completed_settings().await?;
    let status = match ControlClient::new(&settings)?.status().await? {
        Some(status) => status,
        None => offline_status(&settings).await?,
    };
    let inquiry = inquire(&settings, &status, &args.entity, &args.key).await?;
    output::print(context.json, &inquiry, describe)?;
    Ok(match inquiry.state {
        InquiryState::Delivered | InquiryState::LeftOut | InquiryState::Absent => ExitCode::SUCCESS,
        InquiryState::Waiting | InquiryState::Refused | InquiryState::Missed => ExitCode::FAILURE,
    })
}

fn describe(inquiry: &RowInquiry) -> String {
    let mut lines = vec![
        format!("row {} of {}", inquiry.key, inquiry.entity),
        String::new(),
    ];
    let facts = inquiry.facts.iter();
    lines.extend(facts.map(|(what, is)| format!("{what:<12} {is}")));
    lines.push(String::new());
    lines.push(capitalised(&inquiry.reason) + ".");
    match (&inquiry.next, inquiry.state) {
        (Some(next), InquiryState::Delivered) => lines.push(format!("To prove it: {next}")),
        (Some(next), _) => lines.push(format!("Next: {next}")),
        (None, _) => lines.push("There is nothing to do.".to_owned()),
    }
    lines.join("\n")
}

fn capitalised(text: &str) -> String {
    let mut letters = text.chars();
    let first = letters.next().map(|first| first.to_uppercase().to_string());
    first.unwrap_or_default() + letters.as_str()
}
