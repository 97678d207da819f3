//! The operator API's bearer token: the configured one; or one that is generated once and kept in the store's
//! folder. Only its owner can read that file, and the command line finds it there.

use std::io::{ErrorKind, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use secrecy::{ExposeSecret, SecretString};
use subtle::ConstantTimeEq;

use crate::config::Settings;
use crate::error::{Error, Kind, Result};

/// The file's name in the store's folder.
pub const FILE: &str = "control.token";

/// Returns the server's token: the configured one, the one in the file, or a new one. A file that holds no
/// token, or that cannot be read, is replaced.
///
/// # Errors
/// The store's folder cannot be written.
pub fn load_or_create(settings: &Settings) -> Result<SecretString> {
    if let Some(token) = &settings.control.token {
        return Ok(token.clone());
    }
    let path = token_path(settings);
    match read_token_file(&path) {
        Ok(Some(token)) => {
            restrict_to_owner(&path)?;
            return Ok(token);
        }
        Err(error) if !set_aside(&path, &error) => return Err(error),
        Ok(None) | Err(_) => {}
    }
    create(&settings.store.path, &path)?;
    // Another process may have written the file first: its content counts.
    read_token_file(&path)?.ok_or_else(|| {
        Error::new(
            Kind::Local,
            describe_operation("read", &path),
            "another process has \
            removed it",
        )
    })
}

/// Moves the unusable file aside, to make a new token. Returns whether that was possible.
fn set_aside(path: &Path, why: &Error) -> bool {
    let now = jiff::Timestamp::now().strftime("%Y%m%dT%H%M%S%3f");
    let aside = path.with_extension(format!("token.broken-{now}"));
    let moved = std::fs::rename(path, &aside).is_ok();
    if moved {
        tracing::warn!(
            path = %path.display(),
            aside = %aside.display(),
            "the operator API's token cannot be used ({}): its file is moved aside, and a new token is \
             generated",
            why.cause()
        );
    }
    moved
}

/// Returns the client's token: the configured one, or the one in the server's file.
///
/// # Errors
/// There is no token, or its file cannot be read.
pub fn load(settings: &Settings) -> Result<SecretString> {
    if let Some(token) = &settings.control.token {
        return Ok(token.clone());
    }
    let path = token_path(settings);
    read_token_file(&path)?.ok_or_else(|| {
        Error::config(describe_operation("read", &path), "there is no such file").remedy(
            "run this with the daemon's own configuration and working directory, or set control.token on \
             both sides",
        )
    })
}

/// Where an operator finds the token.
pub(crate) fn describe_place(settings: &Settings) -> String {
    match settings.control.token {
        Some(_) => "control.token in the settings".to_owned(),
        None => format!("in the file {}", token_path(settings).display()),
    }
}

/// Whether the two are equal, compared in constant time.
pub(super) fn is_equal(given: &str, token: &SecretString) -> bool {
    let given = blake3::hash(given.as_bytes());
    let token = blake3::hash(token.expose_secret().as_bytes());
    given.as_bytes().ct_eq(token.as_bytes()).into()
}

fn token_path(settings: &Settings) -> PathBuf {
    settings.store.path.join(FILE)
}

fn describe_operation(verb: &str, path: &Path) -> String {
    format!("{verb} the operator API's token {}", path.display())
}

fn read_token_file(path: &Path) -> Result<Option<SecretString>> {
    match std::fs::read_to_string(path) {
        Ok(text) if !is_token(text.trim()) => {
            let cause = "it holds no token: 8 to 200 visible ASCII characters";
            Err(Error::new(Kind::Local, describe_operation("read", path), cause)
                .remedy("start the daemon, which generates a new one"))
        }
        Ok(text) => Ok(Some(SecretString::from(text.trim()))),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) if error.kind() == ErrorKind::NotADirectory => {
            Err(Error::local(describe_operation("read", path), error)
                .remedy("store.path is a file, not a folder: move it away, or set store.path to a folder"))
        }
        Err(error) => Err(Error::local(describe_operation("read", path), error)
            .remedy("run as the user that the daemon runs as, or set control.token")),
    }
}

/// Whether a header can carry the text, and it is long enough for a token.
fn is_token(text: &str) -> bool {
    (8..=200).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic())
}

/// Writes a new token to a temporary file and renames it, unless another process has written one first.
fn create(folder: &Path, path: &Path) -> Result<()> {
    let failed = |error| {
        Error::local(describe_operation("write", path), error)
            .remedy("make the folder writable for cloud-sync, or set store.path to one that is")
    };
    std::fs::create_dir_all(folder).map_err(failed)?;
    // tempfile creates with mode 0600.
    let mut file = tempfile::NamedTempFile::new_in(folder).map_err(failed)?;
    let token: String = rand::random::<[u8; 32]>()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    writeln!(file, "{token}").map_err(failed)?;
    file.as_file().sync_all().map_err(failed)?;
    match file.persist_noclobber(path) {
        Ok(_) => Ok(()),
        Err(error) if error.error.kind() == ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(failed(error.error)),
    }
}

fn restrict_to_owner(path: &Path) -> Result<()> {
    let failed = |error| Error::local(describe_operation("protect", path), error);
    let mode = std::fs::metadata(path).map_err(failed)?.permissions().mode();
    if mode & 0o077 == 0 {
        return Ok(());
    }
    tracing::warn!(path = %path.display(), "the operator API's token was open to other users");
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::LoadOptions;

    fn settings(folder: &Path, token: Option<&str>) -> Settings {
        let store = ("store.path".to_owned(), folder.display().to_string());
        let token = token.map(|token| ("control.token".to_owned(), token.to_owned()));
        Settings::load(LoadOptions {
            config: None,
            overrides: [store].into_iter().chain(token).collect(),
            env: std::collections::BTreeMap::new(),
            dir: folder.to_owned(),
        })
        .unwrap()
        .settings
    }

    #[test]
    fn a_token_is_generated_once_and_found_again() {
        let dir = tempfile::tempdir().unwrap();
        let settings = settings(&dir.path().join("deep/store"), None);
        assert_eq!(load(&settings).unwrap_err().exit_code(), 2);
        let token = load_or_create(&settings).unwrap();
        assert_eq!(token.expose_secret().len(), 64);
        assert!(is_equal(
            load_or_create(&settings).unwrap().expose_secret(),
            &token
        ));
        assert!(is_equal(load(&settings).unwrap().expose_secret(), &token));
        let mode = std::fs::metadata(token_path(&settings))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_file_that_others_could_read_is_closed() {
        let dir = tempfile::tempdir().unwrap();
        let settings = settings(dir.path(), None);
        std::fs::write(token_path(&settings), "abcdefgh\n").unwrap();
        std::fs::set_permissions(token_path(&settings), std::fs::Permissions::from_mode(0o644)).unwrap();
        assert!(is_equal("abcdefgh", &load_or_create(&settings).unwrap()));
        let mode = std::fs::metadata(token_path(&settings))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn the_configured_token_counts_and_leaves_no_file() {
        let dir = tempfile::tempdir().unwrap();
        let settings = settings(dir.path(), Some("mine"));
        assert!(is_equal("mine", &load_or_create(&settings).unwrap()));
        assert!(!is_equal("min", &load_or_create(&settings).unwrap()));
        assert!(!token_path(&settings).exists());
    }
}
