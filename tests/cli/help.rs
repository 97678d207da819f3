//! `--help` of every command, one file each.

use super::transcript::{Program, Transcript};

#[test]
fn help_of_every_command() {
    let program = Program::new();
    let (_, overview, _) = program.run(&["--help"], &[]);
    let mut transcript = Transcript::default();
    for argument in ["--help", "--version"] {
        transcript.command(&[argument], &[], program.output(&[argument], &[]));
    }
    transcript
        .hide(r"cloud-sync \d+\.\d+\.\d+", "cloud-sync [VERSION]")
        .assert("help", "cloud-sync");
    for command in commands(&overview) {
        let mut transcript = Transcript::default();
        let help = [command.as_str(), "--help"];
        transcript.command(&help, &[], program.output(&help, &[]));
        let (_, text, _) = program.run(&help, &[]);
        for action in commands(&text) {
            let help = [command.as_str(), &action, "--help"];
            transcript.command(&help, &[], program.output(&help, &[]));
        }
        transcript.assert("help", &command);
    }
}

/// The commands that a help text lists, but for `help` itself.
fn commands(help: &str) -> Vec<String> {
    let lines = help.lines().skip_while(|line| *line != "Commands:").skip(1);
    lines
        .take_while(|line| !line.is_empty())
        // A command's own line is indented by two; a line that goes on with its text by more.
        .filter(|line| line.starts_with("  ") && !line.starts_with("   "))
        .filter_map(|line| line.split_whitespace().next())
        .filter(|name| *name != "help")
        .map(str::to_owned)
        .collect()
}

#[test]
fn config_explain() {
    let mut transcript = Transcript::default();
    transcript.command(
        &["config", "--explain"],
        &[],
        Program::new().output(&["config", "--explain"], &[]),
    );
    transcript.assert("reports", "config-explain");
}

#[test]
fn shells_and_man_know_every_command() {
    let program = Program::new();
    for shell in ["bash", "zsh", "fish"] {
        let (code, printed, _) = program.run(&["completions", shell], &[]);
        assert_eq!(code, 0);
        for command in ["setup", "backfill", "quarantine", "why"] {
            assert!(printed.contains(command), "{shell}: {command}");
        }
    }
    assert_eq!(program.run(&["man"], &[]).0, 0);
    let page = std::fs::read_to_string(program.folder.path().join("cloud-sync-quarantine-retry.1"));
    assert!(page.unwrap().contains(".SH"));
    let (code, _, printed) = program.run(&["man", "--dir", "nowhere"], &[]);
    assert_eq!(code, 1);
    assert!(printed.contains("--dir"), "{printed}");
}
