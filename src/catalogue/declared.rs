//! The catalogue as the configuration declares it, before the site's database has completed it: patterns of
//! tables, and entities that may lack a name and a key. `source::complete` makes the [`super::Catalogue`] of it.

use super::Entity;

/// What the configuration says of the entities.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct DeclaredCatalogue {
    /// The entities of `[[entity]]`, as listed.
    pub(crate) entities: Vec<Entity>,
    /// The tables of `catalogue.tables`.
    pub(crate) tables: Vec<TablePattern>,
}

impl DeclaredCatalogue {
    /// Whether the entities alone are a catalogue: nothing of it is in the database only.
    pub(crate) fn is_complete(&self) -> bool {
        self.tables.is_empty()
            && self
                .entities
                .iter()
                .all(|entity| !entity.name.is_empty() && !entity.key.is_empty())
    }

    /// Whether the patterns take this table.
    pub(crate) fn takes(&self, schema: &str, table: &str) -> bool {
        let named = |pattern: &&TablePattern| pattern.matches(schema, table);
        let mut taken = self.tables.iter().filter(|pattern| !pattern.leaves_out);
        let mut left_out = self.tables.iter().filter(|pattern| pattern.leaves_out);
        taken.find(named).is_some() && left_out.find(named).is_none()
    }
}

/// One pattern of `catalogue.tables`: `public.*`, `sales.order_?`, `!public.audit_*`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TablePattern {
    /// Whether it begins with `!`: such tables are left out.
    pub(crate) leaves_out: bool,
    /// `None` means every schema.
    schema: Option<String>,
    table: String,
}

impl TablePattern {
    /// Reads a pattern.
    ///
    /// # Errors
    /// What it must be.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let (leaves_out, name) = match text.strip_prefix('!') {
            Some(name) => (true, name.trim()),
            None => (false, text),
        };
        let (schema, table) = match name.split_once('.') {
            Some((schema, table)) => (Some(schema), table),
            None => (None, name),
        };
        if table.is_empty() || schema.is_some_and(str::is_empty) || name.contains('"') {
            return Err(format!(
                "must be patterns such as public.* or !public.audit_*, without quotes inside; {text:?} is none"
            ));
        }
        Ok(Self {
            leaves_out,
            schema: schema.map(str::to_owned),
            table: table.to_owned(),
        })
    }

    /// A pattern for one table. What has a meaning in a list of patterns is a `?` in it.
    pub(crate) fn of(schema: &str, table: &str) -> Self {
        Self {
            leaves_out: false,
            schema: Some(spelled(schema, false)),
            table: spelled(table, true),
        }
    }

    /// A pattern for every table of a schema.
    pub(crate) fn all_of(schema: &str) -> Self {
        Self {
            table: "*".to_owned(),
            ..Self::of(schema, "")
        }
    }

    /// Whether the table's name fits it.
    pub(crate) fn matches(&self, schema: &str, table: &str) -> bool {
        let in_schema = self.schema.as_deref().is_none_or(|pattern| fits(pattern, schema));
        in_schema && fits(&self.table, table)
    }
}

impl std::fmt::Display for TablePattern {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mark = if self.leaves_out { "!" } else { "" };
        match &self.schema {
            Some(schema) => write!(f, "{mark}{schema}.{}", self.table),
            None => write!(f, "{mark}{}", self.table),
        }
    }
}

/// A name as a pattern spells it: a `?` for each character that would not be read as itself.
fn spelled(name: &str, may_have_dot: bool) -> String {
    let last = name.chars().count().saturating_sub(1);
    let is_itself = |(index, letter): (usize, char)| match letter {
        '.' => may_have_dot,
        ' ' => index > 0 && index < last,
        _ => letter.is_alphanumeric() || "_-$#@+/()&".contains(letter),
    };
    let letters = name.chars().enumerate();
    letters
        .map(|(index, letter)| if is_itself((index, letter)) { letter } else { '?' })
        .collect()
}

/// Whether a name fits a pattern, in which `*` stands for any characters and `?` for one.
fn fits(pattern: &str, name: &str) -> bool {
    let name: Vec<char> = name.chars().collect();
    // For each length of the name's beginning, whether the pattern so far fits it.
    let mut fitting = vec![false; name.len() + 1];
    fitting[0] = true;
    for wanted in pattern.chars() {
        let before = fitting.clone();
        for length in 0..fitting.len() {
            let without_last = length.checked_sub(1);
            fitting[length] = match wanted {
                '*' => before[length] || without_last.is_some_and(|shorter| fitting[shorter]),
                _ => without_last
                    .is_some_and(|shorter| before[shorter] && (wanted == '?' || name[shorter] == wanted)),
            };
        }
    }
    fitting[name.len()]
}

