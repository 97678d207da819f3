//! The codes of errors, and what `cloud-sync explain` says about each: the one table of them.
//!
//! A code is stable: scripts and support pages may name it. The first two digits say where an error comes
//! from, as [`super::Kind`] does.

use std::fmt;

macro_rules! codes {
    ($($name:ident $number:literal $title:literal: $meaning:literal; $remedy:literal;)*) => {
        /// What failed, as a short name that can be looked up.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Code {
            $(#[doc = $title] $name,)*
        }

        impl Code {
            /// All codes, in their order.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// The code as it is shown: `CS0301`.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $number,)* }
            }

            /// What failed, in a few words.
            pub const fn title(self) -> &'static str {
                match self { $(Self::$name => $title,)* }
            }

            /// What it means.
            pub const fn meaning(self) -> &'static str {
                match self { $(Self::$name => $meaning,)* }
            }

            /// What to do.
            pub const fn remedy(self) -> &'static str {
                match self { $(Self::$name => $remedy,)* }
            }
        }
    };
}

codes! {
    Usage "CS0100" "wrong configuration or usage":
        "A command, a setting or the catalogue asks for something that cannot be.";
        "Correct what the message names. `cloud-sync config --explain` shows each setting, its value and \
         where it comes from.";
    SettingUnknown "CS0101" "unknown setting":
        "The settings file, an environment variable or a flag names a setting or a section that does not \
         exist.";
        "Correct the name; docs/reference/settings.md lists them all.";
    SettingInvalid "CS0102" "a setting's value does not fit":
        "The value has another form than the setting wants, for instance a number where a time is wanted.";
        "The message says what the value must look like. `cloud-sync config --explain` shows where the value \
         comes from.";
    SettingMissing "CS0103" "a setting is missing":
        "The command needs a setting that has no default, such as source.database_url or cloud.url.";
        "Set it in cloud-sync.toml, in the environment, in .env or by a flag.";
    SettingsUnreadable "CS0104" "the settings cannot be read":
        "The settings file or .env cannot be read, or is not valid TOML.";
        "Name a readable file with --config; the message names the line.";
    EntityInvalid "CS0110" "an entity of the catalogue is wrong":
        "An entity has a name, a path, a key or a file column that cannot be used.";
        "Correct the entity in the catalogue as the message says.";
    EntityUnfit "CS0111" "an entity does not fit its table":
        "The table is missing, lacks a column, has no unique index on the key, or cannot be captured.";
        "Correct the table or the entity, then run `cloud-sync init`.";
    EntityOrder "CS0112" "the entities are in the wrong order":
        "A table refers to another one by a foreign key, and the catalogue lists it first.";
        "List parents before their children.";
    EntityUnknown "CS0113" "there is no such entity":
        "A command names an entity that the catalogue does not have.";
        "Use a name of the catalogue; `cloud-sync config` lists them.";

    SourceUnreachable "CS0200" "the site's database cannot be reached":
        "The database does not answer, or the connection was lost. Triggers still capture; nothing is lost.";
        "Check source.database_url, the server, and the network between. A running replicator connects again \
         without help.";
    SourceFailed "CS0201" "the site's database refused a statement":
        "The database answered with an error, which the message quotes.";
        "Read the database's error message; `cloud-sync check` tries what the replicator needs.";
    SourceLogin "CS0202" "the site's database refused the login":
        "The role, the password or the server's pg_hba.conf does not let this program in.";
        "Correct source.database_url, or let the role in.";
    SourceNoDatabase "CS0203" "there is no such database":
        "The server answers, and has no database of that name.";
        "Correct the name in source.database_url.";
    SourceNoRight "CS0204" "the role lacks a right in the site's database":
        "A table or schema cannot be read or written by the role of source.database_url.";
        "Grant the right that the message names; `cloud-sync check` lists what is needed.";
    SourceLocked "CS0205" "a lock in the site's database was not free in time":
        "Another session held a table, or the statement took too long. Writers never wait behind this \
         program.";
        "It is tried again. If it lasts, look for long transactions in pg_stat_activity.";
    SourceFull "CS0206" "the site's database has no room":
        "Its disk or memory is full.";
        "Make room on the database's server. `cloud-sync status` shows how much the outbox takes.";
    CaptureMissing "CS0210" "capture is not installed":
        "The site's database has no schema cloud_sync, or parts of it are gone.";
        "Run `cloud-sync init`.";
    CaptureOld "CS0211" "capture is of another version":
        "The schema cloud_sync was made by a version whose outbox this one cannot read.";
        "Drain it with the program that made it, then run `cloud-sync uninstall`, `init` and `sync`.";
    Pooler "CS0212" "the connection leads through a pooler":
        "The pooler gives each transaction another server process; locks and notifications need one session.";
        "Connect to PostgreSQL itself, or use the pooler's session mode.";
    CaptureGap "CS0213" "changes may have been missed":
        "For a time capture was not as it must be, or rows changed without a trigger.";
        "Run `cloud-sync sync`; a running replicator compares these entities without help.";
    Parked "CS0214" "an entity waits":
        "The entity cannot be read or sent now. Its changes are kept in the site's database; all other \
         entities continue.";
        "Correct what the message names; the replicator tries again without help.";

    OtherOutbox "CS0300" "the outbox is another one":
        "The database, the checkpoint and the cloud do not belong together: a copy, a restored backup, or \
         another site.";
        "If this is the site's database now, run `cloud-sync init --new-epoch`; otherwise correct \
         source.database_url or store.path.";
    OutboxBehind "CS0301" "the outbox is behind its checkpoint":
        "The checkpoint is further than the outbox: an older state of the database was restored.";
        "Run `cloud-sync init --new-epoch` and start the replicator again; then every entity is compared.";
    SharedSource "CS0302" "two databases share one source":
        "Another database sends to the cloud under the same source id.";
        "Set source.source_id to another name; if this database takes the other one's place, run `cloud-sync \
         init --new-epoch`.";
    CopiedSource "CS0303" "another machine sends as this source":
        "The cloud has batches that this database does not know: a copy of the machine sends, or this one \
         was restored.";
        "Stop the copy; if this is the site's database now, run `cloud-sync init --new-epoch`.";

    CloudUnreachable "CS0400" "the cloud cannot be reached":
        "The cloud does not answer, answers too late, or says that it is overloaded. Changes wait in the \
         outbox; nothing is lost.";
        "Check cloud.url and the line. A running replicator tries again without help.";
    CloudKey "CS0401" "the cloud refused the key":
        "The server answered 401 or 403. Nothing is pushed; capture continues.";
        "Set cloud.key to a key that is valid there; `cloud-sync run` reads it again on SIGHUP.";
    CloudRefused "CS0402" "the cloud refused a request":
        "The server will not take this request as it is.";
        "Read the cloud's error message in `cloud-sync quarantine list`, correct the row or the server, then \
         `cloud-sync quarantine retry`.";
    CloudProtocol "CS0403" "the cloud's answer is not as the contract says":
        "The answer is not from the API, or its server is wrong: a portal, a proxy, another path, a broken \
         list.";
        "Check cloud.url; `cloud-sync check --cloud` tries each call and says what to set.";
    CloudInsecure "CS0404" "the cloud's address is not safe":
        "The address is not https, or its certificate cannot be checked.";
        "Use https, name the CA in cloud.ca_file, or allow http on purpose if the line is private.";

    StoreFailed "CS0500" "the checkpoint store cannot be used":
        "The folder of the store cannot be read or written, or another process uses it.";
        "Check store.path, its disk and its rights. Without the store the replicator resumes from the mirror \
         in the database.";
    MediaFailed "CS0600" "a media file cannot be used":
        "A file that a row names is missing, is not readable, is outside the media root, or changed while \
         it was sent.";
        "Look at the path in the message; the file is tried again when it is there.";
    LocalFailed "CS0700" "this machine refused something":
        "A file, a port or a process could not be used.";
        "Read the operating system's error in the message.";
    DaemonToken "CS0701" "the daemon does not know this token":
        "The command and the running replicator use different tokens.";
        "Run the command with the daemon's own configuration and working folder, or set control.token on \
         both sides.";
}

impl Code {
    /// The code of this text, in any case of letters; `None` if there is none.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL
            .iter()
            .copied()
            .find(|code| code.as_str().eq_ignore_ascii_case(text.trim()))
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_unique_in_order_and_found_by_their_text() {
        let texts: Vec<_> = Code::ALL.iter().map(|code| code.as_str()).collect();
        assert!(texts.is_sorted_by(|one, next| one < next), "{texts:?}");
        for &code in Code::ALL {
            assert_eq!(Code::parse(&code.as_str().to_lowercase()), Some(code));
            assert!(
                code.meaning().ends_with('.') && code.remedy().ends_with('.'),
                "{code}"
            );
        }
        assert_eq!(Code::parse("CS9999"), None);
    }
}
