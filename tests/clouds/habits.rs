//! The server for tests: what its switches change, where that is not obvious.

use std::collections::BTreeSet;

use cloud_sync::catalogue::{Catalogue, Entity, Retention};
use reqwest::multipart::{Form, Part};
use reqwest::{Method, Response};
use serde_json::{Value, json};

use crate::support::baseline::{
    BaselineServer, Bulk, Ids, KEY, List, ListFault, Names, Paging, Quirks, Refusal, Slash, Uploads,
};
use crate::support::site::provider;

/// Rooms, and two paths that servers keep in one table.
fn catalogue() -> Catalogue {
    let mut leaves = Entity::new("leaves", "leaves_passes", &["id"]);
    leaves.retention = Some(Retention {
        column: "created_at".to_owned(),
        days: 90,
        cloud_days_by: None,
    });
    let passes = Entity {
        name: "passes".to_owned(),
        path: "passes".to_owned(),
        ..leaves.clone()
    };
    Catalogue::new(vec![Entity::new("rooms", "room", &["room_id"]), leaves, passes]).unwrap()
}

/// A client of a server.
struct Caller {
    cloud: BaselineServer,
    root: String,
    client: reqwest::Client,
}

impl Caller {
    async fn of(quirks: Quirks) -> Self {
        provider();
        let cloud = BaselineServer::start(&catalogue(), quirks.clone()).await;
        let prefix = if quirks.prefix.is_empty() { "" } else { "/" };
        Self {
            root: format!("{}{prefix}{}", cloud.url(), quirks.prefix),
            cloud,
            client: reqwest::Client::builder()
                .redirect(reqwest::redirect::Policy::none())
                .build()
                .unwrap(),
        }
    }

    async fn call(&self, method: Method, path: &str, body: Option<&Value>) -> Response {
        let request = self
            .client
            .request(method, format!("{}/{path}", self.root))
            .bearer_auth(KEY);
        match body {
            Some(body) => request.json(body),
            None => request,
        }
        .send()
        .await
        .unwrap()
    }

    async fn post(&self, path: &str, body: Value) -> (u16, Value) {
        said(self.call(Method::POST, path, Some(&body)).await).await
    }

    async fn get(&self, path: &str) -> Value {
        said(self.call(Method::GET, path, None).await).await.1
    }

    async fn delete(&self, path: &str) -> u16 {
        self.call(Method::DELETE, path, None).await.status().as_u16()
    }

    async fn upload(&self, directory: &str, form: Form) -> (u16, Value) {
        let request = self
            .client
            .post(format!("{}/upload/{directory}", self.root))
            .bearer_auth(KEY);
        said(request.multipart(form).send().await.unwrap()).await
    }
}

/// Status and body; a body that is not JSON as a text.
async fn said(response: Response) -> (u16, Value) {
    let status = response.status().as_u16();
    let text = response.text().await.unwrap();
    let body = serde_json::from_str(&text).unwrap_or_else(|_| text.into());
    (status, body)
}

fn form(name: &str, content: &str) -> Form {
    Form::new().part("file", Part::text(content.to_owned()).file_name(name.to_owned()))
}

fn ids(rows: &Value) -> Vec<i64> {
    let rows = rows.as_array().unwrap_or_else(|| panic!("{rows}"));
    rows.iter().map(|row| row["id"].as_i64().unwrap()).collect()
}

