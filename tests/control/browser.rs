//! The page in a real browser, as a technician uses it.

use super::page_of_site::PageOfSite;
use crate::support::browser::{Browser, axe};
use crate::support::site::SCHOOL;

#[tokio::test]
async fn a_technician_signs_in_watches_syncs_mends_and_signs_out() {
    let Some(browser) = Browser::start().await else {
        return;
    };
    let axe = tokio::task::spawn_blocking(axe).await.unwrap();
    let axe = axe.as_deref();
    let mut page = PageOfSite::of("page_browser", SCHOOL, "").await;
    let url = format!("{}/cloud-sync", page.base);

    // A stranger is asked for the token; a wrong one is refused.
    browser.open(&url).await;
    browser.until_shown("h1", "Sign in to cloud-sync").await;
    browser.assert_accessible(axe, "sign-in").await;
    sign_in(&browser, "wrong").await;
    browser.until_shown("#refusal", "That is not the token.").await;
    browser.assert_accessible(axe, "refused sign-in").await;
    browser.picture("sign-in").await;
    browser.resize(1280, 900).await;
    sign_in(&browser, &page.token).await;
    browser
        .until_shown("#sentence", "Every captured change is in the cloud.")
        .await;
    browser
        .until_shown("#sentence", "Nobody has to do anything.")
        .await;

    // A change arrives without the page being loaded again.
    browser.evaluate("window.sameDocument = true").await;
    page.scenario
        .run(
            "insert into tbl_room (room_no, room_name) select 'R-' || g, 'Room ' || g from generate_series(1, 40) g;
             insert into tbl_faculty (faculty_fname) select 'Ada' from generate_series(1, 12)",
        )
        .await;
    browser.until_shown("#entities", "52 changes accepted").await;
    assert_eq!(browser.evaluate("return window.sameDocument").await, true);
    browser.assert_accessible(axe, "the page").await;

    // Sync now, and its report.
    page.scenario
        .cloud_client
        .batch_execute("delete from cloud.rooms where room_no = 'R-7'")
        .await
        .unwrap();
    browser.click("#sync-now").await;
    browser.until_shown("#notice", "The sync has begun.").await;
    let report = browser.until_shown("#sync-report", "Last sync: no error.").await;
    assert!(report.contains("1 row was pushed."), "{report}");
    browser
        .until_shown("#sentence", "Everything is in the cloud.")
        .await;
    pictures(&browser, "well").await;

    // The cloud goes away, and comes back.
    page.scenario.cloud.away().await;
    page.scenario
        .run("update tbl_room set room_name = 'Hall' where room_no = 'R-1'")
        .await;
    let away = "The cloud has not been reachable for less than a minute. 1 change is safe here and waits.";
    let said = browser.until_shown("#sentence", away).await;
    assert!(
        said.contains("Waiting") && said.contains("Nobody has to do anything."),
        "{said}"
    );
    assert_eq!(
        browser
            .evaluate("return document.getElementById('announce').textContent")
            .await,
        away
    );
    browser
        .until_shown("#incidents", "The cloud was not reachable")
        .await;
    browser
        .assert_accessible(axe, "the page while the cloud is away")
        .await;
    pictures(&browser, "away").await;
    page.scenario.cloud.back().await;
    browser
        .until_shown("#sentence", "Everything is in the cloud.")
        .await;

    // A file that is not there, and a row that the cloud refuses.
    let narrow = "alter table cloud.rooms add constraint short check (length(room_name) < 20)";
    page.scenario.cloud_client.batch_execute(narrow).await.unwrap();
    page.scenario
        .run(
            "insert into tbl_leave (faculty_id, leave_slip_image) values (1, 'leave_slips/2026/a.jpg');
             update tbl_room set room_name = 'The great hall of the old house' where room_no = 'R-2'",
        )
        .await;
    browser.until_shown("#sentence", "1 row is in quarantine").await;
    browser
        .until_shown("#files-state", "leave_slips/2026/a.jpg")
        .await;
    browser
        .assert_accessible(axe, "the page with a row in quarantine")
        .await;
    pictures(&browser, "act").await;
    browser.click("#quarantined a").await;
    browser.until_shown("h1", "Discard this change?").await;
    browser.assert_accessible(axe, "a row in quarantine").await;
    browser.picture("entry").await;
    browser.open(&url).await;
    let wide = "alter table cloud.rooms drop constraint short";
    page.scenario.cloud_client.batch_execute(wide).await.unwrap();
    browser.click("#quarantined button").await;
    browser.until_shown("#notice", "The row is sent again.").await;
    browser
        .until_shown("#quarantined", "No row is in quarantine.")
        .await;
    browser
        .until_shown("#sentence", "1 file is not in the media folder yet.")
        .await;

    // Everything is paused and resumed, and so is an entity.
    browser.click("#pause-state button").await;
    browser.until_shown("#notice", "Replication is paused.").await;
    let said = browser
        .until_shown("#sentence", "Replication has been paused for less than a minute.")
        .await;
    assert!(said.contains("Paused by somebody at the page."), "{said}");
    browser.until_shown("#pause-state", "Paused since").await;
    page.scenario
        .run("update tbl_room set room_name = 'Kept' where room_no = 'R-1'")
        .await;
    browser
        .until_shown("#sentence", "1 change is safe here and waits.")
        .await;
    browser
        .assert_accessible(axe, "the page while all is paused")
        .await;
    pictures(&browser, "paused").await;
    browser.click("#pause-state button").await;
    browser.until_shown("#notice", "Replication is resumed.").await;
    browser
        .until_shown("#sentence", "1 file is not in the media folder yet.")
        .await;
    browser.click("#entities button[value='entity:rooms']").await;
    browser.until_shown("#entities", "Paused since").await;
    browser
        .until_shown("#sentence", "rooms has been paused for less than a minute.")
        .await;
    browser
        .assert_accessible(axe, "the page while rooms are paused")
        .await;
    browser.click("#entities button[value='entity:rooms']").await;
    browser
        .until_shown("#sentence", "1 file is not in the media folder yet.")
        .await;
    browser.click("#files-state button").await;
    browser.until_shown("#files-state", "Paused since").await;
    browser.click("#files-state button").await;
    browser
        .until_shown("#sentence", "1 file is not in the media folder yet.")
        .await;

    // Without script, the page works too.
    browser.disable_scripts(true).await;
    browser.open(&url).await;
    browser.until_shown("noscript", "Look again").await;
    browser.click("#sync-now").await;
    browser.until_shown("#notice", "The sync has begun.").await;
    browser.disable_scripts(false).await;

    // Signed out, the page is closed.
    browser.open(&url).await;
    browser.click("header form button").await;
    browser.until_shown("h1", "Sign in to cloud-sync").await;
    browser.open(&url).await;
    browser.until_shown("h1", "Sign in to cloud-sync").await;
    page.end().await;
}

