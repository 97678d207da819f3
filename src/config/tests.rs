use secrecy::ExposeSecret;

use super::*;

struct SettingsFolder {
    dir: tempfile::TempDir,
    options: LoadOptions,
}

impl SettingsFolder {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let options = LoadOptions {
            config: None,
            overrides: Vec::new(),
            env: BTreeMap::new(),
            dir: dir.path().to_owned(),
        };
        Self { dir, options }
    }

    fn file(self, text: &str) -> Self {
        std::fs::write(self.dir.path().join("cloud-sync.toml"), text).unwrap();
        self
    }

    fn dot_env(self, text: &str) -> Self {
        std::fs::write(self.dir.path().join(".env"), text).unwrap();
        self
    }

    fn env(mut self, name: &str, value: &str) -> Self {
        self.options.env.insert(name.to_owned(), value.to_owned());
        self
    }

    fn flag(mut self, name: &str, value: &str) -> Self {
        self.options.overrides.push((name.to_owned(), value.to_owned()));
        self
    }

    fn load(&self) -> Result<Loaded> {
        Settings::load(self.options.clone())
    }

    fn refusal(&self) -> String {
        let error = self.load().expect_err("it is refused");
        assert_eq!(error.exit_code(), 2);
        error.to_string()
    }
}

fn origin(loaded: &Loaded, name: &str) -> SettingOrigin {
    let value = loaded.values.iter().find(|value| value.key.name == name);
    value.unwrap().origin.clone()
}

#[test]
fn every_default_fits_and_every_key_is_unique() {
    let loaded = SettingsFolder::new().load().unwrap();
    assert!(
        loaded
            .values
            .iter()
            .all(|value| value.origin == SettingOrigin::Default)
    );
    let settings = loaded.settings;
    assert_eq!(settings.media.root, PathBuf::from("storage/app/public"));
    assert_eq!(settings.cloud.timeout, Duration::from_secs(30));
    assert_eq!(settings.cloud.capabilities, CapabilityChoice::Auto);
    assert_eq!(settings.delivery.batch_bytes, 4 << 20);
    assert_eq!(settings.schedule.sync.as_deref(), Some("0 * * * *"));
    assert_eq!(settings.control.listen.to_string(), "127.0.0.1:8787");
    assert_eq!(settings.catalogue, Catalogue::builtin());
    let mut names: Vec<String> = keys::KEYS.iter().map(keys::SettingKey::variable).collect();
    names.sort();
    names.dedup();
    assert_eq!(names.len(), keys::KEYS.len());
}

#[test]
fn each_layer_overrides_the_one_below_and_is_named() {
    let site = SettingsFolder::new().file("[delivery]\nin_flight = 2\nbatch_rows = 10\n");
    let loaded = site.load().unwrap();
    assert_eq!(loaded.settings.delivery.in_flight, 2);
    let path = site.dir.path().join("cloud-sync.toml");
    assert_eq!(
        origin(&loaded, "delivery.in_flight"),
        SettingOrigin::File(path, 2)
    );

    let site = site.dot_env("CLOUD_SYNC_DELIVERY_IN_FLIGHT=3\n");
    let loaded = site.load().unwrap();
    assert_eq!(loaded.settings.delivery.in_flight, 3);
    let variable = "CLOUD_SYNC_DELIVERY_IN_FLIGHT".to_owned();
    assert_eq!(
        origin(&loaded, "delivery.in_flight"),
        SettingOrigin::DotEnv(variable.clone())
    );

    let site = site.env("CLOUD_SYNC_DELIVERY_IN_FLIGHT", "4");
    let loaded = site.load().unwrap();
    assert_eq!(loaded.settings.delivery.in_flight, 4);
    assert_eq!(
        origin(&loaded, "delivery.in_flight"),
        SettingOrigin::Environment(variable)
    );

    let site = site.flag("delivery.in_flight", "5");
    let loaded = site.load().unwrap();
    assert_eq!(loaded.settings.delivery.in_flight, 5);
    assert_eq!(origin(&loaded, "delivery.in_flight"), SettingOrigin::Flag);
    assert_eq!(loaded.settings.delivery.batch_rows, 10);
}