#[tokio::test]
async fn two_paths_are_one_table() {
    let caller = Caller::of(Quirks::laravel()).await;
    // Given a leave and a pass,
    for (path, id) in [("leaves", 4), ("passes", 5)] {
        assert_eq!(
            caller.post(path, json!({"id": id, "reason": "rest"})).await.0,
            201
        );
    }
    assert_eq!(
        caller.get("leaves").await[0],
        json!({"id": 4, "type": "leave", "reason": "rest"})
    );
    // when the leave comes as a pass, then it is no leave any more, and keeps what the post does not name;
    assert_eq!(caller.post("passes", json!({"id": 4})).await.0, 201);
    assert_eq!(
        (ids(&caller.get("leaves").await), ids(&caller.get("passes").await)),
        (vec![], vec![4, 5])
    );
    assert_eq!(caller.cloud.row("passes", "4").unwrap()["reason"], "rest");
    // and a delete of the leave takes the pass away.
    assert_eq!(caller.delete("leaves/4").await, 200);
    assert_eq!(caller.cloud.count("passes"), 1);
    assert_eq!(caller.call(Method::GET, "status", None).await.status(), 200);
    assert_eq!(caller.call(Method::GET, "sync-status", None).await.status(), 404);
}

#[tokio::test]
async fn refused_rows_are_told_as_each_server_tells_it() {
    let caller = Caller::of(Quirks::laravel()).await;
    caller.cloud.require("leaves", "room", "rooms", "room_id");
    caller.cloud.longest("rooms", "name", 5);
    caller.cloud.unique("rooms", "name");
    caller
        .cloud
        .refuse(|path, row| (path == "rooms" && row["room_id"] == 13).then(|| "no such building".to_owned()));
    caller.post("rooms", json!({"room_id": 1, "name": "A"})).await;
    for (path, row, words) in [
        (
            "leaves",
            json!({"id": 1, "room": 9, "reason": "ill"}),
            "foreign key constraint fails",
        ),
        (
            "leaves",
            json!({"id": 1, "room": 9, "reason": "ill"}),
            "values (1, ill, 9)",
        ),
        (
            "rooms",
            json!({"room_id": 2, "name": " A "}),
            "Duplicate entry 'A'",
        ),
        (
            "rooms",
            json!({"room_id": 2, "name": "Annexe"}),
            "Data too long for column 'name'",
        ),
        ("rooms", json!({"room_id": 13}), "no such building"),
    ] {
        // In place of 500, other servers answer 200, or 4xx by the contract.
        for (refused, status) in [
            (Refusal::Error500, 500),
            (Refusal::SuccessFalse200, 200),
            (Refusal::Errors200, 200),
            (Refusal::Fields400, 400),
        ] {
            caller.cloud.change(|quirks| quirks.refused = refused);
            let (code, body) = caller.post(path, row.clone()).await;
            assert_eq!(code, status, "{body}");
            match refused {
                Refusal::Errors200 => assert!(body["errors"].is_object(), "{body}"),
                Refusal::Fields400 => assert!(body["success"].is_null(), "{body}"),
                _ => assert!(
                    body["success"] == false && body["error"].as_str().unwrap().contains(words),
                    "{body}"
                ),
            }
        }
    }
    // A batch skips them, and says which only where it names keys.
    let rows =
        json!({"records": [{"room_id": 13}, {"room_id": 3, "name": "C"}, {"room_id": 4, "name": "C"}]});
    let (code, body) = caller.post("bulk/rooms", rows.clone()).await;
    assert_eq!(
        (code, &body["success"], &body["upserted"], &body["skipped"]),
        (200, &json!(true), &json!(1), &json!(2))
    );
    assert_eq!(body["errors"][0], json!({"error": "no such building"}));
    caller
        .cloud
        .change(|quirks| quirks.bulk = Bulk::SkipsRows { names_keys: true });
    assert_eq!(caller.post("bulk/rooms", rows).await.1["errors"][1]["room_id"], 4);
    // Mended, it takes all.
    caller.cloud.clear_rules();
    assert_eq!(caller.post("rooms", json!({"room_id": 13})).await.0, 201);
    assert_eq!(caller.cloud.count("rooms"), 3);
}

