//! What a stand-in looks like, and how it is told. Pure.

use std::ffi::{CString, OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use agent_protocol::{self as agent, MAX_COMMAND_LINE};

/// Bytes of a name that the kernel keeps.
const MAX_NAME: usize = 15;

/// What `ps` shows of a process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Figure {
    /// Never empty.
    args: Vec<OsString>,
    name: Vec<u8>,
    uid: u32,
    gid: u32,
    /// It is to have ended.
    pub(super) zombie: bool,
}

/// What a stand-in is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// A container's init: it can be told to look otherwise.
    Init,
    /// Another process.
    Further,
    /// One that has ended.
    Zombie,
}

/// What a stand-in is told of itself besides its arguments.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Role {
    pub(super) kind: Kind,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) name: CString,
}

impl Figure {
    /// What the init of container `id` looks like until somebody asks.
    pub(super) fn of_container(id: &str) -> Self {
        Self {
            args: vec!["hull-stand-in".into(), id.into()],
            name: b"hull-stand-in".to_vec(),
            uid: 0,
            gid: 0,
            zombie: false,
        }
    }

    /// What a process of the guest looks like, cut to what a process of the host can be.
    pub(super) fn of(process: &agent::Process) -> Self {
        let name = until_nul(&process.name);
        let name = name[..name.len().min(MAX_NAME)].to_vec();
        let line = &process.command_line;
        let line = &line[..line.len().min(MAX_COMMAND_LINE)];
        // One that writes a line of its own over its arguments may leave nothing but NULs behind it.
        let end = line.iter().rposition(|&byte| byte != 0);
        let args = match end {
            Some(end) => line[..=end].split(|&byte| byte == 0).map(os).collect(),
            // As ps shows it.
            None => vec![os(&[b"[", &name[..], b"]"].concat())],
        };
        Self {
            args,
            name,
            uid: process.uid,
            gid: process.gid,
            zombie: process.zombie,
        }
    }

    pub(super) fn arg0(&self) -> &OsStr {
        self.args.first().map_or(OsStr::new(""), |arg| arg)
    }

    pub(super) fn further_args(&self) -> &[OsString] {
        self.args.get(1..).unwrap_or_default()
    }

    /// The value of `program::ROLE`.
    pub(super) fn role(&self, kind: Kind) -> OsString {
        let kind = match kind {
            Kind::Init => "init",
            Kind::Further => "further",
            Kind::Zombie => "zombie",
        };
        let mut role = format!("{kind} {} {} ", self.uid, self.gid).into_bytes();
        role.extend(&self.name);
        OsString::from_vec(role)
    }

    /// The order to an init's stand-in to become this: its length, then role and arguments with a NUL
    /// behind each.
    pub(super) fn order(&self) -> Vec<u8> {
        let role = self.role(Kind::Init);
        let words = [role.as_os_str()].into_iter();
        let words = words.chain(self.args.iter().map(OsString::as_os_str));
        let body: Vec<u8> = words
            .flat_map(|word| [word.as_bytes(), b"\0"].concat())
            .collect();
        let length = u32::try_from(body.len()).expect("a name and a command line, which were cut");
        [&length.to_le_bytes()[..], &body].concat()
    }
}

impl Role {
    /// Reads what [`Figure::role`] wrote.
    pub(super) fn parse(text: &OsStr) -> Option<Self> {
        let mut fields = text.as_bytes().splitn(4, |&byte| byte == b' ');
        let kind = match fields.next()? {
            b"init" => Kind::Init,
            b"further" => Kind::Further,
            b"zombie" => Kind::Zombie,
            _ => return None,
        };
        let mut number = || str::from_utf8(fields.next()?).ok()?.parse().ok();
        Some(Self {
            kind,
            uid: number()?,
            gid: number()?,
            name: CString::new(fields.next()?).ok()?,
        })
    }
}

/// The words of an order's body: the role first.
pub(super) fn words(body: &[u8]) -> Vec<CString> {
    let words = body.split_inclusive(|&byte| byte == 0);
    words
        .filter_map(|word| CString::from_vec_with_nul(word.to_owned()).ok())
        .collect()
}

fn until_nul(bytes: &[u8]) -> &[u8] {
    let end = bytes.iter().position(|&byte| byte == 0);
    &bytes[..end.unwrap_or(bytes.len())]
}

fn os(bytes: &[u8]) -> OsString {
    OsStr::from_bytes(bytes).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figure(name: &[u8], command_line: &[u8]) -> Figure {
        Figure::of(&agent::Process {
            name: name.into(),
            command_line: command_line.into(),
            uid: 7,
            gid: 8,
            ..Default::default()
        })
    }

    #[test]
    fn arguments_are_those_of_the_process() {
        let sleep = figure(b"sleep", b"sleep\0\0 10\0");
        assert_eq!(sleep.args, ["sleep", "", " 10"]);
        let nginx = figure(b"nginx", b"nginx: worker process\0\0\0\0");
        assert_eq!(nginx.args, ["nginx: worker process"]);
        for nothing in [&b""[..], b"\0", b"\0\0"] {
            assert_eq!(figure(b"gone", nothing).args, ["[gone]"]);
        }
    }

    #[test]
    fn what_a_hostile_guest_says_is_cut() {
        let hostile = figure(&[b'a'; 4000], &[b'b'; 1 << 20]);
        assert_eq!(hostile.name.len(), MAX_NAME);
        assert_eq!(hostile.arg0().len(), MAX_COMMAND_LINE);
        assert_eq!(figure(b"a\0b", b"").name, b"a");
    }

    #[test]
    fn a_role_reads_back_as_it_was_written() {
        for name in ["sh", "", "a name) 0 0\n"] {
            let role = figure(name.as_bytes(), b"").role(Kind::Further);
            let expected = Role {
                kind: Kind::Further,
                uid: 7,
                gid: 8,
                name: CString::new(name).unwrap(),
            };
            assert_eq!(Role::parse(&role), Some(expected));
        }
        for broken in ["", "init", "init 1 2", "king 1 2 sh", "init -1 2 sh"] {
            assert_eq!(Role::parse(OsStr::new(broken)), None, "{broken}");
        }
    }

    #[test]
    fn an_order_has_the_role_and_the_arguments() {
        let order = figure(b"sh", b"sh\0-c\0\0").order();
        let (length, body) = order.split_at(4);
        assert_eq!(length, u32::try_from(body.len()).unwrap().to_le_bytes());
        let words = words(body);
        assert_eq!(words, [c"init 7 8 sh", c"sh", c"-c"].map(ToOwned::to_owned));
    }
}
