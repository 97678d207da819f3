//! The corpus of the fuzz targets, each file as it is and with some mutations: read by the receiver's own
//! readers, and sent to a real receiver, which answers each and goes on.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use bytes::Bytes;
use cloud_sync::receiver::{read_changes, read_parts};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::support::batches::BatchSource;
use crate::support::site::{Cloud, KEY};

const KIND: &str = "multipart/form-data; boundary=X-BOUNDARY";

/// How long mutations are tried.
const SPAN: Duration = Duration::from_secs(3);

fn corpus(target: &str) -> Vec<(String, Vec<u8>)> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("tests/fuzz/corpus/{target}"));
    let mut files: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| {
            let path = entry.unwrap().path();
            (path.display().to_string(), std::fs::read(path).unwrap())
        })
        .collect();
    files.sort();
    assert!(!files.is_empty());
    files
}

/// A seed from the environment, so that a run can be repeated.
fn seed() -> u64 {
    let seed = std::env::var("CLOUD_SYNC_SEED").map_or_else(|_| rand::random(), |text| text.parse().unwrap());
    println!("CLOUD_SYNC_SEED={seed}");
    seed
}

/// Flips, cuts, doubles and splices.
fn mutate(rng: &mut StdRng, body: &[u8], other: &[u8]) -> Vec<u8> {
    let mut body = body.to_vec();
    for _ in 0..rng.random_range(1..5) {
        let at = rng.random_range(0..=body.len());
        match rng.random_range(0..6) {
            0 if at < body.len() => body[at] ^= 1 << rng.random_range(0..8),
            1 => body.truncate(at),
            2 => {
                let words: [&[u8]; 8] = [
                    b"\"",
                    b"\\",
                    b"{",
                    b"]",
                    b"\r\n--X-BOUNDARY",
                    b"\\u0000",
                    b"\0",
                    b"\n",
                ];
                let word = words[rng.random_range(0..words.len())];
                body.splice(at..at, word.iter().copied());
            }
            3 if at < body.len() => {
                let end = rng.random_range(at..body.len().min(at + 64)) + 1;
                let piece = body[at..end.min(body.len())].to_vec();
                body.splice(at..at, piece);
            }
            4 if !other.is_empty() => {
                let from = rng.random_range(0..other.len());
                body.truncate(at);
                body.extend_from_slice(&other[from..]);
            }
            _ if at < body.len() => {
                let end = rng.random_range(at..body.len().min(at + 64));
                body.drain(at..end);
            }
            _ => {}
        }
    }
    body
}

fn is_safe(name: &str) -> bool {
    !name.is_empty() && !name.contains(['/', '\\', '\0']) && !name.starts_with('.') && name.len() <= 100
}

#[tokio::test]
async fn the_readers_take_the_corpus_and_its_mutations() {
    let mut rng = StdRng::seed_from_u64(seed());
    let changes = corpus("changes");
    for (name, body) in &changes {
        println!("{name}: {:?}", read_changes(body));
    }
    assert_eq!(read_changes(&changes_named(&changes, "/plain")), Ok((1, 3)));
    assert_eq!(read_changes(&changes_named(&changes, "/crlf")), Ok((1, 1)));
    assert!(read_changes(&changes_named(&changes, "/half")).is_err());
    let (mut tried, start) = (0, Instant::now());
    while start.elapsed() < SPAN {
        let body = &changes[rng.random_range(0..changes.len())].1;
        let other = &changes[rng.random_range(0..changes.len())].1;
        let _ = read_changes(&mutate(&mut rng, body, other));
        tried += 1;
    }
    let uploads = corpus("multipart");
    for (name, body) in &uploads {
        let read = read_parts(KIND, Bytes::from(body.clone())).await;
        println!("{name}: {read:?}");
        assert!(read.unwrap_or_default().iter().all(|(name, _)| is_safe(name)));
    }
    let start = Instant::now();
    while start.elapsed() < SPAN {
        let body = &uploads[rng.random_range(0..uploads.len())].1;
        let other = &uploads[rng.random_range(0..uploads.len())].1;
        let body = Bytes::from(mutate(&mut rng, body, other));
        let read = read_parts(KIND, body).await;
        assert!(read.unwrap_or_default().iter().all(|(name, _)| is_safe(name)));
        tried += 1;
    }
    println!("{tried} mutations");
}

fn changes_named(corpus: &[(String, Vec<u8>)], end: &str) -> Vec<u8> {
    let found = corpus.iter().find(|(name, _)| name.ends_with(end));
    found.unwrap().1.clone()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_receiver_answers_the_corpus_and_its_mutations() {
    let cloud = Cloud::start("fuzz").await;
    let client = reqwest::Client::new();
    let declared = serde_json::json!({
        "entity": "rooms", "key": ["room_id"],
        "columns": [{"name": "room_id", "type": "bigint"}, {"name": "room_no", "type": "text"}],
    });
    let put = client
        .put(format!("{}/schema/rooms", cloud.url))
        .bearer_auth(KEY)
        .json(&declared);
    assert_eq!(put.send().await.unwrap().status(), 200);
    let mut rng = StdRng::seed_from_u64(seed());
    let (changes, uploads) = (corpus("changes"), corpus("multipart"));
    let source = BatchSource::new("fuzz");
    let start = Instant::now();
    let (mut nth, mut tried) = (0, 0);
    while nth < changes.len().max(uploads.len()) || start.elapsed() < SPAN {
        for (bodies, path, kind) in [
            (&changes, "changes", "application/x-ndjson"),
            (&uploads, "upload/slips", KIND),
        ] {
            let body = match bodies.get(nth) {
                Some((_, body)) => body.clone(),
                None => {
                    let body = &bodies[rng.random_range(0..bodies.len())].1;
                    let other = &bodies[rng.random_range(0..bodies.len())].1;
                    mutate(&mut rng, body, other)
                }
            };
            let shown = String::from_utf8_lossy(&body)
                .chars()
                .take(400)
                .collect::<String>();
            let name = source.next();
            let request = client
                .post(format!("{}/{path}", cloud.url))
                .bearer_auth(KEY)
                .header("content-type", kind);
            let answer = name.put(request).body(body).send().await.unwrap();
            // Whatever it is, it is done or refused: nothing is to be tried again for ever.
            let status = answer.status().as_u16();
            let words = answer.text().await.unwrap();
            assert_ne!(status, 409, "{words} to {shown}");
            if path == "changes" && status == 200 {
                source.taken(name);
            }
            assert!(
                status == 200 || (400..500).contains(&status),
                "{status} {words} to {shown}"
            );
            tried += 1;
        }
        nth += 1;
    }
    println!("{tried} requests");
    let list = client
        .get(format!("{}/rooms", cloud.url))
        .bearer_auth(KEY)
        .send()
        .await
        .unwrap();
    assert_eq!(list.status(), 200);
}
