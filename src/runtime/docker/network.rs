//! An app's network: made, joined, removed.

use bollard::models::{NetworkConnectRequest, NetworkCreateRequest};
use bollard::query_parameters::ListNetworksOptions;

use super::{CALL, Docker, explain, labels, spec, within};
use crate::model::AppName;
use crate::runtime::{Observed, RuntimeError};

impl Docker {
    /// Makes an app's network where there is none.
    pub(super) async fn ensure_network(&self, app: &AppName) -> Result<(), RuntimeError> {
        let name = labels::network_name(&self.agent_id, app);
        let _one_at_a_time = self.networks.lock().await;
        if self.one_network(&name).await? {
            return Ok(());
        }
        let ours = [(labels::AGENT, self.agent_id.clone()), (labels::APP, app.to_string())];
        let request = NetworkCreateRequest {
            name: name.clone(),
            driver: Some("bridge".to_owned()),
            labels: Some(ours.map(|(label, value)| (label.to_owned(), value)).into()),
            ..Default::default()
        };
        match self.client.create_network(request).await {
            Err(error) if explain::status(&error) == Some(409) => {}
            created => created.map(drop).map_err(explain::runtime_error)?,
        }
        self.one_network(&name).await.map(drop)
    }

    /// Whether our network of this name exists. Older engines make a second one of the same name when an agent was
    /// ended while it asked for the first; then all but one are removed, because a container could join neither.
    async fn one_network(&self, name: &str) -> Result<bool, RuntimeError> {
        let filters = Some([("name".to_owned(), vec![name.to_owned()])].into());
        let found = self.client.list_networks(Some(ListNetworksOptions { filters })).await;
        let mut found = found.map_err(explain::runtime_error)?;
        // The filter matches parts of names as well.
        found.retain(|network| network.name.as_deref() == Some(name));
        for network in &found {
            self.refuse_strangers("network", name, network.labels.as_ref())?;
        }
        // The oldest stays: the containers that run are in it.
        found.sort_by(|a, b| (&a.created, &a.id).cmp(&(&b.created, &b.id)));
        for twin in found.iter().skip(1).filter_map(|network| network.id.as_deref()) {
            tracing::warn!(name, twin, "the engine has two networks of this name; removing the newer one");
            match self.client.remove_network(twin).await {
                Err(error) if explain::status(&error) == Some(404) => {}
                removed => removed.map_err(explain::runtime_error)?,
            }
        }
        Ok(!found.is_empty())
    }

    /// Puts a container that runs back into its app's network; the instance as it is then.
    pub(super) async fn join_network(&self, container: &str, instance: &Observed) -> Result<Observed, RuntimeError> {
        self.ensure_network(&instance.app).await?;
        let name = labels::network_name(&self.agent_id, &instance.app);
        let endpoint_config = Some(spec::endpoint(Some(&instance.service)));
        let request = NetworkConnectRequest { container: container.to_owned(), endpoint_config };
        let joined = self.client.connect_network(&name, request).await;
        let gone = || RuntimeError::Refused(format!("{} was removed while it was connected", instance.id));
        let now = self.observe(container).await?.ok_or_else(gone)?;
        match joined {
            // Refused where somebody else was faster.
            Err(error) if now.is_cut_off() => Err(explain::runtime_error(error)),
            _ => Ok(now),
        }
    }

    /// Removes an app's network. Succeeds when it is gone; refused while a container is in it.
    pub async fn remove_network(&self, app: &AppName) -> Result<(), RuntimeError> {
        let name = labels::network_name(&self.agent_id, app);
        within(CALL, async {
            let network = match self.client.inspect_network(&name, None).await {
                Err(error) if explain::status(&error) == Some(404) => return Ok(()),
                network => network.map_err(explain::runtime_error)?,
            };
            self.refuse_strangers("network", &name, network.labels.as_ref())?;
            match self.client.remove_network(&name).await {
                Err(error) if explain::status(&error) == Some(404) => Ok(()),
                removed => removed.map_err(explain::runtime_error),
            }
        })
        .await
    }
}
