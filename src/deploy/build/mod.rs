//! From a [`Source`] to an image on the engine, the same content never twice.
//!
//! The image's key is known before anything is sent: a digest of the context as git has it, the Dockerfile, the
//! arguments and the base images. Where an image of that key exists, that is the whole build.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use secrecy::ExposeSecret;
use tokio_util::sync::CancellationToken;

use self::context::Context;
use self::dockerfile::Outline;
use self::images::Images;
use self::log::BuildLog;
use self::progress::Progress;
use self::session::{Secrets, Session, SessionError};
use self::upload::{Parameters, Refusal, Running};
use super::source::Source;
use crate::config::{Build, BuilderKind};
use crate::fail_point::hurried;
use crate::journal::DeployLog;
use crate::model::{AppName, DeploymentId, ImageId};
use crate::runtime::docker::Docker;

pub mod context;
mod context_tree;
mod dockerfile;
pub mod dockerignore;
mod failure;
mod images;
mod key;
mod log;
mod progress;
mod session;
mod upload;

/// After this long without a word from a build the engine is asked whether it is still there.
const SILENCE: Duration = Duration::from_secs(30);
/// For its answer; a machine that is busy building may take a while.
const PING: Duration = Duration::from_secs(10);
/// For the calls around a build.
const CALL: Duration = Duration::from_secs(30);

/// Builds images on one engine.
#[derive(Clone, Debug)]
pub struct Builder {
    docker: Docker,
}

/// What to build.
#[derive(Debug, Clone, Copy)]
pub struct BuildRequest<'a> {
    /// For whom: part of the image's name and labels.
    pub app: &'a AppName,
    /// Which deployment asks.
    pub deployment: DeploymentId,
    /// From what.
    pub source: &'a Source,
    /// How.
    pub build: &'a Build,
}

/// A built image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Artifact {
    /// Digest of everything it is made of: context after `.dockerignore`, Dockerfile, target, args, base.
    pub key: String,
    /// By content.
    pub image: ImageId,
    /// The base image's digest or id, as far as the Dockerfile names one that is on the engine.
    pub base: Option<String>,
    /// False when an image of the same key was there already.
    pub built: bool,
}

/// Why there is no image.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The deployment was cancelled; the engine's build is stopped.
    #[error("cancelled")]
    Cancelled,
    /// The build, its Dockerfile or its context is at fault, in one line; the rest is in the log.
    #[error("{0}")]
    Failed(String),
    /// The engine is.
    #[error("the Docker engine does not answer: {0}")]
    Unavailable(String),
}

/// What is known of a build before the engine is asked.
struct Recipe {
    /// Of the context.
    digest: String,
    dockerfile: Vec<u8>,
    outline: Outline,
}

/// Which builder makes it; BuildKit's with the connection it asks back on.
enum Chosen {
    Classic,
    Buildkit(Session),
}

impl Builder {
    /// Where the engine keeps what is built, when that can be seen from here.
    pub async fn storage_root(&self) -> Option<PathBuf> {
        self.docker.storage_root().await
    }

    /// A builder on this engine whose images carry its agent's id in name and labels.
    pub fn new(docker: Docker) -> Self {
        Self { docker }
    }

    /// The key of what would be built, without building: no upload, no engine call beyond looking up the base.
    pub async fn key(&self, request: BuildRequest<'_>) -> Result<String, BuildError> {
        let (recipe, _) = open(request).await?;
        self.key_of(&recipe, request.build).await
    }

    /// The image for `request`: found by its key, or built. Live output goes to `log`; cancelling stops the engine's
    /// build. There is no deadline here but the caller's, which is best set as a cancellation too: dropping the call
    /// also stops the build, but forgets what the classic builder has made so far.
    pub async fn build(
        &self,
        request: BuildRequest<'_>,
        log: &DeployLog,
        cancel: &CancellationToken,
    ) -> Result<Artifact, BuildError> {
        let images = self.images(request.app);
        let looking = async {
            let (recipe, context) = open(request).await?;
            check(&recipe.outline, request.build)?;
            let key = self.key_of(&recipe, request.build).await?;
            let found = within(images.find(&key)).await?;
            Ok((recipe, context, key, found))
        };
        let (recipe, context, key, found) = or_cancelled(cancel, looking).await?;
        let built = found.is_none();
        let (key, image) = match found {
            Some(image) => {
                log.line(format!("image {} has this content already: nothing to build", images.reference(&key)));
                (key, image)
            }
            None => {
                let image = self.make(request, &recipe.outline, context, &key, log, cancel).await?;
                (self.key_with_pulled_bases(request, &images, &recipe, key, &image).await?, image)
            }
        };
        let base = match recipe.outline.base() {
            Some(base) => within(self.image_identity(base)).await?,
            None => None,
        };
        Ok(Artifact { key, image, base, built })
    }

    /// The image of content of this key, when it was built before and is still there.
    pub async fn find(&self, app: &AppName, key: &str) -> Result<Option<ImageId>, BuildError> {
        within(self.images(app).find(key)).await
    }

