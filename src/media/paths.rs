//! The paths that a column names: one, or a JSON array of them.
//!
//! A path has one form, below the media root: `./slips//a.jpg` and `<root>/slips/a.jpg` are both
//! `slips/a.jpg`. It is text here: [`super::root`] finds the file.

use std::path::{Component, Path};

use crate::change::NamedFile;

/// The paths in a column's JSON value, in order: a text with one path, a text that holds a JSON array, or an
/// array. Empty texts, nulls and URLs name no file, and are `None` in the list.
pub(crate) fn named(value: Option<&str>) -> NamedFile {
    let Some(value) = value.filter(|value| *value != "null") else {
        return NamedFile::default();
    };
    match serde_json::from_str::<Vec<Option<String>>>(value) {
        Ok(list) => NamedFile::list(list),
        Err(_) => match serde_json::from_str::<String>(value) {
            Ok(text) if text.trim_start().starts_with('[') => {
                match serde_json::from_str::<Vec<Option<String>>>(&text) {
                    Ok(list) => NamedFile::list(list),
                    Err(_) => NamedFile::one(text),
                }
            }
            Ok(text) => NamedFile::one(text),
            Err(_) => NamedFile::default(),
        },
    }
}

/// Whether a text names a file here: a URL is left to whoever has written it.
fn names_file(text: &str) -> bool {
    let is_url = |scheme: &str| {
        text.get(..scheme.len())
            .is_some_and(|start| start.eq_ignore_ascii_case(scheme))
    };
    !text.trim().is_empty() && !is_url("http://") && !is_url("https://")
}

impl NamedFile {
    fn one(text: String) -> Self {
        Self {
            paths: vec![Some(text).filter(|text| names_file(text))],
            list: false,
        }
    }

    fn list(list: Vec<Option<String>>) -> Self {
        Self {
            paths: list
                .into_iter()
                .map(|path| path.filter(|text| names_file(text)))
                .collect(),
            list: true,
        }
    }
}

/// The longest path below the root, in bytes: an index entry of the records holds little more.
const LONGEST: usize = 2_000;

/// The path as its record has it: below the media root. Text that is no such path is recorded as it is
/// written, up to what an index can hold, so that the upload can report what is wrong with it. A NUL, which no
/// text of the database can hold, becomes the replacement character.
pub(crate) fn recorded(root: &Path, path: &str) -> String {
    below(root, path).unwrap_or_else(|_| {
        let path = path.replace('\0', "\u{fffd}");
        match path.char_indices().find(|(at, _)| *at > LONGEST) {
            Some((end, _)) => path[..end].to_owned(),
            None => path,
        }
    })
}

/// Whether a recorded path may be cut off: see [`recorded`].
pub(crate) fn is_cut(path: &str) -> bool {
    path.len() > LONGEST
}

/// The path below the media root, in its one form; or why it is no such path.
pub(crate) fn below(root: &Path, path: &str) -> Result<String, &'static str> {
    if path.contains('\0') {
        return Err("its path holds a NUL");
    }
    if is_cut(path) {
        return Err("its path is longer than 2,000 bytes");
    }
    let path = Path::new(path);
    let relative = if path.is_absolute() {
        path.strip_prefix(root)
            .map_err(|_| "its path lies outside the media root (media.strip_prefix takes a prefix off)")?
    } else {
        path
    };
    let mut parts = Vec::new();
    for component in relative.components() {
        match component {
            Component::Normal(part) => parts.push(part.to_string_lossy().into_owned()),
            Component::CurDir => {}
            Component::ParentDir | Component::RootDir | Component::Prefix(_) => {
                return Err("its path lies outside the media root");
            }
        }
    }
    if parts.is_empty() {
        return Err("its path names no file");
    }
    Ok(parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths_in(json: &str) -> Vec<Option<String>> {
        named(Some(json)).paths
    }

    #[test]
    fn columns_name_one_path_or_a_list() {
        let text = |text: &str| Some(text.to_owned());
        assert_eq!(paths_in("\"a/b.jpg\""), [text("a/b.jpg")]);
        assert_eq!(
            paths_in("[\"a.jpg\",null,\"b.jpg\"]"),
            [text("a.jpg"), None, text("b.jpg")]
        );
        assert_eq!(
            paths_in("\"[\\\"a.jpg\\\",\\\"b.jpg\\\"]\""),
            [text("a.jpg"), text("b.jpg")]
        );
        assert_eq!(paths_in("\"\""), [None]);
        assert_eq!(paths_in("\"https://elsewhere.example/a.jpg\""), [None]);
        assert_eq!(paths_in("\" a.jpg \""), [text(" a.jpg ")]);
        assert!(paths_in("null").is_empty());
        assert_eq!(paths_in("\"[broken\""), [text("[broken")]);
    }

    #[test]
    fn paths_stay_below_the_root() {
        let root = Path::new("/srv/media");
        assert_eq!(below(root, "slips/a.jpg").unwrap(), "slips/a.jpg");
        assert_eq!(below(root, "./slips//a.jpg").unwrap(), "slips/a.jpg");
        assert_eq!(below(root, "/srv/media/slips/a.jpg").unwrap(), "slips/a.jpg");
        assert_eq!(recorded(root, "a\0b"), "a\u{fffd}b");
        for outside in ["../a", "slips/../../a", "/etc/passwd", "", ".", "a\0b"] {
            assert!(below(root, outside).is_err(), "{outside:?}");
        }
    }
}