#[test]
fn the_old_systems_variables_hold_and_the_uniform_ones_override_them() {
    let site = SettingsFolder::new()
        .env("DATABASE_URL", "postgresql://u:secret@h/d")
        .env("CLOUD_API_URL", "https://old.example/api")
        .env("CLOUD_SYNC_CLOUD_URL", "https://cloud.example/api")
        .env("CLOUD_API_KEY", "key-secret")
        .env("CLOUD_STORAGE_DRIVER", "api")
        .env("CLOUD_STORAGE_BUCKET", "photos")
        .env("CLOUD_SYNC_STORE_PATH", "");
    let loaded = site.load().unwrap();
    let settings = &loaded.settings;
    let (url, key) = settings.require_cloud().unwrap();
    assert_eq!(
        (url.as_str(), key.expose_secret()),
        ("https://cloud.example/api", "key-secret")
    );
    assert!(settings.require_database_url().is_ok());
    assert_eq!(settings.files.bucket.as_deref(), Some("photos"));
    assert_eq!(
        settings.store.path,
        PathBuf::from("var/cloud-sync"),
        "an empty variable is unset"
    );
    let shown = format!("{loaded:?}");
    assert!(
        !shown.contains("secret@") && !shown.contains("key-secret"),
        "{shown}"
    );
}

#[test]
fn a_missing_required_setting_is_an_error_with_its_remedy() {
    let settings = SettingsFolder::new().load().unwrap().settings;
    assert!(
        settings
            .require_database_url()
            .unwrap_err()
            .to_string()
            .contains("DATABASE_URL")
    );
    assert!(
        settings
            .require_cloud()
            .unwrap_err()
            .to_string()
            .contains("CLOUD_API_URL")
    );
    let settings = SettingsFolder::new()
        .env("CLOUD_API_URL", "https://c.example")
        .load()
        .unwrap()
        .settings;
    assert!(
        settings
            .require_cloud()
            .unwrap_err()
            .to_string()
            .contains("CLOUD_API_KEY")
    );
    assert!(settings.require_receiver_database_url().is_err());
}

#[test]
fn a_named_file_must_be_there() {
    let mut site = SettingsFolder::new();
    site.options.config = Some(site.dir.path().join("other.toml"));
    assert!(site.refusal().contains("other.toml"));
}

#[test]
fn unknown_names_are_refused_with_their_line_and_the_nearest_name() {
    for (text, line, nearest) in [
        ("[clod]\nurl = \"x\"\n", "line 1", "[cloud]"),
        ("[cloud]\n\ntimout = \"3s\"\n", "line 3", "timeout"),
        ("[files]\ndrivr = \"api\"\n", "line 2", "driver"),
        ("in_flight = 3\n", "line 1", "[delivery]"),
        ("cloud = 3\n", "line 1", "[cloud]"),
        (
            "[[entity]]\nname = \"a\"\ntabel = \"t\"\nkey = [\"k\"]\n",
            "line 3",
            "table",
        ),
        (
            "[[entity]]\nname = \"a\"\ntable = \"t\"\nkey = [\"k\"]\n\
             retention = { colum = \"c\", days = 3 }\n",
            "line 5",
            "retention.column",
        ),
        (
            "[[entity]]\nname = \"a\"\ntable = \"t\"\nkey = [\"k\"]\nfiles = [{ column = \"c\", url = \"u\" \
             }]\n",
            "line 5",
            "files.url_column",
        ),
    ] {
        let message = SettingsFolder::new().file(text).refusal();
        assert!(
            message.contains(line) && message.contains(nearest),
            "{text}: {message}"
        );
    }
    assert!(
        SettingsFolder::new()
            .flag("cloud.uri", "x")
            .refusal()
            .contains("cloud.url")
    );
    let slip = SettingsFolder::new().env("CLOUD_SYNC_CLOUD_TIMOUT", "3s");
    assert!(slip.refusal().contains("CLOUD_SYNC_CLOUD_TIMEOUT"));
}

