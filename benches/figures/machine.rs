//! The machine that was measured on: a figure means nothing without it.

use std::fmt;

use serde_json::{Value, json};

/// Processor, memory, kernel, and what else ran when the measurement began.
pub(crate) struct Machine {
    processor: String,
    cores: usize,
    memory: f64,
    kernel: String,
    load: String,
}

impl Machine {
    pub(crate) fn describe() -> Self {
        let read = |path| std::fs::read_to_string(path).unwrap_or_default();
        let after = |text: &str, name: &str| {
            let line = text.lines().find(|line| line.starts_with(name));
            line.and_then(|line| line.split_once(':'))
                .map_or_else(|| "unknown".to_owned(), |(_, value)| value.trim().to_owned())
        };
        let memory = after(&read("/proc/meminfo"), "MemTotal");
        let kilobytes: f64 = memory.trim_end_matches(" kB").parse().unwrap_or(0.0);
        Self {
            processor: after(&read("/proc/cpuinfo"), "model name"),
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            memory: kilobytes / 1024.0 / 1024.0,
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            load: read("/proc/loadavg")
                .split(' ')
                .next()
                .unwrap_or_default()
                .to_owned(),
        }
    }

    pub(crate) fn json(&self) -> Value {
        json!({
            "processor": self.processor,
            "cores": self.cores,
            "memory_gib": self.memory,
            "kernel": self.kernel,
            "load_before": self.load,
        })
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} cores ({}), {:.0} GiB, Linux {}, load before {}",
            self.cores, self.processor, self.memory, self.kernel, self.load
        )
    }
}