    /// Whether the image is on the engine.
    pub async fn exists(&self, image: &ImageId) -> Result<bool, BuildError> {
        within(async { Ok(images::inspect(&self.docker.client(), &image.0).await?.is_some()) }).await
    }

    /// Removes our images of `app` that are not in `keep`; and what a killed build left behind. Returns how many went.
    /// An image that a container uses stays.
    pub async fn prune(&self, app: &AppName, keep: &[ImageId]) -> Result<usize, BuildError> {
        self.images(app).prune(keep).await
    }

    fn images<'a>(&'a self, app: &'a AppName) -> Images<'a> {
        Images { docker: self.docker.client(), agent: self.docker.agent_id(), app }
    }

    /// Builds it, with a log that is capped and knows which words not to repeat.
    async fn make(
        &self,
        request: BuildRequest<'_>,
        outline: &Outline,
        context: Context,
        key: &str,
        log: &DeployLog,
        cancel: &CancellationToken,
    ) -> Result<ImageId, BuildError> {
        let images = self.images(request.app);
        let secrets = resolve(request.build)?;
        let mut log = BuildLog::new(log, secrets.values().map(|secret| secret.expose_secret()));
        let chosen = or_cancelled(cancel, self.choose(request.build, outline, secrets, &mut log)).await?;
        let classic = matches!(chosen, Chosen::Classic);
        let parameters = self.parameters(request, &images, key, &chosen);
        let mut progress = Progress::default();
        let ended = or_cancelled(cancel, self.run(parameters, context, &mut progress, &mut log)).await;
        drop(chosen);
        let made = match ended {
            Ok(()) => within(images.find(key)).await,
            Err(error) => Err(error),
        };
        if classic {
            images.keep_stages(key, made.as_ref().ok().and_then(Option::as_ref), &progress.stage_images()).await;
        }
        if let Some(error) = &progress.error {
            let step = progress.step();
            let why = failure::explain(error, step.as_ref(), &request.build.dockerfile);
            return Err(BuildError::Failed(log.redacted(&why)));
        }
        made?.ok_or_else(|| {
            BuildError::Failed("the build ended without an image; its log tells how far it came".to_owned())
        })
    }

    /// Sends the context and follows the build to its end. What the engine says goes into `progress`.
    async fn run(
        &self,
        parameters: Parameters,
        context: Context,
        progress: &mut Progress,
        log: &mut BuildLog,
    ) -> Result<(), BuildError> {
        let write_tar = move |out: &mut dyn std::io::Write| context.write_tar(out);
        let mut running = match upload::start(self.docker.host(), parameters, write_tar).await {
            Ok(running) => running,
            Err(Refusal::Engine(text)) => {
                log.line(&format!("error: {text}"));
                progress.error = Some(text);
                return Ok(());
            }
            Err(Refusal::Context(error)) => return Err(unreadable(&error)),
            Err(Refusal::Unavailable(why)) => return Err(BuildError::Unavailable(why)),
        };
        let lost = self.follow(&mut running, progress, log).await;
        let sent = running.context().await;
        match (lost, sent) {
            (_, Err(error)) => Err(unreadable(&error)),
            (Err(why), Ok(_)) => Err(BuildError::Unavailable(why)),
            (Ok(()), Ok(_)) => Ok(()),
        }
    }

    async fn follow(&self, running: &mut Running, progress: &mut Progress, log: &mut BuildLog) -> Result<(), String> {
        loop {
            match tokio::time::timeout(hurried(SILENCE), running.line()).await {
                Ok(Ok(Some(line))) => progress.line(&line).iter().for_each(|line| log.line(line)),
                Ok(Ok(None)) => return Ok(()),
                Ok(Err(error)) => return Err(format!("the connection broke during the build: {error}")),
                Err(_) => match tokio::time::timeout(hurried(PING), self.docker.client().ping()).await {
                    Ok(Ok(_)) => {}
                    Ok(Err(error)) => return Err(format!("it is gone during the build: {error}")),
                    Err(_) => return Err("it stopped answering during the build".to_owned()),
                },
            }
        }
    }

    /// BuildKit, where it may be and the engine has it.
    async fn choose(
        &self,
        build: &Build,
        outline: &Outline,
        secrets: Secrets,
        log: &mut BuildLog,
    ) -> Result<Chosen, BuildError> {
        let needs = if !secrets.is_empty() { Some("build secrets") } else { outline.mounts.then_some("RUN --mount") };
        let classic = || match needs {
            Some(what) => Err(BuildError::Failed(failure::needs_buildkit(&build.dockerfile, what))),
            None => Ok(Chosen::Classic),
        };
        if build.builder == BuilderKind::Classic {
            return classic();
        }
        match within(async { Ok(Session::open(self.docker.host(), secrets).await) }).await? {
            Ok(session) => Ok(Chosen::Buildkit(session)),
            Err(SessionError::Unavailable(why)) => Err(BuildError::Unavailable(why)),
            Err(SessionError::NoBuildkit(why)) if build.builder == BuilderKind::Buildkit => Err(BuildError::Failed(
                format!("this engine has no BuildKit ({why}): set builder = \"auto\" or \"classic\", or upgrade it"),
            )),
            Err(SessionError::NoBuildkit(why)) => {
                log.line(&format!("this engine has no BuildKit ({why}): using the classic builder"));
                classic()
            }
        }
    }

