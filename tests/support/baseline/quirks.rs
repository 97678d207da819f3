//! The habits in which cloud servers differ, as switches.
//!
//! [`Quirks::contract`] is the server that the contract describes; the other constructors change what is
//! different at servers that exist. A test changes single switches: `Quirks { page: Some(15),
//! ..Quirks::django() }`.

#![allow(dead_code, reason = "each program uses a part of it")]

use serde_json::{Value, json};

/// How a server behaves.
#[derive(Debug, Clone)]
pub(crate) struct Quirks {
    /// The path of `cloud.url`: empty, or as `/api`.
    pub(crate) base: &'static str,
    /// Below it, where every call is: empty, or as `sync`.
    pub(crate) prefix: &'static str,
    /// Where the status is, below the prefix. `None`: it has no status.
    pub(crate) status_path: Option<&'static str>,
    /// What the status answers, without the capabilities.
    pub(crate) status: Value,
    /// What it can do: `bulk`, `delete`.
    pub(crate) capabilities: Vec<String>,
    /// Whether the status lists the capabilities.
    pub(crate) lists_capabilities: bool,
    /// Whether it takes every key, and none.
    pub(crate) takes_any_key: bool,
    /// What it does about paths without a slash at the end.
    pub(crate) slash: Slash,
    /// The longest body; a longer one gets 413 and a page.
    pub(crate) post_limit: Option<usize>,

    /// Where rows of a path are deleted, if not at `path/key`: path, template with `{key}`.
    pub(crate) delete_paths: Vec<[&'static str; 2]>,
    /// Where batches of a path go, if not to `bulk/path`: path, address.
    pub(crate) bulk_paths: Vec<[&'static str; 2]>,
    /// Whether `PUT path/key` replaces a row that is there.
    pub(crate) put: bool,

    /// Paths over one table by a type column: path, table, column, value.
    pub(crate) shared: Vec<[&'static str; 4]>,
    /// The columns that it knows of a path; others are dropped without a word.
    pub(crate) columns: Vec<(&'static str, Vec<&'static str>)>,
    /// Whether texts lose the blanks at their ends.
    pub(crate) trims: bool,
    /// Whether empty texts become null.
    pub(crate) empty_is_null: bool,
    /// Whether its database refuses date-times with an offset.
    pub(crate) refuses_offsets: bool,
    /// Whether the POST of a key that is there updates the row. Otherwise it gets 500.
    pub(crate) upserts: bool,
    /// Whether an update keeps the columns that the posted row does not have.
    pub(crate) merges: bool,
    /// What an accepted row is answered.
    pub(crate) accepted: Accepted,
    /// How a refused row is answered.
    pub(crate) refused: Refusal,
    /// What a batch with refused rows does.
    pub(crate) bulk: Bulk,

    /// What surrounds the rows of a list.
    pub(crate) list: List,
    /// The rows of a page; `None`: all rows are on one.
    pub(crate) page: Option<usize>,
    /// Where a page names the next one.
    pub(crate) paging: Paging,
    /// What is wrong with its lists.
    pub(crate) list_fault: Option<ListFault>,
    /// The columns by which `?days=N` goes: a row is listed if one of them is young. Of a path that is not
    /// here it is the catalogue's column, and rows without a value are listed.
    pub(crate) days: Vec<(&'static str, Vec<&'static str>)>,
    /// Whether `?days=N` changes nothing.
    pub(crate) ignores_days: bool,
    /// How lists write keys that are whole numbers.
    pub(crate) ids: Ids,
    /// Whether lists round whole numbers beyond 2^53.
    pub(crate) rounds: bool,

    /// How it takes files; `None`: not at all.
    pub(crate) uploads: Option<Uploads>,
}

/// What a server does about a path that has no slash at its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Slash {
    /// That is how its paths are.
    Never,
    /// Sends 301 to the path with the slash.
    Redirects,
    /// The same; but a POST, PUT or DELETE gets 500 with a page (Django with `DEBUG`).
    RedirectsGetOnly,
}

/// The body that an accepted row is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Accepted {
    /// `{"success":true}`
    Success,
    /// `{"success":true,"data":{…the row…}}`
    Data,
    /// The row itself, whatever columns it has.
    Row,
    /// 204, no body.
    Empty,
}

/// The answer to a refused row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// 409 or 422 `{"message":words}`
    Status4xx,
    /// 400 `{"column":[words]}`
    Fields400,
    /// 500 `{"success":false,"error":words}`, the words with the row's values.
    Error500,
    /// 200 `{"success":false,"error":words}`, the words with the row's values.
    SuccessFalse200,
    /// 200 `{"errors":{"column":[words]}}`
    Errors200,
}

