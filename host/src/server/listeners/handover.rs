//! What a gateway hands over to the process that succeeds it: its listening sockets and the lock of
//! its ledger.
//!
//! Owns the form of the message. The bytes go over a pair of connected Unix sockets, and the file
//! descriptors beside them. Invariant: nothing of the message is used before all of it has arrived.

use std::io::{self, Read, Write};

use serde::{Deserialize, Serialize};

use crate::config::ListenOptions;
use crate::listener::{
    HandedOverSocket, HandedOverSockets, SocketFileOwnership, SocketOwner, SocketPurpose,
};
use crate::platform::{BlockingUnixStream, Descriptor, receive_descriptors, send_descriptors};
use crate::values::limits::HANDED_OVER_FILES;

/// The largest message that is read.
const MESSAGE_BYTES: u32 = 1024 * 1024;

/// What a gateway hands over to the process that succeeds it.
#[derive(Debug)]
pub(crate) struct Handover {
    /// The sockets that it listens on.
    pub(crate) sockets: HandedOverSockets,
    /// The lock of the ledger, which both processes hold from then on.
    pub(crate) ledger_lock: Option<Descriptor>,
    /// Who removes the files of Unix sockets.
    pub(crate) file_ownership: SocketFileOwnership,
}

impl Default for Handover {
    fn default() -> Self {
        Self {
            sockets: HandedOverSockets::default(),
            ledger_lock: None,
            file_ownership: SocketFileOwnership::own(),
        }
    }
}

/// The descriptions of the files, in the order in which they are sent. The lock is the last.
#[derive(Serialize, Deserialize)]
struct HandoverMessage {
    sockets: Vec<SocketDescription>,
    ledger_lock: bool,
}

#[derive(Serialize, Deserialize)]
struct SocketDescription {
    purpose: SocketPurpose,
    owner: SocketOwner,
    #[serde(default)]
    options: Option<ListenOptions>,
}

impl Handover {
    /// Returns what the service manager hands over. Must be called once, before this process opens
    /// files.
    ///
    /// # Errors
    /// The environment does not describe it in the right way.
    pub(crate) fn from_service_manager() -> io::Result<Self> {
        Ok(Self {
            sockets: HandedOverSockets::from_service_manager()?,
            ..Self::default()
        })
    }

    /// Sends it over `channel`.
    ///
    /// # Errors
    /// There are too many sockets, or the other process is gone.
    pub(crate) fn send(&self, mut channel: &BlockingUnixStream) -> io::Result<()> {
        let sockets = self.sockets.0.iter();
        let message = HandoverMessage {
            sockets: sockets
                .clone()
                .map(|handed| SocketDescription {
                    purpose: handed.purpose.clone(),
                    owner: handed.owner,
                    options: handed.options.clone(),
                })
                .collect(),
            ledger_lock: self.ledger_lock.is_some(),
        };
        let files: Vec<&Descriptor> = sockets
            .map(|handed| &handed.socket)
            .chain(&self.ledger_lock)
            .collect();
        if files.len() > HANDED_OVER_FILES {
            let message = format!(
                "expected at most {HANDED_OVER_FILES} sockets, found {}",
                files.len()
            );
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        }
        let text = serde_json::to_vec(&message)?;
        let length = u32::try_from(text.len()).unwrap_or(u32::MAX).to_be_bytes();
        send_descriptors(channel, &length, &files)?;
        channel.write_all(&text)
    }

    /// Receives what [`Handover::send`] sent over `channel`.
    ///
    /// # Errors
    /// The other process is gone, or is of another version that sends something else.
    pub(crate) fn receive(mut channel: &BlockingUnixStream) -> io::Result<Self> {
        let mut length = [0; size_of::<u32>()];
        let (received, mut files) = receive_descriptors(channel, &mut length, HANDED_OVER_FILES)?;
        channel.read_exact(&mut length[received..])?;
        let length = u32::from_be_bytes(length);
        if length > MESSAGE_BYTES {
            return Err(invalid_message());
        }
        let mut text = vec![0; length as usize];
        channel.read_exact(&mut text)?;
        let message: HandoverMessage = serde_json::from_slice(&text)?;
        if files.len() != message.sockets.len() + usize::from(message.ledger_lock) {
            return Err(invalid_message());
        }
        let ledger_lock = if message.ledger_lock {
            files.pop()
        } else {
            None
        };
        let file_ownership = SocketFileOwnership::of_another();
        let sockets = message.sockets.into_iter().zip(files);
        let sockets = sockets.map(|(description, socket)| HandedOverSocket {
            purpose: description.purpose,
            owner: description.owner,
            file_ownership: file_ownership.clone(),
            options: description.options,
            socket,
        });
        Ok(Self {
            sockets: HandedOverSockets(sockets.collect()),
            ledger_lock,
            file_ownership,
        })
    }
}

fn invalid_message() -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        "expected the sockets of another gateway, found something else",
    )
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn sockets_and_the_lock_arrive_with_their_purposes() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let (one, other) = BlockingUnixStream::pair().expect("two sockets");
        let handover = Handover {
            sockets: HandedOverSockets(vec![HandedOverSocket {
                purpose: SocketPurpose::Service("a".to_owned()),
                owner: SocketOwner::Gateway,
                file_ownership: SocketFileOwnership::own(),
                options: None,
                socket: listener.into(),
            }]),
            ledger_lock: Some(one.try_clone().expect("any file").into()),
            ..Handover::default()
        };
        handover.send(&one).expect("it is sent");
        let mut received = Handover::receive(&other).expect("it arrives");
        assert!(received.ledger_lock.is_some());
        let handed = received.sockets.0.pop().expect("a socket");
        assert_eq!(handed.purpose, SocketPurpose::Service("a".to_owned()));
        // The received socket listens when the sent one is closed.
        drop(handover);
        assert!(TcpStream::connect(address).is_ok());
        drop(handed);
        assert!(TcpStream::connect(address).is_err());
    }

    #[test]
    fn something_else_is_rejected() {
        for bytes in [
            b"".as_slice(),
            b"\0\0",
            b"\xff\xff\xff\xff{}",
            b"\0\0\0\x02{}",
            b"\0\0\0\x25{\"sockets\":[],\"ledger_lock\":true }   ",
        ] {
            let (mut one, other) = BlockingUnixStream::pair().expect("two sockets");
            one.write_all(bytes).expect("they are sent");
            drop(one);
            assert!(Handover::receive(&other).is_err(), "{bytes:?}");
        }
    }
}