/// The name of an entity that a pattern makes of a table: the table's, with its schema if that is not
/// `public`. Characters that no entity's name can have become `_`. It follows from the table alone, so that it
/// stays when other tables come and go.
pub(crate) fn entity_name(schema: &str, table: &str) -> String {
    let full = full_name(schema, table);
    let plain = plain_name(&full);
    if plain.len() <= super::LONGEST_NAME {
        return plain;
    }
    hashed_name(&plain, &full)
}

/// Another name than [`entity_name`] gives, for a table of which that is another entity's.
pub(crate) fn unlike_entity_name(schema: &str, table: &str) -> String {
    let plain = plain_name(&full_name(schema, table));
    // In quotes, so that no two tables come to one.
    hashed_name(&plain, &format!("{schema:?}.{table:?}"))
}

fn full_name(schema: &str, table: &str) -> String {
    match schema {
        "public" => table.to_owned(),
        _ => format!("{schema}_{table}"),
    }
}

fn plain_name(full: &str) -> String {
    full.chars()
        .map(|letter| match letter {
            _ if letter.is_ascii_alphanumeric() => letter,
            '-' => letter,
            _ => '_',
        })
        .collect()
}

/// The beginning of a plain name, with a hash.
fn hashed_name(plain: &str, hashed: &str) -> String {
    let hash = blake3::hash(hashed.as_bytes()).to_hex();
    let length = plain.len().min(super::LONGEST_NAME - 9);
    format!("{}_{}", &plain[..length], &hash[..8])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_take_what_fits_and_is_not_left_out() {
        let declared = DeclaredCatalogue {
            entities: Vec::new(),
            tables: [
                "public.*",
                "sales.order_?",
                "!public.audit_*",
                "!django_session",
                "! *.tmp*",
            ]
            .iter()
            .map(|text| TablePattern::parse(text).unwrap())
            .collect(),
        };
        for (schema, table, taken) in [
            ("public", "room", true),
            ("public", "audit_log", false),
            ("public", "django_session", false),
            ("public", "tmp1", false),
            ("sales", "order_1", true),
            ("sales", "order_12", false),
            ("sales", "orders", false),
            ("other", "room", false),
        ] {
            assert_eq!(declared.takes(schema, table), taken, "{schema}.{table}");
        }
        assert!(!declared.is_complete());
        assert_eq!(declared.tables[2].to_string(), "!public.audit_*");
        for wrong in ["", "!", "public.", ".t", "\"A\".b"] {
            assert!(TablePattern::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_pattern_of_a_table_fits_it_whatever_its_name() {
        for (schema, table) in [
            ("public", "room"),
            ("a.b", "c.d"),
            ("x,y", "!p"),
            ("q\"q", " [it's] "),
            ("s", "*"),
        ] {
            for pattern in [TablePattern::of(schema, table), TablePattern::all_of(schema)] {
                let text = pattern.to_string();
                assert!(!text.contains([',', '"', '\'']) && text.trim() == text, "{text}");
                assert!(
                    TablePattern::parse(&text).unwrap().matches(schema, table),
                    "{text}"
                );
            }
        }
        assert_eq!(
            TablePattern::of("public", "Odd Name").to_string(),
            "public.Odd Name"
        );
    }

    #[test]
    fn stars_stand_for_any_characters() {
        for (pattern, name, does) in [
            ("*", "", true),
            ("a*c", "abbc", true),
            ("a*c", "abcd", false),
            ("*a*", "xay", true),
            ("a?c", "äbc", false),
            ("?bc", "äbc", true),
        ] {
            assert_eq!(fits(pattern, name), does, "{pattern} {name}");
        }
    }

    #[test]
    fn names_of_entities_are_plain_and_of_their_table_alone() {
        assert_eq!(entity_name("public", "room"), "room");
        assert_eq!(entity_name("sales", "Order Items"), "sales_Order_Items");
        let long = entity_name("public", &"x".repeat(63));
        assert_eq!(long.len(), super::super::LONGEST_NAME);
        assert_ne!(long, entity_name("public", &"x".repeat(62)));
    }
}
