//! A private PostgreSQL server, with its own folder and its own port on the loopback interface.
//!
//! What always holds:
//! - Nobody else can connect: TCP listens on 127.0.0.1 only and asks for a random password (SCRAM). The Unix
//!   socket is in the server's folder, which only its owner may enter.
//! - Settings are PostgreSQL's defaults, also those for durability.
//! - The server never outlives this program, however the program ends. A shell starts the server and reads
//!   from a pipe whose other end this program holds. When that end closes, by [`PrivateServer::stop`], by a
//!   drop or by SIGKILL, the shell asks the server for a fast shutdown.
//!
//! PostgreSQL refuses to run as root. If we are root, the server runs as the user `postgres`, who then owns
//! the folder. If the folder has a server's data already, the server starts with these data.

use std::fs::Permissions;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use rand::RngExt;
use tokio::process::{Child, ChildStdin, Command};
use tokio::time::{Instant, sleep, timeout};
use tokio_postgres::NoTls;

use crate::error::{Error, Kind, Result};

/// Runs the server, which its arguments give, until the server or standard input ends.
const KEEPER: &str = r#"
exec 3<&0
"$@" 3<&- </dev/null &
server=$!
( read -r line <&3; kill -INT "$server" ) 2>/dev/null &
watcher=$!
exec 3<&-
wait "$server"
code=$?
kill "$watcher" 2>/dev/null
exit "$code"
"#;
const START_LIMIT: Duration = Duration::from_secs(60);
const STOP_LIMIT: Duration = Duration::from_secs(60);
/// The longest path of a Unix socket, without the zero byte at its end.
const SOCKET_LIMIT: usize = 107;

/// A running server. Dropping it shuts the server down, without waiting until it has ended.
pub struct PrivateServer {
    keeper: Child,
    /// The open end of the keeper's pipe.
    lifeline: ChildStdin,
    port: u16,
    password: String,
}

impl PrivateServer {
    /// Starts a server in `folder`, which is created if needed, and waits until it accepts connections.
    ///
    /// # Errors
    /// The server's programs are missing, or the server does not start within a minute. As root: the user
    /// `postgres` is missing or cannot enter the folder.
    pub async fn start(folder: &Path) -> Result<Self> {
        let programs = Programs::find()?;
        std::fs::create_dir_all(folder)
            .and_then(|()| std::fs::set_permissions(folder, Permissions::from_mode(0o700)))
            .map_err(|error| Error::local(format!("create the folder {}", folder.display()), error))?;
        let folder = folder
            .canonicalize()
            .map_err(|error| Error::local(format!("open the folder {}", folder.display()), error))?;
        let account = Account::choose(&folder)?;
        let password = initialise_data_folder(&programs, &account, &folder).await?;
        // Another program can take the free port before the server does.
        let mut attempts = 0;
        loop {
            attempts += 1;
            match launch(&programs, &account, &folder, &password).await {
                Err(error) if attempts == 3 => return Err(error),
                Err(error) => tracing::debug!(%error, "starting the private PostgreSQL server again"),
                Ok(server) => return Ok(server),
            }
        }
    }

    /// The URL of one of its databases, with user and password.
    pub fn url(&self, database: &str) -> String {
        format!(
            "postgres://postgres:{}@{}/{database}",
            self.password,
            self.address()
        )
    }

    /// The address on which it listens.
    pub fn address(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.port))
    }

    /// Creates a database, unless it exists.
    ///
    /// # Errors
    /// The server cannot be reached or refuses.
    pub async fn create_database(&self, name: &str) -> Result<()> {
        let operation = || format!("create the database {name}");
        let (client, connection) = tokio_postgres::connect(&self.url("postgres"), NoTls)
            .await
            .map_err(|error| Error::postgres(operation(), error))?;
        let work = async move {
            let exists = "select 1 from pg_database where datname = $1";
            if client.query_opt(exists, &[&name]).await?.is_none() {
                let quoted = name.replace('"', "\"\"");
                client
                    .batch_execute(&format!("create database \"{quoted}\""))
                    .await?;
            }
            Ok(())
        };
        // The connection ends when the work ends, which drops the client.
        let (created, _) = tokio::join!(work, connection);
        created.map_err(|error| Error::postgres(operation(), error))
    }

    /// Shuts the server down and waits until it has ended. Open connections are closed; committed data are
    /// safe.
    ///
    /// # Errors
    /// The server does not end within a minute.
    pub async fn stop(self) -> Result<()> {
        let Self {
            mut keeper, lifeline, ..
        } = self;
        drop(lifeline);
        match timeout(STOP_LIMIT, keeper.wait()).await {
            Ok(ended) => ended
                .map(drop)
                .map_err(|error| Error::local("wait for the private PostgreSQL server", error)),
            Err(_) => Err(Error::new(
                Kind::Local,
                "stop the private PostgreSQL server",
                format!("it still runs after {} s", STOP_LIMIT.as_secs()),
            )
            .remedy("look at server.log in its folder")),
        }
    }
}

