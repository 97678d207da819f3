//! The text that stands for a value in the cloud: `enc1:<key>:<data>`.
//!
//! `<key>` is the id of the site's key. `<data>` is, in base64 for URLs without padding, a nonce of 24 bytes and what
//! XChaCha20-Poly1305 makes of the value's JSON. The cipher's key is HMAC-SHA256 of `cloud-sync column key`, the
//! entity and the column, under the site's key; entity and column are authenticated too, so a text that is moved to
//! another column is refused. The nonce is HMAC-SHA256 of the row's key and the value, under a key of its own, and
//! cut: so it is the same for the same value in the same row, and no two values have one nonce.
//!
//! Null stays null.

use std::fmt;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use chacha20poly1305::aead::{Aead, Payload};
use chacha20poly1305::{KeyInit, XChaCha20Poly1305, XNonce};
use hmac::{Hmac, Mac};
use secrecy::zeroize::Zeroizing;
use sha2::Sha256;

use super::key_file::{KeyFile, SiteKey};

/// What each text begins with.
const MARK: &str = "enc1:";

/// Bytes of a nonce.
const NONCE: usize = 24;

/// Encrypts the values of one column of an entity.
#[derive(Clone)]
pub(crate) struct ColumnCipher {
    cipher: XChaCha20Poly1305,
    nonce_key: Zeroizing<[u8; 32]>,
    /// Authenticated with each value.
    place: Arc<[u8]>,
    /// The site's key.
    id: String,
}

impl ColumnCipher {
    /// With the site's newest key.
    pub(crate) fn new(keys: &KeyFile, entity: &str, column: &str) -> Option<Self> {
        keys.keys().last().map(|key| Self::of(key, entity, column))
    }

    fn of(key: &SiteKey, entity: &str, column: &str) -> Self {
        let place = [entity.as_bytes(), b"\0", column.as_bytes()].concat();
        let derived = |purpose: &[u8]| Zeroizing::new(hmac(&key.bytes, &[purpose, b"\0", &place]));
        Self {
            cipher: XChaCha20Poly1305::new((&*derived(b"cloud-sync column key")).into()),
            nonce_key: derived(b"cloud-sync column nonce"),
            place: place.into(),
            id: key.id.clone(),
        }
    }

    /// The text for a value's JSON in the row of this key; `None` if the value is larger than can be encrypted.
    pub(crate) fn encrypt(&self, row_key: &[u8], json: &[u8]) -> Option<String> {
        let length = (row_key.len() as u64).to_le_bytes();
        let hash = hmac(&self.nonce_key, &[&length, row_key, json]);
        let nonce = XNonce::try_from(&hash[..NONCE]).ok()?;
        let payload = Payload {
            msg: json,
            aad: &self.place,
        };
        let encrypted = self.cipher.encrypt(&nonce, payload).ok()?;
        let data = URL_SAFE_NO_PAD.encode([&hash[..NONCE], &encrypted].concat());
        Some(format!("{MARK}{}:{data}", self.id))
    }
}

impl fmt::Debug for ColumnCipher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ColumnCipher").field(&self.id).finish()
    }
}

/// Why a text cannot be decrypted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Undecryptable {
    /// The site's key of this id is not in the file.
    NoKey(String),
    /// It is damaged, or of another entity or column.
    Damaged,
}

/// The JSON of the value that a text stands for; `None` if the text is no encrypted value.
pub(crate) fn decrypt(
    keys: &KeyFile,
    entity: &str,
    column: &str,
    text: &str,
) -> Option<Result<String, Undecryptable>> {
    let (id, data) = text.strip_prefix(MARK)?.split_once(':')?;
    let Some(key) = keys.keys().iter().find(|key| key.id == id) else {
        return Some(Err(Undecryptable::NoKey(id.to_owned())));
    };
    let read = || {
        let data = URL_SAFE_NO_PAD.decode(data).ok()?;
        let (nonce, encrypted) = data.split_at_checked(NONCE)?;
        let ColumnCipher { cipher, place, .. } = ColumnCipher::of(key, entity, column);
        let payload = Payload {
            msg: encrypted,
            aad: &place,
        };
        let json = cipher.decrypt(&XNonce::try_from(nonce).ok()?, payload).ok()?;
        String::from_utf8(json).ok()
    };
    Some(read().ok_or(Undecryptable::Damaged))
}

