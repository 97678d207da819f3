//! Opens files below the media root, and nothing else.
//!
//! What a row names is looked for as it is written, below the root. If nothing is there, the forms are tried
//! that people's programs write: a prefix that the configuration strips (`/storage/`), the root's real path
//! where the root is a link, backslashes, percent-encoding, and the other Unicode form of the name.
//!
//! Invariant: no file outside the root is opened, also if a link is switched between the look and the opening:
//! the operating system resolves the path beneath the root. A link that leads elsewhere below the root is
//! followed. Only regular files are opened, and none that would block.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use percent_encoding::percent_decode_str;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use unicode_normalization::UnicodeNormalization;

use super::paths;
use crate::source::file_records::FileStamp;

/// The media root, as it is configured.
#[derive(Debug, Clone)]
pub struct MediaRoot {
    /// The folder.
    pub path: PathBuf,
    /// What is taken off the beginning of what rows name.
    pub strip_prefix: Vec<String>,
}

/// The media root, opened: files are found below it even if another folder takes its place.
pub(super) struct OpenRoot<'a> {
    root: &'a MediaRoot,
    folder: OwnedFd,
    /// Its path without links.
    real: PathBuf,
}

/// A file, opened for reading.
#[derive(Debug)]
pub(super) struct FoundFile {
    pub(super) file: File,
    pub(super) stamp: FileStamp,
    /// The number of its device.
    pub(super) device: u64,
    /// Its name as the row names it, and not as a link's target is called.
    pub(super) name: String,
}

/// Why a file is not opened.
#[derive(Debug)]
pub(super) enum OpenRefusal {
    /// The media root itself cannot be opened: nothing is known of its files.
    NoRoot(io::Error),
    /// There is no such file; with a hint where one is of use.
    Missing(String),
    /// It lies outside the media root, is no path, or is no regular file.
    Refused(&'static str),
    /// The operating system's reason.
    Unreadable(io::Error),
}

impl OpenRefusal {
    fn of(error: io::Error) -> Self {
        match Errno::from_io_error(&error) {
            Some(Errno::NOENT | Errno::NOTDIR) => Self::Missing("the file is not there".into()),
            Some(Errno::LOOP | Errno::NAMETOOLONG) => Self::Missing(error.to_string()),
            _ => Self::Unreadable(error),
        }
    }
}

impl MediaRoot {
    /// The folder at this path, with nothing stripped.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            strip_prefix: Vec::new(),
        }
    }

    /// Whether a file is there under this name.
    pub(crate) fn has(&self, named: &str) -> bool {
        self.open().and_then(|root| root.stamp(named)).is_ok()
    }

    /// Whether a text names a path below the root, in whatever form it is written.
    pub(super) fn is_inside(&self, named: &str) -> bool {
        let is_inside = |real: Option<&Path>| self.forms(named, real).iter().any(Result::is_ok);
        is_inside(None)
            || Path::new(named).is_absolute()
                && self.path.canonicalize().is_ok_and(|real| is_inside(Some(&real)))
    }

    /// The paths below the root that a text may mean, the one that it says first; or why it is no such path.
    /// `real` is the root's path without links.
    fn forms(&self, named: &str, real: Option<&Path>) -> Vec<Result<String, &'static str>> {
        let as_written = paths::below(&self.path, named);
        let mut forms = vec![as_written.clone()];
        if paths::is_cut(named) {
            // The rest of it is not known: another form of it could be another file.
            return forms;
        }
        let mut add = |text: &str| {
            if let Ok(form) = paths::below(&self.path, text)
                && !forms.contains(&Ok(form.clone()))
            {
                forms.push(Ok(form));
            }
        };
        for prefix in &self.strip_prefix {
            if let Some(rest) = named.strip_prefix(prefix) {
                add(rest.trim_start_matches('/'));
            }
        }
        if let Some(real) = real
            && let Ok(relative) = Path::new(named).strip_prefix(real)
        {
            add(&relative.to_string_lossy());
        }
        if named.contains('\\') {
            add(&named.replace('\\', "/"));
        }
        if named.contains('%')
            && let Ok(decoded) = percent_decode_str(named).decode_utf8()
        {
            add(&decoded);
        }
        if !named.is_ascii() {
            add(&named.nfc().collect::<String>());
            add(&named.nfd().collect::<String>());
        }
        // What is outside as it is written, and inside in another form, is inside.
        if as_written.is_err() && forms.len() > 1 {
            drop(forms.remove(0));
        }
        forms
    }

    /// Opens the root.
    pub(super) fn open(&self) -> Result<OpenRoot<'_>, OpenRefusal> {
        let folder = File::open(&self.path).map_err(OpenRefusal::NoRoot)?;
        let real = self.path.canonicalize().map_err(OpenRefusal::NoRoot)?;
        Ok(OpenRoot {
            root: self,
            folder: folder.into(),
            real,
        })
    }
}

