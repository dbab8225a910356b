package runs

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/prov4ml/agent/probes"
)

// listen opens a socket and returns its path and the accepted connections.
func listen(t *testing.T) (string, *net.UnixListener) {
	t.Helper()
	name := filepath.Join(t.TempDir(), "s")
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: name, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = listener.Close() })
	return name, listener
}

const connect = `import socket, sys
s = socket.socket(socket.AF_UNIX)
s.connect(sys.argv[1])
s.sendall(b"x")
s.recv(1)
`

func TestIdentifySaysWhoConnected(t *testing.T) {
	name, listener := listen(t)
	cmd := exec.Command("python3", "-c", connect, name)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	conn, err := listener.AcceptUnix()
	if err != nil {
		t.Fatal(err)
	}
	got, err := Identify(conn)
	if err != nil {
		t.Fatal(err)
	}
	if want := callerOf(t, cmd.Process.Pid); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	parent, err := got.Parent()
	if want := callerOf(t, os.Getpid()); err != nil || parent != want {
		t.Errorf("parent %+v, want %+v: %v", parent, want, err)
	}
	_ = conn.Close()
	_ = cmd.Wait()
	if _, err := got.Parent(); !errors.Is(err, ErrParent) || !errors.Is(err, ErrGone) {
		t.Errorf("parent of one that is gone: %v", err)
	}
}

func TestIdentifyOneThatIsGone(t *testing.T) {
	name, listener := listen(t)
	cmd := exec.Command("python3", "-c", strings.ReplaceAll(connect, "s.recv(1)", ""), name)
	if err := cmd.Run(); err != nil {
		t.Fatal(err)
	}
	conn, err := listener.AcceptUnix()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	got, err := Identify(conn)
	if err != nil || got.PID != cmd.Process.Pid || got.StartTicks != 0 {
		t.Errorf("%+v %v", got, err)
	}
}

func TestParentThatIsRefused(t *testing.T) {
	root := t.TempDir()
	write := func(pid, ppid int, start uint64) {
		t.Helper()
		directory := filepath.Join(root, fmt.Sprint(pid))
		if err := os.MkdirAll(directory, 0o700); err != nil {
			t.Fatal(err)
		}
		text := fmt.Sprintf("%d (sh) S %d 1 1 0 -1 4 1 1 1 1 1 1 1 1 20 0 1 0 %d 0 0\n", pid, ppid, start)
		if err := os.WriteFile(filepath.Join(directory, "stat"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(10, 0, 5)
	write(11, 1, 5)
	write(1, 0, 1)
	write(12, 99, 5)
	write(20, 2, 8)
	write(21, 20, 9)
	me := uint32(os.Getuid())
	for name, row := range map[string]struct {
		caller Caller
		say    string
	}{
		"outside the namespace": {Caller{Process: probes.Process{PID: 10, StartTicks: 5}, UID: me}, "another pid namespace"},
		"init":                  {Caller{Process: probes.Process{PID: 11, StartTicks: 5}, UID: me}, "pid 1"},
		"gone":                  {Caller{Process: probes.Process{PID: 12, StartTicks: 5}, UID: me}, "gone"},
		"caller's pid reused":   {Caller{Process: probes.Process{PID: 21, StartTicks: 7}, UID: me}, "gone"},
		"another user's":        {Caller{Process: probes.Process{PID: 21, StartTicks: 9}, UID: me + 1}, fmt.Sprintf("uid %d", me)},
	} {
		t.Run(name, func(t *testing.T) {
			if got, err := row.caller.parent(root); !errors.Is(err, ErrParent) || !strings.Contains(err.Error(), row.say) {
				t.Errorf("%+v %v", got, err)
			}
		})
	}
	good := Caller{Process: probes.Process{PID: 21, StartTicks: 9}, UID: me}
	if got, err := good.parent(root); err != nil || got.PID != 20 || got.StartTicks != 8 || got.UID != me {
		t.Errorf("%+v %v", got, err)
	}
}

// The other end is in a pid namespace that ours cannot see into, when ours is the inner one.
func TestCallerFromAnotherNamespace(t *testing.T) {
	if os.Getenv("PROV4ML_TEST_NAMESPACE") == "" {
		// A copy of this test as pid 1 of a namespace of its own, with the listener inside and the caller (we) outside.
		name := filepath.Join(t.TempDir(), "s")
		cmd := exec.Command(os.Args[0], "-test.run", "^TestCallerFromAnotherNamespace$")
		cmd.Env = append(os.Environ(), "PROV4ML_TEST_NAMESPACE="+name)
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID}
		if os.Getuid() != 0 {
			cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		}
		var out strings.Builder
		cmd.Stdout, cmd.Stderr = &out, &out
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the inner listener is there", func() bool {
			conn, err := net.Dial("unix", name)
			if err != nil {
				return false
			}
			t.Cleanup(func() { _ = conn.Close() })
			return true
		})
		if err := cmd.Wait(); err != nil {
			t.Fatalf("%v\n%s", err, out.String())
		}
		return
	}
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: os.Getenv("PROV4ML_TEST_NAMESPACE"), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	conn, err := listener.AcceptUnix()
	if err != nil {
		t.Fatal(err)
	}
	if got, err := Identify(conn); !errors.Is(err, ErrNamespace) || !strings.Contains(err.Error(), "hostPID: true") {
		t.Errorf("%+v %v", got, err)
	}
}
