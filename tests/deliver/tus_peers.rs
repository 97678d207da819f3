//! Programs of others that speak tus 1.0.0: the client against a server of Node.js, and a client of Python
//! against the receiver. Each is installed into a folder of the build, in the versions that are written here;
//! where that cannot be, the test says so and is skipped.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use super::tus::{MIB, SlipFile, client_of, upload};
use super::*;
use crate::support::installed::{self, Killed};
use crate::support::site;
use crate::support::tcp_proxy::{TcpProxy, Trouble};

const SERVER: [&str; 2] = ["@tus/server@2.4.5", "@tus/file-store@2.1.1"];
const CLIENT: &str = "tuspy==1.1.0";

/// Serves uploads at `/api/files`, into the folder that is its argument, and prints its port.
const SERVER_SCRIPT: &str = "
import { Server } from '@tus/server';
import { FileStore } from '@tus/file-store';
const server = new Server({
  path: '/api/files',
  datastore: new FileStore({ directory: process.argv[2] }),
});
const listening = server.listen({ host: '127.0.0.1', port: 0 }, () => console.log(listening.address().port));
";

/// Sends a part, then the rest with an uploader that knows only the address.
const CLIENT_SCRIPT: &str = "
import sys
from tusclient import client
url, key, path, size = sys.argv[1:5]
tus = client.TusClient(url, headers={'Authorization': 'Bearer ' + key})
first = tus.uploader(path, chunk_size=int(size), upload_checksum=True,
                     metadata={'filename': 'slip.jpg', 'directory': 'passes'})
first.upload_chunk()
rest = tus.uploader(path, chunk_size=int(size), upload_checksum=True, url=first.url)
assert rest.offset == int(size), rest.offset
rest.upload()
";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_arrives_at_a_server_of_others_through_a_connection_that_breaks() {
    let folder = match installed::of_node("tus-server", &SERVER) {
        Ok(folder) => folder,
        Err(why) => {
            println!("skipped: the server of Node.js cannot be installed: {why}");
            return;
        }
    };
    std::fs::write(folder.join("server.mjs"), SERVER_SCRIPT).unwrap();
    let files = tempfile::tempdir().unwrap();
    let mut server = Command::new("node");
    server.arg(folder.join("server.mjs")).arg(files.path());
    let mut server = Killed(server.stdout(Stdio::piped()).spawn().unwrap());
    let mut port = String::new();
    let mut told = BufReader::new(server.0.stdout.take().unwrap());
    told.read_line(&mut port).unwrap();
    let port: u16 = port.trim().parse().unwrap();
    let breaking = TcpProxy::start(SocketAddr::from(([127, 0, 0, 1], port))).await;
    breaking.set(Trouble::CutRequest(5 * MIB));
    let slip = SlipFile::new(12 * MIB + 1);
    let cloud = client_of(&breaking.url());
    // When a file is sent, then it is there, whole; and that server says no hash.
    let (uploaded, noted) = upload(&cloud, &slip, None).await;
    let receipt = uploaded.unwrap();
    assert!(breaking.struck() > 0);
    assert!(!receipt.confirmed);
    let id = receipt.url.rsplit('/').next().unwrap();
    assert!(std::fs::read(files.path().join(id)).unwrap() == slip.content);
    // What it has of an upload counts,
    let (again, _) = upload(&cloud, &slip, noted.last().cloned()).await;
    assert_eq!(again.unwrap().url, receipt.url);
    // and one that is ended begins again.
    cloud.end_upload(&receipt.url).await.unwrap();
    let (again, _) = upload(&cloud, &slip, noted.last().cloned()).await;
    let receipt = again.unwrap();
    assert_ne!(Some(&receipt.url), noted.last().map(|noted| &noted.address));
    let id = receipt.url.rsplit('/').next().unwrap();
    assert!(std::fs::read(files.path().join(id)).unwrap() == slip.content);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_of_others_sends_a_file_in_parts() {
    let folder = match installed::of_python("tus-client", CLIENT) {
        Ok(folder) => folder,
        Err(why) => {
            println!("skipped: the client of Python cannot be installed: {why}");
            return;
        }
    };
    let receiver = site::Cloud::start("tus_peer").await;
    let files = tempfile::tempdir().unwrap();
    let path = files.path().join("slip.jpg");
    let content = SlipFile::new(5 * MIB + 1).content;
    std::fs::write(&path, &content).unwrap();
    std::fs::write(folder.join("client.py"), CLIENT_SCRIPT).unwrap();
    let mut client = Command::new(folder.join("bin/python"));
    client
        .arg(folder.join("client.py"))
        .args([&format!("{}/files", receiver.url), site::KEY])
        .arg(&path)
        .arg((2 * MIB).to_string());
    let sent = tokio::task::spawn_blocking(move || installed::run(&mut client))
        .await
        .unwrap();
    assert_eq!(sent, Ok(()));
    let stored = std::fs::read_dir(receiver.files.join(site::SITE).join("passes")).unwrap();
    let stored: Vec<_> = stored
        .map(|file| std::fs::read(file.unwrap().path()).unwrap())
        .collect();
    assert!(stored == [content]);
}
