package host

import (
	"errors"
	"fmt"
	"io/fs"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/prov4ml/agent/record"
)

// Disk returns how full the file system is that path names in the root of process pid, in percent as df has it: of the blocks
// that an ordinary user may fill. The empty path and "/" are the root file system itself.
//
// It is one statfs on /proc/PID/root, the root that the process sees, so a container's own file system is measured. A network
// file system that does not answer holds up the caller: paths on one are the user's choice, the root is not one as a rule.
func (p *Probe) Disk(pid int, path string) Value {
	name := p.config.ProcRoot + "/" + strconv.Itoa(pid) + "/root"
	if path != "" && path != "/" {
		name += "/" + path
	}
	var stat unix.Statfs_t
	var err error
	for {
		if err = unix.Statfs(name, &stat); !errors.Is(err, unix.EINTR) {
			break
		}
	}
	switch {
	case errors.Is(err, fs.ErrPermission):
		return Value{State: record.State_UNSUPPORTED, Reason: fmt.Sprintf(
			"disk usage of %s: permission denied: run the agent as the same user, or give it CAP_SYS_PTRACE", name)}
	case errors.Is(err, fs.ErrNotExist):
		return Value{State: record.State_ABSENT, Reason: fmt.Sprintf("disk usage of %s: the process has exited or has no such path", name)}
	case err != nil:
		return Value{State: record.State_UNSUPPORTED, Reason: fmt.Sprintf("disk usage of %s: %v", name, err)}
	}
	used := stat.Blocks - min(stat.Bfree, stat.Blocks)
	if used+stat.Bavail == 0 {
		return Value{State: record.State_ABSENT, Reason: fmt.Sprintf("disk usage of %s: the file system has no size", name)}
	}
	return Value{Percent: 100 * float64(used) / float64(used+stat.Bavail), State: record.State_OK}
}
