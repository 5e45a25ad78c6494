//! Flow control of one connection (virtio 1.3 §5.10.6.3). Pure.
//!
//! Each side tells the other, in every header, how large its buffer is (`buf_alloc`) and how many
//! bytes it has ever taken out of it (`fwd_cnt`). A sender counts what it ever sent; the difference
//! is what may still be under way. All counters wrap.

use super::packet::Header;

/// Our buffer for each connection in bytes: what a guest may send before the host's socket takes
/// it. A connection nobody reads costs the host at most this, plus the socket's own buffer.
pub(super) const BUF_ALLOC: u32 = 128 * 1024;

/// A guest that does not know of this many free bytes is told.
const UPDATE_AFTER: u32 = BUF_ALLOC / 4;

/// Counters of both directions, in bytes.
#[derive(Debug, Clone, Default)]
pub(super) struct Credit {
    /// Guest to host: received from the guest.
    received: u32,
    /// Guest to host: passed on, our `fwd_cnt`.
    forwarded: u32,
    /// Guest to host: the `fwd_cnt` the guest was last told.
    announced: u32,
    /// Host to guest: sent to the guest.
    sent: u32,
    peer_buf_alloc: u32,
    peer_fwd_cnt: u32,
}

/// The guest sent more than it was told it may.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Overrun;

impl Credit {
    /// Learns the guest's buffer from any packet of the connection.
    pub(super) fn learn(&mut self, header: &Header) {
        self.peer_buf_alloc = header.buf_alloc;
        self.peer_fwd_cnt = header.fwd_cnt;
    }

    /// Bytes the guest has room for. One whose counters make no sense has none, or a wrong number:
    /// it is the guest's own memory that it is wrong about.
    pub(super) fn available(&self) -> u32 {
        let under_way = self.sent.wrapping_sub(self.peer_fwd_cnt);
        self.peer_buf_alloc.saturating_sub(under_way)
    }

    /// Counts bytes set apart for the guest; at most [`Credit::available`].
    pub(super) fn send(&mut self, bytes: u32) {
        self.sent = self.sent.wrapping_add(bytes);
    }

    /// Counts bytes that came from the guest.
    pub(super) fn receive(&mut self, bytes: u32) -> Result<(), Overrun> {
        let buffered = self.received.wrapping_sub(self.forwarded);
        if bytes > BUF_ALLOC.saturating_sub(buffered) {
            return Err(Overrun);
        }
        self.received = self.received.wrapping_add(bytes);
        Ok(())
    }

    /// Counts bytes that left our buffer.
    pub(super) fn forward(&mut self, bytes: u32) {
        self.forwarded = self.forwarded.wrapping_add(bytes);
    }

    /// Whether the guest should hear of the room made since it was last told.
    pub(super) fn update_due(&self) -> bool {
        self.forwarded.wrapping_sub(self.announced) >= UPDATE_AFTER
    }

