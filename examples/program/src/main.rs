//! The program inside the example images: static, with no dependency, one process and no thread.
//!
//! `example count [SECONDS]`       prints a line every so many seconds
//! `example serve PORT [TEXT]`     answers HTTP on PORT with TEXT and the pod's name; `/healthz` with ok
//! `example get PORT`              one HTTP request to this pod, printed
//! `example write PATH TEXT`       writes a file and ends
//! `example mark PATH`             makes an empty file and waits, so that its time is the start's
//! `example exit CODE`             ends with CODE
//! `example open PATH`             opens a file or a device and says whether it may
//! `example sleep`                 waits for its end without using the processor
//! `example echo`                  says what it hears, to the end
//! `example fill MIB`              takes so much memory and waits
//! `example spawn N`               starts up to N processes, without mercy when one is refused
//! `example pour PATH MIB`         writes so much into a file, or what there is room for, and waits
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "what it prints is the container's log")]

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::ExitCode;
use std::time::Duration;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["count"] => count(1),
        ["count", seconds] => count(seconds.parse().unwrap_or(1)),
        ["serve", port] => serve(port, "hello from"),
        ["serve", port, text] => serve(port, text),
        ["get", port] => get(port),
        ["write", path, text] => report(std::fs::write(path, format!("{text}\n"))),
        ["mark", path] => match std::fs::write(path, "") {
            Ok(()) => wait_for_the_end(),
            failed => report(failed),
        },
        ["open", path] => open(path),
        ["exit", code] => ExitCode::from(code.parse().unwrap_or(1)),
        ["sleep"] => wait_for_the_end(),
        ["echo"] => report(std::io::copy(&mut std::io::stdin(), &mut std::io::stdout()).map(drop)),
        ["spawn", count] => spawn(count.parse().unwrap_or(1)),
        ["pour", path, mebibytes] => {
            match pour(path, mebibytes.parse().unwrap_or(1)) {
                Ok(()) => println!("wrote {mebibytes} MiB"),
                Err(error) => eprintln!("example: {path}: {error}"),
            }
            wait_for_the_end()
        }
        ["fill", mebibytes] => fill(mebibytes.parse().unwrap_or(1)),
        other => {
            eprintln!("example: do not know {other:?}");
            ExitCode::from(2)
        }
    }
}

fn report(result: std::io::Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("example: {error}");
            ExitCode::FAILURE
        }
    }
}

fn open(path: &str) -> ExitCode {
    match std::fs::File::open(path) {
        Ok(_) => {
            println!("{path} is open");
            ExitCode::SUCCESS
        }
        Err(error) => {
            println!("{path} stays shut: {error}");
            ExitCode::FAILURE
        }
    }
}

fn count(seconds: u64) -> ExitCode {
    for number in 0_u64.. {
        println!("{number}");
        std::thread::sleep(Duration::from_secs(seconds));
    }
    ExitCode::SUCCESS
}

fn fill(mebibytes: usize) -> ExitCode {
    let memory = vec![1_u8; mebibytes << 20];
    println!("holding {} MiB", memory.len() >> 20);
    wait_for_the_end()
}

fn spawn(count: usize) -> ExitCode {
    let mut started = 0;
    let mut was_refused = false;
    while started < count {
        let own = std::env::current_exe().unwrap_or_else(|_| "/example".into());
        match std::process::Command::new(own).arg("sleep").spawn() {
            Ok(_) => started += 1,
            Err(error) => {
                if !std::mem::replace(&mut was_refused, true) {
                    eprintln!("example: refused after {started}: {error}");
                }
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }
    println!("started {started}");
    wait_for_the_end()
}

fn pour(path: &str, mebibytes: usize) -> std::io::Result<()> {
    let mut file = std::fs::File::create(path)?;
    for _ in 0..mebibytes {
        file.write_all(&[1_u8; 1 << 20])?;
    }
    Ok(())
}

fn wait_for_the_end() -> ExitCode {
    loop {
        std::thread::park();
    }
}

fn serve(port: &str, text: &str) -> ExitCode {
    let listener = match TcpListener::bind(format!("0.0.0.0:{port}")) {
        Ok(listener) => listener,
        Err(error) => {
            eprintln!("example: cannot listen on port {port}: {error}");
            return ExitCode::FAILURE;
        }
    };
    let host = std::env::var("HOSTNAME").unwrap_or_default();
    println!("serving on port {port}");
    for stream in listener.incoming().flatten() {
        if let Err(error) = answer(stream, &format!("{text} {host}\n")) {
            eprintln!("example: {error}");
        }
    }
    ExitCode::SUCCESS
}

fn answer(mut stream: TcpStream, text: &str) -> std::io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    let mut request = [0_u8; 4096];
    let length = stream.read(&mut request)?;
    let line = String::from_utf8_lossy(&request[..length]);
    let body = if line.starts_with("GET /healthz") { "ok\n" } else { text };
    write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len())
}

fn get(port: &str) -> ExitCode {
    report((|| {
        let mut stream = TcpStream::connect(format!("127.0.0.1:{port}"))?;
        write!(stream, "GET / HTTP/1.0\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        println!("{}", answer.rsplit("\r\n\r\n").next().unwrap_or(""));
        Ok(())
    })())
}
