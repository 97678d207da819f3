//! Programs that cloud-sync is compared with: PostgreSQL's COPY, curl, rclone.

use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tokio::process::Command;
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

/// The key of the server of S3, and its secret.
const S3_KEY: [&str; 2] = ["figures", "figures-secret"];

/// The bucket, and its region.
const BUCKET: &str = "school";
const REGION: &str = "us-east-1";

/// rclone as it is today, where `make bench` could install it; else the distribution's, which is some years old.
fn rclone() -> Command {
    let installed = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/peers/bin/rclone");
    let mut rclone = match installed.is_file() {
        true => process::command(installed),
        false => process::command("rclone"),
    };
    rclone.args(["--config", ""]);
    rclone
}

/// rclone's own server of S3.
pub(crate) struct S3Server {
    folder: PathBuf,
    address: SocketAddr,
    server: Process,
}

impl S3Server {
    pub(crate) async fn start(world: &World) -> Outcome<Self> {
        let folder = world.folder(&world.name("s3"))?;
        std::fs::create_dir(folder.join(BUCKET))?;
        let address = free_address();
        let mut rclone = rclone();
        rclone
            .args(["serve", "s3", "--addr", &address.to_string(), "--auth-key"])
            .arg(S3_KEY.join(","))
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

    /// The settings of a site that brings its files there.
    pub(crate) fn settings(&self) -> String {
        let [key, secret] = S3_KEY;
        format!(
            "[files]\ndriver = \"s3\"\nbucket = {BUCKET:?}\nregion = {REGION:?}\n\
             endpoint = \"http://{}\"\naccess_key = {key:?}\nsecret_key = {secret:?}\n",
            self.address
        )
    }

    /// The seconds that rclone takes to copy a file, or the files of a folder, there.
    pub(crate) async fn copy(&self, from: &Path, to: &str) -> Outcome<f64> {
        let [key, secret] = S3_KEY;
        let mut rclone = rclone();
        rclone
            .arg("copy")
            .arg(from)
            .arg(format!(":s3:{BUCKET}/{to}"))
            .args(["--s3-provider", "Rclone", "--s3-region", REGION])
            .args(["--s3-endpoint", &format!("http://{}", self.address)])
            .args(["--s3-access-key-id", key, "--s3-secret-access-key", secret]);
        let start = Instant::now();
        process::finished("rclone copy", &mut rclone).await?;
        Ok(start.elapsed().as_secs_f64())
    }

    /// How many files it has in that folder.
    pub(crate) fn count(&self, folder: &str) -> Outcome<usize> {
        Ok(std::fs::read_dir(self.folder.join(BUCKET).join(folder))?.count())
    }

    /// Removes all that it has.
    pub(crate) fn clear(&self) -> Outcome<()> {
        let bucket = self.folder.join(BUCKET);
        std::fs::remove_dir_all(&bucket)?;
        std::fs::create_dir(bucket)?;
        Ok(())
    }

    pub(crate) async fn end(self) -> Outcome<()> {
        self.server.end().await?;
        std::fs::remove_dir_all(&self.folder)?;
        Ok(())
    }
}
