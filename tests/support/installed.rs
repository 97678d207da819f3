//! Programs of others, each installed once into a folder of the build, in the versions that the test names.
//! Where one cannot be installed, its test says so and is skipped.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// Runs a command to its end; what it says if it fails.
pub(crate) fn run(command: &mut Command) -> Result<(), String> {
    let output = command.stdin(Stdio::null()).output();
    let program = command.get_program().display();
    let output = output.map_err(|error| format!("{program}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let words = String::from_utf8_lossy(&output.stderr);
    Err(format!("{program}: {}", words.trim()))
}

/// Packages of npm; the folder that has them.
pub(crate) fn of_node(name: &str, packages: &[&str]) -> Result<PathBuf, String> {
    run(Command::new("node").arg("--version"))?;
    install(name, &packages.join(" "), |folder| {
        let mut npm = Command::new("npm");
        npm.args([
            "install",
            "--no-audit",
            "--no-fund",
            "--ignore-scripts",
            "--prefix",
        ])
        .arg(folder)
        .args(packages);
        run(&mut npm)
    })
}

/// A package of PyPI; the folder of its virtual environment.
pub(crate) fn of_python(name: &str, package: &str) -> Result<PathBuf, String> {
    install(name, package, |folder| {
        run(Command::new("python3").args(["-m", "venv"]).arg(folder))?;
        let mut pip = Command::new(folder.join("bin/python"));
        pip.args([
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
            package,
        ]);
        run(&mut pip)
    })
}

/// Installs once what a marker names.
fn install(
    name: &str,
    marker: &str,
    commands: impl Fn(&Path) -> Result<(), String>,
) -> Result<PathBuf, String> {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let done = folder.join("installed");
    if std::fs::read_to_string(&done).is_ok_and(|text| text == marker) {
        return Ok(folder);
    }
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).map_err(|error| error.to_string())?;
    commands(&folder)?;
    std::fs::write(done, marker).map_err(|error| error.to_string())?;
    Ok(folder)
}

/// A process that is killed when it is dropped.
pub(crate) struct Killed(pub(crate) Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
