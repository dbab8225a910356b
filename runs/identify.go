package runs

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/prov4ml/agent/probes"
	"github.com/prov4ml/agent/probes/process"
)

var (
	// ErrNamespace says that the kernel has no pid for the caller in the agent's pid namespace.
	ErrNamespace = errors.New("the caller's pid is 0: it lives in another pid namespace than the agent; " +
		"run the agent in the host's pid namespace (Kubernetes: hostPID: true; Docker: --pid=host)")
	// ErrParent says that the caller's parent cannot be logged for.
	ErrParent = errors.New("subject PARENT is refused")
	// ErrGone says that the process had exited before the agent first heard of it.
	ErrGone = process.ErrGone
	// ErrLimit says that a bound on what the agent keeps is reached.
	ErrLimit = errors.New("limit reached")
	// ErrClosed says that the tracker has been closed.
	ErrClosed = errors.New("the agent is stopping")
)

// Caller is a process that speaks to the agent, as the kernel says it.
type Caller struct {
	// Process with StartTicks 0 had exited before it could be pinned; the tracker knows it only if it has spoken before.
	probes.Process
	UID, GID uint32
}

// Identify asks the kernel who is at the other end of conn: the process that called connect, whoever writes to the socket now.
// The pid is pinned by the process's start time, so that a process that gets the same pid later is another caller.
func Identify(conn *net.UnixConn) (Caller, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return Caller{}, fmt.Errorf("identify the caller: %w", err)
	}
	var credentials *unix.Ucred
	var credentialsErr error
	pidfd := -1
	err = raw.Control(func(fd uintptr) {
		credentials, credentialsErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
		// Since 6.5: names the process and not its number, so that a start time read below is surely its own.
		if peer, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_PEERPIDFD); err == nil {
			pidfd = peer
		}
	})
	if pidfd >= 0 {
		defer unix.Close(pidfd)
	}
	if err = errors.Join(err, credentialsErr); err != nil {
		return Caller{}, fmt.Errorf("identify the caller: %w", err)
	}
	caller := Caller{Process: probes.Process{PID: int(credentials.Pid)}, UID: credentials.Uid, GID: credentials.Gid}
	if caller.PID <= 0 {
		return Caller{}, ErrNamespace
	}
	stat, err := process.ReadStat(procRoot, caller.PID)
	if errors.Is(err, process.ErrGone) {
		return caller, nil
	}
	if err != nil {
		return Caller{}, fmt.Errorf("identify the caller: %w", err)
	}
	// Signal 0 to a pidfd fails once the process has been reaped, and only then could its pid be another's. EPERM means it is there.
	if pidfd >= 0 && errors.Is(unix.PidfdSendSignal(pidfd, 0, nil, 0), unix.ESRCH) {
		return caller, nil
	}
	caller.StartTicks = stat.StartTicks
	return caller, nil
}

// Parent returns the caller's parent, for a program that logs for the shell it runs in. It must run as the same user, and it must
// not be pid 1: an orphan's parent is init, whose tree is the machine.
func (c Caller) Parent() (Caller, error) { return c.parent(procRoot) }

// procRoot is where the agent's own procfs is mounted; peer credentials are only meaningful beside it.
const procRoot = "/proc"

func (c Caller) parent(root string) (Caller, error) {
	child, err := pinned(root, c.Process)
	if err != nil {
		return Caller{}, fmt.Errorf("%w: read the caller: %w", ErrParent, err)
	}
	switch child.PPID {
	case 0:
		return Caller{}, fmt.Errorf("%w: the parent of pid %d is in another pid namespace than the agent", ErrParent, c.PID)
	case 1:
		return Caller{}, fmt.Errorf("%w: the parent of pid %d is pid 1 (its own parent has exited, or init started it)", ErrParent, c.PID)
	}
	parent, err := process.ReadStat(root, child.PPID)
	if err != nil {
		return Caller{}, fmt.Errorf("%w: read the parent: %w", ErrParent, err)
	}
	uid, gid, err := owner(root, parent.PID)
	if err != nil {
		return Caller{}, fmt.Errorf("%w: read the parent's user: %w", ErrParent, err)
	}
	// The child still has this parent: so the pid was the parent's while its start time and its user were read.
	again, err := pinned(root, c.Process)
	if err != nil || again.PPID != parent.PID {
		return Caller{}, fmt.Errorf("%w: the parent of pid %d has just exited", ErrParent, c.PID)
	}
	if uid != c.UID {
		return Caller{}, fmt.Errorf("%w: pid %d runs as uid %d, its parent pid %d as uid %d: only the same user may log for it",
			ErrParent, c.PID, c.UID, parent.PID, uid)
	}
	return Caller{Process: parent.Process, UID: uid, GID: gid}, nil
}

// pinned reads the stat of p and proves that the pid is still p's.
func pinned(root string, p probes.Process) (process.Stat, error) {
	stat, err := process.ReadStat(root, p.PID)
	if err == nil && stat.StartTicks != p.StartTicks {
		err = ErrGone
	}
	return stat, err
}

// owner returns the effective user and group of a process: who owns its directory in procfs. A process that is not dumpable has
// its files owned by root (proc_pid(5)) but not the directory.
func owner(root string, pid int) (uid, gid uint32, err error) {
	var stat unix.Stat_t
	name := root + "/" + strconv.Itoa(pid)
	if err := unix.Stat(name, &stat); err != nil {
		return 0, 0, &os.PathError{Op: "stat", Path: name, Err: err}
	}
	return stat.Uid, stat.Gid, nil
}
