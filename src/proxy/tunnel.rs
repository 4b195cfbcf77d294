//! After a 101: bytes both ways until both sides have ended, or the instance's budget for streams has.

use std::sync::Arc;

use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncWriteExt, copy_bidirectional};
use tokio_util::io::{InspectReader, InspectWriter};

use super::access_log::{End, PassedBytes, Visit};
use super::instance::Claim;
use super::pool::Link;

/// Joins the client's side, once the 101 is on its way, to the instance's. Holds the claim all along.
pub async fn run(client: OnUpgrade, link: Box<Link>, claim: Claim, mut visit: Visit) {
    let (claim, cut) = claim.into_stream();
    // Dropped in the middle, it is the proxy that goes.
    visit.ends(End::TimeOver);
    let copied = cut.run_until_cancelled(join(client, link, visit.bytes().unwrap_or_default())).await;
    match copied {
        Some(Ok(())) => visit.ends(End::Complete),
        Some(Err(error)) => {
            visit.ends(End::Broken);
            tracing::debug!(instance = %claim.instance().id, %error, "tunnel broke");
        }
        None => tracing::debug!(instance = %claim.instance().id, "tunnel closed at the end of its budget"),
    }
}

async fn join(client: OnUpgrade, link: Box<Link>, passed: Arc<PassedBytes>) -> std::io::Result<()> {
    let Some((mut instance, first_bytes)) = link.into_socket().await else {
        return Ok(());
    };
    let client = TokioIo::new(client.await.map_err(std::io::Error::other)?);
    let client = InspectReader::new(client, |bytes: &[u8]| passed.add_received(bytes.len()));
    let mut client = InspectWriter::new(client, |bytes: &[u8]| passed.add_sent(bytes.len()));
    client.write_all(&first_bytes).await?;
    copy_bidirectional(&mut client, &mut instance).await?;
    Ok(())
}
