//! The tables of a workload, and the entities that replicate them.

/// Parents and children with a composite key: small, so that starts are about the replicator and not the
/// catalogue.
pub(crate) const TABLES: &str = "
create table pot (
    pot_id bigint primary key,
    label text,
    weight bigint not null default 0
);
create table leaf (
    pot_id bigint not null references pot on update cascade on delete cascade,
    nth int not null,
    note text,
    primary key (pot_id, nth)
)";

pub(crate) const ENTITIES: &str = "
[[entity]]
name = \"pots\"
table = \"pot\"
key = [\"pot_id\"]
path = \"pots\"

[[entity]]
name = \"leaves\"
table = \"leaf\"
key = [\"pot_id\", \"nth\"]
path = \"leaves\"
";

/// The further tables of a workload of every kind.
const FURTHER_TABLES: &str = include_str!("tables.sql");

/// Their entities, named as the table is: the table and its key. Parents come before children.
const FURTHER_ENTITIES: [(&str, &[&str]); 13] = [
    ("item", &["id"]),
    ("item_log", &["id"]),
    ("total", &["name"]),
    ("place", &["id"]),
    ("seat", &["id"]),
    ("desk", &["number"]),
    ("region", &["id"]),
    ("town", &["region", "id"]),
    ("street", &["region", "town", "nth"]),
    ("person", &["id"]),
    ("stock", &["id"]),
    ("event", &["id", "day"]),
    ("draft", &["id"]),
];

/// Tables and entities of a workload of every kind.
pub(super) fn every_kind() -> (String, String) {
    let mut entities = ENTITIES.to_owned();
    for (table, key) in FURTHER_ENTITIES {
        entities.push_str(&format!(
            "\n[[entity]]\nname = \"{table}\"\ntable = \"{table}\"\nkey = {key:?}\npath = \"{table}\"\n"
        ));
    }
    (format!("{TABLES};\n{FURTHER_TABLES}"), entities)
}
