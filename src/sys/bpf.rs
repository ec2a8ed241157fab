//! An assembler for classic BPF (Documentation/networking/filter.rst of the kernel) with labels.

/// One instruction: `struct sock_filter` of linux/filter.h.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Instruction {
    /// The opcode.
    pub code: u16,
    /// The number of instructions to skip if a comparison is true.
    pub jump_true: u8,
    /// The number of instructions to skip if a comparison is false.
    pub jump_false: u8,
    /// The operand.
    pub k: u32,
}

type Opcode = u16;

// linux/bpf_common.h and linux/filter.h: class, size and addressing mode.
pub(crate) const LOAD_WORD: Opcode = 0x20;
pub(crate) const LOAD_HALF: Opcode = 0x28;
pub(crate) const LOAD_BYTE: Opcode = 0x30;
pub(crate) const LOAD_HALF_AT_X: Opcode = 0x48;
pub(crate) const LOAD_WORD_AT_X: Opcode = 0x40;
pub(crate) const LOAD_BYTE_AT_X: Opcode = 0x50;
pub(crate) const LOAD_LENGTH: Opcode = 0x80;
pub(crate) const LOAD_KEPT: Opcode = 0x60;
pub(crate) const KEEP: Opcode = 0x02;
pub(crate) const SET_A: Opcode = 0x00;
pub(crate) const SET_X: Opcode = 0x01;
pub(crate) const A_TO_X: Opcode = 0x07;
/// Sets X to four times the lower half of a byte: the length of an IPv4 header.
pub(crate) const X_HEADER_LENGTH: Opcode = 0xb1;
pub(crate) const ADD: Opcode = 0x04;
pub(crate) const ADD_X: Opcode = 0x0c;
pub(crate) const SUBTRACT_X: Opcode = 0x1c;
pub(crate) const SHIFT_LEFT: Opcode = 0x64;
pub(crate) const JUMP: Opcode = 0x05;
pub(crate) const IF_EQUAL: Opcode = 0x15;
pub(crate) const IF_AT_LEAST: Opcode = 0x35;
pub(crate) const IF_ANY_BIT: Opcode = 0x45;
pub(crate) const RETURN: Opcode = 0x06;

/// A position in the program, which a jump can refer to before it is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Label(usize);

/// An instruction, or a jump whose distance is not known yet.
#[derive(Debug)]
enum Line {
    Do(Instruction),
    Go(Label),
    Here(Label),
}

#[derive(Debug, Default)]
pub(crate) struct Program {
    lines: Vec<Line>,
    labels: usize,
}

impl Program {
    pub(crate) fn label(&mut self) -> Label {
        self.labels += 1;
        Label(self.labels)
    }

    pub(crate) fn put(&mut self, code: u16, k: u32) {
        self.lines.push(Line::Do(Instruction { code, jump_true: 0, jump_false: 0, k }));
    }

    pub(crate) fn here(&mut self, label: Label) {
        self.lines.push(Line::Here(label));
    }

    pub(crate) fn go(&mut self, label: Label) {
        self.lines.push(Line::Go(label));
    }

    /// Skips the next instruction unless the comparison is true.
    pub(crate) fn only_if(&mut self, code: u16, k: u32) {
        self.lines.push(Line::Do(Instruction { code, jump_true: 0, jump_false: 1, k }));
    }

    /// Jumps to the label unless the comparison is true.
    pub(crate) fn unless(&mut self, code: u16, k: u32) {
        self.lines.push(Line::Do(Instruction { code, jump_true: 1, jump_false: 0, k }));
    }

    /// Replaces labels by distances. Only forward jumps are possible.
    pub(crate) fn resolved(self) -> Vec<Instruction> {
        let mut places = vec![0; self.labels + 1];
        let mut count = 0_u32;
        for line in &self.lines {
            match line {
                Line::Here(Label(nr)) => places[*nr] = count,
                Line::Do(_) | Line::Go(_) => count += 1,
            }
        }
        let mut done: Vec<Instruction> = Vec::new();
        for line in self.lines {
            match line {
                Line::Do(instruction) => done.push(instruction),
                Line::Go(Label(nr)) => {
                    let next = done.len() as u32 + 1;
                    let k = places[nr].saturating_sub(next);
                    done.push(Instruction { code: JUMP, jump_true: 0, jump_false: 0, k });
                }
                Line::Here(_) => {}
            }
        }
        done
    }
}