impl OpenRoot<'_> {
    /// Opens the file that a row names, for reading.
    pub(super) fn open(&self, named: &str) -> Result<FoundFile, OpenRefusal> {
        let (found, relative) = self.look(named)?;
        // A device or a pipe is not opened.
        regular(&found)?;
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
        let file = File::from(self.beneath(&relative, flags).map_err(OpenRefusal::of)?);
        let about = regular(&file)?;
        Ok(FoundFile {
            stamp: stamp_of(&about),
            device: about.dev(),
            name: relative.rsplit('/').next().unwrap_or_default().to_owned(),
            file,
        })
    }

    /// How the file that a row names looks now.
    pub(super) fn stamp(&self, named: &str) -> Result<FileStamp, OpenRefusal> {
        let (found, _) = self.look(named)?;
        Ok(stamp_of(&regular(&found)?))
    }

    /// The file, opened as a path only, and its path below the root.
    fn look(&self, named: &str) -> Result<(File, String), OpenRefusal> {
        let mut refusal = None;
        for relative in self.root.forms(named, Some(&self.real)) {
            let relative = match relative {
                Ok(relative) => relative,
                Err(why) => {
                    refusal.get_or_insert(OpenRefusal::Refused(why));
                    continue;
                }
            };
            match self.beneath(&relative, OFlags::PATH) {
                Ok(found) => return Ok((found.into(), relative)),
                Err(error) if error.raw_os_error() == Some(Errno::XDEV.raw_os_error()) => {
                    return Err(OpenRefusal::Refused("a link leads outside the media root"));
                }
                Err(error) => match OpenRefusal::of(error) {
                    OpenRefusal::Missing(why) if refusal.is_none() => {
                        refusal = Some(OpenRefusal::Missing(with_hint(named, why)));
                    }
                    OpenRefusal::Missing(_) => {}
                    other => return Err(other),
                },
            }
        }
        Err(refusal.unwrap_or(OpenRefusal::Refused("its path names no file")))
    }

    /// Opens a path below the root. Links are followed as long as they stay below it; `EXDEV` says that they
    /// do not.
    fn beneath(&self, relative: &str, flags: OFlags) -> io::Result<OwnedFd> {
        match open_beneath(&self.folder, Path::new(relative), flags, true) {
            // A link with an absolute path counts as one that leads out, wherever it leads.
            Err(error) if error.raw_os_error() == Some(Errno::XDEV.raw_os_error()) => {
                let real = self.real.join(relative).canonicalize()?;
                let Ok(inside) = real.strip_prefix(&self.real) else {
                    return Err(error);
                };
                open_beneath(&self.folder, inside, flags, false)
            }
            opened => opened,
        }
    }
}

/// Opens a path below the folder; links are followed as long as they stay below it, or not at all.
#[cfg(target_os = "linux")]
fn open_beneath(folder: &OwnedFd, relative: &Path, flags: OFlags, follow: bool) -> io::Result<OwnedFd> {
    use rustix::fs::ResolveFlags;
    let mut resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    resolve.set(ResolveFlags::NO_SYMLINKS, !follow);
    let flags = flags | OFlags::CLOEXEC;
    let mut attempts = 0;
    loop {
        match rustix::fs::openat2(folder.as_fd(), relative, flags, Mode::empty(), resolve) {
            // Something was renamed while `..` was followed.
            Err(Errno::AGAIN) if attempts < 10 => attempts += 1,
            opened => return Ok(opened?),
        }
    }
}

fn regular(file: &File) -> Result<std::fs::Metadata, OpenRefusal> {
    let about = file.metadata().map_err(OpenRefusal::Unreadable)?;
    if about.is_file() {
        Ok(about)
    } else {
        Err(OpenRefusal::Refused("it is not a regular file"))
    }
}

/// How a file looks.
pub(super) fn stamp_of(about: &std::fs::Metadata) -> FileStamp {
    let microseconds = |seconds: i64, nanoseconds: i64| {
        seconds
            .saturating_mul(1_000_000)
            .saturating_add(nanoseconds / 1_000)
    };
    FileStamp {
        size: i64::try_from(about.len()).unwrap_or(i64::MAX),
        modified_us: microseconds(about.mtime(), about.mtime_nsec()),
        changed_us: microseconds(about.ctime(), about.ctime_nsec()),
        inode: about.ino().cast_signed(),
    }
}

