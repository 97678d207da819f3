//! `token`: makes, lists and revokes tokens of the operator API and the page, each with a name.

use std::process::ExitCode;

use clap::{Args, Subcommand};
use serde_json::json;

use super::{Context, SiteFlags, output};
use crate::control::named_tokens::{Access, NamedToken, NamedTokens};
use crate::error::Result;

const EXAMPLES: &str = "\
Examples:
  cloud-sync token create anna
  cloud-sync token create wall-board --read-only
  cloud-sync token list
  cloud-sync token revoke anna

Run it on the daemon's machine, as the daemon's user and with its configuration: the tokens are in the folder of
the store, as hashes. A running daemon obeys at once.";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct TokenArgs {
    #[command(subcommand)]
    action: TokenAction,
    #[command(flatten)]
    pub(super) site: SiteFlags,
}

#[derive(Debug, Subcommand)]
enum TokenAction {
    /// Make a token, and print it: it is shown this once
    Create {
        /// Whose it is
        name: String,
        /// It sees everything, and changes nothing
        #[arg(long)]
        read_only: bool,
    },
    /// The tokens: names, what they may do, and when they were made
    List,
    /// Revoke a token: whoever signed in with it is signed out
    Revoke {
        /// Whose it is
        name: String,
    },
}

pub(super) fn execute(context: &Context, args: TokenArgs) -> Result<ExitCode> {
    let tokens = NamedTokens::of(context.settings());
    match args.action {
        TokenAction::Create { name, read_only } => {
            let access = if read_only {
                Access::ReadOnly
            } else {
                Access::Admin
            };
            let token = tokens.create(&name, access)?;
            let made = json!({"success": true, "name": name, "access": access, "token": token});
            output::print(context.json, &made, |_| token.clone())?;
        }
        TokenAction::List => {
            let all = tokens.list()?;
            let shown: Vec<_> = all.iter().map(shown).collect();
            output::print(context.json, &shown, |_| describe(&all))?;
        }
        TokenAction::Revoke { name } => {
            tokens.revoke(&name)?;
            let revoked = json!({"success": true, "name": name});
            output::print(context.json, &revoked, |_| {
                format!("the token of {name} is revoked")
            })?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// A token without its hash.
fn shown(token: &NamedToken) -> serde_json::Value {
    json!({"name": token.name, "access": token.access, "created_at": token.created_at})
}

fn describe(tokens: &[NamedToken]) -> String {
    if tokens.is_empty() {
        return "there is no token with a name; the single token goes on".to_owned();
    }
    let rows = tokens.iter().map(|token| {
        vec![
            token.name.clone(),
            token.access.word().to_owned(),
            token.created_at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
        ]
    });
    output::table(&["name", "may", "made at"], rows)
}
