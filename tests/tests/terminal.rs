//! What a command sees of its terminal, its standard streams and its signals through
//! `jobfence run`: the same as without it.

use std::{
    fs::{self, File, OpenOptions},
    io::{BufRead as _, BufReader, Read as _, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use jobfence_tests::{Internet, binary, eventually, run};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::OFlags,
    io::Errno,
    process::{Pid, Signal, kill_process},
    pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt},
    termios::{Winsize, tcsetwinsize},
};

const DEADLINE: Duration = Duration::from_secs(30);

/// Ctrl-C and Ctrl-Z.
const INTERRUPT: &str = "\x03";
const SUSPEND: &str = "\x1a";

/// The words of `jobfence run` for `command`, which may reach nothing.
fn jobfence(internet: &Internet, command: &[&str]) -> Vec<String> {
    let policy = internet.dir().join("policy.yml");
    fs::write(&policy, "version: 1\njobs: {default: {}}\n").expect("a policy file");
    let binary = binary().expect("a binary to test");
    let (binary, policy) = (binary.to_string_lossy(), policy.to_string_lossy());
    let words = [
        &*binary, "run", "--policy", &*policy, "--user", "nobody", "--",
    ];
    words
        .iter()
        .chain(command)
        .map(ToString::to_string)
        .collect()
}

/// A command on the job side, by its words.
fn command(internet: &Internet, words: &[String]) -> Command {
    let mut command = internet.command(&words[0]);
    command.args(&words[1..]);
    command
}

/// A terminal, with a process that leads its session.
struct Terminal {
    keyboard: File,
    child: Child,
    screen: String,
    /// How much of the screen [`Terminal::expect`] has seen.
    seen: usize,
}

impl Terminal {
    /// Starts `words` in the foreground of a new terminal, with `stdout` in its place if given.
    fn start(internet: &Internet, words: &[String], stdout: Option<Stdio>) -> Result<Self> {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let keyboard = openpt(flags)?;
        grantpt(&keyboard)?;
        unlockpt(&keyboard)?;
        let name = ptsname(&keyboard, Vec::new())?.into_string()?;
        let flags = i32::try_from(OFlags::NOCTTY.bits())?;
        let line = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(flags)
            .open(name)?;
        tcsetwinsize(&line, size(24, 80))?;
        let child = internet
            .command("setsid")
            .arg("--ctty")
            .args(words)
            .env("TERM", "dumb")
            .env("PS1", "prompt> ")
            .stdin(line.try_clone()?)
            .stdout(stdout.map_or_else(|| line.try_clone().map(Stdio::from), Ok)?)
            .stderr(line)
            .spawn()?;
        Ok(Self {
            keyboard: keyboard.into(),
            child,
            screen: String::new(),
            seen: 0,
        })
    }

    fn press(&mut self, keys: &str) -> Result<()> {
        Ok(self.keyboard.write_all(keys.as_bytes())?)
    }

