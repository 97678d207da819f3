//! The column types that the receiver knows, and which of two types a column takes.
//!
//! Always holds: a type name from outside only selects an entry of [`KNOWN`]; what goes into SQL is the
//! entry's own name. Everything unknown is kept as text, which holds any value's JSON text unchanged.

/// Canonical names with their aliases. Types whose bare name means a length of 1 (`bit`) or whose text
/// depends on the server's locale (`money`) are not here: they are kept as text.
const KNOWN: &[(&str, &[&str])] = &[
    ("boolean", &["bool"]),
    ("smallint", &["int2"]),
    ("integer", &["int", "int4"]),
    ("bigint", &["int8"]),
    ("numeric", &["decimal"]),
    ("real", &["float4"]),
    ("double precision", &["float8"]),
    ("text", &["character", "char", "bpchar", "name", "citext"]),
    ("character varying", &["varchar"]),
    ("json", &[]),
    ("jsonb", &[]),
    ("bytea", &[]),
    ("date", &[]),
    ("time without time zone", &["time"]),
    ("time with time zone", &["timetz"]),
    ("timestamp without time zone", &["timestamp"]),
    ("timestamp with time zone", &["timestamptz"]),
    ("interval", &[]),
    ("uuid", &[]),
    ("inet", &[]),
    ("cidr", &[]),
    ("macaddr", &[]),
    ("macaddr8", &[]),
    ("bit varying", &["varbit"]),
    ("oid", &[]),
    ("tsvector", &[]),
    ("tsquery", &[]),
    ("point", &[]),
    ("lseg", &[]),
    ("line", &[]),
    ("box", &[]),
    ("path", &[]),
    ("polygon", &[]),
    ("circle", &[]),
    ("int4range", &[]),
    ("int8range", &[]),
    ("numrange", &[]),
    ("daterange", &[]),
    ("tsrange", &[]),
    ("tstzrange", &[]),
];

/// The type of a column in the cloud: a known name, or an array of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ColumnType {
    /// The canonical name of the type, or of the array's elements.
    pub(crate) name: &'static str,
    /// True for an array, of any number of dimensions.
    pub(crate) array: bool,
}

/// What becomes of a column that has one type and is declared with another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TypeMerge {
    /// The column's type holds every value of the declared one.
    Keep,
    /// The column takes this wider type.
    Widen(ColumnType),
    /// Neither holds the other.
    Conflict,
}

const TEXT: ColumnType = ColumnType {
    name: "text",
    array: false,
};

impl ColumnType {
    /// The type of a declared name; text if it is unknown. Modifiers in brackets are dropped.
    pub(crate) fn declared(declared: &str) -> Self {
        let mut plain = String::with_capacity(declared.len());
        let mut depth = 0_usize;
        for letter in declared.chars() {
            match letter {
                '(' => depth += 1,
                ')' => depth = depth.saturating_sub(1),
                _ if depth == 0 => plain.push(letter.to_ascii_lowercase()),
                _ => {}
            }
        }
        let base = plain.trim_end_matches("[]");
        let array = base.len() < plain.len();
        let words = base.split_ascii_whitespace().collect::<Vec<_>>().join(" ");
        let known = KNOWN
            .iter()
            .find(|(name, aliases)| *name == words || aliases.contains(&words.as_str()));
        match known {
            // to_json writes the elements of such an array in a form that base64 does not read.
            Some((name, _)) if !(array && *name == "bytea") => Self { name, array },
            _ => TEXT,
        }
    }

    /// Its name in SQL.
    pub(crate) fn sql(self) -> String {
        format!("{}{}", self.name, if self.array { "[]" } else { "" })
    }

    /// Whether it is this scalar type.
    pub(crate) fn is(self, name: &str) -> bool {
        !self.array && self.name == name
    }

    /// Whether the age of a row can be measured by it.
    pub(crate) fn is_time(self) -> bool {
        self.is("date") || self.is("timestamp with time zone") || self.is("timestamp without time zone")
    }

