//! The page over real HTTP, of a real replicator with a real site and its cloud.

use reqwest::{Method, StatusCode, header};

use super::page_of_site::{PageOfSite, SignedIn, cookie_of, encoded, form_token};
use crate::support::postgres::Server;
use crate::support::site::{LIMIT, entity};
use crate::support::tcp_proxy::{TcpProxy, Trouble};

#[tokio::test]
async fn a_stranger_gets_the_sign_in_page_and_nothing_else() {
    let page = PageOfSite::start("page_stranger").await;
    let open = [
        ("/healthz", StatusCode::OK),
        ("/readyz", StatusCode::OK),
        ("/cloud-sync/sign-in", StatusCode::OK),
        ("/cloud-sync/page.css", StatusCode::OK),
        ("/cloud-sync", StatusCode::SEE_OTHER),
        ("/cloud-sync/", StatusCode::SEE_OTHER),
        ("/", StatusCode::SEE_OTHER),
    ];
    for (path, status) in open {
        let answer = page.request(Method::GET, path).send().await.unwrap();
        assert_eq!(answer.status(), status, "{path}");
        assert!(!answer.text().await.unwrap().contains("college"), "{path}");
    }
    let closed = [
        (Method::GET, "/cloud-sync/page.js"),
        (Method::GET, "/cloud-sync/events"),
        (Method::GET, "/cloud-sync/quarantine/1"),
        (Method::GET, "/cloud-sync/sync-now"),
        (Method::GET, "/cloud-sync/why?entity=x&key=1"),
        (Method::GET, "/api/cloud-sync/why?entity=x&key=1"),
        (Method::GET, "/cloud-sync/anything"),
        (Method::GET, "/cloud-sync/sign-in/x"),
        (Method::HEAD, "/cloud-sync"),
        (Method::POST, "/cloud-sync"),
        (Method::POST, "/cloud-sync/sync-now"),
        (Method::POST, "/cloud-sync/sign-out"),
        (Method::POST, "/cloud-sync/quarantine/retry"),
        (Method::POST, "/cloud-sync/quarantine/discard"),
        (Method::POST, "/cloud-sync/anything"),
        (Method::GET, "/api/cloud-sync/status"),
        (Method::POST, "/api/cloud-sync/sync-now"),
        (Method::GET, "/api"),
        (Method::GET, "/api/anything"),
    ];
    for (method, path) in closed {
        for cookie in [
            "",
            "cloud_sync_1=x",
            &format!("cloud_sync_{}=guessed", page.port()),
        ] {
            let answer = page
                .request(method.clone(), path)
                .header(header::COOKIE, cookie)
                .header(header::ORIGIN, &page.base)
                .header(header::CONTENT_TYPE, "application/x-www-form-urlencoded")
                .body(if method == Method::POST { "token=x" } else { "" })
                .send()
                .await
                .unwrap();
            let refused = [
                StatusCode::UNAUTHORIZED,
                StatusCode::NOT_FOUND,
                StatusCode::METHOD_NOT_ALLOWED,
            ];
            assert!(
                refused.contains(&answer.status()),
                "{method} {path}: {}",
                answer.status()
            );
            assert!(
                !answer.text().await.unwrap().contains("college"),
                "{method} {path}"
            );
        }
    }
    page.end().await;
}

#[tokio::test]
async fn signing_in_needs_the_token_and_ends_with_signing_out() {
    let page = PageOfSite::start("page_session").await;
    let wrong = page.try_to_sign_in("wrong").await;
    assert_eq!(wrong.status(), StatusCode::UNAUTHORIZED);
    assert!(wrong.text().await.unwrap().contains("That is not the token."));

    let answer = page.try_to_sign_in(&page.token).await;
    let cookie = answer.headers()[header::SET_COOKIE].to_str().unwrap().to_owned();
    for attribute in ["HttpOnly", "SameSite=Strict", "Path=/cloud-sync", "Max-Age=43200"] {
        assert!(cookie.contains(attribute), "{cookie}");
    }
    assert!(!cookie.contains("Secure"), "no TLS: {cookie}");

    let session = page.sign_in().await;
    let shown = page.page(&session, "/cloud-sync").await;
    assert!(shown.contains("college"), "{shown}");
    assert!(
        shown.contains("Every captured change is in the cloud."),
        "{shown}"
    );
    assert!(shown.contains("Nobody has to do anything."), "{shown}");
    let out = page
        .form("/cloud-sync/sign-out", &session, &[])
        .send()
        .await
        .unwrap();
    assert_eq!(out.headers()[header::LOCATION], "/cloud-sync/sign-in");
    let after = page
        .request(Method::GET, "/cloud-sync")
        .header(header::COOKIE, &session.cookie)
        .send()
        .await
        .unwrap();
    assert_eq!(
        after.status(),
        StatusCode::SEE_OTHER,
        "the old cookie is worth nothing"
    );
    page.end().await;
}

