//! What an app's driver tells others: its routes to the proxy, its instances to whoever looks.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;

use super::{DriverTask, Round, Signal};
use crate::journal::DeployEvent;
use crate::model::{AppName, DeploymentId, Duty, InstanceId};
use crate::proxy::table::{DrainLimits, Route};
use crate::rollout::fleet::{self, InstanceState};
use crate::rollout::machine::Switch;
use crate::rollout::routes::Routes;

/// Routes to send, and whose switch waits for the answer.
pub(super) struct Push {
    routes: Vec<Route>,
    /// What is to be done when they are in force. Without it newer routes may take their place.
    then: Option<Then>,
}

/// What waits for the proxy's answer.
enum Then {
    /// A switch.
    Tell(Round, Switch),
    /// An instance that left them because it cannot answer any more.
    Lose(InstanceId),
    /// An instance that left them because it is not needed any more.
    Relieve(InstanceId),
}

/// Between two attempts at routes that the proxy did not take. While it does not answer that is waited for.
const PAUSE: Duration = Duration::from_secs(1);

/// Sends an app's routes one after another, so that the last one sent is the one in force. What the proxy did not take is
/// sent again until it does, or there are newer ones; of a switch the machine decides.
pub(super) fn start_pusher(
    app: AppName,
    routes: Arc<Routes>,
    signals: mpsc::WeakUnboundedSender<Signal>,
) -> mpsc::UnboundedSender<Push> {
    let (pusher, mut inbox) = mpsc::unbounded_channel::<Push>();
    tokio::spawn(async move {
        let mut untaken: Option<Push> = None;
        loop {
            let is_again = untaken.is_some();
            let next = tokio::select! {
                biased;
                newer = inbox.recv() => newer,
                () = may_try_again(&routes), if is_again => untaken.take(),
            };
            let Some(mut push) = next else { return };
            untaken = None;
            // Newer routes hold all that older ones say, unless something waits for those.
            while push.then.is_none()
                && let Ok(newer) = inbox.try_recv()
            {
                push = newer;
            }
            let applied = routes.set(&app, push.routes.clone()).await.map_err(|err| err.to_string());
            let Some(signals) = signals.upgrade() else { return };
            match (push.then, applied) {
                (Some(Then::Tell(round, switch)), applied) => {
                    let _ = signals.send(Signal::Switched(round, switch, applied));
                }
                (Some(Then::Relieve(id)), applied) => {
                    let _ = signals.send(Signal::Relieved(id, applied));
                }
                (Some(Then::Lose(id)), Ok(())) => {
                    let proxy = routes.proxy().clone();
                    tokio::spawn(async move { proxy.drain(&id, DrainLimits::NONE).await });
                }
                (then @ (Some(Then::Lose(_)) | None), Err(err)) => {
                    if !is_again {
                        tracing::warn!(%app, %err, "the proxy did not take the routes; they are sent again");
                    }
                    untaken = Some(Push { then, ..push });
                }
                (None, Ok(())) => {}
            }
        }
    });
    pusher
}

async fn may_try_again(routes: &Routes) {
    tokio::time::sleep(PAUSE).await;
    // The client lives as long as the routes do.
    let _ = routes.proxy().watch_status().wait_for(|status| status.connected).await;
}

impl DriverTask {
    /// Sends the routes in any case: a switch waits for the answer.
    pub(super) fn push_switch(&mut self, round: Round, switch: Switch) {
        self.push_for(Then::Tell(round, switch));
    }

    /// Sends the routes without an instance that nobody can reach any more: what it has under way is not waited for.
    pub(super) fn push_without(&mut self, lost: InstanceId) {
        if self.adopted {
            self.push_for(Then::Lose(lost));
        }
    }

    /// Sends the routes without an instance that is then to be drained.
    pub(super) fn push_relieved(&mut self, id: InstanceId) {
        self.push_for(Then::Relieve(id));
    }

    fn push_for(&mut self, then: Then) {
        let routes = fleet::routes(&self.app, self.entrance.as_ref(), &self.members, self.share);
        self.pushed = Some(routes.clone());
        let _ = self.pusher.send(Push { routes, then: Some(then) });
    }

    /// Sends the routes when they differ from what was sent last.
    pub(super) fn push_routes(&mut self) {
        let routes = fleet::routes(&self.app, self.entrance.as_ref(), &self.members, self.share);
        if !self.adopted || self.pushed.as_ref() == Some(&routes) {
            return;
        }
        self.pushed = Some(routes.clone());
        let _ = self.pusher.send(Push { routes, then: None });
    }

    /// Sends the routes that hold after a rollout, also when its last switch had the same: the proxy may not have taken it.
    pub(super) fn push_final_routes(&mut self) {
        self.pushed = None;
        self.push_routes();
    }

    /// Tells what changed since the last signal.
    pub(super) fn publish(&self) {
        let now = self.states();
        let before = self.published.borrow().clone();
        if before == now {
            return;
        }
        let deployment = self.rollout.as_ref().map(|active| active.assignment.deployment);
        for state in &now {
            let same = before.iter().any(|b| b.id == state.id && (b.health, b.duty) == (state.health, state.duty));
            if !same {
                self.tell(deployment, state, state.duty);
            }
        }
        for gone in before.iter().filter(|b| !now.iter().any(|n| n.id == b.id)) {
            self.tell(deployment, gone, Duty::Retired);
        }
        self.published.send_replace(now);
    }

    /// The instances as others see them; under a canary with the weights that the proxy has.
    fn states(&self) -> Vec<InstanceState> {
        let mut states: Vec<_> = self.members.iter().map(|(id, member)| member.state(id)).collect();
        if self.share.is_some() {
            let routed = self.pushed.iter().flatten().flat_map(|route| &route.members);
            let weights: BTreeMap<_, _> = routed.map(|member| (&member.instance, member.weight)).collect();
            for state in states.iter_mut().filter(|state| state.weight > 0) {
                state.weight = weights.get(&state.id).copied().unwrap_or(0);
            }
        }
        states
    }

    fn tell(&self, deployment: Option<DeploymentId>, state: &InstanceState, duty: Duty) {
        let event = DeployEvent::Instance {
            instance: state.id.clone(),
            service: state.service.clone(),
            slot: state.slot,
            health: state.health,
            duty,
        };
        self.parts.journal.publish(&self.app, deployment, event);
    }
}