    /// What becomes of a column of this type that is now declared as `declared`.
    pub(crate) fn merge(self, declared: Self) -> TypeMerge {
        if self == declared || self == TEXT {
            return TypeMerge::Keep;
        }
        if declared == TEXT {
            return TypeMerge::Widen(TEXT);
        }
        if self.array != declared.array {
            return if self.is("character varying") {
                TypeMerge::Keep
            } else {
                TypeMerge::Conflict
            };
        }
        let Some(name) = wider(self.name, declared.name) else {
            return TypeMerge::Conflict;
        };
        if name == self.name {
            TypeMerge::Keep
        } else {
            TypeMerge::Widen(Self {
                name,
                array: self.array,
            })
        }
    }

    /// The expression that turns a value of this type, in `column` (quoted), into `to`, as `alter … using`
    /// needs it.
    pub(crate) fn cast(self, column: &str, to: Self) -> String {
        if to.is("text") {
            match self.name {
                "bytea" => base64(column),
                "json" | "jsonb" if !self.array => format!("{column}::text"),
                // The text that JSON carries, so that old values look like those that come from now on.
                _ => format!("to_json({column}) #>> '{{}}'"),
            }
        } else if self.name == "real" && !self.array {
            format!("{column}::text::{}", to.sql())
        } else {
            format!("{column}::{}", to.sql())
        }
    }
}

/// The expression for bytes in base64, without the line breaks that PostgreSQL puts in.
pub(crate) fn base64(column: &str) -> String {
    format!("translate(encode({column}, 'base64'), E'\\n', '')")
}

/// The narrower of the types that hold every value of both.
fn wider(first: &'static str, second: &'static str) -> Option<&'static str> {
    const WHOLE: [&str; 3] = ["smallint", "integer", "bigint"];
    const NUMBERS: [&str; 6] = [
        "smallint",
        "integer",
        "bigint",
        "numeric",
        "real",
        "double precision",
    ];
    if first == second {
        return Some(first);
    }
    let either = |name: &str| first == name || second == name;
    if WHOLE.contains(&first) && WHOLE.contains(&second) {
        return WHOLE.into_iter().rev().find(|name| either(name));
    }
    if NUMBERS.contains(&first) && NUMBERS.contains(&second) {
        // A double holds any 32-bit integer exactly, but not any 64-bit one.
        return Some(if either("numeric") || either("bigint") {
            "numeric"
        } else {
            "double precision"
        });
    }
    let pair = |narrow: &str, wide: &'static str| (either(narrow) && either(wide)).then_some(wide);
    pair("character varying", "text")
        .or_else(|| pair("jsonb", "json"))
        .or_else(|| pair("date", "timestamp without time zone"))
        .or_else(|| pair("cidr", "inet"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_select_known_types_and_nothing_else() {
        for (declared, sql) in [
            ("bigint", "bigint"),
            ("INT8", "bigint"),
            ("numeric(8,6)", "numeric"),
            ("timestamp(3) with time zone", "timestamp with time zone"),
            ("character varying(20)[]", "character varying[]"),
            ("bigint[][]", "bigint[]"),
            ("bytea[]", "text"),
            ("mood", "text"),
            ("bit", "text"),
            ("text); drop schema cloud; --", "text"),
        ] {
            assert_eq!(ColumnType::declared(declared).sql(), sql, "{declared}");
        }
    }

    #[test]
    fn types_widen_keep_or_conflict() {
        let merge = |first: &str, second: &str| match ColumnType::declared(first)
            .merge(ColumnType::declared(second))
        {
            TypeMerge::Keep => "keep".to_owned(),
            TypeMerge::Widen(to) => to.sql(),
            TypeMerge::Conflict => "conflict".to_owned(),
        };
        for (have, want, result) in [
            ("integer", "bigint", "bigint"),
            ("bigint", "integer", "keep"),
            ("bigint", "numeric", "numeric"),
            ("bigint", "double precision", "numeric"),
            ("integer", "real", "double precision"),
            ("numeric", "double precision", "keep"),
            ("boolean", "text", "text"),
            ("text", "boolean", "keep"),
            ("boolean", "integer", "conflict"),
            ("timestamp", "timestamptz", "conflict"),
            ("jsonb", "json", "json"),
            ("integer[]", "bigint[]", "bigint[]"),
            ("integer[]", "integer", "conflict"),
            ("integer[]", "text", "text"),
        ] {
            assert_eq!(merge(have, want), result, "{have} and {want}");
        }
    }
}
