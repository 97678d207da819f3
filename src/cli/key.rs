//! `key`: makes, lists, rotates and recovers the keys that encrypt columns.

use std::io::Read;
use std::process::ExitCode;

use clap::{Args, Subcommand};
use secrecy::zeroize::Zeroizing;
use serde_json::json;

use super::{Context, SiteFlags, output};
use crate::encryption::key_file::{KeyFile, SiteKey};
use crate::error::{Error, Result};

const EXAMPLES: &str = "\
Examples:
  cloud-sync key create
  cloud-sync key list
  cloud-sync key rotate
  cloud-sync key recover < recovery-code.txt

The keys are in the file that encryption.key_file names. Without them nobody can read what was encrypted: keep each
recovery code on paper, away from this machine.";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct KeyArgs {
    #[command(subcommand)]
    action: KeyAction,
    #[command(flatten)]
    pub(super) site: SiteFlags,
}

#[derive(Debug, Subcommand)]
enum KeyAction {
    /// Make the first key, and print its recovery code: it is shown this once
    Create,
    /// The keys, the newest last: it encrypts, and all of them decrypt
    List,
    /// Make a newer key, which encrypts after the next start of the replicator, and print its recovery code
    Rotate,
    /// Put a key back by its recovery code, which is read from standard input
    Recover,
}

pub(super) fn execute(context: &Context, args: &KeyArgs) -> Result<ExitCode> {
    let path = &context.settings().encryption.key_file;
    match args.action {
        KeyAction::Create => print_new(context, &KeyFile::create(path)?)?,
        KeyAction::Rotate => print_new(context, &KeyFile::rotate(path)?)?,
        KeyAction::List => {
            let file = KeyFile::read(path)?;
            let keys = file.as_ref().map(KeyFile::keys).unwrap_or_default();
            let shown: Vec<_> = keys.iter().map(shown).collect();
            output::print(context.json, &shown, |_| describe(keys))?;
        }
        KeyAction::Recover => {
            let mut code = Zeroizing::new(String::new());
            std::io::stdin()
                .read_to_string(&mut code)
                .map_err(|error| Error::local("read the recovery code from standard input", error))?;
            let file = KeyFile::recover(path, code.trim())?;
            let keys: Vec<_> = file.keys().iter().map(shown).collect();
            output::print(context.json, &keys, |_| describe(file.keys()))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Prints the newest key's id and its recovery code.
fn print_new(context: &Context, file: &KeyFile) -> Result<()> {
    let Some(key) = file.keys().last() else {
        return Ok(());
    };
    let code = Zeroizing::new(key.recovery_code());
    let path = context.settings().encryption.key_file.display().to_string();
    let made = json!({"success": true, "id": key.id, "file": path, "recovery_code": *code});
    output::print(context.json, &made, |_| {
        format!(
            "key {} is in {path}\n\nIts recovery code, which is not shown again:\n\n  {}\n\nWrite it down, and keep it away \
             from this machine. Without the file and the code nobody can read what the key has encrypted.",
            key.id, *code
        )
    })
}

/// A key without its secret.
fn shown(key: &SiteKey) -> serde_json::Value {
    json!({"id": key.id, "created_at": key.created_at})
}

fn describe(keys: &[SiteKey]) -> String {
    if keys.is_empty() {
        return "there is no key; `cloud-sync key create` makes one".to_owned();
    }
    let rows = keys.iter().enumerate().map(|(index, key)| {
        let is_newest = index + 1 == keys.len();
        vec![
            key.id.clone(),
            key.created_at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
            if is_newest {
                "encrypts and decrypts"
            } else {
                "decrypts"
            }
            .to_owned(),
        ]
    });
    output::table(&["key", "made at", "what it does"], rows)
}
