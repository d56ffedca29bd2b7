//! Moves a session's frames over its connection, until the session ends.

use std::io::{Cursor, ErrorKind};
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use tokio::io::{
    AsyncBufRead, AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader,
    ReadHalf, WriteHalf, split,
};
use tokio::time::{sleep, timeout};

use super::bounds::MuxLimits;
use super::end::MuxEnd;
use super::header::{FIN, HEADER_BYTES, MuxHeader};
use super::session::MuxSession;
use super::state::{FrameBody, MuxShared, MuxSide, wake};

/// How much is read, and about how much is written, at once.
const BUFFER_BYTES: usize = 32 * 1024;

/// How long the last frame may take.
const FAREWELL_TIMEOUT: Duration = Duration::from_secs(1);

/// Starts a session on `io`, of which `read` was read already. Returns a handle, and the session's
/// driver, which returns why it ended. If the driver is dropped, the session ends as well.
pub fn multiplex<I>(
    io: I,
    read: Bytes,
    side: MuxSide,
    limits: MuxLimits,
) -> (MuxSession, impl Future<Output = MuxEnd> + Send)
where
    I: AsyncRead + AsyncWrite + Send,
{
    let shared = Arc::new(MuxShared::new(side, limits.streams));
    let ending = EndsSession(Arc::clone(&shared));
    let session = MuxSession::new(Arc::clone(&shared));
    let driver = async move {
        let end = drive(&shared, io, read, limits).await;
        shared.end(end.clone());
        drop(ending);
        end
    };
    (session, driver)
}

/// Ends the session of a driver that is dropped.
struct EndsSession(Arc<MuxShared>);

impl Drop for EndsSession {
    fn drop(&mut self) {
        if !self.0.has_ended() {
            self.0.end(MuxEnd::Closed);
        }
    }
}

async fn drive<I>(shared: &MuxShared, io: I, read: Bytes, limits: MuxLimits) -> MuxEnd
where
    I: AsyncRead + AsyncWrite + Send,
{
    let (reader, writer) = split(io);
    let mut writing = pin!(write_frames(shared, writer, limits.write_timeout));
    let end = tokio::select! {
        end = writing.as_mut() => return end,
        end = read_frames(shared, reader, read) => end,
        end = keep_alive(shared, limits) => end,
        () = shared.close.notified() => MuxEnd::Closed,
    };
    if let Some(code) = end.go_away_code() {
        shared.lock().say_farewell(code);
        shared.output.notify_one();
        // The peer may not read: the session ends all the same.
        let _ = timeout(FAREWELL_TIMEOUT, writing).await;
    }
    end
}

async fn read_frames<I: AsyncRead>(shared: &MuxShared, io: ReadHalf<I>, read: Bytes) -> MuxEnd {
    let io = Cursor::new(read).chain(io);
    let mut io = BufReader::with_capacity(BUFFER_BYTES, io);
    loop {
        if let Err(end) = read_frame(shared, &mut io).await {
            return end;
        }
    }
}

async fn read_frame<R>(shared: &MuxShared, io: &mut R) -> Result<(), MuxEnd>
where
    R: AsyncBufRead + Unpin,
{
    // The answers to what is read next need room.
    while !shared.lock().has_room_for_control() {
        shared.room.notified().await;
    }
    match io.fill_buf().await {
        Ok([]) => return Err(MuxEnd::ClosedByPeer),
        Ok(_) => {}
        // TLS without its last message: common, and of no consequence between frames.
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => {
            return Err(MuxEnd::ClosedByPeer);
        }
        Err(error) => return Err(error.into()),
    }
    let mut header = [0; HEADER_BYTES];
    io.read_exact(&mut header).await?;
    let header = MuxHeader::parse(&header)?;
    let FrameBody::Data { stream, length } = shared.receive_header(header)? else {
        if header.has(FIN) {
            shared.receive_end(header.stream);
        }
        return Ok(());
    };
    let mut left = length as usize;
    while left > 0 {
        let data = io.fill_buf().await?;
        if data.is_empty() {
            return Err(MuxEnd::Truncated);
        }
        let length = data.len().min(left);
        shared.receive_data(stream, &data[..length]);
        io.consume(length);
        left -= length;
    }
    if header.has(FIN) {
        shared.receive_end(stream);
    }
    Ok(())
}

/// Writes frames until one is the last.
async fn write_frames<I: AsyncWrite>(
    shared: &MuxShared,
    mut io: WriteHalf<I>,
    limit: Duration,
) -> MuxEnd {
    let mut buffer = BytesMut::with_capacity(2 * BUFFER_BYTES);
    let mut wakers = Vec::new();
    loop {
        let is_last = shared
            .lock()
            .take_output(&mut buffer, BUFFER_BYTES, &mut wakers);
        wake(wakers.drain(..));
        if buffer.is_empty() {
            shared.output.notified().await;
            continue;
        }
        shared.room.notify_one();
        shared.publish_count();
        let writing = async {
            io.write_all(&buffer).await?;
            io.flush().await
        };
        match timeout(limit, writing).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return error.into(),
            Err(_) => return MuxEnd::WriteTimedOut,
        }
        if is_last {
            let _ = io.shutdown().await;
            return MuxEnd::Closed;
        }
        buffer.clear();
    }
}

/// Pings the peer, and looks for streams that it forgot.
async fn keep_alive(shared: &MuxShared, limits: MuxLimits) -> MuxEnd {
    loop {
        sleep(limits.keep_alive).await;
        {
            let mut state = shared.lock();
            if let Err(end) = state.sweep(Instant::now()) {
                return end;
            }
            state.start_ping();
        }
        shared.publish_count();
        shared.output.notify_one();
        let answered = async {
            while !shared.lock().is_ping_answered() {
                shared.pong.notified().await;
            }
        };
        if timeout(limits.write_timeout, answered).await.is_err() {
            return MuxEnd::PingLost;
        }
    }
}
