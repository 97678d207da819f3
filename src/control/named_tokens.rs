//! Tokens with names, of people and programs: read-only or admin, made and revoked one by one. They are in a
//! file of the store's folder that only its owner can read, as hashes. The single token ([`super::token`]) goes
//! on besides them.
//!
//! The running daemon reads the file again when it has changed. If it cannot be read, what was read before
//! counts no more: a token that may be revoked is not obeyed.

use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use subtle::ConstantTimeEq;

use crate::config::Settings;
use crate::error::{Error, Kind, Result};

/// The file's name in the store's folder.
const FILE: &str = "control.tokens.json";

/// What each token begins with, so that it is known for what it is where it is found.
const PREFIX: &str = "cst_";

/// The longest name of a token, in characters.
const LONGEST_NAME: usize = 64;

/// What a token may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Access {
    /// See everything, and change nothing.
    ReadOnly,
    /// Everything.
    Admin,
}

impl Access {
    /// Its name.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::ReadOnly => "read-only",
            Self::Admin => "admin",
        }
    }
}

/// A token, as it is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct NamedToken {
    /// Whose it is.
    pub name: String,
    /// What it may do.
    pub access: Access,
    /// When it was made.
    pub created_at: Timestamp,
    /// The hash of the token, blake3 in hexadecimal.
    hash: String,
}

/// The tokens of a store's folder.
pub(crate) struct NamedTokens {
    path: PathBuf,
    read: Mutex<(Option<TokensFileState>, Vec<NamedToken>)>,
}

/// Which state of the file was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct TokensFileState {
    modified: SystemTime,
    bytes: u64,
    inode: u64,
}

impl NamedTokens {
    /// The tokens of the daemon that these settings describe.
    pub(crate) fn of(settings: &Settings) -> Self {
        Self {
            path: settings.store.path.join(FILE),
            read: Mutex::default(),
        }
    }

    /// All of them, by name.
    ///
    /// # Errors
    /// The file cannot be read.
    pub(crate) fn list(&self) -> Result<Vec<NamedToken>> {
        let text = match std::fs::read_to_string(&self.path) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => {
                return Err(Error::local(self.operation("read"), error)
                    .remedy("run this as the user that the daemon runs as"));
            }
        };
        serde_json::from_str(&text).map_err(|error| {
            Error::new(Kind::Local, self.operation("read"), error.to_string())
                .remedy("remove the file, and make the tokens again")
        })
    }

    /// Makes a token, and returns its text: it is not kept anywhere.
    ///
    /// # Errors
    /// A configuration error if there is one of this name, or the name is none; the folder cannot be written.
    pub(crate) fn create(&self, name: &str, access: Access) -> Result<String> {
        let is_name = |letter: char| letter.is_ascii_alphanumeric() || "-_.@".contains(letter);
        if name.is_empty() || name.len() > LONGEST_NAME || !name.chars().all(is_name) {
            return Err(Error::config(
                format!("make a token for {name:?}"),
                format!("a name has 1 to {LONGEST_NAME} letters, digits, -, _, . and @"),
            ));
        }
        let mut tokens = self.list()?;
        if tokens.iter().any(|token| token.name == name) {
            return Err(
                Error::config(format!("make a token for {name}"), "there is one of this name").remedy(
                    format!("take another name, or run `cloud-sync token revoke {name}` first"),
                ),
            );
        }
        let secret: String = rand::random::<[u8; 32]>()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        let text = format!("{PREFIX}{secret}");
        tokens.push(NamedToken {
            name: name.to_owned(),
            access,
            created_at: Timestamp::now(),
            hash: hash(&text),
        });
        tokens.sort_by(|one, other| one.name.cmp(&other.name));
        self.write(&tokens)?;
        Ok(text)
    }

    /// Revokes the token of this name.
    ///
    /// # Errors
    /// A configuration error if there is none; the file cannot be written.
    pub(crate) fn revoke(&self, name: &str) -> Result<()> {
        let mut tokens = self.list()?;
        let before = tokens.len();
        tokens.retain(|token| token.name != name);
        if tokens.len() == before {
            return Err(Error::config(
                format!("revoke the token of {name}"),
                "there is none of this name",
            )
            .remedy("`cloud-sync token list` lists them"));
        }
        self.write(&tokens)
    }

    /// The token with this text. All are compared, each in constant time.
    pub(super) fn find(&self, given: &str) -> Option<NamedToken> {
        let given = hash(given);
        let mut found = None;
        for token in self.current() {
            if bool::from(token.hash.as_bytes().ct_eq(given.as_bytes())) {
                found = Some(token);
            }
        }
        found
    }

    /// Whether the token is there as it was: neither revoked nor made again.
    pub(super) fn has(&self, token: &NamedToken) -> bool {
        self.current().contains(token)
    }

    /// The tokens as the file has them now.
    fn current(&self) -> Vec<NamedToken> {
        let stamp = stamp(&self.path);
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        if stamp.is_none() {
            *read = (None, Vec::new());
        } else if read.0 != stamp {
            let tokens = self.list().unwrap_or_else(|error| {
                tracing::error!("named tokens are not obeyed: {error}");
                Vec::new()
            });
            *read = (stamp, tokens);
        }
        read.1.clone()
    }

    fn write(&self, tokens: &[NamedToken]) -> Result<()> {
        let failed = |error| {
            Error::local(self.operation("write"), error)
                .remedy("run this as the user that the daemon runs as, with the daemon's own configuration")
        };
        let folder = self.path.parent().unwrap_or(Path::new("."));
        std::fs::create_dir_all(folder).map_err(failed)?;
        // tempfile creates with mode 0600.
        let mut file = tempfile::NamedTempFile::new_in(folder).map_err(failed)?;
        let text = serde_json::to_string_pretty(tokens)
            .map_err(|error| Error::new(Kind::Local, self.operation("write"), error.to_string()))?;
        writeln!(file, "{text}").map_err(failed)?;
        file.as_file().sync_all().map_err(failed)?;
        file.persist(&self.path).map_err(|error| failed(error.error))?;
        Ok(())
    }

    fn operation(&self, verb: &str) -> String {
        format!("{verb} the operator API's named tokens {}", self.path.display())
    }
}

