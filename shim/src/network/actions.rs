//! What traffic control does with a packet that a filter matches (tc-actions(8)).

use rtnetlink::packet_core::DefaultNla;
use rtnetlink::packet_route::tc::{
    TcAction, TcActionAttribute, TcActionMirror, TcActionMirrorOption, TcActionOption,
    TcActionType, TcMirror, TcMirrorActionType,
};

/// `TCA_PEDIT_PARMS` of `linux/tc_act/tc_pedit.h`.
const EDIT_PARAMETERS: u16 = 2;
/// `TCA_CSUM_PARMS` of `linux/tc_act/tc_csum.h`.
const CHECKSUM_PARAMETERS: u16 = 1;
/// `TCA_GACT_PARMS` of `linux/tc_act/tc_gact.h`.
const VERDICT_PARAMETERS: u16 = 2;

/// A copy for the interface of that number; the packet goes on to the namespace.
pub(super) fn mirror(to: u32) -> TcAction {
    to_interface(to, TcMirrorActionType::EgressMirror, TcActionType::Ok)
}

/// The packet leaves by the interface of that number.
pub(super) fn redirect(to: u32) -> TcAction {
    to_interface(to, TcMirrorActionType::EgressRedir, TcActionType::Stolen)
}

/// The packet is gone.
pub(super) fn drop() -> TcAction {
    let parameters = general(TcActionType::Shot);
    other("gact", VERDICT_PARAMETERS, parameters)
}

/// Writes `value` over the bits that `mask` has not, in the word at `offset` bytes from the network header.
pub(super) fn edit(offset: u32, mask: u32, value: u32) -> TcAction {
    let mut parameters = general(TcActionType::Pipe);
    // One key, no flags, and room up to the next word.
    parameters.extend([1, 0, 0, 0]);
    let (any_offset, shift) = ([0; 8], [0; 4]);
    parameters.extend(mask.to_be_bytes());
    parameters.extend(value.to_be_bytes());
    parameters.extend(offset.to_ne_bytes());
    parameters.extend(any_offset);
    parameters.extend(shift);
    other("pedit", EDIT_PARAMETERS, parameters)
}

/// Computes the checksums that `flags` names (`TCA_CSUM_UPDATE_FLAG_…` of `linux/tc_act/tc_csum.h`).
pub(super) fn checksum(flags: u32) -> TcAction {
    let mut parameters = general(TcActionType::Pipe);
    parameters.extend(flags.to_ne_bytes());
    other("csum", CHECKSUM_PARAMETERS, parameters)
}

/// Actions one after the other: those before the last hand the packet on.
pub(super) fn chain(actions: impl IntoIterator<Item = TcAction>) -> Vec<TcAction> {
    let number = |(number, mut action): (u16, TcAction)| {
        action.tab = number;
        action
    };
    (1..).zip(actions).map(number).collect()
}

fn to_interface(index: u32, how: TcMirrorActionType, then: TcActionType) -> TcAction {
    let mut parameters = TcMirror::default();
    parameters.generic.action = then;
    parameters.eaction = how;
    parameters.ifindex = index;
    let option = TcActionOption::Mirror(TcActionMirrorOption::Parms(parameters));
    action(TcActionMirror::KIND, option)
}

/// `tc_gen` of `linux/pkt_cls.h`: number, capabilities, what comes next, two counts.
fn general(then: TcActionType) -> Vec<u8> {
    let words = [0, 0, i32::from(then), 0, 0];
    words.into_iter().flat_map(i32::to_ne_bytes).collect()
}

/// An action that the library does not know.
fn other(kind: &str, attribute: u16, parameters: Vec<u8>) -> TcAction {
    let parameters = DefaultNla::new(attribute, parameters);
    action(kind, TcActionOption::Other(parameters))
}

fn action(kind: &str, option: TcActionOption) -> TcAction {
    let mut action = TcAction::default();
    action.attributes = vec![
        TcActionAttribute::Kind(kind.to_owned()),
        TcActionAttribute::Options(vec![option]),
    ];
    action
}

#[cfg(test)]
mod tests {
    use rtnetlink::packet_core::Nla;

    use super::*;

    #[test]
    fn an_edit_is_as_the_kernel_reads_it() {
        let edit = edit(20, 0xffff_0000, 80);
        let TcActionAttribute::Options(options) = &edit.attributes[1] else {
            panic!("{edit:?}");
        };
        let mut bytes = vec![0; options[0].value_len()];
        options[0].emit_value(&mut bytes);
        // struct tc_pedit_sel with one struct tc_pedit_key.
        assert_eq!(bytes.len(), 24 + 24);
        assert_eq!(bytes[20], 1);
        assert_eq!(bytes[24..32], [0xff, 0xff, 0, 0, 0, 0, 0, 80]);
        assert_eq!(bytes[32..36], 20_u32.to_ne_bytes());
    }

    #[test]
    fn actions_are_numbered_in_their_order() {
        let numbers: Vec<u16> = chain([drop(), mirror(7)]).iter().map(|it| it.tab).collect();
        assert_eq!(numbers, [1, 2]);
    }
}
