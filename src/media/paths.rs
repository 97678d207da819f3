//! The paths that a column names: one, or a JSON array of them; and where such a path is on this machine.
//!
//! A path has one form, below the media root: `./slips//a.jpg` and `<root>/slips/a.jpg` are both
//! `slips/a.jpg`. Nothing outside the root is ever opened: not by `..`, not by an absolute path, and not
//! through a symbolic link.

use std::path::{Component, Path, PathBuf};

use crate::change::NamedFile;

/// The paths in a column's JSON value, in order: a text with one path, a text that holds a JSON array, or an
/// array. Empty texts and nulls name no file, and are `None` in the list.
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

impl NamedFile {
    fn one(text: String) -> Self {
        Self {
            paths: vec![Some(text).filter(|text| !text.trim().is_empty())],
            list: false,
        }
    }

    fn list(list: Vec<Option<String>>) -> Self {
        Self {
            paths: list
                .into_iter()
                .map(|path| path.filter(|text| !text.trim().is_empty()))
                .collect(),
            list: true,
        }
    }
}

/// The longest path below the root, in bytes: an index entry of the records holds little more.
const LONGEST: usize = 2_000;

/// The path as its record has it: below the media root. Text that is no such path is recorded as it is
/// written, up to what an index can hold, so that the upload can report what is wrong with it.
pub(crate) fn recorded(root: &Path, path: String) -> String {
    below(root, &path).unwrap_or_else(|_| match path.char_indices().find(|(at, _)| *at > LONGEST) {
        Some((end, _)) => path[..end].to_owned(),
        None => path,
    })
}

/// The path below the media root, in its one form; or why it is no such path.
pub(crate) fn below(root: &Path, path: &str) -> Result<String, &'static str> {
    if path.contains('\0') {
        return Err("its path holds a NUL");
    }
    if path.len() > LONGEST {
        return Err("its path is longer than 2,000 bytes");
    }
    let path = Path::new(path.trim());
    let relative = if path.is_absolute() {
        path.strip_prefix(root)
            .map_err(|_| "its path lies outside the media root")?
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

/// Where the file is, after links are followed.
///
/// # Errors
/// Why it cannot or must not be opened.
pub(crate) fn locate(root: &Path, path: &str) -> Result<PathBuf, OpenRefusal> {
    let root = root.canonicalize().map_err(OpenRefusal::Unreadable)?;
    let file = root.join(path).canonicalize().map_err(|error| {
        if error.kind() == std::io::ErrorKind::NotFound || error.kind() == std::io::ErrorKind::NotADirectory {
            OpenRefusal::Missing
        } else {
            OpenRefusal::Unreadable(error)
        }
    })?;
    if !file.starts_with(&root) {
        return Err(OpenRefusal::Outside);
    }
    Ok(file)
}

/// Why a file cannot be opened.
#[derive(Debug)]
pub(crate) enum OpenRefusal {
    /// There is no such file.
    Missing,
    /// A symbolic link leads outside the media root.
    Outside,
    /// The operating system's reason.
    Unreadable(std::io::Error),
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
        assert!(paths_in("null").is_empty());
        assert_eq!(paths_in("\"[broken\""), [text("[broken")]);
    }

    #[test]
    fn paths_stay_below_the_root() {
        let root = Path::new("/srv/media");
        assert_eq!(below(root, "slips/a.jpg").unwrap(), "slips/a.jpg");
        assert_eq!(below(root, "./slips//a.jpg").unwrap(), "slips/a.jpg");
        assert_eq!(below(root, "/srv/media/slips/a.jpg").unwrap(), "slips/a.jpg");
        for outside in ["../a", "slips/../../a", "/etc/passwd", "", ".", "a\0b"] {
            assert!(below(root, outside).is_err(), "{outside:?}");
        }
    }

    #[test]
    fn links_do_not_lead_out() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("media");
        std::fs::create_dir(&root).unwrap();
        std::fs::write(folder.path().join("secret"), "x").unwrap();
        std::os::unix::fs::symlink(folder.path().join("secret"), root.join("link")).unwrap();
        std::fs::write(root.join("slip"), "x").unwrap();
        assert!(locate(&root, "slip").is_ok());
        assert!(matches!(locate(&root, "link"), Err(OpenRefusal::Outside)));
        assert!(matches!(locate(&root, "none"), Err(OpenRefusal::Missing)));
    }
}
