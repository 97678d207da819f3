//! What each status means, and what messages may carry.

use super::*;

#[tokio::test]
async fn each_status_means_one_thing() {
    for status in [200, 201, 202, 204] {
        let server = baseline(&[]).await;
        server.fault(Fault::answer(status, "application/json", ""));
        let mut batch = rooms([1]);
        client(&server.url())
            .deliver(BASELINE, &origin(), &mut numbering(), &mut batch)
            .await
            .unwrap();
        assert_eq!(fates(&batch), [Fate::Accepted], "{status}");
    }
    for status in [400, 402, 404, 405, 409, 410, 413, 418, 422, 451] {
        let server = baseline(&[]).await;
        server.fault(Fault::status(status).when(|row| row["room_id"] == 2));
        let mut batch = rooms([1, 2, 3]);
        client(&server.url())
            .deliver(BASELINE, &origin(), &mut numbering(), &mut batch)
            .await
            .unwrap();
        let refused = Fate::Refused {
            code: status,
            error: format!("scripted {status}"),
        };
        assert_eq!(fates(&batch), [Fate::Accepted, refused, Fate::Accepted]);
    }
    for status in [401, 403] {
        let server = baseline(&[]).await;
        server.fault(Fault::status(status));
        let mut batch = rooms([1]);
        let cloud = client(&server.url());
        let failure = cloud
            .deliver(BASELINE, &origin(), &mut numbering(), &mut batch)
            .await
            .unwrap_err();
        assert_eq!(failure.error().kind(), Kind::CloudAuth);
        assert_eq!((fates(&batch), server.requests().len()), (vec![Fate::Pending], 1));
    }
    for status in [408, 425, 429, 500, 502, 503, 504, 507] {
        let server = baseline(&[]).await;
        server.fault(Fault::status(status));
        let mut batch = rooms([1]);
        let cloud = client(&server.url());
        let failure = cloud
            .deliver(BASELINE, &origin(), &mut numbering(), &mut batch)
            .await
            .unwrap_err();
        assert_eq!(failure.error().kind(), Kind::CloudUnreachable, "{status}");
        assert_eq!(
            (failure.status(), failure.error().class()),
            (Some(status), Class::Retry)
        );
        assert_eq!(fates(&batch), [Fate::Pending]);
        // What the application itself has said, it would say again at once.
        let is_told = status == 500;
        assert_eq!(
            server.requests().len() > 1,
            !is_told,
            "it is tried again, {status}"
        );
    }
    for status in [301, 302, 307, 308, 304] {
        let server = baseline(&[]).await;
        server.fault(Fault::status(status));
        let mut batch = rooms([1]);
        let cloud = client(&server.url());
        let failure = cloud
            .deliver(BASELINE, &origin(), &mut numbering(), &mut batch)
            .await
            .unwrap_err();
        assert_eq!(failure.error().kind(), Kind::CloudProtocol, "{status}");
        assert_eq!(fates(&batch), [Fate::Pending]);
    }
}

#[tokio::test]
async fn what_passes_soon_is_waited_out() {
    for fault in [
        Fault::status(503).times(2),
        Fault::status(429).retry_after("0").times(2),
        Fault::cut().times(1),
        Fault::cut_after_store().times(1),
    ] {
        let server = baseline(&[]).await;
        server.fault(fault.on("rooms").when(|row| row["room_id"] == 3));
        let mut batch = rooms(1..=5);
        client(&server.url())
            .deliver(BASELINE, &origin(), &mut numbering(), &mut batch)
            .await
            .unwrap();
        assert_eq!(batch.count(&Fate::Accepted), 5);
        assert_eq!(server.count("rooms"), 5);
    }
}

#[tokio::test]
async fn a_longer_wait_is_handed_to_the_caller() {
    let later = jiff::Timestamp::now() + jiff::SignedDuration::from_secs(900);
    let date = jiff::fmt::rfc2822::DateTimePrinter::new()
        .timestamp_to_rfc9110_string(&later)
        .unwrap();
    for (value, least, most) in [("600", 600, 600), (date.as_str(), 890, 900)] {
        let server = baseline(&[]).await;
        server.fault(Fault::status(503).retry_after(value));
        let mut batch = rooms([1]);
        let cloud = client(&server.url());
        let failure = cloud
            .deliver(BASELINE, &origin(), &mut numbering(), &mut batch)
            .await
            .unwrap_err();
        let wait = failure.retry_after().unwrap().as_secs();
        assert!((least..=most).contains(&wait), "{value}: {wait}");
        assert_eq!(server.requests().len(), 1);
    }
}

