//! How the outbox grows while the cloud is away, and how long that can go on.

use std::collections::VecDeque;
use std::path::Path;
use std::time::{Duration, Instant};

use tokio_postgres::Client;

use crate::control::status::GrowthStatus;
use crate::error::{Error, Result};

/// The time that the rate is taken over.
const OVER: Duration = Duration::from_secs(600);

/// The least time between two kept samples.
const APART: Duration = Duration::from_secs(5);

/// The outbox's size over the last minutes.
#[derive(Debug, Default)]
pub(super) struct OutboxForecast(VecDeque<(Instant, u64)>);

impl OutboxForecast {
    /// Notes the size now, and answers how it grows. The rate is over the kept samples since the outbox last
    /// shrank: a trim is no sign that there is more room.
    pub(super) fn note(&mut self, now: Instant, bytes: u64, room: Option<u64>) -> GrowthStatus {
        let samples = &mut self.0;
        if samples.back().is_some_and(|(_, last)| bytes < *last) {
            samples.clear();
        }
        while samples
            .front()
            .is_some_and(|(at, _)| now.duration_since(*at) > OVER)
        {
            samples.pop_front();
        }
        let rate = samples.front().and_then(|(at, first)| {
            let seconds = now.duration_since(*at).as_secs_f64();
            (seconds > 0.0).then(|| bytes.saturating_sub(*first) as f64 / seconds)
        });
        if samples
            .back()
            .is_none_or(|(at, _)| now.duration_since(*at) >= APART)
        {
            samples.push_back((now, bytes));
        }
        GrowthStatus {
            bytes_per_second: rate,
            room_bytes: room,
            full_in_seconds: room
                .zip(rate.filter(|&rate| rate > 0.0))
                .map(|(room, rate)| room as f64 / rate),
        }
    }
}

const WHERE: &str = "select coalesce(host(inet_server_addr()), ''), \
     (select coalesce(nullif(pg_tablespace_location(oid), ''), current_setting('data_directory', true)) from pg_tablespace \
      where oid = (select dattablespace from pg_database where datname = current_database()))";

/// How many bytes the outbox may still grow by: the free space of the disk that it lies on, where the server
/// runs on this machine and says where its data lies, and what the limit leaves. None where neither is known.
pub(super) async fn room(client: &Client, limit: Option<u64>, bytes: u64) -> Result<Option<u64>> {
    let left = limit.map(|limit| limit.saturating_sub(bytes));
    let free = match client.query_one(WHERE, &[]).await {
        Ok(row) => {
            let (address, folder): (&str, Option<&str>) = (row.get(0), row.get(1));
            let here = address.is_empty()
                || address
                    .parse::<std::net::IpAddr>()
                    .is_ok_and(|address| address.is_loopback());
            folder.filter(|_| here).and_then(|folder| free(Path::new(folder)))
        }
        // Where the server's data lies is not everybody's to know.
        Err(error) if error.code() == Some(&tokio_postgres::error::SqlState::INSUFFICIENT_PRIVILEGE) => None,
        Err(error) => return Err(Error::postgres("ask where the outbox lies", error)),
    };
    Ok(match (left, free) {
        (Some(left), Some(free)) => Some(left.min(free)),
        (left, free) => left.or(free),
    })
}

/// Bytes that are free on the disk of a folder, for those who are not root; `None` if that cannot be read.
pub(super) fn free(folder: &Path) -> Option<u64> {
    let disk = rustix::fs::statvfs(folder).ok()?;
    Some(disk.f_bavail.saturating_mul(disk.f_frsize))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_is_since_the_outbox_last_shrank() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut growth = OutboxForecast::default();
        assert_eq!(growth.note(at(0), 1000, Some(500)).bytes_per_second, None);
        let grown = growth.note(at(10), 2000, Some(500));
        assert_eq!(grown.bytes_per_second, Some(100.0));
        assert_eq!(grown.full_in_seconds, Some(5.0));
        assert_eq!(growth.note(at(20), 100, None).bytes_per_second, None);
        let still = growth.note(at(30), 100, Some(500));
        assert_eq!((still.bytes_per_second, still.full_in_seconds), (Some(0.0), None));
        // What lies back too far counts no more.
        growth.note(at(700), 200, None);
        assert_eq!(growth.note(at(710), 300, None).bytes_per_second, Some(10.0));
    }
}
