//! `check --cloud`: what the cloud's server is like, line by line, and which settings it needs.
//!
//! Nothing there is changed: lists are read, a bulk request has no rows, and methods are asked for by
//! `OPTIONS`.

use std::collections::BTreeMap;
use std::time::Instant;

use jiff::civil::Date;
use jiff::{Timestamp, ToSpan};
use reqwest::Method;
use serde_json::{Value, json};

use super::cloud;
use super::preconditions::Finding;
use crate::catalogue::{Entity, EntityIndex};
use crate::change::Epoch;
use crate::config::Settings;
use crate::deliver::{Capabilities, ChangeOrigin, Cloud};
use crate::error::{Error, Kind};
use crate::wire::paths::SYNC_STATUS;

/// Where servers have their calls, below `cloud.url`.
const PREFIXES: [&str; 5] = ["", "sync", "api", "api/sync", "v1"];

/// Where servers have their status.
const STATUSES: [&str; 4] = [SYNC_STATUS, "status", "health", "ping"];

/// Rows of a list that are looked at.
const LOOKED_AT: usize = 5_000;

/// Looks at the cloud, and at its list of each entity.
pub async fn check(settings: &Settings) -> Vec<Finding> {
    let cloud = match cloud(settings) {
        Ok(cloud) => cloud,
        Err(error) => return vec![Finding::new("cloud", Err(error))],
    };
    let origin = ChangeOrigin {
        source_id: settings.source.source_id.clone().unwrap_or_default(),
        epoch: Epoch(1),
        database: String::new(),
    };
    let began = Instant::now();
    let info = match cloud.handshake(&origin).await {
        Ok(info) => info,
        Err(failure) => {
            let mut findings = vec![Finding::new("status", Err(failure.into()))];
            findings.extend(elsewhere(&cloud).await);
            return findings;
        }
    };
    let path = at(settings, &settings.cloud.status_path);
    let mut findings = vec![Finding::new(
        "status",
        Ok(format!(
            "GET /{path} is answered in {} ms, and the key is taken",
            began.elapsed().as_millis()
        )),
    )];
    findings.push(capabilities(settings, &cloud, info.capabilities).await);
    for (entity_index, entity) in settings.catalogue.indexed() {
        findings.push(list(&cloud, entity_index, entity, info.capabilities).await);
    }
    findings.extend(one_table(settings, info.capabilities));
    findings
}

/// A path with the prefix before it.
fn at(settings: &Settings, path: &str) -> String {
    match settings.cloud.prefix.as_str() {
        "" => path.to_owned(),
        prefix => format!("{prefix}/{path}"),
    }
}

/// Where the status may be, if not where the settings say.
async fn elsewhere(cloud: &Cloud) -> Option<Finding> {
    for prefix in PREFIXES {
        for status in STATUSES {
            let path = [prefix, status].join("/");
            let path = path.trim_start_matches('/');
            let Ok(probed) = cloud.probe(Method::GET, path, None).await else {
                continue;
            };
            if probed.is_well() {
                return Some(Finding::advice(
                    "status",
                    format!("GET /{path} answers JSON"),
                    match prefix {
                        "" => format!("it needs cloud.status_path = \"{status}\""),
                        _ => format!(
                            "it needs cloud.prefix = \"{prefix}\" and cloud.status_path = \"{status}\""
                        ),
                    },
                ));
            }
        }
    }
    None
}

/// What the server can do besides the four calls, also if it does not list that.
async fn capabilities(settings: &Settings, cloud: &Cloud, used: Capabilities) -> Finding {
    let names = used.names();
    let detail = if names.is_empty() {
        "none is used: rows go one by one, and deletes stay here".to_owned()
    } else {
        format!("used: {}", names.join(", "))
    };
    let mut more: Vec<&str> = Vec::new();
    if let Some(entity) = settings.catalogue.entities().first().filter(|_| !used.changes) {
        let one = at(settings, &entity.delete_path("0"));
        let options = cloud.probe(Method::OPTIONS, &one, None).await;
        if !used.delete && options.is_ok_and(|probed| probed.allows.iter().any(|method| method == "DELETE")) {
            more.push("delete");
        }
        let none = json!({"records": []});
        let bulk = cloud
            .probe(Method::POST, &at(settings, &entity.bulk_path()), Some(&none))
            .await;
        if !used.bulk && bulk.is_ok_and(|probed| probed.is_well()) {
            more.push("bulk");
        }
    }
    if more.is_empty() {
        return Finding::new("capabilities", Ok(detail));
    }
    let all: Vec<String> = names
        .iter()
        .chain(&more)
        .map(|name| format!("\"{name}\""))
        .collect();
    let advice = format!(
        "it seems to know {} too: set cloud.capabilities = [{}]",
        more.join(" and "),
        all.join(", ")
    );
    Finding::advice("capabilities", detail, advice)
}

/// What was seen of a list.
#[derive(Default)]
struct SeenList {
    rows: u64,
    without_key: u64,
    names: Vec<String>,
    /// The oldest and the newest date of each column that has dates.
    dates: BTreeMap<String, (Date, Date)>,
}

