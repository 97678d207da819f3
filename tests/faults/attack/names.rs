//! Names of folders, files, entities and columns that try to be more than names.

use serde_json::{Value, json};

use super::Fort;
use crate::support::oracle::Tally;
use crate::support::site::{KEY, SITE};

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
            "--B\r\nContent-Disposition: form-data; name=\"file\"; \
             filename=\"{name}\"\r\n\r\nbytes of {name}\r\n--B--\r\n"
        );
        let head = format!(
            "POST /api/upload/{directory} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\nConnection: \
             close\r\n\
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
    // Nothing is written outside the site's own folder, under names that are nothing but names,
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
        {"name": evil, "type": "text); drop schema cloud cascade; \
             --"}, {"name": "' or 1=1", "type": "bigint; select 1"},
    ]});
    assert_eq!(fort.declare("evil", &odd).await, 200);
    let row = json!({evil: "' or '1'='1", "' or 1=1": "$$; drop schema cloud cascade"});
    let line =
        json!({"position": 5, "entity": evil, "op": "upsert", "key": {evil: "' or '1'='1"}, "row": row});
    let answer: Value = fort
        .changes()
        .body(line.to_string())
        .send()
        .await
        .unwrap()
        .json()
        .await
        .unwrap();
    assert_eq!(answer["applied"], 1, "{answer}");
    fort.taken();
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
