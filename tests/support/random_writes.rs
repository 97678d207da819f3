//! Random inserts, updates and deletes in every table of any database: what it may write it learns from the
//! catalog, and what a constraint forbids it tries again with other values.

use std::fmt::Write;

use rand::rngs::StdRng;
use rand::seq::{IndexedRandom, SliceRandom};
use rand::{RngExt, SeedableRng};
use tokio_postgres::{Client, Row};

/// How often a row of a table is tried, and how often all tables are gone through: parents may have no rows yet.
const TRIES: usize = 40;
const ROUNDS: usize = 6;

/// How many rows a table gets at least, if its constraints allow them.
const ROWS: usize = 4;

/// The columns of every table of the site: the table's oid and name; the column; whether it is the database that
/// sets it; whether it has a default; whether it may be null; whether it is of the primary key; its type, the
/// type's kind and its modifier; the labels of an enum; SQL that lists what it refers to.
const COLUMNS: &str = "
    select c.oid, c.oid::regclass::text, a.attname::text, a.attgenerated <> '' or a.attidentity = 'a',
           a.atthasdef or a.attidentity <> '', not a.attnotnull,
           exists (select from pg_index i where i.indrelid = c.oid and i.indisprimary and a.attnum = any(i.indkey)),
           t.typname::text, t.typcategory::text, a.atttypmod,
           array(select enumlabel::text from pg_enum where enumtypid = t.oid order by enumsortorder),
           (select format('select %I from %s', p.attname, f.confrelid::regclass) from pg_constraint f
            join pg_attribute p on p.attrelid = f.confrelid and p.attnum = f.confkey[1]
            where f.contype = 'f' and f.conrelid = c.oid and f.conkey = array[a.attnum] limit 1)
    from pg_class c
    join pg_namespace n on n.oid = c.relnamespace
    join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
    join pg_type t on t.oid = a.atttypid
    where c.relkind in ('r', 'p') and not c.relispartition and n.nspname not in ('cloud_sync', 'information_schema')
      and n.nspname !~ '^pg_'
    order by c.oid, a.attnum";

struct WritableColumn {
    name: String,
    has_default: bool,
    nullable: bool,
    in_key: bool,
    type_name: String,
    category: String,
    modifier: i32,
    labels: Vec<String>,
    refers_to: Option<String>,
}

impl WritableColumn {
    fn of(row: &Row) -> Self {
        let name: String = row.get(2);
        Self {
            name: format!("\"{}\"", name.replace('"', "\"\"")),
            has_default: row.get(4),
            nullable: row.get(5),
            in_key: row.get(6),
            type_name: row.get(7),
            category: row.get(8),
            modifier: row.get(9),
            labels: row.get(10),
            refers_to: row.get(11),
        }
    }

    /// SQL of a random value.
    fn value(&self, rng: &mut StdRng) -> String {
        if self.nullable && rng.random_bool(0.2) {
            return "null".to_owned();
        }
        let salt: u32 = rng.random();
        if let Some(parents) = &self.refers_to {
            return format!("(select x from ({parents}) p(x) order by md5(x::text || '{salt}') limit 1)");
        }
        if let Some(label) = self.labels.choose(rng) {
            return format!("'{}'", label.replace('\'', "''"));
        }
        let small = salt % 10_000;
        match self.type_name.as_str() {
            "int2" => (small % 100).to_string(),
            "int4" | "int8" | "oid" => small.to_string(),
            "numeric" => {
                let scale = usize::try_from((self.modifier - 4) & 0x7ff).unwrap_or(0);
                if self.modifier > 4 {
                    format!("{:.scale$}", f64::from(small % 10))
                } else {
                    format!("{small}.{}", salt % 7)
                }
            }
            "float4" | "float8" => format!("{}.5", small),
            "bool" => salt.is_multiple_of(2).to_string(),
            "date" => format!("date '2026-01-01' + {}", small % 300),
            "timestamp" | "timestamptz" => {
                format!("{} '2026-01-01' + interval '{small} min'", self.type_name)
            }
            "time" | "timetz" => format!("'{:02}:{:02}'", salt % 24, salt % 60),
            "interval" => format!("interval '{small} s'"),
            "uuid" => format!("md5('{salt}')::uuid"),
            "json" | "jsonb" => format!("'{{\"n\": {small}, \"of\": [\"ä\", null, {salt}]}}'"),
            "bytea" => format!("decode(md5('{salt}'), 'hex')"),
            "inet" | "cidr" => format!("'10.0.{}.{}'", salt % 250, small % 250),
            "tsvector" => format!("to_tsvector('simple', 'word{small}')"),
            _ if self.category == "A" => "'{}'".to_owned(),
            _ if self.category == "S" => {
                let longest = usize::try_from(self.modifier - 4).unwrap_or(40).clamp(1, 40);
                let text: String = format!("{salt:08x} 'ä\\ {small}").chars().take(longest).collect();
                format!("'{}'", text.trim_end().replace('\'', "''"))
            }
            _ => "default".to_owned(),
        }
    }
}