#[tokio::test]
async fn a_server_that_stalls_is_given_up() {
    let server = baseline(&[]).await;
    server.fault(Fault::stall().when(|row| row["room_id"] == 1));
    let mut hasty = options(&server.url());
    hasty.timeout = Duration::from_millis(300);
    let cloud = Cloud::new(hasty, Arc::new(Catalogue::builtin())).unwrap();
    let mut batch = rooms([1, 2]);
    let failure = cloud
        .deliver(BASELINE, &origin(), &mut numbering(), &mut batch)
        .await
        .unwrap_err();
    assert_eq!(failure.error().kind(), Kind::CloudUnreachable);
    assert_eq!(fates(&batch), [Fate::Pending, Fate::Accepted]);
}

#[tokio::test]
async fn the_key_never_follows_a_redirect() {
    let elsewhere = baseline(&[]).await;
    let server = baseline(&[]).await;
    let target = format!("{}/rooms?token=hidden", elsewhere.url());
    server.fault(Fault::status(307).header(header::LOCATION, &target));
    let cloud = client(&server.url());
    let failure = cloud
        .deliver(BASELINE, &origin(), &mut numbering(), &mut rooms([1]))
        .await
        .unwrap_err();
    assert_eq!(failure.error().kind(), Kind::CloudProtocol);
    let message = failure.to_string();
    assert!(
        message.contains("to 127.0.0.1:") && !message.contains("hidden"),
        "{message}"
    );
    assert!(elsewhere.requests().is_empty());
}

#[tokio::test]
async fn a_page_is_no_acceptance() {
    for fault in [
        Fault::page(),
        Fault::answer(200, "text/plain", " <HTML><body>"),
        Fault::answer(200, "text/plain", "Please log in to use this network"),
        Fault::answer(200, "application/json", "{\"success\":tr"),
    ] {
        let server = baseline(&[]).await;
        server.fault(fault);
        let mut batch = rooms([1]);
        let cloud = client(&server.url());
        let failure = cloud
            .deliver(BASELINE, &origin(), &mut numbering(), &mut batch)
            .await
            .unwrap_err();
        assert_eq!(failure.error().kind(), Kind::CloudProtocol);
        assert_eq!(fates(&batch), [Fate::Pending]);
    }
    // PHP labels everything as HTML unless told otherwise.
    for body in ["", "{\"success\":true}"] {
        let server = baseline(&[]).await;
        server.fault(Fault::answer(200, "text/html; charset=UTF-8", body));
        let mut batch = rooms([1]);
        client(&server.url())
            .deliver(BASELINE, &origin(), &mut numbering(), &mut batch)
            .await
            .unwrap();
        assert_eq!(fates(&batch), [Fate::Accepted]);
    }
}

#[tokio::test]
async fn a_failure_in_a_200_is_no_acceptance() {
    for words in [
        r#"{"success":false,"message":"no"}"#,
        r#"{"errors":{"room_no":["no"]}}"#,
    ] {
        let server = baseline(&[]).await;
        server.fault(Fault::answer(200, "application/json", words).when(|row| row["room_id"] == 2));
        let mut batch = rooms([1, 2, 3]);
        let failure = client(&server.url())
            .deliver(BASELINE, &origin(), &mut numbering(), &mut batch)
            .await
            .unwrap_err();
        assert!(failure.is_from_application() && failure.words().is_some_and(|words| words.ends_with("no")));
        assert_eq!(fates(&batch), [Fate::Accepted, Fate::Pending, Fate::Accepted]);
    }
}

#[tokio::test]
async fn messages_carry_neither_key_nor_row_nor_control_characters() {
    let server = baseline(&[]).await;
    let words = format!(
        "{{\"message\":\"bad \\u001b[31m key {KEY} {}\"}}",
        "x".repeat(1000)
    );
    server.fault(Fault::answer(422, "application/json", &words).times(1));
    server.fault(Fault::answer(
        500,
        "application/json",
        "{\"row\":\"secret value\"}",
    ));
    let cloud = client(&server.url());
    let mut batch = rooms([1]);
    cloud
        .deliver(BASELINE, &origin(), &mut numbering(), &mut batch)
        .await
        .unwrap();
    let (_, _, error) = batch.refused().next().unwrap();
    assert!(
        !error.contains(KEY) && !error.contains('\u{1b}') && error.chars().count() <= 300,
        "{error}"
    );

    let failure = cloud
        .deliver(BASELINE, &origin(), &mut numbering(), &mut rooms([1]))
        .await
        .unwrap_err();
    let error = Error::from(failure);
    assert_eq!(error.operation(), "push rooms to the cloud");
    assert!(!format!("{error} {error:?}").contains("secret"), "{error:?}");
}
