//! Bytes cut into the parts that a check needs, so that a seed can be written by hand: lengths stand before what they are of.

/// What is left of the bytes.
pub struct Cut<'b>(pub &'b [u8]);

impl<'b> Cut<'b> {
    /// A byte; 0 where none is left.
    pub fn byte(&mut self) -> u8 {
        self.some(1).first().copied().unwrap_or_default()
    }

    /// At most so many.
    pub fn some(&mut self, most: usize) -> &'b [u8] {
        let (some, rest) = self.0.split_at(most.min(self.0.len()));
        self.0 = rest;
        some
    }

    /// A length in one byte, and so many.
    pub fn short(&mut self) -> &'b [u8] {
        let length = self.byte();
        self.some(length.into())
    }

    /// A length in two bytes, little endian, and so many.
    pub fn long(&mut self) -> &'b [u8] {
        let length = u16::from_le_bytes([self.byte(), self.byte()]);
        self.some(length.into())
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}
