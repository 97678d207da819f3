//! The lists of a server, whole or page by page.

use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use cloud_sync::catalogue::Entity;
use jiff::civil::{Date, DateTime};
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Map, Value, json};

use super::quirks::{Ids, List, ListFault, Paging, Quirks, Slash};
use super::tables::Tables;
use crate::support::fault::Request;

/// Answers `GET path`, `GET path?days=N`, and their further pages.
pub(super) fn answer(quirks: &Quirks, entity: &Entity, tables: &Tables, request: &Request) -> Response {
    let asked = |name: &str| {
        let pairs = request.query.split('&').filter_map(|pair| pair.split_once('='));
        pairs
            .filter(|(of, _)| *of == name)
            .find_map(|(_, value)| value.parse::<i64>().ok())
    };
    let days = asked("days").filter(|_| !quirks.ignores_days);
    let rows: Vec<Value> = tables
        .of(quirks, &entity.path)
        .filter(|row| days.is_none_or(|days| is_young(quirks, entity, row, days)))
        .map(|row| shown(quirks, entity, row))
        .collect();

    let size = quirks.page.unwrap_or(usize::MAX);
    let pages = rows.len().div_ceil(size).max(1);
    let page = usize::try_from(asked("page").unwrap_or(1)).unwrap_or(1).max(1);
    let shown_page = match quirks.list_fault {
        Some(ListFault::NeverEnds) => page.min(pages),
        _ => page,
    };
    let on_it: Vec<&Value> = rows
        .iter()
        .skip((shown_page - 1) * size.min(rows.len()))
        .take(size)
        .collect();
    let next = match quirks.list_fault {
        Some(ListFault::NamesItself) => Some(page),
        Some(ListFault::NeverEnds) => Some(page + 1),
        Some(ListFault::ForgetsNext) => None,
        _ => (page < pages).then_some(page + 1),
    };
    let next = next.map(|page| address(quirks, entity, request, days, page));

    let mut headers = HeaderMap::new();
    headers.insert(header::CONTENT_TYPE, "application/json".parse().unwrap());
    let body = json!(on_it);
    let body = match quirks.list {
        List::Bare => body,
        List::Data => wrapped(quirks, "data", body, rows.len(), page, next.as_deref()),
        List::Results => wrapped(quirks, "results", body, rows.len(), page, next.as_deref()),
        List::Entity => wrapped(quirks, &entity.name, body, rows.len(), page, next.as_deref()),
    };
    if quirks.list == List::Bare && quirks.page.is_some() {
        headers.insert("x-total-count", rows.len().into());
    }
    if let (Paging::LinkHeader, Some(next)) = (quirks.paging, &next) {
        headers.insert(header::LINK, format!("<{next}>; rel=\"next\"").parse().unwrap());
    }
    let mut text = body.to_string();
    if quirks.list_fault == Some(ListFault::BreaksOff) && page == pages {
        text.truncate(
            text.char_indices()
                .nth(text.chars().count() / 2)
                .map_or(0, |(at, _)| at),
        );
    }
    (StatusCode::OK, headers, text).into_response()
}

/// The object around the rows of a page.
fn wrapped(quirks: &Quirks, name: &str, rows: Value, total: usize, page: usize, next: Option<&str>) -> Value {
    let mut body = Map::from_iter([(name.to_owned(), rows)]);
    if quirks.page.is_some() {
        match quirks.paging {
            Paging::LinkHeader => {}
            Paging::NextPageUrl => body.extend([
                ("current_page".to_owned(), page.into()),
                ("next_page_url".to_owned(), next.into()),
                ("total".to_owned(), total.into()),
            ]),
            Paging::LinksNext => body.extend([
                ("links".to_owned(), json!({"prev": null, "next": next})),
                ("meta".to_owned(), json!({"current_page": page, "total": total})),
            ]),
            Paging::Next => body.extend([
                ("count".to_owned(), total.into()),
                ("previous".to_owned(), Value::Null),
                ("next".to_owned(), next.into()),
            ]),
        }
    }
    body.into()
}

/// The address of a page.
fn address(quirks: &Quirks, entity: &Entity, request: &Request, days: Option<i64>, page: usize) -> String {
    let host = match quirks.list_fault {
        Some(ListFault::LeadsAway) => "elsewhere.invalid",
        _ => request
            .headers
            .get(header::HOST)
            .map_or("", |host| host.to_str().unwrap()),
    };
    let slash = if quirks.slash == Slash::Never { "" } else { "/" };
    let days = days.map_or_else(String::new, |days| format!("days={days}&"));
    format!(
        "http://{host}{}/{}{slash}?{days}page={page}",
        quirks.root(),
        entity.path
    )
}

/// Whether a row is at most so many days old.
fn is_young(quirks: &Quirks, entity: &Entity, row: &Value, days: i64) -> bool {
    let limit = Timestamp::now() - SignedDuration::from_hours(24 * days);
    let time_in = |column: &str| row.get(column).and_then(Value::as_str).and_then(time_of);
    match quirks.days.iter().find(|(of, _)| *of == entity.path) {
        Some((_, columns)) => columns
            .iter()
            .any(|column| time_in(column).is_some_and(|at| at >= limit)),
        None => entity
            .retention
            .as_ref()
            .and_then(|window| time_in(&window.column))
            .is_none_or(|at| at >= limit),
    }
}

/// The time that a text tells; one without an offset is taken as UTC, a date as its end.
fn time_of(text: &str) -> Option<Timestamp> {
    let local = |at: DateTime| Some(at.to_zoned(TimeZone::UTC).ok()?.timestamp());
    if let Some(date) = text.parse::<Date>().ok().filter(|_| text.len() == 10) {
        return local(date.at(23, 59, 59, 0));
    }
    let with_offset = text.parse().ok();
    with_offset.or_else(|| local(text.parse().ok()?))
}

/// A row as lists show it.
fn shown(quirks: &Quirks, entity: &Entity, row: &Value) -> Value {
    let mut row = row.clone();
    for (column, value) in row.as_object_mut().into_iter().flatten() {
        let Some(mut number) = value.as_i64() else {
            continue;
        };
        if quirks.rounds && number.unsigned_abs() > 1 << 53 {
            number = number as f64 as i64;
            *value = number.into();
        }
        if entity.key.contains(column) {
            *value = match quirks.ids {
                Ids::Number => number.into(),
                Ids::Text => number.to_string().into(),
                Ids::Decimal => (number as f64).into(),
                Ids::DecimalText => format!("{number}.0").into(),
            };
        }
    }
    row
}
