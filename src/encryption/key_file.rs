//! The file with the site's encryption keys, and the recovery code of a key.
//!
//! The file is JSON: `{"version": 1, "keys": [{"id": …, "created_at": …, "key": …}]}`, the newest key last; `key` is 32
//! bytes in base64, `id` the first 8 hexadecimal digits of their SHA-256. Only its owner can read it. A recovery
//! code is the same 32 bytes and 3 bytes of their SHA-256, in base32, in groups of four letters.

use std::io::{ErrorKind, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use secrecy::zeroize::{Zeroize, Zeroizing};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::error::{Error, Kind, Result};

/// The letters of a recovery code: Crockford's base32, without I, L, O and U.
const LETTERS: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";

/// Bytes of a key, and of the check behind it in a recovery code.
const KEY: usize = 32;
const CHECK: usize = 3;

const VERSION: u32 = 1;

/// A key of the site.
#[derive(Clone)]
pub(crate) struct SiteKey {
    /// The first 8 hexadecimal digits of its SHA-256.
    pub(crate) id: String,
    pub(crate) created_at: Timestamp,
    pub(crate) bytes: Zeroizing<[u8; KEY]>,
}

impl SiteKey {
    fn random() -> Self {
        Self::of(Zeroizing::new(rand::random()))
    }

    fn of(bytes: Zeroizing<[u8; KEY]>) -> Self {
        Self {
            id: id_of(&bytes),
            created_at: Timestamp::now(),
            bytes,
        }
    }

    /// Whoever has this code can decrypt what the key has encrypted.
    pub(crate) fn recovery_code(&self) -> String {
        let mut bytes = Zeroizing::new(self.bytes.to_vec());
        bytes.extend_from_slice(&Sha256::digest(*self.bytes)[..CHECK]);
        let (mut letters, mut bits, mut held) = (Vec::new(), 0_u32, 0_u32);
        for &byte in bytes.iter() {
            held = (held << 8 | u32::from(byte)) & 0xffff;
            bits += 8;
            while bits >= 5 {
                bits -= 5;
                letters.push(LETTERS[(held >> bits & 31) as usize]);
            }
        }
        let groups = letters
            .chunks(4)
            .map(|group| String::from_utf8_lossy(group).into_owned());
        groups.collect::<Vec<_>>().join("-")
    }

    /// The key of a recovery code. `None` if it is none: a letter is wrong or missing.
    pub(crate) fn of_recovery_code(code: &str) -> Option<Self> {
        let (mut bytes, mut bits, mut held) = (Zeroizing::new(Vec::new()), 0_u32, 0_u32);
        for letter in code
            .bytes()
            .filter(|letter| !matches!(letter, b'-' | b' ' | b'\n'))
        {
            let letter = match letter.to_ascii_uppercase() {
                b'O' => b'0',
                b'I' | b'L' => b'1',
                letter => letter,
            };
            let value = LETTERS.iter().position(|known| *known == letter)?;
            held = (held << 5 | u32::try_from(value).ok()?) & 0xffff;
            bits += 5;
            if bits >= 8 {
                bits -= 8;
                bytes.push((held >> bits & 0xff) as u8);
            }
        }
        let (key, check) = bytes.split_at_checked(KEY)?;
        let key: Zeroizing<[u8; KEY]> = Zeroizing::new(key.try_into().ok()?);
        (check == &Sha256::digest(*key)[..CHECK]).then(|| Self::of(key))
    }
}

fn id_of(key: &[u8; KEY]) -> String {
    Sha256::digest(key)[..4]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// The keys of a file, the newest last.
#[derive(Clone)]
pub struct KeyFile {
    path: PathBuf,
    keys: Arc<[SiteKey]>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenFile {
    version: u32,
    keys: Vec<WrittenKey>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenKey {
    id: String,
    created_at: Timestamp,
    key: String,
}

impl Drop for WrittenKey {
    fn drop(&mut self) {
        self.key.zeroize();
    }
}

impl KeyFile {
    /// Reads the file; `None` if there is none.
    ///
    /// # Errors
    /// A configuration error: it cannot be read, others can read it, or it is damaged.
    pub(crate) fn read(path: &Path) -> Result<Option<Self>> {
        let operation = || format!("read the encryption keys in {}", path.display());
        let text = match std::fs::read_to_string(path) {
            Ok(text) => Zeroizing::new(text),
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => {
                return Err(Error::config(operation(), error.to_string())
                    .remedy("let the user that cloud-sync runs as read it, or correct encryption.key_file"));
            }
        };
        let mode = std::fs::metadata(path).map(|file| file.permissions().mode());
        if mode.is_ok_and(|mode| mode & 0o077 != 0) {
            return Err(Error::config(operation(), "other users can read or write it")
                .remedy(format!("run `chmod 600 {}`", path.display())));
        }
        let damaged = |why: String| {
            Error::config(operation(), why)
                .remedy("take it from a backup, or run `cloud-sync key recover` with the recovery code")
        };
        let written: WrittenFile = serde_json::from_str(&text).map_err(|error| damaged(error.to_string()))?;
        if written.version != VERSION {
            return Err(damaged(format!(
                "its version is {}, not {VERSION}",
                written.version
            )));
        }
        let keys = written.keys.iter().map(|written| {
            let bytes = STANDARD.decode(written.key.as_bytes()).map(Zeroizing::new).ok();
            let bytes = bytes.and_then(|bytes| <[u8; KEY]>::try_from(bytes.as_slice()).ok());
            let bytes = bytes
                .filter(|bytes| id_of(bytes) == written.id)
                .map(Zeroizing::new);
            Some(SiteKey {
                bytes: bytes?,
                id: written.id.clone(),
                created_at: written.created_at,
            })
        });
        let keys: Option<Arc<[SiteKey]>> = keys.collect();
        match keys {
            Some(keys) if !keys.is_empty() => Ok(Some(Self {
                path: path.to_owned(),
                keys,
            })),
            Some(_) => Err(damaged("it has no key".to_owned())),
            None => Err(damaged("a key in it is damaged".to_owned())),
        }
    }

    /// The keys, the newest last.
    pub(crate) fn keys(&self) -> &[SiteKey] {
        &self.keys
    }

    /// Makes the file, with one new key.
    ///
    /// # Errors
    /// A configuration error if there is one already; the file cannot be written.
    pub(crate) fn create(path: &Path) -> Result<Self> {
        if Self::read(path)?.is_some() {
            return Err(
                Error::config("make an encryption key", format!("{} has one", path.display()))
                    .remedy("run `cloud-sync key rotate` to have a newer key encrypt from now on"),
            );
        }
        Self::write(path, vec![SiteKey::random()])
    }

    /// Adds a new key, which encrypts from now on.
    ///
    /// # Errors
    /// There is no file; it cannot be written.
    pub(crate) fn rotate(path: &Path) -> Result<Self> {
        let Some(file) = Self::read(path)? else {
            return Err(Error::config(
                "make a newer encryption key",
                format!("there is no {}", path.display()),
            )
            .remedy("run `cloud-sync key create`"));
        };
        let mut keys = file.keys.to_vec();
        keys.push(SiteKey::random());
        Self::write(path, keys)
    }

    /// Adds the key of a recovery code, before those that are there: it decrypts. Where there is no file, it
    /// encrypts, too.
    ///
    /// # Errors
    /// A configuration error if the code is none; the file cannot be written.
    pub(crate) fn recover(path: &Path, code: &str) -> Result<Self> {
        let operation = "recover an encryption key";
        let key = SiteKey::of_recovery_code(code).ok_or_else(|| {
            Error::config(
                operation,
                "this is no recovery code: a letter is wrong or missing",
            )
            .remedy("type it again; dashes and spaces do not matter, nor does upper or lower case")
        })?;
        let mut keys = Self::read(path)?.map_or_else(Vec::new, |file| file.keys.to_vec());
        if !keys.iter().any(|known| known.id == key.id) {
            keys.insert(0, key);
        }
        Self::write(path, keys)
    }

    fn write(path: &Path, keys: Vec<SiteKey>) -> Result<Self> {
        let failed = |error: std::io::Error| {
            Error::new(
                Kind::Local,
                format!("write the encryption keys to {}", path.display()),
                error.to_string(),
            )
            .remedy("let the user that runs this write the folder, or correct encryption.key_file")
            .caused_by(error)
        };
        let written = WrittenFile {
            version: VERSION,
            keys: keys
                .iter()
                .map(|key| WrittenKey {
                    id: key.id.clone(),
                    created_at: key.created_at,
                    key: STANDARD.encode(*key.bytes),
                })
                .collect(),
        };
        let text = serde_json::to_vec_pretty(&written).map_err(|error| failed(error.into()))?;
        let folder = match path.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        };
        std::fs::create_dir_all(folder).map_err(failed)?;
        // A temporary file is its owner's alone.
        let mut file = tempfile::NamedTempFile::new_in(folder).map_err(failed)?;
        file.write_all(&text).map_err(failed)?;
        file.as_file().sync_all().map_err(failed)?;
        file.persist(path).map_err(|error| failed(error.error))?;
        std::fs::File::open(folder)
            .and_then(|folder| folder.sync_all())
            .map_err(failed)?;
        Ok(Self {
            path: path.to_owned(),
            keys: keys.into(),
        })
    }
}

impl PartialEq for KeyFile {
    fn eq(&self, other: &Self) -> bool {
        self.keys
            .iter()
            .map(|key| &key.id)
            .eq(other.keys.iter().map(|key| &key.id))
    }
}

impl Eq for KeyFile {}

impl std::fmt::Debug for KeyFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ids: Vec<_> = self.keys.iter().map(|key| &key.id).collect();
        f.debug_struct("KeyFile")
            .field("path", &self.path)
            .field("keys", &ids)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_recovery_code_is_the_key_and_a_wrong_letter_is_noticed() {
        for _ in 0..50 {
            let key = SiteKey::random();
            let code = key.recovery_code();
            assert_eq!(code.len(), 56 + 13, "{code}");
            let again = SiteKey::of_recovery_code(&code.to_lowercase().replace('-', " ")).unwrap();
            assert_eq!((again.id, again.bytes), (key.id.clone(), key.bytes.clone()));
            assert!(SiteKey::of_recovery_code(&code[..code.len() - 1]).is_none());
            let mut wrong = code.into_bytes();
            wrong[7] = if wrong[7] == b'Z' { b'Y' } else { b'Z' };
            assert!(SiteKey::of_recovery_code(std::str::from_utf8(&wrong).unwrap()).is_none());
        }
    }

    #[test]
    fn a_file_is_made_once_rotated_and_recovered() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys/encryption.json");
        assert!(KeyFile::read(&path).unwrap().is_none());
        assert!(KeyFile::rotate(&path).is_err());
        let first = KeyFile::create(&path).unwrap();
        assert_eq!(
            std::fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
        assert!(KeyFile::create(&path).is_err());
        let rotated = KeyFile::rotate(&path).unwrap();
        let ids = |file: &KeyFile| file.keys().iter().map(|key| key.id.clone()).collect::<Vec<_>>();
        assert_eq!(ids(&rotated)[..1], ids(&first)[..]);
        assert_eq!(ids(&KeyFile::read(&path).unwrap().unwrap()), ids(&rotated));
        // Another machine gets the keys back by their codes, in any order.
        let other = folder.path().join("other.json");
        for key in rotated.keys().iter().rev() {
            KeyFile::recover(&other, &key.recovery_code()).unwrap();
            KeyFile::recover(&other, &key.recovery_code()).unwrap();
        }
        assert_eq!(ids(&KeyFile::read(&other).unwrap().unwrap()), ids(&rotated));
        assert!(!format!("{rotated:?}").contains(&STANDARD.encode(*rotated.keys()[0].bytes)));
    }

    #[test]
    fn a_file_that_others_can_read_or_that_is_damaged_is_refused_with_the_remedy() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("encryption.json");
        KeyFile::create(&path).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
        let refused = KeyFile::read(&path).unwrap_err().to_string();
        assert!(refused.contains("other users"), "{refused}");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        let good = std::fs::read_to_string(&path).unwrap();
        let id = KeyFile::read(&path).unwrap().unwrap().keys()[0].id.clone();
        for bad in [
            "{",
            "{\"version\": 1, \"keys\": []}",
            &good.replace(&id, "00000000"),
        ] {
            std::fs::write(&path, bad).unwrap();
            assert!(KeyFile::read(&path).is_err(), "{bad}");
        }
    }
}
