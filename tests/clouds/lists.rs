//! Lists in all their forms, and lists that are not to be believed.

use cloud_sync::catalogue::EntityIndex;
use cloud_sync::existence::CloudRows;
use cloud_sync::replicator;

use super::{connected, pushed, sync};
use crate::support::baseline::{Ids, List, ListFault, Paging, Quirks};
use crate::support::site::entity;

const TABLES: &str = "create table room (room_id bigint primary key, room_no text, day date default \
                      current_date, created_at timestamptz not null default now())";

fn rooms(more: &str) -> String {
    entity("rooms", "room", &["room_id"], more)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pages_are_followed_in_all_their_forms() {
    let forms = [
        (List::Bare, Paging::LinkHeader),
        (List::Data, Paging::NextPageUrl),
        (List::Data, Paging::LinksNext),
        (List::Results, Paging::Next),
        (List::Entity, Paging::LinkHeader),
    ];
    for (nth, (list, paging)) in forms.into_iter().enumerate() {
        let quirks = Quirks {
            list,
            paging,
            page: Some(15),
            ..Quirks::from(&["delete"])
        };
        let (site, server) = connected(&format!("pages_{nth}"), quirks, "", TABLES, &rooms("")).await;
        let running = site.replicate();
        site.run("insert into room select n, 'R' || n from generate_series(1, 100) n")
            .await;
        running.caught_up().await;
        server.remove("rooms", "77");
        // The one that is missing is found, on whichever page.
        let report = sync(&running, false).await;
        assert!(
            report.success() && pushed(&report) == 1,
            "{list:?} {paging:?} {report:?}"
        );
        running.end().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_list_that_is_not_whole_is_an_error() {
    let quirks = Quirks {
        page: Some(15),
        list: List::Results,
        paging: Paging::Next,
        ..Quirks::contract()
    };
    let (site, server) = connected("not_whole", quirks, "", TABLES, &rooms("")).await;
    let running = site.replicate();
    site.run("insert into room select n, 'R' || n from generate_series(1, 100) n")
        .await;
    running.caught_up().await;
    for (fault, said) in [
        (ListFault::NamesItself, "repeats itself"),
        (ListFault::NeverEnds, "repeats itself"),
        (ListFault::BreaksOff, "ends before its array does"),
        (ListFault::ForgetsNext, "says that it has 100 rows"),
        (ListFault::LeadsAway, "on another server"),
    ] {
        server.change(|quirks| quirks.list_fault = Some(fault));
        server.forget_requests();
        let report = sync(&running, false).await;
        // Nothing counts as missing then.
        assert!(
            report.errors().iter().any(|error| error.contains(said)),
            "{fault:?}: {report:?}"
        );
        assert!(
            server.calls().iter().all(|call| !call.starts_with("POST")),
            "{fault:?}"
        );
    }
    running.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_are_found_as_the_server_writes_them_or_it_is_said() {
    for (nth, (ids, rounds, found)) in [
        (Ids::Text, false, true),
        (Ids::Decimal, false, true),
        (Ids::DecimalText, false, false),
        (Ids::Number, true, false),
    ]
    .into_iter()
    .enumerate()
    {
        let quirks = Quirks {
            ids,
            rounds,
            ..Quirks::contract()
        };
        let (site, server) = connected(&format!("ids_{nth}"), quirks, "", TABLES, &rooms("")).await;
        let running = site.replicate();
        let first = if rounds { 9_007_199_254_740_993_i64 } else { 7 };
        site.run(&format!(
            "insert into room select {first} + 2 * n from generate_series(0, 2) n"
        ))
        .await;
        running.caught_up().await;
        let report = sync(&running, false).await;
        assert_eq!(report.success(), found, "{ids:?} {report:?}");
        if !found {
            let error = report.errors().join(" ");
            assert!(
                error.contains("does not list") && error.contains("trust_list"),
                "{error}"
            );
            assert_eq!(report.errors().len(), 1, "{error}");
        }
        assert_eq!(server.count("rooms"), 3);
        running.end().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_untrusted_list_is_not_asked_for() {
    let quirks = Quirks {
        rounds: true,
        ..Quirks::from(&["delete"])
    };
    // Given rows from before the replication,
    let tables =
        format!("{TABLES}; insert into room select 9007199254740993 + n from generate_series(1, 50) n");
    let (site, server) = connected("untrusted", quirks, "", &tables, &rooms("trust_list = false")).await;
    let running = site.replicate();
    // then a first sync pushes them, a second one nothing, and no list is asked for.
    let report = sync(&running, false).await;
    assert!(report.success() && pushed(&report) == 50, "{report:?}");
    let report = sync(&running, false).await;
    assert!(report.success() && pushed(&report) == 0, "{report:?}");
    assert_eq!(server.count("rooms"), 50);
    // What was lost there comes by force.
    server.remove("rooms", "9007199254740994");
    let report = sync(&running, true).await;
    assert!(report.success() && pushed(&report) == 50, "{report:?}");
    assert_eq!(server.count("rooms"), 50);
    site.run("delete from room where room_id < 9007199254741000")
        .await;
    running.caught_up().await;
    assert_eq!(server.count("rooms"), 44);
    assert!(
        !server.calls().contains(&"GET rooms".to_owned()),
        "{:?}",
        server.calls()
    );
    running.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn days_are_counted_by_the_servers_column() {
    let quirks = Quirks {
        days: vec![("rooms", vec!["day"])],
        ..Quirks::contract()
    };
    let retention = |more: &str| {
        rooms(&format!(
            "retention = {{ column = \"created_at\", days = 30{more} }}"
        ))
    };
    for (hint, more, aside) in [("days_own", "", 10), ("days_by", ", cloud_days_by = \"day\"", 0)] {
        let (site, server) = connected(hint, quirks.clone(), "", TABLES, &retention(more)).await;
        let running = site.replicate();
        // Given young rows, of which the server counts some as old,
        site.run(
            "insert into room select n, 'R', current_date - case when n <= 10 then 60 else 0 end from \
                  generate_series(1, 50) n",
        )
        .await;
        running.caught_up().await;
        // then these are pushed again in vain, unless the configuration says by which column the server counts.
        let report = sync(&running, false).await;
        assert_eq!(pushed(&report), aside, "{report:?}");
        assert_eq!(report.success(), aside == 0);
        assert_eq!(server.count("rooms"), 50);
        // A row that both count is compared.
        server.remove("rooms", "50");
        assert_eq!(pushed(&sync(&running, false).await), aside + 1);
        running.end().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_million_rows_cost_the_memory_of_their_keys_whatever_wraps_them() {
    let quirks = Quirks {
        list: List::Data,
        ..Quirks::contract()
    };
    let (site, server) = connected("wrapped", quirks, "", TABLES, &rooms("")).await;
    for n in 0..20_000 {
        server.seed(
            "rooms",
            serde_json::json!({"room_id": n, "room_no": "x".repeat(50)}),
        );
    }
    let cloud = replicator::cloud(&site.settings).unwrap();
    let held = CloudRows::learn(&cloud, EntityIndex(0), None, None)
        .await
        .unwrap();
    assert_eq!(held.len(), 20_000);
}