#[tokio::test]
async fn behind_tls_the_cookie_is_bound_to_its_host() {
    let page = PageOfSite::start("page_tls").await;
    let shown = page
        .request(Method::GET, "/cloud-sync/sign-in")
        .header(header::HOST, "sync.school.example")
        .header("x-forwarded-proto", "https")
        .send()
        .await
        .unwrap();
    let shown_to = cookie_of(&shown);
    let token = form_token(&shown.text().await.unwrap());
    let signed_in = page
        .request(Method::POST, "/cloud-sync/sign-in")
        .header(header::HOST, "sync.school.example")
        .header("x-forwarded-proto", "https")
        .header(header::ORIGIN, "https://sync.school.example")
        .header(header::COOKIE, shown_to)
        .body(encoded(&[("token", &token), ("secret", &page.token)]))
        .send()
        .await
        .unwrap();
    assert_eq!(signed_in.status(), StatusCode::SEE_OTHER);
    let cookie = signed_in.headers()[header::SET_COOKIE].to_str().unwrap();
    assert!(cookie.starts_with("__Host-cloud_sync_"), "{cookie}");
    assert!(
        cookie.contains("; Path=/;") && cookie.ends_with("; Secure"),
        "{cookie}"
    );
    let session = SignedIn {
        cookie: cookie_of(&signed_in),
        form_token: String::new(),
    };
    assert!(page.page(&session, "/cloud-sync").await.contains("college"));
    page.end().await;
}

#[tokio::test]
async fn wrong_tokens_are_refused_after_some_whoever_gives_them() {
    let page = PageOfSite::start("page_guesses").await;
    for guess in 0..10 {
        let answer = page.try_to_sign_in(&format!("guess-{guess}")).await;
        assert_eq!(answer.status(), StatusCode::UNAUTHORIZED);
    }
    let answer = page.try_to_sign_in(&page.token).await;
    assert_eq!(answer.status(), StatusCode::TOO_MANY_REQUESTS);
    assert!(answer.headers().contains_key(header::RETRY_AFTER));
    let bearer = page.request(Method::GET, "/api/cloud-sync/status");
    let answer = bearer.bearer_auth(&page.token).send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::TOO_MANY_REQUESTS);
    page.end().await;
}

#[tokio::test]
async fn other_names_and_foreign_forms_are_refused() {
    let page = PageOfSite::start("page_foreign").await;
    let session = page.sign_in().await;
    for path in [
        "/cloud-sync",
        "/cloud-sync/sign-in",
        "/cloud-sync/page.css",
        "/cloud-sync/events",
    ] {
        let answer = page
            .request(Method::GET, path)
            .header(header::COOKIE, &session.cookie)
            .header(header::HOST, "evil.example")
            .send()
            .await
            .unwrap();
        assert_eq!(answer.status(), StatusCode::MISDIRECTED_REQUEST, "{path}");
    }
    let send = async |origin: &str, site: &str, token: &str| {
        let request = page
            .request(Method::POST, "/cloud-sync/sync-now")
            .header(header::COOKIE, &session.cookie)
            .header(header::ORIGIN, origin)
            .header("sec-fetch-site", site);
        let answer = request.body(encoded(&[("token", token)])).send().await.unwrap();
        answer.status()
    };
    let (own, token) = (page.base.as_str(), session.form_token.as_str());
    assert_eq!(
        send("http://evil.example", "cross-site", token).await,
        StatusCode::FORBIDDEN
    );
    assert_eq!(send("null", "cross-site", token).await, StatusCode::FORBIDDEN);
    assert_eq!(send(own, "same-site", token).await, StatusCode::FORBIDDEN);
    assert_eq!(send(own, "same-origin", "").await, StatusCode::FORBIDDEN);
    let other = page.sign_in().await;
    assert_eq!(
        send(own, "same-origin", &other.form_token).await,
        StatusCode::FORBIDDEN
    );
    let silent = page
        .request(Method::POST, "/cloud-sync/sync-now")
        .header(header::COOKIE, &session.cookie)
        .body(encoded(&[("token", token)]));
    assert_eq!(silent.send().await.unwrap().status(), StatusCode::FORBIDDEN);
    let status = page.scenario.running.replicator.report().await.unwrap();
    assert!(
        status.last_sync.is_none() && status.running_sync.is_none(),
        "none has begun a sync"
    );
    assert_eq!(send(own, "same-origin", token).await, StatusCode::SEE_OTHER);
    page.end().await;
}

