//! `explain`: what an error's code means, and what to do.

use std::process::ExitCode;

use clap::Args;
use serde::Serialize;

use super::output;
use crate::error::{Code, Error, Result};

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  cloud-sync explain CS0301
  cloud-sync explain            lists all codes")]
pub(super) struct ExplainArgs {
    /// The code, as an error shows it.
    code: Option<String>,
}

#[derive(Serialize)]
struct CodeExplanation {
    code: &'static str,
    title: &'static str,
    meaning: &'static str,
    remedy: &'static str,
}

impl From<Code> for CodeExplanation {
    fn from(code: Code) -> Self {
        Self {
            code: code.as_str(),
            title: code.title(),
            meaning: code.meaning(),
            remedy: code.remedy(),
        }
    }
}

/// Explains a code, or lists all.
///
/// # Errors
/// There is no such code.
pub(super) fn execute(args: &ExplainArgs, json: bool) -> Result<ExitCode> {
    explain(args, json).map(|()| ExitCode::SUCCESS)
}

fn explain(args: &ExplainArgs, json: bool) -> Result<()> {
    let Some(text) = &args.code else {
        let all: Vec<CodeExplanation> = Code::ALL.iter().map(|&code| code.into()).collect();
        return output::print(json, &all, |all| {
            let rows = all
                .iter()
                .map(|explanation| vec![explanation.code.to_owned(), explanation.title.to_owned()]);
            output::table(&["code", "what failed"], rows)
        });
    };
    let code = Code::parse(text).ok_or_else(|| {
        Error::config(format!("explain {text}"), "there is no such code")
            .remedy("`cloud-sync explain` lists all codes")
    })?;
    output::print(json, &CodeExplanation::from(code), |explanation| {
        format!(
            "{}: {}\n\n{}\n\nWhat to do: {}",
            explanation.code, explanation.title, explanation.meaning, explanation.remedy
        )
    })
}
