//! The documents agree with the repository: links lead somewhere, tests and types that they name are there.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every file with this ending below a folder.
fn files(folder: &Path, ending: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path, ending));
        } else if path.extension().is_some_and(|extension| extension == ending) {
            found.push(path);
        }
    }
    found
}

fn pages() -> Vec<PathBuf> {
    let mut pages = files(&root().join("docs"), "md");
    pages.extend(["README.md", "CHANGELOG.md", "CONTRIBUTING.md"].map(|name| root().join(name)));
    pages
}

/// The anchors that a forge gives a page's headings.
fn anchors(page: &str) -> BTreeSet<String> {
    let mut is_code = false;
    let headings = page.lines().filter(|line| {
        is_code ^= line.starts_with("```");
        !is_code && line.starts_with('#')
    });
    let kept = |letter: &char| letter.is_alphanumeric() || matches!(letter, ' ' | '-' | '_');
    headings
        .map(|line| line.trim_start_matches('#').trim().to_lowercase())
        .map(|text| text.chars().filter(kept).collect::<String>().replace(' ', "-"))
        .collect()
}

/// The texts between backticks.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

#[test]
fn links_lead_somewhere() {
    for page in pages() {
        let text = fs::read_to_string(&page).unwrap();
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            if link.contains("://") {
                continue;
            }
            let (path, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target = if path.is_empty() {
                page.clone()
            } else {
                page.parent().unwrap().join(path)
            };
            assert!(
                target.exists(),
                "{} links to {link}, which is not there",
                page.display()
            );
            let known = anchor.is_empty() || anchors(&fs::read_to_string(&target).unwrap()).contains(anchor);
            assert!(
                known,
                "{} links to {link}, which has no such heading",
                page.display()
            );
        }
    }
}

#[test]
fn the_tests_that_prove_the_guarantees_are_there() {
    let text = fs::read_to_string(root().join("docs/ARCHITECTURE.md")).unwrap();
    let (_, section) = text.split_once("## Guarantees").unwrap();
    let (section, _) = section.split_once("\n## ").unwrap();
    let mut count = 0;
    for row in section.lines().filter(|line| line.starts_with('|')).skip(2) {
        let tests = row.rsplit('|').nth(1).unwrap();
        for name in quoted(tests) {
            assert!(
                is_test(name),
                "docs/ARCHITECTURE.md names {name}, which is not below tests/"
            );
            count += 1;
        }
    }
    assert!(count > 20, "only {count} tests are named");
}

/// Whether a path is a module of the tests, or a function in one.
fn is_test(path: &str) -> bool {
    let file = |path: &str| {
        let path = root().join("tests").join(path.replace("::", "/"));
        let places = [path.with_extension("rs"), path.join("mod.rs")];
        places.into_iter().find(|place| place.exists())
    };
    file(path).is_some()
        || path.rsplit_once("::").is_some_and(|(module, name)| {
            file(module)
                .is_some_and(|file| fs::read_to_string(file).unwrap().contains(&format!("fn {name}(")))
        })
}

#[test]
fn the_parts_that_the_glossary_names_are_where_it_says() {
    let text = fs::read_to_string(root().join("docs/GLOSSARY.md")).unwrap();
    let (_, section) = text.split_once("## The main parts of the code").unwrap();
    for row in section.lines().filter(|line| line.starts_with('|')).skip(2) {
        let cells: Vec<&str> = row.split('|').collect();
        let place = quoted(cells[2]).next().unwrap();
        let place = root().join(place);
        let mut sources = if place.is_dir() {
            files(&place, "rs")
        } else {
            vec![place.clone()]
        };
        sources.extend(Some(place.with_extension("rs")).filter(|file| file.exists()));
        let code: String = sources
            .iter()
            .map(|file| fs::read_to_string(file).unwrap())
            .collect();
        for name in quoted(cells[1]) {
            let defined = ["struct", "enum", "trait"]
                .iter()
                .flat_map(|kind| {
                    code.match_indices(&format!("{kind} {name}"))
                        .map(|(at, found)| at + found.len())
                        .collect::<Vec<_>>()
                })
                .any(|end| !code[end..].starts_with(|next: char| next.is_alphanumeric()));
            assert!(
                defined,
                "docs/GLOSSARY.md names {name}, which is not defined in {}",
                place.display()
            );
        }
    }
}
