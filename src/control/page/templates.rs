//! The templates of the page, and its parts. They are compiled in, and escape all text.

use std::collections::BTreeMap;

use askama::Template;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};

use super::chart::Chart;
use super::view::{QuarantineRow, View};
use crate::control::RowInquiry;
use crate::control::lag_history::LagRange;

/// The whole page.
#[derive(Template)]
#[template(path = "page.html", config = "src/control/page/askama.toml")]
pub(super) struct PageTemplate<'a> {
    pub(super) view: &'a View,
    pub(super) chart: &'a Chart,
    /// The token of all forms of the page.
    pub(super) form_token: &'a str,
    /// Whether the session may change something.
    pub(super) may_act: bool,
    pub(super) notice: Option<&'a str>,
    /// The server's time, in milliseconds since 1970.
    pub(super) now_ms: i64,
}

/// The form that asks for the token.
#[derive(Template)]
#[template(path = "sign_in.html", config = "src/control/page/askama.toml")]
pub(super) struct SignInTemplate<'a> {
    pub(super) form_token: &'a str,
    pub(super) refusal: Option<&'a str>,
    /// Whether the token would go over the network without encryption.
    pub(super) is_open: bool,
}

/// A row in quarantine, before somebody decides.
#[derive(Template)]
#[template(path = "entry.html", config = "src/control/page/askama.toml")]
pub(super) struct EntryTemplate<'a> {
    pub(super) rows: &'a [QuarantineRow],
    pub(super) position: i64,
    /// Whether the session may change something.
    pub(super) may_act: bool,
    pub(super) form_token: &'a str,
}

/// Why a row is not in the cloud.
#[derive(Template)]
#[template(path = "why.html", config = "src/control/page/askama.toml")]
pub(super) struct WhyTemplate<'a> {
    pub(super) inquiry: &'a RowInquiry,
    pub(super) reason: String,
    pub(super) is_delivered: bool,
}

/// A message in place of the page.
#[derive(Template)]
#[template(path = "message.html", config = "src/control/page/askama.toml")]
pub(super) struct MessageTemplate<'a> {
    pub(super) text: &'a str,
}

/// A template as an answer.
pub(super) fn respond(template: &impl Template) -> Response {
    match template.render() {
        Ok(html) => ([(header::CONTENT_TYPE, "text/html; charset=utf-8")], html).into_response(),
        Err(error) => {
            tracing::error!(%error, "a template of the page failed");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}

/// The page's parts that change, by the ids of their elements.
pub(super) type Parts = BTreeMap<&'static str, String>;

macro_rules! part {
    ($name:ident, $path:literal) => {
        #[derive(Template)]
        #[template(path = $path, config = "src/control/page/askama.toml")]
        struct $name<'a> {
            view: &'a View,
        }
    };
}

part!(SentencePart, "part_sentence.html");
part!(SyncPart, "part_sync.html");
part!(EntitiesPart, "part_entities.html");
part!(QuarantinePart, "part_quarantine.html");
part!(FilesPart, "part_files.html");
part!(FactsPart, "part_facts.html");
part!(IncidentsPart, "part_incidents.html");
part!(PausePart, "part_pause.html");

/// The lag over time.
#[derive(Template)]
#[template(path = "part_lag.html", config = "src/control/page/askama.toml")]
struct LagPart<'a> {
    view: &'a View,
    chart: &'a Chart,
}

/// Renders the parts.
pub(super) fn parts(view: &View) -> Parts {
    let mut parts: Vec<(&'static str, askama::Result<String>)> = vec![
        ("sentence", SentencePart { view }.render()),
        ("sync-state", SyncPart { view }.render()),
        ("entities", EntitiesPart { view }.render()),
        ("quarantined", QuarantinePart { view }.render()),
        ("files-state", FilesPart { view }.render()),
        ("facts", FactsPart { view }.render()),
        ("incidents", IncidentsPart { view }.render()),
        ("pause-state", PausePart { view }.render()),
    ];
    for chart in &view.charts {
        parts.push((chart_id(chart.range), LagPart { view, chart }.render()));
    }
    // Writing to a string does not fail.
    parts
        .into_iter()
        .filter_map(|(id, html)| Some((id, html.ok()?)))
        .collect()
}

/// The id of a picture's element.
fn chart_id(range: LagRange) -> &'static str {
    match range {
        LagRange::Hour => "lag-hour",
        LagRange::Day => "lag-day",
        LagRange::Week => "lag-week",
    }
}
