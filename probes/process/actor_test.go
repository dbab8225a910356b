package process

import (
	"bufio"
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/prov4ml/agent/probes"
	"github.com/prov4ml/agent/probes/process/internal/actor"
)

// The kernel tests need processes that do known things. The test binary runs itself, or, where it is slow to start, a program with
// nothing else in it.
func TestMain(m *testing.M) {
	actor.Main()
	os.Exit(m.Run())
}

// actorProgram is a variable of the environment: a program to run as actor.
const actorProgram = "PROCESS_TEST_ACTOR_PROGRAM"

type step = actor.Step

// played is a running actor, seen from the test. Its first step is a pause.
type played struct {
	t       *testing.T
	command *exec.Cmd
	out     *bufio.Reader
	in      io.WriteCloser
	errors  strings.Builder
	probes.Process
}

// play starts an actor, which waits for next.
func play(t *testing.T, steps ...step) *played {
	t.Helper()
	script, err := json.Marshal(append([]step{{Do: "pause"}}, steps...))
	if err != nil {
		t.Fatal(err)
	}
	program := os.Getenv(actorProgram)
	if program == "" {
		program = "/proc/self/exe"
	}
	a := &played{t: t, command: exec.Command(program)}
	a.command.Env = append(os.Environ(), actor.Variable+"="+string(script))
	a.command.Stderr = &a.errors
	a.command.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	a.command.WaitDelay = time.Second
	out, err := a.command.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	a.out = bufio.NewReader(out)
	if a.in, err = a.command.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	if err := a.command.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if a.command.ProcessState == nil {
			_ = unix.Kill(-a.command.Process.Pid, unix.SIGKILL)
			_ = a.command.Wait()
		}
	})
	a.paused()
	a.Process = identify(t, a.command.Process.Pid)
	return a
}

func identify(t *testing.T, pid int) probes.Process {
	t.Helper()
	stat, err := ReadStat("/proc", pid)
	if err != nil {
		t.Fatal(err)
	}
	return stat.Process
}

// paused waits until the actor is at a pause.
func (a *played) paused() {
	a.t.Helper()
	if _, err := a.out.ReadString('\n'); err != nil {
		_ = a.command.Wait()
		a.t.Fatalf("actor did not come to its pause: %v: %s", err, a.errors.String())
	}
}

// blocked waits until the actor stands still at its pause: what it wrote to say so is in its counters only then.
func (a *played) blocked() {
	a.t.Helper()
	for range 1000 {
		stat, err := ReadStat("/proc", a.command.Process.Pid)
		if err != nil {
			a.t.Fatal(err)
		}
		if stat.State == 'S' {
			return
		}
		time.Sleep(time.Millisecond)
	}
	a.t.Fatal("the actor runs on at its pause")
}

// next lets the actor go on from its pause.
func (a *played) next() {
	a.t.Helper()
	if _, err := io.WriteString(a.in, "\n"); err != nil {
		a.t.Fatal(err)
	}
}

// end lets the actor go on and waits for it and for all that hold its output: its orphans too.
func (a *played) end() {
	a.t.Helper()
	a.next()
	if _, err := io.Copy(io.Discard, a.out); err != nil {
		a.t.Fatal(err)
	}
	if err := a.command.Wait(); err != nil {
		a.t.Fatalf("actor: %v: %s", err, a.errors.String())
	}
}
