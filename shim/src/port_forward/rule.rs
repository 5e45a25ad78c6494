//! The annotation that asks for port forwards. Pure.
//!
//! ```text
//! io.hull.port-forward: 8080:80/tcp, 127.0.0.1:5353:53/udp, [::1]:8443:443
//!                       └host's port : the container's [/protocol, tcp if not given]
//! ```

use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

/// Name of the annotation.
pub const ANNOTATION: &str = "io.hull.port-forward";

/// What travels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// Connections.
    Tcp,
    /// Datagrams.
    Udp,
}

/// One forward.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Rule {
    /// Where the host listens. The unspecified IPv6 address stands for IPv4 too.
    pub host: SocketAddr,
    /// Where the container listens, if not on all addresses or on 127.0.0.1 or ::1.
    pub container_address: Option<IpAddr>,
    /// The container's port.
    pub container_port: u16,
    /// What is forwarded.
    pub protocol: Protocol,
}

/// An annotation that names no forwards.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{ANNOTATION} has {text:?}, which {reason}; a forward is [IP:]PORT:PORT[/tcp|/udp]")]
pub struct RuleError {
    text: String,
    reason: &'static str,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

impl FromStr for Rule {
    type Err = RuleError;

    fn from_str(text: &str) -> Result<Self, RuleError> {
        let wrong = |reason| RuleError {
            text: text.to_owned(),
            reason,
        };
        let port = |number: &str| match number.parse::<u16>() {
            Ok(port @ 1..) if number.bytes().all(|byte| byte.is_ascii_digit()) => Ok(port),
            _ => Err(wrong("has no port from 1 to 65535 where one is due")),
        };
        let (addresses, protocol) = match text.split_once('/') {
            None => (text, Protocol::Tcp),
            Some((addresses, "tcp")) => (addresses, Protocol::Tcp),
            Some((addresses, "udp")) => (addresses, Protocol::Udp),
            Some(_) => return Err(wrong("names another protocol")),
        };
        let (host, container_port) = addresses
            .rsplit_once(':')
            .ok_or_else(|| wrong("has no container's port"))?;
        let (ip, host_port) = match host.rsplit_once(':') {
            None => (IpAddr::V6(Ipv6Addr::UNSPECIFIED), host),
            Some((ip, port)) => {
                let ip = match ip.strip_prefix('[').and_then(|ip| ip.strip_suffix(']')) {
                    Some(ip) => ip.parse().ok().map(IpAddr::V6),
                    None => ip.parse().ok().map(IpAddr::V4),
                };
                (ip.ok_or_else(|| wrong("has no IP address in front"))?, port)
            }
        };
        Ok(Self {
            host: SocketAddr::new(ip, port(host_port)?),
            container_address: None,
            container_port: port(container_port)?,
            protocol,
        })
    }
}

/// Reads the annotation's value: forwards with commas between them.
///
/// # Errors
/// The first that is none.
pub fn parse(value: &str) -> Result<Vec<Rule>, RuleError> {
    let rules = value.split(',').map(str::trim);
    rules
        .filter(|rule| !rule.is_empty())
        .map(str::parse)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(host: &str, container_port: u16, protocol: Protocol) -> Rule {
        Rule {
            container_address: None,
            host: host.parse().unwrap(),
            container_port,
            protocol,
        }
    }

    #[test]
    fn forwards_are_read_with_their_defaults() {
        let rules = parse("8080:80/tcp, 127.0.0.1:5353:53/udp,[::1]:8443:443, 9000:9000,").unwrap();

        assert_eq!(
            rules,
            [
                rule("[::]:8080", 80, Protocol::Tcp),
                rule("127.0.0.1:5353", 53, Protocol::Udp),
                rule("[::1]:8443", 443, Protocol::Tcp),
                rule("[::]:9000", 9000, Protocol::Tcp),
            ]
        );
        assert_eq!(parse(" ").unwrap(), []);
    }

    #[test]
    fn what_is_no_forward_is_quoted() {
        for bad in [
            "80",
            "0:80",
            "80:0",
            "80:65536",
            "x:80",
            "+80:80",
            "80:80/sctp",
            "80:80/TCP",
            "::1:80:80",
            "[127.0.0.1]:80:80",
            "localhost:80:80",
            "1.2.3.4::80",
            ":80",
            "80:",
        ] {
            let error = parse(&format!("1:1, {bad}")).unwrap_err();
            assert_eq!(error.text, bad, "{error}");
        }
    }
}
