//! A conversation with `git-upload-pack`, the server's side of a fetch.
//!
//! Version 2 (gitprotocol-v2(5)) where the server has it, else version 0 (gitprotocol-pack(5)). Either way there
//! is one round: everything we want and a sample of what we have goes out together with `done`, so that a fetch
//! costs one request after the greeting.

use git2::Oid;

use super::http::HttpWire;
use super::limits::{Limits, Trouble, one_line};
use super::pack::PackSink;
use super::pkt::{DELIMITER, FLUSH, Pkt, PktReader, line, push_line};
use super::ssh::SshWire;

const AGENT: &str = concat!("agent=longshore/", env!("CARGO_PKG_VERSION"));
/// More refs than any server is believed.
const MOST_REFS: usize = 2_000_000;

/// How bytes get to the server and back.
pub(super) enum Wire {
    /// Each request is a POST, its answer the body.
    Http(HttpWire),
    /// One pipe for all.
    Ssh(Box<SshWire>),
}

/// What the server said on connecting.
enum Greeting {
    /// Every ref, and the server's capabilities.
    V0 { refs: Vec<(Oid, String)>, capabilities: Vec<String> },
    /// Refs are asked for by prefix, objects by any id.
    V2,
}

/// An open conversation.
pub(super) struct Session {
    wire: Wire,
    reader: PktReader,
    host: String,
    greeting: Greeting,
}

impl Session {
    /// Reads the greeting that `reader` begins with.
    pub async fn open(wire: Wire, reader: PktReader, host: String, limits: &Limits) -> Result<Self, Trouble> {
        limits.check()?;
        let mut session = Self { wire, reader, host, greeting: Greeting::V2 };
        session.greeting = session.read_greeting().await?;
        Ok(session)
    }

    async fn read_greeting(&mut self) -> Result<Greeting, Trouble> {
        let mut first = self.read().await?;
        if matches!(&first, Pkt::Data(data) if data.starts_with(b"# service=")) {
            self.read().await?; // the flush after the service's name
            first = self.read().await?;
        }
        if matches!(&first, Pkt::Data(data) if line(data) == b"version 2") {
            return self.read_v2_capabilities().await;
        }
        if matches!(&first, Pkt::Data(data) if line(data) == b"version 1") {
            first = self.read().await?;
        }
        self.read_v0_refs(first).await
    }

    async fn read_v2_capabilities(&mut self) -> Result<Greeting, Trouble> {
        loop {
            match self.read().await? {
                Pkt::Data(data) if line(&data) == b"object-format=sha256" => return Err(self.is_sha256()),
                Pkt::Data(_) | Pkt::Mark => {}
                Pkt::Flush => return Ok(Greeting::V2),
            }
        }
    }

    async fn read_v0_refs(&mut self, first: Pkt) -> Result<Greeting, Trouble> {
        let mut refs = Vec::new();
        let mut capabilities = Vec::new();
        let mut next = first;
        while let Pkt::Data(data) = next {
            let (entry, rest) = match data.iter().position(|&b| b == 0) {
                Some(nul) => (&data[..nul], &data[nul + 1..]),
                None => (&data[..], &[][..]),
            };
            if !rest.is_empty() {
                capabilities = String::from_utf8_lossy(line(rest)).split(' ').map(str::to_owned).collect();
                if capabilities.iter().any(|c| c == "object-format=sha256") {
                    return Err(self.is_sha256());
                }
            }
            // "capabilities^{}" stands for no ref at all; "shallow ID" is of no use to us.
            if !entry.starts_with(b"shallow ") {
                let (oid, name) = parse_ref(entry).ok_or_else(|| self.not_git())?;
                if name != "capabilities^{}" {
                    refs.push((oid, name));
                }
            }
            if refs.len() > MOST_REFS {
                return Err(Trouble::Failed(format!("{} lists more than {MOST_REFS} refs", self.host)));
            }
            next = self.read().await?;
        }
        Ok(Greeting::V0 { refs, capabilities })
    }

    /// The object that a full ref name stands for on the server.
    pub async fn resolve(&mut self, name: &str) -> Result<Option<Oid>, Trouble> {
        if let Greeting::V0 { refs, .. } = &self.greeting {
            return Ok(refs.iter().find(|(_, known)| known == name).map(|(oid, _)| *oid));
        }
        let mut request = Vec::new();
        push_line(&mut request, "command=ls-refs");
        push_line(&mut request, AGENT);
        request.extend_from_slice(DELIMITER);
        push_line(&mut request, &format!("ref-prefix {name}"));
        request.extend_from_slice(FLUSH);
        self.ask(request).await?;
        let mut found = None;
        loop {
            match self.read().await? {
                Pkt::Data(data) => {
                    let entry = line(&data);
                    if entry.starts_with(b"unborn ") {
                        continue;
                    }
                    let (oid, known) = parse_ref(entry).ok_or_else(|| self.not_git())?;
                    if known == name {
                        found = Some(oid);
                    }
                }
                Pkt::Mark => {}
                Pkt::Flush => return Ok(found),
            }
        }
    }

