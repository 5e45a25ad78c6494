//! BPF instructions (Documentation/bpf/standardization/instruction-set.rst), as far as programs of
//! the agent need them. Pure; `sys` loads programs.

/// One `struct bpf_insn` (linux/bpf.h) as the little-endian word it is in memory.
pub type Instruction = u64;

/// Operation codes.
pub const LOAD_WORD: u8 = 0x61;
/// A word to memory.
pub const STORE_WORD: u8 = 0x63;
/// Bitwise, 32 bits.
pub const AND: u8 = 0x54;
/// Logical, 32 bits.
pub const SHIFT_RIGHT: u8 = 0x74;
/// A constant, 32 bits.
pub const MOVE: u8 = 0xb4;
/// A register, 32 bits.
pub const MOVE_REGISTER: u8 = 0xbc;
/// A register, 64 bits.
pub const MOVE_REGISTER_64: u8 = 0xbf;
/// A constant of 64 bits: two instructions.
pub const LOAD_CONSTANT: u8 = 0x18;
/// To a constant, 64 bits.
pub const JUMP_EQUAL: u8 = 0x15;
/// To a constant, 64 bits.
pub const JUMP_NOT_EQUAL: u8 = 0x55;
/// To a constant, 32 bits.
pub const JUMP_NOT_EQUAL_32: u8 = 0x56;
/// To a register, 64 bits.
pub const JUMP_NOT_EQUAL_REGISTER: u8 = 0x5d;
/// A function of the kernel's.
pub const CALL: u8 = 0x85;
/// The end.
pub const EXIT: u8 = 0x95;

/// One instruction from its fields.
pub fn instruction(operation: u8, to: u8, from: u8, offset: u16, value: i32) -> Instruction {
    let [o0, o1] = offset.to_le_bytes();
    let [v0, v1, v2, v3] = value.to_le_bytes();
    u64::from_le_bytes([operation, from << 4 | to, o0, o1, v0, v1, v2, v3])
}
