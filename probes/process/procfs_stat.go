package process

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/prov4ml/agent/probes"
)

// Stat is what /proc/PID/stat says of a process (proc_pid_stat(5)); its threads are included, its children are not unless said so.
type Stat struct {
	probes.Process
	// Comm is the name of the main thread, at most 15 bytes.
	Comm string
	// State is R, S, D, Z ...
	State byte
	// PPID is the parent's pid; 0 = the parent is outside the pid namespace.
	PPID int
	// MinorFaults and MajorFaults, and those of children that it has waited for.
	MinorFaults, ChildMinorFaults, MajorFaults, ChildMajorFaults uint64
	// CPUTicks is user and system time in ticks of USER_HZ (100 a second), ChildCPUTicks that of children that it has waited for.
	CPUTicks, ChildCPUTicks uint64
}

// Zombie says that the process has exited and waits for its parent.
func (s *Stat) Zombie() bool { return s.State == 'Z' || s.State == 'X' }

// TickNanos is one tick of USER_HZ, in which /proc gives times. It is 100 a second on every architecture that Go and Linux share.
const TickNanos = 10_000_000

var errStat = errors.New("malformed")

// ReadStat reads /proc/PID/stat below procRoot. It returns ErrGone when there is no such process.
func ReadStat(procRoot string, pid int) (Stat, error) {
	var buffer [1024]byte
	text, err := readProc(procRoot+"/"+strconv.Itoa(pid)+"/stat", buffer[:0])
	if err != nil {
		return Stat{}, err
	}
	stat, err := parseStat(text)
	if err != nil {
		return Stat{}, fmt.Errorf("read %s/%d/stat: %w", procRoot, pid, err)
	}
	return stat, nil
}

// parseStat reads the fields by their place. comm may hold any byte, parentheses and spaces included, so it ends at the last ")".
func parseStat(text []byte) (Stat, error) {
	open, end := bytes.IndexByte(text, '('), bytes.LastIndexByte(text, ')')
	if open < 0 || end < open {
		return Stat{}, errStat
	}
	var stat Stat
	pid, err := strconv.Atoi(string(bytes.TrimSpace(text[:open])))
	if err != nil || pid <= 0 {
		return Stat{}, errStat
	}
	stat.PID, stat.Comm = pid, string(text[open+1:end])
	const first, last = 3, 22 // of the fields of proc_pid_stat(5)
	fields := bytes.Fields(text[end+1:])
	if len(fields) < last-first+1 || len(fields[0]) != 1 {
		return Stat{}, errStat
	}
	stat.State = fields[0][0]
	number := func(field int) uint64 {
		// cutime and cstime are signed in the kernel's format; none of these is ever negative.
		value, parseErr := strconv.ParseUint(string(fields[field-first]), 10, 64)
		err = errors.Join(err, parseErr)
		return value
	}
	stat.PPID = int(number(4))
	stat.MinorFaults, stat.ChildMinorFaults = number(10), number(11)
	stat.MajorFaults, stat.ChildMajorFaults = number(12), number(13)
	stat.CPUTicks, stat.ChildCPUTicks = number(14)+number(15), number(16)+number(17)
	stat.StartTicks = number(22)
	if err != nil {
		return Stat{}, errStat
	}
	return stat, nil
}

// readProc reads a small file of procfs into buffer. A process that exits while its file is open gives ESRCH on reading.
func readProc(name string, buffer []byte) ([]byte, error) {
	fd, err := unix.Open(name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, procError(name, err)
	}
	defer unix.Close(fd)
	for {
		if len(buffer) == cap(buffer) {
			buffer = append(buffer, 0)[:len(buffer)]
		}
		n, err := unix.Read(fd, buffer[len(buffer):cap(buffer)])
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return nil, procError(name, err)
		case n == 0:
			return buffer, nil
		}
		buffer = buffer[:len(buffer)+n]
	}
}

func procError(name string, err error) error {
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("read %s: %w", name, ErrGone)
	}
	return fmt.Errorf("read %s: %w", name, &os.SyscallError{Syscall: "open or read", Err: err})
}
