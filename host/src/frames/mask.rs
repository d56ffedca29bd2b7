//! The masking of a client's payload (RFC 6455, section 5.3).

/// Applies `mask` to `bytes`, the first of which is at `offset` in the payload (modulo 4). Returns
/// the offset after them.
pub(super) fn apply_mask(bytes: &mut [u8], mask: [u8; 4], offset: usize) -> usize {
    let rotated = [
        mask[offset % 4],
        mask[(offset + 1) % 4],
        mask[(offset + 2) % 4],
        mask[(offset + 3) % 4],
    ];
    let wide = u64::from(u32::from_ne_bytes(rotated));
    let wide = wide << 32 | wide;
    let mut words = bytes.chunks_exact_mut(8);
    for word in &mut words {
        let mut eight = [0; 8];
        eight.copy_from_slice(word);
        word.copy_from_slice(&(u64::from_ne_bytes(eight) ^ wide).to_ne_bytes());
    }
    for (index, byte) in words.into_remainder().iter_mut().enumerate() {
        *byte ^= rotated[index % 4];
    }
    (offset + bytes.len()) % 4
}
