//! The receiver under attack: guessed keys, endless and bomb-like bodies, deep JSON, names that try to leave their folder;
//! and the operator API of a site.

use std::time::Duration;

use axum::body::Bytes;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::oracle::Tally;
use crate::support::process::{Daemon, peak_memory};
use crate::support::receiver::ReceiverProcess;
use crate::support::site::{Cloud, KEY, LIMIT, SITE, Site, connect};

/// A body of ten gigabytes is tried, and a fifth of one may never be in memory.
const HUGE: u64 = 10 << 30;
const MEMORY: u64 = 200 << 20;

/// A receiver's process with one declared entity, and a site that replicates into it all the while.
struct Fort {
    cloud: Cloud,
    receiver: ReceiverProcess,
    client: reqwest::Client,
}

impl Fort {
    async fn build(hint: &str) -> Self {
        let mut cloud = Cloud::start(hint).await;
        let receiver = ReceiverProcess::replace(&mut cloud, &[KEY]).await;
        let fort = Self {
            cloud,
            receiver,
            client: reqwest::Client::new(),
        };
        let schema = json!({
            "entity": "rooms", "key": ["room_id"],
            "columns": [
                {"name": "room_id", "type": "bigint"}, {"name": "room_no", "type": "text"},
                {"name": "about", "type": "jsonb"}, {"name": "tags", "type": "text[]"},
            ],
        });
        assert_eq!(fort.declare("rooms", &schema).await, 200);
        fort
    }

    async fn declare(&self, path: &str, schema: &Value) -> u16 {
        let put = self.client.put(format!("{}/schema/{path}", self.cloud.url));
        let answer = put.bearer_auth(KEY).json(schema).send().await.unwrap();
        answer.status().as_u16()
    }

    fn post(&self, path: &str) -> reqwest::RequestBuilder {
        self.client
            .post(format!("{}/{path}", self.cloud.url))
            .bearer_auth(KEY)
            .header("x-source-id", "attacker")
            .header("x-epoch", "1")
    }

    /// One change of one room, which a well-behaved site sends.
    async fn is_serving(&self, position: i64) {
        let line = json!({"position": position, "entity": "rooms", "op": "upsert",
            "key": {"room_id": 1}, "row": {"room_id": 1, "room_no": position.to_string()}});
        let answer = tokio::time::timeout(LIMIT, self.post("changes").body(line.to_string()).send());
        let answer = answer.await.expect("an answer").unwrap();
        assert_eq!(answer.status(), 200);
        let answer: Value = answer.json().await.unwrap();
        assert_eq!(answer["applied"], 1, "{answer}");
    }

    /// Sends bytes over a connection of its own, and answers what came back until its end.
    async fn raw(&self, bytes: &[u8]) -> String {
        let mut stream = TcpStream::connect(&self.receiver.address).await.unwrap();
        let _ = stream.write_all(bytes).await;
        let mut answer = Vec::new();
        let read = tokio::time::timeout(Duration::from_secs(20), stream.read_to_end(&mut answer));
        let _ = read.await;
        String::from_utf8_lossy(&answer).into_owned()
    }

