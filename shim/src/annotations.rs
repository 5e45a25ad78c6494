//! What a container's annotations ask of Hull: those that begin with `io.hull.`. Pure.

use std::collections::HashMap;

use crate::port_forward::rule::{self, Rule, RuleError};

/// What every annotation of Hull's begins with.
const PREFIX: &str = "io.hull.";

/// What the annotations of one container ask.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Annotations {
    /// Ports of the host that lead into the container.
    pub port_forwards: Vec<Rule>,
}

/// Why they are of no use.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum AnnotationError {
    /// One that Hull does not know: a slip of the pen must not look like success.
    #[error("there is no annotation {0:?}; Hull has {known}", known = rule::ANNOTATION)]
    Unknown(String),
    /// See [`rule`].
    #[error(transparent)]
    PortForward(#[from] RuleError),
}

/// Reads a configuration's annotations; those of others are none of Hull's business.
///
/// # Errors
/// The first, by name, that is of no use.
pub fn parse(
    annotations: Option<&HashMap<String, String>>,
) -> Result<Annotations, AnnotationError> {
    let mut parsed = Annotations::default();
    let mut ours: Vec<_> = annotations
        .into_iter()
        .flatten()
        .filter(|(name, _)| name.starts_with(PREFIX))
        .collect();
    ours.sort();
    for (name, value) in ours {
        match name.as_str() {
            rule::ANNOTATION => parsed.port_forwards = rule::parse(value)?,
            _ => return Err(AnnotationError::Unknown(name.clone())),
        }
    }
    Ok(parsed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(pairs: &[(&str, &str)]) -> Result<Annotations, AnnotationError> {
        let pairs = pairs
            .iter()
            .map(|(name, value)| ((*name).into(), (*value).into()));
        parse(Some(&pairs.collect()))
    }

    #[test]
    fn hulls_are_read_and_others_let_be() {
        let annotations = parsed(&[
            ("io.hull.port-forward", "8080:80"),
            ("io.kubernetes.cri.container-type", "sandbox"),
        ]);

        assert_eq!(annotations.unwrap().port_forwards.len(), 1);
        assert_eq!(parse(None), Ok(Annotations::default()));
    }

    #[test]
    fn a_misspelt_one_is_refused() {
        let error = parsed(&[("io.hull.portforward", "8080:80")]).unwrap_err();

        assert!(
            error.to_string().contains("io.hull.port-forward"),
            "{error}"
        );
    }
}