fn with_hint(named: &str, why: String) -> String {
    if named.starts_with('[') || named.starts_with('{') {
        return format!("{why}: the column holds JSON that is no list of paths");
    }
    why
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn media() -> (tempfile::TempDir, MediaRoot) {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("media");
        std::fs::create_dir_all(root.join("slips")).unwrap();
        (folder, MediaRoot::new(root))
    }

    fn size(root: &MediaRoot, named: &str) -> Result<i64, String> {
        let open = root.open().unwrap();
        let stamp = open.stamp(named).map_err(|refusal| format!("{refusal:?}"))?;
        let found = open.open(named).map_err(|refusal| format!("{refusal:?}"))?;
        assert_eq!(found.stamp, stamp);
        Ok(stamp.size)
    }

    #[test]
    fn a_path_that_is_cut_off_names_no_file_in_any_form() {
        let (_folder, root) = media();
        std::fs::write(root.path.join("slips/a.jpg"), "slip").unwrap();
        assert_eq!(size(&root, "slips%2Fa.jpg"), Ok(4));
        let long = format!("{}slips%2Fa.jpg-and-more", "%2E%2F".repeat(332));
        let recorded = paths::recorded(&root.path, &format!("{long}{}", "x".repeat(2_000)));
        let cut_where_it_names_a_file = format!("{}slips%2Fa.jpg", "%2E%2F".repeat(332));
        for path in [recorded, cut_where_it_names_a_file] {
            assert!(size(&root, &path).unwrap_err().contains("longer than"), "{path}");
        }
    }

    #[test]
    fn links_are_followed_below_the_root_and_never_out_of_it() {
        let (folder, root) = media();
        std::fs::write(folder.path().join("secret"), "secret").unwrap();
        std::fs::write(root.path.join("slips/a.jpg"), "slip").unwrap();
        symlink(folder.path().join("secret"), root.path.join("absolute-out")).unwrap();
        symlink("../secret", root.path.join("relative-out")).unwrap();
        symlink("slips/a.jpg", root.path.join("relative-in")).unwrap();
        symlink(root.path.join("slips/a.jpg"), root.path.join("absolute-in")).unwrap();
        symlink("loop", root.path.join("loop")).unwrap();
        assert_eq!(size(&root, "slips/a.jpg"), Ok(4));
        assert_eq!(size(&root, "relative-in"), Ok(4));
        assert_eq!(size(&root, "absolute-in"), Ok(4));
        for out in ["absolute-out", "relative-out", "../secret", "/etc/passwd"] {
            assert!(size(&root, out).unwrap_err().starts_with("Refused"), "{out}");
        }
        assert!(size(&root, "slips").unwrap_err().contains("regular"));
        assert!(size(&root, "none").unwrap_err().starts_with("Missing"));
        assert!(size(&root, "loop").unwrap_err().starts_with("Missing"));
        let nowhere = MediaRoot::new(folder.path().join("nowhere"));
        assert!(matches!(nowhere.open(), Err(OpenRefusal::NoRoot(_))));
    }

    #[test]
    fn what_programs_write_for_a_path_is_understood_and_names_are_not_trimmed() {
        let (folder, mut root) = media();
        root.strip_prefix = vec!["/storage".into()];
        for (name, content) in [
            ("slips/a.jpg", "1"),
            ("my slip.jpg", "22"),
            ("trail.jpg ", "333"),
            ("trail.jpg", "4444"),
            ("caf\u{e9}.jpg", "55555"),
            ("-dash\n\"quote\".jpg", "666666"),
            ("100%2F.jpg", "7777777"),
        ] {
            std::fs::write(root.path.join(name), content).unwrap();
        }
        let linked = folder.path().join("linked");
        symlink(&root.path, &linked).unwrap();
        let real = root.path.join("slips/a.jpg").to_string_lossy().into_owned();
        for (named, expected) in [
            ("slips/a.jpg", 1),
            ("/storage/slips/a.jpg", 1),
            ("slips\\a.jpg", 1),
            (&real, 1),
            ("my%20slip.jpg", 2),
            ("trail.jpg ", 3),
            ("trail.jpg", 4),
            ("cafe\u{301}.jpg", 5),
            ("-dash\n\"quote\".jpg", 6),
            ("100%2F.jpg", 7),
        ] {
            assert_eq!(size(&root, named), Ok(expected), "{named:?}");
            let through_link = MediaRoot {
                path: linked.clone(),
                ..root.clone()
            };
            assert_eq!(size(&through_link, named), Ok(expected), "{named:?}");
        }
        assert!(
            size(&root, "[{\"path\":\"a.jpg\"}]")
                .unwrap_err()
                .contains("JSON")
        );
    }

    #[test]
    fn a_pipe_is_refused_and_does_not_block() {
        let (_folder, root) = media();
        let pipe = root.path.join("pipe");
        let made = std::process::Command::new("mkfifo").arg(&pipe).status().unwrap();
        assert!(made.success());
        assert!(size(&root, "pipe").unwrap_err().contains("regular"));
    }

    #[test]
    fn a_file_that_is_rewritten_in_place_has_another_stamp() {
        let (_folder, root) = media();
        let path = root.path.join("a");
        std::fs::write(&path, "AAAA").unwrap();
        let file = File::options().write(true).open(&path).unwrap();
        let long_ago = std::time::SystemTime::UNIX_EPOCH - std::time::Duration::from_secs(86_400);
        file.set_modified(long_ago).unwrap();
        let before = root.open().unwrap().stamp("a").unwrap();
        assert_eq!(before.modified_us, -86_400_000_000);
        std::thread::sleep(std::time::Duration::from_millis(20));
        std::fs::write(&path, "BBBB").unwrap();
        file.set_modified(long_ago).unwrap();
        let after = root.open().unwrap().stamp("a").unwrap();
        assert_eq!((after.size, after.modified_us), (before.size, before.modified_us));
        assert_ne!(after, before);
    }
}
