//! The texts that addresses travel as.

use std::net::{AddrParseError, IpAddr};
use std::num::ParseIntError;

use super::NetworkError;

pub(super) fn ip(text: &str) -> Result<IpAddr, NetworkError> {
    let parsed: Result<IpAddr, AddrParseError> = text.parse();
    parsed.map_err(|_| NetworkError::Text(text.to_owned(), "IP address"))
}

/// Nothing for the empty text.
pub(super) fn optional_ip(text: &str) -> Result<Option<IpAddr>, NetworkError> {
    if text.is_empty() {
        return Ok(None);
    }
    ip(text).map(Some)
}

/// `ADDRESS/LENGTH`.
pub(super) fn prefix(text: &str) -> Result<(IpAddr, u8), NetworkError> {
    let wrong = || NetworkError::Text(text.to_owned(), "IP address with a prefix length");
    let (address, length) = text.split_once('/').ok_or_else(wrong)?;
    let address = ip(address)?;
    let most = if address.is_ipv4() { 32 } else { 128 };
    match length.parse() {
        Ok(length) if length <= most => Ok((address, length)),
        _ => Err(wrong()),
    }
}

pub(super) fn hardware_address(text: &str) -> Result<Vec<u8>, NetworkError> {
    let bytes: Result<Vec<u8>, ParseIntError> = text
        .split(':')
        .map(|byte| u8::from_str_radix(byte, 16))
        .collect();
    match bytes {
        Ok(bytes) if bytes.len() == 6 => Ok(bytes),
        _ => Err(NetworkError::Text(text.to_owned(), "Ethernet address")),
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use super::*;

    #[test]
    fn prefixes_are_read_and_checked() {
        let read = |text| prefix(text).unwrap();
        assert_eq!(
            read("192.0.2.2/24"),
            (Ipv4Addr::new(192, 0, 2, 2).into(), 24)
        );
        assert_eq!(read("::/0"), (Ipv6Addr::UNSPECIFIED.into(), 0));
        for bad in [
            "192.0.2.2",
            "192.0.2.2/33",
            "192.0.2/24",
            "::/129",
            "::/-1",
            "",
        ] {
            assert!(prefix(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn hardware_addresses_are_read_and_checked() {
        assert_eq!(
            hardware_address("02:68:75:6c:6c:00").unwrap(),
            b"\x02hull\0"
        );
        for bad in ["02:68:75:6c:6c", "02:68:75:6c:6c:100", "x", ""] {
            assert!(hardware_address(bad).is_err(), "{bad}");
        }
    }
}