    /// No key in the log, and no panic.
    fn is_discreet(&self, secrets: &[&str]) {
        let log = self.receiver.log();
        for secret in secrets {
            assert!(!log.contains(secret), "{secret} in\n{log}");
        }
        assert!(!log.contains("panicked"), "{log}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn guessed_keys_are_slowed_told_once_and_hold_nobody_up() {
    let fort = Fort::build("guess").await;
    let mut tally = Tally::default();
    // Given guesses of every kind, odd bytes among them,
    let mut guesses: Vec<Vec<u8>> = (0..200)
        .map(|n| format!("Bearer guess-{n}-secret").into_bytes())
        .collect();
    for odd in [
        &b"Bearer a-site-key-for-test"[..],
        b"Bearer a-site-key-for-testsx",
        b"Basic YS1zaXRlLWtleS1mb3ItdGVzdHM6",
        b"Bearer \xff\xfe-odd-secret",
        b"Bearer",
        b"bearer  ",
        b"a-site-key-for-tests",
    ] {
        guesses.push(odd.to_vec());
    }
    guesses.push([&b"Bearer "[..], &vec![b'x'; 60_000]].concat());
    let attack: Vec<_> = guesses
        .into_iter()
        .map(|guess| {
            let request = fort.client.get(format!("{}/sync-status", fort.cloud.url));
            let value = reqwest::header::HeaderValue::from_bytes(&guess).unwrap();
            let request = request.header("authorization", value);
            tokio::spawn(async move { request.send().await.map(|answer| answer.status().as_u16()) })
        })
        .collect();
    tally.faults += attack.len() as u64;
    // when the right key comes amid them, it is served.
    for position in 1..20 {
        fort.is_serving(position).await;
    }
    for guess in attack {
        let status = guess.await.unwrap().unwrap();
        assert!(matches!(status, 401 | 431), "{status}");
    }
    // then one line tells of them, without any key.
    let log = fort.receiver.log();
    assert_eq!(
        log.matches("a request came with a wrong API key").count(),
        1,
        "{log}"
    );
    fort.is_discreet(&[KEY, "-secret", "xxxx", "YS1zaXRl"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn endless_bodies_and_bombs_take_no_memory() {
    let fort = Fort::build("bombs").await;
    let mut tally = Tally::default();
    let zeroes = || {
        let piece = Bytes::from(vec![b' '; 256 * 1024]);
        let count = HUGE / piece.len() as u64;
        futures::stream::iter((0..count).map(move |_| Ok::<_, std::io::Error>(piece.clone())))
    };
    // Given bodies of ten gigabytes, with their length and without,
    for path in ["changes", "rooms", "bulk/rooms"] {
        for length in [true, false] {
            let mut request = fort.post(path).body(reqwest::Body::wrap_stream(zeroes()));
            if length {
                request = request.header("content-length", HUGE);
            }
            tally.faults += 1;
            // The answer may come before the body has gone, and the connection with it.
            if let Ok(answer) = request.send().await {
                assert_eq!(answer.status(), 413, "{path}");
            }
        }
    }
    // a multipart body whose first boundary never comes, whose head never ends, whose other part never ends,
    let kind = "multipart/form-data; boundary=B";
    for start in [
        "",
        "--B\r\nContent-Disposition: form-data; name=\"file\"; x=\"",
        "--B\r\nContent-Disposition: form-data; name=\"note\"\r\n\r\n",
    ] {
        let first = futures::stream::iter([Ok::<_, std::io::Error>(Bytes::from(start))]);
        let body = reqwest::Body::wrap_stream(futures::StreamExt::chain(first, zeroes()));
        tally.faults += 1;
        let sent = fort
            .post("upload/slips")
            .header("content-type", kind)
            .body(body)
            .send();
        if let Ok(answer) = tokio::time::timeout(LIMIT, sent).await.expect("an end") {
            assert!(answer.status().is_client_error(), "{}", answer.status());
        }
    }
    // and a few kilobytes that unpack to gigabytes,
    for (bytes, window) in [(1_u64 << 29, None), (1 << 27, Some(27))] {
        let mut encoder = zstd::stream::Encoder::new(Vec::new(), 3).unwrap();
        if let Some(window) = window {
            encoder.window_log(window).unwrap();
        }
        std::io::copy(
            &mut std::io::Read::take(std::io::repeat(b' '), bytes),
            &mut encoder,
        )
        .unwrap();
        let bomb = encoder.finish().unwrap();
        tally.faults += 1;
        let request = fort.post("changes").header("content-encoding", "zstd").body(bomb);
        let status = request.send().await.unwrap().status().as_u16();
        assert!(matches!(status, 400 | 413), "{status}");
    }
    // then each is refused, and little of it was ever in memory.
    fort.is_serving(1).await;
    let peak = fort.receiver.peak_memory();
    println!("at most {} MiB", peak >> 20);
    assert!(peak < MEMORY, "{peak} bytes");
    let left: Vec<_> = std::fs::read_dir(fort.cloud.files.join(".incoming"))
        .unwrap()
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_connections_keep_nobody_out() {
    let fort = Fort::build("loris").await;
    let mut tally = Tally::default();
    // Given more connections than there are places, each of which has begun a head or a body and says no more,
    let path = format!(
        "Host: {}\r\nAuthorization: Bearer wrong\r\n",
        fort.receiver.address
    );
    let starts = std::sync::Arc::new([
        String::new(),
        "GET /api/sync-sta".to_owned(),
        "GET /api/sync-status HTTP/1.1\r\nHost: x\r\nX-A: b\r\n".to_owned(),
        format!("POST /api/changes HTTP/1.1\r\n{path}Content-Length: 1000\r\n\r\nx"),
        format!("POST /api/upload/a HTTP/1.1\r\n{path}Transfer-Encoding: chunked\r\n\r\n1\r\nx\r\n"),
    ]);
    let mut slow = tokio::task::JoinSet::new();
    let opened = std::sync::Arc::new(tokio::sync::Semaphore::new(0));
    for nth in 0..1500 {
        let (address, starts, opened) = (fort.receiver.address.clone(), starts.clone(), opened.clone());
        slow.spawn(async move {
            loop {
                // Whoever is sent away comes again.
                if let Ok(mut stream) = TcpStream::connect(&address).await {
                    opened.add_permits(1);
                    let _ = stream.write_all(starts[nth % starts.len()].as_bytes()).await;
                    let _ = stream.read_to_end(&mut Vec::new()).await;
                }
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
        });
        tally.faults += 1;
    }
    let all = tokio::time::timeout(LIMIT, opened.acquire_many(1100)).await;
    all.expect("more connections than places").unwrap().forget();
    // when a site comes that has a key, on a new connection each time, it is served each time.
    let served = async {
        for position in 1..20 {
            let line =
                json!({"position": position, "entity": "rooms", "op": "delete", "key": {"room_id": 1}});
            // A stranger until its first request is read, it may be sent away once in the crowd, as by any full server.
            loop {
                let request = reqwest::Client::new()
                    .post(format!("{}/changes", fort.cloud.url))
                    .bearer_auth(KEY)
                    .header("x-source-id", "site")
                    .header("x-epoch", "1")
                    .body(line.to_string());
                if let Ok(answer) = request.send().await {
                    assert_eq!(answer.status(), 200);
                    break;
                }
            }
        }
    };
    tokio::time::timeout(LIMIT, served)
        .await
        .expect("an answer to each");
    slow.shutdown().await;
    // One that says nothing is sent away before long.
    let mut silent = TcpStream::connect(&fort.receiver.address).await.unwrap();
    let end = tokio::time::timeout(LIMIT, silent.read_to_end(&mut Vec::new())).await;
    end.expect("an end").ok();
    let peak = fort.receiver.peak_memory();
    assert!(peak < MEMORY, "{peak} bytes");
    fort.is_discreet(&["wrong\r"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn odd_json_is_refused_row_by_row_or_as_a_whole() {
    let fort = Fort::build("deep").await;
    let mut tally = Tally::default();
    let deep =
        |open: &str, close: &str, depth: usize| format!("{}1{}", open.repeat(depth), close.repeat(depth));
    let line = |position: i64, key: &str, row: &str| {
        format!(
            "{{\"position\":{position},\"entity\":\"rooms\",\"op\":\"upsert\",\"key\":{key},\"row\":{row}}}\n"
        )
    };
    // Given lines that are each a blow to some parser, between two good ones,
    let arrays = deep("[", "]", 1_000_000);
    let objects = deep("{\"a\":", "}", 1_000_000);
    let many: String = (0..100_000).map(|n| format!(",\"c{n}\":{n}")).collect();
    let rows = [
        (
            "{\"room_id\":2}".to_owned(),
            format!("{{\"room_id\":2,\"about\":{arrays}}}"),
        ),
        (
            "{\"room_id\":3}".to_owned(),
            format!("{{\"room_id\":3,\"about\":{objects}}}"),
        ),
        (
            "{\"room_id\":4}".to_owned(),
            format!("{{\"room_id\":4,\"tags\":{arrays}}}"),
        ),
        (
            "{\"room_id\":5}".to_owned(),
            format!("{{\"room_id\":5,\"room_no\":{objects}}}"),
        ),
        (
            format!("{{\"room_id\":{arrays}}}"),
            format!("{{\"room_id\":{arrays}}}"),
        ),
        ("{\"room_id\":6}".to_owned(), format!("{{\"room_id\":6{many}}}")),
        (format!("{{\"room_id\":7{many}}}"), "{\"room_id\":8}".to_owned()),
        (
            "{\"room_id\":9}".to_owned(),
            "{\"room_id\":9,\"room_no\":\"\\u0000\"}".to_owned(),
        ),
        (
            "{\"room_id\":10}".to_owned(),
            "{\"room_id\":10,\"room_no\":\"\\ud800\"}".to_owned(),
        ),
        ("{\"room_id\":1e400}".to_owned(), "{\"room_id\":1e400}".to_owned()),
        (
            "{\"room_id\":11}".to_owned(),
            "{\"room_id\":11,\"room_id\":12}".to_owned(),
        ),
    ];
    for (nth, (key, row)) in rows.iter().enumerate() {
        let at = 10 * nth as i64 + 1;
        let good = |n: i64| {
            let key = format!("{{\"room_id\":{}}}", 1000 + at + n);
            line(at + n, &key, &key)
        };
        let body = format!("{}{}{}", good(0), line(at + 1, key, row), good(2));
        tally.faults += 1;
        let answer = fort.post("changes").body(body).send().await.unwrap();
        let status = answer.status();
        let answer: Value = answer.json().await.unwrap();
        // then the good ones are applied, and the odd one is refused alone, for good,
        assert_eq!(status, 200, "{nth}: {answer}");
        let (applied, rejected) = (&answer["applied"], answer["rejected"].as_array().unwrap().len());
        println!("{nth}: {answer}");
        assert!(
            applied == 3 && rejected == 0 || applied == 2 && rejected == 1,
            "{nth}: {answer}"
        );
        assert!(answer.to_string().len() < 2000);
    }
    // and so it is on the other calls.
    for (path, body) in [
        ("rooms", arrays.clone()),
        ("rooms", format!("{{\"room_id\":2,\"about\":{objects}}}")),
        ("bulk/rooms", format!("{{\"records\":{arrays}}}")),
        ("bulk/rooms", objects.clone()),
        ("changes", arrays.clone()),
        ("changes", "\0\r\n\u{feff}".to_owned()),
    ] {
        let status = fort.post(path).body(body).send().await.unwrap().status();
        assert!(status.is_client_error(), "{path}: {status}");
        tally.faults += 1;
    }
    for schema in [
        serde_json::from_str::<Value>(&deep("[", "]", 100)).unwrap(),
        json!({"entity": "wide", "key": ["c0"], "columns":
            (0..200_000).map(|n| json!({"name": format!("c{n}"), "type": "text"})).collect::<Vec<_>>()}),
        json!({"entity": "a".repeat(1 << 20), "key": ["a"], "columns": [{"name": "a", "type": "text"}]}),
        json!({"entity": "a", "key": vec!["a"; 100_000], "columns": [{"name": "a", "type": "text"}]}),
    ] {
        let status = fort.declare("odd", &schema).await;
        assert!((400..500).contains(&status), "{status}");
        tally.faults += 1;
    }
    let put = fort
        .client
        .put(format!("{}/schema/odd", fort.cloud.url))
        .bearer_auth(KEY);
    assert_eq!(put.body(arrays).send().await.unwrap().status(), 400);
    fort.is_serving(1_000).await;
    let peak = fort.receiver.peak_memory();
    println!("at most {} MiB", peak >> 20);
    assert!(peak < MEMORY, "{peak} bytes");
    fort.is_discreet(&[]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_reach_nothing_beside_their_own() {
    let fort = Fort::build("names").await;
    let mut tally = Tally::default();
    let outside = fort.cloud.files.parent().unwrap().join("outside");
    std::fs::create_dir(&outside).unwrap();
    let before = count(&outside);
    // Names of directories,
    let upload = async |directory: &str, name: &str| {
        let body = format!(
            "--B\r\nContent-Disposition: form-data; name=\"file\"; filename=\"{name}\"\r\n\r\nbytes of {name}\r\n--B--\r\n"
        );
        let head = format!(
            "POST /api/upload/{directory} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\nConnection: close\r\n\
             Content-Type: multipart/form-data; boundary=B\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        let answer = fort.raw(format!("{head}{body}").as_bytes()).await;
        let status: u16 = answer
            .split(' ')
            .nth(1)
            .map_or(0, |code| code.parse().unwrap_or(0));
        (status, answer)
    };
    let long = "a".repeat(5000);
    for directory in [
        "..",
        "%2e%2e",
        "%2E%2E%2Foutside",
        "..%2foutside",
        "a%2Fb",
        "a%5Cb",
        "%00",
        "a%00b",
        "%252e%252e",
        ".incoming",
        ".",
        "a.b",
        "%2Ftmp",
        "..%c0%af..",
        "con%3A",
        &long,
        "../../outside",
        "a/../../outside",
    ] {
        let (status, answer) = upload(directory, "slip.jpg").await;
        tally.faults += 1;
        assert!((400..500).contains(&status), "{directory}: {answer}");
    }
    // names of files,
    for name in [
        "../../outside/x",
        "..\\..\\outside\\x",
        "/etc/cron.d/x",
        "%2e%2e%2foutside%2fx",
        "a\0b",
        "..",
        ".",
        "",
        "con",
        "NUL.txt",
        ".htaccess",
        &long,
        "-rf",
        "a b;rm -rf $(x)`y`",
        "x.jpg/../../../outside/y",
        "\u{202e}gpj.exe",
    ] {
        let (status, answer) = upload("slips", name).await;
        tally.faults += 1;
        assert!(status == 200 || (400..500).contains(&status), "{name}: {answer}");
    }
    // and a link where a directory should be.
    std::os::unix::fs::symlink(&outside, fort.cloud.files.join(SITE).join("linked")).unwrap();
    let (status, answer) = upload("linked", "slip.jpg").await;
    tally.faults += 1;
    assert!(status >= 400 && !answer.contains("outside"), "{answer}");
    // Nothing is written beside the site's own folder, under names that are nothing but names,
    assert_eq!(count(&outside), before);
    let folder = fort.cloud.files.join(SITE).join("slips");
    for entry in std::fs::read_dir(&folder).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let plain = name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte));
        assert!(plain && name.len() < 130, "{name}");
    }
    let mut tops: Vec<_> = std::fs::read_dir(&fort.cloud.files)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    tops.sort();
    assert_eq!(tops, [".incoming", SITE]);
    // and nothing is read.
    std::fs::write(outside.join("secret"), "a secret").unwrap();
    for path in [
        "/media/../outside/secret",
        "/media/college/linked/secret",
        "/media/%2e%2e/%2e%2e/outside",
        "/media/college/slips/..%2f..%2f..%2foutside%2fsecret",
        "/media/.incoming/a/b",
        "//media//etc/passwd",
        "/media/college/slips/0123456789abcdef-%00",
    ] {
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        let answer = fort.raw(request.as_bytes()).await;
        tally.faults += 1;
        assert!(
            answer.starts_with("HTTP/1.1 4") && !answer.contains("a secret"),
            "{path}: {answer}"
        );
    }
    // SQL in the names of entities, columns, types and keys is a name like any other, or refused.
    let evil = "x\"; drop schema cloud cascade; --";
    let odd = json!({"entity": evil, "key": [evil], "columns": [
        {"name": evil, "type": "text); drop schema cloud cascade; --"}, {"name": "' or 1=1", "type": "bigint; select 1"},
    ]});
    assert_eq!(fort.declare("evil", &odd).await, 200);
    let row = json!({evil: "' or '1'='1", "' or 1=1": "$$; drop schema cloud cascade"});
    let line =
        json!({"position": 5, "entity": evil, "op": "upsert", "key": {evil: "' or '1'='1"}, "row": row});
    let answer: Value = fort
        .post("changes")
        .body(line.to_string())
        .send()
        .await
        .unwrap()
        .json()
        .await
        .unwrap();
    assert_eq!(answer["applied"], 1, "{answer}");
    let key = "'%20or%20'1'%3D'1";
    let deleted = fort
        .client
        .delete(format!("{}/evil/{key}", fort.cloud.url))
        .bearer_auth(KEY)
        .send()
        .await
        .unwrap();
    assert_eq!(deleted.status(), 200);
    for path in ["rooms%22;drop", "%00", "rooms'--", "..%2Frooms"] {
        let request = format!(
            "GET /api/{path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\nConnection: close\r\n\r\n"
        );
        let answer = fort.raw(request.as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 4"), "{path}: {answer}");
    }
    fort.is_serving(1).await;
    fort.is_discreet(&[KEY, "a secret"]);
}

fn count(folder: &std::path::Path) -> usize {
    std::fs::read_dir(folder).unwrap().count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_has_one_end_and_one_site() {
    let fort = Fort::build("smuggle").await;
    let mut tally = Tally::default();
    let inner = "GET /api/rooms HTTP/1.1\r\nHost: x\r\n\r\n";
    let head = |more: &str| {
        format!(
            "POST /api/rooms HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\nConnection: close\r\n{more}\r\n"
        )
    };
    // Two lengths, or a length that is none, are refused or read in the one way that the standard allows (RFC 9112, 6.3):
    // what is hidden behind them is never answered as a request.
    for more in [
        "Content-Length: 4\r\nContent-Length: 100\r\n",
        "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked\r\nContent-Length: 4\r\n",
        "Transfer-Encoding: chunked, identity\r\n",
        "Transfer-Encoding: xchunked\r\nContent-Length: 4\r\n",
        "Content-Length: +4\r\n",
        "Content-Length: 4, 100\r\n",
        "Content-Length : 4\r\n",
        "Transfer-Encoding\u{b}: chunked\r\n",
    ] {
        let bytes = format!("{}0\r\n\r\n{inner}", head(more));
        let answer = fort.raw(bytes.as_bytes()).await;
        tally.faults += 1;
        assert!(answer.matches("HTTP/1.1 ").count() <= 1, "{more}: {answer}");
        assert!(
            answer.is_empty() || answer.starts_with("HTTP/1.1 4"),
            "{more}: {answer}"
        );
    }
    // Of two keys in one request none is chosen but the first, and what the request claims chooses nothing.
    fort.receiver
        .rekey(&[(SITE, &[KEY]), ("annex", &["the-annex-key"])]);
    fort.receiver.signal("HUP");
    fort.receiver.logged("the settings were read anew").await;
    fort.is_serving(1).await;
    let line = json!({"position": 9, "entity": "rooms", "op": "delete", "key": {"room_id": 1, "_site": SITE}, "site": SITE});
    let body = line.to_string();
    let request = |key: &str| {
        fort.client
            .post(format!("{}/changes", fort.cloud.url))
            .bearer_auth(key)
            .header("x-source-id", SITE)
            .header("x-site", SITE)
            .header("x-epoch", "1")
            .body(body.clone())
    };
    let answer: Value = request("the-annex-key")
        .send()
        .await
        .unwrap()
        .json()
        .await
        .unwrap();
    tally.faults += 1;
    assert_eq!(answer["rejected"][0]["code"], "unknown-entity", "{answer}");
    let there = connect(&fort.cloud.database_url).await;
    let row = there
        .query_one("select count(*) from cloud.rooms where _site = $1", &[&SITE])
        .await;
    assert_eq!(row.unwrap().get::<_, i64>(0), 1);
    // Wrong kinds of content are refused, not guessed.
    for (path, kind) in [
        ("upload/slips", "application/json"),
        ("upload/slips", "multipart/form-data"),
        ("upload/slips", ""),
    ] {
        let request = fort.post(path).header("content-type", kind).body("{}");
        assert_eq!(request.send().await.unwrap().status(), 400, "{kind}");
        tally.faults += 1;
    }
    let request = fort.post("changes").header("content-encoding", "gzip").body("{}");
    assert_eq!(request.send().await.unwrap().status(), 415);
    fort.is_discreet(&[KEY, "the-annex-key"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_operator_api_stands_the_same() {
    let cloud = Cloud::start("operator").await;
    let site = Site::school("operator", &cloud.url, KEY).await;
    let daemon = Daemon::of(&site, "store");
    let mut tally = Tally::default();
    let process = daemon.start();
    site.run("insert into tbl_room (room_no, room_name) values ('1', 'one')")
        .await;
    daemon.caught_up().await;
    let token = std::fs::read_to_string(site.folder.path().join("store/control.token")).unwrap();
    let url = format!("http://{}/api/cloud-sync/sync-now", daemon.listen());
    let client = reqwest::Client::new();
    // Guessed tokens and huge bodies, with the token and without,
    for guess in ["", "x", &token.trim()[..63], &format!("{}0", token.trim())] {
        let request = client.post(&url).bearer_auth(guess).body(vec![b' '; 1 << 20]);
        tally.faults += 1;
        if let Ok(answer) = request.send().await {
            assert_eq!(answer.status(), 401);
        }
    }
    let piece = Bytes::from(vec![b' '; 256 * 1024]);
    let body = futures::stream::iter((0..40_000).map(move |_| Ok::<_, std::io::Error>(piece.clone())));
    let request = client
        .post(&url)
        .bearer_auth(token.trim())
        .body(reqwest::Body::wrap_stream(body));
    tally.faults += 1;
    if let Ok(answer) = request.send().await {
        assert_eq!(answer.status(), 413);
    }
    // and more slow connections than there are places,
    let mut held = Vec::new();
    for _ in 0..200 {
        if let Ok(mut stream) = TcpStream::connect(daemon.listen()).await {
            let _ = stream
                .write_all(b"GET /api/cloud-sync/status HTTP/1.1\r\nHost: x\r\n")
                .await;
            held.push(stream);
            tally.faults += 1;
        }
    }
    // stop neither the operator nor the drain.
    assert!(daemon.status().await.is_some());
    assert_eq!(daemon.health().await, 200);
    site.run("insert into tbl_room (room_no, room_name) values ('2', 'two')")
        .await;
    daemon.caught_up().await;
    let peak = peak_memory(process.pid().parse().unwrap());
    assert!(peak < MEMORY, "{peak} bytes");
    assert!(!daemon.log().contains(token.trim()), "{}", daemon.log());
    assert!(process.terminate().await.success());
    tally.judge(&site, &cloud).await;
}
