//! Memory for one datagram, shared by all netlink sockets that a thread receives from.
//!
//! An agent has some forty sockets, of which a thread reads one at a time. A buffer for each of them was a tenth of what an agent occupies.

use std::cell::Cell;
use std::mem;

/// Longer than nearly all datagrams: the kernel fills those of a dump to 32 KiB, and returns a refused
/// request of ipset whole, which is as long as an attribute can be.
const BYTES: usize = 128 << 10;

thread_local! {
    /// The buffer of this thread, while nothing is received into it.
    static SPARE: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// Buffer of this thread, for as long as one datagram after the other is received and read. Whoever receives from another socket meanwhile gets one of his own.
#[derive(Debug)]
pub struct ReceiveBuffer(Vec<u8>);

impl ReceiveBuffer {
    pub fn lend() -> ReceiveBuffer {
        let mut bytes = SPARE.take();
        if bytes.is_empty() {
            bytes = vec![0; BYTES];
        }
        ReceiveBuffer(bytes)
    }

    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// The first bytes, this many at most, to receive into.
    pub fn room(&mut self, most: usize) -> &mut [u8] {
        let end = most.min(self.0.len());
        self.0.get_mut(..end).unwrap_or_default()
    }

    /// Makes room for a longer datagram, now and for all sockets that this thread receives from later.
    pub fn grow(&mut self, length: usize) {
        if length > self.0.len() {
            self.0.resize(length.next_power_of_two(), 0);
        }
    }
}

impl Drop for ReceiveBuffer {
    /// Gives the buffer back to the thread, which keeps the longer one of two.
    fn drop(&mut self) {
        let returned = mem::take(&mut self.0);
        // A thread that ends has no place for it any more.
        let _ = SPARE.try_with(|spare| {
            let present = spare.take();
            spare.set(if present.len() > returned.len() { present } else { returned });
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_of_a_thread_receive_one_after_the_other_into_the_same_memory() {
        let first = ReceiveBuffer::lend().bytes().as_ptr();
        assert_eq!(ReceiveBuffer::lend().bytes().as_ptr(), first);
    }

    #[test]
    fn what_is_received_while_a_datagram_is_read_does_not_overwrite_it() {
        let mut outer = ReceiveBuffer::lend();
        outer.room(usize::MAX).fill(1);
        ReceiveBuffer::lend().room(usize::MAX).fill(2);
        assert!(outer.bytes().iter().all(|byte| *byte == 1));
    }

    #[test]
    fn a_buffer_that_grew_for_a_long_datagram_has_room_for_it_when_it_comes_again() {
        let mut buffer = ReceiveBuffer::lend();
        buffer.grow(BYTES + 1);
        let nested = ReceiveBuffer::lend();
        drop(buffer);
        drop(nested);
        assert_eq!(ReceiveBuffer::lend().bytes().len(), 2 * BYTES);
    }
}
