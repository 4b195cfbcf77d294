//! The tasks in which hyper sends the bodies of requests over HTTP/2. Each ends when its upload is given up: while the instance
//! takes no more of it, hyper asks the body for nothing, and so would never learn of it.

use std::cell::RefCell;
use std::future::Future;
use std::sync::Arc;

use hyper::rt::Executor;

use super::upload::Progress;

tokio::task_local! {
    /// The upload that hyper has asked for more last, in the task of this connection.
    static ASKED: RefCell<Option<Arc<Progress>>>;
}

/// Runs what hyper does beside a connection, which is to run within [`among`].
#[derive(Debug, Clone)]
pub struct UploadTasks;

impl<F> Executor<F> for UploadTasks
where
    F: Future + Send + 'static,
    F::Output: Send,
{
    fn execute(&self, task: F) {
        // hyper asks a body for its first piece in the connection's task, and gives it one of its own right then if there is more.
        let Some(upload) = ASKED.try_with(RefCell::take).ok().flatten() else {
            tokio::spawn(task);
            return;
        };
        tokio::spawn(async move {
            tokio::select! {
                biased;
                _ = task => {}
                // What is dropped here is reset there (RFC 9113 §5.4.2).
                () = upload.given_up() => {}
            }
        });
    }
}

/// Runs a connection.
pub async fn among<F: Future>(connection: F) -> F::Output {
    ASKED.scope(RefCell::default(), connection).await
}

/// hyper asks for more of this upload.
pub fn note(upload: &Arc<Progress>) {
    // In a task of its own it is known already.
    let _ = ASKED.try_with(|asked| asked.replace(Some(Arc::clone(upload))));
}
