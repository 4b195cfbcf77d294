//! What fails in a rollout while the engine is away says nothing about the release: its instances end with it. So before
//! a failure is believed, the engine is asked whether it is there and has been there all the time.

use super::{DriverTask, Signal};
use crate::model::InstanceId;
use crate::rollout::fleet::REMOVED;
use crate::rollout::machine::{Cause, Event, Timer};
use crate::runtime::{Exited, RunState, Runtime};

impl DriverTask {
    /// Hands back what the machine may hear at once. A failure is looked into first, and comes back as a signal.
    pub(super) fn suspect(&self, event: Event) -> Option<Event> {
        let Some(active) = self.rollout.as_ref().filter(|active| active.assignment.may_break_off) else {
            return Some(event);
        };
        if failure(&event).is_none() {
            return Some(event);
        }
        if about(&event).is_some_and(|id| !active.machine.depends_on(id)) {
            return Some(event);
        }
        let (round, runtime) = (active.round, self.parts.runtime.clone());
        self.spawn(async move {
            let answer = runtime.ping().await;
            let event = if answer.is_ok() { as_it_is(event, runtime.as_ref()).await } else { event };
            Signal::Checked(round, event, answer)
        });
        None
    }

    /// Tells the machine of a failure: as what it looked like, or as the engine's.
    pub(super) async fn judge(&mut self, event: Event) {
        let Some(active) = &self.rollout else { return };
        let lost = self.parts.presence.was_lost_since(active.engine);
        let event = match failure(&event) {
            Some(failure) if lost || failure.is_the_engines => Event::EngineLost(failure.what),
            _ => event,
        };
        self.ask_machine(event).await;
    }
}

/// One that fails its checks may be gone, and its checks be faster than the engine's word of it.
async fn as_it_is(event: Event, runtime: &dyn Runtime) -> Event {
    let Event::Unready(id, why) = event else { return event };
    let is_removed = match runtime.inspect(&id).await {
        Ok(Some(observed)) => matches!(observed.state, RunState::Exited(Exited { removed: true, .. })),
        Ok(None) => true,
        Err(_) => false,
    };
    if is_removed { Event::TakenAway(id, REMOVED.to_owned()) } else { Event::Unready(id, why) }
}

struct Suspect {
    /// In words.
    what: String,
    /// Whatever the engine answers now, it did not answer then.
    is_the_engines: bool,
}

fn about(event: &Event) -> Option<&InstanceId> {
    match event {
        Event::StartFailed(id, ..) | Event::Exited(id, _) | Event::TakenAway(id, _) | Event::Unready(id, _) => Some(id),
        _ => None,
    }
}

/// What an event says that may be the engine's doing.
fn failure(event: &Event) -> Option<Suspect> {
    let of_instance = |what: String| Some(Suspect { what, is_the_engines: false });
    match event {
        Event::StartFailed(id, why, cause) => {
            Some(Suspect { what: format!("{id} could not be started: {why}"), is_the_engines: *cause == Cause::Engine })
        }
        Event::Exited(id, why) | Event::TakenAway(id, why) => of_instance(format!("{id} {why}")),
        Event::Unready(id, why) => of_instance(format!("{id} is unready: {why}")),
        Event::DeadlinePassed(Timer::Start(id)) => of_instance(format!("{id} was not ready in time")),
        Event::ErrorsJumped(why) => of_instance(why.clone()),
        _ => None,
    }
}