    /// Whether asking for `oid` by id can succeed.
    pub fn gives_out(&self, oid: Oid) -> bool {
        match &self.greeting {
            Greeting::V2 => true,
            Greeting::V0 { refs, capabilities } => {
                let any = |c: &String| c == "allow-reachable-sha1-in-want" || c == "allow-any-sha1-in-want";
                capabilities.iter().any(any) || refs.iter().any(|(tip, _)| *tip == oid)
            }
        }
    }

    /// Fetches `want` and all it is made of that is not below `haves`, into `sink`.
    pub async fn fetch(mut self, want: Oid, haves: &[Oid], sink: &mut PackSink) -> Result<(), Trouble> {
        let request = match &self.greeting {
            Greeting::V2 => v2_request(want, haves),
            Greeting::V0 { capabilities, .. } => v0_request(want, haves, capabilities).ok_or_else(|| self.too_old())?,
        };
        self.ask(request).await?;
        let v2 = matches!(self.greeting, Greeting::V2);
        let mut begun = false;
        loop {
            let data = match self.read().await? {
                Pkt::Data(data) => data,
                Pkt::Mark => continue,
                Pkt::Flush if begun => return Ok(()),
                Pkt::Flush if v2 => return Err(Trouble::Failed(format!("{} sent no pack", self.host))),
                Pkt::Flush => continue,
            };
            match data.first() {
                // Version 2 sends its sections first, version 0 its ACK and NAK lines: neither starts below 4.
                Some(1) => {
                    begun = true;
                    sink.write(data).await?;
                }
                Some(2) => begun = true,
                Some(3) => {
                    return Err(Trouble::Failed(format!("{} says: {}", self.host, one_line(&data[1..]))));
                }
                _ if begun => return Err(self.not_git()),
                _ => {}
            }
        }
    }

    async fn ask(&mut self, request: Vec<u8>) -> Result<(), Trouble> {
        match &mut self.wire {
            Wire::Http(http) => self.reader = http.post(request).await?,
            Wire::Ssh(ssh) => ssh.write(&request).await?,
        }
        Ok(())
    }

    /// The next packet; `ERR` packets become errors, and a dead ssh is asked what it died of.
    async fn read(&mut self) -> Result<Pkt, Trouble> {
        match self.reader.read().await {
            Ok(Pkt::Data(data)) if data.starts_with(b"ERR ") => {
                let text = one_line(&data[4..]);
                if text.contains("not our ref") || text.contains("not valid") || text.contains("unadvertised") {
                    return Err(Trouble::NotGiven);
                }
                Err(Trouble::Failed(format!("{} says: {text}", self.host)))
            }
            Err(Trouble::Closed(seen)) => match &mut self.wire {
                Wire::Ssh(ssh) => Err(Trouble::Failed(ssh.explain().await.unwrap_or(seen))),
                Wire::Http(_) => Err(Trouble::Failed(seen)),
            },
            other => other,
        }
    }

    fn not_git(&self) -> Trouble {
        Trouble::Failed(format!("{} does not speak the git protocol", self.host))
    }

    fn too_old(&self) -> Trouble {
        Trouble::Failed(format!("the git server at {} is too old: it has no side-band-64k", self.host))
    }

    fn is_sha256(&self) -> Trouble {
        Trouble::Failed(format!("the repository at {} uses SHA-256 object names, which are not supported", self.host))
    }
}

fn v2_request(want: Oid, haves: &[Oid]) -> Vec<u8> {
    let mut request = Vec::new();
    push_line(&mut request, "command=fetch");
    push_line(&mut request, AGENT);
    request.extend_from_slice(DELIMITER);
    for argument in ["thin-pack", "no-progress", "ofs-delta"] {
        push_line(&mut request, argument);
    }
    push_line(&mut request, &format!("want {want}"));
    push_haves(&mut request, haves);
    request.extend_from_slice(FLUSH);
    request
}

/// `None` when the server cannot keep its messages apart from the pack.
fn v0_request(want: Oid, haves: &[Oid], capabilities: &[String]) -> Option<Vec<u8>> {
    let known = |name: &&str| capabilities.iter().any(|c| c == name);
    known(&"side-band-64k").then_some(())?;
    let mut asked: Vec<&str> =
        ["side-band-64k", "thin-pack", "no-progress", "ofs-delta"].into_iter().filter(known).collect();
    asked.push(AGENT);
    let mut request = Vec::new();
    push_line(&mut request, &format!("want {want} {}", asked.join(" ")));
    request.extend_from_slice(FLUSH);
    push_haves(&mut request, haves);
    Some(request)
}

fn push_haves(request: &mut Vec<u8>, haves: &[Oid]) {
    for have in haves {
        push_line(request, &format!("have {have}"));
    }
    push_line(request, "done");
}

/// `ID NAME`, and in version 2 perhaps attributes behind it.
fn parse_ref(entry: &[u8]) -> Option<(Oid, String)> {
    // A name that is no UTF-8 is a ref we never ask for.
    let text = String::from_utf8_lossy(line(entry));
    let (oid, rest) = text.split_once(' ')?;
    let name = rest.split(' ').next()?;
    let oid = (oid.len() == 40).then(|| Oid::from_str(oid).ok())??;
    Some((oid, name.to_owned()))
}