/// A table, and what was written to it.
pub(crate) struct WrittenTable {
    pub(crate) oid: u32,
    pub(crate) name: String,
    columns: Vec<WritableColumn>,
    pub(crate) inserted: usize,
    pub(crate) updated: usize,
    pub(crate) deleted: usize,
    /// Why the last statement was refused.
    pub(crate) refusal: String,
}

impl WrittenTable {
    fn insert(&self, rng: &mut StdRng) -> String {
        let (mut names, mut values) = (String::new(), String::new());
        for column in &self.columns {
            if column.has_default && (column.in_key || rng.random_bool(0.3)) {
                continue;
            }
            let comma = if names.is_empty() { "" } else { ", " };
            let _ = write!(names, "{comma}{}", column.name);
            let _ = write!(values, "{comma}{}", column.value(rng));
        }
        match names.is_empty() {
            true => format!("insert into {} default values returning ctid::text", self.name),
            false => format!(
                "insert into {} ({names}) values ({values}) returning ctid::text",
                self.name
            ),
        }
    }

    /// The condition of one random row.
    fn some_row(&self, rng: &mut StdRng) -> String {
        let salt: u32 = rng.random();
        format!(
            "ctid = (select ctid from {} order by md5(ctid::text || '{salt}') limit 1)",
            self.name
        )
    }

    async fn write(&mut self, client: &Client, rng: &mut StdRng) {
        for _ in 0..TRIES {
            if self.inserted >= ROWS {
                break;
            }
            match client.query(&self.insert(rng), &[]).await {
                Ok(_) => self.inserted += 1,
                Err(error) => self.refusal = format!("{error:?}"),
            }
        }
        let mut columns: Vec<usize> = (0..self.columns.len()).collect();
        columns.shuffle(rng);
        // A table that joins two others has no column beside its key.
        columns.sort_by_key(|&index| self.columns[index].in_key);
        for index in columns.into_iter().cycle().take(TRIES) {
            if self.updated >= ROWS || self.inserted == 0 {
                break;
            }
            let column = &self.columns[index];
            let (value, row) = (column.value(rng), self.some_row(rng));
            let statement = format!("update {} set {} = {value} where {row}", self.name, column.name);
            match client.execute(&statement, &[]).await {
                Ok(rows) => self.updated += usize::from(rows > 0),
                Err(error) => self.refusal = format!("{error:?}"),
            }
        }
        for _ in 0..TRIES {
            if self.deleted >= ROWS / 2 || self.inserted == 0 {
                break;
            }
            // No row refers to a new one yet.
            let new = client.query(&self.insert(rng), &[]).await;
            let row = match new.as_deref() {
                Ok([new]) => format!("ctid = '{}'", new.get::<_, &str>(0)),
                _ => self.some_row(rng),
            };
            match client
                .execute(&format!("delete from {} where {row}", self.name), &[])
                .await
            {
                Ok(rows) => self.deleted += usize::from(rows > 0),
                Err(error) => self.refusal = format!("{error:?}"),
            }
        }
    }

    fn is_done(&self) -> bool {
        self.inserted >= ROWS && self.updated >= ROWS && self.deleted >= ROWS / 2
    }
}

/// Writes to every table. Returns what was written.
pub(crate) async fn write_everywhere(client: &Client, seed: u64) -> Vec<WrittenTable> {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut tables: Vec<WrittenTable> = Vec::new();
    for row in client.query(COLUMNS, &[]).await.unwrap() {
        let oid = row.get(0);
        if tables.last().is_none_or(|table| table.oid != oid) {
            tables.push(WrittenTable {
                oid,
                name: row.get(1),
                columns: Vec::new(),
                inserted: 0,
                updated: 0,
                deleted: 0,
                refusal: String::new(),
            });
        }
        if !row.get::<_, bool>(3) {
            tables.last_mut().unwrap().columns.push(WritableColumn::of(&row));
        }
    }
    for _ in 0..ROUNDS {
        tables.shuffle(&mut rng);
        for table in &mut tables {
            if !table.is_done() {
                table.write(client, &mut rng).await;
            }
        }
    }
    tables
}
