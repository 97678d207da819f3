//! Tokens with names, at the API and on the page: what a read-only one sees and may not do, and what a revoked
//! one still opens.

use reqwest::{Method, StatusCode, header};
use serde_json::Value;

use super::page_of_site::{PageOfSite, SignedIn, cookie_of, form_token};
use crate::support::process::Daemon;

/// Makes a token by the command line.
fn create(commands: &Daemon, arguments: &[&str]) -> String {
    let made = commands.ask(&[&["token", "create"], arguments].concat());
    assert!(made.status.success(), "{made:?}");
    String::from_utf8(made.stdout).unwrap().trim().to_owned()
}

/// Signs in with this token.
async fn sign_in(page: &PageOfSite, token: &str) -> SignedIn {
    let answer = page.try_to_sign_in(token).await;
    assert_eq!(answer.status(), StatusCode::SEE_OTHER);
    let mut session = SignedIn {
        cookie: cookie_of(&answer),
        form_token: String::new(),
    };
    session.form_token = form_token(&page.page(&session, "/cloud-sync").await);
    session
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_only_token_sees_everything_and_changes_nothing() {
    let page = PageOfSite::start("tokens_read").await;
    let commands = Daemon::of(&page.scenario.site, "store");
    let token = create(&commands, &["wall-board", "--read-only"]);
    let position = page.refuse_a_row().await.to_string();

    // At the API
    let call = async |method: Method, path: &str| {
        let request = page.request(method, path).bearer_auth(&token);
        request.send().await.unwrap().status()
    };
    for path in ["/api/cloud-sync/status", "/api/cloud-sync/why?entity=x&key=2"] {
        assert_eq!(call(Method::GET, path).await, StatusCode::OK, "{path}");
    }
    for path in ["sync-now", "pause", "resume", "no-such-call"] {
        let path = format!("/api/cloud-sync/{path}");
        assert_eq!(call(Method::POST, &path).await, StatusCode::FORBIDDEN, "{path}");
    }

    // and on the page, whose buttons it does not show.
    let session = sign_in(&page, &token).await;
    let shown = page.page(&session, "/cloud-sync").await;
    assert!(
        shown.contains("class=\"looks\"") && shown.contains("read-only token"),
        "{shown}"
    );
    let entry = page
        .page(&session, &format!("/cloud-sync/quarantine/{position}"))
        .await;
    assert!(!entry.contains("<button"), "{entry}");
    for (path, fields) in [
        ("/cloud-sync/sync-now", &[][..]),
        ("/cloud-sync/pause", &[("what", "all")]),
        ("/cloud-sync/resume", &[("what", "all")]),
        ("/cloud-sync/quarantine/retry", &[("position", position.as_str())]),
        (
            "/cloud-sync/quarantine/discard",
            &[("position", position.as_str())],
        ),
    ] {
        let answer = page.form(path, &session, fields).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::FORBIDDEN, "{path}");
    }
    let status = page.scenario.running.caught_up().await;
    assert_eq!((status.quarantine, status.paused.all), (Some(1), None));
    // It signs out all the same.
    let out = page
        .form("/cloud-sync/sign-out", &session, &[])
        .send()
        .await
        .unwrap();
    assert_eq!(out.headers()[header::LOCATION], "/cloud-sync/sign-in");
    page.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_named_token_acts_by_its_name_until_it_is_revoked() {
    let page = PageOfSite::start("tokens_named").await;
    let commands = Daemon::of(&page.scenario.site, "store");
    let anna = create(&commands, &["anna"]);
    let bert = create(&commands, &["bert"]);
    let listed = commands.ask(&["token", "list", "--json"]);
    let listed: Value = serde_json::from_slice(&listed.stdout).unwrap();
    assert_eq!(
        (&listed[0]["name"], &listed[1]["access"]),
        (&"anna".into(), &"admin".into())
    );
    assert!(listed[0].get("hash").is_none());

    // What she pauses is paused by her,
    let annas = sign_in(&page, &anna).await;
    let berts = sign_in(&page, &bert).await;
    let paused = page
        .form("/cloud-sync/pause", &annas, &[("what", "files")])
        .send()
        .await
        .unwrap();
    assert_eq!(paused.status(), StatusCode::SEE_OTHER);
    page.until_page_says(&berts, "by anna at the page").await;
    let resume = |token: String| {
        let request = page
            .request(Method::POST, "/api/cloud-sync/resume")
            .bearer_auth(token);
        request.body("{\"files\": true}").send()
    };
    assert_eq!(resume(anna.clone()).await.unwrap().status(), StatusCode::OK);

    // and once her token is revoked, neither it nor her session opens anything; all others do.
    assert!(commands.ask(&["token", "revoke", "anna"]).status.success());
    assert_eq!(
        resume(anna.clone()).await.unwrap().status(),
        StatusCode::UNAUTHORIZED
    );
    let shut = page
        .request(Method::GET, "/cloud-sync")
        .header(header::COOKIE, &annas.cookie)
        .send()
        .await
        .unwrap();
    assert_eq!(shut.headers()[header::LOCATION], "/cloud-sync/sign-in");
    assert_eq!(
        page.try_to_sign_in(&anna).await.status(),
        StatusCode::UNAUTHORIZED
    );
    page.page(&berts, "/cloud-sync").await;
    sign_in(&page, &page.token).await;
    assert_eq!(resume(bert).await.unwrap().status(), StatusCode::OK);
    page.end().await;
}