/// What a batch with refused rows does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Bulk {
    /// It is refused whole, as a row is.
    AllOrNone,
    /// Good rows are stored; `{"success":true,"upserted":N,"skipped":M,"errors":[{"error":words},…]}`.
    SkipsRows {
        /// Whether an error has the row's key with the words.
        names_keys: bool,
    },
}

/// What surrounds the rows of a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum List {
    /// `[…]`
    Bare,
    /// `{"data":[…]}`
    Data,
    /// `{"results":[…],"count":N,"next":…,"previous":…}`
    Results,
    /// `{"rooms":[…]}`: the entity's name.
    Entity,
}

/// Where a page names the next one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Paging {
    /// The header `Link: <…>; rel="next"`.
    LinkHeader,
    /// The member `next_page_url`, with `total`.
    NextPageUrl,
    /// The member `next` of `links`, with `meta.total`.
    LinksNext,
    /// The member `next`, with `count`.
    Next,
}

/// What is wrong with a server's lists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ListFault {
    /// Each page names itself as the next one.
    NamesItself,
    /// There is always a next page, at another address, with the rows of the last one.
    NeverEnds,
    /// The last page's text ends in its middle, with 200.
    BreaksOff,
    /// No page names a next one, although the total tells that there are more rows.
    ForgetsNext,
    /// The next page is on another server.
    LeadsAway,
}

/// How lists write keys that are whole numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ids {
    /// `1`
    Number,
    /// `"1"`
    Text,
    /// `1.0`
    Decimal,
    /// `"1.0"`
    DecimalText,
}

/// How a server takes files.
#[derive(Debug, Clone)]
pub(crate) struct Uploads {
    /// The name of the part with the file.
    pub(crate) field: &'static str,
    /// Further form fields that it requires.
    pub(crate) requires: Vec<&'static str>,
    /// The longest file; a longer one gets 500.
    pub(crate) limit: Option<usize>,
    /// Under which name it keeps a file.
    pub(crate) names: Names,
}

/// Under which name a server keeps a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Names {
    /// As it was sent; the answer's path is `directory/name`.
    AsSent,
    /// `<time>_<name>`; the answer's path is `/storage/directory/<time>_<name>`, with `filename`.
    WithTime,
    /// The part after the last slash: a later file replaces an earlier one. Paths as with the time.
    BaseName,
}

impl Default for Quirks {
    fn default() -> Self {
        Self::contract()
    }
}

impl Quirks {
    /// The server that the contract describes, without a capability.
    pub(crate) fn contract() -> Self {
        Self {
            base: "/api",
            prefix: "",
            status_path: Some("sync-status"),
            status: json!({"status": "ok", "message": "ready", "last_sync": null}),
            capabilities: Vec::new(),
            lists_capabilities: true,
            takes_any_key: false,
            slash: Slash::Never,
            post_limit: None,
            delete_paths: Vec::new(),
            bulk_paths: Vec::new(),
            put: false,
            shared: Vec::new(),
            columns: Vec::new(),
            trims: false,
            empty_is_null: false,
            refuses_offsets: false,
            upserts: true,
            merges: false,
            accepted: Accepted::Success,
            refused: Refusal::Status4xx,
            bulk: Bulk::AllOrNone,
            list: List::Bare,
            page: None,
            paging: Paging::LinkHeader,
            list_fault: None,
            days: Vec::new(),
            ignores_days: false,
            ids: Ids::Number,
            rounds: false,
            uploads: Some(Uploads {
                field: "file",
                requires: Vec::new(),
                limit: None,
                names: Names::AsSent,
            }),
        }
    }

