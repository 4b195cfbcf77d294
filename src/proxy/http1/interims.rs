//! Interim answers of an instance on their way to its client, who may get any number of them before the answer, and of
//! whom a proxy must not keep them (RFC 9110 §15.2): `103 Early Hints`.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use super::super::headers;
use super::super::instance::lock;
use super::super::message::AnswerHead;
use super::response;

/// Those of one request that its client has not been sent yet. Filled where the instance is read and emptied where the client is
/// written to, by one task.
#[derive(Debug, Default)]
pub struct Interims {
    is_filled: AtomicBool,
    written: Mutex<Vec<u8>>,
}

impl Interims {
    /// Adds one.
    pub fn add(&self, mut head: Box<AnswerHead>) {
        headers::prepare_response(&mut head.fields, false);
        response::write(&mut head, None, false, &mut lock(&self.written));
        self.is_filled.store(true, Relaxed);
    }

    /// Whether there is one. Nearly always not.
    pub fn are_there(&self) -> bool {
        self.is_filled.load(Relaxed)
    }

    /// All there are, as they go to the client.
    pub fn take(&self) -> Vec<u8> {
        self.is_filled.store(false, Relaxed);
        std::mem::take(&mut lock(&self.written))
    }
}
