//! The test application: one static binary that does what its arguments say.

use std::io::Write;
use std::time::Duration;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let arg = |n: usize| args.get(n).map(String::as_str).unwrap_or_default();
    let number = |n: usize| arg(n).parse::<u64>().unwrap_or(0);
    match arg(0) {
        "say" => println!("{}", args[1..].join(" ")),
        "count" => (1..=number(1)).for_each(|n| println!("line {n}")),
        "env" => println!("{}={}", arg(1), std::env::var(arg(1)).unwrap_or_else(|_| "unset".to_owned())),
        "cat" => print!("{}", std::fs::read_to_string(arg(1)).unwrap_or_else(|error| format!("{error}\n"))),
        "length" => println!("length {}", std::fs::read(arg(1)).map(|bytes| bytes.len()).unwrap_or(0)),
        "write" => std::fs::write(arg(1), arg(2)).expect("write"),
        "append" => {
            let mut file = std::fs::OpenOptions::new().create(true).append(true).open(arg(1)).expect("open");
            writeln!(file, "once").expect("append");
            println!("{} has {} bytes", arg(1), file.metadata().expect("metadata").len());
        }
        "ls" => {
            let mut names: Vec<_> = std::fs::read_dir(arg(1)).expect("ls").flatten().map(|e| e.file_name()).collect();
            names.sort();
            println!("{names:?}");
        }
        "exists" => std::process::exit(i32::from(!std::path::Path::new(arg(1)).exists())),
        "status" => print!("{}", std::fs::read_to_string("/proc/self/status").expect("status")),
        "eat" => {
            let mut eaten = Vec::new();
            loop {
                eaten.push(vec![1u8; 8 << 20]);
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        "exit" => std::process::exit(number(1) as i32),
        "exit-after" => {
            std::thread::sleep(Duration::from_millis(number(1)));
            println!("done");
            std::process::exit(number(2) as i32);
        }
        "sleep" => {
            println!("sleeping {}", arg(1));
            std::thread::sleep(Duration::from_secs(600));
        }
        other => {
            eprintln!("unknown {other:?}");
            std::process::exit(64);
        }
    }
}
