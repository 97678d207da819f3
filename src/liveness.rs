//! Whether the tasks of the program still run.
//!
//! A task that takes part answers each question while it works ([`Liveness::answering`]). It can answer only
//! when its thread polls it: a task that blocks its thread, or that waits for a lock which nobody gives back,
//! is silent. A task that waits for the cloud, for a database or for a change answers: it is not stuck, and a
//! restart of the program would not help it.
//!
//! A task that has ended is not asked. While nobody asks, it costs nothing.

use std::future::Future;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::{Instant, timeout_at};

/// The tasks that answer, and the question. Clones share them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Liveness(Arc<LivenessState>);

#[derive(Debug, Default)]
struct LivenessState {
    /// The number of the last question.
    question: watch::Sender<u64>,
    tasks: Mutex<Vec<Weak<AnsweringTask>>>,
    answered: Notify,
}

#[derive(Debug)]
struct AnsweringTask {
    name: &'static str,
    /// The number of the last question that it has answered.
    last_answer: AtomicU64,
}

impl Liveness {
    /// Does the work, and answers questions under this name meanwhile.
    pub(crate) async fn answering<F: Future>(&self, name: &'static str, work: F) -> F::Output {
        let mut questions = self.0.question.subscribe();
        let task = Arc::new(AnsweringTask {
            name,
            last_answer: AtomicU64::new(*questions.borrow_and_update()),
        });
        self.register(&task);
        let mut work = pin!(work);
        loop {
            tokio::select! {
                // The question comes first: work that always has something to do would leave it no turn.
                biased;
                asked = questions.changed() => {
                    if asked.is_ok() {
                        task.last_answer.store(*questions.borrow_and_update(), Ordering::Relaxed);
                        self.0.answered.notify_one();
                    }
                }
                output = work.as_mut() => return output,
            }
        }
    }

    /// Asks all tasks, and waits for their answers for at most `limit`. Returns the names of those that gave
    /// none.
    pub(crate) async fn silent_tasks(&self, limit: Duration) -> Vec<&'static str> {
        let deadline = Instant::now() + limit;
        let mut question = 0;
        self.0.question.send_modify(|number| {
            *number += 1;
            question = *number;
        });
        loop {
            let silent = self.silent(question);
            let is_over =
                silent.is_empty() || timeout_at(deadline, self.0.answered.notified()).await.is_err();
            if is_over {
                // A task may have ended meanwhile.
                return self.silent(question);
            }
        }
    }

    fn register(&self, task: &Arc<AnsweringTask>) {
        let mut tasks = self.tasks();
        tasks.retain(|task| task.strong_count() > 0);
        tasks.push(Arc::downgrade(task));
    }

    /// The names of the tasks that have not answered this question.
    fn silent(&self, question: u64) -> Vec<&'static str> {
        let tasks = self.tasks();
        let silent = tasks
            .iter()
            .filter_map(Weak::upgrade)
            .filter(|task| task.last_answer.load(Ordering::Relaxed) < question);
        silent.map(|task| task.name).collect()
    }

    fn tasks(&self) -> MutexGuard<'_, Vec<Weak<AnsweringTask>>> {
        self.0.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(60);

    #[tokio::test(start_paused = true)]
    async fn a_task_that_waits_answers_and_one_that_has_ended_is_not_asked() {
        let liveness = Liveness::default();
        assert!(liveness.silent_tasks(LIMIT).await.is_empty());
        let waiting = tokio::spawn({
            let liveness = liveness.clone();
            async move { liveness.answering("waiting", std::future::pending::<()>()).await }
        });
        assert_eq!(liveness.answering("short", async { 7 }).await, 7);
        tokio::task::yield_now().await;
        for _ in 0..3 {
            assert!(liveness.silent_tasks(LIMIT).await.is_empty());
        }
        waiting.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_that_is_not_polled_is_named_until_it_goes_on() {
        let liveness = Liveness::default();
        let (wake, woken) = tokio::sync::oneshot::channel::<()>();
        let mut stuck = Box::pin(liveness.answering("stuck", woken));
        // It has begun, and nothing polls it from here on.
        assert!(futures::poll!(stuck.as_mut()).is_pending());
        assert_eq!(liveness.silent_tasks(LIMIT).await, ["stuck"]);
        assert!(futures::poll!(stuck.as_mut()).is_pending());
        assert_eq!(liveness.silent_tasks(LIMIT).await, ["stuck"]);
        wake.send(()).unwrap();
        assert!(stuck.await.is_ok());
        assert!(liveness.silent_tasks(LIMIT).await.is_empty());
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_task_that_blocks_its_thread_is_silent() {
        let liveness = Liveness::default();
        let (begun, has_begun) = tokio::sync::oneshot::channel();
        let (release, released) = mpsc::channel::<()>();
        let blocked = tokio::spawn({
            let liveness = liveness.clone();
            async move {
                let work = async move {
                    tokio::task::yield_now().await;
                    begun.send(()).unwrap();
                    released.recv().unwrap();
                };
                liveness.answering("blocked", work).await;
            }
        });
        has_begun.await.unwrap();
        assert_eq!(
            liveness.silent_tasks(Duration::from_millis(50)).await,
            ["blocked"]
        );
        release.send(()).unwrap();
        blocked.await.unwrap();
        assert!(liveness.silent_tasks(LIMIT).await.is_empty());
    }
}
