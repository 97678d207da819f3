//! Which state of a row wins: the one that its transaction left.

use futures::SinkExt;

use crate::support::scenario::Scenario;
use crate::support::site::{connect, entity};

#[tokio::test]
async fn a_row_trigger_that_updates_its_own_row_has_the_last_word() {
    // Given triggers of the site's own that write to the row that fired them
    let tables = "create table t (id int primary key, title text, slug text, revision int default 0, \
         secret text);
        create function slugify() returns trigger language plpgsql as $$ begin
            update t set slug = lower(new.title) || '-' || new.id where id = new.id; return null; end $$;
        create trigger a_slug after insert on t for each row execute function slugify();
        create function bump() returns trigger language plpgsql as $$ begin
            if pg_trigger_depth() = 1 then update t set revision = revision + 1 where id = new.id; end if; \
            return null; end $$;
        create trigger z_bump after update on t for each row execute function bump();";
    let scenario = Scenario::start(
        "own_row",
        tables,
        &entity("x", "t", &["id"], "exclude = [\"secret\"]"),
    )
    .await;
    // When rows are written one by one, many at once, and over those that are there
    let columns = "id, title, slug, revision";
    scenario
        .assert_each(
            &[
                "insert into t (id, title) values (1, 'One')",
                "insert into t (id, title, secret) select n, 'Title ' || n, 'word' \
             from generate_series(2, 300) n",
                "insert into t (id, title) values (1, 'Again'), (301, 'New') on conflict (id) do update \
             set title = excluded.title",
                "update t set title = 'New title' where id = 2",
                "update t set title = title || '!' where id % 3 = 0",
                "begin; update t set title = 'a' where id = 5; update t set title = 'b' where id = 5; \
             delete from t where id = 6; commit",
            ],
            columns,
        )
        .await;
    let copy = scenario
        .site
        .client
        .copy_in("copy t (id, title) from stdin")
        .await
        .unwrap();
    futures::pin_mut!(copy);
    copy.send(bytes::Bytes::from_static(b"401\tCopied\n402\tCopied too\n"))
        .await
        .unwrap();
    copy.close().await.unwrap();
    // Then the cloud has what they left.
    scenario.assert_settled(columns).await;
    scenario.running.end().await;
}

#[tokio::test]
async fn a_row_that_its_own_trigger_moves_away_is_in_one_table_only() {
    let tables =
        "create table t (id int primary key, v text); create table archive (id int primary key, v text);
        create function away() returns trigger language plpgsql as $$ begin
            insert into archive values (new.id, new.v); delete from t where id = new.id; return null; end $$;
        create trigger away after insert on t for each row when (new.v like 'old%') execute function away();";
    let config = entity("x", "t", &["id"], "") + &entity("archive", "archive", &["id"], "");
    let scenario = Scenario::start("moved", tables, &config).await;
    scenario
        .run(
            "insert into t values (1, 'old'), (2, 'new'); \
         insert into t select n, 'old ' || n from generate_series(3, 50) n",
        )
        .await;
    scenario.assert_settled("id, v").await;
    scenario
        .assert_rows_equal("archive", "archive", "id, v", "true")
        .await;
    scenario.running.end().await;
}

#[tokio::test]
async fn triggers_of_two_tables_that_write_to_each_other_leave_their_last_states() {
    let tables = "create table orders (id int primary key, total numeric default 0, \
         state text default 'open');
        create table line (id int primary key, order_id int references orders, price numeric, \
        state text default 'open');
        create function totals() returns trigger language plpgsql as $$ begin
            update orders set total = (select sum(price) from line where order_id = new.order_id) \
            where id = new.order_id; return null; end $$;
        create trigger totals after insert or update on line for each row execute function totals();
        create function states() returns trigger language plpgsql as $$ begin
            if old.state <> new.state then update line set state = new.state, price = price + 1 \
            where order_id = new.id; end if; return null; end $$;
        create trigger states after update on orders for each row execute function states();";
    let config = entity("orders", "orders", &["id"], "") + &entity("line", "line", &["id"], "");
    let scenario = Scenario::start("orders", tables, &config).await;
    for sql in [
        "insert into orders (id) values (1), (2); insert into line (id, order_id, price) \
         select n, 1 + n % 2, n from generate_series(1, 20) n",
        "update orders set state = 'paid'",
        "update line set price = 7 where id = 3; update orders set state = 'sent' where id = 2",
    ] {
        scenario.run(sql).await;
        scenario
            .assert_rows_equal("orders", "orders", "id, total, state", "true")
            .await;
        scenario
            .assert_rows_equal("line", "line", "id, order_id, price, state", "true")
            .await;
    }
    scenario.running.end().await;
}

