//! The codec for plain requests: what comes is read the same in whatever packets; what is taken for a plain request is one by
//! another parser's word too, and stays the same when it is written; chunks end where they end.

#![no_main]

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use longshore::fuzzing::http1::{Asked, answer, ask, chunks};

#[derive(Arbitrary, Debug)]
struct Input<'a> {
    kind: Kind,
    cuts: Vec<u16>,
    bytes: &'a [u8],
}

#[derive(Arbitrary, Debug)]
enum Kind {
    Request,
    Answer { to_head: bool },
    Chunks,
    /// Chunks of these sizes, well formed.
    Body(Vec<u8>),
}

/// What a plain request must not have.
const SPECIAL: [&str; 6] = ["content-length", "transfer-encoding", "upgrade", "expect", "te", "trailer"];

fn packets<'a>(bytes: &'a [u8], cuts: &[u16]) -> Vec<&'a [u8]> {
    let mut places: Vec<usize> = cuts.iter().map(|&cut| usize::from(cut) % (bytes.len() + 1)).collect();
    places.extend([0, bytes.len()]);
    places.sort_unstable();
    places.windows(2).map(|pair| &bytes[pair[0]..pair[1]]).collect()
}

fn request(bytes: &[u8], cuts: &[u16]) {
    let whole = ask(&[bytes]);
    let pieces = ask(&packets(bytes, cuts));
    match (&whole, pieces) {
        (
            Asked::Plain { method, target, lines, written, rest },
            Asked::Plain { method: m, target: t, lines: l, written: w, .. },
        ) => {
            assert_eq!((method, target, lines, written), (&m, &t, &l, &w));
            let head = &bytes[..bytes.len() - rest.len()];
            assert!(bytes.ends_with(rest) && head.ends_with(b"\r\n\r\n"));
            let mut fields = [httparse::EMPTY_HEADER; 100];
            let mut parsed = httparse::Request::new(&mut fields);
            assert_eq!(parsed.parse(head), Ok(httparse::Status::Complete(head.len())));
            assert_eq!((parsed.method, parsed.version), (Some(method.as_str()), Some(1)));
            let passed_on = parsed.headers.iter().filter(|field| !field.name.eq_ignore_ascii_case("connection"));
            assert_eq!(passed_on.count(), lines.len());
            assert!(target.starts_with('/'));
            for (name, value) in lines {
                assert!(!SPECIAL.contains(&name.as_str()), "{name}");
                assert_ne!(name, "connection");
                assert!(!value.contains(&b'\r') && !value.contains(&b'\n') && !value.contains(&0));
            }
            match ask(&[written]) {
                Asked::Plain { method: m, target: t, lines: l, written: w, rest } => {
                    assert_eq!((method, target, lines, written), (&m, &t, &l, &w));
                    assert!(rest.is_empty());
                }
                other => panic!("{other:?}"),
            }
        }
        (Asked::Unusual(left), Asked::Unusual(_)) => assert_eq!(left, bytes),
        (Asked::Partial, Asked::Partial) => {}
        // A beginning that no request can have is given up at once where it comes in one piece, else with the end of its head.
        (Asked::Unusual(left), Asked::Partial) => assert_eq!(left, bytes),
        // What is refused at once is refused by another parser's word too.
        (Asked::Refused(left), Asked::Refused(_) | Asked::Unusual(_) | Asked::Partial) => {
            assert_eq!(left, bytes);
            let mut fields = [httparse::EMPTY_HEADER; 100];
            let mut parsed = httparse::Request::new(&mut fields);
            // Or the target is none, which only hyper's other half looks at.
            let is_taken = parsed.parse(bytes).is_ok();
            assert!(!is_taken || parsed.path.is_none_or(|target| target.parse::<http::Uri>().is_err()));
        }
        (whole, pieces) => panic!("{whole:?} and {pieces:?}"),
    }
}

fuzz_target!(|input: Input<'_>| {
    let Input { kind, cuts, bytes } = input;
    match kind {
        Kind::Request => request(bytes, &cuts),
        Kind::Answer { to_head } => {
            let whole = answer(&[bytes], to_head);
            let pieces = answer(&packets(bytes, &cuts), to_head);
            assert!(whole == pieces || (whole.is_err() && pieces == Ok(None)), "{whole:?} and {pieces:?}");
            if let Ok(Some((status, lines, length))) = whole {
                let told: Vec<_> = lines.iter().filter(|(name, _)| name == "content-length").collect();
                let bodiless = to_head || (100..200).contains(&status) || status == 204 || status == 304;
                match length {
                    Some(Some(0)) if bodiless => {}
                    Some(Some(length)) => {
                        let [(_, value)] = &told[..] else { panic!("{told:?}") };
                        assert_eq!(std::str::from_utf8(value).unwrap().parse(), Ok(length));
                    }
                    Some(None) => assert!(told.is_empty(), "chunked, and with a length"),
                    None => assert!(told.is_empty(), "a length that is not believed"),
                }
            }
        }
        Kind::Chunks => {
            let pieces = packets(bytes, &cuts);
            match (chunks(&[bytes]), chunks(&pieces)) {
                (Ok(Some((data, rest))), Ok(Some((same, later)))) => {
                    assert_eq!(data, same);
                    // The rest of what had come when the end was found.
                    assert!(bytes.ends_with(&rest) && rest.starts_with(&later));
                }
                (whole, pieces) => assert_eq!(whole.is_ok(), pieces.is_ok()),
            }
        }
        Kind::Body(sizes) => {
            let (mut body, mut data, mut left) = (Vec::new(), Vec::new(), bytes);
            for size in sizes {
                let (chunk, others) = left.split_at(usize::from(size).min(left.len()));
                left = others;
                if !chunk.is_empty() {
                    body.extend_from_slice(format!("{:X}\r\n", chunk.len()).as_bytes());
                    body.extend_from_slice(chunk);
                    body.extend_from_slice(b"\r\n");
                    data.extend_from_slice(chunk);
                }
            }
            body.extend_from_slice(b"0\r\n\r\n");
            assert_eq!(chunks(&packets(&body, &cuts)), Ok(Some((data, Vec::new()))));
        }
    }
});