#[tokio::test]
async fn every_answer_tells_the_browser_what_the_page_may_do() {
    let page = PageOfSite::start("page_headers").await;
    let session = page.sign_in().await;
    let mut bytes = 0;
    for path in [
        "/cloud-sync",
        "/cloud-sync/page.css",
        "/cloud-sync/page.js",
        "/cloud-sync/nothing",
    ] {
        let request = page
            .request(Method::GET, path)
            .header(header::COOKIE, &session.cookie);
        let answer = request.send().await.unwrap();
        let headers = answer.headers().clone();
        let policy = headers["content-security-policy"].to_str().unwrap();
        assert!(policy.starts_with("default-src 'none';"), "{path}: {policy}");
        for word in ["unsafe", "http:", "https:", "*", "data:"] {
            assert!(!policy.contains(word), "{path}: {policy}");
        }
        assert!(policy.contains("frame-ancestors 'none'"), "{path}: {policy}");
        assert_eq!(headers["x-content-type-options"], "nosniff", "{path}");
        assert_eq!(headers["cache-control"], "no-store", "{path}");
        assert_eq!(headers["referrer-policy"], "same-origin", "{path}");
        let text = answer.text().await.unwrap();
        bytes += text.len();
        for word in [
            "http://",
            "https://",
            "//cdn",
            " style=",
            "onclick",
            "javascript:",
        ] {
            let own = text.replace(&page.scenario.cloud.url, "");
            assert!(!own.contains(word), "{path} has {word}");
        }
    }
    assert!(bytes < 100 << 10, "{bytes} bytes in all");
    let refused = page
        .request(Method::GET, "/cloud-sync/events")
        .send()
        .await
        .unwrap();
    assert!(refused.headers().contains_key("content-security-policy"));
    page.end().await;
}

#[tokio::test]
async fn what_rows_and_the_cloud_say_is_text_and_never_markup() {
    let hostile = "<script>alert(1)</script>";
    let page = PageOfSite::of(
        "page_markup",
        "create table t (id text primary key, v text)",
        &entity("x", "t", &["id"], ""),
    )
    .await;
    page.scenario.run("insert into t values ('a', 'a')").await;
    page.scenario.running.caught_up().await;
    let narrow = "alter table cloud.x add constraint \"<b>short</b>\" check (length(v) < 5)";
    page.scenario.cloud_client.batch_execute(narrow).await.unwrap();
    page.scenario
        .run(&format!("insert into t values ('{hostile}', 'too long')"))
        .await;
    let session = page.sign_in().await;
    let shown = page.until_page_says(&session, "Send again").await;
    assert!(!shown.contains(hostile), "{shown}");
    assert!(
        shown.contains("script&#62;") || shown.contains("script&gt;"),
        "{shown}"
    );
    assert!(!shown.contains("<b>short"), "{shown}");
    page.end().await;
}

#[tokio::test]
async fn the_page_says_why_a_row_is_not_in_the_cloud() {
    let page = PageOfSite::start("page_why").await;
    page.refuse_a_row().await;
    let session = page.sign_in().await;
    let shown = page.page(&session, "/cloud-sync").await;
    assert!(shown.contains("Why is a row not there?") && shown.contains("<option>x</option>"));
    let shown = page.page(&session, "/cloud-sync/why?entity=x&key=1").await;
    assert!(shown.contains("Nothing of it waits"), "{shown}");
    assert!(shown.contains("cloud-sync sync --entity x"), "{shown}");
    let shown = page.page(&session, "/cloud-sync/why?entity=x&key=2").await;
    assert!(shown.contains("The cloud refused it"), "{shown}");
    assert!(shown.contains("cloud-sync quarantine show"), "{shown}");
    let answer = page
        .request(Method::GET, "/cloud-sync/why?entity=y&key=<b>")
        .header(header::COOKIE, &session.cookie)
        .send()
        .await
        .unwrap();
    assert_eq!(answer.status(), StatusCode::BAD_REQUEST);
    let shown = answer.text().await.unwrap();
    assert!(
        shown.contains("no such entity") && !shown.contains("<b>"),
        "{shown}"
    );
    let answer = page
        .request(Method::GET, "/api/cloud-sync/why?entity=x&key=1")
        .bearer_auth(&page.token)
        .send()
        .await
        .unwrap();
    let json: serde_json::Value = answer.json().await.unwrap();
    assert_eq!(json["state"], "delivered");
    page.end().await;
}