#[tokio::test]
async fn a_statement_trigger_that_comes_first_by_name_has_the_last_word() {
    let tables = "create table t (id int primary key, v text, seen int default 0);
        create function count_up() returns trigger language plpgsql as $$ begin
            if pg_trigger_depth() = 1 then update t set seen = seen + 1; end if; return null; end $$;
        create trigger a_first after insert or update or delete \
        on t for each statement execute function count_up();
        create function refill() returns trigger language plpgsql as $$ begin insert into t \
        values (99, 'seed', 0); return null; end $$;
        create trigger a_truncate after truncate on t for each statement execute function refill();";
    let scenario = Scenario::start("first_name", tables, &entity("x", "t", &["id"], "")).await;
    scenario
        .assert_each(
            &[
                "insert into t values (1, 'a'), (2, 'b')",
                "update t set v = 'c' where id = 1",
                "delete from t where id = 2",
                "truncate t",
            ],
            "id, v, seen",
        )
        .await;
    scenario.running.end().await;
}

#[tokio::test]
async fn a_tree_whose_paths_a_trigger_keeps_has_the_last_paths() {
    let tables = "create table t (id int primary key, parent int references t, name text, path text);
        create function paths() returns trigger language plpgsql as $$ begin
            update t set path = new.path || '/' || name where parent = new.id; return null; end $$;
        create trigger paths after update on t for each row execute function paths();";
    let scenario = Scenario::start("tree", tables, &entity("x", "t", &["id"], "")).await;
    scenario
        .assert_each(
            &[
                "insert into t select n, nullif(n / 2, 0), 'n' || n, 'n' || n from generate_series(1, 63) n",
                "update t set path = 'root' where id = 1",
                "update t set path = path || '!', name = name || '?' where id in (1, 2, 5)",
            ],
            "id, parent, name, path",
        )
        .await;
    scenario.running.end().await;
}

#[tokio::test]
async fn a_key_that_one_statement_gives_up_and_another_takes_ends_with_the_row_that_is_there() {
    let tables = "create table t (id int primary key deferrable initially deferred, v text)";
    let scenario = Scenario::start("deferrable", tables, &entity("x", "t", &["id"], "")).await;
    scenario
        .assert_each(
            &[
                "insert into t values (1, 'old'), (2, 'two'), (10, 'ten'), (11, 'eleven')",
                "begin; insert into t values (1, 'new'); delete from t where id = 1 and v = 'old'; commit",
                "begin; update t set id = 20 where id = 2; insert into t values (2, 'other'); \
             update t set v = 'third' where id = 2; commit",
                "with moved as (update t set id = 900 where id = 10 returning *) insert into t \
             values (10, 'taken')",
                "update t set id = case id when 1 then 11 else 1 end where id in (1, 11)",
            ],
            "id, v",
        )
        .await;
    // From two sessions, whichever commits first.
    let other = connect(&scenario.site.database_url).await;
    scenario
        .run("begin; insert into t values (11, 'of another session')")
        .await;
    other
        .batch_execute("delete from t where id = 11 and v <> 'of another session'")
        .await
        .unwrap();
    scenario.run("commit").await;
    scenario.assert_settled("id, v").await;
    scenario.running.end().await;
}

#[tokio::test]
async fn a_key_deferrable_but_checked_at_each_statement_is_followed_too() {
    let tables = "create table t (id int primary key deferrable, v text)";
    let scenario = Scenario::start("immediate", tables, &entity("x", "t", &["id"], "")).await;
    scenario.assert_each(
        &[
            "insert into t select n, 'v' || n from generate_series(1, 10) n",
            "with moved as (update t set id = 900 where id = 10 returning *) insert into t \
             values (10, 'taken')",
            "update t set id = id + 1",
            "with gone as (delete from t where id < 4 returning *) insert into t select id - 1, v from gone",
        ],
        "id, v",
    )
    .await;
    scenario.running.end().await;
}

#[tokio::test]
async fn a_row_deleted_and_put_back_in_one_statement_is_there() {
    let tables = "create table t (id int primary key, v text)";
    let scenario = Scenario::start("put_back", tables, &entity("x", "t", &["id"], "")).await;
    scenario
        .assert_each(
            &[
                "insert into t select n, 'v' || n from generate_series(1, 3) n",
                "with d as (delete from t where id = 1 returning *), two as (select * from d limit 1) \
             insert into t select 1, 'moved' from two limit 1",
                "with i as (insert into t values (7, 'seven') returning *), d as (delete from t where id = 2 \
             returning *) insert into t select 8, i.v || d.v from i, d",
            ],
            "id, v",
        )
        .await;
    scenario.running.end().await;
}