#[tokio::test]
async fn rows_are_stored_as_the_server_makes_them() {
    let quirks = Quirks {
        columns: vec![("rooms", vec!["room_id", "name", "tags", "at"])],
        refuses_offsets: true,
        ids: Ids::DecimalText,
        rounds: true,
        ..Quirks::laravel()
    };
    let caller = Caller::of(quirks).await;
    let row =
        json!({"room_id": 1, "name": " A ", "tags": [" b", ""], "secret": "x", "at": "2026-11-29 08:00:00"});
    assert_eq!(caller.post("rooms", row).await.0, 201);
    let stored = json!({"room_id": 1, "name": "A", "tags": ["b", null], "at": "2026-11-29 08:00:00"});
    assert_eq!(caller.cloud.rows("rooms"), [stored]);
    let (code, body) = caller
        .post("rooms", json!({"room_id": 2, "at": "2026-11-29T08:00:00+08:00"}))
        .await;
    assert!(
        code == 500 && body["error"].as_str().unwrap().contains("Incorrect datetime"),
        "{body}"
    );
    // Lists write ids in another form than they came in.
    let id = (1_i64 << 53) + 1;
    caller.cloud.remove("rooms", "1");
    caller.post("rooms", json!({"room_id": id})).await;
    assert_eq!(caller.get("rooms").await[0]["room_id"], "9007199254740992.0");
    caller.cloud.change(|quirks| quirks.ids = Ids::Decimal);
    assert_eq!(caller.get("rooms").await[0]["room_id"], 9_007_199_254_740_992.0);
    caller
        .cloud
        .change(|quirks| (quirks.ids, quirks.rounds) = (Ids::Number, false));
    assert_eq!(caller.get("rooms").await[0]["room_id"], id);
}

/// The rows of a page, the address of the next, and the total if the page says it.
fn page(response: &Value, link: Option<&str>) -> (Vec<i64>, Option<String>, Option<u64>) {
    let rows = [
        response,
        &response["data"],
        &response["results"],
        &response["passes"],
    ];
    let rows = rows
        .into_iter()
        .find(|rows| rows.is_array())
        .unwrap_or_else(|| panic!("{response}"));
    let next = [
        &response["next"],
        &response["next_page_url"],
        &response["links"]["next"],
    ];
    let next = next.iter().find_map(|next| next.as_str()).map(str::to_owned);
    let link = link.map(|link| link.split(['<', '>']).nth(1).unwrap().to_owned());
    let totals = [&response["count"], &response["total"], &response["meta"]["total"]];
    (
        ids(rows),
        next.or(link),
        totals.iter().find_map(|total| total.as_u64()),
    )
}

#[tokio::test]
async fn lists_come_in_pages() {
    for (list, paging) in [
        (List::Bare, Paging::LinkHeader),
        (List::Entity, Paging::LinkHeader),
        (List::Data, Paging::NextPageUrl),
        (List::Data, Paging::LinksNext),
        (List::Results, Paging::Next),
    ] {
        let quirks = Quirks {
            list,
            paging,
            page: Some(2),
            slash: Slash::Redirects,
            ..Quirks::contract()
        };
        let caller = Caller::of(quirks).await;
        for id in 1..=5 {
            caller.cloud.seed("passes", json!({"id": id}));
        }
        let first = format!("{}/passes/?days=9", caller.root);
        let walk = async |most: usize| {
            let (mut all, mut next, mut total) = (Vec::new(), Some(first.clone()), None);
            while let Some(address) = next.clone().filter(|_| all.len() < most) {
                let response = caller.client.get(address).bearer_auth(KEY).send().await.unwrap();
                let link = response
                    .headers()
                    .get("link")
                    .map(|link| link.to_str().unwrap().to_owned());
                let (ids, further, told) = page(&said(response).await.1, link.as_deref());
                all.extend(ids);
                (next, total) = (further, told);
            }
            (all, next, total)
        };
        // All pages together are the rows, each once,
        let (all, _, total) = walk(100).await;
        assert_eq!(all, [1, 2, 3, 4, 5], "{list:?} {paging:?}");
        assert_eq!(total.is_some(), paging != Paging::LinkHeader);
        // or one comes again for ever,
        for fault in [ListFault::NamesItself, ListFault::NeverEnds] {
            caller.cloud.change(|quirks| quirks.list_fault = Some(fault));
            let (all, next, _) = walk(20).await;
            assert!(next.is_some() && BTreeSet::from_iter(&all).len() <= 5, "{all:?}");
        }
        // or no page follows, though the total tells of more rows, or one on another server,
        caller
            .cloud
            .change(|quirks| quirks.list_fault = Some(ListFault::ForgetsNext));
        let (all, _, total) = walk(20).await;
        assert!(all.len() == 2 && total.is_none_or(|total| total == 5));
        caller
            .cloud
            .change(|quirks| quirks.list_fault = Some(ListFault::LeadsAway));
        assert!(
            walk(2)
                .await
                .1
                .unwrap()
                .starts_with("http://elsewhere.invalid/api/passes/?days=9&page=2")
        );
        // or the last one ends in its middle.
        caller
            .cloud
            .change(|quirks| quirks.list_fault = Some(ListFault::BreaksOff));
        assert!(!caller.get("passes/?page=1").await.is_string());
        assert!(caller.get("passes/?page=3").await.is_string());
    }
}

