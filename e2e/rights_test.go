package e2e

import (
	wire "encoding/binary"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// testUser is a user made for the test: it may call sudo without a password.
type testUser struct {
	name     string
	uid, gid uint32
	home     string
}

func makeUser(t *testing.T) testUser {
	t.Helper()
	name := "prov4ml-e2e-" + strconv.Itoa(os.Getpid())
	must := func(command ...string) {
		t.Helper()
		if out, err := exec.Command(command[0], command[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %v: %s", command, err, out)
		}
	}
	home := filepath.Join("/var/tmp", name)
	must("useradd", "--create-home", "--home-dir", home, "--shell", "/bin/sh", name)
	rule := filepath.Join("/etc/sudoers.d", name)
	t.Cleanup(func() {
		_ = os.Remove(rule)
		_ = exec.Command("userdel", "--remove", "--force", name).Run()
	})
	if err := os.WriteFile(rule, []byte(name+" ALL=(root) NOPASSWD: ALL\n"), 0o440); err != nil {
		t.Fatal(err)
	}
	found, err := user.Lookup(name)
	if err != nil {
		t.Fatal(err)
	}
	uid, _ := strconv.ParseUint(found.Uid, 10, 32)
	gid, _ := strconv.ParseUint(found.Gid, 10, 32)
	return testUser{name, uint32(uid), uint32(gid), home}
}

// as makes a command run as the user, with an environment of the user's own.
func (u testUser) as(cmd *exec.Cmd, more ...string) *exec.Cmd {
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: u.uid, Gid: u.gid}}
	cmd.Dir = u.home
	cmd.Env = append([]string{
		"HOME=" + u.home, "USER=" + u.name, "LOGNAME=" + u.name, "PYTHONDONTWRITEBYTECODE=1",
		"PATH=" + u.home + "/bin:/usr/local/bin:/usr/bin:/bin",
	}, more...)
	return cmd
}

// systemPython is the distribution's: every user may run it.
const systemPython = "/usr/bin/python3"