#[tokio::test]
async fn a_sync_is_begun_and_its_report_is_shown() {
    let page = PageOfSite::start("page_sync").await;
    page.scenario
        .run("insert into t select g, 'a' from generate_series(1, 3) g")
        .await;
    page.scenario.running.caught_up().await;
    page.scenario
        .cloud_client
        .batch_execute("delete from cloud.x where id = 2")
        .await
        .unwrap();
    let session = page.sign_in().await;
    let answer = page
        .form("/cloud-sync/sync-now", &session, &[])
        .send()
        .await
        .unwrap();
    assert_eq!(answer.status(), StatusCode::SEE_OTHER);
    assert_eq!(answer.headers()[header::LOCATION], "/cloud-sync#sync");
    assert!(
        page.page(&session, "/cloud-sync")
            .await
            .contains("The sync has begun.")
    );
    let shown = page.until_page_says(&session, "Last sync: no error.").await;
    assert!(shown.contains("1 row was pushed."), "{shown}");
    assert!(!shown.contains("The sync has begun."), "it is said once");
    assert!(
        shown.contains("<td class=\"n wide-only\">3</td>"),
        "rows that were compared: {shown}"
    );
    page.until_page_says(&session, "Everything is in the cloud.")
        .await;
    page.end().await;
}

#[tokio::test]
async fn a_quarantined_row_is_sent_again_or_discarded() {
    let page = PageOfSite::start("page_quarantine").await;
    let position = page.refuse_a_row().await.to_string();
    let session = page.sign_in().await;
    let shown = page.until_page_says(&session, "1 row is in quarantine").await;
    assert!(shown.contains("id 2"), "{shown}");
    let fields = [("position", position.as_str())];
    page.mend().await;
    let sent = page.form("/cloud-sync/quarantine/retry", &session, &fields);
    assert_eq!(sent.send().await.unwrap().status(), StatusCode::SEE_OTHER);
    page.until_page_says(&session, "No row is in quarantine.").await;
    page.scenario.assert_settled("id, v").await;

    let gone = page.form("/cloud-sync/quarantine/retry", &session, &fields);
    assert_eq!(gone.send().await.unwrap().status(), StatusCode::SEE_OTHER);
    let shown = page.page(&session, "/cloud-sync").await;
    assert!(shown.contains("no refused change has it"), "{shown}");
    let nameless = page.form("/cloud-sync/quarantine/discard", &session, &[("position", "x")]);
    assert_eq!(nameless.send().await.unwrap().status(), StatusCode::BAD_REQUEST);

    let narrow = "alter table cloud.x add constraint short check (length(v) < 5) not valid";
    page.scenario.cloud_client.batch_execute(narrow).await.unwrap();
    page.scenario
        .run("insert into t values (3, 'too long too')")
        .await;
    let shown = page.until_page_says(&session, "Discard…").await;
    let (_, rest) = shown.split_once("href=\"/cloud-sync/quarantine/").unwrap();
    let position = rest.split('"').next().unwrap();
    let asked = page
        .page(&session, &format!("/cloud-sync/quarantine/{position}"))
        .await;
    assert!(
        asked.contains("Discard this change?") && asked.contains("id 3"),
        "{asked}"
    );
    let fields = [("position", position)];
    let sent = page.form("/cloud-sync/quarantine/discard", &session, &fields);
    assert_eq!(sent.send().await.unwrap().status(), StatusCode::SEE_OTHER);
    page.until_page_says(&session, "No row is in quarantine.").await;
    page.end().await;
}