    /// A Laravel server as it was written for the old script: all below `/api/sync`, refused rows get 500,
    /// batches skip rows, `leaves` and `passes` are one table.
    pub(crate) fn laravel() -> Self {
        Self {
            prefix: "sync",
            status_path: Some("status"),
            status: json!({"success": true, "status": "online", "message": "Sync API is running"}),
            capabilities: vec!["bulk".to_owned(), "delete".to_owned()],
            lists_capabilities: false,
            post_limit: Some(8 << 20),
            shared: vec![
                ["leaves", "leaves_passes", "type", "leave"],
                ["passes", "leaves_passes", "type", "pass"],
            ],
            trims: true,
            empty_is_null: true,
            merges: true,
            accepted: Accepted::Data,
            refused: Refusal::Error500,
            bulk: Bulk::SkipsRows { names_keys: false },
            days: vec![
                ("attendance-records", vec!["record_date"]),
                ("leaves", vec!["leave_start_date", "leave_end_date"]),
                ("passes", vec!["pass_date", "created_at"]),
                ("recognition-logs", vec!["recognition_time"]),
                ("stream-recordings", vec!["start_time"]),
            ],
            uploads: Some(Uploads {
                field: "file",
                requires: Vec::new(),
                limit: Some(2048 << 10),
                names: Names::WithTime,
            }),
            ..Self::contract()
        }
    }

    /// A Django REST server with pages of 100 rows and a slash at the end of each path; refused rows get 400.
    pub(crate) fn django() -> Self {
        Self {
            capabilities: vec!["delete".to_owned()],
            slash: Slash::Redirects,
            trims: true,
            merges: true,
            accepted: Accepted::Row,
            refused: Refusal::Fields400,
            list: List::Results,
            page: Some(100),
            paging: Paging::Next,
            ..Self::contract()
        }
    }

    /// json-server: no key, no status, no files, no days; a row that is there gets 500, unless it was taught
    /// to upsert.
    pub(crate) fn json_server(upsert: bool) -> Self {
        Self {
            base: "",
            status_path: None,
            capabilities: vec!["delete".to_owned()],
            lists_capabilities: false,
            takes_any_key: true,
            put: true,
            upserts: upsert,
            accepted: Accepted::Row,
            ignores_days: true,
            uploads: None,
            ..Self::contract()
        }
    }

    /// The path that every call begins with.
    pub(super) fn root(&self) -> String {
        match self.prefix {
            "" => self.base.to_owned(),
            prefix => format!("{}/{prefix}", self.base),
        }
    }

    /// Whether it can do this.
    pub(super) fn can(&self, name: &str) -> bool {
        self.capabilities.iter().any(|one| one == name)
    }

    /// The table of a path, and of a shared one the type's column and value.
    pub(super) fn table<'q>(&'q self, path: &'q str) -> (&'q str, Option<(&'q str, &'q str)>) {
        let shared = self.shared.iter().find(|[of, ..]| *of == path);
        shared.map_or((path, None), |[_, table, column, value]| {
            (*table, Some((*column, *value)))
        })
    }
}

/// The contract's server with these capabilities.
impl From<&[&str]> for Quirks {
    fn from(capabilities: &[&str]) -> Self {
        Self {
            capabilities: capabilities.iter().map(|&name| name.to_owned()).collect(),
            ..Self::contract()
        }
    }
}

/// The contract's server with these capabilities.
impl<const N: usize> From<&[&str; N]> for Quirks {
    fn from(capabilities: &[&str; N]) -> Self {
        Self::from(capabilities.as_slice())
    }
}
