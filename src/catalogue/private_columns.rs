//! Which columns look private by their names: passwords, tokens, sessions, keys, embeddings.
//!
//! The list is `private_columns.txt`. It only looks at names, of columns and of some frameworks' tables: it is a
//! net against accidents, and no proof that a column is harmless.

/// The list, an entry a line.
const LIST: &str = include_str!("private_columns.txt");

/// The entry that makes a column of a table look private; `None` if none does. The table's name is without its
/// schema.
pub(crate) fn looks_private(table: &str, column: &str) -> Option<&'static str> {
    let words = words(column);
    entries().find(|entry| {
        if let Some((of_table, of_column)) = entry.split_once('.') {
            return table == of_table && column == of_column;
        }
        let wanted: Vec<&str> = entry.split(' ').collect();
        words.windows(wanted.len()).any(|words| {
            words
                .iter()
                .zip(&wanted)
                .all(|(word, wanted)| is_word(word, wanted))
        })
    })
}

fn entries() -> impl Iterator<Item = &'static str> {
    LIST.lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
}

/// Whether a word is the wanted one, or its plural; `*` stands for anything before or after.
fn is_word(word: &str, wanted: &str) -> bool {
    let matches = |word: &str| match (wanted.strip_prefix('*'), wanted.strip_suffix('*')) {
        (Some(end), _) => word.ends_with(end),
        (None, Some(begin)) => word.starts_with(begin),
        (None, None) => word == wanted,
    };
    matches(word)
        || word.strip_suffix("es").is_some_and(matches)
        || word.strip_suffix('s').is_some_and(matches)
}

/// The words of a name, in small letters: `oldApiKey-2` has old, api, key and 2.
fn words(name: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut previous = ' ';
    for letter in name.chars() {
        let begins_word = letter.is_uppercase() && previous.is_lowercase();
        if begins_word || !letter.is_alphanumeric() {
            words.push(String::new());
        }
        if letter.is_alphanumeric()
            && let Some(word) = words.last_mut()
        {
            word.extend(letter.to_lowercase());
        }
        previous = letter;
    }
    words.retain(|word| !word.is_empty());
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_secrets_look_private_and_others_do_not() {
        for private in [
            "password",
            "Password2",
            "user_passwords",
            "userPassword",
            "encrypted_password",
            "password_digest",
            "passwordhash",
            "content_hashes",
            "auth_token",
            "accesstoken",
            "refreshToken",
            "client_secret",
            "otp_code",
            "session_key",
            "sessions",
            "api_key",
            "apiKey",
            "old-api-key-2",
            "private_key_pem",
            "faculty_face_embedding",
            "embeddings",
            "two factor recovery codes",
            "AWS_ACCESS_KEY_ID",
            "ssh_private_rsa_key",
            "csrfToken",
            "activation_key",
            "auth_data",
            "card_cvc",
        ] {
            assert!(looks_private("t", private).is_some(), "{private}");
        }
        for public in [
            "keyboard",
            "room_id",
            "passed",
            "pass_slip_image",
            "compass",
            "key",
            "hashtag",
            "tokenizer",
            "obsession",
            "api",
            "private",
            "created_at",
            "translation_key",
            "authority",
            "public_key",
            "Name",
            "",
        ] {
            assert_eq!(looks_private("t", public), None, "{public}");
        }
    }
    #[test]
    fn some_columns_are_private_in_one_table_only() {
        assert!(looks_private("authtoken_token", "key").is_some());
        assert_eq!(looks_private("directus_translations", "key"), None);
    }
}
