//! The lists of system calls, as people write them.
//!
//! A line is a call, and after `#` why it is there:
//!
//! ```text
//! NAME [if argN == VALUE | if argN & MASK == VALUE]  # REASON
//! x86_64 NAME                                        # only on that architecture
//! NAME                                               # (rare) not in an ordinary machine's life
//! ```
//! Values are the names in [`NAMED`], or several with `|` between them. Several lines of one call: any of them. An empty
//! line, or one that starts with `#`, is for the reader.
//!
//! `build.rs` compiles this module too: it turns the lists into filters.

/// What a condition may name: numbers that the kernel fixed, the same on both architectures.
const NAMED: [(&str, u32); 24] = [
    ("0", 0),
    // linux/kvm.h
    ("KVM_RUN", 0xae80),
    ("KVM_SET_USER_MEMORY_REGION", 0x4020_ae46),
    ("KVM_GET_REGS", 0x8090_ae81),
    ("KVM_GET_ONE_REG", 0x4010_aeab),
    // linux/if_tun.h
    ("TUNGETIFF", 0x8004_54d2),
    ("TUNSETOFFLOAD", 0x4004_54d0),
    ("TUNSETVNETHDRSZ", 0x4004_54d8),
    ("TUNSETQUEUE", 0x4004_54d9),
    // linux/vhost.h
    ("VHOST_SET_FEATURES", 0x4008_af00),
    ("VHOST_SET_VRING_NUM", 0x4008_af10),
    ("VHOST_SET_VRING_ADDR", 0x4028_af11),
    ("VHOST_SET_VRING_BASE", 0x4008_af12),
    ("VHOST_SET_VRING_KICK", 0x4008_af20),
    ("VHOST_SET_VRING_CALL", 0x4008_af21),
    ("VHOST_NET_SET_BACKEND", 0x4008_af30),
    // linux/fs.h
    ("BLKDISCARD", 0x1277),
    ("BLKSSZGET", 0x1268),
    ("BLKGETSIZE64", 0x8008_1272),
    // asm-generic/mman-common.h
    ("PROT_EXEC", 4),
    // linux/socket.h
    ("AF_UNIX", 1),
    ("MSG_DONTWAIT", 0x40),
    ("MSG_NOSIGNAL", 0x4000),
    ("MSG_CMSG_CLOEXEC", 0x4000_0000),
];

/// One line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Rule<'a> {
    /// The only architecture it is for, by Rust's name.
    pub(crate) architecture: Option<&'a str>,
    /// The call.
    pub(crate) name: &'a str,
    /// What an argument has to be.
    pub(crate) condition: Option<Condition>,
    /// An ordinary machine makes the call.
    pub(crate) ordinary: bool,
}

/// The lower half of an argument, masked, equals a value. Everything that is compared is an `int`,
/// or bits of one, to the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Condition {
    /// Which argument, from 0.
    pub(crate) argument: u8,
    /// Its bits that count.
    pub(crate) mask: u32,
    /// What they have to be.
    pub(crate) value: u32,
}

/// The rules of a list, for `architecture`.
///
/// # Errors
/// The line that is none, with its number.
pub(crate) fn parse<'a>(text: &'a str, architecture: &str) -> Result<Vec<Rule<'a>>, String> {
    let mut rules = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        if line.trim().is_empty() || line.starts_with('#') {
            continue;
        }
        let rule = rule(line).ok_or_else(|| format!("line {number} is no rule: {line}"))?;
        if (rule.architecture).is_none_or(|only| only == architecture) {
            rules.push(rule);
        }
    }
    Ok(rules)
}

fn rule(line: &str) -> Option<Rule<'_>> {
    let (rule, reason) = line.split_once('#')?;
    let reason = reason.trim();
    let (call, condition) = match rule.split_once(" if ") {
        Some((call, text)) => (call, Some(condition(text)?)),
        None => (rule, None),
    };
    let mut words = call.split_whitespace();
    let (architecture, name) = match (words.next()?, words.next()) {
        (name, None) => (None, name),
        (architecture @ ("x86_64" | "aarch64"), Some(name)) => (Some(architecture), name),
        _ => return None,
    };
    (words.next().is_none() && !reason.is_empty()).then_some(Rule {
        architecture,
        name,
        condition,
        ordinary: !reason.starts_with("(rare)"),
    })
}

fn condition(text: &str) -> Option<Condition> {
    let (left, value) = text.split_once("==")?;
    let (argument, mask) = match left.split_once('&') {
        Some((argument, mask)) => (argument, named(mask)?),
        None => (left, u32::MAX),
    };
    Some(Condition {
        argument: argument.trim().strip_prefix("arg")?.parse().ok()?,
        mask,
        value: named(value)?,
    })
}

fn named(words: &str) -> Option<u32> {
    words.split('|').try_fold(0, |bits, word| {
        let (_, value) = NAMED.iter().find(|(name, _)| *name == word.trim())?;
        Some(bits | value)
    })
}
