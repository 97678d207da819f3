//! A real browser: Debian's Chromium, driven by its chromedriver with the calls of WebDriver that the tests
//! need; and axe, which finds what keeps people from using a page. A crate for WebDriver would add operators to
//! `String`, which makes `text + &text` ambiguous in every test.

use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use reqwest::Method;
use serde_json::{Value, json};

use super::site::{LIMIT, provider};

/// The name of an element's id in WebDriver.
const ELEMENT: &str = "element-6066-11e4-a52e-4f735466cecf";

/// A browser, closed when it is dropped.
pub(crate) struct Browser {
    http: reqwest::Client,
    /// The URL of the session.
    session: String,
    process: Child,
    _profile: tempfile::TempDir,
}

impl Browser {
    /// Starts a browser; `None`, with the reason on stderr, if there is none on this machine.
    pub(crate) async fn start() -> Option<Self> {
        provider();
        for program in ["chromium", "chromedriver"] {
            let found = Command::new(program).arg("--version").output();
            if !found.is_ok_and(|found| found.status.success()) {
                eprintln!("skipped: there is no {program} on this machine (`make chromium` installs it)");
                return None;
            }
        }
        // A process group of its own: the browser goes with it.
        let mut process = Command::new("chromedriver")
            .arg("--port=0")
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let output = BufReader::new(process.stdout.take().unwrap());
        let port = tokio::task::spawn_blocking(move || port_of(output))
            .await
            .unwrap();
        let profile = tempfile::tempdir().unwrap();
        let arguments = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--disable-dev-shm-usage",
            &format!("--user-data-dir={}", profile.path().display()),
        ];
        let mut browser = Self {
            http: reqwest::Client::builder().no_proxy().build().unwrap(),
            session: format!("http://127.0.0.1:{port}/session"),
            process,
            _profile: profile,
        };
        let options = json!({"browserName": "chrome", "goog:chromeOptions": {"args": arguments}});
        let begun = browser
            .post("", json!({"capabilities": {"alwaysMatch": options}}))
            .await;
        let id = begun.expect("a session")["sessionId"]
            .as_str()
            .unwrap()
            .to_owned();
        browser.session = format!("{}/{id}", browser.session);
        browser.resize(1280, 900).await;
        Some(browser)
    }

    /// A call of WebDriver. Returns its value, or its error.
    async fn call(&self, method: Method, path: &str, body: Option<Value>) -> Result<Value, String> {
        let mut request = self.http.request(method, format!("{}{path}", self.session));
        if let Some(body) = body {
            request = request.json(&body);
        }
        let answer = request.send().await.unwrap();
        let is_done = answer.status().is_success();
        let mut answer: Value = answer.json().await.unwrap();
        let value = answer["value"].take();
        if is_done {
            Ok(value)
        } else {
            Err(value.to_string())
        }
    }

    async fn post(&self, path: &str, body: Value) -> Result<Value, String> {
        self.call(Method::POST, path, Some(body)).await
    }

    async fn get(&self, path: &str) -> Result<Value, String> {
        self.call(Method::GET, path, None).await
    }

    /// The path of an element.
    async fn find(&self, selector: &str) -> Result<String, String> {
        let found = self
            .post("/element", json!({"using": "css selector", "value": selector}))
            .await?;
        Ok(format!(
            "/element/{}",
            found[ELEMENT].as_str().unwrap_or_default()
        ))
    }

    pub(crate) async fn open(&self, url: &str) {
        self.post("/url", json!({"url": url})).await.unwrap();
    }

    /// Types into a field.
    pub(crate) async fn type_into(&self, selector: &str, text: &str) {
        let field = self.find(selector).await.unwrap();
        self.post(&format!("{field}/value"), json!({"text": text}))
            .await
            .unwrap();
    }

    async fn text_of(&self, selector: &str) -> Result<String, String> {
        let element = self.find(selector).await?;
        let text = self.get(&format!("{element}/text")).await?;
        Ok(text.as_str().unwrap_or_default().to_owned())
    }

    /// Waits until an element shows these words, and returns all its text.
    pub(crate) async fn until_shown(&self, selector: &str, words: &str) -> String {
        let start = Instant::now();
        loop {
            // The page may just be replacing the element.
            let text = self.text_of(selector).await.unwrap_or_default();
            if text.contains(words) {
                return text;
            }
            if start.elapsed() > LIMIT {
                let source = self.get("/source").await;
                panic!("no {words:?} in {selector}: {text:?}\n{source:?}");
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Clicks an element, which the page may just be replacing.
    pub(crate) async fn click(&self, selector: &str) {
        let start = Instant::now();
        loop {
            let clicked = async {
                let element = self.find(selector).await?;
                self.post(&format!("{element}/click"), json!({})).await
            };
            match clicked.await {
                Ok(_) => return,
                Err(error) => assert!(start.elapsed() < LIMIT, "{selector}: {error}"),
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// What a script in the page returns.
    pub(crate) async fn evaluate(&self, script: &str) -> Value {
        let call = json!({"script": script, "args": []});
        self.post("/execute/sync", call).await.unwrap()
    }

    pub(crate) async fn resize(&self, width: u32, height: u32) {
        let metrics = json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": false});
        self.command("Emulation.setDeviceMetricsOverride", metrics).await;
    }

    /// Prefers light or dark pages from now on.
    pub(crate) async fn prefer(&self, scheme: &str) {
        let features = json!({"features": [{"name": "prefers-color-scheme", "value": scheme}]});
        self.command("Emulation.setEmulatedMedia", features).await;
    }

    /// Runs no script of pages from now on, or does again.
    pub(crate) async fn disable_scripts(&self, disabled: bool) {
        self.command("Emulation.setScriptExecutionDisabled", json!({"value": disabled}))
            .await;
    }

    async fn command(&self, name: &str, parameters: Value) {
        let call = json!({"cmd": name, "params": parameters});
        self.post("/goog/cdp/execute", call).await.unwrap();
    }

    /// Keeps a picture of the page in the target folder, for people.
    pub(crate) async fn picture(&self, name: &str) {
        let height = self
            .evaluate("return document.documentElement.scrollHeight")
            .await;
        let width = self.evaluate("return window.innerWidth").await;
        self.resize(
            width.as_u64().unwrap() as u32,
            height.as_u64().unwrap().min(6_000) as u32,
        )
        .await;
        let folder = target_folder().join("page-pictures");
        std::fs::create_dir_all(&folder).unwrap();
        let png = self.get("/screenshot").await.unwrap();
        let png = STANDARD.decode(png.as_str().unwrap()).unwrap();
        std::fs::write(folder.join(format!("{name}.png")), png).unwrap();
    }

    /// Asserts that axe finds nothing on the page that keeps people from using it.
    pub(crate) async fn assert_accessible(&self, axe: Option<&str>, page: &str) {
        let Some(axe) = axe else { return };
        self.evaluate(axe).await;
        let run = "const done = arguments[arguments.length - 1];
                   axe.run().then((found) => done(found.violations.map((violation) =>
                       [violation.id, violation.help, violation.nodes.map((node) => node.html)])),
                       (error) => done(String(error)));";
        let call = json!({"script": run, "args": []});
        let found = self.post("/execute/async", call).await.unwrap();
        assert_eq!(found, json!([]), "{page}: {found:#}");
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let group = self.process.id().to_string();
        let _ = Command::new("sh").args(["-c", "kill -KILL -$0", &group]).status();
        let _ = self.process.wait();
    }
}

/// The port that the driver says it listens on.
fn port_of(mut output: impl BufRead) -> u16 {
    let mut line = String::new();
    loop {
        line.clear();
        assert!(
            output.read_line(&mut line).unwrap() > 0,
            "the driver says no port"
        );
        if let Some((_, port)) = line.trim().split_once("started successfully on port ") {
            return port.trim_end_matches('.').parse().unwrap();
        }
    }
}

/// Where cargo builds.
fn target_folder() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).to_owned()
}

/// The script of axe, which npm installs into the target folder; `None`, with the reason on stderr, if it
/// cannot.
pub(crate) fn axe() -> Option<String> {
    let folder = target_folder().join("axe");
    let script = folder.join("node_modules/axe-core/axe.min.js");
    if !script.exists() {
        std::fs::create_dir_all(&folder).unwrap();
        let installed = Command::new("npm")
            .args([
                "install",
                "--no-audit",
                "--no-fund",
                "--no-save",
                "--ignore-scripts",
                "--prefix",
            ])
            .arg(&folder)
            .arg("axe-core@4")
            .current_dir(&folder)
            .output();
        if !installed
            .as_ref()
            .is_ok_and(|installed| installed.status.success())
        {
            eprintln!("axe is skipped: npm is missing, or did not install axe-core: {installed:?}");
            return None;
        }
    }
    Some(std::fs::read_to_string(script).unwrap())
}
