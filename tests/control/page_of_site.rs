//! A site whose page is open, and browsers' sessions with it, over HTTP.

use std::time::{Duration, Instant};

use cloud_sync::control::token;
use reqwest::{Method, StatusCode, header};
use secrecy::ExposeSecret;

use crate::support::postgres::{Server, free_port};
use crate::support::scenario::Scenario;
use crate::support::site::{Cloud, KEY, LIMIT, Site, entity};

const TABLE: &str = "create table t (id int primary key, v text)";

/// A site whose page is open, and somebody who may sign in.
pub(super) struct PageOfSite {
    pub(super) scenario: Scenario,
    pub(super) base: String,
    pub(super) token: String,
    http: reqwest::Client,
}

/// A browser's session: the cookie that it keeps, and the token of its forms.
pub(super) struct SignedIn {
    pub(super) cookie: String,
    pub(super) form_token: String,
}

impl PageOfSite {
    pub(super) async fn start(hint: &str) -> Self {
        Self::of(hint, TABLE, &entity("x", "t", &["id"], "")).await
    }

    /// With these tables and entities, and a port of its own.
    pub(super) async fn of(hint: &str, tables: &str, config: &str) -> Self {
        let database_url = Server::get().database(&format!("{hint}_site")).await;
        Self::with_database(hint, database_url, tables, config).await
    }

    /// With this database.
    pub(super) async fn with_database(hint: &str, database_url: String, tables: &str, config: &str) -> Self {
        let cloud = Cloud::start(hint).await;
        let mut site = Site::at(database_url, &cloud.url, KEY, tables, config).await;
        site.settings.control.listen = ([127, 0, 0, 1], free_port()).into();
        site.settings.control.names = vec!["sync.school.example".to_owned()];
        let base = format!("http://{}", site.settings.control.listen);
        let scenario = Scenario::of(cloud, site).await;
        let token = token::load(&scenario.site.settings).unwrap();
        let http = reqwest::Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .build();
        Self {
            scenario,
            base,
            token: token.expose_secret().to_owned(),
            http: http.unwrap(),
        }
    }

    pub(super) fn port(&self) -> u16 {
        self.scenario.site.settings.control.listen.port()
    }

    pub(super) fn request(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        self.http.request(method, format!("{}{path}", self.base))
    }

    /// A form as the page's own browser sends it.
    pub(super) fn form(
        &self,
        path: &str,
        session: &SignedIn,
        fields: &[(&str, &str)],
    ) -> reqwest::RequestBuilder {
        let mut fields = fields.to_vec();
        fields.push(("token", &session.form_token));
        self.request(Method::POST, path)
            .header(header::COOKIE, &session.cookie)
            .header(header::ORIGIN, &self.base)
            .header("sec-fetch-site", "same-origin")
            .header(header::CONTENT_TYPE, "application/x-www-form-urlencoded")
            .body(encoded(&fields))
    }

    /// Opens the sign-in page, and sends its form with this token.
    pub(super) async fn try_to_sign_in(&self, token: &str) -> reqwest::Response {
        let shown = self
            .request(Method::GET, "/cloud-sync/sign-in")
            .send()
            .await
            .unwrap();
        assert_eq!(shown.status(), StatusCode::OK);
        let cookie = cookie_of(&shown);
        let form = SignedIn {
            cookie,
            form_token: form_token(&shown.text().await.unwrap()),
        };
        self.form("/cloud-sync/sign-in", &form, &[("secret", token)])
            .send()
            .await
            .unwrap()
    }

    pub(super) async fn sign_in(&self) -> SignedIn {
        let answer = self.try_to_sign_in(&self.token).await;
        assert_eq!(answer.status(), StatusCode::SEE_OTHER);
        assert_eq!(answer.headers()[header::LOCATION], "/cloud-sync");
        let cookie = cookie_of(&answer);
        let mut session = SignedIn {
            cookie,
            form_token: String::new(),
        };
        session.form_token = form_token(&self.page(&session, "/cloud-sync").await);
        session
    }

    pub(super) async fn page(&self, session: &SignedIn, path: &str) -> String {
        let answer = self
            .request(Method::GET, path)
            .header(header::COOKIE, &session.cookie)
            .send()
            .await
            .unwrap();
        assert_eq!(answer.status(), StatusCode::OK, "{path}");
        answer.text().await.unwrap()
    }

    /// Asks for the page until it has these words.
    pub(super) async fn until_page_says(&self, session: &SignedIn, words: &str) -> String {
        let start = Instant::now();
        loop {
            let page = self.page(session, "/cloud-sync").await;
            if page.contains(words) {
                return page;
            }
            assert!(start.elapsed() < LIMIT, "no {words:?} in {page}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// A row that the cloud refuses: its own column is too narrow. Waits until it is in quarantine, and
    /// returns its position.
    pub(super) async fn refuse_a_row(&self) -> i64 {
        self.scenario.run("insert into t values (1, 'a')").await;
        self.scenario.running.caught_up().await;
        let narrow = "alter table cloud.x add constraint short check (length(v) < 5)";
        self.scenario.cloud_client.batch_execute(narrow).await.unwrap();
        self.scenario.run("insert into t values (2, 'too long')").await;
        let quarantined = |status: &cloud_sync::StatusReport| status.quarantine == Some(1);
        self.scenario
            .running
            .until("a row in quarantine", quarantined)
            .await;
        let query = "select position from cloud_sync.quarantine";
        self.scenario
            .site_client
            .query_one(query, &[])
            .await
            .unwrap()
            .get(0)
    }

    /// Lets the cloud take the row.
    pub(super) async fn mend(&self) {
        let wide = "alter table cloud.x drop constraint short";
        self.scenario.cloud_client.batch_execute(wide).await.unwrap();
    }

    pub(super) async fn end(self) {
        self.scenario.running.end().await;
    }
}

pub(super) fn encoded(fields: &[(&str, &str)]) -> String {
    url::form_urlencoded::Serializer::new(String::new())
        .extend_pairs(fields)
        .finish()
}

/// The first cookie that an answer sets, as it is sent back.
pub(super) fn cookie_of(answer: &reqwest::Response) -> String {
    let cookie = answer.headers()[header::SET_COOKIE].to_str().unwrap();
    cookie.split(';').next().unwrap().to_owned()
}

/// The token in the page's first form.
pub(super) fn form_token(page: &str) -> String {
    let (_, rest) = page.split_once("name=\"token\" value=\"").expect("a form");
    rest.split('"').next().unwrap().to_owned()
}
