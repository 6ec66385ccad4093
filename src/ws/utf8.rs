//! UTF-8 in pieces.

/// Checks text that comes in pieces; a character may be split between two of them.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Utf8 {
    /// Start of a character whose end has not come.
    begun: [u8; 4],
    begun_len: u8,
}

impl Utf8 {
    /// Whether all that came so far can be the start of a text.
    pub fn push(&mut self, mut bytes: &[u8]) -> bool {
        while self.begun_len > 0 {
            let Some((&byte, rest)) = bytes.split_first() else { return true };
            bytes = rest;
            let len = usize::from(self.begun_len);
            self.begun[len] = byte;
            match std::str::from_utf8(&self.begun[..=len]) {
                Ok(_) => self.begun_len = 0,
                Err(error) if error.error_len().is_some() => return false,
                Err(_) => self.begun_len += 1,
            }
        }
        let Err(error) = std::str::from_utf8(bytes) else { return true };
        if error.error_len().is_some() {
            return false;
        }
        // At most three bytes: a whole character would be valid or not.
        let begun = &bytes[error.valid_up_to()..];
        self.begun[..begun.len()].copy_from_slice(begun);
        self.begun_len = begun.len() as u8;
        true
    }

    /// Whether no character is unfinished.
    pub fn is_whole(&self) -> bool {
        self.begun_len == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whole(pieces: &[&[u8]]) -> Option<bool> {
        let mut utf8 = Utf8::default();
        pieces.iter().all(|piece| utf8.push(piece)).then(|| utf8.is_whole())
    }

    #[test]
    fn text_is_judged_alike_however_it_is_cut() {
        let texts: [&[u8]; 9] = [
            "κόσμε".as_bytes(),
            "a\u{7FF}\u{FFFF}\u{10FFFF}z".as_bytes(),
            b"",
            b"\xC0\xAF",
            b"\xED\xA0\x80",
            b"\xF4\x90\x80\x80",
            b"ab\xCE",
            b"ab\xF0\x9F\x98",
            b"\x80",
        ];
        for text in texts {
            let expected = match std::str::from_utf8(text) {
                Ok(_) => Some(true),
                Err(error) if error.error_len().is_none() => Some(false),
                Err(_) => None,
            };
            for first in 0..=text.len() {
                for second in first..=text.len() {
                    let pieces = [&text[..first], &text[first..second], &text[second..]];
                    assert_eq!(whole(&pieces), expected, "{pieces:?}");
                }
            }
            let bytes: Vec<_> = text.chunks(1).collect();
            assert_eq!(whole(&bytes), expected);
        }
    }

    #[test]
    fn a_wrong_byte_is_seen_when_it_comes() {
        let mut utf8 = Utf8::default();
        assert!(utf8.push(b"\xF4"));
        assert!(!utf8.push(b"\x90"));
    }
}
