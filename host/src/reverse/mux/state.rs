//! The state of a session, and how frames and handles change it.
//!
//! Does not know the connection: `driver` reads and writes it. Invariant: the lock is held for no
//! longer than a copy of a frame, and no waker is called while it is held.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::time::Instant;

use bytes::{BufMut, BytesMut};
use tokio::sync::{Notify, watch};

use super::bounds::{ACKNOWLEDGE_TIMEOUT, CONTROL_FRAMES, INITIAL_CREDIT, WINDOW_BYTES};
use super::end::{MuxEnd, MuxViolation};
use super::header::{ACK, FIN, MuxFrameKind, MuxHeader, RST, SYN};
use super::stream_state::{MuxStreamState, ReceiveDirection, SendDirection, StreamOutput};

/// What each stream is given beyond the protocol's initial credit.
const FURTHER_CREDIT: u32 = WINDOW_BYTES - INITIAL_CREDIT;

/// Which side of a session this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MuxSide {
    /// It opens streams, with odd ids.
    Opener,
    /// It accepts the streams of the other side.
    Acceptor,
}

/// How far a session is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum MuxPhase {
    Open,
    /// Either side announced that it takes no more streams.
    Closing,
    Ended(MuxEnd),
}

/// What handles, streams and the driver of a session share.
#[derive(Debug)]
pub(super) struct MuxShared {
    state: Mutex<MuxState>,
    pub(super) phase: watch::Sender<MuxPhase>,
    /// The number of streams.
    pub(super) count: watch::Sender<usize>,
    pub(super) accepted: Notify,
    pub(super) output: Notify,
    pub(super) room: Notify,
    pub(super) pong: Notify,
    pub(super) close: Notify,
}

#[derive(Debug)]
pub(super) struct MuxState {
    side: MuxSide,
    streams_max: usize,
    streams: HashMap<u32, MuxStreamState>,
    next_id: u32,
    /// Streams that the peer opened and that no handle has yet.
    waiting: VecDeque<u32>,
    control: VecDeque<MuxHeader>,
    /// Streams that have something to send, in their order.
    ready: VecDeque<u32>,
    /// The last ping, until it is answered.
    ping: Option<u32>,
    pings: u32,
    accepts_streams: bool,
    /// Whether the peer was told that no more streams are accepted.
    has_announced: bool,
    /// Whether the peer told this side so.
    has_peer_announced: bool,
    /// The code of the last frame, once the session is about to end.
    farewell: Option<u32>,
}

/// What follows a header.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum FrameBody {
    None,
    /// Data of a stream.
    Data {
        stream: u32,
        length: u32,
    },
}

