package main

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// ownEnvironment is the environment that the agent was started with, which is meant for the training too. os.Environ is not that
// where the binary has capabilities of its own (setcap): the dynamic loader has then taken out LD_LIBRARY_PATH, LD_PRELOAD, TMPDIR
// and others (ld.so(8), secure-execution mode). The kernel still has them.
func ownEnvironment() []string {
	const path = "/proc/self/environ"
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrPermission) {
		// The files in procfs of a process that has gained capabilities are root's, unless it is dumpable. Its capabilities keep it
		// from being traced as well, so to be that for a moment gives nothing away.
		if err = unix.Prctl(unix.PR_SET_DUMPABLE, 1, 0, 0, 0); err == nil {
			text, err = os.ReadFile(path)
			err = errors.Join(err, unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0))
		}
	}
	if err != nil || len(text) == 0 {
		return os.Environ()
	}
	return strings.Split(string(bytes.TrimRight(text, "\x00")), "\x00")
}