#[test]
fn variables_that_a_platform_adds_are_only_warned_about() {
    let site = SettingsFolder::new()
        .env("CLOUD_SYNC_SERVICE_HOST", "10.0.0.1")
        .env("CLOUD_SYNC_RECEIVER_PORT_8080_TCP", "tcp://10.0.0.1:8080");
    let warnings = site.load().unwrap().warnings;
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert!(warnings[0].contains("CLOUD_SYNC_RECEIVER_PORT_8080_TCP"));
}

#[test]
fn wrong_types_and_values_are_errors_with_their_line_and_what_would_be_right() {
    for (text, line, right) in [
        ("[cloud]\ntimeout = 30\n", "line 2", "\"30s\""),
        ("[cloud]\ntimeout = \"30\"\n", "line 2", "30s"),
        ("[cloud]\ntimeout = \"0s\"\n", "line 2", "from 1ms to 1h"),
        (
            "[cloud]\nallow_insecure_http = \"yes\"\n",
            "line 2",
            "without quotes",
        ),
        (
            "[cloud]\ncapabilities = [\"bulk\", \"tuss\"]\n",
            "line 2",
            "did you mean tus",
        ),
        ("[delivery]\nbatch_rows = \"5000\"\n", "line 2", "without quotes"),
        ("[delivery]\nbatch_rows = 0\n", "line 2", "from 1 to"),
        ("[delivery]\nbatch_bytes = \"4 megs\"\n", "line 2", "8MiB"),
        ("[control]\nlisten = \"8787\"\n", "line 2", "127.0.0.1:8787"),
        ("[schedule]\nsync = \"hourly\"\n", "line 2", "0 * * * *"),
        ("[files]\ndriver = \"ftp\"\n", "line 2", "must be api, s3"),
        (
            "[source]\ndatabase_url = \"mysql://hidden\"\n",
            "line 2",
            "postgresql://",
        ),
        (
            "[receiver.keys]\ncollege = \"hidden\"\n",
            "line",
            "college = [\"key\"]",
        ),
        ("[cloud\nkey = \"hidden\"\n", "line 1", "[section]"),
        ("[cloud]\nkey = \"hidden\n", "line 2", "quotes"),
    ] {
        let message = SettingsFolder::new().file(text).refusal();
        assert!(
            message.contains(line) && message.contains(right),
            "{text}: {message}"
        );
        assert!(!message.contains("hidden"), "{message}");
    }
    let message = SettingsFolder::new().env("CLOUD_API_KEY", "hidden key").refusal();
    assert!(
        message.contains("CLOUD_API_KEY") && message.contains("cloud.key"),
        "{message}"
    );
    assert!(!message.contains("hidden"), "{message}");
    let message = SettingsFolder::new()
        .dot_env("A=1\nCLOUD_API_KEY='hidden\n")
        .refusal();
    assert!(
        message.contains("CLOUD_API_KEY") && !message.contains("hidden"),
        "{message}"
    );
}

#[test]
fn a_clear_http_url_is_for_loopback_or_on_demand() {
    for url in [
        "http://127.0.0.1:8080/api",
        "http://localhost/api",
        "http://[::1]:80/",
        "https://c.example",
    ] {
        assert!(
            SettingsFolder::new().flag("cloud.url", url).load().is_ok(),
            "{url}"
        );
    }
    let open = SettingsFolder::new().flag("cloud.url", "http://cloud.example/api");
    assert!(open.refusal().contains("allow_insecure_http"));
    assert!(open.flag("cloud.allow_insecure_http", "true").load().is_ok());
    for url in [
        "ftp://c.example",
        "cloud.example/api",
        "https://user:hidden@c.example",
        "https://c.example/?a=1",
    ] {
        assert!(
            !SettingsFolder::new()
                .flag("cloud.url", url)
                .refusal()
                .contains("hidden"),
            "{url}"
        );
    }
}

