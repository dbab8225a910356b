//go:build linux

package actor

import (
	"errors"
	"syscall"

	"golang.org/x/sys/unix"
)

// crowd holds n children that do nothing. At a first pause's end half of them end and n come; at a second one's all end.
func crowd(n int) error {
	var children []int
	grow := func() error {
		for range n {
			pid, errno := forkIdle()
			if errno != 0 {
				return errno
			}
			children = append(children, pid)
		}
		return Step{Do: "pause"}.Act()
	}
	shrink := func(by int) (err error) {
		for _, pid := range children[:by] {
			err = errors.Join(err, unix.Kill(pid, unix.SIGKILL))
			_, waitErr := unix.Wait4(pid, nil, 0, nil)
			err = errors.Join(err, waitErr)
		}
		children = children[by:]
		return err
	}
	err := grow()
	if err == nil {
		err = errors.Join(shrink(n/2), grow())
	}
	return errors.Join(err, shrink(len(children)))
}

// forkIdle forks a child that waits to be killed, without exec: n programs would take minutes to start on an emulated machine. The
// child has this one thread only, so that it must not run anything of Go's runtime.
//
//go:norace
//go:nosplit
func forkIdle() (int, syscall.Errno) {
	pid, _, errno := syscall.RawSyscall6(syscall.SYS_CLONE, uintptr(syscall.SIGCHLD), 0, 0, 0, 0, 0)
	if pid != 0 || errno != 0 {
		return int(pid), errno
	}
	syscall.RawSyscall6(syscall.SYS_PRCTL, unix.PR_SET_PDEATHSIG, uintptr(syscall.SIGKILL), 0, 0, 0, 0)
	for {
		syscall.RawSyscall6(syscall.SYS_PPOLL, 0, 0, 0, 0, 0, 0)
	}
}