    /// Reads what has come, waiting for a moment; false at the end.
    fn read(&mut self) -> Result<bool> {
        let moment = Timespec::try_from(Duration::from_millis(20))?;
        let ready = poll(
            &mut [PollFd::new(&self.keyboard, PollFlags::IN)],
            Some(&moment),
        )?;
        if ready == 0 {
            return Ok(true);
        }
        let mut bytes = [0; 4096];
        match self.keyboard.read(&mut bytes) {
            Ok(0) => Ok(false),
            Ok(count) => {
                self.screen += &String::from_utf8_lossy(&bytes[..count]);
                Ok(true)
            }
            // Nobody has the terminal open any more.
            Err(error) if Errno::from_io_error(&error) == Some(Errno::IO) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Waits until `text` is on the screen, after what earlier calls waited for.
    #[track_caller]
    fn expect(&mut self, text: &str) {
        let deadline = Instant::now() + DEADLINE;
        loop {
            if let Some(at) = self.screen[self.seen..].find(text) {
                self.seen += at + text.len();
                return;
            }
            let open = self.read().expect("the terminal can be read");
            let in_time = Instant::now() < deadline;
            assert!(
                open && in_time,
                "no {text:?} (open: {open}): {}",
                self.screen
            );
        }
    }

    /// Waits for the first process's end and for the rest of what it prints.
    #[track_caller]
    fn end(&mut self) -> ExitStatus {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let status = self.child.try_wait().expect("it can be waited for");
            while self.read().expect("the terminal can be read") && status.is_some() {
                assert!(Instant::now() < deadline, "still open: {}", self.screen);
            }
            if let Some(status) = status {
                return status;
            }
            assert!(Instant::now() < deadline, "does not end: {}", self.screen);
        }
    }

    /// Waits until the process that jobfence leaves to end the job has a process group of its
    /// own, where the terminal's signals do not reach it.
    #[track_caller]
    fn settle(&self) {
        let jobfence = self.child.id().to_string();
        eventually("jobfence's reaper has a process group of its own", || {
            let processes = fs::read_dir("/proc").expect("/proc").flatten();
            processes.map(|process| process.path()).any(|process| {
                let read = |name| fs::read_to_string(process.join(name)).unwrap_or_default();
                // After the name: state, parent, process group (proc(5)).
                let stat = read("stat");
                let (_, fields) = stat.rsplit_once(") ").unwrap_or_default();
                let fields: Vec<_> = fields.split(' ').skip(1).take(2).collect();
                let pid = process.file_name().and_then(|pid| pid.to_str());
                fields == [&*jobfence, pid.unwrap_or_default()]
                    && read("cmdline").contains("\0__reap\0")
            })
        });
    }

    /// Takes the terminal away.
    fn hang_up(&mut self) -> Result<()> {
        self.keyboard = File::open("/dev/null")?;
        Ok(())
    }

    /// Sends `signal` to the first process alone.
    fn signal(&self, signal: Signal) -> Result<()> {
        Ok(kill_process(Pid::from_child(&self.child), signal)?)
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn size(rows: u16, columns: u16) -> Winsize {
    Winsize {
        ws_row: rows,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    }
}

/// Prints each signal that comes, and exits 3 at SIGUSR1. With an argument it does so outside the
/// process group that it was started in.
const SIGNALS: &str = "
import os, signal, sys
wanted = {getattr(signal, 'SIG' + name) for name in 'HUP INT QUIT TERM USR1 USR2'.split()}
signal.pthread_sigmask(signal.SIG_BLOCK, wanted)
if len(sys.argv) > 1: os.setpgid(0, 0)
print('ready', flush=True)
while True:
    name = signal.Signals(signal.sigwaitinfo(wanted).si_signo).name
    if name == 'SIGUSR1': sys.exit(3)
    print('got', name, flush=True)
";

// The terminal.

#[test]
fn ctrl_c_ends_the_command_and_130_is_reported() -> Result<()> {
    let internet = Internet::new()?;
    let words = jobfence(&internet, &["sh", "-c", "echo ready; exec sleep 1000"]);
    let mut terminal = Terminal::start(&internet, &words, None)?;
    terminal.expect("ready");
    terminal.settle();
    terminal.press(INTERRUPT)?;
    assert_eq!(terminal.end().code(), Some(130), "{}", terminal.screen);
    assert!(
        terminal.screen.contains("jobfence: "),
        "no report: {}",
        terminal.screen
    );
    Ok(())
}

#[test]
fn ctrl_c_reaches_the_command_once() -> Result<()> {
    let internet = Internet::new()?;
    // In the foreground the terminal signals it. Elsewhere only jobfence could, and must not.
    for (arguments, times) in [(&[][..], 1), (&["elsewhere"], 0)] {
        let job = [&["python3", "-c", SIGNALS], arguments].concat();
        let mut terminal = Terminal::start(&internet, &jobfence(&internet, &job), None)?;
        terminal.expect("ready");
        terminal.settle();
        terminal.press(INTERRUPT)?;
        if times == 1 {
            terminal.expect("got SIGINT");
        } else {
            terminal.expect("^C");
        }
        // jobfence takes signals in the order of their numbers: after this one it has taken all.
        terminal.signal(Signal::USR1)?;
        assert_eq!(terminal.end().code(), Some(3), "{}", terminal.screen);
        let count = terminal.screen.matches("got SIGINT").count();
        assert_eq!(count, times, "{}", terminal.screen);
    }
    Ok(())
}

#[test]
fn the_size_of_the_window_and_its_changes_are_seen() -> Result<()> {
    let internet = Internet::new()?;
    let script = "
import os, signal
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGWINCH})
def show():
    size = os.get_terminal_size()
    print(f'{size.lines} by {size.columns}', flush=True)
show()
signal.sigwait({signal.SIGWINCH})
show()
";
    let words = jobfence(&internet, &["python3", "-c", script]);
    let mut terminal = Terminal::start(&internet, &words, None)?;
    terminal.expect("24 by 80");
    tcsetwinsize(&terminal.keyboard, size(50, 132))?;
    terminal.expect("50 by 132");
    assert_eq!(terminal.end().code(), Some(0), "{}", terminal.screen);
    Ok(())
}

#[test]
fn a_terminal_is_one_and_a_pipe_is_none() -> Result<()> {
    let internet = Internet::new()?;
    let script = "import os; os.write(2, repr([os.isatty(fd) for fd in (0, 1, 2)]).encode()); \
                  open('/dev/tty', 'w').write('by its name')";
    let words = jobfence(&internet, &["python3", "-c", script]);
    for (stdout, expected) in [
        (None, "[True, True, True]"),
        (Some(Stdio::null()), "[True, False, True]"),
    ] {
        let mut terminal = Terminal::start(&internet, &words, stdout)?;
        terminal.expect(expected);
        terminal.expect("by its name");
        assert_eq!(terminal.end().code(), Some(0), "{}", terminal.screen);
    }
    Ok(())
}

#[test]
fn keys_reach_the_command() -> Result<()> {
    let internet = Internet::new()?;
    let script = "echo ready; read line; echo \"read $line\"; cat; echo end";
    let words = jobfence(&internet, &["sh", "-c", script]);
    let mut terminal = Terminal::start(&internet, &words, None)?;
    terminal.expect("ready");
    terminal.press("words\n")?;
    terminal.expect("read words");
    // Ctrl-D: the end of the input.
    terminal.press("\x04")?;
    terminal.expect("end");
    assert_eq!(terminal.end().code(), Some(0), "{}", terminal.screen);
    Ok(())
}

/// Repeats each line, says when it is continued, and writes its process id to `pid`.
///
/// A signal that comes just before a read would be told after it: by the pipe, none is missed.
const LINES: &str = r"
import os, select, signal
open('pid.new', 'w').write(str(os.getpid()))
os.rename('pid.new', 'pid')
signals, wakeup = os.pipe()
os.set_blocking(wakeup, False)
signal.set_wakeup_fd(wakeup)
signal.signal(signal.SIGCONT, lambda *_: None)
os.write(1, b'ready\n')
while True:
    if signals in select.select([0, signals], [], [])[0]:
        os.read(signals, 99)
        os.write(1, b'continued\n')
        # In the background it reads what is not for it.
        if os.tcgetpgrp(0) == os.getpgrp(): continue
    line = os.read(0, 999)
    if not line: break
    os.write(1, b'read ' + line)
";

/// Starts an interactive shell where there are [`LINES`] as `lines.py` and, as `./job`, `jobfence run` for `command`.
fn shell(internet: &Internet, command: &[&str]) -> Result<Terminal> {
    let quoted: Vec<_> = jobfence(internet, command)
        .iter()
        .map(|word| format!("'{}'", word.replace('\'', "'\\''")))
        .collect();
    let script = format!("exec {}\n", quoted.join(" "));
    fs::write(internet.home().join("job"), script)?;
    fs::write(internet.home().join("lines.py"), LINES)?;
    let words = ["bash", "--norc", "--noprofile", "--noediting", "-i"].map(str::to_owned);
    let mut terminal = Terminal::start(internet, &words, None)?;
    terminal.expect("prompt> ");
    Ok(terminal)
}

/// Waits until the process and its parent are stopped. A shell sees only the latter, and the
/// former may take the next line before it sees the signal.
#[track_caller]
fn stopped(pid: &str) {
    let stat = |pid: &str| -> (String, String) {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("a process");
        let (_, fields) = stat.rsplit_once(") ").expect("fields after the name");
        let mut fields = fields.split(' ').map(str::to_owned);
        let mut next = || fields.next().expect("a field");
        (next(), next())
    };
    eventually("it and its parent are stopped", || {
        let (state, parent) = stat(pid);
        state == "T" && stat(&parent).0 == "T"
    });
}

#[test]
fn a_job_is_stopped_and_continued_by_its_shell() -> Result<()> {
    let internet = Internet::new()?;
    let mut terminal = shell(&internet, &["python3", "lines.py"])?;
    terminal.press("sh ./job\n")?;
    terminal.expect("ready");
    let job = pid(&internet)?;
    for _ in 0..2 {
        terminal.press(SUSPEND)?;
        terminal.expect("Stopped");
        terminal.expect("prompt> ");
        stopped(&job);
        terminal.press("fg\n")?;
        terminal.expect("continued");
        terminal.press("a line\n")?;
        terminal.expect("read a line");
    }
    // Behind the shell it goes on, until it reads what is not for it.
    terminal.press(SUSPEND)?;
    terminal.expect("Stopped");
    terminal.expect("prompt> ");
    stopped(&job);
    terminal.press("bg\n")?;
    terminal.expect("continued");
    stopped(&job);
    terminal.press("fg\n")?;
    terminal.expect("sh ./job\r\n");
    terminal.press("again\n")?;
    terminal.expect("read again");
    terminal.press(INTERRUPT)?;
    terminal.expect("jobfence: ");
    terminal.expect("prompt> ");
    terminal.press("echo code:$?; exit\n")?;
    terminal.expect("code:130");
    assert_eq!(terminal.end().code(), Some(0), "{}", terminal.screen);
    Ok(())
}

#[test]
fn a_shell_in_the_fence_controls_jobs_of_its_own() -> Result<()> {
    let internet = Internet::new()?;
    let inner = ["bash", "--norc", "--noprofile", "--noediting", "-i"];
    let mut terminal = shell(&internet, &inner)?;
    terminal.press("sh ./job\n")?;
    terminal.expect("prompt> ");
    terminal.press("python3 lines.py\n")?;
    terminal.expect("ready");
    terminal.press(SUSPEND)?;
    terminal.expect("Stopped");
    terminal.expect("prompt> ");
    terminal.press("fg\n")?;
    terminal.expect("continued");
    terminal.press("a line\n")?;
    terminal.expect("read a line");
    terminal.press(INTERRUPT)?;
    terminal.expect("prompt> ");
    terminal.press("exit 5\n")?;
    terminal.expect("jobfence: ");
    terminal.expect("prompt> ");
    terminal.press("echo code:$?; exit\n")?;
    terminal.expect("code:5");
    assert_eq!(terminal.end().code(), Some(0), "{}", terminal.screen);
    Ok(())
}

// Signals.

#[test]
fn signals_to_jobfence_reach_the_command_once() -> Result<()> {
    let internet = Internet::new()?;
    let words = jobfence(&internet, &["python3", "-c", SIGNALS]);
    let mut terminal = Terminal::start(&internet, &words, None)?;
    terminal.expect("ready");
    let sent = [
        (Signal::TERM, "SIGTERM"),
        (Signal::INT, "SIGINT"),
        (Signal::HUP, "SIGHUP"),
        (Signal::QUIT, "SIGQUIT"),
        (Signal::USR2, "SIGUSR2"),
    ];
    for (signal, name) in sent {
        terminal.signal(signal)?;
        terminal.expect(&format!("got {name}"));
    }
    terminal.signal(Signal::USR1)?;
    assert_eq!(terminal.end().code(), Some(3), "{}", terminal.screen);
    for (_, name) in sent {
        let count = terminal.screen.matches(&format!("got {name}")).count();
        assert_eq!(count, 1, "{name}: {}", terminal.screen);
    }
    Ok(())
}

#[test]
fn a_signal_that_ends_the_command_is_reported_as_by_a_shell() -> Result<()> {
    let internet = Internet::new()?;
    for (signal, code) in [
        (Signal::HUP, 129),
        (Signal::INT, 130),
        (Signal::QUIT, 131),
        (Signal::TERM, 143),
    ] {
        let words = jobfence(&internet, &["sh", "-c", "echo ready; exec sleep 1000"]);
        let mut terminal = Terminal::start(&internet, &words, None)?;
        terminal.expect("ready");
        terminal.signal(signal)?;
        assert_eq!(terminal.end().code(), Some(code), "{}", terminal.screen);
    }
    Ok(())
}

/// Writes its process id to `pid` and waits.
const WAIT: &str = "echo $$ > pid.new; mv pid.new pid; exec sleep 1000";

fn pid(internet: &Internet) -> Result<String> {
    let file = internet.home().join("pid");
    eventually("the command has begun", || file.exists());
    let pid = fs::read_to_string(&file)?;
    fs::remove_file(file)?;
    Ok(pid.trim().to_owned())
}

/// Whether there is no such process, or only its exit code is left.
fn is_gone(pid: &str) -> bool {
    match fs::read_to_string(format!("/proc/{pid}/stat")) {
        Ok(stat) => stat.contains(") Z "),
        Err(_) => true,
    }
}

#[test]
fn a_job_ends_with_its_terminal() -> Result<()> {
    let internet = Internet::new()?;
    let mut terminal = shell(&internet, &["sh", "-c", WAIT])?;
    terminal.press("sh ./job\n")?;
    let job = pid(&internet)?;
    terminal.hang_up()?;
    eventually("the job ends with its terminal", || is_gone(&job));
    Ok(())
}

/// As under `ssh -t host jobfence run …`: no shell is there to end its jobs.
#[test]
fn a_job_without_a_shell_ends_with_its_terminal() -> Result<()> {
    let internet = Internet::new()?;
    let words = jobfence(&internet, &["sh", "-c", WAIT]);
    let mut terminal = Terminal::start(&internet, &words, None)?;
    let job = pid(&internet)?;
    terminal.hang_up()?;
    eventually("the job ends with its terminal", || is_gone(&job));
    eventually("jobfence ends with its terminal", || {
        matches!(terminal.child.try_wait(), Ok(Some(_)))
    });
    Ok(())
}

/// Prints what becomes of SIGHUP, then waits for the end of the input.
const HANGUP: &str = "
import signal, sys
print(signal.getsignal(signal.SIGHUP).name, flush=True)
sys.stdin.read()
";

#[test]
fn after_nohup_the_command_ignores_hangups() -> Result<()> {
    let internet = Internet::new()?;
    for (nohup, expected, code) in [
        (true, "SIG_IGN\n", Some(0)),
        (false, "SIG_DFL\n", Some(129)),
    ] {
        let mut words = jobfence(&internet, &["python3", "-c", HANGUP]);
        if nohup {
            words.insert(0, "nohup".to_owned());
        }
        let mut child = command(&internet, &words)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let input = child.stdin.take().context("no pipe")?;
        let mut output = BufReader::new(child.stdout.take().context("no pipe")?);
        let mut line = String::new();
        output.read_line(&mut line)?;
        assert_eq!(line, expected);
        kill_process(Pid::from_child(&child), Signal::HUP)?;
        if nohup {
            // It goes on; what ends it is the end of its input.
            drop(input);
        }
        assert_eq!(child.wait()?.code(), code);
    }
    Ok(())
}

// Standard streams.

/// Ten megabytes in which every byte occurs, and no pattern repeats soon.
fn data() -> Vec<u8> {
    let mut state = 1_u64;
    std::iter::repeat_with(|| {
        // Xorshift, by George Marsaglia.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    })
    .take(10_000_000 / 8)
    .flatten()
    .collect()
}

#[test]
fn ten_megabytes_pass_through_both_streams_unchanged() -> Result<()> {
    let internet = Internet::new()?;
    let data = data();
    let mut child = command(&internet, &jobfence(&internet, &["cat"]))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let mut input = child.stdin.take().context("no pipe")?;
    let writer = thread::spawn({
        let data = data.clone();
        move || input.write_all(&data)
    });
    let output = child.wait_with_output()?;
    writer.join().expect("the writer does not panic")?;
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(output.stdout.len(), data.len(), "not all of it, or more");
    assert!(output.stdout == data, "changed on the way");
    let report = String::from_utf8_lossy(&output.stderr);
    assert!(report.starts_with("jobfence: "), "no report: {report}");
    Ok(())
}

#[test]
fn the_report_of_a_violation_is_on_standard_error_only() -> Result<()> {
    let internet = Internet::new()?;
    let script = "
import socket
print('the output')
try: socket.create_connection(('198.51.100.20', 443), 5)
except PermissionError: pass
";
    let words = jobfence(&internet, &["python3", "-c", script]);
    let output = run(&mut command(&internet, &words), DEADLINE)?;
    assert_eq!(output.status.code(), Some(110), "{output:#?}");
    assert_eq!(output.stdout, "the output\n");
    assert!(output.stderr.contains("198.51.100.20:443"), "{output:#?}");
    Ok(())
}

#[test]
fn closed_streams_are_no_obstacle() -> Result<()> {
    let internet = Internet::new()?;
    for close in ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"] {
        // What is closed must not be taken by a file of jobfence's own, which the job would get.
        let script = "for fd in 0 1 2; do readlink /proc/self/fd/$fd; done > streams; exit 7";
        let mut words = jobfence(&internet, &["sh", "-c", script]);
        let shell = format!("exec \"$@\" {close}");
        words.splice(0..0, ["sh", "-c", &shell, "sh"].map(str::to_owned));
        let output = run(&mut command(&internet, &words), DEADLINE)?;
        assert_eq!(output.status.code(), Some(7), "{close}: {output:#?}");
        let streams = fs::read_to_string(internet.home().join("streams"))?;
        let [input, _, errors] = streams.lines().collect::<Vec<_>>()[..] else {
            panic!("{close}: a stream is missing: {streams}");
        };
        // The test's own input is empty; its outputs are memory files.
        assert_eq!(input, "/dev/null", "{close}: {streams}");
        let errors_closed = close.contains("2>");
        assert_eq!(errors == "/dev/null", errors_closed, "{close}: {streams}");
    }
    Ok(())
}

#[test]
fn a_reader_that_leaves_ends_the_command() -> Result<()> {
    let internet = Internet::new()?;
    let mut child = command(&internet, &jobfence(&internet, &["yes"]))
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    let mut output = child.stdout.take().context("no pipe")?;
    output.read_exact(&mut [0; 2])?;
    drop(output);
    // 128 and SIGPIPE.
    assert_eq!(child.wait()?.code(), Some(141));
    Ok(())
}