#[test]
fn lists_are_the_same_from_the_file_and_from_the_environment() {
    let file = SettingsFolder::new().file(
        "[cloud]\ncapabilities = [\"bulk\", \"delete\"]\n[schedule]\nsync = \
         \"off\"\n[receiver.keys]\ncollege = [\"new=\", \"old\"]\nannex = [\"a\"]\n",
    );
    let env = SettingsFolder::new()
        .env("CLOUD_SYNC_CLOUD_CAPABILITIES", "bulk, delete")
        .env("CLOUD_SYNC_SCHEDULE_SYNC", "off")
        .env("CLOUD_SYNC_RECEIVER_KEYS", "college=new=,old; annex=a");
    for site in [file, env] {
        let settings = site.load().unwrap().settings;
        let chosen = CapabilityChoice::Only(vec!["bulk".into(), "delete".into()]);
        assert_eq!(settings.cloud.capabilities, chosen);
        assert_eq!(settings.schedule.sync, None);
        let keys: Vec<&str> = settings.receiver.keys["college"]
            .iter()
            .map(ExposeSecret::expose_secret)
            .collect();
        assert_eq!(keys, ["new=", "old"]);
        assert_eq!(settings.receiver.keys.len(), 2);
    }
    for list in ["[\"bulk\", \"delete\"]", "['bulk','delete']", "bulk,delete"] {
        let settings = SettingsFolder::new()
            .flag("cloud.capabilities", list)
            .load()
            .unwrap()
            .settings;
        let chosen = CapabilityChoice::Only(vec!["bulk".into(), "delete".into()]);
        assert_eq!(settings.cloud.capabilities, chosen, "{list}");
    }
    let none = SettingsFolder::new()
        .file("[cloud]\ncapabilities = []\n")
        .load()
        .unwrap();
    assert_eq!(
        none.settings.cloud.capabilities,
        CapabilityChoice::Only(Vec::new())
    );
}

#[test]
fn entities_of_the_file_make_the_catalogue() {
    let site = SettingsFolder::new().file(
        "[[entity]]\nname = \"leaves\"\ntable = \"tbl_leave\"\nkey = [\"leave_id\"]\nretention = { column = \
         \"created_at\", days = 90 }\nwhere = \"true\"\ndeletes = \"keep\"\nfiles = [{ column = \"a\", \
         url_column = \"b\", directory = \"c\" }]\n",
    );
    let loaded = site.load().unwrap();
    assert!(loaded.own_catalogue);
    let leaves = &loaded.settings.catalogue.entities()[0];
    assert_eq!(
        (leaves.path.as_str(), leaves.filter.as_deref()),
        ("leaves", Some("true"))
    );
    assert_eq!(leaves.retention.as_ref().unwrap().days, 90);

    let message = SettingsFolder::new()
        .file("[[entity]]\nname = \"a\"\nkey = [\"k\"]\n")
        .refusal();
    assert!(
        message.contains("entity a") && message.contains("table"),
        "{message}"
    );
    let message = SettingsFolder::new()
        .file("[[entity]]\nname = \"a\"\ntable = \"t\"\nkey = \"k\"\n")
        .refusal();
    assert!(message.contains("line 4"), "{message}");
}