#[tokio::test]
async fn a_page_that_lost_its_program_says_so() {
    let Some(browser) = Browser::start().await else {
        return;
    };
    let page = PageOfSite::start("page_lost").await;
    browser.open(&format!("{}/cloud-sync", page.base)).await;
    sign_in(&browser, &page.token).await;
    browser
        .until_shown("#sentence", "Every captured change is in the cloud.")
        .await;
    page.end().await;
    browser
        .until_shown("#lost", "This page has lost its connection to cloud-sync.")
        .await;
}

async fn sign_in(browser: &Browser, token: &str) {
    browser.type_into("#secret", token).await;
    browser.click("main button").await;
}

/// Pictures for people: light, dark, and on a phone, on which nothing may be wider than the screen.
async fn pictures(browser: &Browser, name: &str) {
    for scheme in ["light", "dark"] {
        browser.prefer(scheme).await;
        browser.resize(1280, 900).await;
        browser.picture(&format!("{name}-{scheme}")).await;
    }
    browser.prefer("light").await;
    browser.resize(360, 800).await;
    let width = browser
        .evaluate("return document.documentElement.scrollWidth")
        .await;
    assert!(
        width.as_u64().unwrap() <= 360,
        "{name}: {width} pixels on a phone"
    );
    browser.picture(&format!("{name}-phone")).await;
    browser.resize(1280, 900).await;
}
