package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// binary is the agent, built once for all tests.
var binary string

func TestMain(m *testing.M) { os.Exit(buildAndRun(m)) }

func buildAndRun(m *testing.M) int {
	dir, err := os.MkdirTemp("", "prov4ml-e2e-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o755); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	binary = filepath.Join(dir, "prov4ml-agent")
	build := exec.Command("go", "build", "-o", binary, "../cmd/agent")
	build.Stdout, build.Stderr = os.Stderr, os.Stderr
	if err := build.Run(); err != nil {
		fmt.Fprintln(os.Stderr, "build the agent:", err)
		return 1
	}
	return m.Run()
}

// python is the interpreter of the training scripts; those of testdata need its standard library only.
func python() string {
	if p := os.Getenv("PYTHON"); p != "" {
		return p
	}
	return "python3"
}

func script(t *testing.T, name string) string {
	t.Helper()
	path, err := filepath.Abs(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// dataDir is a directory on a disk: t.TempDir may be a tmpfs, which no block device sees.
func dataDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/var/tmp", "prov4ml-e2e-")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// output is what a process prints, readable while it runs.
type output struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.String()
}

// job is a started process with its input open.
type job struct {
	*exec.Cmd
	out, err output
	input    io.WriteCloser
	waited   chan struct{}
}

func startJob(t *testing.T, cmd *exec.Cmd) *job {
	t.Helper()
	j := &job{Cmd: cmd, waited: make(chan struct{})}
	cmd.Stdout, cmd.Stderr = &j.out, &j.err
	input, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	j.input = input
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		_ = cmd.Wait()
		close(j.waited)
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-j.waited
		if t.Failed() {
			t.Logf("%v\nstdout: %s\nstderr: %s", cmd.Args, tail(j.out.String()), tail(j.err.String()))
		}
	})
	return j
}

func tail(text string) string {
	const keep = 6000
	if len(text) > keep {
		return "... " + text[len(text)-keep:]
	}
	return text
}

// awaitText waits until the process has printed the text.
func (j *job) awaitText(t *testing.T, text string) {
	t.Helper()
	await(t, fmt.Sprintf("%q on the output of %v", text, j.Args), func() bool {
		return strings.Contains(j.out.String(), text)
	})
}

// exit waits for the end and returns the exit status, 128+n for signal n.
func (j *job) exit(t *testing.T) int {
	t.Helper()
	select {
	case <-j.waited:
	case <-time.After(2 * time.Minute):
		t.Fatalf("%v did not end in two minutes", j.Args)
	}
	status := j.ProcessState.Sys().(syscall.WaitStatus)
	if status.Signaled() {
		return 128 + int(status.Signal())
	}
	return status.ExitStatus()
}

// await polls, for a generous time: a slow machine must not fail the test.
func await(t *testing.T, what string, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		if done() {
			return
		}
	}
	t.Fatalf("waited a minute for %s", what)
}

// runCommand is `prov4ml-agent run --out DIR flags -- command`.
func runCommand(dir string, flags []string, command ...string) *exec.Cmd {
	args := append([]string{"run", "--out", dir}, flags...)
	args = append(args, "--")
	args = append(args, command...)
	cmd := exec.Command(binary, args...)
	cmd.Env = trainingEnvironment()
	return cmd
}

func startRun(t *testing.T, dir string, flags []string, command ...string) *job {
	t.Helper()
	return startJob(t, runCommand(dir, flags, command...))
}

// trainingEnvironment is the test's, without what would steer the agent or Python.
func trainingEnvironment(more ...string) []string {
	var env []string
	for _, entry := range os.Environ() {
		if !strings.HasPrefix(entry, "PROV4ML_") && !strings.HasPrefix(entry, "OTEL_") {
			env = append(env, entry)
		}
	}
	return append(append(env, "PYTHONDONTWRITEBYTECODE=1"), more...)
}

// serve is a running daemon.
type serve struct {
	*job
	socket, state, out string
}

// startServe starts a daemon in directories of its own and waits until it is ready.
func startServe(t *testing.T, dir string, flags ...string) *serve {
	t.Helper()
	s := newServe(dir)
	// A test that restarts it without a gap brings a place for pins. The others leave nothing behind in the kernel.
	if !slices.Contains(flags, "--pin-dir") {
		flags = append(flags, "--no-pin")
	}
	s.start(t, s.command(append(flags, "--out", s.out)...))
	return s
}

func newServe(dir string) *serve {
	return &serve{
		socket: filepath.Join(dir, "agent.sock"),
		state:  filepath.Join(dir, "state"),
		out:    filepath.Join(dir, "out"),
	}
}

func (s *serve) command(flags ...string) *exec.Cmd {
	args := append([]string{"serve", "--socket", s.socket, "--socket-mode", "0666", "--state", s.state}, flags...)
	cmd := exec.Command(binary, args...)
	cmd.Env = trainingEnvironment()
	return cmd
}

// start waits until the socket answers.
func (s *serve) start(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	s.job = startJob(t, cmd)
	await(t, "the agent's socket", func() bool {
		conn, err := net.Dial("unix", s.socket)
		if err == nil {
			conn.Close()
		}
		select {
		case <-s.waited:
			t.Fatalf("serve ended: %s", s.job.err.String())
		default:
		}
		return err == nil
	})
}

// stop ends the daemon as systemd does, and waits.
func (s *serve) stop(t *testing.T) {
	t.Helper()
	if err := s.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		t.Fatal(err)
	}
	if code := s.exit(t); code != 0 {
		t.Fatalf("serve ended with status %d after SIGTERM: %s", code, s.job.err.String())
	}
}

// clientCommand is a script of testdata with the client of the tree on its path and the daemon's socket.
func clientCommand(t *testing.T, socket, name string, args ...string) *exec.Cmd {
	t.Helper()
	client, err := filepath.Abs("../client/python")
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(context.Background(), python(), append([]string{script(t, name)}, args...)...)
	cmd.Env = trainingEnvironment("PYTHONPATH="+client, "PROV4ML_AGENT_SOCKET="+socket)
	return cmd
}
