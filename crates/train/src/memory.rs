//! How much memory this process has used.

/// The most memory this process has had resident, in bytes; `None` where the operating system does not say.
pub fn peak_memory_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    peak_of(&status)
}

/// `VmHWM` of Linux's `/proc/self/status`, which is in kibibytes.
fn peak_of(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_high_water_mark_is_read_and_rises() {
        assert_eq!(
            peak_of("VmPeak:\t   10 kB\nVmHWM:\t  204 kB\nVmRSS:\t 7 kB\n"),
            Some(204 * 1024)
        );
        assert_eq!(peak_of("VmPeak:\t   10 kB\n"), None);
        if cfg!(target_os = "linux") {
            let before = peak_memory_bytes().unwrap();
            let touched = vec![1_u8; 64 << 20];
            assert!(std::hint::black_box(&touched).iter().all(|&byte| byte == 1));
            let after = peak_memory_bytes().unwrap();
            assert!(after >= before && after > 64 << 20, "{before} {after}");
        }
    }
}