    /// Puts our side into a header that is about to be sent.
    pub(super) fn announce(&mut self, header: &mut Header) {
        self.announced = self.forwarded;
        header.buf_alloc = BUF_ALLOC;
        header.fwd_cnt = self.forwarded;
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn peer(buf_alloc: u32, fwd_cnt: u32) -> Header {
        Header {
            buf_alloc,
            fwd_cnt,
            ..Header::default()
        }
    }

    #[test]
    fn what_is_under_way_is_not_available() {
        let mut credit = Credit::default();
        credit.learn(&peer(1000, 0));
        credit.send(600);
        assert_eq!(credit.available(), 400);
        credit.learn(&peer(1000, 500));
        assert_eq!(credit.available(), 900);
    }

    #[test]
    fn counters_wrap() {
        let mut credit = Credit {
            sent: u32::MAX - 9,
            peer_fwd_cnt: u32::MAX - 9,
            peer_buf_alloc: 100,
            received: u32::MAX - 9,
            forwarded: u32::MAX - 9,
            announced: u32::MAX - 9,
        };
        credit.send(20);
        assert_eq!(credit.available(), 80);
        assert_eq!(credit.receive(BUF_ALLOC), Ok(()));
        credit.forward(BUF_ALLOC);
        assert!(credit.update_due());
        assert_eq!(credit.receive(BUF_ALLOC), Ok(()));
    }

    /// A step of a connection's life, in bytes.
    #[derive(Debug, Clone)]
    enum Step {
        FromGuest(u32),
        Forward(u32),
        ToGuest(u32),
        GuestReads(u32),
        Announce,
    }

    fn step() -> impl Strategy<Value = Step> {
        let bytes = || prop_oneof![0..100_u32, 0..2 * BUF_ALLOC, Just(u32::MAX)];
        prop_oneof![
            bytes().prop_map(Step::FromGuest),
            bytes().prop_map(Step::Forward),
            bytes().prop_map(Step::ToGuest),
            bytes().prop_map(Step::GuestReads),
            Just(Step::Announce),
        ]
    }

    proptest! {
        /// Against a model with numbers that do not wrap, wherever the counters start.
        #[test]
        fn neither_side_ever_holds_more_than_its_buffer(
            start in any::<u32>(),
            room in 0..BUF_ALLOC,
            steps in vec(step(), 0..200),
        ) {
            let mut credit = Credit {
                received: start,
                forwarded: start,
                announced: start,
                sent: start,
                peer_buf_alloc: room,
                peer_fwd_cnt: start,
            };
            let (mut here, mut there, mut read, mut unannounced) = (0, 0, start, 0);
            for step in steps {
                match step {
                    Step::FromGuest(bytes) => {
                        let fits = u64::from(here) + u64::from(bytes) <= u64::from(BUF_ALLOC);
                        prop_assert_eq!(credit.receive(bytes).is_ok(), fits);
                        here += if fits { bytes } else { 0 };
                    }
                    Step::Forward(bytes) => {
                        let bytes = bytes.min(here);
                        credit.forward(bytes);
                        here -= bytes;
                        unannounced += bytes;
                    }
                    Step::ToGuest(bytes) => {
                        prop_assert_eq!(credit.available(), room - there);
                        let bytes = bytes.min(credit.available());
                        credit.send(bytes);
                        there += bytes;
                    }
                    Step::GuestReads(bytes) => {
                        let bytes = bytes.min(there);
                        there -= bytes;
                        read = read.wrapping_add(bytes);
                        credit.learn(&peer(room, read));
                    }
                    Step::Announce => {
                        credit.announce(&mut Header::default());
                        unannounced = 0;
                    }
                }
                prop_assert!(here <= BUF_ALLOC && there <= room);
                prop_assert_eq!(credit.update_due(), unannounced >= UPDATE_AFTER);
            }
        }

        /// Whatever a guest says of itself, it is not sent more than the buffer it claims.
        #[test]
        fn a_guest_is_never_sent_more_than_it_claims_to_have_room_for(
            sent in any::<u32>(),
            claims in vec(any::<(u32, u32)>(), 1..20),
        ) {
            let mut credit = Credit { sent, ..Credit::default() };
            for (buf_alloc, fwd_cnt) in claims {
                credit.learn(&peer(buf_alloc, fwd_cnt));
                let available = credit.available();
                prop_assert!(available <= buf_alloc);
                credit.send(available);
                prop_assert_eq!(credit.available(), 0);
            }
        }
    }

    #[test]
    fn a_guest_that_shrinks_its_buffer_or_forwards_what_it_never_got_has_no_room() {
        let mut credit = Credit::default();
        credit.learn(&peer(1000, 0));
        credit.send(600);
        for nonsense in [peer(500, 0), peer(1000, 601), peer(i32::MAX as u32, 602)] {
            credit.learn(&nonsense);
            assert_eq!(credit.available(), 0, "{nonsense:?}");
        }
    }

    #[test]
    fn one_byte_more_than_the_buffer_is_an_overrun() {
        let mut credit = Credit::default();
        assert_eq!(credit.receive(BUF_ALLOC), Ok(()));
        assert_eq!(credit.receive(1), Err(Overrun));
        credit.forward(1);
        assert_eq!(credit.receive(1), Ok(()));
        assert_eq!(credit.receive(u32::MAX), Err(Overrun));
    }

    #[test]
    fn an_update_is_due_until_any_packet_carried_it() {
        let mut credit = Credit::default();
        credit.receive(UPDATE_AFTER).unwrap();
        credit.forward(UPDATE_AFTER - 1);
        assert!(!credit.update_due());
        credit.forward(1);
        assert!(credit.update_due());

        let mut header = Header::default();
        credit.announce(&mut header);
        assert_eq!(
            (header.buf_alloc, header.fwd_cnt),
            (BUF_ALLOC, UPDATE_AFTER)
        );
        assert!(!credit.update_due());
    }
}
