//! Who is signed in to the page.
//!
//! What always holds: the server keeps only a hash of a session's id; a session ends after [`LIFETIME`], at
//! sign-out, when its token is replaced or revoked, and when the program ends; there are at most [`MAX_SESSIONS`], and
//! one more ends the oldest. The token of a session's forms follows from its id and a key of this process, so
//! it needs no memory.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use subtle::ConstantTimeEq;
use tokio::time::Instant;

use crate::control::server::Caller;

/// How long a session lasts.
pub(super) const LIFETIME: Duration = Duration::from_secs(12 * 3600);

/// Sessions at a time.
const MAX_SESSIONS: usize = 256;

/// The sessions.
pub(super) struct Sessions {
    /// Keys the tokens of forms; of this process alone.
    key: [u8; 32],
    sessions: Mutex<HashMap<[u8; 32], PageSession>>,
}

struct PageSession {
    began: Instant,
    /// Whose token somebody signed in with.
    caller: Caller,
    /// What the next page says once: what became of the form before it.
    notice: Option<String>,
}

/// The id of a session, as the browser keeps it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SessionId(String);

impl SessionId {
    /// An id that a browser sent; it may be of no session.
    pub(super) fn given(text: &str) -> Self {
        Self(text.to_owned())
    }

    pub(super) fn as_str(&self) -> &str {
        &self.0
    }

    fn hash(&self) -> [u8; 32] {
        *blake3::hash(self.0.as_bytes()).as_bytes()
    }
}

impl Sessions {
    pub(super) fn new() -> Self {
        Self {
            key: rand::random(),
            sessions: Mutex::default(),
        }
    }

    /// Begins a session of somebody who has shown this token. Sessions whose token is not obeyed any more end.
    pub(super) fn begin(&self, caller: Caller, is_obeyed: impl Fn(&Caller) -> bool) -> SessionId {
        let id = SessionId(random_text());
        let mut sessions = self.locked();
        sessions.retain(|_, session| session.lasts() && is_obeyed(&session.caller));
        if sessions.len() >= MAX_SESSIONS
            && let Some(oldest) = sessions
                .iter()
                .min_by_key(|(_, session)| session.began)
                .map(|(hash, _)| *hash)
        {
            sessions.remove(&oldest);
        }
        let session = PageSession {
            began: Instant::now(),
            caller,
            notice: None,
        };
        sessions.insert(id.hash(), session);
        id
    }

    /// Whose token the session began with, if there is such a session.
    pub(super) fn caller(&self, id: &SessionId) -> Option<Caller> {
        let sessions = self.locked();
        let session = sessions.get(&id.hash()).filter(|session| session.lasts());
        session.map(|session| session.caller.clone())
    }

    pub(super) fn end(&self, id: &SessionId) {
        self.locked().remove(&id.hash());
    }

    /// Leaves a notice for the session's next page.
    pub(super) fn leave_notice(&self, id: &SessionId, notice: String) {
        if let Some(session) = self.locked().get_mut(&id.hash()) {
            session.notice = Some(notice);
        }
    }

    /// Takes the notice that was left.
    pub(super) fn take_notice(&self, id: &SessionId) -> Option<String> {
        self.locked().get_mut(&id.hash())?.notice.take()
    }

    /// The token that each form of the session carries. `id` may also be the random text that a browser got
    /// with the sign-in page.
    pub(super) fn form_token(&self, id: &str) -> String {
        blake3::keyed_hash(&self.key, id.as_bytes()).to_hex().to_string()
    }

    /// Whether a form carries its session's token; compared in constant time.
    pub(super) fn is_form_token(&self, id: &str, given: &str) -> bool {
        self.form_token(id).as_bytes().ct_eq(given.as_bytes()).into()
    }

    fn locked(&self) -> MutexGuard<'_, HashMap<[u8; 32], PageSession>> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl PageSession {
    fn lasts(&self) -> bool {
        self.began.elapsed() < LIFETIME
    }
}

/// 32 random bytes in hexadecimal.
pub(super) fn random_text() -> String {
    rand::random::<[u8; 32]>()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn begin(sessions: &Sessions) -> SessionId {
        sessions.begin(Caller::Single(1), |_| true)
    }

    #[tokio::test(start_paused = true)]
    async fn a_session_ends_with_its_time_its_sign_out_and_its_token() {
        let sessions = Sessions::new();
        let (one, other) = (begin(&sessions), begin(&sessions));
        assert_eq!(sessions.caller(&one), Some(Caller::Single(1)));
        assert!(sessions.caller(&other).is_some());
        assert!(sessions.caller(&SessionId::given("guessed")).is_none());
        sessions.end(&one);
        assert!(sessions.caller(&one).is_none());
        tokio::time::advance(LIFETIME).await;
        assert!(sessions.caller(&other).is_none());
        let old = begin(&sessions);
        assert_eq!(sessions.locked().len(), 1, "ended sessions are forgotten");
        sessions.begin(Caller::Single(2), |caller| *caller == Caller::Single(2));
        assert!(sessions.caller(&old).is_none(), "the token was replaced");
    }

    #[tokio::test(start_paused = true)]
    async fn one_session_too_many_ends_the_oldest() {
        let sessions = Sessions::new();
        let oldest = begin(&sessions);
        tokio::time::advance(Duration::from_secs(1)).await;
        let second = begin(&sessions);
        for _ in 0..MAX_SESSIONS - 1 {
            begin(&sessions);
        }
        assert!(sessions.caller(&oldest).is_none());
        assert!(sessions.caller(&second).is_some());
        assert_eq!(sessions.locked().len(), MAX_SESSIONS);
    }

    #[tokio::test]
    async fn ids_are_kept_as_hashes_only_and_forms_have_tokens_of_their_own() {
        let sessions = Sessions::new();
        let (one, other) = (begin(&sessions), begin(&sessions));
        assert_ne!(one, other);
        assert!(
            !sessions
                .locked()
                .keys()
                .any(|hash| hash[..] == one.as_str().as_bytes()[..32])
        );
        let token = sessions.form_token(one.as_str());
        assert!(sessions.is_form_token(one.as_str(), &token));
        assert!(!sessions.is_form_token(other.as_str(), &token));
        assert!(!sessions.is_form_token(one.as_str(), ""));
        assert!(
            !Sessions::new().is_form_token(one.as_str(), &token),
            "another process"
        );
    }

    #[tokio::test]
    async fn a_notice_is_taken_once() {
        let sessions = Sessions::new();
        let id = begin(&sessions);
        sessions.leave_notice(&id, "done".to_owned());
        assert_eq!(sessions.take_notice(&id).as_deref(), Some("done"));
        assert_eq!(sessions.take_notice(&id), None);
    }
}