/// The server's programs.
struct Programs {
    initdb: PathBuf,
    postgres: PathBuf,
}

impl Programs {
    /// Looks on the PATH first, and then for the newest version in Debian's folder.
    fn find() -> Result<Self> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let mut installed: Vec<(u32, PathBuf)> = std::fs::read_dir("/usr/lib/postgresql")
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|entry| {
                let version = entry.file_name().to_str()?.parse().ok()?;
                Some((version, entry.path().join("bin")))
            })
            .collect();
        installed.sort_unstable_by(|a, b| b.cmp(a));
        std::env::split_paths(&path)
            .chain(installed.into_iter().map(|(_, folder)| folder))
            .map(|folder| Self {
                initdb: folder.join("initdb"),
                postgres: folder.join("postgres"),
            })
            .find(|programs| programs.initdb.is_file() && programs.postgres.is_file())
            .ok_or_else(|| {
                Error::new(
                    Kind::Local,
                    "start a private PostgreSQL server",
                    "initdb and postgres are neither on the PATH nor below /usr/lib/postgresql",
                )
                .remedy("install the server: apt-get install postgresql")
            })
    }
}

/// The user that the server runs as.
enum Account {
    /// Our own user.
    Own,
    /// The user `postgres`, since we are root.
    Postgres { uid: u32, gid: u32 },
}

impl Account {
    /// Chooses the account. Gives it the folder if it is not our own.
    fn choose(folder: &Path) -> Result<Self> {
        // The owner of a new file is our own user.
        let own_file = tempfile::tempfile_in(folder)
            .and_then(|file| file.metadata())
            .map_err(|error| Error::local(format!("write to the folder {}", folder.display()), error))?;
        if own_file.uid() != 0 {
            return Ok(Self::Own);
        }
        let (uid, gid) = postgres_user().ok_or_else(|| {
            Error::new(
                Kind::Local,
                "start a private PostgreSQL server as root",
                "PostgreSQL does not run as root, and there is no user postgres",
            )
            .remedy("run this as an ordinary user, or install the server: apt-get install postgresql")
        })?;
        for parent in folder.ancestors().skip(1) {
            let entry = parent
                .metadata()
                .map_err(|error| Error::local(format!("read the folder {}", parent.display()), error))?;
            let may_enter = if entry.uid() == uid {
                0o100
            } else if entry.gid() == gid {
                0o010
            } else {
                0o001
            };
            if entry.mode() & may_enter == 0 {
                return Err(Error::new(
                    Kind::Local,
                    format!("start a private PostgreSQL server in {}", folder.display()),
                    format!(
                        "it runs as the user postgres, who may not enter {}",
                        parent.display()
                    ),
                )
                .remedy("choose a folder that every user may enter, such as one below /var/tmp"));
            }
        }
        chown(folder, Some(uid), Some(gid))
            .map_err(|error| Error::local(format!("give {} to postgres", folder.display()), error))?;
        Ok(Self::Postgres { uid, gid })
    }

    /// A command that runs `program` as this account, in `folder`, without PostgreSQL's variables of our
    /// environment.
    fn command(&self, program: &Path, folder: &Path) -> Command {
        let mut command = match self {
            Self::Own => Command::new(program),
            Self::Postgres { .. } => {
                let mut command = Command::new("setpriv");
                command
                    .args(["--reuid=postgres", "--regid=postgres", "--init-groups", "--"])
                    .arg(program);
                command
            }
        };
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("PG") {
                command.env_remove(name);
            }
        }
        command.current_dir(folder).stdin(Stdio::null()).process_group(0);
        command
    }

    fn give(&self, path: &Path) -> std::io::Result<()> {
        match *self {
            Self::Own => Ok(()),
            Self::Postgres { uid, gid } => chown(path, Some(uid), Some(gid)),
        }
    }
}

