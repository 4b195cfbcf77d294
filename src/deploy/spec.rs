//! From a release to what its instances are started with: secrets resolved, settings digested.

use std::collections::BTreeMap;
use std::sync::Arc;

use hmac::{Hmac, KeyInit, Mac};
use secrecy::{ExposeSecret, SecretString};
use sha2::Sha256;

use super::static_files::StaticStore;
use crate::config::{App, EnvValue, Service, routed_service};
use crate::model::{ImageId, ServiceName};
use crate::rollout::{Prepared, ServiceSpec};
use crate::store::{Release, ReleasedService};

/// Every service of a release, ready to be started. The error names a secret that cannot be read.
pub fn service_specs(
    release: &Release,
    settings_key: &str,
    files: &StaticStore,
) -> Result<BTreeMap<ServiceName, Arc<ServiceSpec>>, String> {
    let specs = of_live(release, settings_key, files);
    match specs.values().find_map(|spec| spec.prepared.as_ref().err()) {
        Some(why) => Err(why.clone()),
        None => Ok(specs),
    }
}

/// Every service of a release that is live. A secret that has gone since does not keep the agent from knowing what is to
/// run.
pub fn of_live(release: &Release, settings_key: &str, files: &StaticStore) -> BTreeMap<ServiceName, Arc<ServiceSpec>> {
    let spec = |released| Arc::new(service_spec(release, released, settings_key, files));
    release.body.services.iter().map(|released| (released.service.name.clone(), spec(released))).collect()
}

/// A service as an instance of it runs already, with the same forbearance.
pub fn of_running(
    release: &Release,
    service: &ServiceName,
    settings_key: &str,
    files: &StaticStore,
) -> Option<ServiceSpec> {
    release.body.service(service).map(|released| service_spec(release, released, settings_key, files))
}

fn service_spec(release: &Release, released: &ReleasedService, settings_key: &str, files: &StaticStore) -> ServiceSpec {
    let routed = routed_service(release.body.services.iter().map(|released| &released.service));
    let by_default = routed.is_some_and(|routed| routed.name == released.service.name);
    ServiceSpec {
        routed: by_default || released.service.route.is_some(),
        files: files.files(&release.app, released),
        service: released.service.clone(),
        image: released.image.clone(),
        prepared: prepare(&released.service, &released.image, settings_key),
        release: release.number,
        commit: release.commit.clone(),
    }
}

/// A service's secrets, read now, and what follows from them.
pub fn prepare(service: &Service, image: &ImageId, settings_key: &str) -> Result<Prepared, String> {
    let env = resolve_env(service)?;
    let settings = settings_digest(service, image, &env, settings_key);
    Ok(Prepared { env, settings })
}

/// Why an app cannot be deployed as it is configured, when one of its secrets cannot be read now.
pub fn absent_secret(app: &App) -> Option<String> {
    let of_service = |service: &Service| {
        let build = service.build.secrets.iter();
        let absent = build.filter_map(|(id, secret)| Some(format!("build secret {id}: {}", secret.resolve().err()?)));
        absent.chain(resolve_env(service).err()).next()
    };
    app.services.values().find_map(of_service)
}

/// The environment with its secrets read now; `PORT` is set where it is not.
fn resolve_env(service: &Service) -> Result<BTreeMap<String, SecretString>, String> {
    let mut env = BTreeMap::new();
    if let Some(port) = service.port {
        env.insert("PORT".to_owned(), SecretString::from(port.to_string()));
    }
    for (name, value) in &service.env {
        let value = match value {
            EnvValue::Literal(text) => SecretString::from(text.clone()),
            EnvValue::Secret(reference) => {
                reference.resolve().map_err(|why| format!("{name} of service {}: {why}", service.name))?
            }
        };
        env.insert(name.clone(), value);
    }
    Ok(env)
}

/// Equal digests mean that replacing one instance by another would change nothing. Keyed, because it stands in labels
/// that others may read and secrets go into it.
fn settings_digest(service: &Service, image: &ImageId, env: &BTreeMap<String, SecretString>, key: &str) -> String {
    let mut plain = serde_json::json!({
        "image": image,
        "command": service.command,
        "port": service.port,
        "memory": service.memory,
        "cpu": service.cpu_millis,
        "grace": service.stop_grace,
        "volumes": service.volumes,
    });
    // Which requests it gets may change while it runs; that it gets any is what its rollout goes by.
    if service.route.is_some() {
        plain["routed"] = true.into();
    }
    // They are switched with the instances.
    if !service.static_files.is_empty() {
        plain["static"] = serde_json::json!(service.static_files);
    }
    // HMAC takes keys of any length.
    let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(key.as_bytes()) else { return String::new() };
    mac.update(plain.to_string().as_bytes());
    for (name, value) in env {
        for part in [name.as_str(), value.expose_secret()] {
            mac.update(&(part.len() as u64).to_be_bytes());
            mac.update(part.as_bytes());
        }
    }
    let digest = mac.finalize().into_bytes();
    hex::encode(digest.get(..16).unwrap_or(&digest))
}
