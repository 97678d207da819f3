//! What a browser sends of a form.

use axum::body::{self, Body};
use url::form_urlencoded;

use super::FORM_LIMIT;
use crate::change::Position;
use crate::control::PauseScope;

/// A form's fields.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Form(Vec<(String, String)>);

impl Form {
    /// Reads a form; `None` if it is too large, or interrupted.
    pub(super) async fn read(sent: Body) -> Option<Self> {
        let bytes = body::to_bytes(sent, FORM_LIMIT).await.ok()?;
        Some(Self(form_urlencoded::parse(&bytes).into_owned().collect()))
    }

    /// The value of a field; `None` if the form does not have it, or has it several times.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        let mut values = self.0.iter().filter(|(field, _)| field == name);
        let (_, value) = values.next()?;
        values.next().is_none().then_some(value)
    }

    /// The field `what`: what is to be paused or resumed.
    pub(super) fn scope(&self) -> Option<PauseScope> {
        match self.get("what")? {
            "all" => Some(PauseScope::All),
            "files" => Some(PauseScope::Files),
            entity => Some(PauseScope::Entity(entity.strip_prefix("entity:")?.to_owned())),
        }
    }

    /// The field `position`.
    pub(super) fn position(&self) -> Option<Position> {
        self.get("position")?.parse().ok().map(Position)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn fields_are_decoded_and_must_be_there_once() {
        let form = Form::read(Body::from("token=a%2Bb+c&position=12&twice=1&twice=2"))
            .await
            .unwrap();
        assert_eq!(form.get("token"), Some("a+b c"));
        assert_eq!(form.position(), Some(Position(12)));
        assert_eq!(form.get("twice"), None);
        assert_eq!(form.get("other"), None);
        assert_eq!(form.scope(), None);
        let form = Form::read(Body::from("what=entity%3Arooms")).await.unwrap();
        assert_eq!(form.scope(), Some(PauseScope::Entity("rooms".to_owned())));
        assert_eq!(Form::read(Body::from(vec![b'a'; FORM_LIMIT + 1])).await, None);
    }
}
