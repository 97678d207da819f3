//! What a session of the program does with its search path: pinned by its first statement, and left alone but
//! where a migration makes tables in a schema of ours, and where a condition of the site's is parsed.

use super::statements::Sent;

/// The first statement of a session with the site's database, and what it does to the path.
const PINNED: [&str; 2] = [
    "select pg_catalog.set_config('cloud_sync.path', pg_catalog.current_setting('search_path'), false), ",
    "; set search_path = pg_catalog, pg_temp; ",
];

/// The only statement that uses the site's path, and the only one that may be sent while it holds: it parses
/// and runs nothing.
const SITES: &str = "set_config('search_path', concat_ws(', ', 'pg_catalog', \
 nullif(current_setting('cloud_sync.path', true), '')), true)";
const PARSED: &str = "alter table pg_temp.t add constraint cloud_sync_condition check (";

/// Which path holds.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Path {
    /// `pg_catalog, pg_temp`.
    Pinned,
    /// A schema of ours, then `pg_temp`: PostgreSQL looks into `pg_catalog` first.
    Ours,
    /// `pg_catalog`, then the site's.
    Sites,
}

/// What a text does to the path, in its order; the words that are not known.
fn changes(text: &str) -> Result<Vec<Path>, String> {
    let mut changes = Vec::new();
    let lower = text.to_lowercase();
    for word in ["reset search_path", "reset all", "discard all"] {
        if lower.contains(word) {
            return Err(word.to_owned());
        }
    }
    for (at, _) in lower.match_indices("search_path") {
        let before = lower[..at].trim_end();
        let after = lower[at + "search_path".len()..].trim_start();
        let verb = before.strip_suffix("local").unwrap_or(before).trim_end();
        let is_statement = verb
            .strip_suffix("set")
            .is_some_and(|before| before.is_empty() || before.trim_end().ends_with(';'));
        let words: String = lower[at..].chars().take(60).collect();
        if is_statement {
            let value = after.split(';').next().unwrap_or_default().trim();
            changes.push(match value {
                "= pg_catalog, pg_temp" => Path::Pinned,
                "= cloud_sync, pg_temp" | "= cloud_meta, pg_temp" => Path::Ours,
                _ => return Err(words),
            });
        } else if lower[..at].ends_with("set_config('") {
            let call = at - "set_config('".len();
            if !lower[call..].starts_with(SITES) {
                return Err(words);
            }
            changes.push(Path::Sites);
        } else if lower[..at].ends_with("alter role") || lower[..at].ends_with("alter database") {
            return Err(words);
        }
        // What is left is a function's own, which holds while it runs, or a question.
    }
    Ok(changes)
}

/// What is wrong with the path of a session with the site's database, or with the receiver's own, whose path
/// is pinned as it connects; `None` if nothing is.
pub(super) fn wrong(session: &Sent) -> Option<String> {
    let finding = |text: &str, why: &str| {
        let text: String = text.chars().take(200).collect();
        Some(format!(
            "session {} of {}: {why}: {text}",
            session.name, session.role
        ))
    };
    let mut texts = session.texts.iter();
    if session.name != "cloud-sync receiver" {
        let first = texts.next()?;
        if !(first.starts_with(PINNED[0]) && first.contains(PINNED[1])) {
            return finding(first, "its first statement does not pin the path");
        }
    }
    let mut path = Path::Pinned;
    for text in texts {
        if path == Path::Sites
            && !text.starts_with(PARSED)
            && text != "rollback"
            && !text.starts_with("set local search_path")
        {
            return finding(text, "it is sent while the site's path holds");
        }
        match changes(text) {
            Ok(changes) => path = changes.last().copied().unwrap_or(path),
            Err(words) => return finding(text, &format!("it changes the path ({words})")),
        }
        if path == Path::Sites && (text == "rollback" || text == "commit") {
            path = Path::Pinned;
        }
    }
    None
}

#[test]
fn a_path_that_is_not_pinned_first_or_is_changed_is_found() {
    let pin = format!("{}1{}set jit = off", PINNED[0], PINNED[1]);
    let sites = format!("begin; create temporary table t (like u); select {SITES}");
    let parsed = format!("{PARSED}a = 1) not valid");
    let restored = "set local search_path = pg_catalog, pg_temp";
    let session = |name: &str, texts: &[&str]| Sent {
        role: "program".to_owned(),
        name: name.to_owned(),
        texts: texts.iter().map(|&text| text.to_owned()).collect(),
    };
    for texts in [
        &[&*pin, "select 1"][..],
        &[&pin, &sites, &parsed, restored, "select 1", "rollback"],
        &[&pin, &sites, &parsed, "rollback", "select 1"],
        &[&pin, "set search_path = cloud_sync, pg_temp", "create table t ()"],
        &[
            &pin,
            "create function f() returns int language sql set search_path = pg_catalog, pg_temp as 'select \
             1'",
        ],
    ] {
        assert_eq!(wrong(&session("cloud-sync drain", texts)), None);
    }
    for texts in [
        &["select 1", &*pin][..],
        &[PINNED[0]],
        &[&pin, "set search_path = public"],
        &[&pin, "set jit = off; SET search_path TO public"],
        &[&pin, "select set_config('search_path', 'public', false)"],
        &[&pin, "reset all"],
        &[&pin, &sites, "select 1"],
        &[&pin, &sites, &parsed, "create index on pg_temp.t ((1))"],
    ] {
        assert!(wrong(&session("cloud-sync drain", texts)).is_some(), "{texts:?}");
    }
    assert_eq!(wrong(&session("cloud-sync receiver", &["select 1"])), None);
    assert!(wrong(&session("cloud-sync receiver", &["set search_path = public"])).is_some());
}