/// Which state the file is in; `None` if there is no file.
fn stamp(path: &Path) -> Option<TokensFileState> {
    use std::os::unix::fs::MetadataExt;
    let about = std::fs::metadata(path).ok()?;
    Some(TokensFileState {
        modified: about.modified().ok()?,
        bytes: about.len(),
        inode: about.ino(),
    })
}

fn hash(text: &str) -> String {
    blake3::hash(text.as_bytes()).to_hex().to_string()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn tokens(folder: &Path) -> NamedTokens {
        NamedTokens {
            path: folder.join("deep").join(FILE),
            read: Mutex::default(),
        }
    }

    #[test]
    fn a_token_is_found_by_its_text_until_it_is_revoked_and_its_text_is_kept_nowhere() {
        let dir = tempfile::tempdir().unwrap();
        // The daemon's side, and the command line's.
        let (daemon, command) = (tokens(dir.path()), tokens(dir.path()));
        assert!(daemon.find("cst_guessed").is_none());
        let anna = command.create("anna", Access::Admin).unwrap();
        let board = command.create("wall-board", Access::ReadOnly).unwrap();
        assert!(anna.starts_with(PREFIX) && anna != board);
        let found = daemon.find(&anna).unwrap();
        assert_eq!((found.name.as_str(), found.access), ("anna", Access::Admin));
        assert_eq!(daemon.find(&board).unwrap().access, Access::ReadOnly);
        let kept = std::fs::read_to_string(&command.path).unwrap();
        assert!(!kept.contains(&anna) && !kept.contains(&anna[PREFIX.len()..]));
        let mode = std::fs::metadata(&command.path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);

        command.revoke("anna").unwrap();
        assert!(daemon.find(&anna).is_none() && !daemon.has(&found));
        assert!(daemon.find(&board).is_some());
        // Made again, it is another one.
        command.create("anna", Access::Admin).unwrap();
        assert!(daemon.find(&anna).is_none() && !daemon.has(&found));
        assert_eq!(command.revoke("nobody").unwrap_err().exit_code(), 2);
    }

    #[test]
    fn a_name_is_taken_once_and_is_a_name() {
        let dir = tempfile::tempdir().unwrap();
        let tokens = tokens(dir.path());
        tokens.create("anna@school", Access::ReadOnly).unwrap();
        for name in ["anna@school", "", "a b", "<script>", &"a".repeat(65)] {
            assert_eq!(
                tokens.create(name, Access::Admin).unwrap_err().exit_code(),
                2,
                "{name}"
            );
        }
        assert_eq!(tokens.list().unwrap().len(), 1);
    }

    #[test]
    fn a_file_that_cannot_be_read_lets_nobody_in() {
        let dir = tempfile::tempdir().unwrap();
        let tokens = tokens(dir.path());
        let anna = tokens.create("anna", Access::Admin).unwrap();
        assert!(tokens.find(&anna).is_some());
        std::fs::write(&tokens.path, "[{").unwrap();
        assert!(tokens.find(&anna).is_none());
        assert!(tokens.create("bert", Access::Admin).is_err());
    }
}
