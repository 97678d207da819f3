//! Parameters that go as text.

use bytes::BytesMut;
use tokio_postgres::types::{Format, IsNull, ToSql, Type, to_sql_checked};

/// A value that goes as its text, for the type's own input function: a cast from text may be somebody's own.
#[derive(Debug)]
pub(super) struct TextParameter(pub(super) Option<String>);

impl TextParameter {
    /// An array of these.
    pub(super) fn list<'a>(values: impl Iterator<Item = Option<&'a str>>) -> Self {
        let elements: Vec<String> = values
            .map(|value| match value {
                Some(text) => format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"")),
                None => "NULL".to_owned(),
            })
            .collect();
        Self(Some(format!("{{{}}}", elements.join(","))))
    }
}

impl ToSql for TextParameter {
    fn to_sql(
        &self,
        sql_type: &Type,
        out: &mut BytesMut,
    ) -> Result<IsNull, Box<dyn std::error::Error + Sync + Send>> {
        self.0.as_deref().to_sql(sql_type, out)
    }

    fn accepts(_: &Type) -> bool {
        true
    }

    fn encode_format(&self, _: &Type) -> Format {
        Format::Text
    }

    to_sql_checked!();
}
