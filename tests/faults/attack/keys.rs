//! Guessed keys: slowed, logged once, and of no effect on others.

use super::Fort;
use crate::support::oracle::Tally;
use crate::support::site::KEY;

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
