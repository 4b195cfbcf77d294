//! How much of the live release serves, for who is told of a deployment's end.

use super::DriverTask;
use super::upkeep::LivePlace;
use crate::model::{Duty, Health};
use crate::rollout::fleet::Member;
use crate::store::{Served, ServiceServed};

impl DriverTask {
    pub(super) fn served(&self, places: &[LivePlace]) -> Served {
        let mut served = Served::default();
        for place in places {
            let service = &place.spec.service.name;
            let is_here =
                |m: &&Member| m.slot == place.slot && m.spec.service.name == *service && m.stands_in.is_none();
            let here = || self.members.values().filter(is_here);
            let is_served = here().any(serves);
            match served.services.iter_mut().find(|known| known.service == *service) {
                Some(known) => {
                    known.wanted += 1;
                    known.serving += u32::from(is_served);
                }
                None => served.services.push(ServiceServed {
                    service: service.clone(),
                    wanted: 1,
                    serving: u32::from(is_served),
                }),
            }
            if !is_served && served.why.is_none() {
                let secret = place.spec.prepared.as_ref().err().cloned();
                served.why = secret.or_else(|| here().find_map(|m| m.last_check.clone()));
            }
        }
        let stands_in = |m: &Member| m.stands_in.is_some() && serves(m);
        served.stand_ins = self.members.iter().filter(|(_, m)| stands_in(m)).map(|(id, _)| id.clone()).collect();
        served
    }
}

fn serves(member: &Member) -> bool {
    let may = member.gate.health() == Health::Ready || member.trusted;
    member.duty == Duty::Serving && member.running && may
}
