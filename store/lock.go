package store

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// lockPoll is how often a waiting Open tries again.
const lockPoll = 50 * time.Millisecond

// fileLock is a flock(2) on a file beside the store: it falls when its holder dies, however it dies.
type fileLock struct{ file *os.File }

// acquire takes the lock, trying for as long as wait says. The file holds its owner's pid, for people.
func acquire(ctx context.Context, path string, wait time.Duration) (*fileLock, error) {
	deadline := time.Now().Add(wait)
	for {
		l, err := tryAcquire(path)
		if err == nil || !errors.Is(err, ErrLocked) || !time.Now().Before(deadline) {
			return l, err
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("wait for the store's lock: %w", context.Cause(ctx))
		case <-time.After(lockPoll):
		}
	}
}

func tryAcquire(path string) (*fileLock, error) {
	for {
		file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_CLOEXEC, 0o644)
		if err != nil {
			return nil, fmt.Errorf("open the store's lock: %w", err)
		}
		err = unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		switch {
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.EWOULDBLOCK):
			owner := owner(file)
			_ = file.Close()
			return nil, fmt.Errorf("%s%s: %w", path, owner, ErrLocked)
		case err != nil:
			_ = file.Close()
			return nil, fmt.Errorf("lock %s: %w", path, err)
		case sameFile(file, path):
			l := &fileLock{file: file}
			l.sign()
			return l, nil
		}
		// Its last owner has removed the file since we opened it: another one may be there.
		_ = file.Close()
	}
}

// owner reads who holds the lock, for the error message.
func owner(file *os.File) string {
	var b [32]byte
	n, _ := file.ReadAt(b[:], 0)
	if pid := strings.TrimSpace(string(b[:n])); pid != "" {
		return " (process " + pid + ")"
	}
	return ""
}

func sameFile(file *os.File, path string) bool {
	a, err := file.Stat()
	if err != nil {
		return false
	}
	b, err := os.Stat(path)
	return err == nil && os.SameFile(a, b)
}

// sign writes our pid into the lock. A full disk must not keep the agent from starting, so an error is passed over.
func (l *fileLock) sign() {
	if err := l.file.Truncate(0); err == nil {
		_, _ = fmt.Fprintf(l.file, "%d\n", os.Getpid())
	}
}

// release removes the file and then gives the lock up, in this order: who takes the lock in between sees that the file is gone.
func (l *fileLock) release() {
	_ = os.Remove(l.file.Name())
	_ = l.file.Close()
}