/// Reads a stream of events until one has these words.
async fn until_event(stream: &mut reqwest::Response, words: &str) -> String {
    let mut text = String::new();
    let read = async {
        while !text.contains(words) {
            let chunk = stream.chunk().await.unwrap().expect("the stream goes on");
            text.push_str(&String::from_utf8_lossy(&chunk));
        }
    };
    if tokio::time::timeout(LIMIT, read).await.is_err() {
        panic!("no {words:?} in {text}");
    }
    text
}

#[tokio::test]
async fn changes_are_sent_to_all_who_look_until_they_sign_out_or_the_program_ends() {
    let page = PageOfSite::start("page_events").await;
    let (one, other) = (page.sign_in().await, page.sign_in().await);
    let listen = async |session: &SignedIn| {
        let request = page.request(Method::GET, "/cloud-sync/events");
        let stream = request
            .header(header::COOKIE, &session.cookie)
            .send()
            .await
            .unwrap();
        assert_eq!(stream.headers()["content-type"], "text/event-stream");
        stream
    };
    let (mut first, mut second) = (listen(&one).await, listen(&other).await);
    for stream in [&mut first, &mut second] {
        let all = until_event(stream, "\n\n").await;
        for part in ["\"sentence\"", "\"entities\"", "\"lag-hour\"", "\"facts\""] {
            assert!(all.contains(part), "no {part} in {all}");
        }
    }
    page.scenario.run("insert into t values (1, 'a')").await;
    for stream in [&mut first, &mut second] {
        let changed = until_event(stream, "1 changes accepted").await;
        assert!(changed.contains("\"entities\""), "{changed}");
    }
    page.form("/cloud-sync/sign-out", &one, &[]).send().await.unwrap();
    page.scenario.run("insert into t values (2, 'a')").await;
    let ended = async { while first.chunk().await.unwrap().is_some() {} };
    tokio::time::timeout(LIMIT, ended)
        .await
        .expect("the stream of who signed out ends");
    until_event(&mut second, "2 changes accepted").await;

    let ended = async { while matches!(second.chunk().await, Ok(Some(_))) {} };
    let (streamed, ()) = tokio::join!(tokio::time::timeout(LIMIT, ended), page.end());
    streamed.expect("the stream ends with the program");
}

#[tokio::test]
async fn two_hundred_browsers_share_one_look_and_one_too_many_is_told() {
    let page = PageOfSite::start("page_many").await;
    let session = page.sign_in().await;
    let mut streams = Vec::new();
    let refused = loop {
        let request = page.request(Method::GET, "/cloud-sync/events");
        let answer = request
            .header(header::COOKIE, &session.cookie)
            .send()
            .await
            .unwrap();
        if answer.status() != StatusCode::OK {
            break answer;
        }
        streams.push(answer);
        assert!(streams.len() <= 300, "the number of browsers is bounded");
    };
    assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(streams.len() >= 200, "{}", streams.len());
    page.scenario.run("insert into t values (1, 'a')").await;
    for stream in &mut streams {
        until_event(stream, "1 changes accepted").await;
    }
    drop(streams);
    page.end().await;
}

#[tokio::test]
async fn a_database_that_hangs_is_told_and_so_is_that_it_is_back() {
    // Given a site whose database is reached through a proxy,
    let database_url = Server::get().database("page_hangs_site").await;
    let url = url::Url::parse(&database_url).unwrap();
    let server: (std::net::IpAddr, u16) = (url.host_str().unwrap().parse().unwrap(), url.port().unwrap());
    let proxy = TcpProxy::start(server.into()).await;
    let mut through = url.clone();
    through.set_port(Some(proxy.address().port())).unwrap();
    let config = entity("x", "t", &["id"], "");
    let table = "create table t (id int primary key, v text)";
    let page = PageOfSite::with_database("page_hangs", through.to_string(), table, &config).await;
    let session = page.sign_in().await;
    let mut stream = page
        .request(Method::GET, "/cloud-sync/events")
        .header(header::COOKIE, &session.cookie)
        .send()
        .await
        .unwrap();
    until_event(&mut stream, "Every captured change is in the cloud.").await;
    // when nothing passes any more,
    proxy.set(Trouble::Stall);
    // then those who look are told,
    until_event(&mut stream, "The site&#39;s database").await;
    let shown = page.until_page_says(&session, "The site&#39;s database").await;
    assert!(!shown.contains("in the cloud."), "{shown}");
    // and when it answers again, that too.
    proxy.set(Trouble::None);
    until_event(&mut stream, "Every captured change is in the cloud.").await;
    page.end().await;
}
