package server

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// MaxPathBytes is the longest path that bind(2) takes: sun_path has 108 bytes and a terminating NUL.
const MaxPathBytes = 107

// ErrInUse says that another process answers on the socket.
var ErrInUse = errors.New("the socket is in use")

// ErrPathTooLong says that the kernel cannot bind the path.
var ErrPathTooLong = errors.New("the socket path is too long")

// SocketConfig says where callers find the agent, and who may connect.
type SocketConfig struct {
	// Path of the socket, at most MaxPathBytes long. Its directory is made (mode 0755) when it is missing. Required.
	Path string
	// Mode of the socket; 0 = 0660. Writing is what lets a caller connect.
	Mode fs.FileMode
	// Group of the socket, by name or number. Empty = prov4ml if there is such a group, else root's, as far as this process may
	// set it.
	Group string
	// Wait bounds how long to wait for another agent that is about to end; 0 = not at all.
	Wait time.Duration
}

// DefaultGroup is the group of the socket where it exists.
const DefaultGroup = "prov4ml"

const (
	defaultSocketMode = 0o660
	socketRetry       = 100 * time.Millisecond
)

// socket is a bound, listening Unix socket and the lock that goes with it.
//
// The lock file beside the socket (PATH.lock) closes the race of two agents that both find a dead socket, and it is never
// removed: a file that is removed while another process waits for it locks nothing.
type socket struct {
	*net.UnixListener
	path string
	// Device and inode of the socket file: only this file is removed at the end.
	dev, ino uint64
	lock     *os.File
}

// listen binds the socket. While another process answers on it, it tries again until cfg.Wait has passed.
func listen(ctx context.Context, cfg SocketConfig) (*socket, error) {
	if cfg.Path == "" {
		return nil, errors.New("no socket path is given")
	}
	if cfg.Path[0] == '@' {
		return nil, fmt.Errorf("%q names an abstract socket, which no pod sees: give a path", cfg.Path)
	}
	if n := len(cfg.Path); n > MaxPathBytes {
		return nil, fmt.Errorf("%w: %q has %d bytes, the kernel binds at most %d: choose a shorter one", ErrPathTooLong, cfg.Path, n, MaxPathBytes)
	}
	gid, err := socketGroup(cfg.Group)
	if err != nil {
		return nil, err
	}
	mode := cfg.Mode
	if mode == 0 {
		mode = defaultSocketMode
	}
	if err := makeDirectory(filepath.Dir(cfg.Path)); err != nil {
		return nil, fmt.Errorf("make the socket's directory: %w", err)
	}

	deadline := time.Now().Add(cfg.Wait)
	for {
		s, err := tryListen(cfg.Path)
		if err == nil {
			if err := s.restrict(mode, gid); err != nil {
				return nil, errors.Join(err, s.Close())
			}
			return s, nil
		}
		if !errors.Is(err, ErrInUse) {
			return nil, err
		}
		left := time.Until(deadline)
		if left <= 0 {
			return nil, err
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("wait for the socket: %w", context.Cause(ctx))
		case <-time.After(min(left, socketRetry)):
		}
	}
}

// makeDirectory makes what is missing. Who may connect is said by the socket's mode, so the umask must not shut the directory.
func makeDirectory(dir string) error {
	if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	return os.Chmod(dir, 0o755)
}

func tryListen(path string) (*socket, error) {
	lock, err := os.OpenFile(path+".lock", os.O_RDWR|os.O_CREATE|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open the socket's lock: %w", err)
	}
	s, err := lockAndBind(path, lock)
	if err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	return s, nil
}

func lockAndBind(path string, lock *os.File) (*socket, error) {
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); errors.Is(err, unix.EWOULDBLOCK) {
		return nil, fmt.Errorf("%w: another agent holds %s", ErrInUse, lock.Name())
	} else if err != nil {
		return nil, fmt.Errorf("lock %s: %w", lock.Name(), err)
	}
	if err := removeStale(path); err != nil {
		return nil, err
	}
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("listen: %w", err)
	}
	// The file is removed by Close, and only if it is still this one.
	ln.SetUnlinkOnClose(false)
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return nil, errors.Join(fmt.Errorf("stat %s: %w", path, err), ln.Close())
	}
	return &socket{UnixListener: ln, path: path, dev: st.Dev, ino: st.Ino, lock: lock}, nil
}

// removeStale removes a socket file on which nobody answers. Any other file is left alone.
func removeStale(path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("look at the socket: %w", err)
	}
	if info.Mode().Type() != fs.ModeSocket {
		return fmt.Errorf("%s exists and is no socket: remove it, or choose another path", path)
	}
	c, err := net.DialTimeout("unix", path, time.Second)
	switch {
	case err == nil:
		pid := "?"
		if cred, err := peerCredentials(c.(*net.UnixConn)); err == nil {
			pid = strconv.Itoa(int(cred.Pid))
		}
		return errors.Join(fmt.Errorf("%w: process %s answers on %s", ErrInUse, pid, path), c.Close())
	case errors.Is(err, unix.ECONNREFUSED):
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove the dead socket: %w", err)
		}
		return nil
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case errors.Is(err, unix.EAGAIN), errors.Is(err, os.ErrDeadlineExceeded):
		// The listener's backlog is full: it lives.
		return fmt.Errorf("%w: somebody listens on %s and does not accept", ErrInUse, path)
	default:
		return fmt.Errorf("try the socket that exists: %w", err)
	}
}

func peerCredentials(c *net.UnixConn) (*unix.Ucred, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return nil, err
	}
	var cred *unix.Ucred
	var credErr error
	if err := raw.Control(func(fd uintptr) {
		cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil {
		return nil, err
	}
	return cred, credErr
}

// restrict sets group and mode. Between bind and here the socket has the umask's mode; who connects in that moment can, as
// ever, only speak for itself.
func (s *socket) restrict(mode fs.FileMode, gid int) error {
	if gid >= 0 {
		if err := os.Lchown(s.path, -1, gid); err != nil {
			return fmt.Errorf("give the socket to group %d (that takes root, or being in the group): %w", gid, err)
		}
	}
	if err := os.Chmod(s.path, mode); err != nil {
		return fmt.Errorf("set the socket's mode: %w", err)
	}
	return nil
}

// socketGroup returns the group id to set, or -1 to leave it.
func socketGroup(name string) (int, error) {
	if name == "" {
		if os.Geteuid() != 0 {
			return -1, nil
		}
		if gid, err := lookupGroup(DefaultGroup); err == nil {
			return gid, nil
		}
		return 0, nil
	}
	gid, err := lookupGroup(name)
	if err != nil {
		return 0, fmt.Errorf("the socket's group %q: %w", name, err)
	}
	return gid, nil
}

func lookupGroup(name string) (int, error) {
	if gid, err := strconv.ParseUint(name, 10, 31); err == nil {
		return int(gid), nil
	}
	g, err := user.LookupGroup(name)
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(g.Gid)
}

// Close stops listening and removes the file. It may be called twice.
func (s *socket) Close() error {
	err := s.UnixListener.Close()
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	var st unix.Stat_t
	if unix.Lstat(s.path, &st) == nil && st.Dev == s.dev && st.Ino == s.ino {
		err = errors.Join(err, os.Remove(s.path))
	}
	return errors.Join(err, s.lock.Close())
}