    fn parameters(&self, request: BuildRequest<'_>, images: &Images<'_>, key: &str, chosen: &Chosen) -> Parameters {
        let build = request.build;
        let mut parameters = Parameters::default();
        parameters.set("dockerfile", &build.dockerfile);
        parameters.set("t", &images.reference(key));
        parameters.set("target", build.target.as_deref().unwrap_or_default());
        parameters.set_map("buildargs", &build.args);
        parameters.set_map("labels", &images.labels(&request, key));
        match chosen {
            Chosen::Buildkit(session) => {
                parameters.set("version", "2");
                parameters.set("session", session.id());
            }
            Chosen::Classic => {
                parameters.set("version", "1");
                // No container of a step stays, whatever becomes of the step.
                parameters.set("rm", "1");
                parameters.set("forcerm", "1");
                parameters.set("extrahosts", &images.mark());
            }
        }
        parameters
    }

    async fn key_of(&self, recipe: &Recipe, build: &Build) -> Result<String, BuildError> {
        let mut bases = BTreeMap::new();
        for image in recipe.outline.images() {
            bases.insert(image.to_owned(), within(self.image_identity(image)).await?);
        }
        Ok(key::digest(&recipe.digest, &recipe.dockerfile, build, &bases))
    }

    /// The classic builder pulls base images into the engine, so that the next look at the same content finds them and
    /// another key: the image gets that name too.
    async fn key_with_pulled_bases(
        &self,
        request: BuildRequest<'_>,
        images: &Images<'_>,
        recipe: &Recipe,
        key: String,
        image: &ImageId,
    ) -> Result<String, BuildError> {
        let now = self.key_of(recipe, request.build).await?;
        if now != key {
            within(images.name(&image.0, images::tag(&now).to_owned())).await?;
        }
        Ok(now)
    }

    /// The id of an image that is on the engine.
    async fn image_identity(&self, image: &str) -> Result<Option<String>, BuildError> {
        Ok(images::inspect(&self.docker.client(), image).await?.and_then(|found| found.id))
    }
}

/// Reads the context on a thread that may block.
async fn open(request: BuildRequest<'_>) -> Result<(Recipe, Context), BuildError> {
    let (source, build) = (request.source.clone(), request.build.clone());
    let opening = tokio::task::spawn_blocking(move || {
        let context = Context::open(&source, &build).map_err(BuildError::Failed)?;
        let recipe = Recipe {
            digest: context.digest().to_owned(),
            dockerfile: context.dockerfile().to_vec(),
            outline: Outline::read(context.dockerfile(), &build.args, build.target.as_deref()),
        };
        Ok((recipe, context))
    });
    opening.await.unwrap_or_else(|error| Err(BuildError::Failed(format!("the context could not be read: {error}"))))
}

async fn or_cancelled<T>(
    cancel: &CancellationToken,
    work: impl Future<Output = Result<T, BuildError>>,
) -> Result<T, BuildError> {
    cancel.run_until_cancelled(work).await.unwrap_or(Err(BuildError::Cancelled))
}

/// What is refused whichever builder takes it.
fn check(outline: &Outline, build: &Build) -> Result<(), BuildError> {
    match &outline.syntax {
        Some(image) if !dockerfile::is_allowed_frontend(image) => Err(BuildError::Failed(format!(
            "{}: frontend not allowed: {image} (a `# syntax=` line may only name docker/dockerfile)",
            build.dockerfile
        ))),
        _ => Ok(()),
    }
}

fn resolve(build: &Build) -> Result<Secrets, BuildError> {
    let read = |(id, reference): (&String, &crate::config::SecretRef)| {
        let secret = reference.resolve().map_err(|why| BuildError::Failed(format!("build secret {id}: {why}")))?;
        Ok((id.clone(), secret))
    };
    build.secrets.iter().map(read).collect()
}

fn unreadable(error: &std::io::Error) -> BuildError {
    BuildError::Failed(format!("the build context could not be read: {error}"))
}

async fn within<T>(call: impl Future<Output = Result<T, BuildError>>) -> Result<T, BuildError> {
    match tokio::time::timeout(hurried(CALL), call).await {
        Ok(result) => result,
        Err(_) => Err(BuildError::Unavailable(format!("no answer within {} s", CALL.as_secs()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_strange_frontend_is_refused() {
        let build = Build {
            dockerfile: "Dockerfile".to_owned(),
            context: ".".to_owned(),
            target: None,
            args: BTreeMap::new(),
            secrets: BTreeMap::new(),
            builder: BuilderKind::Auto,
        };
        let outline = Outline::read(b"# syntax=evil/x\nFROM a", &BTreeMap::new(), None);
        let error = check(&outline, &build).unwrap_err().to_string();
        assert!(error.contains("frontend not allowed: evil/x"), "{error}");
    }
}
