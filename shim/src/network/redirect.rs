//! Traffic control: all that arrives at an interface leaves by the tap, and the other way round.

use futures::TryStreamExt;
use rtnetlink::packet_route::link::LinkMessage;
use rtnetlink::packet_route::tc::TcHandle;
use rtnetlink::{Handle, LinkUnspec};

use super::NetworkError;
use super::inspect::Interface;

/// `ETH_P_ALL` of `linux/if_ether.h`, in network byte order.
const ALL_PROTOCOLS: u16 = 0x0003_u16.to_be();

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
