//! WebSockets (RFC 6455): just enough to send every message back to well-behaved clients.

use std::io::{self, Read, Write};

const CLOSE: u8 = 0x8;

/// What agrees to a client's key (RFC 6455 §4.2.2).
pub fn accept(key: &str) -> String {
    base64(&sha1(format!("{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11").as_bytes()))
}

/// Sends messages back until one side closes; how many bytes of them came.
pub fn echo(reader: &mut impl Read, out: &mut impl Write, came: &mut usize) -> io::Result<()> {
    loop {
        let mut head = [0; 2];
        if reader.read(&mut head[..1])? == 0 {
            return Ok(());
        }
        reader.read_exact(&mut head[1..])?;
        let length = match head[1] & 0x7f {
            126 => read::<2>(reader)?.iter().fold(0, |length, &byte| length << 8 | usize::from(byte)),
            127 => read::<8>(reader)?.iter().fold(0, |length, &byte| length << 8 | usize::from(byte)),
            length => length.into(),
        };
        let mask = read::<4>(reader)?;
        let mut payload = vec![0; length];
        reader.read_exact(&mut payload)?;
        payload.iter_mut().zip(mask.iter().cycle()).for_each(|(byte, mask)| *byte ^= mask);
        let is_last = head[0] & 0x0f == CLOSE;
        *came += if is_last { 0 } else { length };
        let mut frame = vec![head[0]];
        match length {
            0..126 => frame.push(length as u8),
            126..0x1_0000 => {
                frame.push(126);
                frame.extend((length as u16).to_be_bytes());
            }
            _ => {
                frame.push(127);
                frame.extend((length as u64).to_be_bytes());
            }
        }
        frame.extend(payload);
        out.write_all(&frame)?;
        if is_last {
            return Ok(());
        }
    }
}

fn read<const N: usize>(reader: &mut impl Read) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    reader.read_exact(&mut bytes).map(|()| bytes)
}

/// FIPS 180-4, section 6.1.
fn sha1(message: &[u8]) -> Vec<u8> {
    let mut padded = [message, &[0x80]].concat();
    padded.resize((message.len() + 9).next_multiple_of(64) - 8, 0);
    padded.extend((message.len() as u64 * 8).to_be_bytes());
    let mut hash = [0x6745_2301_u32, 0xefcd_ab89, 0x98ba_dcfe, 0x1032_5476, 0xc3d2_e1f0];
    for block in padded.chunks(64) {
        let mut words: Vec<u32> = block.chunks(4).map(|word| u32::from_be_bytes(word.try_into().unwrap())).collect();
        for at in 16..80 {
            words.push((words[at - 3] ^ words[at - 8] ^ words[at - 14] ^ words[at - 16]).rotate_left(1));
        }
        let [mut a, mut b, mut c, mut d, mut e] = hash;
        for (at, word) in words.iter().enumerate() {
            let (mixed, constant) = match at {
                0..20 => (b & c | !b & d, 0x5a82_7999),
                20..40 => (b ^ c ^ d, 0x6ed9_eba1),
                40..60 => (b & c | b & d | c & d, 0x8f1b_bcdc),
                _ => (b ^ c ^ d, 0xca62_c1d6_u32),
            };
            let next = a.rotate_left(5).wrapping_add(mixed).wrapping_add(e).wrapping_add(constant).wrapping_add(*word);
            (e, d, c, b, a) = (d, c, b.rotate_left(30), a, next);
        }
        for (sum, part) in hash.iter_mut().zip([a, b, c, d, e]) {
            *sum = sum.wrapping_add(part);
        }
    }
    hash.iter().flat_map(|word| word.to_be_bytes()).collect()
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for group in bytes.chunks(3) {
        let bits = (0..3).fold(0, |bits, at| bits << 8 | u32::from(*group.get(at).unwrap_or(&0)));
        for digit in 0..4 {
            let at = bits >> (18 - 6 * digit) & 0x3f;
            text.push(if digit <= group.len() as u32 { DIGITS[at as usize].into() } else { '=' });
        }
    }
    text
}
