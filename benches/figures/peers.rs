//! Programs that cloud-sync is compared with: PostgreSQL's COPY, curl, rclone.

use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tokio::time::sleep;

use crate::Outcome;
use crate::process::{self, Process};
use crate::servers::{World, program};
use crate::site::free_address;

/// The seconds that it takes to copy the newest rows of a site's table `logs` to the cloud's table `copied`,
/// by COPY out and in.
pub(crate) async fn copy(world: &World, database: &str, rows: u64) -> Outcome<f64> {
    let psql = program("psql");
    let (from, to) = (world.source.url(database), world.cloud.url(database));
    let out = format!("copy (select * from logs order by log_id desc limit {rows}) to stdout");
    let script = r#""$1" -X -q -c "$2" "$3" | "$1" -X -q -c 'copy copied from stdin' "$4""#;
    let start = Instant::now();
    let mut shell = process::command("sh");
    shell
        .args(["-c", script, "sh"])
        .arg(psql)
        .args([&out, &from, &to]);
    process::finished("psql", &mut shell).await?;
    Ok(start.elapsed().as_secs_f64())
}

/// The seconds that curl takes to upload a file to the receiver.
pub(crate) async fn curl(file: &Path, receiver: SocketAddr, directory: &str, key: &str) -> Outcome<f64> {
    let mut curl = process::command("curl");
    curl.args(["--silent", "--show-error", "--fail", "--form"])
        .arg(format!("file=@{}", file.display()))
        .args(["--header", &format!("Authorization: Bearer {key}")])
        .arg(format!("http://{receiver}/api/upload/{directory}"));
    let start = Instant::now();
    process::finished("curl", &mut curl).await?;
    Ok(start.elapsed().as_secs_f64())
}

/// rclone's own WebDAV server.
pub(crate) struct Webdav {
    folder: PathBuf,
    address: SocketAddr,
    server: Process,
}

impl Webdav {
    pub(crate) async fn start(world: &World) -> Outcome<Self> {
        let folder = world.folder(&world.name("webdav"))?;
        let address = free_address();
        let mut rclone = process::command("rclone");
        rclone
            .args(["--config", "", "serve", "webdav", "--addr", &address.to_string()])
            .arg(&folder)
            .stderr(std::process::Stdio::null());
        let mut server = Process::start("rclone serve", &mut rclone)?;
        while TcpStream::connect(address).is_err() {
            server.check()?;
            sleep(Duration::from_millis(10)).await;
        }
        Ok(Self {
            folder,
            address,
            server,
        })
    }

    /// The seconds that rclone takes to copy a folder there.
    pub(crate) async fn copy(&self, from: &Path, to: &str) -> Outcome<f64> {
        let mut rclone = process::command("rclone");
        rclone
            .args(["--config", "", "copy"])
            .arg(from)
            .arg(format!(":webdav:{to}"))
            .args(["--webdav-url", &format!("http://{}/", self.address)]);
        let start = Instant::now();
        process::finished("rclone copy", &mut rclone).await?;
        Ok(start.elapsed().as_secs_f64())
    }

    /// How many files it has in that folder.
    pub(crate) fn count(&self, folder: &str) -> Outcome<usize> {
        Ok(std::fs::read_dir(self.folder.join(folder))?.count())
    }

    pub(crate) async fn end(self) -> Outcome<()> {
        self.server.end().await?;
        std::fs::remove_dir_all(&self.folder)?;
        Ok(())
    }
}
