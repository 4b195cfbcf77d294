//! After a 101: bytes both ways until both sides have ended, or the instance's budget for streams has.

use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncWriteExt, copy_bidirectional};

use super::instance::Claim;
use super::pool::Link;

/// Joins the client's side, once the 101 is on its way, to the instance's. Holds the claim all along.
pub async fn run(client: OnUpgrade, link: Box<Link>, claim: Claim) {
    let (claim, cut) = claim.into_stream();
    let copied = cut.run_until_cancelled(join(client, link)).await;
    match copied {
        Some(Ok(())) => {}
        Some(Err(error)) => tracing::debug!(instance = %claim.instance().id, %error, "tunnel broke"),
        None => tracing::debug!(instance = %claim.instance().id, "tunnel closed at the end of its budget"),
    }
}

async fn join(client: OnUpgrade, link: Box<Link>) -> std::io::Result<()> {
    let Some((mut instance, first_bytes)) = link.into_socket().await else {
        return Ok(());
    };
    let mut client = TokioIo::new(client.await.map_err(std::io::Error::other)?);
    client.write_all(&first_bytes).await?;
    copy_bidirectional(&mut client, &mut instance).await?;
    Ok(())
}
