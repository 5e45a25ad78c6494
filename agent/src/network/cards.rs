//! The machine's network cards: which is which, and where each one is.
//!
//! A card is known by the hardware address it was made with (`IFLA_PERM_ADDRESS`), which no container
//! can change. One that is nobody's interface is in a namespace that has no container, down, under a name
//! that is in nobody's way.

use std::os::fd::{AsFd, AsRawFd};

use agent_protocol::Interface;
use futures::TryStreamExt;
use rtnetlink::packet_route::link::{LinkAttribute, LinkMessage};
use rtnetlink::{Handle, LinkUnspec};

use super::namespace::Namespace;
use super::text::hardware_address;
use super::{NetworkError, kernel};

/// Every interface of a namespace.
pub(super) async fn links(handle: &Handle) -> Result<Vec<LinkMessage>, NetworkError> {
    let links = handle.link().get().execute().try_collect().await;
    links.map_err(kernel("list network cards"))
}

/// The index of the card that an interface is.
pub(super) fn index_of(links: &[LinkMessage], interface: &Interface) -> Result<u32, NetworkError> {
    let card = hardware_address(&interface.card)?;
    let found = links.iter().find(|link| made_with(link) == Some(&card));
    found
        .map(|link| link.header.index)
        .ok_or_else(|| NetworkError::Unknown(interface.card.clone()))
}

/// Brings the cards of `interfaces` that are not in the namespace of `there` into it, from the
/// idle ones' by `home`. Others there that have their names get others.
pub(super) async fn bring(
    interfaces: &[Interface],
    (namespace, there): (&Namespace, &Handle),
    home: &Handle,
) -> Result<(), NetworkError> {
    let here = links(there).await?;
    for link in &here {
        let is_used = |card: &[u8]| {
            let mut cards = interfaces.iter().map(|it| hardware_address(&it.card));
            cards.any(|used| used.is_ok_and(|used| used == card))
        };
        let has_name = |name: &str| interfaces.iter().any(|it| it.name == name);
        if let Some(card) = made_with(link)
            && !is_used(card)
            && name_of(link).is_some_and(has_name)
        {
            let aside = LinkUnspec::new_with_index(link.header.index).name(idle_name(card));
            let aside = there.link().set(aside.build()).execute();
            aside.await.map_err(kernel("rename an idle network card"))?;
        }
    }
    let missing = interfaces.iter().filter(|it| index_of(&here, it).is_err());
    let missing: Vec<&Interface> = missing.collect();
    if missing.is_empty() {
        return Ok(());
    }
    let idle = links(home).await?;
    for interface in missing {
        // With the name that it will have: under its own it may be in another's way.
        let card = LinkUnspec::new_with_index(index_of(&idle, interface)?)
            .name(interface.name.clone())
            .setns_by_fd(namespace.as_fd().as_raw_fd());
        let moved = home.link().set(card.build()).execute();
        let what = format!("move a network card to be {}", interface.name);
        moved.await.map_err(kernel(&what))?;
    }
    Ok(())
}

/// Makes a card idle, and moves it `home` if it is elsewhere. One that is lost stays so.
pub(super) async fn take_down(
    handle: &Handle,
    index: u32,
    interface: &Interface,
    home: &Namespace,
) {
    let down = LinkUnspec::new_with_index(index).down();
    let _ = handle.link().set(down.build()).execute().await;
    let Ok(card) = hardware_address(&interface.card) else {
        return;
    };
    let name = idle_name(&card);
    let idle = LinkUnspec::new_with_index(index).name(name).address(card);
    let _ = handle.link().set(idle.build()).execute().await;
    let moved = LinkUnspec::new_with_index(index).setns_by_fd(home.as_fd().as_raw_fd());
    let _ = handle.link().set(moved.build()).execute().await;
}

/// The address that a card was made with; other interfaces have none.
fn made_with(link: &LinkMessage) -> Option<&Vec<u8>> {
    link.attributes.iter().find_map(|it| match it {
        LinkAttribute::PermAddress(address) => Some(address),
        _ => None,
    })
}

fn name_of(link: &LinkMessage) -> Option<&str> {
    link.attributes.iter().find_map(|it| match it {
        LinkAttribute::IfName(name) => Some(name.as_str()),
        _ => None,
    })
}

/// Every card has its own; 15 bytes, as many as a name may have (`IFNAMSIZ` of `linux/if.h`).
fn idle_name(card: &[u8]) -> String {
    let digits: String = card.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("nic{digits}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(index: u32, made_with: Option<[u8; 6]>, now: [u8; 6]) -> LinkMessage {
        let mut link = LinkMessage::default();
        link.header.index = index;
        link.attributes.push(LinkAttribute::Address(now.to_vec()));
        let made_with = made_with.map(|address| LinkAttribute::PermAddress(address.to_vec()));
        link.attributes.extend(made_with);
        link
    }

    #[test]
    fn a_card_is_the_one_that_was_made_with_the_address_whatever_it_has_now() {
        let card = *b"\x02hull\x01";
        let asked = Interface {
            card: "02:68:75:6c:6c:01".into(),
            ..Interface::default()
        };
        let theirs = link(2, None, card);
        let ours = link(3, Some(card), [2, 0, 0, 0, 0, 9]);

        assert_eq!(index_of(&[theirs.clone(), ours], &asked).unwrap(), 3);
        let missing = index_of(&[theirs], &asked).unwrap_err().to_string();
        assert!(missing.contains("02:68:75:6c:6c:01"), "{missing}");
    }

    #[test]
    fn an_idle_cards_name_is_one_that_the_kernel_takes() {
        assert_eq!(idle_name(b"\x02hull\x01"), "nic0268756c6c01");
    }
}
