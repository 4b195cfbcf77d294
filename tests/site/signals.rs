//! What SIGTERM does. std has no words for it, but links libc anyway, so its functions are declared by hand.

const SIGTERM: i32 = 15;
const IGNORE: usize = 1;
const BLOCK: i32 = 0;

#[repr(C, align(8))]
struct SignalSet([u8; 128]);

unsafe extern "C" {
    fn signal(number: i32, action: usize) -> usize;
    fn sigemptyset(set: *mut SignalSet) -> i32;
    fn sigaddset(set: *mut SignalSet, number: i32) -> i32;
    fn pthread_sigmask(how: i32, set: *const SignalSet, old: *mut SignalSet) -> i32;
    fn sigwait(set: *const SignalSet, number: *mut i32) -> i32;
}

pub fn ignore_sigterm() {
    unsafe { signal(SIGTERM, IGNORE) };
}

/// Call before the first thread starts: all inherit the mask. The returned function waits for the signal.
pub fn take_sigterm() -> impl FnOnce() + Send + 'static {
    let mut set = SignalSet([0; 128]);
    unsafe {
        sigemptyset(&mut set);
        sigaddset(&mut set, SIGTERM);
        pthread_sigmask(BLOCK, &set, std::ptr::null_mut());
    }
    move || {
        let mut number = 0;
        while unsafe { sigwait(&set, &mut number) } != 0 || number != SIGTERM {}
    }
}
