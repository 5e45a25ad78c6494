//! BPF instructions (Documentation/bpf/standardization/instruction-set.rst), as far as programs of
//! the agent need them. Pure; `sys` loads programs.

/// One `struct bpf_insn` (linux/bpf.h) as the little-endian word it is in memory.
pub type Instruction = u64;

/// Operation codes.
pub const LOAD_WORD: u8 = 0x61;
/// 64 bits from memory.
pub const LOAD_DOUBLE: u8 = 0x79;
/// A word to memory.
pub const STORE_WORD: u8 = 0x63;
/// 16 bits to memory.
pub const STORE_HALF: u8 = 0x6b;
/// Bitwise, 32 bits.
pub const AND: u8 = 0x54;
/// Logical, 32 bits.
pub const SHIFT_RIGHT: u8 = 0x74;
/// A constant, 32 bits.
pub const MOVE: u8 = 0xb4;
/// 16 bits to the network's order of bytes, if the constant says 16.
pub const TO_NETWORK: u8 = 0xdc;
/// A register, 32 bits.
pub const OR_REGISTER: u8 = 0x4c;
/// A constant, 64 bits.
pub const ADD_64: u8 = 0x07;
/// A register, 32 bits.
pub const MOVE_REGISTER: u8 = 0xbc;
/// A register, 64 bits.
pub const MOVE_REGISTER_64: u8 = 0xbf;
/// A constant of 64 bits: two instructions.
pub const LOAD_CONSTANT: u8 = 0x18;
/// Always.
pub const JUMP: u8 = 0x05;
/// To a constant, 64 bits.
pub const JUMP_EQUAL: u8 = 0x15;
/// To a constant, 32 bits.
pub const JUMP_EQUAL_32: u8 = 0x16;
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

/// A place in a program that is being written.
#[derive(Clone, Copy, Debug)]
pub struct Label(usize);

/// A program that is being written, whose jumps lead to places that come later.
#[derive(Debug, Default)]
pub struct Assembler {
    steps: Vec<Instruction>,
    /// Each with where it leads to.
    jumps: Vec<(usize, Label)>,
    /// By their numbers, once they are known.
    places: Vec<Option<usize>>,
}

impl Assembler {
    /// A label for a place that is not known yet.
    pub fn label(&mut self) -> Label {
        self.places.push(None);
        Label(self.places.len() - 1)
    }

    /// The next instruction.
    pub fn put(&mut self, operation: u8, to: u8, from: u8, offset: i16, value: i32) {
        let [low, high] = offset.to_le_bytes();
        let offset = u16::from_le_bytes([low, high]);
        (self.steps).push(instruction(operation, to, from, offset, value));
    }

    /// The next two: a constant of 64 bits to a register.
    pub fn put_constant(&mut self, to: u8, value: u64) {
        let [v0, v1, v2, v3, v4, v5, v6, v7] = value.to_le_bytes();
        let low = i32::from_le_bytes([v0, v1, v2, v3]);
        let high = i32::from_le_bytes([v4, v5, v6, v7]);
        self.put(LOAD_CONSTANT, to, 0, 0, low);
        self.put(0, 0, 0, 0, high);
    }

    /// The next instruction, which may go on at a label.
    pub fn jump(&mut self, operation: u8, to: u8, from: u8, value: i32, label: Label) {
        self.jumps.push((self.steps.len(), label));
        self.put(operation, to, from, 0, value);
    }

    /// The label is here.
    pub fn place(&mut self, label: Label) {
        self.places[label.0] = Some(self.steps.len());
    }

    /// The program. Every label that is jumped to must have its place, after the jump.
    pub fn finish(mut self) -> Vec<Instruction> {
        for (jump, label) in self.jumps {
            let place = self.places[label.0].expect("a label that is jumped to has a place");
            let over = u16::try_from(place - jump - 1).expect("a program of some hundred steps");
            self.steps[jump] |= u64::from(over) << 16;
        }
        self.steps
    }
}