fn hmac(key: &[u8; 32], parts: &[&[u8]]) -> [u8; 32] {
    // A key that is shorter than a block is followed by zeros: RFC 2104, section 2.
    let mut block = Zeroizing::new([0; 64]);
    block[..key.len()].copy_from_slice(key);
    let mut mac = <Hmac<Sha256> as hmac::KeyInit>::new((&*block).into());
    for part in parts {
        mac.update(part);
    }
    mac.finalize().into_bytes().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys() -> (tempfile::TempDir, KeyFile) {
        let folder = tempfile::tempdir().unwrap();
        let keys = KeyFile::create(&folder.path().join("keys")).unwrap();
        (folder, keys)
    }

    #[test]
    fn a_value_comes_back_in_its_column_alone() {
        let (_folder, keys) = keys();
        let cipher = ColumnCipher::new(&keys, "faculties", "face").unwrap();
        for json in [
            "\"Ñandú\"",
            "[0.25,-1]",
            "7",
            "true",
            "\"\"",
            &format!("\"{}\"", "x".repeat(100_000)),
        ] {
            let text = cipher.encrypt(b"{\"id\":1}", json.as_bytes()).unwrap();
            assert!(text.starts_with("enc1:") && (json.len() < 8 || !text.contains(json)));
            let back = |entity: &str, column: &str| decrypt(&keys, entity, column, &text);
            assert_eq!(back("faculties", "face"), Some(Ok(json.to_owned())));
            for (entity, column) in [("faculties", "name"), ("rooms", "face"), ("faculties\0f", "ace")] {
                assert_eq!(back(entity, column), Some(Err(Undecryptable::Damaged)));
            }
        }
        assert_eq!(decrypt(&keys, "faculties", "face", "plain"), None);
    }

    #[test]
    fn the_text_is_the_same_for_the_same_value_of_the_same_row_only() {
        let (_folder, keys) = keys();
        let cipher = ColumnCipher::new(&keys, "faculties", "face").unwrap();
        let text = |key: &str, json: &str| cipher.encrypt(key.as_bytes(), json.as_bytes()).unwrap();
        assert_eq!(text("{\"id\":1}", "7"), text("{\"id\":1}", "7"));
        assert_ne!(text("{\"id\":1}", "7"), text("{\"id\":2}", "7"));
        assert_ne!(text("{\"id\":1}", "7"), text("{\"id\":1}", "8"));
        assert_ne!(text("a", "bc"), text("ab", "c"));
        let other = ColumnCipher::new(&keys, "faculties", "name").unwrap();
        assert_ne!(other.encrypt(b"a", b"1"), cipher.encrypt(b"a", b"1"));
    }

    #[test]
    fn a_changed_text_is_refused_and_a_rotated_key_still_decrypts() {
        let (folder, keys) = keys();
        let text = ColumnCipher::new(&keys, "e", "c")
            .unwrap()
            .encrypt(b"k", b"\"secret\"")
            .unwrap();
        let rotated = KeyFile::rotate(&folder.path().join("keys")).unwrap();
        assert_eq!(
            decrypt(&rotated, "e", "c", &text),
            Some(Ok("\"secret\"".to_owned()))
        );
        let newer = ColumnCipher::new(&rotated, "e", "c")
            .unwrap()
            .encrypt(b"k", b"\"secret\"")
            .unwrap();
        assert_ne!(newer, text);
        let id = rotated.keys()[1].id.clone();
        assert_eq!(
            decrypt(&keys, "e", "c", &newer),
            Some(Err(Undecryptable::NoKey(id)))
        );
        let at = "enc1:00000000:".len();
        for index in at..text.len() {
            let mut changed = text.clone().into_bytes();
            changed[index] = if changed[index] == b'A' { b'B' } else { b'A' };
            let changed = String::from_utf8(changed).unwrap();
            assert_eq!(
                decrypt(&keys, "e", "c", &changed),
                Some(Err(Undecryptable::Damaged)),
                "{index}"
            );
        }
    }
}