impl SeenList {
    fn note(&mut self, row: &str, key: &[String]) {
        self.rows += 1;
        if self.rows as usize > LOOKED_AT {
            return;
        }
        let Ok(Value::Object(fields)) = serde_json::from_str::<Value>(row) else {
            return;
        };
        if key
            .iter()
            .any(|column| fields.get(column).is_none_or(Value::is_null))
        {
            self.without_key += 1;
        }
        if self.names.is_empty() {
            self.names = fields.keys().cloned().collect();
        }
        for (name, value) in &fields {
            let Some(date) = value.as_str().and_then(day) else {
                continue;
            };
            let (oldest, newest) = self.dates.entry(name.clone()).or_insert((date, date));
            (*oldest, *newest) = ((*oldest).min(date), (*newest).max(date));
        }
    }
}

/// The day of a date or a date with a time.
fn day(text: &str) -> Option<Date> {
    let date = text.get(..10)?;
    let rest = &text[10..];
    (rest.is_empty() || rest.starts_with(['T', ' '])).then(|| date.parse().ok())?
}

async fn list(
    cloud: &Cloud,
    entity_index: EntityIndex,
    entity: &Entity,
    capabilities: Capabilities,
) -> Finding {
    let subject = format!("list of {}", entity.name);
    let key = entity.cloud_key();
    let days = entity.retention.as_ref().map(|window| window.days);
    let mut seen = SeenList::default();
    let began = Instant::now();
    let listed = cloud.list(entity_index, days, |row| {
        seen.note(row.get(), &key);
        Ok(())
    });
    let pages = match listed.await {
        Ok(pages) => pages,
        Err(failure) if failure.status() == Some(404) && capabilities.schema => {
            return Finding::new(
                subject,
                Ok("none yet: it is made from the first schema".to_owned()),
            );
        }
        Err(failure) if failure.status() == Some(404) => {
            let cause = format!("the cloud has no path {}", entity.path);
            let error = Error::new(Kind::CloudRefused, format!("list {}", entity.name), cause);
            return Finding::new(
                subject,
                Err(error.remedy("set path of this entity to what the server calls it")),
            );
        }
        Err(failure) => return Finding::new(subject, Err(failure.into())),
    };
    let span = days.map_or_else(String::new, |days| format!(" of {days} days"));
    let detail = format!(
        "{} rows{span} in {pages} {}, {} ms",
        seen.rows,
        if pages == 1 { "page" } else { "pages" },
        began.elapsed().as_millis()
    );
    if seen.without_key > 0 {
        return Finding::new(subject, Err(without_key(entity, &key, &seen)));
    }
    match otherwise_counted(entity, &seen) {
        Some(advice) => Finding::advice(subject, detail, advice),
        None => Finding::new(subject, Ok(detail)),
    }
}

fn without_key(entity: &Entity, key: &[String], seen: &SeenList) -> Error {
    let cause = format!(
        "{} of its rows have no {}; a row has {}",
        seen.without_key,
        key.join(", "),
        seen.names.join(", ")
    );
    Error::new(Kind::CloudProtocol, format!("compare {}", entity.name), cause).remedy(format!(
        "name the cloud's columns, as in rename = {{ {} = \"id\" }}; or set trust_list = false",
        entity.key[0]
    ))
}

/// Advice where the list has rows that are older by the window's column than what was asked for.
fn otherwise_counted(entity: &Entity, seen: &SeenList) -> Option<String> {
    let window = entity
        .retention
        .as_ref()
        .filter(|window| window.cloud_days_by.is_none())?;
    // A day of grace: the two sides may be in different zones.
    let today = Timestamp::now().to_zoned(jiff::tz::TimeZone::UTC).date();
    let first = today.checked_sub((i64::from(window.days) + 2).days()).ok()?;
    let column = entity.cloud_name(&window.column);
    let (oldest, _) = seen.dates.get(column)?;
    if *oldest >= first {
        return None;
    }
    let young: Vec<&str> = seen
        .dates
        .iter()
        .filter(|(name, (oldest, _))| *name != column && *oldest >= first)
        .map(|(name, _)| name.as_str())
        .collect();
    let days = window.days;
    Some(match young.as_slice() {
        [] => format!(
            "it has rows whose {column} is older than {days} days, so it leaves ?days out of account: that costs time, and \
             does no harm"
        ),
        [one] => format!(
            "it has rows whose {column} is older than {days} days: it counts by {one}; set retention.cloud_days_by = \"{one}\""
        ),
        several => format!(
            "it has rows whose {column} is older than {days} days: it counts by another column, {}; set retention.cloud_days_by",
            several.join(" or ")
        ),
    })
}

/// Entities over one table of the site: they may be paths over one table there too.
fn one_table(settings: &Settings, capabilities: Capabilities) -> Option<Finding> {
    if capabilities.changes || !capabilities.delete {
        return None;
    }
    let mut tables: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for entity in settings.catalogue.entities() {
        tables.entry(&entity.table).or_default().push(&entity.name);
    }
    let several = tables.into_values().find(|names| names.len() > 1)?;
    let how = match settings.cloud.delete_moved {
        true => "is deleted under its old path, and then sent under the new one (cloud.delete_moved)",
        false => "is sent under its new path, and not deleted under the old one (cloud.delete_moved)",
    };
    let detail = format!("a row that moves between {} {how}", several.join(" and "));
    Some(Finding::new("one table", Ok(detail)))
}
