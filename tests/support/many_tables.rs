//! A database of many tables, drawn from a seed: several schemas, keys of several types, columns of many types,
//! references, circles of references, partitions.

use std::fmt::Write;

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};

/// Types, each with an expression for a value of it.
const TYPES: [(&str, &str); 18] = [
    ("int", "(random() * 1000)::int"),
    ("bigint", "(random() * 1e12)::bigint"),
    ("smallint", "(random() * 99)::smallint"),
    ("text", "md5(random()::text)"),
    ("varchar(40)", "left(md5(random()::text), 7)"),
    ("numeric(12,2)", "(random() * 1000)::numeric(12,2)"),
    ("double precision", "random()"),
    ("boolean", "random() < 0.5"),
    ("timestamptz", "now() - random() * interval '90 days'"),
    ("date", "current_date - (random() * 90)::int"),
    ("time", "localtime"),
    ("interval", "random() * interval '3 hours'"),
    ("uuid", "gen_random_uuid()"),
    ("jsonb", "jsonb_build_object('n', random(), 'list', array[1, 2])"),
    ("bytea", "decode(md5(random()::text), 'hex')"),
    ("text[]", "array[md5(random()::text), null]"),
    ("inet", "'10.0.0.1'::inet + (random() * 200)::int"),
    (
        "mood",
        "(array['calm', 'cross'])[1 + (random() > 0.5)::int]::mood",
    ),
];

const KEY_TYPES: [(&str, &str); 4] = [
    ("bigint", "(random() * 1e15)::bigint"),
    ("int", "(random() * 2e9)::int"),
    ("uuid", "gen_random_uuid()"),
    ("text", "md5(random()::text)"),
];

const WORDS: [&str; 12] = [
    "order",
    "item",
    "user",
    "event",
    "note",
    "price",
    "stock",
    "Invoice Line",
    "address",
    "member",
    "lesson",
    "room",
];

/// How many schemas there are.
pub(crate) const SCHEMAS: usize = 9;

struct Table {
    /// With its schema, quoted.
    name: String,
    /// By its place in [`KEY_TYPES`].
    key: usize,
    /// Name, and place in [`TYPES`].
    columns: Vec<(String, usize)>,
    /// Name, and place of the table that it refers to.
    references: Vec<(String, usize)>,
    is_partitioned: bool,
}

/// See the module.
pub(crate) struct ManyTables {
    rng: StdRng,
    tables: Vec<Table>,
    /// References that make circles: a table, and the one that it refers to.
    back: Vec<(usize, usize)>,
}

impl ManyTables {
    pub(crate) fn of(seed: u64, count: usize) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut tables: Vec<Table> = Vec::with_capacity(count);
        for index in 0..count {
            let is_partitioned = rng.random_bool(0.05);
            let parents: Vec<usize> = (0..index)
                .filter(|&parent| !tables[parent].is_partitioned)
                .collect();
            let references = (0..rng.random_range(0..3usize))
                .filter_map(|nth| Some((format!("parent{nth}"), *parents.choose(&mut rng)?)))
                .collect();
            tables.push(Table {
                name: format!(
                    "area{}.\"{} {index}\"",
                    index % SCHEMAS,
                    WORDS[rng.random_range(0..WORDS.len())]
                ),
                key: if is_partitioned {
                    0
                } else {
                    rng.random_range(0..KEY_TYPES.len())
                },
                columns: (0..rng.random_range(1..10usize))
                    .map(|nth| (format!("c{nth}"), rng.random_range(0..TYPES.len())))
                    .collect(),
                references,
                is_partitioned,
            });
        }
        let plain: Vec<usize> = (0..count)
            .filter(|&index| !tables[index].is_partitioned)
            .collect();
        let back = (0..count / 20)
            .filter_map(|_| Some((*plain.choose(&mut rng)?, *plain.choose(&mut rng)?)))
            .filter(|(table, other)| table != other)
            .collect();
        Self { rng, tables, back }
    }

    /// How many tables there are.
    pub(crate) fn count(&self) -> usize {
        self.tables.len()
    }

    /// SQL that creates them.
    pub(crate) fn definitions(&self) -> String {
        let mut sql = "create type mood as enum ('calm', 'cross');\n".to_owned();
        for schema in 0..SCHEMAS {
            let _ = writeln!(sql, "create schema area{schema};");
        }
        for table in &self.tables {
            let mut columns = format!("id {}", KEY_TYPES[table.key].0);
            for (name, kind) in &table.columns {
                let _ = write!(columns, ", {name} {}", TYPES[*kind].0);
            }
            for (nth, (name, parent)) in table.references.iter().enumerate() {
                let parent = &self.tables[*parent];
                let rest = if nth == 0 { "not null" } else { "" };
                let then = if nth == 0 { "cascade" } else { "set null" };
                let _ = write!(
                    columns,
                    ", {name} {} {rest} references {} on delete {then}",
                    KEY_TYPES[parent.key].0, parent.name
                );
            }
            let name = &table.name;
            if table.is_partitioned {
                let low = name.replace('"', "").replace([' ', '.'], "_");
                let _ = writeln!(
                    sql,
                    "create table {name} ({columns}, primary key (id)) partition by range (id); create table {low}_a \
                     partition of {name} for values from (minvalue) to (500000000000000); create table {low}_b partition \
                     of {name} default;"
                );
            } else {
                let _ = writeln!(sql, "create table {name} ({columns}, primary key (id));");
            }
        }
        for (nth, (table, other)) in self.back.iter().enumerate() {
            let (table, other) = (&self.tables[*table], &self.tables[*other]);
            let _ = writeln!(
                sql,
                "alter table {} add back{nth} {} references {} on delete set null;",
                table.name, KEY_TYPES[other.key].0, other.name
            );
        }
        sql
    }

    /// Statements that write to every table: inserts, then updates and deletes of some rows.
    pub(crate) fn writes(&mut self) -> Vec<String> {
        let mut statements = Vec::new();
        for table in &self.tables {
            for _ in 0..self.rng.random_range(2..5) {
                let mut columns = "id".to_owned();
                let mut values = KEY_TYPES[table.key].1.to_owned();
                for (name, kind) in &table.columns {
                    let is_null = self.rng.random_bool(0.1);
                    let _ = write!(columns, ", {name}");
                    let _ = write!(values, ", {}", if is_null { "null" } else { TYPES[*kind].1 });
                }
                for (name, parent) in &table.references {
                    let _ = write!(columns, ", {name}");
                    let _ = write!(
                        values,
                        ", (select id from {} order by random() limit 1)",
                        self.tables[*parent].name
                    );
                }
                statements.push(format!(
                    "insert into {} ({columns}) values ({values})",
                    table.name
                ));
            }
        }
        for _ in 0..self.tables.len() {
            let Some(table) = self.tables.choose(&mut self.rng) else {
                continue;
            };
            let (column, kind) = &table.columns[self.rng.random_range(0..table.columns.len())];
            let one = format!("id = (select id from {} order by random() limit 1)", table.name);
            statements.push(match self.rng.random_range(0..4) {
                0 => format!("delete from {} where {one}", table.name),
                _ => format!(
                    "update {} set {column} = {} where {one}",
                    table.name, TYPES[*kind].1
                ),
            });
        }
        statements
    }
}
