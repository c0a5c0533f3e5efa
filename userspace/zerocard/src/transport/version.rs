// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Version negotiation: the first message of a connection, with capabilities as JSON.
//!
//! Used by the session. Unknown capabilities of a client are ignored, as the protocol wants it;
//! known ones have to have the right type.

use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::wire::{Body, MAX_FDS, MAX_TRANSFER};

const MAJOR: u16 = 0;
const MINOR: u16 = 1;
/// DMA maps that we announce; QEMU refuses a server that announces more.
const ANNOUNCED_MAPS: u32 = 65535;

#[derive(Serialize)]
struct Announcement {
    capabilities: ServerCapabilities,
}

#[derive(Serialize)]
struct ServerCapabilities {
    max_msg_fds: usize,
    max_data_xfer_size: usize,
    pgsizes: u64,
    max_dma_maps: u32,
}

#[derive(Deserialize, Default)]
struct ClientData {
    #[serde(default)]
    capabilities: ClientCapabilities,
}

#[derive(Deserialize, Default)]
struct ClientCapabilities {
    max_msg_fds: Option<u64>,
    max_data_xfer_size: Option<u64>,
    pgsizes: Option<u64>,
    max_dma_maps: Option<u64>,
}

/// Answers a VERSION message with the body of its reply.
pub(super) fn negotiate(mut body: Body<'_>) -> Result<Vec<u8>, Errno> {
    let major = body.u16()?;
    let minor = body.u16()?;
    if major != MAJOR {
        tracing::warn!("the client speaks vfio-user {major}.{minor}, this is {MAJOR}.{MINOR}");
        return Err(Errno::NOTSUP);
    }
    let ClientCapabilities {
        max_msg_fds,
        max_data_xfer_size,
        pgsizes,
        max_dma_maps,
    } = parse(body.0)?.capabilities;
    tracing::debug!(
        ?max_msg_fds,
        ?max_data_xfer_size,
        ?pgsizes,
        ?max_dma_maps,
        "client speaks vfio-user {major}.{minor}"
    );

    let announcement = Announcement {
        capabilities: ServerCapabilities {
            max_msg_fds: MAX_FDS,
            max_data_xfer_size: MAX_TRANSFER,
            pgsizes: 4096,
            max_dma_maps: ANNOUNCED_MAPS,
        },
    };
    let mut reply = Vec::new();
    reply.extend(MAJOR.to_le_bytes());
    reply.extend(minor.min(MINOR).to_le_bytes());
    serde_json::to_writer(&mut reply, &announcement).map_err(|_| Errno::IO)?;
    reply.push(0);
    Ok(reply)
}

/// Version data is optional; when it is there, it is a JSON object that ends with a zero byte.
fn parse(data: &[u8]) -> Result<ClientData, Errno> {
    if data.is_empty() {
        return Ok(ClientData::default());
    }
    let text = data.strip_suffix(&[0]).ok_or(Errno::INVAL)?;
    serde_json::from_slice(text).map_err(|error| {
        tracing::warn!("version data of the client: {error}");
        Errno::INVAL
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(major: u16, minor: u16, data: &[u8]) -> Result<Vec<u8>, Errno> {
        let mut body = Vec::new();
        body.extend(major.to_le_bytes());
        body.extend(minor.to_le_bytes());
        body.extend(data);
        negotiate(Body(&body))
    }

    #[test]
    fn the_lower_minor_wins_and_another_major_is_refused() {
        assert_eq!(version(0, 0, b"").unwrap()[..4], [0, 0, 0, 0]);
        assert_eq!(version(0, 9, b"{}\0").unwrap()[..4], [0, 0, 1, 0]);
        assert_eq!(version(1, 0, b"{}\0"), Err(Errno::NOTSUP));
    }

    #[test]
    fn version_data_is_json_with_a_zero_at_the_end() {
        let good = br#"{"capabilities":{"max_msg_fds":8,"write_multiple":true,"migration":{}}}"#;
        let mut terminated = good.to_vec();
        terminated.push(0);
        let reply = version(0, 1, &terminated).unwrap();
        let text = std::str::from_utf8(&reply[4..reply.len() - 1]).unwrap();
        assert!(text.contains(r#""max_msg_fds":16"#) && text.contains(r#""pgsizes":4096"#));
        for bad in [
            &good[..],
            b"{\0",
            b"[]\0x",
            b"\xff\0",
            b"{\"capabilities\":{\"pgsizes\":\"x\"}}\0",
        ] {
            assert_eq!(version(0, 1, bad), Err(Errno::INVAL), "{bad:?}");
        }
    }
}
