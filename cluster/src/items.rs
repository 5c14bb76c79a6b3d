//! Cuts a list into its items while it is read, so that no more than one item is held as text. Pure.

/// Splits `{"metadata":{…},"items":[{…},{…}]}`. Whatever stands around the items is kept for the end.
#[derive(Default)]
pub(crate) struct Items {
    /// Everything outside the items: still JSON, with an empty list.
    around: Vec<u8>,
    item: Vec<u8>,
    depth: u32,
    in_string: bool,
    escaped: bool,
    /// The last string directly in the list object: a key, when a value begins.
    key: Vec<u8>,
    /// Within the brackets of `items`.
    in_items: bool,
}

/// An item, or what surrounds the items, is larger than any object can be.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct TooLarge;

impl Items {
    /// Takes the next bytes and hands over every item that ends in them.
    pub(crate) fn push(
        &mut self,
        bytes: &[u8],
        limit: usize,
        mut found: impl FnMut(&[u8]),
    ) -> Result<(), TooLarge> {
        for &byte in bytes {
            let was_inside = self.is_inside();
            self.step(byte);
            if was_inside || self.is_inside() {
                self.item.push(byte);
            } else if !(self.in_items && byte == b',') {
                // Commas between items would leave `[,,]` behind.
                self.around.push(byte);
            }
            if was_inside && !self.is_inside() {
                found(&self.item);
                self.item.clear();
            }
            if self.item.len() > limit || self.around.len() > limit {
                return Err(TooLarge);
            }
        }
        if self.item.capacity() > 64 << 10 && self.item.is_empty() {
            self.item = Vec::new();
        }
        Ok(())
    }

    /// What surrounds the items.
    pub(crate) fn around(&self) -> &[u8] {
        &self.around
    }

    fn is_inside(&self) -> bool {
        self.in_items && self.depth > 2
    }

    fn step(&mut self, byte: u8) {
        if self.in_string {
            match byte {
                _ if self.escaped => self.escaped = false,
                b'\\' => self.escaped = true,
                b'"' => self.in_string = false,
                _ if self.depth == 1 && self.key.len() < 16 => self.key.push(byte),
                _ => {}
            }
            return;
        }
        match byte {
            b'"' => {
                self.in_string = true;
                if self.depth == 1 {
                    self.key.clear();
                }
            }
            b'{' | b'[' => {
                self.in_items |= self.depth == 1 && byte == b'[' && self.key == b"items";
                self.depth += 1;
            }
            b'}' | b']' => {
                self.depth = self.depth.saturating_sub(1);
                self.in_items &= self.depth > 1;
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIST: &str = r#"{"kind":"PodList","metadata":{"resourceVersion":"7","items":["no"]},
        "items":[ {"a":"x\"}],","b":[1,{"c":2}]} ,{"items":[{}]}, {} ],"after":{"x":[1]}}"#;

    fn split(text: &str, step: usize) -> (Vec<String>, serde_json::Value) {
        let mut items = Items::default();
        let mut found = Vec::new();
        for part in text.as_bytes().chunks(step) {
            items.push(part, 1000, |item| found.push(String::from_utf8(item.to_vec()).unwrap())).unwrap();
        }
        (found, serde_json::from_slice(items.around()).unwrap())
    }

    #[test]
    fn items_are_cut_wherever_frames_end() {
        for step in [1, 2, 7, 1000] {
            let (found, around) = split(LIST, step);
            assert_eq!(found, [r#"{"a":"x\"}],","b":[1,{"c":2}]}"#, r#"{"items":[{}]}"#, "{}"]);
            assert_eq!(around["metadata"]["resourceVersion"], "7");
            assert_eq!((&around["items"], &around["after"]["x"][0]), (&serde_json::json!([]), &1.into()));
        }
    }

    #[test]
    fn lists_of_nothing_are_lists() {
        for text in [r#"{"items":[]}"#, r#"{"items":null,"metadata":{}}"#, "{}"] {
            assert!(split(text, 3).0.is_empty());
        }
    }

    #[test]
    fn an_item_without_end_is_not_held() {
        let mut items = Items::default();
        items.push(br#"{"items":[{"a":""#, 100, |_| {}).unwrap();
        assert_eq!(items.push(&[b'x'; 200], 100, |_| {}), Err(TooLarge));
        let mut around = Items::default();
        assert_eq!(around.push(&[b'x'; 200], 100, |_| {}), Err(TooLarge));
    }
}