#[test]
fn the_old_name_of_retention_is_read_with_a_warning() {
    let entity = "[[entity]]\nname = \"leaves\"\ntable = \"tbl_leave\"\nkey = [\"leave_id\"]\n";
    let retention = "{ column = \"created_at\", days = 90 }\n";
    let new = SettingsFolder::new()
        .file(&format!("{entity}retention = {retention}"))
        .load()
        .unwrap();
    let old = SettingsFolder::new()
        .file(&format!("{entity}window = {retention}"))
        .load()
        .unwrap();
    assert_eq!(old.settings.catalogue, new.settings.catalogue);
    assert!(new.warnings.is_empty(), "{:?}", new.warnings);
    let [warning] = old.warnings.as_slice() else {
        panic!("{:?}", old.warnings)
    };
    for part in ["window is the old name of retention", "entity leaves", "line 5"] {
        assert!(warning.contains(part), "{warning}");
    }
    // A slip within the old name is an error as in the new one; both names together are one too.
    let slip = SettingsFolder::new().file(&format!("{entity}window = {{ colum = \"c\", days = 3 }}\n"));
    assert!(slip.refusal().contains("window.column"));
    let both = SettingsFolder::new().file(&format!("{entity}window = {retention}retention = {retention}"));
    assert!(both.refusal().contains("retention"));
}

#[test]
fn the_lists_of_entity_keys_are_those_of_the_catalogue() {
    let mut entity = crate::catalogue::Entity::new("a", "t", &["k"]);
    entity.retention = Some(crate::catalogue::Retention {
        column: "c".into(),
        days: 1,
        cloud_days_by: None,
    });
    entity.files = vec![crate::catalogue::FileColumn {
        column: "c".into(),
        url_column: "u".into(),
        directory: "d".into(),
        many: true,
        column_value: None,
        until_uploaded: None,
        after: None,
        when: None,
    }];
    let json = serde_json::to_value(&entity).unwrap();
    let keys = |value: &serde_json::Value| -> std::collections::BTreeSet<String> {
        value.as_object().unwrap().keys().cloned().collect()
    };
    let listed = |list: &[&str]| list.iter().map(|&key| key.to_owned()).collect();
    assert_eq!(keys(&json), listed(&entity::ENTITY));
    assert_eq!(keys(&json["retention"]), listed(&entity::RETENTION));
    assert_eq!(keys(&json["files"][0]), listed(&entity::FILE));
}

#[test]
fn the_guide_names_each_key_of_an_entity() {
    let guide = concat!(
        include_str!("../../docs/guide/entities.md"),
        include_str!("../../docs/guide/connect-an-existing-cloud-server.md")
    );
    let keys = [
        &entity::ENTITY[..],
        &entity::RETENTION,
        &entity::FILE,
        &entity::COLUMN,
    ];
    for key in keys.concat() {
        assert!(
            guide.contains(&format!("`{key}`")) || guide.contains(&format!("{key} = ")),
            "no page in docs/guide says what {key} is"
        );
    }
}

#[test]
fn a_reload_takes_what_it_can_and_names_what_needs_a_restart() {
    let before = SettingsFolder::new()
        .file("[cloud]\nkey = \"old\"\n[store]\npath = \"a\"\n[delivery]\nbatch_rows = 5\n")
        .load()
        .unwrap();
    let after = SettingsFolder::new()
        .file("[cloud]\nkey = \"new\"\n[store]\npath = \"b\"\n[control]\nlisten = \"127.0.0.1:9\"\n")
        .load()
        .unwrap();
    let changes = after.changes(&before);
    assert_eq!(changes.taken, ["cloud.key", "delivery.batch_rows"]);
    assert_eq!(changes.restart, ["store.path", "control.listen"]);
    let now = after.clone().applied_over(&before);
    assert_eq!(now.settings.cloud.key.as_ref().unwrap().expose_secret(), "new");
    assert_eq!(now.settings.store.path, before.settings.store.path);
    assert_eq!(now.settings.control.listen, before.settings.control.listen);
    // The next reload names again what needs a restart, but not what was taken.
    let again = after.changes(&now);
    assert_eq!((again.taken.len(), again.restart), (0, changes.restart));
}