#[tokio::test]
async fn days_go_by_columns_of_the_server() {
    let caller = Caller::of(Quirks::laravel()).await;
    let now = jiff::Timestamp::now();
    let date = now.strftime("%Y-%m-%d").to_string();
    for row in [
        json!({"id": 1, "leave_start_date": "2001-01-01", "created_at": now.to_string()}),
        json!({"id": 2, "leave_start_date": "2001-01-01", "leave_end_date": date}),
        json!({"id": 3, "created_at": now.to_string()}),
    ] {
        caller.post("leaves", row).await;
    }
    assert_eq!(ids(&caller.get("leaves?days=90").await), [2]);
    caller.cloud.change(|quirks| quirks.ignores_days = true);
    assert_eq!(ids(&caller.get("leaves?days=90").await), [1, 2, 3]);
}

#[tokio::test]
async fn files_are_kept_as_each_server_keeps_them() {
    let caller = Caller::of(Quirks::laravel()).await;
    let (code, body) = caller.upload("slips", form("a.jpg", "one")).await;
    assert_eq!(
        (code, &body["path"]),
        (200, &json!("/storage/slips/1764000000_a.jpg"))
    );
    assert_eq!(body["filename"], "1764000000_a.jpg");
    // Too long for the server's own limit, and for what it reads at all.
    let (code, body) = caller
        .upload("slips", form("b.mp4", &"x".repeat(2049 << 10)))
        .await;
    let words = "The file may not be greater than 2048 kilobytes.";
    assert_eq!((code, body), (500, json!({"success": false, "error": words})));
    let (code, body) = caller.upload("slips", form("c.mp4", &"x".repeat(9 << 20))).await;
    assert!(code == 413 && body.is_string(), "{body}");
    // By base name two files are one; the part has another name, and a field must be there.
    caller.cloud.change(|quirks| {
        quirks.uploads = Some(Uploads {
            field: "image",
            requires: vec!["folder"],
            limit: None,
            names: Names::BaseName,
        });
    });
    assert_eq!(caller.upload("slips", form("a.jpg", "two")).await.0, 422);
    for (name, content) in [("alice/front.jpg", "Alice"), ("bob/front.jpg", "Bob")] {
        let part = Part::text(content).file_name(name);
        assert_eq!(
            caller.upload("slips", Form::new().part("image", part)).await.0,
            422
        );
        let part = Part::text(content).file_name(name);
        let form = Form::new().text("folder", "f").part("image", part);
        let (_, body) = caller.upload("slips", form).await;
        assert_eq!(body["url"], "https://cloud.example/storage/slips/front.jpg");
    }
    let files = caller.cloud.files();
    assert_eq!(
        (
            files.len(),
            &files[1].bytes[..],
            files[1].fields["folder"].as_str()
        ),
        (2, &b"Bob"[..], "f")
    );
}