// giveScript copies a script of testdata to where the user can read it.
func (u testUser) giveScript(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(script(t, name))
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(u.home, name)
	if err := os.WriteFile(path, text, 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestRunWithoutRoot(t *testing.T) {
	u := makeUser(t)
	path := u.giveScript(t, "steps.py")
	out := filepath.Join(u.home, "run")
	j := startJob(t, u.as(exec.Command(binary, "run", "--out", out, "--", systemPython, path, u.home, "4", "2")))
	if code := j.exit(t); code != 0 {
		t.Fatalf("exit status %d", code)
	}
	spans := readSpans(t, filepath.Join(out, "traces.jsonl"))
	for step, size := range []int64{4, 2} {
		s := atStep(t, spans, int64(step+1))
		if s.Attributes["prov4ml.source.disk"] != "procfs" {
			t.Errorf("source.disk is %v, want procfs", s.Attributes["prov4ml.source.disk"])
		}
		// /proc/PID/io counts at the moment a page is dirtied, whole pages.
		if got := s.integer(t, "disk.write_bytes"); got < size*mib || got > size*mib+mib {
			t.Errorf("step %d: written %d, want about %d", step+1, got, size*mib)
		}
		if rss := s.integer(t, "memory.rss_bytes"); rss < mib {
			t.Errorf("memory.rss_bytes is %d", rss)
		}
		if reasons, _ := s.Attributes["prov4ml.unavailable"].([]string); len(reasons) == 0 {
			t.Error("nothing says why eBPF did not answer")
		}
	}
	lines := map[string]int{}
	for line := range strings.Lines(j.err.String()) {
		lines[line]++
		if lines[line] > 1 && strings.TrimSpace(line) != "" {
			t.Errorf("repeated on stderr: %q", line)
		}
	}
}

func TestRunUnderSudo(t *testing.T) {
	u := makeUser(t)
	path := u.giveScript(t, "steps.py")
	out := filepath.Join(u.home, "run")
	// A python of the user's own PATH, which sudo's secure_path does not have.
	if err := os.MkdirAll(filepath.Join(u.home, "bin"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(systemPython, filepath.Join(u.home, "bin", "mypython")); err != nil {
		t.Fatal(err)
	}
	who := filepath.Join(u.home, "who")
	command := `id -u >` + who + `; id -g >>` + who + `; echo "$HOME" >>` + who + `; exec mypython ` + path + ` ` + u.home + ` 4 2`
	j := startJob(t, u.as(exec.Command("sudo", "-n", binary, "run", "--out", out, "--", "sh", "-c", command)))
	if code := j.exit(t); code != 0 {
		t.Fatalf("exit status %d", code)
	}
	text, err := os.ReadFile(who)
	if err != nil {
		t.Fatal(err)
	}
	want := strconv.Itoa(int(u.uid)) + "\n" + strconv.Itoa(int(u.gid)) + "\n" + u.home + "\n"
	if string(text) != want {
		t.Errorf("the command ran as %q, want %q", text, want)
	}
	spans := readSpans(t, filepath.Join(out, "traces.jsonl"))
	for step, size := range []int64{4, 2} {
		s := atStep(t, spans, int64(step+1))
		if s.Attributes["prov4ml.source.disk"] != "ebpf" {
			t.Errorf("source.disk is %v, want ebpf", s.Attributes["prov4ml.source.disk"])
		}
		if got := s.integer(t, "disk.write_bytes"); got != size*mib {
			t.Errorf("step %d: written %d, want %d", step+1, got, size*mib)
		}
	}
	err = filepath.WalkDir(out, func(p string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		if owner := info.Sys().(*syscall.Stat_t).Uid; owner != u.uid {
			t.Errorf("%s belongs to uid %d, want %d", p, owner, u.uid)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestRunGivesTheUserNothingThatWasThere(t *testing.T) {
	u := makeUser(t)
	out := dataDir(t)
	foreign := filepath.Join(out, "foreign")
	if err := os.WriteFile(foreign, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if code := startRun(t, out, []string{"--user", u.name}, "true").exit(t); code != 0 {
		t.Fatalf("exit status %d", code)
	}
	for path, want := range map[string]uint32{
		out: 0, foreign: 0, filepath.Join(out, "records.db"): u.uid, filepath.Join(out, "traces.jsonl"): u.uid, filepath.Join(out, "metrics.jsonl"): u.uid,
	} {
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if owner := info.Sys().(*syscall.Stat_t).Uid; owner != want {
			t.Errorf("%s belongs to uid %d, want %d", path, owner, want)
		}
	}
}

// With file capabilities the dynamic loader takes variables from the agent that are meant for the training.
func TestTrainingGetsItsEnvironmentFromABinaryWithCapabilities(t *testing.T) {
	u := makeUser(t)
	text, err := os.ReadFile(binary)
	if err != nil {
		t.Fatal(err)
	}
	capable := filepath.Join(u.home, "prov4ml-agent")
	if err := os.WriteFile(capable, text, 0o755); err != nil {
		t.Fatal(err)
	}
	// struct vfs_cap_data, revision 2, effective (linux/capability.h): CAP_SYS_PTRACE, CAP_PERFMON and CAP_BPF.
	var data []byte
	for _, word := range []uint32{0x02000001, 1 << unix.CAP_SYS_PTRACE, 0, 1<<(unix.CAP_PERFMON-32) | 1<<(unix.CAP_BPF-32), 0} {
		data = wire.LittleEndian.AppendUint32(data, word)
	}
	if err := unix.Setxattr(capable, "security.capability", data, 0); err != nil {
		t.Fatal(err)
	}
	path := u.giveScript(t, "steps.py")
	out := filepath.Join(u.home, "run")
	command := `echo "$LD_LIBRARY_PATH"; exec ` + systemPython + ` ` + path + ` ` + u.home + ` 4`
	j := startJob(t, u.as(exec.Command(capable, "run", "--out", out, "--", "sh", "-c", command), "LD_LIBRARY_PATH=/opt/cuda"))
	if code := j.exit(t); code != 0 {
		t.Fatalf("exit status %d", code)
	}
	if got, _, _ := strings.Cut(j.out.String(), "\n"); got != "/opt/cuda" {
		t.Errorf("LD_LIBRARY_PATH is %q", got)
	}
	if s := atStep(t, readSpans(t, filepath.Join(out, "traces.jsonl")), 1); s.Attributes["prov4ml.source.disk"] != "ebpf" {
		t.Errorf("source.disk is %v, want ebpf", s.Attributes["prov4ml.source.disk"])
	}
}
