//! sleep(1): a program of its own that pjdfstest copies and finds busy, which busybox's is not
//! under another name.

use std::time::Duration;

fn main() {
    let seconds = std::env::args().nth(1).and_then(|text| text.parse().ok());
    std::thread::sleep(Duration::from_secs_f64(seconds.unwrap_or_default()));
}