#[tokio::test]
async fn django_wants_a_slash_and_json_server_a_new_id() {
    let caller = Caller::of(Quirks::django()).await;
    let redirect = caller.call(Method::GET, "rooms?days=3", None).await;
    assert_eq!(
        (
            redirect.status().as_u16(),
            redirect.headers()["location"].to_str().unwrap()
        ),
        (301, "/api/rooms/?days=3")
    );
    assert_eq!(caller.post("rooms", json!({"room_id": 1})).await.0, 301);
    assert_eq!(
        caller.post("rooms/", json!({"room_id": 1})).await,
        (201, json!({"room_id": 1}))
    );
    assert_eq!(caller.get("rooms/").await["count"], 1);
    assert_eq!(caller.delete("rooms/1/").await, 204);
    caller
        .cloud
        .change(|quirks| quirks.slash = Slash::RedirectsGetOnly);
    assert_eq!(caller.post("rooms", json!({"room_id": 1})).await.0, 500);

    let caller = Caller::of(Quirks::json_server(false)).await;
    let row = |name: &str| json!({"room_id": 1, "name": name});
    assert_eq!(caller.post("rooms", row("a")).await, (201, row("a")));
    let (code, body) = caller.post("rooms", row("b")).await;
    assert!(
        code == 500 && body.as_str().unwrap().contains("duplicate id"),
        "{body}"
    );
    let put = caller.call(Method::PUT, "rooms/1", Some(&row("c"))).await;
    assert!(put.status().is_success() && caller.cloud.rows("rooms") == [row("c")]);
    caller.cloud.change(|quirks| quirks.upserts = true);
    assert_eq!(caller.post("rooms", row("d")).await.0, 201);
    for path in ["sync-status", "bulk/rooms", "upload/slips"] {
        assert_eq!(caller.post(path, json!({})).await.0, 404, "{path}");
    }
}

#[tokio::test]
async fn rows_may_be_deleted_and_sent_in_batches_elsewhere() {
    let quirks = Quirks {
        delete_paths: vec![["rooms", "rooms/by-number/{key}"]],
        bulk_paths: vec![["rooms", "rooms/bulk"]],
        ..Quirks::laravel()
    };
    let caller = Caller::of(quirks).await;
    let rows = json!({"records": [{"room_id": "A/1"}, {"room_id": "A,2"}]});
    assert_eq!(caller.post("bulk/rooms", rows.clone()).await.0, 404);
    assert_eq!(caller.post("rooms/bulk", rows).await.1["upserted"], 2);
    assert_eq!(caller.delete("rooms/A%2F1").await, 404);
    assert_eq!(caller.delete("rooms/by-number/A%2F1").await, 200);
    assert_eq!(caller.cloud.rows("rooms"), [json!({"room_id": "A,2"})]);
}

#[tokio::test]
async fn what_comes_again_is_counted() {
    let caller = Caller::of(Quirks::laravel()).await;
    caller.cloud.longest("rooms", "name", 1);
    let row = |name: &str| json!({"room_id": 1, "name": name});
    for name in ["long", "long", "a", "a", "b"] {
        caller.post("rooms", row(name)).await;
    }
    caller.post("bulk/rooms", json!({"records": [row("b")]})).await;
    caller.upload("slips", form("a.jpg", "one")).await;
    caller.upload("slips", form("a.jpg", "one")).await;
    let waste = caller.cloud.waste();
    assert_eq!(
        (waste.rows, waste.again, waste.retried, waste.files_again),
        (6, 2, 1, 1)
    );
    let bytes = |name: &str| row(name).to_string().len() as u64;
    assert_eq!(
        (waste.again_bytes, waste.retried_bytes, waste.files_again_bytes),
        (2 * bytes("a"), bytes("long"), 3)
    );
    assert_eq!(waste.received["rooms"], 2 * bytes("long") + 3 * bytes("a"));
    assert!(waste.total() > waste.received["upload/slips"] && waste.percent() > 0.0);
}