#[tokio::test]
async fn a_sync_takes_no_row_away_that_an_open_transaction_puts_back() {
    let tables = "create table t (id int primary key, v text)";
    let scenario = Scenario::start("open_insert", tables, &entity("x", "t", &["id"], "")).await;
    scenario
        .assert_each(&["insert into t values (1, 'one'), (2, 'two')"], "id, v")
        .await;
    // Given a row that was deleted without a trigger, and a session that puts it back and stays open
    scenario
        .run("alter table t disable trigger all; delete from t where id = 1")
        .await;
    scenario.site.init().await;
    let open = connect(&scenario.site.database_url).await;
    open.batch_execute("begin; insert into t values (1, 'back')")
        .await
        .unwrap();
    // When it is synced, and the session commits after that
    scenario.sync().await;
    open.batch_execute("commit").await.unwrap();
    // Then the row is there.
    scenario.assert_rows_equal("x", "t", "id, v", "true").await;
    scenario.running.end().await;
}

#[tokio::test]
async fn rows_that_leave_a_default_partition_for_one_that_is_attached_are_never_gone() {
    let tables = "create table t (id int, day date, v text, primary key (id, day)) partition by range (day);
        create table t_default partition of t default";
    let scenario = Scenario::start("attached", tables, &entity("x", "t", &["id", "day"], "")).await;
    scenario
        .assert_each(
            &["insert into t select n, date '2026-01-01' + n, 'v' || n from generate_series(1, 40) n"],
            "id, day, v",
        )
        .await;
    // When rows move into a table that becomes a partition, in one transaction
    let cloud_rows = "select count(*) from cloud.x";
    scenario
        .run(
            "begin; create table t_january (like t including all); \
         with moved as (delete from t_default where day < '2026-02-01' returning *) insert into t_january \
         select * from moved; \
         alter table t attach partition t_january for values from ('2026-01-01') to ('2026-02-01'); commit",
        )
        .await;
    // Then none of them is gone for a moment,
    for _ in 0..20 {
        let held: i64 = scenario
            .cloud_client
            .query_one(cloud_rows, &[])
            .await
            .unwrap()
            .get(0);
        assert_eq!(held, 40);
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    scenario.assert_rows_equal("x", "t", "id, day, v", "true").await;
    // and the new partition is captured.
    scenario.until_whole().await;
    scenario
        .run("update t_january set v = 'direct' where id = 3; delete from t where id = 4")
        .await;
    scenario.assert_rows_equal("x", "t", "id, day, v", "true").await;
    scenario.running.end().await;
}

#[tokio::test]
async fn what_a_commit_itself_still_does_has_the_last_word() {
    // Given constraint triggers that write at commit, a trigger before the row, a rule, and keys that cascade
    let tables = "create table t (id int primary key, v text, checked int default 0);
        create table child (id int primary key, t int references t on delete cascade \
        on update cascade, v text);
        create table orphan (id int primary key, t int references t on delete set null \
        on update cascade deferrable initially deferred);
        create function late() returns trigger language plpgsql as $$ begin
            if new.checked < 3 then update t set checked = checked + 1 where id = new.id; end if; \
            return null; end $$;
        create constraint trigger late after insert or update on t deferrable initially deferred
            for each row execute function late();
        create function before_row() returns trigger language plpgsql as $$ begin
            if new.v = 'skip' then return null; end if; new.v := upper(new.v); return new; end $$;
        create trigger before_row before insert or update on t for each row execute function before_row();
        create rule no_child as on delete to orphan where old.id = 1 do instead nothing";
    let config = entity("x", "t", &["id"], "")
        + &entity("child", "child", &["id"], "")
        + &entity("orphan", "orphan", &["id"], "");
    let scenario = Scenario::start("at_commit", tables, &config).await;
    for sql in [
        "insert into t values (1, 'a'), (2, 'skip'), (3, 'c'), (4, 'd'); \
         insert into child select n, 1 + n % 2 * 2, 'x' from generate_series(1, 9) n; \
         insert into orphan select n, 4 from generate_series(1, 3) n",
        "begin; update t set v = 'b' where id = 1; savepoint s; update t set v = 'lost'; rollback to s; \
         update t set id = 30 where id = 3; commit",
        "merge into t using (values (1, 'm'), (7, 'n')) m (id, v) on t.id = m.id when matched then update \
         set v = m.v when not matched then insert (id, v) values (m.id, m.v)",
        "begin; set constraints all immediate; update t set v = 'now' where id = 7; \
         set constraints all deferred; \
         update t set v = 'then' where id = 7; delete from t where id = 4; commit",
        "delete from t where id = 30; delete from orphan",
        "truncate t cascade; insert into t values (1, 'again')",
    ] {
        scenario.run(sql).await;
        scenario
            .assert_rows_equal("x", "t", "id, v, checked", "true")
            .await;
        scenario
            .assert_rows_equal("child", "child", "id, t, v", "true")
            .await;
        scenario
            .assert_rows_equal("orphan", "orphan", "id, t", "true")
            .await;
    }
    scenario.running.end().await;
}
