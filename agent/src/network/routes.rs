//! Routes and neighbours.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use agent_protocol::{Neighbour, Route};
use rtnetlink::packet_route::route::{RouteAttribute, RouteMessage, RouteScope};
use rtnetlink::{Handle, RouteMessageBuilder};

use super::text::{hardware_address, ip, optional_ip, prefix};
use super::{NetworkError, kernel};

pub(super) fn route_message(index: u32, route: &Route) -> Result<RouteMessage, NetworkError> {
    let (destination, length) = prefix(&route.destination)?;
    let gateway = optional_ip(&route.gateway)?;
    let source = optional_ip(&route.source)?;
    Ok(match (destination, gateway, source) {
        (IpAddr::V4(to), None | Some(IpAddr::V4(_)), None | Some(IpAddr::V4(_))) => {
            let mut builder = RouteMessageBuilder::<Ipv4Addr>::new()
                .destination_prefix(to, length)
                .output_interface(index);
            if let Some(IpAddr::V4(gateway)) = gateway {
                builder = builder.gateway(gateway);
            } else {
                builder = builder.scope(RouteScope::Link);
            }
            if let Some(IpAddr::V4(source)) = source {
                builder = builder.pref_source(source);
            }
            with_metric(builder.build(), route.metric)
        }
        (IpAddr::V6(to), None | Some(IpAddr::V6(_)), None | Some(IpAddr::V6(_))) => {
            let mut builder = RouteMessageBuilder::<Ipv6Addr>::new()
                .destination_prefix(to, length)
                .output_interface(index);
            if let Some(IpAddr::V6(gateway)) = gateway {
                builder = builder.gateway(gateway);
            }
            if let Some(IpAddr::V6(source)) = source {
                builder = builder.pref_source(source);
            }
            with_metric(builder.build(), route.metric)
        }
        _ => {
            return Err(NetworkError::Text(
                route.gateway.clone(),
                "gateway of this route",
            ));
        }
    })
}

pub(super) async fn add_route(
    handle: &Handle,
    index: u32,
    route: &Route,
) -> Result<(), NetworkError> {
    let message = route_message(index, route)?;
    let added = handle.route().add(message).replace().execute().await;
    added.map_err(kernel(&format!("add the route to {}", route.destination)))
}

fn with_metric(mut message: RouteMessage, metric: u32) -> RouteMessage {
    if metric != 0 {
        let attribute = RouteAttribute::Priority(metric);
        message.attributes.push(attribute);
    }
    message
}

pub(super) async fn add_neighbour(
    handle: &Handle,
    index: u32,
    neighbour: &Neighbour,
) -> Result<(), NetworkError> {
    let address = ip(&neighbour.address)?;
    let mac = hardware_address(&neighbour.mac)?;
    let added = handle
        .neighbours()
        .add(index, address)
        .link_layer_address(&mac);
    let added = added.replace().execute().await;
    added.map_err(kernel(&format!("add the neighbour {address}")))
}