/// The user id and group id of `postgres`.
fn postgres_user() -> Option<(u32, u32)> {
    let users = std::fs::read_to_string("/etc/passwd").ok()?;
    let mut fields = users
        .lines()
        .find(|line| line.starts_with("postgres:"))?
        .split(':')
        .skip(2);
    Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
}

/// Creates the data folder, unless it exists. Returns the password.
async fn initialise_data_folder(programs: &Programs, account: &Account, folder: &Path) -> Result<String> {
    let password_file = folder.join("password");
    let data = folder.join("data");
    if data.join("PG_VERSION").exists() {
        return std::fs::read_to_string(&password_file)
            .map_err(|error| Error::local(format!("read {}", password_file.display()), error));
    }
    let password = format!("{:032x}", rand::rng().random::<u128>());
    std::fs::write(&password_file, "")
        .and_then(|()| std::fs::set_permissions(&password_file, Permissions::from_mode(0o600)))
        .and_then(|()| std::fs::write(&password_file, &password))
        .and_then(|()| account.give(&password_file))
        .map_err(|error| Error::local(format!("write {}", password_file.display()), error))?;
    let output = account
        .command(&programs.initdb, folder)
        .args(["--username=postgres", "--encoding=UTF8", "--no-locale"])
        .args(["--auth-local=trust", "--auth-host=scram-sha-256"])
        .arg("--pwfile")
        .arg(&password_file)
        .arg("--pgdata")
        .arg(&data)
        .output()
        .await
        .map_err(|error| Error::local("run initdb", error))?;
    if output.status.success() {
        return Ok(password);
    }
    // The next start would use an incomplete data folder as if it were complete.
    std::fs::remove_dir_all(&data).ok();
    let stderr = String::from_utf8_lossy(&output.stderr);
    let cause = stderr
        .lines()
        .rfind(|line| line.contains("error:"))
        .unwrap_or("it failed without a message");
    Err(Error::new(
        Kind::Local,
        format!("run initdb in {}", folder.display()),
        cause,
    ))
}

/// Tries once to start the server on a port that is free at the moment.
async fn launch(
    programs: &Programs,
    account: &Account,
    folder: &Path,
    password: &str,
) -> Result<PrivateServer> {
    let operation = || format!("start a private PostgreSQL server in {}", folder.display());
    let local_error = |error| Error::local(operation(), error);
    let port = TcpListener::bind(("127.0.0.1", 0))
        .and_then(|listener| listener.local_addr())
        .map_err(local_error)?
        .port();
    let log = std::fs::File::create(folder.join("server.log")).map_err(local_error)?;
    let socket = folder.join(format!(".s.PGSQL.{port}"));
    let sockets = if socket.as_os_str().len() <= SOCKET_LIMIT {
        folder.as_os_str().to_owned()
    } else {
        "".into()
    };
    let mut keeper = account
        .command(Path::new("/bin/sh"), folder)
        .args(["-c", KEEPER, "keeper"])
        .arg(&programs.postgres)
        .arg("-D")
        .arg(folder.join("data"))
        .args(["-c", "listen_addresses=127.0.0.1", "-p", &port.to_string(), "-k"])
        .arg(sockets)
        .stdin(Stdio::piped())
        .stdout(log.try_clone().map_err(local_error)?)
        .stderr(log)
        .spawn()
        .map_err(local_error)?;
    let Some(lifeline) = keeper.stdin.take() else {
        return Err(Error::new(Kind::Local, operation(), "it has no standard input"));
    };
    let mut server = PrivateServer {
        keeper,
        lifeline,
        port,
        password: password.to_owned(),
    };
    let limit = Instant::now() + START_LIMIT;
    loop {
        if let Some(status) = server.keeper.try_wait().map_err(local_error)? {
            return Err(
                Error::new(Kind::Local, operation(), format!("it ended with {status}"))
                    .remedy(format!("look at {}", folder.join("server.log").display())),
            );
        }
        match tokio_postgres::connect(&server.url("postgres"), NoTls).await {
            Ok(_) => return Ok(server),
            Err(error) if Instant::now() > limit => return Err(Error::postgres(operation(), error)),
            Err(_) => sleep(Duration::from_millis(30)).await,
        }
    }
}
