//! Splits bytes into the parts of a check; lengths precede parts, so that seeds can be written by
//! hand.

/// The remaining bytes.
pub struct Cut<'b>(pub &'b [u8]);

impl<'b> Cut<'b> {
    /// Returns the next byte; 0 at the end.
    pub fn byte(&mut self) -> u8 {
        self.some(1).first().copied().unwrap_or_default()
    }

    /// Returns at most `most` bytes.
    pub fn some(&mut self, most: usize) -> &'b [u8] {
        let (some, rest) = self.0.split_at(most.min(self.0.len()));
        self.0 = rest;
        some
    }

    /// Returns a part with a one-byte length.
    pub fn short(&mut self) -> &'b [u8] {
        let length = self.byte();
        self.some(length.into())
    }

    /// Returns a part with a two-byte length, little endian.
    pub fn long(&mut self) -> &'b [u8] {
        let length = u16::from_le_bytes([self.byte(), self.byte()]);
        self.some(length.into())
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}