impl MuxShared {
    pub(super) fn new(side: MuxSide, streams_max: usize) -> Self {
        Self {
            state: Mutex::new(MuxState {
                side,
                streams_max,
                streams: HashMap::new(),
                next_id: 1,
                waiting: VecDeque::new(),
                control: VecDeque::new(),
                ready: VecDeque::new(),
                ping: None,
                pings: 0,
                accepts_streams: side == MuxSide::Acceptor,
                has_announced: false,
                has_peer_announced: false,
                farewell: None,
            }),
            phase: watch::Sender::new(MuxPhase::Open),
            count: watch::Sender::new(0),
            accepted: Notify::new(),
            output: Notify::new(),
            room: Notify::new(),
            pong: Notify::new(),
            close: Notify::new(),
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, MuxState> {
        // A panic elsewhere leaves frames and counts that are whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notifies those that wait for the number of streams. The lock must not be held.
    pub(super) fn publish_count(&self) {
        let count = self.lock().streams.len();
        self.count.send_if_modified(|known| {
            let is_other = *known != count;
            *known = count;
            is_other
        });
    }

    pub(super) fn has_ended(&self) -> bool {
        matches!(*self.phase.borrow(), MuxPhase::Ended(_))
    }

    /// Handles a header that was received. Its body, if it has one, is read next.
    ///
    /// # Errors
    /// The session ends.
    pub(super) fn receive_header(&self, header: MuxHeader) -> Result<FrameBody, MuxEnd> {
        match header.kind {
            MuxFrameKind::Ping => {
                self.receive_ping(header);
                Ok(FrameBody::None)
            }
            MuxFrameKind::GoAway if header.length == 0 => {
                self.lock().has_peer_announced = true;
                self.leave_open();
                Ok(FrameBody::None)
            }
            MuxFrameKind::GoAway => Err(MuxEnd::EndedByPeer(header.length)),
            MuxFrameKind::Data | MuxFrameKind::WindowUpdate => self.receive_of_stream(header),
        }
    }

    /// Notes that no more streams can be opened.
    pub(super) fn leave_open(&self) {
        self.phase.send_if_modified(|phase| {
            let is_open = *phase == MuxPhase::Open;
            if is_open {
                *phase = MuxPhase::Closing;
            }
            is_open
        });
    }

    fn receive_ping(&self, header: MuxHeader) {
        let mut state = self.lock();
        if header.has(SYN) {
            let pong = MuxHeader::new(MuxFrameKind::Ping, ACK, 0, header.length);
            state.control.push_back(pong);
            drop(state);
            self.output.notify_one();
        } else if state.ping == Some(header.length) {
            state.ping = None;
            drop(state);
            self.pong.notify_one();
        }
    }

    fn receive_of_stream(&self, header: MuxHeader) -> Result<FrameBody, MuxEnd> {
        let mut state = self.lock();
        if header.has(SYN) {
            state.open_by_peer(header)?;
        }
        let wakers = state.apply(header)?;
        drop(state);
        wake(wakers);
        if header.has(SYN) {
            self.accepted.notify_one();
        }
        if header.has(SYN) || header.kind == MuxFrameKind::WindowUpdate {
            self.output.notify_one();
        }
        if header.flags != 0 {
            self.publish_count();
        }
        Ok(match header.kind {
            MuxFrameKind::Data if header.length > 0 => FrameBody::Data {
                stream: header.stream,
                length: header.length,
            },
            _ => FrameBody::None,
        })
    }

    /// Stores data of a stream, for which the peer had credit.
    pub(super) fn receive_data(&self, stream: u32, data: &[u8]) {
        let mut state = self.lock();
        let Some(stream) = state.streams.get_mut(&stream) else {
            return;
        };
        stream.receive(data);
        let reader = stream.reader.take();
        drop(state);
        wake([reader]);
    }

    /// Notes that the peer sends no more on a stream.
    pub(super) fn receive_end(&self, id: u32) {
        let mut state = self.lock();
        let Some(stream) = state.streams.get_mut(&id) else {
            return;
        };
        if stream.receiving == ReceiveDirection::Open {
            stream.receiving = ReceiveDirection::Ended;
        }
        let reader = stream.reader.take();
        state.remove_if_over(id);
        drop(state);
        wake([reader]);
        self.publish_count();
    }

    /// Ends the session for every handle and stream.
    pub(super) fn end(&self, end: MuxEnd) {
        self.phase.send_replace(MuxPhase::Ended(end));
        let mut wakers = Vec::new();
        let mut state = self.lock();
        while let Some(id) = state.next_waiting() {
            state.streams.remove(&id);
        }
        for stream in state.streams.values_mut() {
            stream.reset_by_end();
            wakers.extend([stream.reader.take(), stream.writer.take()]);
        }
        state
            .streams
            .retain(|_, stream| stream.dropped_at.is_none());
        drop(state);
        wake(wakers);
        self.accepted.notify_one();
        self.publish_count();
    }
}

impl MuxState {
    pub(super) fn streams(&self) -> usize {
        self.streams.len()
    }

    pub(super) fn has_room(&self) -> bool {
        self.streams.len() < self.streams_max
    }

    pub(super) fn has_room_for_control(&self) -> bool {
        self.control.len() < CONTROL_FRAMES
    }

    pub(super) fn stream(&mut self, id: u32) -> Option<&mut MuxStreamState> {
        self.streams.get_mut(&id)
    }

    /// Opens a stream. Its id is unique as long as it is odd: 2^31 of them last.
    pub(super) fn open(&mut self, now: Instant) -> Option<u32> {
        let id = self.next_id;
        self.next_id = id.checked_add(2)?;
        self.streams.insert(id, MuxStreamState::new(0, Some(now)));
        let opening = MuxHeader::new(MuxFrameKind::WindowUpdate, SYN, id, FURTHER_CREDIT);
        self.control.push_back(opening);
        Some(id)
    }

    pub(super) fn next_waiting(&mut self) -> Option<u32> {
        self.waiting.pop_front()
    }

    pub(super) fn has_peer_announced(&self) -> bool {
        self.has_peer_announced
    }

    pub(super) fn accepts_streams(&self) -> bool {
        self.accepts_streams
    }

    /// Refuses all streams that the peer opens from now on.
    pub(super) fn stop_accepting(&mut self) {
        self.accepts_streams = false;
        self.announce_end();
    }

    /// Queues the frame that announces that no more streams are accepted, unless it was already.
    pub(super) fn announce_end(&mut self) {
        if !self.has_announced {
            self.has_announced = true;
            self.control
                .push_back(MuxHeader::new(MuxFrameKind::GoAway, 0, 0, 0));
        }
    }

    /// Makes the frame with this code the last one.
    pub(super) fn say_farewell(&mut self, code: u32) {
        self.farewell = Some(code);
    }

    /// Queues a ping, whose answer is awaited from here on.
    pub(super) fn start_ping(&mut self) {
        self.pings = self.pings.wrapping_add(1);
        self.ping = Some(self.pings);
        self.control
            .push_back(MuxHeader::new(MuxFrameKind::Ping, SYN, 0, self.pings));
    }

    pub(super) fn is_ping_answered(&self) -> bool {
        self.ping.is_none()
    }

    /// Opens a stream that the peer asks for, or refuses it.
    fn open_by_peer(&mut self, header: MuxHeader) -> Result<(), MuxViolation> {
        let id = header.stream;
        let is_of_peer = id != 0 && (id % 2 == 1) == (self.side == MuxSide::Acceptor);
        if !is_of_peer || self.streams.contains_key(&id) {
            return Err(MuxViolation::StreamId(id));
        }
        if !self.accepts_streams || !self.has_room() {
            self.control
                .push_back(MuxHeader::new(MuxFrameKind::WindowUpdate, RST, id, 0));
            return Ok(());
        }
        self.streams.insert(id, MuxStreamState::new(0, None));
        self.waiting.push_back(id);
        let accepted = MuxHeader::new(MuxFrameKind::WindowUpdate, ACK, id, FURTHER_CREDIT);
        self.control.push_back(accepted);
        Ok(())
    }

    /// Applies a frame of a stream. Frames of a stream that was forgotten are ignored.
    fn apply(&mut self, header: MuxHeader) -> Result<[Option<Waker>; 2], MuxViolation> {
        let id = header.stream;
        let Some(stream) = self.streams.get_mut(&id) else {
            let is_too_long = header.kind == MuxFrameKind::Data && header.length > WINDOW_BYTES;
            return if is_too_long {
                Err(MuxViolation::Credit {
                    stream: id,
                    credit: WINDOW_BYTES,
                    found: header.length,
                })
            } else {
                Ok([None, None])
            };
        };
        if header.has(ACK) {
            stream.unacknowledged_since = None;
        }
        match header.kind {
            MuxFrameKind::Data => stream.take_window(id, header.length)?,
            _ => stream.add_credit(header.length),
        }
        if header.has(RST) {
            stream.reset_by_peer();
        } else if header.has(FIN)
            && header.kind != MuxFrameKind::Data
            && stream.receiving == ReceiveDirection::Open
        {
            stream.receiving = ReceiveDirection::Ended;
        }
        let wakers = if stream.receiving == ReceiveDirection::Open {
            [None, None]
        } else {
            [stream.reader.take(), stream.writer.take()]
        };
        self.queue_output(id);
        self.remove_if_over(id);
        Ok(wakers)
    }

    /// Queues a stream if it has something to send.
    pub(super) fn queue_output(&mut self, id: u32) {
        if let Some(stream) = self.streams.get_mut(&id)
            && stream.has_output()
            && !stream.is_queued
        {
            stream.is_queued = true;
            self.ready.push_back(id);
        }
    }

    /// Credits the peer with what was read of a stream, if it is enough.
    pub(super) fn queue_credit(&mut self, id: u32) -> bool {
        let owed = self
            .streams
            .get_mut(&id)
            .and_then(MuxStreamState::owed_credit);
        if let Some(credit) = owed {
            let update = MuxHeader::new(MuxFrameKind::WindowUpdate, 0, id, credit);
            self.control.push_back(update);
        }
        owed.is_some()
    }

    /// Notes that a stream has no handle any more.
    pub(super) fn drop_handle(&mut self, id: u32, now: Instant) {
        let Some(stream) = self.streams.get_mut(&id) else {
            return;
        };
        stream.dropped_at = Some(now);
        if stream.sending == SendDirection::Open {
            stream.reset();
            self.control
                .push_back(MuxHeader::new(MuxFrameKind::WindowUpdate, RST, id, 0));
        }
        self.remove_if_over(id);
    }

    fn remove_if_over(&mut self, id: u32) {
        if self.streams.get(&id).is_some_and(MuxStreamState::is_over) {
            self.streams.remove(&id);
        }
    }

    /// Aborts streams that the peer does not close.
    ///
    /// # Errors
    /// The peer did not acknowledge a stream.
    pub(super) fn sweep(&mut self, now: Instant) -> Result<(), MuxEnd> {
        let is_late = |stream: &MuxStreamState| {
            stream
                .unacknowledged_since
                .is_some_and(|since| now.saturating_duration_since(since) >= ACKNOWLEDGE_TIMEOUT)
        };
        if self.streams.values().any(is_late) {
            return Err(MuxEnd::NotAcknowledged);
        }
        let abandoned: Vec<u32> = self
            .streams
            .iter()
            .filter(|(_, stream)| stream.is_abandoned(now))
            .map(|(id, _)| *id)
            .collect();
        for id in abandoned {
            self.streams.remove(&id);
            self.control
                .push_back(MuxHeader::new(MuxFrameKind::WindowUpdate, RST, id, 0));
        }
        Ok(())
    }

    /// Appends the frames that are to be sent next to `buffer`, up to about `bytes_max`, and the
    /// wakers of streams that have room again to `wakers`. Returns whether a frame is the last.
    pub(super) fn take_output(
        &mut self,
        buffer: &mut BytesMut,
        bytes_max: usize,
        wakers: &mut Vec<Option<Waker>>,
    ) -> bool {
        if let Some(code) = self.farewell {
            let farewell = MuxHeader::new(MuxFrameKind::GoAway, 0, 0, code);
            buffer.put_slice(&farewell.to_bytes());
            return true;
        }
        while buffer.len() < bytes_max {
            if let Some(header) = self.control.pop_front() {
                buffer.put_slice(&header.to_bytes());
                continue;
            }
            let Some(id) = self.ready.pop_front() else {
                break;
            };
            let Some(stream) = self.streams.get_mut(&id) else {
                continue;
            };
            stream.is_queued = false;
            match stream.next_output() {
                Some(StreamOutput::Data(data)) => {
                    let length = data.len() as u32;
                    let header = MuxHeader::new(MuxFrameKind::Data, 0, id, length);
                    buffer.put_slice(&header.to_bytes());
                    buffer.put_slice(&data);
                    wakers.push(stream.writer.take());
                }
                Some(StreamOutput::End) => {
                    let header = MuxHeader::new(MuxFrameKind::WindowUpdate, FIN, id, 0);
                    buffer.put_slice(&header.to_bytes());
                }
                None => {}
            }
            self.queue_output(id);
            self.remove_if_over(id);
        }
        false
    }
}

/// Wakes those that wait. The lock must not be held.
pub(super) fn wake(wakers: impl IntoIterator<Item = Option<Waker>>) {
    for waker in wakers.into_iter().flatten() {
        waker.wake();
    }
}
