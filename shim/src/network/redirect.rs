//! Traffic control: all that arrives at an interface leaves by the tap, and the other way round.
//!
//! But for answers to the engine: dockerd's resolver sends what it cannot answer to other servers from
//! inside the namespace, with the addresses that are the guest's now. Its sockets have ports that
//! the guest does not use by itself ([`ENGINE_PORTS`]); what comes from port 53 to those stays in the
//! namespace. So that it finds its neighbours, answers to ARP (RFC 826) go to both.

use std::ops::RangeInclusive;

use futures::TryStreamExt;
use rtnetlink::packet_route::link::LinkMessage;
use rtnetlink::packet_route::tc::{
    TcAction, TcFilterU32Option, TcHandle, TcU32Key, TcU32Selector, TcU32SelectorFlags,
};
use rtnetlink::{Handle, LinkUnspec};

use super::NetworkError;
use super::actions::mirror;
use super::inspect::Interface;

/// `ETH_P_ALL` of `linux/if_ether.h`, in network byte order.
const ALL_PROTOCOLS: u16 = 0x0003_u16.to_be();
/// `ETH_P_IP`.
pub(super) const IPV4: u16 = 0x0800_u16.to_be();
/// `ETH_P_ARP`.
const ARP: u16 = 0x0806_u16.to_be();

/// The ports that the engine's sockets in a namespace get: those whose first bits are set. Linux gives
/// a guest's sockets 32768 to 60999 (ip-sysctl.rst, `ip_local_port_range`).
pub(super) const ENGINE_PORTS: RangeInclusive<u16> = 0xfc00..=0xffff;

/// A packet has this at that offset, in bytes from the network header, under the mask.
#[derive(Debug, Clone, Copy)]
pub(super) struct Match {
    pub(super) offset: i32,
    pub(super) mask: u32,
    pub(super) value: u32,
}

/// An IPv4 header without options (RFC 791 §3.1): what is behind it is at 20.
pub(super) const NO_OPTIONS: Match = Match {
    offset: 0,
    mask: 0x0f00_0000,
    value: 0x0500_0000,
};

/// A packet from port 53 to one of [`ENGINE_PORTS`].
const ANSWER: [Match; 2] = [
    NO_OPTIONS,
    Match {
        offset: 20,
        mask: 0xffff_fc00,
        value: 0x0035_fc00,
    },
];
/// By protocol: UDP, TCP.
const PROTOCOLS: [u32; 2] = [17, 6];

/// An answer's operation (RFC 826).
const ARP_REPLY: Match = Match {
    offset: 4,
    mask: 0x0000_ffff,
    value: 2,
};

/// Brings the tap up with the interface's MTU, and joins the two; returns the tap's number.
pub(super) async fn connect(
    handle: &Handle,
    interface: &Interface,
    tap: &str,
) -> Result<u32, NetworkError> {
    let failed = |what: &str| {
        let what = format!("{what} {tap} for {}", interface.name);
        move |source| NetworkError::Netlink { what, source }
    };
    let found = handle.link().get().match_name(tap).execute();
    let found: Vec<LinkMessage> = found.try_collect().await.map_err(failed("find the tap"))?;
    let index = found.first().map_or(0, |link| link.header.index);
    let up = LinkUnspec::new_with_index(index).mtu(interface.mtu()).up();
    let up = handle.link().set(up.build()).execute();
    up.await.map_err(failed("bring up the tap"))?;
    redirect(handle, interface.index, index)
        .await
        .map_err(failed("redirect to the tap"))?;
    keep_answers(handle, interface.index, index)
        .await
        .map_err(failed("keep the engine's answers from the tap"))?;
    redirect(handle, index, interface.index)
        .await
        .map_err(failed("redirect from the tap"))?;
    Ok(index)
}

/// Ends what [`connect`] has made of the interface of that number, if it is there.
pub(super) async fn end(handle: &Handle, interface: u32) {
    let Ok(index) = i32::try_from(interface) else {
        return;
    };
    let mut request = handle.qdisc().del(index);
    request.message_mut().header.parent = TcHandle::INGRESS;
    let _ = request.execute().await;
}

async fn redirect(handle: &Handle, from: u32, to: u32) -> Result<(), rtnetlink::Error> {
    let index = i32::try_from(from).map_err(|_| rtnetlink::Error::RequestFailed)?;
    // That of a machine before this one, whose shim has crashed.
    end(handle, from).await;
    handle.qdisc().add(index).ingress().execute().await?;
    handle
        .traffic_filter(index)
        .add()
        .parent(0xffff_0000)
        .protocol(ALL_PROTOCOLS)
        .redirect(to)?
        .execute()
        .await
}

/// Priorities: smaller ones are asked first. The redirection itself has one that the kernel chooses,
/// which is far greater.
async fn keep_answers(handle: &Handle, from: u32, to: u32) -> Result<(), rtnetlink::Error> {
    for (priority, number) in (1..).zip(PROTOCOLS) {
        let protocol = Match {
            offset: 8,
            mask: 0x00ff_0000,
            value: number << 16,
        };
        let [header, ports] = ANSWER;
        // Without an action what matches goes on to the namespace.
        add(
            handle,
            from,
            (priority, IPV4),
            &[header, ports, protocol],
            None,
        )
        .await?;
    }
    let both = Some(vec![mirror(to)]);
    add(handle, from, (3, ARP), &[ARP_REPLY], both).await
}

/// Has `actions` done with what arrives at the interface of that number and has all of `matches`, before what is
/// said at greater priorities.
pub(super) async fn add(
    handle: &Handle,
    interface: u32,
    (priority, protocol): (u16, u16),
    matches: &[Match],
    actions: Option<Vec<TcAction>>,
) -> Result<(), rtnetlink::Error> {
    let index = i32::try_from(interface).map_err(|_| rtnetlink::Error::RequestFailed)?;
    let mut options = vec![TcFilterU32Option::Selector(selector(matches))];
    options.extend(actions.map(TcFilterU32Option::Action));
    let filter = handle.traffic_filter(index).add().parent(0xffff_0000);
    let filter = filter.priority(priority).protocol(protocol);
    filter.u32(&options)?.execute().await
}

fn selector(matches: &[Match]) -> TcU32Selector {
    let key = |wanted: &Match| {
        let mut key = TcU32Key::default();
        key.mask = wanted.mask;
        key.val = wanted.value;
        key.off = wanted.offset;
        key
    };
    let mut selector = TcU32Selector::default();
    selector.flags = TcU32SelectorFlags::Terminal;
    selector.keys = matches.iter().map(key).collect();
    selector.nkeys = u8::try_from(selector.keys.len()).expect("a handful");
    selector
}
